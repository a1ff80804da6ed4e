//! How often the uprobes of one program may run. Each hit costs the process about 5 µs, whatever the probe does with it.

use std::time::Duration;

/// Hits a second that are always allowed: about 2 % of one CPU.
const PER_SECOND: u64 = 5_000;
/// Saved up at most: a burst of failures is what the uprobes are for.
const SAVED: u64 = 4 * PER_SECOND;
/// So long they stay off.
pub(super) const REST: Duration = Duration::from_secs(300);

/// Allowances that are saved up and used.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    hits: u64,
}

impl Budget {
    /// `hits`: counted so far.
    pub(super) fn new(hits: u64) -> Budget {
        Budget { left: SAVED, hits }
    }

    /// After `passed`, with `hits` counted in all: the hits a second, when they were too many.
    pub(super) fn overdrawn(&mut self, hits: u64, passed: Duration) -> Option<u64> {
        let new = hits.saturating_sub(std::mem::replace(&mut self.hits, hits));
        let ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let allowed = self.left.saturating_add(PER_SECOND.saturating_mul(ms) / 1000).min(SAVED + PER_SECOND);
        if new > allowed {
            return Some(new.saturating_mul(1000) / ms.max(1));
        }
        self.left = (allowed - new).min(SAVED);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bursts_are_allowed_and_floods_are_not() {
        let mut budget = Budget::new(1_000_000);
        let mut hits = 1_000_000;
        for _ in 0..100 {
            hits += PER_SECOND;
            assert_eq!(budget.overdrawn(hits, SECOND), None);
        }
        hits += SAVED;
        assert_eq!(budget.overdrawn(hits, SECOND), None);
        // What is saved is used up after some seconds of twice as many.
        let seconds = (1..100).find(|_| {
            hits += 2 * PER_SECOND;
            budget.overdrawn(hits, SECOND).is_some()
        });
        assert_eq!(seconds, Some(2));
        assert_eq!(Budget::new(0).overdrawn(100_000, SECOND), Some(100_000));
        assert_eq!(Budget::new(0).overdrawn(100_000, SECOND * 2), Some(50_000));
    }
}
