//! Every finding of `why502 check` is proven: the pod is checked as it runs, with the spec that it is then stopped by, under
//! load and watched. What was to be lost is lost, by that cause, and nothing by another one; what is clean loses nothing.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal::{self, SIGKILL, SIGQUIT, SIGTERM};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use why502::check::{Finding, Severity, Summary};
use why502::model::incident::Cause;
use why502_tests::advised::{Act, Plan, Traffic, unhappy};
use why502_tests::kubelet::{Deletion, PreStop, Stop};
use why502_tests::nginx::NginxConf;
use why502_tests::php::{FpmConf, FpmListen};
use why502_tests::pod::Pid1;
use why502_tests::scene::{Watch, keep};
use why502_tests::site::{Site, SiteConf};
use why502_tests::{proofs, schema, supervised, tracer};

/// The balancer learns of the deletion so much later.
const PROPAGATION: Duration = Duration::from_millis(1200);
/// Of all clean plans; the longest request takes half of it.
const LONGEST_S: u64 = 3;

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

/// nginx is stopped with this; php-fpm outlives the scenario, as a native sidecar does.
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
        told: true,
    }
}

/// php-fpm is a container beside nginx, and stopped with this.
fn with_fpm(nginx: Stop, control_timeout: u32, children: u32, fpm: Stop) -> Plan {
    let mut plan = Plan { fpm: Some(fpm), ..plan(nginx) };
    plan.site.fpm = Some(FpmConf { children, process_control_timeout: control_timeout, ..FpmConf::default() });
    plan
}

/// `why502 check` of the running pod.
fn checked(site: &Site, spec: &Path, more: &[&str]) -> Result<(Vec<Finding>, Summary)> {
    let pid = site.nginx.container.pid().to_string();
    let mut command = Command::new(tracer::binary()?);
    command.args(["check", "-o", "json", "--pid", &pid, "--spec"]).arg(spec).args(more).stdin(Stdio::null());
    let out = command.output().context("cannot start why502 check")?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(stderr.is_empty(), "why502 check: {stderr}");
    let text = String::from_utf8(out.stdout)?;
    let (last, lines) =
        text.lines().collect::<Vec<&str>>().split_last().map(|(l, r)| (*l, r.to_vec())).context("nothing")?;
    let findings: Vec<Finding> = lines.iter().map(|l| serde_json::from_str(l)).collect::<Result<_, _>>()?;
    ensure!(out.status.code() == Some(i32::from(!findings.is_empty())), "exit code {:?}: {text}", out.status);
    Ok((findings, serde_json::from_str(last)?))
}

fn causes(findings: &[Finding], severity: Severity) -> BTreeSet<Cause> {
    findings.iter().filter(|f| f.severity == severity).map(|f| f.cause).collect()
}

/// What was found before the stop, and what was then lost.
struct Played {
    will: BTreeSet<Cause>,
    may: BTreeSet<Cause>,
    /// Causes of the incidents, and those that they also matched.
    lost: BTreeSet<Cause>,
    matched: BTreeSet<Cause>,
    incidents: usize,
    unhappy: Vec<String>,
}

fn play(name: &str, plan: &Plan, traffic: &Traffic, more: &[&str]) -> Result<Played> {
    let stage = plan.stage()?;
    let file = stage.site.dir.join("pod.yaml");
    std::fs::write(&file, plan.spec(&stage.site)?)?;
    let (findings, _) = checked(&stage.site, &file, more)?;
    let pod_spec = file.to_string_lossy().into_owned();
    // Failed connects to unix sockets are seen on any kernel.
    let options = ["--pod-spec", &pod_spec, "--unix-connect", "syscalls"];
    let watch = Watch::at(stage.site.dir.join("watch.rec"), &options)?;
    let (over, _) = stage.play(traffic)?;
    let count = over.lost(&[502]);
    watch.tracer.wait_for(count, &over.site)?;
    let recording = watch.recording.clone();
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let ours: Vec<_> = said
        .incidents
        .iter()
        .filter(|i| over.site.owns(i.server.ip, i.server.netns) && !i.cause.not_the_server())
        .collect();
    let played = Played {
        will: causes(&findings, Severity::WillLose),
        may: causes(&findings, Severity::MayLose),
        lost: ours.iter().map(|i| i.cause).collect(),
        matched: ours.iter().flat_map(|i| i.also_matched.iter().copied()).collect(),
        incidents: ours.len(),
        unhappy: unhappy(&over),
    };
    let unforeseen = played.lost.iter().any(|cause| !played.will.contains(cause) && !played.may.contains(cause));
    if unforeseen {
        keep(None, &format!("check {name}"), &recording, &over.requests)?;
    }
    Ok(played)
}

