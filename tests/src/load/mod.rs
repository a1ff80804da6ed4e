//! The load client: closed-loop connections in one epoll loop, and a ledger line per request.
//!
//! It behaves as a careful client does: before a request goes out on a kept connection, the connection is looked at, and
//! one that the server has closed meanwhile is replaced. What remains is the race that no client can avoid: the close is
//! under way while the request is. Those requests are lost, and the ledger says so.

mod client;
mod http;
mod record;
mod shape;

pub use client::{Load, Progress};
pub use record::{Outcome, Request, read_ledger, write_ledger};

use std::net::SocketAddr;
use std::time::Duration;

/// What to send, how often, and until when.
#[derive(Clone, Debug)]
pub struct LoadConf {
    pub target: SocketAddr,
    /// Absolute path; `id=<request id>` is added to its query.
    pub path: String,
    /// Further paths, taken in turn.
    pub more_paths: Vec<String>,
    pub connections: usize,
    /// Else every request has a connection of its own, and says `Connection: close`.
    pub keep_alive: bool,
    /// Between an answer and the next request of that connection.
    pub think: Duration,
    /// Requests per second of all connections together; without it as fast as the answers come.
    pub rate: Option<f64>,
    pub shape: Shape,
    /// Hang up so long after the request was sent.
    pub abort: Option<(Duration, Abort)>,
    /// For each of: connecting, and the answer.
    pub timeout: Duration,
    /// A connection waits so long after it was refused, or answered with a status of 500 or above.
    pub refused_pause: Duration,
    /// Stop by itself after so many attempts (requests sent, or connections that failed).
    pub max_attempts: Option<u64>,
    /// Stop by itself after so many refused connections.
    pub max_refused: Option<u64>,
    /// Before every request id, to tell loads apart.
    pub prefix: String,
}

impl LoadConf {
    pub fn new(target: SocketAddr, path: &str) -> Self {
        Self {
            target,
            path: path.into(),
            more_paths: Vec::new(),
            connections: 1,
            keep_alive: true,
            think: Duration::ZERO,
            rate: None,
            shape: Shape::Get,
            abort: None,
            timeout: Duration::from_secs(30),
            refused_pause: Duration::from_millis(20),
            max_attempts: None,
            max_refused: None,
            prefix: "r".into(),
        }
    }
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Get,
    /// A POST with so many bytes of body, with or without waiting for `100 Continue`.
    Upload {
        bytes: usize,
        expect: bool,
    },
    /// The first half of a request's header, and nothing more.
    PartialHeader,
    /// The whole header of a POST and half of its body, and nothing more.
    PartialBody,
    /// No request at all: held for so long, or until the server closes.
    Idle(Duration),
    /// An HTTP/2 connection that never opens a stream, held for so long or until the server closes.
    IdleHttp2(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// close(2)
    Fin,
    /// close(2) with SO_LINGER 0
    Rst,
}
