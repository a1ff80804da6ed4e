//! Recordings of real stops, with what the Kubernetes API would have said put between their inputs: the same causes, with
//! the trigger and the chain's end that the kernel cannot know.
//!
//! In these recordings a `kill` on the host stands for the runtime; here it is given the runtime's name.

use crate::recording::bytes;
use crate::schema::{INCIDENT, STOP, check, schema};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Command;
use why502::correlate::history::sig;
use why502::correlate::{Engine, EngineOptions};
use why502::identity::container;
use why502::model::event::EventKind;
use why502::model::incident::Link;
use why502::model::input::SpecFact;
use why502::model::kube::*;
use why502::model::{BootNs, Cause, Incident, Input, Output, Stop, Trigger};
use why502::sinks::recording::{Reader, time_of};

const S: u64 = 1_000_000_000;
const POD: &str = "web-7d9f-x2k1";

struct Scene {
    inputs: Vec<Input>,
    uid: String,
    containers: Vec<PodContainer>,
    ready: BootNs,
    /// The first thing that happened to the pod's stop: a hook, or the signal.
    began: BootNs,
    wall: i64,
    ids: u64,
}

impl Scene {
    fn new(file: &str) -> Scene {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(file);
        let reader = Reader::new(BufReader::new(File::open(path).unwrap())).unwrap();
        let mut inputs: Vec<Input> = reader.map(|input| input.unwrap()).collect();
        let containers = inputs.iter().filter_map(|i| match i {
            Input::Cgroup(c) => container::parse(c.path.as_deref()?),
            _ => None,
        });
        let mut containers: Vec<_> = containers.map(|c| (c.pod_uid.unwrap(), c.id)).collect();
        containers.sort();
        containers.dedup();
        let uid = containers[0].0.clone();
        let ready = inputs.iter().find_map(|i| match i {
            Input::Ready { at } => Some(*at),
            _ => None,
        });
        let wall = inputs.iter().rev().find_map(|i| match i {
            Input::Clock { at, wall_ns } => Some(wall_ns - *at as i64),
            _ => None,
        });
        let (mut began, mut stopped) = (BootNs::MAX, 0);
        for input in &mut inputs {
            let Input::Event(event) = input else { continue };
            match &mut event.kind {
                EventKind::SignalGenerated(s) if sig::stops(s.signal) => {
                    if s.sender.ns_pid == s.sender.tgid {
                        s.sender.comm = "runc".into();
                        // Not the process that was seen to be `kill`.
                        (s.sender.tgid, s.sender.pid, s.sender.ns_pid) = (999_999, 999_999, 999_999);
                    }
                    began = began.min(event.at);
                    stopped = if stopped == 0 { s.target.cgroup } else { stopped };
                }
                EventKind::Execed(e) if e.task.ns_pid > 1 => began = began.min(event.at),
                _ => {}
            }
        }
        let nginx = inputs.iter().find_map(|i| match i {
            Input::Cgroup(c) if c.id == stopped => container::parse(c.path.as_deref()?),
            _ => None,
        });
        let nginx = nginx.expect("a container is stopped").id;
        let named = |id: String| {
            let name = if id == nginx { "nginx" } else { "other" };
            PodContainer { name: name.into(), id: Some(id), restarts: 0 }
        };
        let containers = containers.into_iter().map(|(_, id)| named(id)).collect();
        let mut scene = Scene { inputs, uid, containers, ready: ready.unwrap(), began, wall: wall.unwrap(), ids: 0 };
        let live = ApiState { resource: "pods".into(), live: true, why: None };
        scene.says(scene.ready, None, Said::Api(live));
        scene.says(scene.ready, None, Said::Pod(scene.pod()));
        scene
    }

    fn pod(&self) -> PodState {
        PodState {
            uid: self.uid.clone(),
            namespace: "shop".into(),
            name: POD.into(),
            owner: Some(reference("ReplicaSet", "web-7d9f")),
            containers: self.containers.clone(),
            phase: "Running".into(),
            ..PodState::default()
        }
    }

