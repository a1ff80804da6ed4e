//! A pid namespace of its own: what a container's processes look like from outside.

use super::Fire;
use super::child::{Child, PATIENCE, kill};
use super::facts::{Facts, TARGET};
use super::manifest::Expect;
use super::processes::forked;
use super::signals::{exited, generated};
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    // launcher -> PID 1 -> PID 2 of the new namespace.
    let mut launcher = Child::fork(|line| {
        // SAFETY: flags only.
        let r = unsafe { libc::unshare(libc::CLONE_NEWPID) };
        ensure!(r == 0, "unshare: {}", std::io::Error::last_os_error());
        let mut init = Child::ready(|line| {
            let second = Child::ready(|line| {
                line.say(0);
                // Not on the line: PID 1's end of it closes before the kill.
                std::thread::sleep(PATIENCE);
                Ok(0)
            })?;
            line.ready();
            // Ends before its child, which the kernel then kills (kernel/pid_namespace.c zap_pid_ns_processes()).
            std::mem::forget(second);
            Ok(21)
        })?;
        line.say(init.pid);
        line.wait();
        init.tell(0)?;
        let status = init.end()?;
        ensure!(libc::WEXITSTATUS(status) == 21, "PID 1: {status:#x}");
        line.ready();
        Ok(0)
    })?;
    let us = Facts::own()?;
    let outer = launcher.facts()?;
    let init_pid = launcher.hear()?;
    let first = Facts::of(init_pid)?;
    let second = Facts::of(child_of(init_pid)?)?;
    for (facts, ns_pid) in [(&first, 1), (&second, 2)] {
        ensure!(facts.ns_pid == ns_pid && facts.pidns == first.pidns && facts.pidns != us.pidns, "{facts:?}");
    }
    fire.manifest.expect(forked("PID 1", &outer, &first))?;
    fire.manifest.expect(forked("PID 2", &first, &second))?;
    fire.cgroups.put(TARGET, first.pid)?;
    fire.cgroups.put(TARGET, second.pid)?;
    let (first, second) = (Facts::of(first.pid)?, Facts::of(second.pid)?);

    // PID 1 without a handler never sees SIGTERM, also from outside.
    kill(first.pid, libc::SIGTERM)?;
    let want = json!({"result": 1, "code": 0, "sender": us.json()});
    fire.manifest.expect(generated("SIGTERM to PID 1", libc::SIGTERM, &first, want))?;
    let mut e = generated("SIGTERM to PID 1, si_pid", libc::SIGTERM, &first, json!({"si_pid": 0}));
    e.select["info"] = json!("real");
    fire.manifest.expect(e.between(0, 1))?;

    launcher.tell(0)?;
    launcher.hear()?;
    launcher.finish()?;
    fire.manifest.expect(exited("PID 1", &first, 21 << 8))?;
    let mut want = json!({"info": "kernel", "code": 0x80, "group": true});
    want["sender"] = json!({"tgid": first.tgid, "ns_pid": 1, "pidns": first.pidns, "flags": {"$mask": [4, 4]}});
    fire.manifest.expect(generated("PID 2 zapped", libc::SIGKILL, &second, want).between(1, 2))?;
    let select = json!({"kind": "exited", "task": {"tgid": second.tgid}});
    let want = json!({"code": 9, "task": {"ns_pid": 2, "pidns": second.pidns, "cgroup": second.cgroup}});
    fire.manifest.expect(Expect::one("PID 2: exit", select, want))
}

/// The only child of a process.
fn child_of(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(&path).context(path)?;
    text.split_whitespace().next().context("no child")?.parse().context("children")
}
