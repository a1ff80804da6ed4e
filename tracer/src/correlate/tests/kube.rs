//! Triggers by what the Kubernetes API said, by hand: each with its evidence, and what is said without it.

use super::{Node, POD, READY, S, exiting, host, master, syn_refused, task};
use crate::correlate::answer::tests::state;
use crate::correlate::{Engine, EngineOptions};
use crate::model::event::{EventKind, SigInfo, SignalGenerated, Task, TcpState};
use crate::model::input::SpecFact;
use crate::model::kube::*;
use crate::model::{Cause, Incident, Input, Output, Stop, Trigger};
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;
/// Wall time of boot time 0 in [`Node`].
const WALL: i64 = 1_700_000_000_000_000_000;
/// The stop signal.
const T: u64 = 205 * S;

fn wall(at: u64) -> Option<i64> {
    Some(WALL + at as i64)
}

fn runc() -> Task {
    Task { tgid: 700, pid: 700, ns_pid: 700, start_ns: 190 * S, comm: "runc".into(), ..host() }
}

fn reference(kind: &str, name: &str) -> OwnerRef {
    OwnerRef { kind: kind.into(), name: name.into(), uid: format!("uid-{name}") }
}

fn pod() -> PodState {
    PodState {
        uid: POD.into(),
        namespace: "shop".into(),
        name: "web-7d9f-x2k1".into(),
        owner: Some(reference("ReplicaSet", "web-7d9f")),
        containers: vec![PodContainer { name: "nginx".into(), id: Some("a".repeat(64)), restarts: 0 }],
        phase: "Running".into(),
        ready: Some(true),
        ..PodState::default()
    }
}

fn deployment(replicas: u32, revision: &str, updated: u32) -> OwnerState {
    OwnerState {
        uid: "uid-web".into(),
        kind: "Deployment".into(),
        namespace: "shop".into(),
        name: "web".into(),
        replicas: Some(replicas),
        updated: Some(updated),
        revision: Some(revision.into()),
        ..OwnerState::default()
    }
}

fn replica_set(replicas: u32, revision: &str) -> OwnerState {
    OwnerState {
        uid: "uid-web-7d9f".into(),
        kind: "ReplicaSet".into(),
        namespace: "shop".into(),
        name: "web-7d9f".into(),
        owner: Some(reference("Deployment", "web")),
        replicas: Some(replicas),
        revision: Some(revision.into()),
        ..OwnerState::default()
    }
}

fn event(about: OwnerRef, from: &str, reason: &str, message: &str) -> KubeEvent {
    let container = message.contains("probe").then(|| "nginx".to_owned());
    KubeEvent { about, container, reason: reason.into(), message: message.into(), from: from.into(), count: 1 }
}

fn of_pod() -> OwnerRef {
    OwnerRef { kind: "Pod".into(), name: "web-7d9f-x2k1".into(), uid: POD.into() }
}

/// The controller's own word that it deleted this pod.
fn deleted_it() -> Said {
    let message = "Deleted pod: web-7d9f-x2k1";
    Said::Event(event(reference("ReplicaSet", "web-7d9f"), "replicaset-controller", "SuccessfulDelete", message))
}

