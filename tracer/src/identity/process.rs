//! What is known of one process.

use super::role::Kind;
use crate::model::{BootNs, EventId, ProcKey};
use std::sync::Arc;

/// Bytes kept of a program's path: its end, because the name of the program is there.
const PATH_KEEP: usize = 512;
/// Bytes and number of arguments kept; records and the scan cut at 256 bytes already, a recording need not.
const ARGV_KEEP: usize = 1024;
const ARGS_KEEP: usize = 64;
/// Bytes kept of comm: 16 in the kernel, up to three for each that is not UTF-8.
const COMM_KEEP: usize = 48;
/// Execs remembered of one process, the latest ones.
const EXECS_KEEP: usize = 4;

/// The first thing that told of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// /proc showed it: it may be older than the observation.
    Scan,
    /// Its fork was seen.
    Fork,
    /// Its exec was seen, not its fork.
    Exec,
    /// It only appeared as the task of a record.
    Record,
}

/// Where the program and the arguments of a process are known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFrom {
    /// /proc/PID/exe, a resolved path, and /proc/PID/cmdline, which a process may have rewritten (titles).
    Proc,
    /// The arguments of execve: the path may be relative, a symlink or a script.
    Exec,
    /// Forked from a process with this image and no exec since.
    Parent,
}

/// Program and arguments. Shared by a process and its forks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub exe: Arc<str>,
    pub argv: Arc<[String]>,
    pub from: ImageFrom,
}

impl Image {
    pub(super) fn new(exe: &str, argv: &[String], from: ImageFrom) -> Self {
        let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe);
        Image { exe: tail(exe, PATH_KEEP).into(), argv: bounded_argv(argv).into(), from }
    }

    /// The same image in a forked child.
    pub(super) fn inherited(&self) -> Self {
        Image { from: ImageFrom::Parent, ..self.clone() }
    }

    /// Bytes that it takes, with what each block costs.
    pub(super) fn weight(&self) -> usize {
        let arg = |arg: &String| size_of::<String>() + 16 + arg.len();
        32 + self.exe.len() + self.argv.iter().map(arg).sum::<usize>()
    }

    /// Name of the program without its directory.
    pub fn base(&self) -> &str {
        base(&self.exe)
    }
}

/// The part of a path after its last slash.
pub(super) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecRef {
    pub at: BootNs,
    pub event: EventId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// When it exited, or, without an event, when its pid was seen in other hands.
    pub at: BootNs,
    /// As in wait(2). `None`: the exit itself was not seen.
    pub code: Option<u32>,
    pub event: Option<EventId>,
}

impl Exit {
    /// The signal that ended the process.
    pub fn signal(&self) -> Option<u32> {
        self.code.map(|c| c & 0x7f).filter(|s| *s != 0)
    }
    /// The status it gave to exit(2), when no signal ended it.
    pub fn status(&self) -> Option<u32> {
        self.code.filter(|c| c & 0x7f == 0).map(|c| c >> 8 & 0xff)
    }
}

/// A process. Strings are as the kernel had them, hostile: escape before printing. After its exit nothing changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub key: ProcKey,
    /// The latest real parent's tgid.
    pub ppid: u32,
    /// Who forked it, which stays when it is reparented; from a scan, its parent then.
    pub parent: Option<ProcKey>,
    /// 0 unknown, as are pidns and netns.
    pub ns_pid: u32,
    pub pidns: u32,
    pub netns: u32,
    pub uid: u32,
    pub comm: String,
    pub image: Option<Image>,
    /// v2 and v1 cgroup ids; 0 unknown.
    pub cgroup: u64,
    pub cgroup_v1: u64,
    /// Time of the fork; `None`: not seen.
    pub born: Option<BootNs>,
    pub fork_event: Option<EventId>,
    /// Latest execs, oldest first.
    pub execs: Vec<ExecRef>,
    pub exited: Option<Exit>,
    pub known: Known,
    /// First evidence.
    pub seen_at: BootNs,
    /// SigIgn and SigCgt of /proc/PID/status, with their time.
    pub sig_ign: u64,
    pub sig_cgt: u64,
    pub fact_at: Option<BootNs>,
    /// Time of the latest record that carried it.
    pub(super) touched: BootNs,
    /// tgid of the parent that is not known yet.
    pub(super) waits_for: Option<u32>,
    /// What the parent was, kept when the parent is forgotten.
    pub(super) parent_kind: Option<(Kind, bool)>,
}

impl Process {
    /// Bytes that one takes with its entries in the indexes, without an image of its own.
    pub(super) const LEAST: usize = 1_000;

