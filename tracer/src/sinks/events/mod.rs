//! Kubernetes Events out of verdicts: one on the pod for each stop and cause, and one on its workload, in which further
//! stops count. Pure: which Events are to be written when is a function of inputs, outputs and their times;
//! `sources::kube` writes them.
//!
//! An incident of a stop is held until the stop is over, for its Event says how many requests were lost. Everything is
//! bounded: an API server serves a thousand of these agents, and a hostile container can lose requests on purpose.

mod bucket;
mod names;
mod note;

use crate::model::incident::{Bound, Cause, Incident};
use crate::model::{BootNs, Input, Output};
use bucket::{Bucket, Rate};
use names::Names;
use std::collections::{BTreeMap, BTreeSet};

const SECOND: u64 = 1_000_000_000;
/// Of one object: so many at once, then one in this time.
const OF_ONE: Rate = Rate { burst: 5, every: 120 * SECOND };
/// Of this agent: a thousand of them write a hundred a second at most.
const OF_ALL: Rate = Rate { burst: 50, every: 10 * SECOND };
/// A stop that is not told of after so long: its incidents are.
const HOLD: u64 = 900 * SECOND;
/// A count is written again at most so often.
const UPDATE: u64 = 60 * SECOND;
/// After so long without another one the next is a new Event.
const IDLE: u64 = 600 * SECOND;
/// What could not be written for so long is no news any more.
const LATE: u64 = 600 * SECOND;
/// Pairs of stop and cause that are held, and Events that are counted in.
const HELD: usize = 1_024;
const SERIES: usize = 4_096;

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub api_version: &'static str,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// `None`: of a workload that was not asked for.
    pub uid: Option<String>,
}

/// An Event as it is to be in the API from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Unique, and the same when it is written again.
    pub name: String,
    pub about: Object,
    /// The pod, of an Event about its workload.
    pub related: Option<Object>,
    /// The cause in CamelCase.
    pub reason: String,
    pub note: String,
    /// Wall times of the first and the last one, RFC 3339 with µs.
    pub first: String,
    pub last: String,
    /// How often: 1 is no series.
    pub count: u64,
    /// It was given before, with a smaller count.
    pub again: bool,
}

/// What did not become Events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Incidents and stops whose pod's name nobody said.
    pub unnamed: u64,
    /// Events beyond a bound.
    pub limited: u64,
}

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    /// This stop's lost requests.
    Stop(String),
    /// Stops that lost requests.
    Stops,
    /// Lost requests of no stop.
    Requests,
}

type Key = (Object, Of, Cause);

/// What was lost to one cause, in a stop or at once.
#[derive(Clone, Debug)]
struct Loss {
    /// The surest verdict, of the longest request.
    incident: Incident,
    requests: u64,
    exact: bool,
    first: String,
    last: String,
    since: BootNs,
}

#[derive(Debug)]
struct Series {
    told: Told,
    /// Something is to be written since then.
    dirty: Option<BootNs>,
    written: Option<BootNs>,
    touched: BootNs,
}

#[derive(Debug)]
pub struct Events {
    names: Names,
    held: BTreeMap<(String, Cause), Loss>,
    series: BTreeMap<Key, Series>,
    all: Bucket,
    each: BTreeMap<Object, Bucket>,
    dirty: BTreeSet<Key>,
    left: Left,
}

impl Default for Events {
    fn default() -> Self {
        Events {
            names: Names::default(),
            held: BTreeMap::new(),
            series: BTreeMap::new(),
            all: Bucket::full(OF_ALL),
            each: BTreeMap::new(),
            dirty: BTreeSet::new(),
            left: Left::default(),
        }
    }
}

impl Events {
    /// Names that the API says.
    pub fn input(&mut self, input: &Input) {
        if let Input::Kube(fact) = input {
            self.names.learn(&fact.said);
        }
    }

    pub fn output(&mut self, output: &Output, now: BootNs) {
        match output {
            Output::Incident(incident) if incident.cause.not_the_server() => {}
            Output::Incident(incident) => self.incident(incident, now),
            Output::Stop(stop) => {
                let of_it = self.held.extract_if(.., |(id, _), _| *id == stop.id);
                let mut all: Vec<Loss> = of_it.map(|(_, loss)| loss).collect();
                // The values of the whole stop: an incident's are those of what had been seen at its verdict.
                for advice in all.iter_mut().flat_map(|loss| &mut loss.incident.advice) {
                    if let Some(whole) = stop.advice.iter().find(|whole| whole.id == advice.id) {
                        advice.clone_from(whole);
                    }
                }
                all.into_iter().for_each(|loss| self.stop(loss, now));
            }
        }
    }

