//! A supervisor in the container stopped php-fpm while nginx, which needs it, still took requests.

use super::chain::Chain;
use super::confidence::Confidence;
use super::gone::Gone;
use super::server::{Kind, Server};
use super::unix;
use super::{Finding, View, chain};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::Lost;
use crate::identity::{Place, Role};
use crate::model::incident::Cause;

/// What the end of php-fpm did to the request.
enum How<'v> {
    /// Its child was ended, by this exit.
    Cut(Option<&'v ExitFact>),
    /// The listener went before anybody took it.
    Gone(Gone<'v>),
    /// Nobody took it, and the queue was full.
    Full,
}

fn how<'v>(lost: &Lost, server: &Server, view: &'v View) -> Option<How<'v>> {
    if lost.cut_in_flight() {
        if !server.exiting || server.is_master {
            return None;
        }
        let exit = server.exit(view).filter(|e| e.at <= lost.at);
        // A child that crashes, or is chosen by the OOM killer, does so in any order.
        let own = |e: &ExitFact| {
            !matches!(e.code & 0x7f, sig::TERM | sig::KILL) || view.history.was_oom_victim(&e.task.key(), lost.at)
        };
        return (!exit.is_some_and(own)).then_some(How::Cut(exit));
    }
    if lost.queue_full() {
        return Some(How::Full);
    }
    (lost.refused() || lost.thrown_out_of_queue()).then(|| Gone::of(lost, server, view).map(How::Gone))?
}

/// supervisord stops its groups one after another, the last started first: php-fpm is ended completely before nginx even
/// gets its signal.
pub fn stop_order(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    if server.kind != Kind::PhpFpm {
        return None;
    }
    let how = how(lost, server, view)?;
    let by = match &how {
        How::Cut(_) | How::Full => lost.at,
        How::Gone(gone) => gone.at(),
    };
    let master = server.master?;
    let to_master = view.history.signals_to(&master).iter().find(|s| {
        let took = !matches!(how, How::Full) || unix::fewer_children(lost, server, s, view);
        took && s.at <= by && sig::asks_to_stop(s.what.signal) && s.effective() && !s.to_itself() && !s.by_kernel()
    })?;
    let supervisor = to_master.what.sender.key();
    let role = view.table.role(&supervisor);
    if role.role != Role::Supervisor {
        return None;
    }
    let Place::Container(here) = view.table.place(&to_master.what.target) else { return None };
    // An nginx of the same container that ran on and had not been told anything yet.
    let running = view.table.processes().find(|p| {
        let alive = p.exited.is_none_or(|e| e.at > lost.at);
        alive
            && view.table.role(&p.key).role == Role::NginxMaster
            && view.table.container_of(&p.key).is_some_and(|c| c.container.id == here.container.id)
    })?;
    let told = |s: &Signal| s.at <= to_master.at && sig::stops(s.what.signal);
    if view.history.signals_to(&running.key).iter().any(told) {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.97);
    chain.loss(lost, server, view);
    match &how {
        How::Cut(Some(exit)) => chain.exit(exit, "sockets-are-closed-by-exit", view),
        How::Cut(None) => confidence.cap(0.8, "the exit of the child was not seen"),
        How::Gone(gone) => gone.link(&mut chain, lost, view),
        How::Full => {}
    }
    chain.signal(to_master, "supervisor-stops-php-fpm-first", view);
    if !role.sure {
        confidence.cap(0.8, "that the sender is a supervisor is only a guess");
    }
    Some(Finding {
        cause: Cause::SupervisorStopOrder,
        sub_cause: None,
        trigger: chain::trigger(to_master, view),
        summary: format!(
            "{} stopped php-fpm with {} while nginx in the same container still took requests",
            to_master.what.sender.comm,
            sig::name(to_master.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}
