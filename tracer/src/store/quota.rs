//! A container's share of the store: one that loses requests on purpose must not push its neighbours' incidents out.

use crate::model::{BootNs, Output};
use std::collections::BTreeMap;

/// Records of one container that are kept in an hour: far more than a stop under load loses, and a tenth of the store.
pub const PER_HOUR: u64 = 5_000;
/// Of them for stops alone: a stop comes after the requests that it cost, and tells how many they were.
pub const FOR_STOPS: u64 = 100;
/// Containers that are told apart; what is more has one share together.
const CONTAINERS: usize = 4_096;
const HOUR: u64 = 3_600_000_000_000;

/// Counts what was kept in this hour.
#[derive(Debug, Default)]
pub struct Quota {
    hour: u64,
    kept: BTreeMap<String, u64>,
}

impl Quota {
    /// False: it is too much, and not to be kept.
    pub fn takes(&mut self, output: &Output, now: BootNs) -> bool {
        if self.hour != now / HOUR {
            self.hour = now / HOUR;
            self.kept.clear();
        }
        let (container, most) = match output {
            Output::Incident(incident) => (&incident.container, PER_HOUR - FOR_STOPS),
            Output::Stop(stop) => (&stop.container, PER_HOUR),
        };
        let id = container.as_ref().map(|container| container.id.clone()).unwrap_or_default();
        let fits = self.kept.len() < CONTAINERS || self.kept.contains_key(&id);
        let kept = self.kept.entry(if fits { id } else { String::new() }).or_default();
        let takes = *kept < most;
        *kept += u64::from(takes);
        takes
    }
}
