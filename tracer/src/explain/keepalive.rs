//! The race on a kept connection: the server closes it while the next request is already on its way.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::answer::{Clause, Closer};
use crate::correlate::history::sig;
use crate::correlate::lost::{Evidence, Lost};
use crate::model::event::BootNs;
use crate::model::incident::{Cause, Trigger};

/// A signal is taken, and all idle connections closed, within an event loop's turn; a busy worker's turn may take a while.
const IDLE_CLOSE_NS: u64 = 1_000_000_000;
/// A close_notify alert has up to 69 bytes, whatever port it comes to.
const LONGEST_ALERT: u32 = 69;

fn short(lost: &Lost) -> bool {
    matches!(&lost.evidence, Evidence::LateData { reset, .. } if reset.in_len <= LONGEST_ALERT)
}

/// When the server closed, if this loss has the form of the race: data after the close, or unread at a close by a worker
/// that lives on.
fn closed_at(lost: &Lost, server: &Server) -> Option<BootNs> {
    if server.kind != Kind::Nginx {
        return None;
    }
    match &lost.evidence {
        Evidence::LateData { closed_at, .. } => Some(closed_at.unwrap_or(lost.at)),
        Evidence::Close { closer: Closer::Local, clause: Clause::Unread, .. } if !server.exiting => Some(lost.at),
        _ => None,
    }
}

/// The close was part of a shutdown: nginx closes all idle connections on QUIT, and every connection on TERM.
pub fn on_shutdown(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let closed_at = closed_at(lost, server)?;
    let signal = server.asked_to_stop(view, closed_at)?;
    // Cut by the fast shutdown before its first request: nothing was kept, nothing raced.
    if lost.first_request() && server.exiting && signal.what.signal != sig::QUIT {
        return None;
    }
    let since = closed_at.saturating_sub(signal.at);
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let mut confidence = Confidence::of(0.97);
    if server.exiting {
        match server.exit(view).filter(|e| e.at <= closed_at) {
            // It did not end because it was asked to.
            Some(exit) if exit.code != 0 => return None,
            Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
            None => confidence.cap(0.8, "the exit of the process was not seen"),
        }
    } else if since > IDLE_CLOSE_NS {
        // Idle connections are closed when the signal is taken; later closes have reasons of their own.
        if matches!(lost.evidence, Evidence::Close { .. }) {
            return None;
        }
        confidence.cap(0.6, format!("the connection was closed {} ms after the signal", since / 1_000_000));
    }
    if short(lost) {
        confidence.cap(0.6, "so few bytes can also be a TLS alert that answers the close");
    }
    chain.signal(signal, "shutdown-closes-idle-connections", view);
    if let Evidence::LateData { closed_at: None, .. } = &lost.evidence {
        confidence.cap(0.6, "when the server closed the connection is not known");
    }
    Some(Finding {
        cause: Cause::KeepaliveRaceOnShutdown,
        sub_cause: None,
        trigger: chain::trigger(signal, view),
        summary: format!(
            "nginx closed this idle connection because of {}; the next request was already on its way",
            sig::name(signal.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// No stop signal: keepalive_timeout or keepalive_requests. That nothing else happened cannot be proven by events, so this
/// is never certain.
pub fn idle(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let closed_at = closed_at(lost, server)?;
    let told = !server.stop_signals(view, closed_at).is_empty() || server.draining(view);
    if server.exiting || told || lost.bytes_sent == 0 {
        return None;
    }
    let reload = server.told_to_end(view, closed_at);
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let mut confidence = Confidence::of(0.9);
    confidence.because("that no stop signal preceded it is known only from not having seen one");
    if reload {
        confidence.cap(0.5, "the worker was of before a reload, which closes idle connections too");
    }
    if short(lost) {
        confidence.cap(0.6, "so few bytes can also be a TLS alert that answers the close");
    }
    if matches!(lost.evidence, Evidence::Close { .. }) {
        confidence.cap(0.5, "unread bytes at a close can also be the rest of an upload that was answered early");
    }
    Some(Finding {
        cause: Cause::KeepaliveRace,
        sub_cause: None,
        trigger: if reload { Trigger::ConfigReload } else { Trigger::IdleTimeout },
        summary: "nginx closed this connection as idle; the next request was already on its way".into(),
        chain,
        confidence,
        missing: Vec::new(),
    })
}
