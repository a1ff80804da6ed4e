//! Who an event belongs to: process, role, container, pod, listener.
//!
//! Pure: fed with the one input sequence, no clock, no I/O, ordered collections only, so that a replay says the same.
//! Names are frozen at first sight and outlive their owner ([`KEEP_NS`]), memory is bounded whatever a container does.
//!
//! - [`container`]: container, runtime and pod from a cgroup path
//! - [`Cgroups`]: cgroup id → container
//! - [`Process`], [`Role`]: what is known of a process, and what it is
//! - [`Listeners`]: who listens where, and since when no more
//! - [`Table`]: all of it, and the only thing that is fed

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod cgroups;
pub mod container;
mod groups;
mod listeners;
mod outside;
mod process;
mod retention;
mod role;
mod said;
mod table;
mod unix;

pub use cgroups::{CgroupState, Cgroups, ContainerInfo, Place};
pub use container::{ContainerRef, Qos, Runtime};
pub use listeners::{ListenState, Listeners, Owner, ServerKind, SocketClose};
pub use process::{ExecRef, Exit, Image, ImageFrom, Known, Process};
pub use retention::Group;
pub use role::{Kind as Program, program};
pub use role::{Role, RoleInfo, is_nginx_program, is_notable, is_php_fpm_process, is_php_fpm_program, is_server};
pub use table::{Limits, ServerInfo, Table};
pub use unix::{FoundBy, UnixServer};

use crate::model::BootNs;

/// How long, in event time, a dead process, a closed listener and an unused cgroup stay known: longer than any window
/// in which a verdict may still be open.
pub const KEEP_NS: BootNs = 120 * 1_000_000_000;
