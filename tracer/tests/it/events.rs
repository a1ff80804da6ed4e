//! Which Kubernetes Events come of which verdicts: one for each stop and cause, counted, bounded, and nothing hostile in them.

use crate::samples;
use proptest::prelude::*;
use std::collections::BTreeSet;
use why502::model::incident::{Bound, Incident, Requests, Stop};
use why502::model::kube::{FactId, KubeFact, OwnerRef, OwnerState, PodState, Said};
use why502::model::{BootNs, Cause, Input, Output};
use why502::sinks::events::{Events, Told};

const S: u64 = 1_000_000_000;

fn incident(stop: Option<&str>, cause: Cause) -> Incident {
    Incident { stop: stop.map(str::to_owned), cause, ..samples::incident() }
}

fn stop(id: &str) -> Output {
    Output::Stop(Box::new(Stop { id: id.into(), ..samples::stop() }))
}

fn lose(events: &mut Events, incident: Incident, now: BootNs) {
    events.output(&Output::Incident(Box::new(incident)), now);
}

fn said(said: Said) -> Input {
    Input::Kube(Box::new(KubeFact { id: FactId(1), seen_at: 1, at: None, said }))
}

fn about(told: &[Told]) -> Vec<(&str, &str, u64)> {
    told.iter().map(|t| (&*t.about.kind, &*t.reason, t.count)).collect()
}

#[test]
fn one_for_each_stop_and_cause_on_the_pod_and_its_workload() {
    let mut events = Events::default();
    for n in 0..37 {
        let at = format!("2026-11-22T14:03:22.1182041{n:02}Z");
        lose(&mut events, Incident { at, ..incident(Some("s1"), Cause::NginxFastShutdown) }, S);
    }
    let requests = Requests { count: 2, bound: Bound::AtLeast };
    lose(&mut events, Incident { requests, ..incident(Some("s1"), Cause::EndpointRace) }, S);
    lose(&mut events, incident(Some("s1"), Cause::ClientAbort), S);
    lose(&mut events, incident(Some("s2"), Cause::NginxFastShutdown), S);
    assert!(events.due(2 * S).is_empty(), "the stops go on");
    events.output(&stop("s1"), 3 * S);
    let told = events.due(3 * S);
    assert_eq!(
        about(&told),
        [
            ("Deployment", "NginxFastShutdown", 1),
            ("Deployment", "EndpointRace", 1),
            ("Pod", "NginxFastShutdown", 1),
            ("Pod", "EndpointRace", 1)
        ]
    );
    let note = &told[2].note;
    assert!(
        note.starts_with("37 requests were lost in a stop (pod-deleted): nginx was stopped with SIGTERM"),
        "{note}"
    );
    assert!(note.contains(" Change Dockerfile: STOPSIGNAL SIGQUIT (one of 2 changes)"), "{note}");
    assert!(note.ends_with(" (certain; incident i-8f1f6a0c-17, stop s1)"), "{note}");
    assert!(told[3].note.starts_with("at least 2 requests were lost in a stop"), "{}", told[3].note);
    assert!(told[0].note.contains("lost by pod web-7d9f-x2k1"), "{}", told[0].note);
    assert_eq!(told[0].related.as_ref().map(|pod| &*pod.kind), Some("Pod"));
    assert_eq!((&*told[2].first, &*told[2].last), ("2026-11-22T14:03:22.118204Z", "2026-11-22T14:03:22.118204Z"));
    let names: BTreeSet<&str> = told.iter().map(|t| &*t.name).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(events.due(100 * S).is_empty());
}

