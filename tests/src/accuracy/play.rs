//! Plays one or several scenarios at the same moment, each with a pod of its own.

use super::layout::Draw;
use super::scenario::{Known, Marks, Scenario};
use crate::guard::boot_ns;
use crate::ledger::{self, Claim, Comparison, Rules};
use crate::load::Request;
use crate::memory::Limit;
use crate::nginx::Upstream;
use crate::php::Served;
use crate::scene::{Over, Scene};
use crate::site::{Site, Territory};
use crate::supervised;
use crate::tracer::Heard;
use crate::truth;
use anyhow::{Context, Result, anyhow};
use std::collections::{BTreeMap, HashSet};
use why502::model::incident::{Cause, Mechanism};

/// Who plays what.
#[derive(Clone, Debug)]
pub struct Part {
    pub scenario: &'static Scenario,
    pub draw: Draw,
}

impl Part {
    pub fn new(scenario: &'static Scenario, draw: Draw) -> Self {
        Self { draw: scenario.fitted(draw), scenario }
    }
}

impl Part {
    /// What this machine lacks for it, or `None`.
    pub fn why_not(&self) -> Option<String> {
        let layout = &self.draw.layout;
        let tini =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|d| d.join("tini").is_file());
        if let (Some(Cause::OomKilled), Some(why)) = (self.scenario.cause, Limit::lacks()) {
            return Some(why);
        }
        if self.scenario.by_uprobes() && !layout.uprobes {
            return Some("only probes in nginx see it".into());
        }
        match (layout.together, layout.tini) {
            (true, _) => supervised::binary().err().map(|e| e.to_string()),
            (false, true) if !tini => Some("tini is not installed (apt-get install tini)".into()),
            _ => None,
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]", self.scenario.name, self.draw)
    }
}

/// A part that is over. Its site still stands.
#[derive(Debug)]
pub struct Played {
    pub part: Part,
    pub over: Over,
    pub marks: Marks,
    served: Vec<Served>,
    upstream: BTreeMap<String, Upstream>,
}

/// Everything that the comparison needs, also when the site is gone.
#[derive(Debug)]
pub struct Ledgers {
    pub part: Part,
    pub requests: Vec<Request>,
    pub marks: Marks,
    pub(super) seen: HashSet<String>,
    pub(super) served: Vec<Served>,
    pub(super) upstream: BTreeMap<String, Upstream>,
    pub(super) territory: Territory,
    /// Incidents of this part are of the time from the site's start to its end, boot ns.
    pub from: u64,
    pub to: u64,
    pub(super) pod: String,
    /// Requests beside these that were answered.
    pub(super) answered: usize,
}

/// Starts the sites, then what watches them, then the load; acts on all of them at once.
pub fn play(parts: &[Part], sites_stand: impl FnOnce(&[Site]) -> Result<()>) -> Result<Vec<Played>> {
    let sites: Vec<Site> = parts
        .iter()
        .map(|p| Site::start(&(p.scenario.site)(&p.draw)).with_context(|| p.to_string()))
        .collect::<Result<_>>()?;
    sites_stand(&sites)?;
    let mut scenes = Vec::new();
    for (part, site) in parts.iter().zip(sites) {
        let loads = (part.scenario.loads)(&part.draw, &site);
        scenes.push((part, Scene::start(site, &loads).with_context(|| part.to_string())?, Marks::default()));
    }
    std::thread::scope(|scope| {
        let acts: Vec<_> = scenes
            .iter()
            .map(|(part, scene, marks)| scope.spawn(move || (part.scenario.act)(scene, &part.draw, marks)))
            .collect();
        for (act, part) in acts.into_iter().zip(parts) {
            act.join().map_err(|_| anyhow!("the act of {part} panicked"))?.with_context(|| part.to_string())?;
        }
        anyhow::Ok(())
    })?;
    let end = |(part, scene, marks): (&Part, Scene, Marks)| {
        let over = scene.end()?;
        Ok(Played {
            part: part.clone(),
            served: over.site.served()?,
            upstream: over.site.upstream_errors()?,
            over,
            marks,
        })
    };
    scenes.into_iter().map(end).collect()
}

