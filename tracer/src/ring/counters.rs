//! The probes' own counters: what they could not send, and the totals for the end summary. Never reset.

use crate::model::BootNs;
use crate::model::input::{LossFact, LossKind};
use crate::probes::plan::PLAN;
use aya::maps::{MapData, MapError, PerCpuArray};
use why502_ebpf::counter as c;

/// What one hook did since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookTotals {
    pub hook: String,
    /// The hook ran.
    pub seen: u64,
    /// Records written.
    pub sent: u64,
    /// Left out by the cgroup filter.
    pub skipped: u64,
    /// Left out by rule: threads, masked signals, inner TCP states.
    pub uninteresting: u64,
    /// Connections that ended with their answer sent.
    pub answered: u64,
    /// Records lost because the ring was full.
    pub lost_ring: u64,
    /// Map updates that failed.
    pub lost_map: u64,
    pub bad_arg: u64,
    /// Runs that the kernel skipped; `None` where it does not count them (before 5.12).
    pub recursion: Option<u64>,
    /// Time that the program took, ns; `None` while the kernel's statistics are off.
    pub run_ns: Option<u64>,
}

/// Turns growing counters into what was added since the last look.
#[derive(Debug, Default)]
pub struct Deltas {
    last: std::collections::BTreeMap<(usize, LossKind), u64>,
}

impl Deltas {
    /// What was added since the last call for this hook and kind; a counter never shrinks.
    pub fn take(&mut self, hook: usize, kind: LossKind, now: u64) -> u64 {
        let last = self.last.entry((hook, kind)).or_insert(0);
        let added = now.saturating_sub(*last);
        *last = now.max(*last);
        added
    }
}

/// Reads the COUNTERS map.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
    deltas: Deltas,
    looked: BootNs,
}

/// Which counters are losses, and what kind.
const LOSSES: [(u32, LossKind); 3] =
    [(c::LOST_RING, LossKind::RingFull), (c::LOST_MAP, LossKind::MapFull), (c::BAD_ARG, LossKind::BadArgument)];

impl Counters {
    /// `started`: when the first probe was attached, the begin of the first loss interval.
    pub fn new(map: PerCpuArray<MapData, u64>, started: BootNs) -> Counters {
        Counters { map, deltas: Deltas::default(), looked: started }
    }

    fn sum(&self, hook: usize, counter: u32) -> Result<u64, MapError> {
        let index = hook as u32 * c::PER_HOOK + counter;
        Ok(self.map.get(&index, 0)?.iter().fold(0, |sum, v| sum.wrapping_add(*v)))
    }

    /// Losses since the last call. `recursion`: misses per hook in the order of the plan, where they were read now.
    pub fn losses(&mut self, now: BootNs, recursion: Option<&[Option<u64>]>) -> Result<Vec<LossFact>, MapError> {
        let mut facts = Vec::new();
        let from = std::mem::replace(&mut self.looked, now);
        for (hook, row) in PLAN.iter().enumerate() {
            let mut counted: Vec<(LossKind, u64)> = Vec::with_capacity(4);
            for (counter, kind) in LOSSES {
                counted.push((kind, self.sum(hook, counter)?));
            }
            let misses = recursion.and_then(|r| r.get(hook).copied().flatten());
            counted.extend(misses.map(|m| (LossKind::Recursion, m)));
            for (kind, total) in counted {
                let count = self.deltas.take(hook, kind, total);
                if count > 0 {
                    facts.push(LossFact { from, to: now, hook: row.name().to_owned(), kind, count });
                }
            }
        }
        Ok(facts)
    }

    /// Everything since the start.
    pub fn totals(&self, recursion: &[Option<u64>]) -> Result<Vec<HookTotals>, MapError> {
        let totals = |(hook, row): (usize, &crate::probes::plan::Row)| {
            Ok(HookTotals {
                hook: row.name().to_owned(),
                seen: self.sum(hook, c::SEEN)?,
                sent: self.sum(hook, c::SENT)?,
                skipped: self.sum(hook, c::SKIPPED)?,
                uninteresting: self.sum(hook, c::UNINTERESTING)?,
                answered: self.sum(hook, c::ANSWERED)?,
                lost_ring: self.sum(hook, c::LOST_RING)?,
                lost_map: self.sum(hook, c::LOST_MAP)?,
                bad_arg: self.sum(hook, c::BAD_ARG)?,
                recursion: recursion.get(hook).copied().flatten(),
                run_ns: None,
            })
        };
        PLAN.iter().enumerate().map(totals).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_add_up_and_never_shrink() {
        let mut d = Deltas::default();
        let seen: Vec<u64> = [3, 3, 10, 4, 11].map(|n| d.take(0, LossKind::RingFull, n)).into();
        assert_eq!(seen, [3, 0, 7, 0, 1]);
        assert_eq!(d.take(1, LossKind::RingFull, 5), 5, "hooks are apart");
        assert_eq!(d.take(0, LossKind::MapFull, 5), 5, "kinds are apart");
    }
}
