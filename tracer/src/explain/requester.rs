//! Not the server's doing: recognised so that it is never blamed on the pod.

use super::chain::Chain;
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::answer::{self, Clause, Closer};
use crate::correlate::history::sig;
use crate::correlate::lost::{Evidence, Lost};
use crate::identity::{Process, Role};
use crate::model::event::ProcKey;
use crate::model::incident::{Cause, Missing, Trigger};

/// An edge closes its upstream connection right after its own client left (nginx's 499).
const PASSED_ON_NS: u64 = 100_000_000;
/// A worker that was told to end exits in the turn of its event loop in which its last connection closes.
const ENDED_NS: u64 = 500_000_000;
/// The kernel kills the processes of a pid namespace, or of a cgroup, one after the other.
const SAME_MOMENT_NS: u64 = 100_000_000;

fn finding(lost: &Lost, server: &Server, view: &View, cause: Cause, value: f64, summary: &str) -> Finding {
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    Finding {
        cause,
        sub_cause: None,
        trigger: Trigger::Unknown,
        chain,
        confidence: Confidence::of(value),
        summary: summary.into(),
        missing: Vec::new(),
    }
}

/// The requesting side's FIN came while the request was open: a user who left, or an edge that lost patience.
pub fn gave_up(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Close { closer: Closer::PeerFin, .. } = &lost.evidence else { return None };
    let end = view.ends.gave_up(lost);
    let Some((at, task)) = end.and_then(|end| Some((end.at, end.task.as_ref()?))) else {
        let mut f =
            finding(lost, server, view, Cause::ClientAbort, 0.6, "the requesting side gave up before the answer");
        f.missing.push(Missing {
            fact: "requester".into(),
            effect: "no process of this node is known to have had the other end: whether it timed out or was itself left is not known"
                .into(),
        });
        return Some(f);
    };
    let edge = nginx_master(view, &task.key());
    let Some(edge) = edge else {
        return Some(finding(
            lost,
            server,
            view,
            Cause::ClientAbort,
            0.9,
            "the client closed the connection before the answer",
        ));
    };
    if task.exiting() {
        return Some(finding(
            lost,
            server,
            view,
            Cause::ClientAbort,
            0.9,
            "the requesting nginx ended before the answer",
        ));
    }
    // worker_shutdown_timeout: an old worker closes both sides of what it still has, and exits at once.
    let ended = view.history.exit_of(&task.key()).is_some_and(|e| e.at >= at && e.at - at < ENDED_NS);
    if ended {
        return Some(finding(
            lost,
            server,
            view,
            Cause::ClientAbort,
            0.8,
            "the requesting nginx was ending, and closed the connection before the answer",
        ));
    }
    if let Some(failed) = lost.tcp().and_then(|ends| view.nginx.timed_out(ends, lost.at)) {
        let text = "nginx had waited for as long as its timeout allows, and closed the connection before the answer";
        let mut f = finding(lost, server, view, Cause::EdgeTimeout, 0.97, text);
        f.chain.said(failed, "nginx-said-why", view);
        return Some(f);
    }
    let passed_on = view.history.last_client_left(&edge).is_some_and(|(t, _)| t <= at && at - t < PASSED_ON_NS);
    if !passed_on && waited_in_php_fpms_queue(lost, server, view) {
        return Some(pool_exhausted(lost, server, view));
    }
    Some(if passed_on {
        finding(
            lost,
            server,
            view,
            Cause::ClientAbort,
            0.9,
            "the client left, and the edge passed that on before the answer",
        )
    } else {
        finding(
            lost,
            server,
            view,
            Cause::EdgeTimeout,
            0.8,
            "the edge gave up waiting and closed the connection before the answer",
        )
    })
}

/// It was still in the accept queue when it was given up, and nobody had told php-fpm to end, which then takes nothing more.
fn waited_in_php_fpms_queue(lost: &Lost, server: &Server, view: &View) -> bool {
    let Evidence::Close { state, .. } = &lost.evidence else { return false };
    server.kind == Kind::PhpFpm && !state.accepted && !server.told_to_end(view, lost.at)
}

