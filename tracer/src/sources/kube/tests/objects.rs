//! Objects as the API has them, cut to what matters.

use serde_json::{Value, json};

pub const NODE: &str = "node-1";
pub const UID: &str = "11111111-2222-3333-4444-555555555555";
pub const PODS: &str = "/api/v1/pods";
pub const NODES: &str = "/api/v1/nodes";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const ENDPOINTS: &str = "/api/v1/endpoints";
pub const EVENTS: &str = "/api/v1/namespaces/shop/events";
pub const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/shop/replicasets";
pub const REPLICA_SET: &str = "/apis/apps/v1/namespaces/shop/replicasets/web-7d9f";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";

pub fn pod() -> Value {
    json!({
        "metadata": {
            "name": "web-7d9f-x2k1", "namespace": "shop", "uid": UID, "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9f", "uid": "uid-rs",
                "controller": true}]
        },
        "spec": {
            "nodeName": NODE, "terminationGracePeriodSeconds": 40,
            "containers": [
                {"name": "nginx", "image": "nginx", "env": [{"name": "SECRET", "value": "x"}],
                 "lifecycle": {"preStop": {"exec": {"command": ["/bin/sleep", "5"]}}, "stopSignal": "SIGQUIT"}},
                {"name": "php", "image": "php"}
            ]
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {"name": "nginx", "containerID": "containerd://aaaa", "restartCount": 0},
                {"name": "php", "containerID": "containerd://bbbb", "restartCount": 0}
            ]
        }
    })
}

/// Deleted at 2026-11-22T14:03:22Z.
pub fn deleted_pod() -> Value {
    let mut pod = pod();
    pod["metadata"]["deletionTimestamp"] = json!("2026-11-22T14:04:02Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(40);
    pod
}

pub fn other_pod() -> Value {
    let mut pod = pod();
    pod["metadata"]["uid"] = json!("another");
    pod["metadata"]["name"] = json!("web-other");
    pod
}

pub fn replica_set(replicas: u32) -> Value {
    json!({
        "metadata": {
            "name": "web-7d9f", "namespace": "shop", "uid": "uid-rs",
            "annotations": {"deployment.kubernetes.io/revision": "4"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-deploy",
                "controller": true}]
        },
        "spec": {"replicas": replicas}
    })
}

pub fn deployment(replicas: u32) -> Value {
    json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "uid-deploy",
            "annotations": {"deployment.kubernetes.io/revision": "4"}
        },
        "spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate"}},
        "status": {"updatedReplicas": replicas}
    })
}

/// With a pod of another node beside ours.
pub fn slice(ready: bool, pods: &[&str]) -> Value {
    let entry = |node: &str, uid: &str| {
        json!({
            "addresses": ["10.0.3.7"], "nodeName": node, "targetRef": {"kind": "Pod", "name": "x", "uid": uid},
            "conditions": {"ready": ready, "serving": true, "terminating": !ready}
        })
    };
    let ours = pods.iter().map(|uid| entry(NODE, uid));
    json!({
        "metadata": {
            "name": "web-abc", "namespace": "shop", "uid": "uid-slice",
            "labels": {"kubernetes.io/service-name": "web"}
        },
        "addressType": "IPv4",
        "endpoints": ours.chain([entry("node-2", "elsewhere")]).collect::<Vec<_>>()
    })
}

pub fn endpoints(ready: bool) -> Value {
    let key = if ready { "addresses" } else { "notReadyAddresses" };
    json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-endpoints"},
        "subsets": [{key: [{"ip": "10.0.3.7", "nodeName": NODE, "targetRef": {"kind": "Pod", "name": "x", "uid": UID}}]}]
    })
}

pub fn event(id: &str, kind: &str, uid: &str, from: &str, reason: &str, message: &str) -> Value {
    json!({
        "metadata": {"name": id, "namespace": "shop", "uid": id},
        "involvedObject": {"kind": kind, "name": "x", "namespace": "shop", "uid": uid, "fieldPath": "spec.containers{nginx}"},
        "reason": reason, "message": message, "source": {"component": from}, "count": 1,
        "firstTimestamp": "2026-11-22T14:03:22Z", "lastTimestamp": "2026-11-22T14:03:22Z"
    })
}

pub fn node(ready: &str, message: &str) -> Value {
    json!({
        "metadata": {"name": NODE, "uid": "uid-node"},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "KubeletReady", "message": message,
            "lastTransitionTime": "2026-11-22T14:00:00Z"}]}
    })
}
