//! Plain types: events in, incidents and stops out. No I/O, no clock, no kernel.

pub mod event;
pub mod incident;
pub mod input;
pub mod kube;
pub mod output;
pub mod place;
pub mod time;

pub use event::{BootNs, Event, EventId, EventKind, ProcKey, Task, Tuple};
pub use incident::{Cause, Incident, Level, Mechanism, Outcome, Stop, Trigger};
pub use input::Input;
pub use output::Output;