/// `cause` is found, with everything else that is lost; what is said to be lost for sure is lost. Races may need some
/// stops until one is lost.
fn proven(name: &str, cause: Cause, plan: &Plan, traffic: &Traffic, more: &[&str]) -> Result<()> {
    let Some(_turn) = proofs::turn(name)? else { return Ok(()) };
    let mut last = String::new();
    for run in 1..=5 {
        let p = play(name, plan, traffic, more)?;
        let found: BTreeSet<Cause> = p.will.union(&p.may).copied().collect();
        ensure!(found.contains(&cause), "{cause}: check does not say so, but {found:?}");
        let unforeseen: Vec<&Cause> = p.lost.difference(&found).collect();
        ensure!(unforeseen.is_empty(), "{cause}: lost, and check had not said so: {unforeseen:?}; it said {found:?}");
        let seen: BTreeSet<Cause> = p.lost.union(&p.matched).copied().collect();
        let unkept: Vec<&Cause> = p.will.difference(&seen).collect();
        if unkept.is_empty() && p.lost.contains(&cause) {
            println!("{cause}, run {run}: {} incidents {:?}; will {:?}, may {:?}", p.incidents, p.lost, p.will, p.may);
            return Ok(());
        }
        last = format!("lost {:?}; will {:?}, may {:?}", p.lost, p.will, p.may);
        println!("{cause}, run {run}: not yet: {last}");
    }
    bail!("{cause}: not lost in five stops: {last}")
}

/// Nothing is found, and nothing is lost.
fn clean(name: &str, plan: &Plan) -> Result<()> {
    clean_with(name, plan, &Traffic::default())
}

fn clean_with(name: &str, plan: &Plan, traffic: &Traffic) -> Result<()> {
    let Some(_turn) = proofs::turn(name)? else { return Ok(()) };
    let longest = LONGEST_S.to_string();
    let p = play(name, plan, traffic, &["--longest-request", &longest])?;
    ensure!(p.will.is_empty() && p.may.is_empty(), "{name}: found will {:?}, may {:?}", p.will, p.may);
    ensure!(p.unhappy.is_empty() && p.incidents == 0, "{name}: lost {:?}: {}", p.lost, p.unhappy.join("\n"));
    println!("{name}: nothing found, nothing lost");
    Ok(())
}

#[test]
fn nginx_fast_shutdown() -> Result<()> {
    proven("nginx_fast_shutdown", Cause::NginxFastShutdown, &plan(stop(SIGTERM)), &Traffic::default(), &[])
}

#[test]
fn quit_then_term() -> Result<()> {
    let plan = Plan { quit_hook: true, ..plan(stop(SIGTERM)) };
    proven("quit_then_term", Cause::QuitThenTerm, &plan, &Traffic::default(), &[])
}

#[test]
fn prestop_failed() -> Result<()> {
    let plan = plan(hook(SIGTERM, &["/bin/sh", "-SIGQUIT", "1"]));
    proven("prestop_failed", Cause::PrestopFailed, &plan, &Traffic::default(), &[])
}

/// As it is often written, and as Debian's sh does not know it.
#[test]
fn prestop_failed_in_dash() -> Result<()> {
    let name = std::fs::canonicalize("/bin/sh")?;
    if name.file_name().is_none_or(|name| name != "dash") {
        println!("prestop-failed: skipped: /bin/sh is {}, not dash", name.display());
        return Ok(());
    }
    let plan = plan(hook(SIGTERM, &["/bin/sh", "-c", "kill -SIGQUIT 1"]));
    proven("prestop_failed_in_dash", Cause::PrestopFailed, &plan, &Traffic::default(), &[])
}

#[test]
fn endpoint_race() -> Result<()> {
    let traffic = Traffic { slow: 0, in_php: 0, keep_alive: false, ..Traffic::default() };
    proven("endpoint_race", Cause::EndpointRace, &plan(stop(SIGQUIT)), &traffic, &[])
}

