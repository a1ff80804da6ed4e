//! A proxy of the pod was gone before the server behind it, which still ran and had not been told to stop.
//!
//! Judged only where all of it is seen: the proxy is an nginx, the server behind it an nginx in another container of the
//! same pod, and the proxy had a connection to it. php-fpm is not "behind a proxy": that nginx ends before it is right.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View, requester};
use crate::correlate::history::sig;
use crate::correlate::lost::Lost;
use crate::identity::ServerKind;
use crate::model::event::ProcKey;
use crate::model::incident::Cause;

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
    let app = master_of(&app, view);
    if app == proxy || !same_pod(&proxy, &app, view) {
        return None;
    }
    // It still ran, and nobody had told it anything.
    let process = view.table.process(&app)?;
    let told = view.history.signals_to(&app).iter().any(|s| s.at <= lost.at && sig::stops(s.what.signal));
    if told || process.exited.is_some_and(|e| e.at <= lost.at) {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    if let Some(exit) = server.exit(view).filter(|e| server.exiting && e.at <= lost.at) {
        chain.exit(exit, "sockets-are-closed-by-exit", view);
    }
    chain.upstream(upstream, process, view);
    chain.signal(signal, "the-proxy-was-told-to-stop", view);
    let mut confidence = Confidence::of(0.9);
    confidence.because("that nobody had told the server behind it to stop is known only from not having seen it");
    Some(Finding {
        cause: Cause::SidecarGoneFirst,
        sub_cause: None,
        trigger: chain::trigger(signal, view),
        summary: format!(
            "the proxy of this pod was stopped with {} while the server behind it on port {} still ran",
            sig::name(signal.what.signal),
            t.remote_port
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

fn master_of(key: &ProcKey, view: &View) -> ProcKey {
    requester::nginx_master(view, key).unwrap_or(*key)
}

/// In one pod, and in two containers of it.
fn same_pod(a: &ProcKey, b: &ProcKey, view: &View) -> bool {
    let (Some(a), Some(b)) = (view.table.container_of(a), view.table.container_of(b)) else { return false };
    a.container.id != b.container.id && a.container.pod_uid.is_some() && a.container.pod_uid == b.container.pod_uid
}
