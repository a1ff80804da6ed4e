//! Commands that were run in a container from outside of it: `docker exec`, `kubectl exec`, hooks and probes.

use super::cgroups::Place;
use super::process::Process;
use super::role::Kind;
use super::table::Table;
use crate::model::ProcKey;

/// Parents are followed no further: from a tool past its shells and the runtime's helpers.
const GENERATIONS: usize = 8;

impl Table {
    /// Were both seen in the same container?
    pub fn same_container(&self, a: &ProcKey, b: &ProcKey) -> bool {
        let id = |key| self.container_of(key).map(|c| &c.container.id);
        id(a).is_some() && id(a) == id(b)
    }

    /// The process and its parents in the same container, the process first.
    pub fn lineage(&self, key: &ProcKey) -> impl Iterator<Item = &Process> {
        let parent = |p: &&Process| self.parent(&p.key).filter(|parent| self.same_container(&parent.key, &p.key));
        std::iter::successors(self.process(key), parent).take(GENERATIONS)
    }

    /// The command that this process is, or is a child of, when somebody outside of its container ran it there. A
    /// container's own first process has its parent outside as well, so there must be an older one.
    pub fn run_from_outside(&self, key: &ProcKey) -> Option<&Process> {
        let mut command = None;
        let mut top = None;
        for p in self.lineage(key) {
            // A runtime's own helpers can be in the container's cgroup already when they start the command.
            if p.execed() && self.kind(p).0 != Kind::Runtime {
                command = Some(p);
            }
            top = Some(p);
        }
        let top = top.filter(|top| top.ns_pid != 1)?;
        let parent = self.parent(&top.key)?;
        let outside = match self.place_of(&parent.key) {
            Place::Host => true,
            // lineage() would have gone on in the same one.
            Place::Container(_) => self.container_of(&top.key).is_some(),
            Place::Unknown => false,
        };
        let older = || {
            self.processes().any(|p| p.key.start_ticks < top.key.start_ticks && self.same_container(&p.key, &top.key))
        };
        command.filter(|_| outside && older())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{Feed, key, on_host, task};

    fn command(f: &Feed, tgid: u32) -> Option<u32> {
        f.table.run_from_outside(&key(tgid)).map(|p| p.key.tgid)
    }

    #[test]
    fn a_command_from_outside_and_its_children() {
        let mut f = Feed::new();
        let (shim, runc) = (on_host(task(10, 1, "containerd-shim")), on_host(task(40, 10, "runc")));
        let (nginx, sh, ctl) = (task(20, 10, "nginx"), task(50, 40, "sh"), task(60, 50, "nginx"));
        f.fork(&shim, &nginx);
        f.exec(&nginx, "/usr/sbin/nginx", "nginx");
        f.exec(&runc, "/usr/bin/runc", "runc exec x");
        f.fork(&runc, &sh);
        f.exec(&sh, "/bin/sh", "sh -c x");
        f.fork(&sh, &ctl);
        f.exec(&ctl, "/usr/sbin/nginx", "nginx -s quit");
        assert_eq!(command(&f, 50), Some(50));
        assert_eq!(command(&f, 60), Some(50), "what the command starts");
        assert_eq!(command(&f, 20), None, "the container's first process is its own");
        assert_eq!(command(&f, 40), None, "outside");
    }

    #[test]
    fn helpers_of_the_runtime_in_the_container() {
        let mut f = Feed::new();
        let (runc, helper, tool) =
            (on_host(task(40, 10, "runc")), task(50, 40, "runc:[0:PARENT]"), task(60, 50, "nginx"));
        f.exec(&task(20, 10, "nginx"), "/usr/sbin/nginx", "nginx");
        f.exec(&runc, "/usr/bin/runc", "runc exec x");
        f.fork(&runc, &helper);
        f.exec(&helper, "/proc/self/exe", "runc init");
        f.fork(&helper, &tool);
        f.exec(&tool, "/usr/sbin/nginx", "nginx -s quit");
        assert_eq!(command(&f, 60), Some(60));
    }

    #[test]
    fn the_containers_own_tools() {
        let mut f = Feed::new();
        let (shim, sh, tool) = (on_host(task(10, 1, "shim")), task(20, 10, "sh"), task(60, 20, "nginx"));
        f.fork(&shim, &sh);
        f.exec(&sh, "/bin/sh", "sh");
        f.fork(&sh, &tool);
        f.exec(&tool, "/usr/sbin/nginx", "nginx -s quit");
        assert_eq!(command(&f, 60), None);
        assert!(f.table.same_container(&key(60), &key(20)) && !f.table.same_container(&key(60), &key(10)));
        assert_eq!(f.table.lineage(&key(60)).map(|p| p.key.tgid).collect::<Vec<_>>(), [60, 20]);
    }
}
