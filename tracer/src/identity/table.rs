//! The table of processes, cgroups and listeners, fed with the input sequence.

use super::cgroups::{Cgroups, ContainerInfo, Place};
use super::listeners::{ListenState, Listeners, Owner, ServerKind};
use super::process::{ExecRef, Exit, Image, ImageFrom, Known, Process};
use super::retention::Retention;
use super::role::{Kind, Role};
use super::unix::UnixPaths;
use crate::model::event::{EventKind, Execed, TICK_NS};
use crate::model::input::{CgroupFact, ContainerFact, Hierarchy, ListenerFact, ProcessFact};
use crate::model::{BootNs, Event, EventId, Input, ProcKey, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[cfg(test)]
pub(super) mod tests;

/// Upper bounds of what is remembered: together some 35 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of processes, living and dead, with their arguments.
    pub processes: usize,
    pub cgroups: usize,
    /// Listening sockets, open and closed.
    pub sockets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { processes: 20 << 20, cgroups: 8_192, sockets: 16_384 }
    }
}

/// Who serves, or served, at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo<'a> {
    pub kind: ServerKind,
    /// `kind` rests on more than a process's own word.
    pub sure: bool,
    pub process: Option<ProcKey>,
    pub container: Option<&'a ContainerInfo>,
}

/// See the [module](super).
#[derive(Debug)]
pub struct Table {
    processes: BTreeMap<ProcKey, Process>,
    /// Also of parents that are forgotten: they may be seen again.
    children: BTreeMap<ProcKey, BTreeSet<ProcKey>>,
    /// Processes whose parent is not known yet, by the parent's tgid.
    orphans: BTreeMap<u32, BTreeSet<ProcKey>>,
    /// Processes that pass for a php-fpm, so that nobody has to look through all of them.
    php_fpms: BTreeSet<ProcKey>,
    retention: Retention,
    cgroups: Cgroups,
    listeners: Listeners,
    pub(super) unix_paths: UnixPaths,
    limits: Limits,
    now: BootNs,
    evicted: u64,
}

