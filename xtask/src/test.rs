//! `cargo xtask test`: every test there is, in parts that do not hide each other's failures.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, For};
use crate::{build, containerds, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The figures of the README: 20 runs of each live case, 10,000 closes of each control, and each advice and each
    /// finding of `check` proven, of which an ordinary run plays a few (`SEED` chooses them again)
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// One short run of each live case, and only the oldest and the newest kernel
    #[arg(long)]
    quick: bool,
    /// Leave out the QEMU kernels
    #[arg(long)]
    skip_vm: bool,
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(&'static str),
}

struct Part {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    setup::ensure(if args.skip_vm { For::Demo } else { For::Test })?;
    let build = build::Args { package: vec!["why502-tests".into()], ..Default::default() };
    let why502 = build::run(&build)?;
    let ready = start.elapsed();

    let mut parts = vec![Part { name: "setup and build", outcome: Outcome::Passed, took: ready }];
    parts.push(part("units", units));
    parts.push(part("live, this kernel", || live(args, &why502)));
    parts.push(if args.skip_vm {
        Part { name: "QEMU kernels", outcome: Outcome::Skipped("--skip-vm"), took: Duration::ZERO }
    } else {
        part("QEMU kernels", || kernels(args))
    });
    println!("\n{}", table(&parts, start.elapsed()));
    if parts.iter().any(|part| matches!(part.outcome, Outcome::Failed(_))) {
        bail!("not every part passed");
    }
    Ok(())
}

fn part(name: &'static str, body: impl FnOnce() -> Result<()>) -> Part {
    println!("\n=== {name}");
    let start = Instant::now();
    let outcome = match body() {
        Ok(()) => Outcome::Passed,
        Err(e) => Outcome::Failed(format!("{e:#}")),
    };
    let part = Part { name, outcome, took: start.elapsed() };
    println!("{}", line(&part));
    part
}

fn line(part: &Part) -> String {
    let (word, note) = match &part.outcome {
        Outcome::Passed => ("passed", ""),
        Outcome::Failed(why) => ("FAILED", why.as_str()),
        Outcome::Skipped(why) => ("skipped", *why),
    };
    format!("{:<18} {word:<8} {:>9}  {note}", part.name, time(part.took)).trim_end().into()
}

fn table(parts: &[Part], took: Duration) -> String {
    let mut text: String = parts.iter().map(|part| line(part) + "\n").collect();
    let count = |wanted: fn(&Outcome) -> bool| parts.iter().filter(|part| wanted(&part.outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let word = if failed > 0 { "FAILED" } else { "passed" };
    text += &format!("{:<18} {word:<8} {:>9}  {failed} failed, {skipped} skipped", "total", time(took));
    text
}

fn time(took: Duration) -> String {
    let seconds = took.as_secs();
    if seconds < 60 {
        format!("{:.1} s", took.as_secs_f32())
    } else {
        format!("{} m {:02} s", seconds / 60, seconds % 60)
    }
}

/// One command for all packages, and another one with the same packages for the live tests: cargo would build the
/// dependencies again for another set, with that set's features.
fn cargo_test(targets: &[String]) -> Command {
    let mut cmd = sh::cargo();
    cmd.args(["test", "--workspace", "--no-fail-fast"]).args(targets);
    // The tests of the commands run the binary of this build, and some of them live.
    cmd.env("WHY502_PROBES", build::object());
    cmd
}

fn units() -> Result<()> {
    let mut targets = vec!["--lib".into(), "--bins".into()];
    for package in ["tracer", "xtask"] {
        targets.extend(test_targets(&sh::root().join(package))?);
    }
    let units = sh::run(&mut cargo_test(&targets));
    let docs = sh::run(&mut cargo_test(&["--doc".into()]));
    units.and(docs)
}

fn live(args: &Args, why502: &Path) -> Result<()> {
    let targets = test_targets(&sh::root().join("tests"))?;
    if targets.is_empty() {
        bail!("there is no live test in tests/tests");
    }
    let mut cmd = cargo_test(&targets);
    // One at a time: they load the machine, and measure. --nocapture, so that a skipped one says why.
    cmd.args(["--", "--test-threads=1", "--nocapture"]).env("WHY502_BIN", why502);
    let figures: &[(&str, &str)] = match (args.full, args.quick) {
        (true, _) => &[("RUNS", "20"), ("CLOSES", "10000"), ("FULL", "1")],
        (_, true) => &[("RUNS", "1"), ("CLOSES", "100")],
        _ => &[],
    };
    if args.full {
        // Newer ones than the distribution's: where they cannot be had, the tests on them are left out.
        match containerds::unpacked() {
            Ok(folders) => drop(cmd.env("WHY502_CONTAINERDS", env::join_paths(folders)?)),
            Err(e) => println!("skipped     newer containerds: {e:#}"),
        }
    }
    sh::run(cmd.envs(figures.iter().copied()))
}

fn kernels(args: &Args) -> Result<()> {
    let xtask = env::current_exe().context("finding this program")?;
    let mut cmd = Command::new(xtask);
    cmd.args(["vm", "--no-build"]);
    if args.quick {
        cmd.args(["--kernels", "5.10,newest"]);
    }
    sh::run(&mut cmd)
}

/// The integration tests of a package as cargo finds them, each as `--test NAME`.
fn test_targets(package: &Path) -> Result<Vec<String>> {
    let folder = package.join("tests");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        let file = path.extension().is_some_and(|ext| ext == "rs");
        if let Some(name) = path.file_stem().filter(|_| file || path.join("main.rs").is_file()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names.into_iter().flat_map(|name| ["--test".into(), name]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        let part = |name, outcome, seconds| Part { name, outcome, took: Duration::from_secs(seconds) };
        vec![
            part("units", Outcome::Passed, 5),
            part("live, this kernel", Outcome::Failed("`cargo test` failed".into()), 75),
            part("QEMU kernels", Outcome::Skipped("--skip-vm"), 0),
        ]
    }

    #[test]
    fn a_failure_shows_in_its_line_and_in_the_total() {
        let text = table(&parts(), Duration::from_secs(80));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "units              passed       5.0 s");
        assert_eq!(lines[1], "live, this kernel  FAILED    1 m 15 s  `cargo test` failed");
        assert_eq!(lines[2], "QEMU kernels       skipped      0.0 s  --skip-vm");
        assert_eq!(lines[3], "total              FAILED    1 m 20 s  1 failed, 1 skipped");
    }

    #[test]
    fn a_part_that_fails_is_a_failure_and_no_panic() {
        assert!(matches!(part("x", || bail!("no")).outcome, Outcome::Failed(why) if why == "no"));
        assert!(matches!(part("x", || Ok(())).outcome, Outcome::Passed));
    }

    #[test]
    fn finds_tests_as_cargo_does() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert!(test_targets(dir.path()).expect("no folder, no tests").is_empty());
        for path in ["tests/b/main.rs", "tests/a.rs", "tests/common/mod.rs", "tests/data.json"] {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().expect("has one")).expect("mkdir");
            fs::write(file, "").expect("write");
        }
        assert_eq!(test_targets(dir.path()).expect("listed"), ["--test", "a", "--test", "b"]);
    }
}
