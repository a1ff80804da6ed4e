//! The uprobes of nginx: attached to one program at a time, while the rest runs. They need CAP_SYS_ADMIN on every kernel
//! (perf_event_open of the uprobe PMU), whatever perf_event_paranoid is.

use aya::maps::{MapData, PerCpuArray};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{ProbeKind, ProgramError, ProgramInfo, UProbe};
use std::path::Path;
use why502_ebpf::names::{HOOKS, hook};

/// The hooks, in the order that their places are given in.
pub const NGINX_HOOKS: [u32; 2] = [hook::NGX_LOG, hook::NGX_ERROR_PAGE];

/// Names of the functions.
pub fn functions() -> [&'static str; 2] {
    NGINX_HOOKS.map(|hook| HOOKS[hook as usize].name)
}

/// Handles of the loaded programs: another thread attaches them.
pub struct Uprobes {
    programs: [UProbe; 2],
    hits: PerCpuArray<MapData, u64>,
    /// Attachments have cookies: their hits can be told apart.
    cookies: bool,
}

/// Detached when it is dropped.
pub struct Attached {
    _links: [UProbeLink; 2],
}

impl Uprobes {
    pub(super) fn new(
        infos: [ProgramInfo; 2],
        hits: PerCpuArray<MapData, u64>,
        cookies: bool,
    ) -> Result<Uprobes, ProgramError> {
        let [log, page] = infos.map(|info| {
            // SAFETY: infos of programs of the object's uprobe sections, so that is what they are to the kernel.
            unsafe { UProbe::from_program_info(info, "nginx".into(), ProbeKind::Entry) }
        });
        Ok(Uprobes { programs: [log?, page?], hits, cookies })
    }

    /// At these offsets of a file, in every process that runs it. Takes some ms; `slot` counts the hits.
    pub fn attach(&mut self, file: &Path, offsets: [u64; 2], slot: u32) -> Result<Attached, ProgramError> {
        let cookie = self.cookies.then_some(u64::from(slot));
        let mut attach = |n: usize| {
            let location = UProbeAttachLocation::AbsoluteOffset(offsets[n]);
            let id =
                self.programs[n].attach(UProbeAttachPoint { location, cookie }, file, UProbeScope::AllProcesses)?;
            self.programs[n].take_link(id)
        };
        Ok(Attached { _links: [attach(0)?, attach(1)?] })
    }

    /// Hits of a slot since the start; of all attachments where there are no cookies.
    pub fn hits(&self, slot: u32) -> u64 {
        let slot = if self.cookies { slot } else { 0 };
        self.hits.get(&slot, 0).map_or(0, |cpus| cpus.iter().sum())
    }
}
