//! One request, several layers: who had the requesting end of a lost request's connection, and whether the request is told
//! of there.
//!
//! An edge nginx, a sidecar and the pod's nginx each have connections of their own for one request. The incident is that of
//! the layer whose server failed; what the layer before saw of it is told beside the chain.

use super::chain::{self, Chain};
use super::confidence::Confidence;
use super::incident;
use super::said::pod_of;
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::ends::{End, How, KnownBy};
use crate::correlate::lost::{Evidence, Lost, RefusedAt};
use crate::correlate::nginx::{Failed, Upshot};
use crate::identity::{ContainerInfo, Place, Role};
use crate::model::event::{ProcKey, Task};
use crate::model::incident::{Cause, Requester, Trigger};

/// Programs that pass requests on, beside nginx.
const PROXIES: [&str; 3] = ["haproxy", "envoy", "traefik"];
/// Letters of a container's id that people know it by.
const SHORT_ID: usize = 12;

/// What is known of the layer before.
struct Before<'v> {
    known_by: KnownBy,
    /// Null where its own record is the loss.
    end: Option<&'v End>,
    task: Option<&'v Task>,
    container: Option<&'v ContainerInfo>,
    /// Of its socket.
    netns: u32,
}

impl<'v> Before<'v> {
    fn of(lost: &'v Lost, view: &View<'v>) -> Option<Self> {
        if let Evidence::Refused { seen: RefusedAt::Requester(s), .. } = &lost.evidence {
            let (task, netns) = (Some(&s.task), s.tuple.netns);
            return Some(Before {
                known_by: KnownBy::Addresses,
                end: None,
                task,
                container: place(&s.task, view),
                netns,
            });
        }
        let (known_by, end) = view.ends.of(lost)?;
        let task = end.task.as_ref();
        let of_socket = || view.table.container_of_cgroup(end.sk_cgroup, 0);
        let container = task.map_or_else(of_socket, |task| place(task, view));
        Some(Before { known_by, end: Some(end), task, container, netns: end.tuple.netns })
    }

    fn is_nginx(&self, lost: &Lost, view: &View) -> bool {
        let nginx = |key: &ProcKey| matches!(view.table.role(key).role, Role::NginxMaster | Role::NginxWorker);
        match (self.task, self.container) {
            (Some(task), _) => nginx(&task.key()),
            (None, Some(c)) => only_nginx(c, lost, view),
            (None, None) => false,
        }
    }

    fn kind(&self, lost: &Lost, server: &Server, view: &View) -> &'static str {
        // Who asks a php-fpm is the nginx before it: no layer of its own.
        if server.kind != Kind::Nginx {
            return "unknown";
        }
        let own = incident::container(lost, server, view);
        let same = |a: &ContainerInfo, b: &ContainerInfo| a.container.id == b.container.id;
        if self.container.zip(own).is_some_and(|(a, b)| same(a, b)) {
            return "unknown";
        }
        let exe = self.task.and_then(|t| view.table.process(&t.key())).and_then(|p| p.image.as_ref()).map(|i| i.base());
        if exe == Some("kubelet") && self.task.is_some_and(|t| view.table.is_host(t)) {
            return "probe";
        }
        let proxy = self.is_nginx(lost, view) || exe.is_some_and(|exe| PROXIES.contains(&exe));
        let pods =
            self.container.zip(own).and_then(|(a, b)| a.container.pod_uid.as_ref().zip(b.container.pod_uid.as_ref()));
        let host = view.started.map_or(0, |s| s.host_netns);
        let one_pod = pods.map_or(self.netns != 0 && self.netns != host && self.netns == lost.netns(), |(a, b)| a == b);
        match (proxy, one_pod) {
            (true, true) => "sidecar",
            (true, false) => "edge",
            (false, _) => "unknown",
        }
    }

    /// `nginx worker 812 (PID 2 in its container) of pod shop/edge`
    fn name(&self, view: &View) -> String {
        let who = self.task.map_or("a process".into(), |task| chain::describe(task, view));
        let Some(c) = self.container else { return format!("{who} of this node") };
        let pod = pod_of(c, view.pods).and_then(|p| Some(format!("{}/{}", p.namespace?, p.name?)));
        let place = pod.map_or_else(
            || format!("in container {}", c.container.id.get(..SHORT_ID).unwrap_or(&c.container.id)),
            |pod| format!("of pod {pod}"),
        );
        format!("{who} {place}")
    }
}

fn place<'v>(task: &Task, view: &View<'v>) -> Option<&'v ContainerInfo> {
    match view.table.place(task) {
        Place::Container(c) => Some(c),
        Place::Host | Place::Unknown => None,
    }
}

