//! Which path gives what.

use super::answer::{self, Body, JSON};
use super::params::{self, Params};
use super::room::Room;
use super::{Shared, page, stream};
use crate::kernel::clock;
use crate::metrics::text::{CONTENT_TYPE, Text};
use crate::metrics::{self, own};
use crate::store::Stats;
use crate::store::query::{Found, Kind, LIMIT_MAX, Query};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HOST};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// `loopback`: it came to an address of this host alone.
pub(super) async fn answer(request: &Request<Incoming>, loopback: bool, shared: &Arc<Shared>) -> Response<Body> {
    let path = request.uri().path();
    let (route, response) = match path {
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => ("-", answer::only_get()),
        _ if loopback && !is_this_host(request) => ("-", answer::say(StatusCode::FORBIDDEN, FOREIGN)),
        "/" => ("/", page::front(request, shared).await),
        "/style.css" => ("/style.css", page::style()),
        "/metrics" => ("/metrics", metrics(shared)),
        "/healthz" => ("/healthz", health(shared)),
        "/readyz" => ("/readyz", ready(shared)),
        "/incidents" => ("/incidents", list(Kind::Incidents, request, shared).await),
        "/stops" => ("/stops", list(Kind::Stops, request, shared).await),
        "/records" => ("/records", list(Kind::All, request, shared).await),
        // `GET name:port` has no path at all.
        _ => match path.get(1..).unwrap_or_default().split_once('/').filter(|(_, id)| !id.is_empty()) {
            Some(("stops", id)) => ("/stops/ID", stop(id, shared).await),
            Some(("incidents", id)) => ("/incidents/ID", incident(id, shared).await),
            Some(("stop", id)) => ("/stop/ID", page::stop(id, shared).await),
            Some(("incident", id)) => ("/incident/ID", page::incident(id, shared).await),
            _ => ("-", answer::say(StatusCode::NOT_FOUND, "not found; / lists what there is")),
        },
    };
    shared.count(route, response.status().as_u16());
    response
}

const FOREIGN: &str = "this address is for this host alone: ask for it as 127.0.0.1 or localhost";

/// A page from elsewhere can let a name of its own mean 127.0.0.1, and its script then reads what is answered here, also through
/// `kubectl port-forward`, which comes to the pod's 127.0.0.1 whatever it listens on. So on loopback only what nobody else can give away is a name: addresses and `localhost`. Who sends no name is no browser.
fn is_this_host(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST) else { return true };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
    })
}

fn metrics(shared: &Shared) -> Response<Body> {
    let mut text = Text::default();
    shared.state.tally().write(&mut text);
    store(&shared.state.store.stats(), &mut text);
    shared.write(&mut text);
    own::add(&mut text);
    answer::full(StatusCode::OK, CONTENT_TYPE, text.finish())
}

fn store(stats: &Stats, text: &mut Text) {
    text.add(&metrics::STORE_OK, &[], u8::from(stats.failing.is_none()));
    for (metric, value) in [
        (&metrics::STORE_WRITTEN, stats.written),
        (&metrics::STORE_WAITING, stats.waiting as u64),
        (&metrics::STORE_DROPPED, stats.dropped),
        (&metrics::STORE_FAILURES, stats.failures),
        (&metrics::STORE_DAMAGED, stats.damaged),
        (&metrics::STORE_BYTES, stats.bytes),
        (&metrics::STORE_FIRST, stats.first),
        (&metrics::STORE_LAST, stats.last),
    ] {
        text.add(metric, &[], value);
    }
}

#[derive(Serialize)]
struct Health {
    /// `ok`, `starting`, `degraded`, or `failing`: only the last one is worth a restart.
    status: &'static str,
    ready: bool,
    input_age_ms: u64,
    store: StoreHealth,
    /// Ids of what lowers verdicts.
    degraded: Vec<String>,
    /// Ids of what this host does not give as well, without which verdicts are the same.
    lacks: Vec<String>,
}

#[derive(Serialize)]
struct StoreHealth {
    failing: Option<String>,
    waiting: usize,
    dropped: u64,
}

fn health(shared: &Shared) -> Response<Body> {
    let (started, ready, age, degraded, lacks) = {
        let tally = shared.state.tally();
        (tally.has_started(), tally.is_ready(), tally.age(), tally.degraded(), tally.lacks())
    };
    let Stats { failing, waiting, dropped, .. } = shared.state.store.stats();
    let status = match () {
        () if started && age > shared.bounds.still.as_secs_f64() => "failing",
        () if !ready => "starting",
        // A full disk is no reason to be restarted: what waits in memory would be lost.
        () if failing.is_some() || dropped > 0 || !degraded.is_empty() => "degraded",
        () => "ok",
    };
    let health = Health {
        status,
        ready,
        input_age_ms: (age * 1000.0) as u64,
        store: StoreHealth { failing, waiting, dropped },
        degraded,
        lacks,
    };
    let code = if status == "failing" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    // Plain strings and numbers.
    let text = serde_json::to_string(&health).unwrap_or_default();
    answer::full(code, JSON, text + "\n")
}

