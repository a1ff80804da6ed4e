//! A worker of nginx ends, and its master lives on.

use super::loads::{fast, sent_once, slow};
use super::nginx::plenty;
use crate::accuracy::scenario::{Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Outcome::{ConnectReset, Refused};
use crate::load::{Load, LoadConf, Request};
use crate::pod;
use crate::scene::{Loads, Scene};
use crate::site::Site;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGIO, SIGKILL, SIGSEGV};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use why502::model::incident::Cause::{self, NginxWorkerCrash};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "nginx-worker-crash",
        cause: Some(NginxWorkerCrash),
        sub_cause: None,
        fit: sent_once,
        site: plenty,
        loads,
        // A fault of its own: what it is about to do is overwritten.
        act: |scene, d, marks| end_workers(scene, d, marks, |pid| pod::fault(pid, Some(SIGIO))),
        made: &[],
        truth: |_, r, _| truth(r),
    },
    // The same signal, or SIGKILL, from somebody on the host: that is no crash.
    Scenario {
        name: "nginx-worker-killed",
        cause: Some(NginxWorkerCrash),
        sub_cause: Some("killed"),
        fit: sent_once,
        site: plenty,
        loads,
        act: |scene, d, marks| {
            let signal = if d.n.is_multiple_of(2) { SIGKILL } else { SIGSEGV };
            end_workers(scene, d, marks, |pid| kill(Pid::from_raw(pid), signal).context("cannot signal a worker"))
        },
        made: &[],
        truth: |_, r, _| truth(r),
    },
];

fn loads(d: &Draw, site: &Site) -> Loads {
    let slow = LoadConf { max_attempts: Some(d.slow as u64), ..slow(d, site, 1500) };
    Loads { slow: Some(slow), in_php: d.slow, fast: Some(fast(d, site)), answered: 100 }
}

/// The listening sockets are the master's as well: nobody is refused, and nothing that waits to be accepted is lost.
fn truth(r: &Request) -> &'static [Cause] {
    if matches!(r.outcome, Refused | ConnectReset) { &[] } else { &[NginxWorkerCrash] }
}

/// All of them, or the one that has most connections: others go on.
fn end_workers(scene: &Scene, d: &Draw, marks: &Marks, end: impl Fn(i32) -> Result<()>) -> Result<()> {
    let nginx = &scene.site.nginx;
    let mut workers = nginx.workers();
    ensure!(workers.len() == d.layout.workers as usize, "{workers:?}");
    if !d.other {
        workers.sort_by_key(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count));
        workers = workers.split_off(workers.len() - 1);
    }
    marks.set("signal");
    workers.iter().try_for_each(|pid| end(*pid))?;
    let others = || nginx.workers().iter().filter(|pid| !workers.contains(pid)).count();
    wait("new workers", LIMIT, || others() == d.layout.workers as usize)?;
    wait("the slow answers", LIMIT, || scene.slow.iter().all(Load::finished))
}
