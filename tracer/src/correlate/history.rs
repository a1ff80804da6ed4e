//! What happened lately, indexed for the rules: signals, exits, losses, and which connections are already accounted for.
//! Pure and bounded: every index has a time and a size limit, and what is thrown out early is counted. The limits together
//! are some 30 MiB; the container with the most entries pays when there is no room ([`Recent`]).

use super::lost::QueueFull;
use super::recent::Recent;
use crate::identity::Group;
use crate::model::event::{
    BootNs, EventId, ProcKey, ResetSent, SI_KERNEL, SigInfo, SignalGenerated, Task, TcpState, Tuple,
};
use crate::model::input::{Carries, CarriesFact, LossKind, MemoryFact, SpecFact};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How long facts without an owner are kept: longer than FIN_WAIT2 and TIME_WAIT (60 s).
pub const KEEP_NS: u64 = 120_000_000_000;
/// Exits, and connections that are accounted for.
const MAX_ENTRIES: usize = 16_384;
/// Of what has more to remember, or is seldom.
const MAX_LARGE: usize = 8_192;
const MAX_FEW: usize = 4_096;
/// A connect is given up after this time: nginx's timeouts are 60 s unless they are told otherwise.
const CONNECT_NS: u64 = 65_000_000_000;
/// Signals kept per target: the first ones and the last ones of a flood.
const MAX_SIGNALS: usize = 64;
/// The files are read when the mark is drained.
const MEMORY_NS: u64 = 5_000_000_000;
/// Victims of the OOM killer: with memory.oom.group a container's processes go at once.
const MAX_OOM: usize = 1_024;
/// Containers of pod specs.
const MAX_SPECS: usize = 4_096;
/// Targets whose signals are kept, and network namespaces and ports of which something is known.
const MAX_TARGETS: usize = 4_096;
/// Signals kept in all.
const MAX_ALL_SIGNALS: usize = 16_384;

/// What was thrown out of one container within this time is one loss.
const ONE_FLOOD_NS: u64 = 1_000_000_000;
/// Losses that are looked through for one that goes on.
const FLOODS: usize = 16;

/// Signal numbers of x86-64 and arm64 (include/uapi/asm-generic/signal.h).
pub mod sig {
    pub const HUP: u32 = 1;
    pub const INT: u32 = 2;
    pub const QUIT: u32 = 3;
    pub const ILL: u32 = 4;
    pub const ABRT: u32 = 6;
    pub const BUS: u32 = 7;
    pub const TRAP: u32 = 5;
    pub const FPE: u32 = 8;
    pub const KILL: u32 = 9;
    pub const USR1: u32 = 10;
    pub const SEGV: u32 = 11;
    pub const USR2: u32 = 12;
    pub const PIPE: u32 = 13;
    pub const TERM: u32 = 15;
    pub const PROF: u32 = 27;
    pub const WINCH: u32 = 28;
    pub const SYS: u32 = 31;

    const NAMES: [&str; 32] = [
        "0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];

    /// `SIGTERM`, `SIGRTMIN+2`, as people write it.
    pub fn name(sig: u32) -> String {
        match sig {
            1..=31 => format!("SIG{}", NAMES[sig as usize]),
            32..=64 => format!("SIGRT{sig}"),
            other => format!("signal {other}"),
        }
    }

    /// One that ends a server, asked or not.
    pub fn stops(sig: u32) -> bool {
        asks_to_stop(sig) || sig == KILL
    }

    /// One that a fault raises, or a program that gives itself up.
    pub fn crashes(sig: u32) -> bool {
        matches!(sig, SEGV | BUS | ABRT | ILL | FPE | TRAP | SYS)
    }

    /// One that a server can follow: it closes its listener and its connections itself.
    pub fn asks_to_stop(sig: u32) -> bool {
        matches!(sig, TERM | INT | QUIT)
    }
}

/// A signal that was generated.
#[derive(Clone, Debug)]
pub struct Signal {
    pub event: EventId,
    pub at: BootNs,
    pub what: SignalGenerated,
}

impl Signal {
    /// It reached the target: not ignored, not lost. Already pending means that an earlier one will be delivered.
    pub fn effective(&self) -> bool {
        self.what.result != 1
    }
    /// Sent by the kernel for its own reasons (OOM, the end of PID 1), whoever was running.
    pub fn by_kernel(&self) -> bool {
        self.what.code == SI_KERNEL || self.what.info == SigInfo::Kernel
    }
    /// Sent by the target to itself: php-fpm's children do that on their way out.
    pub fn to_itself(&self) -> bool {
        self.what.sender.tgid == self.what.target.tgid
    }
}

#[derive(Clone, Debug)]
pub struct ExitFact {
    pub event: EventId,
    pub at: BootNs,
    pub code: u32,
    pub task: Task,
}

/// A connection that a proxy closed, from its end.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub event: EventId,
    pub at: BootNs,
    pub tuple: Tuple,
    pub task: Task,
}

