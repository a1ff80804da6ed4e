//! Who listens where, and who has stopped to.
//!
//! Several sockets can listen at one address (SO_REUSEPORT, a reload, an upgrade): the port is closed when the last of
//! them is. The start-up scan knows sockets by inode, events know them by id, so that what both saw is paired here: a
//! socket whose LISTEN came before the scan read the namespace's table is one of the table's.

use super::KEEP_NS;
use crate::model::event::{TcpState, tcp};
use crate::model::input::ListenerFact;
use crate::model::{BootNs, EventId, ProcKey};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[cfg(test)]
pub(super) mod tests;

/// How long the last close of an address is kept: a pod that drains for long still gets connections.
const KEEP_LAST_NS: BootNs = 3_600 * 1_000_000_000;
/// A fact is stamped when its table has been read; a close in the middle of that is older than the fact.
const SCAN_NS: BootNs = 20_000_000;
/// Closed sockets remembered of one address.
const CLOSED_MAX: usize = 256;

/// What serves at a listening address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerKind {
    Nginx,
    PhpFpm,
    Other,
}

/// Who has, or had, a listening socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The process that called listen(2), when that was seen.
    pub opener: Option<ProcKey>,
    /// v2 cgroup the socket was created in; 0 unknown.
    pub cgroup: u64,
    /// Processes that held it at the scan. Forks made later are not listed.
    pub holders: Vec<ProcKey>,
    /// What its opener or a holder was at first sight, when that is a server, and whether that is sure.
    pub server: Option<(ServerKind, bool)>,
}

/// Where an address stands at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenState<'a> {
    /// No socket was seen that listened there before.
    NeverSeen,
    Listening {
        /// Start of the oldest socket there; `None`: before the observation.
        since: Option<BootNs>,
        owner: &'a Owner,
        /// How many sockets listen, one that covers the address from a wildcard included.
        sockets: usize,
    },
    Closed {
        /// When the last socket was closed.
        at: BootNs,
        /// `None`: its close was missed, and is known from a socket that took its place.
        event: Option<EventId>,
        /// The process that closed it, when it did so in its own context.
        closer: Option<ProcKey>,
        /// Since when that socket was open; `None`: before the observation.
        open_since: Option<BootNs>,
        owner: &'a Owner,
    },
}

/// One close of a listening socket, with what was left at its address: a reload closes sockets of a port that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketClose {
    pub at: BootNs,
    pub event: Option<EventId>,
    pub closer: Option<ProcKey>,
    pub sk: Option<u64>,
    pub netns: u32,
    pub ip: IpAddr,
    pub port: u16,
    /// Sockets that still listened at this very address right after.
    pub left: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Close {
    at: BootNs,
    event: Option<EventId>,
    closer: Option<ProcKey>,
    left: usize,
}

#[derive(Clone, Debug)]
struct Socket {
    sk: Option<u64>,
    /// From the scan, with the time of the table it stood in.
    inode: Option<(u64, BootNs)>,
    since: Option<BootNs>,
    owner: Owner,
    closed: Option<Close>,
}

impl Socket {
    fn open_at(&self, at: BootNs) -> bool {
        self.since.is_none_or(|s| s <= at) && self.closed.as_ref().is_none_or(|c| c.at > at)
    }
}

/// netns, port, ip: the port first, because a look-up goes through the addresses that cover one.
type Key = (u32, u16, IpAddr);

/// See the [module](self).
#[derive(Debug)]
pub struct Listeners {
    addresses: BTreeMap<Key, Vec<Socket>>,
    /// Open sockets by id. A close may come when the port is given back already.
    by_sk: BTreeMap<u64, Key>,
    per_netns: BTreeMap<u32, usize>,
    len: usize,
    max: usize,
    evicted: u64,
    swept_at: BootNs,
}

impl Listeners {
    pub(super) fn new(max: usize) -> Self {
        Listeners {
            addresses: BTreeMap::new(),
            by_sk: BTreeMap::new(),
            per_netns: BTreeMap::new(),
            len: 0,
            max: max.max(8),
            evicted: 0,
            swept_at: 0,
        }
    }