impl Default for Table {
    fn default() -> Self {
        Table::new(Limits::default())
    }
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Table {
            processes: BTreeMap::new(),
            children: BTreeMap::new(),
            orphans: BTreeMap::new(),
            php_fpms: BTreeSet::new(),
            retention: Retention::default(),
            cgroups: Cgroups::new(limits.cgroups),
            listeners: Listeners::new(limits.sockets),
            unix_paths: UnixPaths::new(limits.sockets / 8),
            limits,
            now: 0,
            evicted: 0,
        }
    }

    /// Takes what it needs of any input.
    pub fn observe(&mut self, input: &Input) {
        match input {
            Input::Event(event) => self.observe_event(event),
            Input::Process(fact) => self.observe_process(fact),
            Input::Listener(fact) => self.observe_listener(fact),
            Input::UnixListener(fact) => self.observe_unix_listener(fact),
            Input::Cgroup(fact) => self.observe_cgroup(fact),
            Input::Tick { at } | Input::Ready { at } | Input::Stopped { at } => self.advance(*at),
            Input::Container(fact) => self.observe_container(fact),
            Input::Started(_)
            | Input::Clock { .. }
            | Input::Loss(_)
            | Input::StopCounters(_)
            | Input::Memory(_)
            | Input::Spec(_)
            | Input::Source(_)
            | Input::Kube(_)
            | Input::Carries(_)
            | Input::NginxProbes(_) => {}
        }
    }

    pub fn observe_event(&mut self, event: &Event) {
        self.advance(event.at);
        let at = event.at;
        match &event.kind {
            EventKind::SignalGenerated(s) => {
                self.touch(&s.sender, Known::Record, at);
                self.touch(&s.target, Known::Record, at);
            }
            EventKind::SignalDelivered(s) => self.touch(&s.task, Known::Record, at),
            EventKind::Forked { parent, child } => self.forked(parent, child, at, event.id),
            EventKind::Execed(exec) => self.execed(exec, at, event.id),
            EventKind::Exited { task, code } => {
                self.touch(task, Known::Record, at);
                self.exited(task.key(), Exit { at, code: Some(*code), event: Some(event.id) });
            }
            EventKind::TcpState(s) => {
                self.touch(&s.task, Known::Record, at);
                let server = self.server_kind(&s.task.key()).filter(|(kind, _)| *kind != ServerKind::Other);
                self.listeners.observe_state(event.id, at, s, server);
            }
            EventKind::ResetSent(s) => self.touch(&s.task, Known::Record, at),
            EventKind::OomVictim { task } => self.touch(task, Known::Record, at),
            EventKind::UnixDropped(d) => {
                self.touch(&d.task, Known::Record, at);
                self.observe_unix_dropped(d, at);
            }
            EventKind::UnixRefused(r) => self.touch(&r.task, Known::Record, at),
            EventKind::NginxLogged(l) => self.touch(&l.task, Known::Record, at),
            EventKind::NginxErrorPage(p) => self.touch(&p.task, Known::Record, at),
            EventKind::ResetReceived(_) | EventKind::SynRetransmitted(_) => {}
        }
    }

    /// A process as /proc showed it. What an event with a later time has told already is not overwritten.
    pub fn observe_process(&mut self, fact: &ProcessFact) {
        self.advance(fact.at);
        let key = fact.key;
        if key.tgid == 0 {
            return;
        }
        self.ensure(key, Known::Scan, fact.at);
        let Some(p) = self.processes.get_mut(&key) else { return };
        if p.exited.is_some() || p.fact_at.is_some_and(|at| at > fact.at) {
            return;
        }
        p.fact_at = Some(fact.at);
        (p.sig_ign, p.sig_cgt) = (fact.sig_ign, fact.sig_cgt);
        let newest = fact.at >= p.touched;
        if (newest || p.comm.is_empty()) && p.set_comm(&fact.comm) {
            self.sort_in(key);
        }
        let Some(p) = self.processes.get_mut(&key) else { return };
        if newest {
            (p.ppid, p.uid) = (fact.ppid, fact.uid);
        }
        set(&mut p.ns_pid, fact.ns_pid, newest);
        set(&mut p.pidns, fact.pidns, newest);
        set(&mut p.netns, fact.netns, newest);
        let stale = p.execs.last().is_some_and(|e| e.at > fact.at);
        let image = (!fact.exe.is_empty() && !stale).then(|| Image::new(&fact.exe, &fact.argv, ImageFrom::Proc));
        if let Some(image) = image {
            self.set_image(key, image.clone());
            self.hand_down(key, &image, fact.at);
        }
        let (v2, v1) = self.processes.get(&key).map_or((0, 0), |p| {
            let pick = |old: u64, new: u64| if new != 0 && (newest || old == 0) { new } else { old };
            (pick(p.cgroup, fact.cgroup), pick(p.cgroup_v1, fact.cgroup_v1))
        });
        self.move_to(key, v2, v1);
        self.find_parent(key);
    }

    pub fn observe_listener(&mut self, fact: &ListenerFact) {
        self.advance(fact.at);
        let server = fact.holders.iter().filter_map(|key| self.server_kind(key));
        let server = server.filter(|(kind, _)| *kind != ServerKind::Other).min_by_key(|(kind, sure)| (!*sure, *kind));
        self.listeners.observe_fact(fact, server);
    }

    pub fn observe_cgroup(&mut self, fact: &CgroupFact) {
        self.advance(fact.at);
        self.cgroups.observe(fact);
    }

    pub fn observe_container(&mut self, fact: &ContainerFact) {
        self.advance(fact.seen_at);
        self.cgroups.observe_container(fact);
    }

    /// Time has reached `at`: forgets what is over for long. Time never runs backwards here.
    pub fn advance(&mut self, at: BootNs) {
        self.now = self.now.max(at);
        while let Some(key) = self.retention.expired(self.now) {
            self.forget(key);
        }
        self.listeners.advance(self.now);
    }

    // ---- look-ups

    pub fn process(&self, key: &ProcKey) -> Option<&Process> {
        self.processes.get(key)
    }

    /// Who had this tgid at `at`. A process has it until the pid is given away again, so the dead are found as well:
    /// sockets are closed after `sched_process_exit`.
    pub fn process_by_tgid_at(&self, tgid: u32, at: BootNs) -> Option<&Process> {
        let last = ProcKey { tgid, start_ticks: at / TICK_NS };
        let first = ProcKey { tgid, start_ticks: 0 };
        self.processes.range(first..=last).next_back().map(|(_, p)| p)
    }

    /// Who forked it, as long as that one is remembered.
    pub fn parent(&self, key: &ProcKey) -> Option<&Process> {
        self.processes.get(&self.processes.get(key)?.parent?)
    }

    /// Its remembered children, dead ones included, ordered by key.
    pub fn children(&self, key: &ProcKey) -> impl Iterator<Item = &Process> {
        self.children.get(key).into_iter().flatten().filter_map(|k| self.processes.get(k))
    }

    /// All remembered processes, ordered by key.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Those that pass for a php-fpm, ordered by key.
    pub fn php_fpms(&self) -> impl Iterator<Item = &Process> {
        self.php_fpms.iter().filter_map(|key| self.processes.get(key))
    }

    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// The container of a task or socket by its cgroup ids (0: not known).
    pub fn container_of_cgroup(&self, v2: u64, v1: u64) -> Option<&ContainerInfo> {
        match self.cgroups.place(v2, v1) {
            Place::Container(info) => Some(info),
            Place::Host | Place::Unknown => None,
        }
    }

    pub fn container_of(&self, key: &ProcKey) -> Option<&ContainerInfo> {
        let p = self.processes.get(key)?;
        self.container_of_cgroup(p.cgroup, p.cgroup_v1)
    }

    /// Where a task is: by the record's own cgroup ids, else by those known of its process.
    pub fn place(&self, task: &Task) -> Place<'_> {
        if task.cgroup != 0 || task.cgroup_v1 != 0 {
            return self.cgroups.place(task.cgroup, task.cgroup_v1);
        }
        self.place_of(&task.key())
    }

    pub fn place_of(&self, key: &ProcKey) -> Place<'_> {
        self.processes.get(key).map_or(Place::Unknown, |p| self.cgroups.place(p.cgroup, p.cgroup_v1))
    }

    /// Outside of every container, for sure: an unknown cgroup is no host.
    pub fn is_host(&self, task: &Task) -> bool {
        self.place(task) == Place::Host
    }

    /// What listens at an address at `at`, or listened there last: by the program of the process that opened the
    /// socket or holds it.
    pub fn server_at(&self, netns: u32, ip: IpAddr, port: u16, at: BootNs) -> Option<ServerInfo<'_>> {
        match self.listeners.state_at(netns, ip, port, at) {
            ListenState::NeverSeen => None,
            ListenState::Listening { owner, .. } | ListenState::Closed { owner, .. } => Some(self.server_of(owner)),
        }
    }

    /// The same for a listener found before.
    pub fn server_of(&self, owner: &Owner) -> ServerInfo<'_> {
        // A supervisor may open the socket and pass it on, so any holder that is a server decides; of several, the
        // master, then the first.
        let candidate = |key: &ProcKey| {
            let (kind, sure) = self.server_kind(key)?;
            let master = matches!(self.role(key).role, Role::NginxMaster | Role::PhpFpmMaster);
            Some(((kind == ServerKind::Other, !sure, !master), kind, sure, *key))
        };
        // Of equal ones min_by_key() gives the first.
        let best = owner.opener.iter().chain(&owner.holders).filter_map(candidate).min_by_key(|(rank, ..)| *rank);
        let process = best.map(|(.., key)| key).or(owner.opener).or(owner.holders.first().copied());
        let (kind, sure) = match best {
            Some((_, kind, sure, _)) if kind != ServerKind::Other => (kind, sure),
            // Its opener may be forgotten by now: a daemon's first process leaves at once.
            best => owner.server.or(best.map(|(_, kind, sure, _)| (kind, sure))).unwrap_or((ServerKind::Other, false)),
        };
        let container = self.container_of_cgroup(owner.cgroup, 0);
        let container = container.or_else(|| process.and_then(|key| self.container_of(&key)));
        ServerInfo { kind, sure, process, container }
    }

    /// What a process would serve, by its program; `None` when it is not remembered.
    fn server_kind(&self, key: &ProcKey) -> Option<(ServerKind, bool)> {
        let (kind, sure) = self.kind(self.processes.get(key)?);
        let kind = match kind {
            Kind::Nginx => ServerKind::Nginx,
            Kind::PhpFpm => ServerKind::PhpFpm,
            _ => ServerKind::Other,
        };
        Some((kind, sure))
    }

    /// Everything that was dropped to keep memory bounded: processes, cgroups, listeners. Never reset.
    pub fn evicted(&self) -> u64 {
        self.evicted + self.cgroups.evicted() + self.listeners.evicted() + self.unix_paths.evicted()
    }

    pub fn len(&self) -> usize {
        self.processes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    // ---- feeding

    fn touch(&mut self, task: &Task, known: Known, at: BootNs) {
        // The idle tasks, and records that could name only a pid.
        if task.tgid == 0 || task.start_ns == 0 {
            return;
        }
        let key = task.key();
        self.ensure(key, known, at);
        let Some(p) = self.processes.get_mut(&key) else { return };
        if p.exited.is_some() || at < p.touched {
            return;
        }
        p.touched = at;
        // Other threads may have names of their own; the leader's is the process's.
        let renamed = (task.pid == task.tgid || p.comm.is_empty()) && p.set_comm(&task.comm);
        p.uid = task.uid;
        if renamed {
            self.sort_in(key);
        }
        let Some(p) = self.processes.get_mut(&key) else { return };
        set(&mut p.ppid, task.ppid, true);
        set(&mut p.ns_pid, task.ns_pid, true);
        set(&mut p.pidns, task.pidns, true);
        set(&mut p.netns, task.netns, true);
        let pick = |old: u64, new: u64| if new != 0 && (!task.exiting() || old == 0) { new } else { old };
        let (v2, v1) = (pick(p.cgroup, task.cgroup), pick(p.cgroup_v1, task.cgroup_v1));
        self.move_to(key, v2, v1);
        self.find_parent(key);
    }

    fn forked(&mut self, parent: &Task, child: &Task, at: BootNs, event: EventId) {
        self.touch(parent, Known::Record, at);
        self.touch(child, Known::Fork, at);
        let (parent, child) = (parent.key(), child.key());
        let image = self.processes.get(&parent).and_then(|p| p.image.as_ref()).map(Image::inherited);
        let Some(p) = self.processes.get_mut(&child) else { return };
        (p.born, p.fork_event) = (Some(at), Some(event));
        if p.image.is_none() && p.execs.is_empty() {
            p.image = image;
            self.sort_in(child);
        }
        // `current` copied itself; with CLONE_PARENT (runc does) the real parent is another one.
        if self.processes.contains_key(&parent) {
            self.link(child, parent);
        }
    }

    fn execed(&mut self, exec: &Execed, at: BootNs, event: EventId) {
        self.touch(&exec.task, Known::Exec, at);
        let Some(p) = self.processes.get_mut(&exec.task.key()) else { return };
        if p.exited.is_some() {
            return;
        }
        p.add_exec(ExecRef { at, event });
        if p.fact_at.is_some_and(|f| f > at) && p.image.is_some() {
            return; // /proc was read after this exec and gave the resolved path
        }
        // A program that starts itself again (runc init, php-fpm's reload keeps its path) names no program.
        let path = match exec.path.as_str() {
            "/proc/self/exe" => p.exe().to_owned(),
            path => path.to_owned(),
        };
        let image = Image::new(&path, &exec.argv, ImageFrom::Exec);
        self.set_image(exec.task.key(), image);
    }

    fn exited(&mut self, key: ProcKey, exit: Exit) {
        let Some(p) = self.processes.get_mut(&key) else { return };
        // The event betters an exit that was only concluded.
        if p.exited.is_none_or(|e| e.event.is_none()) {
            p.exited = Some(exit);
            self.retention.died(key, exit.at);
        }
    }

    /// Of what a process has of its own.
    fn set_image(&mut self, key: ProcKey, image: Image) {
        let Some(p) = self.processes.get_mut(&key) else { return };
        self.retention.weigh(key, Process::LEAST + image.weight());
        p.image = Some(image);
        self.sort_in(key);
        self.make_room(Some(key));
    }

    /// Its name or its program is another one.
    fn sort_in(&mut self, key: ProcKey) {
        if self.processes.get(&key).is_some_and(|p| Kind::of(p).0 == Kind::PhpFpm) {
            self.php_fpms.insert(key);
        } else {
            self.php_fpms.remove(&key);
        }
    }

    /// `new`: it stays.
    fn make_room(&mut self, new: Option<ProcKey>) {
        while self.retention.weight() >= self.limits.processes {
            let Some(victim) = self.retention.victim(new) else { break };
            self.forget(victim);
            self.evicted += 1;
        }
    }

    fn ensure(&mut self, key: ProcKey, known: Known, at: BootNs) {
        if self.processes.contains_key(&key) {
            return;
        }
        self.make_room(None);
        let mut p = Process::new(key, known, at);
        // One pid at a time: whoever had it before is gone, though its exit was not seen.
        let same = |from: u64, to: u64| {
            let key = |start_ticks| ProcKey { tgid: key.tgid, start_ticks };
            key(from)..key(to)
        };
        let started = |k: &ProcKey| k.start_ticks.saturating_mul(TICK_NS);
        let before = self.processes.range(same(0, key.start_ticks)).next_back().map(|(k, _)| *k);
        let after = self.processes.range(same(key.start_ticks + 1, u64::MAX)).next().map(|(k, _)| *k);
        self.retention.add(key, (0, 0), at, Process::LEAST);
        if let Some(old) = before
            && self.processes.get(&old).is_some_and(Process::alive)
        {
            self.exited(old, Exit { at: started(&key), code: None, event: None });
        }
        if let Some(new) = after {
            p.exited = Some(Exit { at: started(&new), code: None, event: None });
            self.retention.died(key, started(&new));
        }
        self.processes.insert(key, p);
        let waiting: Vec<ProcKey> = self.orphans.get(&key.tgid).into_iter().flatten().copied().collect();
        for orphan in waiting {
            self.find_parent(orphan);
        }
    }

    fn move_to(&mut self, key: ProcKey, v2: u64, v1: u64) {
        let Some(p) = self.processes.get_mut(&key) else { return };
        let old = (p.cgroup, p.cgroup_v1);
        if old == (v2, v1) {
            return;
        }
        (p.cgroup, p.cgroup_v1) = (v2, v1);
        for (hierarchy, old, new) in [(Hierarchy::V2, old.0, v2), (Hierarchy::V1, old.1, v1)] {
            if old != new {
                self.cgroups.use_it(hierarchy, new);
                self.cgroups.leave(hierarchy, old, self.now);
            }
        }
        self.retention.regroup(key, self.group_of(v2, v1));
    }

    /// Links a process to its parent by ppid, or notes that it waits for it.
    fn find_parent(&mut self, key: ProcKey) {
        let Some(p) = self.processes.get(&key) else { return };
        let (ppid, waits_for) = (p.ppid, p.waits_for);
        if p.parent.is_some() || ppid == 0 {
            return;
        }
        let start = key.start_ticks.saturating_mul(TICK_NS);
        // A process is not its own parent, though in one tick both may have started.
        let parent = self.process_by_tgid_at(ppid, start).map(|p| p.key).filter(|p| *p != key);
        if let Some(parent) = parent {
            self.link(key, parent);
        } else if waits_for != Some(ppid) {
            self.stop_waiting(key);
            self.orphans.entry(ppid).or_default().insert(key);
            if let Some(p) = self.processes.get_mut(&key) {
                p.waits_for = Some(ppid);
            }
        }
    }

    fn stop_waiting(&mut self, key: ProcKey) {
        let Some(ppid) = self.processes.get_mut(&key).and_then(|p| p.waits_for.take()) else { return };
        if let Some(waiting) = self.orphans.get_mut(&ppid) {
            waiting.remove(&key);
            if waiting.is_empty() {
                self.orphans.remove(&ppid);
            }
        }
    }

    fn link(&mut self, child: ProcKey, parent: ProcKey) {
        self.stop_waiting(child);
        let Some(p) = self.processes.get_mut(&child) else { return };
        let old = p.parent.replace(parent);
        if old == Some(parent) {
            return;
        }
        if let Some(old) = old {
            self.unlink(child, old);
        }
        self.children.entry(parent).or_default().insert(child);
    }

    fn unlink(&mut self, child: ProcKey, parent: ProcKey) {
        if let Some(children) = self.children.get_mut(&parent) {
            children.remove(&child);
            if children.is_empty() {
                self.children.remove(&parent);
            }
        }
    }

    /// Gives an image that became known at `at` to the forks made before which have none.
    fn hand_down(&mut self, key: ProcKey, image: &Image, at: BootNs) {
        let mut todo = vec![key];
        while let Some(key) = todo.pop() {
            // A child made before the parent's last exec has the image from before it.
            let since = self.processes.get(&key).and_then(|p| p.execs.last()).map_or(0, |e| e.at);
            for child in self.children.get(&key).into_iter().flatten() {
                let Some(p) = self.processes.get_mut(child) else { continue };
                let forked = p.born.is_some_and(|b| (since..=at).contains(&b)) && p.execs.is_empty();
                if forked && p.image.is_none() {
                    p.image = Some(image.inherited());
                    todo.push(*child);
                }
            }
            self.sort_in(key);
        }
    }

    fn forget(&mut self, key: ProcKey) {
        self.retention.forget(key);
        self.php_fpms.remove(&key);
        self.stop_waiting(key);
        let kind = self.processes.get(&key).map(Kind::of);
        let Some(p) = self.processes.remove(&key) else { return };
        if let Some(parent) = p.parent {
            self.unlink(key, parent);
        }
        // A worker can outlive the memory of its master and is still a worker.
        for child in self.children.get(&key).into_iter().flatten() {
            if let Some(child) = self.processes.get_mut(child) {
                child.parent_kind = kind;
            }
        }
        self.cgroups.leave(Hierarchy::V2, p.cgroup, self.now);
        self.cgroups.leave(Hierarchy::V1, p.cgroup_v1, self.now);
    }
}

fn set(field: &mut u32, value: u32, newest: bool) {
    if value != 0 && (newest || *field == 0) {
        *field = value;
    }
}
