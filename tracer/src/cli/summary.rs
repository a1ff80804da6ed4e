//! What was seen in all: said on stderr at the end.

use crate::model::{BootNs, Input, Output};
use crate::sinks::names;
use std::collections::BTreeMap;
use std::fmt::Display;

/// Counts of one observation.
#[derive(Debug, Default)]
pub(super) struct Summary {
    from: Option<BootNs>,
    to: BootNs,
    events: BTreeMap<&'static str, u64>,
    blamed: BTreeMap<&'static str, u64>,
    not_the_server: BTreeMap<&'static str, u64>,
    stops: u64,
    lost: BTreeMap<String, u64>,
    /// Connections that ended with their answer sent: the kernel side counts them and sends nothing up.
    pub(super) answered: Option<u64>,
    /// Resets to ports that nobody was seen to listen on, as the kernel counted them.
    pub(super) strange_resets: u64,
    /// Closes of servers that no rule knows.
    pub(super) other_servers: u64,
    /// Attempts of nginx that failed and were repeated on another server.
    pub(super) passed_on: u64,
}

impl Summary {
    pub(super) fn input(&mut self, input: &Input) {
        match input {
            Input::Started(fact) => self.from = Some(fact.at),
            Input::Event(event) => *self.events.entry(names::kind(&event.kind)).or_default() += 1,
            Input::Loss(fact) => self.lost(&fact.hook, &kebab(&fact.kind), fact.count),
            _ => {}
        }
        self.to = self.to.max(crate::sinks::recording::time_of(input));
    }

    pub(super) fn output(&mut self, output: &Output) {
        match output {
            Output::Incident(incident) => {
                let by = if incident.cause.not_the_server() { &mut self.not_the_server } else { &mut self.blamed };
                *by.entry(incident.cause.id()).or_default() += 1;
            }
            Output::Stop(_) => self.stops += 1,
        }
    }

    pub(super) fn lost(&mut self, hook: &str, kind: &str, count: u64) {
        if count > 0 {
            *self.lost.entry(format!("{hook}/{kind}")).or_default() += count;
        }
    }

    /// One line each: time and events, verdicts, losses.
    pub(super) fn lines(&self, verdicts: bool) -> Vec<String> {
        let ms = self.from.map_or(0, |from| self.to.saturating_sub(from) / 1_000_000);
        let events: u64 = self.events.values().sum();
        let mut first = format!("{}.{:03} s observed, {} events", ms / 1000, ms % 1000, events);
        if events > 0 {
            first.push_str(&format!(": {}", list(&self.events)));
        }
        if let Some(answered) = self.answered {
            first.push_str(&format!("; {answered} connections answered (counted in the kernel)"));
        }
        let mut lines = vec![first];
        if verdicts {
            let blamed: u64 = self.blamed.values().sum();
            let mut line = format!("{}, {}", plural(blamed, "incident"), plural(self.stops, "stop"));
            if blamed > 0 {
                line.push_str(&format!(": {}", list(&self.blamed)));
            }
            if !self.not_the_server.is_empty() {
                line.push_str(&format!("; not the server's doing: {}", list(&self.not_the_server)));
            }
            if self.other_servers > 0 {
                line.push_str(&format!("; not judged, neither nginx nor php-fpm: {}", self.other_servers));
            }
            if self.passed_on > 0 {
                line.push_str(&format!("; failed attempts that nginx repeated elsewhere: {}", self.passed_on));
            }
            lines.push(line);
        }
        if self.strange_resets > 0 {
            lines.push(format!(
                "{} packets to ports that nobody was seen to listen on were answered with a reset: scans, early probes, \
                 or servers that had stopped before why502 was ready",
                self.strange_resets
            ));
        }
        lines.push(if self.lost.is_empty() {
            "no records lost".to_string()
        } else {
            format!("records lost: {}", list(&self.lost))
        });
        lines
    }
}

fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn list<K: Display>(counts: &BTreeMap<K, u64>) -> String {
    counts.iter().map(|(key, count)| format!("{key} {count}")).collect::<Vec<_>>().join(", ")
}

/// The id under which a plain enum stands in JSON.
fn kebab(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(id)) => id,
        _ => "unknown".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::input::{LossFact, LossKind};

    #[test]
    fn counts_and_says_losses() {
        let mut summary = Summary::default();
        summary.input(&Input::Tick { at: 5 });
        assert_eq!(summary.lines(true), ["0.000 s observed, 0 events", "0 incidents, 0 stops", "no records lost"]);
        for count in [3, 4] {
            let fact = LossFact { from: 0, to: 9, hook: "tcp_send_reset".into(), kind: LossKind::RingFull, count };
            summary.input(&Input::Loss(fact));
        }
        summary.answered = Some(7);
        assert_eq!(
            summary.lines(false),
            [
                "0.000 s observed, 0 events; 7 connections answered (counted in the kernel)",
                "records lost: tcp_send_reset/ring-full 7"
            ]
        );
    }
}
