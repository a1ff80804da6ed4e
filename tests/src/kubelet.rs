//! Plays the kubelet and the load balancer at the end of a pod.
//!
//! As in Kubernetes, two things begin at the same moment and know nothing of each other. The endpoint is taken out of the
//! balancers, which takes its time to get around ([`Deletion::propagation`]). And each container is ended: its preStop hook
//! runs to its end, then comes the stop signal, and SIGKILL when the grace period, which began with the deletion, is over.
//! Sidecars (native ones, Kubernetes 1.29) get their signal when the containers before them are gone.

use crate::guard;
use crate::pod::Container;
use anyhow::{Result, anyhow};
use nix::sys::signal::Signal;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A container gets at least so long between its stop signal and SIGKILL, whatever is left of the grace period
/// (kubelet's minimumGracePeriodInSeconds).
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// A killed process is gone at once, but for what the kernel has to tear down.
const KILLED: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreStop {
    /// `preStop.sleep`: the kubelet itself waits.
    Sleep(Duration),
    /// `preStop.exec`: a command in the container.
    Exec(Vec<String>),
}

/// How one container of the pod is stopped.
#[derive(Clone, Debug)]
pub struct Stop {
    pub pre_stop: Option<PreStop>,
    /// STOPSIGNAL of the image, or the container's lifecycle.stopSignal.
    pub signal: Signal,
    /// Signalled after the others, last first.
    pub sidecar: bool,
}

impl Default for Stop {
    fn default() -> Self {
        Self { pre_stop: None, signal: Signal::SIGTERM, sidecar: false }
    }
}

/// The end of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Deletion {
    /// terminationGracePeriodSeconds.
    pub grace: Duration,
    /// From the deletion until the last balancer has stopped sending to the pod.
    pub propagation: Duration,
}

impl Default for Deletion {
    /// Kubernetes' own grace period, and a balancer that is neither quick nor slow.
    fn default() -> Self {
        Self { grace: Duration::from_secs(30), propagation: Duration::from_millis(1500) }
    }
}

/// What became of one container. Times are since the deletion.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// How its preStop command ended; `None`: it had none, or it was still running when the grace period was over.
    pub pre_stop: Option<ExitStatus>,
    /// `None`: it had ended before its turn.
    pub signalled: Option<Duration>,
    pub ended: Duration,
    /// By SIGKILL, because the grace period was over.
    pub killed: bool,
}

impl Deletion {
    /// Ends the containers; `moved` is called when the balancers have learned of it. Returns when all of it is over, with
    /// what became of each container, in their order.
    pub fn run(&self, containers: Vec<(&mut Container, Stop)>, moved: impl FnOnce() + Send) -> Result<Vec<Stopped>> {
        let start = Instant::now();
        let stops: Vec<Stop> = containers.iter().map(|(_, stop)| stop.clone()).collect();
        let ended: Vec<AtomicBool> = stops.iter().map(|_| AtomicBool::new(false)).collect();
        let turn = |n: usize| {
            let before = |m: usize| !stops[m].sidecar || m > n;
            !stops[n].sidecar || (0..stops.len()).all(|m| m == n || !before(m) || ended[m].load(Ordering::Relaxed))
        };
        thread::scope(|scope| {
            let balancers = scope.spawn(|| {
                let waited = pass(start, self.propagation);
                moved();
                waited
            });
            let threads: Vec<_> = containers
                .into_iter()
                .zip(&stops)
                .enumerate()
                .map(|(n, ((container, _), stop))| {
                    let (turn, ended) = (&turn, &ended[n]);
                    scope.spawn(move || {
                        let result = self.end(container, stop, start, &|| turn(n));
                        // Also after an error: the others must not wait for ever.
                        ended.store(true, Ordering::Relaxed);
                        result
                    })
                })
                .collect();
            let all: Vec<_> = threads.into_iter().map(join).collect();
            join(balancers)?;
            all.into_iter().collect()
        })
    }

    fn end(&self, container: &mut Container, stop: &Stop, start: Instant, turn: &dyn Fn() -> bool) -> Result<Stopped> {
        let pre_stop = self.hook(container, stop.pre_stop.as_ref(), start)?;
        let over = || start.elapsed() >= self.grace;
        guard::wait("the containers before a sidecar", self.grace + KILLED, || turn() || over())?;
        let mut stopped = Stopped { pre_stop, signalled: None, ended: start.elapsed(), killed: false };
        if !container.running() {
            return Ok(stopped);
        }
        stopped.signalled = Some(start.elapsed());
        container.signal(stop.signal)?;
        let until = self.grace.max(start.elapsed() + LEAST_GRACE);
        let ended = |container: &mut Container| !container.running();
        guard::wait("the container's end", until + KILLED, || ended(container) || start.elapsed() >= until)?;
        if container.running() {
            stopped.killed = true;
            container.signal(Signal::SIGKILL)?;
            container.wait(KILLED)?;
        }
        stopped.ended = start.elapsed();
        Ok(stopped)
    }

    /// Until the hook's end, or the end of the grace period: then the kubelet goes on without it.
    fn hook(&self, container: &Container, hook: Option<&PreStop>, start: Instant) -> Result<Option<ExitStatus>> {
        match hook {
            None => Ok(None),
            Some(PreStop::Sleep(time)) => pass(start, (*time).min(self.grace)).map(|()| None),
            Some(PreStop::Exec(argv)) => {
                let mut command = container.exec(argv)?;
                guard::wait("preStop", self.grace + KILLED, || !command.running() || start.elapsed() >= self.grace)?;
                if command.running() { Ok(None) } else { command.wait(KILLED).map(Some) }
            }
        }
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the deletion panicked"))?
}

/// Nothing can be waited for: that this time passes is what is played.
fn pass(start: Instant, time: Duration) -> Result<()> {
    guard::wait("time to pass", time + KILLED, || start.elapsed() >= time)
}