struct Cluster {
    node: Node,
    id: u64,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Cluster { node: Node::new(), id: 0 };
        cluster.node.inputs.push(Input::Clock { at: READY, wall_ns: WALL + READY as i64 });
        let live = ApiState { resource: "pods".into(), live: true, why: None };
        cluster.says(READY, None, Said::Api(live));
        cluster.says(READY, None, Said::Pod(pod()));
        cluster
    }

    fn says(&mut self, seen_at: u64, at: Option<i64>, said: Said) -> &mut Self {
        self.id += 1;
        self.node.inputs.push(Input::Kube(Box::new(KubeFact { id: FactId(self.id), seen_at, at, said })));
        self
    }

    fn deleted(&mut self, at: u64, more: impl Fn(&mut PodState)) -> &mut Self {
        let mut gone = PodState { deleted_grace_s: Some(30), ..pod() };
        more(&mut gone);
        // Whole seconds, as the API has them.
        self.says(at + 20 * MS, wall(at), Said::Pod(gone))
    }

    fn asked(&mut self, at: u64) -> &mut Self {
        self.says(at, None, Said::Asked { uid: POD.into(), failed: Vec::new() })
    }

    /// The runtime stops nginx, which drops a request.
    fn stopped(&mut self) -> &mut Self {
        self.stopped_by(runc())
    }

    fn stopped_by(&mut self, sender: Task) -> &mut Self {
        self.node.event(
            T,
            EventKind::SignalGenerated(SignalGenerated {
                signal: 15,
                code: 0,
                si_pid: 0,
                info: SigInfo::Real,
                result: 0,
                group: true,
                sender,
                target: master(),
            }),
        );
        self.node.event(T + MS, EventKind::Exited { task: exiting(task()), code: 0 });
        self.node.event(T + 2 * MS, EventKind::TcpState(TcpState { bytes_sent: 0, task: exiting(task()), ..state() }));
        self.node.event(T + 3 * MS, EventKind::Exited { task: exiting(master()), code: 0 });
        self
    }

    fn run(&mut self) -> (Vec<Incident>, Vec<Stop>) {
        let mut at = T;
        while at < T + 60 * S {
            at += S / 5;
            self.node.inputs.push(Input::Tick { at });
        }
        let mut engine = Engine::new(EngineOptions::default());
        let mut inputs = self.node.inputs.clone();
        // As they came.
        let ready = inputs.iter().position(|i| matches!(i, Input::Ready { .. })).unwrap();
        inputs[ready + 1..].sort_by_key(crate::sinks::recording::time_of);
        let (mut incidents, mut stops) = (Vec::new(), Vec::new());
        for output in inputs.iter().flat_map(|i| engine.feed(i)) {
            match output {
                Output::Incident(i) => incidents.push(*i),
                Output::Stop(s) => stops.push(*s),
            }
        }
        (incidents, stops)
    }

    fn only(&mut self) -> (Incident, Stop) {
        let (mut incidents, mut stops) = self.run();
        assert_eq!((incidents.len(), stops.len()), (1, 1), "{incidents:#?}");
        let (incident, stop) = (incidents.remove(0), stops.remove(0));
        assert_eq!(incident.trigger, stop.trigger);
        assert_eq!(stop.by_cause.values().sum::<u64>(), 1, "the stop waits for its incident");
        (incident, stop)
    }
}

fn texts(incident: &Incident) -> Vec<&str> {
    incident.chain.iter().map(|l| l.text.as_str()).collect()
}

#[test]
fn a_deletion_of_which_nothing_more_is_known() {
    let mut c = Cluster::new();
    c.deleted(200 * S, |_| {}).asked(201 * S).stopped();
    let (incident, stop) = c.only();
    assert_eq!((incident.cause, incident.trigger), (Cause::NginxFastShutdown, Trigger::PodDeleted));
    let last = incident.chain.last().unwrap();
    assert_eq!((last.id.as_str(), last.kind.as_str()), ("k3", "pod-deleted"));
    assert_eq!(last.text, "pod shop/web-7d9f-x2k1 was deleted, grace 30 s");
    assert_eq!(
        (last.at.as_str(), last.seen_at.as_deref()),
        ("2023-11-14T22:16:40.000000000Z", Some("2023-11-14T22:16:40.020000000Z"))
    );
    assert_eq!(incident.chain[incident.chain.len() - 2].because.as_deref(), Some("k3"));
    assert_eq!(incident.pod.as_ref().unwrap().name.as_deref(), Some("web-7d9f-x2k1"));
    assert_eq!(incident.container.as_ref().unwrap().name.as_deref(), Some("nginx"));
    assert_eq!((stop.phases[0].name.as_str(), stop.phases[0].event.as_deref()), ("deleted", Some("k3")));
    let grace = stop.grace.unwrap();
    assert_eq!((grace.ms, grace.source.as_str(), grace.left_ms), (30_000, "deletion", 25_017));
}

