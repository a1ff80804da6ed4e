//! A proxy of the pod was gone before the server behind it, which still ran and had not been told to stop.
//!
//! Judged only where all of it is seen: proxy and server are in two containers of one pod, the proxy had a connection to the
//! server, and the pod as a whole is being stopped. A proxy that is stopped alone is a restart of it. The server is an nginx;
//! php-fpm is not "behind a proxy": that nginx ends before it is right.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::pod::{self, APART_NS};
use super::prestop;
use super::server::{Kind, Server};
use super::{Finding, View, requester};
use crate::correlate::answer::Closer;
use crate::correlate::history::{Signal, sig};
use crate::correlate::lost::{Evidence, Lost};
use crate::correlate::stops::Command;
use crate::identity::{ExecRef, Process, ServerKind};
use crate::model::event::{BootNs, ProcKey, Task};
use crate::model::incident::Cause;

/// One stop of a pod takes no longer.
const LONGEST_GRACE_NS: u64 = 600_000_000_000;

/// The proxy is an nginx: what it lost is seen at its own sockets.
pub fn gone_first(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let by_stop = lost.cut_in_flight() || lost.thrown_out_of_queue() || lost.refused() || lost.late_data();
    if server.kind != Kind::Nginx || !by_stop {
        return None;
    }
    let proxy = server.master?;
    let signal = server.asked_first(view, lost.at)?;
    let upstream = view.history.upstream_of(&proxy).filter(|u| u.tuple.netns == lost.netns())?;
    let t = &upstream.tuple;
    let behind = view.table.server_at(t.netns, t.remote_ip, t.remote_port, lost.at)?;
    let app = behind.process.filter(|_| behind.kind == ServerKind::Nginx && behind.sure)?;
    let app = requester::nginx_master(view, &app).unwrap_or(app);
    let stop = PodStop::of(&proxy, signal, &app, lost.at, view).filter(|_| app != proxy)?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    if let Some(exit) = server.exit(view).filter(|e| server.exiting && e.at <= lost.at) {
        chain.exit(exit, "sockets-are-closed-by-exit", view);
    }
    chain.upstream(upstream, stop.app, view);
    let summary = format!(
        "the proxy of this pod was stopped with {} while the server behind it on port {} still ran",
        sig::name(signal.what.signal),
        t.remote_port
    );
    Some(finding(chain, 0.9, summary, signal, &stop, view))
}

/// The proxy is another program, whose own protocol is not known: what it lost is seen at the server behind it, which read
/// a request, had not answered it, and whose requester was ended by its stop.
pub fn requester_gone(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Close { closer: Closer::PeerFin | Closer::PeerReset, .. } = &lost.evidence else { return None };
    if server.kind != Kind::Nginx || !server.sure {
        return None;
    }
    let end = view.ends.gave_up(lost)?;
    let task = end.task.as_ref()?;
    let proxy = task.key();
    // An exiting task has no namespaces any more. A pod's nginx that loses requests is judged at its own sockets.
    let here = view.table.process(&proxy)?.netns == lost.netns();
    if !task.exiting() || !here || requester::nginx_master(view, &proxy).is_some() {
        return None;
    }
    let signal = asked(task, lost.at, view)?;
    let stop = PodStop::of(&proxy, signal, &server.master?, lost.at, view)?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    chain.requester_ended(end.event, end.at, task, view);
    if let Some(exit) = view.history.exit_of(&proxy).filter(|e| e.at <= lost.at) {
        chain.exit(exit, "sockets-are-closed-by-exit", view);
    }
    let summary = format!(
        "{}, through which this request came, was stopped with {} while nginx behind it still worked on it",
        task.comm,
        sig::name(signal.what.signal)
    );
    Some(finding(chain, 0.85, summary, signal, &stop, view))
}

