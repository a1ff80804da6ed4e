//! A pod: one network namespace shared by containers that have a cgroup and a pid namespace each.

use crate::cgroup::{Cgroup, container_id, pod_uid};
use crate::launch::{Launched, Spec};
use crate::net::Netns;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    pub netns: Netns,
}

impl Pod {
    pub fn new(tag: &str) -> Result<Self> {
        Ok(Self { uid: pod_uid(), netns: Netns::new(tag)? })
    }

    /// Starts a container in this pod; `spec`'s namespace and cgroup are set here.
    pub fn start(&self, mut spec: Spec) -> Result<Container> {
        let id = container_id();
        let cgroup = Cgroup::kubepods(&self.uid, &id)?;
        spec.netns = Some(self.netns.path());
        spec.cgroup = Some(cgroup.dir());
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
}

impl Pid1 {
    /// What stands before the server's own words.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Pid1::Server => &[],
            Pid1::Shell => &["/bin/sh", "-c", "\"$@\" & wait", "entrypoint"],
            Pid1::Tini => &["tini", "--"],
        }
    }
}

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

fn parent_of(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().parse().ok()
}
