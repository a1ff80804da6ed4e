//! php-fpm on a unix socket: stops, kills, a full queue, and what loses nothing. Every request that nginx answered with 502
//! has one incident with an allowed cause; the children that incidents name are those that php wrote down.
//!
//! `RUNS=20` for the full figure of the stops, `CLOSES=10000` for that of the controls; `RECORDINGS=DIR` keeps what was
//! recorded of each run.

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal::{self, SIGKILL, SIGQUIT, SIGTERM, SIGUSR2};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use why502::model::incident::{Cause, Incident, Mechanism};
use why502_tests::guard::{self, Dir, wait};
use why502_tests::ledger::Comparison;
use why502_tests::load::{Abort, Load, LoadConf, Outcome, Request, Shape};
use why502_tests::php::{FpmConf, FpmListen, Pool};
use why502_tests::scene::{Allowed, LIMIT, Loads, Over, Scene, Watch, keep};
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::claims;
use why502_tests::{schema, supervised, truth};

/// Connections of the load, and how many children php has for them: the others wait in its queue.
const SLOW: usize = 12;
const BUSY: usize = SLOW / 2;
/// A child that has done its last work is gone within this time.
const SOON_NS: u64 = 100_000_000;
/// So many are answered with 502 after the stop itself.
const AFTER: u64 = 20;

/// Sees failed connects on every kernel.
fn watch(site: &Site) -> Result<Watch> {
    Watch::with(site, &["--unix-connect", "syscalls"])
}

fn on_unix(fpm: FpmConf) -> SiteConf {
    SiteConf { fpm: Some(FpmConf { listen: FpmListen::Unix, ..fpm }), ..SiteConf::default() }
}

fn load(site: &Site, path: &str, connections: usize) -> LoadConf {
    let mut conf = LoadConf::new(site.pod_addr(false), path);
    (conf.connections, conf.refused_pause) = (connections, Duration::from_millis(50));
    conf
}

fn runs(name: &str, cause: Cause, one: impl Fn() -> Result<Comparison>) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let runs = guard::number("RUNS", 2);
    let (mut lost, mut of_cause, mut bad) = (0, 0, Vec::new());
    for run in 1..=runs {
        let result = one()?;
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

/// Ends the scene; the children of requests that were cut must be those that php's ledger has for them.
fn judged(name: &str, over: &Over, watch: Watch, allowed: Allowed) -> Result<Comparison> {
    let (result, said) = over.heard(name, watch, &[502], allowed)?;
    let here = over.site.territory();
    let ours = said.incidents.iter().filter(|i| here.owns(None, i.server.netns));
    same_children(over, &ours.collect::<Vec<_>>())?;
    Ok(result)
}

fn same_children(over: &Over, incidents: &[&Incident]) -> Result<()> {
    let mut working: BTreeMap<u32, String> = BTreeMap::new();
    for line in over.site.served()? {
        match line.ev.as_str() {
            "start" => working.insert(line.pid, line.id),
            _ => working.remove(&line.pid),
        };
    }
    let lost =
        |id: &String| over.requests.iter().any(|r| r.id == *id && r.outcome == Outcome::HttpError { status: 502 });
    let mut cut: Vec<u32> = working.iter().filter(|(_, id)| lost(id)).map(|(pid, _)| *pid).collect();
    let closed = incidents.iter().filter(|i| i.mechanism == Mechanism::ClosedInFlight && i.server.path.is_some());
    let mut named: Vec<u32> = closed.filter_map(|i| i.chain[0].process.as_ref()).map(|p| p.pid).collect();
    cut.sort_unstable();
    named.sort_unstable();
    // A child may be cut after it took a request and before its script wrote that down.
    let unknown: Vec<&u32> = cut.iter().filter(|pid| !named.contains(pid)).collect();
    ensure!(unknown.is_empty(), "children {unknown:?} were cut and no incident names them: {named:?}");
    named.dedup();
    ensure!(
        named.len() == closed_in_flight(incidents),
        "a child is named by more than one incident: {named:?}, {} incidents",
        closed_in_flight(incidents)
    );
    Ok(())
}

fn closed_in_flight(incidents: &[&Incident]) -> usize {
    incidents.iter().filter(|i| i.mechanism == Mechanism::ClosedInFlight && i.server.path.is_some()).count()
}

/// A stop of php-fpm with all children busy and as many requests in its queue.
fn stop(name: &'static str, control_timeout: u32, signal: Signal, cause: Cause, allowed: Allowed) -> Result<()> {
    runs(name, cause, || {
        let fpm = FpmConf { children: BUSY as u32, process_control_timeout: control_timeout, ..FpmConf::default() };
        let site = Site::start(&on_unix(fpm))?;
        let watch = watch(&site)?;
        let slow = load(&site, "/slow.php?ms=3000", SLOW);
        let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: BUSY, ..Loads::default() })?;
        wait("all requests", LIMIT, || scene.count(|p| &p.in_flight) >= SLOW as u64)?;
        scene.site.php_container().signal(signal)?;
        wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= BUSY as u64 + AFTER)?;
        judged(name, &scene.end()?, watch, allowed)
    })
}

