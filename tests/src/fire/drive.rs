//! Starts why502, fires, stops it, and compares.

use super::check::{self, Report};
use super::manifest::{self, Kernel};
use anyhow::{Context, Result, bail};
use nix::libc;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use why502::model::Input;
use why502::model::input::StopCounters;
use why502::sinks::recording::Reader;

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
    let trace = |prefix: &str, unix_connect: &str| {
        let args = ["trace", "-o", "json", "--all-signals", "--unix-connect", unix_connect];
        Tracer::start(Command::new(why502).args(args), out, prefix)
    };
    let tracer = trace("", FUNCTION)?;
    let probed = !tracer.said().contains("no-nginx-uprobes");
    report.that("nginx can be probed on this kernel", probed, || tracer.said());
    let traced = !tracer.said().contains("no-unix-connect");
    report.that("functions are traced on this kernel", traced || !functions, || tracer.said());
    if traced {
        under_fire(tracer, out, "", super::fire, &mut report)?;
        // What other kernels would use.
        under_fire(trace("syscalls.", SYSCALLS)?, out, "syscalls.", super::fire_connects, &mut report)?;
    } else {
        drop(tracer);
        under_fire(trace("", SYSCALLS)?, out, "", super::fire, &mut report)?;
    }
    let recording = out.join("stops.rec");
    let tracer = Tracer::start(Command::new(why502).args(["record", "-o"]).arg(&recording), out, "stops.")?;
    let manifest = fired(tracer, out, "stops.", super::fire_stops, &mut report)?;
    report.add(check::compare(&manifest::read(&manifest)?, &stop_counters(&recording)?)?);
    Ok(report)
}

/// The last counters of each cgroup in a recording.
fn stop_counters(recording: &Path) -> Result<Vec<Value>> {
    let mut last = BTreeMap::new();
    for input in Reader::new(BufReader::new(File::open(recording)?))? {
        if let Input::StopCounters(counters) = input? {
            last.insert(counters.cgroup, counters);
        }
    }
    let value = |c: StopCounters| {
        let mut value = serde_json::to_value(c)?;
        value["kind"] = "stop-counters".into();
        Ok(value)
    };
    last.into_values().map(value).collect()
}

/// Fires, stops the tracer, compares events.
fn under_fire(tracer: Tracer, out: &Path, prefix: &str, fire: Fires, report: &mut Report) -> Result<()> {
    let manifest = fired(tracer, out, prefix, fire, report)?;
    report.add(check::files(&manifest, &files(out, prefix).0)?);
    Ok(())
}

type Fires = fn(&Path, &Path) -> Result<()>;

/// Fires and stops the tracer; gives the manifest.
fn fired(mut tracer: Tracer, out: &Path, prefix: &str, fire: Fires, report: &mut Report) -> Result<PathBuf> {
    let (_, manifest) = files(out, prefix);
    let dir = out.join("programs");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    // Its comm is in the records: known, whoever started us.
    let fired = fire(&manifest, &dir);
    let _ = fs::remove_dir_all(&dir);
    let status = tracer.stop()?;
    fired.context("fire")?;
    let said = tracer.said();
    report.that("why502 ends well", status.success(), || format!("{status}: {said}"));
    if !Kernel::running()?.reset_reasons {
        report.that("why502 says what this kernel cannot report", said.contains("no-reply-resets"), || {
            format!("no `no-reply-resets` in {said:?}")
        });
    }
    Ok(manifest)
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
    fn start(why502: &mut Command, out: &Path, prefix: &str) -> Result<Self> {
        let stderr = &out.join(format!("{prefix}why502.err"));
        let (events, _) = files(out, prefix);
        let child = why502
            .stdin(Stdio::null())
            .stdout(File::create(events)?)
            .stderr(File::create(stderr)?)
            .spawn()
            .with_context(|| format!("{why502:?}"))?;
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
