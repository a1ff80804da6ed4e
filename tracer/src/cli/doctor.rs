//! `why502 doctor`: what this host allows.

use super::output::OutputArgs;
use std::process::ExitCode;

/// Tell what this host allows: kernel, BTF, probes, capabilities, cgroups, runtimes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    super::host::refuse()?;
    Ok(ExitCode::SUCCESS)
}
