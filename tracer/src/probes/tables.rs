//! The maps that userspace writes: ports that listened before the start, and cgroups to leave out.

use aya::maps::{HashMap, MapData, MapError};
use std::io;

/// BPF_NOEXIST: do not overwrite what the kernel side has put there meanwhile.
const NO_EXIST: u64 = 1;

#[derive(Debug, thiserror::Error)]
#[error("{map} map: {source}")]
pub struct TableError {
    pub map: &'static str,
    pub source: MapError,
}

/// Ports that listen or have listened ([`why502_ebpf::PortKey`] → boot ns).
pub struct Listeners(pub(super) HashMap<MapData, [u32; 2], u64>);

impl Listeners {
    /// Tells the probes of a port that listened before they were attached.
    pub fn add(&mut self, netns: u32, port: u16, at: u64) -> Result<(), TableError> {
        // `PortKey` is two u32: an array of them has its layout, and aya takes it as plain data.
        const _: () = assert!(size_of::<why502_ebpf::PortKey>() == size_of::<[u32; 2]>());
        match self.0.insert([netns, u32::from(port)], at, NO_EXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|source| TableError { map: why502_ebpf::names::MAP_LISTENERS, source }),
        }
    }
}

/// cgroups whose tasks and sockets are left out.
pub struct Skip(pub(super) HashMap<MapData, u64, u8>);

impl Skip {
    /// The root cgroups (0: unknown, 1: the root of every hierarchy) hold whatever nobody moved: never left out.
    pub fn add(&mut self, cgroup: u64) -> Result<(), TableError> {
        if cgroup <= 1 {
            return Ok(());
        }
        self.0.insert(cgroup, 1, 0).map_err(|source| TableError { map: why502_ebpf::names::MAP_SKIP, source })
    }

    /// Watches it again.
    pub fn remove(&mut self, cgroup: u64) -> Result<(), TableError> {
        match self.0.remove(&cgroup) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(TableError { map: why502_ebpf::names::MAP_SKIP, source }),
        }
    }
}