    pub(super) fn new(key: ProcKey, known: Known, at: BootNs) -> Self {
        Process {
            key,
            ppid: 0,
            parent: None,
            ns_pid: 0,
            pidns: 0,
            netns: 0,
            uid: 0,
            comm: String::new(),
            image: None,
            cgroup: 0,
            cgroup_v1: 0,
            born: None,
            fork_event: None,
            execs: Vec::new(),
            exited: None,
            known,
            seen_at: at,
            sig_ign: 0,
            sig_cgt: 0,
            fact_at: None,
            touched: 0,
            waits_for: None,
            parent_kind: None,
        }
    }

    /// Program path, empty when unknown.
    pub fn exe(&self) -> &str {
        self.image.as_ref().map_or("", |i| &i.exe)
    }

    /// Arguments, empty when unknown.
    pub fn argv(&self) -> &[String] {
        self.image.as_ref().map_or(&[], |i| &i.argv)
    }

    /// /proc showed it as an nginx worker that finishes what it has: it had been told to end before. Its own word
    /// (ngx_worker_process_cycle() sets the title).
    pub fn draining(&self) -> bool {
        let image = self.image.as_ref().filter(|i| i.from == ImageFrom::Proc);
        let title = image.and_then(|i| i.argv.first()).map_or("", String::as_str);
        ["nginx: ", "angie: "]
            .iter()
            .any(|name| title.strip_prefix(name).is_some_and(|t| t.starts_with("worker process is shutting down")))
    }

    /// The pool that a php-fpm child says it is of, as /proc showed its title (fpm_child_init()). Hostile.
    pub fn pool(&self) -> Option<&str> {
        let title = self.image.as_ref().filter(|i| i.from == ImageFrom::Proc)?.argv.first()?;
        Some(title.strip_prefix("php-fpm: pool ")?.trim()).filter(|pool| !pool.is_empty())
    }

    pub fn alive(&self) -> bool {
        self.exited.is_none()
    }

    /// It runs a program that it started itself, rather than its parent's.
    pub fn execed(&self) -> bool {
        !self.execs.is_empty() || self.image.as_ref().is_some_and(|i| i.from == ImageFrom::Exec)
    }

    /// True: it is another one.
    pub(super) fn set_comm(&mut self, comm: &str) -> bool {
        let comm = head(comm, COMM_KEEP);
        let new = self.comm != comm;
        if new {
            self.comm.clear();
            self.comm.push_str(comm);
        }
        new
    }

    pub(super) fn add_exec(&mut self, exec: ExecRef) {
        if self.execs.len() == EXECS_KEEP {
            self.execs.remove(0);
        }
        self.execs.push(exec);
    }
}

fn head(s: &str, max: usize) -> &str {
    &s[..s.floor_char_boundary(max)]
}

fn tail(s: &str, max: usize) -> &str {
    &s[s.ceil_char_boundary(s.len().saturating_sub(max))..]
}

fn bounded_argv(argv: &[String]) -> Vec<String> {
    let mut left = ARGV_KEEP;
    let mut kept = Vec::new();
    for arg in argv.iter().take(ARGS_KEEP) {
        if left == 0 {
            break;
        }
        let arg = head(arg, left);
        left -= arg.len();
        kept.push(arg.to_owned());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_strings() {
        let long = "é".repeat(5000) + "/nginx";
        let image = Image::new(&long, &vec!["x".repeat(300); 1000], ImageFrom::Exec);
        assert!(image.exe.len() <= PATH_KEEP);
        assert_eq!(image.base(), "nginx");
        assert!(image.argv.iter().map(String::len).sum::<usize>() <= ARGV_KEEP);
        let many = Image::new("", &vec![String::new(); 1000], ImageFrom::Exec);
        assert_eq!(many.argv.len(), ARGS_KEEP);
    }

    #[test]
    fn deleted_program_keeps_its_name() {
        assert_eq!(Image::new("/usr/sbin/nginx (deleted)", &[], ImageFrom::Proc).base(), "nginx");
    }

    #[test]
    fn exit_codes() {
        let exit = |code| Exit { at: 0, code: Some(code), event: None };
        assert_eq!((exit(9).signal(), exit(9).status()), (Some(9), None));
        assert_eq!((exit(139).signal(), exit(139).status()), (Some(11), None), "SEGV with a core dump");
        assert_eq!((exit(0x100).signal(), exit(0x100).status()), (None, Some(1)));
        assert_eq!((exit(0).signal(), exit(0).status()), (None, Some(0)));
    }
}
