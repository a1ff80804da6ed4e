//! What /proc and stat(2) say of a task: the truth that a record is compared with.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A live process (the thread group leader's values), as this namespace's /proc shows it.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) tgid: u32,
    pub(crate) pid: u32,
    pub(crate) ns_pid: u32,
    pub(crate) ppid: u32,
    pub(crate) uid: u32,
    pub(crate) pidns: u32,
    pub(crate) netns: u32,
    pub(crate) cgroup: u64,
    /// Its cgroups in v1 hierarchies, and 0: which one why502 chose is its own affair.
    pub(crate) cgroups_v1: Vec<u64>,
    pub(crate) start_ticks: u64,
    pub(crate) comm: String,
}

impl Facts {
    /// Of a process that lives and stays as it is: a zombie has lost its namespaces.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Self::read(pid).with_context(|| format!("/proc/{pid}"))
    }

    pub(crate) fn own() -> Result<Self> {
        Self::of(std::process::id())
    }

    fn read(pid: u32) -> Result<Self> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let stat = String::from_utf8_lossy(&fs::read(dir.join("stat"))?).into_owned();
        // comm may hold anything, also ") ": the fields start after the last one.
        let fields: Vec<&str> = stat.rsplit_once(") ").context("stat")?.1.split(' ').collect();
        let status = fs::read_to_string(dir.join("status"))?;
        let row = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).context("status");
        let mut comm = fs::read(dir.join("comm"))?;
        ensure!(comm.pop() == Some(b'\n'), "comm");
        let (cgroup, cgroups_v1) = cgroup_ids(&fs::read_to_string(dir.join("cgroup"))?)?;
        Ok(Self {
            tgid: pid,
            pid,
            ns_pid: row("NSpid:")?.split_whitespace().next_back().context("NSpid")?.parse()?,
            ppid: fields.get(1).context("ppid")?.parse()?,
            uid: row("Uid:")?.split_whitespace().next().context("Uid")?.parse()?,
            pidns: inode(&dir.join("ns/pid"))?,
            netns: inode(&dir.join("ns/net"))?,
            cgroup,
            cgroups_v1,
            start_ticks: fields.get(19).context("starttime")?.parse()?,
            comm: String::from_utf8_lossy(&comm).into_owned(),
        })
    }

    /// As a record of this task must have it.
    pub(crate) fn json(&self) -> Value {
        json!({
            "tgid": self.tgid, "pid": self.pid, "ns_pid": self.ns_pid, "ppid": self.ppid, "uid": self.uid,
            "pidns": self.pidns, "netns": self.netns, "cgroup": self.cgroup,
            "cgroup_v1": {"$in": self.cgroups_v1},
            "start_ticks": self.start_ticks, "comm": self.comm,
        })
    }

    /// The same for a task on its way out. kernel/exit.c `do_exit()` leaves the namespaces (`exit_task_namespaces()`)
    /// before it runs the deferred close of its files (`exit_task_work()`).
    pub(crate) fn exiting(&self) -> Value {
        let mut v = self.json();
        v["netns"] = json!({"$in": [0, self.netns]});
        v["flags"] = json!({"$mask": [4, 4]});
        v
    }
}

fn inode(path: &Path) -> Result<u32> {
    let ino = fs::metadata(path).with_context(|| path.display().to_string())?.ino();
    Ok(u32::try_from(ino)?)
}

/// Inode of the network namespace that this process is in.
pub(crate) fn netns() -> Result<u32> {
    inode(Path::new("/proc/self/ns/net"))
}

/// v2 id, and the v1 ids with a 0, of a /proc/PID/cgroup file.
fn cgroup_ids(text: &str) -> Result<(u64, Vec<u64>)> {
    let mut v2 = 0;
    let mut v1 = vec![0];
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let Some(root) = mount_point(controllers) else { continue };
        let Ok(meta) = fs::metadata(root.join(path.trim_start_matches('/'))) else { continue };
        if controllers.is_empty() {
            v2 = meta.ino();
        } else {
            v1.push(meta.ino());
        }
    }
    ensure!(v2 != 0, "no cgroup of the v2 hierarchy");
    Ok((v2, v1))
}

/// Where a hierarchy is mounted: the v2 one for "", else the v1 one of these controllers.
pub(crate) fn mount_point(controllers: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // proc(5): id parent major:minor root mount-point options ... - type source super-options
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let kind = if controllers.is_empty() { "cgroup2" } else { "cgroup" };
        let all = || {
            let options: Vec<&str> = right.get(2).unwrap_or(&"").split(',').collect();
            controllers.split(',').all(|c| options.contains(&c))
        };
        let ours = right.first() == Some(&kind) && left.get(3) == Some(&"/") && (controllers.is_empty() || all());
        ours.then(|| left.get(4).map(PathBuf::from)).flatten()
    })
}

/// Cgroups of our own in the v2 hierarchy, named like a pod's containers, so that no filter for the host's own
/// processes hides what happens in them.
pub(crate) struct Cgroups {
    pod: PathBuf,
    /// Where we were before.
    before: PathBuf,
}

/// The containers.
pub(crate) const MAIN: &str = "a";
pub(crate) const TARGET: &str = "b";
pub(crate) const SERVER: &str = "c";
pub(crate) const CLIENT: &str = "d";

impl Cgroups {
    /// Creates them and moves this process to [`MAIN`].
    pub(crate) fn create() -> Result<Self> {
        let root = mount_point("").context("the cgroup v2 hierarchy is not mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|l| l.strip_prefix("0::/")).context("no v2 cgroup")?.to_owned();
        let before = root.join(own);
        let uid = format!("f17e0000-0000-4000-8000-{:012x}", std::process::id());
        let it = Self { pod: root.join("kubepods/burstable").join(format!("pod{uid}")), before };
        for name in [MAIN, TARGET, SERVER, CLIENT] {
            let dir = it.path(name);
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        it.enter(MAIN)?;
        Ok(it)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pod.join(name.repeat(64))
    }

    /// Moves this process.
    pub(crate) fn enter(&self, name: &str) -> Result<()> {
        self.put(name, 0)
    }

    /// Moves another one; 0 is this one.
    pub(crate) fn put(&self, name: &str, pid: u32) -> Result<()> {
        let file = self.path(name).join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| file.display().to_string())
    }

    pub(crate) fn id(&self, name: &str) -> Result<u64> {
        Ok(fs::metadata(self.path(name))?.ino())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        for name in [MAIN, TARGET, SERVER, CLIENT] {
            let _ = fs::remove_dir(self.path(name));
        }
        // Parents go when nobody else uses them.
        for dir in self.pod.ancestors().take(3) {
            let _ = fs::remove_dir(dir);
        }
    }
}