/// The OOM killer's choice.
#[derive(Clone, Debug)]
pub struct OomMark {
    pub event: EventId,
    pub at: BootNs,
    /// Up to 5.10.218 and 6.7 all but its pid is 0.
    pub task: Task,
}

/// A loss of records, by hook.
#[derive(Clone, Debug)]
pub struct LossWindow {
    /// Whose facts they were, where that is known: nobody else's verdicts miss them.
    pub of: Option<Group>,
    pub from: BootNs,
    pub to: BootNs,
    pub hook: String,
    pub kind: LossKind,
    pub count: u64,
}

/// See the module.
pub struct History {
    signals: BTreeMap<ProcKey, Signals>,
    /// How many there are, by container, and its targets by their last signal: of the one with the most, the target that was
    /// left alone longest goes first.
    targets: BTreeMap<Group, Targets>,
    signal_count: usize,
    /// Targets that have ended, by that: their signals go when nobody asks for them any more.
    ended: BTreeSet<(BootNs, ProcKey)>,
    exits: Recent<ProcKey, ExitFact>,
    /// With the kernel's address of the socket, 0 where no record tells it.
    accounted: Recent<Tuple, u64>,
    resets: Recent<Tuple, (EventId, ResetSent)>,
    listener_closes: Recent<EventId, Task>,
    /// Connections that the peer ended while a request was open, by the master of the server that waited.
    left: Recent<ProcKey, EventId>,
    losses: VecDeque<LossWindow>,
    /// What the OOM killer chose lately.
    oom: VecDeque<OomMark>,
    /// What the memory controller said of them.
    memory: VecDeque<MemoryFact>,
    /// The pod whose processes were last seen in a network namespace, and since when.
    netns_pods: BTreeMap<u32, (BootNs, String)>,
    specs: Vec<SpecFact>,
    /// Ports whose connections are more than requests one after the other, by network namespace.
    carries: BTreeMap<(u32, u16), Carries>,
    /// The last connection of each nginx to a server of its own network namespace.
    upstreams: Recent<ProcKey, Upstream>,
    /// Listening ports (netns, port) whose accept queue was last seen to be full.
    full: Recent<(u32, u16), QueueFull>,
    /// Connects whose SYN was sent again, by the client's tuple.
    syns: Recent<Tuple, EventId>,
    evicted: u64,
}

#[derive(Debug, Default)]
struct Signals {
    group: Group,
    list: Vec<Signal>,
    ended: Option<BootNs>,
}

#[derive(Debug, Default)]
struct Targets {
    signals: usize,
    by_last: BTreeSet<(BootNs, ProcKey)>,
}

impl Default for History {
    fn default() -> Self {
        History {
            signals: BTreeMap::new(),
            targets: BTreeMap::new(),
            signal_count: 0,
            ended: BTreeSet::new(),
            exits: Recent::new(MAX_ENTRIES, KEEP_NS),
            accounted: Recent::new(MAX_ENTRIES, KEEP_NS),
            resets: Recent::new(MAX_LARGE, KEEP_NS),
            listener_closes: Recent::new(MAX_FEW, KEEP_NS),
            left: Recent::new(MAX_FEW, KEEP_NS),
            losses: VecDeque::new(),
            oom: VecDeque::new(),
            memory: VecDeque::new(),
            netns_pods: BTreeMap::new(),
            specs: Vec::new(),
            carries: BTreeMap::new(),
            upstreams: Recent::new(MAX_FEW, KEEP_NS),
            full: Recent::new(MAX_FEW, KEEP_NS),
            syns: Recent::new(MAX_LARGE, KEEP_NS),
            evicted: 0,
        }
    }
}

