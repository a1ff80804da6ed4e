//! AF_UNIX between nginx and php-fpm → lost requests. There are no states, no byte counts and no resets: what a closing
//! socket had unread, and connects that failed, are all that shows (docs/causes.md).
//!
//! php-fpm leaves the last record of each request unread until its script has ended, and reads it then; so a php-fpm that
//! ends with something unread had not answered. One that lives on has decided to close (a request that it could not read)
//! and is not judged.

use super::history::{History, sig};
use super::lost::{Actor, Conn, Evidence, Lost, Thrown, errno};
use crate::identity::{FoundBy, Role, Table};
use crate::model::event::{BootNs, Event, EventId, ProcKey, UnixDropped, UnixRefused};
use crate::model::incident::{Mechanism, Outcome};
use std::collections::{BTreeMap, VecDeque};

/// What one close() reports of one connection lies this close together: unix_release_sock() frees the bytes of a connection,
/// then, when its listener is closed, the connection itself.
const SAME_CLOSE_NS: u64 = 100_000_000;
/// Connects that find the queue full belong to one congestion when they are not further apart.
const CONGESTION_NS: u64 = 10_000_000_000;
/// Servers looked for in a second for one network namespace: each look goes through all paths and php-fpms. What is more
/// stays without a server, and says so.
const LOOKS: u32 = 500;
/// Entries of each kind; the oldest go first.
const MAX_ENTRIES: usize = 4_096;

/// What is open between records. See the module.
#[derive(Default)]
pub struct Unix {
    /// Bytes thrown away by a process that was not exiting: a loss if the connection turns out to have been queued.
    waiting: VecDeque<Waiting>,
    /// Since when the queue of a server, or of a path without one, is full, and the last connect that met it.
    full: BTreeMap<(Option<ProcKey>, String), (BootNs, BootNs)>,
    /// Look-ups of this second, by network namespace.
    looks: (u64, BTreeMap<u32, u32>),
}

struct Waiting {
    event: EventId,
    at: BootNs,
    dropped: UnixDropped,
}

impl Unix {
    /// `pending`: losses that are not decided yet. A record may say more about one of them.
    pub fn dropped(
        &mut self,
        event: &Event,
        d: &UnixDropped,
        table: &Table,
        history: &History,
        pending: &mut VecDeque<Lost>,
    ) -> Option<Lost> {
        while self.waiting.front().is_some_and(|w| w.at.saturating_add(SAME_CLOSE_NS) < event.at)
            || self.waiting.len() > MAX_ENTRIES
        {
            self.waiting.pop_front();
        }
        if d.embryo {
            return self.embryo(event, d, pending);
        }
        if let Some(earlier) = self.waiting.iter_mut().rev().find(|w| same(&w.dropped, d)) {
            earlier.dropped.len = earlier.dropped.len.saturating_add(d.len);
            return None;
        }
        if let Some(lost) = find(pending, d, event.at) {
            if let Evidence::UnixClose { dropped, .. } = &mut lost.evidence {
                dropped.len = dropped.len.saturating_add(d.len);
            }
            return None;
        }
        if !is_php_fpm(table, d) || nginx_is_gone(d, event.at, table, history) {
            return None;
        }
        if d.task.exiting() {
            return Some(cut(event.id, event.at, d));
        }
        self.waiting.push_back(Waiting { event: event.id, at: event.at, dropped: d.clone() });
        None
    }

    /// The connection itself, after the bytes that it had. Without any it says nothing: nginx writes its request in the turn
    /// in which it connects, and bytes whose sender has closed its end since (a client that left, a timeout) are not reported.
    fn embryo(&mut self, event: &Event, d: &UnixDropped, pending: &mut VecDeque<Lost>) -> Option<Lost> {
        let thrown = Thrown { event: event.id, at: event.at };
        if let Some(i) = self.waiting.iter().rposition(|w| same(&w.dropped, d)) {
            let w = self.waiting.remove(i)?;
            let mut lost = cut(w.event, w.at, &w.dropped);
            thrown_out(&mut lost, thrown);
            return Some(lost);
        }
        thrown_out(find(pending, d, event.at)?, thrown);
        None
    }

    /// `host_netns`: 0 unknown.
    pub fn refused(&mut self, event: &Event, r: &UnixRefused, table: &Table, host_netns: u32) -> Option<Lost> {
        let full = r.error == errno::AGAIN;
        if !full && !matches!(r.error, errno::NOENT | errno::CONNREFUSED) || of_the_system(&r.path) {
            return None;
        }
        let role = table.role(&r.task.key());
        if !role.sure || !matches!(role.role, Role::NginxWorker | Role::NginxMaster) {
            return None;
        }
        let may_look = self.may_look(r.task.netns, event.at);
        let found = may_look.then(|| table.unix_server(&r.task, &r.path, full, host_netns, event.at)).flatten();
        // nginx connects elsewhere as well: to a log, another server, nscd when it starts.
        let known = found.is_some_and(|f| f.by != FoundBy::Neighbour);
        if !known && !looks_like_php_fpm(&r.path) {
            return None;
        }
        let full_since = full.then(|| self.congested(found.map(|f| f.master), &r.path, event.at));
        Some(Lost {
            event: event.id,
            at: event.at,
            conn: Conn::Unix { path: r.path.clone(), netns: r.task.netns, id: event.id.0 },
            outcome: Outcome::Refused,
            mechanism: if full { Mechanism::UpstreamQueueFull } else { Mechanism::UpstreamRefused },
            server: found.map(|f| Actor { key: f.master, task: None, exiting: false }),
            sk_cgroup: 0,
            bytes_sent: 0,
            age_ms: None,
            evidence: Evidence::UnixRefused { what: Box::new(r.clone()), found: found.map(|f| f.by), full_since },
        })
    }

