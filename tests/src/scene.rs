//! A site under load: slow requests that php works on, fast ones beside them. What a scenario stops, and what it compares.

use crate::guard::wait;
use crate::ledger::{self, Comparison, Rules};
use crate::load::{Load, LoadConf, Progress, Request, write_ledger};
use crate::site::{Ground, Site};
use crate::tracer::{Said, Tracer, binary, explain};
use crate::{guard, php, schema};
use anyhow::{Result, ensure};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use why502::model::incident::Cause;

/// Nothing that is waited for takes longer, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The causes that are right for a lost request; the second argument: a script has started for it.
pub type Allowed<'a> = &'a dyn Fn(&Request, bool) -> &'static [Cause];

/// The requests of a scene. Each load ends by itself when it was refused often enough.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    /// Requests that php works on for a while.
    pub slow: Option<LoadConf>,
    /// The scene begins when php works on so many of them.
    pub in_php: usize,
    /// Others beside them, that are answered at once.
    pub fast: Option<LoadConf>,
    /// The scene begins when so many of those were answered.
    pub answered: u64,
}

/// A site under load.
#[derive(Debug)]
pub struct Scene<G = Site> {
    pub site: G,
    pub slow: Option<Load>,
    pub fast: Option<Load>,
    /// Begun by the act.
    added: Mutex<Vec<Load>>,
}

/// A scene that is over: the site still stands, the load has ended.
#[derive(Debug)]
pub struct Over<G = Site> {
    pub site: G,
    pub requests: Vec<Request>,
}

impl<G: Ground> Scene<G> {
    /// Returns when php works on slow requests, and the fast ones flow.
    pub fn start(site: G, loads: &Loads) -> Result<Self> {
        let begin =
            |conf: &Option<LoadConf>| conf.as_ref().map(|c| Load::start(Some(site.client()), c.clone())).transpose();
        let (fast, slow) = (begin(&loads.fast)?, begin(&loads.slow)?);
        let scene = Self { site, slow, fast, added: Mutex::default() };
        wait("the slow requests", LIMIT, || scene.in_php() >= loads.in_php)?;
        if let Some(fast) = &scene.fast {
            wait("the fast answers", LIMIT, || Progress::get(&fast.progress.answered) >= loads.answered)?;
        }
        Ok(scene)
    }

    /// One more load. It is no part of the counts and waits of the scene, and of its requests all the same.
    pub fn add(&self, conf: LoadConf) -> Result<Arc<Progress>> {
        let load = Load::start(Some(self.site.client()), conf)?;
        let progress = load.progress.clone();
        self.added.lock().unwrap_or_else(PoisonError::into_inner).push(load);
        Ok(progress)
    }

    /// Requests whose script has started and not ended.
    pub fn in_php(&self) -> usize {
        let served = self.site.served().unwrap_or_default();
        let ended: HashSet<&str> = served.iter().filter(|s| s.ev == "end").map(|s| s.id.as_str()).collect();
        served.iter().filter(|s| s.ev == "start" && !ended.contains(s.id.as_str())).count()
    }

    fn loads(&self) -> impl Iterator<Item = &Load> {
        [&self.slow, &self.fast].into_iter().flatten()
    }

    /// The sum of a counter over all loads.
    pub fn count(&self, counter: fn(&Progress) -> &std::sync::atomic::AtomicU64) -> u64 {
        self.loads().map(|l| Progress::get(counter(&l.progress))).sum()
    }

    /// Every load was refused so often that it has ended.
    pub fn refused(&self) -> Result<()> {
        wait("the refused attempts", LIMIT, || self.loads().all(Load::finished))
    }

    /// A listener is closed on QUIT once the fast load is refused.
    pub fn listener_closed(&self) -> Result<()> {
        let refused = || self.fast.iter().all(|l| Progress::get(&l.progress.refused) > 0);
        wait("the first refused attempt", LIMIT, refused)
    }

