//! When a server is told to stop, and how it takes it.

use super::command::{Pid1, Server};
use super::setup::{Container, Hook, StopSignal};
use crate::model::incident::Missing;
use crate::model::place::Place;
use crate::sinks::names;

const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// A server's end. Times are seconds since the pod's deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub end: End,
    /// What decides it.
    pub at: Option<Place>,
    /// What was not known, so that it may come otherwise.
    pub missing: Vec<Missing>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Takes nothing new, finishes what it has.
    Graceful {
        at: u64,
    },
    /// Drops what it has.
    Fast {
        at: u64,
        signal: u32,
    },
    /// A graceful end that is cut short.
    Overridden {
        quit: u64,
        at: u64,
        signal: u32,
    },
    /// Nobody hears the signal: SIGKILL when the grace period is over.
    Deaf {
        sure: bool,
        why: String,
    },
    Killed {
        at: u64,
    },
    /// PID 1 goes, and the kernel kills the server with it.
    Left {
        at: u64,
        why: String,
    },
    /// Ends when PID 1, another server, has ended.
    Last,
    Unknown,
}

impl End {
    /// When it stops to accept connections.
    pub fn closes_at(&self) -> Option<u64> {
        match self {
            End::Graceful { at } | End::Fast { at, .. } | End::Killed { at } | End::Left { at, .. } => Some(*at),
            End::Overridden { quit, .. } => Some(*quit),
            End::Deaf { .. } | End::Last | End::Unknown => None,
        }
    }
}

/// `SIGTERM`
pub fn signal(number: u32) -> String {
    names::signal(number)
}

fn missing(fact: &str, effect: impl Into<String>) -> Missing {
    Missing { fact: fact.into(), effect: effect.into() }
}

/// How `server` in `container` ends.
pub fn of(container: &Container, server: Server) -> Plan {
    let mut plan = Plan { end: End::Unknown, at: None, missing: Vec::new() };
    let (before, told, after, waits) = match &container.hook {
        Hook::Unknown => {
            plan.missing.push(missing("pod-spec", "a preStop hook may do something before the stop signal"));
            (0, None, 0, false)
        }
        Hook::None => (0, None, 0, false),
        Hook::Does(effect) => {
            for command in &effect.value.unknown {
                let what = format!("what `{command}` in the preStop hook does is not known: taken for nothing");
                plan.missing.push(missing("prestop-effect", what));
            }
            let e = &effect.value;
            // A hook that tells PID 1 tells nobody when PID 1 does not listen, or is not this server.
            let pid1 = &container.pid1.value;
            let told = e.told.filter(|told| !told.pid1 || *pid1 == Pid1::Server(server));
            match told {
                Some(told) => (e.before, Some((told, effect.at.clone())), e.after, e.waits),
                None => (e.seconds(), None, 0, false),
            }
        }
    };
    let stop = stopped(container, server, before.saturating_add(after), &mut plan);
    plan.end = match told {
        None => stop,
        Some((told, at)) => match (kind(told.signal), stop) {
            (Kind::Graceful, _) if waits => {
                plan.at = at;
                End::Graceful { at: before }
            }
            (Kind::Graceful, End::Fast { at, signal }) => End::Overridden { quit: before, at, signal },
            (Kind::Graceful, _) => {
                plan.at = at;
                End::Graceful { at: before }
            }
            (Kind::Fast, _) => {
                plan.at = at;
                End::Fast { at: before, signal: told.signal }
            }
            (_, stop) => stop,
        },
    };
    plan
}

/// What the runtime's stop signal does, `at` seconds after the deletion.
fn stopped(container: &Container, server: Server, at: u64, plan: &mut Plan) -> End {
    match &container.pid1.value {
        Pid1::Server(first) if *first == server => {
            let Some(signal) = &container.stop_signal else {
                plan.missing.push(missing("stop-signal", "the image's STOPSIGNAL is not known"));
                return End::Unknown;
            };
            plan.at.clone_from(&signal.at);
            by_signal(signal.number, at, plan)
        }
        Pid1::Server(_) => {
            plan.at.clone_from(&container.pid1.at);
            End::Last
        }
        Pid1::Supervisor => {
            let program = container.supervisor.as_ref().and_then(|s| s.program(server));
            let Some(program) = program else {
                plan.missing.push(missing("supervisor-conf", "what supervisord sends is not known"));
                return End::Unknown;
            };
            plan.at = Some(program.stop_signal.at.clone().unwrap_or_else(|| program.at.clone()));
            by_signal(program.stop_signal.value, at, plan)
        }
        Pid1::Deaf { sure, why } => {
            plan.at.clone_from(&container.pid1.at);
            End::Deaf { sure: *sure, why: why.clone() }
        }
        Pid1::Leaves { why } => {
            plan.at.clone_from(&container.pid1.at);
            End::Left { at, why: why.clone() }
        }
        Pid1::Unknown { why } => {
            plan.missing.push(missing("pid1", why.clone()));
            plan.at.clone_from(&container.pid1.at);
            End::Unknown
        }
    }
}

enum Kind {
    Graceful,
    Fast,
    Kill,
    Other,
}

/// nginx and php-fpm take these signals alike.
fn kind(signal: u32) -> Kind {
    match signal {
        SIGQUIT => Kind::Graceful,
        SIGTERM | SIGINT => Kind::Fast,
        SIGKILL => Kind::Kill,
        _ => Kind::Other,
    }
}

fn by_signal(number: u32, at: u64, plan: &mut Plan) -> End {
    match kind(number) {
        Kind::Graceful => End::Graceful { at },
        Kind::Fast => End::Fast { at, signal: number },
        Kind::Kill => End::Killed { at },
        Kind::Other => {
            plan.missing.push(missing("stop-signal", format!("what {} does is not known", signal(number))));
            End::Unknown
        }
    }
}

/// The stop signal of a container as it is said: `SIGTERM, the default`.
pub fn said(stop: &StopSignal) -> String {
    if stop.declared { signal(stop.number) } else { format!("{}, the default", signal(stop.number)) }
}