fn finding(mut chain: Chain, value: f64, summary: String, signal: &Signal, stop: &PodStop, view: &View) -> Finding {
    chain.signal(signal, "the-proxy-was-told-to-stop", view);
    match &stop.shown {
        Shown::Told(other) => chain.signal(other, chain::BESIDE_POD_STOP, view),
        Shown::Hook(process, exec) => chain.hook(process, *exec, view),
    }
    let mut confidence = Confidence::of(value);
    confidence.because("that nobody had told the server behind it to stop is known only from not having seen it");
    let trigger = chain::trigger(signal, view);
    Finding {
        cause: Cause::SidecarGoneFirst,
        sub_cause: None,
        trigger,
        summary,
        chain,
        confidence,
        missing: Vec::new(),
    }
}

/// The first effective stop signal to this process, or to what started it in its container.
fn asked<'v>(task: &Task, until: BootNs, view: &'v View) -> Option<&'v Signal> {
    let asks = |s: &&Signal| {
        s.at <= until && sig::asks_to_stop(s.what.signal) && s.effective() && !s.by_kernel() && !s.to_itself()
    };
    let key = task.key();
    let all = view.table.lineage(&key).flat_map(|p| view.history.signals_to(&p.key)).filter(asks);
    all.min_by_key(|s| (s.at, s.event))
}

/// The proxy's stop is one of the whole pod, in which the server behind it goes on.
struct PodStop<'v> {
    app: &'v Process,
    shown: Shown<'v>,
}

enum Shown<'v> {
    /// Another container of the pod was told to stop: another one at that time, or that of the server behind, later.
    Told(&'v Signal),
    /// The preStop hook of a pod spec holds the stop signal to the server behind back.
    Hook(&'v Process, ExecRef),
}

impl<'v> PodStop<'v> {
    fn of(proxy: &ProcKey, asked: &Signal, app: &ProcKey, lost_at: BootNs, view: &'v View) -> Option<Self> {
        let process = view.table.process(app)?;
        // It still ran, and nobody had told it anything.
        let told = view.history.signals_to(app).iter().any(|s| s.at <= lost_at && sig::stops(s.what.signal));
        if told || process.exited.is_some_and(|e| e.at <= lost_at) {
            return None;
        }
        let there = &view.table.container_of(app)?.container.id;
        let (mut tells, mut hook, mut one_pod) = (Vec::new(), None, false);
        for (p, c) in pod::others(proxy, view) {
            let behind = c.container.id == *there;
            one_pod |= behind;
            for s in pod::told(&p.key, view) {
                let gap = s.at.abs_diff(asked.at);
                match behind {
                    true if s.at <= lost_at || gap < APART_NS => return None,
                    true if gap < LONGEST_GRACE_NS => tells.push(s),
                    false if gap < APART_NS => tells.push(s),
                    _ => {}
                }
            }
            if behind {
                hook = hook.or(running_hook(p, asked.at, lost_at, view));
            }
        }
        if !one_pod {
            return None;
        }
        let told = tells.into_iter().min_by_key(|s| (s.at, s.event)).map(Shown::Told);
        Some(PodStop { app: process, shown: hook.map(|(p, exec)| Shown::Hook(p, exec)).or(told)? })
    }
}

/// This process is a preStop hook that a pod spec names, and had not ended when the request was lost.
fn running_hook<'v>(p: &'v Process, asked: BootNs, lost_at: BootNs, view: &View) -> Option<(&'v Process, ExecRef)> {
    let exec = *p.execs.last()?;
    if p.exited.is_some_and(|e| e.at <= lost_at) || exec.at.abs_diff(asked) > LONGEST_GRACE_NS {
        return None;
    }
    let command = Command { key: p.key, at: exec.at, event: Some(exec.event), argv: p.argv().to_vec(), exit: None };
    let outside = view.table.run_from_outside(&p.key).is_some_and(|top| top.key == p.key);
    (outside && prestop::is_hook(&command, view)).then_some((p, exec))
}
