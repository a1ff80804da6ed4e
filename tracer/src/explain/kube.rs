//! Why a container was stopped, by what the Kubernetes API said: the trigger and the links that end a chain.
//!
//! Each trigger needs its own evidence; a deletion of which nothing more is known is `pod-deleted`. The API's times are
//! another machine's and mostly whole seconds: they never decide alone, and a fact that was seen counts from its sight at
//! the latest.

use super::chain::{Chain, Sender, sender_kind};
use super::prestop::is_hook;
use super::sender::command_line;
use super::server::Server;
use super::{Finding, View, incident, said};
use crate::correlate::history::Signal;
use crate::correlate::lost::Lost;
use crate::correlate::pods::{Fact, Pod, Pods};
use crate::correlate::stops::commands_before;
use crate::identity::{ContainerInfo, Place};
use crate::model::event::{BootNs, Task};
use crate::model::incident::{Cause, Trigger};
use crate::model::kube::{FactId, KubeEvent, OwnerRef, OwnerState};

/// Clocks of the API server and of this node may differ, and its times are cut to seconds.
const SLOP_NS: u64 = 2_000_000_000;
/// A kubelet goes from its Event to the stop signal within this time and the hook's, which ends with the grace period.
const KILLING_NS: u64 = 5_000_000_000;
/// Grace of a pod whose spec is not known.
const GRACE_S: u64 = 30;
/// A controller scales and deletes within this time of each other.
const CONTROLLER_NS: u64 = 120_000_000_000;

/// One thing that the API said, as a link. Effect first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub id: FactId,
    pub at: BootNs,
    pub seen_at: BootNs,
    pub kind: &'static str,
    pub rule: &'static str,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    pub trigger: Trigger,
    pub links: Vec<Told>,
}

/// What had the signal sent that began a stop: `None` when the API has nothing to do with it, or says nothing.
pub fn why(signal: &Signal, view: &View) -> Option<Why> {
    let container = container(&signal.what.target, view)?;
    let pod = view.pods.of(&container.container)?;
    let by_kubelet = match sender_kind(signal, view) {
        Sender::Runtime => true,
        // What a hook does is the stop's beginning; any other command from outside is somebody's own idea.
        Sender::SameContainer => hooked(signal, view),
        _ => false,
    };
    if !by_kubelet || signal.by_kernel() {
        return None;
    }
    let name = pod.container(&container.container.id);
    let at = signal.at;
    probe_failed(pod, name, &signal.what.target, at, view)
        .or_else(|| shutdown(pod, at, view))
        .or_else(|| evicted(pod, at, view))
        .or_else(|| deleted(pod, at, view))
}

/// The whole pod ends, not one container of it, by what the API said.
pub fn pod_ends(signal: &Signal, view: &View) -> bool {
    why(signal, view).is_some_and(|why| why.trigger != Trigger::LivenessFailed)
}

/// One container ends and not the pod, by what the API said.
pub fn container_ends(signal: &Signal, view: &View) -> bool {
    why(signal, view).is_some_and(|why| why.trigger == Trigger::LivenessFailed)
}

fn container<'v>(task: &Task, view: &View<'v>) -> Option<&'v ContainerInfo> {
    match view.table.place(task) {
        Place::Container(c) => Some(c),
        _ => None,
    }
}

/// The pod's own preStop command sent it.
fn hooked(signal: &Signal, view: &View) -> bool {
    let Some(command) = view.table.run_from_outside(&signal.what.sender.key()) else { return false };
    let near = commands_before(signal.at, &signal.what, view.table);
    near.iter().any(|c| c.key == command.key && is_hook(c, view))
}

/// What the API adds to a verdict: the end of its chain, and beside it when the pod had left its services.
pub fn beside(finding: &mut Finding, lost: &Lost, server: &Server, view: &View) {
    if let Some(trigger) = tell(&mut finding.chain, view) {
        finding.trigger = trigger;
    }
    if finding.cause != Cause::EndpointRace {
        return;
    }
    let pod = incident::container(lost, server, view).and_then(|c| view.pods.of(&c.container));
    let Some(left) = pod.and_then(Pod::left) else { return };
    let (slice, what) =
        (&left.fact.what.slice, if left.fact.what.present { "was not ready any more in" } else { "left" });
    let text = match lost.at.checked_sub(left.fact.at) {
        Some(ns) => {
            let late = ns as f64 / 1e9;
            finding.summary.push_str(&format!(", {late:.1} s after the pod {what} {slice}"));
            format!("the pod {what} {slice} {late:.1} s before this connection came")
        }
        None => format!("the pod {what} {slice} only after this connection came"),
    };
    finding.chain.told(&link(left.fact, "endpoint", "beside-left-its-service", text));
}

