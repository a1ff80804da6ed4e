//! A pod: one network namespace shared by containers that have a cgroup and a pid namespace each.

use crate::cgroup::{Cgroup, container_id, pod_uid};
use crate::guard;
use crate::launch::{self, Launched, Spec};
use crate::net::Netns;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Whose pid namespace the containers of a pod are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pids {
    /// Each has its own.
    #[default]
    Own,
    /// shareProcessNamespace: one for all of them, whose PID 1 is a pause of its own container.
    Shared,
    /// hostPID.
    Host,
}

/// What a pod shares with the host, and among its containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodConf {
    pub pids: Pids,
    /// Its containers are in the host's network namespace.
    pub host_network: bool,
}

#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    pub netns: Netns,
    conf: PodConf,
    /// The container of a shared pid namespace's PID 1.
    pub pause: Option<Container>,
}

impl Pod {
    pub fn new(tag: &str) -> Result<Self> {
        Self::with(tag, PodConf::default())
    }

    pub fn with(tag: &str, conf: PodConf) -> Result<Self> {
        let netns = if conf.host_network { Netns::of_host(tag)? } else { Netns::new(tag)? };
        let mut pod = Self { uid: pod_uid(), netns, conf, pause: None };
        if conf.pids == Pids::Shared {
            // As Kubernetes' pause does: it waits, reaps, and ends on a signal.
            let script = "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait; done";
            pod.pause = Some(pod.start(Spec::new(["/bin/sh", "-c", script]))?);
        }
        Ok(pod)
    }

    /// Starts a container in this pod; `spec`'s namespaces and cgroup are set here.
    pub fn start(&self, mut spec: Spec) -> Result<Container> {
        let id = container_id();
        let cgroup = Cgroup::kubepods(&self.uid, &id)?;
        spec.netns = Some(self.netns.path());
        spec.cgroup = Some(cgroup.dir());
        spec.pids = match (&self.pause, self.conf.pids) {
            (_, Pids::Host) => launch::Pids::Callers,
            (Some(pause), _) => launch::Pids::Of(pause.pid()),
            (None, _) => launch::Pids::Own,
        };
        Ok(Container { id, process: Launched::start(&spec)?, cgroup })
    }
}

/// What a container's PID 1 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pid1 {
    #[default]
    Server,
    /// A shell that waits for the server, as in an entrypoint without `exec`: it has no handler, so TERM is ignored.
    Shell,
    /// tini: passes signals on to the server.
    Tini,
    /// Passes signals on to the server's whole session.
    DumbInit,
    Catatonit,
    /// A shell whose trap passes TERM and QUIT on, and which waits for the server's end.
    Trap,
    /// The same, but its `wait` is cut short by the signal, and it ends before the server has.
    TrapEndsFirst,
    /// A shell whose trap does nothing at all.
    TrapDoesNothing,
    /// A shell that also waits for something else than the server, and ends well with that: see [`Container::other_child`].
    OfTwo,
    /// Waits for nothing: it exits on TERM, and the server is killed with it. For nginx only.
    Runit,
    /// Stops the server and waits for it. For nginx only.
    S6,
}

impl Pid1 {
    /// What stands before the server's own words.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Pid1::Server => &[],
            Pid1::Shell => &["/bin/sh", "-c", "\"$@\" & wait", "entrypoint"],
            Pid1::Tini => &["tini", "--"],
            Pid1::DumbInit => &["dumb-init", "--"],
            Pid1::Catatonit => &["catatonit", "--"],
            Pid1::Trap => &["/bin/sh", "-c", TRAP, "entrypoint"],
            Pid1::TrapEndsFirst => &["/bin/sh", "-c", TRAP_ENDS_FIRST, "entrypoint"],
            Pid1::TrapDoesNothing => &["/bin/sh", "-c", TRAP_DOES_NOTHING, "entrypoint"],
            Pid1::OfTwo => &["/bin/sh", "-c", "\"$@\" & sleep 1000 & wait $!; exit 0", "entrypoint"],
            Pid1::Runit => &["/bin/sh", "-c", RUNIT, "entrypoint"],
            Pid1::S6 => &["/bin/sh", "-c", S6, "entrypoint"],
        }
    }

    /// Why it cannot be used here: its program is not installed.
    pub fn lacks(self) -> Option<String> {
        let (program, package) = match self {
            Pid1::Tini => ("tini", "tini"),
            Pid1::DumbInit => ("dumb-init", "dumb-init"),
            Pid1::Catatonit => ("catatonit", "catatonit"),
            Pid1::Runit => ("runsvdir", "runit"),
            Pid1::S6 => ("s6-svscan", "s6"),
            Pid1::Server | Pid1::Shell | Pid1::Trap | Pid1::TrapEndsFirst => return None,
            Pid1::TrapDoesNothing | Pid1::OfTwo => return None,
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
        (!found).then(|| format!("{program} is not installed (apt-get install {package})"))
    }
}