impl Played {
    pub fn lost(&self) -> usize {
        self.over.lost(self.part.scenario.made)
    }

    /// Which causes are right for a request; `started`: a script has begun it.
    pub fn allowed(&self, r: &Request, started: bool) -> &'static [Cause] {
        let known = Known { draw: &self.part.draw, marks: &self.marks, served: &self.served, upstream: &self.upstream };
        (self.part.scenario.truth)(&known, r, started)
    }

    /// The site, and what is known of it. `from`: a time before it was started.
    pub fn ledgers(self, from: u64) -> Result<(Ledgers, Site)> {
        let Self { part, over: Over { site, requests }, marks, served, upstream } = self;
        // Behind an edge it is the edge's request that is lost.
        let pod = site.edge.as_ref().map_or(&site.pod, |edge| &edge.pod).uid.clone();
        let (seen, territory) = (site.started_scripts()?, site.territory());
        Ok((
            Ledgers { part, requests, marks, seen, served, upstream, territory, from, to: u64::MAX, pod, answered: 0 },
            site,
        ))
    }
}

impl Ledgers {
    /// Takes the site down: what comes from now on is of another one.
    pub fn close(&mut self, site: Site) {
        drop(site);
        self.to = boot_ns();
    }

    pub fn lost(&self) -> usize {
        self.requests.iter().filter(|r| ledger::is_lost(r, self.part.scenario.made)).count()
    }

    fn known(&self) -> Known<'_> {
        Known { draw: &self.part.draw, marks: &self.marks, served: &self.served, upstream: &self.upstream }
    }

    /// Which causes are right for a request.
    pub fn allowed(&self, r: &Request) -> &'static [Cause] {
        let known = self.known();
        (self.part.scenario.truth)(&known, r, self.seen.contains(&r.id))
    }

    /// The incidents of this part among all that why502 told.
    pub fn mine(&self, all: &[Heard]) -> Vec<Heard> {
        all.iter().filter(|h| self.owns(h)).cloned().collect()
    }

    pub fn owns(&self, heard: &Heard) -> bool {
        self.owns_claim(&heard.claim)
    }

    pub(super) fn owns_claim(&self, claim: &Claim) -> bool {
        (self.from..=self.to).contains(&claim.at) && self.territory.has(claim)
    }

    /// What the ledgers say of how it was lost: what the client saw, whether php had begun it, what nginx logged.
    pub(super) fn seen_as(&self, r: &Request) -> String {
        let begun = if self.seen.contains(&r.id) { ", begun by php" } else { "" };
        let logged = self.upstream.get(&r.id).map_or(String::new(), |u| format!(", nginx: {}", u.words()));
        format!("{}{begun}{logged}", r.outcome.name())
    }

    /// Which mechanisms are right for a request.
    pub fn mechanisms(&self, r: &Request) -> &'static [Mechanism] {
        truth::mechanisms(r, self.seen.contains(&r.id), self.upstream.get(&r.id).copied())
    }

    pub fn compare(&self, heard: &[Heard]) -> Comparison {
        let known = self.known();
        let allowed = |r: &Request, started: bool| (self.part.scenario.truth)(&known, r, started);
        let mechanisms = |r: &Request, _: bool| self.mechanisms(r);
        let rules = Rules {
            made: self.part.scenario.made,
            seen: self.seen.clone(),
            allowed: &allowed,
            mechanisms: &mechanisms,
        };
        let claims: Vec<_> = heard.iter().map(|h| h.claim.clone()).collect();
        let mut result = ledger::compare(&self.requests, &claims, &rules);
        result.requests += self.answered;
        result
    }

    /// Incidents that name a pod which is not this one.
    pub fn of_another_pod<'a>(&self, heard: &'a [Heard]) -> Vec<&'a Claim> {
        heard.iter().map(|h| &h.claim).filter(|c| c.pod.as_ref() != Some(&self.pod)).collect()
    }
}