    pub(super) fn observe_fact(&mut self, fact: &ListenerFact, server: Option<(ServerKind, bool)>) {
        if fact.port == 0 {
            return;
        }
        let key = (fact.netns, fact.port, fact.ip);
        if fact.closed {
            // What events have told of the address is better.
            if self.covering(fact.netns, fact.ip, fact.port).next().is_none() {
                let owner = Owner { opener: None, cgroup: 0, holders: fact.holders.clone(), server };
                let closed = Some(Close { at: fact.at, event: None, closer: None, left: 0 });
                self.add(key, Socket { sk: None, inode: None, since: None, owner, closed });
            }
            return;
        }
        if let Some(sockets) = self.addresses.get_mut(&key) {
            if let Some(known) = sockets.iter_mut().find(|s| s.inode.is_some_and(|(i, _)| i == fact.inode)) {
                known.owner.holders.clone_from(&fact.holders);
                known.owner.server = known.owner.server.or(server);
                return;
            }
            let was_open = |s: &&mut Socket| {
                s.inode.is_none()
                    && s.since.is_none_or(|since| since <= fact.at)
                    && s.closed.as_ref().is_none_or(|c| c.at.saturating_add(SCAN_NS) > fact.at)
            };
            if let Some(known) = sockets.iter_mut().find(was_open) {
                known.inode = Some((fact.inode, fact.at));
                known.owner.holders.clone_from(&fact.holders);
                known.owner.server = known.owner.server.or(server);
                return;
            }
        }
        let owner = Owner { opener: None, cgroup: 0, holders: fact.holders.clone(), server };
        self.add(key, Socket { sk: None, inode: Some((fact.inode, fact.at)), since: None, owner, closed: None });
    }

    /// `server`: what the event's task is.
    pub(super) fn observe_state(
        &mut self,
        event: EventId,
        at: BootNs,
        state: &TcpState,
        server: Option<(ServerKind, bool)>,
    ) {
        let task = Some(state.task.key()).filter(|_| state.task.tgid != 0 && state.task.start_ns != 0);
        if state.newstate == tcp::LISTEN {
            self.opened(at, state, task, server);
        } else if state.oldstate == tcp::LISTEN && state.newstate == tcp::CLOSE {
            self.closed(event, at, state, task, server);
        }
    }

    fn opened(&mut self, at: BootNs, state: &TcpState, opener: Option<ProcKey>, server: Option<(ServerKind, bool)>) {
        let t = &state.tuple;
        let key = (t.netns, t.local_port, t.local_ip);
        // listen(2) without bind(2) sets the state before there is a port: inet_csk_listen_start().
        if t.local_port == 0 {
            return;
        }
        if let Some(old) = self.by_sk.get(&state.sk).copied() {
            // The id of a freed socket is used again: its close was missed.
            self.close(old, |s| s.sk == Some(state.sk), Close { at, event: None, closer: None, left: 0 });
        }
        self.by_sk.insert(state.sk, key);
        // Drained after the scan, though it happened before: the scan has it.
        if let Some(sockets) = self.addresses.get_mut(&key)
            && let Some(known) = sockets
                .iter_mut()
                .find(|s| s.sk.is_none() && s.since.is_none() && s.inode.is_some_and(|(_, scan)| scan >= at))
        {
            (known.sk, known.since) = (Some(state.sk), Some(at));
            (known.owner.opener, known.owner.cgroup) = (opener, state.sk_cgroup);
            known.owner.server = known.owner.server.or(server);
            return;
        }
        let owner = Owner { opener, cgroup: state.sk_cgroup, holders: Vec::new(), server };
        self.add(key, Socket { sk: Some(state.sk), inode: None, since: Some(at), owner, closed: None });
    }

