//! What is wanted of the store, and looking it up.

use super::scan::{Record, Scan, backwards};
use crate::model::incident::Cause;
use crate::model::time::rfc3339;
use jiff::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::str::FromStr;

/// Records of one answer.
pub const LIMIT: usize = 100;
pub const LIMIT_MAX: usize = 1000;
/// Bytes of records in one answer; a single one that is larger is given.
const ANSWER_BYTES: usize = 4 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    All,
    Incidents,
    Stops,
}

/// Filters; what is absent takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    /// `Deployment/web`, or `web`.
    pub workload: Option<String>,
    /// Ids, one of which it has to be; of a stop: one of its incidents'.
    pub causes: Vec<String>,
    /// The one that is called so.
    pub id: Option<String>,
    /// Of this stop: itself and its incidents.
    pub stop: Option<String>,
    /// Wall times as `at` has them, from and before.
    pub since: Option<String>,
    pub until: Option<String>,
    /// Cursor: only what came after this number.
    pub after: Option<u64>,
    /// Cursor backwards: only what came before this number.
    pub before: Option<u64>,
    pub limit: Option<usize>,
}

/// An answer: oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub records: Vec<Record>,
    /// For the next question's `after`.
    pub cursor: u64,
    /// There are more in the direction that was asked for.
    pub more: bool,
}

/// As much of a record as filters look at. Strings that are not escaped in the JSON are not copied.
#[derive(Deserialize)]
struct Key<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow, default)]
    cause: Option<Cow<'a, str>>,
    #[serde(default)]
    by_cause: Option<std::collections::BTreeMap<String, u64>>,
    #[serde(borrow, default)]
    stop: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pod: Option<PodKey<'a>>,
}

#[derive(Deserialize)]
struct PodKey<'a> {
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    workload: Option<Cow<'a, str>>,
}

impl Query {
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT)
    }

    pub fn matches(&self, json: &str) -> bool {
        if *self == (Query { after: self.after, before: self.before, limit: self.limit, ..Query::default() }) {
            return true;
        }
        // Taking a record apart costs many times what looking for a word in it does.
        let names = [&self.id, &self.stop, &self.namespace, &self.pod, &self.workload];
        if names.into_iter().flatten().any(|name| is_plain(name) && !json.contains(name)) {
            return false;
        }
        let may_be = |cause: &String| !is_plain(cause) || json.contains(cause.as_str());
        if !self.causes.is_empty() && !self.causes.iter().any(may_be) {
            return false;
        }
        if self.since.as_deref().is_some_and(|since| lost_at(json).is_some_and(|at| at < since)) {
            return false;
        }
        serde_json::from_str::<Key<'_>>(json).is_ok_and(|key| self.wants(&key))
    }

    fn wants(&self, key: &Key<'_>) -> bool {
        let kind = match self.kind {
            Kind::All => true,
            Kind::Incidents => key.kind == "incident",
            Kind::Stops => key.kind == "stop",
        };
        let pod = key.pod.as_ref();
        let is = |want: &Option<String>, has: Option<&str>| want.as_deref().is_none_or(|want| has == Some(want));
        let workload = pod.and_then(|pod| pod.workload.as_deref());
        let workload = self.workload.as_deref().is_none_or(|want| {
            workload.is_some_and(|has| has == want || has.split_once('/').is_some_and(|(_, name)| name == want))
        });
        let caused = |id: &String| {
            key.cause.as_deref() == Some(id) || key.by_cause.as_ref().is_some_and(|causes| causes.contains_key(id))
        };
        let of_stop = |want: &str| key.stop.as_deref() == Some(want) || (key.kind == "stop" && key.id == want);
        kind && self.id.as_deref().is_none_or(|id| key.id == id)
            && is(&self.namespace, pod.and_then(|pod| pod.namespace.as_deref()))
            && is(&self.pod, pod.and_then(|pod| pod.name.as_deref()))
            && workload
            && (self.causes.is_empty() || self.causes.iter().any(caused))
            && self.stop.as_deref().is_none_or(of_stop)
            // Both have nine digits and end in Z: their order is that of the times.
            && self.since.as_deref().is_none_or(|since| *key.at >= *since)
            && self.until.as_deref().is_none_or(|until| *key.at < *until)
    }

    /// Looks it up, up to the record `upto`. With `after`: the first ones after it; without: the newest.
    pub fn run(&self, dir: &Path, upto: u64) -> io::Result<Found> {
        match self.after {
            Some(after) => self.forwards(dir, after, upto),
            None => self.newest(dir, upto),
        }
    }

    fn forwards(&self, dir: &Path, after: u64, upto: u64) -> io::Result<Found> {
        let upto = self.before.map_or(upto, |before| upto.min(before.saturating_sub(1)));
        let mut scan = Scan::after(dir, after);
        let mut found = Found { cursor: after, ..Found::default() };
        let mut bytes = 0;
        while let Some(record) = scan.next(upto)? {
            if self.matches(&record.json) {
                bytes += record.json.len();
                let full = found.records.len() >= self.limit() || bytes > ANSWER_BYTES;
                if full && !found.records.is_empty() {
                    found.more = true;
                    return Ok(found);
                }
                found.records.push(record);
            }
            found.cursor = scan.seq();
        }
        Ok(found)
    }

    fn newest(&self, dir: &Path, upto: u64) -> io::Result<Found> {
        let before = self.before.unwrap_or(u64::MAX).min(upto.saturating_add(1));
        let mut found = Found::default();
        let mut records: VecDeque<Record> = VecDeque::new();
        let mut bytes = 0;
        for (first, end) in backwards(dir, before)? {
            let upto = end.min(before).saturating_sub(1);
            let mut scan = Scan::after(dir, first.saturating_sub(1));
            let mut here: VecDeque<Record> = VecDeque::new();
            let mut size = 0;
            while let Some(record) = scan.next(upto)? {
                found.cursor = found.cursor.max(record.seq);
                if self.matches(&record.json) {
                    size += record.json.len();
                    here.push_back(record);
                    while here.len() > 1 && (here.len() + records.len() > self.limit() || size + bytes > ANSWER_BYTES) {
                        found.more = true;
                        size -= here.pop_front().map_or(0, |gone| gone.json.len());
                    }
                }
            }
            if here.len() + records.len() > self.limit() || (size + bytes > ANSWER_BYTES && !records.is_empty()) {
                found.more = true;
                break;
            }
            bytes += size;
            while let Some(record) = here.pop_back() {
                records.push_front(record);
            }
            if found.more {
                break;
            }
        }
        found.records = records.into();
        Ok(found)
    }
}

