//! Who sent a signal, and who had him send it.
//!
//! Told by the cgroups of both ends, because namespace pids mislead: with shareProcessNamespace or hostPID the PID 1 is not
//! the container's, and a sender from outside is not "pid 0". A sender that only passes on what it got (tini, a supervisor,
//! a shell's trap) is not the origin: what it got is.

use super::View;
use super::chain::describe;
use crate::correlate::history::{Signal, sig};
use crate::identity::{Known, Place, Process, Role};
use crate::model::event::{BootNs, ProcKey, SI_KERNEL, SigInfo};
use crate::model::incident::Trigger;

/// An init passes a signal on in the next turn of its loop.
const AT_ONCE_NS: u64 = 1_000_000_000;
/// A supervisor stops its programs one after another, each to its end; a trap may wait for something first.
const LATER_NS: u64 = 3_600_000_000_000;
/// Bytes of a command line that are told, of its beginning and its end.
const COMMAND_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Runtime,
    Host,
    SameContainer,
    OtherContainer,
    Unknown,
}

/// Where a signal came from.
pub fn sender_kind(signal: &Signal, view: &View) -> Sender {
    let (from, to) = (&signal.what.sender, &signal.what.target);
    if view.table.role(&from.key()).role == Role::Runtime {
        return Sender::Runtime;
    }
    match (view.table.place(from), view.table.place(to)) {
        (Place::Host, _) => Sender::Host,
        (Place::Container(a), Place::Container(b)) if a.container.id == b.container.id => Sender::SameContainer,
        (Place::Container(_), _) => Sender::OtherContainer,
        _ => Sender::Unknown,
    }
}

/// Why the kernel itself sent a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// A fault of the process that got it.
    Fault,
    Oom,
    /// PID 1 of its pid namespace had ended (zap_pid_ns_processes()).
    Pid1Gone,
    /// A timer, a broken pipe, something else.
    Other,
}

pub fn kernel(signal: &Signal, view: &View) -> Option<Kernel> {
    let what = &signal.what;
    // force_sig_fault() gives the fault's own code, which is positive; a general protection fault comes as SI_KERNEL.
    if what.code > 0 && what.code != SI_KERNEL && signal.to_itself() {
        return Some(Kernel::Fault);
    }
    if !signal.by_kernel() {
        return None;
    }
    let from = &what.sender;
    Some(match what.signal {
        sig::KILL if from.ns_pid == 1 && from.exiting() && from.pidns == what.target.pidns && !signal.to_itself() => {
            Kernel::Pid1Gone
        }
        sig::KILL if view.history.was_oom_victim(&what.target.key(), signal.at) => Kernel::Oom,
        sig::SEGV | sig::BUS | sig::FPE | sig::ILL if signal.to_itself() => Kernel::Fault,
        _ => Kernel::Other,
    })
}

/// A write to cgroup.kill sends one SIGKILL to each process, to the process alone and without siginfo (__cgroup_kill()
/// calls send_sig()); kill(2) sends to the thread group.
pub fn by_cgroup_kill(signal: &Signal) -> bool {
    signal.what.signal == sig::KILL && !signal.what.group && signal.what.info == SigInfo::None
}

/// The signal that made this one's sender send it: its sender, or what started that one (`kill` of a shell's trap), had
/// got it before. Masters of servers are no such senders: what they do with a signal is the business of the rules.
pub fn before<'v>(signal: &Signal, view: &'v View) -> Option<&'v Signal> {
    let from = signal.what.sender.key();
    if signal.by_kernel() || signal.to_itself() || sender_kind(signal, view) != Sender::SameContainer {
        return None;
    }
    // A command from outside has nothing to do with what the container's own processes are told.
    if view.table.run_from_outside(&from).is_some() {
        return None;
    }
    view.table.lineage(&from).find_map(|p| {
        let within = match view.table.role(&p.key).role {
            Role::NginxMaster | Role::NginxWorker | Role::PhpFpmMaster | Role::PhpFpmChild => return None,
            Role::Init => AT_ONCE_NS,
            Role::Supervisor | Role::Shell => LATER_NS,
            // Something of its own that started the server and stops it.
            _ if started(&p.key, &signal.what.target.key(), view) => LATER_NS,
            _ => return None,
        };
        told(&p.key, signal, within, view)
    })
}

fn started(parent: &ProcKey, child: &ProcKey, view: &View) -> bool {
    view.table.lineage(child).skip(1).any(|p| p.key == *parent)
}

/// The last stop signal that a process got before it sent this one. HUP makes runsvdir and s6-svscan stop theirs.
fn told<'v>(key: &ProcKey, signal: &Signal, within: BootNs, view: &'v View) -> Option<&'v Signal> {
    let supervisor = view.table.role(key).role == Role::Supervisor;
    let asks = |s: &Signal| sig::asks_to_stop(s.what.signal) || supervisor && s.what.signal == sig::HUP;
    view.history.signals_to(key).iter().rev().find(|s| {
        let earlier = s.at <= signal.at && s.event < signal.event && signal.at - s.at < within;
        earlier && asks(s) && s.effective() && !s.to_itself() && !s.by_kernel()
    })
}

