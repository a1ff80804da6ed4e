//! What is kept for a while, with a bound. When there is no room, the container that has the most entries pays with its oldest
//! one: nobody makes why502 forget what it knows of the neighbours.

use crate::identity::Group;
use crate::model::event::BootNs;
use std::collections::{BTreeMap, BTreeSet};

/// Entries by key, and by age within the container that they are of.
#[derive(Debug)]
pub(super) struct Recent<K: Ord + Clone, V> {
    map: BTreeMap<K, Entry<V>>,
    order: BTreeMap<Group, BTreeSet<(BootNs, K)>>,
    /// Groups by size, to find the largest.
    sizes: BTreeSet<(usize, Group)>,
    /// Groups by their oldest entry: those of containers that are gone go as well.
    oldest: BTreeSet<(BootNs, Group)>,
    max: usize,
    /// How long an entry is kept, ns. Older ones go when a new one comes.
    keep: BootNs,
}

#[derive(Debug)]
struct Entry<V> {
    group: Group,
    value: (BootNs, V),
}

impl<K: Ord + Clone, V> Recent<K, V> {
    /// `max`: at most so many.
    pub(super) fn new(max: usize, keep: BootNs) -> Self {
        let (map, order) = (BTreeMap::new(), BTreeMap::new());
        Recent { map, order, sizes: BTreeSet::new(), oldest: BTreeSet::new(), max: max.max(1), keep }
    }

    /// Gives who had to make room before its time.
    pub(super) fn insert(&mut self, at: BootNs, group: Group, key: K, value: V) -> Option<Group> {
        if let Some(old) = self.map.insert(key.clone(), Entry { group, value: (at, value) }) {
            self.change(old.group, |order| order.remove(&(old.value.0, key.clone())));
        }
        self.change(group, |order| order.insert((at, key)));
        while let Some((t, group)) = self.oldest.first().copied()
            && t.saturating_add(self.keep) < at
        {
            self.drop_oldest(group);
        }
        if self.map.len() <= self.max {
            return None;
        }
        let (_, largest) = *self.sizes.last()?;
        self.drop_oldest(largest);
        Some(largest)
    }

    fn drop_oldest(&mut self, group: Group) {
        let oldest = self.change(group, BTreeSet::pop_first);
        oldest.and_then(|(_, key)| self.map.remove(&key));
    }

    fn change<T>(&mut self, group: Group, f: impl FnOnce(&mut BTreeSet<(BootNs, K)>) -> T) -> T {
        let order = self.order.entry(group).or_default();
        if let Some((t, _)) = order.first() {
            self.sizes.remove(&(order.len(), group));
            self.oldest.remove(&(*t, group));
        }
        let given = f(order);
        if let Some((t, _)) = order.first() {
            self.sizes.insert((order.len(), group));
            self.oldest.insert((*t, group));
        } else {
            self.order.remove(&group);
        }
        given
    }

    pub(super) fn get(&self, key: &K) -> Option<&(BootNs, V)> {
        self.map.get(key).map(|entry| &entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: Group = (7, 0);
    const QUIET: Group = (8, 0);

    fn consistent<K: Ord + Clone, V>(recent: &Recent<K, V>) {
        let ordered: usize = recent.order.values().map(BTreeSet::len).sum();
        let groups = recent.order.len();
        assert_eq!((ordered, recent.sizes.len(), recent.oldest.len()), (recent.map.len(), groups, groups));
    }

    #[test]
    fn the_loudest_pays_and_time_goes_on() {
        let mut recent = Recent::new(100, 1_000);
        assert_eq!(recent.insert(1, QUIET, 0, "quiet"), None);
        let paid: Vec<_> = (1..=500).filter_map(|n| recent.insert(n, NOISY, n, "noise")).collect();
        assert_eq!((paid.len(), paid.iter().all(|g| *g == NOISY)), (401, true));
        assert_eq!(recent.get(&0), Some(&(1, "quiet")));
        assert_eq!((recent.get(&401), recent.get(&402)), (None, Some(&(402, "noise"))));
        assert_eq!(recent.map.len(), 100);
        consistent(&recent);
        assert_eq!(recent.insert(2_000, NOISY, 9_999, "later"), None, "what is old went, of the others as well");
        assert_eq!((recent.map.len(), recent.get(&0)), (1, None));
        assert_eq!(recent.insert(2_000, QUIET, 0, "again"), None);
        assert_eq!(recent.get(&0), Some(&(2_000, "again")));
        consistent(&recent);
    }

    #[test]
    fn one_key_again_and_again_is_one_entry() {
        let mut recent = Recent::new(10, 1_000);
        assert_eq!((0..50).filter_map(|at| recent.insert(at, NOISY, 1, at)).count(), 0, "nothing was forgotten");
        assert_eq!(recent.get(&1), Some(&(49, 49)));
        assert_eq!(recent.insert(50, QUIET, 1, 50), None, "of another container now");
        assert_eq!((recent.map.len(), recent.order.len()), (1, 1));
        consistent(&recent);
    }

    /// Containers come and go for weeks: what is left of them must not take the place of those that run.
    #[test]
    fn containers_that_are_gone_leave_nothing() {
        let mut recent = Recent::new(100, 1_000);
        for n in 0..10_000u64 {
            assert_eq!(recent.insert(n * 20, (n + 100, 0), n, "gone"), None);
            assert_eq!(recent.insert(n * 20, QUIET, 1_000_000 + n % 7, "there"), None);
        }
        assert!(recent.map.len() <= 60, "{}", recent.map.len());
        consistent(&recent);
    }
}
