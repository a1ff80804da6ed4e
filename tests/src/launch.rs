//! Starts a command as a container: `why502-launch` does it, this is its caller.
//!
//! The launcher itself stays outside of the container's cgroup and pid namespace, so a signal sent by the harness comes
//! "from outside", as a container runtime's does. The container ends with the launcher (PDEATHSIG), and the launcher ends
//! when its standard input is closed, which the kernel does for us however the harness dies.

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    pub argv: Vec<OsString>,
    /// Path of the network namespace to join.
    pub netns: Option<PathBuf>,
    /// Directory of the cgroup to join.
    pub cgroup: Option<PathBuf>,
    /// Its pid namespace.
    pub pids: Pids,
    /// Host pid of a container's PID 1: join its pid, mount and network namespaces instead of making new ones.
    pub enter: Option<i32>,
    /// Stay in the caller's pid and mount namespaces: for helpers such as a load client.
    pub plain: bool,
    /// Files or directories seen elsewhere in the container: (outside, inside).
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Where stdout and stderr go; nowhere without it.
    pub log: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pids {
    /// A new one.
    #[default]
    Own,
    /// That of this process (host pid).
    Of(i32),
    /// Stay in the caller's.
    Callers,
}

impl Spec {
    pub fn new<S: Into<OsString>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// A started command. Killed on drop.
#[derive(Debug)]
pub struct Launched {
    launcher: Child,
    pid: i32,
}

impl Launched {
    /// Returns when the command was exec'ed; it has not necessarily done anything yet.
    pub fn start(spec: &Spec) -> Result<Self> {
        let mut command = Command::new(binary()?);
        for (flag, value) in [("--netns", &spec.netns), ("--cgroup", &spec.cgroup), ("--log", &spec.log)] {
            if let Some(value) = value {
                command.arg(flag).arg(value);
            }
        }
        if let Some(pid) = spec.enter {
            command.arg("--enter").arg(pid.to_string());
        }
        match spec.pids {
            Pids::Own => {}
            Pids::Of(pid) => drop(command.arg("--pids-of").arg(pid.to_string())),
            Pids::Callers => drop(command.arg("--host-pids")),
        }
        if spec.plain {
            command.arg("--plain");
        }
        for (outside, inside) in &spec.binds {
            command.arg("--bind").arg(outside).arg(inside);
        }
        command.arg("--").args(&spec.argv);
        let mut launcher =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start why502-launch")?;
        let mut line = String::new();
        let stdout = launcher.stdout.take().ok_or_else(|| anyhow!("why502-launch has no stdout"))?;
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line.strip_prefix("pid ").and_then(|p| p.trim().parse().ok());
        let Some(pid) = pid else {
            let _ = launcher.wait();
            bail!("why502-launch could not start {:?}: {}", spec.argv.first(), line.trim());
        };
        Ok(Self { launcher, pid })
    }

    /// Host pid of the command; in its own pid namespace it is 1.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("cannot send {signal} to {}", self.pid))
    }

    pub fn running(&mut self) -> bool {
        matches!(self.launcher.try_wait(), Ok(None))
    }

    /// Waits for the command's end. The launcher exits as its child did: 128 + signal when it was killed.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let pid = self.pid;
        let mut status = None;
        crate::guard::wait(&format!("the end of process {pid}"), limit, || {
            status = self.launcher.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.ok_or_else(|| anyhow!("process {pid} has no exit status"))
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        drop(self.launcher.stdin.take());
        let _ = self.launcher.wait();
    }
}

/// A binary of this package: beside the running executable, or one level up when that is a test.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find the running executable")?;
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|p: &PathBuf| p.is_file());
    found.ok_or_else(|| anyhow!("{name} is not beside {}: build it (cargo build -p why502-tests)", show(&exe)))
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn binary() -> Result<PathBuf> {
    sibling("why502-launch")
}
