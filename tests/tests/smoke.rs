//! Every probe attached to the running kernel, and under fire. The same runs on other kernels in `cargo xtask vm`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use why502_tests::fire::{check, manifest};
use why502_tests::{cgroup, guard};

/// Inode of the initial pid namespace (include/linux/proc_ns.h PROC_PID_INIT_INO): records carry its pids.
const INITIAL_PIDNS: u64 = 0xefff_fffc;

fn why_not() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if std::fs::metadata("/proc/self/ns/pid").is_ok_and(|m| m.ino() != INITIAL_PIDNS) {
        return Some("not in the initial pid namespace: the pids of the records are not ours".into());
    }
    if let Err(e) = cgroup::v2_root() {
        return Some(e.to_string());
    }
    match std::env::var_os("WHY502_BIN").map(PathBuf::from) {
        None => Some("WHY502_BIN does not name the why502 binary (cargo xtask test sets it)".into()),
        Some(p) if !p.is_file() => Some(format!("WHY502_BIN={}: no such file", p.display())),
        Some(_) => None,
    }
}

#[test]
fn every_probe_reports_what_was_done() -> Result<()> {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let dir = guard::Dir::new()?;
    let why502 = std::env::var_os("WHY502_BIN").context("WHY502_BIN")?;
    // A process of its own: it forks, and this one has threads.
    let run = Command::new(env!("CARGO_BIN_EXE_why502-fire"))
        .args(["run", "--why502"])
        .arg(why502)
        .arg("--out")
        .arg(dir.path())
        .output()?;
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    ensure!(run.status.success(), "{}: {said}{}", run.status, String::from_utf8_lossy(&run.stderr));

    let events = dir.join("events.jsonl");
    follow_the_schema(&events)?;
    // The comparison must be able to fail: without the records of any one kind it does.
    let manifest = manifest::read(&dir.join("manifest.jsonl"))?;
    let (all, _) = check::read_events(&events)?;
    for kind in why502::sinks::names::KINDS {
        let (gone, rest): (Vec<Value>, Vec<Value>) = all.iter().cloned().partition(|e| e["kind"] == *kind);
        ensure!(!gone.is_empty(), "no {kind} was printed at all");
        ensure!(!check::compare(&manifest, &rest)?.failed.is_empty(), "nobody misses {kind}");
    }
    Ok(())
}

/// Every line that `trace` printed.
fn follow_the_schema(events: &Path) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema/event.json");
    let schema = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let schema = jsonschema::validator_for(&serde_json::from_str(&schema)?)?;
    for line in std::fs::read_to_string(events)?.lines() {
        let value = serde_json::from_str(line)?;
        let wrong = schema.iter_errors(&value).next();
        ensure!(wrong.is_none(), "{wrong:?}: {line}");
    }
    Ok(())
}
