//! The memory controller's files, read when the OOM killer has chosen a process: which limit it was.
//!
//! A counter that has grown since it was last looked at tells the level, so all are looked at once before, at the start. Those
//! of later cgroups begin at 0.

use super::cgroups::Resolver;
use super::procfs::read_process;
use crate::model::BootNs;
use crate::model::event::Task;
use crate::model::input::{Hierarchy, MemoryFact, MemoryLevel};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// v1's way to say that there is no limit is the largest number of whole pages: anything above this.
const NO_LIMIT: u64 = 1 << 60;
/// Levels of a path, and cgroups whose counters are remembered.
const LEVELS_MAX: usize = 32;
const COUNTERS_MAX: usize = 16_384;
/// What the OOM killer takes together (memory.oom.group) is compared with the counters of before all of it, ns.
const TOGETHER_NS: BootNs = 2_000_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    /// At an earlier look, and at the last one.
    before: u64,
    last: u64,
    looked_at: BootNs,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    counters: BTreeMap<PathBuf, Counter>,
}

impl Memory {
    /// Looks at every cgroup that is there. Call it after [`Resolver::snapshot`].
    pub fn start(resolver: &Resolver, at: BootNs) -> Memory {
        let mut memory = Memory::default();
        let Some((hierarchy, dir)) = tree(resolver) else { return memory };
        for (_, path) in resolver.cgroups(hierarchy).take(COUNTERS_MAX) {
            let dir = dir.join(path.trim_start_matches('/'));
            if let Some(now) = hits(&dir, hierarchy) {
                memory.counters.insert(dir, Counter { before: now, last: now, looked_at: at });
            }
        }
        memory
    }

    /// The levels above a process that the OOM killer chose. `None`: its cgroup is not known, or no hierarchy has the
    /// memory controller.
    pub fn look(&mut self, root: &Path, victim: &Task, resolver: &mut Resolver, at: BootNs) -> Option<MemoryFact> {
        let (hierarchy, dir) = tree(resolver)?;
        let pid = if victim.tgid == 0 { victim.pid } else { victim.tgid };
        let known = if hierarchy == Hierarchy::V2 { victim.cgroup } else { victim.cgroup_v1 };
        let id = match known {
            // Older kernels tell no more than the pid.
            0 => {
                let process = read_process(root, pid, at).ok()?;
                if hierarchy == Hierarchy::V2 { process.cgroup } else { process.cgroup_v1 }
            }
            id => id,
        };
        let path = resolver.resolve(id, hierarchy, at).path?;
        let mut fact = MemoryFact { at, victim: pid, hierarchy, levels: Vec::new(), complete: true };
        for level in levels(&path) {
            match self.level(&dir, level, hierarchy, at) {
                Some(level) => fact.levels.push(level),
                None => fact.complete = false,
            }
        }
        Some(fact)
    }

    fn level(&mut self, root: &Path, path: &str, hierarchy: Hierarchy, at: BootNs) -> Option<MemoryLevel> {
        let dir = root.join(path.trim_start_matches('/'));
        let now = hits(&dir, hierarchy)?;
        if self.counters.len() >= COUNTERS_MAX && !self.counters.contains_key(&dir) {
            self.counters.pop_first();
        }
        let counter = self.counters.entry(dir.clone()).or_default();
        if at.saturating_sub(counter.looked_at) > TOGETHER_NS {
            counter.before = counter.last;
            counter.looked_at = at;
        }
        counter.last = now;
        // Memory with swap has a limit of its own, whose failures no counter of v1 tells: its peak has to do.
        let at_limit = hierarchy == Hierarchy::V1 && was_at_limit(&dir);
        let limit = match hierarchy {
            Hierarchy::V2 => "memory.max",
            Hierarchy::V1 => "memory.limit_in_bytes",
        };
        let limit = number(&dir.join(limit)).filter(|bytes| *bytes < NO_LIMIT);
        let group = hierarchy == Hierarchy::V2 && number(&dir.join("memory.oom.group")) == Some(1);
        Some(MemoryLevel {
            path: path.to_owned(),
            limit,
            hits: now.saturating_sub(counter.before).max(u64::from(at_limit)),
            group,
        })
    }
}

/// Where the memory controller is: its own v1 hierarchy, else v2.
fn tree(resolver: &Resolver) -> Option<(Hierarchy, PathBuf)> {
    let trees = resolver.trees();
    let hierarchy = if trees.v1_controller() == Some("memory") { Hierarchy::V1 } else { Hierarchy::V2 };
    Some((hierarchy, trees.dir(hierarchy)?.to_owned()))
}

