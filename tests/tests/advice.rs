//! Every advice is proven: a pod is lost requests of a cause, the advice is taken from the JSON of those incidents, ids and
//! values, done in the pod's configuration, and the same end is played again. Then nothing is lost any more.
//!
//! An ordinary run plays a few of them (`SEED`), `FULL=1` all, `RUNS=20` more often. What a set cannot do is in docs/causes.md, "Advice".

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{self, SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::explain::advice;
use why502::model::incident::{Advice, Cause};
use why502_tests::advised::{Act, Plan, Server, Stage, Traffic, unhappy};
use why502_tests::guard;
use why502_tests::kubelet::{Deletion, PreStop, Stop};
use why502_tests::nginx::NginxConf;
use why502_tests::php::{FpmConf, FpmListen};
use why502_tests::pod::Pid1;
use why502_tests::scene::{Watch, keep};
use why502_tests::site::SiteConf;
use why502_tests::{proofs, schema, supervised};

/// The balancer learns of the deletion so much later.
const PROPAGATION: Duration = Duration::from_millis(1200);

fn stop(signal: Signal) -> Stop {
    Stop { signal, ..Stop::default() }
}

fn slept(signal: Signal, seconds: u64) -> Stop {
    Stop { pre_stop: Some(PreStop::Sleep(Duration::from_secs(seconds))), ..stop(signal) }
}

fn hook(signal: Signal, words: &[&str]) -> Stop {
    let words = words.iter().map(ToString::to_string).collect();
    Stop { pre_stop: Some(PreStop::Exec(words)), ..stop(signal) }
}

/// nginx is stopped with this; php-fpm outlives the scenario.
fn plan(nginx: Stop) -> Plan {
    let fpm = FpmConf { children: 28, process_control_timeout: 10, ..FpmConf::default() };
    Plan {
        site: SiteConf { fpm: Some(fpm), ..SiteConf::default() },
        act: Act::Delete,
        deletion: Deletion { propagation: PROPAGATION, ..Deletion::default() },
        nginx,
        quit_hook: false,
        fpm: None,
        proxy: stop(SIGTERM),
        told: false,
    }
}

/// nginx is stopped as it should be, and php-fpm beside it with this.
fn with_fpm(control_timeout: u32, children: u32, fpm: Stop) -> Plan {
    let mut plan = Plan { fpm: Some(fpm), ..plan(slept(SIGQUIT, 2)) };
    plan.site.fpm = Some(FpmConf { children, process_control_timeout: control_timeout, ..FpmConf::default() });
    plan
}

/// Plays `plan` until something is lost to `cause`, and then with the advice of those incidents.
fn proven(name: &str, cause: Cause, plan: &Plan, traffic: &Traffic) -> Result<()> {
    proven_with(name, cause, plan, traffic, |_| {})
}

/// `more`: what the harness can choose of an advice that has two ways.
fn proven_with(name: &str, cause: Cause, plan: &Plan, traffic: &Traffic, more: impl Fn(&mut Plan)) -> Result<()> {
    let Some(_turn) = proofs::turn(name)? else { return Ok(()) };
    for run in 1..=guard::number("RUNS", 1) {
        let (lost, set) = first(cause, plan, traffic)?;
        let mut better = plan.clone();
        let rest = better.apply(&set);
        more(&mut better);
        let ids: Vec<String> = set.iter().map(|a| format!("{} {:?}", a.id, a.value)).collect();
        // Without an edge in front there is nobody who could.
        let known = ["edge-retry-idempotent", "keepalive-min-timeout"];
        ensure!(rest.iter().all(|id| known.contains(&id.as_str())), "{cause}: no way here to do {rest:?}");
        let again = second(cause, &better, traffic)?;
        println!("{cause}, run {run}: lost {lost}, then of {again} requests none, with {}", ids.join(", "));
    }
    Ok(())
}

fn watch(stage: &Stage, plan: &Plan) -> Result<Watch> {
    // Failed connects to unix sockets are seen on any kernel.
    let mut more = vec!["--unix-connect".to_owned(), "syscalls".to_owned()];
    if plan.told {
        let file = stage.site.dir.join("pod.yaml");
        std::fs::write(&file, plan.spec(&stage.site)?)?;
        more.extend(["--pod-spec".to_owned(), file.display().to_string()]);
    }
    Watch::with(&stage.site, &more.iter().map(String::as_str).collect::<Vec<&str>>())
}

/// How many were lost, and the advice for those of the cause. Some races are not lost by every stop.
fn first(cause: Cause, plan: &Plan, traffic: &Traffic) -> Result<(usize, Vec<Advice>)> {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let stage = plan.stage()?;
        let watch = watch(&stage, plan)?;
        let (over, _) = stage.play(traffic)?;
        let lost = over.lost(&[502]);
        watch.tracer.wait_for(lost, &over.site)?;
        let said = watch.tracer.stop()?;
        schema::check(&said)?;
        let ours = said.incidents.iter().filter(|i| over.site.owns(i.server.ip, i.server.netns));
        let (mut set, mut of_cause) = (Vec::new(), 0);
        for incident in ours {
            seen.push(incident.cause);
            if incident.cause == cause {
                of_cause += 1;
                advice::merge(&mut set, &incident.advice);
            }
        }
        if of_cause > 0 {
            return Ok((lost, set));
        }
    }
    seen.sort_unstable();
    seen.dedup();
    anyhow::bail!("{cause}: the scenario did not happen; what was lost: {seen:?}")
}

