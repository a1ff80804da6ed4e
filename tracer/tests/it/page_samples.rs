//! Stops and incidents for pages: of real recordings, and many more of a kind.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use why502::correlate::{Engine, EngineOptions};
use why502::model::{Incident, Outcome, Output, Stop};
use why502::sinks::recording::Reader;

/// Names of all recordings.
pub(crate) fn names() -> Vec<String> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut names: Vec<String> = files.filter(|p| p.extension().is_some_and(|e| e == "rec")).map(stem).collect();
    names.sort();
    names
}

pub(crate) fn recorded(name: &str) -> (Vec<Stop>, Vec<Incident>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name).with_extension("rec");
    let inputs = Reader::new(BufReader::new(File::open(path).unwrap())).unwrap();
    let mut engine = Engine::new(EngineOptions::default());
    let (mut stops, mut incidents) = (Vec::new(), Vec::new());
    for output in inputs.flat_map(|input| engine.feed(&input.unwrap())) {
        match output {
            Output::Stop(stop) => stops.push(*stop),
            Output::Incident(incident) => incidents.push(*incident),
        }
    }
    (stops, incidents)
}

/// A real stop of nginx by SIGTERM as if it had had `n` requests, some of them long, some half answered, some late.
pub(crate) fn many(n: u64) -> (Stop, Vec<Incident>) {
    let (mut stops, incidents) = recorded("nginx-sigterm");
    let mut stop = stops.remove(0);
    let cut = incidents.iter().find(|i| i.outcome == Outcome::Unanswered).unwrap();
    let late = incidents.iter().find(|i| i.outcome == Outcome::Refused).unwrap();
    let all = (0..n).map(|k| {
        let mut i = if k % 10 < 8 { cut.clone() } else { late.clone() };
        i.id = format!("i-{k:016x}");
        if i.outcome == Outcome::Unanswered {
            i.outcome = if k % 10 == 7 { Outcome::Truncated } else { Outcome::Unanswered };
            i.age_ms = Some(20 + k * 7919 % 3000);
            i.at_boot_ns += k * 37 % 900 * 1_000;
        } else {
            i.at_boot_ns += k * 131 % 2_500 * 1_000_000;
        }
        i
    });
    let all: Vec<Incident> = all.collect();
    stop.incidents = n;
    stop.by_cause.clear();
    for i in &all {
        *stop.by_cause.entry(i.cause.id().into()).or_default() += 1;
    }
    stop.in_flight.cut = n * 8 / 10;
    stop.in_flight.longest_ms = all.iter().filter_map(|i| i.age_ms).max();
    stop.in_flight.answered = Some(12);
    stop.in_flight.drain_ms = Some(900);
    (stop, all)
}

/// A pod of a cluster that is deleted: what the API said, a hook that slept, a stop within its grace period.
pub(crate) fn with_api() -> (Stop, Vec<Incident>) {
    let (mut stops, incidents) = recorded("containerd-prestop-failed");
    let mut stop = stops.remove(0);
    let hook = stop.phases.iter().position(|p| p.name == "prestop").unwrap();
    let slept = 5_000_000_000;
    stop.phases[hook].at_boot_ns -= slept;
    let began = stop.phases[hook].at_boot_ns;
    let said = |name: &str, ms: u64, event: &str, text: &str| {
        let mut phase = stop.phases[hook].clone();
        (phase.name, phase.text, phase.event) = (name.into(), text.into(), Some(event.into()));
        (phase.at_boot_ns, phase.until_boot_ns) = (began + ms * 1_000_000, None);
        phase
    };
    let more = [
        said("deleted", 0, "k3", "pod shop/web-c672 was deleted by replicaset-controller, grace 30 s"),
        said("endpoint-unready", 12, "k4", "no longer ready in web-x2k1, still serving"),
        said("endpoints-removed", 5_900, "k5", "left web-x2k1"),
    ];
    stop.phases.splice(0..0, more);
    stop.phases[0].at_boot_ns -= 40_000_000;
    (stop, incidents)
}
