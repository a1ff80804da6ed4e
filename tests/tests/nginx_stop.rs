//! SIGTERM and SIGQUIT to nginx under load: every request that the client lost has one incident, with an allowed cause.
//!
//! `RUNS=20` for the full figure.

mod common;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;
use why502_tests::guard::{self, wait};
use why502_tests::ledger::{self, Rules};
use why502_tests::load::{Load, LoadConf, Progress, Request, write_ledger};
use why502_tests::nginx::{Listen, NginxConf};
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};
use why502_tests::truth;

/// So many attempts are refused after the stop before the load ends.
const REFUSED: u64 = 60;

/// How nginx listens, whether the client comes by IPv6, workers, a listening socket per worker.
type Variant = (Listen, bool, u32, bool);

/// Taken in turn, from the second on.
const VARIANTS: [Variant; 4] = [
    (Listen::Mapped, false, 1, false),
    (Listen::V4, false, 1, false),
    (Listen::Both, true, 2, true),
    (Listen::V4, false, 2, false),
];

#[test]
fn term_under_busy_keep_alive_connections() -> Result<()> {
    runs(Signal::SIGTERM, true)
}

#[test]
fn term_under_a_connection_per_request() -> Result<()> {
    runs(Signal::SIGTERM, false)
}

#[test]
fn quit_under_busy_keep_alive_connections() -> Result<()> {
    runs(Signal::SIGQUIT, true)
}

#[test]
fn quit_under_a_connection_per_request() -> Result<()> {
    runs(Signal::SIGQUIT, false)
}

fn runs(signal: Signal, keep_alive: bool) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let runs = guard::number("RUNS", 2);
    let (mut lost, mut bad) = (0, Vec::new());
    for run in 1..=runs {
        let result = one(signal, keep_alive, VARIANTS[run as usize % VARIANTS.len()])?;
        println!("{signal}, keep-alive {keep_alive}, run {run}: {result}");
        lost += result.lost_total();
        bad.extend(result.complaints_in(runs).into_iter().map(|c| format!("run {run}: {c}")));
    }
    println!("{signal}, keep-alive {keep_alive}: {lost} lost requests in {runs} runs, {} deviations", bad.len());
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

fn one(signal: Signal, keep_alive: bool, variant: Variant) -> Result<ledger::Comparison> {
    let (listen, v6, workers, reuseport) = variant;
    let nginx = NginxConf { listen, workers, reuseport, ..NginxConf::default() };
    let site = Site::start(&SiteConf { nginx, fpm: Some(FpmConf::default()), ..SiteConf::default() })?;
    let recording = site.dir.join("stop.rec");
    let watch = Tracer::watch(&tracer::binary()?, &["--record".as_ref(), recording.as_os_str()])?;
    let mut conf = LoadConf::new(site.pod_addr(v6), "/static");
    // Mostly fast answers, as a busy pod gives; some that php works on at any moment.
    conf.more_paths = ["/static", "/fast.php", "/static", "/slow.php?ms=30"].map(String::from).to_vec();
    (conf.connections, conf.keep_alive, conf.max_refused) = (40, keep_alive, Some(REFUSED));
    let load = Load::start(Some(site.client.path()), conf)?;
    wait("2000 answers", Duration::from_secs(60), || Progress::get(&load.progress.answered) >= 2000)?;
    site.nginx.container.signal(signal)?;
    wait("the refused attempts", Duration::from_secs(60), || load.finished())?;
    let requests = load.join()?;
    let seen = site.started_scripts()?;
    let lost = requests.iter().filter(|r| ledger::is_lost(r, &[])).count();
    ensure!(lost as u64 >= REFUSED, "only {lost} requests were lost: the stop did not happen");
    watch.wait_for(lost, &site)?;
    let said = watch.stop()?;
    ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
    common::check_schema(&said)?;
    let replayed = tracer::explain(&tracer::binary()?, &recording, &["-o", "json"])?;
    ensure!(replayed.lines().eq(said.lines.iter()), "the replay of the recording says something else");
    let allowed = truth::nginx_stop(signal == Signal::SIGTERM);
    let result = ledger::compare(&requests, &said.claims(&site), &Rules { made: &[], seen, allowed: &allowed });
    if !result.exact() {
        keep(&recording, &requests)?;
    }
    Ok(result)
}

/// A deviation is looked into with what was seen: the recording and the client's ledger outlive the site.
fn keep(recording: &Path, requests: &[Request]) -> Result<()> {
    let base = std::env::temp_dir().join(format!("deviation-{}-{}", std::process::id(), guard::serial()));
    std::fs::copy(recording, base.with_extension("rec"))?;
    write_ledger(&base.with_extension("jsonl"), requests)?;
    println!("kept: {}.rec, .jsonl", base.display());
    Ok(())
}
