//! Stops that go wrong with slow requests in flight: a drain that is cut off, a kill, a signal that nobody hears, php-fpm's
//! fast end, a supervisor's order. Every request that the client lost has one incident, with an allowed cause.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal::{self, SIGHUP, SIGKILL, SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::model::incident::Cause;
use why502_tests::guard::{self, wait};
use why502_tests::ledger::Comparison;
use why502_tests::load::LoadConf;
use why502_tests::nginx::NginxConf;
use why502_tests::php::FpmConf;
use why502_tests::pod::{Container, Pid1};
use why502_tests::scene::{Allowed, LIMIT, Loads, Scene, Watch, pass};
use why502_tests::site::{Site, SiteConf};
use why502_tests::{supervised, truth};

/// Connections with a request that php works on, and those with fast ones beside them.
const SLOW: usize = 12;
const FAST: usize = 12;
/// So many attempts of each load are refused before it ends.
const REFUSED: u64 = 20;

/// A scene, and the tracer beside it.
struct Play {
    name: &'static str,
    scene: Scene,
    watch: Watch,
}

impl Play {
    /// Returns when php works on `busy` slow requests, and the fast ones flow.
    fn start(name: &'static str, conf: &SiteConf, slow_ms: u32, busy: usize, fast: Option<bool>) -> Result<Self> {
        let site = Site::start(conf)?;
        let watch = Watch::of(&site)?;
        let fast = fast.map(|keep_alive| {
            let mut conf = LoadConf::new(site.pod_addr(false), "/static");
            (conf.connections, conf.keep_alive, conf.max_refused) = (FAST, keep_alive, Some(REFUSED));
            conf.think = Duration::from_millis(2);
            conf.prefix = "fast".into();
            conf
        });
        let mut slow = LoadConf::new(site.pod_addr(false), &format!("/slow.php?ms={slow_ms}"));
        (slow.connections, slow.max_refused) = (SLOW, Some(REFUSED));
        slow.refused_pause = Duration::from_millis(50);
        slow.prefix = "slow".into();
        let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: busy, fast, answered: 200 })?;
        Ok(Self { name, scene, watch })
    }

    fn judged(self, made: &[u16], allowed: Allowed) -> Result<Comparison> {
        self.scene.end()?.judged(self.name, self.watch, made, allowed)
    }
}

fn runs(name: &str, cause: Cause, one: impl Fn(u64) -> Result<Comparison>) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let runs = guard::number("RUNS", 2);
    let (mut lost, mut of_cause, mut bad) = (0, 0, Vec::new());
    for run in 1..=runs {
        let result = one(run)?;
        println!("{name}, run {run}: {result}");
        lost += result.lost_total();
        let now = result.by_cause.get(cause.id()).copied().unwrap_or(0);
        if now == 0 {
            bad.push(format!("run {run}: nothing was lost to {cause}: the scenario did not happen"));
        }
        of_cause += now;
        bad.extend(result.complaints_in(runs).into_iter().map(|c| format!("run {run}: {c}")));
    }
    println!("{name}: {lost} lost requests in {runs} runs, {of_cause} of {cause}, {} deviations", bad.len());
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

/// php has a child for every slow request.
fn plenty() -> FpmConf {
    FpmConf { children: 2 * SLOW as u32 + 4, ..FpmConf::default() }
}

fn site(nginx: NginxConf) -> SiteConf {
    SiteConf { nginx, fpm: Some(plenty()), ..SiteConf::default() }
}

/// Taken in turn: workers, keep-alive of the fast load.
fn variant(run: u64) -> (NginxConf, Option<bool>) {
    (NginxConf { workers: 1 + u32::from(run.is_multiple_of(2)), ..NginxConf::default() }, Some(run % 2 == 1))
}

fn php_container(site: &Site) -> &Container {
    let Some(fpm) = &site.fpm else { unreachable!("this site has php-fpm") };
    &fpm.container
}

#[test]
fn quit_then_term() -> Result<()> {
    runs("quit then term", Cause::QuitThenTerm, |run| {
        let (nginx, fast) = variant(run);
        let play = Play::start("quit then term", &site(nginx), 3000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGQUIT)?;
        play.scene.listener_closed()?;
        pass(100 * (run % 3) + 50)?;
        play.scene.site.nginx.container.signal(SIGTERM)?;
        play.scene.refused()?;
        play.judged(&[], &truth::nginx_drain(&[Cause::QuitThenTerm]))
    })
}

