//! cgroup ids and the containers they belong to.

use super::container::{self, ContainerRef};
use super::retention::Group;
use super::said::{self, Waiting};
use crate::model::BootNs;
use crate::model::input::{CgroupFact, ContainerFact, Hierarchy};
use std::collections::{BTreeMap, BTreeSet};

/// A cgroup id within its hierarchy: ids of v1 and v2 are drawn from different pools and may be equal.
type Key = (Hierarchy, u64);

/// Bytes kept of a path outside of containers; PATH_MAX of the kernel is 4096, and a container may make its own.
const PATH_KEEP: usize = 1_024;
/// cgroups below one container's own that are kept: one that may make some must not push out its neighbours'.
const OWN_MAX: usize = 256;

/// A container, frozen at first sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInfo {
    pub container: ContainerRef,
    /// When why502 first knew of it: the container itself may be older.
    pub first_seen: BootNs,
    /// Path of the container's own cgroup below its hierarchy's root. Hostile: escape before printing.
    pub path: String,
    /// Its cgroups that were seen, those below its own one included.
    pub cgroups: BTreeSet<(Hierarchy, u64)>,
    /// What its runtime says about it. Hostile.
    pub said: Option<ContainerFact>,
}

impl ContainerInfo {
    /// Who pays for what is kept of it.
    pub fn group(&self) -> Group {
        match self.cgroups.first() {
            Some((Hierarchy::V2, id)) => (*id, 0),
            Some((Hierarchy::V1, id)) => (0, *id),
            None => (0, 0),
        }
    }
}

