//! The source against a served API: [`server`].

mod objects;
mod server;

use super::{Place, Source, examine};
use crate::model::Input;
use crate::model::input::SpecFact;
use crate::model::kube::{KubeFact, Said};
use objects::*;
use serde_json::{Value, json};
use server::Api;
use std::path::PathBuf;
use std::time::Duration;

/// A served API, and a source that watches it.
struct Scene {
    api: Api,
    source: Source,
    dir: tempfile::TempDir,
    /// All that came.
    said: Vec<KubeFact>,
    specs: Vec<SpecFact>,
}

impl Scene {
    async fn new(before: impl FnOnce(&Api)) -> Scene {
        let api = Api::start().await;
        before(&api);
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Kubeconfig(api.kubeconfig(dir.path()));
        let source = Source::start(place, NODE.into(), crate::kernel::clock::boot_ns).unwrap();
        Scene { api, source, dir, said: Vec::new(), specs: Vec::new() }
    }

    fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    /// Takes what comes until this is there.
    async fn until<T>(&mut self, what: &str, found: impl Fn(&KubeFact) -> Option<T>) -> T {
        let patience = Duration::from_secs(60);
        loop {
            let next = tokio::time::timeout(patience, self.source.next()).await;
            let next = next.unwrap_or_else(|_| panic!("no {what} in {:#?}", self.said)).expect("the source goes on");
            match next {
                Input::Kube(fact) => {
                    let result = found(&fact);
                    self.said.push(*fact);
                    if let Some(result) = result {
                        return result;
                    }
                }
                Input::Spec(spec) => self.specs.push(spec),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until a list is watched.
    async fn watched(&self, path: &str) {
        for _ in 0..6_000 {
            if self.api.watchers(path) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody watches {path}: {:#?}", self.api.state().requests);
    }

    async fn live(&mut self, resource: &'static str, live: bool) -> Option<String> {
        self.until("state of the source", |f| match &f.said {
            Said::Api(a) if a.resource == resource && a.live == live => Some(a.why.clone()),
            _ => None,
        })
        .await
    }

    fn pods_said(&self) -> usize {
        self.said.iter().filter(|f| matches!(f.said, Said::Pod(_))).count()
    }
}

fn deleted(fact: &KubeFact) -> Option<(u64, Option<i64>)> {
    match &fact.said {
        Said::Pod(p) => Some((p.deleted_grace_s?, fact.at)),
        _ => None,
    }
}

fn asked(fact: &KubeFact) -> Option<Vec<String>> {
    match &fact.said {
        Said::Asked { failed, .. } => Some(failed.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn a_pod_from_its_first_sight_to_its_end() {
    let mut scene = Scene::new(|api| {
        api.put(PODS, pod());
        api.put(REPLICA_SETS, replica_set(3));
        api.put(DEPLOYMENTS, deployment(3));
        api.put(SLICES, slice(true, &[UID]));
        api.put(NODES, node("True", ""));
    })
    .await;
    // Each of them from a watch of its own: in any order.
    let mut wanted = std::collections::BTreeSet::from(["pod", "owner", "endpoint", "node"]);
    while !wanted.is_empty() {
        let kind = scene
            .until("first sight", |f| match &f.said {
                Said::Pod(p) => {
                    assert_eq!((p.namespace.as_str(), p.name.as_str()), ("shop", "web-7d9f-x2k1"));
                    assert_eq!((p.containers[0].name.as_str(), p.containers[0].id.as_deref()), ("nginx", Some("aaaa")));
                    Some("pod")
                }
                Said::Owner(o) if o.kind == "Deployment" => {
                    assert_eq!((o.replicas, o.revision.as_deref()), (Some(3), Some("4")));
                    Some("owner")
                }
                Said::Endpoint(e) => {
                    assert_eq!(
                        (e.slice.as_str(), e.ready, e.serving),
                        ("EndpointSlice shop/web-abc", true, Some(true))
                    );
                    Some("endpoint")
                }
                Said::Node(n) => {
                    assert_eq!(n.ready, Some(true));
                    Some("node")
                }
                _ => None,
            })
            .await;
        wanted.remove(kind);
    }
    let hook = scene.specs.iter().find(|s| s.container == "nginx").expect("its spec comes with it");
    assert_eq!(hook.pre_stop.as_deref(), Some(&["/bin/sleep".to_string(), "5".into()][..]));
    assert_eq!((hook.grace_s, hook.stop_signal, hook.pod_uid.as_deref()), (40, Some(3), Some(UID)));

    scene.watched(PODS).await;
    scene.watched(SLICES).await;
    scene.api.put(REPLICA_SETS, replica_set(2));
    scene.api.put(
        EVENTS,
        event("e1", "ReplicaSet", "uid-rs", "replicaset-controller", "SuccessfulDelete", "Deleted pod: web-7d9f-x2k1"),
    );
    scene.api.put(
        EVENTS,
        event("e2", "ReplicaSet", "uid-rs", "replicaset-controller", "SuccessfulDelete", "Deleted pod: web-other"),
    );
    scene.api.put(PODS, deleted_pod());
    // The API's time is the end of the grace period, 40 s later.
    assert_eq!(scene.until("deletion", deleted).await, (40, Some(1_795_356_202_000_000_000)));
    assert_eq!(scene.until("answers", asked).await, Vec::<String>::new());
    let events = scene.said.iter().filter_map(|f| match &f.said {
        Said::Event(e) => Some((e.message.as_str(), e.from.as_str(), f.at)),
        _ => None,
    });
    let events: Vec<_> = events.collect();
    assert_eq!(events, [("Deleted pod: web-7d9f-x2k1", "replicaset-controller", Some(1_795_356_202_000_000_000))]);
    let replicas = scene.said.iter().filter_map(|f| match &f.said {
        Said::Owner(o) if o.kind == "ReplicaSet" => o.replicas,
        _ => None,
    });
    assert_eq!(replicas.collect::<Vec<_>>(), [3, 2]);

    scene.api.put(SLICES, slice(false, &[UID]));
    let unready = |f: &KubeFact| matches!(&f.said, Said::Endpoint(e) if e.present && !e.ready).then_some(());
    scene.until("endpoint that is not ready", unready).await;
    scene.api.put(SLICES, slice(false, &[]));
    let left = |f: &KubeFact| matches!(&f.said, Said::Endpoint(e) if !e.present).then_some(());
    scene.until("endpoint that left", left).await;
    scene.api.delete(PODS, deleted_pod());
    scene.until("end", |f| matches!(&f.said, Said::PodGone { uid } if uid == UID).then_some(())).await;

    let ids: Vec<u64> = scene.said.iter().map(|f| f.id.0).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "numbered without a gap");
    assert!(scene.said.windows(2).all(|w| w[0].seen_at <= w[1].seen_at));
}

#[tokio::test]
async fn what_has_been_forgotten_is_listed_again() {
    let mut scene = Scene::new(|api| api.put(PODS, pod())).await;
    scene.watched(PODS).await;
    // Deleted while nobody watched, and the server no longer knows what came in between.
    {
        let mut state = scene.api.state();
        state.refuse.insert(PODS.into(), 503);
    }
    scene.api.cut();
    scene.live("pods", false).await.expect("a reason");
    scene.api.delete(PODS, pod());
    scene.api.put(PODS, other_pod());
    {
        let mut state = scene.api.state();
        state.oldest = 1_000;
        state.refuse.clear();
    }
    scene.until("end of the first", |f| matches!(&f.said, Said::PodGone { uid } if uid == UID).then_some(())).await;
    scene.until("the second", |f| matches!(&f.said, Said::Pod(p) if p.uid == "another").then_some(())).await;
    let lists = |scene: &Scene| {
        let state = scene.api.state();
        state.requests.iter().filter(|r| r.starts_with(PODS) && !r.contains("watch=true")).count()
    };
    // 410 to each watch: listed again each time, and nothing is said twice.
    let before = lists(&scene);
    while lists(&scene) < before + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scene.api.state().oldest = 0;
    scene.watched(PODS).await;
    scene.api.line(
        PODS,
        &json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired",
        "status": "Failure", "message": "too old"}}),
    );
    scene.api.put(PODS, pod());
    scene.until("the first again", |f| matches!(&f.said, Said::Pod(p) if p.uid == UID).then_some(())).await;
    assert_eq!(scene.pods_said(), 3);
}

#[tokio::test]
async fn a_watch_goes_on_from_its_bookmark() {
    let scene = Scene::new(|api| api.put(PODS, pod())).await;
    scene.watched(PODS).await;
    let version = scene.api.bookmark(PODS);
    // Told before the end of the watch.
    tokio::task::yield_now().await;
    scene.api.cut();
    let from = format!("resourceVersion={version}");
    for _ in 0..6_000 {
        let seen = scene.api.state().requests.iter().any(|r| r.contains("watch=true") && r.contains(&from));
        if seen {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no watch from {version}: {:#?}", scene.api.state().requests);
}

#[tokio::test]
async fn a_server_that_goes_away_and_comes_back() {
    let mut scene = Scene::new(|api| api.put(PODS, pod())).await;
    scene.live("pods", true).await;
    scene.watched(PODS).await;
    scene.api.away(true);
    scene.live("pods", false).await.expect("a reason");
    scene.api.put(PODS, deleted_pod());
    scene.api.away(false);
    scene.until("deletion", deleted).await;
    scene.live("pods", true).await;
    assert_eq!(scene.pods_said(), 2, "what it had said is not said again");
}

#[tokio::test]
async fn a_token_that_is_rotated() {
    let mut scene = Scene::new(|api| api.put(PODS, pod())).await;
    scene.live("pods", true).await;
    scene.watched(PODS).await;
    scene.api.rotate("second");
    scene.api.cut();
    let why = scene.live("pods", false).await.unwrap();
    assert!(why.contains("401"), "{why}");
    std::fs::write(scene.token_file(), "second").unwrap();
    let rotated = std::time::Instant::now();
    scene.live("pods", true).await;
    assert!(rotated.elapsed() < Duration::from_secs(40), "not only when the old one is a minute old");
}

#[tokio::test]
async fn old_servers_have_endpoints_only() {
    let mut scene = Scene::new(|api| {
        api.state().refuse.insert(SLICES.into(), 404);
        api.put(PODS, pod());
        api.put(ENDPOINTS, endpoints(true));
    })
    .await;
    let found = |f: &KubeFact| match &f.said {
        Said::Endpoint(e) => Some((e.slice.clone(), e.ready, e.serving)),
        _ => None,
    };
    assert_eq!(scene.until("endpoint", found).await, ("Endpoints shop/web".to_string(), true, None));
    scene.watched(ENDPOINTS).await;
    scene.api.put(ENDPOINTS, endpoints(false));
    assert!(!scene.until("endpoint", found).await.1);
}

#[tokio::test]
async fn rights_that_are_missing() {
    let mut scene = Scene::new(|api| {
        let mut state = api.state();
        for path in [SLICES, EVENTS, REPLICA_SET] {
            state.refuse.insert(path.into(), 403);
        }
        drop(state);
        api.put(PODS, pod());
    })
    .await;
    let why = scene.live("endpointslices", false).await.unwrap();
    assert!(why.contains("403") && why.contains("because of a test"), "{why}");
    scene.watched(PODS).await;
    scene.api.put(PODS, deleted_pod());
    assert_eq!(scene.until("answers", asked).await, ["replicasets", "events"]);
}

#[tokio::test]
async fn a_server_that_does_not_answer_a_question() {
    let mut scene = Scene::new(|api| {
        api.state().hang.insert(EVENTS.into());
        api.put(PODS, pod());
    })
    .await;
    scene.watched(PODS).await;
    scene.api.put(PODS, deleted_pod());
    assert_eq!(scene.until("answers", asked).await, ["answers in time"]);
}

#[tokio::test]
async fn a_container_that_its_probe_ended() {
    let mut scene = Scene::new(|api| api.put(PODS, pod())).await;
    scene.watched(PODS).await;
    let message = "Container nginx failed liveness probe, will be restarted";
    scene.api.put(EVENTS, event("k1", "Pod", UID, "kubelet", "Killing", message));
    let mut restarted = pod();
    restarted["status"]["containerStatuses"][0]["restartCount"] = json!(1);
    scene.api.put(PODS, restarted);
    assert_eq!(scene.until("answers", asked).await, Vec::<String>::new());
    let container = scene.said.iter().find_map(|f| match &f.said {
        Said::Event(e) if e.message == message => e.container.clone(),
        _ => None,
    });
    assert_eq!(container.as_deref(), Some("nginx"));
}

#[tokio::test]
async fn what_the_doctor_finds() {
    let api = Api::start().await;
    api.put(PODS, pod());
    let dir = tempfile::tempdir().unwrap();
    let place = Place::Kubeconfig(api.kubeconfig(dir.path()));
    let found = examine(place.clone(), NODE, false).await;
    assert_eq!((found.error.as_deref(), found.version.as_deref()), (None, Some("v1.33.1")));
    assert_eq!((found.pods, found.node_known), (Some(1), Some(false)));
    let holes: Vec<_> = found.access.iter().filter(|a| !a.allowed).map(|a| a.what.as_str()).collect();
    assert_eq!(holes, ["events list"]);
    assert!(found.access.iter().all(|a| !a.writes), "asked for more than a watching agent needs");
    let writing = examine(place.clone(), NODE, true).await;
    let writes: Vec<_> = writing.access.iter().filter(|a| a.writes).map(|a| (a.what.as_str(), a.allowed)).collect();
    assert_eq!(writes, [("events.events.k8s.io create,patch", true)]);
    api.rotate("other");
    assert!(examine(place, NODE, false).await.error.unwrap().contains("401"));
    let nowhere = dir.path().join("none");
    assert!(examine(Place::Kubeconfig(nowhere), NODE, false).await.error.is_some());
}

/// Every value that may be of another type, missing, or too long.
#[test]
fn odd_objects_become_something_small() {
    let junk = [json!(null), json!(7), json!("x".repeat(100_000)), json!([1, "é".repeat(9_000)]), json!({"a": []})];
    let keys = ["status", "spec", "metadata", "endpoints", "subsets", "involvedObject", "message", "source", "series"];
    let whole =
        [pod(), deleted_pod(), replica_set(2), deployment(1), slice(true, &[UID]), endpoints(true), node("True", "")];
    let events = [event("e", "Pod", UID, "kubelet", "Killing", "x")];
    let mut read = 0;
    for object in whole.iter().chain(&events) {
        for key in keys {
            for junk in &junk {
                let mut odd: Value = object.clone();
                if key == "metadata" {
                    odd[key]["name"] = json!("n".repeat(50_000));
                    odd[key]["labels"] = json!({"l".repeat(5_000): "v".repeat(5_000)});
                } else {
                    odd[key] = junk.clone();
                }
                let Ok(odd) = serde_json::from_value::<kube::core::DynamicObject>(odd) else { continue };
                let pod = super::read::pod(&odd).map(|(p, _)| p);
                let parts = (
                    pod,
                    super::read::pod_spec(&odd),
                    super::read::endpoints(&odd, NODE),
                    super::read::owner("ReplicaSet", &odd),
                    super::read::event(&odd),
                    super::read::node(&odd),
                );
                let size = format!("{parts:?}").len();
                assert!(size < 8_000, "{size} bytes of {key}: {parts:?}");
                read += 1;
            }
        }
    }
    assert!(read > 200, "{read}");
}
