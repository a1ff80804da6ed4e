//! What runtimes say about containers: it adds up, and what was said first stays.

use crate::model::BootNs;
use crate::model::input::ContainerFact;
use std::collections::{BTreeMap, BTreeSet};

/// Adds what is not known yet. Names are frozen: a container that is renamed keeps the name it was seen with. A number of
/// restarts is the latest one's.
pub(super) fn add(to: &mut ContainerFact, more: &ContainerFact) {
    fn fill<T: Clone>(to: &mut Option<T>, more: &Option<T>) {
        if to.is_none() {
            to.clone_from(more);
        }
    }
    if to.at == 0 {
        to.at = more.at;
    }
    fill(&mut to.runtime, &more.runtime);
    fill(&mut to.name, &more.name);
    fill(&mut to.image, &more.image);
    fill(&mut to.pod, &more.pod);
    fill(&mut to.stop_signal, &more.stop_signal);
    fill(&mut to.spec, &more.spec);
    if more.seen_at >= to.seen_at && more.restarts.is_some() {
        to.restarts = more.restarts;
    }
    if to.labels.is_empty() {
        to.labels.clone_from(&more.labels);
    }
}

/// Facts of containers whose cgroup was not seen yet: a runtime tells of a container before it starts it.
#[derive(Debug)]
pub(super) struct Waiting {
    facts: BTreeMap<String, ContainerFact>,
    /// The same, by when they came.
    order: BTreeSet<(BootNs, String)>,
    max: usize,
}

impl Waiting {
    pub(super) fn new(max: usize) -> Self {
        Waiting { facts: BTreeMap::new(), order: BTreeSet::new(), max: max.max(1) }
    }

    pub(super) fn put(&mut self, fact: &ContainerFact) {
        if let Some(known) = self.facts.get_mut(&fact.id) {
            return add(known, fact);
        }
        self.order.insert((fact.seen_at, fact.id.clone()));
        self.facts.insert(fact.id.clone(), fact.clone());
        if self.facts.len() > self.max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            // Most of them were never started, or have ended long ago: nothing is missed.
            self.facts.remove(&oldest);
        }
    }

    pub(super) fn take(&mut self, id: &str) -> Option<ContainerFact> {
        let fact = self.facts.remove(id)?;
        self.order.remove(&(fact.seen_at, fact.id.clone()));
        Some(fact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(seen_at: BootNs, id: &str, name: Option<&str>) -> ContainerFact {
        ContainerFact { seen_at, id: id.into(), name: name.map(Into::into), ..ContainerFact::default() }
    }

    #[test]
    fn the_first_name_stays_and_gaps_are_filled() {
        let mut said = fact(1, "a", Some("web"));
        add(
            &mut said,
            &ContainerFact { image: Some("nginx".into()), restarts: Some(1), ..fact(2, "a", Some("renamed")) },
        );
        add(&mut said, &ContainerFact { restarts: Some(2), ..fact(3, "a", None) });
        let told = (said.name.as_deref(), said.image.as_deref(), said.restarts);
        assert_eq!(told, (Some("web"), Some("nginx"), Some(2)));
    }

    #[test]
    fn bounded_and_the_oldest_goes() {
        let mut w = Waiting::new(10);
        (0..1000).for_each(|n| w.put(&fact(n, &n.to_string(), None)));
        w.put(&fact(5000, "999", Some("again")));
        assert_eq!((w.facts.len(), w.order.len()), (10, 10));
        assert!(w.take("989").is_none());
        assert_eq!(w.take("999").and_then(|f| f.name).as_deref(), Some("again"));
        assert_eq!((w.facts.len(), w.order.len()), (9, 9));
    }
}
