//! Who sent the signal: inits that pass it on, commands from outside, cgroup.kill, shared and the host's namespaces, servers
//! under other names, why502 itself in a private cgroup namespace. Every lost request has one incident with an allowed
//! cause, and its chain tells who did it.
//!
//! `RUNS=20` for more than one run of each; `RECORDINGS=DIR` keeps what was recorded.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGQUIT, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use why502::model::incident::{Cause, Incident, Level, Trigger};
use why502_tests::cgroup::{self, Cgroup};
use why502_tests::guard::{self, wait};
use why502_tests::launch::Launched;
use why502_tests::load::LoadConf;
use why502_tests::nginx::NginxConf;
use why502_tests::php::FpmConf;
use why502_tests::pod::{Pid1, Pids, PodConf};
use why502_tests::scene::{Allowed, LIMIT, Loads, Scene, Watch, pass};
use why502_tests::site::{Site, SiteConf};
use why502_tests::supervised::Order;
use why502_tests::{launch, supervised, tracer, truth};

const SLOW: usize = 8;
const REFUSED: u64 = 10;

/// What is played, and what must be said of it.
struct Case<'a> {
    name: &'a str,
    conf: SiteConf,
    slow_ms: u32,
    /// Beside the slow requests, one connection per request.
    fast: bool,
    /// The pod's nginx answers with this for a php-fpm that failed.
    made: &'a [u16],
    act: &'a dyn Fn(&Scene) -> Result<()>,
    allowed: Allowed<'a>,
    /// At least one incident has it.
    cause: Cause,
    sub_cause: Option<&'a str>,
    /// Of every incident with that cause.
    trigger: Trigger,
    /// In the chain of at least one of these.
    tells: &'a [&'a str],
    level: Level,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Case {
            name: "",
            conf: site(NginxConf::default()),
            slow_ms: 4000,
            fast: true,
            made: &[],
            act: &|_| Ok(()),
            allowed: &|_, _| &[],
            cause: Cause::NginxFastShutdown,
            sub_cause: None,
            trigger: Trigger::ManualSignal,
            tells: &[],
            level: Level::Certain,
        }
    }
}

fn site(nginx: NginxConf) -> SiteConf {
    let fpm = FpmConf { children: 2 * SLOW as u32, ..FpmConf::default() };
    SiteConf { nginx, fpm: Some(fpm), ..SiteConf::default() }
}

fn under(pid1: Pid1) -> SiteConf {
    site(NginxConf { pid1, ..NginxConf::default() })
}

/// Ready to be played, or a line that says why not.
fn skipped(name: &str, why: Option<String>) -> bool {
    let why = why.or_else(guard::why_not_traced);
    if let Some(why) = &why {
        println!("{name}: skipped: {why}");
    }
    why.is_some()
}

fn play(case: &Case) -> Result<()> {
    play_beside(case, &|site| Watch::of(site))
}

fn play_beside(case: &Case, watch: &dyn Fn(&Site) -> Result<Watch>) -> Result<()> {
    for run in 1..=guard::number("RUNS", 1) {
        one(case, watch).with_context(|| format!("{}, run {run}", case.name))?;
    }
    Ok(())
}

fn one(case: &Case, watch: &dyn Fn(&Site) -> Result<Watch>) -> Result<()> {
    let site = Site::start(&case.conf)?;
    let watch = watch(&site)?;
    judge(case, site, watch)
}

