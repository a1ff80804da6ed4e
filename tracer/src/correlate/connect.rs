//! Connects of nginx that failed: refused, without a local port, to somewhere that no way leads to, given up.

use super::detect::{SAME_CLOSE_NS, listener_closed, of_a_dead_pod};
use super::history::History;
use super::lost::{Actor, Conn, Evidence, Lost, NotConnected, RefusedAt, errno};
use crate::identity::{ListenState, Process, Role, ServerKind, Table};
use crate::model::event::{Event, Task, TcpState, Tuple, tcp};
use crate::model::incident::{Mechanism, Outcome};

/// `s`: a client's socket that went from SYN_SENT to CLOSE.
pub fn failed(event: &Event, s: &TcpState, table: &Table, history: &History) -> Option<Lost> {
    match s.sk_err {
        errno::CONNREFUSED => refused(event, s, table, history),
        0 if s.tuple.local_port == 0 => by_nginx(&s.task, table).then(|| {
            let actor = Actor { key: s.task.key(), task: Some(s.task.clone()), exiting: false };
            lost(event, s, Mechanism::LocalError, NotConnected::NoPort, Some(actor))
        }),
        0 if s.total_retrans > 0 => given_up(event, s, table, history),
        errno::HOSTUNREACH | errno::NETUNREACH => {
            let (process, alone) = nginx_of_socket(s, table)?;
            let actor = Actor { key: process.key, task: None, exiting: false };
            let why = NotConnected::Unreachable { alone };
            Some(lost(event, s, Mechanism::NetworkGone, why, Some(actor)))
        }
        _ => None,
    }
}

fn lost(event: &Event, s: &TcpState, mechanism: Mechanism, why: NotConnected, server: Option<Actor>) -> Lost {
    Lost {
        event: event.id,
        at: event.at,
        conn: Conn::Tcp(from_the_server(&s.tuple)),
        outcome: Outcome::Refused,
        mechanism,
        server,
        sk_cgroup: s.sk_cgroup,
        bytes_sent: 0,
        age_ms: None,
        evidence: Evidence::NotConnected { state: Box::new(s.clone()), why },
    }
}

/// The other end's tuple; the namespace stays that of the client.
fn from_the_server(t: &Tuple) -> Tuple {
    let (local_ip, local_port, remote_ip, remote_port) = t.flipped();
    Tuple { local_ip, local_port, remote_ip, remote_port, netns: t.netns }
}

fn by_nginx(task: &Task, table: &Table) -> bool {
    let role = table.role(&task.key());
    role.sure && matches!(role.role, Role::NginxWorker | Role::NginxMaster)
}

/// The nginx whose socket this is, when an error came for it while somebody else ran: by its cgroup, which an accepted or
/// a connected socket has of its maker; and whether nothing but nginx runs there.
fn nginx_of_socket<'t>(s: &TcpState, table: &'t Table) -> Option<(&'t Process, bool)> {
    let there =
        || table.processes().filter(|p| p.exited.is_none() && p.cgroup == s.sk_cgroup && p.netns == s.tuple.netns);
    let is = |p: &&Process, role| table.role(&p.key).role == role && table.role(&p.key).sure;
    let mut masters = there().filter(|p| is(p, Role::NginxMaster));
    let master = masters.next().filter(|_| masters.next().is_none() && s.sk_cgroup != 0)?;
    let nginx = [Role::NginxMaster, Role::NginxWorker, Role::Init];
    let alone = there().all(|p| nginx.contains(&table.role(&p.key).role) || p.ns_pid == 1);
    Some((master, alone))
}

/// An nginx was refused by a port of its own network namespace: what it passes requests on to is not there. The reset that
/// refused it tells more, where there is a record of it.
fn refused(event: &Event, s: &TcpState, table: &Table, history: &History) -> Option<Lost> {
    if !by_nginx(&s.task, table) {
        return None;
    }
    let tuple = from_the_server(&s.tuple);
    let listening = table.listeners().state_at(tuple.netns, tuple.local_ip, tuple.local_port, event.at);
    let dead = of_a_dead_pod(&listening, tuple.netns, table, history);
    // A port that the kernel's table knows of an earlier namespace of this number, and nobody else does: its resets tell nothing.
    let told = !dead
        && !matches!(listening, ListenState::NeverSeen)
        && history.reset_of(&tuple, event.at.saturating_sub(SAME_CLOSE_NS)).is_some();
    if told || matches!(listening, ListenState::Listening { .. }) {
        return None;
    }
    let closed = listener_closed(&listening, history, event.at).filter(|_| !dead);
    Some(Lost {
        event: event.id,
        at: event.at,
        conn: Conn::Tcp(tuple),
        outcome: Outcome::Refused,
        mechanism: Mechanism::UpstreamRefused,
        server: closed.as_ref().map(|c| Actor {
            key: c.task.key(),
            task: Some(c.task.clone()),
            exiting: c.task.exiting(),
        }),
        sk_cgroup: closed.as_ref().map_or(0, |c| c.task.cgroup),
        bytes_sent: 0,
        age_ms: None,
        evidence: Evidence::Refused { seen: RefusedAt::Requester(Box::new(s.clone())), closed },
    })
}

/// An nginx sent its SYN more than once to a server that listens, and gave up: there was no room in the accept queue. What
/// is not known to listen is not judged: a packet may be lost for many reasons.
fn given_up(event: &Event, s: &TcpState, table: &Table, history: &History) -> Option<Lost> {
    if !by_nginx(&s.task, table) {
        return None;
    }
    let t = from_the_server(&s.tuple);
    let server = table.server_at(t.netns, t.local_ip, t.local_port, event.at)?;
    let listens = matches!(
        table.listeners().state_at(t.netns, t.local_ip, t.local_port, event.at),
        ListenState::Listening { .. }
    );
    if !listens || !matches!(server.kind, ServerKind::Nginx | ServerKind::PhpFpm) {
        return None;
    }
    let full = history.queue_full(t.netns, t.local_port, event.at).cloned();
    let actor = server.process.map(|key| Actor { key, task: None, exiting: false });
    let mut lost = lost(event, s, Mechanism::UpstreamQueueFull, NotConnected::GivenUp { full }, actor);
    // Its own socket is nginx's; the server's is not there.
    lost.sk_cgroup = 0;
    Some(lost)
}

/// The record of a listener that has no room for another connection.
pub fn queue_full(s: &TcpState) -> bool {
    s.oldstate == tcp::LISTEN && s.newstate == tcp::SYN_RECV && s.ack_backlog >= s.max_ack_backlog
}
