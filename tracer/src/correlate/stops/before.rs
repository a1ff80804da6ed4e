//! What came before a server's own stop signal: the signal to its container's PID 1, a command from outside.

use super::{Command, Open, PhaseFact, marks};
use crate::correlate::history::{History, Signal, sig};
use crate::identity::{Place, Role, Table};
use crate::model::event::{BootNs, Cited, ProcKey, SI_KERNEL, SigInfo, SignalGenerated};

/// A kubelet goes on to the stop signal within a few calls of the runtime after its hook has ended.
const AFTER_HOOK_NS: u64 = 2_000_000_000;
/// From the signal to PID 1 to the one to the server: a supervisor may stop other programs first, each to its end.
const PASSED_ON_NS: u64 = 3_600_000_000_000;

pub fn signal_text(s: &SignalGenerated) -> String {
    if s.code == SI_KERNEL || s.info == SigInfo::Kernel {
        format!("{} from the kernel", sig::name(s.signal))
    } else {
        format!("{} from {} {}", sig::name(s.signal), s.sender.comm, s.sender.tgid)
    }
}

pub fn exit_text(code: u32) -> String {
    match code & 0x7f {
        0 => format!("exited with status {}", code >> 8 & 0xff),
        s => format!("was killed by {}", sig::name(s)),
    }
}

/// The stop signal to the PID 1 that passed it on (or did not, and took the server along when it was killed), as the first
/// phases of the stop.
pub fn container_signal(open: &mut Open, s: &SignalGenerated, table: &Table, history: &History) {
    // PID 1 of the target's pid namespace, by the namespace itself: with shared ones it is not the container's.
    if s.sender.ns_pid != 1 || s.sender.pidns != s.target.pidns || s.target.ns_pid == 1 {
        return;
    }
    let pid1 = s.sender.key();
    let before = |x: &&Signal| x.at <= open.since && open.since - x.at < PASSED_ON_NS && !x.to_itself();
    let to_pid1: Vec<_> = history.signals_to(&pid1).iter().filter(before).collect();
    let asked = to_pid1.iter().find(|x| sig::asks_to_stop(x.what.signal) && !x.by_kernel());
    if let Some(asked) = asked {
        let ignored = if asked.effective() { "" } else { ", which ignored it" };
        let (comm, tgid) = (&s.sender.comm, s.sender.tgid);
        let text = format!("{} to PID 1, {comm} {tgid}{ignored}", signal_text(&asked.what));
        open.base = asked.at;
        open.root = (pid1, asked.event);
        open.signal = if s.signal == sig::KILL { asked.what.signal } else { open.signal };
        open.phases.push(phase("container-signal", asked, text));
        marks::signal(open, asked.event, asked.at, &asked.what, table);
    }
    let kill = to_pid1.iter().rev().find(|x| x.what.signal == sig::KILL);
    if let Some(kill) = kill.filter(|_| s.signal == sig::KILL) {
        if asked.is_none() {
            (open.base, open.root) = (kill.at, (pid1, kill.event));
        }
        open.killed = Some(kill.at);
        open.phases.push(phase("kill", kill, format!("{} to PID 1, {}", signal_text(&kill.what), s.sender.comm)));
        marks::signal(open, kill.event, kill.at, &kill.what, table);
    }
}

fn phase(name: &'static str, signal: &Signal, text: String) -> PhaseFact {
    PhaseFact { name, at: signal.at, until: None, event: Some(Cited::Event(signal.event)), text, signal_to: None }
}

/// The command that had to do with a signal: its sender, or what had ended right before it.
pub fn command(at: BootNs, s: &SignalGenerated, table: &Table) -> Option<Command> {
    let sender = s.sender.key();
    let last = |c: &Command| (c.key == sender, c.exit.map_or(BootNs::MAX, |(at, _)| at), c.key);
    commands(at, s, table).into_iter().max_by_key(last)
}

/// Commands that were run in the target's container from outside of it, and that sent this signal or had just ended.
pub fn commands(at: BootNs, s: &SignalGenerated, table: &Table) -> Vec<Command> {
    let Place::Container(here) = table.place(&s.target) else { return Vec::new() };
    let sender = s.sender.key();
    let lately = |p: &crate::identity::Process| {
        let exit = p.exited.as_ref();
        p.key == sender || exit.is_some_and(|e| e.at <= at && at - e.at < AFTER_HOOK_NS)
    };
    let outside = |key: &ProcKey| match table.place_of(key) {
        Place::Host => true,
        Place::Container(there) => there.container.id != here.container.id,
        Place::Unknown => false,
    };
    // A runtime's own helpers may be in the container's cgroup already when they fork the command.
    let helper = |key: &ProcKey| table.role(key).role == Role::Runtime;
    // runc's own stages while it makes a process (nsexec.c names them), not what it runs.
    let stage = |p: &crate::identity::Process| p.comm.starts_with("runc:[");
    let from_outside = |first: Option<ProcKey>| {
        let parents = std::iter::successors(first, |key| table.process(key)?.parent.filter(|_| helper(key)));
        parents.take(4).any(|key| outside(&key))
    };
    table
        .processes()
        .filter(|p| p.ns_pid > 1 && p.execed() && !stage(p) && lately(p) && from_outside(p.parent))
        .filter(|p| table.container_of(&p.key).is_some_and(|c| c.container.id == here.container.id))
        .filter_map(|p| {
            let exec = p.execs.iter().rev().find(|e| e.at <= at)?;
            let ended = p.exited.as_ref();
            Some(Command {
                key: p.key,
                at: exec.at,
                event: Some(exec.event),
                argv: p.argv().to_vec(),
                exit: ended.and_then(|e| Some((e.at, e.code?))),
            })
        })
        .collect()
}

/// Seconds that a command had slept when it ended. A command that does something else does not delay the stop on purpose.
pub fn slept(command: &Command) -> u64 {
    let sleeps = command.argv.iter().any(|a| a.split_whitespace().any(|w| w == "sleep" || w.ends_with("/sleep")));
    let ended = command.exit.filter(|(_, code)| sleeps && *code == 0);
    ended.map_or(0, |(at, _)| at.saturating_sub(command.at) / 1_000_000_000)
}