/// What is known of a cgroup id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupState<'a> {
    /// No fact about it (yet).
    Unknown,
    /// It was gone before its path could be read.
    Gone,
    /// Outside of every container.
    Host {
        path: &'a str,
    },
    Container(&'a ContainerInfo),
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    Unknown,
    /// Outside of every container.
    Host,
    Container(&'a ContainerInfo),
}

#[derive(Debug)]
struct Entry {
    /// `None`: gone before it could be read.
    path: Option<String>,
    container: Option<String>,
    /// Processes in the table that are in it. A used cgroup is not evicted.
    users: u32,
    last_used: BootNs,
}

/// All cgroups that facts told of.
#[derive(Debug)]
pub struct Cgroups {
    entries: BTreeMap<Key, Entry>,
    containers: BTreeMap<String, ContainerInfo>,
    /// Entries without users, by when they were last used.
    idle: BTreeSet<(BootNs, Key)>,
    /// Users of ids that no fact has told of.
    strangers: BTreeMap<Key, u32>,
    /// What was said of containers that have no cgroup yet.
    waiting: Waiting,
    max: usize,
    evicted: u64,
}

impl Cgroups {
    pub(super) fn new(max: usize) -> Self {
        Cgroups {
            entries: BTreeMap::new(),
            containers: BTreeMap::new(),
            idle: BTreeSet::new(),
            strangers: BTreeMap::new(),
            waiting: Waiting::new(max / 4),
            max: max.max(1),
            evicted: 0,
        }
    }

    /// The first path of an id stays; a fact without a path can be bettered.
    pub(super) fn observe(&mut self, fact: &CgroupFact) {
        if fact.id == 0 {
            return;
        }
        let key = (fact.hierarchy, fact.id);
        if self.entries.get(&key).is_some_and(|e| e.path.is_some() || fact.path.is_none()) {
            return;
        }
        let found = fact.path.as_deref().and_then(container::parse_at);
        let room = match &found {
            Some((found, _)) if self.containers.get(&found.id).is_some_and(|c| c.cgroups.len() >= OWN_MAX) => {
                self.make_room_of(&found.id)
            }
            _ => self.entries.len() < self.max || self.make_room(fact.at),
        };
        if !room && !self.entries.contains_key(&key) {
            self.evicted += 1;
            return;
        }
        let mut container = None;
        let mut kept = fact.path.as_deref().map(|path| &path[..path.floor_char_boundary(PATH_KEEP)]);
        if let Some(path) = &fact.path
            && let Some((found, end)) = found
        {
            kept = Some(&path[..end]);
            container = Some(found.id.clone());
            let info = self.containers.entry(found.id.clone()).or_insert_with(|| ContainerInfo {
                container: found.clone(),
                first_seen: fact.at,
                path: path[..end].to_owned(),
                cgroups: BTreeSet::new(),
                said: self.waiting.take(&found.id),
            });
            // The same container can be named with its runtime in one hierarchy and bare in the other.
            info.container.runtime = info.container.runtime.or(found.runtime);
            if info.container.pod_uid.is_none() {
                (info.container.pod_uid, info.container.qos) = (found.pod_uid, found.qos);
            }
            info.cgroups.insert(key);
        }
        match self.entries.get_mut(&key) {
            Some(entry) => (entry.path, entry.container) = (kept.map(str::to_owned), container),
            None => {
                let users = self.strangers.remove(&key).unwrap_or(0);
                if users == 0 {
                    self.idle.insert((fact.at, key));
                }
                let path = kept.map(str::to_owned);
                self.entries.insert(key, Entry { path, container, users, last_used: fact.at });
            }
        }
    }

    /// By the full id: what a runtime cuts short is nobody's.
    pub(super) fn observe_container(&mut self, fact: &ContainerFact) {
        match self.containers.get_mut(&fact.id).map(|info| &mut info.said) {
            Some(Some(known)) => said::add(known, fact),
            Some(unknown) => *unknown = Some(fact.clone()),
            None => self.waiting.put(fact),
        }
    }

    pub(super) fn use_it(&mut self, hierarchy: Hierarchy, id: u64) {
        if id == 0 {
            return;
        }
        let key = (hierarchy, id);
        match self.entries.get_mut(&key) {
            Some(entry) => {
                if entry.users == 0 {
                    self.idle.remove(&(entry.last_used, key));
                }
                entry.users += 1;
            }
            None => *self.strangers.entry(key).or_insert(0) += 1,
        }
    }

    pub(super) fn leave(&mut self, hierarchy: Hierarchy, id: u64, at: BootNs) {
        let key = (hierarchy, id);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0 {
                entry.last_used = entry.last_used.max(at);
                self.idle.insert((entry.last_used, key));
            }
        } else if let Some(users) = self.strangers.get_mut(&key) {
            *users -= 1;
            if *users == 0 {
                self.strangers.remove(&key);
            }
        }
    }

    /// Without room the longest unused one goes; when all are in use, none.
    fn make_room(&mut self, now: BootNs) -> bool {
        let Some((last_used, key)) = self.idle.pop_first() else { return false };
        self.drop_idle(key);
        // Most of these are of containers that are long gone: that is no loss.
        self.evicted += u64::from(last_used.saturating_add(super::KEEP_NS) >= now);
        true
    }

    /// The longest unused one of this container goes.
    fn make_room_of(&mut self, id: &str) -> bool {
        let Some(info) = self.containers.get(id) else { return true };
        let idle = info.cgroups.iter().filter_map(|key| Some((self.entries.get(key)?, *key)));
        let idle = idle.filter(|(entry, _)| entry.users == 0).map(|(entry, key)| (entry.last_used, key)).min();
        let Some(oldest) = idle else { return false };
        self.idle.remove(&oldest);
        self.drop_idle(oldest.1);
        self.evicted += 1;
        true
    }

    fn drop_idle(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key)
            && let Some(id) = entry.container
            && let Some(info) = self.containers.get_mut(&id)
        {
            info.cgroups.remove(&key);
            if info.cgroups.is_empty() {
                self.containers.remove(&id);
            }
        }
    }

    pub fn state(&self, hierarchy: Hierarchy, id: u64) -> CgroupState<'_> {
        let Some(entry) = self.entries.get(&(hierarchy, id)) else { return CgroupState::Unknown };
        match (&entry.path, &entry.container) {
            (None, _) => CgroupState::Gone,
            (Some(path), None) => CgroupState::Host { path },
            (Some(path), Some(id)) => match self.containers.get(id) {
                Some(info) => CgroupState::Container(info),
                None => CgroupState::Host { path },
            },
        }
    }

    /// Where a task with these cgroups is; 0 is "not known". One hierarchy that names a container is enough; "host"
    /// takes that nothing is left open, because older runtimes put containers into v1 hierarchies only.
    pub fn place(&self, v2: u64, v1: u64) -> Place<'_> {
        let states = [(Hierarchy::V2, v2), (Hierarchy::V1, v1)].map(|(h, id)| (id, self.state(h, id)));
        let mut host = false;
        let mut open = false;
        for (id, state) in states {
            match state {
                CgroupState::Container(info) => return Place::Container(info),
                CgroupState::Host { .. } => host = true,
                CgroupState::Unknown | CgroupState::Gone => open |= id != 0,
            }
        }
        if host && !open { Place::Host } else { Place::Unknown }
    }

    /// By its full id.
    pub fn container(&self, id: &str) -> Option<&ContainerInfo> {
        self.containers.get(id)
    }

    /// All containers, by id.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerInfo> {
        self.containers.values()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Facts dropped to keep memory bounded.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "07a6ece791d4357b6e260f5ef6b701485af3154752f6931f336c2ac98f7abf15";

    fn fact(hierarchy: Hierarchy, id: u64, path: Option<&str>) -> CgroupFact {
        CgroupFact { at: id, id, hierarchy, path: path.map(str::to_owned) }
    }
    fn v2(id: u64, path: &str) -> CgroupFact {
        fact(Hierarchy::V2, id, Some(path))
    }
    fn v1(id: u64, path: &str) -> CgroupFact {
        fact(Hierarchy::V1, id, Some(path))
    }

    #[test]
    fn one_container_with_cgroups_in_both_hierarchies() {
        let mut c = Cgroups::new(100);
        c.observe(&v2(1, "/"));
        c.observe(&v2(7, &format!("/kubepods/pod1-2/{A}")));
        c.observe(&v1(7, &format!("/kubepods/pod1-2/{A}")));
        c.observe(&v2(8, &format!("/kubepods/pod1-2/{A}/container")));
        let Place::Container(info) = c.place(8, 0) else { panic!("not found") };
        assert_eq!(info.container.id, A);
        assert_eq!(info.path, format!("/kubepods/pod1-2/{A}"));
        assert_eq!(info.first_seen, 7);
        assert_eq!(info.cgroups.len(), 3);
        assert_eq!(c.place(1, 7), c.place(7, 0), "v1 only containers are in the v2 root");
        assert_eq!(c.containers().count(), 1);
    }

    #[test]
    fn what_a_runtime_says_comes_before_or_after_the_cgroup() {
        let fact = |id: &str, name: &str| ContainerFact {
            id: id.to_owned(),
            name: Some(name.to_owned()),
            ..ContainerFact::default()
        };
        let (first, second) = (A, format!("{:064x}", 5));
        let mut c = Cgroups::new(100);
        c.observe_container(&fact(first, "web"));
        c.observe(&v2(7, &format!("/docker/{first}")));
        c.observe(&v2(8, &format!("/docker/{second}")));
        c.observe_container(&fact(&second, "web"));
        c.observe_container(&fact(first, "renamed"));
        let name = |id| match c.place(id, 0) {
            Place::Container(info) => info.said.as_ref().and_then(|s| s.name.clone()),
            _ => None,
        };
        assert_eq!((name(7).as_deref(), name(8).as_deref()), (Some("web"), Some("web")), "a name given again");
    }

    #[test]
    fn host_needs_certainty() {
        let mut c = Cgroups::new(100);
        c.observe(&v2(1, "/"));
        c.observe(&v2(5, "/system.slice/docker.service"));
        c.observe(&v1(9, "/system.slice"));
        assert_eq!(c.place(5, 0), Place::Host);
        assert_eq!(c.place(5, 9), Place::Host);
        assert_eq!(c.place(5, 77), Place::Unknown, "its v1 cgroup may be a container's");
        assert_eq!(c.place(0, 0), Place::Unknown);
        assert_eq!(c.place(77, 0), Place::Unknown);
    }

    #[test]
    fn gone_is_remembered_and_bettered() {
        let mut c = Cgroups::new(100);
        c.observe(&fact(Hierarchy::V2, 7, None));
        assert_eq!(c.state(Hierarchy::V2, 7), CgroupState::Gone);
        assert_eq!(c.state(Hierarchy::V1, 7), CgroupState::Unknown);
        c.observe(&v2(7, &format!("/docker/{A}")));
        assert!(matches!(c.place(7, 0), Place::Container(_)));
        c.observe(&v2(7, "/elsewhere"));
        assert!(matches!(c.place(7, 0), Place::Container(_)), "the first name stays");
    }

    #[test]
    fn a_container_with_many_of_its_own_pushes_out_its_own() {
        let mut c = Cgroups::new(10_000);
        let own = |id: u64| v2(id, &format!("/kubepods/pod1-2/{A}/{id}"));
        c.observe(&v2(1, &format!("/kubepods/pod1-2/{A}")));
        c.use_it(Hierarchy::V2, 1);
        (2..2_000).for_each(|id| c.observe(&own(id)));
        assert_eq!((c.len(), c.evicted()), (OWN_MAX, 1_999 - OWN_MAX as u64));
        let Place::Container(info) = c.place(1, 0) else { panic!("its process is there") };
        assert_eq!((info.cgroups.len(), info.group()), (OWN_MAX, (1, 0)));
        assert!(matches!(c.place(1_999, 0), Place::Container(_)), "the newest are known");
        assert_eq!(c.place(2, 0), Place::Unknown);
        let long = format!("/{}", "x".repeat(5_000));
        c.observe(&v2(5_000, &long));
        assert_eq!(c.state(Hierarchy::V2, 5_000), CgroupState::Host { path: &long[..PATH_KEEP] });
    }

    #[test]
    fn bounded_and_used_ones_stay() {
        let mut c = Cgroups::new(10);
        c.use_it(Hierarchy::V2, 3);
        for id in 1..=1000 {
            c.observe(&v2(id, &format!("/docker/{id:064x}")));
        }
        assert_eq!(c.len(), 10);
        assert_eq!(c.containers().count(), 10);
        assert_eq!(c.evicted(), 990);
        assert!(matches!(c.place(3, 0), Place::Container(_)), "its process is still known");
        c.leave(Hierarchy::V2, 3, 2000);
        for id in 2001..=2010 {
            c.observe(&v2(id, "/x"));
        }
        assert_eq!(c.place(3, 0), Place::Unknown);
        assert_eq!(c.containers().count(), 0);
    }
}
