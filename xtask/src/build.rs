//! `cargo xtask build`: the probes for BPF, the gates on them, then the host's binary with the object inside.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::toolchain::{self, Road, RoadKind, TARGET};
use crate::{gates, sh};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Compile aya-log's lines into the probes (for developing them: each wakes the reader)
    #[arg(long)]
    pub(crate) trace_log: bool,
    /// Stop after the probes' object and its gates
    #[arg(long)]
    pub(crate) probes_only: bool,
    /// Which compiler builds the probes [default: the first that is there]
    #[arg(long, value_enum)]
    pub(crate) road: Option<RoadKind>,
    /// Also build these packages (their programs land beside the binary)
    #[arg(long, short = 'p')]
    pub(crate) package: Vec<String>,
}

/// Builds and gives the path of the result: `target/release/why502` (or the probes' object).
pub(crate) fn run(args: &Args) -> Result<PathBuf> {
    let object = probes(args)?;
    if args.probes_only {
        return Ok(object);
    }
    let start = Instant::now();
    let mut cmd = sh::cargo();
    cmd.args(["build", "--release", "--package", "why502"]).env("WHY502_PROBES", &object);
    for package in &args.package {
        cmd.args(["--package", package]);
    }
    if args.trace_log {
        cmd.args(["--features", "why502/trace-log"]);
    }
    sh::run(&mut cmd)?;
    let binary = sh::target_dir().join("release/why502");
    println!("built       {} ({:.0?})", binary.display(), start.elapsed());
    Ok(binary)
}

/// Where the probes' object is, once it is built.
pub(crate) fn object() -> PathBuf {
    sh::target_dir().join("bpf").join(TARGET).join("release/probes")
}

/// Compiles the probes and passes them through the gates; gives the object's path.
fn probes(args: &Args) -> Result<PathBuf> {
    let start = Instant::now();
    gates::source::check(&sh::root())?;
    let road = toolchain::road(args.road)?;
    let mut cmd = road.cargo("build");
    cmd.args(["--release", "--target", TARGET, "--package", "why502-ebpf", "--bin", "probes"]);
    if args.trace_log {
        cmd.args(["--features", "trace-log"]);
    }
    let flags = flags(&road)?;
    cmd.env("CARGO_TARGET_DIR", sh::target_dir().join("bpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS");
    sh::run(&mut cmd).with_context(|| format!("building the probes with {}", road.describe()))?;

    let object = object();
    let bytes = fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
    let summary = gates::object::check(&bytes, args.trace_log)
        .with_context(|| format!("{} must not be loaded into any kernel", object.display()))?;
    println!("probes      {summary}; gates passed ({:.0?})", start.elapsed());
    Ok(object)
}

/// rustc's flags for the probes, in the form of CARGO_ENCODED_RUSTFLAGS.
pub(crate) fn flags(road: &Road) -> Result<OsString> {
    let linker = toolchain::check_linker(road.llvm)?;
    let arch = match env::consts::ARCH {
        known @ ("x86_64" | "aarch64") => known,
        other => bail!("why502 does not know the registers of {other}: build on x86_64 or aarch64"),
    };
    let mut flags = vec![
        // aya-ebpf's register names; its own build script guesses the same when built natively.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // bpf-linker makes the object's BTF from the debug info.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Clinker={}", linker.display()),
    ];
    // The same object from every folder, and nobody's home in it.
    let sysroot = sh::capture(std::process::Command::new(&road.rustc).args(["--print", "sysroot"]))?;
    let cargo_home = sh::cargo_bin().and_then(|bin| Some(bin.parent()?.to_path_buf()));
    let places =
        [(Some(sh::root()), "why502"), (cargo_home, "cargo"), (Some(PathBuf::from(sysroot.trim_end())), "rust")];
    for (from, to) in places {
        flags.extend(from.map(|from| format!("--remap-path-prefix={}=/{to}", from.display())));
    }
    Ok(flags.join("\u{1f}").into())
}
