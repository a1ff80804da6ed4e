//! Starts why502, fires, stops it, and compares.

use super::check::{self, Report};
use super::manifest::Kernel;
use anyhow::{Context, Result, bail};
use nix::libc;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Until why502 must be attached, and until it must have ended after SIGINT.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs `why502 trace` under fire. Leaves `events.jsonl`, `manifest.jsonl` and `why502.err` in `out`. The calling process
/// must be single-threaded.
///
/// # Errors
/// When why502 does not start or the fire cannot be made; what was reported wrongly is in the report.
pub fn run(why502: &Path, out: &Path) -> Result<Report> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let (events, manifest) = (out.join("events.jsonl"), out.join("manifest.jsonl"));
    let mut tracer = Tracer::start(why502, &events, &out.join("why502.err"))?;
    let dir = out.join("programs");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    // Its comm is in the records: known, whoever started us.
    let fired = super::fire(&manifest, &dir);
    let _ = fs::remove_dir_all(&dir);
    let status = tracer.stop()?;
    fired.context("fire")?;
    let mut report = check::files(&manifest, &events)?;
    report.that("why502 ends well", status.success(), || format!("{status}: {}", tracer.said()));
    if !Kernel::running()?.reset_reasons {
        let said = tracer.said();
        report.that("why502 says what this kernel cannot report", said.contains("no-reply-resets"), || {
            format!("no `no-reply-resets` in {said:?}")
        });
    }
    Ok(report)
}

/// A running why502; killed when dropped.
struct Tracer {
    child: Child,
    stderr: std::path::PathBuf,
}

impl Tracer {
    fn start(why502: &Path, events: &Path, stderr: &Path) -> Result<Self> {
        let child = Command::new(why502)
            .args(["trace", "-o", "json", "--all-signals"])
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
