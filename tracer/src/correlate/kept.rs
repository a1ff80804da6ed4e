//! Kept connections of php-fpm (`fastcgi_keep_conn on`) whose child has done its `pm.max_requests`: it half-closes after its
//! last answer, reads and throws away whatever has come, and exits when nginx has closed (fcgi_close() of main/fastcgi.c). There
//! is no reset and no byte is left unread, so no close of a socket shows the loss; that a request was lost is known from nginx
//! alone, which says that the connection had ended and makes an error page. Without the page nothing was lost: nginx repeats a
//! GET on another connection.

use super::history::{History, sig};
use super::lost::{Actor, Conn, Evidence, Lost, ThrownAway};
use super::nginx::{Failed, Nginx};
use crate::identity::{Role, ServerKind, Table};
use crate::model::event::{BootNs, Event, EventId, EventKind, ProcKey, Side, Task, TcpState, Tuple, tcp};
use crate::model::incident::{Mechanism, Outcome};
use std::collections::{BTreeMap, VecDeque};

/// include/net/sock.h SEND_SHUTDOWN.
const SEND_SHUTDOWN: u8 = 2;
/// A child ends as soon as nginx has closed; before that it shuts its modules down.
pub const EXIT_NS: u64 = 500_000_000;
/// nginx closes a connection that ended in the next turn of its event loop.
const TURN_NS: u64 = 1_000_000_000;
/// Entries of each kind; the oldest go first.
const MAX_ENTRIES: usize = 4_096;

/// A child's half close of a connection with a request unread on it.
#[derive(Clone, Debug)]
pub struct HalfClose {
    pub event: EventId,
    pub at: BootNs,
    /// The child's end, in the child's name.
    pub state: Box<TcpState>,
}

/// The close of nginx on such a connection, between its line and its page.
#[derive(Clone, Debug)]
struct Left {
    line: EventId,
    seen: SeenBy,
}

/// Which end shows that nginx closed.
#[derive(Clone, Debug)]
enum SeenBy {
    /// The child's, reached by nginx's FIN in nginx's own name.
    Child(Box<TcpState>),
    /// nginx's. The FIN may wait until the child is done with its socket (`sk_backlog`), and is told in the child's name then,
    /// after the page.
    Nginx(Tuple),
}

/// See the module.
#[derive(Default)]
pub struct Kept {
    halves: VecDeque<HalfClose>,
    /// By nginx worker, the last one.
    left: BTreeMap<ProcKey, Left>,
}

impl Kept {
    /// Takes a record that `nginx` has seen already; gives the request that was thrown away.
    pub fn observe(
        &mut self,
        event: &Event,
        nginx: &mut Nginx,
        table: &Table,
        history: &History,
        host_netns: u32,
    ) -> Option<Lost> {
        match &event.kind {
            EventKind::TcpState(s) => self.closed(event, s, nginx, table),
            EventKind::NginxErrorPage(p) => return self.page(event, &p.task, nginx, table),
            EventKind::Exited { task, code: 0 } => return by_unix(event, task, nginx, table, history, host_netns),
            _ => {}
        }
        None
    }

    fn closed(&mut self, event: &Event, s: &TcpState, nginx: &Nginx, table: &Table) {
        match (s.side, s.oldstate, s.newstate) {
            (Side::Server, tcp::ESTABLISHED, tcp::FIN_WAIT1)
                if s.sk_shutdown == SEND_SHUTDOWN && table.role(&s.task.key()).role == Role::PhpFpmChild =>
            {
                if self.halves.len() >= MAX_ENTRIES {
                    self.halves.pop_front();
                }
                self.halves.push_back(HalfClose { event: event.id, at: event.at, state: Box::new(s.clone()) });
            }
            (Side::Client, tcp::CLOSE_WAIT, tcp::LAST_ACK) => self.leaves(event, s, SeenBy::Nginx(s.tuple), nginx),
            (Side::Server, tcp::FIN_WAIT2, tcp::CLOSE) => {
                self.leaves(event, s, SeenBy::Child(Box::new(s.clone())), nginx);
            }
            _ => {}
        }
    }

    fn leaves(&mut self, event: &Event, s: &TcpState, seen: SeenBy, nginx: &Nginx) {
        let worker = s.task.key();
        let Some(line) = nginx.says_it_ended(&worker, event.at) else { return };
        if self.left.len() >= MAX_ENTRIES {
            self.left.clear();
        }
        self.left.insert(worker, Left { line, seen });
    }

