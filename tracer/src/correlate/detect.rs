//! Events → lost requests.

use super::answer::{self, Closer};
use super::connect;
use super::history::History;
use super::lost::{Actor, Conn, Evidence, ListenerClosed, Lost, RefusedAt};
use crate::identity::{ListenState, Role, Table};
use crate::model::event::{
    BootNs, Digest, Event, EventKind, ProcKey, ResetSent, ResetSocket, Side, TICK_NS, TcpState, tcp, tcp_flags,
};
use crate::model::incident::{Mechanism, Outcome};

/// Shortest thing that can be an HTTP request: "GET / HTTP/1.0\r\n\r\n" has 18 bytes. Below it are HTTP/2's SETTINGS ack
/// (9), WINDOW_UPDATE (13) and GOAWAY (17), which come after many orderly closes.
const SHORTEST_REQUEST: u32 = 18;
/// On TLS ports: a close_notify alert has up to 69 bytes (CBC with SHA-384), a request record more.
const SHORTEST_TLS_REQUEST: u32 = 80;
/// TIME_WAIT and FIN_WAIT2 last 60 s (include/net/tcp.h TCP_TIMEWAIT_LEN): data after that is of a new connection.
const DIGEST_NS: u64 = 65_000_000_000;
/// Data that was on its way at a close begins within a receive window of what was expected.
const SEQUENCE_WINDOW: u32 = 16 << 20;
/// What two CPUs report of one connection's end lies this close together.
pub(super) const SAME_CLOSE_NS: u64 = 100_000_000;
/// A half-open connection outlives its listener's close by a handshake: retransmitted SYN-ACKs included, a few seconds.
const HANDSHAKE_NS: u64 = 3_000_000_000;

/// Ports where TLS is expected. The kernel cannot see it, and TLS lets the client speak last on idle connections.
pub fn tls_port(port: u16) -> bool {
    matches!(port, 443 | 6443 | 8443 | 9443)
}

/// What this event shows to be lost, if anything. Accounts for it in `history`, so that the consequences of one loss
/// (a reset after the close) are not taken for another.
pub fn detect(event: &Event, table: &Table, history: &mut History, hz: Option<u32>) -> Option<Lost> {
    let lost = match &event.kind {
        EventKind::TcpState(s) if s.oldstate == tcp::ESTABLISHED && s.side == Side::Server => {
            closed(event, s, table, history, hz)
        }
        EventKind::TcpState(s) if s.oldstate == tcp::SYN_SENT && s.side == Side::Client => {
            connect::failed(event, s, table, history)
        }
        EventKind::ResetSent(r) if r.active => unfinished(event, r, table, history),
        EventKind::ResetSent(r) => reset(event, r, table, history),
        _ => None,
    }?;
    if lost.mechanism != Mechanism::Refused
        && let Conn::Tcp(tuple) = &lost.conn
    {
        history.account(lost.at, table.socket_group(lost.sk_cgroup, tuple.netns), tuple, socket(&lost.evidence));
    }
    Some(lost)
}

/// The socket of the connection itself, where the evidence is a record of it: a reset may be sent by another one.
fn socket(evidence: &Evidence) -> u64 {
    match evidence {
        Evidence::Close { state, .. } => state.sk,
        Evidence::Handshake { reset, .. } if reset.active => reset.sk,
        _ => 0,
    }
}

fn closed(event: &Event, s: &TcpState, table: &Table, history: &History, hz: Option<u32>) -> Option<Lost> {
    let closer = answer::closer(s);
    // On another CPU the client's data may have met the missing listener while this connection was being thrown out: that
    // reset has told of the request already.
    if closer == Closer::AcceptQueue
        && history.accounted_at(&s.tuple, s.sk).is_some_and(|at| event.at.abs_diff(at) < SAME_CLOSE_NS)
    {
        return None;
    }
    // In softirq `current` is whoever was interrupted.
    let in_process = matches!(closer, Closer::Local | Closer::AcceptQueue);
    let actor = in_process.then(|| Actor { key: s.task.key(), task: Some(s.task.clone()), exiting: s.task.exiting() });
    let owner = actor.as_ref().map(|a| a.key).or_else(|| listener_owner(table, event.at, s));
    let http = !owner.is_some_and(|key| php_fpm(table, &key));
    let clause = answer::unanswered(s, http)?;
    let queued = closer == Closer::AcceptQueue;
    Some(Lost {
        event: event.id,
        at: event.at,
        conn: Conn::Tcp(s.tuple),
        outcome: if queued { Outcome::Refused } else { Outcome::Unanswered },
        mechanism: if queued { Mechanism::ResetInAcceptQueue } else { Mechanism::ClosedInFlight },
        server: actor.or(owner.map(|key| Actor { key, task: None, exiting: false })),
        sk_cgroup: s.sk_cgroup,
        bytes_sent: s.bytes_sent,
        age_ms: answer::age_ms(s, hz),
        evidence: Evidence::Close { state: Box::new(s.clone()), clause, closer },
    })
}

