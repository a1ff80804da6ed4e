//! The engine as the commands use it.

use super::summary::Summary;
use crate::correlate::{Engine, EngineOptions};
use crate::model::{Input, Output};

/// Feeds inputs to the engine. It is always asked for everything: what is not the server's doing is counted, and left
/// out when printing unless `--all` was given.
pub(super) struct Judge {
    engine: Engine,
}

impl Judge {
    pub(super) fn new() -> Self {
        Judge { engine: Engine::new(EngineOptions { include_not_the_server: true }) }
    }

    pub(super) fn feed(&mut self, input: &Input) -> Vec<Output> {
        self.engine.feed(input)
    }

    /// What the engine counted beside its outputs.
    pub(super) fn conclude(&self, summary: &mut Summary) {
        let tally = self.engine.tally();
        summary.other_servers = tally.other_servers;
        summary.passed_on = tally.passed_on;
        summary.lost("engine", "evicted", tally.evicted);
    }
}

/// False for what is recognised but not the server's doing.
pub(super) fn is_blamed(output: &Output) -> bool {
    !matches!(output, Output::Incident(incident) if incident.cause.not_the_server())
}
