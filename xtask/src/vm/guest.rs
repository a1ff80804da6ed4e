//! One guest: QEMU without KVM (results must not differ between machines), a verdict from its console.

use crate::kernels::Kernel;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `no_timer_check`: a loaded host looks like a broken timer. `panic=-1` with -no-reboot: a panic ends QEMU at once, and
/// `oops=panic` makes every oops one. The rest is boot time.
const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 oops=panic nokaslr no_timer_check mitigations=off cryptomgr.notests apparmor=0";

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The guest's script ended with this status.
    Exit(i32),
    /// The kernel complained: these lines of console or dmesg.
    Kernel(Vec<String>),
    /// Neither: it hung, was too slow, or QEMU failed.
    None(String),
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) took: Duration,
    pub(super) tries: u32,
    /// What the guest's script printed.
    pub(super) output: Vec<String>,
    /// The kernel missed its share of the host.
    pub(super) slow: bool,
}

/// Boots `kernel`; a second time only when the first gave no verdict at all.
pub(super) fn run(kernel: &Kernel, initrd: &Path, logs: &Path, timeout: Duration) -> Result<Outcome> {
    let dir = logs.join(&kernel.version);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let started = Instant::now();
    let mut tries = 1;
    loop {
        let why = boot(kernel, initrd, &dir, timeout)?;
        let console = text(&dir.join("console"));
        let dmesg = text(&dir.join("dmesg"));
        let verdict = judge(&console, &dmesg, &why);
        let slow = console.lines().chain(dmesg.lines()).any(|l| SLOW.iter().any(|s| l.contains(s)));
        if tries == 1 && matches!(verdict, Verdict::None(_)) {
            tries = 2;
            fs::rename(dir.join("console"), dir.join("console.try1"))?;
            continue;
        }
        return Ok(Outcome { verdict, took: started.elapsed(), tries, output: script_output(&console), slow });
    }
}

/// Runs QEMU to its end and unpacks what the guest sent; says how QEMU ended.
fn boot(kernel: &Kernel, initrd: &Path, dir: &Path, timeout: Duration) -> Result<String> {
    let serial = |name: &str| format!("file:{}", dir.join(name).display());
    let log = File::create(dir.join("qemu.log"))?;
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024", "-nodefaults"])
        .args(["-display", "none", "-no-reboot", "-append", CMDLINE])
        .args(["-serial", &serial("console"), "-serial", &serial("out.tgz")])
        .arg("-kernel")
        .arg(&kernel.vmlinux)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("qemu-system-x86_64: apt-get install --no-install-recommends qemu-system-x86")?;
    let mut guest = Guest(child);
    let why = guest.wait(timeout)?;
    let tgz = dir.join("out.tgz");
    if tgz.metadata().is_ok_and(|m| m.len() > 0) {
        let mut tar = Command::new("tar");
        // Cut short when the guest died: what is there is still worth having.
        let _ = tar.arg("-xzf").arg(&tgz).arg("-C").arg(dir).stderr(Stdio::null()).status();
    }
    Ok(why)
}

/// A running QEMU; none is left behind, whatever happens to us.
struct Guest(Child);

impl Guest {
    fn wait(&mut self, timeout: Duration) -> Result<String> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(format!("QEMU ended: {status}"));
            }
            if Instant::now() >= end {
                return Ok(format!("no verdict within {} s", timeout.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(path: &PathBuf) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\r', "")
}

/// What a kernel prints when it is broken. (An OOM kill prints "Call Trace" as well: no sign.)
const BROKEN: &[&str] = &[
    "Kernel panic",
    "BUG:",
    "Oops:",
    "WARNING:",
    "general protection fault",
    "UBSAN:",
    "KASAN:",
    "KFENCE:",
    "kernel BUG at",
    "blocked for more than",
];

/// What an emulated guest prints on a host that has no time for it: said, but no verdict.
const SLOW: &[&str] = &["self-detected stall", "detected stalls", "clocksource: timekeeping watchdog"];

/// TAINT_DIE, TAINT_WARN and TAINT_SOFTLOCKUP of include/linux/panic.h.
const TAINT: u64 = 1 << 7 | 1 << 9 | 1 << 14;

fn judge(console: &str, dmesg: &str, why: &str) -> Verdict {
    let kernel_line = |l: &&str| BROKEN.iter().any(|b| l.contains(b));
    let mut broken: Vec<String> = Vec::new();
    for line in console.lines().chain(dmesg.lines()).filter(kernel_line).map(str::trim) {
        if !broken.iter().any(|b| b == line) {
            broken.push(line.to_owned());
        }
    }
    let mark = console.lines().rev().find_map(|l| l.strip_prefix("WHY502-EXIT "));
    let field = |name: &str| mark?.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    let tainted: u64 = field("tainted").and_then(|t| t.parse().ok()).unwrap_or(0);
    if broken.is_empty() && tainted & TAINT != 0 {
        broken.push(format!("the kernel is tainted: {tainted:#x}"));
    }
    if !broken.is_empty() {
        return Verdict::Kernel(broken);
    }
    match field("rc").and_then(|rc| rc.parse().ok()) {
        Some(rc) => Verdict::Exit(rc),
        None => Verdict::None(why.to_owned()),
    }
}

/// Lines between the guest's two marks, without those of its kernel.
fn script_output(console: &str) -> Vec<String> {
    let mut lines = console.lines().skip_while(|l| !l.starts_with("WHY502-UP "));
    lines.next();
    let all = lines.take_while(|l| !l.starts_with("WHY502-EXIT "));
    let kernel =
        |l: &str| l.strip_prefix('[').is_some_and(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    all.filter(|l| !l.trim().is_empty() && !kernel(l)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "WHY502-UP 6.1 2.0\nhello\n[    5.208923] Memory cgroup out of memory\n\nWHY502-EXIT rc=3 tainted=0 uptime=4.0\n";

    #[test]
    fn exit_status_and_output() {
        assert_eq!(judge(GOOD, "", ""), Verdict::Exit(3));
        assert_eq!(script_output(GOOD), ["hello"]);
        assert_eq!(judge("WHY502-UP 6.1 2.0\n", "", "slow"), Verdict::None("slow".into()));
    }

    #[test]
    fn a_broken_kernel_is_never_a_pass() {
        let warn = "[ 3.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2";
        assert_eq!(judge(GOOD, warn, ""), Verdict::Kernel(vec![warn.into()]));
        assert_eq!(judge(GOOD, "[ 9.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", ""), Verdict::Exit(3));
        assert!(matches!(judge("[ 1] Kernel panic - not syncing", "", ""), Verdict::Kernel(_)));
        assert!(matches!(judge(&GOOD.replace("tainted=0", "tainted=512"), "", ""), Verdict::Kernel(_)));
    }
}