/// The process behind the listener of a connection that somebody else closed.
fn listener_owner(table: &Table, at: BootNs, s: &TcpState) -> Option<ProcKey> {
    table.server_at(s.tuple.netns, s.tuple.local_ip, s.tuple.local_port, at).and_then(|i| i.process)
}

fn reset(event: &Event, r: &ResetSent, table: &Table, history: &History) -> Option<Lost> {
    let listening = table.listeners().state_at(r.tuple.netns, r.tuple.local_ip, r.tuple.local_port, event.at);
    if r.in_flags & tcp_flags::RST != 0 {
        return None;
    }
    if r.in_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN {
        return refused(event, r, &listening, table, history);
    }
    // Only the server's port counts: a client's TIME_WAIT is reset as well, in answer to a server that wrote too late.
    if !r.port_known || matches!(listening, ListenState::NeverSeen) && r.digest.is_none() {
        return None;
    }
    match &r.digest {
        // A port that came round again: the connection before it says nothing of this one.
        Some(digest) if of_another(r, digest) => return handshake(event, r, table, history),
        Some(digest) => return late_data(event, r, digest, table, history),
        None => {}
    }
    if r.in_len >= shortest(r) && r.socket == ResetSocket::TimeWait {
        // The digest was thrown out of the kernel's table: the close was seen, its circumstances are gone.
        return late(event, r, None, None);
    }
    handshake(event, r, table, history)
}

fn shortest(r: &ResetSent) -> u32 {
    if tls_port(r.tuple.local_port) { SHORTEST_TLS_REQUEST } else { SHORTEST_REQUEST }
}

fn refused(event: &Event, r: &ResetSent, listening: &ListenState, table: &Table, history: &History) -> Option<Lost> {
    let closed = match listening {
        // Scans, and probes before the server is up: nobody promised to answer there.
        ListenState::NeverSeen => return None,
        // Whether `::` takes IPv4 as well is not known: a SYN that is reset shows that it does not. The socket that did is gone.
        ListenState::Listening { .. } => {
            closed_lately(event, r, table, history).filter(|c| !history.netns_passed_on(r.tuple.netns, c.at, None))
        }
        state if of_a_dead_pod(state, r.tuple.netns, table, history) => return None,
        ListenState::Closed { .. } => listener_closed(listening, history, event.at),
    };
    let key = closed.as_ref().map(|c| c.task.key());
    let sk_cgroup = closed.as_ref().map_or(0, |c| c.task.cgroup);
    let owner = table.server_at(r.tuple.netns, r.tuple.local_ip, r.tuple.local_port, event.at);
    Some(Lost {
        event: event.id,
        at: event.at,
        conn: Conn::Tcp(r.tuple),
        outcome: Outcome::Refused,
        mechanism: Mechanism::Refused,
        server: match (&closed, key) {
            (Some(c), Some(key)) => Some(Actor { key, task: Some(c.task.clone()), exiting: c.task.exiting() }),
            _ => owner.and_then(|o| o.process).map(|key| Actor { key, task: None, exiting: false }),
        },
        sk_cgroup,
        bytes_sent: 0,
        age_ms: None,
        evidence: Evidence::Refused { seen: RefusedAt::Server(Box::new(r.clone())), closed },
    })
}

/// The namespace went to another pod since (inode numbers are given again at once): not this server's port.
pub(super) fn of_a_dead_pod(state: &ListenState, netns: u32, table: &Table, history: &History) -> bool {
    let ListenState::Closed { at, owner, .. } = state else { return false };
    let pod = table.server_of(owner).container.and_then(|c| c.container.pod_uid.as_deref());
    history.netns_passed_on(netns, *at, pod)
}

/// The digest is of an earlier connection of the same addresses: what came is far from its data in sequence space, ahead of it
/// and behind.
fn of_another(r: &ResetSent, digest: &Digest) -> bool {
    let ahead = r.in_seq.wrapping_sub(digest.rcv_nxt);
    digest.rcv_nxt != 0 && (SEQUENCE_WINDOW..=u32::MAX - SEQUENCE_WINDOW).contains(&ahead)
}

fn late_data(event: &Event, r: &ResetSent, digest: &Digest, table: &Table, history: &History) -> Option<Lost> {
    // A lingering close expects the rest of what it answered early; that is no new request.
    if digest.half_closed || r.in_len < shortest(r) {
        return None;
    }
    // Older than any TIME_WAIT, or sent before what was read last: no new request of that connection.
    let ahead = r.in_seq.wrapping_sub(digest.rcv_nxt);
    if event.at.saturating_sub(digest.at) > DIGEST_NS || digest.rcv_nxt != 0 && ahead > SEQUENCE_WINDOW {
        return None;
    }
    // The close itself was the loss, or an earlier segment of the same request already showed it.
    if let Some(at) = history.accounted_at(&r.tuple, 0)
        && at >= digest.at
    {
        return None;
    }
    // What was received and never answered before the close is not this request but one that the close cut.
    if digest.bytes_received > 0 && digest.bytes_sent == 0 {
        return None;
    }
    let closer = ProcKey { tgid: digest.tgid, start_ticks: digest.start_ns / TICK_NS };
    let untouched = digest.bytes_received == 0 && digest.bytes_sent == 0;
    // A connection that nobody had taken yet, ended by the kernel in whoever's task ran: its listener threw it out. A FIN
    // does not show that it had been accepted: what is cloned from a listener that is being closed inherits its sk_shutdown,
    // and tcp_rcv_state_process() ends it in order with the handshake's last ACK.
    if untouched
        && !serves(table, &closer)
        && let Some(closed) = closed_lately(event, r, table, history)
    {
        return Some(half_open(event, r, closed));
    }
    late(event, r, Some(digest), Some(digest.at))
}

