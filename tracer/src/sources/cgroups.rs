//! cgroup ids: which directory of the cgroup trees an id (its kernfs inode) is.
//!
//! Paths of /proc/PID/cgroup are as our own cgroup namespace sees them: in a private one a neighbour reads
//! `/../../kubepods…`. So all is resolved against the tree that is mounted, the host's where it is there.

use super::procfs::Scan;
use crate::identity::{container, is_notable};
use crate::model::BootNs;
use crate::model::input::{CgroupFact, Hierarchy};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[cfg(test)]
mod tests;
mod trees;

pub use trees::Trees;

/// A look for an unknown id walks the whole tree; not more often than this, whatever makes and removes cgroups.
const WALK_EVERY_NS: BootNs = 50_000_000;
/// Ids remembered as gone, paths remembered of removed cgroups, ids waiting for the next walk.
const GONE_MAX: usize = 8_192;
/// Entries of the kernel's SKIP_CGROUPS map that are used at most.
const SKIP_MAX: usize = 16_000;

#[derive(Debug)]
struct Known {
    path: String,
    /// Still there at the last walk.
    there: bool,
}

#[derive(Debug, Default)]
struct Index {
    known: BTreeMap<u64, Known>,
    gone: BTreeSet<u64>,
    /// Asked for between two walks, or missed by one.
    waiting: BTreeSet<u64>,
    /// One walk did not find them. It is not atomic: what appears or moves in the tree meanwhile may be passed over.
    missed: BTreeSet<u64>,
    walked_at: Option<BootNs>,
}

/// Finds the path of a cgroup id, and remembers it when the cgroup is gone.
#[derive(Debug)]
pub struct Resolver {
    trees: Trees,
    v2: Index,
    v1: Index,
}

impl Resolver {
    /// Finds the mounts below `root`; reads no tree yet.
    pub fn new(root: &Path) -> Resolver {
        Resolver { trees: Trees::find(root), v2: Index::default(), v1: Index::default() }
    }

    pub fn trees(&self) -> &Trees {
        &self.trees
    }

    /// Where `id` is, at `at` (now). `path: None`: it is gone, or it came up less than 50 ms after the last walk, or that
    /// walk did not find it; the latter two are looked for again by [`Resolver::due`].
    pub fn resolve(&mut self, id: u64, hierarchy: Hierarchy, at: BootNs) -> CgroupFact {
        self.try_resolve(id, hierarchy, at).unwrap_or(CgroupFact { at, id, hierarchy, path: None })
    }

    /// Like [`Resolver::resolve`], but `None` where the answer has to wait for the next walk.
    pub fn try_resolve(&mut self, id: u64, hierarchy: Hierarchy, at: BootNs) -> Option<CgroupFact> {
        let fact = |path: Option<&str>| CgroupFact { at, id, hierarchy, path: path.map(str::to_owned) };
        if let Some(known) = self.index(hierarchy).known.get(&id) {
            return Some(fact(Some(&known.path)));
        }
        if id == 0 || self.index(hierarchy).gone.contains(&id) {
            return Some(fact(None));
        }
        if !self.may_walk(hierarchy, at) {
            let waiting = &mut self.index_mut(hierarchy).waiting;
            waiting.insert(id);
            bound(waiting);
            return None;
        }
        self.walk(hierarchy, at);
        self.index_mut(hierarchy).waiting.remove(&id);
        self.try_resolve_walked(id, hierarchy, at)
    }

    /// Answers what had to wait, once the next walk is allowed. To be called on a timer.
    pub fn due(&mut self, at: BootNs) -> Vec<CgroupFact> {
        let mut facts = Vec::new();
        for hierarchy in [Hierarchy::V2, Hierarchy::V1] {
            if self.index(hierarchy).waiting.is_empty() || !self.may_walk(hierarchy, at) {
                continue;
            }
            self.walk(hierarchy, at);
            for id in std::mem::take(&mut self.index_mut(hierarchy).waiting) {
                facts.extend(self.try_resolve_walked(id, hierarchy, at));
            }
        }
        facts
    }