/// All children were busy for as long as nginx waited (fastcgi_read_timeout), and it answered 504.
fn pool_exhausted(lost: &Lost, server: &Server, view: &View) -> Finding {
    let there = |p: &&Process| p.alive() && p.born.is_none_or(|born| born < lost.at);
    let children = server.master.map_or(0, |m| view.table.children(&m).filter(there).count());
    let waited = lost.age_ms.map(|ms| format!(" for {}", super::took(ms))).unwrap_or_default();
    let text = format!(
        "no child of php-fpm took this request{waited}: all of them ({children}) were busy, and nginx gave up waiting"
    );
    finding(lost, server, view, Cause::FpmPoolExhausted, 0.9, &text)
}

/// Both ends of the connection were killed in one moment, with their container: the request was lost once, and nginx's own
/// connection to its client tells of it.
pub fn died_with_it(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Close { closer: Closer::Local | Closer::AcceptQueue, .. } = &lost.evidence else { return None };
    let local = lost.tcp()?.remote_ip.to_canonical().is_loopback();
    let process = server.process.filter(|_| local && server.kind == Kind::PhpFpm)?;
    let killed_until = |key: &ProcKey, until| {
        // One that ended by itself in the same moment had passed the failure on to its client.
        let killed = view.history.exit_of(key).is_some_and(|e| e.at <= until && e.code & 0x7f == sig::KILL);
        killed || view.history.signals_to(key).iter().any(|s| s.at <= until && s.what.signal == sig::KILL)
    };
    let until = lost.at.saturating_add(SAME_MOMENT_NS);
    let killed = view.history.signals_to(&process).iter().any(|s| s.at <= lost.at && s.what.signal == sig::KILL);
    let workers: Vec<ProcKey> = view
        .table
        .processes()
        .filter(|p| view.table.role(&p.key).role == Role::NginxWorker && view.table.same_container(&p.key, &process))
        // Those of before, which a reload has replaced, may still have been there.
        .filter(|p| p.exited.is_none_or(|e| e.at.saturating_add(SAME_MOMENT_NS) >= lost.at))
        .map(|p| p.key)
        .collect();
    // Workers that were killed before it passed nothing on any more, however php-fpm ended then.
    let all = match workers.is_empty() {
        true => false,
        false if killed => workers.iter().all(|w| killed_until(w, until)),
        false => workers.iter().all(|w| killed_until(w, lost.at)),
    };
    let text = "the requesting nginx was killed with php-fpm, and its own connection tells of the request";
    all.then(|| finding(lost, server, view, Cause::ClientAbort, 0.9, text))
}

pub(super) fn nginx_master(view: &View, key: &ProcKey) -> Option<ProcKey> {
    match view.table.role(key).role {
        Role::NginxMaster => Some(*key),
        Role::NginxWorker => Some(view.table.parent(key).map_or(*key, |p| p.key)),
        _ => None,
    }
}

/// A reset came, the path died, or an administrator destroyed the socket (`ss -K`): `sk_err` was set before the close.
pub fn reset(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Close { closer, .. } = &lost.evidence else { return None };
    match closer {
        Closer::PeerReset => Some(finding(
            lost,
            server,
            view,
            Cause::RequesterReset,
            0.95,
            "the requesting side reset the connection before the answer",
        )),
        Closer::Other(err) => {
            let mut f = finding(
                lost,
                server,
                view,
                Cause::RequesterReset,
                0.6,
                "the connection was ended by the network or an administrator before the answer",
            );
            f.sub_cause = Some(match err {
                103 => "aborted",
                110 => "timed-out",
                _ => "path",
            });
            Some(f)
        }
        _ => None,
    }
}

/// The application closed without an answer while it went on living, and nobody had told it to stop: nginx's `return 444`,
/// a request header that never came to its end, an HTTP/2 connection that was idle.
pub fn deliberate(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Close { closer: Closer::Local, clause, state } = &lost.evidence else { return None };
    // nginx decides after it has read; php-fpm has no such decisions, and closing unread (no worker connections left) is
    // none either.
    let read = u64::from(answer::unread(state)) < answer::received(state);
    let ended = server.exit(view).is_some();
    if server.exiting
        || server.told_to_end(view, lost.at)
        || server.draining(view)
        || server.kind != Kind::Nginx
        || !read
        || ended
        || *clause == Clause::Unread && lost.bytes_sent > 0
    {
        return None;
    }
    Some(finding(
        lost,
        server,
        view,
        Cause::DeliberateClose,
        0.7,
        "the server closed the connection without an answer and went on: a decision of its configuration",
    ))
}
