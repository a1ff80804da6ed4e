//! nginx ended, or stopped listening, because of a signal to its master.
//!
//! SIGTERM and SIGINT are nginx's fast shutdown: workers are told over a socketpair (ngx_write_channel(), no signal), they
//! exit at once and their sockets are closed by the exit. SIGQUIT is graceful: listeners and idle connections close, open
//! requests go on.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::gone::{self, Gone};
use super::server::{Kind, Server};
use super::{Finding, View, killed, pod, restart, took};
use crate::correlate::answer::{self, Closer};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::{Evidence, Lost};
use crate::identity::Owner;
use crate::model::event::BootNs;
use crate::model::incident::{Cause, Missing, Trigger};

/// The longest drain that is taken for one stop: an hour, longer than any sane grace period.
const QUIT_NS: u64 = 3_600_000_000_000;
/// After the timeout a worker closes all and exits in the same turn of its event loop.
const TIMEOUT_EXIT_NS: u64 = 500_000_000;
/// Timeouts in seconds are usual; timers may fire a little early.
const TIMEOUT_USUAL_NS: u64 = 900_000_000;
/// A shorter one cannot be told from what the worker does in the turn in which it is told to end.
const TIMEOUT_MIN_NS: u64 = 50_000_000;
/// A request can still be taken in the turn in which the signal arrives; one jiffy of the age is unknown.
const ARRIVAL_SLACK_NS: u64 = 200_000_000;
/// The same for a short timeout, of which that would be too much: two jiffies at HZ=100.
const SHORT_SLACK_NS: u64 = 20_000_000;
/// Endpoints are gone everywhere after this time; who still comes is not racing with their removal.
const RACE_NS: u64 = 60_000_000_000;