    fn says(&mut self, seen_at: BootNs, at: Option<i64>, said: Said) {
        self.ids += 1;
        self.insert(Input::Kube(Box::new(KubeFact { id: FactId(self.ids), seen_at, at, said })));
    }

    /// Where it belongs by its time, behind `ready`.
    fn insert(&mut self, input: Input) {
        let ready = self.inputs.iter().position(|i| matches!(i, Input::Ready { .. })).unwrap();
        let at = time_of(&input);
        let place = self.inputs[ready + 1..].iter().position(|i| time_of(i) > at);
        let place = place.map_or(self.inputs.len() - 1, |n| ready + 1 + n);
        self.inputs.insert(place, input);
    }

    fn hook(&mut self, argv: &[&str]) {
        self.insert(Input::Spec(SpecFact {
            at: self.ready,
            source: "Pod shop/web".into(),
            pod_uid: Some(self.uid.clone()),
            workload: "Pod/web".into(),
            container: "nginx".into(),
            pre_stop: Some(argv.iter().map(|a| (*a).to_string()).collect()),
            stop_signal: None,
            grace_s: 30,
        }));
    }

    /// Deleted in the second before the stop began, and all is known of it at once.
    fn deleted(&mut self) {
        let deleted = self.began - 5_000_000;
        let whole = (self.wall + deleted as i64) / S as i64 * S as i64;
        let pod = PodState { deleted_grace_s: Some(30), ..self.pod() };
        self.says(deleted, Some(whole), Said::Pod(pod));
        let owner = |kind: &str, name: &str, replicas, revision: &str| OwnerState {
            uid: format!("uid-{name}"),
            kind: kind.into(),
            namespace: "shop".into(),
            name: name.into(),
            owner: (kind == "ReplicaSet").then(|| reference("Deployment", "web")),
            replicas: Some(replicas),
            updated: Some(1),
            revision: Some(revision.into()),
            ..OwnerState::default()
        };
        self.says(deleted + 1_000_000, None, Said::Owner(owner("ReplicaSet", "web-7d9f", 2, "3")));
        self.says(deleted + 1_000_000, None, Said::Owner(owner("Deployment", "web", 3, "4")));
        self.event(
            deleted + 2_000_000,
            "ReplicaSet",
            "replicaset-controller",
            "SuccessfulDelete",
            "Deleted pod: web-7d9f-x2k1",
        );
        self.asked(deleted + 3_000_000);
    }

    fn event(&mut self, at: BootNs, kind: &str, from: &str, reason: &str, message: &str) {
        let about = match kind {
            "Pod" => OwnerRef { kind: "Pod".into(), name: POD.into(), uid: self.uid.clone() },
            _ => reference(kind, "web-7d9f"),
        };
        let container = (kind == "Pod").then(|| "nginx".to_string());
        let event =
            KubeEvent { about, container, reason: reason.into(), message: message.into(), from: from.into(), count: 1 };
        self.says(at, Some((self.wall + at as i64) / S as i64 * S as i64), Said::Event(event));
    }

    fn asked(&mut self, at: BootNs) {
        let uid = self.uid.clone();
        self.says(at, None, Said::Asked { uid, failed: Vec::new() });
    }

    fn run(&self) -> (Vec<Incident>, Vec<Stop>) {
        let mut engine = Engine::new(EngineOptions::default());
        let (mut incidents, mut stops) = (Vec::new(), Vec::new());
        for output in self.inputs.iter().flat_map(|input| engine.feed(input)) {
            match output {
                Output::Incident(i) => incidents.push(*i),
                Output::Stop(s) => stops.push(*s),
            }
        }
        (incidents, stops)
    }