fn judge(case: &Case, site: Site, watch: Watch) -> Result<()> {
    let mut slow = LoadConf::new(site.pod_addr(false), &format!("/slow.php?ms={}", case.slow_ms));
    (slow.connections, slow.max_refused) = (SLOW, Some(REFUSED));
    slow.refused_pause = Duration::from_millis(50);
    slow.prefix = "slow".into();
    let fast = case.fast.then(|| {
        let mut fast = LoadConf::new(site.pod_addr(false), "/static");
        (fast.connections, fast.keep_alive, fast.max_refused) = (4, false, Some(REFUSED));
        fast.think = Duration::from_millis(2);
        fast.prefix = "fast".into();
        fast
    });
    let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: SLOW, fast, answered: 50 })?;
    (case.act)(&scene)?;
    let over = scene.end()?;
    let (result, said) = over.heard(case.name, watch, case.made, case.allowed)?;
    println!("{}: {result}", case.name);
    let complaints = result.complaints_in(1);
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    let here = over.site.territory();
    let ours = |i: &&Incident| here.owns(i.server.ip, i.server.netns);
    let of_cause = |i: &&Incident| i.cause == case.cause && i.sub_cause.as_deref() == case.sub_cause;
    let told: Vec<&Incident> = said.incidents.iter().filter(ours).filter(of_cause).collect();
    ensure!(!told.is_empty(), "nothing was lost to {} {:?}: the scenario did not happen", case.cause, case.sub_cause);
    for i in &told {
        let text: String = i.chain.iter().map(|l| format!("{} ({})\n", l.text, l.rule)).collect();
        ensure!(i.trigger == case.trigger, "trigger {} of {}:\n{text}", i.trigger, i.summary);
        let above = matches!((case.level, i.confidence.level), (Level::Likely, Level::Certain));
        ensure!(!above, "{} is certain: {text}", i.summary);
        let pod = i.pod.as_ref().map(|p| p.uid.as_str());
        ensure!(pod == Some(over.site.pod.uid.as_str()), "pod {pod:?} of {}", i.summary);
    }
    if case.level == Level::Certain {
        ensure!(told.iter().any(|i| i.confidence.level == Level::Certain), "none is certain: {:?}", told[0].confidence);
    }
    for wanted in case.tells {
        let text = |i: &&&Incident| i.chain.iter().any(|l| l.text.contains(wanted) || l.rule == *wanted);
        ensure!(told.iter().any(|i| text(&i)), "no chain tells {wanted:?}: {:#?}", told[0].chain);
    }
    Ok(())
}

fn term(scene: &Scene) -> Result<()> {
    scene.site.nginx.container.signal(SIGTERM)?;
    scene.refused()
}

/// TERM to the PID 1 that passes it on to nginx.
fn passed_on(pid1: Pid1, comm: &str) -> Result<()> {
    let name = format!("{pid1:?} passes TERM on");
    if skipped(&name, pid1.lacks()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let sent = format!("{comm} ");
    play(&Case {
        name: &name,
        conf: under(pid1),
        act: &term,
        allowed: &truth::nginx_stop(true),
        tells: &["passed-on", &sent, "on the host sent SIGTERM"],
        ..Case::default()
    })
}

#[test]
fn tini_passes_it_on() -> Result<()> {
    passed_on(Pid1::Tini, "tini")
}

#[test]
fn dumb_init_passes_it_on() -> Result<()> {
    passed_on(Pid1::DumbInit, "dumb-init")
}

#[test]
fn catatonit_passes_it_on() -> Result<()> {
    passed_on(Pid1::Catatonit, "catatonit")
}

#[test]
fn a_trap_passes_it_on() -> Result<()> {
    passed_on(Pid1::Trap, "sh")
}

#[test]
fn s6_stops_it() -> Result<()> {
    passed_on(Pid1::S6, "s6-supervise")
}

#[test]
fn runsvdir_does_not_wait() -> Result<()> {
    let name = "runsvdir ends on TERM";
    if skipped(name, Pid1::Runit.lacks()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&Case {
        name,
        conf: under(Pid1::Runit),
        act: &term,
        allowed: &truth::always(&[Cause::Pid1ExitedFirst]),
        cause: Cause::Pid1ExitedFirst,
        tells: &["pid-1-ended", "the-rest-dies-with-pid-1"],
        ..Case::default()
    })
}

#[test]
fn a_trap_whose_wait_is_cut_short() -> Result<()> {
    let name = "a trap that ends first";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&Case {
        name,
        conf: under(Pid1::TrapEndsFirst),
        act: &|scene| {
            scene.site.nginx.container.signal(SIGQUIT)?;
            scene.refused()
        },
        // nginx may not even have heard of it when it is killed.
        allowed: &truth::always(&[
            Cause::Pid1ExitedFirst,
            Cause::EndpointRace,
            Cause::NginxAcceptQueueDropped,
            Cause::KeepaliveRaceOnShutdown,
        ]),
        cause: Cause::Pid1ExitedFirst,
        tells: &["pid-1-ended", "on the host sent SIGQUIT to sh"],
        ..Case::default()
    })
}