/// Requests; an error when one of them was not answered as it should have been, or why502 says so.
fn second(cause: Cause, plan: &Plan, traffic: &Traffic) -> Result<usize> {
    let stage = plan.stage()?;
    let watch = watch(&stage, plan)?;
    let (over, stopped) = stage.play(traffic)?;
    let unhappy = unhappy(&over);
    watch.tracer.wait_for(usize::from(!unhappy.is_empty()), &over.site)?;
    let said = watch.tracer.stop()?;
    let mut claims = said.claims(&over.site);
    if plan.site.replica {
        // What another pod answers in the end is lost in this one all the same.
        ensure!(!claims.is_empty(), "{cause}: nothing happened to the pod");
        claims.clear();
    }
    if !unhappy.is_empty() || !claims.is_empty() {
        keep(None, &format!("advised {cause}"), &watch.recording, &over.requests).context("keeping the deviation")?;
    }
    let claims: Vec<String> = claims.iter().map(ToString::to_string).collect();
    ensure!(unhappy.is_empty(), "{cause}: still lost: {}\nwhy502: {}", unhappy.join("\n"), claims.join("\n"));
    ensure!(claims.is_empty(), "{cause}: nothing was lost, but why502 says: {}", claims.join("\n"));
    ensure!(stopped.iter().all(|s| !s.killed), "{cause}: the grace period was not enough: {stopped:?}");
    Ok(over.requests.len())
}

#[test]
fn nginx_fast_shutdown() -> Result<()> {
    proven("nginx_fast_shutdown", Cause::NginxFastShutdown, &plan(stop(SIGTERM)), &Traffic::default())
}

#[test]
fn quit_then_term() -> Result<()> {
    let plan = Plan { quit_hook: true, ..plan(stop(SIGTERM)) };
    proven("quit_then_term", Cause::QuitThenTerm, &plan, &Traffic::default())
}

#[test]
fn endpoint_race() -> Result<()> {
    let traffic = Traffic { slow: 0, in_php: 0, keep_alive: false, ..Traffic::default() };
    proven("endpoint_race", Cause::EndpointRace, &plan(stop(SIGQUIT)), &traffic)
}

/// Connections that the kernel accepts while the master is still ending its workers.
#[test]
fn nginx_accept_queue_dropped() -> Result<()> {
    let think = Duration::ZERO;
    let traffic =
        Traffic { slow: 0, in_php: 0, fast: 40, keep_alive: false, think, answered: 2000, ..Traffic::default() };
    proven("nginx_accept_queue_dropped", Cause::NginxAcceptQueueDropped, &plan(stop(SIGTERM)), &traffic)
}

#[test]
fn keepalive_race_on_shutdown() -> Result<()> {
    let mut plan = plan(stop(SIGQUIT));
    plan.site.trouble =
        Some(why502_tests::tun::Trouble { delay: Duration::from_millis(15), ..why502_tests::tun::Trouble::default() });
    let think = Duration::ZERO;
    let traffic = Traffic { slow: 0, in_php: 0, fast: 40, think, answered: 1000, ..Traffic::default() };
    proven("keepalive_race_on_shutdown", Cause::KeepaliveRaceOnShutdown, &plan, &traffic)
}

/// As tests/races.rs: the pod's second of idleness meets the client's.
#[test]
fn keepalive_race() -> Result<()> {
    let mut plan = Plan { act: Act::Nothing(4000), ..plan(stop(SIGQUIT)) };
    plan.site.nginx = NginxConf { keepalive_timeout: 1, ..NginxConf::default() };
    plan.site.trouble =
        Some(why502_tests::tun::Trouble { delay: Duration::from_millis(40), ..why502_tests::tun::Trouble::default() });
    let think = Duration::from_millis(960);
    let traffic =
        Traffic { slow: 0, in_php: 0, fast: 20, paths: &["/static"], think, answered: 20, ..Traffic::default() };
    proven("keepalive_race", Cause::KeepaliveRace, &plan, &traffic)
}