#[test]
fn a_rollout_takes_the_pods_of_the_old_template() {
    let run = |event: bool, wanted, updated| {
        let mut c = Cluster::new();
        c.says(READY, None, Said::Owner(replica_set(3, "3"))).says(READY, None, Said::Owner(deployment(3, "3", 3)));
        c.deleted(200 * S, |_| {});
        c.says(200 * S + 30 * MS, None, Said::Owner(replica_set(2, "3")));
        c.says(200 * S + 30 * MS, None, Said::Owner(deployment(wanted, "4", updated)));
        if event {
            c.says(200 * S + 40 * MS, wall(200 * S), deleted_it());
        }
        c.asked(200 * S + 50 * MS).stopped();
        c.only()
    };
    let (incident, _) = run(true, 3, 1);
    assert_eq!(incident.trigger, Trigger::Rollout);
    assert_eq!(incident.pod.as_ref().unwrap().workload.as_deref(), Some("Deployment/web"));
    let texts = texts(&incident);
    assert_eq!(
        texts[texts.len() - 1],
        "rollout of Deployment/web: revision 4 takes over, ReplicaSet web-7d9f of revision 3 was scaled down from 3 to 2"
    );
    assert_eq!(texts[texts.len() - 2], "replicaset-controller of ReplicaSet/web-7d9f: Deleted pod: web-7d9f-x2k1");
    // A person deleted the pod in the middle of a rollout: the ReplicaSet did not.
    assert_eq!(run(false, 3, 1).0.trigger, Trigger::PodDeleted);
    // maxSurge 0: the old pods make room for the new ones.
    assert_eq!(run(true, 3, 0).0.trigger, Trigger::Rollout);
    // The old ReplicaSet has all that is wanted, and nothing takes over: why it deleted a pod is not known.
    assert_eq!(run(true, 2, 0).0.trigger, Trigger::PodDeleted);
    // Nothing is wanted any more, in the middle of a rollout.
    assert_eq!(run(true, 0, 1).0.trigger, Trigger::ScaleDown);
}

#[test]
fn a_scale_down_keeps_the_template() {
    let run = |replicas: u32, wanted: u32, recreate: bool| {
        let mut c = Cluster::new();
        c.says(READY, None, Said::Owner(replica_set(3, "3"))).says(READY, None, Said::Owner(deployment(3, "3", 3)));
        c.deleted(200 * S, |_| {});
        c.says(200 * S + 30 * MS, None, Said::Owner(replica_set(replicas, "3")));
        c.says(200 * S + 30 * MS, None, Said::Owner(OwnerState { recreate, ..deployment(wanted, "3", wanted) }));
        c.says(200 * S + 40 * MS, wall(200 * S), deleted_it());
        c.asked(200 * S + 50 * MS).stopped();
        c.only().0
    };
    let incident = run(2, 2, false);
    assert_eq!(incident.trigger, Trigger::ScaleDown);
    assert_eq!(incident.chain.last().unwrap().text, "scale-down of Deployment/web from 3 to 2");
    // All pods go before the first of the new template is there: not a scale-down, whatever the numbers.
    assert_eq!(run(0, 3, true).trigger, Trigger::Rollout);
    assert_eq!(run(0, 3, false).trigger, Trigger::PodDeleted, "why the ReplicaSet has none is not known");
}

#[test]
fn without_events_the_numbers_must_do() {
    let run = |failed: Vec<String>| {
        let mut c = Cluster::new();
        c.says(READY, None, Said::Owner(replica_set(3, "3")));
        c.deleted(200 * S, |_| {});
        c.says(200 * S + 30 * MS, None, Said::Owner(replica_set(2, "3")));
        c.says(200 * S + 30 * MS, None, Said::Owner(deployment(2, "3", 2)));
        c.says(200 * S + 50 * MS, None, Said::Asked { uid: POD.into(), failed }).stopped();
        c.only().0
    };
    let unread = run(vec!["events".into()]);
    assert_eq!(unread.trigger, Trigger::ScaleDown);
    assert!(unread.missing.iter().any(|m| m.fact == "kubernetes-facts" && m.effect.contains("events")));
    assert_eq!(run(Vec::new()).trigger, Trigger::PodDeleted, "the ReplicaSet would have said so");
}

