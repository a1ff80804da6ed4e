//! What `why502 serve` needs beside the probes: a directory that it may write, and an address to listen on. Looked at without
//! leaving anything behind, and without holding up an agent that starts meanwhile.

use rustix::fs::{Access, AtFlags, CWD, accessat, major, minor, statvfs};
use serde::Serialize;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[derive(Debug, Serialize)]
pub(super) struct Place {
    pub(super) store: Found,
    pub(super) listen: Found,
}

/// One of the two.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    /// The directory, or the address.
    pub(super) what: String,
    pub(super) state: State,
    /// What that means, and what to do.
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Ok,
    /// By an agent that runs, as far as can be told.
    InUse,
    Unusable,
}

pub(super) fn look(store: &Path, listen: SocketAddr) -> Place {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let store = directory(store, &locks);
    let listen = address(listen, store.state == State::InUse);
    Place { store, listen }
}

fn directory(dir: &Path, locks: &str) -> Found {
    let found = |state, text: String| Found { what: dir.display().to_string(), state, text };
    let there = match dir.metadata() {
        Ok(meta) if !meta.is_dir() => {
            return found(State::Unusable, "is no directory: --store names another one".into());
        }
        Ok(meta) => Some(meta),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return found(State::Unusable, format!("{e}: --store names another directory")),
    };
    // What is missing is made, in the nearest directory that is there.
    let nearest = dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    if let Err(e) = accessat(CWD, nearest, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        let user = rustix::process::geteuid().as_raw();
        let text =
            format!("may not be written by uid {user} ({e}): give it to that user, or --store names another directory");
        return found(State::Unusable, text);
    }
    if there.as_ref().is_some_and(|meta| is_locked(locks, meta.dev(), meta.ino())) {
        return found(State::InUse, "an agent runs here already, and has it".into());
    }
    let mebibytes = statvfs(nearest).map(|fs| (u128::from(fs.f_bavail) * u128::from(fs.f_frsize)) >> 20);
    let free = mebibytes.map_or_else(|e| format!("free space unknown: {e}"), |n| format!("{n} MiB free"));
    found(State::Ok, if there.is_some() { free } else { format!("will be made; {free}") })
}

/// Whether somebody has a flock on the file, as proc(5) lists them: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF`.
fn is_locked(locks: &str, dev: u64, inode: u64) -> bool {
    let id = format!("{:02x}:{:02x}:{inode}", major(dev), minor(dev));
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"FLOCK") && words.contains(&id.as_str())
    })
}

fn address(listen: SocketAddr, agent: bool) -> Found {
    let (state, text) = match TcpListener::bind(listen) {
        Ok(_) => (State::Ok, "free".to_owned()),
        Err(e) if e.kind() == ErrorKind::AddrInUse && agent => {
            (State::InUse, "in use, by the agent that runs".to_owned())
        }
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            (State::Unusable, "in use by another program: --listen takes another address".to_owned())
        }
        Err(e) => (State::Unusable, format!("{e}: --listen takes another address")),
    };
    Found { what: listen.to_string(), state, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_directory_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let state = |path: &Path, locks: &str| directory(path, locks).state;
        assert!(directory(dir.path(), "").text.ends_with("MiB free"));
        let new = dir.path().join("a/b");
        assert!(directory(&new, "").text.starts_with("will be made; "));
        assert!(!dir.path().join("a").exists(), "nothing is left behind");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(state(&file, ""), State::Unusable);
        assert_eq!(state(&file.join("store"), ""), State::Unusable);
    }

    #[test]
    fn a_running_agent_is_told_by_its_locks() {
        let dir = tempfile::tempdir().unwrap();
        let locked = fs::File::open(dir.path()).unwrap();
        rustix::fs::flock(&locked, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let locks = || fs::read_to_string("/proc/locks").unwrap();
        assert_eq!(directory(dir.path(), &locks()).state, State::InUse);
        drop(locked);
        assert_eq!(directory(dir.path(), &locks()).state, State::Ok);
        let line = "1: FLOCK  ADVISORY  WRITE 4711 fe:0a:123 0 EOF\n2: POSIX  ADVISORY  WRITE 4712 fe:0a:124 0 EOF\n";
        assert!(is_locked(line, rustix::fs::makedev(0xfe, 0x0a), 123));
        assert!(!is_locked(line, rustix::fs::makedev(0xfe, 0x0a), 124), "another kind of lock");
    }

    #[test]
    fn the_address() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        assert_eq!(address(at, false).state, State::Unusable);
        assert_eq!(address(at, true).state, State::InUse);
        drop(taken);
        assert_eq!(address(at, false), Found { what: at.to_string(), state: State::Ok, text: "free".into() });
        // Of a network for documentation: no host has it.
        assert_eq!(address("192.0.2.1:9502".parse().unwrap(), false).state, State::Unusable);
    }
}
