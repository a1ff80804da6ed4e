//! Stops that go wrong with slow requests in flight: a drain that is cut off, a kill, a signal that nobody hears, php-fpm's
//! fast end, a supervisor's order. Every request that the client lost has one incident, with an allowed cause.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

mod common;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal::{self, SIGHUP, SIGKILL, SIGQUIT, SIGTERM};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use why502::model::incident::Cause;
use why502_tests::guard::{self, wait};
use why502_tests::ledger::{self, Comparison, Rules};
use why502_tests::load::{Load, LoadConf, Progress, Request, write_ledger};
use why502_tests::nginx::NginxConf;
use why502_tests::php::FpmConf;
use why502_tests::pod::Container;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};
use why502_tests::{supervised, truth};

type Allowed<'a> = &'a dyn Fn(&Request, bool) -> &'static [Cause];

const LIMIT: Duration = Duration::from_secs(60);
/// Connections with a request that php works on, and those with fast ones beside them.
const SLOW: usize = 12;
const FAST: usize = 12;
/// So many attempts of each load are refused before it ends.
const REFUSED: u64 = 20;

/// A site under load, and the tracer beside it.
struct Scene {
    name: &'static str,
    site: Site,
    watch: Tracer,
    recording: PathBuf,
    slow: Load,
    fast: Option<Load>,
}

impl Scene {
    /// Returns when php works on `busy` slow requests, and the fast ones flow.
    fn start(name: &'static str, conf: &SiteConf, slow_ms: u32, busy: usize, fast: Option<bool>) -> Result<Self> {
        let site = Site::start(conf)?;
        let recording = site.dir.join("shutdown.rec");
        let watch = Tracer::watch(&tracer::binary()?, &["--record".as_ref(), recording.as_os_str()])?;
        let fast = fast.map(|keep_alive| {
            let mut conf = LoadConf::new(site.pod_addr(false), "/static");
            (conf.connections, conf.keep_alive, conf.max_refused) = (FAST, keep_alive, Some(REFUSED));
            conf.think = Duration::from_millis(2);
            conf.prefix = "fast".into();
            Load::start(Some(site.client.path()), conf)
        });
        let fast = fast.transpose()?;
        let mut conf = LoadConf::new(site.pod_addr(false), &format!("/slow.php?ms={slow_ms}"));
        (conf.connections, conf.max_refused) = (SLOW, Some(REFUSED));
        conf.refused_pause = Duration::from_millis(50);
        conf.prefix = "slow".into();
        let slow = Load::start(Some(site.client.path()), conf)?;
        let scene = Self { name, site, watch, recording, slow, fast };
        wait("the slow requests", LIMIT, || scene.in_php() >= busy)?;
        if let Some(fast) = &scene.fast {
            wait("200 fast answers", LIMIT, || Progress::get(&fast.progress.answered) >= 200)?;
        }
        Ok(scene)
    }

    /// Requests whose script has started and not ended.
    fn in_php(&self) -> usize {
        let served = self.site.served().unwrap_or_default();
        let ended: HashSet<&str> = served.iter().filter(|s| s.ev == "end").map(|s| s.id.as_str()).collect();
        served.iter().filter(|s| s.ev == "start" && !ended.contains(s.id.as_str())).count()
    }

    fn loads(&self) -> impl Iterator<Item = &Load> {
        [Some(&self.slow), self.fast.as_ref()].into_iter().flatten()
    }

    /// Both loads were refused so often that they have ended.
    fn refused(&self) -> Result<()> {
        wait("the refused attempts", LIMIT, || self.loads().all(Load::finished))
    }

    /// A listener is closed on QUIT once the fast load is refused.
    fn listener_closed(&self) -> Result<()> {
        let refused = || self.fast.iter().all(|l| Progress::get(&l.progress.refused) > 0);
        wait("the first refused attempt", LIMIT, refused)
    }

    /// Ends everything and compares.
    fn judged(self, made: &[u16], allowed: Allowed) -> Result<Comparison> {
        let mut requests = self.slow.stop()?;
        requests.extend(self.fast.map(Load::stop).transpose()?.unwrap_or_default());
        let rules = Rules { made, seen: self.site.started_scripts()?, allowed };
        let lost = requests.iter().filter(|r| ledger::is_lost(r, made)).count();
        self.watch.wait_for(lost, &self.site)?;
        let said = self.watch.stop()?;
        ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
        common::check_schema(&said)?;
        let replayed = tracer::explain(&tracer::binary()?, &self.recording, &["-o", "json"])?;
        ensure!(replayed.lines().eq(said.lines.iter()), "the replay of the recording says something else");
        let result = ledger::compare(&requests, &said.claims(&self.site), &rules);
        let dir = std::env::var_os("RECORDINGS").map(PathBuf::from);
        if dir.is_some() || !result.exact() {
            let name = format!("{}-{}-{}", self.name.replace([' ', ','], "-"), std::process::id(), guard::serial());
            let base = dir.unwrap_or_else(std::env::temp_dir).join(name);
            std::fs::copy(&self.recording, base.with_extension("rec"))?;
            write_ledger(&base.with_extension("jsonl"), &requests)?;
            println!("kept: {}.rec, .jsonl", base.display());
        }
        Ok(result)
    }
}

