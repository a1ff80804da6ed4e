//! The maps that userspace writes: ports that listened before the start, and cgroups to leave out.

use crate::model::BootNs;
use crate::model::input::StopCounters;
use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap};
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

/// What the probes count of cgroups that were told to stop ([`why502_ebpf::Stopping`], [`why502_ebpf::StopCounts`]).
pub struct Stops {
    pub(super) stopping: HashMap<MapData, u64, [u64; 2]>,
    pub(super) counts: PerCpuHashMap<MapData, u64, [u64; 5]>,
}

impl Stops {
    /// Of one cgroup, as it is now; `None`: it was not told to stop.
    pub fn read(&self, cgroup: u64, at: BootNs) -> Result<Option<StopCounters>, TableError> {
        const _: () = assert!(size_of::<why502_ebpf::Stopping>() == size_of::<[u64; 2]>());
        const _: () = assert!(size_of::<why502_ebpf::StopCounts>() == size_of::<[u64; 5]>());
        let error = |source| TableError { map: why502_ebpf::names::MAP_STOPPING, source };
        let [signal_at, _] = match self.stopping.get(&cgroup, 0) {
            Err(MapError::KeyNotFound) => return Ok(None),
            found => found.map_err(error)?,
        };
        let mut all = StopCounters {
            at,
            cgroup,
            signal_at,
            accepted_after: 0,
            last_accept: None,
            answered_after: 0,
            last_answered: None,
        };
        // A CPU's slot is of this stop only when it says so.
        let counts = match self.counts.get(&cgroup, 0) {
            Err(MapError::KeyNotFound) => return Ok(Some(all)),
            found => found.map_err(error)?,
        };
        let time = |at: u64| Some(at).filter(|at| *at != 0);
        for &[_, accepted, last_accept, answered, last_answered] in counts.iter().filter(|c| c[0] == signal_at) {
            all.accepted_after += accepted;
            all.last_accept = all.last_accept.max(time(last_accept));
            all.answered_after += answered;
            all.last_answered = all.last_answered.max(time(last_answered));
        }
        Ok(Some(all))
    }
}
