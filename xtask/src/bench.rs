//! `cargo xtask bench`: what watching costs, on a real local pod.

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed on to the benchmark (`-- --pairs 10 --seconds 5`)
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::demo::on_a_pod("bench", "why502-bench", &args.rest)
}
