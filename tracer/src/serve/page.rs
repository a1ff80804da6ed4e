//! Pages for people: the list at `/`, a stop with its picture, an incident, and their style.

use super::answer::{self, Body};
use super::room::Room;
use super::{Shared, lookup, params};
use crate::kernel::clock;
use crate::page::{self, ListPage, ROWS_MAX, StopPage};
use crate::sinks::json;
use crate::store::View;
use crate::store::query::Query;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, VARY};
use hyper::{Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use std::io;

const FRONT: &str = "\
why502

/              for browsers: incidents and stops with pictures (/stop/ID, /incident/ID)
/metrics       Prometheus
/healthz       200 while the pipeline moves; what is wrong, as JSON
/readyz        200 once every lost request is seen
/incidents     lost requests, the newest 100: JSON, oldest first
/stops         terminations of containers, the same
/records       both, in the order in which they became final
/incidents/ID  an incident
/stops/ID      a stop with its incidents

Filters of the lists: namespace, pod, workload, cause (ids, with commas), id, stop, since, until (a time, or 10m ago)
Pages:                limit (1 to 1000), after=CURSOR forwards, before=CURSOR backwards
Streams:              follow=1: a JSON object a line; with `Accept: text/event-stream` as events with their cursors
";

/// The list for browsers, what there is for everybody else.
pub(super) async fn front(request: &Request<Incoming>, shared: &Shared) -> Response<Body> {
    let kinds = request.headers().get(ACCEPT).and_then(|kinds| kinds.to_str().ok()).unwrap_or_default();
    let mut response = if kinds.split(',').any(|kind| kind.trim().starts_with("text/html")) {
        list(request.uri().query().unwrap_or_default(), shared).await
    } else {
        answer::full(StatusCode::OK, "text/plain; charset=utf-8", FRONT.to_owned())
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

pub(super) fn style() -> Response<Body> {
    answer::full(StatusCode::OK, "text/css; charset=utf-8", page::STYLE.to_owned())
}

const HTML: &str = "text/html; charset=utf-8";

fn html(status: StatusCode, text: String) -> Response<Body> {
    as_page(answer::full(status, HTML, text))
}

/// Of what was looked up.
fn looked_up(status: StatusCode, text: String, room: Room) -> Response<Body> {
    as_page(answer::held(status, HTML, text, room))
}

fn as_page(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::CSP));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn missing(what: &str) -> Response<Body> {
    html(StatusCode::NOT_FOUND, page::message("Not found", what))
}

fn broken(why: &io::Error) -> Response<Body> {
    html(StatusCode::INTERNAL_SERVER_ERROR, page::message("The store cannot be read", &why.to_string()))
}

/// On a thread that may wait for the disk.
async fn read<T: Send + 'static>(
    shared: &Shared,
    look: impl FnOnce(&View, u64) -> io::Result<T> + Send + 'static,
) -> Result<(T, Room), Response<Body>> {
    let room = Room::get(shared).await?;
    let view = shared.state.store.clone();
    let durable = *view.durable.borrow();
    let found = tokio::task::spawn_blocking(move || look(&view, durable)).await.map_err(io::Error::other);
    match found.flatten() {
        Ok(found) => Ok((found, room)),
        Err(e) => Err(broken(&e)),
    }
}

async fn list(text: &str, shared: &Shared) -> Response<Body> {
    let (filter, query) = params::form(text, clock::sample().wall_ns);
    let (query, problem) = match query {
        Ok(query) => (Some(query), None),
        Err(why) => (None, Some(why)),
    };
    let paged = query.as_ref().is_some_and(|query| query.before.is_some());
    let limit = Some(ROWS_MAX);
    let query = query.map(|query| Query { limit, after: None, ..query });
    let rows = read(shared, move |view, upto| {
        let found = query.map(|query| query.run(&view.dir, upto)).transpose()?.unwrap_or_default();
        // Newest first.
        let rows: Vec<_> = found.records.iter().rev().filter_map(|record| json::parse(&record.json).ok()).collect();
        let older = found.records.first().filter(|_| found.more).map(|record| record.seq);
        Ok((found.records.len() - rows.len(), rows, older))
    });
    let ((unknown, rows, older), room) = match rows.await {
        Ok(found) => found,
        Err(response) => return response,
    };
    let mut notices = notices(shared);
    if unknown > 0 {
        notices.push(format!("{unknown} records are of another version of why502 and not shown; /records has them."));
    }
    let node = shared.state.tally().node().to_owned();
    let problem = problem.as_deref();
    let page =
        page::list(&ListPage { node: &node, filter: &filter, rows: &rows, older, paged, problem, notices: &notices });
    looked_up(if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK }, page, room)
}

/// Why the list may lack something.
fn notices(shared: &Shared) -> Vec<String> {
    let (ready, started, degraded) = {
        let tally = shared.state.tally();
        (tally.is_ready(), tally.has_started(), tally.degraded_texts())
    };
    let store = shared.state.store.stats();
    let mut all = Vec::new();
    if !ready {
        let what = if started { "Not every lost request is seen yet, or not any more" } else { "It is starting" };
        all.push(format!("{what}: /healthz says more."));
    }
    all.extend(degraded.iter().map(|degraded| format!("Not everything is seen on this host: {degraded}")));
    all.extend(store.failing.map(|why| format!("New incidents cannot be written, they wait in memory: {why}")));
    if store.dropped > 0 {
        all.push(format!("{} records were lost because the disk did not take them.", store.dropped));
    }
    all
}

fn decoded(id: &str) -> Option<String> {
    percent_decode_str(id).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

pub(super) async fn stop(id: &str, shared: &Shared) -> Response<Body> {
    let gone = || missing("No such stop is in the store: it goes on still, is too old, or never was.");
    let Some(id) = decoded(id) else { return gone() };
    let found = read(shared, move |view, upto| {
        let whole = lookup::stop(&view.dir, &id, upto)?;
        // Drawn there as well: thousands of requests take their time.
        Ok(whole.map(|whole| {
            let lookup::Whole { stop, others, incidents, left_out } = &whole;
            page::stop(&StopPage { stop, others, incidents, left_out: *left_out })
        }))
    });
    match found.await {
        Ok((Some(page), room)) => looked_up(StatusCode::OK, page, room),
        Ok((None, _)) => gone(),
        Err(response) => response,
    }
}

pub(super) async fn incident(id: &str, shared: &Shared) -> Response<Body> {
    let gone = || missing("No such incident is in the store: it is too old, or never was.");
    let Some(id) = decoded(id) else { return gone() };
    match read(shared, move |view, upto| lookup::incident(&view.dir, &id, upto)).await {
        Ok((Some(incident), room)) => looked_up(StatusCode::OK, page::incident(&incident), room),
        Ok((None, _)) => gone(),
        Err(response) => response,
    }
}