/// A reset arrives in nobody's name: whose socket it was for is known where nothing but nginx runs in its container.
fn only_nginx(c: &ContainerInfo, lost: &Lost, view: &View) -> bool {
    let there = view.table.processes().filter(|p| {
        p.exited.is_none_or(|e| e.at >= lost.at)
            && view.table.container_of(&p.key).is_some_and(|of| of.container.id == c.container.id)
    });
    let (mut any, mut only) = (false, true);
    for p in there {
        match view.table.role(&p.key).role {
            Role::NginxMaster | Role::NginxWorker => any = true,
            Role::Init | Role::Supervisor | Role::NginxCtl => {}
            _ => only = false,
        }
    }
    any && only
}

/// The requesting end, as the incident names it.
pub fn requester(lost: &Lost, server: &Server, view: &View) -> Requester {
    let t = lost.ends();
    let mut requester = Requester {
        ip: t.map(|t| t.remote_ip),
        // A connect that got no local port has none.
        port: t.map(|t| t.remote_port).filter(|port| *port != 0),
        kind: "unknown".into(),
        container: None,
        pod: None,
        known_by: None,
    };
    if let Some(before) = Before::of(lost, view) {
        requester.known_by = Some(before.known_by.id().into());
        // What is only probable names nobody.
        if before.known_by.sure() {
            requester.kind = before.kind(lost, server, view).into();
            requester.container = before.container.map(|c| c.container.id.clone());
            requester.pod = before.container.and_then(|c| pod_of(c, view.pods));
        }
    } else if let Some(c) = incident::unix_requester(lost, view) {
        requester.container = Some(c.container.id.clone());
        requester.pod = pod_of(c, view.pods);
    }
    requester
}

/// The requesting nginx got the end of this very connection, said so, and answered its client with an error page.
pub fn answered<'v>(lost: &Lost, view: &View<'v>) -> Option<Upshot<'v>> {
    let failed = said(lost, view)?;
    let status = failed.page?.status;
    Some(Upshot::Answered { status, nginx: &failed.logged.task, by: Some(failed) })
}

/// What the requesting nginx logged as it closed its end.
fn said<'v>(lost: &Lost, view: &View<'v>) -> Option<&'v Failed> {
    let (_, end) = view.ends.of(lost).filter(|(by, end)| by.sure() && end.how == How::Eof)?;
    view.nginx.of_connection(&end.task.as_ref()?.key(), &end.tuple, end.at)
}

/// Tells what the layer before saw, beside the explanation.
pub fn beside(chain: &mut Chain, lost: &Lost, view: &View) {
    let Some(before) = Before::of(lost, view) else { return };
    let Some(end) = before.end.filter(|end| !chain.names(end.event)) else { return };
    let exiting = end.task.as_ref().is_some_and(Task::exiting);
    let passed_on = said(lost, view).is_some_and(Failed::without_page);
    let what = match end.how {
        How::GaveUp if exiting => "closed it by exiting, before there was an answer",
        How::GaveUp => "closed it before there was an answer",
        How::Eof if exiting => "ended without having read that there is no answer",
        How::Eof if passed_on => {
            "got its end in place of an answer, said so and made no error page of it: it may have asked another server, or \
             its client had left"
        }
        How::Eof => "got its end in place of an answer, and closed it",
        How::Reset => "got the reset of it",
        How::Refused => "was refused",
    };
    let t = &end.tuple;
    let (local, remote) = ((t.local_ip, t.local_port).into(), (t.remote_ip, t.remote_port).into());
    let (local, remote): (std::net::SocketAddr, std::net::SocketAddr) = (local, remote);
    let name = before.name(view);
    let text = match before.known_by {
        KnownBy::Addresses => format!("{name} had the other end of this connection: it {what}"),
        KnownBy::SequenceNumbers => format!(
            "{name} had the other end of this connection, {local} -> {remote} on its side (known by its sequence numbers): \
             it {what}"
        ),
        KnownBy::AddressAndTime => format!(
            "{name} had a connection {local} -> {remote}, from the same address and port and at that time, so probably the \
             other end of this one: it {what}"
        ),
    };
    chain.requester(end, before.known_by.sure(), text, view);
}

/// The requesting nginx ended without having read that there is no answer: its client got none from it whatever the server
/// did, and its own connection to that client tells of the request. Only where it lost at least as many of its clients'
/// requests by that exit as it had open at its servers: else one of them would be told nowhere.
pub fn elsewhere(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let (known_by, end) = view.ends.of(lost)?;
    let task = end.task.as_ref().filter(|t| known_by.sure() && end.how == How::Eof && t.exiting())?;
    let role = view.table.role(&task.key());
    if !role.sure
        || !matches!(role.role, Role::NginxWorker | Role::NginxMaster)
        || !view.ends.told_of_its_own(&task.key())
    {
        return None;
    }
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let summary = "the requesting nginx ended without having read the end of this connection, and its own connection to its \
                   client tells of the request";
    Some(Finding {
        cause: Cause::ClientAbort,
        sub_cause: None,
        trigger: Trigger::Unknown,
        chain,
        confidence: Confidence::of(0.9),
        summary: summary.into(),
        missing: Vec::new(),
    })
}
