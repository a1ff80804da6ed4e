//! Who pays for what is kept, when there is no room.

use super::cgroups::Place;
use super::retention::Group;
use super::table::Table;
use crate::model::{ProcKey, Task};

impl Table {
    /// Who pays for what is kept of a task: its container, else its cgroups.
    pub fn group(&self, task: &Task) -> Group {
        if task.cgroup != 0 || task.cgroup_v1 != 0 {
            return self.group_of(task.cgroup, task.cgroup_v1);
        }
        self.group_of_process(&task.key())
    }

    /// The same for a process; of one that is not known (0, 0).
    pub fn group_of_process(&self, key: &ProcKey) -> Group {
        self.process(key).map_or((0, 0), |p| self.group_of(p.cgroup, p.cgroup_v1))
    }

    /// The same for a socket, by its v2 cgroup where that is a container's, else its network namespace.
    pub fn socket_group(&self, cgroup: u64, netns: u32) -> Group {
        match self.cgroups().place(cgroup, 0) {
            Place::Container(info) => info.group(),
            Place::Host | Place::Unknown => (0, u64::from(netns)),
        }
    }

    pub(super) fn group_of(&self, v2: u64, v1: u64) -> Group {
        match self.cgroups().place(v2, v1) {
            Place::Container(info) => info.group(),
            Place::Host | Place::Unknown => (v2, v1),
        }
    }
}
