//! A php-fpm child ended in the middle of a request, and its master went on: a crash, a timeout, somebody's kill.
//!
//! On the wire they are all the same (the connection is closed with the end of the request unread, which resets it), and so
//! they are to nginx: only signals and exits tell them apart.

use super::chain::{self, Chain, describe};
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::Lost;
use crate::identity::Process;
use crate::model::event::{BootNs, ProcKey, TICK_NS, Task};
use crate::model::incident::{Cause, Trigger};

/// A whole php-fpm that is stopped or killed goes within this time, child by child.
const TOGETHER_NS: u64 = 1_000_000_000;
/// The master learns of the end by SIGCHLD, and forks in the same turn of its loop (fpm_children_bury()).
const REPLACED_NS: u64 = 500_000_000;
/// zend_timeout_handler() ends a process whose first timeout did not help so (Zend/zend_execute_API.c).
const HARD_TIMEOUT: u32 = 124;
/// From the second signal of the timer to the exit: the handler writes a line to the log.
const HANDLER_NS: u64 = 1_000_000_000;

/// The child that a request went with.
struct Child<'v> {
    key: ProcKey,
    task: &'v Task,
    master: ProcKey,
    /// `None`: not seen.
    exit: Option<&'v ExitFact>,
}

impl<'v> Child<'v> {
    /// `None`: not a child of php-fpm, or it was not its exit that cut the request.
    fn of(lost: &Lost, server: &'v Server, view: &'v View) -> Option<Self> {
        if !lost.cut_in_flight() || server.kind != Kind::PhpFpm || server.is_master || !server.exiting {
            return None;
        }
        let exit = server.exit(view).filter(|e| e.at <= lost.at);
        Some(Child { key: server.process?, task: server.task.as_ref()?, master: server.master?, exit })
    }

    /// The signal that ended it, by its number: of the exit, else unknown.
    fn killed_by(&self) -> Option<u32> {
        self.exit.map(|e| e.code & 0x7f)
    }

    fn status(&self) -> Option<u32> {
        self.exit.filter(|e| e.code & 0x7f == 0).map(|e| e.code >> 8 & 0xff)
    }

