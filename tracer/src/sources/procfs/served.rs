//! Addresses that a server had listened on before the scan: it has closed its listener, and still has connections there.
//!
//! Nothing in /proc tells which end of a connection called connect(2). Only ports below the range that the kernel gives to
//! clients are taken (net.ipv4.ip_local_port_range begins at 32768 unless somebody lowered it), and of those above 1023 only
//! such as several clients have come to: their own ports differ, while those of a server's upstreams do not.

use super::Sockets;
use super::parse::Connection;
use crate::model::ProcKey;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

/// The least port that clients get by default, net/ipv4/af_inet.c inet_init_net().
const CLIENTS_FROM: u16 = 32_768;
/// Below it ports are given to nobody who does not ask for one.
const PRIVILEGED: u16 = 1024;

pub(super) fn may_be_servers(c: &Connection) -> bool {
    c.port != 0 && c.port < CLIENTS_FROM
}

/// The addresses, and which of `servers` have the connections.
pub(super) fn closed(proc: &Path, servers: &[ProcKey], sockets: &Sockets) -> BTreeMap<(IpAddr, u16), Vec<ProcKey>> {
    if servers.is_empty() || sockets.others.is_empty() {
        return BTreeMap::new();
    }
    let held = super::holders(proc, servers, &sockets.others.iter().map(|c| c.inode).collect());
    grouped(&sockets.others, &held)
}

fn grouped(all: &[Connection], held: &BTreeMap<u64, Vec<ProcKey>>) -> BTreeMap<(IpAddr, u16), Vec<ProcKey>> {
    let mut clients: BTreeMap<(IpAddr, u16), BTreeSet<u16>> = BTreeMap::new();
    let mut holders: BTreeMap<(IpAddr, u16), BTreeSet<ProcKey>> = BTreeMap::new();
    for c in all {
        let Some(keys) = held.get(&c.inode) else { continue };
        clients.entry((c.ip, c.port)).or_default().insert(c.remote_port);
        holders.entry((c.ip, c.port)).or_default().extend(keys);
    }
    let served = |(address, _): &(&(IpAddr, u16), &BTreeSet<u16>)| {
        address.1 < PRIVILEGED || clients.get(*address).is_some_and(|ports| ports.len() > 1)
    };
    let chosen = clients.iter().filter(served).map(|(address, _)| *address);
    chosen.filter_map(|a| Some((a, holders.get(&a)?.iter().copied().collect()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_clients_came_to() {
        let key = |tgid| ProcKey { tgid, start_ticks: 1 };
        let conn = |port, remote_port, inode| Connection { ip: "10.0.0.2".parse().unwrap(), port, remote_port, inode };
        let all = [
            conn(80, 50_000, 1),
            conn(80, 50_001, 2),
            conn(8080, 50_002, 3),
            conn(8081, 50_003, 4),
            conn(8081, 50_004, 5),
            // Bound ports towards upstreams.
            conn(9001, 9000, 6),
            conn(9001, 9000, 7),
            conn(81, 50_005, 8),
        ];
        let held: BTreeMap<u64, Vec<ProcKey>> =
            (1..=7).map(|inode| (inode, vec![key(100 + inode as u32 % 2)])).collect();
        let found = grouped(&all, &held);
        let ports: Vec<u16> = found.keys().map(|(_, port)| *port).collect();
        assert_eq!(ports, [80, 8081], "8080 has one client only, 81 is no server's");
        assert_eq!(found[&("10.0.0.2".parse().unwrap(), 80)], [key(100), key(101)]);
        assert!(!may_be_servers(&conn(40_000, 1, 1)) && may_be_servers(&conn(8080, 1, 1)));
    }
}
