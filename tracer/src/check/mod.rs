//! What would be lost at the next stop of a pod, and why: read from its configuration, before it happens.

pub mod command;
pub mod dockerfile;
pub mod files;
pub mod fpm;
pub mod image;
mod ini;
pub mod known;
pub mod nginx;
pub mod place;
pub mod prestop;
pub mod shell;
pub mod supervisor;
