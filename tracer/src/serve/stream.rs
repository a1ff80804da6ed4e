//! `follow=1`: records as they become durable.

use super::Shared;
use super::answer::{self, Body, EVENTS, LINES};
use crate::store::Query;
use crate::store::scan::Scan;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Response, StatusCode};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Bytes that are read ahead of the client.
const CHUNK: usize = 64 << 10;
/// Records that are looked at before the next stream has its turn.
const TURN: usize = 2_000;

/// A client's place in the store.
struct Follower {
    /// `None` while a thread reads.
    scan: Option<Scan>,
    query: Query,
    events: bool,
    durable: watch::Receiver<u64>,
    ending: watch::Receiver<bool>,
    heartbeat: Duration,
    _permit: OwnedSemaphorePermit,
}

pub(super) fn follow(
    query: Query,
    after: u64,
    events: bool,
    permit: OwnedSemaphorePermit,
    shared: &Arc<Shared>,
) -> Response<Body> {
    let view = &shared.state.store;
    let follower = Follower {
        scan: Some(Scan::after(&view.dir, after)),
        query,
        events,
        durable: view.durable.clone(),
        ending: shared.ending.clone(),
        heartbeat: shared.bounds.heartbeat,
        _permit: permit,
    };
    let frames = stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Some(bytes)) => Some((Ok(Frame::data(Bytes::from(bytes))), Some(follower))),
            Ok(None) => None,
            Err(e) => Some((Err(e), None)),
        }
    });
    let kind = if events { EVENTS } else { LINES };
    answer::of(StatusCode::OK, kind, StreamBody::new(frames).boxed_unsync())
}

impl Follower {
    /// The next piece for the client; `None`: the server ends.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if *self.ending.borrow() {
                return Ok(None);
            }
            let upto = *self.durable.borrow_and_update();
            let scan = self.scan.take().ok_or_else(|| io::Error::other("a reader was lost"))?;
            let (query, events) = (self.query.clone(), self.events);
            let read = tokio::task::spawn_blocking(move || read(scan, &query, events, upto)).await;
            let Piece { scan, bytes, more } = read.map_err(io::Error::other)??;
            self.scan = Some(scan);
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if more {
                continue;
            }
            tokio::select! {
                biased;
                _ = self.ending.wait_for(|end| *end) => return Ok(None),
                news = self.durable.changed() => {
                    if news.is_err() {
                        // The store has ended.
                        return Ok(None);
                    }
                }
                () = tokio::time::sleep(self.heartbeat) => {
                    return Ok(Some(if self.events { b":\n\n".to_vec() } else { b"\n".to_vec() }));
                }
            }
        }
    }
}

/// What one turn gave.
struct Piece {
    scan: Scan,
    bytes: Vec<u8>,
    /// The turn was over before the records were.
    more: bool,
}

fn read(mut scan: Scan, query: &Query, events: bool, upto: u64) -> io::Result<Piece> {
    let mut bytes = Vec::new();
    for _ in 0..TURN {
        let Some(record) = scan.next(upto)? else { return Ok(Piece { scan, bytes, more: false }) };
        if !query.matches(&record.json) {
            continue;
        }
        if events {
            bytes.extend(format!("id: {}\ndata: {}\n\n", record.seq, record.json).bytes());
        } else {
            bytes.extend(record.json.bytes());
            bytes.push(b'\n');
        }
        if bytes.len() >= CHUNK {
            break;
        }
    }
    Ok(Piece { scan, bytes, more: true })
}