#[test]
fn keepalive_race_on_shutdown() -> Result<()> {
    let mut plan = plan(stop(SIGQUIT));
    plan.site.trouble =
        Some(why502_tests::tun::Trouble { delay: Duration::from_millis(15), ..why502_tests::tun::Trouble::default() });
    let think = Duration::ZERO;
    let traffic = Traffic { slow: 0, in_php: 0, fast: 40, think, answered: 1000, ..Traffic::default() };
    proven("keepalive_race_on_shutdown", Cause::KeepaliveRaceOnShutdown, &plan, &traffic, &[])
}

#[test]
fn nginx_accept_queue_dropped() -> Result<()> {
    let think = Duration::ZERO;
    let traffic =
        Traffic { slow: 0, in_php: 0, fast: 40, keep_alive: false, think, answered: 2000, ..Traffic::default() };
    proven("nginx_accept_queue_dropped", Cause::NginxAcceptQueueDropped, &plan(stop(SIGTERM)), &traffic, &[])
}

#[test]
fn grace_period_exceeded() -> Result<()> {
    let mut plan = plan(slept(SIGQUIT, 2));
    plan.deletion.grace = Duration::from_secs(4);
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("grace_period_exceeded", Cause::GracePeriodExceeded, &plan, &traffic, &["--longest-request", "6"])
}

#[test]
fn worker_shutdown_timeout() -> Result<()> {
    let mut plan = plan(slept(SIGQUIT, 2));
    plan.site.nginx = NginxConf { main_extra: "worker_shutdown_timeout 1s;".into(), ..NginxConf::default() };
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("worker_shutdown_timeout", Cause::WorkerShutdownTimeout, &plan, &traffic, &["--longest-request", "6"])
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
        &[],
    )
}

#[test]
fn pid_1_exits_first() -> Result<()> {
    if !Path::new("/usr/bin/runsvdir").exists() {
        println!("pid1-exited-first: skipped: runsvdir is not installed");
        return Ok(());
    }
    let mut plan = plan(stop(SIGTERM));
    plan.site.nginx = NginxConf { pid1: Pid1::Runit, ..NginxConf::default() };
    proven("pid_1_exits_first", Cause::Pid1ExitedFirst, &plan, &Traffic::default(), &[])
}

#[test]
fn container_killed() -> Result<()> {
    proven("container_killed", Cause::ContainerKilled, &plan(stop(SIGKILL)), &Traffic::default(), &[])
}

/// As tests/races.rs: the pod's second of idleness meets the client's.
#[test]
fn keepalive_race() -> Result<()> {
    let mut plan = Plan { act: Act::Nothing(4000), ..plan(slept(SIGQUIT, 5)) };
    plan.site.nginx = NginxConf { keepalive_timeout: 1, ..NginxConf::default() };
    plan.site.trouble =
        Some(why502_tests::tun::Trouble { delay: Duration::from_millis(40), ..why502_tests::tun::Trouble::default() });
    let think = Duration::from_millis(960);
    let traffic =
        Traffic { slow: 0, in_php: 0, fast: 20, paths: &["/static"], think, answered: 20, ..Traffic::default() };
    proven("keepalive_race", Cause::KeepaliveRace, &plan, &traffic, &[])
}

#[test]
fn fpm_control_timeout_zero() -> Result<()> {
    let plan = with_fpm(slept(SIGQUIT, 2), 0, 28, stop(SIGQUIT));
    proven("fpm_control_timeout_zero", Cause::FpmControlTimeoutZero, &plan, &Traffic::default(), &[])
}

#[test]
fn fpm_fast_shutdown() -> Result<()> {
    let plan = with_fpm(slept(SIGQUIT, 2), 0, 28, stop(SIGTERM));
    proven("fpm_fast_shutdown", Cause::FpmFastShutdown, &plan, &Traffic::default(), &[])
}

#[test]
fn fpm_process_control_timeout_too_short() -> Result<()> {
    let plan = with_fpm(slept(SIGQUIT, 2), 2, 28, stop(SIGQUIT));
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    let name = "fpm_process_control_timeout_too_short";
    proven(name, Cause::GracePeriodExceeded, &plan, &traffic, &["--longest-request", "6"])
}

