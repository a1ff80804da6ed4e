//! Stops: one termination of an nginx or a php-fpm, from its first stop signal to its exit.

mod before;
mod marks;
mod tell;

use super::history::{History, sig};
use super::lost::{Evidence, Lost};
use crate::identity::{Role, Table};
use crate::model::Task;
use crate::model::event::{BootNs, Cited, Event, EventId, EventKind, ProcKey, SignalGenerated, tcp};
use crate::model::incident::{Advice, Incident, Timeline};
use crate::model::input::StopCounters;
use std::collections::{BTreeMap, VecDeque};

pub use before::commands as commands_before;
pub use tell::{shared, tell};

/// A stop is told when nothing happened to it for so long after the master's exit …
const QUIET_NS: u64 = 2_000_000_000;
/// … and in any case so long after it: who still comes then is not racing with the removal of endpoints.
const LINGER_NS: u64 = 30_000_000_000;
/// Stops that are under way, those that are to be told, and those kept to be named by later incidents.
pub const MAX_STOPS: usize = 1024;
/// Phases kept of one stop: a container that floods its own master with signals gets no more.
const MAX_PHASES: usize = 64;
/// Stops of one container that are under way at once and told in full; further ones are told in short.
const IN_FULL: usize = 8;
/// The same, and marks, of those.
const FEW_PHASES: usize = 4;
/// "Before the signal" for a request whose age is known to a jiffy (10 ms at HZ=100) only.
const JIFFY_NS: u64 = 10_000_000;

/// How many, the least and the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub n: u64,
    pub min: u64,
    pub max: u64,
}

impl Range {
    pub fn add(&mut self, value: u64) {
        self.min = if self.n == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.n += 1;
    }
}

/// What was lost to one stop until now: the sample that its advice is computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Ages, in ms, of the requests that the server closed without an answer.
    pub cut: Range,
    /// Those of them that had come before the signal; `None`: the age of one is not known.
    pub cut_before: Option<u64>,
    /// Closed without an answer, whether the age is known or not.
    pub closed: u64,
    /// Refused connections, in ms after the listener's close.
    pub late: Range,
    /// When the last of them came; 0: none did.
    pub last_late: BootNs,
    /// So long the pod's preStop hook had slept before the signal.
    pub pre_stop_s: u64,
}

#[derive(Clone, Debug)]
struct PhaseFact {
    name: &'static str,
    at: BootNs,
    /// The end of what lasts.
    until: Option<BootNs>,
    event: Option<Cited>,
    text: String,
    /// A signal to this process: told in more words when it is still known at the end.
    signal_to: Option<ProcKey>,
}

/// A command that was run in the container from outside of it.
#[derive(Clone, Debug)]
pub struct Command {
    pub key: ProcKey,
    pub at: BootNs,
    pub event: Option<EventId>,
    /// Hostile.
    pub argv: Vec<String>,
    /// When, and its code as in wait(2).
    pub exit: Option<(BootNs, u32)>,
}

/// A stop under way.
#[derive(Clone, Debug)]
pub struct Open {
    id: String,
    master: ProcKey,
    task: Task,
    role: Role,
    /// The signal to the master.
    since: BootNs,
    /// The signal to its container: the same one, or an earlier one to PID 1.
    base: BootNs,
    /// What set it off: a signal, and whom it was sent to.
    root: (ProcKey, EventId),
    signal: u32,
    phases: Vec<PhaseFact>,
    /// One of many of its container.
    short: bool,
    /// Phases left out.
    cut: u64,
    /// Who told whom to stop, and who ended when.
    timeline: Timeline,
    command: Option<Command>,
    /// SIGKILL from outside, to the master or to the PID 1 that took it along.
    killed: Option<BootNs>,
    exited: Option<BootNs>,
    /// The last thing that happened to it.
    active: BootNs,
    seen: Seen,
    counters: Option<StopCounters>,
    by_cause: BTreeMap<String, u64>,
    advice: Vec<Advice>,
    /// Told before its end, because there were too many.
    early: bool,
}

impl Open {
    fn phase(&mut self, name: &'static str, event: &Event, text: String, signal_to: Option<ProcKey>) {
        self.active = self.active.max(event.at);
        if self.phases.len() >= if self.short { FEW_PHASES } else { MAX_PHASES } && name != "exit" {
            self.cut += 1;
            return;
        }
        let (at, cited) = (event.at, Some(Cited::Event(event.id)));
        self.phases.push(PhaseFact { name, at, until: None, event: cited, text, signal_to });
    }
}