    fn incident(&mut self, incident: &Incident, now: BootNs) {
        let Some(at) = micros(&incident.at) else { return self.left.unnamed += 1 };
        let (requests, exact) = (u64::from(incident.requests.count), incident.requests.bound == Bound::Exact);
        let loss =
            || Loss { incident: incident.clone(), requests, exact, first: at.clone(), last: at.clone(), since: now };
        let Some(stop) = &incident.stop else { return self.at_once(loss(), now) };
        let key = (stop.clone(), incident.cause);
        if let Some(held) = self.held.get_mut(&key) {
            held.requests += requests;
            held.exact &= exact;
            held.first = at.clone().min(std::mem::take(&mut held.first));
            held.last = at.clone().max(std::mem::take(&mut held.last));
            // Of equally sure ones that which was under way for the longest time.
            let rank = |i: &Incident| (i.confidence.value, i.age_ms);
            if rank(incident) > rank(&held.incident) {
                held.incident = incident.clone();
            }
        } else if self.held.len() < HELD {
            self.held.insert(key, loss());
        } else {
            self.left.limited += 1;
        }
    }

    fn at_once(&mut self, loss: Loss, now: BootNs) {
        let Some(pod) = self.names.pod(&loss.incident) else { return self.left.unnamed += 1 };
        self.tell(pod.clone(), None, Of::Requests, &loss, loss.requests, now);
        if let Some(workload) = self.names.workload(&loss.incident) {
            self.tell(workload, Some(pod), Of::Requests, &loss, loss.requests, now);
        }
    }

    fn stop(&mut self, loss: Loss, now: BootNs) {
        let Some(pod) = self.names.pod(&loss.incident) else { return self.left.unnamed += 1 };
        let id = loss.incident.stop.clone().unwrap_or_default();
        self.tell(pod.clone(), None, Of::Stop(id), &loss, 1, now);
        if let Some(workload) = self.names.workload(&loss.incident) {
            self.tell(workload, Some(pod), Of::Stops, &loss, 1, now);
        }
    }

    fn tell(&mut self, about: Object, related: Option<Object>, of: Of, loss: &Loss, count: u64, now: BootNs) {
        let cause = loss.incident.cause;
        let key = (about.clone(), of, cause);
        if let Some(known) = self.series.get_mut(&key).filter(|s| now.saturating_sub(s.touched) < IDLE) {
            known.told.count += count;
            known.told.last = loss.last.clone().max(std::mem::take(&mut known.told.last));
            known.touched = now;
            known.dirty.get_or_insert(now);
            self.dirty.insert(key);
            return;
        }
        if self.series.len() >= SERIES {
            self.series.retain(|_, s| s.dirty.is_some() || now.saturating_sub(s.touched) < IDLE);
        }
        if self.series.len() >= SERIES {
            self.left.limited += 1;
            return;
        }
        let told = Told {
            name: names::of_event(&about, &loss.incident),
            related,
            reason: note::reason(cause),
            note: note::note(loss, &about),
            first: loss.first.clone(),
            last: loss.last.clone(),
            count,
            again: false,
            about,
        };
        self.series.insert(key.clone(), Series { told, dirty: Some(now), written: None, touched: now });
        self.dirty.insert(key);
    }

    /// What is to be written now.
    pub fn due(&mut self, now: BootNs) -> Vec<Told> {
        if !self.held.is_empty() {
            self.release(|loss| now.saturating_sub(loss.since) >= HOLD, now);
        }
        let mut due = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(series) = self.series.get_mut(&key) else { continue };
            let Some(since) = series.dirty else { continue };
            let fresh = series.written.is_none();
            let room = match series.written {
                Some(written) => now.saturating_sub(written) >= UPDATE,
                None => {
                    let each = self.each.entry(key.0.clone()).or_insert_with(|| Bucket::full(OF_ONE));
                    each.has_one(now)
                }
            };
            if room && self.all.take(now) {
                if fresh && let Some(each) = self.each.get_mut(&key.0) {
                    each.take(now);
                }
                due.push(series.told.clone());
                series.told.again = true;
                (series.dirty, series.written) = (None, Some(now));
            } else if fresh && now.saturating_sub(since) >= LATE {
                self.series.remove(&key);
                self.left.limited += 1;
            } else {
                self.dirty.insert(key);
            }
        }
        if self.each.len() > SERIES {
            // A bucket that is full again says no more than none.
            self.each.retain(|_, bucket| !bucket.is_full(now));
        }
        due
    }

    /// The end: nothing is held any more, and no count waits.
    pub fn last(&mut self, now: BootNs) -> Vec<Told> {
        self.release(|_| true, now);
        self.series.values_mut().for_each(|s| s.written = s.written.map(|_| 0));
        self.due(now)
    }

    fn release(&mut self, wanted: impl Fn(&Loss) -> bool, now: BootNs) {
        let losses: Vec<Loss> = self.held.extract_if(.., |_, loss| wanted(loss)).map(|(_, loss)| loss).collect();
        losses.into_iter().for_each(|loss| self.stop(loss, now));
    }

    pub fn left(&self) -> Left {
        self.left
    }
}

/// `2026-11-22T14:03:22.118204113Z` as a MicroTime has it. `None`: the wall time was not known.
fn micros(at: &str) -> Option<String> {
    let whole = at.len() == 30 && at.ends_with('Z') && at.is_ascii();
    whole.then(|| format!("{}Z", &at[..26]))
}
