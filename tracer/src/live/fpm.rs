//! AF_UNIX paths of the php-fpms that are started while why502 runs: no event tells of bind(2), so each is looked at a
//! little after its exec.

use super::looks::Looks;
use crate::identity::is_php_fpm_program;
use crate::model::BootNs;
use crate::model::event::{Event, EventKind};
use crate::model::input::UnixListenerFact;
use crate::sources::procfs;
use std::path::Path;

/// After its exec, ns: php-fpm listens within milliseconds, unless its machine is busy or its configuration large.
const LOOKS: [BootNs; 3] = [500_000_000, 3_000_000_000, 20_000_000_000];
/// Started and not looked at for the last time; somebody who starts more at once gets no more looks.
const MOST: usize = 256;

/// By pid, since the exec.
#[derive(Debug)]
pub(super) struct Fresh(Looks<u32>);

impl Default for Fresh {
    fn default() -> Self {
        Fresh(Looks::new(&LOOKS, MOST))
    }
}

impl Fresh {
    pub(super) fn observe(&mut self, event: &Event) {
        if let EventKind::Execed(e) = &event.kind
            && is_php_fpm_program(&e.path)
        {
            self.0.add(e.task.tgid, event.at);
        }
    }

    /// What those listen on that are due at `now`.
    pub(super) fn due(&mut self, root: &Path, now: BootNs) -> Vec<UnixListenerFact> {
        let mut found = Vec::new();
        self.0.due(now, |pid| {
            let facts = procfs::unix_listeners_of(root, *pid, now);
            let more = facts.is_empty();
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
        assert_eq!(fresh.0.len(), 0);
        fresh.observe(&exec("/usr/sbin/php-fpm8.2", 8));
        for look in LOOKS {
            assert_eq!(fresh.0.len(), 1);
            assert!(fresh.due(root.path(), 1_000 + look - 1).is_empty());
            assert!(fresh.due(root.path(), 1_000 + look).is_empty());
        }
        assert_eq!(fresh.0.len(), 0);
        (0..2 * MOST as u32).for_each(|pid| fresh.observe(&exec("php-fpm", pid)));
        assert_eq!(fresh.0.len(), MOST);
    }
}
