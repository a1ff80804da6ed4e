//! The server was killed: by a runtime at the end of the grace period, without ever having been asked, by its supervisor, or
//! because its PID 1 had ended.
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
use crate::identity::Role;
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Missing, Trigger};

/// A container's processes are killed one after another, by cgroup.kill or by a runtime that lists them, within this time.
const TOGETHER_NS: u64 = 1_000_000_000;
/// A stop signal that came before why502 was ready can have begun a grace period as long as this.
const LONGEST_GRACE_NS: u64 = 300_000_000_000;

/// Who sent the SIGKILL that it all comes from.
enum By<'v> {
    Outside,
    /// The server's own supervisor.
    Supervisor,
    /// Nobody: PID 1 ended by itself, which this exit tells.
    Pid1(&'v ExitFact),
}

/// How a process came to be killed.
struct Story<'v> {
    exit: &'v ExitFact,
    /// The kernel's kill when PID 1 had died; absent when the process itself was the target.
    zap: Option<&'v Signal>,
    by: By<'v>,
    /// The SIGKILL from outside, or from the supervisor.
    kill: Option<&'v Signal>,
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
    if let By::Pid1(exit) = story.by {
        chain.exit(exit, "pid-1-ended", view);
    }
    if let Some(kill) = story.kill {
        let rule = if matches!(story.by, By::Supervisor) { "killed-by-its-supervisor" } else { "killed-from-outside" };
        chain.signal(kill, rule, view);
    }
    if let Some(stop) = story.stop {
        chain.signal(stop, if stop.effective() { "asked-to-stop-before" } else { "ignored-by-pid-1" }, view);
    }
    let verdict = verdict(&story, lost, server, view)?;
    Some(Finding {
        cause: verdict.cause,
        sub_cause: verdict.sub_cause,
        trigger: match story.stop.or(story.kill) {
            Some(s) if !s.by_kernel() => chain::trigger(s, view),
            _ => Trigger::Unknown,
        },
        chain,
        confidence: verdict.confidence,
        summary: verdict.summary,
        missing: verdict.missing,
    })
}

struct Verdict {
    cause: Cause,
    sub_cause: Option<&'static str>,
    confidence: Confidence,
    summary: String,
    missing: Vec<Missing>,
}

fn verdict(story: &Story, lost: &Lost, server: &Server, view: &View) -> Option<Verdict> {
    let name = server.name();
    let new = |cause, value, summary: String| Verdict {
        cause,
        sub_cause: None,
        confidence: Confidence::of(value),
        summary,
        missing: Vec::new(),
    };
    let end = match (&story.by, story.kill) {
        (By::Pid1(exit), _) => exit.at,
        (_, kill) => kill?.at,
    };
    let Some(stop) = story.stop else { return Some(unasked(end, new, lost, server, view)) };
    let seconds = end.saturating_sub(stop.at) as f64 / 1e9;
    let asked = sig::name(stop.what.signal);
    if let By::Pid1(exit) = story.by {
        let comm = &exit.task.comm;
        let text = format!(
            "PID 1 of {name}'s container ({comm}) ended {seconds:.1} s after {asked} without waiting for {name}, which the kernel killed with it"
        );
        return Some(new(Cause::Pid1ExitedFirst, 0.97, text));
    }
    if !stop.effective() {
        let text = format!(
            "PID 1 of {name}'s container ignored {asked}, so {name} never heard of it and was killed {seconds:.1} s later"
        );
        return Some(new(Cause::Pid1IgnoresStopSignal, 0.98, text));
    }
    if matches!(story.by, By::Supervisor) {
        let by = story.kill.map_or("its supervisor", |k| &k.what.sender.comm);
        let text =
            format!("{name} was still busy {seconds:.1} s after {asked}, when {by} stopped waiting and killed it");
        return Some(Verdict { sub_cause: Some("stopwaitsecs"), ..new(Cause::GracePeriodExceeded, 0.97, text) });
    }
    if let Some(pid1) = swallowed(stop, end, server, view) {
        let text = format!(
            "PID 1 of {name}'s container ({pid1}) took {asked} and passed nothing on, so {name} never heard of it and was killed {seconds:.1} s later"
        );
        let mut verdict = Verdict { sub_cause: Some("not-passed-on"), ..new(Cause::Pid1IgnoresStopSignal, 0.9, text) };
        verdict.confidence.because("that nothing was passed on is known only from not having seen it");
        return Some(verdict);
    }
    let text = format!("{name} was still busy {seconds:.1} s after {asked}, when its grace period ended in SIGKILL");
    Some(new(Cause::GracePeriodExceeded, 0.98, text))
}

/// No stop signal was seen. Whether there was none is another matter: one may have come before why502 was ready.
fn unasked(
    end: BootNs,
    new: impl Fn(Cause, f64, String) -> Verdict,
    lost: &Lost,
    server: &Server,
    view: &View,
) -> Verdict {
    let name = server.name();
    let ready = view.watched_since().unwrap_or(BootNs::MAX);
    let missing = |effect: String| Missing { fact: "started-late".into(), effect };
    if server.quitting_unseen(lost, end, view) {
        let text = format!("{name} was finishing its requests when it was killed (SIGKILL)");
        let mut verdict = new(Cause::GracePeriodExceeded, 0.8, text);
        verdict.confidence.because("what had told it to end was not seen");
        verdict
            .missing
            .push(missing(format!("{name} had been told to end before why502 was ready: when is not known")));
        return verdict;
    }
    let text = format!("{name}'s container was killed (SIGKILL) without having been asked to stop");
    let mut verdict = new(Cause::ContainerKilled, 0.9, text);
    verdict.confidence.because("that no stop signal preceded it is known only from not having seen one");
    if !server.listened_undisturbed(lost, end, view)
        && end.saturating_sub(ready) < LONGEST_GRACE_NS
        && server.older(ready, view)
    {
        verdict.confidence.cap(0.65, "a stop signal may have come before why502 was ready");
        let ms = end.saturating_sub(ready) / 1_000_000;
        verdict
            .missing
            .push(missing(format!("why502 was ready {ms} ms before the kill: an earlier stop signal was not seen")));
    }
    verdict
}

