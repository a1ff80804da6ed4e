//! A lost request as the kernel showed it, before anybody asks why.

use super::answer::{Clause, Closer};
use crate::model::event::{BootNs, EventId, ProcKey, ResetSent, Task, TcpState, Tuple};
use crate::model::incident::{Mechanism, Outcome};

#[derive(Clone, Debug)]
pub struct Lost {
    /// The event that shows the loss.
    pub event: EventId,
    pub at: BootNs,
    /// From the server's side.
    pub tuple: Tuple,
    pub outcome: Outcome,
    pub mechanism: Mechanism,
    pub evidence: Evidence,
    /// Who closed the connection, or the listener that would have taken it.
    pub server: Option<Actor>,
    /// v2 cgroup of the socket; 0 unknown.
    pub sk_cgroup: u64,
    /// Bytes that went on this connection before.
    pub bytes_sent: u64,
    pub age_ms: Option<u64>,
}

impl Lost {
    /// Data that came too late for a connection on which nothing had ever passed: its first request, not a race on a kept
    /// connection.
    pub fn first_request(&self) -> bool {
        let Evidence::LateData { reset, .. } = &self.evidence else { return false };
        reset.digest.as_ref().is_some_and(|d| d.bytes_received == 0 && d.bytes_sent == 0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub key: ProcKey,
    /// From a record where it was `current`; absent when only a digest or the listener table names it.
    pub task: Option<Task>,
    pub exiting: bool,
}

#[derive(Clone, Debug)]
pub enum Evidence {
    /// A connection left ESTABLISHED with its request unanswered.
    Close { state: Box<TcpState>, clause: Clause, closer: Closer },
    /// A SYN was answered with a reset: the port had been open.
    Refused { reset: Box<ResetSent>, closed: Option<ListenerClosed> },
    /// Data came for a connection that the server had closed.
    LateData { reset: Box<ResetSent>, closed_at: Option<BootNs> },
    /// The client believed itself connected, the half-open connection had gone with its listener.
    Handshake { reset: Box<ResetSent>, closed: ListenerClosed },
}

/// The close of the last socket that listened on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerClosed {
    pub event: EventId,
    pub at: BootNs,
    pub task: Task,
}
