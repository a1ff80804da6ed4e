//! Small bookkeeping over events: which cgroups they name, which were seen, how fast the kernel ticks.

use crate::kernel::clock::{self, Sample};
use crate::model::event::{Event, EventKind, Task};
use crate::model::input::Hierarchy;
use crate::model::{BootNs, Input};
use std::collections::{HashSet, VecDeque};

/// The cgroup ids that an event names, without 0 (unknown).
pub(super) fn cgroups(event: &Event) -> Vec<(Hierarchy, u64)> {
    let mut ids = Vec::with_capacity(4);
    let mut task = |t: &Task| ids.extend([(Hierarchy::V2, t.cgroup), (Hierarchy::V1, t.cgroup_v1)]);
    match &event.kind {
        EventKind::SignalGenerated(s) => {
            task(&s.sender);
            task(&s.target);
        }
        EventKind::Forked { parent, child } => {
            task(parent);
            task(child);
        }
        EventKind::SignalDelivered(s) => task(&s.task),
        EventKind::Execed(e) => task(&e.task),
        EventKind::Exited { task: t, .. } | EventKind::OomVictim { task: t } => task(t),
        EventKind::TcpState(s) => {
            task(&s.task);
            ids.push((Hierarchy::V2, s.sk_cgroup));
        }
        EventKind::ResetSent(r) => {
            task(&r.task);
            ids.push((Hierarchy::V2, r.sk_cgroup));
            ids.extend(r.digest.iter().map(|d| (Hierarchy::V2, d.sk_cgroup)));
        }
        EventKind::ResetReceived(n) | EventKind::SynRetransmitted(n) => ids.push((Hierarchy::V2, n.sk_cgroup)),
        EventKind::UnixDropped(d) => {
            task(&d.task);
            ids.extend([(Hierarchy::V2, d.server_cgroup), (Hierarchy::V2, d.client_cgroup)]);
        }
        EventKind::UnixRefused(r) => task(&r.task),
        EventKind::NginxLogged(l) => task(&l.task),
        EventKind::NginxErrorPage(p) => task(&p.task),
    }
    ids.retain(|(_, id)| *id != 0);
    ids
}

/// cgroups whose facts were given. Bounded: one that was pushed out is given again, which is harmless.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: HashSet<(Hierarchy, u64)>,
    order: VecDeque<(Hierarchy, u64)>,
}

impl Seen {
    const MOST: usize = 32_768;

    /// True the first time.
    pub(super) fn first(&mut self, hierarchy: Hierarchy, id: u64) -> bool {
        if !self.known.insert((hierarchy, id)) {
            return false;
        }
        self.order.push_back((hierarchy, id));
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Boot ↔ wall samples: every ten seconds, and at once when the wall clock was set.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    given: Option<Sample>,
}

impl Clocks {
    const EVERY: u64 = 10_000_000_000;
    /// NTP slews both clocks alike: a change of this size, ns, is somebody setting the wall clock.
    const STEP: u64 = 1_000_000;

    /// The sample as an input, when one is due.
    pub(super) fn due(&mut self, sample: Sample) -> Option<Input> {
        let offset = |s: Sample| s.wall_ns.saturating_sub_unsigned(s.boot_ns);
        // A bracket as wide as that was interrupted and tells nothing.
        let stepped =
            |given: Sample| sample.width_ns < Self::STEP / 2 && offset(sample).abs_diff(offset(given)) > Self::STEP;
        let due = self.given.is_none_or(|g| sample.boot_ns.saturating_sub(g.boot_ns) >= Self::EVERY || stepped(g));
        due.then(|| {
            self.given = Some(sample);
            Input::Clock { at: sample.boot_ns, wall_ns: sample.wall_ns }
        })
    }
}

/// The kernel's tick rate, from the jiffies that records carry.
#[derive(Debug, Default)]
pub(super) struct Hz {
    first: Option<(BootNs, u32)>,
    last: Option<(BootNs, u32)>,
}

impl Hz {
    pub(super) fn add(&mut self, at: BootNs, jiffies: u32) {
        // At 1000 Hz jiffies wrap after 49 days: start again long before that.
        if self.first.is_none_or(|(first, _)| at.saturating_sub(first) > 86_400_000_000_000) {
            self.first = Some((at, jiffies));
        }
        self.last = Some((at, jiffies));
    }

    pub(super) fn rate(&self) -> Option<u32> {
        clock::deduce_hz(&[self.first?, self.last?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_new_once_and_again_after_it_was_pushed_out() {
        let mut seen = Seen::default();
        assert!(seen.first(Hierarchy::V2, 7) && !seen.first(Hierarchy::V2, 7));
        assert!(seen.first(Hierarchy::V1, 7), "ids of the hierarchies are apart");
        (0..Seen::MOST as u64).for_each(|i| {
            seen.first(Hierarchy::V2, 1000 + i);
        });
        assert!(seen.first(Hierarchy::V2, 7));
        assert_eq!(seen.order.len(), Seen::MOST);
        assert_eq!(seen.known.len(), Seen::MOST);
    }

    #[test]
    fn a_clock_sample_every_ten_seconds_and_at_a_step() {
        let mut clocks = Clocks::default();
        let mut due = |ms: u64, offset_ms: i64, width_ns| {
            let boot_ns = ms * 1_000_000;
            let wall_ns = boot_ns as i64 + offset_ms * 1_000_000;
            clocks.due(Sample { boot_ns, wall_ns, width_ns }).is_some()
        };
        assert!(due(0, 50, 300));
        assert!(!due(9_999, 50, 300));
        assert!(due(10_000, 50, 300));
        assert!(!due(10_050, 51, 300), "a millisecond is no step");
        assert!(due(10_100, 60, 300), "the wall clock was set");
        assert!(!due(10_150, 60, 300), "told once");
        assert!(!due(10_200, 70, 2_000_000), "an interrupted bracket is no step");
        assert!(due(10_250, -3_600_000, 300), "and back");
    }

    #[test]
    fn the_tick_rate_needs_two_moments() {
        let mut hz = Hz::default();
        assert_eq!(hz.rate(), None);
        hz.add(1_000_000_000, 500);
        assert_eq!(hz.rate(), None);
        hz.add(3_000_000_000, 1000);
        assert_eq!(hz.rate(), Some(250));
    }
}
