//! `why502 watch`: incidents when they are final, stops at their end.

use super::judge::{Judge, is_blamed};
use super::kube::KubeArgs;
use super::live::{self, Wish};
use super::output::OutputArgs;
use super::record::RecordingFile;
use super::runtime::RuntimeArgs;
use super::specs::SpecArgs;
use crate::live::{UnixConnect, UprobesWanted};
use crate::ring::shed;
use crate::sinks::queue::{self, Queue};
use anyhow::Context;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  why502 watch
  why502 watch -o json | jq -r '[.at, .cause, .summary] | @tsv'
  why502 watch --record today.rec       also keep the inputs, for `why502 explain`
  why502 watch --pod-spec deploy.yaml   with the preStop hook and the grace period known

It prints `ready` on stderr once every lost request is seen. Ctrl-C ends it with a summary.";

/// How long a slow reader of stdout is waited for at the end.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Explain lost requests as they happen
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Also print what is not the server's doing: client aborts, edge timeouts, resets by the requester
    #[arg(long)]
    all: bool,
    /// Also write a recording
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// End by itself after this time: 90s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = super::record::duration)]
    duration: Option<Duration>,
    /// How failed connects to unix sockets are seen
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    unix_connect: UnixConnect,
    /// Whether nginx's own error messages and statuses are seen
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    uprobes: UprobesWanted,
    /// For tests of what is said then: lose this share of the records
    #[arg(long, value_name = "SHARE[:SEED]", hide = true)]
    shed: Option<shed::Wanted>,
    #[command(flatten)]
    specs: SpecArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::host::refuse()?;
    let specs = args.specs.read()?;
    let runtimes = args.runtime.wish()?;
    let kube = args.kube.resolve()?;
    let mut recording = args.record.as_deref().map(RecordingFile::create).transpose()?;
    let paint = args.output.paint();
    let lines = Queue::new(std::io::stdout(), queue::BYTES).context("cannot start the writing thread")?;
    let mut judge = Judge::new();
    let wish = Wish {
        all_signals: false,
        duration: args.duration,
        unix_connect: args.unix_connect,
        uprobes: args.uprobes,
        specs,
        runtimes,
        kube,
        shed: args.shed,
    };
    let mut summary = live::run(wish, |input, view| {
        if let Some(recording) = &mut recording {
            recording.write(input);
        }
        for output in judge.feed(input) {
            view.summary.output(&output);
            if args.all || is_blamed(&output) {
                lines.push(args.output.render(&output, paint)?);
            }
        }
        Ok(if lines.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    judge.conclude(&mut summary);
    summary.lost("stdout", "slow-reader", lines.dropped());
    let written = lines.finish(PATIENCE);
    live::report(&summary, true);
    written.context("cannot write to stdout")?;
    let complete = recording.is_none_or(RecordingFile::finish);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
