//! why502 is started again in the middle of a stop: what had told the server to end it cannot have seen. What it then says
//! is right, or it says that it does not know and what is missing; it is never certain of something wrong.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal::{SIGKILL, SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::model::incident::{Cause, Level};
use why502_tests::guard::{self, boot_ns, wait};
use why502_tests::ledger::{self, Rules};
use why502_tests::load::{LoadConf, Outcome, Progress, Request};
use why502_tests::nginx::NginxConf;
use why502_tests::php::FpmConf;
use why502_tests::scene::{Allowed, LIMIT, Loads, Scene};
use why502_tests::schema;
use why502_tests::site::{Site, SiteConf};
use why502_tests::supervised::{self, Order};
use why502_tests::tracer::{Tracer, binary};

const SLOW: usize = 8;
const REFUSED: u64 = 5;

struct Case<'a> {
    name: &'a str,
    conf: SiteConf,
    slow_ms: u32,
    in_php: usize,
    made: &'a [u16],
    /// Before the restart, and after it.
    before: &'a dyn Fn(&Scene) -> Result<()>,
    after: &'a dyn Fn(&Scene) -> Result<()>,
    /// Besides `unexplained`.
    allowed: Allowed<'a>,
    /// Something lost after the restart is told with this cause.
    told: Cause,
}

fn play(case: &Case) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{}: skipped: {why}", case.name);
        return Ok(());
    }
    let _turn = guard::turn()?;
    for run in 1..=guard::number("RUNS", 1) {
        one(case, run)?;
    }
    Ok(())
}

fn one(case: &Case, run: u64) -> Result<()> {
    let site = Site::start(&case.conf)?;
    let first = Tracer::watch(&binary()?, &[])?;
    let mut slow = LoadConf::new(site.pod_addr(false), &format!("/slow.php?ms={}", case.slow_ms));
    (slow.connections, slow.timeout) = (SLOW, Duration::from_secs(100));
    (slow.refused_pause, slow.prefix) = (Duration::from_millis(200), "slow".into());
    let mut fast = LoadConf::new(site.pod_addr(false), "/static");
    (fast.connections, fast.keep_alive) = (2, false);
    (fast.think, fast.refused_pause) = (Duration::from_millis(20), Duration::from_millis(200));
    fast.prefix = "fast".into();
    let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: case.in_php, fast: Some(fast), answered: 20 })?;
    (case.before)(&scene)?;
    first.stop()?;
    let second = Tracer::watch(&binary()?, &[])?;
    let ready = boot_ns();
    (case.after)(&scene)?;
    let mut over = scene.end()?;
    // What was lost while nobody looked is not asked for.
    over.requests.retain(|r| r.t_end > ready);
    second.wait_for(over.lost(case.made), &over.site)?;
    let said = second.stop()?;
    schema::check(&said)?;
    let known = |r: &Request, started: bool| (case.allowed)(r, started);
    let rules = Rules {
        made: case.made,
        seen: over.site.started_scripts()?,
        allowed: &known,
        mechanisms: &ledger::any_mechanism,
    };
    let result = ledger::compare(&over.requests, &said.claims(&over.site), &rules);
    println!("{}, run {run}: {result}", case.name);
    // As in Comparison::complaints_in(): the races at a listener's close last microseconds.
    let misses = usize::from(guard::number("RUNS", 1) < 20);
    ensure!(result.missed.len() <= misses, "missed: {}", result.complaints().join("\n"));
    ensure!(result.false_incidents.is_empty(), "{}", result.complaints().join("\n"));
    let wrong: Vec<_> = result.wrong_cause.iter().filter(|(_, c)| c.cause != Cause::Unexplained).collect();
    ensure!(wrong.is_empty(), "wrong: {wrong:#?}");
    let here = over.site.territory();
    for i in said.incidents.iter().filter(|i| here.owns(i.server.ip, i.server.netns)) {
        let open = i.confidence.level == Level::Certain || !i.missing.is_empty();
        let lowered = !i.confidence.lowered_by.is_empty();
        ensure!(open || lowered, "{} is neither certain nor says why not: {i:#?}", i.summary);
        let late = i.missing.iter().any(|m| m.fact == "started-late");
        ensure!(i.cause != Cause::Unexplained || late, "not explained, and not because of the start: {i:#?}");
    }
    let told = result.by_cause.get(case.told.id()).copied().unwrap_or(0);
    ensure!(told > 0, "nothing is told as {}: {result}", case.told);
    Ok(())
}

