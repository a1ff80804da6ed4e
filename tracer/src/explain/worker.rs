//! One worker of nginx ends while its master lives on, and takes what it had with it: it crashed, or somebody killed it.
//!
//! The master forks another one at once, and it holds the listening sockets, those of SO_REUSEPORT included: what waits to be
//! accepted is not lost.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View, killed, sender};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::Lost;
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Trigger};

/// Who kills a whole server does it to one process after the other, within this time.
const TOGETHER_NS: u64 = 1_000_000_000;

/// Requests that a worker had, and kept connections of it, when a signal ended it and not the server.
pub fn ended_alone(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let cut = lost.cut_in_flight() || lost.late_data();
    if server.kind != Kind::Nginx || server.is_master || !server.exiting || !cut {
        return None;
    }
    let (worker, master) = (server.process?, server.master?);
    let exit = server.exit(view).filter(|e| e.at <= lost.at);
    let signal = deadly(&worker, exit, lost.at, view)?;
    let name = sig::name(signal.number);
    let crash = match signal.seen {
        Some(s) if sender::kernel(s, view) == Some(sender::Kernel::Fault) => true,
        // Of the end of a pid namespace and of memory others tell.
        Some(s) if s.by_kernel() || s.what.sender.key() == master => return None,
        Some(s) if s.to_itself() => true,
        Some(s) if ended_with(&master, s, view) => return None,
        Some(_) => false,
        // Who sent it is not known; nobody sends the signals of a fault for anything else than a fault.
        None if sig::crashes(signal.number) => true,
        None => return None,
    };
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.98);
    chain.loss(lost, server, view);
    match exit {
        Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        None => confidence.cap(0.8, "the exit of the worker was not seen"),
    }
    match signal.seen {
        Some(signal) => chain.signal(signal, "killed-by-this-signal", view),
        None => confidence.cap(0.8, "the signal that killed it was not seen"),
    }
    let what = match lost.age_ms.filter(|_| lost.cut_in_flight()) {
        Some(ms) => format!("this request was cut after {}", super::took(ms)),
        None if lost.cut_in_flight() => "this request was cut".into(),
        None => "this request came on a connection that had gone with it".into(),
    };
    Some(Finding {
        cause: Cause::NginxWorkerCrash,
        sub_cause: (!crash).then_some("killed"),
        trigger: match signal.seen {
            Some(s) if !crash => chain::trigger(s, view),
            _ => Trigger::Crash,
        },
        summary: match (crash, signal.seen) {
            (false, Some(s)) => {
                format!(
                    "{} sent {name} to one nginx worker and not to its master: {what}",
                    chain::sender_text(s, view).trim_end_matches(',')
                )
            }
            _ => format!("an nginx worker crashed ({name}): {what}"),
        },
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// The signal that ended a process.
struct Deadly<'v> {
    number: u32,
    seen: Option<&'v Signal>,
}

fn deadly<'v>(worker: &ProcKey, exit: Option<&ExitFact>, until: BootNs, view: &'v View) -> Option<Deadly<'v>> {
    let to_it = view.history.signals_to(worker);
    let last = |ends: &dyn Fn(&Signal) -> bool| to_it.iter().rev().find(|s| s.at <= until && s.effective() && ends(s));
    let Some(exit) = exit else {
        let seen = last(&|s| sig::crashes(s.what.signal) || s.what.signal == sig::KILL)?;
        return Some(Deadly { number: seen.what.signal, seen: Some(seen) });
    };
    let number = exit.code & 0x7f;
    // A status is the worker's own word, not a crash.
    (number != 0).then(|| Deadly { number, seen: last(&|s| s.what.signal == number && s.at <= exit.at) })
}

/// The master went with it: that is the end of the server.
fn ended_with(master: &ProcKey, signal: &Signal, view: &View) -> bool {
    let until = signal.at.saturating_add(TOGETHER_NS);
    let killed = killed::last_kill(master, until, view).is_some_and(|k| k.at.saturating_add(TOGETHER_NS) >= signal.at);
    killed || view.history.exit_of(master).is_some_and(|e| e.at <= until && e.code & 0x7f != 0)
}
