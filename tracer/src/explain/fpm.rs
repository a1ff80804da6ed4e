//! php-fpm ended, or stopped listening, because of a signal to its master.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::gone::{self, Gone};
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{Signal, sig};
use crate::correlate::lost::{Evidence, Lost};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Trigger};

/// With process_control_timeout = 0 the master sends QUIT and then TERM to each child within a few ms
/// (fpm_pctl_action_next() with a zero timeout event); with N it waits N seconds in between.
const AT_ONCE_NS: u64 = 200_000_000;

/// QUIT to the master, QUIT and TERM from it to the child at once, the child dies of TERM in the middle of a request.
pub fn control_timeout_zero(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if !lost.cut_in_flight() || server.kind != Kind::PhpFpm || server.is_master || !server.exiting {
        return None;
    }
    let (child, master) = (server.process?, server.master?);
    let from_master = |s: &&Signal| s.at <= lost.at && s.what.sender.key() == master && s.effective();
    let to_child = view.history.signals_to(&child);
    let term = to_child.iter().filter(from_master).find(|s| s.what.signal == sig::TERM)?;
    let quit = to_child.iter().filter(from_master).find(|s| s.what.signal == sig::QUIT && s.at <= term.at)?;
    if term.at - quit.at > AT_ONCE_NS {
        return None;
    }
    // A graceful end and a reload (USR2, which re-executes the master) go the same way.
    let to_master =
        view.history.signals_to(&master).iter().rev().find(|s| {
            s.at <= quit.at && matches!(s.what.signal, sig::QUIT | sig::USR2) && s.effective() && !s.to_itself()
        });

    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.99);
    chain.loss(lost, server, view);
    match server.exit(view).filter(|e| e.at <= lost.at) {
        Some(exit) if exit.code & 0x7f != sig::TERM => return None,
        Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        None => confidence.cap(0.8, "the exit of the child was not seen"),
    }
    // request_terminate_timeout also sends TERM, to one child; a stop sends it to all that were told to quit.
    let told = |key: &ProcKey, wanted: u32| {
        let near = |s: &&Signal| s.at.abs_diff(quit.at) <= AT_ONCE_NS && s.what.sender.key() == master;
        view.history.signals_to(key).iter().filter(near).any(|s| s.what.signal == wanted)
    };
    let others: Vec<_> =
        view.table.children(&master).map(|c| c.key).filter(|k| *k != child && told(k, sig::QUIT)).collect();
    if others.is_empty() {
        confidence.cap(0.9, "no other child was told to stop, which would show that the master meant all of them");
    } else if !others.iter().any(|k| told(k, sig::TERM)) {
        return None;
    }
    chain.signal(term, "killed-by-this-signal", view);
    chain.signal(quit, "quit-and-term-at-once", view);
    match to_master {
        Some(signal) => chain.signal(signal, "master-stops-its-children", view),
        None => confidence.cap(0.8, "the signal that stopped the master was not seen"),
    }
    Some(Finding {
        cause: Cause::FpmControlTimeoutZero,
        sub_cause: None,
        trigger: match to_master {
            Some(s) if s.what.signal == sig::USR2 => Trigger::ConfigReload,
            Some(s) => chain::trigger(s, view),
            None => Trigger::Unknown,
        },
        summary: format!(
            "php-fpm was told to stop gracefully, but with process_control_timeout = 0 its master killed the child {:.1} ms later, in the middle of this request",
            (term.at - quit.at) as f64 / 1e6
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// QUIT to the master and from it to its children; whoever is still busy when process_control_timeout is over gets TERM
/// (fpm_pctl_action_next()), and this child dies of it in the middle of a request.
pub fn control_timeout_over(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if !lost.cut_in_flight() || server.kind != Kind::PhpFpm || server.is_master || !server.exiting {
        return None;
    }
    let (child, master) = (server.process?, server.master?);
    let from_master = |key: &ProcKey, wanted: u32| {
        let mut sent = view.history.signals_to(key).iter().filter(|s| s.what.sender.key() == master && s.effective());
        sent.find(|s| s.what.signal == wanted)
    };
    let (quit, term) = (from_master(&child, sig::QUIT)?, from_master(&child, sig::TERM).filter(|s| s.at <= lost.at)?);
    let waited = term.at.checked_sub(quit.at).filter(|waited| *waited > AT_ONCE_NS)?;
    let to_master = view.history.signals_to(&master).iter().rev().find(|s| {
        let asked = matches!(s.what.signal, sig::QUIT | sig::USR2) && s.effective() && !s.to_itself();
        asked && s.at <= quit.at && quit.at - s.at <= AT_ONCE_NS
    })?;
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.97);
    chain.loss(lost, server, view);
    match server.exit(view).filter(|e| e.at <= lost.at) {
        Some(exit) if !matches!(exit.code & 0x7f, sig::TERM | sig::KILL) => return None,
        Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        None => confidence.cap(0.8, "the exit of the child was not seen"),
    }
    // request_terminate_timeout also ends a child with TERM, at its own time; this one ends all that are left.
    let near = |at: BootNs| at.abs_diff(term.at) <= AT_ONCE_NS;
    let left = |key: &ProcKey| {
        let ended = view.history.exit_of(key).is_some_and(|e| e.at < term.at && !near(e.at));
        *key != child && !ended && from_master(key, sig::QUIT).is_some()
    };
    let others: Vec<ProcKey> = view.table.children(&master).map(|c| c.key).filter(left).collect();
    // The first to go is gone before the others are told.
    let told = |key: &ProcKey| from_master(key, sig::TERM).is_some_and(|s| near(s.at));
    if others.is_empty() {
        confidence.cap(0.65, "no other child was left, so that request_terminate_timeout may have ended this one");
    } else if !others.iter().any(told) {
        return None;
    }
    chain.signal(term, "killed-by-this-signal", view);
    chain.signal(quit, "quit-and-then-term", view);
    chain.signal(to_master, "master-stops-its-children", view);
    Some(Finding {
        cause: Cause::GracePeriodExceeded,
        sub_cause: Some("process-control-timeout"),
        trigger: match to_master.what.signal {
            sig::USR2 => Trigger::ConfigReload,
            _ => chain::trigger(to_master, view),
        },
        summary: format!(
            "php-fpm was still busy with this request {:.1} s after it was told to stop, when its process_control_timeout was over and its master ended the child",
            waited as f64 / 1e9
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// TERM to the master: it sends TERM to every child at once, whatever process_control_timeout says, and KILL soon after.
pub fn fast_shutdown(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if !lost.cut_in_flight() || server.kind != Kind::PhpFpm || server.is_master || !server.exiting {
        return None;
    }
    let (child, master) = (server.process?, server.master?);
    let from_master = |s: &&Signal| s.at <= lost.at && s.what.sender.key() == master && s.effective();
    let to_child = view.history.signals_to(&child);
    // With a QUIT before it, it is the end of a graceful stop.
    if to_child.iter().filter(from_master).any(|s| s.what.signal == sig::QUIT) {
        return None;
    }
    let term = to_child.iter().filter(from_master).find(|s| s.what.signal == sig::TERM);
    let term = term.or_else(|| with_its_master(to_child, &master, lost.at, view))?;
    let to_master = view.history.signals_to(&master).iter().rev().find(|s| {
        let asked = matches!(s.what.signal, sig::TERM | sig::INT) && s.effective() && !s.by_kernel();
        asked && s.at.abs_diff(term.at) <= AT_ONCE_NS && !s.to_itself()
    })?;
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.99);
    chain.loss(lost, server, view);
    match server.exit(view).filter(|e| e.at <= lost.at) {
        Some(exit) if !matches!(exit.code & 0x7f, sig::TERM | sig::KILL) => return None,
        Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        None => confidence.cap(0.8, "the exit of the child was not seen"),
    }
    chain.signal(term, "killed-by-this-signal", view);
    chain.signal(to_master, "master-ends-its-children", view);
    Some(Finding {
        cause: Cause::FpmFastShutdown,
        sub_cause: None,
        trigger: chain::trigger(to_master, view),
        summary: format!(
            "php-fpm was stopped with {}, its fast shutdown: the child was ended in the middle of this request",
            sig::name(to_master.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// dumb-init and killasgroup send a signal to the whole process group: the child dies of it before the master can tell it.
fn with_its_master<'v>(to_child: &'v [Signal], master: &ProcKey, until: BootNs, view: &View) -> Option<&'v Signal> {
    let to_master = view.history.signals_to(master);
    to_child.iter().find(|s| {
        let same = |m: &&Signal| m.what.signal == sig::TERM && m.what.sender.key() == s.what.sender.key();
        let near = |m: &Signal| m.at.abs_diff(s.at) <= AT_ONCE_NS;
        let by_somebody = s.what.signal == sig::TERM && s.effective() && !s.by_kernel() && !s.to_itself();
        by_somebody && s.at <= until && to_master.iter().filter(same).any(near)
    })
}

/// Requests that waited in php-fpm's accept queue when it stopped.
pub fn accept_queue(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if server.kind != Kind::PhpFpm || !lost.thrown_out_of_queue() {
        return None;
    }
    let gone = Gone::of(lost, server, view)?;
    let signal = server.asked_to_stop(view, gone.at())?;
    let (chain, confidence) = gone::after(lost, server, &gone, signal, view);
    let handshake = matches!(lost.evidence, Evidence::Handshake { .. });
    Some(Finding {
        cause: Cause::FpmAcceptQueueDropped,
        sub_cause: handshake.then_some("handshake"),
        trigger: chain::trigger(signal, view),
        summary: format!(
            "php-fpm ended on {} {}",
            sig::name(signal.what.signal),
            if handshake {
                "during this connection's handshake"
            } else {
                "with this request still in its accept queue"
            }
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// php-fpm no longer listened when nginx wanted to pass the request on.
pub fn not_listening(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if server.kind != Kind::PhpFpm || !lost.refused() {
        return None;
    }
    let gone = Gone::of(lost, server, view)?;
    let signal = server.asked_to_stop(view, gone.at())?;
    let (chain, confidence) = gone::after(lost, server, &gone, signal, view);
    Some(Finding {
        cause: Cause::FpmNotListening,
        sub_cause: Some("stopped-first"),
        trigger: chain::trigger(signal, view),
        summary: format!(
            "php-fpm had stopped listening on {} while requests still came",
            sig::name(signal.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}
