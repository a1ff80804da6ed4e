//! A cgroup's memory limit, and a process that does not keep to it.

use super::Fire;
use super::child::Child;
use super::facts::{TARGET, mount_point};
use super::manifest::Expect;
use super::signals::exited;
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

const LIMIT: usize = 16 << 20;

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    let cgroup = match Limited::create() {
        Ok(c) => c,
        Err(e) => return fire.manifest.skip("OOM kill", &format!("no memory cgroup to limit: {e:#}")),
    };
    let child = Child::ready(|line| {
        line.ready();
        let mut all = Vec::new();
        // Touched, a page at a time, far beyond the limit.
        for _ in 0..64 {
            all.push(vec![1u8; LIMIT / 16]);
        }
        Ok(i32::from(all.iter().flatten().all(|b| *b == 1)))
    })?;
    if !cgroup.v2 {
        fire.cgroups.put(TARGET, child.pid)?;
    }
    cgroup.put(child.pid)?;
    let facts = child.facts()?;
    let status = child.finish()?;
    ensure!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, "not OOM-killed: {status:#x}");
    let select = json!({"kind": "oom-victim", "task": {"tgid": facts.tgid}});
    fire.manifest.expect(Expect::one("OOM kill: victim", select, json!({"task": facts.json()})))?;
    let select = json!({"kind": "signal-generated", "signal": libc::SIGKILL, "target": {"tgid": facts.tgid}});
    let want = json!({"info": "kernel", "code": 0x80, "group": true, "result": 0, "target": facts.json()});
    fire.manifest.expect(Expect::one("OOM kill: signal", select, want))?;
    fire.manifest.expect(exited("OOM kill", &facts, libc::SIGKILL))
}

/// A cgroup with a limit, in the v2 hierarchy where that has the memory controller, else in v1's.
struct Limited {
    dir: PathBuf,
    v2: bool,
}

impl Limited {
    fn create() -> Result<Self> {
        let name = format!("why502-fire-oom-{}", std::process::id());
        let v2 = mount_point("").filter(|root| {
            fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|c| c.split_whitespace().any(|c| c == "memory"))
        });
        let (root, limit) = match v2.clone() {
            Some(root) => {
                let file = root.join("cgroup.subtree_control");
                let on = fs::read_to_string(&file)?;
                if !on.split_whitespace().any(|c| c == "memory") {
                    fs::write(&file, "+memory").context("enabling the memory controller")?;
                }
                (root, "memory.max")
            }
            None => (mount_point("memory").context("no hierarchy has a memory controller")?, "memory.limit_in_bytes"),
        };
        let it = Self { dir: root.join(name), v2: v2.is_some() };
        fs::create_dir(&it.dir).with_context(|| it.dir.display().to_string())?;
        write(&it.dir.join(limit), &LIMIT.to_string())?;
        // Swap, where there is any, would only delay it.
        let _ = fs::write(it.dir.join("memory.swap.max"), "0");
        let _ = fs::write(it.dir.join("memory.memsw.limit_in_bytes"), LIMIT.to_string());
        Ok(it)
    }

    fn put(&self, pid: u32) -> Result<()> {
        write(&self.dir.join("cgroup.procs"), &pid.to_string())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}
