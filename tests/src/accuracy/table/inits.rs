//! What PID 1 does with a signal: passes nothing on, ends before the server, stops waiting for it, or takes it along.

use super::absent::{crash_loads, crash_truth};
use super::ended::{after, ended};
use super::loads::both;
use super::nginx::{apart, plenty, stop};
use crate::accuracy::scenario::Scenario;
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Outcome::Refused;
use crate::pod::{Container, Pid1};
use crate::scene::pass;
use crate::supervised::Order;
use crate::truth;
use anyhow::{Context, Result};
use nix::sys::signal::Signal::{SIGKILL, SIGQUIT, SIGTERM, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use why502::model::incident::Cause::{
    EndpointRace, FpmNotListening, GracePeriodExceeded, KeepaliveRaceOnShutdown, NginxAcceptQueueDropped,
    NginxNotListening, Pid1ExitedFirst, Pid1IgnoresStopSignal,
};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "pid1-exited-first",
        cause: Some(Pid1ExitedFirst),
        sub_cause: None,
        fit: own_init,
        site: |d| {
            let mut site = plenty(d);
            site.nginx.pid1 = if d.other { Pid1::Runit } else { Pid1::TrapEndsFirst };
            site
        },
        loads: |d, site| both(d, site, 4000),
        act: |scene, d, marks| {
            stop(scene, d, marks, if d.other { SIGTERM } else { SIGQUIT })?;
            scene.refused()
        },
        made: &[],
        truth: |k, r, started| match (r.outcome, started) {
            // nginx has heard of nothing.
            _ if k.draw.other => &[Pid1ExitedFirst],
            (_, true) => &[Pid1ExitedFirst],
            // The QUIT that it was sent may have reached it before it was killed.
            (Refused, false) => &[Pid1ExitedFirst, EndpointRace],
            (_, false) => &[Pid1ExitedFirst, NginxAcceptQueueDropped, KeepaliveRaceOnShutdown],
        },
    },
    Scenario {
        name: "pid1-passes-nothing-on",
        cause: Some(Pid1IgnoresStopSignal),
        sub_cause: Some("not-passed-on"),
        fit: own_init,
        site: |d| {
            let mut site = plenty(d);
            site.nginx.pid1 = Pid1::TrapDoesNothing;
            site
        },
        loads: |d, site| both(d, site, d.pause(500) + 3000),
        act: |scene, d, marks| {
            stop(scene, d, marks, if d.other { SIGQUIT } else { SIGTERM })?;
            pass(d.pause(500))?;
            scene.site.nginx.container.signal(SIGKILL)?;
            scene.refused()
        },
        made: &[],
        truth: |_, _, _| &[Pid1IgnoresStopSignal],
    },
    Scenario {
        name: "stopwaitsecs",
        cause: Some(GracePeriodExceeded),
        sub_cause: Some("stopwaitsecs"),
        fit: |d| d.layout.together = true,
        site: |d| {
            let mut site = plenty(d);
            site.supervisor = Order { nginx_first: true, stopwaitsecs: Some(2), killasgroup: true };
            site
        },
        loads: |d, site| both(d, site, 9000),
        act: |scene, _, marks| {
            marks.set("signal");
            scene.site.nginx.container.signal(SIGTERM)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| truth::nginx_drain(&[GracePeriodExceeded])(r, started),
    },
    // What else PID 1 waits for ends, PID 1 ends well, and the server is killed with it.
    Scenario {
        name: "nginx-goes-with-pid1",
        cause: Some(NginxNotListening),
        sub_cause: Some("exited"),
        fit: own_init,
        site: |d| {
            let mut site = plenty(d);
            site.nginx.pid1 = Pid1::OfTwo;
            site
        },
        loads: |d, site| both(d, site, 4000),
        act: |scene, _, marks| {
            marks.set("signal");
            end_other(&scene.site.nginx.container)?;
            scene.refused()
        },
        made: &[],
        truth: |_, r, started| crash_truth(r, started),
    },
    Scenario {
        name: "fpm-goes-with-pid1",
        cause: Some(FpmNotListening),
        sub_cause: Some("exited"),
        fit: own_init,
        site: |d| {
            let mut site = d.site(d.slow / 2);
            site.fpm.iter_mut().for_each(|f| f.pid1 = Pid1::OfTwo);
            site
        },
        loads: crash_loads,
        act: |scene, _, marks| ended(scene, marks, || end_other(scene.site.php_container())),
        made: &[502],
        truth: |k, r, started| match started {
            true => &[Pid1ExitedFirst],
            false => after(k, r, &[FpmNotListening, Pid1ExitedFirst]),
        },
    },
];

/// PID 1 is this scenario's own.
pub(super) fn own_init(d: &mut Draw) {
    apart(d);
    d.layout.tini = false;
}

/// By a signal that asks no server to stop.
fn end_other(container: &Container) -> Result<()> {
    let mut other = None;
    wait("the other child of PID 1", LIMIT, || {
        other = container.other_child();
        other.is_some()
    })?;
    let pid = other.context("PID 1 has no other child")?;
    kill(Pid::from_raw(pid), SIGUSR1).with_context(|| format!("cannot end {pid}"))
}
