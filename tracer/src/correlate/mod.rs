//! The pure core: one sequence of inputs in, final verdicts out. No clock, no I/O, no hash order; a replay says the same
//! to the byte.

pub mod answer;
mod connect;
pub mod detect;
pub mod ends;
pub mod history;
pub mod kept;
pub mod lost;
pub mod nginx;
pub mod pods;
mod recent;
pub mod sources;
pub mod stops;
mod unix;

use crate::explain::{self, View};
use crate::identity::Role;
use crate::identity::{Limits, Place, Table};
use crate::model::event::{BootNs, Event, EventKind, Side, TcpState, tcp};
use crate::model::input::Started;
use crate::model::time::WallClock;
use crate::model::{Input, Output};
use answer::Closer;
use ends::Ends;
use history::{History, LossWindow, Upstream};
use lost::{Evidence, Lost};
use nginx::{Nginx, Upshot};
use pods::Pods;
use sources::Sources;
use std::collections::{BTreeMap, VecDeque};
use stops::Stops;

/// How long a loss waits for facts that come after it: exits and signals come before, but the requester's side and loss
/// counters (read four times a second) may come later.
pub const WINDOW_NS: u64 = 700_000_000;
/// The same where the Kubernetes API is about to tell why the pod ended.
pub const API_WINDOW_NS: u64 = 5_000_000_000;
/// Losses that may wait at once; beyond it the oldest of the network namespace with the most is decided early.
const MAX_PENDING: usize = 8_192;

#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// Also give what is recognised as not the server's doing.
    pub include_not_the_server: bool,
}

/// What was decided so far, for the closing summary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub incidents: u64,
    /// Recognised as not the server's doing; given only when asked for.
    pub not_the_server: u64,
    /// Closes of servers that are neither nginx nor php-fpm, which no rule knows.
    pub other_servers: u64,
    /// Attempts of nginx that failed, and that it repeated elsewhere: their requests are not lost.
    pub passed_on: u64,
    /// Facts dropped to keep memory bounded.
    pub evicted: u64,
}

/// Everything that is known at this point of the sequence.
struct World {
    table: Table,
    history: History,
    ends: Ends,
    clock: WallClock,
    started: Option<Started>,
    ready: Option<BootNs>,
    stops: Stops,
    sources: Sources,
    pods: Pods,
    nginx: Nginx,
}

impl World {
    fn view(&self) -> View<'_> {
        View {
            table: &self.table,
            history: &self.history,
            ends: &self.ends,
            stops: &self.stops,
            sources: &self.sources,
            pods: &self.pods,
            nginx: &self.nginx,
            started: self.started.as_ref(),
            ready: self.ready,
            clock: &self.clock,
        }
    }
}

/// See the module.
pub struct Engine {
    options: EngineOptions,
    world: World,
    hz: Option<u32>,
    pending: VecDeque<Lost>,
    /// How many of them are of each network namespace.
    crowds: BTreeMap<u32, usize>,
    /// By pod: what the API is about to tell of it may name the trigger.
    waiting: BTreeMap<String, VecDeque<Lost>>,
    unix: unix::Unix,
    kept: kept::Kept,
    tally: Tally,
}

impl Engine {
    pub fn new(options: EngineOptions) -> Self {
        Engine {
            options,
            world: World {
                table: Table::new(Limits::default()),
                history: History::default(),
                ends: Ends::default(),
                clock: WallClock::default(),
                started: None,
                ready: None,
                stops: Stops::default(),
                sources: Sources::default(),
                pods: Pods::default(),
                nginx: Nginx::default(),
            },
            hz: None,
            pending: VecDeque::new(),
            crowds: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unix: unix::Unix::default(),
            kept: kept::Kept::default(),
            tally: Tally::default(),
        }
    }

    /// Takes the next input; gives what became final by it.
    pub fn feed(&mut self, input: &Input) -> Vec<Output> {
        let mut out = Vec::new();
        // What is due is decided before time moves on: after a suspend one tick may carry it past the life of names.
        match input {
            Input::Tick { at } => self.advance(*at, &mut out),
            Input::Stopped { at } => self.finish(*at, &mut out),
            _ => {}
        }
        self.world.table.observe(input);
        match input {
            Input::Started(started) => self.world.started = Some(started.clone()),
            Input::Ready { at } => self.world.ready = Some(*at),
            Input::Event(event) => self.event(event, &mut out),
            Input::Clock { at, wall_ns } => self.world.clock.sample(*at, *wall_ns),
            Input::Loss(l) => self.world.history.loss(LossWindow {
                of: None,
                from: l.from,
                to: l.to,
                hook: l.hook.clone(),
                kind: l.kind,
                count: l.count,
            }),
            Input::StopCounters(counters) => self.world.stops.counters(counters),
            Input::Memory(fact) => self.world.history.memory(fact),
            Input::Spec(spec) if spec.pod_uid.is_some() => self.world.pods.spec(spec),
            Input::Spec(spec) => self.world.history.spec(spec),
            Input::Source(fact) => self.world.sources.observe(fact),
            Input::Kube(fact) => self.world.pods.observe(fact, &self.world.clock),
            Input::Carries(fact) => self.world.history.carries(fact),
            Input::Tick { .. }
            | Input::Stopped { .. }
            | Input::Process(_)
            | Input::Listener(_)
            | Input::UnixListener(_)
            | Input::Cgroup(_)
            | Input::Container(_)
            | Input::NginxProbes(_) => {}
        }
        out
    }

