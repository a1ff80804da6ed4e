//! Stops and incidents for pages: of real recordings, and many more of a kind.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use why502::correlate::{Engine, EngineOptions};
use why502::model::incident::Advice;
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

/// What somebody might write into a comm, an argument, a path or a name.
pub(crate) const HOSTILE: &[&str] = &[
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "</title></style></svg><script>alert(1)</script>",
    "\" onfocus=alert(1) autofocus=\"",
    "`${alert(1)}`",
    "{{7*7}} <%= 7*7 %> &lt;b&gt; &#x3c;script&#x3e;",
    "--><!-- ]]> <![CDATA[",
    "\u{202e}gpj.exe\u{0}\u{1b}[31m\r\n\t\u{2028}\u{feff}",
    "\u{ff1c}script\u{ff1e}",
    "a\" style=\"position:fixed;inset:0\" x=\"",
    "../../../etc/passwd?x=1&y=2#z",
    "<base href=//evil.example/><link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><button formaction=javascript:alert(1)>",
];

/// Every string that somebody else may have a say in is `text`.
pub(crate) fn hostile(text: &str) -> (Stop, Vec<Incident>) {
    let t = || text.to_string();
    let (mut stops, mut incidents) = recorded("containerd-prestop-failed");
    let mut stop = stops.remove(0);
    let advice = |a: &mut Advice| (a.target, a.change, a.why) = (t(), t(), t());
    (stop.id, stop.node, stop.server, stop.signal) = (t(), t(), t(), Some(t()));
    if let Some(pod) = &mut stop.pod {
        (pod.namespace, pod.name, pod.workload) = (Some(t()), Some(t()), Some(t()));
    }
    if let Some(container) = &mut stop.container {
        (container.id, container.name) = (t(), Some(t()));
    }
    for phase in &mut stop.phases {
        phase.text = t();
        if phase.name == "exit" {
            phase.name = t();
            phase.event = None;
        }
    }
    for sent in &mut stop.timeline.signals {
        (sent.from.process.comm, sent.to.process.comm, sent.signal) = (t(), t(), t());
        (sent.from.process.role, sent.to.process.role) = (None, None);
    }
    for ended in &mut stop.timeline.exits {
        (ended.who.process.comm, ended.how, ended.who.process.role) = (t(), t(), None);
    }
    stop.by_cause.insert(t(), 1);
    stop.advice.iter_mut().for_each(advice);
    for i in &mut incidents {
        (i.id, i.node, i.summary, i.server.path, i.sub_cause) = (t(), t(), t(), Some(t()), Some(t()));
        i.stop = Some(t());
        (i.pod, i.container) = (stop.pod.clone(), stop.container.clone());
        i.confidence.lowered_by = vec![t()];
        i.chain.iter_mut().for_each(|link| (link.id, link.text) = (t(), t()));
        i.missing.iter_mut().for_each(|m| (m.fact, m.effect) = (t(), t()));
        i.advice.iter_mut().for_each(advice);
    }
    (stop, incidents)
}