fn site(children: u32, control_timeout: u32) -> SiteConf {
    let fpm = FpmConf { children, process_control_timeout: control_timeout, ..FpmConf::default() };
    SiteConf { nginx: NginxConf::default(), fpm: Some(fpm), ..SiteConf::default() }
}

/// So many more attempts are refused.
fn refused_more(scene: &Scene) -> Result<()> {
    let refused = || scene.count(|p| &p.refused);
    let until = refused() + REFUSED;
    wait("refused attempts", LIMIT, || refused() >= until)
}

fn quit(scene: &Scene) -> Result<()> {
    scene.site.nginx.container.signal(SIGQUIT)?;
    refused_more(scene)
}

/// All slow requests have ended, and some more attempts were refused.
fn cut(scene: &Scene) -> Result<()> {
    wait("the cut requests", LIMIT, || scene.slow.iter().all(|l| Progress::get(&l.progress.failed) >= SLOW as u64))?;
    refused_more(scene)
}

fn graceful(cause: &'static [Cause]) -> impl Fn(&Request, bool) -> &'static [Cause] {
    move |r, started| match (r.outcome, started) {
        // Who had closed the listener was not seen; once nginx is gone it still was not.
        (Outcome::Refused, _) => &[Cause::EndpointRace],
        (_, true) => cause,
        (_, false) => &[],
    }
}

/// nginx drains when why502 is started again, and this ends it.
fn while_draining(name: &str, after: &dyn Fn(&Scene) -> Result<()>, cause: &'static [Cause]) -> Result<()> {
    play(&Case {
        name,
        conf: site(2 * SLOW as u32, 0),
        slow_ms: 90_000,
        in_php: SLOW,
        made: &[],
        before: &quit,
        after,
        allowed: &graceful(cause),
        told: cause[0],
    })
}

#[test]
fn between_quit_and_term() -> Result<()> {
    let term = |scene: &Scene| {
        refused_more(scene)?;
        scene.site.nginx.container.signal(SIGTERM)?;
        cut(scene)
    };
    while_draining("restart between QUIT and TERM", &term, &[Cause::QuitThenTerm])
}

#[test]
fn between_quit_and_kill() -> Result<()> {
    let kill = |scene: &Scene| {
        scene.site.nginx.container.signal(SIGKILL)?;
        cut(scene)
    };
    while_draining("restart between QUIT and KILL", &kill, &[Cause::GracePeriodExceeded])
}

#[test]
fn while_php_fpm_finishes() -> Result<()> {
    let children = SLOW as u32 / 2;
    play(&Case {
        name: "restart while php-fpm finishes",
        conf: site(children, 100),
        slow_ms: 40_000,
        in_php: children as usize,
        made: &[502],
        before: &|scene| {
            let queued = || scene.slow.iter().all(|l| Progress::get(&l.progress.in_flight) >= SLOW as u64);
            wait("all slow requests", LIMIT, queued)?;
            scene.site.signal_php(SIGQUIT)
        },
        after: &|scene| {
            let wanted = u64::from(children) + REFUSED;
            wait("the 502s", 2 * LIMIT, || scene.count(|p| &p.errors) >= wanted)
        },
        allowed: &|_, _| &[Cause::FpmAcceptQueueDropped, Cause::FpmNotListening],
        told: Cause::Unexplained,
    })
}

#[test]
fn while_supervisord_stops_php_fpm() -> Result<()> {
    if let Err(why) = supervised::binary() {
        println!("supervisord: skipped: {why}");
        return Ok(());
    }
    let children = SLOW as u32 / 2;
    let supervisor = Order { stopwaitsecs: Some(100), ..Order::default() };
    play(&Case {
        name: "restart while supervisord stops php-fpm",
        conf: SiteConf { supervised: true, supervisor, ..site(children, 100) },
        slow_ms: 40_000,
        in_php: children as usize,
        made: &[502],
        before: &|scene| {
            let queued = || scene.slow.iter().all(|l| Progress::get(&l.progress.in_flight) >= SLOW as u64);
            wait("all slow requests", LIMIT, queued)?;
            scene.site.nginx.container.signal(SIGTERM)
        },
        after: &|scene| {
            let refused = || scene.count(|p| &p.refused) >= REFUSED;
            wait("refused attempts", 2 * LIMIT, refused)
        },
        allowed: &|r, _| match r.outcome {
            Outcome::HttpError { .. } => {
                &[Cause::SupervisorStopOrder, Cause::FpmAcceptQueueDropped, Cause::FpmNotListening]
            }
            Outcome::Refused => &[Cause::EndpointRace],
            _ => &[Cause::NginxAcceptQueueDropped, Cause::KeepaliveRaceOnShutdown],
        },
        told: Cause::EndpointRace,
    })
}
