//! php-fpm's kept connections (`fastcgi_keep_conn on`): a child that has done its `pm.max_requests` lets go of its connection
//! while nginx sends another request on it. See `correlate::kept` for what shows it.

use super::chain::{Chain, describe};
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::{ExitFact, sig};
use crate::correlate::kept::EXIT_NS;
use crate::correlate::lost::{Evidence, Lost, ThrownAway};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Missing, Trigger};

/// The master learns of the end by SIGCHLD, and forks in the same turn of its loop.
const REPLACED_NS: u64 = 500_000_000;
/// A stop or a reload of php-fpm ends its children within this time.
const TOGETHER_NS: u64 = 1_000_000_000;

/// The child ended by itself with status 0 directly after nginx had closed, and nobody had told it or its master anything.
pub fn max_requests(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::ThrownAway(thrown) = &lost.evidence else { return None };
    let master = server.master.filter(|_| server.kind == Kind::PhpFpm)?;
    if told(&master, lost.at, view) {
        return None;
    }
    let exit = match server.is_master {
        false => view.history.exit_of(&server.process?),
        true => exit_after(&master, lost.at, view),
    };
    if exit.is_some_and(|e| e.code != 0) || exit.is_some_and(|e| told(&e.task.key(), lost.at, view)) {
        return None;
    }
    let (chain, confidence) = chain(lost, thrown, exit, &master, server, view);
    let who = match (exit, &server.task) {
        (Some(exit), _) => describe(&exit.task, view),
        (None, Some(task)) => describe(task, view),
        (None, None) => "a child of php-fpm".into(),
    };
    let status = thrown.failed.page.map_or(String::new(), |p| format!(", and answered {}", p.status));
    let mut missing = Vec::new();
    if thrown.left.is_none() {
        missing.push(Missing {
            fact: "kept-connection".into(),
            effect: "on a unix socket it is not seen which connection nginx speaks of: the child's end directly after it is \
                     all that ties the two"
                .into(),
        });
    }
    Some(Finding {
        cause: Cause::FpmMaxRequestsReset,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!(
            "{who} had done its pm.max_requests and closed the connection that nginx keeps to it, while this request came on \
             it; it threw the request away. nginx did not repeat it{status}"
        ),
        chain,
        confidence,
        missing,
    })
}

fn chain(
    lost: &Lost,
    thrown: &ThrownAway,
    exit: Option<&ExitFact>,
    master: &ProcKey,
    server: &Server,
    view: &View,
) -> (Chain, Confidence) {
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.97);
    chain.loss(lost, server, view);
    chain.said(&thrown.failed, "nginx-said-why", view);
    match (&thrown.half, &thrown.left) {
        (Some(half), _) => chain.half_closed(half, view),
        (None, Some(_)) => confidence.cap(0.9, "which child closed is known from its end directly after only"),
        (None, None) => {
            confidence
                .cap(0.65, "on a unix socket the close is not seen, only that a child ended by itself directly after");
        }
    }
    match exit {
        Some(exit) => {
            chain.exit(exit, "ended-by-itself-right-after", view);
            let after = |born: BootNs| born >= exit.at && born - exit.at < REPLACED_NS;
            let next = view.table.children(master).filter(|p| p.born.is_some_and(after)).min_by_key(|p| p.born);
            if let Some((next, event, at)) = next.and_then(|p| Some((p, p.fork_event?, p.born?))) {
                chain.replaced(next, event, at, view);
            }
        }
        None => confidence.cap(0.8, "the exit of the child was not seen"),
    }
    (chain, confidence)
}

/// The first child of this master that ended by itself after `at`.
fn exit_after<'v>(master: &ProcKey, at: BootNs, view: &View<'v>) -> Option<&'v ExitFact> {
    let exits = view.table.children(master).filter_map(|p| view.history.exit_of(&p.key));
    let by_itself =
        |e: &&ExitFact| e.code == 0 && e.at >= at && e.at - at < EXIT_NS && !told(&e.task.key(), e.at, view);
    exits.filter(by_itself).min_by_key(|e| e.at)
}

/// Somebody told this process to stop or to reload around `at`.
fn told(key: &ProcKey, at: BootNs, view: &View) -> bool {
    let ends = |n: u32| sig::stops(n) || n == sig::USR2;
    let near = |t: BootNs| t.abs_diff(at) < TOGETHER_NS;
    view.history.signals_to(key).iter().any(|s| near(s.at) && s.effective() && ends(s.what.signal))
}
