//! `why502-fire`: drives every probe with known facts, and compares what why502 reported.

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::{c_char, c_void};
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use why502_tests::fire::nginx::Functions;
use why502_tests::fire::{self, check::Report};

#[derive(Parser)]
#[command(about = "Drives every probe with known facts, and compares what why502 reported")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start why502, fire, stop it, check (root)
    Run {
        #[arg(long)]
        why502: PathBuf,
        /// Directory for events, manifest and why502's stderr
        #[arg(long)]
        out: PathBuf,
        /// Fail when this kernel does not trace functions
        #[arg(long)]
        functions: bool,
    },
    /// Only fire, while somebody else traces (root)
    Fire {
        #[arg(long)]
        manifest: PathBuf,
    },
    /// Compare a manifest with the output of `why502 trace -o json`
    Check { manifest: PathBuf, events: PathBuf },
}

/// nginx's function, as far as a uprobe sees it.
// SAFETY: no other function of this program has its name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ngx_log_error_core(level: usize, log: *const c_void, err: i32, format: *const c_char) {
    black_box((level, log, err, format));
}

/// The same.
// SAFETY: no other function of this program has its name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ngx_http_special_response_handler(request: *const c_void, status: isize) -> isize {
    black_box((request, status)).1
}

fn main() -> ExitCode {
    fire::act_as_told(Functions { log: ngx_log_error_core, error_page: ngx_http_special_response_handler });
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("why502-fire: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Run { why502, out, functions } => Ok(print(&fire::drive::run(&why502, &out, functions)?)),
        Command::Check { manifest, events } => Ok(print(&fire::check::files(&manifest, &events)?)),
        Command::Fire { manifest } => {
            let dir = manifest.with_extension("programs");
            std::fs::create_dir_all(&dir)?;
            let fired = fire::fire(&manifest, &dir);
            let _ = std::fs::remove_dir_all(&dir);
            fired?;
            Ok(true)
        }
    }
}

fn print(report: &Report) -> bool {
    for line in &report.skipped {
        println!("skipped {}", printable(line));
    }
    for line in &report.failed {
        println!("FAILED {}", printable(line));
    }
    println!("{} passed, {} failed, {} skipped", report.passed, report.failed.len(), report.skipped.len());
    report.failed.is_empty()
}

/// Names of processes are in it: no control characters on a terminal.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