    fn closed(
        &mut self,
        event: EventId,
        at: BootNs,
        state: &TcpState,
        closer: Option<ProcKey>,
        server: Option<(ServerKind, bool)>,
    ) {
        let t = &state.tuple;
        let close = Close { at, event: Some(event), closer, left: 0 };
        if let Some(key) = self.by_sk.get(&state.sk).copied() {
            self.close(key, |s| s.sk == Some(state.sk), close);
            return;
        }
        // One that the scan found, then: first one that the closer held. A close from before the scan is not in it.
        let key = (t.netns, t.local_port, t.local_ip);
        let scanned =
            |s: &Socket| s.sk.is_none() && s.inode.is_some_and(|(_, scan)| scan <= at.saturating_add(SCAN_NS));
        let held = |s: &Socket| scanned(s) && closer.is_some_and(|c| s.owner.holders.contains(&c));
        let cgroup = state.sk_cgroup;
        let done = self.close_as(key, held, close.clone(), state.sk, cgroup)
            || self.close_as(key, scanned, close.clone(), state.sk, cgroup);
        if !done && t.local_port != 0 {
            // It listened, whoever opened it.
            let owner = Owner { opener: None, cgroup, holders: closer.into_iter().collect(), server };
            let left = self.addresses.get(&key).map_or(0, |s| s.iter().filter(|s| s.closed.is_none()).count());
            let closed = Some(Close { left, ..close });
            self.add(key, Socket { sk: Some(state.sk), inode: None, since: None, owner, closed });
        }
    }

    fn close_as(&mut self, key: Key, which: impl Fn(&Socket) -> bool, close: Close, sk: u64, cgroup: u64) -> bool {
        let Some(sockets) = self.addresses.get_mut(&key) else { return false };
        let Some(socket) = sockets.iter_mut().find(|s| s.closed.is_none() && which(s)) else { return false };
        socket.sk = Some(sk);
        socket.owner.cgroup = cgroup;
        self.close(key, |s| s.sk == Some(sk), close);
        true
    }

    fn close(&mut self, key: Key, which: impl Fn(&Socket) -> bool, close: Close) {
        let Some(sockets) = self.addresses.get_mut(&key) else { return };
        let left = sockets.iter().filter(|s| s.closed.is_none() && !which(s)).count();
        let Some(socket) = sockets.iter_mut().find(|s| s.closed.is_none() && which(s)) else { return };
        socket.closed = Some(Close { left, ..close });
        if let Some(sk) = socket.sk {
            self.by_sk.remove(&sk);
        }
        self.trim(key);
    }

    fn add(&mut self, key: Key, socket: Socket) {
        // An eighth is one namespace's share, so that a container cannot push out the others.
        let full = self.len >= self.max || self.per_netns.get(&key.0).is_some_and(|n| *n >= self.max / 8);
        if full && !self.drop_oldest_closed(key.0) {
            if let Some(sk) = socket.sk {
                self.by_sk.remove(&sk);
            }
            self.evicted += 1;
            return;
        }
        // One is the rule, and a Vec that grows begins with four.
        let sockets = self.addresses.entry(key).or_insert_with(|| Vec::with_capacity(1));
        sockets.push(socket);
        self.len += 1;
        *self.per_netns.entry(key.0).or_insert(0) += 1;
        self.trim(key);
    }

    fn trim(&mut self, key: Key) {
        let Some(sockets) = self.addresses.get(&key) else { return };
        if sockets.iter().filter(|s| s.closed.is_some()).count() > CLOSED_MAX {
            let oldest = oldest_closed(sockets).map(|(_, i)| i);
            self.remove(key, oldest);
            self.evicted += 1;
        }
    }

    fn drop_oldest_closed(&mut self, netns: u32) -> bool {
        let all =
            (netns, 0, IpAddr::V4(Ipv4Addr::UNSPECIFIED))..=(netns, u16::MAX, IpAddr::V6(Ipv6Addr::from(u128::MAX)));
        let oldest = self.addresses.range(all).filter_map(|(k, s)| oldest_closed(s).map(|(at, i)| (at, *k, i))).min();
        let Some((_, key, index)) = oldest else { return false };
        self.remove(key, Some(index));
        self.evicted += 1;
        true
    }

    fn remove(&mut self, key: Key, index: Option<usize>) {
        let (Some(sockets), Some(index)) = (self.addresses.get_mut(&key), index) else { return };
        sockets.remove(index);
        if sockets.is_empty() {
            self.addresses.remove(&key);
        }
        self.forget(key.0, 1);
    }

    fn forget(&mut self, netns: u32, count: usize) {
        self.len -= count;
        if let Some(n) = self.per_netns.get_mut(&netns) {
            *n -= count;
            if *n == 0 {
                self.per_netns.remove(&netns);
            }
        }
    }

