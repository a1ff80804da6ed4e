//! A lost request as the kernel showed it, before anybody asks why.

use super::answer::{Clause, Closer};
use super::kept::HalfClose;
use super::nginx::Failed;
use crate::identity::FoundBy;
use crate::model::event::{BootNs, EventId, ProcKey, ResetSent, Task, TcpState, Tuple, UnixDropped, UnixRefused};
use crate::model::incident::{Mechanism, Outcome};

/// What connect(2) fails with, include/uapi/asm-generic/errno-base.h and errno.h.
pub mod errno {
    pub const NOENT: u32 = 2;
    pub const AGAIN: u32 = 11;
    pub const PIPE: u32 = 32;
    pub const ADDRNOTAVAIL: u32 = 99;
    pub const NETUNREACH: u32 = 101;
    pub const CONNRESET: u32 = 104;
    pub const TIMEDOUT: u32 = 110;
    pub const CONNREFUSED: u32 = 111;
    pub const HOSTUNREACH: u32 = 113;
}

#[derive(Clone, Debug)]
pub struct Lost {
    /// The event that shows the loss.
    pub event: EventId,
    pub at: BootNs,
    /// From the server's side.
    pub conn: Conn,
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

/// What the request was, or would have been, carried by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conn {
    Tcp(Tuple),
    Unix {
        /// The server's address.
        path: String,
        /// Of the namespace in which the connection was made; 0 unknown.
        netns: u32,
        /// The server's socket, or the event where there is none: names the connection.
        id: u64,
    },
    /// nginx's connection to its client: what nginx said tells of the loss, and nothing of the connection does.
    Hidden {
        /// nginx's.
        netns: u32,
        /// The event: names the loss.
        id: u64,
        /// Where its socket could be read.
        client: Option<Tuple>,
    },
}

impl Lost {
    pub fn tcp(&self) -> Option<&Tuple> {
        match &self.conn {
            Conn::Tcp(tuple) => Some(tuple),
            Conn::Unix { .. } | Conn::Hidden { .. } => None,
        }
    }
    /// The ends of the connection, also of one that tells nothing of the loss.
    pub fn ends(&self) -> Option<&Tuple> {
        match &self.conn {
            Conn::Hidden { client, .. } => client.as_ref(),
            _ => self.tcp(),
        }
    }
    /// An attempt of nginx that ended before it had left: one without a port, or a way.
    pub fn no_connect(&self) -> bool {
        match &self.evidence {
            Evidence::NotConnected { why, .. } => matches!(why, NotConnected::NoPort),
            Evidence::ErrorMade(made) => made.failed.no_connect(),
            _ => false,
        }
    }
    /// The worker, where only its words tell of such an attempt.
    pub fn said_by(&self) -> Option<&Task> {
        match &self.evidence {
            Evidence::ErrorMade(made) => Some(&made.failed.logged.task).filter(|_| made.failed.no_connect()),
            _ => None,
        }
    }
    pub fn netns(&self) -> u32 {
        match &self.conn {
            Conn::Tcp(tuple) => tuple.netns,
            Conn::Unix { netns, .. } | Conn::Hidden { netns, .. } => *netns,
        }
    }
    /// What listened, for sentences: `port 80`, `unix:/run/php.sock`.
    pub fn address(&self) -> String {
        match &self.conn {
            Conn::Tcp(tuple) => format!("port {}", tuple.local_port),
            Conn::Unix { path, .. } => format!("unix:{path}"),
            Conn::Hidden { .. } => "a connection that is not known".into(),
        }
    }
    /// A process had the connection, and ended it without an answer.
    pub fn cut_in_flight(&self) -> bool {
        matches!(
            &self.evidence,
            Evidence::Close { closer: Closer::Local, .. } | Evidence::UnixClose { thrown: None, .. }
        )
    }
    /// Nobody had accepted it when its listener went.
    pub fn thrown_out_of_queue(&self) -> bool {
        matches!(
            &self.evidence,
            Evidence::Close { closer: Closer::AcceptQueue, .. }
                | Evidence::Handshake { .. }
                | Evidence::UnixClose { thrown: Some(_), .. }
        )
    }
    /// Nobody listened.
    pub fn refused(&self) -> bool {
        match &self.evidence {
            Evidence::Refused { .. } => true,
            Evidence::UnixRefused { what, .. } => what.error != errno::AGAIN,
            _ => false,
        }
    }
    /// There was a listener, and no room in its queue.
    pub fn queue_full(&self) -> bool {
        matches!(&self.evidence, Evidence::UnixRefused { what, .. } if what.error == errno::AGAIN)
    }
    /// Data came for a connection that the server had closed.
    pub fn late_data(&self) -> bool {
        matches!(self.evidence, Evidence::LateData { .. })
    }
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
    /// Nobody listened; `closed`: who had, until when.
    Refused { seen: RefusedAt, closed: Option<ListenerClosed> },
    /// Data came for a connection that the server had closed.
    LateData { reset: Box<ResetSent>, closed_at: Option<BootNs> },
    /// The client believed itself connected, the half-open connection had gone with its listener.
    Handshake { reset: Box<ResetSent>, closed: ListenerClosed },
    /// A connect of nginx failed, and not because nobody listened.
    NotConnected { state: Box<TcpState>, why: NotConnected },
    /// An AF_UNIX connection was closed with bytes unread; `thrown`: nobody had accepted it.
    UnixClose { dropped: Box<UnixDropped>, thrown: Option<Thrown> },
    /// An AF_UNIX connect failed; `found`: how its server was told, `full_since`: since when its queue is full.
    UnixRefused { what: Box<UnixRefused>, found: Option<FoundBy>, full_since: Option<BootNs> },
    /// php-fpm half-closed a kept connection and threw away the request that came on it.
    ThrownAway(Box<ThrownAway>),
    /// nginx answered with an error page, for a reason that no kernel knows.
    ErrorMade(Box<ErrorMade>),
}

