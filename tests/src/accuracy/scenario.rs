//! A scenario: a pod, its load, what is done to it, and which causes are then right for which lost request.

use super::layout::Draw;
use crate::guard::boot_ns;
use crate::ledger::Claim;
use crate::load::Request;
use crate::nginx::Upstream;
use crate::php::Served;
use crate::scene::{Loads, Scene};
use crate::site::{Site, SiteConf};
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use why502::model::incident::Cause;

pub struct Scenario {
    pub name: &'static str,
    /// What it is there to provoke. `None`: a control, of which nothing is the server's fault.
    pub cause: Option<Cause>,
    /// Which every verdict of that cause must have; one may have none that says what it would have to know.
    pub sub_cause: Option<&'static str>,
    /// Sets what of a draw is not free here.
    pub fit: fn(&mut Draw),
    pub site: fn(&Draw) -> SiteConf,
    pub loads: fn(&Draw, &Site) -> Loads,
    pub act: fn(&Scene, &Draw, &Marks) -> Result<()>,
    /// Statuses that an nginx before the failed server makes of its failure.
    pub made: &'static [u16],
    pub truth: fn(&Known, &Request, bool) -> &'static [Cause],
}

impl Scenario {
    /// The cause is right and its sub cause another one.
    pub fn wrong_sub_cause(&self, claim: &Claim) -> bool {
        let told = claim.sub_cause.is_some() || claim.missing.is_empty();
        self.cause == Some(claim.cause) && told && self.sub_cause.is_some_and(|s| claim.sub_cause.as_deref() != Some(s))
    }
}

/// Times that the harness itself took while it acted: truth may rest on them.
#[derive(Debug, Default)]
pub struct Marks(Mutex<BTreeMap<String, u64>>);

impl Marks {
    pub fn of(marks: BTreeMap<String, u64>) -> Self {
        Self(Mutex::new(marks))
    }

    pub fn set(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), boot_ns());
    }

    /// CLOCK_BOOTTIME, ns.
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// CLOCK_BOOTTIME, ns.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }
}

/// What truth may look at beside the request.
pub struct Known<'a> {
    pub draw: &'a Draw,
    pub marks: &'a Marks,
    /// What the php scripts wrote down.
    pub served: &'a [Served],
    /// What nginx wrote down of what it could not pass on.
    pub upstream: &'a BTreeMap<String, Upstream>,
}

impl Known<'_> {
    /// The request went out before this time; without the mark nothing did.
    pub fn sent_before(&self, r: &Request, mark: &str) -> bool {
        self.marks.get(mark).zip(r.t_sent).is_some_and(|(mark, sent)| sent < mark)
    }

    /// Its connection was begun after this time.
    pub fn begun_after(&self, r: &Request, mark: &str) -> bool {
        self.marks.get(mark).is_some_and(|mark| r.t_connect > mark)
    }
}

impl Scenario {
    /// What it is about is seen by probes in nginx only.
    pub fn by_uprobes(&self) -> bool {
        super::table::upstream::ALL.iter().any(|s| s.name == self.name)
    }

    /// The draw, as far as this scenario leaves it free.
    pub fn fitted(&self, mut draw: Draw) -> Draw {
        (self.fit)(&mut draw);
        if draw.layout.together {
            draw.layout.tini = false;
        }
        draw
    }
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
