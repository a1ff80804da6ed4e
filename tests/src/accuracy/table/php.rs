//! Stops of php-fpm, seen through the pod's nginx.

use super::loads::{both, load, slow};
use super::nginx::{apart, free};
use crate::accuracy::scenario::{Known, Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Request;
use crate::nginx::Upstream;
use crate::scene::{Loads, Scene};
use crate::site::{Site, SiteConf};
use crate::truth;
use anyhow::Result;
use nix::sys::signal::Signal::{self, SIGKILL, SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::model::incident::Cause::{
    self, ContainerKilled, FpmAcceptQueueDropped, FpmControlTimeoutZero, FpmFastShutdown, FpmNotListening,
    SupervisorStopOrder,
};

/// So many answers of 502 after those that the stop itself makes.
const LATER: u64 = 12;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "fpm-control-timeout-zero",
        cause: Some(FpmControlTimeoutZero),
        sub_cause: None,
        fit: free,
        site: |d| crowded(d, 0),
        loads: |d, site| queued(d, site, 4000),
        act: |scene, d, marks| stop_php(scene, d, marks, SIGQUIT),
        made: &[502],
        truth: |k, r, started| cut(k, r, started, FpmControlTimeoutZero),
    },
    Scenario {
        name: "fpm-fast-shutdown",
        cause: Some(FpmFastShutdown),
        sub_cause: None,
        fit: free,
        // Its own timeout is no help against TERM.
        site: |d| crowded(d, if d.other { 10 } else { 0 }),
        loads: |d, site| queued(d, site, 4000),
        act: |scene, d, marks| stop_php(scene, d, marks, SIGTERM),
        made: &[502],
        truth: |k, r, started| cut(k, r, started, FpmFastShutdown),
    },
    Scenario {
        name: "fpm-accept-queue-dropped",
        cause: Some(FpmAcceptQueueDropped),
        sub_cause: None,
        fit: |d| d.pause = d.pause.map(|ms| ms.clamp(100, 2000)),
        site: |d| {
            let mut site = d.site(3);
            site.fpm.iter_mut().for_each(|f| f.process_control_timeout = 20);
            site
        },
        loads: |d, site| {
            let ms = d.pause(700);
            Loads { slow: Some(slow(d, site, ms)), in_php: 3, ..Loads::default() }
        },
        act: |scene, d, marks| stop_php(scene, d, marks, SIGQUIT),
        made: &[502],
        truth: |k, r, started| match started {
            // It ends what it has begun.
            true => &[],
            false => gone(k, r, &[FpmAcceptQueueDropped], &[FpmAcceptQueueDropped, FpmNotListening]),
        },
    },
    Scenario {
        name: "fpm-not-listening-stopped-first",
        cause: Some(FpmNotListening),
        sub_cause: Some("stopped-first"),
        fit: free,
        site: |d| {
            let mut site = d.site(4);
            site.fpm.iter_mut().for_each(|f| f.process_control_timeout = 10);
            site
        },
        loads: |d, site| {
            let mut conf = load(d, site, "/fast.php", "fast");
            (conf.connections, conf.keep_alive) = (d.fast, d.layout.keep_alive);
            (conf.think, conf.refused_pause) = (Duration::from_millis(2), Duration::from_millis(d.pause(20).min(300)));
            Loads { fast: Some(conf), answered: 100, ..Loads::default() }
        },
        act: |scene, d, marks| {
            stop_server(scene, d, marks, if d.other { SIGTERM } else { SIGQUIT })?;
            wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= 40)
        },
        made: &[502],
        truth: |k, r, started| match (k.draw.other, started) {
            (true, true) => &[FpmFastShutdown],
            (false, true) => &[],
            (true, false) => cut(k, r, false, FpmFastShutdown),
            (false, false) => gone(k, r, &[FpmAcceptQueueDropped], &[FpmNotListening, FpmAcceptQueueDropped]),
        },
    },
    Scenario {
        name: "fpm-killed",
        cause: Some(ContainerKilled),
        sub_cause: None,
        fit: apart,
        site: |d| crowded(d, 10),
        loads: |d, site| queued(d, site, 4000),
        act: |scene, d, marks| stop_php(scene, d, marks, SIGKILL),
        made: &[502],
        truth: |_, _, _| &[ContainerKilled],
    },
    Scenario {
        name: "supervisor-stop-order",
        cause: Some(SupervisorStopOrder),
        sub_cause: None,
        fit: |d| d.layout.together = true,
        site: |d| {
            let mut site = d.site(d.slow + 4);
            site.fpm.iter_mut().for_each(|f| f.process_control_timeout = if d.other { 10 } else { 0 });
            site
        },
        // Some still run when supervisord comes round to php-fpm, a second after its own signal.
        loads: |d, site| both(d, site, 5000),
        act: |scene, _, marks| {
            marks.set("signal");
            scene.site.nginx.container.signal(SIGTERM)?;
            scene.refused()
        },
        made: &[502],
        truth: |_, r, started| truth::supervised_stop(r, started),
    },
];