#[test]
fn stateful_sets_by_ordinal_and_revision() {
    let run = |replicas: u32, update: &str| {
        let mut c = Cluster::new();
        let owner = Some(reference("StatefulSet", "web"));
        let labels = BTreeMap::from([("controller-revision-hash".to_string(), "web-1".to_string())]);
        let set =
            OwnerState { revision: Some(update.into()), kind: "StatefulSet".into(), ..deployment(replicas, "", 0) };
        c.deleted(200 * S, |p| {
            (p.name, p.owner, p.labels) = ("web-2".into(), owner.clone(), labels.clone());
        });
        c.says(200 * S + 30 * MS, None, Said::Owner(set));
        let message = "delete Pod web-2 in StatefulSet web successful";
        let e = event(reference("StatefulSet", "web"), "statefulset-controller", "SuccessfulDelete", message);
        c.says(200 * S + 40 * MS, wall(200 * S), Said::Event(e)).asked(200 * S + 50 * MS).stopped();
        c.only().0
    };
    assert_eq!(run(2, "web-1").trigger, Trigger::ScaleDown);
    assert_eq!(run(3, "web-2").trigger, Trigger::Rollout);
    assert_eq!(run(3, "web-1").trigger, Trigger::PodDeleted);
}

#[test]
fn daemon_sets_by_the_generation_of_their_template() {
    let run = |generation: &str| {
        let mut c = Cluster::new();
        let owner = Some(reference("DaemonSet", "web"));
        let labels = BTreeMap::from([("pod-template-generation".to_string(), "1".to_string())]);
        let set = OwnerState { revision: Some(generation.into()), replicas: None, ..deployment(0, "", 1) };
        c.deleted(200 * S, |p| (p.owner, p.labels) = (owner.clone(), labels.clone()));
        c.says(200 * S + 30 * MS, None, Said::Owner(set));
        let e = event(
            reference("DaemonSet", "web"),
            "daemonset-controller",
            "SuccessfulDelete",
            "Deleted pod: web-7d9f-x2k1",
        );
        c.says(200 * S + 40 * MS, wall(200 * S), Said::Event(e)).asked(200 * S + 50 * MS).stopped();
        c.only().0
    };
    assert_eq!(run("2").trigger, Trigger::Rollout);
    assert_eq!(run("1").trigger, Trigger::PodDeleted);
}

#[test]
fn evictions_by_the_api_and_by_the_kubelet() {
    let mut c = Cluster::new();
    let condition = |reason: &str, message: &str| Some(Condition { reason: reason.into(), message: message.into() });
    let drained = condition("EvictionByEvictionAPI", "Eviction API: evicting");
    c.deleted(200 * S, |p| p.disruption = drained.clone()).asked(201 * S).stopped();
    let (incident, stop) = c.only();
    assert_eq!(incident.trigger, Trigger::Eviction);
    assert_eq!(
        incident.chain.last().unwrap().text,
        "pod shop/web-7d9f-x2k1 was evicted through the eviction API, as a drain does: Eviction API: evicting"
    );
    assert_eq!(stop.phases[0].name, "deleted");

    // Nobody deletes it in the API: the kubelet ends it and says so, before or after the end.
    for late in [0, 400 * MS] {
        let mut c = Cluster::new();
        c.stopped();
        let evicted = PodState {
            phase: "Failed".into(),
            reason: Some("Evicted".into()),
            message: Some("The node was low on resource: memory.".into()),
            ..pod()
        };
        c.says(T - 100 * MS + late, None, Said::Pod(evicted)).asked(T + S);
        let (incident, stop) = c.only();
        assert_eq!(incident.trigger, Trigger::Eviction);
        assert!(
            incident
                .chain
                .last()
                .unwrap()
                .text
                .ends_with("evicted by the kubelet: The node was low on resource: memory.")
        );
        assert!(stop.phases.iter().any(|p| p.name == "evicted"));
    }
}

