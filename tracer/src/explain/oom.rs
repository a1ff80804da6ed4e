//! The kernel's OOM killer took the server: a child, a worker, a master, or the PID 1 that took the rest along.

use super::chain::{Chain, describe};
use super::confidence::Confidence;
use super::gone::Gone;
use super::killed::{last_kill, victim, zap_of};
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{ExitFact, OomMark, Signal, sig};
use crate::correlate::lost::Lost;
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Missing, Trigger};

/// A shell or an init passes the end of its only child on within this time.
const PASSED_ON_NS: u64 = 1_000_000_000;

/// How a process came to be killed, effect first.
struct Story<'v> {
    /// Of the process whose sockets are gone; absent: not seen.
    exit: Option<&'v ExitFact>,
    /// The kernel's kill of it when its PID 1 had ended, and that one's exit where it is not the victim.
    zap: Option<&'v Signal>,
    pid1: Option<&'v ExitFact>,
    kill: &'v Signal,
    mark: &'v OomMark,
}

/// Cut, queued, or refused from then on, because the OOM killer had ended the server or what stands above it.
pub fn killed(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if !matches!(server.kind, Kind::Nginx | Kind::PhpFpm) {
        return None;
    }
    let (closer, gone) = victim(lost, server, view)?;
    let story = story(&closer, lost.at, server, view)?;
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.98);
    chain.loss(lost, server, view);
    if let Some(Gone::Closed(closed)) = &gone {
        chain.listener_closed(closed, &lost.address(), view);
    }
    match story.exit {
        Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        None => confidence.cap(0.8, "the exit of the process was not seen"),
    }
    if let Some(zap) = story.zap {
        chain.signal(zap, "the-rest-dies-with-pid-1", view);
    }
    if let Some(pid1) = story.pid1 {
        chain.exit(pid1, "pid-1-follows-its-child", view);
    }
    chain.signal(story.kill, "killed-by-the-oom-killer", view);
    let target = &story.kill.what.target;
    chain.oom_mark(story.mark, target, view);
    let after = match target.key() == closer {
        true => String::new(),
        false => format!(", and {} went with it", server.name()),
    };
    let summary = format!("the kernel's OOM killer ended {}{after}", describe(target, view));
    Some(Finding {
        cause: Cause::OomKilled,
        sub_cause: None,
        trigger: Trigger::Oom,
        chain,
        confidence,
        summary,
        missing: vec![Missing {
            fact: "memory-events".into(),
            effect: "whose limit was hit (the container's, its pod's, the node's) is not known".into(),
        }],
    })
}

fn story<'v>(closer: &ProcKey, until: BootNs, server: &Server, view: &'v View) -> Option<Story<'v>> {
    let exit = view.history.exit_of(closer).filter(|e| e.at <= until);
    if exit.is_some_and(|e| e.code & 0x7f != sig::KILL) {
        return None;
    }
    let kill = last_kill(closer, until, view).filter(|k| k.by_kernel())?;
    if let Some(mark) = view.history.oom_mark(closer, kill.at) {
        return Some(Story { exit, zap: None, pid1: None, kill, mark });
    }
    // Killed because PID 1 had ended: the OOM killer's victim itself, or the shell around it.
    let pid1 = zap_of(closer, kill)?;
    let zap = Some(kill);
    if let Some((kill, mark)) = marked(&pid1, kill.at, view) {
        return Some(Story { exit, zap, pid1: None, kill, mark });
    }
    let end = view.history.exit_of(&pid1).filter(|e| e.at <= kill.at && e.code & 0x7f != sig::KILL)?;
    let master = server.master?;
    let before = view.history.exit_of(&master).filter(|e| e.at <= end.at && end.at - e.at < PASSED_ON_NS)?;
    let (kill, mark) = marked(&master, before.at, view)?;
    Some(Story { exit, zap, pid1: Some(end), kill, mark })
}

fn marked<'v>(key: &ProcKey, until: BootNs, view: &'v View) -> Option<(&'v Signal, &'v OomMark)> {
    let kill = last_kill(key, until, view).filter(|k| k.by_kernel())?;
    Some((kill, view.history.oom_mark(key, kill.at)?))
}
