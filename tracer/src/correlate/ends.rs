//! Requesting ends of connections, as records of this node showed them, and which of them belongs to a lost request.
//!
//! Behind address translation (Service DNAT, masquerading) the two ends of one connection have different addresses; what it
//! leaves alone are the sequence numbers. Both directions begin at a random number of 32 bits, and each end's counters
//! give it: docs/causes.md, "One request, several layers".

use super::lost::{Evidence, Lost, RefusedAt};
use super::recent::Recent;
use crate::identity::Group;
use crate::model::event::{BootNs, EventId, ProcKey, Side, Task, TcpNotice, TcpState, Tuple, tcp};
use std::net::IpAddr;
use std::sync::Arc;

/// Both ends of a connection learn of its end within a round trip and a turn of an event loop.
const NEAR_NS: u64 = 1_000_000_000;
/// Longer than a verdict may wait for the Kubernetes API.
const KEEP_NS: u64 = 20_000_000_000;
const MAX_ENTRIES: usize = 8_192;

/// How the requesting end came to know that there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It closed first, while it waited.
    GaveUp,
    /// It closed after the server's FIN, which had come in place of an answer.
    Eof,
    /// A reset came.
    Reset,
    /// A reset answered its SYN.
    Refused,
}

/// Where the two directions of a connection began: the sequence number of each SYN. `None`: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Began {
    pub requester: Option<u32>,
    pub server: Option<u32>,
}

impl Began {
    /// No number that both know differs.
    fn agrees(self, other: Began) -> bool {
        let same = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        same(self.requester, other.requester) && same(self.server, other.server)
    }
    /// They have a number in common, and none differs.
    fn same(self, other: Began) -> bool {
        let common = |a: Option<u32>, b: Option<u32>| a.is_some() && a == b;
        self.agrees(other) && (common(self.requester, other.requester) || common(self.server, other.server))
    }
}

/// One record of a requesting end.
#[derive(Clone, Debug)]
pub struct End {
    pub event: EventId,
    pub at: BootNs,
    /// From its own side.
    pub tuple: Tuple,
    /// v2 cgroup of its socket; 0 unknown.
    pub sk_cgroup: u64,
    pub how: How,
    /// Who closed it; a reset arrives in nobody's name.
    pub task: Option<Task>,
    began: Began,
}

/// Why an end is taken for the other one of a connection, the surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// The same addresses and ports, and no sequence number says otherwise.
    Addresses,
    /// Other addresses, the same sequence numbers: they were translated on the way.
    SequenceNumbers,
    /// The requester's address and port are the same and the times close, and that is all: linked, and nothing rests on it.
    AddressAndTime,
}

impl KnownBy {
    pub fn id(self) -> &'static str {
        match self {
            KnownBy::Addresses => "addresses",
            KnownBy::SequenceNumbers => "sequence-numbers",
            KnownBy::AddressAndTime => "address-and-time",
        }
    }
    /// It is the same connection, and not only probably.
    pub fn sure(self) -> bool {
        self != KnownBy::AddressAndTime
    }
}

/// The server's end first.
type Addresses = (IpAddr, u16, IpAddr, u16);

/// Requests that a process had open when it ended.
#[derive(Clone, Copy, Debug, Default)]
struct Went {
    /// At its servers.
    asked: u32,
    /// Of its own clients, without an answer.
    lost: u32,
}

/// Bounded, see [`Recent`].
pub struct Ends {
    by_addresses: Recent<Addresses, Arc<End>>,
    by_number: Recent<u32, Arc<End>>,
    by_source: Recent<(IpAddr, u16), Arc<End>>,
    /// By process: what went with it when it ended.
    went: Recent<ProcKey, Went>,
    evicted: u64,
}

impl Default for Ends {
    fn default() -> Self {
        Ends {
            by_addresses: Recent::new(MAX_ENTRIES, KEEP_NS),
            by_number: Recent::new(MAX_ENTRIES, KEEP_NS),
            by_source: Recent::new(MAX_ENTRIES, KEEP_NS),
            went: Recent::new(MAX_ENTRIES, KEEP_NS),
            evicted: 0,
        }
    }
}

impl Ends {
    /// A requesting end was closed by its process.
    pub fn closed(&mut self, event: EventId, at: BootNs, group: Group, s: &TcpState) {
        let how = match s.oldstate {
            tcp::ESTABLISHED => How::GaveUp,
            tcp::CLOSE_WAIT => How::Eof,
            _ => return,
        };
        let began = Began {
            requester: Some(s.snd_una.wrapping_sub(s.bytes_acked as u32)),
            server: Some(s.rcv_nxt.wrapping_sub(s.bytes_received as u32).wrapping_sub(1)),
        };
        if s.task.exiting() {
            self.went(at, group, s.task.key(), |went| went.asked += 1);
        }
        let task = Some(s.task.clone());
        self.add(group, End { event, at, tuple: s.tuple, sk_cgroup: s.sk_cgroup, how, task, began });
    }