/// A stop that was told: later incidents still name it.
#[derive(Debug)]
struct Told {
    id: String,
    master: ProcKey,
    since: BootNs,
    seen: Seen,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Stops {
    open: BTreeMap<ProcKey, Open>,
    told: VecDeque<Told>,
    /// Pushed out by too many others, to be told at the next opportunity.
    early: Vec<Open>,
    /// The command of a stop, while it runs, and the stop's master.
    commands: BTreeMap<ProcKey, ProcKey>,
    /// The last ones of each cgroup.
    counters: BTreeMap<u64, StopCounters>,
    dropped: u64,
}

impl Stops {
    pub fn observe(&mut self, event: &Event, table: &Table, history: &History) {
        match &event.kind {
            EventKind::SignalGenerated(s) if sig::stops(s.signal) => {
                if s.result != 1 {
                    self.signal(event, s, table, history);
                }
                self.mark_signal(event, s, table);
            }
            EventKind::TcpState(s) if s.oldstate == tcp::LISTEN && s.newstate == tcp::CLOSE => {
                let key = s.task.key();
                let text = format!("port {} closed by {} {}", s.tuple.local_port, s.task.comm, s.task.tgid);
                if let Some(open) = self.of_process(&key, table) {
                    open.phase("listener-closed", event, text, None);
                }
            }
            EventKind::Exited { task, code } => self.exit(event, task, *code, table),
            _ => {}
        }
    }

    fn signal(&mut self, event: &Event, s: &SignalGenerated, table: &Table, history: &History) {
        let key = s.target.key();
        let role = table.role(&key).role;
        if !matches!(role, Role::NginxMaster | Role::PhpFpmMaster) || s.sender.tgid == s.target.tgid {
            return;
        }
        let text = before::signal_text(s);
        let killed = s.signal == sig::KILL;
        if let Some(open) = self.open.get_mut(&key) {
            open.killed = open.killed.or(killed.then_some(event.at));
            open.phase(if killed { "kill" } else { "second-signal" }, event, text, Some(key));
            return;
        }
        self.make_room();
        let own = self.open.values().filter(|o| o.task.cgroup == s.target.cgroup && o.task.pidns == s.target.pidns);
        let short = own.count() >= IN_FULL;
        let mut open = Open {
            short,
            id: format!("s-{:016x}", crate::explain::stop_id(&s.target, event.at)),
            master: key,
            task: s.target.clone(),
            role,
            since: event.at,
            base: event.at,
            root: (key, event.id),
            signal: s.signal,
            phases: Vec::new(),
            cut: 0,
            timeline: Timeline::default(),
            command: before::command(event.at, s, table),
            killed: killed.then_some(event.at),
            exited: None,
            active: event.at,
            seen: Seen { cut_before: Some(0), ..Seen::default() },
            counters: None,
            by_cause: BTreeMap::new(),
            advice: Vec::new(),
            early: false,
        };
        before::container_signal(&mut open, s, table, history);
        open.phase(if killed { "kill" } else { "stop-signal" }, event, text, Some(key));
        if let Some(counters) = self.counters.get(&open.task.cgroup) {
            open.count(counters);
        }
        if let Some(command) = &open.command {
            if command.exit.is_none() {
                self.commands.insert(command.key, key);
            }
            open.seen.pre_stop_s = before::slept(command);
        }
        self.open.insert(key, open);
    }

    fn exit(&mut self, event: &Event, task: &Task, code: u32, table: &Table) {
        let key = task.key();
        if let Some(open) = self.commands.remove(&key).and_then(|master| self.open.get_mut(&master))
            && let Some(command) = &mut open.command
        {
            command.exit = Some((event.at, code));
        }
        self.mark_exit(event, task, code, table);
        let text = format!("{} {} {}", task.comm, task.tgid, before::exit_text(code));
        if let Some(open) = self.open.get_mut(&key) {
            open.exited = Some(event.at);
            open.phase("exit", event, text, None);
        } else if let Some(open) = self.of_process(&key, table) {
            open.phases.retain(|p| p.name != "last-worker-exit");
            open.phase("last-worker-exit", event, text, None);
        }
    }

    /// The stop of a master or of its child.
    fn of_process(&mut self, key: &ProcKey, table: &Table) -> Option<&mut Open> {
        if self.open.contains_key(key) {
            return self.open.get_mut(key);
        }
        let master = table.parent(key)?.key;
        self.open.get_mut(&master)
    }

    /// Of the container with the most, the one that is under way for longest is told as it is.
    fn make_room(&mut self) {
        if self.open.len() < MAX_STOPS {
            return;
        }
        let of = |o: &Open| (o.task.cgroup, o.task.pidns);
        let mut by_container: BTreeMap<_, usize> = BTreeMap::new();
        self.open.values().for_each(|o| *by_container.entry(of(o)).or_default() += 1);
        let most = by_container.into_iter().max_by_key(|(_, n)| *n).map(|(container, _)| container);
        let own = self.open.values().filter(|o| Some(of(o)) == most);
        let Some(oldest) = own.min_by_key(|o| (o.since, o.master)).map(|o| o.master) else { return };
        let Some(mut open) = self.open.remove(&oldest) else { return };
        open.early = true;
        if self.early.len() < MAX_STOPS {
            self.early.push(open);
        } else {
            self.dropped += 1;
        }
    }

