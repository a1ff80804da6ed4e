//! The kernel's OOM killer took the server: a child, a worker, a master, or the PID 1 that took the rest along.

use super::chain::{Chain, describe};
use super::confidence::Confidence;
use super::gone::Gone;
use super::killed::{last_kill, victim, zap_of};
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{ExitFact, OomMark, Signal, sig};
use crate::correlate::lost::Lost;
use crate::identity::container;
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Missing, Trigger};
use crate::model::input::{Hierarchy, MemoryLevel};

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
    let limit = limit(&story, view);
    let why = limit.as_ref().map(|l| format!(": {}", l.text)).unwrap_or_default();
    let summary = format!("the kernel's OOM killer ended {}{after}{why}", describe(target, view));
    let mut missing = Vec::new();
    if limit.is_none() {
        missing.push(Missing {
            fact: "memory-events".into(),
            effect: "whose limit was hit (the container's, its pod's, the node's) is not known".into(),
        });
    }
    Some(Finding {
        cause: Cause::OomKilled,
        sub_cause: limit.map(|l| l.sub_cause),
        trigger: Trigger::Oom,
        chain,
        confidence,
        summary,
        missing,
    })
}

/// Whose memory had run out.
struct Limit {
    sub_cause: &'static str,
    text: String,
}

/// The nearest limit above the victim that an allocation failed at; the node's memory where none did. `None`: not known.
fn limit(story: &Story, view: &View) -> Option<Limit> {
    let fact = view.history.memory_of(story.mark)?;
    let hit = fact.levels.iter().position(|l| l.limit.is_some() && l.hits > 0);
    // Who runs into a cgroup's limit is in that cgroup, and is who ends its victim.
    let what = &story.kill.what;
    let outside = !view.table.same_container(&what.sender.key(), &what.target.key());
    let domain = match hit {
        // v1 also counts allocations that failed at first only: a victim of somebody else is none of that limit.
        Some(level) if fact.hierarchy == Hierarchy::V1 && outside && of_a_container(&fact.levels[level]) => {
            return None;
        }
        Some(level) => &fact.levels[..=level],
        None if fact.complete => &fact.levels[..],
        None => return None,
    };
    let of = match hit {
        Some(level) => {
            let level = &fact.levels[level];
            let mib = level.limit.unwrap_or(0) >> 20;
            match (of_a_container(level), container::pod_uid(&level.path).is_some()) {
                (true, _) => ("container-limit", format!("its container's limit of {mib} MiB was reached")),
                (_, true) => ("pod-limit", format!("its pod's limit of {mib} MiB was reached")),
                _ => ("limit-above", format!("the limit of {mib} MiB of a group above its container was reached")),
            }
        }
        None => ("node", "the node had no memory left".to_string()),
    };
    Some(match domain.iter().any(|l| l.group) {
        true => Limit { sub_cause: "oom-group", text: format!("{}, and memory.oom.group ends all of it", of.1) },
        false => Limit { sub_cause: of.0, text: of.1 },
    })
}

fn of_a_container(level: &MemoryLevel) -> bool {
    container::parse(&level.path).is_some()
}

/// The limit of the container that a process of it was killed at, in bytes: for advice.
pub fn container_limit(key: &ProcKey, until: BootNs, view: &View) -> Option<u64> {
    let (_, mark) = marked(key, until, view)?;
    let fact = view.history.memory_of(mark)?;
    fact.levels.iter().find(|l| l.hits > 0 && of_a_container(l))?.limit
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
