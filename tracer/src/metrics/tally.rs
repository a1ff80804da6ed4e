//! What is counted of inputs and outputs. The number of series is bounded whatever containers do: namespaces and workloads
//! up to a number, then all others are `_other`.

use super::text::Text;
use super::*;
use crate::model::event::EventKind;
use crate::model::incident::{Container, Pod};
use crate::model::input::{HookState, SourceState, Started};
use crate::model::kube::Said;
use crate::model::{Input, Output};
use crate::ring::counters::HookTotals;
use crate::sinks::events::Left;
use crate::sinks::names;
use crate::sinks::outbox::Gauge;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Pairs of namespace and workload that have series of their own.
pub const OWNERS: usize = 200;
/// Series of one family.
pub const SERIES: usize = 2_000;
/// Bytes of a label's value: Kubernetes' names are not longer.
const VALUE: usize = 253;
/// Sources that are listed: there are a handful.
const SOURCES: usize = 64;
/// What is too much.
pub const OTHER: &str = "_other";

/// Namespace and workload.
type Owner = (String, String);

/// Labels in their metric's order.
type Labels = Vec<String>;

#[derive(Debug)]
pub struct Tally {
    started: Option<Started>,
    ready: bool,
    moved: Instant,
    owners: BTreeSet<Owner>,
    lost: BTreeMap<Labels, u64>,
    others: BTreeMap<&'static str, u64>,
    stops: BTreeMap<Labels, u64>,
    lossy: BTreeMap<Labels, u64>,
    overflow: u64,
    signals: BTreeMap<u32, u64>,
    resets: [u64; 2],
    events: BTreeMap<&'static str, u64>,
    loss: BTreeMap<(String, String), u64>,
    sources: BTreeMap<String, bool>,
    hooks: Vec<HookTotals>,
    skipped: u64,
    exports: Vec<Export>,
}

/// A server elsewhere.
struct Export {
    to: &'static str,
    gauge: Gauge,
    left: Option<Left>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("to", &self.to).field("left", &self.left).finish_non_exhaustive()
    }
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            started: None,
            ready: false,
            moved: Instant::now(),
            owners: BTreeSet::new(),
            lost: BTreeMap::new(),
            others: BTreeMap::new(),
            stops: BTreeMap::new(),
            lossy: BTreeMap::new(),
            overflow: 0,
            signals: BTreeMap::new(),
            resets: [0; 2],
            events: BTreeMap::new(),
            loss: BTreeMap::new(),
            sources: BTreeMap::new(),
            hooks: Vec::new(),
            skipped: 0,
            exports: Vec::new(),
        }
    }
}

/// Cut between characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(VALUE)]
}

impl Tally {
    pub fn input(&mut self, input: &Input) {
        match input {
            Input::Started(started) => self.started = Some(started.clone()),
            Input::Ready { .. } => self.ready = true,
            Input::Stopped { .. } => self.ready = false,
            Input::Event(event) => {
                *self.events.entry(names::kind(&event.kind)).or_default() += 1;
                match &event.kind {
                    // A number that no kernel has must not make series.
                    EventKind::SignalGenerated(s) => *self.signals.entry(s.signal.min(65)).or_default() += 1,
                    EventKind::ResetSent(_) => self.resets[0] += 1,
                    EventKind::ResetReceived(_) => self.resets[1] += 1,
                    _ => {}
                }
            }
            Input::Loss(fact) => {
                let kind = serde_json::to_value(fact.kind).ok().and_then(|v| v.as_str().map(str::to_owned));
                self.lost(&fact.hook, kind.as_deref().unwrap_or("unknown"), fact.count);
            }
            Input::Source(fact) => self.source(&fact.source, fact.state == SourceState::Connected),
            Input::Kube(fact) => {
                if let Said::Api(api) = &fact.said {
                    self.source(&format!("kubernetes {}", api.resource), api.why.is_none());
                }
            }
            _ => {}
        }
        self.moved = Instant::now();
    }

    fn source(&mut self, name: &str, up: bool) {
        let name = cut(name);
        if self.sources.len() < SOURCES || self.sources.contains_key(name) {
            self.sources.insert(name.to_owned(), up);
        }
    }

