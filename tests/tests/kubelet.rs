//! The harness's own kubelet: hooks run in the container before the signal, sidecars come last, the grace period ends in
//! SIGKILL.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGQUIT, SIGTERM};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use why502_tests::guard;
use why502_tests::kubelet::{Deletion, PreStop, Stop};
use why502_tests::launch::Spec;
use why502_tests::pod::{Container, Pod};

fn sh(pod: &Pod, script: &str) -> Result<Container> {
    pod.start(Spec::new(["/bin/sh", "-c", script]))
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn hooks_signals_and_sidecars_in_order() -> Result<()> {
    if let Some(why) = guard::why_not_live() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = guard::Dir::new()?;
    let (ready, hook) = (dir.join("ready"), dir.join("hook"));
    let pod = Pod::new("pod")?;
    let script = format!("trap 'exit 7' QUIT; touch {}; while :; do sleep 0.02; done", ready.display());
    let mut main = sh(&pod, &script)?;
    let mut sidecar = sh(&pod, "trap 'exit 0' TERM; while :; do sleep 0.02; done")?;
    guard::wait("the shell's trap", MS(10_000), || ready.exists())?;
    // $$ is small in the container's pid namespace, and its PID 1 is the shell above.
    let text = format!("tr '\\0' ' ' < /proc/1/cmdline > {0}; echo $$ >> {0}; exit 3", hook.display());
    let pre_stop = Some(PreStop::Exec(["/bin/sh", "-c", &text].map(String::from).to_vec()));
    let moved = AtomicBool::new(false);
    let deletion = Deletion { grace: MS(9000), propagation: MS(300) };
    let stops = vec![
        (&mut sidecar, Stop { sidecar: true, signal: SIGTERM, pre_stop: None }),
        (&mut main, Stop { pre_stop, signal: SIGQUIT, sidecar: false }),
    ];
    let stopped = deletion.run(stops, || moved.store(true, Ordering::Relaxed))?;
    let said = std::fs::read_to_string(&hook)?;
    ensure!(said.contains("trap 'exit 7'"), "the hook ran elsewhere: {said}");
    let pid: u32 = said.split_whitespace().last().unwrap_or_default().parse()?;
    ensure!(pid > 1 && pid < 10_000, "the hook's pid is {pid}: not of the container's namespace");
    ensure!(moved.load(Ordering::Relaxed), "the balancers were not told");
    let [sidecar_end, main_end] = stopped[..] else { unreachable!("two containers") };
    ensure!(main_end.pre_stop.and_then(|s| s.code()) == Some(3), "the hook's status: {main_end:?}");
    ensure!(!main_end.killed && !sidecar_end.killed, "killed: {main_end:?} {sidecar_end:?}");
    ensure!(sidecar_end.signalled >= Some(main_end.ended), "{sidecar_end:?} came before {main_end:?}");
    ensure!(main.wait(MS(1000))?.code() == Some(7));
    Ok(())
}

#[test]
fn the_grace_period_includes_the_hook_and_ends_in_a_kill() -> Result<()> {
    if let Some(why) = guard::why_not_live() {
        println!("skipped: {why}");
        return Ok(());
    }
    let pod = Pod::new("pod")?;
    // A shell as PID 1 without a trap ignores TERM.
    let mut main = sh(&pod, "while :; do sleep 0.02; done")?;
    let stop = Stop { pre_stop: Some(PreStop::Sleep(MS(600))), ..Stop::default() };
    let deletion = Deletion { grace: MS(2800), propagation: MS(0) };
    let stopped = deletion.run(vec![(&mut main, stop)], || {})?[0];
    ensure!(stopped.killed && stopped.signalled >= Some(MS(600)), "{stopped:?}");
    ensure!(stopped.ended >= MS(2800) && stopped.ended < MS(6000), "{stopped:?}");
    Ok(())
}

/// A harness in the background of a shell has INT and QUIT ignored, and hands that down: a trap of them would do nothing.
#[test]
fn a_container_ignores_no_signal() -> Result<()> {
    let script = "trap '' INT QUIT TERM; exec \"$@\"";
    let launch = env!("CARGO_BIN_EXE_why502-launch");
    let dir = guard::Dir::new()?;
    let log = dir.join("status");
    let words = ["--plain", "--log", log.to_str().context("a path")?, "--", "grep", "^Sig", "/proc/self/status"];
    let stdin = std::process::Stdio::piped();
    let mut run = Command::new("/bin/sh").args(["-c", script, "sh", launch]).args(words).stdin(stdin).spawn()?;
    // Held: its end tells the launcher that nobody wants the command any more, and wait() would close it first.
    let held = run.stdin.take();
    let ended = run.wait()?;
    drop(held);
    ensure!(ended.success(), "the launcher failed: {ended}");
    let said = std::fs::read_to_string(&log)?;
    for name in ["SigBlk:", "SigIgn:"] {
        let mask = said.lines().find_map(|l| u64::from_str_radix(l.strip_prefix(name)?.trim(), 16).ok());
        // 32 and 33 are the C library's own, which it ignores in every child.
        ensure!(mask.is_some_and(|m| m & 0x7fff_ffff == 0), "{name} {said}");
    }
    Ok(())
}
