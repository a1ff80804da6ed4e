//! Where verdicts and inputs go: text for people, JSON for programs, a recording for later.

pub mod escape;
pub mod time;
