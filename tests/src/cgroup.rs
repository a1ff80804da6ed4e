//! Cgroups of the v2 hierarchy, with the paths that a kubelet with the cgroupfs driver makes.

use crate::guard;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
pub fn v2_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(dir), Some("cgroup2")) = (fields.next(), fields.next()) {
            return Ok(dir.into());
        }
    }
    bail!("cgroup2 is not mounted (neither at /sys/fs/cgroup nor at /sys/fs/cgroup/unified)")
}

/// A uid with a mark and the pid of its maker in it, so that [`sweep`] knows what a killed test left behind.
pub fn pod_uid() -> String {
    format!("{:08x}-{:04x}-4502-8502-{:012x}", std::process::id(), guard::serial() & 0xffff, noise() & 0xffff_ffff_ffff)
}

/// 64 hex digits, as container runtimes name containers.
pub fn container_id() -> String {
    (0..4).map(|_| format!("{:016x}", noise())).collect()
}

/// Differs between calls and processes; not secret.
fn noise() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut h = std::collections::hash_map::RandomState::new().build_hasher();
    h.write_u32(guard::serial());
    h.finish()
}

/// A container's cgroup. On drop its processes are killed and it is removed, with those of its parents that are empty.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    /// Below the root, with a leading slash: `/kubepods/burstable/pod…/…`.
    pub path: String,
}

impl Cgroup {
    /// `/kubepods/burstable/pod<uid>/<container id>`.
    pub fn kubepods(uid: &str, container: &str) -> Result<Self> {
        Self::new(format!("/kubepods/burstable/pod{uid}/{container}"))
    }

    /// Creates a cgroup and its missing parents.
    pub fn new(path: String) -> Result<Self> {
        let root = v2_root()?;
        let cgroup = Self { root, path };
        std::fs::create_dir_all(cgroup.dir()).with_context(|| format!("cannot create {}", cgroup.dir().display()))?;
        Ok(cgroup)
    }

    pub fn dir(&self) -> PathBuf {
        self.root.join(self.path.trim_start_matches('/'))
    }

    /// The kernel's id of the cgroup: its inode number in cgroupfs.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(std::fs::metadata(self.dir())?.ino())
    }

    /// Host pids of the processes in it.
    pub fn procs(&self) -> Vec<i32> {
        procs(&self.dir())
    }

    /// Writes to cgroup.kill, as newer runtimes do to end a container (Linux 5.14).
    pub fn write_kill(&self) -> Result<()> {
        let file = self.dir().join("cgroup.kill");
        std::fs::write(&file, "1").with_context(|| format!("cannot write to {}", file.display()))
    }

    /// Kills what is in it and waits until it is empty.
    pub fn kill_all(&self) -> Result<()> {
        kill_all(&self.dir())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(e) = self.kill_all() {
            eprintln!("cannot empty cgroup {}: {e}", self.path);
        }
        let mut dir = self.dir();
        // Only empty directories can be removed, so what others use stays.
        while dir != self.root && std::fs::remove_dir(&dir).is_ok() {
            dir.pop();
        }
    }
}

fn procs(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0: a process of a pid namespace that this process cannot see; kill(0) would hit ourselves.
    text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn kill_all(dir: &Path) -> Result<()> {
    guard::wait(&format!("the end of the processes in {}", dir.display()), Duration::from_secs(10), || {
        let pids = procs(dir);
        for pid in &pids {
            // A pid that is gone already is what is wanted.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        pids.is_empty()
    })
}

/// Removes the cgroups that earlier, killed runs of the harness left behind.
pub fn sweep() {
    let Ok(root) = v2_root() else { return };
    let Ok(pods) = std::fs::read_dir(root.join("kubepods/burstable")) else { return };
    for pod in pods.flatten() {
        let name = pod.file_name().to_string_lossy().into_owned();
        let Some(uid) = name.strip_prefix("pod") else { continue };
        let maker = uid.get(..8).and_then(|h| i32::from_str_radix(h, 16).ok());
        if !uid.contains("-4502-8502-") || maker.is_none_or(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            continue;
        }
        for container in std::fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            if container.path().is_dir() {
                let _ = kill_all(&container.path());
                let _ = std::fs::remove_dir(container.path());
            }
        }
        let _ = std::fs::remove_dir(pod.path());
    }
}