#[test]
fn quit_without_a_control_timeout() -> Result<()> {
    let allowed = truth::fpm_quit_without_timeout;
    stop("unix QUIT, timeout 0", 0, SIGQUIT, Cause::FpmControlTimeoutZero, &allowed)
}

#[test]
fn quit_with_a_control_timeout() -> Result<()> {
    // What php works on is finished; the rest is thrown out of the queue, or comes when nobody listens any more.
    let allowed = |_: &_, started: bool| -> &'static [Cause] {
        if started { &[] } else { &[Cause::FpmAcceptQueueDropped, Cause::FpmNotListening] }
    };
    stop("unix QUIT, timeout 10", 10, SIGQUIT, Cause::FpmAcceptQueueDropped, &allowed)
}

#[test]
fn term_without_a_control_timeout() -> Result<()> {
    stop("unix TERM, timeout 0", 0, SIGTERM, Cause::FpmFastShutdown, &truth::fpm_term)
}

#[test]
fn killed() -> Result<()> {
    let allowed = truth::always(&[Cause::ContainerKilled]);
    stop("unix KILL", 10, SIGKILL, Cause::ContainerKilled, &allowed)
}

/// nginx and php-fpm in one container, whose PID 1, a supervisord, gets this signal.
fn one_container(
    name: &str,
    signal: Signal,
    cause: Cause,
    judge: impl Fn(Over, Watch) -> Result<Comparison>,
) -> Result<()> {
    if let Err(why) = supervised::binary() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    runs(name, cause, || {
        let fpm = FpmConf { children: 2 * SLOW as u32, ..FpmConf::default() };
        let site = Site::start(&SiteConf { supervised: true, ..on_unix(fpm) })?;
        let watch = watch(&site)?;
        let mut slow = load(&site, "/slow.php?ms=6000", SLOW);
        slow.max_refused = Some(AFTER);
        let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: SLOW, ..Loads::default() })?;
        scene.site.nginx.container.signal(signal)?;
        scene.refused()?;
        judge(scene.end()?, watch)
    })
}

#[test]
fn supervisord_stops_php_first() -> Result<()> {
    let name = "unix supervisord";
    one_container(name, SIGTERM, Cause::SupervisorStopOrder, |over, watch| {
        judged(name, &over, watch, &truth::supervised_stop)
    })
}

/// nginx and php-fpm die together: a request is lost once, by nginx, however both ends of its unix socket are closed.
#[test]
fn killed_with_nginx() -> Result<()> {
    let name = "unix KILL, one container";
    one_container(name, SIGKILL, Cause::ContainerKilled, |over, watch| {
        let allowed = truth::always(&[Cause::ContainerKilled]);
        Ok(over.heard(name, watch, &[502], &allowed)?.0)
    })
}