/// The scenario's own delay between two signals: nothing can be waited for, since what is wanted is that time passes.
fn pass(ms: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_millis(ms);
    wait("time to pass", LIMIT, || Instant::now() >= end)
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
        let scene = Scene::start("quit then term", &site(nginx), 3000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGQUIT)?;
        scene.listener_closed()?;
        pass(100 * (run % 3) + 50)?;
        scene.site.nginx.container.signal(SIGTERM)?;
        scene.refused()?;
        scene.judged(&[], &truth::nginx_drain(&[Cause::QuitThenTerm]))
    })
}

#[test]
fn the_grace_period_ends() -> Result<()> {
    runs("grace period", Cause::GracePeriodExceeded, |run| {
        let (nginx, fast) = variant(run);
        let scene = Scene::start("grace period", &site(nginx), 5000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGQUIT)?;
        pass(1000)?;
        scene.site.nginx.container.signal(SIGKILL)?;
        scene.refused()?;
        scene.judged(&[], &truth::nginx_drain(&[Cause::GracePeriodExceeded]))
    })
}

#[test]
fn killed_without_a_word() -> Result<()> {
    runs("nginx killed", Cause::ContainerKilled, |run| {
        let (nginx, fast) = variant(run);
        let scene = Scene::start("nginx killed", &site(nginx), 5000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGKILL)?;
        scene.refused()?;
        scene.judged(&[], &truth::always(&[Cause::ContainerKilled]))
    })
}

#[test]
fn pid_1_is_a_shell() -> Result<()> {
    runs("shell as PID 1", Cause::Pid1IgnoresStopSignal, |run| {
        let (nginx, fast) = variant(run);
        let nginx = NginxConf { under_shell: true, ..nginx };
        let scene = Scene::start("shell as PID 1", &site(nginx), 5000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGTERM)?;
        pass(1000)?;
        scene.site.nginx.container.signal(SIGKILL)?;
        scene.refused()?;
        scene.judged(&[], &truth::always(&[Cause::Pid1IgnoresStopSignal]))
    })
}

fn with_shutdown_timeout(nginx: NginxConf) -> SiteConf {
    site(NginxConf { main_extra: "worker_shutdown_timeout 1s;".into(), ..nginx })
}

#[test]
fn the_shutdown_timeout_of_a_stop() -> Result<()> {
    runs("worker_shutdown_timeout", Cause::WorkerShutdownTimeout, |run| {
        let (nginx, fast) = variant(run);
        let scene = Scene::start("worker_shutdown_timeout", &with_shutdown_timeout(nginx), 4000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGQUIT)?;
        scene.refused()?;
        scene.judged(&[], &truth::nginx_drain(&[Cause::WorkerShutdownTimeout]))
    })
}

#[test]
fn the_shutdown_timeout_of_a_reload() -> Result<()> {
    runs("reload", Cause::WorkerShutdownTimeout, |run| {
        let (nginx, fast) = variant(run);
        let scene = Scene::start("reload", &with_shutdown_timeout(nginx), 4000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGHUP)?;
        wait("the cut requests", LIMIT, || Progress::get(&scene.slow.progress.failed) >= SLOW as u64)?;
        scene.judged(&[], &truth::nginx_reload)
    })
}

/// More connections than children: some requests wait in php-fpm's accept queue.
const BUSY: usize = SLOW / 2;

fn fpm_stop(name: &'static str, control_timeout: u32, signal: Signal, cause: Cause, allowed: Allowed) -> Result<()> {
    runs(name, cause, |_| {
        let fpm = FpmConf { children: BUSY as u32, process_control_timeout: control_timeout, ..FpmConf::default() };
        let conf = SiteConf { fpm: Some(fpm), ..SiteConf::default() };
        let scene = Scene::start(name, &conf, 3000, BUSY, None)?;
        wait("all slow requests", LIMIT, || Progress::get(&scene.slow.progress.in_flight) >= SLOW as u64)?;
        php_container(&scene.site).signal(signal)?;
        let wanted = SLOW as u64 + REFUSED;
        wait("the 502s", LIMIT, || Progress::get(&scene.slow.progress.errors) >= wanted)?;
        scene.judged(&[502], allowed)
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
        let scene = Scene::start("supervisord", &conf, 6000, SLOW, fast)?;
        scene.site.nginx.container.signal(SIGTERM)?;
        scene.refused()?;
        scene.judged(&[502], &truth::supervised_stop)
    })
}