#[test]
fn the_longest_request_is_told_with_the_values_of_the_whole_stop() {
    let mut events = Events::default();
    let of = |age_ms, id: &str, value: &str| {
        let mut one = incident(Some("s1"), Cause::EndpointRace);
        (one.age_ms, one.id) = (age_ms, id.into());
        one.advice[0].change = format!("sleep {value}");
        one
    };
    for (age_ms, id) in [(None, "i-1"), (Some(12), "i-2"), (Some(2412), "i-3"), (Some(7), "i-4")] {
        lose(&mut events, of(age_ms, id, "5"), S);
    }
    let advice = of(None, "", "9").advice;
    events.output(&Output::Stop(Box::new(Stop { id: "s1".into(), advice, ..samples::stop() })), 2 * S);
    let told = events.due(2 * S);
    assert!(told.iter().all(|t| t.note.contains("; incident i-3, ") && t.note.contains("sleep 9")), "{told:#?}");
}

#[test]
fn further_stops_count_in_the_workloads_event() {
    let mut events = Events::default();
    let mut written = Vec::new();
    for n in 0..3 {
        let id = format!("s{n}");
        lose(&mut events, incident(Some(&id), Cause::NginxFastShutdown), n * S);
        events.output(&stop(&id), n * S);
        written.extend(events.due(n * S));
    }
    // The sample's pod is the same each time.
    assert_eq!(about(&written).iter().filter(|(kind, ..)| *kind == "Pod").count(), 3);
    assert_eq!(about(&written).iter().filter(|(kind, ..)| *kind == "Deployment").count(), 1);
    assert!(events.due(30 * S).is_empty(), "a count is not written each time");
    let again = events.due(61 * S);
    assert_eq!(about(&again), [("Deployment", "NginxFastShutdown", 3)]);
    assert!(again[0].again && again[0].name == written.iter().find(|t| t.about.kind == "Deployment").unwrap().name);
    // After a quiet time it is a new one.
    lose(&mut events, Incident { id: "i-9".into(), ..incident(Some("s9"), Cause::NginxFastShutdown) }, 5000 * S);
    events.output(&stop("s9"), 5000 * S);
    let fresh = events.due(5000 * S);
    assert!(fresh.iter().any(|t| t.about.kind == "Deployment" && !t.again && t.count == 1), "{fresh:?}");
    assert!(fresh.iter().all(|t| t.name != again[0].name));
}

#[test]
fn what_belongs_to_no_stop_is_told_at_once_and_counted() {
    let mut events = Events::default();
    for n in 0..500 {
        lose(&mut events, incident(None, Cause::FpmListenQueueFull), n * S / 100);
    }
    let told = events.due(5 * S);
    assert_eq!(about(&told), [("Deployment", "FpmListenQueueFull", 500), ("Pod", "FpmListenQueueFull", 500)]);
    assert!(told[1].note.starts_with("1 request was lost: "), "{}", told[1].note);
}

#[test]
fn a_stop_without_an_end_is_told_and_so_is_what_is_held_at_the_end() {
    let mut events = Events::default();
    lose(&mut events, incident(Some("s1"), Cause::QuitThenTerm), S);
    assert!(events.due(890 * S).is_empty());
    assert_eq!(events.due(902 * S).len(), 2);
    lose(&mut events, incident(Some("s2"), Cause::EndpointRace), 903 * S);
    assert_eq!(about(&events.last(904 * S)).len(), 2);
}

#[test]
fn a_flood_of_stops_is_bounded() {
    let mut events = Events::default();
    let (mut written, mut minutes) = (0, 0);
    for n in 0..3600 {
        let id = format!("s{n}");
        lose(&mut events, incident(Some(&id), Cause::NginxFastShutdown), n * S);
        events.output(&stop(&id), n * S);
        written += events.due(n * S).len();
        minutes = n / 60;
    }
    // The pod's five, then one in two minutes; the workload's one, and its count each minute.
    let most = 5 + minutes / 2 + 1 + minutes;
    assert!(written as u64 <= most + 2, "{written} in an hour");
    assert!(written as u64 >= minutes);
    assert!(events.left().limited > 2000, "{:?}", events.left());
}