/// The API's part of a chain, behind its last signal: the hook that ran before it, the deletion, who deleted.
fn tell(chain: &mut Chain, view: &View) -> Option<Trigger> {
    let root = chain.root()?.clone();
    let why = why(&root, view)?;
    let mut hooks: Vec<_> = commands_before(root.at, &root.what, view.table)
        .into_iter()
        .filter(|c| c.key != root.what.sender.key() && is_hook(c, view))
        .filter_map(|c| Some((view.history.exit_of(&c.key).filter(|e| e.at <= root.at)?, c)))
        .collect();
    hooks.sort_by_key(|(exit, _)| (exit.at, exit.event));
    // One that failed is told by its own rule.
    if let Some((exit, command)) = hooks.last().filter(|(exit, _)| exit.code == 0) {
        let line = view.table.process(&command.key).map_or_else(|| command.argv.join(" "), command_line);
        let ran = super::took(exit.at.saturating_sub(command.at) / 1_000_000);
        chain.hook_ran(exit, format!("the preStop hook `{line}` ran {ran} and exited with status 0"), view);
    }
    for link in &why.links {
        chain.told(link);
    }
    Some(why.trigger)
}

fn link<T>(fact: &Fact<T>, kind: &'static str, rule: &'static str, text: String) -> Told {
    Told { id: fact.id, at: fact.at, seen_at: fact.seen_at, kind, rule, text }
}

/// The kubelet said that a probe of this container failed, and kills it for that.
fn probe_failed(pod: &Pod, name: Option<&str>, target: &Task, at: BootNs, view: &View) -> Option<Why> {
    let name = name?;
    let uid = &pod.state.what.uid;
    let grace = said::grace_s(container(target, view), view);
    let within = grace.unwrap_or(GRACE_S).saturating_mul(1_000_000_000).saturating_add(KILLING_NS);
    let of_it = |e: &&Fact<KubeEvent>| {
        let e = &e.what;
        e.from == "kubelet" && (e.container.as_deref() == Some(name) || mentions(&e.message, name))
    };
    // An Event of the container's life, not of one that had its name before.
    let lived = |e: &&Fact<KubeEvent>| target.start_ns <= e.at.saturating_add(SLOP_NS);
    let killing = view.pods.events(uid).rev().filter(of_it).filter(lived).find(|e| {
        let probe = e.what.message.contains("failed liveness probe") || e.what.message.contains("failed startup probe");
        e.what.reason == "Killing" && probe && e.at <= at + SLOP_NS && at <= e.at.saturating_add(within)
    })?;
    // Deleted before that: it would have ended anyway.
    if pod.deletion().is_some_and(|(_, deleted, ..)| deleted.saturating_add(SLOP_NS) < killing.at) {
        return None;
    }
    let mut links =
        vec![link(killing, "kube-event", "killed-for-its-probe", format!("kubelet: {}", killing.what.message))];
    let unhealthy = view.pods.events(uid).rev().filter(of_it).filter(lived).find(|e| {
        e.what.reason == "Unhealthy" && !e.what.message.starts_with("Readiness") && e.at <= killing.at + SLOP_NS
    });
    if let Some(e) = unhealthy {
        let times = if e.what.count > 1 { format!(" ({} times)", e.what.count) } else { String::new() };
        links.push(link(e, "kube-event", "the-probe-failed", format!("kubelet: {}{times}", e.what.message)));
    }
    Some(Why { trigger: Trigger::LivenessFailed, links })
}

/// A whole word of a message.
fn mentions(message: &str, name: &str) -> bool {
    message.split([' ', '"', ',', ':', '\'']).any(|word| word == name)
}

