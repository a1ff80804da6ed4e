//! The start-up scan of /proc: processes and listening sockets that are older than the probes, and the look-up of one
//! process later.

use super::cgroups::Trees;
use crate::identity::{is_php_fpm_process, is_server};
use crate::model::input::{Hierarchy, ListenerFact, ProcessFact, UnixListenerFact};
use crate::model::{BootNs, ProcKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

mod parse;
mod served;
#[cfg(test)]
mod tests;

/// Read at most this much of a file of /proc: more than the kernel gives of those read here, and a fixture or a hostile
/// mount ends somewhere.
const FILE_MAX: u64 = 1 << 20;
/// Socket tables grow with connections.
const TABLE_MAX: u64 = 256 << 20;

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// By pid.
    pub processes: Vec<ProcessFact>,
    /// By namespace, address and inode.
    pub listeners: Vec<ListenerFact>,
    /// AF_UNIX, of php-fpm only; by namespace, path and inode.
    pub unix_listeners: Vec<UnixListenerFact>,
    /// Processes that are there but would not be read, or only in part: rights are missing.
    pub unreadable: u32,
}

/// Reads all processes and all listening TCP sockets of all their network namespaces. `at` is now (CLOCK_BOOTTIME, ns);
/// each fact carries `at` plus the time that the scan had taken: a process when its reading began, a listener when its
/// table had been read. Processes that vanish meanwhile are left out. Fails only when /proc itself cannot be listed.
pub fn scan(root: &Path, at: BootNs) -> io::Result<Scan> {
    let clock = Clock { at, started: Instant::now() };
    let proc = root.join("proc");
    let mut reader = Reader::new(root);
    let mut scan = Scan::default();
    let mut pids: Vec<u32> = Vec::new();
    for entry in fs::read_dir(&proc).map_err(|e| named(&proc, &e))? {
        // A directory that shrinks while it is read is no failure.
        let Ok(entry) = entry else { continue };
        pids.extend(entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    }
    pids.sort_unstable();
    for pid in pids {
        match reader.process(pid, clock.now()) {
            Ok(Some((fact, whole))) => {
                scan.unreadable += u32::from(!whole);
                scan.processes.push(fact);
            }
            Ok(None) => {}
            Err(_) => scan.unreadable += 1,
        }
    }
    scan.listeners = listeners(&proc, &scan.processes, &clock);
    scan.unix_listeners = unix_listeners(&proc, scan.processes.iter().filter(|p| is_php_fpm_process(p)), &clock);
    Ok(scan)
}

/// One process as it is now; `NotFound` when it is gone (a zombie is gone).
pub fn read_process(root: &Path, pid: u32, at: BootNs) -> io::Result<ProcessFact> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {pid} is gone"));
    Reader::new(root).process(pid, at)?.map(|(fact, _)| fact).ok_or_else(gone)
}

/// When a process was started, in ticks; `None` when it is gone.
pub fn start_ticks(root: &Path, pid: u32) -> Option<u64> {
    let bytes = read(&root.join(format!("proc/{pid}/stat")), FILE_MAX).ok()?;
    parse::stat(&bytes).map(|stat| stat.start_ticks)
}

