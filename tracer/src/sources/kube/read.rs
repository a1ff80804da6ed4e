//! Objects of the API → facts of ours. Total and bounded: whatever an object holds, it becomes something small or nothing.

use crate::model::input::SpecFact;
use crate::model::kube::{
    Condition, EndpointState, KubeEvent, NodeState, OwnerRef, OwnerState, PodContainer, PodState,
};
use crate::sources::spec;
use kube::core::DynamicObject;
use kube::core::ObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes kept of a message.
const TEXT_MAX: usize = 1024;
/// Bytes kept of a name, a label.
const NAME_MAX: usize = 253;
const LABELS_MAX: usize = 64;
const CONTAINERS_MAX: usize = 128;

/// Reasons of Events that tell why a container or a pod ended.
const REASONS: &[&str] = &[
    "BackOff",
    "Evicted",
    "FailedPreStopHook",
    "Killing",
    "NodeNotReady",
    "NodeShutdown",
    "Preempted",
    "ScalingReplicaSet",
    "Shutdown",
    "SuccessfulDelete",
    "TaintManagerEviction",
    "Unhealthy",
];

fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

fn name(text: Option<&str>) -> String {
    cut(text.unwrap_or_default(), NAME_MAX)
}

fn text(value: &Value) -> String {
    cut(value.as_str().unwrap_or_default(), TEXT_MAX)
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// RFC 3339 → ns since 1970.
fn time(value: &Value) -> Option<i64> {
    let at: jiff::Timestamp = value.as_str()?.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok()
}

fn owner_of(meta: &ObjectMeta) -> Option<OwnerRef> {
    let owner = meta.owner_references.as_ref()?.iter().find(|o| o.controller == Some(true))?;
    Some(OwnerRef { kind: name(Some(&owner.kind)), name: name(Some(&owner.name)), uid: name(Some(&owner.uid)) })
}

fn annotation<'m>(meta: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A pod, and the moment of its deletion.
pub fn pod(object: &DynamicObject) -> Option<(PodState, Option<i64>)> {
    let meta = &object.metadata;
    let status = &object.data["status"];
    let condition = |kind: &str| list(&status["conditions"]).iter().find(|c| c["type"] == kind);
    let statuses = ["containerStatuses", "initContainerStatuses"].into_iter().flat_map(|key| list(&status[key]));
    let containers = statuses.take(CONTAINERS_MAX).map(|c| PodContainer {
        name: name(c["name"].as_str()),
        // `containerd://3f2a…`
        id: c["containerID"].as_str().and_then(|id| id.split_once("://")).map(|(_, id)| name(Some(id))),
        restarts: number(&c["restartCount"]).unwrap_or(0),
    });
    let grace = meta.deletion_timestamp.as_ref().map(|_| meta.deletion_grace_period_seconds.unwrap_or(0).max(0));
    // The API's deletion time is that of the grace period's end.
    let deleted = meta.deletion_timestamp.as_ref().zip(grace).and_then(|(at, grace)| {
        let at = i64::try_from(at.0.as_nanosecond()).ok()?;
        at.checked_sub(grace.checked_mul(1_000_000_000)?)
    });
    let some = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(|t| cut(t, TEXT_MAX));
    let labels: BTreeMap<_, _> = meta.labels.iter().flatten().take(LABELS_MAX).collect();
    let state = PodState {
        uid: name(Some(meta.uid.as_deref()?)),
        namespace: name(meta.namespace.as_deref()),
        name: name(meta.name.as_deref()),
        static_uid: annotation(meta, "kubernetes.io/config.hash").map(|hash| name(Some(hash))),
        owner: owner_of(meta),
        labels: labels.into_iter().map(|(k, v)| (cut(k, 2 * NAME_MAX), cut(v, NAME_MAX))).collect(),
        containers: containers.collect(),
        deleted_grace_s: grace.and_then(|g| u64::try_from(g).ok()),
        phase: name(status["phase"].as_str()),
        reason: some(&status["reason"]),
        message: some(&status["message"]),
        disruption: condition("DisruptionTarget")
            .filter(|c| c["status"] == "True")
            .map(|c| Condition { reason: text(&c["reason"]), message: text(&c["message"]) }),
        ready: condition("Ready").map(|c| c["status"] == "True"),
    };
    Some((state, deleted))
}

/// What the pod's spec says about stopping its containers, by the reader of spec files: the API's JSON is YAML as well.
/// Only what matters goes there: no environment, no volumes.
pub fn pod_spec(object: &DynamicObject) -> Vec<SpecFact> {
    let spec = &object.data["spec"];
    let keys = ["name", "image", "command", "args", "restartPolicy", "lifecycle", "ports"];
    let containers = |key: &str| -> Vec<Value> {
        let some = |c: &Value| keys.iter().map(|k| ((*k).to_owned(), c[*k].clone())).collect();
        list(&spec[key]).iter().take(CONTAINERS_MAX).map(|c| Value::Object(some(c))).collect()
    };
    let (namespace, pod) = (name(object.metadata.namespace.as_deref()), name(object.metadata.name.as_deref()));
    let small = json!({
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": pod},
        "spec": {
            "terminationGracePeriodSeconds": spec["terminationGracePeriodSeconds"],
            "shareProcessNamespace": spec["shareProcessNamespace"],
            "containers": containers("containers"),
            "initContainers": containers("initContainers"),
        }
    });
    let source = format!("Pod {namespace}/{pod}");
    let read = spec::read(&source, &small.to_string()).unwrap_or_default();
    let uid = object.metadata.uid.as_deref();
    read.iter().flat_map(|workload| spec::facts(&source, uid, workload)).collect()
}

/// The pods of a node in an EndpointSlice or in Endpoints, and whether each is ready, serving, terminating.
pub fn endpoints(object: &DynamicObject, node: &str) -> Vec<EndpointState> {
    let meta = &object.metadata;
    let namespace = name(meta.namespace.as_deref());
    let own = name(meta.name.as_deref());
    let service = meta.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
    let entry = |kind: &str, service: Option<&String>, pod: &Value, ready, serving, terminating| EndpointState {
        pod_uid: name(pod["uid"].as_str()),
        slice: format!("{kind} {namespace}/{own}"),
        service: service.map(|s| name(Some(s))),
        present: true,
        ready,
        serving,
        terminating,
    };
    let ours = |e: &Value, node_of: &Value| e["targetRef"]["kind"] == "Pod" && node_of == node;
    let mut all = Vec::new();
    for e in list(&object.data["endpoints"]) {
        // The beta API had the node among the topology.
        let of = if e["nodeName"].is_null() { &e["topology"]["kubernetes.io/hostname"] } else { &e["nodeName"] };
        if ours(e, of) {
            let c = &e["conditions"];
            // Not said is to be taken for ready.
            let ready = c["ready"].as_bool().unwrap_or(true);
            let (serving, terminating) = (c["serving"].as_bool(), c["terminating"].as_bool());
            all.push(entry("EndpointSlice", service, &e["targetRef"], ready, serving, terminating));
        }
    }
    for subset in list(&object.data["subsets"]) {
        for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let of_node = list(&subset[key]).iter().filter(|a| ours(a, &a["nodeName"]));
            all.extend(of_node.map(|a| entry("Endpoints", meta.name.as_ref(), &a["targetRef"], ready, None, None)));
        }
    }
    all.retain(|e| !e.pod_uid.is_empty());
    all
}

