//! What the Kubernetes API said of this node's pods: plain types of ours, written by `sources::kube`, recorded and replayed
//! like everything else. All strings come from an API's users and are hostile; the source bounds their number and length.

use super::event::BootNs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Position among the facts that the API gave. Printed as `k12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FactId(pub u64);

impl fmt::Display for FactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k{}", self.0)
    }
}

/// One thing that the API said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeFact {
    pub id: FactId,
    /// When it came here.
    pub seen_at: BootNs,
    /// When it happened by the API's own word, ns since 1970: another machine's clock, mostly in whole seconds. `None` when
    /// the API does not say.
    pub at: Option<i64>,
    #[serde(flatten)]
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub enum Said {
    /// A pod of this node, as it is now. `at` is the moment of its deletion, once it is deleted.
    Pod(PodState),
    /// The pod is no more in the API.
    PodGone { uid: String },
    /// A pod's entry in one EndpointSlice (or Endpoints) changed.
    Endpoint(EndpointState),
    /// What owns pods of this node, as it is now.
    Owner(OwnerState),
    /// An Event of a pod, of what owns it, or of the node. `at` is when it happened last.
    Event(KubeEvent),
    /// The node, as it is now. `at` is when its readiness last changed.
    Node(NodeState),
    /// Everything was asked for that tells why this pod, or a container of it, ended.
    Asked {
        uid: String,
        /// What was not allowed, or failed.
        failed: Vec<String>,
    },
    /// How the source itself fares.
    Api(ApiState),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The uid that a static pod has in cgroup paths (its annotation kubernetes.io/config.hash).
    pub static_uid: Option<String>,
    /// The controller.
    pub owner: Option<OwnerRef>,
    pub labels: BTreeMap<String, String>,
    pub containers: Vec<PodContainer>,
    /// metadata.deletionGracePeriodSeconds, once it is deleted.
    pub deleted_grace_s: Option<u64>,
    /// status.phase
    pub phase: String,
    /// status.reason and status.message: `Evicted`, `Terminated` …
    pub reason: Option<String>,
    pub message: Option<String>,
    /// The condition DisruptionTarget, when it is true (Kubernetes 1.26).
    pub disruption: Option<Condition>,
    /// The condition Ready.
    pub ready: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRef {
    /// `ReplicaSet`
    pub kind: String,
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodContainer {
    pub name: String,
    /// Without the runtime in front of it; `None`: not made yet.
    pub id: Option<String>,
    pub restarts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    pub pod_uid: String,
    /// `EndpointSlice shop/web-x7k2p`
    pub slice: String,
    pub service: Option<String>,
    /// False: the pod is not in it, or no more.
    pub present: bool,
    /// Sent new connections to.
    pub ready: bool,
    /// Answers, whether it is going away or not. `None`: the API does not say (Endpoints).
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerState {
    pub uid: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub owner: Option<OwnerRef>,
    /// spec.replicas
    pub replicas: Option<u32>,
    /// Pods that are there of the newest kind: status.updatedReplicas, updatedNumberScheduled.
    pub updated: Option<u32>,
    /// Which template: the revision of a Deployment and of its ReplicaSets, a StatefulSet's updateRevision, a DaemonSet's
    /// generation of the template.
    pub revision: Option<String>,
    /// A Deployment whose old pods all go before the first new one comes.
    pub recreate: bool,
    pub deleting: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeEvent {
    /// Of the object that it is about.
    pub about: OwnerRef,
    /// `nginx`, when it is about one container.
    pub container: Option<String>,
    /// `Killing`, `Unhealthy`, `SuccessfulDelete` …
    pub reason: String,
    pub message: String,
    /// `kubelet`, `replicaset-controller` …
    pub from: String,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    pub name: String,
    /// The condition Ready.
    pub ready: Option<bool>,
    pub reason: String,
    pub message: String,
    /// spec.unschedulable: cordoned.
    pub unschedulable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiState {
    /// `pods`, `endpointslices`, `endpoints`, `nodes`
    pub resource: String,
    /// False: nothing is heard any more.
    pub live: bool,
    /// Why not.
    pub why: Option<String>,
}
