//! How old a record is. Not by the wall clock, which may be set to anything: age is a clock of the store's own that never
//! goes back. While the machine is up it goes with the boot clock; what passed between two boots is taken from the wall
//! clock, at least the uptime and a day at most. So a clock that is wrong at boot cannot make retention throw everything
//! away, and a node that was off for long keeps its records a little longer.

use super::Now;

/// The longest time between two boots that is believed, s.
const GAP_MAX: u64 = 86_400;

/// Seconds since the store was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeClock {
    age_s: u64,
    boot_s: u64,
}

/// What the disk says: where the newest segment began, and its last record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) boot_id: String,
    pub(super) boot_s: u64,
    pub(super) age_s: u64,
    /// Age and wall time of the last record.
    pub(super) last: Option<(u64, i64)>,
}

impl AgeClock {
    /// `None`: a new store.
    pub(super) fn resume(mark: Option<&Mark>, now: &Now) -> AgeClock {
        let Some(mark) = mark else { return AgeClock { age_s: 0, boot_s: now.boot_s } };
        if mark.boot_id == now.boot_id {
            return AgeClock { age_s: mark.age_s, boot_s: mark.boot_s };
        }
        let gap = |wall_s: i64| u64::try_from(now.wall_s.saturating_sub(wall_s)).unwrap_or(0);
        let (age_s, gap) = mark.last.map_or((mark.age_s, 0), |(age, wall)| (age, gap(wall)));
        let age_s = age_s.saturating_add(gap.min(GAP_MAX).max(now.boot_s));
        AgeClock { age_s, boot_s: now.boot_s }
    }

    pub fn now(&self, boot_s: u64) -> u64 {
        self.age_s.saturating_add(boot_s.saturating_sub(self.boot_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: i64 = 365 * 86_400;

    fn at(boot_id: &str, boot_s: u64, wall_s: i64) -> Now {
        Now { boot_id: boot_id.into(), boot_s, wall_s }
    }

    fn mark(last: Option<(u64, i64)>) -> Mark {
        Mark { boot_id: "a".into(), boot_s: 100, age_s: 1000, last }
    }

    #[test]
    fn within_a_boot_the_wall_clock_does_not_matter() {
        for wall in [0, -YEAR, YEAR, 100 * YEAR, i64::MAX, i64::MIN] {
            let clock = AgeClock::resume(Some(&mark(Some((1500, 7 * YEAR)))), &at("a", 700, wall));
            assert_eq!(clock.now(700), 1600);
            assert_eq!(clock.now(50), 1000, "the boot clock does not go back; if it did, age would not");
        }
    }

    #[test]
    fn a_boot_takes_what_the_wall_clock_says_within_bounds() {
        let after = |wall: i64| {
            let last = Some((1500, 10 * YEAR));
            AgeClock::resume(Some(&mark(last)), &at("b", 60, wall)).now(60) - 1500
        };
        assert_eq!(after(10 * YEAR + 600), 600);
        assert_eq!(after(10 * YEAR + 5), 60, "it is up for so long");
        assert_eq!(after(0), 60, "no battery: 1970 until NTP has set it");
        assert_eq!(after(50 * YEAR), GAP_MAX);
        assert_eq!(after(i64::MAX), GAP_MAX);
        assert_eq!(after(i64::MIN), 60);
        assert_eq!(AgeClock::resume(Some(&mark(None)), &at("b", 60, 0)).now(61), 1061);
        assert_eq!(AgeClock::resume(None, &at("b", 60, 0)).now(61), 1);
    }
}
