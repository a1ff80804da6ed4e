//! Starts why502, fires, stops it, and compares.

use super::check::{self, Report};
use super::manifest::Kernel;
use anyhow::{Context, Result, bail};
use nix::libc;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Until why502 must be attached, and until it must have ended after SIGINT.
const LIMIT: Duration = Duration::from_secs(90);

/// Failed connects to unix sockets are seen at the end of a function of the kernel, or at the end of system calls.
const FUNCTION: &str = "auto";
const SYSCALLS: &str = "syscalls";

/// Runs `why502 trace` under fire. Leaves `events.jsonl`, `manifest.jsonl` and `why502.err` in `out`. The calling process
/// must be single-threaded. `functions`: this kernel is known to trace functions.
///
/// # Errors
/// When why502 does not start or the fire cannot be made; what was reported wrongly is in the report.
pub fn run(why502: &Path, out: &Path, functions: bool) -> Result<Report> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut report = Report::default();
    let tracer = Tracer::start(why502, out, "", FUNCTION)?;
    let traced = !tracer.said().contains("no-unix-connect");
    report.that("functions are traced on this kernel", traced || !functions, || tracer.said());
    if traced {
        under_fire(tracer, out, "", super::fire, &mut report)?;
        // What other kernels would use.
        let tracer = Tracer::start(why502, out, "syscalls.", SYSCALLS)?;
        under_fire(tracer, out, "syscalls.", super::fire_connects, &mut report)?;
    } else {
        drop(tracer);
        under_fire(Tracer::start(why502, out, "", SYSCALLS)?, out, "", super::fire, &mut report)?;
    }
    Ok(report)
}

/// Fires, stops the tracer, compares.
fn under_fire(
    mut tracer: Tracer,
    out: &Path,
    prefix: &str,
    fire: impl FnOnce(&Path, &Path) -> Result<()>,
    report: &mut Report,
) -> Result<()> {
    let (events, manifest) = files(out, prefix);
    let dir = out.join("programs");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    // Its comm is in the records: known, whoever started us.
    let fired = fire(&manifest, &dir);
    let _ = fs::remove_dir_all(&dir);
    let status = tracer.stop()?;
    fired.context("fire")?;
    report.add(check::files(&manifest, &events)?);
    let said = tracer.said();
    report.that("why502 ends well", status.success(), || format!("{status}: {said}"));
    if !Kernel::running()?.reset_reasons {
        report.that("why502 says what this kernel cannot report", said.contains("no-reply-resets"), || {
            format!("no `no-reply-resets` in {said:?}")
        });
    }
    Ok(())
}

/// Events and manifest of a run.
fn files(out: &Path, prefix: &str) -> (PathBuf, PathBuf) {
    (out.join(format!("{prefix}events.jsonl")), out.join(format!("{prefix}manifest.jsonl")))
}

/// A running why502; killed when dropped.
struct Tracer {
    child: Child,
    stderr: std::path::PathBuf,
}

impl Tracer {
    fn start(why502: &Path, out: &Path, prefix: &str, unix_connect: &str) -> Result<Self> {
        let stderr = &out.join(format!("{prefix}why502.err"));
        let (events, _) = files(out, prefix);
        let child = Command::new(why502)
            .args(["trace", "-o", "json", "--all-signals", "--unix-connect", unix_connect])
            .stdin(Stdio::null())
            .stdout(File::create(events)?)
            .stderr(File::create(stderr)?)
            .spawn()
            .with_context(|| why502.display().to_string())?;
        let mut it = Self { child, stderr: stderr.to_owned() };
        let end = Instant::now() + LIMIT;
        while !it.said().lines().any(|l| l == "ready") {
            if let Some(status) = it.child.try_wait()? {
                bail!("why502 ended before it was ready: {status}: {}", it.said().trim().escape_debug());
            }
            if Instant::now() > end {
                bail!("why502 was not ready within {} s: {}", LIMIT.as_secs(), it.said().trim().escape_debug());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(it)
    }

    /// Its stderr so far.
    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    fn stop(&mut self) -> Result<ExitStatus> {
        super::child::kill(self.child.id(), libc::SIGINT)?;
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("why502 did not end within {} s of SIGINT", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Does nothing to a child that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
