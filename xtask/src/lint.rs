//! `cargo xtask lint`: what `cargo clippy --workspace` cannot see, as it compiles for the host.

use anyhow::Result;

use crate::toolchain::{self, RoadKind, TARGET};
use crate::{build, gates, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which compiler looks at the probes [default: the first that is there]
    #[arg(long, value_enum)]
    road: Option<RoadKind>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    gates::source::check(&sh::root())?;
    println!("sources     the probes' rules hold");
    let road = toolchain::road(args.road)?;
    let mut cmd = road.cargo("clippy");
    cmd.args(["--release", "--target", TARGET, "--package", "why502-ebpf", "--bin", "probes"]);
    cmd.env("CARGO_TARGET_DIR", sh::target_dir().join("bpf")).env("CARGO_ENCODED_RUSTFLAGS", build::flags(&road)?);
    // A key or value that is handed over by value is one more copy on a stack of 512 bytes.
    let by_reference = "clippy::needless_borrows_for_generic_args";
    cmd.env_remove("RUSTFLAGS").args(["--", "-D", "warnings", "-A", by_reference]);
    sh::run(&mut cmd)?;
    println!("clippy      the probes are clean");
    Ok(())
}