#[test]
fn a_node_that_goes_down() {
    let mut c = Cluster::new();
    let going = NodeState {
        name: "node-1".into(),
        ready: Some(false),
        reason: "KubeletNotReady".into(),
        message: "node is shutting down".into(),
        unschedulable: false,
    };
    c.says(204 * S, wall(204 * S), Said::Node(going)).stopped().asked(T + S);
    let (incident, stop) = c.only();
    assert_eq!(incident.trigger, Trigger::NodeShutdown);
    assert_eq!(incident.chain.last().unwrap().text, "node node-1 is not ready: node is shutting down");
    assert_eq!(stop.phases[0].name, "node-shutdown");

    let mut c = Cluster::new();
    let message = "Pod was terminated in response to imminent node shutdown.";
    let disruption = Condition { reason: "TerminationByKubelet".into(), message: message.into() };
    c.stopped().says(T + 300 * MS, None, Said::Pod(PodState { disruption: Some(disruption), ..pod() })).asked(T + S);
    assert_eq!(c.only().0.trigger, Trigger::NodeShutdown);

    // Short of memory is no shutdown, and a node that is not ready for another reason stops nobody.
    let mut c = Cluster::new();
    let lost = NodeState {
        name: "node-1".into(),
        ready: Some(false),
        reason: "NodeStatusUnknown".into(),
        message: "Kubelet stopped posting node status.".into(),
        unschedulable: false,
    };
    c.says(204 * S, wall(204 * S), Said::Node(lost)).stopped().asked(T + S);
    assert_eq!(c.only().0.trigger, Trigger::RuntimeStop);
}

#[test]
fn a_probe_that_failed() {
    let killing = || event(of_pod(), "kubelet", "Killing", "Container nginx failed liveness probe, will be restarted");
    let run = |at: u64, killing: KubeEvent, more: &dyn Fn(&mut Cluster)| {
        let mut c = Cluster::new();
        let message = "Liveness probe failed: HTTP probe failed with statuscode: 500";
        let unhealthy = KubeEvent { count: 3, ..event(of_pod(), "kubelet", "Unhealthy", message) };
        more(&mut c);
        c.stopped();
        // Started again: its status has another id by now.
        let mut again = pod();
        again.containers[0] = PodContainer { name: "nginx".into(), id: Some("c".repeat(64)), restarts: 1 };
        c.says(T + S / 2, None, Said::Pod(again));
        c.says(T + S, wall(204 * S), Said::Event(unhealthy)).says(T + S, wall(at), Said::Event(killing)).asked(T + S);
        c.only()
    };
    let (incident, stop) = run(204 * S, killing(), &|_| {});
    assert_eq!(incident.trigger, Trigger::LivenessFailed);
    assert_eq!(
        texts(&incident)[incident.chain.len() - 2..],
        [
            "kubelet: Container nginx failed liveness probe, will be restarted",
            "kubelet: Liveness probe failed: HTTP probe failed with statuscode: 500 (3 times)"
        ]
    );
    assert_eq!(
        (incident.chain.last().unwrap().at.as_str(), stop.phases[0].name.as_str()),
        ("2023-11-14T22:16:44.000000000Z", "probe-failed")
    );
    // Long ago: of a life before this one.
    assert_eq!(run(150 * S, killing(), &|_| {}).0.trigger, Trigger::RuntimeStop);
    // Another container of the pod, and somebody who is no kubelet.
    let other = KubeEvent {
        container: Some("php".into()),
        message: "Container php failed liveness probe, will be restarted".into(),
        ..killing()
    };
    assert_eq!(run(204 * S, other, &|_| {}).0.trigger, Trigger::RuntimeStop);
    assert_eq!(run(204 * S, KubeEvent { from: "me".into(), ..killing() }, &|_| {}).0.trigger, Trigger::RuntimeStop);
    // It was on its way out already.
    let deleted = |c: &mut Cluster| {
        c.deleted(190 * S, |_| {});
    };
    assert_eq!(run(204 * S, killing(), &deleted).0.trigger, Trigger::PodDeleted);
}

