//! why502 started too late, or just in time: what it cannot know it must not claim.
//!
//! Every incident belongs to a lost request, and one that says `certain` has a right cause. Losses of the time
//! before `ready` may be missed.

mod common;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use why502::model::incident::Level;
use why502_tests::guard::{self, wait};
use why502_tests::ledger::{self, Rules};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};
use why502_tests::truth;

#[derive(Clone, Copy, Debug)]
enum Start {
    /// In the middle of the load, ready before the signal.
    MidLoad,
    /// So long before the signal, ready or not.
    Before(Duration),
    After(Duration),
}

#[test]
fn in_the_middle_of_load() -> Result<()> {
    runs(Start::MidLoad)
}

#[test]
fn just_before_the_term() -> Result<()> {
    runs(Start::Before(Duration::from_millis(200)))
}

#[test]
fn just_after_the_term() -> Result<()> {
    runs(Start::After(Duration::from_millis(200)))
}

fn runs(start: Start) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{start:?}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    for run in 1..=guard::number("RUNS", 2) {
        one(start, run)?;
    }
    Ok(())
}

fn one(start: Start, run: u64) -> Result<()> {
    let site = Site::start(&SiteConf { fpm: Some(FpmConf::default()), ..SiteConf::default() })?;
    let mut conf = LoadConf::new(site.pod_addr(false), "/static");
    conf.more_paths = vec!["/fast.php".into(), "/slow.php?ms=30".into()];
    conf.connections = 40;
    let load = Load::start(Some(site.client.path()), conf)?;
    wait("1000 answers", Duration::from_secs(60), || Progress::get(&load.progress.answered) >= 1000)?;
    let watch = || Tracer::start_unready(&tracer::binary()?, &["watch".as_ref(), "-o".as_ref(), "json".as_ref()]);
    let term = || site.nginx.container.signal(Signal::SIGTERM);
    // The distance between the two is the scenario itself, so here time is waited for.
    let apart = |d: Duration| {
        let since = Instant::now();
        wait("the distance", d + Duration::from_secs(9), || since.elapsed() >= d)
    };
    let ready = |watch: &Tracer| wait("ready", Duration::from_secs(90), || watch.ready());
    let watch = match start {
        Start::MidLoad => {
            let watch = watch()?;
            ready(&watch)?;
            term()?;
            watch
        }
        Start::Before(d) => {
            let watch = watch()?;
            apart(d)?;
            term()?;
            watch
        }
        Start::After(d) => {
            term()?;
            apart(d)?;
            watch()?
        }
    };
    ready(&watch)?;
    let refused = Progress::get(&load.progress.refused);
    wait("refused attempts", Duration::from_secs(60), || Progress::get(&load.progress.refused) >= refused + 60)?;
    let requests = load.stop()?;
    let lost = requests.iter().filter(|r| ledger::is_lost(r, &[])).count();
    watch.wait_for(lost, &site)?;
    let said = watch.stop()?;
    common::check_schema(&said)?;
    let rules = Rules {
        made: &[],
        seen: site.started_scripts()?,
        allowed: &truth::nginx_stop(true),
        mechanisms: &ledger::any_mechanism,
    };
    let result = ledger::compare(&requests, &said.claims(&site), &rules);
    println!("{start:?}, run {run}: {result}");
    ensure!(result.false_incidents.is_empty(), "{}", result.complaints().join("\n"));
    let certain: Vec<_> = result.wrong_cause.iter().filter(|(_, c)| c.level == Level::Certain).collect();
    ensure!(certain.is_empty(), "certain, and wrong: {certain:?}");
    let ours = said.incidents.iter().filter(|i| site.owns(i.server.ip, i.server.netns));
    for incident in ours.filter(|i| i.confidence.level != Level::Certain) {
        ensure!(!incident.missing.is_empty(), "{} is not certain and does not say what is missing", incident.id);
    }
    if let Start::After(_) = start {
        // The port was closed before anybody could see that it had listened: no verdict, but no silence either.
        let told = said.stderr.iter().any(|line| line.contains("nobody was seen to listen on"));
        ensure!(told, "refused connections were passed over in silence: {}", said.stderr.join("\n"));
    }
    if let Start::MidLoad = start {
        ensure!(result.exact(), "{}", result.complaints().join("\n"));
    }
    Ok(())
}
