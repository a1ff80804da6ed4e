//! What is in a stop's picture, before it has a place: rows, steps, bands, requests. All on the boot clock.

use super::words;
use crate::model::BootNs;
use crate::model::incident::{Ended, Incident, Lane, Outcome, Party, Phase, Sent, Stop};
use std::collections::BTreeMap;

/// Steps in a picture; what lies between is left out, and counted.
pub const STEPS_MAX: usize = 32;
/// The same thing said of several processes at once is one step: a master tells its workers within microseconds, and they
/// end within the tick of a scheduler or two.
const AT_ONCE_NS: u64 = 100_000_000;

/// A line of the picture, from top to bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    Api,
    Runtime,
    Host,
    Kernel,
    Other,
    Init,
    Command,
    /// With the number of the stop.
    Master(usize),
    Workers(usize),
    Connections(usize),
}

#[derive(Clone, Debug)]
pub struct Row {
    pub key: RowKey,
    pub label: String,
    /// Who is meant, in full.
    pub title: String,
    /// It is there until then; `None`: to the end of the picture. Only servers and PID 1 have an end worth showing.
    pub until: Option<BootNs>,
}

impl Row {
    /// Drawn as something that lives.
    pub fn lives(&self) -> bool {
        matches!(self.key, RowKey::Init | RowKey::Master(_) | RowKey::Workers(_) | RowKey::Connections(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    Signal,
    Exit,
    Phase,
}

/// One thing that happened, or several of a kind at once.
#[derive(Clone, Debug)]
pub struct Step {
    pub kind: StepKind,
    pub at: BootNs,
    /// The last of them, or the end of what lasts.
    pub until: BootNs,
    pub count: usize,
    pub from: Option<RowKey>,
    pub to: RowKey,
    /// A word or two in the picture.
    pub short: String,
    /// The same in full.
    pub who: String,
    pub text: String,
    pub event: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Band {
    pub class: &'static str,
    pub from: BootNs,
    pub to: BootNs,
    /// It goes on beyond the picture.
    pub open: bool,
    pub label: String,
    pub title: String,
}

/// A lost request.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: String,
    /// Null: how old it was is not known.
    pub from: Option<BootNs>,
    pub at: BootNs,
    pub outcome: Outcome,
    pub weight: u64,
    pub title: String,
}

/// Requests to one server.
#[derive(Clone, Debug)]
pub struct Server {
    pub row: RowKey,
    pub requests: Vec<Request>,
    /// How many were answered after the signal, from when to when.
    pub answered: Option<(u64, BootNs, BootNs)>,
}

#[derive(Clone, Debug)]
pub struct Scene {
    /// The stop signal to the container: times count from here.
    pub zero: BootNs,
    pub from: BootNs,
    pub to: BootNs,
    pub rows: Vec<Row>,
    pub steps: Vec<Step>,
    /// Steps left out.
    pub cut: u64,
    pub bands: Vec<Band>,
    pub servers: Vec<Server>,
}

/// `None`: nothing of the stop has a time. `stops`: the one that it is about, and others of the same pod.
pub fn scene(stops: &[&Stop], incidents: &[Incident]) -> Option<Scene> {
    let main = stops.first()?;
    let zero = zero(main)?;
    let mut raw = Vec::new();
    let mut people: BTreeMap<RowKey, BTreeMap<u32, String>> = BTreeMap::new();
    for (n, stop) in stops.iter().enumerate() {
        steps(stop, n, &mut raw, &mut people);
    }
    let (steps, cut) = grouped(raw);
    let servers: Vec<Server> = (0..stops.len()).map(|n| server(stops, n, incidents)).collect();
    let rows = rows(stops, &steps, &servers, people);
    let requests = || servers.iter().flat_map(|s| &s.requests);
    let times = steps
        .iter()
        .flat_map(|s| [s.at, s.until])
        .chain(requests().flat_map(|r| [r.from.unwrap_or(r.at), r.at]))
        .chain(servers.iter().filter_map(|s| s.answered.map(|(_, _, to)| to)))
        .chain([zero]);
    let (from, to) = (times.clone().min()?, times.max()?);
    let bands = bands(main, from, to);
    Some(Scene { zero, from, to, rows, steps, cut, bands, servers })
}

/// The stop signal to the container, or what there is instead.
pub fn zero(stop: &Stop) -> Option<BootNs> {
    let named = |name: &str| stop.phases.iter().find(|p| p.name == name).map(|p| p.at_boot_ns);
    let first = || stop.phases.iter().map(|p| p.at_boot_ns).min();
    named("container-signal").or_else(|| named("stop-signal")).or_else(|| named("kill")).or_else(first)
}

fn row_of(lane: Lane, stop: usize) -> RowKey {
    match lane {
        Lane::Runtime => RowKey::Runtime,
        Lane::Host => RowKey::Host,
        Lane::Kernel => RowKey::Kernel,
        Lane::Other => RowKey::Other,
        Lane::Init => RowKey::Init,
        Lane::Command => RowKey::Command,
        Lane::NginxMaster | Lane::PhpFpmMaster => RowKey::Master(stop),
        Lane::NginxWorker | Lane::PhpFpmChild => RowKey::Workers(stop),
    }
}

fn steps(stop: &Stop, n: usize, raw: &mut Vec<Step>, people: &mut BTreeMap<RowKey, BTreeMap<u32, String>>) {
    let mut meet = |party: &Party| {
        let row = row_of(party.lane, n);
        people.entry(row).or_default().entry(party.process.host_pid).or_insert_with(|| words::party(party));
        row
    };
    let phase_of = |event: &str| stop.phases.iter().find(|p| p.event.as_deref() == Some(event));
    let mut told = Vec::new();
    for sent in &stop.timeline.signals {
        let (from, to) = (meet(&sent.from), meet(&sent.to));
        told.push(sent.event.as_str());
        raw.push(signal(sent, from, to, phase_of(&sent.event)));
    }
    for ended in &stop.timeline.exits {
        let row = meet(&ended.who);
        told.push(ended.event.as_str());
        raw.push(exit(ended, row));
    }
    let rest = stop.phases.iter().filter(|p| p.event.as_deref().is_none_or(|event| !told.contains(&event)));
    raw.extend(rest.map(|p| phase(p, n)));
}

fn signal(sent: &Sent, from: RowKey, to: RowKey, phase: Option<&Phase>) -> Step {
    let who = format!("{} → {}", words::party(&sent.from), words::party(&sent.to));
    let ignored = if sent.ignored { ", which ignored it" } else { "" };
    let text = match phase {
        Some(phase) if !sent.ignored => phase.text.clone(),
        _ => format!("{}{ignored}", sent.signal),
    };
    let short = if sent.ignored { format!("{} ignored", sent.signal) } else { sent.signal.clone() };
    let (at, event) = (sent.at_boot_ns, Some(sent.event.clone()));
    Step { kind: StepKind::Signal, at, until: at, count: 1, from: Some(from), to, short, who, text, event }
}

fn exit(ended: &Ended, row: RowKey) -> Step {
    let who = words::party(&ended.who);
    let short = match ended.how.strip_prefix("was killed by ") {
        Some(signal) => format!("killed: {signal}"),
        None => ended.how.replace("exited with status ", "exit "),
    };
    let (at, event) = (ended.at_boot_ns, Some(ended.event.clone()));
    let text = ended.how.clone();
    Step { kind: StepKind::Exit, at, until: at, count: 1, from: None, to: row, short, who, text, event }
}

fn phase(p: &Phase, n: usize) -> Step {
    let (to, short, who) = match p.name.as_str() {
        "deleted" => (RowKey::Api, "deleted", "Kubernetes API"),
        "evicted" => (RowKey::Api, "evicted", "Kubernetes API"),
        "node-shutdown" => (RowKey::Api, "node shutdown", "Kubernetes API"),
        "probe-failed" => (RowKey::Api, "probe failed", "kubelet"),
        "endpoint-unready" => (RowKey::Api, "unready", "Kubernetes API"),
        "endpoints-removed" => (RowKey::Api, "endpoints gone", "Kubernetes API"),
        "prestop" => (RowKey::Command, "preStop", "preStop hook"),
        "exec" => (RowKey::Command, "exec", "command in the container"),
        "listener-closed" => (RowKey::Connections(n), "port closed", "listener"),
        "last-accept" => (RowKey::Connections(n), "last accept", "connections"),
        "drain-end" => (RowKey::Connections(n), "last answer", "connections"),
        "last-worker-exit" => (RowKey::Workers(n), "exit", "workers"),
        "exit" => (RowKey::Master(n), "exit", "master"),
        other => (RowKey::Master(n), other, "master"),
    };
    Step {
        kind: StepKind::Phase,
        at: p.at_boot_ns,
        until: p.until_boot_ns.unwrap_or(p.at_boot_ns).max(p.at_boot_ns),
        count: 1,
        from: None,
        to,
        short: short.into(),
        who: who.into(),
        text: p.text.clone(),
        event: p.event.clone(),
    }
}

/// The same at once is one step; what is still too much is left out of the middle.
fn grouped(mut raw: Vec<Step>) -> (Vec<Step>, u64) {
    raw.sort_by(|a, b| (a.at, &a.event, &a.short).cmp(&(b.at, &b.event, &b.short)));
    // Of several stops of one container the signal to PID 1 is the same one.
    let mut seen = std::collections::BTreeSet::new();
    raw.retain(|s| s.event.as_ref().is_none_or(|event| seen.insert(event.clone())));
    let mut steps: Vec<Step> = Vec::new();
    for step in raw {
        let same = |s: &&mut Step| {
            let what = (s.kind, s.from, s.to, &s.short) == (step.kind, step.from, step.to, &step.short);
            what && step.at.saturating_sub(s.until) <= AT_ONCE_NS && step.to != RowKey::Api
        };
        match steps.iter_mut().rev().take(8).find(same) {
            Some(s) => {
                s.count += 1;
                s.until = s.until.max(step.until);
            }
            None => steps.push(step),
        }
    }
    let cut = steps.len().saturating_sub(STEPS_MAX);
    if cut > 0 {
        let keep = STEPS_MAX * 2 / 3;
        steps.drain(keep..keep + cut);
    }
    (steps, cut as u64)
}

fn rows(
    stops: &[&Stop],
    steps: &[Step],
    servers: &[Server],
    people: BTreeMap<RowKey, BTreeMap<u32, String>>,
) -> Vec<Row> {
    let mut keys: std::collections::BTreeSet<RowKey> =
        steps.iter().flat_map(|s| s.from.into_iter().chain([s.to])).collect();
    for server in servers.iter().filter(|s| !s.requests.is_empty() || s.answered.is_some()) {
        keys.insert(server.row);
    }
    let exit = |key: RowKey| {
        let ends = steps.iter().filter(move |s| s.to == key);
        match key {
            RowKey::Connections(_) => ends.filter(|s| s.short == "port closed").map(|s| s.until).max(),
            _ => ends.filter(|s| s.kind == StepKind::Exit || s.short == "exit").map(|s| s.until).max(),
        }
    };
    let mut rows: Vec<Row> = keys
        .into_iter()
        .map(|key| {
            let who: Vec<&str> = people.get(&key).into_iter().flatten().map(|(_, who)| who.as_str()).collect();
            let (label, about) = label(key, stops, who.len(), &who);
            let title = if who.is_empty() { about.to_string() } else { format!("{about}: {}", who.join(", ")) };
            Row { key, label, title, until: exit(key) }
        })
        .collect();
    // Processes first, nginx before php-fpm as requests go; then what happened to the requests.
    let fpm = |n: usize| stops.get(n).is_some_and(|s| s.server == "php-fpm");
    let rank = |key: RowKey| match key {
        RowKey::Master(n) => (1, fpm(n), n, 0),
        RowKey::Workers(n) => (1, fpm(n), n, 1),
        RowKey::Connections(n) => (2, fpm(n), n, 0),
        _ => (0, false, 0, 0),
    };
    rows.sort_by_key(|r| (rank(r.key), r.key));
    rows
}

fn label(key: RowKey, stops: &[&Stop], processes: usize, who: &[&str]) -> (String, &'static str) {
    // Two nginx of one pod are told apart by their containers.
    let server = |n: usize, what: &str| {
        let name = stops.get(n).map_or("", |s| s.server.as_str());
        let twice = stops.iter().filter(|s| s.server == name).count() > 1;
        match stops.get(n).and_then(|s| s.container.as_ref()).filter(|_| twice) {
            Some(c) => {
                // The first digits of an id are as good as more of them with dots.
                let which =
                    c.name.as_ref().map_or_else(|| c.id.chars().take(5).collect(), |name| words::short(name, 6));
                format!("{} {what} {which}", words::short(name, 7))
            }
            None => format!("{} {what}", words::short(name, 12)),
        }
    };
    let fpm = |n: usize| stops.get(n).is_some_and(|s| s.server == "php-fpm");
    let several = |text: &str| match processes {
        0 | 1 => text.to_string(),
        n if text.chars().count() > 17 => format!("{text}×{n}"),
        n => format!("{text} ({n})"),
    };
    match key {
        RowKey::Api => ("API, kubelet".into(), "what the Kubernetes API said"),
        RowKey::Runtime => (several("runtime"), "processes of the container runtime"),
        RowKey::Host => (several("host"), "other processes of the host"),
        RowKey::Kernel => ("kernel".into(), "signals by the kernel itself"),
        RowKey::Other => (several("elsewhere"), "processes of other containers, or not known where"),
        RowKey::Init => match who {
            // `tini 1234`: the name, as far as there is room.
            [one] => (format!("PID 1: {}", words::short(one.split(' ').next().unwrap_or(one), 12)), "PID 1"),
            _ => (several("init"), "PID 1 and supervisors"),
        },
        RowKey::Command => ("commands".into(), "commands in the container: hooks, shells, somebody's exec"),
        RowKey::Master(n) => (server(n, "master"), "master"),
        RowKey::Workers(n) if fpm(n) => (several(&server(n, "children")), "children of php-fpm's master"),
        RowKey::Workers(n) => (several(&server(n, "workers")), "workers of nginx's master"),
        RowKey::Connections(n) => (server(n, "requests"), "its port, and the requests that were lost"),
    }
}

fn server(stops: &[&Stop], n: usize, incidents: &[Incident]) -> Server {
    let stop = stops[n];
    let of = |i: &&Incident| {
        let this = i.stop.as_deref() == Some(stop.id.as_str());
        // What belongs to none of them is shown with the first.
        this || n == 0 && !stops.iter().any(|s| i.stop.as_deref() == Some(s.id.as_str()))
    };
    let mut requests: Vec<Request> = incidents.iter().filter(of).map(request).collect();
    requests.sort_by(|a, b| (a.from.unwrap_or(a.at), a.at, &a.id).cmp(&(b.from.unwrap_or(b.at), b.at, &b.id)));
    let answered = stop.in_flight.answered.filter(|n| *n > 0).and_then(|count| {
        let zero = zero(stop)?;
        Some((count, zero, zero.saturating_add(stop.in_flight.drain_ms?.saturating_mul(1_000_000))))
    });
    Server { row: RowKey::Connections(n), requests, answered }
}

fn request(i: &Incident) -> Request {
    let at = i.at_boot_ns;
    let from = i.age_ms.map(|ms| at.saturating_sub(ms.saturating_mul(1_000_000)));
    let weight = u64::from(i.requests.count.max(1));
    Request { id: i.id.clone(), from, at, outcome: i.outcome, weight, title: words::request(i) }
}

fn bands(stop: &Stop, from: BootNs, to: BootNs) -> Vec<Band> {
    let mut bands = Vec::new();
    let first = stop.phases.iter().map(|p| p.at_boot_ns).min().unwrap_or(from);
    if let Some(grace) = &stop.grace {
        let end = first.saturating_add(grace.ms.saturating_mul(1_000_000));
        let left = match grace.left_ms {
            left @ 1.. => format!("{} left", words::ms(left.unsigned_abs())),
            _ => "all of it used".into(),
        };
        bands.push(Band {
            class: "grace",
            from: first,
            to: end.min(to),
            open: end > to,
            label: format!("grace period {}, {left}", words::ms(grace.ms)),
            title: format!("grace period of {} ({}): {left}", words::ms(grace.ms), grace.source),
        });
    }
    for hook in stop.phases.iter().filter(|p| matches!(p.name.as_str(), "prestop" | "exec")) {
        let (end, open) = hook.until_boot_ns.map_or((to, true), |until| (until.min(to), until > to));
        let took = words::span(end.saturating_sub(hook.at_boot_ns));
        bands.push(Band {
            class: "hook",
            from: hook.at_boot_ns,
            to: end,
            open,
            label: format!("{} {took}", if hook.name == "prestop" { "preStop" } else { "exec" }),
            title: hook.text.clone(),
        });
    }
    bands
}