/// A NUL-terminated text in the memory of a process, at most `max` bytes of it; `None` when the process is gone, is another
/// one, or has nothing there.
pub fn text_of(root: &Path, process: ProcKey, at: u64, max: usize) -> Option<String> {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open(root.join(format!("proc/{}/mem", process.tgid))).ok()?;
    // Opened first: it stays the memory of the process whose start is read now.
    start_ticks(root, process.tgid).filter(|start| *start == process.start_ticks)?;
    let mut bytes = vec![0; max];
    let mut have = 0;
    // Up to the end of a page: what follows may not be there.
    while have < max {
        let here = at.checked_add(have as u64)?;
        let page = usize::try_from(4096 - here % 4096).ok()?;
        let want = max.min(have + page);
        let Ok(n @ 1..) = memory.read_at(&mut bytes[have..want], here) else { break };
        have += n;
        if bytes[..have].contains(&0) {
            break;
        }
    }
    let text = bytes[..have].split(|b| *b == 0).next().filter(|text| !text.is_empty())?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The AF_UNIX paths that one php-fpm listens on; nothing when it is gone, or not a php-fpm. `at` as in [`scan`].
pub fn unix_listeners_of(root: &Path, pid: u32, at: BootNs) -> Vec<UnixListenerFact> {
    let process = read_process(root, pid, at).ok().filter(is_php_fpm_process);
    unix_listeners(&root.join("proc"), process.iter(), &Clock { at, started: Instant::now() })
}

struct Clock {
    at: BootNs,
    started: Instant,
}

impl Clock {
    fn now(&self) -> BootNs {
        self.at.saturating_add(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

struct Reader {
    proc: PathBuf,
    trees: Trees,
    /// Many processes share a cgroup.
    ids: BTreeMap<(Hierarchy, String), u64>,
}

impl Reader {
    fn new(root: &Path) -> Self {
        Reader { proc: root.join("proc"), trees: Trees::find(root), ids: BTreeMap::new() }
    }

    /// With whether everything could be read. `None`: gone.
    fn process(&mut self, pid: u32, at: BootNs) -> io::Result<Option<(ProcessFact, bool)>> {
        let dir = self.proc.join(pid.to_string());
        let path = dir.join("stat");
        let stat = match read(&path, FILE_MAX) {
            Ok(bytes) => match parse::stat(&bytes) {
                Some(stat) => stat,
                None => return Err(named(&path, &io::Error::from(io::ErrorKind::InvalidData))),
            },
            Err(e) if is_gone(&e) => return Ok(None),
            Err(e) => return Err(named(&path, &e)),
        };
        // A leader that ended before its threads looks dead and is not.
        if matches!(stat.state, b'Z' | b'X' | b'x') && stat.threads <= 1 {
            return Ok(None);
        }
        let mut whole = true;
        let mut text = |name: &str| match read(&dir.join(name), FILE_MAX) {
            Ok(bytes) => bytes,
            Err(e) => {
                whole &= is_gone(&e);
                Vec::new()
            }
        };
        let status = parse::status(&text("status"));
        let argv = parse::cmdline(&text("cmdline"));
        let (v2, v1) = parse::cgroup(&text("cgroup"), self.trees.v1_controller());
        let mut link = |name: &str| match fs::read_link(dir.join(name)) {
            Ok(target) => target.to_string_lossy().into_owned(),
            // Kernel threads have no program.
            Err(e) => {
                whole &= is_gone(&e);
                String::new()
            }
        };
        let exe = link("exe");
        let mut namespace = |kind: &str| {
            let id = parse::bracketed(&link(&format!("ns/{kind}")), kind);
            id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0)
        };
        let (pidns, netns) = (namespace("pid"), namespace("net"));
        let fact = ProcessFact {
            at,
            key: ProcKey { tgid: pid, start_ticks: stat.start_ticks },
            ppid: stat.ppid,
            ns_pid: status.ns_pid,
            pidns,
            netns,
            uid: status.uid,
            comm: stat.comm,
            exe,
            argv,
            cgroup: self.cgroup(Hierarchy::V2, v2),
            cgroup_v1: self.cgroup(Hierarchy::V1, v1),
            sig_ign: status.sig_ign,
            sig_cgt: status.sig_cgt,
        };
        Ok(Some((fact, whole)))
    }

    fn cgroup(&mut self, hierarchy: Hierarchy, seen: Option<String>) -> u64 {
        let Some(seen) = seen else { return 0 };
        let trees = &self.trees;
        let key = (hierarchy, seen);
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = trees.id_of(hierarchy, &key.1).unwrap_or(0);
        self.ids.insert(key, id);
        id
    }
}

fn listeners(proc: &Path, processes: &[ProcessFact], clock: &Clock) -> Vec<ListenerFact> {
    let mut namespaces: BTreeMap<u32, Vec<ProcKey>> = BTreeMap::new();
    for p in processes.iter().filter(|p| p.netns != 0) {
        namespaces.entry(p.netns).or_default().push(p.key);
    }
    let servers: BTreeSet<ProcKey> = processes.iter().filter(|p| is_server(p)).map(|p| p.key).collect();
    let mut found = Vec::new();
    for (netns, members) in namespaces {
        // The first that still lives speaks for its namespace.
        let Some((at, table)) = members.iter().find_map(|p| {
            let table = table(proc, p.tgid)?;
            Some((clock.now(), table))
        }) else {
            continue;
        };
        let inodes: BTreeSet<u64> = table.listening.iter().map(|(_, _, inode)| *inode).collect();
        if !inodes.is_empty() {
            let holders = holders(proc, &members, &inodes);
            found.extend(table.listening.iter().map(|(ip, port, inode)| {
                let holders = holders.get(inode).cloned().unwrap_or_default();
                ListenerFact { at, netns, ip: *ip, port: *port, inode: *inode, holders, closed: false }
            }));
        }
        let servers: Vec<ProcKey> = members.into_iter().filter(|key| servers.contains(key)).collect();
        found.extend(served::closed(proc, &servers, &table).into_iter().map(|((ip, port), holders)| ListenerFact {
            at,
            netns,
            ip,
            port,
            inode: 0,
            holders,
            closed: true,
        }));
    }
    found
}

/// Those that one of `processes` holds.
fn unix_listeners<'p>(
    proc: &Path,
    processes: impl Iterator<Item = &'p ProcessFact>,
    clock: &Clock,
) -> Vec<UnixListenerFact> {
    let mut namespaces: BTreeMap<u32, Vec<ProcKey>> = BTreeMap::new();
    for p in processes.filter(|p| p.netns != 0) {
        namespaces.entry(p.netns).or_default().push(p.key);
    }
    let mut found = Vec::new();
    for (netns, members) in namespaces {
        let table = |p: &ProcKey| read(&proc.join(p.tgid.to_string()).join("net/unix"), TABLE_MAX).ok();
        let Some((at, table)) = members.iter().find_map(|p| Some((clock.now(), table(p)?))) else { continue };
        let table: BTreeSet<_> = parse::unix_listeners(&String::from_utf8_lossy(&table)).collect();
        let holders = holders(proc, &members, &table.iter().map(|(_, inode)| *inode).collect());
        found.extend(table.into_iter().filter_map(|(path, inode)| {
            let holders = holders.get(&inode)?.clone();
            Some(UnixListenerFact { at, netns, path, inode, holders })
        }));
    }
    found
}

/// The TCP sockets of a network namespace.
#[derive(Debug, Default)]
struct Sockets {
    listening: BTreeSet<(IpAddr, u16, u64)>,
    /// Connections of ports on which nobody listens.
    others: Vec<parse::Connection>,
}

/// Those of a process's network namespace, ordered; `None` when it is gone.
fn table(proc: &Path, pid: u32) -> Option<Sockets> {
    let net = proc.join(pid.to_string()).join("net");
    let tcp = read(&net.join("tcp"), TABLE_MAX).ok()?;
    // Without IPv6 there is no tcp6.
    let tcp6 = read(&net.join("tcp6"), TABLE_MAX).unwrap_or_default();
    let mut sockets = Sockets::default();
    let texts = [tcp, tcp6].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    for text in &texts {
        sockets.listening.extend(parse::listeners(text));
    }
    let ports: BTreeSet<u16> = sockets.listening.iter().map(|(_, port, _)| *port).collect();
    for text in &texts {
        sockets
            .others
            .extend(parse::connections(text).filter(|c| served::may_be_servers(c) && !ports.contains(&c.port)));
    }
    Some(sockets)
}

fn holders(proc: &Path, members: &[ProcKey], inodes: &BTreeSet<u64>) -> BTreeMap<u64, Vec<ProcKey>> {
    let mut holders: BTreeMap<u64, Vec<ProcKey>> = BTreeMap::new();
    for key in members {
        let Ok(entries) = fs::read_dir(proc.join(key.tgid.to_string()).join("fd")) else { continue };
        for entry in entries.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let inode = target.to_str().and_then(|t| parse::bracketed(t, "socket"));
            if let Some(inode) = inode.filter(|i| inodes.contains(i)) {
                let of = holders.entry(inode).or_default();
                if of.last() != Some(key) {
                    of.push(*key);
                }
            }
        }
    }
    holders
}

fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// ESRCH comes from files that were open, or are opened, while the process went.
fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cannot read {}: {e}", path.display()))
}