    /// Right after a walk. What two walks did not find is gone.
    fn try_resolve_walked(&mut self, id: u64, hierarchy: Hierarchy, at: BootNs) -> Option<CgroupFact> {
        let index = self.index_mut(hierarchy);
        let path = index.known.get(&id).map(|k| k.path.clone());
        if path.is_none() && index.missed.insert(id) {
            bound(&mut index.missed);
            index.waiting.insert(id);
            bound(&mut index.waiting);
            return None;
        }
        index.missed.remove(&id);
        if path.is_none() {
            index.gone.insert(id);
            bound(&mut index.gone);
        }
        Some(CgroupFact { at, id, hierarchy, path })
    }

    /// All cgroups that are there now, v2 first, by id.
    pub fn snapshot(&mut self, at: BootNs) -> Vec<CgroupFact> {
        let mut facts = Vec::new();
        for hierarchy in [Hierarchy::V2, Hierarchy::V1] {
            self.walk(hierarchy, at);
            facts.extend(self.cgroups(hierarchy).map(|(id, path)| CgroupFact {
                at,
                id,
                hierarchy,
                path: Some(path.to_owned()),
            }));
        }
        facts
    }

    /// Id and path of the cgroups that were there at the last walk.
    pub fn cgroups(&self, hierarchy: Hierarchy) -> impl Iterator<Item = (u64, &str)> {
        self.index(hierarchy).known.iter().filter(|(_, k)| k.there).map(|(id, k)| (*id, k.path.as_str()))
    }

    fn index(&self, hierarchy: Hierarchy) -> &Index {
        match hierarchy {
            Hierarchy::V2 => &self.v2,
            Hierarchy::V1 => &self.v1,
        }
    }

    fn index_mut(&mut self, hierarchy: Hierarchy) -> &mut Index {
        match hierarchy {
            Hierarchy::V2 => &mut self.v2,
            Hierarchy::V1 => &mut self.v1,
        }
    }

    fn may_walk(&self, hierarchy: Hierarchy, at: BootNs) -> bool {
        self.index(hierarchy).walked_at.is_none_or(|last| at >= last.saturating_add(WALK_EVERY_NS))
    }

    fn walk(&mut self, hierarchy: Hierarchy, at: BootNs) {
        let found = self.trees.walk(hierarchy);
        let index = self.index_mut(hierarchy);
        index.walked_at = Some(at);
        index.known.values_mut().for_each(|k| k.there = false);
        for (id, path) in found {
            index.gone.remove(&id);
            index.known.insert(id, Known { path, there: true });
        }
        let removed: Vec<u64> = index.known.iter().filter(|(_, k)| !k.there).map(|(id, _)| *id).collect();
        // Ids grow, so the lowest are the oldest.
        for id in removed.iter().take(removed.len().saturating_sub(GONE_MAX)) {
            index.known.remove(id);
        }
    }
}

fn bound(ids: &mut BTreeSet<u64>) {
    while ids.len() > GONE_MAX {
        ids.pop_first();
    }
}

/// The host's own v2 cgroups, which the kernel may leave out. Only what can be told to be without interest is listed:
/// no cgroup of a container or pod, or above one; none that holds a server, a supervisor or a runtime, a process whose
/// v1 cgroup is a container's (older runtimes on hybrid hosts), or why502 itself, beside which people try things; never
/// the root, which is all there is where v2 is not used. v1 ids are never listed: the filter compares v2 ids, and the
/// two kinds may be equal. Call it after [`Resolver::snapshot`].
pub fn host_cgroups_to_skip(scan: &Scan, resolver: &Resolver) -> Vec<u64> {
    let mut keep: BTreeSet<u64> = [0, 1].into();
    let v1: BTreeMap<u64, &str> = resolver.cgroups(Hierarchy::V1).collect();
    for p in &scan.processes {
        let in_v1_container = v1.get(&p.cgroup_v1).is_some_and(|path| container::parse(path).is_some());
        if is_notable(p) || in_v1_container || p.key.tgid == std::process::id() {
            keep.insert(p.cgroup);
        }
    }
    let inside = |path: &str| container::parse(path).is_some() || container::pod_uid(path).is_some();
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for (_, path) in resolver.cgroups(Hierarchy::V2).filter(|(_, path)| inside(path)) {
        let mut path = path;
        while let Some((parent, _)) = path.rsplit_once('/') {
            above.insert(parent);
            path = parent;
        }
    }
    resolver
        .cgroups(Hierarchy::V2)
        .filter(|(id, path)| !keep.contains(id) && *path != "/" && !inside(path) && !above.contains(path))
        .map(|(id, _)| id)
        .take(SKIP_MAX)
        .collect()
}
