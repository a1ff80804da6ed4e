//! The probes: [`plan`] says what is attached and why, [`load`] does it, [`tables`] are the maps that userspace writes.

pub mod load;
#[cfg(feature = "trace-log")]
mod log;
pub mod nginx;
pub mod plan;
pub mod tables;

/// The probes' object, or nothing when this binary was built without it (plain `cargo build`).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.o"));
