//! `cargo xtask accuracy`: how often why502 is right, scenario by scenario.

use anyhow::Result;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Handed on to the runner (`cargo xtask accuracy --help` shows what it takes)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::demo::on_a_pod("accuracy", "why502-accuracy", &args.rest)
}
