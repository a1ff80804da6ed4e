//! A token bucket in whole numbers.

use crate::model::BootNs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u64,
    /// For one more, ns.
    pub every: u64,
}

/// Kept as the moment at which it would be full: no rounding, no state that ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    full_at: BootNs,
}

impl Bucket {
    pub fn full(rate: Rate) -> Self {
        Bucket { rate, full_at: 0 }
    }

    pub fn is_full(&self, now: BootNs) -> bool {
        self.full_at <= now
    }

    pub fn has_one(&self, now: BootNs) -> bool {
        self.full_at.max(now) + self.rate.every <= now + self.rate.burst * self.rate.every
    }

    /// False: it is empty.
    pub fn take(&mut self, now: BootNs) -> bool {
        let has = self.has_one(now);
        if has {
            self.full_at = self.full_at.max(now) + self.rate.every;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let mut bucket = Bucket::full(Rate { burst: 3, every: 10 });
        let taken = |bucket: &mut Bucket, now| (0..9).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, 100), 3);
        assert_eq!((taken(&mut bucket, 109), taken(&mut bucket, 110)), (0, 1));
        assert_eq!(taken(&mut bucket, 135), 2);
        assert!(!bucket.is_full(150) && bucket.is_full(165));
        assert_eq!(taken(&mut bucket, 1_000_000), 3);
        assert_eq!(taken(&mut bucket, 5), 0, "time that goes back gives nothing");
    }
}
