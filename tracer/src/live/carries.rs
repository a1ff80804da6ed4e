//! What the ports of each nginx carry, by its configuration: read when why502 starts, when an nginx does, and after a reload.

use crate::correlate::history::sig;
use crate::identity::is_nginx_program;
use crate::model::BootNs;
use crate::model::event::{Event, EventKind};
use crate::model::input::{CarriesFact, ProcessFact};
use crate::sources::running;
use std::collections::VecDeque;
use std::path::Path;

/// After its exec or its signal, ns: an nginx writes its title once it has read its configuration.
const LOOKS: [BootNs; 2] = [300_000_000, 3_000_000_000];
/// To be looked at; of more at once some are left out.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Pid, time of the exec or the signal, looks taken.
    told: VecDeque<(u32, BootNs, usize)>,
}

impl Fresh {
    pub(super) fn observe(&mut self, event: &Event) {
        let pid = match &event.kind {
            EventKind::Execed(e) if is_nginx_program(&e.path) => e.task.tgid,
            EventKind::SignalGenerated(s) if s.signal == sig::HUP && s.target.comm.starts_with("nginx") => {
                s.target.tgid
            }
            _ => return,
        };
        if self.told.len() < MOST && !self.told.iter().any(|(known, ..)| *known == pid) {
            self.told.push_back((pid, event.at, 0));
        }
    }

    /// What is due at `now`.
    pub(super) fn due(&mut self, root: &Path, now: BootNs) -> Vec<CarriesFact> {
        let mut found = Vec::new();
        self.told.retain_mut(|(pid, at, looks)| {
            if now < at.saturating_add(LOOKS[*looks]) {
                return true;
            }
            found.extend(running::carries(root, *pid, now));
            *looks += 1;
            *looks < LOOKS.len()
        });
        found
    }
}

/// Of those that run at the start.
pub(super) fn of(root: &Path, processes: &[ProcessFact], now: BootNs) -> Vec<CarriesFact> {
    let masters = processes.iter().filter(|p| p.argv.first().is_some_and(|a| a.starts_with("nginx: master process")));
    masters.flat_map(|p| running::carries(root, p.key.tgid, now)).collect()
}
