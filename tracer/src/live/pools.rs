//! Pools of php-fpm's children that are forked while why502 runs: a child writes its pool's name into its title, which no
//! event tells of, so each is looked at a little after its fork.

use super::looks::Looks;
use crate::identity::{Program, program};
use crate::model::event::{Event, EventKind, ProcKey};
use crate::model::input::ProcessFact;
use crate::model::{BootNs, Input};
use crate::sources::procfs;
use std::path::Path;

/// After the fork, ns: the title is the first thing that a child writes (`fpm_child_init()`), once it runs.
const LOOKS: [BootNs; 2] = [50_000_000, 1_000_000_000];
/// Forked and not looked at for the last time. A pool that forks more at once (`ondemand` under a burst) leaves the rest
/// without a name: a look reads three files.
const MOST: usize = 64;

fn titled(fact: &ProcessFact, what: &str) -> bool {
    fact.argv.first().and_then(|title| title.strip_prefix("php-fpm: ")).is_some_and(|rest| rest.starts_with(what))
}

#[derive(Debug)]
pub(super) struct Newborn(Looks<ProcKey>);

impl Default for Newborn {
    fn default() -> Self {
        Newborn(Looks::new(&LOOKS, MOST))
    }
}

impl Newborn {
    pub(super) fn observe(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Forked { parent, child } if program(&parent.comm) == Program::PhpFpm => {
                self.0.add(child.key(), event.at);
            }
            // What its child runs (`popen()` in a script) is no child of the pool.
            EventKind::Execed(e) => self.0.remove(&e.task.key()),
            _ => {}
        }
    }

    /// Those that have a pool by `now`.
    pub(super) fn due(&mut self, root: &Path, now: BootNs) -> Vec<Input> {
        self.due_with(now, |pid| procfs::read_process(root, pid, now).ok())
    }

    fn due_with(&mut self, now: BootNs, read: impl Fn(u32) -> Option<ProcessFact>) -> Vec<Input> {
        let mut found = Vec::new();
        self.0.due(now, |key| match read(key.tgid).filter(|fact| fact.key == *key) {
            // A fork of a child (`pcntl_fork()`) has the title of its parent, and answers nobody.
            Some(fact) if titled(&fact, "pool ") && read(fact.ppid).is_some_and(|p| titled(&p, "master process")) => {
                found.push(Input::Process(fact));
                false
            }
            Some(_) => true,
            None => false,
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlate::answer::tests::task;
    use crate::model::{EventId, Task};

    fn forked(tgid: u32, comm: &str) -> Event {
        let parent = Task { comm: comm.into(), tgid: 7, ..task() };
        let kind = EventKind::Forked { child: Task { tgid, ..parent.clone() }, parent };
        Event { id: EventId(1), at: 1_000, cpu: 0, quality: 0, kind }
    }

    fn fact(tgid: u32, ppid: u32, title: &str) -> ProcessFact {
        let key = ProcKey { tgid, ..task().key() };
        ProcessFact {
            at: 1,
            key,
            ppid,
            ns_pid: 1,
            pidns: 1,
            netns: 1,
            uid: 0,
            comm: "php-fpm8.2".into(),
            exe: "/usr/sbin/php-fpm8.2".into(),
            argv: vec![title.into()],
            cgroup: 1,
            cgroup_v1: 0,
            sig_ign: 0,
            sig_cgt: 0,
        }
    }

    #[test]
    fn a_child_has_a_pool_once_its_title_says_so() {
        let mut newborn = Newborn::default();
        newborn.observe(&forked(8, "nginx"));
        assert!(newborn.0.len() == 0);
        newborn.observe(&forked(8, "php-fpm8.2"));
        let look = |pool: &'static str| {
            move |pid: u32| match pid {
                8 => Some(fact(8, 7, pool)),
                _ => Some(fact(pid, 1, "php-fpm: master process (/etc/php/fpm.conf)")),
            }
        };
        let master = "php-fpm: master process (/etc/php/fpm.conf)";
        assert!(newborn.due_with(1_000, |_| panic!("not yet")).is_empty());
        assert!(newborn.due_with(1_000 + LOOKS[0], look(master)).is_empty(), "forked, and not yet run");
        let found = newborn.due_with(1_000 + LOOKS[1], look("php-fpm: pool shop"));
        assert!(matches!(&found[..], [Input::Process(f)] if f.key.tgid == 8));
        assert!(newborn.0.len() == 0);
    }

    #[test]
    fn what_a_child_forks_has_none() {
        let mut newborn = Newborn::default();
        newborn.observe(&forked(8, "php-fpm8.2"));
        let found = newborn.due_with(u64::MAX, |pid| Some(fact(pid, pid - 1, "php-fpm: pool shop")));
        assert!(found.is_empty() && newborn.0.len() == 1, "its parent is a child");
        let exec = EventKind::Execed(crate::model::event::Execed {
            task: Task { tgid: 8, ..task() },
            old_pid: 8,
            path: "/bin/sh".into(),
            argv: Vec::new(),
        });
        newborn.observe(&Event { kind: exec, ..forked(8, "") });
        assert!(newborn.0.len() == 0);
        (0..2 * MOST as u32).for_each(|pid| newborn.observe(&forked(pid + 10, "php-fpm8.2")));
        assert_eq!(newborn.0.len(), MOST);
    }
}