/// The node goes down, by the kubelet's own word.
fn shutdown(pod: &Pod, at: BootNs, view: &View) -> Option<Why> {
    let who = name(pod);
    let says = |text: &str| text.contains("shutdown") || text.contains("shutting down");
    let node_down = |reason: &str, message: &str| {
        matches!(reason, "Terminated" | "NodeShutdown" | "Shutdown" | "TerminationByKubelet") && says(message)
    };
    if let Some(d) = pod.disruption.as_ref().filter(|d| node_down(&d.what.reason, &d.what.message)) {
        let text = format!("{who} was terminated with its node: {}", d.what.message);
        return Some(Why { trigger: Trigger::NodeShutdown, links: vec![link(d, "pod-status", "the-node-goes", text)] });
    }
    if let Some(ended) = &pod.ended {
        let (reason, message) = (ended.what.reason.as_deref(), ended.what.message.as_deref());
        let (reason, message) = (reason.unwrap_or_default(), message.unwrap_or_default());
        if node_down(reason, message) {
            let text = format!("{who} was terminated with its node: {message}");
            let links = vec![link(ended, "pod-status", "the-node-goes", text)];
            return Some(Why { trigger: Trigger::NodeShutdown, links });
        }
    }
    // Deleted before that: by somebody who did not mean the node.
    let node = view.pods.node().rev().find(|n| n.at <= at + SLOP_NS)?;
    let going = node.what.ready == Some(false) && node.what.message.contains("node is shutting down");
    if !going || pod.deletion().is_some_and(|(_, deleted, ..)| deleted.saturating_add(SLOP_NS) < node.at) {
        return None;
    }
    let text = format!("node {} is not ready: {}", node.what.name, node.what.message);
    Some(Why { trigger: Trigger::NodeShutdown, links: vec![link(node, "node-status", "the-node-goes", text)] })
}

/// Somebody wanted the pod off this node: the eviction API (drain), the scheduler, a taint, the kubelet short of resources.
fn evicted(pod: &Pod, at: BootNs, view: &View) -> Option<Why> {
    let who = name(pod);
    let mut links = Vec::new();
    let by = |reason: &str| match reason {
        "EvictionByEvictionAPI" => "through the eviction API, as a drain does",
        "PreemptionByScheduler" | "PreemptionByKubeScheduler" => "by the scheduler, for a pod of higher priority",
        "DeletionByTaintManager" => "because of a taint of its node",
        "DeletionByPodGC" => "because its node is gone",
        "TerminationByKubelet" => "by the kubelet, short of resources",
        _ => "",
    };
    let condition = pod.disruption.as_ref().filter(|d| !by(&d.what.reason).is_empty());
    if let Some(d) = condition {
        let text = format!("{who} was evicted {}: {}", by(&d.what.reason), d.what.message);
        links.push(link(d, "pod-status", "evicted", text));
    }
    let ended = pod.ended.as_ref().filter(|e| e.what.reason.as_deref() == Some("Evicted"));
    if let Some(e) = ended.filter(|_| links.is_empty()) {
        let text = format!("{who} was evicted by the kubelet: {}", e.what.message.as_deref().unwrap_or_default());
        links.push(link(e, "pod-status", "evicted", text));
    }
    let event = view.pods.events(&pod.state.what.uid).rev().find(|e| {
        let known = matches!(e.what.reason.as_str(), "Evicted" | "Preempted" | "TaintManagerEviction");
        known && e.at <= at + SLOP_NS
    });
    // "Cancelling deletion of Pod" is a TaintManagerEviction too.
    let event = event.filter(|e| !e.what.message.starts_with("Cancel"));
    if let Some(e) = event.filter(|_| links.is_empty()) {
        let text = format!("{}: {who}: {}", e.what.from, e.what.message);
        links.push(link(e, "kube-event", "evicted", text));
    }
    if links.is_empty() {
        return None;
    }
    links.splice(0..0, deletion(pod, at));
    Some(Why { trigger: Trigger::Eviction, links })
}

fn name(pod: &Pod) -> String {
    format!("pod {}/{}", pod.state.what.namespace, pod.state.what.name)
}