#[test]
fn grace_shorter_than_process_control_timeout() -> Result<()> {
    let mut plan = with_fpm(slept(SIGQUIT, 2), 20, 28, stop(SIGQUIT));
    plan.deletion.grace = Duration::from_secs(4);
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("grace_shorter_than_process_control_timeout", Cause::GracePeriodExceeded, &plan, &traffic, &[])
}

#[test]
fn grace_shorter_than_worker_shutdown_timeout() -> Result<()> {
    let mut plan = plan(slept(SIGQUIT, 2));
    plan.site.nginx = NginxConf { main_extra: "worker_shutdown_timeout 10s;".into(), ..NginxConf::default() };
    plan.deletion.grace = Duration::from_secs(4);
    let traffic = Traffic { slow_ms: 6000, ..Traffic::default() };
    proven("grace_shorter_than_worker_shutdown_timeout", Cause::GracePeriodExceeded, &plan, &traffic, &[])
}

/// A proxy in the pod, told at once, before an nginx that waits: by a command, which shows that the whole pod is stopped.
fn proxied(proxy: Stop) -> Plan {
    let mut plan = Plan { proxy, ..plan(hook(SIGQUIT, &["/bin/sleep", "5"])) };
    (plan.site.sidecar, plan.site.nginx.port) = (true, 8080);
    plan
}

#[test]
fn sidecar_gone_first() -> Result<()> {
    proven("sidecar_gone_first", Cause::SidecarGoneFirst, &proxied(stop(SIGTERM)), &Traffic::default(), &[])
}

/// It drops nothing, but nobody can connect any more.
#[test]
fn a_proxy_that_ends_first_in_good_order() -> Result<()> {
    let plan = proxied(stop(SIGQUIT));
    proven("a_proxy_that_ends_first_in_good_order", Cause::EndpointRace, &plan, &Traffic::default(), &[])
}

#[test]
fn clean_with_a_proxy_as_a_native_sidecar() -> Result<()> {
    let plan = proxied(Stop { sidecar: true, ..stop(SIGTERM) });
    clean("clean_with_a_proxy_as_a_native_sidecar", &plan)
}

#[test]
fn clean_with_a_proxy_that_waits() -> Result<()> {
    clean("clean_with_a_proxy_that_waits", &proxied(slept(SIGQUIT, 5)))
}

/// More requests than children: some wait in the queue, and php-fpm takes none of them any more.
#[test]
fn fpm_accept_queue_dropped() -> Result<()> {
    let traffic = Traffic { in_php: 6, ..Traffic::default() };
    let plan = with_fpm(slept(SIGQUIT, 4), 10, 6, stop(SIGQUIT));
    proven("fpm_accept_queue_dropped", Cause::FpmAcceptQueueDropped, &plan, &traffic, &[])
}

#[test]
fn fpm_listen_queue_full() -> Result<()> {
    let mut plan = Plan { act: Act::Nothing(2000), ..plan(slept(SIGQUIT, 5)) };
    let listen = FpmListen::Unix;
    plan.site.fpm = Some(FpmConf { listen, children: 4, backlog: Some(2), ..FpmConf::default() });
    let traffic = Traffic { in_php: 4, fast: 0, answered: 0, ..Traffic::default() };
    proven("fpm_listen_queue_full", Cause::FpmListenQueueFull, &plan, &traffic, &[])
}

fn supervised_plan(sleep: u64) -> Option<Plan> {
    if let Err(why) = supervised::binary() {
        println!("supervisord: skipped: {why}");
        return None;
    }
    let mut plan = plan(slept(SIGTERM, sleep));
    plan.site.fpm = Some(FpmConf { children: 28, ..FpmConf::default() });
    plan.site.supervised = true;
    Some(plan)
}

#[test]
fn supervisor_stop_order() -> Result<()> {
    let Some(mut plan) = supervised_plan(1) else { return Ok(()) };
    // The clients are still there when the hook is over.
    plan.deletion.propagation = Duration::from_secs(4);
    proven(
        "supervisor_stop_order",
        Cause::SupervisorStopOrder,
        &plan,
        &Traffic { slow_ms: 4000, ..Traffic::default() },
        &[],
    )
}

