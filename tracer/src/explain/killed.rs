//! The server was killed: by a runtime at the end of the grace period, or without ever having been asked.
//!
//! When PID 1 of a container dies, the kernel kills the rest (zap_pid_ns_processes(): SIGKILL with SI_KERNEL while PID 1 is
//! current), so the story of a killed worker is that of its PID 1.

use super::chain::{self, Chain, Sender};
use super::confidence::Confidence;
use super::gone::Gone;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::{Evidence, Lost};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Trigger};

/// How a process came to be killed from outside its container.
struct Story<'v> {
    exit: &'v ExitFact,
    /// The kernel's kill when PID 1 had died; absent when the process itself was the target.
    zap: Option<&'v Signal>,
    /// The SIGKILL from outside.
    kill: &'v Signal,
    /// The stop signal before it, ignored or not.
    stop: Option<&'v Signal>,
}

/// A loss by a process that was killed: the connection in flight, the queue and the listener that went with it.
pub fn killed(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if !matches!(server.kind, Kind::Nginx | Kind::PhpFpm) {
        return None;
    }
    let (victim, gone) = victim(lost, server, view)?;
    let story = story(&victim, lost.at, server, view)?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    if let Some(Gone::Closed(closed)) = &gone {
        chain.listener_closed(closed, &lost.address(), view);
    }
    chain.exit(story.exit, "sockets-are-closed-by-exit", view);
    if let Some(zap) = story.zap {
        chain.signal(zap, "the-rest-dies-with-pid-1", view);
    }
    chain.signal(story.kill, "killed-from-outside", view);
    let mut confidence = Confidence::of(0.98);
    let name = server.name();
    let (cause, summary) = match story.stop {
        None => {
            confidence.cap(0.9, "that no stop signal preceded it is known only from not having seen one");
            let summary = format!("{name}'s container was killed (SIGKILL) without having been asked to stop");
            (Cause::ContainerKilled, summary)
        }
        Some(stop) => {
            chain.signal(stop, if stop.effective() { "asked-to-stop-before" } else { "ignored-by-pid-1" }, view);
            let ms = story.kill.at.saturating_sub(stop.at) / 1_000_000;
            let seconds = ms as f64 / 1000.0;
            let asked = sig::name(stop.what.signal);
            if stop.effective() {
                let summary = format!(
                    "{name} was still busy {seconds:.1} s after {asked}, when its grace period ended in SIGKILL"
                );
                (Cause::GracePeriodExceeded, summary)
            } else {
                let summary = format!(
                    "PID 1 of {name}'s container ignored {asked}, so {name} never heard of it and was killed {seconds:.1} s later"
                );
                (Cause::Pid1IgnoresStopSignal, summary)
            }
        }
    };
    Some(Finding {
        cause,
        sub_cause: None,
        trigger: match story.stop.unwrap_or(story.kill) {
            s if s.by_kernel() => Trigger::Unknown,
            s => chain::trigger(s, view),
        },
        chain,
        confidence,
        summary,
        missing: Vec::new(),
    })
}

/// Whose exit made the loss, and the end of the listener where that is the link between them.
fn victim<'v>(lost: &Lost, server: &Server, view: &'v View) -> Option<(ProcKey, Option<Gone<'v>>)> {
    let cut = lost.cut_in_flight() || matches!(lost.evidence, Evidence::LateData { .. });
    if cut {
        return server.process.filter(|_| server.exiting).map(|key| (key, None));
    }
    let gone = Gone::of(lost, server, view)?;
    Some((gone.exited()?, Some(gone)))
}

fn story<'v>(victim: &ProcKey, until: BootNs, server: &Server, view: &'v View) -> Option<Story<'v>> {
    let exit = view.history.exit_of(victim).filter(|e| e.at <= until && e.code & 0x7f == sig::KILL)?;
    let direct = last_kill(victim, exit.at, view)?;
    let (zap, target) = if direct.by_kernel() {
        let zap = zap_of(victim, direct)?;
        (Some(direct), zap)
    } else {
        (None, *victim)
    };
    let kill = match zap {
        Some(zap) => last_kill(&target, zap.at, view)?,
        None => direct,
    };
    // nginx's master kills stuck workers, a supervisor its programs: their own stories.
    let outside = matches!(chain::sender_kind(kill, view), Sender::Host | Sender::Runtime | Sender::OtherContainer);
    if !outside || kill.by_kernel() || view.history.was_oom_victim(&target, kill.at) {
        return None;
    }
    Some(Story { exit, zap, kill, stop: stop_before(&target, server, kill, view) })
}

/// The PID 1 whose death sent this SIGKILL: only that of the same namespace kills in the kernel's name while it exits. The
/// OOM killer's victim has its own record.
pub(super) fn zap_of(victim: &ProcKey, kill: &Signal) -> Option<ProcKey> {
    let first = &kill.what.sender;
    let pid1 = first.ns_pid == 1 && first.exiting() && first.pidns == kill.what.target.pidns;
    (kill.by_kernel() && pid1 && first.key() != *victim).then(|| first.key())
}

/// The last SIGKILL to a process up to a time.
pub(super) fn last_kill<'v>(key: &ProcKey, until: BootNs, view: &'v View) -> Option<&'v Signal> {
    view.history.signals_to(key).iter().rev().find(|s| s.at <= until && s.what.signal == sig::KILL)
}

/// The first request to stop, to the killed PID 1 or to the server's master; an effective one counts before an ignored one.
fn stop_before<'v>(target: &ProcKey, server: &Server, kill: &Signal, view: &'v View) -> Option<&'v Signal> {
    let to_target = view.history.signals_to(target);
    let to_master = server.master.filter(|m| m != target).map_or(&[][..], |m| view.history.signals_to(&m));
    let asks = |s: &&Signal| s.at <= kill.at && sig::asks_to_stop(s.what.signal) && !s.by_kernel() && !s.to_itself();
    let mut all: Vec<_> = to_target.iter().chain(to_master).filter(asks).collect();
    all.sort_by_key(|s| (!s.effective(), s.at, s.event));
    all.first().copied()
}
