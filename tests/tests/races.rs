//! Keep-alive races: the server closes a connection while the client's next request is on its way. A path with a delay makes
//! the window wide enough to hit it every time.

mod common;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::time::Duration;
use why502::model::incident::Cause;
use why502_tests::guard::{self, wait};
use why502_tests::ledger::{self, Comparison, Rules};
use why502_tests::load::{Load, LoadConf, Outcome, Progress, Request};
use why502_tests::nginx::NginxConf;
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};
use why502_tests::truth;
use why502_tests::tun::Trouble;

type Allowed<'a> = &'a dyn Fn(&Request, bool) -> &'static [Cause];

fn slow_path(keepalive_timeout: u32, delay: Duration) -> SiteConf {
    SiteConf {
        nginx: NginxConf { keepalive_timeout, ..NginxConf::default() },
        fpm: Some(FpmConf::default()),
        trouble: Some(Trouble { delay, ..Trouble::default() }),
        ..SiteConf::default()
    }
}

/// Ends the load's observation and compares.
fn judged(site: &Site, watch: Tracer, requests: &[Request], allowed: Allowed) -> Result<Comparison> {
    let lost = requests.iter().filter(|r| ledger::is_lost(r, &[])).count();
    watch.wait_for(lost, site)?;
    let said = watch.stop()?;
    common::check_schema(&said)?;
    let rules = Rules { made: &[], seen: site.started_scripts()?, allowed };
    Ok(ledger::compare(requests, &said.claims(site), &rules))
}

fn runs(name: &str, cause: Cause, one: impl Fn() -> Result<Comparison>) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let (mut races, mut bad) = (0, Vec::new());
    for run in 1..=guard::number("RUNS", 2) {
        let result = one()?;
        println!("{name}, run {run}: {result}");
        races += result.by_cause.get(cause.id()).copied().unwrap_or(0);
        bad.extend(result.complaints().into_iter().map(|c| format!("run {run}: {c}")));
    }
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    ensure!(races > 0, "{name}: no request was lost in a race: the scenario did not happen");
    Ok(())
}

#[test]
fn idle_timeout_meets_the_next_request() -> Result<()> {
    runs("keep-alive race", Cause::KeepaliveRace, || {
        let delay = Duration::from_millis(40);
        let site = Site::start(&slow_path(1, delay))?;
        let watch = Tracer::watch(&tracer::binary()?, &[])?;
        let mut conf = LoadConf::new(site.pod_addr(false), "/static");
        // The server's second begins when it has answered, one delay before the client has the answer. A request that
        // leaves within (1 s - 2 delays, 1 s) after that meets the close.
        (conf.connections, conf.think) = (20, Duration::from_millis(960));
        let load = Load::start(Some(site.client.path()), conf)?;
        wait("40 lost requests", Duration::from_secs(60), || Progress::get(&load.progress.failed) >= 40)?;
        let requests = load.stop()?;
        judged(&site, watch, &requests, &truth::keepalive_race)
    })
}

#[test]
fn quit_meets_requests_on_their_way() -> Result<()> {
    runs("SIGQUIT over a slow path", Cause::KeepaliveRaceOnShutdown, || {
        let site = Site::start(&slow_path(75, Duration::from_millis(15)))?;
        let watch = Tracer::watch(&tracer::binary()?, &[])?;
        let mut conf = LoadConf::new(site.pod_addr(false), "/static");
        conf.more_paths = vec!["/fast.php".into()];
        (conf.connections, conf.max_refused) = (40, Some(60));
        let load = Load::start(Some(site.client.path()), conf)?;
        wait("1000 answers", Duration::from_secs(60), || Progress::get(&load.progress.answered) >= 1000)?;
        site.nginx.container.signal(Signal::SIGQUIT)?;
        wait("the refused attempts", Duration::from_secs(60), || load.finished())?;
        let requests = load.join()?;
        ensure!(requests.iter().any(|r| r.outcome == Outcome::Refused), "the listener did not close");
        judged(&site, watch, &requests, &truth::nginx_stop(false))
    })
}
