//! `why502 explain`: the verdicts of a recording. The same inputs through the same engine give the same bytes.

use super::judge::{Judge, is_blamed};
use super::output::OutputArgs;
use super::say;
use super::specs::SpecArgs;
use super::summary::Summary;
use crate::model::{Incident, Input, Output, Stop};
use crate::page;
use crate::sinks::recording::{self, ReadError};
use crate::sinks::text::Paint;
use anyhow::Context;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  why502 explain stop.rec
  why502 explain -o json --all *.rec | jq -r .cause | sort | uniq -c
  why502 explain --html stop.html stop.rec

A recording that was cut is explained up to its end, with a warning. One that is damaged is
explained up to the damage, and the exit code is 1.";

/// Explain the lost requests of recordings
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Recordings made by `why502 record`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also print what is not the server's doing: client aborts, edge timeouts, resets by the requester
    #[arg(long)]
    all: bool,
    /// Write a page with the picture of each stop instead, to FILE or (-) to stdout
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    html: Option<PathBuf>,
    #[command(flatten)]
    specs: SpecArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Incidents that a page is made of; what is more is counted.
const PAGE_MAX: usize = 10_000;

/// What the page will show.
#[derive(Default)]
struct Kept {
    stops: Vec<Stop>,
    incidents: Vec<Incident>,
    left_out: u64,
}

impl Kept {
    fn keep(&mut self, output: Output) {
        match output {
            Output::Stop(stop) if self.stops.len() < PAGE_MAX => self.stops.push(*stop),
            Output::Incident(incident) if self.incidents.len() < PAGE_MAX => self.incidents.push(*incident),
            _ => self.left_out += 1,
        }
    }

    fn write(&self, files: &[PathBuf], to: &Path) -> anyhow::Result<()> {
        let names: Vec<String> =
            files.iter().map(|f| f.file_name().unwrap_or(f.as_os_str()).to_string_lossy().into_owned()).collect();
        let page = page::file(&names.join(", "), &self.stops, &self.incidents, self.left_out);
        if to == Path::new("-") {
            return std::io::stdout().lock().write_all(page.as_bytes()).context("cannot write to stdout");
        }
        std::fs::write(to, page).with_context(|| format!("cannot write {}", to.display()))
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut to = std::io::BufWriter::new(std::io::stdout().lock());
    let paint = args.output.paint();
    let mut code = ExitCode::SUCCESS;
    let mut kept = args.html.as_ref().map(|_| Kept::default());
    for file in &args.files {
        if !explain(file, &args, paint, kept.as_mut(), &mut to)? {
            code = ExitCode::FAILURE;
        }
    }
    if let (Some(html), Some(kept)) = (&args.html, &kept) {
        kept.write(&args.files, html)?;
    }
    Ok(code)
}

/// False when the file could not be read to its end; an error when stdout could not be written.
fn explain(
    path: &Path,
    args: &Args,
    paint: Paint,
    mut kept: Option<&mut Kept>,
    to: &mut impl Write,
) -> anyhow::Result<bool> {
    let name = path.display();
    let reader = File::open(path)
        .map_err(|source| ReadError::Io { byte: 0, source })
        .and_then(|file| recording::Reader::new(BufReader::with_capacity(1 << 18, file)));
    let reader = match reader {
        Ok(reader) => reader,
        Err(err) => {
            say(format_args!("{name}: {err}"));
            return Ok(false);
        }
    };
    let mut judge = Judge::new();
    let mut summary = Summary::default();
    let mut specs = args.specs.read()?;
    let mut print = |judge: &mut Judge, input: &Input| -> anyhow::Result<()> {
        summary.input(input);
        for output in judge.feed(input) {
            summary.output(&output);
            if !args.all && !is_blamed(&output) {
                continue;
            }
            if let Some(kept) = &mut kept {
                kept.keep(output);
            } else {
                let text = args.output.render(&output, paint)?;
                writeln!(to, "{text}").context("cannot write to stdout")?;
            }
        }
        Ok(())
    };
    let (mut last, mut read, mut problem) = (0, 0u64, None);
    for input in reader {
        match input {
            Ok(input) => {
                read += 1;
                last = last.max(recording::time_of(&input));
                print(&mut judge, &input)?;
                for more in specs.after(&input) {
                    print(&mut judge, &more)?;
                }
            }
            Err(err) => problem = Some(err),
        }
    }
    if problem.is_some() && read > 0 {
        // What is still open becomes final with what is known up to here.
        print(&mut judge, &Input::Stopped { at: last })?;
    }
    to.flush().context("cannot write to stdout")?;
    judge.conclude(&mut summary);
    for line in summary.lines(true) {
        say(format_args!("{name}: {line}"));
    }
    match problem {
        None => Ok(true),
        Some(err) => {
            let warning = err.is_cut() && read > 0;
            say(format_args!("{name}: {}{err}", if warning { "warning: " } else { "" }));
            Ok(warning)
        }
    }
}