    fn page(&mut self, event: &Event, worker: &Task, nginx: &mut Nginx, table: &Table) -> Option<Lost> {
        let left = self.left.remove(&worker.key())?;
        let failed = nginx.made_page(event).filter(|f| f.event == left.line)?.clone();
        let of_it = |half: &&HalfClose| match &left.seen {
            SeenBy::Child(s) => half.state.tuple == s.tuple,
            SeenBy::Nginx(t) => half.state.tuple.ends() == t.flipped(),
        };
        let near = |half: &&HalfClose| event.at.saturating_sub(half.at) < TURN_NS && of_it(half);
        let half = self.halves.iter().rev().find(near).cloned();
        let state = match (left.seen, &half) {
            (SeenBy::Child(state), _) => state,
            (SeenBy::Nginx(_), Some(half)) => half.state.clone(),
            (SeenBy::Nginx(_), None) => return None,
        };
        let t = state.tuple;
        let server = match &half {
            Some(half) => Actor { key: half.state.task.key(), task: Some(half.state.task.clone()), exiting: false },
            None => {
                let server = table.server_at(t.netns, t.local_ip, t.local_port, event.at)?;
                let key = server.process.filter(|_| server.kind == ServerKind::PhpFpm)?;
                Actor { key, task: None, exiting: false }
            }
        };
        nginx.told(failed.event);
        let mechanism = if half.is_some() { Mechanism::ClosedInFlight } else { Mechanism::DataAfterClose };
        let (sk_cgroup, bytes_sent) = (state.sk_cgroup, state.bytes_sent);
        let evidence = ThrownAway { failed, half, left: Some(state) };
        Some(Lost { mechanism, sk_cgroup, bytes_sent, ..lost(event.id, event.at, Conn::Tcp(t), server, evidence) })
    }
}

/// On a unix socket nothing shows the half close: a child of the pod's php-fpm that ends by itself directly after nginx has
/// said that its connection to somebody had ended.
fn by_unix(
    event: &Event,
    child: &Task,
    nginx: &mut Nginx,
    table: &Table,
    history: &History,
    host_netns: u32,
) -> Option<Lost> {
    let key = child.key();
    if table.role(&key).role != Role::PhpFpmChild || history.signals_to(&key).iter().any(|s| sig::stops(s.what.signal))
    {
        return None;
    }
    // Another upstream of this nginx may have closed: the child of a php-fpm that listens on TCP only is not asked here.
    let master = table.parent(&key).map(|p| p.key).filter(|master| table.serves_unix(master))?;
    let from = event.at.saturating_sub(EXIT_NS);
    let failed = nginx
        .untold(from)
        .find(|f| f.upstream.is_none() && table.fpm_near(&f.logged.task, host_netns) == Some(master))?
        .clone();
    let page = failed.page?;
    nginx.told(failed.event);
    let conn = Conn::Hidden { netns: failed.logged.task.netns, id: page.event.0, client: page.client };
    let server = Actor { key, task: Some(child.clone()), exiting: false };
    let evidence = ThrownAway { failed, half: None, left: None };
    Some(Lost { sk_cgroup: child.cgroup, ..lost(page.event, page.at, conn, server, evidence) })
}

fn lost(event: EventId, at: BootNs, conn: Conn, server: Actor, evidence: ThrownAway) -> Lost {
    Lost {
        event,
        at,
        conn,
        outcome: Outcome::Unanswered,
        mechanism: Mechanism::ClosedInFlight,
        server: Some(server),
        sk_cgroup: 0,
        bytes_sent: 0,
        age_ms: None,
        evidence: Evidence::ThrownAway(Box::new(evidence)),
    }
}

impl Failed {
    /// The connection ended in order, with nothing that nginx had not read and no reset.
    fn ended_in_order(&self) -> bool {
        self.logged.errno == 0 && self.logged.format.starts_with("upstream prematurely closed connection")
    }
}

impl Nginx {
    /// This worker has just said that a connection had ended, and may be about to make a page of it.
    fn says_it_ended(&self, worker: &ProcKey, at: BootNs) -> Option<EventId> {
        let failed = self.last_line(worker).filter(|f| f.page.is_none() && f.ended_in_order())?;
        (at.saturating_sub(failed.at) <= super::nginx::DIRECT_NS).then_some(failed.event)
    }

    /// The line that this page is of, when it says that a connection had ended.
    fn made_page(&self, page: &Event) -> Option<&Failed> {
        let EventKind::NginxErrorPage(made) = &page.kind else { return None };
        let its = |f: &&Failed| f.page.is_some_and(|p| p.event == page.id) && f.ended_in_order();
        self.last_line(&made.task.key()).filter(its)
    }

    /// A loss was found that this line is about.
    fn told(&mut self, line: EventId) {
        if let Some(failed) = self.said.iter_mut().rev().find(|f| f.event == line) {
            failed.told = true;
        }
    }

    /// This worker's last line.
    fn last_line(&self, worker: &ProcKey) -> Option<&Failed> {
        let index = self.last.get(worker)?.checked_sub(self.first)?;
        self.said.get(usize::try_from(index).ok()?)
    }

    /// The same since `from`, of which no other record has told, oldest first.
    fn untold(&self, from: BootNs) -> impl Iterator<Item = &Failed> {
        let old = self.said.iter().rev().take_while(|f| f.at >= from).count();
        self.said.range(self.said.len() - old..).filter(|f| f.page.is_some() && !f.told && f.ended_in_order())
    }
}