#[test]
fn nobodys_api() {
    // The runtime stopped it, and the API knows of nothing: somebody asked the runtime.
    let mut c = Cluster::new();
    c.stopped().asked(T + S);
    let (incident, stop) = c.only();
    assert_eq!(incident.trigger, Trigger::RuntimeStop);
    assert!(!incident.chain.iter().any(|l| l.id.starts_with('k')));
    assert_eq!(stop.phases[0].name, "stop-signal");
    // Somebody on the host killed nginx in a pod that was deleted meanwhile: his doing.
    let mut c = Cluster::new();
    let kill = Task { tgid: 999, pid: 999, ns_pid: 999, comm: "kill".into(), ..host() };
    c.deleted(200 * S, |_| {}).asked(201 * S).stopped_by(kill);
    assert_eq!(c.only().0.trigger, Trigger::ManualSignal);
    // Deleted after that: the stop had nothing to do with it.
    let mut c = Cluster::new();
    c.stopped().deleted(T + 10 * S, |_| {}).asked(T + 11 * S);
    assert_eq!(c.only().0.trigger, Trigger::RuntimeStop);
}

#[test]
fn an_api_that_is_slow_or_gone() {
    // What it says within the window counts, at the time that it was said.
    let mut c = Cluster::new();
    c.stopped();
    c.says(T + 3 * S, wall(200 * S), Said::Pod(PodState { deleted_grace_s: Some(30), ..pod() })).asked(T + 4 * S);
    let (incident, _) = c.only();
    assert_eq!(
        (incident.trigger, incident.decided_at.as_str()),
        (Trigger::PodDeleted, "2023-11-14T22:16:49.000000000Z")
    );
    // Nothing comes: decided without it.
    let mut c = Cluster::new();
    c.stopped();
    assert_eq!(c.only().0.trigger, Trigger::RuntimeStop);
    // It went away before: not waited for, and said so.
    let mut c = Cluster::new();
    let down = ApiState { resource: "pods".into(), live: false, why: Some("connection refused".into()) };
    c.says(204 * S, None, Said::Api(down)).stopped();
    let (incident, stop) = c.only();
    assert_eq!(incident.decided_at, "2023-11-14T22:16:45.702000000Z");
    assert_eq!(incident.pod.as_ref().unwrap().name.as_deref(), Some("web-7d9f-x2k1"), "names stay");
    for missing in [&incident.missing, &stop.missing] {
        assert!(
            missing.iter().any(|m| m.fact == "kubernetes-api" && m.effect.contains("connection refused")),
            "{missing:?}"
        );
    }
}

#[test]
fn a_clock_ahead_of_ours() {
    // Deleted by the server's clock ten seconds after it was seen here: it was seen, so it was deleted.
    let mut c = Cluster::new();
    c.says(204 * S, wall(214 * S), Said::Pod(PodState { deleted_grace_s: Some(30), ..pod() })).asked(T).stopped();
    let (incident, _) = c.only();
    assert_eq!(incident.trigger, Trigger::PodDeleted);
    assert_eq!(incident.chain.last().unwrap().at, "2023-11-14T22:16:44.000000000Z");
}

#[test]
fn a_pod_that_is_gone_without_a_word() {
    let mut c = Cluster::new();
    c.says(204 * S, None, Said::PodGone { uid: POD.into() }).stopped().asked(T + S);
    let (incident, _) = c.only();
    assert_eq!(incident.trigger, Trigger::PodDeleted);
    assert!(incident.chain.last().unwrap().text.ends_with("was deleted without a grace period"));
}

fn endpoint(ready: bool, present: bool) -> Said {
    Said::Endpoint(EndpointState {
        pod_uid: POD.into(),
        slice: "EndpointSlice shop/web-x7k2p".into(),
        service: Some("web".into()),
        present,
        ready,
        serving: Some(true),
        terminating: Some(!ready),
    })
}

