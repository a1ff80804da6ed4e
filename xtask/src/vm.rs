//! `cargo xtask vm`: why502, attached and under fire, on the kernels of real nodes, each in an emulated guest.

mod guest;
mod initrd;

use crate::kernels::{self, Kernel};
use crate::sh;
use crate::suites::Mirrors;
use anyhow::{Context as _, Result, bail, ensure};
use guest::{Outcome, Verdict};
use initrd::Initrd;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Kernels, by label: 5.10, 6.1, 6.12, 6.18, newest, or all
    #[arg(long, value_delimiter = ',', default_value = "all")]
    kernels: Vec<String>,
    /// Guests at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Keep target/vm-initrd.cpio
    #[arg(long)]
    keep: bool,
    /// Only fetch the kernels
    #[arg(long)]
    fetch: bool,
    /// Do not build: take why502 and why502-fire as they are
    #[arg(long)]
    no_build: bool,
    /// Seconds for one guest
    #[arg(long, default_value_t = 180)]
    timeout: u64,
    /// Run this script in the guests instead of the test
    #[arg(long)]
    script: Option<PathBuf>,
    /// Base URI of a Debian mirror, when apt's sources name none
    #[arg(long, requires = "security_mirror")]
    mirror: Option<String>,
    /// Base URI of its security archive
    #[arg(long, requires = "mirror")]
    security_mirror: Option<String>,
}

/// why502-fire starts why502, waits for `ready`, does what the probes must report, stops why502 and compares.
const TEST: &str = "exec /bin/why502-fire run --why502 /bin/why502 --out /tmp/out --functions\n";

pub(crate) fn run(args: &Args) -> Result<()> {
    let target = sh::target_dir();
    fs::create_dir_all(&target)?;
    let mirrors = match (&args.mirror, &args.security_mirror) {
        (Some(main), Some(security)) => Some(Mirrors::new(main, security)),
        _ => None,
    };
    let wanted = kernels::select(&args.kernels)?;
    let kernels = kernels::fetch(&target.join("vm-kernels"), &wanted, mirrors)?;
    if args.fetch {
        for k in &kernels {
            println!("{:8} {:10} {}", k.label, k.version, k.vmlinux.display());
        }
        return Ok(());
    }
    ensure!(
        sh::find("qemu-system-x86_64").is_some(),
        "qemu-system-x86_64 is missing: apt-get install --no-install-recommends qemu-system-x86"
    );
    let initrd = target.join("vm-initrd.cpio");
    pack(args, &target, &initrd)?;
    let logs = target.join("vm-logs");
    let started = Instant::now();
    let failed = matrix(&kernels, &initrd, &logs, args);
    if !args.keep {
        let _ = fs::remove_file(&initrd);
    }
    println!(
        "{} kernels, {} failed, {:.0} s; logs in {}",
        kernels.len(),
        failed,
        started.elapsed().as_secs_f32(),
        logs.display()
    );
    if failed > 0 {
        bail!("{failed} of {} kernels failed", kernels.len());
    }
    Ok(())
}

/// Builds what runs in the guests and writes the initramfs.
fn pack(args: &Args, target: &Path, to: &Path) -> Result<()> {
    let script = match &args.script {
        Some(path) => fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => TEST.to_owned(),
    };
    if !args.no_build {
        // Through the command line, so that every way to build why502 is the one of `cargo xtask build`.
        sh::run(Command::new(std::env::current_exe()?).args(["build", "--package", "why502-tests"]))?;
    }
    let mut image = Initrd::with_busybox()?;
    for name in ["why502", "why502-fire"] {
        let program = target.join("release").join(name);
        if program.is_file() {
            image.program(&stripped(&program, target), &format!("bin/{name}"))?;
        } else {
            ensure!(args.script.is_some(), "{} is missing: run without --no-build", program.display());
        }
    }
    image.text("init", 0o755, include_str!("vm/init.sh"));
    image.text("test.sh", 0o644, &script);
    image.write(BufWriter::new(File::create(to).with_context(|| to.display().to_string())?))
}

/// A copy without debug information, where strip(1) exists: the guest reads less.
fn stripped(program: &Path, target: &Path) -> PathBuf {
    let to = target.join(format!("vm-{}", program.file_name().unwrap_or_default().display()));
    match sh::capture(Command::new("strip").args(["--strip-debug", "-o"]).arg(&to).arg(program)) {
        Ok(_) => to,
        Err(_) => program.to_owned(),
    }
}

/// Boots all kernels, `args.jobs` at a time, one line for each. How many failed.
fn matrix(kernels: &[Kernel], initrd: &Path, logs: &Path, args: &Args) -> usize {
    let queue: Mutex<VecDeque<&Kernel>> = Mutex::new(kernels.iter().collect());
    let failed = Mutex::new(0);
    let next = || queue.lock().ok()?.pop_front();
    std::thread::scope(|s| {
        for _ in 0..args.jobs {
            s.spawn(|| {
                while let Some(kernel) = next() {
                    let outcome = guest::run(kernel, initrd, logs, Duration::from_secs(args.timeout));
                    // Held while printing: the lines of one guest stay together.
                    if let Ok(mut failed) = failed.lock()
                        && !report(kernel, outcome, logs)
                    {
                        *failed += 1;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or(kernels.len())
}

/// Prints one line, and what went wrong; true when all is well.
fn report(kernel: &Kernel, outcome: Result<Outcome>, logs: &Path) -> bool {
    let name = format!("{:8} {:10}", kernel.label, kernel.version);
    let outcome = match outcome {
        Ok(o) => o,
        Err(e) => {
            println!("{name} FAIL {e:#}");
            return false;
        }
    };
    let again = match (outcome.tries > 1, outcome.slow) {
        (true, _) => " (second try)",
        (false, true) => " (the host was too busy: fewer --jobs)",
        (false, false) => "",
    };
    let head = format!("{name} {:5.1} s", outcome.took.as_secs_f32());
    let last = outcome.output.last().cloned().unwrap_or_default();
    match &outcome.verdict {
        Verdict::Exit(0) => {
            println!("{head} ok{again} {last}");
            return true;
        }
        Verdict::Exit(rc) => println!("{head} FAIL{again} exit status {rc}"),
        Verdict::Kernel(lines) => {
            println!("{head} FAIL{again} the kernel complained:");
            for line in lines.iter().take(20) {
                println!("    {}", printable(line));
            }
        }
        Verdict::None(why) => println!("{head} FAIL{again} {why}"),
    }
    let from = outcome.output.len().saturating_sub(40);
    for line in &outcome.output[from..] {
        println!("    | {}", printable(line));
    }
    println!("    see {}", logs.join(&kernel.version).display());
    false
}

/// What a guest says goes to a terminal without control characters.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
