//! What the verdicts of a play look like as a whole: by this a live play and a kept one are compared.

use crate::ledger::Claim;
use crate::tracer::Heard;
use std::collections::BTreeMap;

/// Mechanism, cause and sub cause, and how many verdicts have them.
pub(super) type Shape = BTreeMap<(&'static str, &'static str, Option<String>), usize>;

/// What has this share of one play's verdicts must be in the other as well. Below it are races that a play may win.
const SHARE: f64 = 0.25;

pub(super) fn of(claims: &[Claim]) -> Shape {
    let mut shape = Shape::new();
    for c in claims {
        *shape.entry((c.mechanism.id(), c.cause.id(), c.sub_cause.clone())).or_default() += 1;
    }
    shape
}

pub(super) fn of_heard(heard: &[Heard]) -> Shape {
    of(&heard.iter().map(|h| h.claim.clone()).collect::<Vec<_>>())
}

/// What only one of them has, and not as an exception; one line each.
pub(super) fn unlike(live: &Shape, kept: &Shape) -> Vec<String> {
    let only = |one: &Shape, other: &Shape, text: &str| -> Vec<String> {
        let all: usize = one.values().sum();
        let much = one.iter().filter(|(_, n)| **n as f64 >= SHARE * all as f64);
        let missing = much.filter(|(key, _)| !other.contains_key(key));
        let line = |((mechanism, cause, sub), n): (&(&str, &str, Option<String>), &usize)| {
            let sub = sub.as_deref().unwrap_or("-");
            format!(
                "{n} of {all} verdicts {text}: {mechanism}, {cause}, {sub}: keep it anew (--record) if that is right"
            )
        };
        missing.map(line).collect()
    };
    [only(live, kept, "are not like the recording's"), only(kept, live, "of the recording have no like")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_of_other_times_is_told() {
        let shape = |all: &[(&'static str, usize)]| -> Shape {
            all.iter().map(|(cause, n)| (("closed-in-flight", *cause, None), *n)).collect()
        };
        let live = shape(&[("a", 10), ("b", 10), ("race", 1)]);
        assert_eq!(unlike(&live, &shape(&[("a", 3), ("b", 30)])), Vec::<String>::new());
        assert_eq!(unlike(&live, &shape(&[("a", 10)])).len(), 1, "b is new");
        assert_eq!(unlike(&shape(&[("a", 10)]), &live).len(), 1, "b is not told any more");
        assert_eq!(unlike(&shape(&[]), &shape(&[("a", 1)])).len(), 1);
        let renamed: Shape = [(("closed-in-flight", "a", Some("reload".into())), 10)].into();
        assert_eq!(unlike(&renamed, &shape(&[("a", 10)])).len(), 2);
    }
}