    /// What the binary says to the same inputs, written down.
    fn explained(&self) -> Vec<serde_json::Value> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes(&self.inputs)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_why502"));
        let output = command.args(["explain", "-o", "json"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn reference(kind: &str, name: &str) -> OwnerRef {
    OwnerRef { kind: kind.into(), name: name.into(), uid: format!("uid-{name}") }
}

/// Those of the stop, with the same causes as without the API.
fn causes(incidents: &[Incident]) -> Vec<Cause> {
    incidents.iter().map(|i| i.cause).collect()
}

/// Each link names an input of the sequence, and the next one.
fn check_links(scene: &Scene, incident: &Incident) {
    let mut ids = BTreeSet::new();
    for input in &scene.inputs {
        match input {
            Input::Event(e) => drop(ids.insert(e.id.to_string())),
            Input::Kube(f) => drop(ids.insert(f.id.to_string())),
            _ => {}
        }
    }
    let beside = |l: &Link| l.rule.starts_with("beside-");
    for (n, link) in incident.chain.iter().enumerate() {
        assert!(ids.contains(&link.id), "{link:?}");
        assert_eq!(link.id.starts_with('k'), link.seen_at.is_some(), "{link:?}");
        assert!(link.seen_at.as_ref().is_none_or(|seen| link.at <= *seen), "{link:?}");
        let next = incident.chain[n + 1..].iter().find(|l| !beside(l)).filter(|_| !beside(link)).map(|l| l.id.as_str());
        assert_eq!(link.because.as_deref(), next, "{:#?}", incident.chain);
    }
}

#[test]
fn a_rollout_behind_each_kind_of_stop() {
    for (file, hook) in [
        ("quit-then-term.rec", None),
        ("grace-period.rec", None),
        ("tini-term.rec", None),
        ("failing-probe.rec", None),
        ("exec-quit-then-term.rec", Some(["-s", "quit"])),
    ] {
        let bare = Scene::new(file).run().0;
        let mut scene = Scene::new(file);
        if let Some(hook) = hook {
            let nginx = scene.inputs.iter().find_map(|input| match input {
                Input::Event(e) => match &e.kind {
                    EventKind::Execed(x) if x.argv.ends_with(&hook.map(String::from)) => Some(x.argv.clone()),
                    _ => None,
                },
                _ => None,
            });
            let argv = nginx.expect("the hook was run");
            scene.hook(&argv.iter().map(String::as_str).collect::<Vec<_>>());
        }
        scene.deleted();
        let specs = scene.inputs.iter().any(|i| matches!(i, Input::Spec(s) if s.pod_uid.is_some()));
        let (incidents, stops) = scene.run();
        assert_eq!(causes(&incidents), causes(&bare), "{file}: the API changes no cause");
        assert!(!incidents.is_empty() && stops.len() == 1, "{file}");
        for incident in &incidents {
            check_links(&scene, incident);
            assert_eq!(incident.trigger, Trigger::Rollout, "{file}: {incident:#?}");
            let links: Vec<_> =
                incident.chain.iter().filter(|l| l.id.starts_with('k')).map(|l| l.kind.as_str()).collect();
            assert_eq!(links, ["pod-deleted", "kube-event", "owner"], "{file}");
            let pod = incident.pod.as_ref().unwrap();
            assert_eq!((pod.name.as_deref(), pod.workload.as_deref()), (Some(POD), Some("Deployment/web")));
            assert_eq!(incident.container.as_ref().unwrap().name.as_deref(), Some("nginx"));
            assert_eq!(incident.missing.iter().filter(|m| m.fact == "pod-spec").count(), usize::from(!specs));
        }
        let stop = &stops[0];
        assert_eq!((stop.trigger, stop.phases[0].name.as_str()), (Trigger::Rollout, "deleted"), "{file}");
        assert_eq!(stop.incidents, incidents.len() as u64, "{file}: told after its incidents");
        if hook.is_some() {
            assert!(stop.phases.iter().any(|p| p.name == "prestop"), "{file}: {:#?}", stop.phases);
        }
        let lines = scene.explained();
        let ((_, incident_schema), (_, stop_schema)) = (schema(INCIDENT), schema(STOP));
        for line in &lines {
            check(if line["type"] == "stop" { &stop_schema } else { &incident_schema }, line);
        }
        let said: Vec<_> = lines.iter().filter(|l| l["type"] == "incident").cloned().collect();
        let own: Vec<_> = incidents.iter().map(|i| serde_json::to_value(i).unwrap()).collect();
        assert_eq!(said, own, "{file}: a recording holds what the API said");
    }
}

#[test]
fn a_probe_behind_a_kill() {
    let mut scene = Scene::new("grace-period.rec");
    let at = scene.began - 1_000_000;
    scene.event(at, "Pod", "kubelet", "Unhealthy", "Liveness probe failed: timeout");
    scene.event(at, "Pod", "kubelet", "Killing", "Container nginx failed liveness probe, will be restarted");
    scene.asked(scene.began + S / 2);
    let (incidents, stops) = scene.run();
    assert!(incidents.iter().any(|i| i.cause == Cause::GracePeriodExceeded));
    for incident in &incidents {
        check_links(&scene, incident);
        assert_eq!(incident.trigger, Trigger::LivenessFailed);
        assert_eq!(incident.chain.last().unwrap().rule, "the-probe-failed");
    }
    assert_eq!(stops[0].phases[0].name, "probe-failed");
}

#[test]
fn a_command_from_outside_that_is_no_hook_is_nobodys_deletion() {
    let mut scene = Scene::new("exec-quit-then-term.rec");
    scene.hook(&["/bin/sleep", "5"]);
    scene.deleted();
    let (incidents, _) = scene.run();
    let quit: Vec<_> = incidents.iter().filter(|i| i.cause == Cause::NginxAcceptQueueDropped).collect();
    assert!(!quit.is_empty());
    for incident in quit {
        assert_eq!(incident.trigger, Trigger::Unknown, "somebody's exec, whatever the API did meanwhile");
        assert!(!incident.chain.iter().any(|l| l.id.starts_with('k')));
    }
}

#[test]
fn another_pods_deletion_explains_nothing() {
    let mut scene = Scene::new("quit-then-term.rec");
    let own = std::mem::replace(&mut scene.uid, "99999999-2222-3333-4444-555555555555".into());
    let containers = std::mem::take(&mut scene.containers);
    scene.deleted();
    (scene.uid, scene.containers) = (own, containers);
    let (incidents, _) = scene.run();
    assert!(!incidents.is_empty());
    for incident in &incidents {
        assert_eq!(incident.trigger, Trigger::RuntimeStop);
        assert!(!incident.chain.iter().any(|l| l.id.starts_with('k')));
    }
}

/// The API's facts are put in and taken out one by one: fewer of them make a shorter chain and never another cause.
#[test]
fn each_fact_that_is_missing_makes_the_chain_shorter() {
    let mut whole = Scene::new("quit-then-term.rec");
    whole.deleted();
    let all = whole.run().0;
    let facts: Vec<usize> = (0..whole.inputs.len()).filter(|n| matches!(whole.inputs[*n], Input::Kube(_))).collect();
    assert_eq!(facts.len(), 7);
    let mut fewer = 0;
    for out in facts {
        let mut scene = Scene::new("quit-then-term.rec");
        scene.inputs = whole.inputs.clone();
        let Input::Kube(taken) = scene.inputs.remove(out) else { unreachable!("facts are of the API") };
        let incidents = scene.run().0;
        assert_eq!(causes(&incidents), causes(&all), "without {taken:?}");
        for (incident, before) in incidents.iter().zip(&all) {
            assert!(incident.chain.len() <= before.chain.len());
            assert!(!incident.chain.iter().any(|l| l.id == taken.id.to_string()));
            let needed = before.chain.iter().any(|l| l.id == taken.id.to_string());
            assert!(!needed || incident.trigger != Trigger::Rollout, "without {taken:?}: {incident:#?}");
            fewer += usize::from(needed);
        }
    }
    assert!(fewer > 0);
}