/// PID 1's name, when it took the stop signal and sent nothing to anybody in its container until the kill.
fn swallowed(stop: &Signal, until: BootNs, server: &Server, view: &View) -> Option<String> {
    let pid1 = stop.what.target.key();
    let master = server.master?;
    if pid1 == master || server.process == Some(pid1) || !view.table.same_container(&pid1, &master) {
        return None;
    }
    let by_pid1 = |s: &Signal| {
        let inside = s.at >= stop.at && s.at <= until && !s.to_itself();
        inside && sig::stops(s.what.signal) && view.table.lineage(&s.what.sender.key()).any(|p| p.key == pid1)
    };
    let mut others = view.table.processes().filter(|p| p.key != pid1 && view.table.same_container(&p.key, &pid1));
    let passed = others.any(|p| view.history.signals_to(&p.key).iter().any(by_pid1));
    (!passed).then(|| stop.what.target.comm.clone())
}

/// Whose exit made the loss, and the end of the listener where that is the link between them.
pub(super) fn victim<'v>(lost: &Lost, server: &Server, view: &'v View) -> Option<(ProcKey, Option<Gone<'v>>)> {
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
    if !direct.by_kernel() {
        let whole = || server.master.is_none_or(|m| m == *victim || killed_with(&m, direct, view));
        let (by, stop) = match chain::sender_kind(direct, view) {
            // One worker that somebody kills is not its container.
            Sender::Host | Sender::Runtime | Sender::OtherContainer if whole() => {
                (By::Outside, stop_before(victim, server, direct, view))
            }
            _ => (By::Supervisor, supervised(direct, server, view)),
        };
        if matches!(by, By::Supervisor) && stop.is_none() || view.history.was_oom_victim(victim, direct.at) {
            return None;
        }
        return Some(Story { exit, zap: None, by, kill: Some(direct), stop });
    }
    // Only the death of PID 1 kills in the kernel's name, or the OOM killer, whose victim has its own record.
    let pid1 = zap_of(victim, direct)?;
    let zap = Some(direct);
    if let Some(kill) = last_kill(&pid1, direct.at, view) {
        let outside = matches!(chain::sender_kind(kill, view), Sender::Host | Sender::Runtime | Sender::OtherContainer);
        if !outside || kill.by_kernel() || view.history.was_oom_victim(&pid1, kill.at) {
            return None;
        }
        return Some(Story {
            exit,
            zap,
            by: By::Outside,
            kill: Some(kill),
            stop: stop_before(&pid1, server, kill, view),
        });
    }
    // PID 1 ended by itself. A supervisor does so when it has killed what did not end in time.
    let master = server.master?;
    if let Some(kill) = last_kill(&master, direct.at, view)
        && let Some(stop) = supervised(kill, server, view)
    {
        return Some(Story { exit, zap, by: By::Supervisor, kill: Some(kill), stop: Some(stop) });
    }
    let end = view.history.exit_of(&pid1).filter(|e| e.at <= direct.at && e.code & 0x7f != sig::KILL)?;
    let stop = stop_before(&pid1, server, direct, view).filter(|s| s.effective() && s.what.target.key() == pid1)?;
    Some(Story { exit, zap, by: By::Pid1(end), kill: None, stop: Some(stop) })
}

/// The stop signal of the supervisor that then killed its program.
fn supervised<'v>(kill: &Signal, server: &Server, view: &'v View) -> Option<&'v Signal> {
    let supervisor = kill.what.sender.key();
    if view.table.role(&supervisor).role != Role::Supervisor || chain::sender_kind(kill, view) != Sender::SameContainer
    {
        return None;
    }
    view.history.signals_to(&server.master?).iter().rev().find(|s| {
        let asked = sig::asks_to_stop(s.what.signal) && s.effective() && s.at <= kill.at;
        asked && s.what.sender.key() == supervisor
    })
}

/// Was this one killed along with it, from the same side?
fn killed_with(key: &ProcKey, kill: &Signal, view: &View) -> bool {
    let same = |s: &Signal| s.what.signal == sig::KILL && s.effective() && s.at.abs_diff(kill.at) < TOGETHER_NS;
    view.history.signals_to(key).iter().any(same)
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
    view.history.signals_to(key).iter().rev().find(|s| s.at <= until && s.what.signal == sig::KILL && s.effective())
}

/// The first request to stop: to what was killed, to the server's master, or to what stands above it in its container; an
/// effective one counts before an ignored one.
fn stop_before<'v>(target: &ProcKey, server: &Server, kill: &Signal, view: &'v View) -> Option<&'v Signal> {
    let mut targets = vec![*target];
    if let Some(master) = server.master {
        targets.extend(view.table.lineage(&master).map(|p| p.key).filter(|k| k != target));
        targets.push(master);
    }
    targets.sort_unstable();
    targets.dedup();
    let asks = |s: &&Signal| s.at <= kill.at && sig::asks_to_stop(s.what.signal) && !s.by_kernel() && !s.to_itself();
    let mut all: Vec<_> = targets.iter().flat_map(|t| view.history.signals_to(t)).filter(asks).collect();
    all.sort_by_key(|s| (!s.effective(), s.at, s.event));
    all.first().copied()
}