/// `nginx -s quit` in the container, as preStop hooks and people do.
fn nginx_s_quit(scene: &Scene) -> Result<Launched> {
    let nginx = &scene.site.nginx;
    let mut argv = nginx.argv.clone();
    argv.extend(["-s".into(), "quit".into()]);
    nginx.container.exec(&argv)
}

#[test]
fn a_command_from_outside() -> Result<()> {
    let name = "nginx -s quit from outside";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&Case {
        name,
        act: &|scene| {
            nginx_s_quit(scene)?.wait(LIMIT)?;
            scene.listener_closed()?;
            pass(100)?;
            term(scene)
        },
        allowed: &truth::nginx_drain(&[Cause::QuitThenTerm]),
        cause: Cause::QuitThenTerm,
        tells: &["-s quit`, run in the container from outside (PID ", "run-from-outside", "on the host sent SIGTERM"],
        ..Case::default()
    })
}

#[test]
fn the_master_kills_a_stuck_worker() -> Result<()> {
    let name = "a stuck worker";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&Case {
        name,
        slow_ms: 8000,
        fast: false,
        act: &|scene| {
            for worker in scene.site.nginx.workers() {
                kill(Pid::from_raw(worker), SIGSTOP)?;
            }
            term(scene)
        },
        allowed: &truth::nginx_stop(true),
        tells: &["its master, nginx master ", "master-kills-a-stuck-worker"],
        ..Case::default()
    })
}

#[test]
fn killed_by_cgroup_kill() -> Result<()> {
    let name = "cgroup.kill";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&Case {
        name,
        act: &|scene| {
            scene.site.nginx.container.cgroup.write_kill()?;
            scene.refused()
        },
        allowed: &truth::always(&[Cause::ContainerKilled]),
        cause: Cause::ContainerKilled,
        tells: &["on the host, by cgroup.kill, sent SIGKILL"],
        level: Level::Likely,
        ..Case::default()
    })?;
    play(&Case {
        name: "QUIT and cgroup.kill",
        slow_ms: 6000,
        act: &|scene| {
            scene.site.nginx.container.signal(SIGQUIT)?;
            scene.listener_closed()?;
            pass(1000)?;
            scene.site.nginx.container.cgroup.write_kill()?;
            scene.refused()
        },
        allowed: &truth::nginx_drain(&[Cause::GracePeriodExceeded]),
        cause: Cause::GracePeriodExceeded,
        tells: &["by cgroup.kill, sent SIGKILL", "on the host sent SIGQUIT"],
        ..Case::default()
    })
}

/// TERM from the host to an nginx of this site.
fn plain_term<'a>(name: &'a str, conf: SiteConf, allowed: Allowed<'a>) -> Case<'a> {
    let tells: &[&str] = &["on the host sent SIGTERM to nginx master"];
    Case { name, conf, act: &term, allowed, tells, ..Case::default() }
}

fn with_pids(pids: Pids) -> SiteConf {
    SiteConf { pod: PodConf { pids, ..PodConf::default() }, ..site(NginxConf::default()) }
}

#[test]
fn a_shared_process_namespace() -> Result<()> {
    let name = "shareProcessNamespace";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&plain_term(name, with_pids(Pids::Shared), &truth::nginx_stop(true)))?;
    play(&Case {
        name: "shareProcessNamespace, a command from outside",
        conf: with_pids(Pids::Shared),
        act: &|scene| {
            nginx_s_quit(scene)?.wait(LIMIT)?;
            scene.listener_closed()?;
            term(scene)
        },
        allowed: &truth::nginx_drain(&[Cause::QuitThenTerm]),
        cause: Cause::QuitThenTerm,
        tells: &["run-from-outside"],
        ..Case::default()
    })?;
    // nginx's death takes nobody along: the runtime kills the container's processes one by one.
    play(&Case {
        name: "shareProcessNamespace, killed",
        conf: with_pids(Pids::Shared),
        act: &|scene| {
            scene.site.nginx.container.cgroup.kill_all()?;
            scene.refused()
        },
        allowed: &truth::always(&[Cause::ContainerKilled]),
        cause: Cause::ContainerKilled,
        level: Level::Likely,
        ..Case::default()
    })
}

#[test]
fn the_hosts_process_namespace() -> Result<()> {
    let name = "hostPID";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    play(&plain_term(name, with_pids(Pids::Host), &truth::nginx_stop(true)))
}

