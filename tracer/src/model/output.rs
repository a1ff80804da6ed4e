//! What the engine says, in the order in which it becomes final.

use super::incident::{Incident, Stop};
use serde::Serialize;

/// One final statement; in JSON it is the object itself, told apart by its `type`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Output {
    Incident(Box<Incident>),
    Stop(Box<Stop>),
}