/// What should be known of where this signal comes from and is not.
pub fn unseen(signal: &Signal, view: &View) -> Option<String> {
    if signal.by_kernel() || signal.to_itself() || sender_kind(signal, view) != Sender::SameContainer {
        return None;
    }
    let from = signal.what.sender.key();
    if before(signal, view).is_some() || view.table.run_from_outside(&from).is_some() {
        return None;
    }
    let comm = &signal.what.sender.comm;
    if matches!(view.table.role(&from).role, Role::Init | Role::Supervisor | Role::Shell) {
        return Some(format!("what had told {comm}, which sent this signal, was not seen"));
    }
    let top = view.table.lineage(&from).last();
    let known = top.is_some_and(|p| p.execed() || p.known == Known::Scan);
    (!known).then(|| format!("what {comm}, which sent this signal, is and who ran it was not seen"))
}

/// What set a stop off, by the sender of its first signal.
pub fn trigger(signal: &Signal, view: &View) -> Trigger {
    let mut root = signal;
    // Each one is an earlier event, so this ends; no real chain is longer.
    for _ in 0..8 {
        let Some(earlier) = before(root, view) else { break };
        root = earlier;
    }
    match kernel(root, view) {
        Some(Kernel::Oom) => return Trigger::Oom,
        Some(Kernel::Fault) => return Trigger::Crash,
        Some(_) => return Trigger::Unknown,
        None => {}
    }
    if let Some(why) = super::kube::why(root, view) {
        return why.trigger;
    }
    match sender_kind(root, view) {
        // The host's PID 1 stops services and scopes on behalf of others.
        Sender::Host if root.what.sender.tgid == 1 => Trigger::Unknown,
        Sender::Runtime => Trigger::RuntimeStop,
        Sender::Host => Trigger::ManualSignal,
        // A preStop hook and a kubectl exec look the same to the kernel.
        Sender::SameContainer | Sender::OtherContainer | Sender::Unknown => Trigger::Unknown,
    }
}

/// The sender, as the subject of a sentence.
pub fn sender_text(signal: &Signal, view: &View) -> String {
    let from = &signal.what.sender;
    let who = format!("{} {}", from.comm, from.tgid);
    match kernel(signal, view) {
        Some(Kernel::Fault) => return "the kernel, because of a fault in it,".into(),
        Some(Kernel::Oom) => return "the kernel's OOM killer".into(),
        Some(Kernel::Pid1Gone) => return format!("the kernel, because PID 1 ({who}) had ended,"),
        Some(Kernel::Other) => return format!("the kernel (while {who} ran)"),
        None => {}
    }
    if signal.to_itself() {
        return format!("{} itself", describe(from, view));
    }
    let how = if by_cgroup_kill(signal) { ", by cgroup.kill," } else { "" };
    match sender_kind(signal, view) {
        Sender::Runtime => format!("the container runtime ({who}){how}"),
        Sender::Host => format!("{who} on the host{how}"),
        Sender::SameContainer => inside(signal, view) + how,
        Sender::OtherContainer => {
            let pod = |key: &ProcKey| view.table.container_of(key).and_then(|c| c.container.pod_uid.as_ref());
            let same = pod(&from.key()).is_some() && pod(&from.key()) == pod(&signal.what.target.key());
            format!("{who} in another container{}{how}", if same { " of the pod" } else { "" })
        }
        Sender::Unknown => who + how,
    }
}

fn inside(signal: &Signal, view: &View) -> String {
    let from = &signal.what.sender;
    let key = from.key();
    let pid = if from.ns_pid == 0 { from.tgid } else { from.ns_pid };
    if let Some(command) = view.table.run_from_outside(&key) {
        return format!("`{}`, run in the container from outside (PID {pid}),", command_line(command));
    }
    let role = view.table.role(&key).role;
    let parent = view.table.parent(&signal.what.target.key()).map(|p| p.key);
    if matches!(role, Role::NginxMaster | Role::PhpFpmMaster) && parent == Some(key) {
        return format!("its master, {},", describe(from, view));
    }
    let tool = view.table.process(&key).filter(|p| p.execed() && !started(&key, &signal.what.target.key(), view));
    match tool.filter(|_| matches!(role, Role::Other | Role::NginxCtl | Role::Shell)) {
        Some(tool) => format!("`{}`, run by the container's own processes (PID {pid}),", command_line(tool)),
        None => format!("{} in the same container", describe(from, view)),
    }
}

/// Its arguments, or its program where it has none.
pub fn command_line(process: &Process) -> String {
    let mut line = process.argv().join(" ");
    if line.is_empty() {
        line.push_str(process.exe());
    }
    if line.len() > COMMAND_MAX {
        // What is asked for stands last more often than not: `nginx -c … -s quit`.
        let (head, tail) =
            (line.floor_char_boundary(COMMAND_MAX / 2), line.ceil_char_boundary(line.len() - COMMAND_MAX / 2));
        line.replace_range(head..tail, "…");
    }
    line
}