    pub fn counters(&mut self, counters: &StopCounters) {
        if self.counters.len() >= MAX_STOPS
            && !self.counters.contains_key(&counters.cgroup)
            && let Some(oldest) = self.counters.iter().min_by_key(|(_, c)| c.at).map(|(cgroup, _)| *cgroup)
        {
            self.counters.remove(&oldest);
        }
        self.counters.insert(counters.cgroup, counters.clone());
        for open in self.open.values_mut().filter(|o| o.task.cgroup == counters.cgroup) {
            open.count(counters);
        }
    }

    /// A loss of this master's server.
    pub fn lost(&mut self, master: Option<ProcKey>, lost: &Lost) {
        let Some(open) = master.and_then(|m| self.open.get_mut(&m)).filter(|o| o.base <= lost.at) else { return };
        let seen = &mut open.seen;
        if lost.cut_in_flight() {
            seen.closed += 1;
            if let Some(age) = lost.age_ms {
                seen.cut.add(age);
                let began = lost.at.saturating_sub(age * 1_000_000);
                seen.cut_before = seen.cut_before.map(|n| n + u64::from(began <= open.base + JIFFY_NS));
            } else {
                seen.cut_before = None;
            }
        } else if let Evidence::Refused { closed: Some(closed), .. } = &lost.evidence {
            seen.late.add(lost.at.saturating_sub(closed.at) / 1_000_000);
            seen.last_late = seen.last_late.max(lost.at);
        } else if !lost.thrown_out_of_queue() && !matches!(lost.evidence, Evidence::LateData { .. }) {
            return;
        }
        open.active = open.active.max(lost.at);
    }

    /// What was lost to this master's stop until now.
    pub fn seen(&self, master: &ProcKey) -> Option<&Seen> {
        let told = || self.told.iter().rev().find(|t| t.master == *master).map(|t| &t.seen);
        self.open.get(master).map(|o| &o.seen).or_else(told)
    }

    /// The kernel side's counters of this master's stop.
    pub fn counted(&self, master: &ProcKey) -> Option<&StopCounters> {
        self.open.get(master)?.counters.as_ref()
    }

    /// The stop that a loss belongs to: of the same master, begun before it.
    pub fn of(&self, master: Option<ProcKey>, at: BootNs) -> Option<String> {
        let master = master?;
        if let Some(open) = self.open.get(&master) {
            return (open.since <= at).then(|| open.id.clone());
        }
        self.told.iter().rev().find(|t| t.master == master && t.since <= at).map(|t| t.id.clone())
    }

    /// An incident of the server's doing was decided.
    pub fn decided(&mut self, master: Option<ProcKey>, incident: &Incident) {
        let Some(open) = master.and_then(|m| self.open.get_mut(&m)).filter(|o| incident.stop.as_ref() == Some(&o.id))
        else {
            return;
        };
        *open.by_cause.entry(incident.cause.id().to_string()).or_default() += 1;
        crate::explain::advice::merge(&mut open.advice, &incident.advice);
    }

    /// The stops that are to be told now; `wait` is the longest that a verdict about a loss may take.
    pub fn due(&mut self, at: BootNs, wait: BootNs) -> Vec<Open> {
        let over = |o: &Open| {
            let exited = o.exited?;
            let due = (o.active.max(exited) + QUIET_NS.max(wait)).min(exited + LINGER_NS);
            (due <= at).then_some((due, o.master))
        };
        let mut due: Vec<_> = self.open.values().filter_map(over).collect();
        due.sort_unstable();
        self.take(due.into_iter().map(|(_, master)| master).collect())
    }

    /// All that are left, at the end of the observation.
    pub fn rest(&mut self) -> Vec<Open> {
        let mut rest: Vec<_> = self.open.values().map(|o| (o.since, o.master)).collect();
        rest.sort_unstable();
        self.take(rest.into_iter().map(|(_, master)| master).collect())
    }

    fn take(&mut self, masters: Vec<ProcKey>) -> Vec<Open> {
        let mut out = std::mem::take(&mut self.early);
        out.extend(masters.iter().filter_map(|m| self.open.remove(m)));
        for open in &out {
            if let Some(command) = &open.command {
                self.commands.remove(&command.key);
            }
            if self.told.len() >= MAX_STOPS {
                self.told.pop_front();
            }
            let (id, master, since, seen) = (open.id.clone(), open.master, open.since, open.seen);
            self.told.push_back(Told { id, master, since, seen });
        }
        out
    }

    /// Stops that were never told.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Open {
    /// Counters are of a cgroup and its first signal: those of another stop in the same cgroup are not this one's.
    fn count(&mut self, counters: &StopCounters) {
        let own = self.base.saturating_sub(QUIET_NS)..=self.since + QUIET_NS;
        if own.contains(&counters.signal_at) {
            self.counters = Some(counters.clone());
        }
    }
}
