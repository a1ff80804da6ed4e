//! Which sources of facts from outside the kernel could be asked, and when they could not.

use crate::model::BootNs;
use crate::model::input::{SourceFact, SourceState};
use std::collections::BTreeMap;

/// Sources kept; a node has a handful.
const MAX_SOURCES: usize = 64;

/// A time without it, which may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: BootNs,
    pub to: Option<BootNs>,
    /// Hostile.
    pub why: String,
}

#[derive(Debug, Default)]
struct Source {
    name: String,
    /// It has answered once: what never did is no source that is missed.
    known: bool,
    /// The last one.
    gap: Option<Gap>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Sources(BTreeMap<String, Source>);

impl Sources {
    pub fn observe(&mut self, fact: &SourceFact) {
        if self.0.len() >= MAX_SOURCES && !self.0.contains_key(&fact.source) {
            return;
        }
        let source = self.0.entry(fact.source.clone()).or_default();
        if !fact.name.is_empty() {
            source.name.clone_from(&fact.name);
        }
        match &fact.state {
            SourceState::Connected => {
                source.known = true;
                if let Some(gap) = &mut source.gap {
                    gap.to = gap.to.or(Some(fact.at));
                }
            }
            SourceState::Lost { why } => {
                source.gap = Some(Gap { from: fact.at, to: None, why: why.clone() });
            }
        }
    }

    /// Sources that could not be asked at some time of `from..=to`: where, what, when. One that never answered counts
    /// only when it is the only kind there is.
    pub fn missed(&self, from: BootNs, to: BootNs) -> impl Iterator<Item = (&str, &str, &Gap)> {
        let any = self.0.values().any(|s| s.known);
        self.0.iter().filter(move |(_, s)| s.known || !any).filter_map(move |(at, s)| {
            let gap = s.gap.as_ref().filter(|g| g.from <= to && g.to.is_none_or(|end| end >= from))?;
            Some((at.as_str(), s.name.as_str(), gap))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(at: BootNs, source: &str, state: SourceState) -> SourceFact {
        SourceFact { at, source: source.into(), name: String::new(), state }
    }

    #[test]
    fn a_gap_counts_where_it_touches() {
        let mut s = Sources::default();
        let lost = || SourceState::Lost { why: "gone".into() };
        s.observe(&fact(1, "a", SourceState::Connected));
        s.observe(&fact(2, "never", lost()));
        s.observe(&fact(10, "a", lost()));
        let touched = |s: &Sources, from, to| s.missed(from, to).map(|(at, ..)| at.to_owned()).collect::<Vec<_>>();
        assert_eq!(touched(&s, 3, 9), Vec::<String>::new());
        assert_eq!(touched(&s, 3, 10), ["a"]);
        assert_eq!(touched(&s, 50, 60), ["a"], "it goes on");
        s.observe(&fact(20, "a", SourceState::Connected));
        assert_eq!(touched(&s, 15, 60), ["a"]);
        assert_eq!(touched(&s, 21, 60), Vec::<String>::new());
    }

    #[test]
    fn one_that_never_answered_is_told_when_there_is_no_other() {
        let mut s = Sources::default();
        s.observe(&fact(2, "only", SourceState::Lost { why: "no".into() }));
        assert_eq!(s.missed(3, 4).count(), 1);
        s.observe(&fact(3, "other", SourceState::Connected));
        assert_eq!(s.missed(3, 4).count(), 0);
    }

    #[test]
    fn bounded() {
        let mut s = Sources::default();
        (0..1000).for_each(|n| s.observe(&fact(n, &n.to_string(), SourceState::Connected)));
        assert_eq!(s.0.len(), MAX_SOURCES);
    }
}
