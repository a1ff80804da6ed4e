//! What is kept for a while, with a bound. When there is no room, the container that has the most entries pays with its oldest
//! one: nobody makes why502 forget what it knows of the neighbours.

use crate::identity::Group;
use crate::model::event::BootNs;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Entries by key, and by age within the container that they are of.
#[derive(Debug)]
pub(super) struct Recent<K: Ord + Clone, V> {
    map: BTreeMap<K, (BootNs, V)>,
    order: BTreeMap<Group, VecDeque<(BootNs, K)>>,
    /// Groups by size, to find the largest.
    sizes: BTreeSet<(usize, Group)>,
    len: usize,
    max: usize,
    /// How long an entry is kept, ns. Older ones of a group go when a new one comes.
    keep: BootNs,
}

impl<K: Ord + Clone, V> Recent<K, V> {
    /// `max`: at most so many.
    pub(super) fn new(max: usize, keep: BootNs) -> Self {
        Recent { map: BTreeMap::new(), order: BTreeMap::new(), sizes: BTreeSet::new(), len: 0, max: max.max(1), keep }
    }

    /// Gives who had to make room before its time.
    pub(super) fn insert(&mut self, at: BootNs, group: Group, key: K, value: V) -> Option<Group> {
        self.map.insert(key.clone(), (at, value));
        self.change(group, |order| order.push_back((at, key)));
        let keep = self.keep;
        let too_old = |order: &VecDeque<(BootNs, K)>| order.front().is_some_and(|(t, _)| t.saturating_add(keep) < at);
        while self.order.get(&group).is_some_and(too_old) {
            self.drop_oldest(group);
        }
        if self.len <= self.max {
            return None;
        }
        let (_, largest) = *self.sizes.last()?;
        let early = !self.order.get(&largest).is_some_and(too_old);
        self.drop_oldest(largest);
        early.then_some(largest)
    }

    fn drop_oldest(&mut self, group: Group) {
        let mut oldest = None;
        self.change(group, |order| oldest = order.pop_front());
        // A newer entry of the same key stays.
        if let Some((t, key)) = oldest
            && self.map.get(&key).is_some_and(|(at, _)| *at == t)
        {
            self.map.remove(&key);
        }
    }

    fn change(&mut self, group: Group, f: impl FnOnce(&mut VecDeque<(BootNs, K)>)) {
        let order = self.order.entry(group).or_default();
        let before = order.len();
        f(order);
        let now = order.len();
        self.sizes.remove(&(before, group));
        if now == 0 {
            self.order.remove(&group);
        } else {
            self.sizes.insert((now, group));
        }
        self.len = self.len + now - before;
    }

    pub(super) fn get(&self, key: &K) -> Option<&(BootNs, V)> {
        self.map.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: Group = (7, 0);
    const QUIET: Group = (8, 0);

    #[test]
    fn the_loudest_pays_and_time_goes_on() {
        let mut recent = Recent::new(100, 1_000);
        assert_eq!(recent.insert(1, QUIET, 0, "quiet"), None);
        let paid: Vec<_> = (1..=500).filter_map(|n| recent.insert(n, NOISY, n, "noise")).collect();
        assert_eq!((paid.len(), paid.iter().all(|g| *g == NOISY)), (401, true));
        assert_eq!(recent.get(&0), Some(&(1, "quiet")));
        assert_eq!((recent.get(&401), recent.get(&402)), (None, Some(&(402, "noise"))));
        assert_eq!((recent.len, recent.map.len()), (100, 100));
        assert_eq!(recent.insert(2_000, NOISY, 9_999, "later"), None, "what is old went with it");
        assert_eq!((recent.len, recent.map.len()), (2, 2));
        assert_eq!(recent.insert(2_000, QUIET, 0, "again"), None);
        assert_eq!((recent.get(&0), recent.order.len(), recent.sizes.len()), (Some(&(2_000, "again")), 2, 2));
    }

    #[test]
    fn one_key_again_and_again_takes_no_more_than_others() {
        let mut recent = Recent::new(10, 1_000);
        assert_eq!((0..50).filter_map(|at| recent.insert(at, NOISY, 1, at)).count(), 40);
        assert_eq!((recent.get(&1), recent.len, recent.map.len()), (Some(&(49, 49)), 10, 1));
    }
}
