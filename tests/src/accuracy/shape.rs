//! What the verdicts of a play look like as a whole: by this a live play and a kept one are compared.

use crate::ledger::Claim;
use crate::tracer::Heard;
use std::collections::BTreeMap;

/// Cause, sub cause and mechanism, and how many verdicts have them.
pub(super) type Shape = BTreeMap<(&'static str, Option<String>, &'static str), usize>;

/// What has this share of one play's verdicts must be in the other as well. Below it are races that a play may win: more of
/// them decide about a mechanism (was it accepted yet?) than about a cause.
const OF_CAUSES: f64 = 0.4;
const OF_ALL: f64 = 0.6;

pub(super) fn of(claims: &[Claim]) -> Shape {
    let mut shape = Shape::new();
    for c in claims {
        *shape.entry((c.cause.id(), c.sub_cause.clone(), c.mechanism.id())).or_default() += 1;
    }
    shape
}

pub(super) fn of_heard(heard: &[Heard]) -> Shape {
    of(&heard.iter().map(|h| h.claim.clone()).collect::<Vec<_>>())
}

/// What only one of them has, and not as an exception; one line each.
pub(super) fn unlike(live: &Shape, kept: &Shape) -> Vec<String> {
    let causes = |shape: &Shape| -> Shape {
        let mut all = Shape::new();
        shape.iter().for_each(|((cause, sub, _), n)| *all.entry((*cause, sub.clone(), "any")).or_default() += n);
        all
    };
    let only = |one: &Shape, other: &Shape, share: f64, text: &str| -> Vec<String> {
        let all: usize = one.values().sum();
        let much = one.iter().filter(|(_, n)| **n as f64 >= share * all as f64);
        let missing = much.filter(|(key, _)| !other.contains_key(key));
        missing
            .map(|((cause, sub, mechanism), n)| {
                let sub = sub.as_deref().unwrap_or("none");
                let what = format!("{cause}, sub cause {sub}, mechanism {mechanism}");
                format!("{n} of {all} verdicts {text}: {what}: keep it anew (--record) if that is right")
            })
            .collect()
    };
    let both = |live: &Shape, kept: &Shape, share| {
        let new = only(live, kept, share, "are not like the recording's");
        [new, only(kept, live, share, "of the recording have no like")].concat()
    };
    [both(&causes(live), &causes(kept), OF_CAUSES), both(live, kept, OF_ALL)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_of_other_times_is_told() {
        let shape = |all: &[(&'static str, usize)]| -> Shape {
            all.iter().map(|(cause, n)| ((*cause, None, "closed-in-flight"), *n)).collect()
        };
        let live = shape(&[("a", 10), ("b", 10), ("race", 1)]);
        assert_eq!(unlike(&live, &shape(&[("a", 3), ("b", 30)])), Vec::<String>::new());
        assert_eq!(unlike(&live, &shape(&[("a", 10)])).len(), 1, "b is new");
        assert_eq!(unlike(&shape(&[("a", 10)]), &live).len(), 1, "b is not told any more");
        assert_eq!(unlike(&shape(&[]), &shape(&[("a", 1)])).len(), 2);
        let renamed: Shape = [(("a", Some("reload".into()), "closed-in-flight"), 10)].into();
        assert_eq!(unlike(&renamed, &shape(&[("a", 10)])).len(), 4);
        let queued: Shape = [(("a", None, "closed-in-flight"), 5), (("a", None, "reset-in-accept-queue"), 5)].into();
        assert_eq!(unlike(&queued, &shape(&[("a", 10)])), Vec::<String>::new(), "which of them was accepted is a race");
        let other: Shape = [(("a", None, "refused"), 10)].into();
        assert_eq!(unlike(&other, &shape(&[("a", 10)])).len(), 2);
    }
}