/// The record's own time: the first one in it. Quotes in strings are escaped, so that this is a key.
fn lost_at(json: &str) -> Option<&str> {
    json.split_once(r#""at":""#)?.1.split_once('"').map(|(at, _)| at)
}

/// It stands in JSON as it is: no writer escapes these.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

/// A time of `--since` and `since=`: RFC 3339, or how long ago (`90s`, `10m`, `2h`). As `at` is written.
pub fn moment(text: &str, now_wall_ns: i64) -> Result<String, String> {
    let bad = || format!("{text:?} is neither a time such as 2026-11-22T14:03:22Z nor how long ago, such as 10m or 2h");
    let ns = if let Ok(at) = Timestamp::from_str(text) {
        i64::try_from(at.as_nanosecond()).map_err(|_| bad())?
    } else {
        let ago = match text.parse::<u32>() {
            Ok(seconds) => i128::from(seconds) * 1_000_000_000,
            Err(_) => text.parse::<jiff::SignedDuration>().map_err(|_| bad())?.as_nanos(),
        };
        if ago < 0 {
            return Err(bad());
        }
        i64::try_from(i128::from(now_wall_ns) - ago).map_err(|_| bad())?
    };
    Ok(rfc3339(ns))
}

/// Ids of causes, separated by commas.
pub fn causes(text: &str) -> Result<Vec<String>, String> {
    let known = |id: &str| Cause::ALL.iter().any(|cause| cause.id() == id);
    text.split(',')
        .map(|id| {
            if known(id) {
                return Ok(id.to_owned());
            }
            let all: Vec<&str> = Cause::ALL.iter().map(|cause| cause.id()).collect();
            Err(format!("no cause is called {id:?}; there are {}", all.join(", ")))
        })
        .collect()
}

/// A number of records.
pub fn limit(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
    number.ok_or_else(|| format!("{text:?} is no number from 1 to {LIMIT_MAX}"))
}
