//! Pods that real container runtimes run and stop: dockerd and containerd. Every lost request has one incident with an
//! allowed cause, the container's own id, the names that the runtime gave, and a chain that tells the runtime as the sender.
//!
//! The ordinary run plays a few cases on dockerd and on the distribution's containerd; `FULL=1` plays all of them, on each
//! containerd that is here, and in a view of the cgroups that has v2 only. `ONLY=WORD` plays the cases with that in their
//! name, `RECORDINGS=DIR` keeps what was recorded.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{self, SIGKILL, SIGQUIT, SIGTERM};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use why502::model::incident::{Cause, Container, Incident, Trigger};
use why502_tests::ledger::Claim;
use why502_tests::load::{LoadConf, Outcome, Request};
use why502_tests::php::FpmConf;
use why502_tests::runtime::containerd::{self, Containerd};
use why502_tests::runtime::deployed::{Deployed, DeployedConf, Hook};
use why502_tests::runtime::docker::{self, Docker};
use why502_tests::runtime::{Engine, Names, Running, View};
use why502_tests::scene::{Allowed, Loads, Scene, pass};
use why502_tests::{guard, tracer, truth};

const SLOW: usize = 8;
const REFUSED: u64 = 10;
const GRACE: Duration = Duration::from_secs(20);

type Played<'e> = Scene<Deployed<'e>>;
type Act<'a> = Box<dyn Fn(&mut Played) -> Result<()> + 'a>;

/// What is played, and what must be said of it.
struct Case<'a> {
    name: &'static str,
    conf: DeployedConf,
    slow_ms: u32,
    /// Beside the slow requests, one connection per request.
    fast: bool,
    made: &'static [u16],
    act: Act<'a>,
    allowed: Allowed<'static>,
    /// At least one incident has it.
    cause: Cause,
    trigger: Trigger,
    /// php-fpm ends with nginx: a loss between the two may be one that nginx did not live to answer with `made`.
    both_end: bool,
    /// In the chain of at least one of these.
    tells: &'static [&'static str],
    /// Played in the ordinary run as well.
    always: bool,
}

const BY_RUNTIME: &str = "the container runtime (runc ";

impl Default for Case<'_> {
    fn default() -> Self {
        Case {
            name: "",
            conf: DeployedConf::default(),
            slow_ms: 3000,
            fast: true,
            made: &[],
            act: Box::new(|_| Ok(())),
            allowed: &|_, _| &[],
            cause: Cause::NginxFastShutdown,
            trigger: Trigger::RuntimeStop,
            both_end: false,
            tells: &[BY_RUNTIME],
            always: false,
        }
    }
}

fn play(engine: &dyn Engine, case: &Case) -> Result<()> {
    let site = Deployed::start(engine, &case.conf)?;
    let watch = site.watch()?;
    let mut slow = LoadConf::new(site.addr(), &format!("/slow.php?ms={}", case.slow_ms));
    (slow.connections, slow.max_refused) = (SLOW, Some(REFUSED));
    slow.refused_pause = Duration::from_millis(50);
    slow.prefix = "slow".into();
    let fast = case.fast.then(|| {
        let mut fast = LoadConf::new(site.addr(), "/static");
        (fast.connections, fast.keep_alive, fast.max_refused) = (4, false, Some(REFUSED));
        fast.think = Duration::from_millis(2);
        fast.prefix = "fast".into();
        fast
    });
    let (nginx, php) = (site.nginx.id.clone(), site.php.id.clone());
    named(&site, &case.conf)?;
    let mut scene = Scene::start(site, &Loads { slow: Some(slow), in_php: SLOW, fast, answered: 50 })?;
    (case.act)(&mut scene)?;
    let over = scene.end()?;
    let (mut result, said) =
        over.heard(&format!("{} {}", engine.label(), case.name), watch, case.made, case.allowed)?;
    println!("{}: {}: {result}", engine.label(), case.name);
    let inside = |c: &Claim| c.server.is_some_and(|a| a.ip().is_loopback()) && c.cause == case.cause;
    result.false_incidents.retain(|c| !(case.both_end && inside(c)));
    let complaints = result.complaints_in(1);
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    let claims = tracer::claims(&said.incidents, &over.site);
    let ours = |i: &&Incident| claims.iter().any(|c| c.id == i.id);
    let told: Vec<&Incident> = said.incidents.iter().filter(ours).filter(|i| i.cause == case.cause).collect();
    ensure!(!told.is_empty(), "nothing was lost to {}: the scenario did not happen", case.cause);
    for i in &told {
        let text: String = i.chain.iter().map(|l| format!("{} ({})\n", l.text, l.rule)).collect();
        ensure!(i.trigger == case.trigger, "trigger {} of {}:\n{text}", i.trigger, i.summary);
        let (name, id) = if i.server.ip.is_some_and(|ip| ip.is_loopback()) { ("php", &php) } else { ("nginx", &nginx) };
        let called = engine.called(&over.site.pod.spec, name);
        let container = i.container.as_ref().with_context(|| format!("no container: {}", i.summary))?;
        ensure!(container.id == *id, "container {}, not {id}: {}\n{text}", container.id, i.summary);
        let of = |c: &Container| c.name.as_deref() == Some(&called.container);
        ensure!(of(container), "container is called {:?}, not {}: {}", container.name, called.container, i.summary);
        let uid = &over.site.pod.spec.uid;
        ensure!(i.pod.as_ref().map(|p| &p.uid) == case.conf.kubepods.then_some(uid), "{:?} of {}", i.pod, i.summary);
        let pod = i.pod.as_ref().and_then(|p| p.namespace.clone().zip(p.name.clone()));
        ensure!(pod == called.pod, "pod is called {pod:?}, not {:?}: {}", called.pod, i.summary);
    }
    for wanted in case.tells {
        let text = |i: &&&Incident| i.chain.iter().any(|l| l.text.contains(wanted) || l.rule == *wanted);
        ensure!(told.iter().any(|i| text(&i)), "no chain tells {wanted:?}: {:#?}", told[0].chain);
    }
    Ok(())
}

