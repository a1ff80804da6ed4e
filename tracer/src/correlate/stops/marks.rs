//! Who told whom to stop, and who ended when: the marks of a stop's picture.

use super::{FEW_PHASES, Open, Stops, before};
use crate::correlate::history::sig;
use crate::identity::{Place, Role, Table};
use crate::model::event::{BootNs, Event, EventId, SI_KERNEL, SigInfo, SignalGenerated, Task};
use crate::model::incident::{Ended, Lane, Party, ProcessRef, Sent};

/// Signals kept of one stop, and exits: an nginx has a worker for each CPU, a pool of php-fpm a few dozen children.
const MAX_MARKS: usize = 96;

impl Stops {
    /// To the master of a stop under way, or to a child of it.
    pub(super) fn mark_signal(&mut self, event: &Event, s: &SignalGenerated, table: &Table) {
        if s.sender.tgid == s.target.tgid {
            return;
        }
        let key = s.target.key();
        if s.target.ns_pid == 1 {
            // Its container's PID 1 was told before, and is told again or killed.
            for open in self.open.values_mut().filter(|o| o.root.0 == key && o.master != key) {
                signal(open, event.id, event.at, s, table);
            }
        }
        if let Some(open) = self.of_process(&key, table) {
            signal(open, event.id, event.at, s, table);
        }
    }

    pub(super) fn mark_exit(&mut self, event: &Event, task: &Task, code: u32, table: &Table) {
        let key = task.key();
        if task.ns_pid == 1 {
            for open in self.open.values_mut().filter(|o| o.root.0 == key && o.master != key) {
                exit(open, event, task, code, table);
            }
        }
        if let Some(open) = self.of_process(&key, table) {
            exit(open, event, task, code, table);
        }
    }
}

fn most(open: &Open) -> usize {
    if open.short { FEW_PHASES } else { MAX_MARKS }
}

pub(super) fn signal(open: &mut Open, event: EventId, at: BootNs, s: &SignalGenerated, table: &Table) {
    // The last of a flood are worth more than its middle: a kill ends it.
    if open.timeline.signals.len() >= most(open) {
        open.timeline.cut += 1;
        if s.signal != sig::KILL {
            return;
        }
        open.timeline.signals.pop();
    }
    let by_kernel = s.code == SI_KERNEL || s.info == SigInfo::Kernel;
    let mut from = party(&s.sender, &open.task, table);
    if by_kernel {
        from.lane = Lane::Kernel;
    }
    let to = party(&s.target, &open.task, table);
    let event = event.to_string();
    open.timeline.signals.push(Sent {
        event,
        at_boot_ns: at,
        signal: sig::name(s.signal),
        ignored: s.result == 1,
        from,
        to,
    });
}

fn exit(open: &mut Open, event: &Event, task: &Task, code: u32, table: &Table) {
    if open.timeline.exits.len() >= most(open) {
        open.timeline.cut += 1;
        if task.key() != open.master {
            return;
        }
        open.timeline.exits.pop();
    }
    let who = party(task, &open.task, table);
    let (event, at) = (event.id.to_string(), event.at);
    open.timeline.exits.push(Ended { event, at_boot_ns: at, who, how: before::exit_text(code) });
}

/// `server`: the master whose stop it is.
fn party(task: &Task, server: &Task, table: &Table) -> Party {
    let role = table.role(&task.key()).role;
    let here = match (table.place(task), table.place(server)) {
        (Place::Container(a), Place::Container(b)) if a.container.id == b.container.id => Some(true),
        (Place::Container(_), _) => Some(false),
        (Place::Host, _) => None,
        // Where nothing is known of cgroups, a pid namespace of its own tells as much.
        (Place::Unknown, _) => Some(task.pidns == server.pidns),
    };
    let lane = match (role, here) {
        (Role::NginxMaster, _) => Lane::NginxMaster,
        (Role::NginxWorker, _) => Lane::NginxWorker,
        (Role::PhpFpmMaster, _) => Lane::PhpFpmMaster,
        (Role::PhpFpmChild, _) => Lane::PhpFpmChild,
        (Role::Runtime, _) => Lane::Runtime,
        (_, None) => Lane::Host,
        (_, Some(false)) => Lane::Other,
        (Role::Supervisor | Role::Init, Some(true)) => Lane::Init,
        (_, Some(true)) if task.ns_pid == 1 => Lane::Init,
        (_, Some(true)) => Lane::Command,
    };
    let role = (role != Role::Other).then(|| role.id().to_string());
    let process = ProcessRef { pid: task.ns_pid, host_pid: task.tgid, comm: task.comm.clone(), role };
    Party { lane, process }
}