    pub fn lost(&mut self, hook: &str, kind: &str, count: u64) {
        *self.loss.entry((hook.to_owned(), kind.to_owned())).or_default() += count;
    }

    pub fn output(&mut self, output: &Output) {
        match output {
            Output::Incident(incident) if incident.cause.not_the_server() => {
                *self.others.entry(incident.cause.id()).or_default() += u64::from(incident.requests.count);
            }
            Output::Incident(incident) => {
                let (namespace, workload) = self.owner(incident.pod.as_ref(), incident.container.as_ref());
                let what = [incident.cause.id(), incident.mechanism.id(), incident.trigger.id()];
                let labels = [&what.map(str::to_owned)[..], &[namespace, workload]].concat();
                add(&mut self.lost, labels, incident.requests.count.into(), &mut self.overflow);
            }
            Output::Stop(stop) => {
                let (namespace, workload) = self.owner(stop.pod.as_ref(), stop.container.as_ref());
                let server = if matches!(&*stop.server, "nginx" | "php-fpm") { &*stop.server } else { "other" };
                let labels = vec![stop.trigger.id().to_owned(), server.to_owned(), namespace, workload];
                if stop.incidents > 0 {
                    add(&mut self.lossy, labels.clone(), 1, &mut self.overflow);
                }
                add(&mut self.stops, labels, 1, &mut self.overflow);
            }
        }
    }

    /// The labels of a pod, or of a container that is in none: `Container/NAME`.
    fn owner(&mut self, pod: Option<&Pod>, container: Option<&Container>) -> Owner {
        let namespace = pod.and_then(|pod| pod.namespace.as_deref()).unwrap_or_default();
        let workload = match (pod, container.and_then(|container| container.name.as_deref())) {
            (Some(pod), _) => pod.workload.clone().unwrap_or_default(),
            (None, Some(name)) => format!("Container/{name}"),
            (None, None) => String::new(),
        };
        let owner = (cut(namespace).to_owned(), cut(&workload).to_owned());
        if self.owners.len() < OWNERS || self.owners.contains(&owner) {
            self.owners.insert(owner.clone());
            return owner;
        }
        self.overflow += 1;
        (OTHER.to_owned(), OTHER.to_owned())
    }

    /// What the probes counted up to now.
    pub fn hooks(&mut self, hooks: Vec<HookTotals>) {
        self.hooks = hooks;
    }

    /// An output was not kept.
    pub fn skipped(&mut self) {
        self.skipped += 1;
    }

    /// Something is sent to a server elsewhere; `gauge` tells how it goes.
    pub fn export(&mut self, to: &'static str, gauge: Gauge) {
        self.exports.push(Export { to, gauge, left: None });
    }

    /// What was not sent there on purpose.
    pub fn left(&mut self, to: &str, left: Left) {
        self.exports.iter_mut().filter(|export| export.to == to).for_each(|export| export.left = Some(left));
    }

    fn write_exports(&self, text: &mut Text) {
        for Export { to, gauge, left } in &self.exports {
            let stats = gauge();
            text.add(&EXPORT_OK, &[to], u8::from(stats.failing.is_none()));
            text.add(&EXPORT_SENT, &[to], stats.sent);
            text.add(&EXPORT_WAITING, &[to], stats.waiting);
            text.add(&EXPORT_FAILURES, &[to], stats.failures);
            let more = left.map(|left| [("rate", left.limited), ("unnamed", left.unnamed)]);
            for (reason, count) in
                [("queue", stats.dropped), ("refused", stats.refused)].into_iter().chain(more.into_iter().flatten())
            {
                text.add(&EXPORT_DROPPED, &[to, reason], count);
            }
        }
    }

    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// The probes are loaded: from here on inputs come all the time.
    pub fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// Seconds since the last input.
    pub fn age(&self) -> f64 {
        self.moved.elapsed().as_secs_f64()
    }