/// The cgroup of nginx is called as the case wants it.
fn named(site: &Deployed, conf: &DeployedConf) -> Result<()> {
    let Running { id, pid, .. } = &site.nginx;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::")).context("not in a cgroup of v2")?;
    let uid = &site.pod.spec.uid;
    let end = match (conf.kubepods, conf.names) {
        (false, _) => format!("/docker/{id}"),
        (true, Names::Cgroupfs) => format!("/kubepods/burstable/pod{uid}/{id}"),
        (true, Names::Systemd) => format!("-pod{}.slice/cri-containerd-{id}.scope", uid.replace('-', "_")),
    };
    ensure!(path.ends_with(&end), "nginx is in {path}, not in …{end}");
    Ok(())
}

/// Plays what is chosen; goes on after a failure, and tells all of them in the end.
fn all(engine: &dyn Engine, setup: Instant, cases: &[Case]) -> Result<()> {
    println!("{}: up with its images after {:.1?}", engine.label(), setup.elapsed());
    let (full, only) = (std::env::var_os("FULL").is_some(), std::env::var("ONLY").ok());
    let wanted = |case: &&Case| match &only {
        Some(word) => case.name.contains(word.as_str()),
        None => full || case.always,
    };
    let (mut failed, mut played) = (Vec::new(), 0);
    for case in cases.iter().filter(wanted) {
        let start = Instant::now();
        let result = play(engine, case);
        played += 1;
        match result {
            Ok(()) => println!("{}: {}: {:.1?}", engine.label(), case.name, start.elapsed()),
            Err(e) => {
                println!("{}: {}: FAILED: {e:#}", engine.label(), case.name);
                failed.push(case.name);
            }
        }
        ensure!(!guard::interrupted(), "interrupted");
    }
    ensure!(
        failed.is_empty(),
        "{} of {played} cases failed on {}: {}",
        failed.len(),
        engine.label(),
        failed.join(", ")
    );
    Ok(())
}

fn skipped(name: &str, why: Option<String>) -> bool {
    let why = why.or_else(guard::why_not_traced);
    if let Some(why) = &why {
        println!("{name}: skipped: {why}");
    }
    why.is_some()
}

fn stop_nginx(scene: &mut Played) -> Result<()> {
    scene.site.engine.stop(&scene.site.nginx, GRACE)?;
    scene.refused()
}

fn stop_php(scene: &mut Played) -> Result<()> {
    scene.site.engine.stop(&scene.site.php, GRACE)?;
    // nginx answers 502 from now on, and nobody is refused.
    pass(200)
}

fn delete(scene: &mut Played) -> Result<()> {
    scene.site.delete()?;
    scene.refused()
}

fn quitting() -> DeployedConf {
    DeployedConf { nginx_stop: SIGQUIT, ..DeployedConf::default() }
}

/// php-fpm would finish what it works on.
fn patient_php() -> DeployedConf {
    let fpm = FpmConf { process_control_timeout: 30, children: 16, ..FpmConf::default() };
    DeployedConf { fpm, ..DeployedConf::default() }
}

/// It did not finish in time; and meanwhile it listened no more.
fn php_killed(_: &Request, started: bool) -> &'static [Cause] {
    if started { &[Cause::GracePeriodExceeded] } else { &[Cause::GracePeriodExceeded, Cause::FpmNotListening] }
}

fn with_hook(stop: Signal, pre_stop: Hook) -> DeployedConf {
    DeployedConf { nginx_stop: stop, pre_stop, ..patient_php() }
}