#[test]
fn who_came_after_the_pod_had_left_its_service() {
    let mut c = Cluster::new();
    c.says(READY, None, endpoint(true, true)).deleted(200 * S, |_| {}).asked(200 * S + 50 * MS);
    c.says(200 * S + 300 * MS, None, endpoint(false, true)).says(T + 2 * S, None, endpoint(false, false));
    c.node.event(
        T,
        EventKind::SignalGenerated(SignalGenerated {
            signal: 3,
            code: 0,
            si_pid: 0,
            info: SigInfo::Real,
            result: 0,
            group: true,
            sender: runc(),
            target: master(),
        }),
    );
    c.node.listener_closes(T + 10 * MS, task());
    c.node.event(T + 1_500 * MS, syn_refused());
    c.node.event(T + 3 * S, EventKind::Exited { task: exiting(master()), code: 0 });
    let (incident, stop) = c.only();
    assert_eq!((incident.cause, incident.trigger), (Cause::EndpointRace, Trigger::PodDeleted));
    assert!(
        incident.summary.ends_with("6.2 s after the pod was not ready any more in EndpointSlice shop/web-x7k2p"),
        "{}",
        incident.summary
    );
    let beside = incident.chain.iter().find(|l| l.rule == "beside-left-its-service").unwrap();
    assert_eq!(
        beside.text,
        "the pod was not ready any more in EndpointSlice shop/web-x7k2p 6.2 s before this connection came"
    );
    assert!(incident.chain.iter().all(|l| l.because.as_ref() != Some(&beside.id)), "nothing follows from it");
    let names: Vec<_> = stop.phases.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names[..3], ["deleted", "endpoint-unready", "stop-signal"]);
    assert!(names.contains(&"endpoints-removed"));
    let sleep = incident.advice.iter().find(|a| a.id == "prestop-sleep").unwrap();
    assert_eq!(sleep.value, Some(8), "6.5 s after the deletion, rounded up, and a second");
    assert!(sleep.why.contains("The pod left EndpointSlice shop/web-x7k2p 0.3 s after its deletion; the last connection came 6.2 s after that."), "{}", sleep.why);
}

#[test]
fn the_pods_own_spec_counts_before_files() {
    let spec = |pod_uid: Option<&str>, hook: &str, grace_s| {
        Input::Spec(SpecFact {
            at: READY,
            source: "x".into(),
            pod_uid: pod_uid.map(str::to_owned),
            workload: "Pod/web".into(),
            container: "nginx".into(),
            pre_stop: Some(vec![hook.into()]),
            stop_signal: Some(3),
            grace_s,
        })
    };
    let mut c = Cluster::new();
    c.node.inputs.push(spec(None, "/file", 10));
    c.node.inputs.push(spec(Some("another"), "/other", 20));
    c.node.inputs.push(spec(Some(POD), "/own", 40));
    c.node.inputs.push(spec(Some(POD), "/own", 45));
    c.deleted(200 * S, |_| {}).asked(201 * S).stopped();
    let (incident, _) = c.only();
    let grace = incident.advice.iter().find(|a| a.id == "grace-period").unwrap();
    assert!(grace.why.contains("It is 45 s now."), "{}", grace.why);
    assert!(
        texts(&incident).iter().any(|t| t.contains("SIGTERM (declared: SIGQUIT) to nginx master")),
        "{:?}",
        texts(&incident)
    );
    assert!(!incident.missing.iter().any(|m| m.fact == "pod-spec"));
}

#[test]
fn bounded_whatever_the_api_says() {
    let mut c = Cluster::new();
    for n in 0..20_000u64 {
        let uid = format!("pod-{n}");
        c.says(READY + n, None, Said::Pod(PodState { uid: uid.clone(), ..pod() }));
        c.says(READY + n, None, Said::PodGone { uid: uid.clone() });
        c.says(READY + n, None, Said::Owner(OwnerState { uid: uid.clone(), ..OwnerState::default() }));
        let about = OwnerRef { uid, ..of_pod() };
        c.says(READY + n, None, Said::Event(event(about, "kubelet", "Killing", "x")));
        c.says(READY + n, None, endpoint(n % 2 == 0, true));
    }
    c.deleted(200 * S, |_| {}).asked(201 * S).stopped();
    assert_eq!(c.only().0.trigger, Trigger::PodDeleted, "the live pod stays");
}
