//! Which php-fpm listens on which AF_UNIX path. The kernel reports neither bind() nor the close of such a listener, so this
//! is put together from the scan and from connections that a php-fpm threw away.
//!
//! A path means something only within a mount namespace, and nginx may reach the socket by another path than php-fpm does (a
//! volume that both mount). So a server is looked for among the neighbours only: the same pod, else a network namespace
//! that is not the host's, else the same container; and a container whose connection this php-fpm has thrown away.

use super::cgroups::Place;
use super::process::{Process, base};
use super::role::Role;
use super::table::Table;
use crate::model::event::UnixDropped;
use crate::model::input::UnixListenerFact;
use crate::model::{BootNs, ProcKey, Task};
use std::collections::{BTreeMap, BTreeSet};

/// Servers remembered of one path, and in all: one that was restarted more often has forgotten its first ones.
const PER_PATH: usize = 64;
/// Client containers remembered of one server.
const CLIENTS: usize = 16;
/// The longest path that is kept; `sun_path` has 108 bytes, three for each that is not UTF-8.
const PATH_MAX: usize = 324;

/// How a server was found for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// It is known to have served this path.
    Path,
    /// It is known to have served a path of the same file name: a volume mounted elsewhere.
    FileName,
    /// It is the only php-fpm there, and no path of it is known.
    Neighbour,
}

/// See [`Table::unix_server`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixServer {
    /// php-fpm's master; it may have exited.
    pub master: ProcKey,
    pub by: FoundBy,
}

/// Where a process is, kept when it is forgotten itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Where {
    pod: Option<String>,
    container: Option<String>,
    /// Known to be outside of every container.
    host: bool,
    netns: u32,
}

impl Where {
    /// `host_netns`: 0 unknown, and then no network namespace says anything.
    fn shares_with(&self, other: &Where, host_netns: u32) -> bool {
        if let (Some(a), Some(b)) = (&self.pod, &other.pod) {
            return a == b;
        }
        if self.container.is_some() && self.container == other.container || self.host && other.host {
            return true;
        }
        self.netns != 0 && self.netns == other.netns && host_netns != 0 && self.netns != host_netns
    }
}

#[derive(Clone, Debug)]
struct Served {
    master: ProcKey,
    /// Last evidence.
    at: BootNs,
    place: Where,
    /// Containers that were seen to send requests to it, wherever they are.
    clients: BTreeSet<String>,
}

