//! Where verdicts and inputs go: text for people, JSON for programs, a recording for later.

pub mod escape;
pub mod events;
pub mod json;
pub mod names;
pub mod otlp;
pub mod outbox;
pub mod queue;
pub mod recording;
pub mod text;
pub mod trace;