fn ready(shared: &Shared) -> Response<Body> {
    if shared.state.tally().is_ready() {
        answer::say(StatusCode::OK, "ready")
    } else {
        answer::busy("not ready: the probes are not attached, or not any more")
    }
}

async fn list(kind: Kind, request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let text = request.uri().query().unwrap_or_default();
    let Params { mut query, follow } = match params::parse(kind, text, clock::sample().wall_ns) {
        Ok(params) => params,
        Err(why) => return answer::bad(&why),
    };
    let events = request.headers().get(ACCEPT).is_some_and(|kinds| {
        kinds.to_str().is_ok_and(|kinds| kinds.split(',').any(|kind| kind.trim().starts_with(answer::EVENTS)))
    });
    // What a browser's EventSource says when it comes again.
    let last = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    if follow && events && last.is_some() {
        query.after = last;
    }
    let durable = *shared.state.store.durable.borrow();
    if let Some(after) = query.after.filter(|after| *after > durable) {
        return answer::bad(&format!(
            "cursor {after} is ahead of the last record, {durable}: the store was emptied since; begin again without after"
        ));
    }
    if !follow {
        return match run(query, shared, durable).await {
            Ok((found, room)) => page_of(found, room),
            Err(response) => response,
        };
    }
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        shared.own.refused_streams.fetch_add(1, Ordering::Relaxed);
        return answer::busy("too many streams are open");
    };
    // From the begin when a time is given, else from now.
    let after = query.after.unwrap_or(if query.since.is_some() { 0 } else { durable });
    stream::follow(query, after, events, permit, shared)
}

/// On a thread that may wait for the disk.
async fn run(query: Query, shared: &Shared, upto: u64) -> Result<(Found, Room), Response<Body>> {
    let room = Room::get(shared).await?;
    let view = shared.state.store.clone();
    let found = tokio::task::spawn_blocking(move || query.run(&view.dir, upto)).await;
    let failed = |why: &dyn std::fmt::Display| {
        answer::say(StatusCode::INTERNAL_SERVER_ERROR, &format!("the store cannot be read: {why}"))
    };
    match found {
        Ok(Ok(found)) => Ok((found, room)),
        Ok(Err(e)) => Err(failed(&e)),
        Err(e) => Err(failed(&e)),
    }
}

/// Records are JSON already: they are put together as they are.
fn page_of(found: Found, room: Room) -> Response<Body> {
    let items: Vec<&str> = found.records.iter().map(|record| &*record.json).collect();
    let before = found.records.first().map_or("null".into(), |record| record.seq.to_string());
    let text = format!(
        "{{\"cursor\":{},\"before\":{before},\"more\":{},\"items\":[{}]}}\n",
        found.cursor,
        found.more,
        items.join(",")
    );
    answer::held(StatusCode::OK, JSON, text, room)
}

/// A stop and its incidents.
async fn stop(id: &str, shared: &Arc<Shared>) -> Response<Body> {
    let Ok(id) = percent_decode_str(id).decode_utf8() else { return answer::bad("the id is no UTF-8") };
    let durable = *shared.state.store.durable.borrow();
    let query = Query { stop: Some(id.clone().into_owned()), limit: Some(LIMIT_MAX), ..Query::default() };
    let (found, room) = match run(query, shared, durable).await {
        Ok(found) => found,
        Err(response) => return response,
    };
    let is_stop = Query { kind: Kind::Stops, ..Query::default() };
    let (stops, incidents): (Vec<&str>, Vec<&str>) =
        found.records.iter().map(|record| &*record.json).partition(|json| is_stop.matches(json));
    let Some(stop) = stops.last() else {
        let text = format!("no stop {id:?} is in the store: it goes on still, is too old, or never was");
        return answer::say(StatusCode::NOT_FOUND, &text);
    };
    let text = format!("{{\"stop\":{stop},\"more\":{},\"incidents\":[{}]}}\n", found.more, incidents.join(","));
    answer::held(StatusCode::OK, JSON, text, room)
}

async fn incident(id: &str, shared: &Arc<Shared>) -> Response<Body> {
    let Ok(id) = percent_decode_str(id).decode_utf8() else { return answer::bad("the id is no UTF-8") };
    let durable = *shared.state.store.durable.borrow();
    let id = Some(id.into_owned());
    let query = Query { kind: Kind::Incidents, id, limit: Some(1), ..Query::default() };
    match run(query, shared, durable).await {
        Ok((found, room)) => match found.records.into_iter().next() {
            Some(record) => answer::held(StatusCode::OK, JSON, record.json + "\n", room),
            None => answer::say(StatusCode::NOT_FOUND, "no such incident is in the store: it is too old, or never was"),
        },
        Err(response) => response,
    }
}