/// More slow connections than children: some requests wait in php-fpm's accept queue.
fn crowded(d: &Draw, control_timeout: u32) -> SiteConf {
    let mut site = d.site(d.slow.div_ceil(2));
    site.fpm.iter_mut().for_each(|f| f.process_control_timeout = control_timeout);
    site
}

fn queued(d: &Draw, site: &Site, ms: u64) -> Loads {
    Loads { slow: Some(slow(d, site, ms)), in_php: d.slow.div_ceil(2), ..Loads::default() }
}

/// Marks when it is gone.
fn stop_server(scene: &Scene, d: &Draw, marks: &Marks, signal: Signal) -> Result<()> {
    tell_php(scene, d, marks, signal)?;
    wait("the end of php-fpm", LIMIT, || scene.site.php_master().is_none())?;
    marks.set("gone");
    Ok(())
}

/// To PID 1, as a runtime does it; under a supervisor to php-fpm itself, as an administrator does it.
pub(super) fn tell_php(scene: &Scene, d: &Draw, marks: &Marks, signal: Signal) -> Result<()> {
    marks.set("signal");
    if d.layout.together { scene.site.signal_php(signal) } else { scene.site.php_container().signal(signal) }
}

/// Every connection has a request on its way when php-fpm is stopped.
fn stop_php(scene: &Scene, d: &Draw, marks: &Marks, signal: Signal) -> Result<()> {
    let all = d.slow as u64;
    wait("all slow requests", LIMIT, || scene.count(|p| &p.in_flight) >= all)?;
    let before = scene.count(|p| &p.errors);
    stop_server(scene, d, marks, signal)?;
    wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= before + all.min(12) + LATER)
}

/// What the stop itself ended, for requests that php had begun; and what became of the others.
fn cut(k: &Known, r: &Request, started: bool, by: Cause) -> &'static [Cause] {
    let (begun, queued, all): (&[Cause], &[Cause], &[Cause]) = match by {
        FpmFastShutdown => (
            &[FpmFastShutdown],
            &[FpmAcceptQueueDropped, FpmFastShutdown],
            &[FpmAcceptQueueDropped, FpmNotListening, FpmFastShutdown],
        ),
        _ => (
            &[FpmControlTimeoutZero],
            &[FpmAcceptQueueDropped, FpmControlTimeoutZero],
            &[FpmAcceptQueueDropped, FpmNotListening, FpmControlTimeoutZero],
        ),
    };
    if started { begun } else { gone(k, r, queued, all) }
}

/// A request that no script began: nginx wrote down whether it had a connection. Where it did not, the request was with
/// php-fpm at the signal, or came when there was none any more, or in between.
fn gone(k: &Known, r: &Request, queued: &'static [Cause], between: &'static [Cause]) -> &'static [Cause] {
    let after = k.marks.get("gone").zip(r.t_sent).is_some_and(|(gone, sent)| sent > gone);
    match k.upstream.get(&r.id) {
        Some(Upstream::NoPort | Upstream::NoWay | Upstream::NoneLeft | Upstream::Invalid) => &[],
        Some(Upstream::Refused) => &[FpmNotListening],
        Some(Upstream::Ended) => queued,
        Some(Upstream::Full) | None if after => &[FpmNotListening],
        Some(Upstream::Full) | None if k.sent_before(r, "signal") => queued,
        Some(Upstream::Full) | None => between,
    }
}