    /// Ends the load; what is under way comes to its end first.
    pub fn end(self) -> Result<Over<G>> {
        let mut requests = Vec::new();
        let added = self.added.into_inner().unwrap_or_else(PoisonError::into_inner);
        for load in [self.slow, self.fast].into_iter().flatten().chain(added) {
            requests.extend(load.stop()?);
        }
        Ok(Over { site: self.site, requests })
    }
}

impl<G: Ground> Over<G> {
    /// Requests that the client's ledger counts as lost; `made`: see [`Rules::made`].
    pub fn lost(&self, made: &[u16]) -> usize {
        self.requests.iter().filter(|r| ledger::is_lost(r, made)).count()
    }

    /// Ends the tracer and compares. Its recording must replay to the same lines; it is kept with the ledger when they
    /// differ from what was lost, or when `RECORDINGS` names a directory for them.
    pub fn judged(self, name: &str, watch: Watch, made: &[u16], allowed: Allowed) -> Result<Comparison> {
        self.heard(name, watch, made, allowed).map(|(result, _)| result)
    }

    /// The same, with what the tracer said.
    pub fn heard(&self, name: &str, watch: Watch, made: &[u16], allowed: Allowed) -> Result<(Comparison, Said)> {
        let rules =
            Rules { made, seen: php::started(&self.site.served()?), allowed, mechanisms: &ledger::any_mechanism };
        watch.tracer.wait_for(self.lost(made), &self.site)?;
        let said = watch.tracer.stop()?;
        ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
        schema::check(&said)?;
        let replayed = explain(&binary()?, &watch.recording, &["-o", "json"])?;
        ensure!(replayed.lines().eq(said.lines.iter()), "the replay of the recording says something else");
        let result = ledger::compare(&self.requests, &said.claims(&self.site), &rules);
        let wanted = std::env::var_os("RECORDINGS").map(PathBuf::from);
        if wanted.is_some() || !result.exact() {
            keep(wanted, name, &watch.recording, &self.requests)?;
        }
        Ok((result, said))
    }
}

/// A tracer beside a site, and its recording in the site's directory.
#[derive(Debug)]
pub struct Watch {
    pub tracer: Tracer,
    pub recording: PathBuf,
}

impl Watch {
    pub fn of(site: &Site) -> Result<Self> {
        Self::with(site, &[])
    }

    /// With more arguments of `why502 watch`.
    pub fn with(site: &Site, more: &[&str]) -> Result<Self> {
        Self::at(site.dir.join("watch.rec"), more)
    }

    /// Before there is a site.
    pub fn at(recording: PathBuf, more: &[&str]) -> Result<Self> {
        Self::by(&binary()?, recording, more)
    }

    /// This why502, and not the one that `WHY502_BIN` names.
    pub fn by(why502: &Path, recording: PathBuf, more: &[&str]) -> Result<Self> {
        let args: Vec<&OsStr> =
            more.iter().map(OsStr::new).chain(["--record".as_ref(), recording.as_os_str()]).collect();
        let tracer = Tracer::watch(why502, &args)?;
        Ok(Self { tracer, recording })
    }
}

/// A deviation is looked into with what was seen: the recording and the client's ledger outlive the site.
pub fn keep(dir: Option<PathBuf>, name: &str, recording: &Path, requests: &[Request]) -> Result<()> {
    let name = format!(
        "{}-{}-{}",
        name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
        std::process::id(),
        guard::serial()
    );
    let base = dir.unwrap_or_else(std::env::temp_dir).join(name);
    std::fs::copy(recording, base.with_extension("rec"))?;
    write_ledger(&base.with_extension("jsonl"), requests)?;
    println!("kept: {}.rec, .jsonl", base.display());
    Ok(())
}

/// A scenario's own delay between two acts: nothing can be waited for, since what is wanted is that time passes.
pub fn pass(ms: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_millis(ms);
    wait("time to pass", LIMIT, || Instant::now() >= end)
}
