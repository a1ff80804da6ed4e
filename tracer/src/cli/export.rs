//! `--events`: where verdicts go beside the store.

use super::kube::Kube;
use super::say;
use crate::model::{Input, Output};
use crate::serve::State;
use crate::sinks::events::{Events, Told};
use crate::sinks::outbox::{Outbox, Stats};
use crate::sinks::recording::time_of;
use crate::sources::kube::EventWriter;
use anyhow::Context;
use std::time::Duration;

/// Events that wait for the API server: an hour of what the rates let through.
const EVENTS: usize = 512;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Write Kubernetes Events about the pods that lost requests, and about their workloads
    #[arg(long)]
    events: bool,
}

/// What runs of them.
#[derive(Default)]
pub(super) struct Exports {
    events: Option<(Events, Outbox<Told>)>,
    /// What was said of each last.
    complaints: Vec<(&'static str, Option<String>)>,
}

impl ExportArgs {
    /// `host` is the node's name where Kubernetes' is not given.
    pub(super) fn start(&self, kube: &Kube, host: &str, state: &State) -> anyhow::Result<Exports> {
        let mut exports = Exports::default();
        if self.events {
            let place = kube.place.clone();
            let place =
                place.context("--events needs the Kubernetes API: run in a pod with a service account, or --kube")?;
            let writer = EventWriter::new(place, kube.node.as_deref().unwrap_or(host));
            let outbox = Outbox::start("events", writer, EVENTS).context("cannot start the thread of --events")?;
            state.tally().export("kubernetes-events", outbox.gauge());
            exports.events = Some((Events::default(), outbox));
        }
        Ok(exports)
    }
}

impl Exports {
    /// Never waits.
    pub(super) fn feed(&mut self, input: &Input, outputs: &[Output], state: &State) {
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
        self.events.iter().map(|(_, outbox)| ("Kubernetes Events", outbox.stats())).collect()
    }

    /// Delivers what waits, for `patience` at most each; what is left is said.
    pub(super) fn finish(self, patience: Duration) {
        let Some((_, outbox)) = self.events else { return };
        let stats = outbox.finish(patience);
        if stats.waiting > 0 {
            let why = stats.failing.unwrap_or_default();
            say(format_args!("{} Kubernetes Events were not delivered: {why}", stats.waiting));
        }
    }
}