fn shutdown_timeout(act: Act) -> Plan {
    let mut plan = Plan { act, ..plan(slept(SIGQUIT, 2)) };
    plan.site.nginx = NginxConf { main_extra: "worker_shutdown_timeout 1s;".into(), ..NginxConf::default() };
    plan
}

#[test]
fn worker_shutdown_timeout() -> Result<()> {
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("worker_shutdown_timeout", Cause::WorkerShutdownTimeout, &shutdown_timeout(Act::Delete), &traffic)
}

#[test]
fn worker_shutdown_timeout_of_a_reload() -> Result<()> {
    // Nobody else: a reload also closes idle connections, which is another cause.
    let traffic = Traffic { slow_ms: 3000, fast: 0, answered: 0, ..Traffic::default() };
    proven(
        "worker_shutdown_timeout_of_a_reload",
        Cause::WorkerShutdownTimeout,
        &shutdown_timeout(Act::Reload(5000)),
        &traffic,
    )
}

#[test]
fn grace_period_exceeded() -> Result<()> {
    let mut plan = plan(slept(SIGQUIT, 2));
    plan.deletion.grace = Duration::from_secs(4);
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("grace_period_exceeded", Cause::GracePeriodExceeded, &plan, &traffic)
}

#[test]
fn pid_1_ignores_the_stop_signal() -> Result<()> {
    let mut plan = plan(stop(SIGTERM));
    plan.site.nginx = NginxConf { pid1: Pid1::Shell, ..NginxConf::default() };
    plan.deletion.grace = Duration::from_secs(2);
    proven(
        "pid_1_ignores_the_stop_signal",
        Cause::Pid1IgnoresStopSignal,
        &plan,
        &Traffic { slow_ms: 4000, ..Traffic::default() },
    )
}

#[test]
fn container_killed() -> Result<()> {
    let plan = Plan { act: Act::Kill, ..plan(stop(SIGTERM)) };
    proven("container_killed", Cause::ContainerKilled, &plan, &Traffic::default())
}

#[test]
fn fpm_control_timeout_zero() -> Result<()> {
    proven(
        "fpm_control_timeout_zero",
        Cause::FpmControlTimeoutZero,
        &with_fpm(0, 28, stop(SIGQUIT)),
        &Traffic::default(),
    )
}

#[test]
fn fpm_fast_shutdown() -> Result<()> {
    proven("fpm_fast_shutdown", Cause::FpmFastShutdown, &with_fpm(0, 28, stop(SIGTERM)), &Traffic::default())
}

/// More requests than children: some wait in the queue, and php-fpm takes none of them any more.
#[test]
fn fpm_accept_queue_dropped() -> Result<()> {
    let traffic = Traffic { in_php: 6, fast: 0, answered: 0, ..Traffic::default() };
    proven("fpm_accept_queue_dropped", Cause::FpmAcceptQueueDropped, &with_fpm(10, 6, stop(SIGQUIT)), &traffic)
}

#[test]
fn fpm_not_listening() -> Result<()> {
    let traffic = Traffic { slow: 0, in_php: 0, ..Traffic::default() };
    proven("fpm_not_listening", Cause::FpmNotListening, &with_fpm(10, 28, stop(SIGQUIT)), &traffic)
}

/// The other way of the same advice: php-fpm as a native sidecar.
#[test]
fn fpm_as_a_sidecar() -> Result<()> {
    let sidecar = |plan: &mut Plan| plan.fpm = Some(Stop { sidecar: true, ..stop(SIGQUIT) });
    proven_with(
        "fpm_as_a_sidecar",
        Cause::FpmControlTimeoutZero,
        &with_fpm(0, 28, stop(SIGQUIT)),
        &Traffic::default(),
        sidecar,
    )
}

#[test]
fn fpm_process_control_timeout_too_short() -> Result<()> {
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    let plan = with_fpm(2, 28, stop(SIGQUIT));
    proven("fpm_process_control_timeout_too_short", Cause::GracePeriodExceeded, &plan, &traffic)
}

/// php-fpm is killed at the end of the grace period, and nginx has long ended by then.
#[test]
fn grace_period_exceeded_by_fpm() -> Result<()> {
    let mut plan = with_fpm(20, 28, stop(SIGQUIT));
    plan.deletion.grace = Duration::from_secs(4);
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("grace_period_exceeded_by_fpm", Cause::GracePeriodExceeded, &plan, &traffic)
}

