//! What the ports of each nginx carry, by its configuration: read when why502 starts, when an nginx does, and after a reload.

use super::looks::Looks;
use crate::correlate::history::sig;
use crate::identity::is_nginx_program;
use crate::model::BootNs;
use crate::model::event::{Event, EventKind};
use crate::model::input::{CarriesFact, ProcessFact};
use crate::sources::running;
use std::path::Path;

/// After its exec or its signal, ns: an nginx writes its title once it has read its configuration.
const LOOKS: [BootNs; 2] = [300_000_000, 3_000_000_000];
/// To be looked at; of more at once some are left out.
const MOST: usize = 256;

/// By pid, since the exec or the signal.
#[derive(Debug)]
pub(super) struct Fresh(Looks<u32>);

impl Default for Fresh {
    fn default() -> Self {
        Fresh(Looks::new(&LOOKS, MOST))
    }
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
        if !self.0.has(&pid) {
            self.0.add(pid, event.at);
        }
    }

    /// What is due at `now`.
    pub(super) fn due(&mut self, root: &Path, now: BootNs) -> Vec<CarriesFact> {
        let mut found = Vec::new();
        self.0.due(now, |pid| {
            found.extend(running::carries(root, *pid, now));
            true
        });
        found
    }
}

/// Of those that run at the start.
pub(super) fn of(root: &Path, processes: &[ProcessFact], now: BootNs) -> Vec<CarriesFact> {
    let masters = processes.iter().filter(|p| p.argv.first().is_some_and(|a| a.starts_with("nginx: master process")));
    masters.flat_map(|p| running::carries(root, p.key.tgid, now)).collect()
}