/// php-fpm is gone before the first request comes.
fn gone(name: &'static str, signal: Signal, cause: Cause) -> Result<()> {
    runs(name, cause, || {
        let mut site = Site::start(&on_unix(FpmConf::default()))?;
        let watch = watch(&site)?;
        let Some(fpm) = &mut site.fpm else { unreachable!("this site has php-fpm") };
        fpm.container.signal(signal)?;
        fpm.container.wait(LIMIT)?;
        let mut after = load(&site, "/fast.php", 4);
        after.max_attempts = Some(2 * AFTER);
        let scene = Scene::start(site, &Loads { slow: Some(after), ..Loads::default() })?;
        wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= 2 * AFTER)?;
        let one: &'static [Cause] =
            if signal == SIGKILL { &[Cause::ContainerKilled] } else { &[Cause::FpmNotListening] };
        judged(name, &scene.end()?, watch, &truth::always(one))
    })
}

/// php-fpm started after why502: its path is looked up a little after its exec.
#[test]
fn started_beside_the_tracer() -> Result<()> {
    let name = "unix started later";
    runs(name, Cause::FpmNotListening, || {
        let dir = Dir::new()?;
        let watch = Watch::at(dir.join("watch.rec"), &["--unix-connect", "syscalls"])?;
        let site = Site::start(&on_unix(FpmConf::default()))?;
        let mut before = load(&site, "/fast.php", 4);
        (before.max_attempts, before.rate) = (Some(100), Some(40.0));
        let warm = Load::start(Some(site.client.path()), before)?;
        wait("the answers", LIMIT, || warm.finished())?;
        ensure!(warm.join()?.iter().all(|r| matches!(r.outcome, Outcome::Ok { .. })), "not all requests were answered");
        site.php_container().signal(SIGQUIT)?;
        wait("the end of php-fpm", LIMIT, || site.php_container().cgroup.procs().is_empty())?;
        let after = LoadConf { max_attempts: Some(AFTER), ..load(&site, "/fast.php", 4) };
        let scene = Scene::start(site, &Loads { slow: Some(after), ..Loads::default() })?;
        scene.refused()?;
        let result = judged(name, &scene.end()?, watch, &truth::always(&[Cause::FpmNotListening]))?;
        let certain = result.by_level.get("certain").copied().unwrap_or(0);
        ensure!(certain == result.explained, "{certain} of {} incidents are certain", result.explained);
        Ok(result)
    })
}

#[test]
fn stopped_first() -> Result<()> {
    gone("unix stopped first", SIGQUIT, Cause::FpmNotListening)
}

#[test]
fn killed_first() -> Result<()> {
    gone("unix killed first", SIGKILL, Cause::ContainerKilled)
}

#[test]
fn a_full_queue() -> Result<()> {
    runs("unix queue full", Cause::FpmListenQueueFull, || {
        let fpm = FpmConf { children: 1, backlog: Some(1), ..FpmConf::default() };
        let site = Site::start(&on_unix(fpm))?;
        let watch = watch(&site)?;
        let mut slow = load(&site, "/slow.php?ms=300", SLOW);
        slow.max_attempts = Some(60);
        let scene = Scene::start(site, &Loads { slow: Some(slow), ..Loads::default() })?;
        wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= AFTER)?;
        judged("unix queue full", &scene.end()?, watch, &truth::always(&[Cause::FpmListenQueueFull]))
    })
}

