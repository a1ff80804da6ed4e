//! Which processes are forgotten, and when.
//!
//! The dead go after [`KEEP_NS`]. When the table is full before that, somebody forks a lot: the group (container) that takes
//! the most memory pays for it, so that one container cannot make why502 forget its neighbours.

use super::KEEP_NS;
use crate::model::{BootNs, ProcKey};
use std::collections::{BTreeMap, BTreeSet};

/// Who pays for what is kept of him: v2 and v1 cgroup id, of a container those of its first cgroup.
pub type Group = (u64, u64);

#[derive(Debug, Default)]
struct Members {
    /// By first sight.
    live: BTreeSet<(BootNs, ProcKey)>,
    /// By exit.
    dead: BTreeSet<(BootNs, ProcKey)>,
    /// Bytes.
    weight: usize,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    group: Group,
    at: BootNs,
    dead: bool,
    weight: usize,
}

#[derive(Debug, Default)]
pub(super) struct Retention {
    members: BTreeMap<ProcKey, Member>,
    groups: BTreeMap<Group, Members>,
    /// Groups by weight, to find the largest.
    sizes: BTreeSet<(usize, Group)>,
    /// All dead, by exit.
    dead: BTreeSet<(BootNs, ProcKey)>,
    weight: usize,
}

impl Retention {
    /// A process that was first seen at `at`, and the bytes that it takes.
    pub(super) fn add(&mut self, key: ProcKey, group: Group, at: BootNs, weight: usize) {
        self.remove(key);
        self.insert(key, Member { group, at, dead: false, weight });
    }

    /// It takes so many bytes now.
    pub(super) fn weigh(&mut self, key: ProcKey, weight: usize) {
        if let Some(member) = self.remove(key) {
            self.insert(key, Member { weight, ..member });
        }
    }

    /// Bytes of all.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    pub(super) fn died(&mut self, key: ProcKey, at: BootNs) {
        if let Some(member) = self.remove(key) {
            self.insert(key, Member { at, dead: true, ..member });
        }
    }

    pub(super) fn regroup(&mut self, key: ProcKey, group: Group) {
        if self.members.get(&key).is_some_and(|m| m.group != group)
            && let Some(member) = self.remove(key)
        {
            self.insert(key, Member { group, ..member });
        }
    }

    /// One that is dead for longer than it must be kept.
    pub(super) fn expired(&self, now: BootNs) -> Option<ProcKey> {
        let (at, key) = self.dead.first()?;
        (at.saturating_add(KEEP_NS) < now).then_some(*key)
    }

    /// Who goes when there is no room: of the largest group the longest dead, else the newest.
    /// `but`: not this one.
    pub(super) fn victim(&self, but: Option<ProcKey>) -> Option<ProcKey> {
        let (_, group) = self.sizes.last()?;
        let members = self.groups.get(group)?;
        let of_all = members.dead.iter().chain(members.live.iter().rev());
        of_all.map(|(_, key)| *key).find(|key| Some(*key) != but)
    }

    pub(super) fn forget(&mut self, key: ProcKey) {
        self.remove(key);
    }

    fn insert(&mut self, key: ProcKey, member: Member) {
        self.weight += member.weight;
        self.change(member.group, |m| {
            m.weight += member.weight;
            if member.dead {
                m.dead.insert((member.at, key))
            } else {
                m.live.insert((member.at, key))
            };
        });
        if member.dead {
            self.dead.insert((member.at, key));
        }
        self.members.insert(key, member);
    }

    fn remove(&mut self, key: ProcKey) -> Option<Member> {
        let member = self.members.remove(&key)?;
        self.weight -= member.weight;
        self.change(member.group, |m| {
            m.weight -= member.weight;
            if member.dead {
                m.dead.remove(&(member.at, key))
            } else {
                m.live.remove(&(member.at, key))
            };
        });
        if member.dead {
            self.dead.remove(&(member.at, key));
        }
        Some(member)
    }

    fn change(&mut self, group: Group, f: impl FnOnce(&mut Members)) {
        let members = self.groups.entry(group).or_default();
        self.sizes.remove(&(members.weight, group));
        f(members);
        if members.live.is_empty() && members.dead.is_empty() {
            self.groups.remove(&group);
        } else {
            self.sizes.insert((members.weight, group));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tgid: u32) -> ProcKey {
        ProcKey { tgid, start_ticks: 1 }
    }

    #[test]
    fn the_largest_group_pays() {
        let mut r = Retention::default();
        r.add(key(1), (1, 0), 1, 10);
        r.died(key(1), 2);
        for i in 10..20 {
            r.add(key(i), (2, 0), u64::from(i), 10);
        }
        assert_eq!(r.victim(None), Some(key(19)), "nobody of the large group is dead: its newest");
        r.died(key(12), 101);
        r.died(key(11), 100);
        assert_eq!(r.victim(None), Some(key(11)), "its longest dead");
        for i in 10..20 {
            r.forget(key(i));
        }
        assert_eq!(r.victim(None), Some(key(1)));
        r.forget(key(1));
        assert_eq!(r.victim(None), None);
        assert!(r.groups.is_empty() && r.sizes.is_empty() && r.dead.is_empty() && r.members.is_empty());
    }

    #[test]
    fn expiry_and_moves() {
        let mut r = Retention::default();
        r.add(key(1), (1, 0), 1, 10);
        r.regroup(key(1), (5, 5));
        r.died(key(1), 10);
        r.regroup(key(1), (6, 6));
        assert_eq!(r.expired(10 + KEEP_NS), None);
        assert_eq!(r.expired(11 + KEEP_NS), Some(key(1)));
        assert_eq!(r.groups.len(), 1);
    }
}
