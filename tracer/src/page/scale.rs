//! Time to pixels. A stop has things that last half a minute and things that last a tenth of a millisecond, and both
//! matter: between two marks the axis grows with the logarithm of the time between them, and marks keep a distance at which
//! they can be told apart. Within such a piece it is linear. The axis says the time at the marks.

use crate::model::BootNs;

/// Marks stand at least so far apart, px.
pub const APART: f64 = 24.0;
/// Up to here a gap has hardly any length of its own.
const SHORT_NS: f64 = 1e6;

/// What began before the first mark is told by its bar: it needs no more than a part of the room.
const BEFORE: f64 = 0.4;

/// Piecewise linear, and never decreasing.
#[derive(Clone, Debug)]
pub struct Scale {
    knots: Vec<(BootNs, f64)>,
}

impl Scale {
    /// Over `width` px from the first to the last time. `marks` are kept apart as far as there is room; `others` are
    /// only within.
    pub fn new(marks: &[BootNs], others: &[BootNs], width: f64) -> Self {
        let mut times: Vec<(BootNs, bool)> =
            marks.iter().map(|t| (*t, true)).chain(others.iter().map(|t| (*t, false))).collect();
        times.sort_unstable_by_key(|(t, mark)| (*t, !mark));
        times.dedup_by_key(|(t, _)| *t);
        let mut weights = Vec::new();
        // Since the last mark: it is what has to be kept apart, not each time between.
        let mut fixed = Vec::new();
        let mut since = None;
        for pair in times.windows(2) {
            let [(a, a_mark), (b, b_mark)] = [pair[0], pair[1]];
            if a_mark {
                since = Some(a);
            }
            let before = if since.is_some() { 1.0 } else { BEFORE };
            weights.push(before * (1.0 + (b - a) as f64 / SHORT_NS).ln());
            fixed.push(if b_mark && since.is_some() { APART } else { 0.0 });
        }
        let (fixed_sum, weight_sum) = (fixed.iter().sum::<f64>(), weights.iter().sum::<f64>());
        let squeeze = if fixed_sum > width { width / fixed_sum } else { 1.0 };
        let rest = (width - fixed_sum * squeeze).max(0.0);
        let mut x = 0.0;
        let mut knots: Vec<(BootNs, f64)> = times.first().map(|(t, _)| (*t, 0.0)).into_iter().collect();
        for (n, (t, _)) in times.iter().enumerate().skip(1) {
            x += fixed[n - 1] * squeeze + if weight_sum > 0.0 { rest * weights[n - 1] / weight_sum } else { 0.0 };
            knots.push((*t, x));
        }
        Scale { knots }
    }

    pub fn x(&self, at: BootNs) -> f64 {
        let next = self.knots.partition_point(|(t, _)| *t < at);
        match (next.checked_sub(1).and_then(|n| self.knots.get(n)), self.knots.get(next)) {
            (Some((t0, x0)), Some((t1, x1))) => x0 + (x1 - x0) * ((at - t0) as f64 / (t1 - t0) as f64),
            (None, Some((_, x))) | (Some((_, x)), None) => *x,
            (None, None) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn long_and_short_gaps_are_both_seen() {
        let marks = [0, 5_000 * MS, 5_000 * MS + 100_000, 5_001 * MS, 35_000 * MS];
        let scale = Scale::new(&marks, &[], 1000.0);
        let xs: Vec<f64> = marks.iter().map(|t| scale.x(*t)).collect();
        assert!(xs.windows(2).all(|w| w[1] - w[0] >= APART), "{xs:?}");
        assert!(xs[4] - xs[3] > xs[1] - xs[0] && xs[1] - xs[0] > 10.0 * (xs[2] - xs[1]), "{xs:?}");
        assert_eq!((xs[0], xs[4]), (0.0, 1000.0));
        assert_eq!(scale.x(40_000 * MS), 1000.0);
    }

    #[test]
    fn nothing_and_one_thing_have_a_place() {
        assert_eq!(Scale::new(&[], &[], 100.0).x(5), 0.0);
        assert_eq!(Scale::new(&[5], &[5], 100.0).x(5), 0.0);
    }

    proptest! {
        #[test]
        fn time_never_goes_back(
            marks in proptest::collection::vec(any::<u64>(), 0..60),
            others in proptest::collection::vec(any::<u64>(), 0..60),
        ) {
            let scale = Scale::new(&marks, &others, 1000.0);
            let mut all = [marks.clone(), others].concat();
            all.sort_unstable();
            let xs: Vec<f64> = all.iter().map(|t| scale.x(*t)).collect();
            prop_assert!(xs.windows(2).all(|w| w[0] <= w[1]), "{xs:?}");
            prop_assert!(xs.iter().all(|x| (0.0..=1000.1).contains(x)), "{xs:?}");
            let mut marks = marks;
            marks.sort_unstable();
            marks.dedup();
            if marks.len() < 40 {
                let xs: Vec<f64> = marks.iter().map(|t| scale.x(*t)).collect();
                prop_assert!(xs.windows(2).all(|w| w[1] - w[0] >= APART - 0.01), "{xs:?}");
            }
        }
    }
}