/// A path and those above it, without the root.
fn levels(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(i, _)| i).skip(1).chain([path.len()]);
    let mut all: Vec<&str> = ends.filter(|end| *end > 1).map(|end| &path[..end]).collect();
    all.reverse();
    all.truncate(LEVELS_MAX);
    all.into_iter()
}

fn hits(dir: &Path, hierarchy: Hierarchy) -> Option<u64> {
    match hierarchy {
        Hierarchy::V1 => number(&dir.join("memory.failcnt")),
        // Without the controller a cgroup has no such file, and then the kernel charges what is above it.
        Hierarchy::V2 => {
            let text = fs::read_to_string(dir.join("memory.events.local")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom ")?.trim().parse().ok())
        }
    }
}

/// v1: its usage has once reached a limit, to what is charged at once (MEMCG_CHARGE_BATCH).
fn was_at_limit(dir: &Path) -> bool {
    const NEAR: u64 = 1 << 20;
    let reached = |limit: &str, peak: &str| {
        let (limit, peak) = (number(&dir.join(limit)), number(&dir.join(peak)));
        limit.zip(peak).is_some_and(|(limit, peak)| limit < NO_LIMIT && peak.saturating_add(NEAR) >= limit)
    };
    reached("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        || reached("memory.memsw.limit_in_bytes", "memory.memsw.max_usage_in_bytes")
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_of_a_path() {
        let paths: Vec<&str> = levels("/kubepods/pod1/c").collect();
        assert_eq!(paths, ["/kubepods/pod1/c", "/kubepods/pod1", "/kubepods"]);
        assert_eq!(levels("/").count(), 0);
        assert_eq!(levels(&"/x".repeat(1000)).count(), LEVELS_MAX);
    }

    fn v2(dir: &Path, path: &str, max: &str, oom: u64, group: u8) {
        let dir = dir.join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.max"), format!("{max}\n")).unwrap();
        fs::write(dir.join("memory.oom.group"), format!("{group}\n")).unwrap();
        let events = format!("low 0\nhigh 0\nmax 31\noom {oom}\noom_kill {oom}\noom_group_kill 0\n");
        fs::write(dir.join("memory.events.local"), events).unwrap();
    }

    #[test]
    fn hits_are_counted_from_the_last_look() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::default();
        v2(dir.path(), "/pod", "max", 0, 0);
        v2(dir.path(), "/pod/c", "67108864", 1, 1);
        let mut look = |path: &str, at| memory.level(dir.path(), path, Hierarchy::V2, at).unwrap();
        let level = look("/pod/c", 100 * TOGETHER_NS);
        assert_eq!(level, MemoryLevel { path: "/pod/c".into(), limit: Some(64 << 20), hits: 1, group: true });
        assert_eq!(
            look("/pod", 100 * TOGETHER_NS),
            MemoryLevel { path: "/pod".into(), limit: None, hits: 0, group: false }
        );
        assert_eq!(look("/pod/c", 100 * TOGETHER_NS + 1).hits, 1, "of the same group of victims");
        assert_eq!(look("/pod/c", 200 * TOGETHER_NS).hits, 0, "another one: the node's");
        v2(dir.path(), "/pod/c", "67108864", 3, 1);
        assert_eq!(look("/pod/c", 300 * TOGETHER_NS).hits, 2);
    }

    #[test]
    fn v1_and_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let c = dir.path().join("c");
        fs::create_dir_all(&c).unwrap();
        let mut memory = Memory::default();
        assert_eq!(memory.level(dir.path(), "/c", Hierarchy::V1, 1), None);
        fs::write(c.join("memory.failcnt"), "7\n").unwrap();
        fs::write(c.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        let level = memory.level(dir.path(), "/c", Hierarchy::V1, 1).unwrap();
        assert_eq!((level.limit, level.hits, level.group), (None, 7, false));
        fs::write(c.join("memory.failcnt"), "0\n").unwrap();
        let mut hits = |peak: u64| {
            fs::write(c.join("memory.memsw.limit_in_bytes"), "67108864\n").unwrap();
            fs::write(c.join("memory.memsw.max_usage_in_bytes"), format!("{peak}\n")).unwrap();
            memory.level(dir.path(), "/c", Hierarchy::V1, 9 * TOGETHER_NS).unwrap().hits
        };
        assert_eq!((hits(64 << 20), hits(40 << 20)), (1, 0), "memory with swap has a limit of its own");
        fs::write(c.join("memory.failcnt"), "what\n").unwrap();
        assert_eq!(memory.level(dir.path(), "/c", Hierarchy::V1, 1), None);
        assert_eq!(memory.level(dir.path(), "/c", Hierarchy::V2, 1), None);
    }
}
