//! Finding + loss + names → the incident that is printed.

use super::said::{self, container_of, pod_of};
use super::server::Server;
use super::{Finding, View, advice, layers};
use crate::correlate::detect::tls_port;
use crate::correlate::lost::{Conn, Evidence, Lost, RefusedAt};
use crate::correlate::nginx::Upshot;
use crate::identity::{ContainerInfo, Place};
use crate::model::event::BootNs;
use crate::model::incident::{self, Bound, Cause, Incident, Loss, Missing, Requests, Response, SCHEMA};
use std::collections::BTreeMap;

/// What is no part of the finding.
pub struct Told<'a> {
    pub decided_at: BootNs,
    pub stop: Option<&'a str>,
    pub upshot: Upshot<'a>,
}

pub fn assemble(
    finding: Finding,
    also_matched: Vec<Cause>,
    lost: &Lost,
    server: &Server,
    view: &View,
    told: Told,
) -> Incident {
    let Told { decided_at, stop, upshot } = told;
    let container = container(lost, server, view);
    let advice = advice::of(finding.cause, finding.sub_cause, &advice::Facts::of(lost, server, view));
    let mut missing = finding.missing;
    if container.is_none() {
        missing.push(Missing {
            fact: "container".into(),
            effect: "the server is in no known container: named by its process only".into(),
        });
    }
    let from = finding.chain.earliest().saturating_sub(super::confidence::BEFORE_NS);
    missing.extend(said::missing(container, from, decided_at, view));
    let (node, boot_id) = view.started.map_or((String::new(), String::new()), |s| (s.node.clone(), s.boot_id.clone()));
    Incident {
        kind: "incident".into(),
        schema: SCHEMA,
        id: id(&boot_id, lost),
        rev: 1,
        state: "final".into(),
        node,
        boot_id,
        at: time(view, lost.at),
        decided_at: time(view, decided_at),
        at_boot_ns: lost.at,
        outcome: lost.outcome,
        mechanism: lost.mechanism,
        cause: finding.cause,
        sub_cause: finding.sub_cause.map(str::to_string),
        trigger: finding.trigger,
        also_matched,
        response: response(lost, &upshot),
        requests: Requests {
            count: 1,
            bound: if lost.tcp().is_some_and(|t| tls_port(t.local_port) || view.history.carried(t).is_some()) {
                Bound::AtLeast
            } else {
                Bound::Exact
            },
        },
        requester: layers::requester(lost, server, view),
        server: incident::Server {
            ip: lost.ends().map(|t| t.local_ip),
            port: lost.ends().map(|t| t.local_port),
            path: match &lost.conn {
                Conn::Unix { path, .. } => Some(path.clone()),
                Conn::Tcp(_) | Conn::Hidden { .. } => None,
            },
            netns: lost.netns(),
        },
        age_ms: lost.age_ms,
        stop: stop.map(str::to_string),
        pod: container.or_else(|| neighbour(lost, view)).and_then(|c| pod_of(c, view.pods)),
        container: container.map(|c| container_of(c, view.pods)),
        summary: finding.summary,
        chain: finding.chain.finish(view),
        confidence: finding.confidence.finish(),
        advice,
        missing,
        loss: loss(view, lost, from, decided_at),
    }
}

/// The status that nginx made of it, where that was seen.
fn response(lost: &Lost, upshot: &Upshot) -> Response {
    let status = match (&lost.evidence, upshot) {
        (Evidence::ErrorMade(made), _) => Some(made.status),
        (Evidence::ThrownAway(thrown), _) => thrown.failed.page.map(|p| p.status),
        (_, Upshot::Answered { status, .. }) => Some(*status),
        _ => None,
    };
    let status = status.and_then(|status| u16::try_from(status).ok());
    Response { status, source: status.map_or("none", |_| "nginx").into(), bytes: 0 }
}

/// The container of the nginx behind an AF_UNIX connection.
pub(super) fn unix_requester<'v>(lost: &Lost, view: &View<'v>) -> Option<&'v ContainerInfo> {
    let cgroup = match &lost.evidence {
        Evidence::UnixClose { dropped, .. } => (dropped.client_cgroup, 0),
        Evidence::UnixRefused { what, .. } => (what.task.cgroup, what.task.cgroup_v1),
        Evidence::ThrownAway(t) if t.left.is_none() => (t.failed.logged.task.cgroup, t.failed.logged.task.cgroup_v1),
        _ => return None,
    };
    view.table.container_of_cgroup(cgroup.0, cgroup.1)
}

/// The container of an nginx that could not connect, when what it asked for is of its own pod: what it reaches by a unix
/// socket shares a volume with it, what it reaches by the loopback its network.
fn neighbour<'v>(lost: &Lost, view: &View<'v>) -> Option<&'v ContainerInfo> {
    let Evidence::Refused { seen: RefusedAt::Requester(s), .. } = &lost.evidence else {
        return unix_requester(lost, view);
    };
    let own = s.tuple.remote_ip.to_canonical().is_loopback() && view.started?.host_netns != s.tuple.netns;
    match view.table.place(&s.task) {
        Place::Container(c) if own => Some(c),
        _ => None,
    }
}

/// The container of whoever closed; of the socket where nobody did.
pub fn container<'v>(lost: &Lost, server: &Server, view: &View<'v>) -> Option<&'v ContainerInfo> {
    server
        .task
        .as_ref()
        .and_then(|t| match view.table.place(t) {
            Place::Container(c) => Some(c),
            _ => None,
        })
        .or_else(|| server.process.and_then(|p| view.table.container_of(&p)))
        .or_else(|| view.table.container_of_cgroup(lost.sk_cgroup, 0))
}

pub fn time(view: &View, at: BootNs) -> String {
    view.clock.rfc3339(at).unwrap_or_else(|| format!("boot+{at}ns"))
}

fn loss(view: &View, lost: &Lost, from: BootNs, to: BootNs) -> Loss {
    let mut by_hook: BTreeMap<String, u64> = BTreeMap::new();
    for l in view.losses(lost, from, to) {
        let kind = serde_json::to_value(l.kind).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
        *by_hook.entry(format!("{}/{kind}", l.hook)).or_default() += l.count;
    }
    Loss { in_window: by_hook.values().sum(), by_hook }
}

/// The same loss has the same id in every replay: FNV-1a over what names it.
fn id(boot_id: &str, lost: &Lost) -> String {
    let what = match lost.evidence {
        Evidence::Close { .. } => "close",
        Evidence::Refused { .. } => "refused",
        Evidence::LateData { .. } => "late",
        Evidence::Handshake { .. } => "handshake",
        Evidence::NotConnected { .. } => "not-connected",
        Evidence::UnixClose { .. } => "unix-close",
        Evidence::UnixRefused { .. } => "unix-refused",
        Evidence::ThrownAway(_) => "thrown-away",
        Evidence::ErrorMade(_) => "nginx",
    };
    let ends = match &lost.conn {
        Conn::Tcp(t) => format!("{}:{}|{}:{}|{}", t.local_ip, t.local_port, t.remote_ip, t.remote_port, t.netns),
        Conn::Unix { path, netns, id } => format!("{path}|{id}|{netns}"),
        Conn::Hidden { netns, id, .. } => format!("{id}|{netns}"),
    };
    let text = format!("{boot_id}|{}|{what}|{ends}", lost.at);
    format!("i-{:016x}", fnv(text.as_bytes()))
}

/// FNV-1a, 64 bits: short, stable for good, and nobody's secret depends on it.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