#[test]
fn supervisord_kills_what_takes_longer() -> Result<()> {
    let Some(mut plan) = supervised_plan(2) else { return Ok(()) };
    (plan.site.supervisor.nginx_first, plan.site.supervisor.stopwaitsecs) = (true, Some(2));
    let traffic = Traffic { slow_ms: 8000, ..Traffic::default() };
    proven(
        "supervisord_kills_what_takes_longer",
        Cause::FpmControlTimeoutZero,
        &plan,
        &traffic,
        &["--longest-request", "8"],
    )?;
    plan.site.fpm = Some(FpmConf { children: 28, process_control_timeout: 20, ..FpmConf::default() });
    // nginx's workers outlive their master until supervisord has ended, which takes twice the time, and it looks only once
    // a second.
    let traffic = Traffic { slow_ms: 14_000, ..Traffic::default() };
    proven(
        "supervisord_kills_what_takes_longer",
        Cause::GracePeriodExceeded,
        &plan,
        &traffic,
        &["--longest-request", "14"],
    )
}

/// Its whole process group: else the children outlive their master, and nginx still gets their answers.
#[test]
fn supervisord_waits_less_than_php_fpm() -> Result<()> {
    let Some(mut plan) = supervised_plan(1) else { return Ok(()) };
    (plan.site.supervisor.stopwaitsecs, plan.site.supervisor.killasgroup) = (Some(2), true);
    plan.site.fpm = Some(FpmConf { children: 28, process_control_timeout: 20, ..FpmConf::default() });
    plan.deletion.propagation = Duration::from_secs(4);
    let traffic = Traffic { slow_ms: 8000, ..Traffic::default() };
    let name = "supervisord_waits_less_than_php_fpm";
    proven(name, Cause::SupervisorStopOrder, &plan, &traffic, &["--longest-request", "8"])
}

#[test]
fn clean_with_a_sidecar() -> Result<()> {
    clean("clean_with_a_sidecar", &plan(slept(SIGQUIT, 5)))
}

#[test]
fn clean_with_php_fpm_that_waits_longer() -> Result<()> {
    clean("clean_with_php_fpm_that_waits_longer", &with_fpm(slept(SIGQUIT, 5), 0, 28, slept(SIGQUIT, 5 + LONGEST_S)))
}

/// It is told while nginx still waits for its last answers.
#[test]
fn clean_with_php_fpm_that_has_the_time() -> Result<()> {
    let mut plan = with_fpm(slept(SIGQUIT, 5), 10, 28, slept(SIGQUIT, 6));
    plan.deletion.propagation = Duration::from_millis(4500);
    clean_with("clean_with_php_fpm_that_has_the_time", &plan, &Traffic { slow_ms: 2600, ..Traffic::default() })
}

/// SIGTERM, and a hook that quits nginx and waits for it.
#[test]
fn clean_with_a_hook_that_waits() -> Result<()> {
    let script = "sleep 5; kill -QUIT 1; while kill -0 1; do sleep 0.1; done";
    clean("clean_with_a_hook_that_waits", &plan(hook(SIGTERM, &["/bin/sh", "-c", script])))
}

#[test]
fn clean_under_tini() -> Result<()> {
    if !Path::new("/usr/bin/tini").exists() {
        println!("tini: skipped: it is not installed");
        return Ok(());
    }
    let mut plan = plan(slept(SIGQUIT, 5));
    plan.site.nginx = NginxConf { pid1: Pid1::Tini, ..NginxConf::default() };
    clean("clean_under_tini", &plan)
}

#[test]
fn clean_under_supervisord() -> Result<()> {
    let Some(mut plan) = supervised_plan(5) else { return Ok(()) };
    plan.site.supervisor.nginx_first = true;
    clean("clean_under_supervisord", &plan)
}

/// By the time of php-fpm's turn nobody needs it, however long it may take.
#[test]
fn clean_under_supervisord_with_a_long_timeout() -> Result<()> {
    let Some(mut plan) = supervised_plan(5) else { return Ok(()) };
    plan.site.supervisor.nginx_first = true;
    plan.site.fpm = Some(FpmConf { children: 28, process_control_timeout: 20, ..FpmConf::default() });
    clean("clean_under_supervisord_with_a_long_timeout", &plan)
}
