//! A supervisor in the container stopped php-fpm while nginx, which needs it, still took requests.

use super::chain::Chain;
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View, advice, chain};
use crate::correlate::answer::Closer;
use crate::correlate::history::sig;
use crate::correlate::lost::{Evidence, Lost};
use crate::identity::{Place, Role};
use crate::model::incident::{Cause, Trigger};

/// supervisord stops its groups one after another, the last started first: php-fpm is ended completely before nginx even
/// gets its signal.
pub fn stop_order(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let by_server = matches!(
        &lost.evidence,
        Evidence::Close { closer: Closer::Local | Closer::AcceptQueue, .. }
            | Evidence::Refused { .. }
            | Evidence::Handshake { .. }
    );
    if server.kind != Kind::PhpFpm || !by_server {
        return None;
    }
    let master = server.master?;
    let to_master = view.history.signals_to(&master).iter().find(|s| {
        s.at <= lost.at && sig::asks_to_stop(s.what.signal) && s.effective() && !s.to_itself() && !s.by_kernel()
    })?;
    let supervisor = to_master.what.sender.key();
    let role = view.table.role(&supervisor);
    if role.role != Role::Supervisor {
        return None;
    }
    let Place::Container(here) = view.table.place(&to_master.what.target) else { return None };
    // An nginx of the same container that ran on and had not been told anything yet.
    let nginx = view.table.processes().find(|p| {
        let alive = p.exited.is_none_or(|e| e.at > lost.at);
        alive
            && view.table.role(&p.key).role == Role::NginxMaster
            && view.table.container_of(&p.key).is_some_and(|c| c.container.id == here.container.id)
    })?;
    let told = |s: &crate::correlate::history::Signal| s.at <= to_master.at && sig::stops(s.what.signal);
    if view.history.signals_to(&nginx.key).iter().any(told) {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.97);
    chain.loss(lost, server, view);
    if let Some(exit) = server.exit(view).filter(|e| server.exiting && e.at <= lost.at) {
        chain.exit(exit, "sockets-are-closed-by-exit", view);
    }
    chain.signal(to_master, "supervisor-stops-php-fpm-first", view);
    let mut trigger = Trigger::Unknown;
    match view
        .history
        .signals_to(&supervisor)
        .iter()
        .rev()
        .find(|s| s.at <= to_master.at && sig::asks_to_stop(s.what.signal) && s.effective() && !s.to_itself())
    {
        Some(root) => {
            trigger = chain::trigger(root, view);
            chain.signal(root, "supervisor-was-told-to-stop", view);
        }
        None => confidence.cap(0.8, "what told the supervisor to stop was not seen"),
    }
    if !role.sure {
        confidence.cap(0.8, "that the sender is a supervisor is only a guess");
    }
    Some(Finding {
        cause: Cause::SupervisorStopOrder,
        sub_cause: None,
        trigger,
        summary: format!(
            "{} stopped php-fpm with {} while nginx in the same container still took requests",
            to_master.what.sender.comm,
            sig::name(to_master.what.signal)
        ),
        chain,
        confidence,
        advice: advice::supervisor_order(),
        missing: Vec::new(),
    })
}
