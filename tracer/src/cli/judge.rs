//! The engine as the commands use it.

use crate::model::{Input, Output};

/// Feeds inputs to the engine. It always says everything: what is not the server's doing is counted, and left out when
/// printing unless `--all` was given.
pub(super) struct Judge {}

impl Judge {
    pub(super) fn new() -> Self {
        Judge {}
    }

    pub(super) fn feed(&mut self, _input: &Input) -> Vec<Output> {
        Vec::new()
    }
}

/// False for what is recognised but not the server's doing.
pub(super) fn is_blamed(output: &Output) -> bool {
    !matches!(output, Output::Incident(incident) if incident.cause.not_the_server())
}
