//! Stops: one termination of an nginx or a php-fpm, from its first stop signal to its exit.

use super::history::sig;
use super::lost::Lost;
use crate::explain::View;
use crate::explain::chain::{self, Sender};
use crate::explain::server::Server;
use crate::identity::{Place, Role, Table};
use crate::model::event::{BootNs, Event, EventId, EventKind, ProcKey, SI_KERNEL, tcp};
use crate::model::incident::{Cause, Missing, Phase, SCHEMA, Stop, Trigger};
use crate::model::{Output, Task};
use std::collections::BTreeMap;

/// A stop is told this long after the master's exit, so that the incidents of its end are counted.
const LINGER_NS: u64 = 2_000_000_000;
/// Stops kept to be named by later incidents.
const MAX_STOPS: usize = 4096;
/// Phases kept of one stop: a container that floods its own master with signals gets no more.
const MAX_PHASES: usize = 64;

struct Open {
    id: String,
    master: ProcKey,
    task: Task,
    role: Role,
    since: BootNs,
    trigger: Option<(EventId, Sender)>,
    signal: u32,
    phases: Vec<(&'static str, BootNs, EventId, String)>,
    exited: Option<BootNs>,
    by_cause: BTreeMap<Cause, u64>,
    /// Phases left out.
    cut: u64,
    told: bool,
}

impl Open {
    fn phase(&mut self, name: &'static str, event: &Event, text: String) {
        if self.phases.len() >= MAX_PHASES && name != "exit" {
            self.cut += 1;
            return;
        }
        self.phases.push((name, event.at, event.id, text));
    }
}

#[derive(Default)]
pub struct Stops {
    stops: Vec<Open>,
}

impl Stops {
    pub fn observe(&mut self, event: &Event, table: &Table) {
        match &event.kind {
            EventKind::SignalGenerated(s) if sig::stops(s.signal) && s.result != 1 => {
                let key = s.target.key();
                let role = table.role(&key).role;
                if !matches!(role, Role::NginxMaster | Role::PhpFpmMaster) || s.sender.tgid == s.target.tgid {
                    return;
                }
                let text = if s.code == SI_KERNEL {
                    format!("{} from the kernel", sig::name(s.signal))
                } else {
                    format!("{} from {} {}", sig::name(s.signal), s.sender.comm, s.sender.tgid)
                };
                if let Some(open) = self.open(&key) {
                    let name = if s.signal == sig::KILL { "kill" } else { "second-signal" };
                    open.phase(name, event, text);
                    return;
                }
                if self.stops.len() >= MAX_STOPS {
                    self.stops.remove(0);
                }
                self.stops.push(Open {
                    id: format!("s-{:016x}", crate::explain::stop_id(&s.target, event.at)),
                    master: key,
                    task: s.target.clone(),
                    role,
                    since: event.at,
                    trigger: Some((event.id, Sender::Unknown)),
                    signal: s.signal,
                    phases: vec![("stop-signal", event.at, event.id, text)],
                    exited: None,
                    by_cause: BTreeMap::new(),
                    cut: 0,
                    told: false,
                });
            }
            EventKind::TcpState(s) if s.oldstate == tcp::LISTEN && s.newstate == tcp::CLOSE => {
                let key = s.task.key();
                let master = table.parent(&key).map(|p| p.key);
                let port = s.tuple.local_port;
                let text = format!("port {port} closed by {} {}", s.task.comm, s.task.tgid);
                if let Some(open) =
                    self.stops.iter_mut().rev().find(|o| !o.told && (o.master == key || Some(o.master) == master))
                {
                    open.phase("listener-closed", event, text);
                }
            }
            EventKind::Exited { task, code } => {
                let key = task.key();
                let text = match code & 0x7f {
                    0 => format!("{} {} exited with status {}", task.comm, task.tgid, code >> 8 & 0xff),
                    s => format!("{} {} was killed by {}", task.comm, task.tgid, sig::name(s)),
                };
                if let Some(open) = self.open(&key) {
                    open.exited = Some(event.at);
                    open.phase("exit", event, text);
                    return;
                }
                let master = table.parent(&key).map(|p| p.key);
                if let Some(open) = master.and_then(|m| self.open(&m)) {
                    open.phases.retain(|p| p.0 != "last-worker-exit");
                    open.phase("last-worker-exit", event, text);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, master: &ProcKey) -> Option<&mut Open> {
        self.stops.iter_mut().rev().find(|o| o.master == *master && !o.told)
    }

    /// The stop that a loss belongs to: of the same master, begun before it.
    pub fn of(&self, server: &Server, lost: &Lost, view: &View) -> Option<String> {
        let _ = view;
        let master = server.master?;
        self.stops.iter().rev().find(|o| o.master == master && o.since <= lost.at).map(|o| o.id.clone())
    }

    pub fn count(&mut self, stop: Option<&str>, cause: Cause) {
        if let Some(open) = stop.and_then(|id| self.stops.iter_mut().find(|o| o.id == id)) {
            *open.by_cause.entry(cause).or_default() += 1;
        }
    }

    pub fn advance(&mut self, at: BootNs, view: &View, out: &mut Vec<Output>) {
        for open in &mut self.stops {
            if !open.told && open.exited.is_some_and(|t| t + LINGER_NS <= at) {
                open.told = true;
                out.push(Output::Stop(Box::new(tell(open, at, view))));
            }
        }
    }

    pub fn finish(&mut self, at: BootNs, view: &View, out: &mut Vec<Output>) {
        for open in self.stops.iter_mut().filter(|o| !o.told) {
            open.told = true;
            out.push(Output::Stop(Box::new(tell(open, at, view))));
        }
    }
}

fn tell(open: &Open, at: BootNs, view: &View) -> Stop {
    let place = match view.table.place(&open.task) {
        Place::Container(c) => Some(c),
        _ => None,
    };
    let time = |t: BootNs| view.clock.rfc3339(t).unwrap_or_else(|| format!("boot+{t}ns"));
    let trigger = view
        .history
        .signals_to(&open.master)
        .iter()
        .find(|s| Some(s.event) == open.trigger.map(|(e, _)| e))
        .map_or(Trigger::Unknown, |s| chain::trigger(s, view));
    let mut missing = Vec::new();
    if open.exited.is_none() {
        missing.push(Missing { fact: "exit".into(), effect: "the observation ended before the server did".into() });
    }
    let (node, boot_id) = view.started.map_or((String::new(), String::new()), |s| (s.node.clone(), s.boot_id.clone()));
    Stop {
        kind: "stop".into(),
        schema: SCHEMA,
        id: open.id.clone(),
        node,
        boot_id,
        at: time(open.since),
        ended_at: time(open.exited.unwrap_or(at)),
        trigger,
        pod: place.and_then(crate::explain::pod_of),
        container: place.map(crate::explain::container_of),
        server: match open.role {
            Role::NginxMaster => "nginx".into(),
            _ => "php-fpm".into(),
        },
        signal: Some(sig::name(open.signal)),
        phases: open
            .phases
            .iter()
            .map(|(name, t, event, text)| Phase {
                name: (*name).into(),
                at: time(*t),
                after_ms: t.saturating_sub(open.since) / 1_000_000,
                event: Some(event.to_string()),
                text: text.clone(),
            })
            .collect(),
        incidents: open.by_cause.values().sum(),
        by_cause: open.by_cause.iter().map(|(c, n)| (c.id().to_string(), *n)).collect(),
        missing,
    }
}