    /// A reset came for a requesting end.
    pub fn reset(&mut self, event: EventId, at: BootNs, group: Group, n: &TcpNotice) {
        if n.side != Side::Client {
            return;
        }
        let how = if n.state == tcp::SYN_SENT { How::Refused } else { How::Reset };
        let known = how == How::Reset;
        let began = Began {
            requester: n.first_sent,
            server: n.first_received.filter(|_| known).map(|first| first.wrapping_sub(1)),
        };
        // Its process has closed it already: a reset that answers what it had sent is the rest of the same end.
        let told = self.by_addresses.get(&n.tuple.flipped()).is_some_and(|(t, e)| {
            e.task.is_some()
                && at.saturating_sub(*t) < NEAR_NS
                && e.tuple.netns == n.tuple.netns
                && e.began.agrees(began)
        });
        if !told {
            self.add(group, End { event, at, tuple: n.tuple, sk_cgroup: n.sk_cgroup, how, task: None, began });
        }
    }

    /// A process ended with a request of its client unanswered.
    pub fn lost_by_exit(&mut self, at: BootNs, group: Group, process: ProcKey) {
        self.went(at, group, process, |went| went.lost += 1);
    }

    fn went(&mut self, at: BootNs, group: Group, process: ProcKey, count: impl FnOnce(&mut Went)) {
        let mut went = self.went.get(&process).map_or_else(Went::default, |(_, went)| *went);
        count(&mut went);
        self.evicted += u64::from(self.went.insert(at, group, process, went).is_some());
    }

    /// For each request that this process had open at its servers when it ended, one of its own clients is known to have
    /// lost a request by that.
    pub fn told_of_its_own(&self, process: &ProcKey) -> bool {
        self.went.get(process).is_some_and(|(_, went)| went.lost >= went.asked)
    }

    fn add(&mut self, group: Group, end: End) {
        let (at, t, end) = (end.at, end.tuple, Arc::new(end));
        let mut early = 0;
        if let Some(number) = end.began.requester {
            early += u64::from(self.by_number.insert(at, group, number, end.clone()).is_some());
        }
        early += u64::from(self.by_source.insert(at, group, (t.local_ip, t.local_port), end.clone()).is_some());
        early += u64::from(self.by_addresses.insert(at, group, t.flipped(), end).is_some());
        self.evicted += early;
    }

    /// The requesting end of the connection that a request was lost on, and how it is known to be it.
    pub fn of(&self, lost: &Lost) -> Option<(KnownBy, &End)> {
        let t = lost.tcp()?;
        let began = began(lost);
        // Loopback addresses mean something only within their namespace.
        let reaches = |end: &End| !t.remote_ip.is_loopback() || end.tuple.netns == t.netns;
        let near =
            |(at, end): &&(BootNs, Arc<End>)| at.abs_diff(lost.at) < NEAR_NS && reaches(end) && end.began.agrees(began);
        let same = |found: &&(BootNs, Arc<End>)| near(found) && found.1.began.same(began);
        let by_addresses = self.by_addresses.get(&t.ends());
        if let Some((_, end)) = by_addresses.filter(same) {
            return Some((KnownBy::Addresses, end));
        }
        if let Some((_, end)) = began.requester.and_then(|number| self.by_number.get(&number)).filter(same) {
            return Some((KnownBy::SequenceNumbers, end));
        }
        let by_source = || self.by_source.get(&(t.remote_ip, t.remote_port));
        let probable = by_addresses.filter(near).or_else(|| by_source().filter(near));
        probable.map(|(_, end)| (KnownBy::AddressAndTime, &**end))
    }

    /// The same, when it is surely it, and had closed first.
    pub fn gave_up(&self, lost: &Lost) -> Option<&End> {
        self.of(lost).filter(|(by, end)| by.sure() && end.how == How::GaveUp).map(|(_, end)| end)
    }

    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// Where the connection of a lost request began, as the records of its server's side tell.
fn began(lost: &Lost) -> Began {
    let before = |first: u32| first.wrapping_sub(1);
    match &lost.evidence {
        Evidence::Close { state: s, .. } => Began {
            requester: Some(before(s.rcv_nxt.wrapping_sub(s.bytes_received as u32))),
            server: Some(before(s.snd_una.wrapping_sub(s.bytes_acked as u32))),
        },
        // Its FIN is counted as a received byte.
        Evidence::ThrownAway(thrown) => thrown.left.as_ref().map_or_else(Began::default, |s| Began {
            requester: Some(before(s.rcv_nxt.wrapping_sub(s.bytes_received as u32))),
            server: None,
        }),
        Evidence::Refused { seen: RefusedAt::Server(r), .. } => Began { requester: Some(r.in_seq), server: None },
        Evidence::LateData { reset, .. } => {
            let digest = reset.digest.as_ref().filter(|d| d.rcv_nxt != 0);
            let first = digest.map(|d| d.rcv_nxt.wrapping_sub(d.bytes_received as u32));
            Began { requester: first.map(before), server: None }
        }
        Evidence::Handshake { reset: r, .. } => {
            // Nothing of the connection had been received: its last ACK, or its first bytes.
            let first = if r.active { r.rcv_nxt.wrapping_sub(r.bytes_received as u32) } else { r.in_seq };
            Began { requester: Some(before(first)), server: None }
        }
        Evidence::Refused { seen: RefusedAt::Requester(_), .. }
        | Evidence::UnixClose { .. }
        | Evidence::UnixRefused { .. }
        | Evidence::NotConnected { .. }
        | Evidence::ErrorMade(_) => Began::default(),
    }
}