/// A request on a kept connection that its server had done with.
#[derive(Clone, Debug)]
pub struct ThrownAway {
    /// What nginx said of it, and the page that it made.
    pub failed: Failed,
    /// The half close, where the request was unread then.
    pub half: Option<HalfClose>,
    /// The server's end when nginx closed its own, or when it was half-closed. `None`: on a unix socket, which shows neither.
    pub left: Option<Box<TcpState>>,
}

/// A request that failed in nginx alone.
#[derive(Clone, Debug)]
pub struct ErrorMade {
    pub status: u32,
    pub own: Own,
    pub failed: Failed,
}

/// Reasons of nginx's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// The upstream answered with what nginx does not take; the sub_cause.
    Invalid(&'static str),
    /// All servers of the upstream are left alone because they failed: nginx asked none of them.
    NoLive,
    /// The upstream has no address.
    Unresolved,
    /// connect() said at once that no way leads there: ENETUNREACH, EHOSTUNREACH.
    NoWay { errno: u32 },
    /// connect() said at once EADDRNOTAVAIL, and not for want of a port: there was no address to connect from.
    NoAddress,
}

/// Why a connect failed.
#[derive(Clone, Debug)]
pub enum NotConnected {
    /// There was no local port for it.
    NoPort,
    /// No way led there. `alone`: nothing but nginx runs in the container whose socket it was.
    Unreachable { alone: bool },
    /// Its SYNs were not answered. `full`: the listener had no room in its queue.
    GivenUp { full: Option<QueueFull> },
}

/// The record of a listener whose accept queue had just been filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    pub event: EventId,
    pub at: BootNs,
    /// Connections that it holds.
    pub holds: u32,
}

/// The end at which a refused connection was seen.
#[derive(Clone, Debug)]
pub enum RefusedAt {
    /// Its SYN was answered with a reset: the port had been open.
    Server(Box<ResetSent>),
    /// The connect failed: the port had never been open, or this kernel does not tell of such resets.
    Requester(Box<TcpState>),
}

/// The record of a connection that a closing AF_UNIX listener had in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thrown {
    pub event: EventId,
    pub at: BootNs,
}

/// The close of the last socket that listened on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerClosed {
    pub event: EventId,
    pub at: BootNs,
    pub task: Task,
}
