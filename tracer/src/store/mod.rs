//! The store: the incidents and stops of this node as their JSON lines, on the disk.
//!
//! A directory of segments, each a text file that is only ever appended to and named by the sequence number of its first
//! record:
//! ```text
//! 00000000000000000001.log
//!   1c291ca3 why502-store 0 0 8231 0a53…            header: age and boot time in seconds, boot id
//!   5f1c09aa 1 17 1795356202 {"type":"incident",…}  sequence number, age, wall time in seconds, the record
//! ```
//! Each line begins with the CRC-32 of its rest. A record is shown to nobody before it is synced, so whatever was served
//! is there after a kill or a power cut; what was cut inside a line is taken off at the next start. The sequence number
//! is the cursor: it grows by one and is never given twice, whatever the clocks do. Retention takes whole segments,
//! oldest first, by size and by [`age`].

pub mod age;
mod disk;
mod line;
pub mod query;
pub mod quota;
pub mod scan;
pub mod sink;
#[cfg(test)]
mod tests;

pub use disk::{Disk, Limits, StoreError};
pub use query::{Found, Kind, Query};
pub use sink::{Stats, Store, View};

use crate::kernel::clock;

/// The moment of an operation, given from outside so that tests can step the clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// Of `/proc/sys/kernel/random/boot_id`: tells whether two boot times can be compared.
    pub boot_id: String,
    /// CLOCK_BOOTTIME, s.
    pub boot_s: u64,
    /// Since 1970, s.
    pub wall_s: i64,
}

impl Now {
    pub fn read(boot_id: &str) -> Now {
        let sample = clock::sample();
        Now {
            boot_id: boot_id.to_owned(),
            boot_s: sample.boot_ns / 1_000_000_000,
            wall_s: sample.wall_ns.div_euclid(1_000_000_000),
        }
    }
}
