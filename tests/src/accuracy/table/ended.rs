//! Servers that end by a fault of their own, or are started again in their pod; and what looks like a failed hook or a proxy
//! that went first, and is neither.

use super::absent::{behind_a_proxy, crash_loads, crash_truth};
use super::loads::{both, fast};
use super::nginx::{apart, free, plenty, stop};
use crate::accuracy::scenario::{Known, Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Outcome::{HttpError, Refused};
use crate::load::{Load, Request};
use crate::nginx::Nginx;
use crate::pod;
use crate::scene::{Loads, Scene};
use crate::site::SiteConf;
use crate::truth;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGIO, SIGQUIT, SIGTERM, SIGUSR2};
use std::time::Duration;
use why502::model::incident::Cause::{
    self, EndpointRace, FpmControlTimeoutZero, FpmNotListening, KeepaliveRaceOnShutdown, NginxAcceptQueueDropped,
    NginxFastShutdown, NginxNotListening, Pid1ExitedFirst,
};

/// So many answers of 502 after the end of php-fpm.
const LATER: u64 = 24;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "nginx-faults",
        cause: Some(NginxNotListening),
        sub_cause: Some("crashed"),
        fit: apart,
        site: plenty,
        loads: |d, site| both(d, site, 4000),
        act: |scene, _, marks| {
            let nginx = &scene.site.nginx;
            let master = nginx.container.master(&nginx.program).context("no nginx runs")?;
            marks.set("signal");
            pod::fault(master, Some(SIGIO))?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| crash_truth(r, started),
    },
    // Stopped, and started again in a new container of the same pod: no endpoint is taken away.
    Scenario {
        name: "nginx-restarting",
        cause: Some(NginxNotListening),
        sub_cause: Some("restarting"),
        fit: apart,
        site: plenty,
        loads: |d, site| {
            let mut conf = fast(d, site);
            (conf.max_refused, conf.refused_pause) = (None, Duration::from_millis(5));
            Loads { fast: Some(conf), answered: 100, ..Loads::default() }
        },
        act: restart,
        made: &[],
        truth: |k, r, started| match r.outcome {
            Refused if k.begun_after(r, "starting") => &[NginxNotListening],
            // That it would be started again may not have been seen in time.
            Refused => &[NginxNotListening, EndpointRace],
            _ => truth::nginx_stop(k.draw.other)(r, started),
        },
    },
    Scenario {
        name: "fpm-faults",
        cause: Some(FpmNotListening),
        sub_cause: Some("crashed"),
        fit: apart,
        site: |d| d.site(d.slow / 2),
        loads: crash_loads,
        // It wakes by itself, once a second.
        act: |scene, _, marks| {
            let master = scene.site.php_master().context("no php-fpm runs")?;
            ended(scene, marks, || pod::fault(master, None))
        },
        made: &[502],
        truth: |k, r, started| match started {
            true => &[Pid1ExitedFirst],
            false => after(k, r, &[FpmNotListening, Pid1ExitedFirst]),
        },
    },
    // A reload starts the program again, and that one does not like its configuration.
    Scenario {
        name: "fpm-bad-reload",
        cause: Some(FpmNotListening),
        sub_cause: Some("crashed"),
        fit: free,
        site: |d| d.site(d.slow / 2),
        loads: crash_loads,
        act: |scene, _, marks| {
            let config = scene.site.dir.join("fpm").join("fpm.conf");
            ensure!(config.is_file(), "{} is not there", config.display());
            std::fs::write(&config, "[global]\ndaemonize = perhaps\n")?;
            ended(scene, marks, || scene.site.signal_php(SIGUSR2))
        },
        made: &[502],
        truth: |k, r, started| match started {
            true => &[FpmControlTimeoutZero],
            false => after(k, r, &[FpmNotListening, FpmControlTimeoutZero]),
        },
    },
    // A command from outside fails right before the stop, and is not the hook of any spec: an exec probe.
    Scenario {
        name: "failing-probe",
        cause: Some(NginxFastShutdown),
        sub_cause: None,
        fit: free,
        site: plenty,
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            let argv: &[&str] = if d.other { &["/bin/sh", "-SIGQUIT", "2"] } else { &["/bin/sh", "-c", "exit 1"] };
            let status = scene.site.nginx.container.exec(argv)?.wait(LIMIT)?;
            ensure!(!status.success(), "{argv:?} was to fail");
            stop(scene, d, marks, SIGTERM)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_stop(true)(r, started),
    },
    // What is behind the proxy goes first: the proxy answers for it.
    Scenario {
        name: "app-gone-first",
        cause: Some(NginxFastShutdown),
        sub_cause: None,
        fit: behind_a_proxy,
        site: |d| SiteConf { sidecar: true, ..plenty(d) },
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            let before = scene.count(|p| &p.errors);
            stop(scene, d, marks, SIGTERM)?;
            wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= before + LATER + d.slow as u64)
        },
        made: &[502],
        truth: |_, r, started| match (r.outcome, started) {
            (HttpError { .. }, true) => &[NginxFastShutdown],
            (HttpError { .. }, false) => {
                &[NginxFastShutdown, EndpointRace, NginxAcceptQueueDropped, KeepaliveRaceOnShutdown]
            }
            _ => &[],
        },
    },
];

fn restart(scene: &Scene, d: &Draw, marks: &Marks) -> Result<()> {
    let site = &scene.site;
    stop(scene, d, marks, if d.other { SIGTERM } else { SIGQUIT })?;
    wait("the end of nginx", LIMIT, || site.nginx.container.cgroup.procs().is_empty())?;
    wait("a refused attempt", LIMIT, || scene.count(|p| &p.refused) > 0)?;
    marks.set("starting");
    let _again = Nginx::start(&site.pod, &site.dir, &site.dir.join("www"), &plenty(d).nginx)?;
    // Long enough for why502 to see which container that is.
    let before = scene.count(|p| &p.answered);
    wait("answers of the new one", LIMIT, || scene.count(|p| &p.answered) >= before + 4000)?;
    // It goes with this function: nobody must ask it any more by then.
    scene.fast.iter().for_each(Load::move_away);
    wait("the end of the load", LIMIT, || scene.fast.iter().all(Load::finished))
}

/// Until php-fpm has ended, and for some answers of 502 after that.
pub(super) fn ended(scene: &Scene, marks: &Marks, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = scene.count(|p| &p.errors);
    marks.set("signal");
    act()?;
    wait("the end of php-fpm", LIMIT, || scene.site.php_master().is_none())?;
    marks.set("gone");
    wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= before + LATER)
}

/// Nothing was there any more, or it is not known what took it along.
pub(super) fn after(k: &Known, r: &Request, before: &'static [Cause]) -> &'static [Cause] {
    if k.begun_after(r, "gone") { &[FpmNotListening] } else { before }
}
