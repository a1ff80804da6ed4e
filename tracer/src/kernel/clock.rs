//! Clocks. Events carry CLOCK_BOOTTIME; wall time is derived from it with samples of both, taken together.
//!
//! Both clocks get the same NTP rate, so the difference changes only when somebody sets the wall clock (measured:
//! 13 ns in 12 minutes): a sample every ten seconds is plenty.

use crate::model::BootNs;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Brackets per sample; the narrowest is taken, the others were interrupted.
const BRACKETS: usize = 12;

/// CLOCK_BOOTTIME and CLOCK_REALTIME at one moment, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub boot_ns: BootNs,
    pub wall_ns: i64,
    /// Width of the bracket, ns: the error is at most half of it.
    pub width_ns: u64,
}

fn ns(t: Timespec) -> i64 {
    t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec)
}

/// CLOCK_BOOTTIME now, ns; the clock of `bpf_ktime_get_boot_ns()`.
pub fn boot_ns() -> BootNs {
    ns(clock_gettime(ClockId::Boottime)).max(0) as u64
}

/// Samples both clocks now.
pub fn sample() -> Sample {
    let brackets: [(u64, i64, u64); BRACKETS] =
        std::array::from_fn(|_| (boot_ns(), ns(clock_gettime(ClockId::Realtime)), boot_ns()));
    best(&brackets)
}

/// The narrowest of brackets (boot before, wall, boot after); the wall time belongs to the middle.
fn best(brackets: &[(u64, i64, u64)]) -> Sample {
    let width = |b: &(u64, i64, u64)| b.2.saturating_sub(b.0);
    let (before, wall_ns, after) = brackets.iter().copied().min_by_key(width).unwrap_or((0, 0, 0));
    let width_ns = after.saturating_sub(before);
    Sample { boot_ns: before + width_ns / 2, wall_ns, width_ns }
}

/// The kernel's tick rate from two or more moments (boot ns, low 32 bits of jiffies), oldest first. `None` while they are
/// too close to tell the usual rates apart.
pub fn deduce_hz(samples: &[(BootNs, u32)]) -> Option<u32> {
    const RATES: [u32; 5] = [100, 250, 300, 500, 1000];
    let ((first_ns, first), (last_ns, last)) = (*samples.first()?, *samples.last()?);
    let span = last_ns.checked_sub(first_ns)?;
    let ticks = u64::from(last.wrapping_sub(first));
    // Each end is off by up to one tick; with 100 ticks of 300 Hz that is still nearer to 300 than to 250.
    if span < 400_000_000 {
        return None;
    }
    let rate = ticks.saturating_mul(1_000_000_000) / span;
    RATES.into_iter().find(|r| rate.abs_diff(u64::from(*r)) * 14 <= u64::from(*r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_bracket_wins() {
        let s = best(&[(100, 7, 900), (1000, 8, 1040), (2000, 9, 2500)]);
        assert_eq!(s, Sample { boot_ns: 1020, wall_ns: 8, width_ns: 40 });
    }

    #[test]
    fn live_samples_agree_with_each_other() {
        let (a, b) = (sample(), sample());
        assert!(a.boot_ns <= b.boot_ns && boot_ns() >= b.boot_ns);
        let offset = |s: Sample| s.wall_ns - s.boot_ns as i64;
        // Unless the clock is being set right now, the offset moves by less than the brackets are wide.
        let bound = (a.width_ns + b.width_ns + 1_000_000) as i64;
        assert!((offset(a) - offset(b)).abs() < bound, "{a:?} {b:?}");
    }

    #[test]
    fn hz_from_jiffies() {
        for hz in [100u32, 250, 300, 1000] {
            let tick = 1_000_000_000 / u64::from(hz);
            // Jiffies wrap 5 minutes after boot by design: start just below the wrap.
            let start = u32::MAX - 10;
            let at = |n: u32| (5_000_000_000 + u64::from(n) * tick, start.wrapping_add(n));
            assert_eq!(deduce_hz(&[at(0), at(hz)]), Some(hz));
            assert_eq!(deduce_hz(&[at(0), (at(hz).0 + tick - 1, at(hz).1)]), Some(hz), "{hz} late");
        }
        assert_eq!(deduce_hz(&[]), None);
        assert_eq!(deduce_hz(&[(0, 0)]), None);
        assert_eq!(deduce_hz(&[(0, 0), (1_000_000, 1)]), None, "too close");
        assert_eq!(deduce_hz(&[(0, 0), (1_000_000_000, 700)]), None, "no such rate");
        assert_eq!(deduce_hz(&[(9, 0), (3, 700)]), None, "backwards");
    }
}