impl Served {
    fn near(&self, client: &Where, host_netns: u32) -> bool {
        let known = client.container.as_ref().is_some_and(|c| self.clients.contains(c));
        known || self.place.shares_with(client, host_netns)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct UnixPaths {
    /// The oldest evidence first.
    paths: BTreeMap<String, Vec<Served>>,
    /// How many are of each container: an eighth at most.
    by_container: BTreeMap<Option<String>, usize>,
    len: usize,
    max: usize,
    evicted: u64,
}

impl UnixPaths {
    pub(super) fn new(max: usize) -> Self {
        UnixPaths { paths: BTreeMap::new(), by_container: BTreeMap::new(), len: 0, max: max.max(8), evicted: 0 }
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    fn add(&mut self, path: &str, served: Served) {
        if path.is_empty() || path.len() > PATH_MAX {
            return;
        }
        if let Some(list) = self.paths.get_mut(path)
            && let Some(i) = list.iter().position(|s| s.master == served.master)
        {
            let mut old = list.remove(i);
            old.clients.extend(served.clients);
            while old.clients.len() > CLIENTS {
                old.clients.pop_first();
            }
            *self.by_container.entry(served.place.container.clone()).or_default() += 1;
            list.push(Served { clients: old.clients, ..served });
            self.left(&old.place.container);
            return;
        }
        let container = served.place.container.clone();
        let own = self.by_container.get(&container).copied().unwrap_or(0);
        if own >= self.max / 8 {
            self.drop_oldest(|s| s.place.container == container);
        } else if self.len >= self.max {
            self.drop_oldest(|_| true);
        }
        let list = self.paths.entry(path.to_owned()).or_default();
        list.push(served);
        let too_many = (list.len() > PER_PATH).then(|| list.remove(0));
        self.len += 1;
        *self.by_container.entry(container).or_default() += 1;
        if let Some(old) = too_many {
            self.dropped(&old.place.container);
        }
    }

    fn drop_oldest(&mut self, which: impl Fn(&Served) -> bool) {
        let all = self.paths.iter().flat_map(|(path, list)| list.iter().enumerate().map(move |(i, s)| (s, path, i)));
        let oldest = all.filter(|(s, ..)| which(s)).min_by_key(|(s, path, _)| (s.at, *path));
        let Some((_, path, i)) = oldest.map(|(s, path, i)| (s, path.clone(), i)) else { return };
        let Some(list) = self.paths.get_mut(&path) else { return };
        let old = list.remove(i);
        if list.is_empty() {
            self.paths.remove(&path);
        }
        self.dropped(&old.place.container);
    }

    fn dropped(&mut self, container: &Option<String>) {
        self.len -= 1;
        self.evicted += 1;
        self.left(container);
    }

    fn left(&mut self, container: &Option<String>) {
        if let Some(own) = self.by_container.get_mut(container) {
            *own -= 1;
            if *own == 0 {
                self.by_container.remove(container);
            }
        }
    }

    fn of(&self, master: &ProcKey) -> bool {
        self.paths.values().flatten().any(|s| s.master == *master)
    }
}

impl Table {
    pub(super) fn observe_unix_listener(&mut self, fact: &UnixListenerFact) {
        self.advance(fact.at);
        let masters: Vec<ProcKey> = fact.holders.iter().filter_map(|key| self.fpm_master(key)).collect();
        for master in masters {
            self.serves_path(&fact.path, master, None, fact.at);
        }
    }

    pub(super) fn observe_unix_dropped(&mut self, dropped: &UnixDropped, at: BootNs) {
        if let Some(master) = self.fpm_master(&dropped.task.key()) {
            let client = self.container_of_cgroup(dropped.client_cgroup, 0).map(|c| c.container.id.clone());
            self.serves_path(&dropped.path, master, client, at);
        }
    }

    fn serves_path(&mut self, path: &str, master: ProcKey, client: Option<String>, at: BootNs) {
        let place =
            self.process(&master).map(|p| self.whereabouts(self.place_of(&master), p.netns)).unwrap_or_default();
        self.unix_paths.add(path, Served { master, at, place, clients: client.into_iter().collect() });
    }

    /// The php-fpm that serves, or served, a path that `client` wanted to connect to at `at`. `listening`: there was a
    /// listener, so the server lived. A server that is forgotten may be named: its path is not.
    pub fn unix_server(
        &self,
        client: &Task,
        path: &str,
        listening: bool,
        host_netns: u32,
        at: BootNs,
    ) -> Option<UnixServer> {
        let place = self.whereabouts(self.place(client), client.netns);
        let alive = |key: &ProcKey| self.process(key).is_some_and(|p| p.exited.is_none_or(|e| e.at > at));
        let usable = |s: &&Served| s.near(&place, host_netns) && (!listening || alive(&s.master));
        let known = |by, s: &Served| UnixServer { master: s.master, by };
        let paths = &self.unix_paths.paths;
        let exact = paths.get(path).into_iter().flatten().rev().find(usable).map(|s| known(FoundBy::Path, s));
        let found = exact.or_else(|| {
            let same_name = paths.iter().filter(|(p, _)| base(p) == base(path)).flat_map(|(_, list)| list);
            same_name.filter(usable).max_by_key(|s| (s.at, s.master)).map(|s| known(FoundBy::FileName, s))
        });
        // On the host itself any number of them may live side by side.
        if place.host || found.is_some_and(|f| alive(&f.master)) {
            return found;
        }
        let Some(newest) = self.only_fpm_near(&place, host_netns) else { return found };
        let began = newest.born.unwrap_or(newest.seen_at);
        let unused = !self.unix_paths.of(&newest.key);
        let fits = match found.and_then(|f| self.process(&f.master)) {
            // A later life of the same server, which is over as well.
            Some(old) => old.exited.is_some_and(|e| e.at <= began) && !alive(&newest.key),
            None => !listening || alive(&newest.key),
        };
        if fits && unused { Some(UnixServer { master: newest.key, by: FoundBy::Neighbour }) } else { found }
    }

    /// The php-fpm of the pod that `client` is in, when there is one and no other at its side.
    pub fn fpm_near(&self, client: &Task, host_netns: u32) -> Option<ProcKey> {
        let place = self.whereabouts(self.place(client), client.netns);
        if place.host { None } else { self.only_fpm_near(&place, host_netns).map(|p| p.key) }
    }

    /// Is this php-fpm known to listen on a unix socket, or to have done so?
    pub fn serves_unix(&self, master: &ProcKey) -> bool {
        self.unix_paths.of(master)
    }

    /// The newest php-fpm master among the neighbours, when all the others had ended before it began: earlier lives of the
    /// same server.
    fn only_fpm_near(&self, place: &Where, host_netns: u32) -> Option<&Process> {
        let mut masters: Vec<&Process> = self
            .php_fpms()
            .filter(|p| self.role(&p.key).role == Role::PhpFpmMaster)
            .filter(|p| self.whereabouts(self.place_of(&p.key), p.netns).shares_with(place, host_netns))
            .collect();
        masters.sort_by_key(|p| (p.born.unwrap_or(p.seen_at), p.key));
        let newest = masters.pop()?;
        let began = newest.born.unwrap_or(newest.seen_at);
        masters.iter().all(|p| p.exited.is_some_and(|e| e.at <= began)).then_some(newest)
    }

    fn fpm_master(&self, key: &ProcKey) -> Option<ProcKey> {
        match self.role(key).role {
            Role::PhpFpmMaster => Some(*key),
            Role::PhpFpmChild => self.parent(key).map(|p| p.key),
            _ => None,
        }
    }

    fn whereabouts(&self, place: Place, netns: u32) -> Where {
        match place {
            Place::Container(c) => {
                Where { pod: c.container.pod_uid.clone(), container: Some(c.container.id.clone()), host: false, netns }
            }
            Place::Host => Where { host: true, netns, ..Where::default() },
            Place::Unknown => Where { netns, ..Where::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(tgid: u32, at: BootNs) -> Served {
        let master = ProcKey { tgid, start_ticks: 1 };
        Served { master, at, place: Where::default(), clients: BTreeSet::new() }
    }

    #[test]
    fn who_is_a_neighbour() {
        let at = |pod: &str, container: &str, netns| Where {
            pod: (!pod.is_empty()).then(|| pod.to_owned()),
            container: (!container.is_empty()).then(|| container.to_owned()),
            host: false,
            netns,
        };
        let host = Where { host: true, netns: 1, ..Where::default() };
        let near = |a: &Where, b: &Where| a.shares_with(b, 1);
        assert!(near(&at("p", "a", 7), &at("p", "b", 8)));
        assert!(!near(&at("p", "a", 7), &at("q", "b", 7)), "the number of a network namespace is given again");
        assert!(near(&at("", "a", 7), &at("", "b", 7)), "docker, with the network of the other container");
        assert!(near(&at("", "a", 1), &at("", "a", 1)));
        assert!(!near(&at("", "a", 1), &at("", "b", 1)), "the host's network is everybody's");
        assert!(!at("", "a", 7).shares_with(&at("", "b", 7), 0), "which one is the host's is not known");
        assert!(near(&host, &host) && !near(&host, &at("", "a", 1)));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let mut paths = UnixPaths::new(64);
        for i in 0..20u32 {
            paths.add(&format!("/run/{i}.sock"), served(i, u64::from(i)));
        }
        assert_eq!((paths.len, paths.paths.len(), paths.evicted()), (8, 8, 12), "one container's share");
        assert!(paths.paths.contains_key("/run/19.sock") && !paths.paths.contains_key("/run/11.sock"));
        let mut one = UnixPaths::new(1_000);
        (0..2 * PER_PATH as u32).for_each(|i| one.add("/run/php.sock", served(i, u64::from(i))));
        assert_eq!((one.len, one.paths["/run/php.sock"].len()), (PER_PATH, PER_PATH));
        for i in 0..2 * CLIENTS {
            one.add("/run/php.sock", Served { clients: BTreeSet::from([format!("{i}")]), ..served(127, 200) });
        }
        assert_eq!(one.paths["/run/php.sock"].last().map(|s| s.clients.len()), Some(CLIENTS));
        one.add("", served(1, 1));
        one.add(&"x".repeat(PATH_MAX + 1), served(1, 1));
        assert_eq!(one.paths.len(), 1);
    }
}