/// More at once than children and queue can hold.
#[test]
fn fpm_listen_queue_full() -> Result<()> {
    let mut plan = Plan { act: Act::Nothing(2000), ..plan(slept(SIGQUIT, 5)) };
    plan.site.fpm = Some(FpmConf { listen: FpmListen::Unix, children: 4, backlog: Some(2), ..FpmConf::default() });
    let traffic = Traffic { in_php: 4, fast: 0, answered: 0, ..Traffic::default() };
    proven("fpm_listen_queue_full", Cause::FpmListenQueueFull, &plan, &traffic)
}

#[test]
fn fpm_started_late() -> Result<()> {
    let plan = Plan { act: Act::LateFpm(1500), ..plan(slept(SIGQUIT, 5)) };
    let traffic = Traffic { slow: 0, in_php: 0, paths: &["/fast.php"], answered: 0, ..Traffic::default() };
    proven("fpm_started_late", Cause::FpmNotListening, &plan, &traffic)
}

/// A pod behind an edge, one of whose servers crashes.
fn crashing(server: Server) -> Plan {
    let mut plan = Plan { act: Act::Crash(server, 3000), ..plan(slept(SIGQUIT, 5)) };
    plan.site.edge = Some(32);
    // The master is no PID 1, which no fatal signal from outside would end.
    match server {
        Server::Nginx => plan.site.nginx.pid1 = Pid1::Shell,
        Server::PhpFpm => plan.site.fpm.iter_mut().for_each(|fpm| fpm.pid1 = Pid1::Shell),
    }
    plan
}

#[test]
fn nginx_crashed() -> Result<()> {
    proven("nginx_crashed", Cause::NginxNotListening, &crashing(Server::Nginx), &Traffic::default())
}

#[test]
fn fpm_crashed() -> Result<()> {
    proven("fpm_crashed", Cause::FpmNotListening, &crashing(Server::PhpFpm), &Traffic::default())
}

/// nginx is stopped and started again, and its pod goes on being asked.
fn restarted() -> (Plan, Traffic) {
    let plan = Plan { act: Act::Restart(1500), ..plan(stop(SIGTERM)) };
    (plan, Traffic { slow: 0, in_php: 0, keep_alive: false, ..Traffic::default() })
}

#[test]
fn nginx_restarted() -> Result<()> {
    let (plan, traffic) = restarted();
    proven("nginx_restarted", Cause::NginxNotListening, &plan, &traffic)
}

/// The other way of the same advice.
#[test]
fn nginx_reloaded_instead() -> Result<()> {
    let (plan, traffic) = restarted();
    let reload = |plan: &mut Plan| plan.act = Act::Reload(1500);
    proven_with("nginx_reloaded_instead", Cause::NginxNotListening, &plan, &traffic, reload)
}

/// A proxy of the pod is stopped before the nginx behind it, whose hook shows that the whole pod is stopped.
fn proxied(seconds: u64) -> Plan {
    let mut plan = Plan { told: true, ..plan(hook(SIGTERM, &["/bin/sleep", &seconds.to_string()])) };
    (plan.site.sidecar, plan.site.nginx.port) = (true, 8080);
    plan
}

#[test]
fn sidecar_gone_first() -> Result<()> {
    proven("sidecar_gone_first", Cause::SidecarGoneFirst, &proxied(2), &Traffic::default())
}

#[test]
fn a_native_sidecar_is_not_enough() -> Result<()> {
    let plan = proxied(1);
    let name = "a_native_sidecar_is_not_enough";
    not_enough(name, Cause::SidecarGoneFirst, &plan, &Traffic::default(), &["native-sidecar"])
}

/// An option that no shell has.
const MISTYPED: [&str; 3] = ["/bin/sh", "-SIGQUIT", "1"];

#[test]
fn prestop_failed() -> Result<()> {
    let plan = Plan { told: true, ..plan(hook(SIGTERM, &MISTYPED)) };
    proven("prestop_failed", Cause::PrestopFailed, &plan, &Traffic::default())
}

#[test]
fn prestop_failed_of_fpm() -> Result<()> {
    let plan = Plan { told: true, ..with_fpm(0, 28, hook(SIGTERM, &MISTYPED)) };
    proven("prestop_failed_of_fpm", Cause::PrestopFailed, &plan, &Traffic::default())
}