#[test]
fn a_thousand_pods_at_once_are_bounded_as_well() {
    let mut events = Events::default();
    for n in 0..1000 {
        let mut one = incident(None, Cause::OomKilled);
        if let Some(pod) = &mut one.pod {
            pod.name = Some(format!("web-{n}"));
            pod.uid = format!("u{n}");
            pod.workload = None;
        }
        lose(&mut events, one, S);
    }
    assert_eq!(events.due(S).len(), 50);
    assert_eq!(events.due(11 * S).len(), 1);
}

#[test]
fn uids_are_those_of_the_api() {
    let mut events = Events::default();
    let pod = samples::incident().pod.unwrap();
    let of = |kind: &str, name: &str, uid: &str| OwnerRef { kind: kind.into(), name: name.into(), uid: uid.into() };
    events.input(&said(Said::Pod(PodState {
        uid: "api".into(),
        namespace: pod.namespace.clone().unwrap(),
        name: pod.name.unwrap(),
        static_uid: Some(pod.uid),
        owner: Some(of("ReplicaSet", "web-7d9f", "rs")),
        ..PodState::default()
    })));
    let (kind, name) = pod.workload.as_ref().unwrap().split_once('/').unwrap();
    events.input(&said(Said::Owner(OwnerState {
        uid: "rs".into(),
        kind: "ReplicaSet".into(),
        namespace: pod.namespace.unwrap(),
        name: "web-7d9f".into(),
        owner: Some(of(kind, name, "dep")),
        ..OwnerState::default()
    })));
    lose(&mut events, incident(None, Cause::OomKilled), S);
    let told = events.due(S);
    let uids: Vec<Option<&str>> = told.iter().map(|t| t.about.uid.as_deref()).collect();
    assert_eq!(uids, [Some("dep"), Some("api")]);
    assert_eq!((told[0].about.api_version, told[1].about.api_version), ("apps/v1", "v1"));
}

#[test]
fn pods_without_a_name_and_times_without_a_clock_are_counted() {
    let mut events = Events::default();
    let mut nameless = incident(None, Cause::OomKilled);
    nameless.pod.as_mut().unwrap().name = None;
    lose(&mut events, nameless, S);
    lose(&mut events, Incident { pod: None, ..incident(None, Cause::OomKilled) }, S);
    lose(&mut events, Incident { at: "boot+17ns".into(), ..incident(None, Cause::OomKilled) }, S);
    assert!(events.due(S).is_empty());
    assert_eq!(events.left().unnamed, 3);
    // A workload of a kind that nobody knows here has none; its pod has.
    let mut rollout = incident(None, Cause::OomKilled);
    rollout.pod.as_mut().unwrap().workload = Some("Rollout/web".into());
    lose(&mut events, rollout, S);
    assert_eq!(about(&events.due(S)), [("Pod", "OomKilled", 1)]);
}

#[test]
fn every_cause_is_a_reason() {
    let mut all = BTreeSet::new();
    for cause in Cause::ALL.iter().filter(|cause| !cause.not_the_server()) {
        let mut events = Events::default();
        lose(&mut events, incident(None, *cause), S);
        let told = events.due(S);
        let reason = &told[0].reason;
        assert!(reason.len() <= 128 && reason.starts_with(|c: char| c.is_ascii_uppercase()), "{reason}");
        assert!(reason.bytes().all(|b| b.is_ascii_alphanumeric()), "{reason}");
        assert!(all.insert(reason.clone()));
    }
}

proptest! {
    /// What processes write must not act in `kubectl describe`, nor make the API refuse the Event.
    #[test]
    fn notes_are_short_and_plain(summary in any::<String>(), change in ".{0,2000}", id in ".{0,800}") {
        let mut one = incident(Some("s1"), Cause::NginxFastShutdown);
        (one.summary, one.advice[0].change, one.id) = (summary, change, id);
        let mut events = Events::default();
        lose(&mut events, one, S);
        events.output(&stop("s1"), S);
        for told in events.due(S) {
            prop_assert!(told.note.len() <= 1024, "{}", told.note.len());
            prop_assert!(told.note.chars().all(|c| !c.is_control()), "{:?}", told.note);
            prop_assert!(told.name.len() <= 253);
        }
    }
}