const TRAP: &str = "trap 'kill -TERM $pid' TERM; trap 'kill -QUIT $pid' QUIT; \"$@\" & pid=$!; \
    while kill -0 $pid 2>/dev/null; do wait $pid; done";
const TRAP_ENDS_FIRST: &str = "trap 'kill -TERM $pid' TERM; trap 'kill -QUIT $pid' QUIT; \"$@\" & pid=$!; wait";
const TRAP_DOES_NOTHING: &str = "trap : TERM QUIT; \"$@\" & pid=$!; while kill -0 $pid 2>/dev/null; do wait $pid; done";
/// Both have a directory for each service, with a program that is to become it. nginx's fifth word is its own directory.
const RUNIT: &str = "d=\"$5/service\"; mkdir -p \"$d/nginx\"; printf '#!/bin/sh\\nexec %s\\n' \"$*\" > \"$d/nginx/run\"; \
    chmod 755 \"$d/nginx/run\"; exec runsvdir \"$d\"";
const S6: &str = "d=\"$5/service\"; mkdir -p \"$d/nginx\"; printf '#!/bin/sh\\nexec %s\\n' \"$*\" > \"$d/nginx/run\"; \
    chmod 755 \"$d/nginx/run\"; exec s6-svscan \"$d\"";

/// Its fields are dropped in this order: first the processes, then the cgroup.
#[derive(Debug)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    process: Launched,
    pub cgroup: Cgroup,
}

impl Container {
    /// Host pid of the container's PID 1.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Host pids of PID 1's children: workers of nginx, children of php-fpm.
    pub fn children(&self) -> Vec<i32> {
        self.children_of(self.pid())
    }

    /// Host pids of a process's children in this container.
    pub fn children_of(&self, parent: i32) -> Vec<i32> {
        self.cgroup.procs().into_iter().filter(|pid| parent_of(*pid) == Some(parent)).collect()
    }

    /// To PID 1, from outside of the container, as a runtime does.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Host pid of the master of a server: it runs this program, and its parent another one.
    pub fn master(&self, program: &Path) -> Option<i32> {
        let runs = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let all = self.cgroup.procs();
        all.into_iter().find(|pid| runs(pid) && !parent_of(*pid).is_some_and(|parent| runs(&parent)))
    }

    /// Host pid of the child of PID 1 that is no server: what [`Pid1::OfTwo`] waits for.
    pub fn other_child(&self) -> Option<i32> {
        let sleeps =
            |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "sleep");
        self.children().into_iter().find(sleeps)
    }

    /// To the master of a server rather than to PID 1, from outside of the container.
    pub fn signal_master(&self, program: &Path, signal: Signal) -> Result<()> {
        let pid = self.master(program).with_context(|| format!("no {} runs", program.display()))?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {pid}"))
    }

    /// Starts a command in this container, as `kubectl exec` and an exec hook do: its parent is outside.
    pub fn exec<S: Into<OsString> + Clone>(&self, argv: &[S]) -> Result<Launched> {
        let mut spec = Spec::new(argv.iter().cloned());
        spec.enter = Some(self.pid());
        spec.cgroup = Some(self.cgroup.dir());
        Launched::start(&spec)
    }

    pub fn running(&mut self) -> bool {
        self.process.running()
    }

    pub fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.process.wait(limit)
    }
}

/// It stands still by SIGSTOP.
pub fn stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}

/// Makes a process crash by a fault of its own: what follows the system call in which it waits becomes zeros, which fault on
/// x86 (a write through the call's result) and are undefined on arm64. `wake`: a signal that it handles, when it waits for
/// one.
pub fn fault(pid: i32, wake: Option<Signal>) -> Result<()> {
    let path = format!("/proc/{pid}/syscall");
    let mut next = None;
    guard::wait(&format!("process {pid} to wait in a system call"), Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // The program counter stands last; "running" has none.
        next = text.split_whitespace().last().and_then(|pc| u64::from_str_radix(pc.strip_prefix("0x")?, 16).ok());
        next.is_some()
    })?;
    let memory = std::fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"));
    let memory = memory.with_context(|| format!("cannot open the memory of {pid}"))?;
    memory.write_all_at(&[0; 4], next.unwrap_or(0)).with_context(|| format!("cannot write to the memory of {pid}"))?;
    match wake {
        Some(signal) => kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot wake {pid}")),
        None => Ok(()),
    }
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().parse().ok()
}
