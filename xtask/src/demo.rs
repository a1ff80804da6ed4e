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
    // Said before anything is downloaded or built.
    if !sh::is_root() {
        bail!(
            "the demo loads eBPF programs and makes network namespaces and cgroups, so it has to run as root:\n    \
             sudo -E env \"PATH=$PATH\" cargo xtask demo"
        );
    }
    if let Err(e) = setup::ensure(For::Demo) {
        let hint = if apt::present() { "" } else { " (the demo is made for Debian and Ubuntu)" };
        return Err(e.context(format!("the machine is not ready for the demo{hint}")));
    }
    let package = vec!["why502-tests".into()];
    let why502 = build::run(&build::Args { package, ..Default::default() })?;
    let mut demo = Command::new(why502.with_file_name("why502-demo"));
    sh::run(demo.arg("--why502").arg(&why502).args(&args.rest))
}
