//! Boot clock to wall clock, and how a time is written.

use crate::model::BootNs;
use jiff::Timestamp;

/// Nanoseconds since 1970 as RFC 3339 in UTC with nine digits: `2026-11-22T14:03:22.118204113Z`.
pub fn rfc3339(wall_ns: i64) -> String {
    // jiff covers years -9999 to 9999, an i64 of nanoseconds 1677 to 2262: the error cannot occur.
    match Timestamp::from_nanosecond(i128::from(wall_ns)) {
        Ok(at) => format!("{at:.9}"),
        Err(_) => format!("{wall_ns}ns"),
    }
}

/// The time of day of an RFC 3339 time, to the microsecond: `14:03:22.118204`. What is not such a time is given back
/// as it is.
pub fn time_of_day(rfc3339: &str) -> &str {
    match rfc3339.split_once('T') {
        Some((_, time)) if time.len() >= 15 && time.is_char_boundary(15) => &time[..15],
        _ => rfc3339,
    }
}

/// Follows the clock samples of the input sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock {
    /// wall - boot, ns.
    offset: Option<i64>,
}

impl WallClock {
    /// Both clocks, read together.
    pub fn sample(&mut self, at: BootNs, wall_ns: i64) {
        self.offset = i64::try_from(at).ok().and_then(|boot| wall_ns.checked_sub(boot));
    }

    /// Nanoseconds since 1970; `None` before the first sample.
    pub fn wall_ns(&self, at: BootNs) -> Option<i64> {
        i64::try_from(at).ok()?.checked_add(self.offset?)
    }

    /// The way back: boot time of ns since 1970. `None` before the first sample, and before the boot.
    pub fn boot_ns(&self, wall_ns: i64) -> Option<BootNs> {
        BootNs::try_from(wall_ns.checked_sub(self.offset?)?).ok()
    }

    pub fn rfc3339(&self, at: BootNs) -> Option<String> {
        self.wall_ns(at).map(rfc3339)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_utc_with_nine_digits() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(1_795_356_202_118_204_113), "2026-11-22T14:03:22.118204113Z");
        assert_eq!(rfc3339(951_782_399_999_999_999), "2000-02-28T23:59:59.999999999Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339(i64::MAX), "2262-04-11T23:47:16.854775807Z");
        assert_eq!(rfc3339(i64::MIN), "1677-09-21T00:12:43.145224192Z");
    }

    #[test]
    fn the_newest_sample_counts() {
        let mut clock = WallClock::default();
        assert_eq!(clock.rfc3339(5), None);
        clock.sample(1_000, 0);
        assert_eq!(clock.wall_ns(1_500), Some(500));
        assert_eq!((clock.boot_ns(500), clock.boot_ns(-1_001)), (Some(1_500), None));
        clock.sample(2_000, 2_000_000_000);
        assert_eq!(clock.rfc3339(3_000).unwrap(), "1970-01-01T00:00:02.000001000Z");
        clock.sample(u64::MAX, 0);
        assert_eq!(clock.wall_ns(1), None);
    }

    #[test]
    fn time_of_day_bears_anything() {
        assert_eq!(time_of_day("2026-11-22T14:03:22.118204113Z"), "14:03:22.118204");
        for odd in ["", "T", "T14", "no time", "Téééééééééééé"] {
            assert!(odd.ends_with(time_of_day(odd)));
        }
    }
}