#[test]
fn the_hosts_network() -> Result<()> {
    let name = "hostNetwork";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let nginx = NginxConf { port: 18_502, ..NginxConf::default() };
    let pod = PodConf { host_network: true, ..PodConf::default() };
    play(&plain_term(name, SiteConf { pod, ..site(nginx) }, &truth::nginx_stop(true)))
}

#[test]
fn a_renamed_nginx() -> Result<()> {
    let name = "a renamed nginx";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let case = Case {
        name,
        conf: site(NginxConf { name: Some("webserver"), ..NginxConf::default() }),
        act: &term,
        allowed: &truth::nginx_stop(true),
        level: Level::Likely,
        ..Case::default()
    };
    play(&case)?;
    // Started while why502 runs: its title is read after it has begun to listen.
    let dir = guard::Dir::new()?;
    let watch = Watch::at(dir.join("watch.rec"), &[])?;
    let site = Site::start(&case.conf)?;
    pass(1500)?;
    judge(&Case { name: "a renamed nginx, started later", ..case }, site, watch)
}

#[test]
fn supervisord_stops_waiting() -> Result<()> {
    let name = "stopwaitsecs";
    if skipped(name, supervised::binary().err().map(|e| e.to_string())) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let order = Order { nginx_first: true, stopwaitsecs: Some(2), killasgroup: true };
    play(&Case {
        name,
        conf: SiteConf { supervised: true, supervisor: order, ..site(NginxConf::default()) },
        slow_ms: 9000,
        act: &term,
        allowed: &truth::nginx_drain(&[Cause::GracePeriodExceeded]),
        cause: Cause::GracePeriodExceeded,
        sub_cause: Some("stopwaitsecs"),
        tells: &["killed-by-its-supervisor", "passed-on", "on the host sent SIGTERM to supervisord"],
        ..Case::default()
    })
}

#[test]
fn dumb_init_signals_php_fpms_children_too() -> Result<()> {
    let name = "php-fpm under dumb-init";
    if skipped(name, Pid1::DumbInit.lacks()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let fpm = FpmConf { children: SLOW as u32, pid1: Pid1::DumbInit, ..FpmConf::default() };
    play(&Case {
        name,
        conf: SiteConf { fpm: Some(fpm), ..SiteConf::default() },
        fast: false,
        made: &[502],
        act: &|scene| {
            scene.site.php_container().signal(SIGTERM)?;
            let wanted = SLOW as u64 + REFUSED;
            wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= wanted)
        },
        allowed: &truth::fpm_term,
        cause: Cause::FpmFastShutdown,
        tells: &["passed-on", "on the host sent SIGTERM to dumb-init"],
        ..Case::default()
    })
}

/// A DaemonSet sees its own cgroup as the root, and the host's tree at a mount of its own.
#[test]
fn in_a_private_cgroup_namespace() -> Result<()> {
    let name = "private cgroup namespace";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let case = Case { name, act: &term, allowed: &truth::nginx_stop(true), ..Case::default() };
    let own = Cgroup::new(format!("/why502-agent-{}/deep/down", std::process::id()))?;
    play_beside(&case, &|site| {
        let agent = script(site, &own)?;
        let recording = site.dir.join("watch.rec");
        let args = ["watch".as_ref(), "-o".as_ref(), "json".as_ref(), "--record".as_ref(), recording.as_os_str()];
        Ok(Watch { tracer: tracer::Tracer::start(&agent, &args)?, recording })
    })
}

/// Starts why502 so; the mounts are gone with it.
fn script(site: &Site, own: &Cgroup) -> Result<PathBuf> {
    let (path, host) = (site.dir.join("agent.sh"), site.dir.open_subdir("host-cgroup")?);
    let (v2, host) = (cgroup::v2_root()?.display().to_string(), host.display().to_string());
    let text = format!(
        "#!/bin/sh\nset -e\necho $$ > {}/cgroup.procs\nexec unshare -C -m sh -ec 'mount --bind {v2} {host}\n\
         umount {v2}\nmount -t cgroup2 none {v2}\ngrep -q \"^0::/$\" /proc/self/cgroup\nexec {} \"$@\"' agent \"$@\"\n",
        own.dir().display(),
        tracer::binary()?.display(),
    );
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    ensure!(launch::sibling("why502-launch").is_ok(), "the harness's own binaries are not there");
    Ok(path)
}
