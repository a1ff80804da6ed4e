//! `why502 man`, for packages: what they install is made by the program that it describes.

use anyhow::Context;
use clap::CommandFactory;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  why502 man /usr/local/share/man/man1")]
pub(super) struct Args {
    /// Where why502.1 and a page for each command go; it has to exist
    dir: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut command = super::Cli::command();
    // Each page tells its own options; `--version` is of the whole.
    command.build();
    clap_mangen::generate_to(command, &args.dir)
        .with_context(|| format!("cannot write manual pages into {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_for_each_command() {
        let dir = tempfile::tempdir().unwrap();
        run(&Args { dir: dir.path().into() }).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("why502.1").contains("why502\\-watch(1)"), "{}", read("why502.1"));
        for command in super::super::Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let page = read(&format!("why502-{}.1", command.get_name()));
            assert!(page.contains(".SH OPTIONS"), "{page}");
        }
        let err = run(&Args { dir: "/nonexistent".into() }).unwrap_err();
        assert!(format!("{err:#}").contains("/nonexistent"), "{err:#}");
    }
}
