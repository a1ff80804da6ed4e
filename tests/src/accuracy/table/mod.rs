//! All scenarios. Each produces its cause; what else is lost on the way is judged as well.

pub(super) mod absent;
mod children;
mod connects;
mod controls;
mod ended;
mod inits;
mod loads;
mod nginx;
mod php;
mod queues;
mod races;
pub(super) mod upstream;
mod way;
mod worker;

use super::scenario::Scenario;

/// Every scenario that has a cause, and then the controls.
pub fn all() -> Vec<&'static Scenario> {
    [
        nginx::ALL,
        worker::ALL,
        connects::ALL,
        way::ALL,
        races::ALL,
        php::ALL,
        queues::ALL,
        children::ALL,
        absent::ALL,
        ended::ALL,
        inits::ALL,
        upstream::ALL,
        controls::ALL,
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub fn named(name: &str) -> Option<&'static Scenario> {
    all().into_iter().find(|s| s.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::Draw;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_files() {
        let names: BTreeSet<_> = all().iter().map(|s| s.name).collect();
        assert_eq!(names.len(), all().len());
        assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')));
    }

    #[test]
    fn a_fitted_draw_stays_as_it_is() {
        for (scenario, n) in all().into_iter().flat_map(|s| (0..30).map(move |n| (s, n))) {
            let once = scenario.fitted(Draw::nth(n));
            let twice = scenario.fitted(once.clone());
            assert_eq!(format!("{once:?}"), format!("{twice:?}"), "{}", scenario.name);
        }
    }
}