impl History {
    /// `group`: of the target.
    pub fn signal(&mut self, event: EventId, at: BootNs, group: Group, what: &SignalGenerated) {
        self.forget_ended(at);
        let key = what.target.key();
        let signals = self.signals.entry(key).or_insert_with(|| Signals { group, list: Vec::new(), ended: None });
        // A process that moved is still counted where it was seen first.
        let targets = self.targets.entry(signals.group).or_default();
        if let Some(last) = signals.list.last() {
            targets.by_last.remove(&(last.at, key));
        }
        targets.by_last.insert((at, key));
        if signals.list.len() >= MAX_SIGNALS {
            // Stop signals are what the rules ask for: a flood of others must not push them out.
            let victim = signals.list.iter().rposition(|s| !sig::stops(s.what.signal)).unwrap_or(MAX_SIGNALS / 2);
            signals.list.remove(victim);
            self.evicted += 1;
        } else {
            targets.signals += 1;
            self.signal_count += 1;
        }
        signals.list.push(Signal { event, at, what: what.clone() });
        while self.signal_count > MAX_ALL_SIGNALS || self.signals.len() > MAX_TARGETS {
            self.drop_target(at);
        }
    }

    fn drop_target(&mut self, at: BootNs) {
        let Some((group, targets)) = self.targets.iter().max_by_key(|(_, t)| t.signals) else { return };
        let (group, oldest) = (*group, targets.by_last.first().map(|(_, key)| *key));
        oldest.into_iter().for_each(|key| self.drop_signals(&key));
        self.forgot(at, Some(group));
    }

    fn drop_signals(&mut self, key: &ProcKey) {
        let Some(Signals { group, list, ended }) = self.signals.remove(key) else { return };
        ended.into_iter().for_each(|at| _ = self.ended.remove(&(at, *key)));
        self.signal_count = self.signal_count.saturating_sub(list.len());
        let Some(targets) = self.targets.get_mut(&group) else { return };
        targets.signals = targets.signals.saturating_sub(list.len());
        list.last().into_iter().for_each(|last| {
            targets.by_last.remove(&(last.at, *key));
        });
        if targets.by_last.is_empty() {
            self.targets.remove(&group);
        }
    }

    fn forget_ended(&mut self, now: BootNs) {
        while let Some((at, key)) = self.ended.first().copied()
            && at.saturating_add(KEEP_NS) < now
        {
            self.ended.remove(&(at, key));
            self.drop_signals(&key);
        }
    }

    /// Something of this container was thrown out to keep memory bounded: its verdicts of this time say so.
    fn forgot(&mut self, at: BootNs, group: Option<Group>) {
        let Some(group) = group else { return };
        self.evicted += 1;
        // One line for a flood, else it would push out the others.
        let same = |l: &&mut LossWindow| {
            l.kind == LossKind::Evicted && l.of == Some(group) && at.saturating_sub(l.to) < ONE_FLOOD_NS
        };
        if let Some(last) = self.losses.iter_mut().rev().take(FLOODS).find(same) {
            last.count += 1;
            last.to = last.to.max(at);
            return;
        }
        let hook = "userspace".to_string();
        self.loss(LossWindow { of: Some(group), from: at, to: at, hook, kind: LossKind::Evicted, count: 1 });
    }

    pub fn exit(&mut self, event: EventId, at: BootNs, group: Group, task: &Task, code: u32) {
        self.forget_ended(at);
        if let Some(signals) = self.signals.get_mut(&task.key()).filter(|s| s.ended.is_none()) {
            signals.ended = Some(at);
            self.ended.insert((at, task.key()));
        }
        let early = self.exits.insert(at, group, task.key(), ExitFact { event, at, code, task: task.clone() });
        self.forgot(at, early);
    }