    pub fn tally(&self) -> Tally {
        let World { history, ends, table, stops, pods, .. } = &self.world;
        let evicted = history.evicted() + ends.evicted() + table.evicted() + stops.dropped() + pods.evicted();
        Tally { evicted, ..self.tally }
    }

    fn event(&mut self, event: &Event, out: &mut Vec<Output>) {
        let at = event.at;
        if let EventKind::Execed(e) = &event.kind
            && let Place::Container(c) = self.world.table.place(&e.task)
            && let Some(pod) = &c.container.pod_uid
            // All pods with hostNetwork share the host's: it is never passed on.
            && self.world.started.as_ref().is_none_or(|s| s.host_netns != e.task.netns)
        {
            self.world.history.in_netns(at, e.task.netns, pod);
        }
        match &event.kind {
            EventKind::SignalGenerated(s) => {
                self.world.history.signal(event.id, at, self.world.table.group(&s.target), s)
            }
            EventKind::Exited { task, code } => {
                self.world.history.exit(event.id, at, self.world.table.group(task), task, *code)
            }
            EventKind::ResetSent(r) => {
                let group = self.world.table.socket_group(r.sk_cgroup, r.tuple.netns);
                self.world.history.reset_sent(event.id, at, group, r);
            }
            EventKind::SynRetransmitted(n) => {
                let group = self.world.table.socket_group(n.sk_cgroup, n.tuple.netns);
                self.world.history.syn_again(event.id, at, group, &n.tuple);
            }
            EventKind::OomVictim { task } => self.world.history.oom_victim(event.id, at, task),
            EventKind::TcpState(s) => {
                let group = self.world.table.socket_group(s.sk_cgroup, s.tuple.netns);
                self.hz = self.hz.or_else(|| answer::hz(at, s.jiffies));
                if s.oldstate == tcp::LISTEN && s.newstate == tcp::CLOSE {
                    self.world.history.listener_closed(event.id, at, group, &s.task);
                }
                if connect::queue_full(s) {
                    self.world.history.queue_filled(event.id, at, group, s);
                }
                if s.side == Side::Client {
                    self.world.ends.closed(event.id, at, group, s);
                    if s.oldstate == tcp::ESTABLISHED {
                        self.upstream(event, s);
                    }
                }
            }
            EventKind::ResetReceived(n) => {
                let group = self.world.table.socket_group(n.sk_cgroup, n.tuple.netns);
                self.world.ends.reset(event.id, at, group, n);
            }
            _ => {}
        }
        self.world.stops.observe(event, &self.world.table, &self.world.history);
        let of_nginx = self.world.nginx.observe(event);
        let World { table, history, started, nginx, .. } = &mut self.world;
        let host_netns = started.as_ref().map_or(0, |s| s.host_netns);
        let of_nginx = of_nginx.or_else(|| self.kept.observe(event, nginx, table, history, host_netns));
        let lost = match &event.kind {
            EventKind::UnixDropped(d) => self.unix.dropped(event, d, table, history, &mut self.pending),
            EventKind::UnixRefused(r) => self.unix.refused(event, r, table, host_netns),
            _ => detect::detect(event, table, history, self.hz),
        };
        let Some(lost) = lost.or(of_nginx) else { return };
        if let (Evidence::Close { closer: Closer::PeerFin | Closer::PeerReset, .. }, Some(server)) =
            (&lost.evidence, &lost.server)
        {
            self.world.history.client_left(
                lost.event,
                at,
                self.world.table.socket_group(lost.sk_cgroup, lost.netns()),
                server.key,
            );
        }
        if let (Evidence::Close { closer: Closer::Local, .. }, Some(server)) = (&lost.evidence, &lost.server)
            && server.exiting
        {
            self.world.ends.lost_by_exit(at, self.world.table.socket_group(lost.sk_cgroup, lost.netns()), server.key);
        }
        let server = explain::server::of(&lost, &self.world.view());
        self.world.stops.lost(server.master, &lost);
        if server.kind == explain::server::Kind::PhpFpm {
            self.world.nginx.attempt(&lost);
        }
        // What a later record shows of an earlier loss takes its place in the order of the losses.
        let place = self.pending.iter().rposition(|l| l.at <= lost.at).map_or(0, |i| i + 1);
        *self.crowds.entry(lost.netns()).or_default() += 1;
        self.pending.insert(place, lost);
        if self.pending.len() > MAX_PENDING
            && let Some(lost) = self.one_of_the_most()
        {
            self.decide(&lost, at, out);
        }
    }

    fn one_of_the_most(&mut self) -> Option<Lost> {
        let (netns, _) = self.crowds.iter().max_by_key(|(_, n)| **n)?;
        let oldest = self.pending.iter().position(|lost| lost.netns() == *netns)?;
        self.take(oldest)
    }