/// The pod had been deleted before the signal.
fn deletion(pod: &Pod, at: BootNs) -> Option<Told> {
    let (id, deleted, seen_at, grace) = pod.deletion().filter(|(_, deleted, ..)| *deleted <= at + SLOP_NS)?;
    let text = match (&pod.deleted, grace) {
        (Some(_), _) => format!("{} was deleted, grace {grace} s", name(pod)),
        (None, _) => format!("{} was deleted without a grace period", name(pod)),
    };
    Some(Told { id, at: deleted, seen_at, kind: "pod-deleted", rule: "pod-was-deleted", text })
}

fn deleted(pod: &Pod, at: BootNs, view: &View) -> Option<Why> {
    let told = deletion(pod, at)?;
    let (trigger, links) = by_owner(pod, told.at, view).unwrap_or((Trigger::PodDeleted, Vec::new()));
    Some(Why { trigger, links: std::iter::once(told).chain(links).collect() })
}

/// Its controller deleted it, and why that did.
fn by_owner(pod: &Pod, deleted: BootNs, view: &View) -> Option<(Trigger, Vec<Told>)> {
    let owner = pod.state.what.owner.as_ref()?;
    let now = view.pods.owner(&owner.uid).next_back()?;
    match owner.kind.as_str() {
        "ReplicaSet" => by_replica_set(pod, owner, now, deleted, view),
        "StatefulSet" => by_stateful_set(pod, owner, now, deleted, view),
        "DaemonSet" => {
            let (old, new) = (pod.state.what.labels.get("pod-template-generation")?, now.what.revision.as_ref()?);
            let event = deleted_by(pod, owner, deleted, view)?;
            let text =
                format!("rollout of DaemonSet/{}: its template is of generation {new}, the pod's {old}", owner.name);
            (old != new).then(|| (Trigger::Rollout, vec![event, link(now, "owner", "template-replaced", text)]))
        }
        _ => None,
    }
}

/// The controller's Event of this very deletion: it names the pod.
fn deleted_by(pod: &Pod, owner: &OwnerRef, deleted: BootNs, view: &View) -> Option<Told> {
    let near = |e: &&Fact<KubeEvent>| e.at.abs_diff(deleted) <= KILLING_NS + SLOP_NS;
    let event = view.pods.events(&owner.uid).rev().filter(near).find(|e| {
        let known = matches!(e.what.reason.as_str(), "SuccessfulDelete" | "Killing");
        known && mentions(&e.what.message, &pod.state.what.name)
    })?;
    let text = format!("{} of {}/{}: {}", event.what.from, owner.kind, owner.name, event.what.message);
    Some(link(event, "kube-event", "deleted-by-its-owner", text))
}

/// How many pods an owner wanted before: the last other number, not long before the deletion.
fn lowered(facts: &[&Fact<OwnerState>], deleted: BootNs) -> Option<(u32, u32)> {
    let now = facts.last()?.what.replicas?;
    let before = facts.iter().rev().find_map(|f| f.what.replicas.filter(|n| *n != now))?;
    let changed = facts.iter().rev().take_while(|f| f.what.replicas == Some(now)).last()?;
    let recent = changed.seen_at.saturating_add(CONTROLLER_NS) >= deleted;
    (before > now && recent).then_some((before, now))
}