    pub fn reset_sent(&mut self, event: EventId, at: BootNs, group: Group, reset: &ResetSent) {
        let early = self.resets.insert(at, group, reset.tuple, (event, reset.clone()));
        self.forgot(at, early);
    }

    /// The nginx of this master had a connection to a server of its own network namespace.
    pub fn upstream(&mut self, group: Group, master: ProcKey, upstream: Upstream) {
        let at = upstream.at;
        let early = self.upstreams.insert(at, group, master, upstream);
        self.forgot(at, early);
    }

    pub fn upstream_of(&self, master: &ProcKey) -> Option<&Upstream> {
        self.upstreams.get(master).map(|(_, upstream)| upstream)
    }

    /// `s`: of a connection that took the last place of its listener's queue, or what is beyond it.
    pub fn queue_filled(&mut self, event: EventId, at: BootNs, group: Group, s: &TcpState) {
        let full = QueueFull { event, at, holds: s.ack_backlog.saturating_add(1) };
        let early = self.full.insert(at, group, (s.tuple.netns, s.tuple.local_port), full);
        self.forgot(at, early);
    }

    /// The queue of this port was full lately.
    pub fn queue_full(&self, netns: u32, port: u16, at: BootNs) -> Option<&QueueFull> {
        self.full.get(&(netns, port)).filter(|(t, _)| at.saturating_sub(*t) < CONNECT_NS).map(|(_, full)| full)
    }

    pub fn syn_again(&mut self, event: EventId, at: BootNs, group: Group, tuple: &Tuple) {
        let early = self.syns.insert(at, group, *tuple, event);
        self.forgot(at, early);
    }

    /// The last time that the SYN of this connection was sent again.
    pub fn syn_sent_again(&self, tuple: &Tuple) -> Option<(EventId, BootNs)> {
        self.syns.get(tuple).map(|(at, event)| (*event, *at))
    }

    pub fn listener_closed(&mut self, event: EventId, at: BootNs, group: Group, task: &Task) {
        let early = self.listener_closes.insert(at, group, event, task.clone());
        self.forgot(at, early);
    }

    /// A client of this server went away while it waited.
    pub fn client_left(&mut self, event: EventId, at: BootNs, group: Group, server: ProcKey) {
        let early = self.left.insert(at, group, server, event);
        self.forgot(at, early);
    }

    /// This connection's request is accounted for: a later reset of it is a consequence. `sk`: its socket, 0 if not known.
    pub fn account(&mut self, at: BootNs, group: Group, tuple: &Tuple, sk: u64) {
        let early = self.accounted.insert(at, group, *tuple, sk);
        self.forgot(at, early);
    }

    /// When the last loss of these addresses was found, unless it was certainly another connection's: a client may use its
    /// port again at once. `sk`: as above.
    pub fn accounted_at(&self, tuple: &Tuple, sk: u64) -> Option<BootNs> {
        let (at, told) = self.accounted.get(tuple).copied()?;
        (told == 0 || sk == 0 || told == sk).then_some(at)
    }

    pub fn oom_victim(&mut self, event: EventId, at: BootNs, task: &Task) {
        if self.oom.len() >= MAX_OOM {
            self.oom.pop_front();
        }
        self.oom.push_back(OomMark { event, at, task: task.clone() });
    }

    /// The OOM killer chose this process around `at`: its kill and its mark come within microseconds.
    pub fn oom_mark(&self, key: &ProcKey, at: BootNs) -> Option<&OomMark> {
        // A thread may be what is marked; older kernels tell no more than its pid.
        let process = |t: &Task| if t.tgid == 0 { t.pid } else { t.tgid };
        self.oom.iter().rev().find(|m| process(&m.task) == key.tgid && at.abs_diff(m.at) < 1_000_000_000)
    }

    /// What the memory controller's files said after this choice of the OOM killer.
    pub fn memory(&mut self, fact: &MemoryFact) {
        if self.memory.len() >= MAX_OOM {
            self.memory.pop_front();
        }
        self.memory.push_back(fact.clone());
    }

