//! `why502 record`: the input sequence into a file.

use super::kube::KubeArgs;
use super::live::{self, Wish};
use super::runtime::RuntimeArgs;
use super::say;
use super::specs::SpecArgs;
use crate::live::{UnixConnect, UprobesWanted};
use crate::model::Input;
use crate::sinks::recording::Writer;
use anyhow::Context;
use std::fs::{File, OpenOptions};
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  why502 record -o stop.rec             until Ctrl-C
  why502 record -o stop.rec --duration 10m

A recording holds the command lines of all processes: the file can be read by its owner only.
Explain it with `why502 explain stop.rec`.";

/// Write down what the kernel reports, to explain it later or elsewhere
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The recording; an existing file is replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// End by itself after this time: 90s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// How failed connects to unix sockets are seen
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    unix_connect: UnixConnect,
    /// Whether nginx's own error messages and statuses are seen
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    uprobes: UprobesWanted,
    #[command(flatten)]
    specs: SpecArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    kube: KubeArgs,
    /// All signals, not only those that end a process or tell a server to stop
    #[arg(long)]
    all_signals: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Before the file is replaced.
    super::host::refuse()?;
    let specs = args.specs.read()?;
    let runtimes = args.runtime.wish()?;
    let kube = args.kube.resolve()?;
    let mut recording = RecordingFile::create(&args.output)?;
    let wish = Wish {
        all_signals: args.all_signals,
        duration: args.duration,
        unix_connect: args.unix_connect,
        uprobes: args.uprobes,
        specs,
        runtimes,
        kube,
        shed: None,
    };
    let summary = live::run(wish, |input, _| {
        recording.write(input);
        // Without its file this command has nothing left to do.
        Ok(if recording.failed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    live::report(&summary, false);
    Ok(if recording.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A recording on the disk. A disk that is slow makes the ring fill up, which the kernel side counts and the recording
/// tells; a disk that is full ends the recording, said once, and what else runs goes on.
pub(super) struct RecordingFile {
    path: PathBuf,
    writer: Writer<BufWriter<File>>,
}

impl RecordingFile {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let create = || {
            // Command lines may hold secrets: for the owner only.
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            Writer::new(BufWriter::with_capacity(1 << 18, file))
        };
        let writer = create().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(RecordingFile { path: path.to_path_buf(), writer })
    }

    pub(super) fn write(&mut self, input: &Input) {
        if let Err(err) = self.writer.write(input) {
            let path = self.path.display();
            say(format_args!("cannot write {path}: {err}; the recording is incomplete"));
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.writer.failed()
    }

    /// True when the recording is complete.
    pub(super) fn finish(self) -> bool {
        let complete = !self.writer.failed();
        let what = if complete { "inputs written to" } else { "inputs at most are in the incomplete" };
        say(format_args!("{} {what} {}", self.writer.inputs(), self.path.display()));
        complete
    }
}

/// `90s`, `5m`, `1h30m`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time such as 90s, 5m or 1h30m");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let duration: jiff::SignedDuration = text.parse().map_err(|_| bad())?;
    // Longer than any observation, and short enough for every clock.
    let longest = Duration::from_secs(100 * 365 * 86_400);
    Duration::try_from(duration).ok().filter(|duration| *duration <= longest).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "s", "-5s", "5 parsecs", "99999999999h", "1e3"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