    /// Forgets old closes, once a second: the last close of an address after an hour, others after [`KEEP_NS`].
    pub(super) fn advance(&mut self, now: BootNs) {
        if now < self.swept_at.saturating_add(1_000_000_000) {
            return;
        }
        self.swept_at = now;
        let mut gone = Vec::new();
        self.addresses.retain(|key, sockets| {
            let last = sockets.iter().filter_map(|s| s.closed.as_ref()).map(|c| c.at).max();
            let before = sockets.len();
            sockets.retain(|s| match &s.closed {
                None => true,
                Some(c) if Some(c.at) == last => c.at.saturating_add(KEEP_LAST_NS) >= now,
                Some(c) => c.at.saturating_add(KEEP_NS) >= now,
            });
            if sockets.len() < before {
                gone.push((key.0, before - sockets.len()));
            }
            !sockets.is_empty()
        });
        for (netns, count) in gone {
            self.forget(netns, count);
        }
    }

    // ---- look-ups

    /// Does somebody take connections to this address at `at`, and if not, since when no more? Wildcards cover: `::`
    /// also IPv4, because whether a socket is IPV6_V6ONLY is not known.
    pub fn state_at(&self, netns: u32, ip: IpAddr, port: u16, at: BootNs) -> ListenState<'_> {
        let covering = || self.covering(netns, ip, port);
        let open = || covering().filter(|s| s.open_at(at));
        if let Some(first) = open().next() {
            // `None` (before the observation) is the least.
            let since = open().map(|s| s.since).min().flatten();
            return ListenState::Listening { since, owner: &first.owner, sockets: open().count() };
        }
        let last = covering().filter_map(|s| s.closed.as_ref().map(|c| (s, c))).filter(|(_, c)| c.at <= at);
        match last.max_by_key(|(_, c)| (c.at, c.event)) {
            Some((s, c)) => {
                ListenState::Closed { at: c.at, event: c.event, closer: c.closer, open_since: s.since, owner: &s.owner }
            }
            None => ListenState::NeverSeen,
        }
    }

    /// Closes of single sockets that covered this address, in the given time, by time.
    pub fn closes(&self, netns: u32, ip: IpAddr, port: u16, from: BootNs, to: BootNs) -> Vec<SocketClose> {
        let mut found = Vec::new();
        for ip in covers(ip) {
            for s in self.addresses.get(&(netns, port, ip)).into_iter().flatten() {
                if let Some(c) = s.closed.as_ref().filter(|c| (from..=to).contains(&c.at)) {
                    let Close { at, event, closer, left } = c.clone();
                    found.push(SocketClose { at, event, closer, sk: s.sk, netns, ip, port, left });
                }
            }
        }
        found.sort_by_key(|c| (c.at, c.event));
        found
    }

    /// When this address will next be open after `at`, as far as is known now, and by whose sockets: a restart seen from behind.
    pub fn opened_after(
        &self,
        netns: u32,
        ip: IpAddr,
        port: u16,
        at: BootNs,
    ) -> impl Iterator<Item = (BootNs, &Owner)> {
        self.covering(netns, ip, port).filter_map(move |s| Some((s.since.filter(|since| *since > at)?, &s.owner)))
    }

    /// Addresses that are open now: netns, ip, port, owner; ordered.
    pub fn open(&self) -> impl Iterator<Item = (u32, IpAddr, u16, &Owner)> {
        self.addresses.iter().flat_map(|((netns, port, ip), sockets)| {
            sockets.iter().filter(|s| s.closed.is_none()).map(|s| (*netns, *ip, *port, &s.owner))
        })
    }

    fn covering(&self, netns: u32, ip: IpAddr, port: u16) -> impl Iterator<Item = &Socket> {
        covers(ip).into_iter().filter_map(move |ip| self.addresses.get(&(netns, port, ip))).flatten()
    }

    /// Sockets remembered, open and closed.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sockets dropped to keep memory bounded.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// The listening addresses that take a connection to `ip`, closest first (inet_lookup_listener()).
fn covers(ip: IpAddr) -> Vec<IpAddr> {
    let any4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let ip = ip.to_canonical();
    let mut all = vec![ip];
    if ip.is_ipv4() && ip != any4 {
        all.push(any4);
    }
    if ip != any6 {
        all.push(any6);
    }
    all
}

fn oldest_closed(sockets: &[Socket]) -> Option<(BootNs, usize)> {
    sockets.iter().enumerate().filter_map(|(i, s)| s.closed.as_ref().map(|c| (c.at, i))).min()
}
