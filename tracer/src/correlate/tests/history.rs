//! What is remembered over weeks, by hand.

use super::{S, task};
use crate::correlate::history::{History, sig};
use crate::model::event::{EventId, SI_USER, SigInfo, SignalGenerated, Task};

fn told(target: Task) -> SignalGenerated {
    SignalGenerated {
        signal: sig::TERM,
        code: SI_USER,
        si_pid: 1,
        info: SigInfo::Real,
        result: 0,
        group: true,
        sender: target.clone(),
        target,
    }
}

/// Containers come and go: what is left of them costs those that run neither their facts nor their certainty.
#[test]
fn signals_of_the_dead_are_no_loss_of_the_living() {
    let mut history = History::default();
    let (busy, quiet) = ((1, 0), (2, 0));
    let old = Task { tgid: 9_999, ..task() };
    history.signal(EventId(1), S, quiet, &told(old.clone()));
    for n in 0..50_000u32 {
        let at = u64::from(n + 2) * S;
        let passes = Task { tgid: 10_000 + n, ..task() };
        history.signal(EventId(2), at, (100 + u64::from(n), 0), &told(passes.clone()));
        history.exit(EventId(3), at, (100 + u64::from(n), 0), &passes, 0);
        history.signal(EventId(4), at, busy, &told(Task { tgid: 5_000 + n % 50, ..task() }));
    }
    let now = 50_001 * S;
    assert_eq!(history.losses(0, now, [busy, quiet]).count(), 0);
    assert_eq!(history.signals_to(&old.key()).len(), 1, "it still drains");
    let last = Task { tgid: 10_000 + 49_999, ..task() };
    assert_eq!(history.signals_to(&last.key()).len(), 1, "it ended a moment ago");
    assert_eq!(history.signals_to(&Task { tgid: 10_000, ..task() }.key()).len(), 0);
}