    pub fn memory_of(&self, mark: &OomMark) -> Option<&MemoryFact> {
        let pid = if mark.task.tgid == 0 { mark.task.pid } else { mark.task.tgid };
        let of_it = |m: &&MemoryFact| m.victim == pid && m.at >= mark.at && m.at - mark.at < MEMORY_NS;
        self.memory.iter().rev().find(of_it)
    }

    pub fn was_oom_victim(&self, key: &ProcKey, at: BootNs) -> bool {
        self.oom_mark(key, at).is_some()
    }

    /// A process of this pod was seen in this network namespace.
    pub fn in_netns(&mut self, at: BootNs, netns: u32, pod: &str) {
        if self.netns_pods.get(&netns).is_some_and(|(_, known)| known == pod) {
            return;
        }
        if self.netns_pods.len() >= MAX_TARGETS
            && let Some(oldest) = self.netns_pods.iter().min_by_key(|(_, (since, _))| *since).map(|(n, _)| *n)
        {
            self.netns_pods.remove(&oldest);
        }
        self.netns_pods.insert(netns, (at, pod.to_string()));
    }

    /// This namespace's inode number belongs to another pod than `pod` since after `at`.
    pub fn netns_passed_on(&self, netns: u32, at: BootNs, pod: Option<&str>) -> bool {
        self.netns_pods.get(&netns).is_some_and(|(since, now)| *since > at && pod != Some(now.as_str()))
    }

    /// How a container is said to be stopped.
    pub fn spec(&mut self, spec: &SpecFact) {
        if self.specs.len() < MAX_SPECS {
            self.specs.push(spec.clone());
        } else {
            self.evicted += 1;
        }
    }

    /// What the connections of a port carry, as its nginx is configured.
    pub fn carries(&mut self, fact: &CarriesFact) {
        if self.carries.len() < MAX_TARGETS || self.carries.contains_key(&(fact.netns, fact.port)) {
            self.carries.insert((fact.netns, fact.port), fact.what);
        } else {
            self.evicted += 1;
        }
    }

    pub fn carried(&self, tuple: &Tuple) -> Option<Carries> {
        self.carries.get(&(tuple.netns, tuple.local_port)).copied()
    }

    pub fn specs(&self) -> &[SpecFact] {
        &self.specs
    }

    pub fn loss(&mut self, loss: LossWindow) {
        if self.losses.len() >= 1024 {
            self.losses.pop_front();
        }
        self.losses.push_back(loss);
    }

    /// Signals generated for a process, oldest first.
    pub fn signals_to(&self, key: &ProcKey) -> &[Signal] {
        self.signals.get(key).map_or(&[], |s| &s.list)
    }

    /// The task that closed a listener, while that is still asked for at `at`.
    pub fn listener_closer(&self, event: EventId, at: BootNs) -> Option<&Task> {
        self.listener_closes.get(&event).filter(|(t, _)| at.saturating_sub(*t) < KEEP_NS).map(|(_, task)| task)
    }

    /// When a client of this server last went away while it waited.
    pub fn last_client_left(&self, server: &ProcKey) -> Option<(BootNs, EventId)> {
        self.left.get(server).copied()
    }

    pub fn exit_of(&self, key: &ProcKey) -> Option<&ExitFact> {
        self.exits.get(key).map(|(_, e)| e)
    }

    /// The last reset that the local side of this connection sent at or after `since`.
    pub fn reset_of(&self, tuple: &Tuple, since: BootNs) -> Option<(EventId, BootNs, &ResetSent)> {
        let (at, (event, reset)) = self.resets.get(tuple)?;
        (*at >= since).then_some((*event, *at, reset))
    }

    /// Losses whose time touches `from..=to`, and that may be one of these.
    pub fn losses(&self, from: BootNs, to: BootNs, of: [Group; 2]) -> impl Iterator<Item = &LossWindow> {
        let theirs = move |l: &LossWindow| l.of.is_none_or(|group| of.contains(&group));
        self.losses.iter().filter(move |l| l.to >= from && l.from <= to && theirs(l))
    }

    /// Facts thrown out before their time to keep memory bounded.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}
