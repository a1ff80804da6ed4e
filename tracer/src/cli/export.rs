//! `--events` and `--otlp`: where verdicts go beside the store.

use super::judge::is_blamed;
use super::kube::Kube;
use super::say;
use crate::model::{Input, Output};
use crate::serve::State;
use crate::sinks::events::{Events, Told};
use crate::sinks::otlp::{self, Endpoint, Entry, Headers, Receiver};
use crate::sinks::outbox::{Outbox, Stats};
use crate::sinks::recording::time_of;
use crate::sources::kube::EventWriter;
use anyhow::Context;
use std::time::{Duration, Instant};

/// Events that wait for the API server: an hour of what the rates let through.
const EVENTS: usize = 512;
/// Records that wait for the OTLP receiver: some 16 MiB, twice that at most.
const RECORDS: usize = 2_048;
/// As every exporter of OpenTelemetry takes them. Not an option: their values are secrets, and `ps` shows options.
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// What they are called on stderr.
const EVENTS_NAME: &str = "Kubernetes Events";
const OTLP_NAME: &str = "OTLP log records";

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Write Kubernetes Events about the pods that lost requests, and about their workloads
    #[arg(long)]
    events: bool,
    /// Send incidents and stops as logs to this OpenTelemetry receiver: http://HOST:4318
    #[arg(long, value_name = "URL")]
    otlp: Option<Endpoint>,
}

/// What runs of them.
#[derive(Default)]
pub(super) struct Exports {
    events: Option<(Events, Outbox<Told>)>,
    otlp: Option<Outbox<Entry>>,
    /// Also what is not the server's doing.
    all: bool,
    /// What was said of each last.
    complaints: Vec<(&'static str, Option<String>)>,
}

impl ExportArgs {
    /// `host` is the node's name where Kubernetes' is not given; `all`: logs are also about what is not the server's doing.
    pub(super) fn start(&self, kube: &Kube, host: &str, all: bool, state: &State) -> anyhow::Result<Exports> {
        let mut exports = Exports { all, ..Exports::default() };
        if self.events {
            let place = kube.place.clone();
            let place =
                place.context("--events needs the Kubernetes API: run in a pod with a service account, or --kube")?;
            let writer = EventWriter::new(place, kube.node.as_deref().unwrap_or(host));
            let outbox = Outbox::start("events", writer, EVENTS).context("cannot start the thread of --events")?;
            state.tally().export("kubernetes-events", outbox.gauge());
            exports.events = Some((Events::default(), outbox));
        }
        if let Some(endpoint) = &self.otlp {
            let headers = std::env::var_os(HEADERS).unwrap_or_default();
            let headers = headers
                .to_str()
                .context("not UTF-8")
                .and_then(|text| text.parse::<Headers>().map_err(anyhow::Error::msg));
            let receiver = Receiver::new(endpoint.clone(), headers.context(HEADERS)?);
            let outbox = Outbox::start("otlp", receiver, RECORDS).context("cannot start the thread of --otlp")?;
            state.tally().export("otlp", outbox.gauge());
            exports.otlp = Some(outbox);
        }
        Ok(exports)
    }
}

impl Exports {
    /// Never waits.
    pub(super) fn feed(&mut self, input: &Input, outputs: &[Output], state: &State) {
        if let Some(outbox) = &self.otlp {
            let told = outputs.iter().filter(|output| self.all || is_blamed(output));
            told.for_each(|output| outbox.push(otlp::entry(output)));
        }
        let Some((events, outbox)) = &mut self.events else { return };
        let now = time_of(input);
        events.input(input);
        outputs.iter().for_each(|output| events.output(output, now));
        if !outputs.is_empty() || matches!(input, Input::Tick { .. }) {
            events.due(now).into_iter().for_each(|told| outbox.push(told));
        }
        if matches!(input, Input::Stopped { .. }) {
            events.last(now).into_iter().for_each(|told| outbox.push(told));
        }
        if !outputs.is_empty() {
            state.tally().left("kubernetes-events", events.left());
        }
    }

    /// One line when one begins or ends to fail.
    pub(super) fn complain(&mut self) {
        for (name, stats) in self.all() {
            let known = self.complaints.iter().position(|(of, _)| *of == name);
            let known = known.unwrap_or_else(|| {
                self.complaints.push((name, None));
                self.complaints.len() - 1
            });
            let last = &mut self.complaints[known].1;
            // The reason may differ from one try to the next.
            if last.is_some() != stats.failing.is_some() {
                match &stats.failing {
                    Some(why) => say(format_args!("{name} cannot be delivered: {why}")),
                    None => say(format_args!("{name} are delivered again")),
                }
            }
            *last = stats.failing;
        }
    }

    fn all(&self) -> Vec<(&'static str, Stats)> {
        let events = self.events.iter().map(|(_, outbox)| (EVENTS_NAME, outbox.stats()));
        events.chain(self.otlp.iter().map(|outbox| (OTLP_NAME, outbox.stats()))).collect()
    }

    /// Delivers what waits, for `patience` at most all together; what is left is said.
    pub(super) fn finish(self, patience: Duration) {
        let start = Instant::now();
        let left = || patience.saturating_sub(start.elapsed());
        let events = self.events.map(|(_, outbox)| (EVENTS_NAME, outbox.finish(left())));
        let otlp = self.otlp.map(|outbox| (OTLP_NAME, outbox.finish(left())));
        for (name, stats) in events.into_iter().chain(otlp).filter(|(_, stats)| stats.waiting > 0) {
            let why = stats.failing.unwrap_or_default();
            say(format_args!("{} {name} were not delivered: {why}", stats.waiting));
        }
    }
}
