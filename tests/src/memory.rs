//! Memory limits for containers of the harness.

use crate::cgroup::{Cgroup, v2_root};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A limit for a container: in its own cgroup where v2 has the memory controller, else in one of the same path in v1's
/// hierarchy. On drop v1's is emptied and removed; v2's goes with the container.
#[derive(Debug)]
pub struct Limit {
    /// v1 only.
    dir: Option<PathBuf>,
    root: PathBuf,
}

impl Limit {
    /// For what is in the container now, and what that starts.
    pub fn set(container: &Cgroup, bytes: u64) -> Result<Self> {
        let own = container.dir();
        if own.join("memory.max").exists() {
            write(&own.join("memory.max"), bytes)?;
            // Swap, where there is any, would only delay it.
            let _ = fs::write(own.join("memory.swap.max"), "0");
            return Ok(Self { dir: None, root: v2_root()? });
        }
        let root = v1_root().context("no hierarchy has a memory controller")?;
        let limit = Self { dir: Some(root.join(container.path.trim_start_matches('/'))), root };
        if let Some(dir) = &limit.dir {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            write(&dir.join("memory.limit_in_bytes"), bytes)?;
            let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), bytes.to_string());
            for pid in container.procs() {
                write(&dir.join("cgroup.procs"), pid)?;
            }
        }
        Ok(limit)
    }

    /// For a program that a test is about to start: it goes into [`Limit::procs`] itself.
    pub fn named(name: &str, bytes: u64) -> Result<Self> {
        let root = v1_root().context("memory is limited in a v1 hierarchy only")?;
        let dir = root.join(name);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let limit = Self { dir: Some(dir.clone()), root };
        write(&dir.join("memory.limit_in_bytes"), bytes)?;
        let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        Ok(limit)
    }

    /// Where a process writes its pid to be in it; v1 only.
    pub fn procs(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("cgroup.procs"))
    }

    /// The most that was in use at once, and how often the limit was hit; v1 only.
    pub fn most(&self) -> Result<(u64, u64)> {
        let dir = self.dir.as_ref().context("memory is measured in a v1 hierarchy only")?;
        let read = |name: &str| -> Result<u64> { Ok(fs::read_to_string(dir.join(name))?.trim().parse()?) };
        Ok((read("memory.max_usage_in_bytes")?, read("memory.failcnt")?))
    }

    /// Whether this machine can set one.
    pub fn lacks() -> Option<String> {
        let v2 = v2_root().ok().and_then(|root| fs::read_to_string(root.join("cgroup.subtree_control")).ok());
        let has = v2.is_some_and(|c| c.split_whitespace().any(|c| c == "memory")) || v1_root().is_some();
        (!has).then(|| "no cgroup hierarchy has a memory controller for containers".into())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let Some(dir) = &self.dir else { return };
        // What was forked meanwhile is in the next reading.
        for _ in 0..100 {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines() {
                let _ = fs::write(self.root.join("cgroup.procs"), pid);
            }
            if fs::remove_dir(dir).is_ok() {
                break;
            }
        }
        // Its parents, as far as nobody else uses them.
        let mut dir = dir.as_path();
        while let Some(parent) = dir.parent().filter(|p| *p != self.root) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
            dir = parent;
        }
    }
}

fn v1_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, dir, "cgroup", options, ..] = fields[..] else { return None };
        options.split(',').any(|o| o == "memory").then(|| PathBuf::from(dir))
    })
}

fn write(path: &Path, text: impl ToString) -> Result<()> {
    fs::write(path, text.to_string()).with_context(|| path.display().to_string())
}
