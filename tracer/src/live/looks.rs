//! What no event tells of and /proc does, a little later: who is to be looked at, and when again.

use crate::model::BootNs;
use std::collections::VecDeque;

/// Processes that wait for their looks.
#[derive(Debug)]
pub(super) struct Looks<K> {
    /// Who, since when, looks taken.
    waiting: VecDeque<(K, BootNs, usize)>,
    /// After that, ns; not empty.
    after: &'static [BootNs],
    /// Somebody who makes more at once gets no more looks.
    most: usize,
}

impl<K: PartialEq> Looks<K> {
    pub(super) fn new(after: &'static [BootNs], most: usize) -> Self {
        Looks { waiting: VecDeque::new(), after, most }
    }

    pub(super) fn add(&mut self, who: K, at: BootNs) {
        if self.waiting.len() < self.most {
            self.waiting.push_back((who, at, 0));
        }
    }

    pub(super) fn has(&self, who: &K) -> bool {
        self.waiting.iter().any(|(waiting, ..)| waiting == who)
    }

    pub(super) fn remove(&mut self, who: &K) {
        self.waiting.retain(|(waiting, ..)| waiting != who);
    }

    /// Looks at those whose time has come by `now`; `look` says whether it has to look again.
    pub(super) fn due(&mut self, now: BootNs, mut look: impl FnMut(&K) -> bool) {
        let after = self.after;
        self.waiting.retain_mut(|(who, at, looks)| {
            if now < at.saturating_add(after[*looks]) {
                return true;
            }
            *looks += 1;
            look(who) && *looks < after.len()
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_look_in_its_time_and_no_more_than_fit() {
        let mut looks = Looks::new(&[10, 100], 3);
        (0..5).for_each(|who| looks.add(who, 1_000));
        assert_eq!((looks.len(), looks.has(&2), looks.has(&3)), (3, true, false));
        let mut seen = Vec::new();
        let mut at = |looks: &mut Looks<u32>, now, again: &[u32]| {
            looks.due(now, |who| {
                seen.push((now, *who));
                again.contains(who)
            });
        };
        at(&mut looks, 1_009, &[]);
        at(&mut looks, 1_010, &[1, 2]);
        looks.remove(&2);
        at(&mut looks, 1_099, &[]);
        at(&mut looks, 5_000, &[1]);
        assert_eq!(seen, [(1_010, 0), (1_010, 1), (1_010, 2), (5_000, 1)]);
        assert_eq!(looks.len(), 0, "the last look was taken");
    }
}