/// Requests that come while php-fpm finishes what it has: a few find room in the queue, which nobody takes them out of.
#[test]
fn a_queue_that_fills_while_php_fpm_stops() -> Result<()> {
    let name = "unix queue full in a stop";
    runs(name, Cause::FpmAcceptQueueDropped, || {
        let children = 4;
        // Room for the first ones, should they all come before a child takes one.
        let fpm = FpmConf { children, backlog: Some(children), process_control_timeout: 10, ..FpmConf::default() };
        let site = Site::start(&on_unix(fpm))?;
        let watch = watch(&site)?;
        let mut slow = load(&site, "/slow.php?ms=2000", children as usize);
        slow.more_paths = vec!["/slow.php?ms=4000".into()];
        (slow.max_attempts, slow.prefix) = (Some(children.into()), "slow".into());
        let loads = Loads { slow: Some(slow), in_php: children as usize, ..Loads::default() };
        let mut scene = Scene::start(site, &loads)?;
        scene.site.php_container().signal(SIGQUIT)?;
        let mut late = load(&scene.site, "/fast.php", 8);
        // Some while all children are busy, some when they are gone one after the other.
        (late.max_attempts, late.refused_pause) = (Some(150), Duration::from_millis(300));
        scene.fast = Some(Load::start(Some(scene.site.client.path()), late)?);
        scene.refused()?;
        let over = scene.end()?;
        let full = std::fs::read_to_string(&over.site.nginx.error_log)?.matches("(11: Resource").count();
        ensure!(full > 0, "no connect met a full queue: the scenario did not happen");
        // Until the first child has done its work, all of them would be busy without the stop as well.
        let served = over.site.served()?;
        let Some(free) = served.iter().filter(|s| s.ev == "end").map(|s| s.t).min() else { bail!("no script ended") };
        let allowed = |r: &Request, started: bool| -> &'static [Cause] {
            match r.t_sent {
                _ if started => &[],
                _ if r.t_end < free => &[Cause::FpmListenQueueFull],
                Some(sent) if sent > free + SOON_NS => &[Cause::FpmAcceptQueueDropped, Cause::FpmNotListening],
                _ => &[Cause::FpmListenQueueFull, Cause::FpmAcceptQueueDropped, Cause::FpmNotListening],
            }
        };
        judged(name, &over, watch, &allowed)
    })
}

/// A load that loses nothing by php-fpm's doing.
fn control(name: &str, fpm: FpmConf, conf: impl Fn(&Site) -> LoadConf) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = Site::start(&on_unix(fpm))?;
    let watch = watch(&site)?;
    let mut conf = conf(&site);
    let wanted = guard::number("CLOSES", 300);
    conf.max_attempts = Some(wanted);
    let aborted = conf.abort.is_some();
    let load = Load::start(Some(site.client.path()), conf)?;
    wait("the end of the load", Duration::from_secs(900), || load.finished())?;
    let requests = load.join()?;
    let right = |o: Outcome| matches!(o, Outcome::Ok { .. }) || aborted && o == Outcome::Aborted;
    let wrong = requests.iter().filter(|r| !right(r.outcome)).count();
    let served = || site.served().unwrap_or_default();
    wait("the end of php's work", LIMIT, || {
        let count = |ev: &str| served().iter().filter(|s| s.ev == ev).count();
        count("start") == count("end")
    })?;
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let falses = claims(&said.incidents, &site);
    println!("{name}: {} requests, {wrong} of them otherwise, {} incidents", requests.len(), falses.len());
    if !falses.is_empty() {
        keep(None, name, &watch.recording, &requests)?;
    }
    let some: Vec<String> = falses.iter().take(5).map(ToString::to_string).collect();
    ensure!(falses.is_empty() && wrong == 0, "{name}: {wrong} wrong, {} false:\n{}", falses.len(), some.join("\n"));
    ensure!(requests.len() as u64 >= wanted, "{name}: only {} requests of {wanted}", requests.len());
    Ok(())
}

#[test]
fn uploads() -> Result<()> {
    let conf = |site: &Site| LoadConf {
        shape: Shape::Upload { bytes: 30_000, expect: false },
        keep_alive: false,
        ..load(site, "/fast.php", 12)
    };
    control("unix uploads", FpmConf::default(), conf)
}

#[test]
fn max_requests() -> Result<()> {
    let fpm = FpmConf { pool_extra: "pm.max_requests = 5".into(), ..FpmConf::default() };
    control("unix max_requests", fpm, |site| load(site, "/fast.php", 12))
}

