//! why502: watches a node's kernel and tells, for every lost request, which signal, exit, reset or race killed it, who
//! caused that, and what to change.
//!
//! ```text
//! kernel hooks → ring → decode → identity → correlate → explain → sinks
//! probes/        ring/           identity/  correlate/  explain/  sinks/
//! ```
//! Everything after decode is a pure function of one sequence of [`model::Input`]s.

#[deny(clippy::disallowed_methods, clippy::disallowed_types, reason = "pure: see clippy.toml")]
pub mod check;
pub mod cli;
#[deny(clippy::disallowed_methods, clippy::disallowed_types, reason = "pure: see clippy.toml")]
pub mod correlate;
#[deny(clippy::disallowed_methods, clippy::disallowed_types, reason = "pure: see clippy.toml")]
pub mod explain;
pub mod identity;
pub mod kernel;
pub mod live;
pub mod metrics;
#[deny(clippy::disallowed_methods, clippy::disallowed_types, reason = "pure: see clippy.toml")]
pub mod model;
#[deny(clippy::disallowed_methods, clippy::disallowed_types, reason = "pure: see clippy.toml")]
pub mod page;
pub mod probes;
pub mod ring;
pub mod serve;
pub mod sinks;
pub mod sources;
pub mod store;