fn by_replica_set(
    pod: &Pod,
    owner: &OwnerRef,
    now: &Fact<OwnerState>,
    deleted: BootNs,
    view: &View,
) -> Option<(Trigger, Vec<Told>)> {
    let event = deleted_by(pod, owner, deleted, view);
    let facts: Vec<_> = view.pods.owner(&owner.uid).collect();
    let fewer = lowered(&facts, deleted);
    // It deletes no pod unless it has too many, and says which in an Event. Where Events are not to be read, that it had
    // too many must do.
    let unread = pod.asked.as_ref().is_some_and(|asked| asked.what.iter().any(|what| what == "events"));
    if event.is_none() && (fewer.is_none() || !unread) {
        return None;
    }
    let mut links: Vec<Told> = event.into_iter().collect();
    let counts = fewer.map(|(from, to)| format!(" from {from} to {to}")).unwrap_or_default();
    let set = format!("ReplicaSet {}", owner.name);
    let Some(above) = &now.what.owner else {
        let text = format!("scale-down of ReplicaSet/{}{counts}", owner.name);
        links.push(link(now, "owner", "replicas-lowered", text));
        return Some((Trigger::ScaleDown, links));
    };
    let workload = view.pods.owner(&above.uid).next_back()?;
    let title = format!("{}/{}", above.kind, above.name);
    let revision = |o: &OwnerState| o.revision.as_ref().and_then(|r| r.parse::<u64>().ok());
    let (old, new) = (revision(&now.what)?, revision(&workload.what)?);
    let scaled = scaled(above, &owner.name, deleted, view);
    let (wanted, kept) = (workload.what.replicas?, now.what.replicas?);
    // With maxSurge 0 the old pods go before the first new one comes.
    let replaced = workload.what.updated.is_some_and(|n| n > 0) || kept < wanted;
    if old < new && wanted > 0 && replaced {
        links.extend(scaled);
        let text =
            format!("rollout of {title}: revision {new} takes over, {set} of revision {old} was scaled down{counts}");
        links.push(link(workload, "owner", "template-replaced", text));
        return Some((Trigger::Rollout, links));
    }
    if wanted == 0 || old == new && wanted <= kept {
        links.extend(scaled);
        let facts: Vec<_> = view.pods.owner(&above.uid).collect();
        let counts = lowered(&facts, deleted).or(fewer).map(|(from, to)| format!(" from {from} to {to}"));
        let text = format!("scale-down of {title}{}", counts.unwrap_or_else(|| format!(" to {wanted}")));
        links.push(link(workload, "owner", "replicas-lowered", text));
        return Some((Trigger::ScaleDown, links));
    }
    if old == new && workload.what.recreate && kept == 0 {
        links.extend(scaled);
        let text = format!("rollout of {title} (Recreate): all pods of revision {old} go first");
        links.push(link(workload, "owner", "template-replaced", text));
        return Some((Trigger::Rollout, links));
    }
    None
}

/// The Deployment's own Event: "Scaled down replica set web-7d9f to 2 from 3".
fn scaled(above: &OwnerRef, set: &str, deleted: BootNs, view: &View) -> Option<Told> {
    let event = view.pods.events(&above.uid).rev().find(|e| {
        let down = e.what.reason == "ScalingReplicaSet" && e.what.message.starts_with("Scaled down");
        down && mentions(&e.what.message, set) && e.at.abs_diff(deleted) <= CONTROLLER_NS
    })?;
    Some(link(event, "kube-event", "replica-set-scaled-down", format!("{}: {}", event.what.from, event.what.message)))
}

fn by_stateful_set(
    pod: &Pod,
    owner: &OwnerRef,
    now: &Fact<OwnerState>,
    deleted: BootNs,
    view: &View,
) -> Option<(Trigger, Vec<Told>)> {
    // A pod of the same name comes and goes: only the Event of this deletion tells it from a person's.
    let event = deleted_by(pod, owner, deleted, view)?;
    let revision = pod.state.what.labels.get("controller-revision-hash");
    let ordinal = pod.state.what.name.rsplit('-').next().and_then(|n| n.parse::<u32>().ok());
    let facts: Vec<_> = view.pods.owner(&owner.uid).collect();
    if let (Some(ordinal), Some(wanted)) = (ordinal, now.what.replicas)
        && ordinal >= wanted
    {
        let counts =
            lowered(&facts, deleted).map_or_else(|| format!("to {wanted}"), |(a, b)| format!("from {a} to {b}"));
        let text = format!("scale-down of StatefulSet/{} {counts}", owner.name);
        return Some((Trigger::ScaleDown, vec![event, link(now, "owner", "replicas-lowered", text)]));
    }
    let (old, new) = (revision?, now.what.revision.as_ref()?);
    let text = format!("rollout of StatefulSet/{}: its revision is {new}, the pod's {old}", owner.name);
    (old != new).then(|| (Trigger::Rollout, vec![event, link(now, "owner", "template-replaced", text)]))
}

/// Which workload a pod belongs to: `Deployment/web` where its ReplicaSet was read, else its controller.
pub fn workload(pod: &Pod, pods: &Pods) -> Option<String> {
    let owner = pod.state.what.owner.as_ref()?;
    let above = pods.owner(&owner.uid).next_back().and_then(|o| o.what.owner.as_ref());
    let top = above.unwrap_or(owner);
    Some(format!("{}/{}", top.kind, top.name))
}
