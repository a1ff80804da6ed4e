//! Servers that end although nobody asked them to, a hook that does nothing, a proxy that is stopped before what is behind it.

use super::loads::both;
use super::nginx::{apart, free, plenty, stop};
use crate::accuracy::scenario::{Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Outcome::{ConnectReset, Refused};
use crate::load::Request;
use crate::nginx::Listen;
use crate::pod::Pid1;
use crate::scene::{Loads, Scene, pass};
use crate::site::{Site, SiteConf};
use crate::truth;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGABRT, SIGSEGV, SIGTERM};
use why502::model::incident::Cause::{
    self, FpmNotListening, NginxFastShutdown, NginxNotListening, Pid1ExitedFirst, PrestopFailed, SidecarGoneFirst,
};

/// The mistyped hook of every pod spec that the tracer of a series is given: `sh` knows no such option.
pub(in crate::accuracy) const HOOK: [&str; 3] = ["/bin/sh", "-SIGQUIT", "1"];

/// The hook of the server behind a proxy: longer than anybody waits for its end here.
pub(in crate::accuracy) const WAITS: [&str; 2] = ["/bin/sleep", "600"];

/// So many answers of 502 after the crash.
const LATER: u64 = 24;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "nginx-crashed",
        cause: Some(NginxNotListening),
        sub_cause: Some("crashed"),
        fit: crashing,
        site: |d| {
            let mut site = plenty(d);
            // The master is no PID 1, which no fatal signal from outside would end.
            site.nginx.pid1 = Pid1::Shell;
            site
        },
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            marks.set("signal");
            scene.site.signal_nginx(if d.other { SIGABRT } else { SIGSEGV })?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| crash_truth(r, started),
    },
    Scenario {
        name: "fpm-crashed",
        cause: Some(FpmNotListening),
        sub_cause: Some("crashed"),
        fit: crashing,
        site: |d| {
            let mut site = d.site(d.slow / 2);
            site.fpm.iter_mut().for_each(|f| f.pid1 = Pid1::Shell);
            site
        },
        loads: crash_loads,
        act: crash_php,
        made: &[502],
        truth: |k, r, started| match started {
            true => &[Pid1ExitedFirst],
            false if k.begun_after(r, "gone") => &[FpmNotListening],
            false => &[FpmNotListening, Pid1ExitedFirst],
        },
    },
    Scenario {
        name: "prestop-failed",
        cause: Some(PrestopFailed),
        sub_cause: None,
        fit: free,
        site: plenty,
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            let status = scene.site.nginx.container.exec(&HOOK)?.wait(LIMIT)?;
            ensure!(!status.success(), "{HOOK:?} was to fail");
            stop(scene, d, marks, SIGTERM)?;
            scene.refused()
        },
        made: &[],
        truth: |_, _, _| &[PrestopFailed],
    },
    Scenario {
        name: "sidecar-gone-first",
        cause: Some(SidecarGoneFirst),
        sub_cause: None,
        fit: behind_a_proxy,
        site: |d| SiteConf { sidecar: true, ..plenty(d) },
        loads: |d, site| both(d, site, 4000),
        // The pod is stopped: the server behind has a hook that waits, the proxy has none.
        act: |scene, _, marks| {
            let hook = scene.site.nginx.container.exec(&WAITS)?;
            stop_proxy(scene, marks)?;
            scene.refused()?;
            // Who is told within a second was not made to wait.
            pass(1500)?;
            drop(hook);
            scene.site.nginx.container.signal(SIGTERM)
        },
        made: &[],
        truth: |_, _, _| &[SidecarGoneFirst],
    },
    // Nothing else of the pod is stopped: that is not about an order.
    Scenario {
        name: "proxy-stopped-alone",
        cause: Some(NginxFastShutdown),
        sub_cause: None,
        fit: behind_a_proxy,
        site: |d| SiteConf { sidecar: true, ..plenty(d) },
        loads: |d, site| both(d, site, 4000),
        act: |scene, _, marks| {
            stop_proxy(scene, marks)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_stop(true)(r, started),
    },
];

/// What the proxy asks for; it takes both families itself, on port 80.
pub(super) fn behind_a_proxy(d: &mut Draw) {
    apart(d);
    d.layout.listen = Listen::V4;
    d.port = if d.port == 80 { 8080 } else { d.port };
}

fn stop_proxy(scene: &Scene, marks: &Marks) -> Result<()> {
    marks.set("signal");
    let sidecar = scene.site.sidecar.as_ref().context("this site has no sidecar")?;
    sidecar.container.signal(SIGTERM)
}

/// Half of the slow requests wait for a child.
pub(super) fn crash_loads(d: &Draw, site: &Site) -> Loads {
    let mut loads = both(d, site, 4000);
    (loads.fast, loads.in_php) = (None, d.slow / 2);
    loads
}

/// What nginx worked on when it crashed was cut with it.
pub(super) fn crash_truth(r: &Request, started: bool) -> &'static [Cause] {
    match (r.outcome, started) {
        (_, true) => &[Pid1ExitedFirst],
        (Refused | ConnectReset, false) => &[NginxNotListening],
        (_, false) => &[Pid1ExitedFirst, NginxNotListening],
    }
}

/// Its end must be its own: no tini that passes signals on.
fn crashing(d: &mut Draw) {
    apart(d);
    d.layout.tini = false;
}

fn crash_php(scene: &Scene, d: &Draw, marks: &Marks) -> Result<()> {
    let before = scene.count(|p| &p.errors);
    marks.set("signal");
    scene.site.signal_php(if d.other { SIGABRT } else { SIGSEGV })?;
    wait("the end of php-fpm", LIMIT, || scene.site.php_master().is_none())?;
    marks.set("gone");
    wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= before + LATER)
}
