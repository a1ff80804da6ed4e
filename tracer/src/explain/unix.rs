//! What only AF_UNIX has: a full queue is an error of connect(2) at once, and nothing tells of a listener that is not there.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::gone::Gone;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{Signal, sig};
use crate::correlate::lost::{Conn, Evidence, Lost};
use crate::identity::FoundBy;
use crate::model::event::BootNs;
use crate::model::incident::{Cause, Trigger};

/// php-fpm listens within milliseconds of its exec, a script around it or a busy node may take longer.
const START_NS: u64 = 60_000_000_000;
/// Longer than any process_control_timeout that somebody waits for.
const LATELY_NS: u64 = 600_000_000_000;

/// The queue of php-fpm's socket was full: unix_stream_connect() gives EAGAIN to a socket that does not wait, and nginx answers.
pub fn listen_queue_full(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if server.kind != Kind::PhpFpm || !lost.queue_full() {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let mut confidence = Confidence::of(0.97);
    if server.told_to_end(view, lost.at) {
        confidence.cap(0.8, "php-fpm had been told to stop or to reload, and took no requests while it did");
    } else if ends_children(lost, server, view) {
        confidence.cap(0.8, "php-fpm's master had told children to end: what told the master was not seen");
    }
    Some(Finding {
        cause: Cause::FpmListenQueueFull,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!(
            "php-fpm's listen queue on {} was full: requests came faster than its children took them",
            lost.address()
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// The master has told some of its children to end lately, as in a stop.
fn ends_children(lost: &Lost, server: &Server, view: &View) -> bool {
    let Some(master) = server.master else { return false };
    let told = |s: &Signal| {
        let lately = s.at <= lost.at && lost.at - s.at < LATELY_NS;
        lately && sig::stops(s.what.signal) && s.what.sender.key() == master
    };
    view.table.children(&master).any(|c| view.history.signals_to(&c.key).iter().any(told))
}

/// A child has ended since a stop signal, and so did not take this request. As long as all of them are there they are busy
/// with what they have, and the queue would be as full without the signal.
pub fn fewer_children(lost: &Lost, server: &Server, signal: &Signal, view: &View) -> bool {
    let ended = |at: BootNs| at > signal.at && at <= lost.at;
    server.master.is_some_and(|m| view.table.children(&m).any(|c| c.exited.is_some_and(|e| ended(e.at))))
}

/// The same while php-fpm was stopping: its children end instead of taking something new, so the queue only fills.
pub fn queue_full_while_stopping(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::UnixRefused { full_since: Some(full_since), .. } = &lost.evidence else { return None };
    if server.kind != Kind::PhpFpm {
        return None;
    }
    let signal = server.asked_to_stop(view, lost.at).filter(|s| fewer_children(lost, server, s, view))?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    chain.signal(signal, "nobody-accepts-after-a-stop-signal", view);
    let mut confidence = Confidence::of(0.97);
    if *full_since < signal.at {
        confidence.cap(0.8, "its queue had been full before that signal");
    }
    Some(Finding {
        cause: Cause::FpmAcceptQueueDropped,
        sub_cause: Some("full"),
        trigger: chain::trigger(signal, view),
        summary: format!(
            "php-fpm's children end since {} instead of taking requests, and its queue had no room left for this one",
            sig::name(signal.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// Nobody listened on the path, and no end of a php-fpm is known that would say why: it had not begun to, or who should have
/// is not known.
pub fn nobody_listens(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let (Conn::Unix { path, .. }, Evidence::UnixRefused { found, .. }) = (&lost.conn, &lost.evidence) else {
        return None;
    };
    if server.kind != Kind::PhpFpm || !lost.refused() || Gone::of(lost, server, view).is_some() {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let alive = server.process.and_then(|key| view.table.process(&key)).filter(|p| p.alive());
    // One that is known to have served this path had begun to.
    let young = alive.filter(|_| *found != Some(FoundBy::Path)).and_then(|p| {
        let exec = p.execs.last().filter(|e| e.at <= lost.at && lost.at - e.at < START_NS)?;
        Some((p, *exec))
    });
    let mut confidence = Confidence::of(if young.is_some() { 0.9 } else { 0.6 });
    let summary = match (young, alive) {
        (Some((p, exec)), _) => {
            chain.started(p, exec, view);
            confidence.because("that it was going to listen on this path is not known");
            let ms = (lost.at - exec.at) / 1_000_000;
            format!("php-fpm had been started {ms} ms before and did not listen on unix:{path} yet")
        }
        (None, alive) => {
            confidence.because(match alive {
                Some(_) => "php-fpm runs: since when its socket was not there is not known",
                None => "how the php-fpm of this socket ended is not known",
            });
            format!("nobody listened on unix:{path} when nginx wanted to pass the request on")
        }
    };
    Some(Finding {
        cause: Cause::FpmNotListening,
        sub_cause: young.is_some().then_some("not-started"),
        trigger: Trigger::Unknown,
        summary,
        chain,
        confidence,
        missing: Vec::new(),
    })
}