/// A ReplicaSet, Deployment, StatefulSet, DaemonSet, Job.
pub fn owner(kind: &str, object: &DynamicObject) -> Option<OwnerState> {
    let meta = &object.metadata;
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let revision = match kind {
        "Deployment" | "ReplicaSet" => annotation(meta, "deployment.kubernetes.io/revision"),
        "StatefulSet" => status["updateRevision"].as_str(),
        "DaemonSet" => annotation(meta, "deprecated.daemonset.template.generation"),
        _ => None,
    };
    Some(OwnerState {
        uid: name(Some(meta.uid.as_deref()?)),
        kind: kind.to_owned(),
        namespace: name(meta.namespace.as_deref()),
        name: name(meta.name.as_deref()),
        owner: owner_of(meta),
        replicas: number(&spec["replicas"]),
        updated: number(&status["updatedReplicas"]).or_else(|| number(&status["updatedNumberScheduled"])),
        revision: revision.map(|r| name(Some(r))),
        recreate: spec["strategy"]["type"] == "Recreate",
        deleting: meta.deletion_timestamp.is_some(),
    })
}

/// An Event that may tell why something ended, and when it happened last.
pub fn event(object: &DynamicObject) -> Option<(KubeEvent, Option<i64>)> {
    let data = &object.data;
    let reason = data["reason"].as_str().filter(|reason| REASONS.contains(reason))?;
    let about = &data["involvedObject"];
    // spec.containers{nginx}
    let field = about["fieldPath"].as_str().and_then(|path| path.split_once('{')?.1.strip_suffix('}'));
    let from = [&data["source"]["component"], &data["reportingComponent"]];
    let at = [&data["series"]["lastObservedTime"], &data["lastTimestamp"], &data["eventTime"], &data["firstTimestamp"]]
        .into_iter()
        .find_map(time);
    let made = object.metadata.creation_timestamp.as_ref().and_then(|t| i64::try_from(t.0.as_nanosecond()).ok());
    let event = KubeEvent {
        about: OwnerRef {
            kind: name(about["kind"].as_str()),
            name: name(about["name"].as_str()),
            uid: name(about["uid"].as_str()),
        },
        container: field.map(|c| name(Some(c))),
        reason: reason.to_owned(),
        message: text(&data["message"]),
        from: from
            .into_iter()
            .find_map(|f| f.as_str().filter(|f| !f.is_empty()))
            .map_or_else(String::new, |f| name(Some(f))),
        count: number(&data["series"]["count"]).or_else(|| number(&data["count"])).unwrap_or(1),
    };
    Some((event, at.or(made)))
}

/// The node, and when its readiness changed last.
pub fn node(object: &DynamicObject) -> (NodeState, Option<i64>) {
    let conditions = list(&object.data["status"]["conditions"]);
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    let of = |key: &str| ready.map_or_else(String::new, |c| text(&c[key]));
    let state = NodeState {
        name: name(object.metadata.name.as_deref()),
        ready: ready.map(|c| c["status"] == "True"),
        reason: of("reason"),
        message: of("message"),
        unschedulable: object.data["spec"]["unschedulable"].as_bool().unwrap_or(false),
    };
    (state, ready.and_then(|c| time(&c["lastTransitionTime"])))
}