/// nginx or php-fpm, as far as is known.
fn serves(table: &Table, key: &ProcKey) -> bool {
    use Role::{NginxMaster, NginxWorker, PhpFpmChild, PhpFpmMaster};
    matches!(table.role(key).role, NginxMaster | NginxWorker | PhpFpmMaster | PhpFpmChild)
}

/// The kernel resets a connection whose handshake is completed after its listener has gone
/// (inet_csk_reqsk_queue_add() finds it closed): no state of it was ever ESTABLISHED.
fn unfinished(event: &Event, r: &ResetSent, table: &Table, history: &History) -> Option<Lost> {
    if r.accepted || r.bytes_received != 0 || r.bytes_sent != 0 || !r.port_known {
        return None;
    }
    // Dropped from the accept queue: its own state change told that already.
    if history.accounted_at(&r.tuple, r.sk).is_some_and(|at| event.at.saturating_sub(at) < HANDSHAKE_NS) {
        return None;
    }
    Some(half_open(event, r, closed_lately(event, r, table, history)?))
}

fn late(event: &Event, r: &ResetSent, digest: Option<&Digest>, closed_at: Option<BootNs>) -> Option<Lost> {
    Some(Lost {
        event: event.id,
        at: event.at,
        conn: Conn::Tcp(r.tuple),
        outcome: Outcome::Unanswered,
        mechanism: Mechanism::DataAfterClose,
        server: digest.map(|d| Actor {
            key: ProcKey { tgid: d.tgid, start_ticks: d.start_ns / TICK_NS },
            task: None,
            exiting: d.flags & crate::model::Task::PF_EXITING != 0,
        }),
        sk_cgroup: digest.map_or(r.sk_cgroup, |d| d.sk_cgroup),
        bytes_sent: digest.map_or(0, |d| d.bytes_sent),
        age_ms: None,
        evidence: Evidence::LateData { reset: Box::new(r.clone()), closed_at },
    })
}

fn handshake(event: &Event, r: &ResetSent, table: &Table, history: &History) -> Option<Lost> {
    // With SO_REUSEPORT another socket of the port, which still listens, answers for the one that is gone.
    let nobodys = r.socket == ResetSocket::None || r.socket == ResetSocket::Full && r.state == tcp::LISTEN;
    if !nobodys || r.in_flags & tcp_flags::FIN != 0 && r.in_len == 0 {
        return None;
    }
    let closed = closed_lately(event, r, table, history)?;
    // Its socket was dropped from the accept queue, or the same client was refused already: one loss, one incident.
    if let Some(at) = history.accounted_at(&r.tuple, 0)
        && event.at.saturating_sub(at) < HANDSHAKE_NS
    {
        return None;
    }
    Some(half_open(event, r, closed))
}

/// A connection that its client believed open when the listener took it along.
fn half_open(event: &Event, r: &ResetSent, closed: ListenerClosed) -> Lost {
    Lost {
        event: event.id,
        at: event.at,
        conn: Conn::Tcp(r.tuple),
        outcome: Outcome::Refused,
        mechanism: Mechanism::HandshakeLost,
        server: Some(Actor { key: closed.task.key(), task: Some(closed.task.clone()), exiting: closed.task.exiting() }),
        sk_cgroup: closed.task.cgroup,
        bytes_sent: 0,
        age_ms: None,
        evidence: Evidence::Handshake { reset: Box::new(r.clone()), closed },
    }
}

fn php_fpm(table: &Table, key: &ProcKey) -> bool {
    matches!(table.role(key).role, Role::PhpFpmMaster | Role::PhpFpmChild)
}

/// The last close of a socket that listened here, within the life of a handshake: with SO_REUSEPORT the port may listen on.
fn closed_lately(event: &Event, r: &ResetSent, table: &Table, history: &History) -> Option<ListenerClosed> {
    let t = &r.tuple;
    let from = event.at.saturating_sub(HANDSHAKE_NS);
    let closes = table.listeners().closes(t.netns, t.local_ip, t.local_port, from, event.at);
    closes.iter().rev().find_map(|c| {
        let id = c.event?;
        Some(ListenerClosed { event: id, at: c.at, task: history.listener_closer(id, event.at)?.clone() })
    })
}

/// The close that ended the listening, when its event is still known.
pub(super) fn listener_closed(state: &ListenState, history: &History, now: BootNs) -> Option<ListenerClosed> {
    let ListenState::Closed { event: Some(event), at, .. } = state else { return None };
    Some(ListenerClosed { event: *event, at: *at, task: history.listener_closer(*event, now)?.clone() })
}
