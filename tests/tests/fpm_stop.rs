//! SIGQUIT to php-fpm with `process_control_timeout = 0`: it kills its busy children, and the pod's nginx answers 502.

mod common;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::time::Duration;
use why502::model::incident::Cause;
use why502_tests::guard::{self, wait};
use why502_tests::ledger::{self, Rules};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};
use why502_tests::truth;

#[test]
fn quit_without_a_control_timeout() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let runs = guard::number("RUNS", 2);
    let (mut cut, mut bad) = (0, Vec::new());
    for run in 1..=runs {
        let result = one()?;
        println!("SIGQUIT to php-fpm, run {run}: {result}");
        cut += result.by_cause.get(Cause::FpmControlTimeoutZero.id()).copied().unwrap_or(0);
        bad.extend(result.complaints().into_iter().map(|c| format!("run {run}: {c}")));
    }
    println!("SIGQUIT to php-fpm: {cut} requests cut by the timeout of 0 in {runs} runs, {} deviations", bad.len());
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    ensure!(cut > 0, "no request was cut in a busy child: the scenario did not happen");
    Ok(())
}

fn one() -> Result<ledger::Comparison> {
    let fpm = FpmConf { children: 6, process_control_timeout: 0, ..FpmConf::default() };
    let site = Site::start(&SiteConf { fpm: Some(fpm), ..SiteConf::default() })?;
    let watch = Tracer::watch(&tracer::binary()?, &[])?;
    // More connections than children: some wait in php-fpm's accept queue.
    let mut conf = LoadConf::new(site.pod_addr(false), "/slow.php?ms=150");
    conf.connections = 10;
    conf.refused_pause = Duration::from_millis(100);
    let load = Load::start(Some(site.client.path()), conf)?;
    wait("60 answers", Duration::from_secs(60), || Progress::get(&load.progress.answered) >= 60)?;
    let Some(fpm) = &site.fpm else { unreachable!("this site has php-fpm") };
    fpm.container.signal(Signal::SIGQUIT)?;
    wait("the 502s", Duration::from_secs(30), || Progress::get(&load.progress.errors) >= 30)?;
    let requests = load.stop()?;
    let seen = site.started_scripts()?;
    let rules = Rules { made: &[502], seen, allowed: &truth::fpm_quit_without_timeout };
    let lost = requests.iter().filter(|r| ledger::is_lost(r, rules.made)).count();
    watch.wait_for(lost, &site)?;
    let said = watch.stop()?;
    common::check_schema(&said)?;
    Ok(ledger::compare(&requests, &said.claims(&site), &rules))
}