#[test]
fn the_grace_period_ends() -> Result<()> {
    runs("grace period", Cause::GracePeriodExceeded, |run| {
        let (nginx, fast) = variant(run);
        let play = Play::start("grace period", &site(nginx), 5000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGQUIT)?;
        pass(1000)?;
        play.scene.site.nginx.container.signal(SIGKILL)?;
        play.scene.refused()?;
        play.judged(&[], &truth::nginx_drain(&[Cause::GracePeriodExceeded]))
    })
}

#[test]
fn killed_without_a_word() -> Result<()> {
    runs("nginx killed", Cause::ContainerKilled, |run| {
        let (nginx, fast) = variant(run);
        let play = Play::start("nginx killed", &site(nginx), 5000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGKILL)?;
        play.scene.refused()?;
        play.judged(&[], &truth::always(&[Cause::ContainerKilled]))
    })
}

#[test]
fn pid_1_is_a_shell() -> Result<()> {
    runs("shell as PID 1", Cause::Pid1IgnoresStopSignal, |run| {
        let (nginx, fast) = variant(run);
        let nginx = NginxConf { pid1: Pid1::Shell, ..nginx };
        let play = Play::start("shell as PID 1", &site(nginx), 5000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGTERM)?;
        pass(1000)?;
        play.scene.site.nginx.container.signal(SIGKILL)?;
        play.scene.refused()?;
        play.judged(&[], &truth::always(&[Cause::Pid1IgnoresStopSignal]))
    })
}

fn with_shutdown_timeout(nginx: NginxConf) -> SiteConf {
    site(NginxConf { main_extra: "worker_shutdown_timeout 1s;".into(), ..nginx })
}

#[test]
fn the_shutdown_timeout_of_a_stop() -> Result<()> {
    runs("worker_shutdown_timeout", Cause::WorkerShutdownTimeout, |run| {
        let (nginx, fast) = variant(run);
        let play = Play::start("worker_shutdown_timeout", &with_shutdown_timeout(nginx), 4000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGQUIT)?;
        play.scene.refused()?;
        play.judged(&[], &truth::nginx_drain(&[Cause::WorkerShutdownTimeout]))
    })
}

#[test]
fn the_shutdown_timeout_of_a_reload() -> Result<()> {
    runs("reload", Cause::WorkerShutdownTimeout, |run| {
        let (nginx, fast) = variant(run);
        let play = Play::start("reload", &with_shutdown_timeout(nginx), 4000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGHUP)?;
        wait("the cut requests", LIMIT, || play.scene.count(|p| &p.failed) >= SLOW as u64)?;
        play.judged(&[], &truth::nginx_reload)
    })
}

/// More connections than children: some requests wait in php-fpm's accept queue.
const BUSY: usize = SLOW / 2;

fn fpm_stop(name: &'static str, control_timeout: u32, signal: Signal, cause: Cause, allowed: Allowed) -> Result<()> {
    runs(name, cause, |_| {
        let fpm = FpmConf { children: BUSY as u32, process_control_timeout: control_timeout, ..FpmConf::default() };
        let conf = SiteConf { fpm: Some(fpm), ..SiteConf::default() };
        let play = Play::start(name, &conf, 3000, BUSY, None)?;
        wait("all slow requests", LIMIT, || play.scene.count(|p| &p.in_flight) >= SLOW as u64)?;
        php_container(&play.scene.site).signal(signal)?;
        let wanted = SLOW as u64 + REFUSED;
        wait("the 502s", LIMIT, || play.scene.count(|p| &p.errors) >= wanted)?;
        play.judged(&[502], allowed)
    })
}

#[test]
fn fpm_term_without_a_control_timeout() -> Result<()> {
    fpm_stop("php-fpm TERM, timeout 0", 0, SIGTERM, Cause::FpmFastShutdown, &truth::fpm_term)
}

#[test]
fn fpm_term_with_a_control_timeout() -> Result<()> {
    fpm_stop("php-fpm TERM, timeout 10", 10, SIGTERM, Cause::FpmFastShutdown, &truth::fpm_term)
}

#[test]
fn fpm_killed() -> Result<()> {
    let allowed = truth::always(&[Cause::ContainerKilled]);
    fpm_stop("php-fpm killed", 10, SIGKILL, Cause::ContainerKilled, &allowed)
}

#[test]
fn supervisord_stops_php_first() -> Result<()> {
    if let Err(why) = supervised::binary() {
        println!("supervisord: skipped: {why}");
        return Ok(());
    }
    runs("supervisord", Cause::SupervisorStopOrder, |run| {
        let (nginx, fast) = variant(run);
        let conf = SiteConf { supervised: true, ..site(nginx) };
        let play = Play::start("supervisord", &conf, 6000, SLOW, fast)?;
        play.scene.site.nginx.container.signal(SIGTERM)?;
        play.scene.refused()?;
        play.judged(&[502], &truth::supervised_stop)
    })
}
