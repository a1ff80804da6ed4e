//! The way to the receiver: one request for a batch, and what its answer means by OTLP's specification.

use super::messages::{ExportResponse, Status};
use super::record::Entry;
use super::request;
use super::settings::{Endpoint, Settings};
use crate::sinks::outbox::{Carrier, Sent};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use prost::Message;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read, and of what it says that are told.
const ANSWER: usize = 64 << 10;
const SAID: usize = 200;
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Carries records to a receiver, over one connection as long as it lasts.
pub struct Receiver {
    settings: Settings,
    kept: Option<SendRequest<Full<Bytes>>>,
}

impl Receiver {
    pub fn new(settings: Settings) -> Receiver {
        Receiver { settings, kept: None }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let endpoint = &self.settings.endpoint;
        let unreachable = |why: String| format!("{endpoint} cannot be reached: {why}");
        let stream = match timeout(CONNECT, TcpStream::connect(&endpoint.authority)).await {
            Ok(connected) => connected.map_err(|e| unreachable(e.to_string()))?,
            Err(_) => return Err(unreachable("no answer".into())),
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(e.to_string()))?;
        // It ends with the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn post(&self, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let Settings { endpoint, headers, .. } = &self.settings;
        let mut request = Request::post(&endpoint.path);
        if let Some(all) = request.headers_mut() {
            all.extend(headers.0.clone());
        }
        request
            .header(HOST, &endpoint.authority)
            .header(CONTENT_TYPE, PROTOBUF)
            .header(USER_AGENT, concat!("why502/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|e| e.to_string())
    }

    /// A kept connection may have ended without our having heard of it: then once more over a new one. A record that
    /// came twice is one that OTLP allows.
    async fn send(&mut self, body: Bytes) -> Result<Response<Incoming>, String> {
        if let Some(mut sender) = self.kept.take()
            && sender.ready().await.is_ok()
            && let Ok(response) = sender.send_request(self.post(body.clone())?).await
        {
            self.kept = Some(sender);
            return Ok(response);
        }
        let mut sender = self.connect().await?;
        let sent = sender.send_request(self.post(body)?).await;
        let response = sent.map_err(|e| format!("{} does not answer: {e}", self.settings.endpoint))?;
        self.kept = Some(sender);
        Ok(response)
    }
}

impl Carrier for Receiver {
    type Item = Entry;
    /// A record is 4 KiB or so, and receivers refuse what is larger than some MiB.
    const BATCH: usize = 256;

    async fn carry(&mut self, items: &[Entry]) -> Sent {
        let response = match self.send(request(items, &self.settings.attributes).into()).await {
            Ok(response) => response,
            Err(why) => return Sent::Later { after: None, why },
        };
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) => {
                self.kept = None;
                // What it took is not known; that is like no answer.
                return Sent::Later { after: None, why: format!("{} broke off: {e}", self.settings.endpoint) };
            }
        };
        became(&self.settings.endpoint, head.status, &head.headers, &body, Timestamp::now())
    }
}

/// What an answer means. `now` is for a `Retry-After` that is a date.
fn became(endpoint: &Endpoint, status: StatusCode, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Sent {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let protobuf = kind.starts_with("application/x-protobuf");
    if status.is_success() {
        if kind.starts_with("text/html") {
            return Sent::Refused { why: format!("{endpoint} answers with a page: that is no OTLP receiver") };
        }
        let response = protobuf.then(|| ExportResponse::decode(body).ok()).flatten().unwrap_or_default();
        let Some(partial) = response.partial_success else { return Sent::done() };
        let refused = u64::try_from(partial.rejected_log_records).unwrap_or(0);
        // A message without a number is a warning: all were taken.
        let why =
            (refused > 0).then(|| format!("{endpoint} refused {refused} records: {}", said(&partial.error_message)));
        return Sent::Done { refused, why };
    }
    let text = match protobuf.then(|| Status::decode(body).ok()).flatten() {
        Some(told) => told.message,
        None => String::from_utf8_lossy(body).into_owned(),
    };
    let why = format!("{endpoint} answers {}: {}", status.as_u16(), said(&text));
    match status.as_u16() {
        429 | 502 | 503 | 504 => Sent::Later { after: asked_to_wait(headers, now), why },
        _ => Sent::Refused { why },
    }
}

fn said(text: &str) -> &str {
    let text = text.trim();
    if text.is_empty() { "no reason given" } else { &text[..text.floor_char_boundary(SAID)] }
}

/// Seconds, or a date. One in the past is none.
fn asked_to_wait(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTimeParser::new().parse_timestamp(text).ok()?;
    Duration::try_from(at.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::super::messages::PartialSuccess;
    use super::*;
    use hyper::header::HeaderName;

    fn answer(status: u16, headers: &[(HeaderName, &'static str)], body: &[u8]) -> Sent {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        let now = "2026-11-22T14:00:00Z".parse().unwrap();
        became(&Endpoint::base("http://x:1").unwrap(), StatusCode::from_u16(status).unwrap(), &headers, body, now)
    }

    #[test]
    fn what_is_tried_again_and_when() {
        for status in [429, 502, 503, 504] {
            assert!(matches!(answer(status, &[], b""), Sent::Later { after: None, .. }), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 405, 408, 413, 415, 500, 501] {
            assert!(matches!(answer(status, &[], b""), Sent::Refused { .. }), "{status}");
        }
        let after = |text| match answer(503, &[(RETRY_AFTER, text)], b"") {
            Sent::Later { after, .. } => after.map(|after| after.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(after("7"), Some(7));
        assert_eq!(after("Sun, 22 Nov 2026 14:00:09 GMT"), Some(9));
        assert_eq!((after("Sun, 22 Nov 2026 13:00:09 GMT"), after("soon"), after("-1")), (None, None, None));
    }

    #[test]
    fn what_was_taken_and_what_was_not() {
        const KIND: (HeaderName, &str) = (CONTENT_TYPE, "application/x-protobuf");
        assert_eq!(answer(200, &[KIND], b""), Sent::done());
        assert_eq!(answer(204, &[], b""), Sent::done());
        let partly = |rejected_log_records, error_message: &str| {
            let partial_success = Some(PartialSuccess { rejected_log_records, error_message: error_message.into() });
            answer(200, &[KIND], &ExportResponse { partial_success }.encode_to_vec())
        };
        assert!(matches!(partly(2, "too long"), Sent::Done { refused: 2, why: Some(why) } if why.contains("too long")));
        assert_eq!(partly(0, "deprecated"), Sent::done());
        let refused = answer(400, &[KIND], &Status { message: "bad utf-8".into() }.encode_to_vec());
        assert!(matches!(&refused, Sent::Refused { why } if why.ends_with("answers 400: bad utf-8")), "{refused:?}");
        assert!(matches!(answer(200, &[(CONTENT_TYPE, "text/html; charset=utf-8")], b"hi"), Sent::Refused { .. }));
    }
}
