//! AF_UNIX paths of the php-fpms that are started while why502 runs: no event tells of bind(2), so each is looked at a
//! little after its exec.

use crate::identity::is_php_fpm_program;
use crate::model::BootNs;
use crate::model::event::{Event, EventKind};
use crate::model::input::UnixListenerFact;
use crate::sources::procfs;
use std::collections::VecDeque;
use std::path::Path;

/// After its exec, ns: php-fpm listens within milliseconds, unless its machine is busy or its configuration large.
const LOOKS: [BootNs; 3] = [500_000_000, 3_000_000_000, 20_000_000_000];
/// Started and not looked at for the last time; somebody who starts more at once gets no more looks.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Pid, time of the exec, looks taken.
    started: VecDeque<(u32, BootNs, usize)>,
}

impl Fresh {
    pub(super) fn observe(&mut self, event: &Event) {
        if let EventKind::Execed(e) = &event.kind
            && is_php_fpm_program(&e.path)
            && self.started.len() < MOST
        {
            self.started.push_back((e.task.tgid, event.at, 0));
        }
    }

    /// What those listen on that are due at `now`.
    pub(super) fn due(&mut self, root: &Path, now: BootNs) -> Vec<UnixListenerFact> {
        let mut found = Vec::new();
        self.started.retain_mut(|(pid, at, looks)| {
            if now < at.saturating_add(LOOKS[*looks]) {
                return true;
            }
            let facts = procfs::unix_listeners_of(root, *pid, now);
            *looks += 1;
            let more = facts.is_empty() && *looks < LOOKS.len();
            found.extend(facts);
            more
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventId;
    use crate::model::event::{Execed, Task};

    fn exec(path: &str, tgid: u32) -> Event {
        let task = Task {
            tgid,
            pid: tgid,
            ns_pid: 1,
            ppid: 1,
            uid: 0,
            pidns: 1,
            netns: 1,
            flags: 0,
            cgroup: 1,
            cgroup_v1: 0,
            start_ns: 1,
            comm: String::new(),
        };
        let kind = EventKind::Execed(Execed { task, old_pid: tgid, path: path.into(), argv: Vec::new() });
        Event { id: EventId(1), at: 1_000, cpu: 0, quality: 0, kind }
    }

    #[test]
    fn looked_at_three_times_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        let mut fresh = Fresh::default();
        fresh.observe(&exec("/usr/sbin/nginx", 7));
        assert!(fresh.started.is_empty());
        fresh.observe(&exec("/usr/sbin/php-fpm8.2", 8));
        for look in LOOKS {
            assert_eq!(fresh.started.len(), 1);
            assert!(fresh.due(root.path(), 1_000 + look - 1).is_empty());
            assert!(fresh.due(root.path(), 1_000 + look).is_empty());
        }
        assert!(fresh.started.is_empty());
        (0..2 * MOST as u32).for_each(|pid| fresh.observe(&exec("php-fpm", pid)));
        assert_eq!(fresh.started.len(), MOST);
    }
}