/// What was under way is cut by SIGKILL; what comes later finds nobody.
fn killed(r: &Request, _: bool) -> &'static [Cause] {
    match r.outcome {
        Outcome::Refused => &[Cause::ContainerKilled, Cause::EndpointRace],
        _ => &[Cause::ContainerKilled],
    }
}

/// php is told to stop at the same moment as nginx: it finishes what it works on, and nginx answers 502 for the rest.
fn deleted(term: bool) -> impl Fn(&Request, bool) -> &'static [Cause] {
    move |r, started| match r.outcome {
        Outcome::HttpError { .. } if started => &[],
        Outcome::HttpError { .. } => &[Cause::FpmNotListening, Cause::FpmAcceptQueueDropped],
        _ => truth::nginx_stop(term)(r, started),
    }
}

/// The cases that every runtime plays.
fn common<'a>() -> Vec<Case<'a>> {
    vec![
        Case {
            name: "stop, TERM",
            act: Box::new(stop_nginx),
            allowed: &|r, s| truth::nginx_stop(true)(r, s),
            tells: &["sent SIGTERM, the declared stop signal, to nginx master", BY_RUNTIME],
            always: true,
            ..Case::default()
        },
        Case {
            name: "stop, QUIT",
            conf: quitting(),
            act: Box::new(stop_nginx),
            allowed: &|r, s| truth::nginx_stop(false)(r, s),
            cause: Cause::EndpointRace,
            always: true,
            ..Case::default()
        },
        Case {
            name: "grace overrun",
            conf: quitting(),
            slow_ms: 6000,
            act: Box::new(|scene| {
                scene.site.engine.stop(&scene.site.nginx, Duration::from_secs(1))?;
                scene.refused()
            }),
            allowed: &|r, s| truth::nginx_drain(&[Cause::GracePeriodExceeded])(r, s),
            cause: Cause::GracePeriodExceeded,
            always: true,
            ..Case::default()
        },
        Case {
            name: "exec nginx -s quit, then stop",
            slow_ms: 6000,
            act: Box::new(|scene| {
                let site = &scene.site;
                let argv = [&site.nginx_argv[..], &["-s".into(), "quit".into()]].concat();
                ensure!(site.engine.exec(&site.nginx, &argv)? == 0, "nginx -s quit failed");
                scene.listener_closed()?;
                pass(100)?;
                stop_nginx(scene)
            }),
            allowed: &|r, s| truth::nginx_drain(&[Cause::QuitThenTerm])(r, s),
            cause: Cause::QuitThenTerm,
            tells: &[
                "run in the container from outside (PID ",
                "-s quit` was run in the container from outside",
                BY_RUNTIME,
            ],
            always: true,
            ..Case::default()
        },
        Case {
            name: "stop of php, TERM",
            conf: DeployedConf { php_stop: SIGTERM, ..DeployedConf::default() },
            fast: false,
            made: &[502],
            act: Box::new(stop_php),
            allowed: &truth::fpm_term,
            cause: Cause::FpmFastShutdown,
            always: true,
            ..Case::default()
        },
        Case {
            name: "stop of php, QUIT, grace overrun",
            conf: patient_php(),
            slow_ms: 6000,
            fast: false,
            made: &[502],
            act: Box::new(|scene| {
                scene.site.engine.stop(&scene.site.php, Duration::from_secs(2))?;
                pass(200)
            }),
            allowed: &php_killed,
            cause: Cause::GracePeriodExceeded,
            ..Case::default()
        },
    ]
}