    fn take(&mut self, which: usize) -> Option<Lost> {
        let lost = self.pending.remove(which)?;
        if let Some(crowd) = self.crowds.get_mut(&lost.netns()) {
            *crowd -= 1;
            if *crowd == 0 {
                self.crowds.remove(&lost.netns());
            }
        }
        Some(lost)
    }

    /// An nginx closed its end of a connection to a server of the same network namespace.
    fn upstream(&mut self, event: &Event, s: &TcpState) {
        let World { table, history, .. } = &mut self.world;
        let key = s.task.key();
        let master = match table.role(&key).role {
            Role::NginxMaster => Some(key),
            Role::NginxWorker => table.parent(&key).map(|p| p.key),
            _ => None,
        };
        let t = &s.tuple;
        let listens = table.server_at(t.netns, t.remote_ip, t.remote_port, event.at).is_some();
        if let Some(master) = master.filter(|_| listens) {
            history.upstream(
                table.group(&s.task),
                master,
                Upstream { event: event.id, at: event.at, tuple: s.tuple, task: s.task.clone() },
            );
        }
    }

    fn advance(&mut self, at: BootNs, out: &mut Vec<Output>) {
        while self.pending.front().is_some_and(|l| l.at + WINDOW_NS <= at) {
            if let Some(lost) = self.take(0) {
                self.decide_or_wait(lost, out);
            }
        }
        self.decide_waiting(at, false, out);
        let wait = if self.world.pods.live() { API_WINDOW_NS } else { WINDOW_NS };
        let due = self.world.stops.due(at, wait);
        self.tell(&due, at, out);
    }

    /// Its own window is over; the API may have more to say of its pod.
    fn decide_or_wait(&mut self, lost: Lost, out: &mut Vec<Output>) {
        let view = self.world.view();
        let server = explain::server::of(&lost, &view);
        let stopped = !server.stop_signals(&view, lost.at).is_empty();
        let container = explain::container(&lost, &server, &view).filter(|_| stopped);
        let pod = container.and_then(|c| self.world.pods.expects_more(&c.container, lost.at));
        match pod.filter(|_| self.waiting.values().map(VecDeque::len).sum::<usize>() < MAX_PENDING) {
            Some(uid) => self.waiting.entry(uid.to_owned()).or_default().push_back(lost),
            None => {
                let due = lost.at + WINDOW_NS;
                self.decide(&lost, due, out);
            }
        }
    }

    /// Those whose pod's end has been told of meanwhile, and those that have waited long enough; at the `last`, all.
    fn decide_waiting(&mut self, at: BootNs, last: bool, out: &mut Vec<Output>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|uid, losses| {
            while let Some(lost) = losses.front() {
                let told = self.world.pods.told(uid, lost.at);
                let due = told.map_or(BootNs::MAX, |t| t.max(lost.at + WINDOW_NS)).min(lost.at + API_WINDOW_NS);
                if due > at && !last {
                    break;
                }
                self.decide(lost, due.min(at), out);
                losses.pop_front();
            }
            !losses.is_empty()
        });
        self.waiting = waiting;
    }

    fn finish(&mut self, at: BootNs, out: &mut Vec<Output>) {
        self.decide_waiting(at, true, out);
        while let Some(lost) = self.take(0) {
            let due = at.min(lost.at + WINDOW_NS);
            self.decide(&lost, due, out);
        }
        let rest = self.world.stops.rest();
        self.tell(&rest, at, out);
    }

    fn tell(&self, stops: &[stops::Open], at: BootNs, out: &mut Vec<Output>) {
        let view = self.world.view();
        out.extend(stops.iter().map(|open| Output::Stop(Box::new(stops::tell(open, at, &view)))));
    }

    fn decide(&mut self, lost: &Lost, decided_at: BootNs, out: &mut Vec<Output>) {
        let view = self.world.view();
        // Without the protocol of a server no close of it can be read: only nginx and php-fpm are judged.
        let server = explain::server::of(lost, &view);
        if server.kind == explain::server::Kind::Other {
            self.tally.other_servers += 1;
            return;
        }
        let stop = self.world.stops.of(server.master, lost.at);
        let incident = explain::explain(lost, &view, decided_at, stop.as_deref());
        if server.kind == explain::server::Kind::PhpFpm || lost.no_connect() {
            let upshot = explain::upshot(lost, &view);
            let passed_on = matches!(upshot, Upshot::PassedOn { .. });
            if let Some(nginx) = upshot.nginx().or_else(|| lost.said_by()).map(|task| task.ppid) {
                self.world.nginx.decided(nginx, lost, incident.cause, incident.sub_cause.as_deref());
            }
            if passed_on {
                self.tally.passed_on += 1;
                return;
            }
        }
        if incident.cause.not_the_server() {
            self.tally.not_the_server += 1;
            if !self.options.include_not_the_server {
                return;
            }
        } else {
            self.tally.incidents += 1;
            self.world.stops.decided(server.master, &incident);
        }
        out.push(Output::Incident(Box::new(incident)));
    }
}

#[cfg(test)]
mod tests;
