//! Stops of nginx.

use super::loads::{both, fast, load, sent_once};
use crate::accuracy::scenario::{Known, Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Request;
use crate::pod::{Pid1, stopped};
use crate::scene::{Loads, Scene, pass};
use crate::site::{Site, SiteConf};
use crate::truth;
use anyhow::{Context, Result};
use nix::sys::signal::Signal::{self, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use why502::model::incident::Cause::{
    self, ContainerKilled, EndpointRace, GracePeriodExceeded, NginxAcceptQueueDropped, NginxFastShutdown,
    Pid1IgnoresStopSignal, QuitThenTerm, Unexplained, WorkerShutdownTimeout,
};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "nginx-term",
        cause: Some(NginxFastShutdown),
        sub_cause: None,
        fit: free,
        site: plenty,
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            stop(scene, d, marks, if d.other { SIGINT } else { SIGTERM })?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_stop(true)(r, started),
    },
    Scenario {
        name: "nginx-term-busy",
        cause: Some(EndpointRace),
        sub_cause: None,
        fit: free,
        site: |d| d.site(4),
        loads: busy,
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGTERM)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_stop(true)(r, started),
    },
    Scenario {
        name: "nginx-quit-busy",
        cause: Some(EndpointRace),
        sub_cause: None,
        fit: free,
        site: |d| d.site(4),
        loads: busy,
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGQUIT)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_stop(false)(r, started),
    },
    Scenario {
        name: "quit-then-term",
        cause: Some(QuitThenTerm),
        sub_cause: None,
        fit: free,
        site: plenty,
        loads: |d, site| both(d, site, d.pause(100) + 3000),
        act: |scene, d, marks| {
            if d.other {
                // As a preStop hook does it.
                marks.set("signal");
                let nginx = &scene.site.nginx;
                let words: Vec<_> = nginx.argv.iter().cloned().chain(["-s".into(), "quit".into()]).collect();
                nginx.container.exec(&words)?.wait(LIMIT)?;
            } else {
                stop(scene, d, marks, SIGQUIT)?;
            }
            scene.listener_closed()?;
            pass(d.pause(100))?;
            stop(scene, d, marks, SIGTERM)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_drain(&[QuitThenTerm])(r, started),
    },
    Scenario {
        name: "nginx-accept-queue-dropped",
        cause: Some(NginxAcceptQueueDropped),
        sub_cause: None,
        // The master kills a worker that does not answer its TERM for some seconds.
        fit: |d| {
            d.pause = d.pause.map(|ms| ms.min(1500));
            d.layout.keep_alive = false;
        },
        site: |d| d.site(4),
        loads: |d, site| {
            let mut fast = fast(d, site);
            fast.connections = d.slow + d.fast;
            Loads { fast: Some(fast), answered: 100, ..Loads::default() }
        },
        act: queue_dropped,
        made: &[],
        truth: |k, r, started| match truth::nginx_stop(!k.draw.other)(r, started) {
            // Nobody took it until the workers ran again, each of which takes one at most.
            [NginxFastShutdown, NginxAcceptQueueDropped] if k.begun_after(r, "stuck") => {
                &[NginxAcceptQueueDropped, NginxFastShutdown]
            }
            other => other,
        },
    },
    Scenario {
        name: "worker-shutdown-timeout",
        cause: Some(WorkerShutdownTimeout),
        sub_cause: None,
        fit: long_enough,
        site: |d| timeout(d, plenty(d)),
        loads: |d, site| both(d, site, d.pause(1000) + 3000),
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGQUIT)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_drain(&[WorkerShutdownTimeout])(r, started),
    },
    // Shorter than the rule may tell from nginx's own closing: it must not guess.
    Scenario {
        name: "worker-shutdown-timeout-short",
        cause: Some(Unexplained),
        sub_cause: None,
        fit: |d| d.pause = Some(20),
        site: |d| timeout(d, plenty(d)),
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGQUIT)?;
            scene.refused()
        },
        made: &[],
        // Where the worker took its time it is told, and right.
        truth: |_, r, started| truth::nginx_drain(&[Unexplained, WorkerShutdownTimeout])(r, started),
    },
    Scenario {
        name: "worker-shutdown-timeout-reload",
        cause: Some(WorkerShutdownTimeout),
        sub_cause: Some("reload"),
        fit: |d| {
            long_enough(d);
            sent_once(d);
        },
        site: |d| timeout(d, plenty(d)),
        loads: |d, site| {
            let mut loads = both(d, site, d.pause(1000) + 3000);
            // The new workers would take them again, for a load that never ends.
            loads.slow = loads.slow.map(|slow| crate::load::LoadConf { max_attempts: Some(d.slow as u64), ..slow });
            loads
        },
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGHUP)?;
            wait("the cut requests", LIMIT, || scene.slow.iter().all(crate::load::Load::finished))
        },
        made: &[],
        truth: |_, r, started| truth::nginx_reload(r, started),
    },
    Scenario {
        name: "grace-period-exceeded",
        cause: Some(GracePeriodExceeded),
        sub_cause: None,
        fit: free,
        site: plenty,
        loads: |d, site| both(d, site, d.pause(1000) + 3000),
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGQUIT)?;
            scene.listener_closed()?;
            pass(d.pause(1000))?;
            scene.site.nginx.container.signal(SIGKILL)?;
            scene.refused()
        },
        made: &[502],
        truth: |_, r, started| truth::nginx_drain(&[GracePeriodExceeded])(r, started),
    },
    Scenario {
        name: "nginx-killed",
        cause: Some(ContainerKilled),
        sub_cause: None,
        fit: free,
        site: plenty,
        loads: |d, site| both(d, site, 4000),
        act: |scene, _, _| {
            scene.site.nginx.container.signal(SIGKILL)?;
            scene.refused()
        },
        made: &[502],
        truth: |_, _, _| &[ContainerKilled],
    },
    Scenario {
        name: "pid1-ignores-stop-signal",
        cause: Some(Pid1IgnoresStopSignal),
        sub_cause: None,
        fit: apart,
        site: |d| {
            let mut site = plenty(d);
            site.nginx.pid1 = Pid1::Shell;
            site
        },
        loads: |d, site| both(d, site, d.pause(500) + 3000),
        act: |scene, d, _| {
            let container = &scene.site.nginx.container;
            container.signal(if d.other { SIGQUIT } else { SIGTERM })?;
            pass(d.pause(500))?;
            container.signal(SIGKILL)?;
            scene.refused()
        },
        made: &[],
        truth: |_, _, _| &[Pid1IgnoresStopSignal],
    },
];

