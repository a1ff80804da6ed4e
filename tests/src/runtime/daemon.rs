//! A runtime's daemon in a network namespace of its own, with everything that it keeps in one directory.

use crate::guard;
use crate::net::Netns;
use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A cold start on a busy machine.
const UP: Duration = Duration::from_secs(60);
/// It stops what it runs first.
const DOWN: Duration = Duration::from_secs(30);

/// Which cgroups the daemon sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// The machine's own.
    #[default]
    Hosts,
    /// A cgroup2 at /sys/fs/cgroup and nothing else, as on current distributions. The controllers stay with the v1
    /// hierarchies where the machine has these: containers get no limits.
    PureV2,
}

/// A daemon that this test started. Ended on drop: TERM, and KILL when that takes too long.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    argv: Vec<OsString>,
    netns: PathBuf,
    view: View,
    pub log: PathBuf,
}

const PURE_V2: &str = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";

impl Daemon {
    /// Returns when `up` says so.
    pub fn start(netns: &Netns, view: View, argv: Vec<OsString>, log: PathBuf, up: &dyn Fn() -> bool) -> Result<Self> {
        let child = spawn(&netns.path(), view, &argv, &log)?;
        let mut daemon = Self { child, argv, netns: netns.path(), view, log };
        daemon.wait_up(up)?;
        Ok(daemon)
    }

    fn wait_up(&mut self, up: &dyn Fn() -> bool) -> Result<()> {
        let name = format!("{}", self.argv[0].display());
        let waited = guard::wait(&name, UP, || up() || !self.running());
        if waited.is_err() || !self.running() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(8).collect();
            bail!("{name} did not start: {}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }

    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// As a crash of it: what it runs goes on without it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the daemon")?;
        self.child.wait().context("cannot wait for the daemon").map(|_| ())
    }

    /// Starts it again after [`kill`](Self::kill).
    pub fn start_again(&mut self, up: &dyn Fn() -> bool) -> Result<()> {
        self.child = spawn(&self.netns, self.view, &self.argv, &self.log)?;
        self.wait_up(up)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
            if guard::wait("a daemon's end", DOWN, || !self.running()).is_err() {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

fn spawn(netns: &Path, view: View, argv: &[OsString], log: &Path) -> Result<Child> {
    let log_file = OpenOptions::new().create(true).append(true).open(log)?;
    // Not `ip netns exec`, which mounts /sys anew: the cgroups are gone there.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display()));
    if view == View::PureV2 {
        command.args(["unshare", "-m", "--propagation", "private", "sh", "-c", PURE_V2, "sh"]);
    }
    command.args(argv).stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file).process_group(0);
    // SAFETY: prctl(2) is a plain system call, allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            Ok(())
        })
    };
    command.spawn().with_context(|| format!("cannot start {}", argv[0].display()))
}

/// What a daemon keeps, below the system's temporary directory. On drop what still runs for it is killed: shims and
/// containers outlive their daemon.
#[derive(Debug)]
pub struct Scratch(guard::Dir);

impl Scratch {
    pub fn new() -> Result<Self> {
        sweep();
        Ok(Self(guard::Dir::new()?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        clear(self.0.path());
    }
}

fn clear(dir: &Path) {
    let named = || helpers().into_iter().filter(|(_, of)| Path::new(of).starts_with(dir)).map(|(pid, _)| pid);
    let gone = guard::wait("the end of what a runtime left", Duration::from_secs(10), || {
        let left: Vec<i32> = named().collect();
        for pid in left.iter().flat_map(|pid| guard::children(*pid).into_iter().chain([*pid])) {
            // One that is gone already is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        left.is_empty()
    });
    if let Err(e) = gone {
        eprintln!("{e}");
    }
}

/// Daemons and shims of runtimes that were told to keep something in a directory of this harness, with that directory.
fn helpers() -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let argv = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argv = String::from_utf8_lossy(&argv).into_owned();
        let program = argv.split('\0').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if !["dockerd", "containerd", "containerd-shim-runc-v2", "containerd-shim-runc-v1"].contains(&program) {
            continue;
        }
        let temp = std::env::temp_dir().join("why502-").display().to_string();
        let word = argv.split('\0').find_map(|word| word.find(&temp).map(|at| word[at..].to_string()));
        found.extend(word.map(|dir| (pid, dir)));
    }
    found
}

/// What earlier, killed tests left: their shims would keep containers alive for ever.
fn sweep() {
    let temp = std::env::temp_dir();
    for (_, dir) in helpers() {
        let Some(first) = Path::new(&dir).strip_prefix(&temp).ok().and_then(|p| p.components().next()) else {
            continue;
        };
        let name = first.as_os_str().to_string_lossy().into_owned();
        let maker = name.strip_prefix("why502-").and_then(|rest| rest.split('-').next());
        if maker.is_some_and(guard::is_gone) {
            clear(&temp.join(name));
        }
    }
}