/// A shell whose trap tells nginx to finish, and which does not wait for it.
#[test]
fn pid_1_exits_first() -> Result<()> {
    let mut plan = plan(stop(SIGQUIT));
    plan.site.nginx.pid1 = Pid1::TrapEndsFirst;
    proven("pid_1_exits_first", Cause::Pid1ExitedFirst, &plan, &Traffic::default())
}

#[test]
fn runit_exits_first() -> Result<()> {
    if let Some(why) = Pid1::Runit.lacks() {
        println!("runit_exits_first: skipped: {why}");
        return Ok(());
    }
    let mut plan = plan(stop(SIGTERM));
    plan.site.nginx.pid1 = Pid1::Runit;
    proven("runit_exits_first", Cause::Pid1ExitedFirst, &plan, &Traffic::default())
}

#[test]
fn supervisord_waits_too_short() -> Result<()> {
    if let Err(why) = supervised::binary() {
        println!("supervisord: skipped: {why}");
        return Ok(());
    }
    let mut plan = plan(slept(SIGTERM, 2));
    plan.site.fpm = Some(FpmConf { children: 28, process_control_timeout: 20, ..FpmConf::default() });
    plan.site.supervised = true;
    (plan.site.supervisor.nginx_first, plan.site.supervisor.stopwaitsecs) = (true, Some(2));
    let traffic = Traffic { slow_ms: 8000, ..Traffic::default() };
    proven("supervisord_waits_too_short", Cause::GracePeriodExceeded, &plan, &traffic)
}

#[test]
fn supervisor_stop_order() -> Result<()> {
    if let Err(why) = supervised::binary() {
        println!("supervisord: skipped: {why}");
        return Ok(());
    }
    let mut plan = plan(stop(SIGTERM));
    plan.site.fpm = Some(FpmConf { children: 28, ..FpmConf::default() });
    plan.site.supervised = true;
    proven("supervisor_stop_order", Cause::SupervisorStopOrder, &plan, &Traffic { slow_ms: 4000, ..Traffic::default() })
}

/// What an advice needs it does need: with a part of its set requests are still lost.
fn not_enough(name: &str, cause: Cause, plan: &Plan, traffic: &Traffic, only: &[&str]) -> Result<()> {
    let Some(_turn) = proofs::turn(name)? else { return Ok(()) };
    let (lost, mut set) = first(cause, plan, traffic)?;
    set.retain(|a| only.contains(&a.id.as_str()));
    ensure!(set.len() == only.len(), "the set of {cause} is without {only:?}");
    ensure!(set.iter().any(|a| !a.needs.is_empty()), "{only:?} need nothing");
    let mut better = plan.clone();
    better.apply(&set);
    let (over, _) = better.stage()?.play(traffic)?;
    let again = unhappy(&over);
    println!("{cause}: lost {lost}, with {only:?} alone {}", again.len());
    ensure!(!again.is_empty(), "{cause}: {only:?} alone was enough");
    Ok(())
}

/// The edge's part keeps idempotent requests whatever the pod does, also on kept connections that nginx has just closed.
#[test]
fn an_edge_that_asks_another_pod_is_enough() -> Result<()> {
    let name = "an_edge_that_asks_another_pod_is_enough";
    let Some(_turn) = proofs::turn(name)? else { return Ok(()) };
    let mut plan = plan(stop(SIGQUIT));
    (plan.site.edge, plan.deletion.propagation) = (Some(32), Duration::from_secs(3));
    let traffic = Traffic { slow: 0, in_php: 0, fast: 40, think: Duration::ZERO, answered: 1000, ..Traffic::default() };
    let (lost, set) = first(Cause::EndpointRace, &plan, &traffic)?;
    ensure!(set.iter().all(|a| a.id != "edge-retry-idempotent"), "refused connections are the pod's to prevent");
    plan.site.replica = true;
    let again = second(Cause::EndpointRace, &plan, &traffic)?;
    println!("{name}: lost {lost}, then of {again} requests none");
    Ok(())
}

#[test]
fn a_stop_signal_without_a_sleep_is_not_enough() -> Result<()> {
    not_enough(
        "a_stop_signal_without_a_sleep_is_not_enough",
        Cause::NginxFastShutdown,
        &plan(stop(SIGTERM)),
        &Traffic::default(),
        &["stopsignal-sigquit"],
    )
}

#[test]
fn a_control_timeout_without_nginx_first_is_not_enough() -> Result<()> {
    let plan = with_fpm(0, 28, stop(SIGQUIT));
    not_enough(
        "a_control_timeout_without_nginx_first_is_not_enough",
        Cause::FpmControlTimeoutZero,
        &plan,
        &Traffic::default(),
        &["fpm-process-control-timeout"],
    )
}
