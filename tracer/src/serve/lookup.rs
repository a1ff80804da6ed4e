//! What a page shows, out of the store. On a thread that may wait for the disk.

use crate::model::Output;
use crate::model::incident::{Incident, Stop};
use crate::page::together;
use crate::sinks::json;
use crate::store::query::{Kind, LIMIT_MAX, Query};
use crate::store::scan::Scan;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// Incidents of one picture: what is more is counted.
const INCIDENTS: usize = 5_000;
/// Other stops in one picture: the containers of a pod.
const OTHERS: usize = 8;

/// A stop with what belongs into its picture.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) stop: Stop,
    pub(super) others: Vec<Stop>,
    pub(super) incidents: Vec<Incident>,
    pub(super) left_out: u64,
}

/// `Ok(None)`: it is not there, or of another version of why502.
pub(super) fn stop(dir: &Path, id: &str, upto: u64) -> io::Result<Option<Whole>> {
    let wanted = Query { kind: Kind::Stops, id: Some(id.to_owned()), limit: Some(1), ..Query::default() };
    let Some(stop) = wanted.run(dir, upto)?.records.pop().and_then(|record| stop_of(&record.json)) else {
        return Ok(None);
    };
    let pod = stop.pod.as_ref();
    let near = Query {
        kind: Kind::Stops,
        namespace: pod.and_then(|pod| pod.namespace.clone()),
        pod: pod.and_then(|pod| pod.name.clone()),
        limit: Some(LIMIT_MAX),
        ..Query::default()
    };
    let stops = near.run(dir, upto)?.records;
    let others = stops.iter().filter_map(|record| stop_of(&record.json));
    let others: Vec<Stop> = others.filter(|other| other.id != stop.id && together(&stop, other)).take(OTHERS).collect();
    let (incidents, more) = incidents(dir, &[std::slice::from_ref(&stop), &others].concat(), upto)?;
    // What the quota or retention took counts as well.
    let all = stop.incidents + others.iter().map(|stop| stop.incidents).sum::<u64>();
    let left_out = more.max(all.saturating_sub(incidents.len() as u64));
    Ok(Some(Whole { stop, others, incidents, left_out }))
}

fn stop_of(json: &str) -> Option<Stop> {
    match json::parse(json) {
        Ok(Output::Stop(stop)) => Some(*stop),
        _ => None,
    }
}

/// The incidents of these stops, oldest first, and how many there are beside them.
fn incidents(dir: &Path, stops: &[Stop], upto: u64) -> io::Result<(Vec<Incident>, u64)> {
    let of = |json: &str| stops.iter().any(|stop| json.contains(&stop.id));
    let (mut all, mut more, mut kinds) = (Vec::new(), 0, BTreeSet::new());
    let mut scan = Scan::after(dir, 0);
    while let Some(record) = scan.next(upto)? {
        if !of(&record.json) {
            continue;
        }
        let Ok(Output::Incident(mut incident)) = json::parse(&record.json) else { continue };
        if !incident.stop.as_ref().is_some_and(|id| stops.iter().any(|stop| stop.id == *id)) {
            continue;
        }
        if all.len() >= INCIDENTS {
            more += 1;
            continue;
        }
        // How it came about is shown of one of each kind: of thousands it would be most of the memory.
        let kind = (incident.cause, incident.sub_cause.clone(), incident.mechanism, incident.outcome);
        if !kinds.insert(kind) {
            incident.chain = Vec::new();
            incident.missing = Vec::new();
            incident.advice = Vec::new();
        }
        all.push(*incident);
    }
    Ok((all, more))
}

/// `Ok(None)`: it is not there, or of another version of why502.
pub(super) fn incident(dir: &Path, id: &str, upto: u64) -> io::Result<Option<Incident>> {
    let wanted = Query { kind: Kind::Incidents, id: Some(id.to_owned()), limit: Some(1), ..Query::default() };
    let record = wanted.run(dir, upto)?.records.pop();
    Ok(record.and_then(|record| match json::parse(&record.json) {
        Ok(Output::Incident(incident)) => Some(*incident),
        _ => None,
    }))
}
