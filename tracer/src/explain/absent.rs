//! The server was not there, and nobody had asked it to end: it crashed, or ended by itself. Requests that it worked on go
//! with it when PID 1 of its container does: the kernel kills the rest.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::gone::Gone;
use super::server::{Kind, Server};
use super::{Finding, View, killed};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::{Evidence, Lost, RefusedAt};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Trigger};

/// A shell or an init passes the end of its only child on within this time.
const PASSED_ON_NS: u64 = 1_000_000_000;

/// nginx asked for php-fpm at a port that had never been open, and php-fpm came later, or has not come at all.
pub fn not_started(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Refused { seen: RefusedAt::Requester(_), closed: None } = &lost.evidence else { return None };
    if server.kind != Kind::PhpFpm {
        return None;
    }
    let t = lost.tcp()?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let mut confidence = Confidence::of(0.9);
    confidence.because("that php-fpm never listened there before is known only from not having seen it");
    let process = server.master.and_then(|m| view.table.process(&m));
    let exec = process.and_then(|p| Some((p, *p.execs.last()?)));
    let opened = view.table.listeners().opened_after(t.netns, t.local_ip, t.local_port, lost.at);
    let opened = opened.map(|(at, _)| at).min();
    let how = match (exec, opened) {
        (Some((process, exec)), Some(opened)) => {
            chain.started(process, exec, view);
            format!("listened only {:.1} s later", (opened - lost.at) as f64 / 1e9)
        }
        (Some((process, exec)), None) if exec.at <= lost.at => {
            chain.started(process, exec, view);
            confidence.cap(0.8, "php-fpm was there, and has not begun to listen since");
            "had been started, and did not listen yet".into()
        }
        _ => {
            confidence.cap(0.6, "no php-fpm was there yet");
            "was not there yet".into()
        }
    };
    Some(Finding {
        cause: Cause::FpmNotListening,
        sub_cause: Some("not-started"),
        trigger: Trigger::Unknown,
        summary: format!("nginx took requests on while php-fpm {how} ({})", lost.address()),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// What ended the server, effect first.
struct End<'v> {
    /// The exit that ended the listener, where that is not already the one that began it all.
    last: Option<&'v ExitFact>,
    /// The kernel's kill of the last holder, when PID 1 had died.
    zap: Option<&'v Signal>,
    /// The exit of PID 1, when it only passed on how the server had ended.
    pid1: Option<&'v ExitFact>,
    first: &'v ExitFact,
    /// What killed it.
    signal: Option<&'v Signal>,
}

/// Refused, or thrown out of the accept queue, because the server had ended by itself.
pub fn crashed(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if !matches!(server.kind, Kind::Nginx | Kind::PhpFpm) || !(lost.refused() || lost.thrown_out_of_queue()) {
        return None;
    }
    let gone = Gone::of(lost, server, view)?;
    let end = end(&gone.exited()?, gone.at(), server, view)?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    if let Gone::Closed(closed) = &gone {
        chain.listener_closed(closed, &lost.address(), view);
    }
    let confidence = end.link(&mut chain, view);
    let name = server.name();
    let ms = lost.at.saturating_sub(end.first.at) / 1_000_000;
    let how = end.how();
    Some(Finding {
        cause: if server.kind == Kind::Nginx { Cause::NginxNotListening } else { Cause::FpmNotListening },
        sub_cause: Some(end.sub_cause()),
        trigger: end.trigger(view),
        summary: format!("{name} {how} {:.1} s before, and nobody listened", ms as f64 / 1000.0),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// Cut because the server's PID 1 had ended by itself, and the kernel killed the rest with it.
pub fn cut_by_crash(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let cut = lost.cut_in_flight() || lost.late_data();
    if !matches!(server.kind, Kind::Nginx | Kind::PhpFpm) || !cut || !server.exiting {
        return None;
    }
    // One that dies alone is another story: its master lives on.
    let end = end(&server.process?, lost.at, server, view).filter(|end| end.zap.is_some())?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let confidence = end.link(&mut chain, view);
    let (name, first) = (server.name(), end.first.task.key());
    let who = match Some(first) == server.master {
        true => format!("{name}'s master"),
        false => format!("PID 1 of {name}'s container ({})", end.first.task.comm),
    };
    let how = end.how();
    Some(Finding {
        cause: Cause::Pid1ExitedFirst,
        sub_cause: Some(end.sub_cause()),
        trigger: end.trigger(view),
        summary: format!("{who} {how}, nobody had asked it to, and the kernel killed the rest: this request was cut"),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

impl End<'_> {
    fn sub_cause(&self) -> &'static str {
        if self.first.code == 0 { "exited" } else { "crashed" }
    }

    fn trigger(&self, view: &View) -> Trigger {
        match self.signal {
            Some(s) if !s.by_kernel() && !s.to_itself() => chain::trigger(s, view),
            _ if self.first.code == 0 => Trigger::Unknown,
            _ => Trigger::Crash,
        }
    }

    /// As half a sentence.
    fn how(&self) -> String {
        match (self.first.code & 0x7f, self.first.code >> 8 & 0xff) {
            (0, 0) => "had ended by itself".to_string(),
            (0, status) => format!("had exited with status {status}"),
            (s, _) => format!("had been ended by {}", sig::name(s)),
        }
    }

    /// The links back to what began it, and what they are worth.
    fn link(&self, chain: &mut Chain, view: &View) -> Confidence {
        if let Some(last) = self.last {
            chain.exit(last, "sockets-are-closed-by-exit", view);
        }
        if let Some(zap) = self.zap {
            chain.signal(zap, "the-rest-dies-with-pid-1", view);
        }
        if let Some(pid1) = self.pid1 {
            chain.exit(pid1, "pid-1-follows-its-child", view);
        }
        chain.exit(self.first, "ended-without-being-asked", view);
        let mut confidence = Confidence::of(0.97);
        match self.signal {
            Some(signal) => chain.signal(signal, "killed-by-this-signal", view),
            None if self.first.code & 0x7f != 0 => confidence.cap(0.8, "the signal that killed it was not seen"),
            None => confidence.cap(0.9, "that nobody asked it to end is known only from not having seen it"),
        }
        confidence
    }
}

/// `holder`: whose exit closed the sockets.
fn end<'v>(holder: &ProcKey, until: BootNs, server: &Server, view: &'v View) -> Option<End<'v>> {
    let exit = |key: &ProcKey| view.history.exit_of(key).filter(|e| e.at <= until);
    let last = exit(holder)?;
    // Killed by the kernel because its PID 1 had died, or the one that began it.
    let kill = killed::last_kill(holder, last.at, view).filter(|k| k.by_kernel() && last.code & 0x7f == sig::KILL);
    let (zap, root) = match kill {
        Some(kill) => (Some(kill), exit(&killed::zap_of(holder, kill)?)?),
        None => (None, last),
    };
    let master = server.master?;
    // PID 1 may be what started the master, and follow it: a shell gives 128 + the signal as its status.
    // Another process that ends after it does so for reasons of its own.
    let before = exit(&master).filter(|e| {
        let follows = root.task.ns_pid == 1 && e.at <= root.at && root.at - e.at < PASSED_ON_NS;
        follows && e.task.key() != root.task.key() && !zapped(e, view)
    });
    let first = before.unwrap_or(root);
    if first.task.key() != master && zap.is_none() {
        return None; // a worker's end is no end of the server
    }
    let asked = |key: &ProcKey| {
        let stops = |s: &&Signal| s.at <= first.at && sig::stops(s.what.signal) && s.effective() && !s.to_itself();
        view.history.signals_to(key).iter().find(stops)
    };
    if asked(&master).is_some() || asked(&root.task.key()).is_some() {
        return None;
    }
    let code = first.code & 0x7f;
    if view.history.was_oom_victim(&first.task.key(), first.at) || code == sig::KILL {
        return None;
    }
    let signal = view.history.signals_to(&first.task.key()).iter().rev().find(|s| killer(s, code, first.at));
    Some(End {
        last: (last.task.key() != root.task.key()).then_some(last),
        zap,
        pid1: before.map(|_| root),
        first,
        signal,
    })
}

fn killer(s: &Signal, code: u32, until: BootNs) -> bool {
    code != 0 && s.what.signal == code && s.at <= until && s.effective()
}

fn zapped(exit: &ExitFact, view: &View) -> bool {
    let key = exit.task.key();
    killed::last_kill(&key, exit.at, view).is_some_and(|k| killed::zap_of(&key, k).is_some())
}
