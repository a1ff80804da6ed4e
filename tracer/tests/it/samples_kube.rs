//! A fact of each kind that the Kubernetes API gives.

use why502::model::kube::*;
use why502::model::{BootNs, Input};

pub(crate) fn facts(at: BootNs) -> Vec<Input> {
    let uid = "11111111-2222-3333-4444-555555555555";
    let text = |text: &str| text.to_string();
    let owner = OwnerRef { kind: text("ReplicaSet"), name: text("web-7d9f"), uid: text("u1") };
    let pod = PodState {
        uid: text(uid),
        namespace: text("shop"),
        name: text("web-7d9f-x2k1"),
        owner: Some(owner.clone()),
        labels: [(text("app"), text("web"))].into(),
        containers: vec![PodContainer { name: text("nginx"), id: None, restarts: 2 }],
        deleted_grace_s: Some(30),
        phase: text("Running"),
        disruption: Some(Condition { reason: text("EvictionByEvictionAPI"), message: text("\u{1b}[2J") }),
        ready: Some(false),
        ..PodState::default()
    };
    let endpoint = EndpointState {
        pod_uid: text(uid),
        slice: text("EndpointSlice shop/web-abc"),
        service: Some(text("web")),
        present: true,
        ready: false,
        serving: Some(true),
        terminating: Some(true),
    };
    let state = OwnerState { uid: text("u1"), kind: text("ReplicaSet"), replicas: Some(2), ..OwnerState::default() };
    let event = KubeEvent {
        about: owner,
        container: None,
        reason: text("SuccessfulDelete"),
        message: text("Deleted pod: web-7d9f-x2k1"),
        from: text("replicaset-controller"),
        count: 1,
    };
    let node = NodeState {
        name: text("node-1"),
        ready: Some(true),
        reason: text("KubeletReady"),
        message: text(""),
        unschedulable: true,
    };
    let said = [
        Said::Api(ApiState { resource: text("pods"), live: false, why: Some(text("no answer in time")) }),
        Said::Pod(pod),
        Said::Endpoint(endpoint),
        Said::Owner(state),
        Said::Event(event),
        Said::Node(node),
        Said::Asked { uid: text(uid), failed: vec![text("events")] },
        Said::PodGone { uid: text(uid) },
    ];
    let fact = |(n, said)| KubeFact {
        id: FactId(n),
        seen_at: at + n,
        at: (n == 2).then_some(1_795_356_202_000_000_000),
        said,
    };
    (1..).zip(said).map(|numbered| Input::Kube(Box::new(fact(numbered)))).collect()
}