pub(super) fn free(_: &mut Draw) {}

/// A container for each server.
pub(super) fn apart(d: &mut Draw) {
    d.layout.together = false;
}

/// php has a child for every slow request.
pub(super) fn plenty(d: &Draw) -> SiteConf {
    d.site(d.slow + 4)
}

/// A `worker_shutdown_timeout` below 50 ms is another scenario.
fn long_enough(d: &mut Draw) {
    d.pause = d.pause.map(|ms| ms.max(60));
}

fn timeout(d: &Draw, mut site: SiteConf) -> SiteConf {
    site.nginx.main_extra = format!("worker_shutdown_timeout {}ms;", d.pause(1000));
    site
}

/// To PID 1, as a runtime does it; under a supervisor to nginx itself, as an administrator does it.
pub(super) fn stop(scene: &Scene, d: &Draw, marks: &Marks, signal: Signal) -> Result<()> {
    marks.set("signal");
    if d.layout.together { scene.site.signal_nginx(signal) } else { scene.site.nginx.container.signal(signal) }
}

/// Mostly fast answers, as a busy pod gives; some that php works on at any moment.
fn busy(d: &Draw, site: &Site) -> Loads {
    let mut conf = load(d, site, "/static", "busy");
    conf.more_paths = ["/static", "/fast.php", "/static", "/slow.php?ms=30"].map(String::from).to_vec();
    (conf.connections, conf.keep_alive, conf.max_refused) = (d.slow + d.fast, d.layout.keep_alive, Some(30));
    Loads { fast: Some(conf), answered: 1000, ..Loads::default() }
}

/// The workers are stuck (here: stopped), so that connections wait to be accepted when the stop comes.
fn queue_dropped(scene: &Scene, d: &Draw, marks: &Marks) -> Result<()> {
    let workers = scene.site.nginx.workers();
    let tell = |signal| -> Result<()> {
        for pid in &workers {
            kill(Pid::from_raw(*pid), signal).with_context(|| format!("cannot send {signal} to worker {pid}"))?;
        }
        Ok(())
    };
    tell(SIGSTOP)?;
    wait("the workers to stand still", LIMIT, || workers.iter().all(|pid| stopped(*pid)))?;
    marks.set("stuck");
    let all = (d.slow + d.fast) as u64;
    wait("the queue", LIMIT, || scene.count(|p| &p.in_flight) >= all)?;
    stop(scene, d, marks, if d.other { SIGQUIT } else { SIGTERM })?;
    pass(d.pause(100))?;
    tell(SIGCONT)?;
    scene.refused()
}

/// For controls that stop nginx when nothing is under way.
pub(super) fn nothing(_: &Known, _: &Request, _: bool) -> &'static [Cause] {
    &[]
}