#[test]
fn ondemand_reaping() -> Result<()> {
    let extra = "pm.process_idle_timeout = 1s";
    let fpm = FpmConf { pool: Pool::Ondemand, children: 6, pool_extra: extra.into(), ..FpmConf::default() };
    let conf = |site: &Site| {
        // Bursts with pauses that are longer than a child is kept.
        let think = Duration::from_millis(2500);
        LoadConf { think, ..load(site, "/fast.php", 60) }
    };
    control("unix ondemand", fpm, conf)
}

#[test]
fn reload_when_idle() -> Result<()> {
    let conf = |site: &Site| load(site, "/fast.php", 4);
    if let Some(why) = guard::why_not_traced() {
        println!("unix reload: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = Site::start(&on_unix(FpmConf::default()))?;
    let watch = watch(&site)?;
    let mut answered = 0;
    for reload in 0..3 {
        let children = site.php_container().children();
        if reload > 0 {
            site.php_container().signal(SIGUSR2)?;
            wait("new children", LIMIT, || {
                let now = site.php_container().children();
                now.len() == children.len() && now.iter().all(|c| !children.contains(c))
            })?;
        }
        let some = Load::start(Some(site.client.path()), LoadConf { max_attempts: Some(40), ..conf(&site) })?;
        wait("the answers", LIMIT, || some.finished())?;
        answered += some.join()?.iter().filter(|r| matches!(r.outcome, Outcome::Ok { .. })).count();
    }
    let said = watch.tracer.stop()?;
    let falses = claims(&said.incidents, &site);
    println!("unix reload: {answered} answers, {} incidents", falses.len());
    ensure!(answered == 120, "only {answered} of 120 requests were answered");
    ensure!(falses.is_empty(), "{falses:?}");
    Ok(())
}

#[test]
fn client_aborts() -> Result<()> {
    let fpm = FpmConf { children: 16, ..FpmConf::default() };
    let conf = |site: &Site| LoadConf {
        rate: Some(200.0),
        abort: Some((Duration::from_millis(10), Abort::Fin)),
        keep_alive: false,
        ..load(site, "/slow.php?ms=60", 20)
    };
    control("unix client aborts", fpm, conf)
}

/// Connections that a closing listener had in its queue, as the recording has them.
fn thrown_out(recording: &Path) -> Result<usize> {
    let embryo = |line: &&str| line.contains("\"kind\":\"unix-dropped\"") && line.contains("\"embryo\":true");
    Ok(std::fs::read_to_string(recording)?.lines().filter(embryo).count())
}

/// Requests whose clients left wait in the queue, and are thrown out of it: nobody misses them.
#[test]
fn aborted_in_the_queue() -> Result<()> {
    let name = "unix aborted in the queue";
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = Site::start(&on_unix(FpmConf { children: 1, process_control_timeout: 10, ..FpmConf::default() }))?;
    let watch = watch(&site)?;
    let mut conf = load(&site, "/slow.php?ms=2000", 8);
    (conf.abort, conf.keep_alive) = (Some((Duration::from_millis(100), Abort::Fin)), false);
    conf.max_attempts = Some(24);
    let load = Load::start(Some(site.client.path()), conf)?;
    wait("the aborts", LIMIT, || load.finished())?;
    let aborted = load.join()?.iter().filter(|r| r.outcome == Outcome::Aborted).count();
    let Some(fpm) = &site.fpm else { unreachable!("this site has php-fpm") };
    fpm.container.signal(SIGQUIT)?;
    wait("the end of php-fpm", LIMIT, || site.php_container().children().is_empty())?;
    let said = watch.tracer.stop()?;
    let thrown = thrown_out(&watch.recording)?;
    let falses = claims(&said.incidents, &site);
    println!("{name}: {thrown} connections thrown out, {aborted} aborted, {} incidents", falses.len());
    ensure!(aborted >= 20, "only {aborted} requests were aborted");
    ensure!(thrown >= 5, "only {thrown} connections were in the queue when it was closed");
    ensure!(falses.is_empty(), "{falses:#?}");
    Ok(())
}