#[test]
fn docker() -> Result<()> {
    if skipped("docker", docker::why_not()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    on_docker(View::Hosts)
}

#[test]
fn docker_on_v2_alone() -> Result<()> {
    if skipped("docker on cgroup v2 alone", docker::why_not().or_else(guard::why_not_full)) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    on_docker(View::PureV2)
}

fn on_docker(view: View) -> Result<()> {
    let setup = Instant::now();
    let docker = Docker::start(view)?;
    let mut cases = common();
    cases.extend([
        Case {
            name: "docker kill",
            act: Box::new(|scene| {
                docker.kill(&scene.site.nginx, SIGKILL)?;
                scene.refused()
            }),
            allowed: &killed,
            cause: Cause::ContainerKilled,
            ..Case::default()
        },
        Case {
            name: "docker's own cgroup names",
            conf: DeployedConf { kubepods: false, ..DeployedConf::default() },
            act: Box::new(stop_nginx),
            allowed: &|r, s| truth::nginx_stop(true)(r, s),
            always: true,
            ..Case::default()
        },
        Case {
            name: "removed, and its name used again at once",
            act: Box::new(|scene| {
                docker.remove(&scene.site.nginx)?;
                scene.site.start_nginx()?;
                pass(300)
            }),
            allowed: &|r, _| match r.outcome {
                Outcome::Refused => &[Cause::ContainerKilled, Cause::EndpointRace, Cause::NginxNotListening],
                _ => &[Cause::ContainerKilled],
            },
            cause: Cause::ContainerKilled,
            ..Case::default()
        },
    ]);
    all(&docker, setup, &cases)
}

fn on_containerd(programs: &Path, view: View) -> Result<()> {
    let setup = Instant::now();
    let containerd = Containerd::start(programs, view).with_context(|| programs.display().to_string())?;
    let mut cases = common();
    cases.extend([
        Case {
            name: "pod deleted, preStop sleep, QUIT",
            conf: with_hook(SIGQUIT, Hook::Command(&["/bin/sleep", "1"])),
            made: &[502],
            act: Box::new(delete),
            allowed: &|r, s| deleted(false)(r, s),
            cause: Cause::EndpointRace,
            // php was told when the hook began.
            tells: &["beside-the-stop-of-the-pod", BY_RUNTIME],
            ..Case::default()
        },
        Case {
            name: "pod deleted, preStop nginx -s quit",
            conf: with_hook(SIGTERM, Hook::NginxQuit),
            slow_ms: 6000,
            made: &[502],
            act: Box::new(delete),
            allowed: &|r, started| match r.outcome {
                Outcome::HttpError { .. } => deleted(true)(r, started),
                _ => truth::nginx_drain(&[Cause::QuitThenTerm])(r, started),
            },
            cause: Cause::QuitThenTerm,
            tells: &["-s quit`", "run-from-outside", BY_RUNTIME],
            ..Case::default()
        },
        Case {
            name: "pod deleted, preStop sh -SIGQUIT 1",
            conf: with_hook(SIGTERM, Hook::Command(&["/bin/sh", "-SIGQUIT", "1"])),
            made: &[502],
            act: Box::new(delete),
            // The runtime knows the hook's command: all of it comes from there.
            allowed: &|_, _| &[Cause::PrestopFailed],
            cause: Cause::PrestopFailed,
            tells: &["/bin/sh -SIGQUIT 1", "the declared stop signal", BY_RUNTIME],
            always: true,
            ..Case::default()
        },
        Case {
            name: "systemd's cgroup names",
            conf: DeployedConf { names: Names::Systemd, ..DeployedConf::default() },
            act: Box::new(stop_nginx),
            allowed: &|r, s| truth::nginx_stop(true)(r, s),
            always: true,
            ..Case::default()
        },
        Case {
            name: "php stopped by its liveness probe, and started again",
            conf: patient_php(),
            slow_ms: 6000,
            fast: false,
            made: &[502],
            act: Box::new(|scene| {
                scene.site.engine.stop(&scene.site.php, Duration::from_secs(2))?;
                scene.site.start_php()?;
                // Answered again.
                pass(300)
            }),
            allowed: &php_killed,
            cause: Cause::GracePeriodExceeded,
            ..Case::default()
        },
        Case {
            name: "containerd killed in the middle of a stop, and started again",
            conf: quitting(),
            slow_ms: 8000,
            act: Box::new(|scene| {
                let site = &scene.site;
                thread::scope(|scope| {
                    // Its answer is lost with containerd.
                    scope.spawn(|| site.engine.stop(&site.nginx, GRACE));
                    scene.listener_closed()?;
                    containerd.restart()
                })?;
                site.engine.stop(&site.nginx, Duration::from_secs(1))?;
                scene.refused()
            }),
            allowed: &|r, s| truth::nginx_drain(&[Cause::GracePeriodExceeded])(r, s),
            cause: Cause::GracePeriodExceeded,
            ..Case::default()
        },
        Case {
            name: "pod of three stopped at once",
            conf: DeployedConf { sidecar: true, ..DeployedConf::default() },
            made: &[502],
            both_end: true,
            act: Box::new(|scene| {
                containerd.cri.stop_pod(&scene.site.pod.id)?;
                scene.refused()
            }),
            allowed: &killed,
            cause: Cause::ContainerKilled,
            ..Case::default()
        },
    ]);
    all(&containerd, setup, &cases)
}

#[test]
fn containerd() -> Result<()> {
    if skipped("containerd", containerd::why_not()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let full = std::env::var_os("FULL").is_some();
    let found = containerd::found();
    let mut failed = Vec::new();
    for programs in found.iter().take(if full { found.len() } else { 1 }) {
        failed.extend(on_containerd(programs, View::Hosts).err().map(|e| format!("{e:#}")));
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn containerd_on_v2_alone() -> Result<()> {
    if skipped("containerd on cgroup v2 alone", containerd::why_not().or_else(guard::why_not_full)) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    on_containerd(&containerd::found()[0], View::PureV2)
}
