//! `cargo xtask demo`: from an empty clone to the first explained request.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{self, For};
use crate::{apt, build, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed on to the demo (`-- --help` lists what it takes)
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    on_a_pod("demo", "why502-demo", &args.rest)
}

/// Sets up, builds, and runs a program of the tests package that makes its own pod.
pub(crate) fn on_a_pod(what: &str, program: &str, rest: &[String]) -> Result<()> {
    // Said before anything is downloaded or built.
    if !sh::is_root() {
        bail!(
            "the {what} loads eBPF programs and makes network namespaces and cgroups, so it has to run as root:\n    \
             sudo -E env \"PATH=$PATH\" cargo xtask {what}"
        );
    }
    if let Err(e) = setup::ensure(For::Demo) {
        let hint = if apt::present() { "" } else { " (this is made for Debian and Ubuntu)" };
        return Err(e.context(format!("the machine is not ready for the {what}{hint}")));
    }
    let package = vec!["why502-tests".into()];
    let why502 = build::run(&build::Args { package, ..Default::default() })?;
    let mut command = Command::new(why502.with_file_name(program));
    sh::run(command.arg("--why502").arg(&why502).args(rest))
}
