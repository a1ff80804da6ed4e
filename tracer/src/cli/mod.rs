//! The commands: one file each. Results go to stdout, everything else to stderr; exit code 0 ok, 1 failed, 2 bad usage.

mod check;
mod completions;
mod doctor;
mod explain;
mod export;
mod host;
mod incidents;
mod judge;
mod kube;
mod kubectl;
mod live;
mod man;
mod output;
mod record;
mod runtime;
mod serve;
mod specs;
mod summary;
mod trace;
mod watch;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  why502 watch                          explain lost requests as they happen
  why502 record -o stop.rec             write it down; why502 explain stop.rec explains it later
Exit codes: 0 ok, 1 failed, 2 bad usage. `why502 COMMAND --help` tells more.";

/// Tells for each lost request which signal, exit, reset or race killed it, and what to change.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Watch(watch::Args),
    Trace(trace::Args),
    Record(record::Args),
    Explain(explain::Args),
    Serve(serve::Args),
    Incidents(incidents::Args),
    Kubectl(kubectl::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    KubectlComplete(kubectl::complete::Args),
    #[command(hide = true)]
    Man(man::Args),
}

/// Runs the command of the process's arguments. Whoever reads stdout may go away at any time: that is a quiet end.
pub fn main() -> ExitCode {
    // clap prints help on stdout with 0 and bad usage on stderr with 2.
    let cli = Cli::parse_from(arguments(std::env::args_os().collect()));
    match run(cli.command) {
        Ok(code) => code,
        Err(err) if is_broken_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            say(format_args!("{err:#}"));
            ExitCode::FAILURE
        }
    }
}

/// kubectl runs a program `kubectl-why502` of the path for `kubectl why502`, and another one to complete its words.
fn arguments(mut all: Vec<OsString>) -> Vec<OsString> {
    let called = all.first().and_then(|first| Path::new(first).file_name()).and_then(|name| name.to_str());
    let meant: &[&str] = match called {
        Some("kubectl-why502") => &["why502", "kubectl"],
        Some("kubectl_complete-why502") => &["why502", "kubectl-complete", "--"],
        _ => return all,
    };
    all.splice(..1, meant.iter().map(OsString::from));
    all
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Watch(args) => watch::run(args),
        Command::Trace(args) => trace::run(args),
        Command::Record(args) => record::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Incidents(args) => incidents::run(args),
        Command::Kubectl(args) => kubectl::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
        Command::KubectlComplete(args) => kubectl::complete::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

fn is_broken_pipe(err: &anyhow::Error) -> bool {
    err.chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

/// One line on stderr: a message that itself has several lines is put on one. A closed stderr is nobody's error.
fn say(what: impl Display) {
    let text = what.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = crate::sinks::escape::escape(&lines.join("; ")).into_owned();
    let _ = writeln!(std::io::stderr().lock(), "why502: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kubectl_calls_it_by_another_name() {
        let arguments = |all: &[&str]| arguments(all.iter().map(OsString::from).collect());
        assert_eq!(arguments(&["/usr/bin/kubectl-why502", "-n", "shop"]), ["why502", "kubectl", "-n", "shop"]);
        assert_eq!(arguments(&["kubectl-why502"]), ["why502", "kubectl"]);
        assert_eq!(arguments(&["/b/kubectl_complete-why502", "-n"]), ["why502", "kubectl-complete", "--", "-n"]);
        assert_eq!(arguments(&["/usr/bin/why502", "watch"]), ["/usr/bin/why502", "watch"]);
        assert!(arguments(&[]).is_empty());
    }

    #[test]
    fn help_fits_in_a_screen() {
        let help = Cli::command().render_help().to_string();
        assert!(help.lines().count() <= 24, "{} lines:\n{help}", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}
