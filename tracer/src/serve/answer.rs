//! Responses.

use super::room::Room;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use std::io;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) const JSON: &str = "application/json";
pub(super) const LINES: &str = "application/x-ndjson";
pub(super) const EVENTS: &str = "text/event-stream";
const PLAIN: &str = "text/plain; charset=utf-8";

pub(super) fn of(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Strings of processes are in here: nobody is to guess that they are a page.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn full(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    of(status, kind, Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync())
}

/// The same of what was looked up.
pub(super) fn held(status: StatusCode, kind: &'static str, text: String, room: Room) -> Response<Body> {
    of(status, kind, Full::new(room.of(text)).map_err(|never| match never {}).boxed_unsync())
}

/// One line for people, ended.
pub(super) fn say(status: StatusCode, text: &str) -> Response<Body> {
    let text = crate::sinks::escape::escape(text);
    full(status, PLAIN, format!("{text}\n"))
}

pub(super) fn bad(text: &str) -> Response<Body> {
    say(StatusCode::BAD_REQUEST, text)
}

pub(super) fn busy(text: &str) -> Response<Body> {
    let mut response = say(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
    response
}

pub(super) fn only_get() -> Response<Body> {
    let mut response = say(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}