    /// What this host does not give and verdicts need: ids, and the hooks that failed.
    pub fn degraded(&self) -> Vec<String> {
        let Some(started) = &self.started else { return Vec::new() };
        let failed = started.hooks.iter().filter(|hook| matches!(hook.state, HookState::Failed { .. }));
        let ids = started.degraded.iter().filter(|degraded| degraded.lowers()).map(|degraded| degraded.id.clone());
        ids.chain(failed.map(|hook| format!("hook {}", hook.hook))).collect()
    }

    /// The same for people: a line each.
    pub fn degraded_texts(&self) -> Vec<String> {
        let Some(started) = &self.started else { return Vec::new() };
        let failed = started.hooks.iter().filter_map(|hook| match &hook.state {
            HookState::Failed { why } => Some(format!("the probe {} failed: {why}", hook.hook)),
            _ => None,
        });
        let lowers = started.degraded.iter().filter(|degraded| degraded.lowers());
        lowers.map(|degraded| format!("{} ({})", degraded.text, degraded.id)).chain(failed).collect()
    }

    /// Ids of what it does not give either, and verdicts are the same.
    pub fn lacks(&self) -> Vec<String> {
        let all = self.started.iter().flat_map(|started| &started.degraded);
        all.filter(|degraded| !degraded.lowers()).map(|degraded| degraded.id.clone()).collect()
    }

    /// The node's name; empty before the start.
    pub fn node(&self) -> &str {
        self.started.as_ref().map_or("", |started| &started.node)
    }

    pub fn write(&self, text: &mut Text) {
        text.add(&READY, &[], u8::from(self.ready));
        text.add(&INPUT_AGE, &[], format_args!("{:.3}", self.age()));
        if let Some(started) = &self.started {
            text.add(&BUILD_INFO, &[&started.version, &started.kernel, &started.node], 1);
            for hook in &started.hooks {
                let status = match hook.state {
                    HookState::Attached => "attached",
                    HookState::Skipped { .. } => "skipped",
                    HookState::Failed { .. } => "failed",
                };
                text.add(&PROBE, &[&hook.hook, status], 1);
            }
            let ids: BTreeSet<&str> = started.degraded.iter().map(|degraded| &*degraded.id).collect();
            ids.into_iter().for_each(|id| text.add(&DEGRADED, &[id], 1));
        }
        for (metric, series) in [(&LOST_REQUESTS, &self.lost), (&STOPS, &self.stops), (&STOPS_LOSSY, &self.lossy)] {
            for (labels, count) in series {
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                text.add(metric, &labels, count);
            }
        }
        self.others.iter().for_each(|(cause, count)| text.add(&OTHER_REQUESTS, &[cause], count));
        text.add(&OVERFLOW, &[], self.overflow);
        text.add(&STORE_SKIPPED, &[], self.skipped);
        self.write_exports(text);
        self.signals.iter().for_each(|(number, count)| text.add(&SIGNALS, &[&names::signal(*number)], count));
        for (direction, count) in ["sent", "received"].iter().zip(self.resets) {
            text.add(&RESETS, &[direction], count);
        }
        self.events.iter().for_each(|(kind, count)| text.add(&EVENTS, &[kind], count));
        self.loss.iter().for_each(|((hook, kind), count)| text.add(&LOSS, &[hook, kind], count));
        self.sources.iter().for_each(|(source, up)| text.add(&SOURCE, &[source], u8::from(*up)));
        if !self.hooks.is_empty() {
            text.add(&ANSWERED, &[], self.hooks.iter().map(|hook| hook.answered).sum::<u64>());
        }
        for hook in &self.hooks {
            text.add(&PROBE_HITS, &[&hook.hook], hook.seen);
            text.add(&PROBE_RECORDS, &[&hook.hook], hook.sent);
            if let Some(ns) = hook.run_ns {
                text.add(&PROBE_SECONDS, &[&hook.hook], ns as f64 / 1e9);
            }
        }
    }
}

/// Adds to a series, or to the one of everything that is too much.
fn add(series: &mut BTreeMap<Labels, u64>, labels: Labels, count: u64, overflow: &mut u64) {
    let fits = series.len() < SERIES || series.contains_key(&labels);
    let labels = if fits {
        labels
    } else {
        *overflow += 1;
        vec![OTHER.to_owned(); labels.len()]
    };
    *series.entry(labels).or_default() += count;
}
