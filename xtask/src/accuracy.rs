//! `cargo xtask accuracy`: how often why502 is right, scenario by scenario.

use crate::sh;
use anyhow::Result;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Handed on to the runner (`cargo xtask accuracy --help` shows what it takes)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rest.iter().any(|arg| arg.starts_with("--replay")) {
        let mut runner = sh::cargo();
        runner.args(["run", "--quiet", "--package", "why502-tests", "--bin", "why502-accuracy", "--"]);
        return sh::run(runner.args(&args.rest));
    }
    crate::demo::on_a_pod("accuracy", "why502-accuracy", &args.rest)
}