    fn may_look(&mut self, netns: u32, at: BootNs) -> bool {
        let second = at / 1_000_000_000;
        if self.looks.0 != second {
            self.looks = (second, BTreeMap::new());
        }
        let looks = self.looks.1.entry(netns).or_default();
        *looks += 1;
        *looks <= LOOKS
    }

    /// Since when connects to this server find its queue full.
    fn congested(&mut self, master: Option<ProcKey>, path: &str, at: BootNs) -> BootNs {
        if self.full.len() > MAX_ENTRIES {
            self.full.retain(|_, (_, last)| last.saturating_add(CONGESTION_NS) >= at);
            if self.full.len() > MAX_ENTRIES {
                self.full.clear();
            }
        }
        let (since, last) = self.full.entry((master, path.to_owned())).or_insert((at, at));
        if last.saturating_add(CONGESTION_NS) < at {
            *since = at;
        }
        *last = at;
        *since
    }
}

fn same(a: &UnixDropped, b: &UnixDropped) -> bool {
    a.server_sk != 0 && a.server_sk == b.server_sk && a.task.pid == b.task.pid
}

/// The loss that was made of an earlier record of the same close.
fn find<'p>(pending: &'p mut VecDeque<Lost>, d: &UnixDropped, at: BootNs) -> Option<&'p mut Lost> {
    let mut near = pending.iter_mut().rev().take_while(|l| l.at.saturating_add(SAME_CLOSE_NS) >= at);
    near.find(|l| matches!(&l.evidence, Evidence::UnixClose { dropped, .. } if same(dropped, d)))
}

/// Of a connection with a process; [`thrown_out`] makes it a queued one.
fn cut(event: EventId, at: BootNs, d: &UnixDropped) -> Lost {
    Lost {
        event,
        at,
        conn: Conn::Unix { path: d.path.clone(), netns: d.netns, id: d.server_sk },
        outcome: Outcome::Unanswered,
        mechanism: Mechanism::ClosedInFlight,
        server: Some(Actor { key: d.task.key(), task: Some(d.task.clone()), exiting: d.task.exiting() }),
        sk_cgroup: d.server_cgroup,
        bytes_sent: 0,
        age_ms: None,
        evidence: Evidence::UnixClose { dropped: Box::new(d.clone()), thrown: None },
    }
}

/// It had been in the queue, as this record shows.
fn thrown_out(lost: &mut Lost, by: Thrown) {
    (lost.outcome, lost.mechanism) = (Outcome::Refused, Mechanism::ResetInAcceptQueue);
    if let Evidence::UnixClose { thrown, .. } = &mut lost.evidence {
        *thrown = Some(by);
    }
}

fn is_php_fpm(table: &Table, d: &UnixDropped) -> bool {
    matches!(table.role(&d.task.key()).role, Role::PhpFpmMaster | Role::PhpFpmChild)
}

/// Every nginx worker of the sending container has ended or been killed: the request died with nginx, whose own connection
/// tells of it.
fn nginx_is_gone(d: &UnixDropped, at: BootNs, table: &Table, history: &History) -> bool {
    if d.client_cgroup == 0 {
        return false;
    }
    let over = |key: &ProcKey| {
        let exited = table.process(key).is_some_and(|p| p.exited.is_some_and(|e| e.at <= at));
        exited || history.signals_to(key).iter().any(|s| s.at <= at && s.what.signal == sig::KILL)
    };
    let mut workers = table
        .processes()
        .filter(|p| p.cgroup == d.client_cgroup && table.role(&p.key).role == Role::NginxWorker)
        .peekable();
    workers.peek().is_some() && workers.all(|p| over(&p.key))
}

/// Sockets that the C library asks for users, groups and hosts, and logs to: nginx connects to them when it starts, and they
/// are missing in most containers.
fn of_the_system(path: &str) -> bool {
    const NAMES: &[&str] = &["/nscd/socket", "/sss/pipes/", "/winbindd/", "/systemd/", "/dbus/", "/dev/log"];
    NAMES.iter().any(|name| path.contains(name))
}

/// A name is all that is left to go by.
fn looks_like_php_fpm(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path.contains("php") || path.contains("fpm")
}

#[cfg(test)]
mod tests {
    use super::of_the_system;

    #[test]
    fn what_the_c_library_connects_to_is_no_upstream() {
        let system =
            ["/var/run/nscd/socket", "/var/lib/sss/pipes/nss", "/run/systemd/userdb/io.systemd.DropIn", "/dev/log"];
        assert!(system.iter().all(|path| of_the_system(path)));
        let upstreams = ["/run/php/php8.2-fpm.sock", "/sock/www.sock", "/var/run/app/socket", "/dev/shm/php.sock"];
        assert!(!upstreams.iter().any(|path| of_the_system(path)));
    }
}
