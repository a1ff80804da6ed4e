//! What would be lost at the next stop of a pod, and why: read from its configuration, before it happens.

pub mod assemble;
pub mod command;
pub mod dockerfile;
pub mod files;
pub mod finding;
pub mod fpm;
pub mod image;
mod ini;
pub mod known;
pub mod nginx;
pub mod plan;
pub mod prestop;
mod rules;
pub mod setup;
pub mod shell;
pub mod supervisor;

pub use finding::{Finding, Report, Severity, Summary};
pub use rules::check;
pub use setup::Setup;
