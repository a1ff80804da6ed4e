//! Random choices that a seed makes again.

use std::time::Duration;

/// splitmix64: short, and every seed is as good as another.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// The same, but each order of magnitude as often as the next.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let (a, b) = ((low as f64).ln(), (high as f64).ln());
        let x = (self.roll() >> 11) as f64 / (1_u64 << 53) as f64;
        ((a + (b - a) * x).exp().round() as u64).clamp(low, high)
    }

    pub fn coin(&mut self) -> bool {
        self.roll() & 1 == 1
    }

    /// An index of so many.
    pub fn below(&mut self, len: usize) -> usize {
        usize::try_from(self.roll() % len.max(1) as u64).unwrap_or(0)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A seed that no earlier run had.
pub fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Short, because people type it again.
    Dice::new(now.as_nanos() as u64).roll() & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_choices_again() {
        let choices = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| dice.spread(5, 3000)).collect::<Vec<_>>()
        };
        assert_eq!(choices(7), choices(7));
        assert_ne!(choices(7), choices(8));
        assert!(choices(7).iter().all(|ms| (5..=3000).contains(ms)));
        let low = choices(9).iter().filter(|ms| **ms < 122).count();
        assert!((10..40).contains(&low), "half of them are below the geometric middle, {low} of 50");
    }

    #[test]
    fn ends_are_included() {
        let mut dice = Dice::new(1);
        let seen: std::collections::BTreeSet<u64> = (0..200).map(|_| dice.between(3, 5)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
    }
}
