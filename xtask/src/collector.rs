//! The OpenTelemetry collector that a test sends logs to: Rotel, from the wheel that PyPI has of it, which holds one program.
//!
//! Where it cannot be had (another architecture, no network), that is said, and the test says that it is skipped.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::sh;

const WHEEL: &str = "rotel==0.0.1a15 --hash=sha256:2f4117e58410c933e0dc042a268ef738dab2e3a5d63b5831209acdac2a6ddcb7\n";
/// What the wheel was made for: pip does not ask which Python runs it.
const MADE_FOR: [&str; 6] =
    ["--only-binary=:all:", "--platform", "manylinux_2_34_x86_64", "--python-version", "3.11", "--no-deps"];

/// Where tests look for it (tracer/tests/it/otlp.rs).
fn place() -> PathBuf {
    sh::target_dir().join("rotel")
}

/// The program, when it is here and runs.
pub(crate) fn find() -> Option<PathBuf> {
    let ours = Some(place().join("rotel/rotel-agent")).filter(|path| path.is_file());
    ours.or_else(|| sh::find("rotel-agent")).filter(|path| sh::ok(Command::new(path).arg("--help")))
}

pub(crate) fn command() -> Result<Command> {
    let place = place();
    fs::create_dir_all(&place)?;
    let wanted = place.join("wanted.txt");
    fs::write(&wanted, WHEEL).with_context(|| wanted.display().to_string())?;
    let mut cmd = Command::new(sh::find("pip3").context("pip3 is missing (python3-pip)")?);
    cmd.args([
        "install",
        "--quiet",
        // Without a network it is skipped, and soon.
        "--timeout=20",
        "--retries=1",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-compile",
        "--upgrade",
        "--require-hashes",
    ]);
    cmd.args(MADE_FOR).arg("--target").arg(&place).arg("-r").arg(&wanted);
    Ok(cmd)
}