    /// Effective signals to it, oldest first.
    fn signals(&self, until: BootNs, view: &'v View) -> impl DoubleEndedIterator<Item = &'v Signal> {
        view.history.signals_to(&self.key).iter().filter(move |s| s.at <= until && s.effective())
    }

    /// The last signal that can have ended it: of the exit's number where that is known, else any deadly one.
    fn killer(&self, until: BootNs, view: &'v View) -> Option<&'v Signal> {
        let deadly = |n: u32| sig::crashes(n) || sig::stops(n);
        self.signals(until, view).rev().find(|s| match self.killed_by() {
            Some(number) => s.what.signal == number,
            None => deadly(s.what.signal),
        })
    }

    /// The master, or whatever stands above it, was told to stop, to reload or was killed around `at`, or ended: then the
    /// child's end is a part of that.
    fn whole(&self, at: BootNs, view: &View) -> bool {
        let near = |t: BootNs| t.abs_diff(at) < TOGETHER_NS;
        let told = |key: &ProcKey| {
            let ends = |s: &Signal| sig::stops(s.what.signal) || s.what.signal == sig::USR2;
            view.history.signals_to(key).iter().any(|s| near(s.at) && s.effective() && ends(s) && !s.to_itself())
        };
        let ended = |key: &ProcKey| view.history.exit_of(key).is_some_and(|e| e.at < at.saturating_add(TOGETHER_NS));
        told(&self.master) || ended(&self.master)
    }

    /// The child that its master forked in its place.
    fn replacement(&self, view: &'v View) -> Option<(&'v Process, crate::model::EventId, BootNs)> {
        let gone = self.exit?.at;
        let after = |p: &&Process| p.born.is_some_and(|born| born >= gone && born - gone < REPLACED_NS);
        let next = view.table.children(&self.master).filter(after).min_by_key(|p| p.born)?;
        Some((next, next.fork_event?, next.born?))
    }

    /// The beginning of every summary: who, how old, and how long the request had been there.
    fn name(&self, view: &View) -> String {
        describe(self.task, view)
    }

    /// The links that all of them begin with, and what they are worth at most.
    fn begin(&self, lost: &Lost, server: &Server, view: &View, worth: f64) -> (Chain, Confidence) {
        let mut chain = Chain::new(lost.at);
        let mut confidence = Confidence::of(worth);
        chain.loss(lost, server, view);
        match self.exit {
            Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
            None => confidence.cap(0.8, "the exit of the child was not seen"),
        }
        (chain, confidence)
    }
}

/// `, 2.4 s after this request had come (the child was 35 s old)`.
fn when(lost: &Lost, child: &Child) -> String {
    let old = lost.at.saturating_sub(child.key.start_ticks * TICK_NS) as f64 / 1e9;
    match lost.age_ms {
        Some(ms) => format!(", {} after this request had come (the child was {old:.1} s old)", super::took(ms)),
        None => format!(", in the middle of this request (the child was {old:.1} s old)"),
    }
}

/// A fault, an abort, or an exit of its own.
pub fn crashed(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let child = Child::of(lost, server, view)?;
    let signal = child.killer(lost.at, view);
    let own = |s: &&Signal| s.to_itself();
    // Who handles a fault may raise its signal again: what came from outside first is no crash.
    let from_outside = |number: u32| {
        let others = |s: &Signal| s.what.signal == number && !s.to_itself();
        child.signals(lost.at, view).any(others)
    };
    let (mut chain, mut confidence) = child.begin(lost, server, view, 0.99);
    let (how, sub_cause) = match (child.killed_by(), signal.filter(own)) {
        (Some(0), _) => {
            let status = child.status().filter(|s| *s != HARD_TIMEOUT)?;
            // A stop makes a child end with status 0 as well, though not before its request is over.
            if child.signals(lost.at, view).any(|s| sig::stops(s.what.signal)) || child.whole(lost.at, view) {
                return None;
            }
            confidence.cap(0.9, "what made it exit is nothing that the kernel sees");
            (format!("ended by itself with status {status}"), Some("exited"))
        }
        (number, Some(s)) if sig::crashes(s.what.signal) && !from_outside(s.what.signal) => {
            if number.is_none() && child.signals(lost.at, view).any(|s| sig::stops(s.what.signal)) {
                return None;
            }
            chain.signal(s, "killed-by-this-signal", view);
            (format!("crashed ({})", sig::name(s.what.signal)), None)
        }
        // TERM is raised again by php itself when its master sends it.
        (Some(sig::KILL), Some(s)) if !s.by_kernel() => {
            chain.signal(s, "killed-by-this-signal", view);
            ("killed itself (SIGKILL)".into(), Some("exited"))
        }
        (Some(number), None) if sig::crashes(number) && !from_outside(number) => {
            confidence.cap(0.8, "the signal that killed it was not seen");
            (format!("was ended by {}", sig::name(number)), None)
        }
        _ => return None,
    };
    Some(Finding {
        cause: Cause::FpmChildCrash,
        sub_cause,
        trigger: Trigger::Crash,
        summary: format!("{} {how}{}", child.name(view), when(lost, &child)),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// One child was ended by somebody who is not its master, and php-fpm went on.
pub fn killed(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let child = Child::of(lost, server, view)?;
    let signal = child.killer(lost.at, view).filter(|s| !s.by_kernel())?;
    // What came first counts: php raises TERM again by itself.
    let first = child.signals(lost.at, view).find(|s| s.what.signal == signal.what.signal && !s.to_itself())?;
    if first.what.sender.key() == child.master || first.by_kernel() || child.whole(first.at, view) {
        return None;
    }
    let (mut chain, mut confidence) = child.begin(lost, server, view, 0.97);
    chain.signal(first, "killed-alone", view);
    replaced(&mut chain, &mut confidence, &child, view);
    Some(Finding {
        cause: Cause::FpmChildKilled,
        sub_cause: None,
        trigger: chain::trigger(first, view),
        summary: format!(
            "{} was ended with {} from outside of php-fpm{}",
            child.name(view),
            sig::name(first.what.signal),
            when(lost, &child)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// TERM from the master to a child, while nobody had told the master anything: its request had taken too long.
pub fn terminate_timeout(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let child = Child::of(lost, server, view)?;
    let from_master = |s: &&Signal| s.what.sender.key() == child.master;
    // A stop, a reload and the end of an idle child begin with QUIT.
    if child.signals(lost.at, view).filter(from_master).any(|s| s.what.signal == sig::QUIT) {
        return None;
    }
    let term = child.signals(lost.at, view).filter(from_master).find(|s| s.what.signal == sig::TERM)?;
    if child.killed_by().is_some_and(|n| n != sig::TERM) || child.whole(term.at, view) {
        return None;
    }
    let (mut chain, mut confidence) = child.begin(lost, server, view, 0.97);
    chain.signal(term, "ended-by-its-master", view);
    replaced(&mut chain, &mut confidence, &child, view);
    Some(Finding {
        cause: Cause::FpmRequestTerminateTimeout,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!(
            "php-fpm's master ended {}, because its request took longer than request_terminate_timeout{}",
            child.name(view),
            when(lost, &child)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// A new child shows that the master goes on: it is not stopping for a reason that was not seen.
fn replaced(chain: &mut Chain, confidence: &mut Confidence, child: &Child, view: &View) {
    match child.replacement(view) {
        Some((next, event, at)) => chain.replaced(next, event, at, view),
        None => confidence.cap(0.9, "no child in its place was seen, which would show that its master goes on"),
    }
}

/// max_execution_time ran out inside one long call into C, and hard_timeout seconds later the process gave up.
pub fn hard_timeout(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let child = Child::of(lost, server, view)?;
    let exit = child.exit.filter(|_| child.status() == Some(HARD_TIMEOUT))?;
    let (mut chain, mut confidence) = child.begin(lost, server, view, 0.97);
    let timer = |s: &&Signal| s.what.signal == sig::PROF && s.by_kernel();
    let mut fired = child.signals(exit.at, view).rev().filter(timer);
    match fired.next().filter(|s| exit.at - s.at < HANDLER_NS) {
        Some(last) => {
            chain.signal(last, "hard-timeout-ran-out", view);
            match fired.next() {
                Some(first) => chain.signal(first, "max-execution-time-ran-out", view),
                None => confidence.cap(0.9, "the signal of max_execution_time before it was not seen"),
            }
        }
        None => confidence.cap(0.9, "the signal of its timer was not seen"),
    }
    Some(Finding {
        cause: Cause::PhpHardTimeout,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!(
            "{} gave up with status {HARD_TIMEOUT}: its script did not end when max_execution_time was over, nor hard_timeout later{}",
            child.name(view),
            when(lost, &child)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}
