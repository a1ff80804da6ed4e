//! Which cgroups were told to stop, and when to look at what the kernel side counts of them.

use crate::model::BootNs;
use crate::model::event::{Event, EventKind, SignalGenerated};
use crate::model::input::StopCounters;
use std::collections::BTreeMap;

const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGTERM: u32 = 15;
/// A look this often, ns; the older a stop is the seldomer, since its end is seen as well.
const EVERY: u64 = 250_000_000;
const OLDER: u64 = 64;
/// The kernel side takes the next signal for another stop after this time, ns.
const LIFE: u64 = 3_600_000_000_000;
/// As many as its map holds.
const MOST: usize = 1024;

#[derive(Debug)]
struct Watched {
    /// The signal that made us look.
    since: BootNs,
    next: BootNs,
    given: Option<StopCounters>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    cgroups: BTreeMap<u64, Watched>,
}

impl Watch {
    pub(super) fn observe(&mut self, event: &Event) {
        match &event.kind {
            EventKind::SignalGenerated(s) if is_stop(s) => {
                let watched = self.cgroups.entry(s.target.cgroup);
                watched.or_insert(Watched { since: event.at, next: 0, given: None }).next = 0;
                self.bound();
            }
            // Its last figures are wanted soon.
            EventKind::Exited { task, .. } => {
                if let Some(watched) = self.cgroups.get_mut(&task.cgroup) {
                    watched.next = 0;
                }
            }
            _ => {}
        }
    }

    /// Everything is due: the end of the observation.
    pub(super) fn hurry(&mut self) {
        self.cgroups.values_mut().for_each(|w| w.next = 0);
    }

    /// Looks where it is time to; gives what changed. `read` gives the counters of a cgroup, `None` when the kernel side
    /// has none: the signal was no stop for it.
    pub(super) fn due<E>(
        &mut self,
        now: BootNs,
        mut read: impl FnMut(u64) -> Result<Option<StopCounters>, E>,
    ) -> Result<Vec<StopCounters>, E> {
        let mut changed = Vec::new();
        let mut over = Vec::new();
        for (cgroup, watched) in self.cgroups.iter_mut().filter(|(_, w)| w.next <= now) {
            let age = now.saturating_sub(watched.since);
            watched.next = now + EVERY.max(age / OLDER);
            match read(*cgroup)? {
                None => over.push(*cgroup),
                Some(_) if age > LIFE => over.push(*cgroup),
                Some(counters) => {
                    // All but the time of the look.
                    let same =
                        watched.given.as_ref().is_some_and(|g| StopCounters { at: g.at, ..counters.clone() } == *g);
                    if !same {
                        watched.given = Some(counters.clone());
                        changed.push(counters);
                    }
                }
            }
        }
        self.cgroups.retain(|cgroup, _| !over.contains(cgroup));
        Ok(changed)
    }

    fn bound(&mut self) {
        if self.cgroups.len() > MOST
            && let Some(oldest) = self.cgroups.iter().min_by_key(|(_, w)| w.since).map(|(cgroup, _)| *cgroup)
        {
            self.cgroups.remove(&oldest);
        }
    }
}

/// What may have made an entry on the kernel side, which knows more of it.
fn is_stop(s: &SignalGenerated) -> bool {
    [SIGINT, SIGQUIT, SIGTERM].contains(&s.signal) && s.result == 0 && s.target.cgroup > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventId;
    use crate::model::event::{SigInfo, Task};

    const MS: u64 = 1_000_000;
    const S: u64 = 1000 * MS;

    fn task(cgroup: u64) -> Task {
        Task {
            tgid: 5,
            pid: 5,
            ns_pid: 1,
            ppid: 1,
            uid: 0,
            pidns: 2,
            netns: 3,
            flags: 0,
            cgroup,
            cgroup_v1: 0,
            start_ns: 1,
            comm: "nginx".into(),
        }
    }

    fn event(at: BootNs, kind: EventKind) -> Event {
        Event { id: EventId(1), at, cpu: 0, quality: 0, kind }
    }

    fn signal(at: BootNs, signal: u32, result: u32, cgroup: u64) -> Event {
        let (sender, target) = (task(9), task(cgroup));
        let s =
            SignalGenerated { signal, code: 0, si_pid: 0, info: SigInfo::Real, result, group: true, sender, target };
        event(at, EventKind::SignalGenerated(s))
    }

    fn counters(at: BootNs, cgroup: u64, accepted_after: u64) -> StopCounters {
        let (last_accept, last_answered) = (None, None);
        StopCounters { at, cgroup, signal_at: S, accepted_after, last_accept, answered_after: 0, last_answered }
    }

    /// Accepted counts given at `now`, with the kernel side counting `accepted` for cgroup 7 and knowing no other.
    fn look(watch: &mut Watch, now: BootNs, accepted: u64) -> Vec<u64> {
        let read = |cgroup| Ok::<_, ()>((cgroup == 7).then(|| counters(now, cgroup, accepted)));
        watch.due(now, read).unwrap().iter().map(|c| c.accepted_after).collect()
    }

    #[test]
    fn given_at_once_then_when_it_changed() {
        let mut watch = Watch::default();
        assert_eq!(look(&mut watch, S, 0), [0u64; 0]);
        watch.observe(&signal(S, 15, 0, 7));
        assert_eq!(look(&mut watch, S + 10 * MS, 0), [0], "nothing counted is a figure as well");
        assert_eq!(look(&mut watch, S + 100 * MS, 3), [0u64; 0], "not yet");
        assert_eq!(look(&mut watch, S + 270 * MS, 3), [3]);
        assert_eq!(look(&mut watch, S + 530 * MS, 3), [0u64; 0], "the same");
        watch.observe(&event(S + 540 * MS, EventKind::Exited { task: task(7), code: 0 }));
        assert_eq!(look(&mut watch, S + 550 * MS, 4), [4], "at once after an exit");
        watch.hurry();
        assert_eq!(look(&mut watch, S + 560 * MS, 5), [5]);
    }

    #[test]
    fn old_stops_are_looked_at_seldom_and_forgotten() {
        let mut watch = Watch::default();
        watch.observe(&signal(S, 3, 0, 7));
        assert_eq!(look(&mut watch, 601 * S, 1), [1]);
        assert_eq!(look(&mut watch, 609 * S, 2), [0u64; 0]);
        assert_eq!(look(&mut watch, 611 * S, 2), [2]);
        assert_eq!(look(&mut watch, 2 * S + LIFE, 3), [0u64; 0]);
        assert!(watch.cgroups.is_empty());
    }

    #[test]
    fn what_is_no_stop_is_not_watched() {
        let mut watch = Watch::default();
        for (number, result, cgroup) in [(9, 0, 7), (15, 1, 7), (15, 2, 7), (15, 0, 1), (15, 0, 0)] {
            watch.observe(&signal(S, number, result, cgroup));
        }
        assert!(watch.cgroups.is_empty());
        watch.observe(&signal(S, 2, 0, 8));
        assert_eq!(look(&mut watch, S, 1), [0u64; 0]);
        assert!(watch.cgroups.is_empty(), "the kernel side knew better");
        (0..2000).for_each(|n| watch.observe(&signal(S + n, 15, 0, 100 + n)));
        assert_eq!(watch.cgroups.len(), MOST);
    }

    #[test]
    fn an_error_is_passed_on() {
        let mut watch = Watch::default();
        watch.observe(&signal(S, 15, 0, 7));
        assert_eq!(watch.due(S, |_| Err(3)), Err(3));
    }
}
