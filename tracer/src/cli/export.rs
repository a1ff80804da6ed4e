//! `--events` and `--otlp`: where verdicts go beside the store.

use super::kube::Kube;
use super::say;
use crate::model::{Input, Output};
use crate::serve::State;
use crate::sinks::events::{Events, Told};
use crate::sinks::otlp::{self, Endpoint, Entry, Receiver, Settings};
use crate::sinks::outbox::{Outbox, Stats};
use crate::sinks::recording::time_of;
use crate::sources::kube::EventWriter;
use anyhow::Context;
use std::time::{Duration, Instant};

/// Events that wait for the API server: an hour of what the rates let through.
const EVENTS: usize = 512;
/// Records that wait for the OTLP receiver: some 12 MiB, and 24 MiB when every chain is as long as it may be.
const RECORDS: usize = 2_048;

/// What they are called on stderr.
const EVENTS_NAME: &str = "Kubernetes Events";
const OTLP_NAME: &str = "OTLP log records";

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Write Kubernetes Events about the pods that lost requests, and about their workloads
    #[arg(long)]
    events: bool,
    /// Send incidents and stops as logs to an OpenTelemetry receiver: http://HOST:4318, or what the variables OTEL_EXPORTER_OTLP_*
    /// say
    #[arg(long, value_name = "URL", num_args = 0..=1, value_parser = Endpoint::base)]
    otlp: Option<Option<Endpoint>>,
}

/// What was asked for, and can be had as far as is known before anything is started.
pub(super) struct Wanted {
    events: Option<EventWriter>,
    otlp: Option<Settings>,
}

/// What runs of them.
#[derive(Default)]
pub(super) struct Exports {
    events: Option<(Events, Outbox<Told>)>,
    otlp: Option<Outbox<Entry>>,
    /// What was said of each last.
    complaints: Vec<(&'static str, Option<String>)>,
}

impl ExportArgs {
    /// `host` is the node's name where Kubernetes' is not given.
    pub(super) fn resolve(self, kube: &Kube, host: &str) -> anyhow::Result<Wanted> {
        let mut wanted = Wanted { events: None, otlp: None };
        if self.events {
            let place = kube.place.clone();
            let place =
                place.context("--events needs the Kubernetes API: run in a pod with a service account, or --kube")?;
            wanted.events = Some(EventWriter::new(place, kube.node.as_deref().unwrap_or(host)));
        }
        if let Some(given) = self.otlp {
            let variable = |name: &str| std::env::var_os(name).map(|text| text.to_string_lossy().into_owned());
            // Headers are no option: their values are secrets, and `ps` shows options.
            wanted.otlp = Some(Settings::read(given, variable).map_err(anyhow::Error::msg)?);
        }
        Ok(wanted)
    }
}

impl Wanted {
    pub(super) fn start(self, state: &State) -> anyhow::Result<Exports> {
        let mut exports = Exports::default();
        if let Some(writer) = self.events {
            let outbox = Outbox::start("events", writer, EVENTS).context("cannot start the thread of --events")?;
            state.tally().export("kubernetes-events", outbox.gauge());
            exports.events = Some((Events::default(), outbox));
        }
        if let Some(settings) = self.otlp {
            say(format_args!("{OTLP_NAME} go to {}", settings.endpoint()));
            let receiver = Receiver::new(settings);
            let outbox = Outbox::start("otlp", receiver, RECORDS).context("cannot start the thread of --otlp")?;
            state.tally().export("otlp", outbox.gauge());
            exports.otlp = Some(outbox);
        }
        Ok(exports)
    }
}

impl Exports {
    /// What the store keeps, with its bounds for each container, goes on. Never waits.
    pub(super) fn kept(&self, output: &Output) {
        self.otlp.iter().for_each(|outbox| outbox.push(otlp::entry(output)));
    }

    /// Never waits.
    pub(super) fn feed(&mut self, input: &Input, outputs: &[Output], state: &State) {
        let Some((events, outbox)) = &mut self.events else { return };
        let now = time_of(input);
        events.input(input);
        outputs.iter().for_each(|output| events.output(output, now));
        let due = !outputs.is_empty() || matches!(input, Input::Tick { .. });
        if due {
            events.due(now).into_iter().for_each(|told| outbox.push(told));
        }
        if matches!(input, Input::Stopped { .. }) {
            events.last(now).into_iter().for_each(|told| outbox.push(told));
        }
        // What waited for too long is given up without an output.
        if due {
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
                    None if stats.dropped == 0 => say(format_args!("{name} are delivered again")),
                    None => say(format_args!("{name} are delivered again, {} were dropped", stats.dropped)),
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