/// TERM/INT to the master, a worker (or the master) exits, the connection is closed by that exit.
pub fn fast_shutdown(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let cut = matches!(&lost.evidence, Evidence::Close { closer: Closer::Local, .. });
    if server.kind != Kind::Nginx || !server.exiting || !cut && !lost.first_request() {
        return None;
    }
    let signal = fast_stop(server, view, lost.at)?;
    let quit = graceful_before(server, view, signal);
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.99);
    chain.loss(lost, server, view);
    match server.exit(view).filter(|e| e.at <= lost.at) {
        Some(exit) if exit.code != 0 => {
            // A worker that crashed, or was killed by somebody else, did not end because of the master's word.
            let kill = escalation(server, exit, signal, view)?;
            chain.exit(exit, "sockets-are-closed-by-exit", view);
            chain.signal(kill, "master-kills-a-stuck-worker", view);
        }
        Some(exit) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        None => confidence.cap(0.8, "the exit of the process was not seen"),
    }
    let to_worker = Some(signal.what.target.key()) != server.master;
    let rule = if to_worker || server.is_master { "fast-shutdown-signal" } else { "master-tells-workers" };
    chain.signal(signal, rule, view);
    if let Some(quit) = quit {
        chain.signal(quit, "overridden-by-the-later-signal", view);
        return Some(overridden(chain, confidence, lost, quit, signal, view));
    }
    // A listener that closed before the signal shows that something had asked for a graceful end earlier.
    if server.quitting_unseen(lost, signal.at, view) {
        return Some(overridden_unseen(chain, confidence, lost, signal, view));
    }
    Some(Finding {
        cause: Cause::NginxFastShutdown,
        sub_cause: None,
        trigger: chain::trigger(signal, view),
        summary: format!(
            "nginx was stopped with {}, its fast shutdown: this request was cut{}",
            sig::name(signal.what.signal),
            lost.age_ms.map(|ms| format!(" after {}", took(ms))).unwrap_or_default()
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// worker_shutdown_timeout: N seconds after a quit or a reload, an old worker closes what is still open, and ends.
pub fn worker_shutdown_timeout(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Close { closer: Closer::Local, state, .. } = &lost.evidence else { return None };
    if server.kind != Kind::Nginx || server.exiting || server.is_master {
        return None;
    }
    // It ends right after it has closed everything.
    let exit = server.exit(view).filter(|e| e.at >= lost.at && e.at - lost.at < TIMEOUT_EXIT_NS && e.code == 0)?;
    let Some(signal) = server.told_to_drain(view, lost.at) else {
        return server.draining(view).then(|| drained_unseen(lost, server, exit, view));
    };
    let since = lost.at - signal.at;
    // A worker that was told to end takes no new requests, so this one had come before, and waited since.
    let waited = lost.age_ms? * 1_000_000;
    let short = since < TIMEOUT_USUAL_NS;
    let slack = if short { SHORT_SLACK_NS } else { ARRIVAL_SLACK_NS };
    if since < TIMEOUT_MIN_NS || waited + slack < since || short && answer::unread(state) > 0 {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    chain.exit(exit, "ends-after-closing-everything", view);
    chain.signal(signal, "worker-drains-since", view);
    let reload = !sig::stops(signal.what.signal);
    let mut confidence = Confidence::of(0.97);
    if short {
        confidence.cap(0.9, "a timeout below a second is unusual");
    }
    Some(Finding {
        cause: Cause::WorkerShutdownTimeout,
        sub_cause: reload.then_some("reload"),
        trigger: if reload { Trigger::ConfigReload } else { chain::trigger(signal, view) },
        summary: format!(
            "{} after {} the old worker's worker_shutdown_timeout ran out and it closed this request",
            took(since / 1_000_000),
            sig::name(signal.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// The worker had been finishing its requests when why502 looked for the first time.
fn drained_unseen(lost: &Lost, server: &Server, exit: &ExitFact, view: &View) -> Finding {
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    chain.exit(exit, "ends-after-closing-everything", view);
    let mut confidence = Confidence::of(0.8);
    confidence.because("what had told the worker to end, and when, was not seen");
    Finding {
        cause: Cause::WorkerShutdownTimeout,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: "the worker was shutting down; its worker_shutdown_timeout ran out and it closed this request".into(),
        chain,
        confidence,
        missing: vec![Missing {
            fact: "started-late".into(),
            effect: "the worker had been told to end before why502 was ready: by a stop or by a reload is not known"
                .into(),
        }],
    }
}

/// nginx's master kills workers that have not ended some seconds after it told them (ngx_reap_children() and the ladder of
/// alarms in ngx_master_process_cycle()).
fn escalation<'v>(server: &Server, exit: &ExitFact, signal: &Signal, view: &'v View) -> Option<&'v Signal> {
    let (worker, master) = (server.process?, server.master?);
    if exit.code & 0x7f != sig::KILL || worker == master {
        return None;
    }
    let kill = killed::last_kill(&worker, exit.at, view)?;
    let own = kill.what.sender.key() == master && !kill.by_kernel() && kill.at >= signal.at;
    own.then_some(kill)
}

/// nginx had stopped listening before the signal, but what had told it to was not seen.
fn overridden_unseen(chain: Chain, mut confidence: Confidence, lost: &Lost, signal: &Signal, view: &View) -> Finding {
    confidence.cap(0.8, "the listener had been closed before this signal: an earlier one was not seen");
    Finding {
        cause: Cause::QuitThenTerm,
        sub_cause: None,
        trigger: chain::trigger(signal, view),
        summary: format!(
            "nginx was finishing its requests when {} came and cut this one{}",
            sig::name(signal.what.signal),
            lost.age_ms.map(|ms| format!(" after {}", took(ms))).unwrap_or_default()
        ),
        chain,
        confidence,
        missing: vec![Missing {
            fact: "started-late".into(),
            effect: "nginx had stopped listening before why502 was ready, or without a record of why".into(),
        }],
    }
}

/// The quit had begun to drain when the second signal cut it off.
fn overridden(
    chain: Chain,
    mut confidence: Confidence,
    lost: &Lost,
    quit: &Signal,
    signal: &Signal,
    view: &View,
) -> Finding {
    if signal.at.saturating_sub(quit.at) > QUIT_NS {
        confidence.cap(0.9, "the graceful signal was long before");
    }
    let ms = signal.at.saturating_sub(quit.at) / 1_000_000;
    let by = sig::name(signal.what.signal);
    Finding {
        cause: Cause::QuitThenTerm,
        sub_cause: None,
        trigger: chain::trigger(signal, view),
        summary: format!(
            "nginx was finishing its requests after SIGQUIT when {by} came {ms} ms later and cut this one{}",
            lost.age_ms.map(|ms| format!(" after {}", took(ms))).unwrap_or_default()
        ),
        chain,
        confidence,
        missing: Vec::new(),
    }
}

/// New connections still came after a stop signal had closed the listener.
pub fn endpoint_race(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Refused { closed: Some(closed), .. } = &lost.evidence else { return None };
    if server.kind != Kind::Nginx {
        return None;
    }
    let signal = server.asked_to_stop(view, closed.at)?;
    let (chain, mut confidence) = gone::after(lost, server, &Gone::Closed(closed.clone()), signal, view);
    let t = lost.tcp()?;
    // The kernel gives the numbers of dead network namespaces again at once: the next pod's port is not this one's.
    let own = server.master.and_then(|master| pod::home(&master, view));
    let next_pods = |owner: &Owner| {
        let its = owner.opener.and_then(|opener| pod::home(&opener, view));
        own.zip(its).is_some_and(|(own, its)| own != its)
    };
    let mut opened = view.table.listeners().opened_after(t.netns, t.local_ip, t.local_port, closed.at);
    if opened.any(|(_, owner)| !next_pods(owner)) {
        confidence.cap(0.6, "the port was opened again: a restart, or an endpoint that had not been removed");
    }
    if lost.at.saturating_sub(closed.at) > RACE_NS {
        confidence.cap(0.6, "it came more than a minute after the listener had closed");
    }
    let ms = lost.at.saturating_sub(closed.at) / 1_000_000;
    let mut finding = Finding {
        cause: Cause::EndpointRace,
        sub_cause: None,
        trigger: chain::trigger(signal, view),
        summary: format!(
            "a new connection came {ms} ms after nginx had closed its listener on {}: it was still sent here",
            sig::name(signal.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    };
    restart::not_excluded(&mut finding, server, signal, view);
    Some(finding)
}

/// Connections that nginx had not accepted when it closed its listener: reset from the queue, or lost in the handshake.
pub fn accept_queue(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if server.kind != Kind::Nginx || !lost.thrown_out_of_queue() {
        return None;
    }
    let gone = Gone::of(lost, server, view)?;
    let signal = server.asked_to_stop(view, gone.at())?;
    let (chain, confidence) = gone::after(lost, server, &gone, signal, view);
    let handshake = matches!(lost.evidence, Evidence::Handshake { .. });
    Some(Finding {
        cause: Cause::NginxAcceptQueueDropped,
        sub_cause: handshake.then_some("handshake"),
        trigger: chain::trigger(signal, view),
        summary: format!(
            "nginx closed its listener on {} {}: it was reset",
            sig::name(signal.what.signal),
            if handshake {
                "during this connection's handshake"
            } else {
                "with this connection still in the accept queue"
            }
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// The first TERM or INT: from it on nginx drops everything, whatever came before (ngx_terminate is tested before
/// ngx_quit in ngx_worker_process_cycle()).
fn fast_stop<'v>(server: &Server, view: &'v View, until: BootNs) -> Option<&'v Signal> {
    let all = server.stop_signals(view, until);
    all.into_iter().find(|s| matches!(s.what.signal, sig::TERM | sig::INT) && !s.by_kernel())
}

/// A QUIT before it: nginx was on its way out gracefully.
fn graceful_before<'v>(server: &Server, view: &'v View, signal: &Signal) -> Option<&'v Signal> {
    let all = server.stop_signals(view, signal.at);
    all.into_iter().rev().find(|s| s.what.signal == sig::QUIT)
}
