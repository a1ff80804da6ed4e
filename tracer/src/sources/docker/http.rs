//! HTTP/1.1 over a unix socket: one connection for each question, bounded answers.

use super::super::runtimes::{CALL, Trouble, connect, within};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;

/// A list of all containers of a large node has a few megabytes.
const BODY_MAX: usize = 16 << 20;
/// One event. Its labels are the longest part.
const LINE_MAX: usize = 1 << 20;

async fn get(path: &Path, what: &'static str, target: &str) -> Result<Response<Incoming>, Trouble> {
    let stream = TokioIo::new(connect(path).await?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|e| Trouble::call(what, e))?;
    // Ends with the last of sender and body.
    tokio::spawn(async move { _ = connection.await });
    let request = Request::get(target)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|e| Trouble::call(what, e))?;
    sender.send_request(request).await.map_err(|e| Trouble::call(what, e))
}

/// The answer as JSON; `None`: there is no such thing (404).
pub(super) async fn json<T: DeserializeOwned>(
    path: &Path,
    what: &'static str,
    target: &str,
    after: Duration,
) -> Result<Option<T>, Trouble> {
    let answer = async {
        let response = get(path, what, target).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_MAX);
        let body = body.collect().await.map_err(|e| Trouble::call(what, e))?.to_bytes();
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|e| Trouble::call(what, e)),
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(Trouble::call(what, format!("{other}: {}", String::from_utf8_lossy(&body)))),
        }
    };
    within(after, what, answer).await?
}

/// A sign of life.
pub(super) async fn ping(path: &Path) -> Result<(), Trouble> {
    let answer = async {
        let response = get(path, "ping", "/_ping").await?;
        match response.status() {
            StatusCode::OK => Ok(()),
            other => Err(Trouble::call("ping", other)),
        }
    };
    within(CALL, "ping", answer).await?
}

/// An answer that goes on: JSON objects, one a line or one after another.
pub(super) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

pub(super) async fn lines(path: &Path, what: &'static str, target: &str) -> Result<Lines, Trouble> {
    let response = within(CALL, what, get(path, what, target)).await??;
    match response.status() {
        StatusCode::OK => Ok(Lines { body: response.into_body(), buffer: Vec::new() }),
        other => Err(Trouble::call(what, other)),
    }
}

impl Lines {
    /// The next object; what is none is passed over. Cancel-safe: what came stays in the buffer.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, Trouble> {
        loop {
            while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Ok(object) = serde_json::from_slice(&line) {
                    return Ok(object);
                }
            }
            let frame = self.body.frame().await.ok_or(Trouble::Ended)?;
            if let Ok(data) = frame.map_err(|_| Trouble::Ended)?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
            if self.buffer.len() > LINE_MAX && !self.buffer.contains(&b'\n') {
                return Err(Trouble::call("events", format!("a line of more than {LINE_MAX} bytes")));
            }
        }
    }
}
