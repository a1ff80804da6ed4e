//! What all live commands share: refusals before anything is loaded, one loop that feeds every input to the command,
//! and an orderly end.

use super::say;
use super::summary::Summary;
use crate::model::Input;
use crate::model::input::{HookState, Started};
use anyhow::Context;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a command wants of the live source.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    /// All signals, not only those that end a process or tell a server to stop.
    pub(super) all_signals: bool,
    /// End by itself after this time.
    pub(super) duration: Option<Duration>,
}

/// Whether to go on.
pub(super) type Next = anyhow::Result<ControlFlow<()>>;

/// Runs until Ctrl-C, SIGTERM, the wished time or `each` ends it; then the probes are detached, the last inputs are
/// fed, and the summary is complete.
pub(super) fn run(wish: Wish, each: impl FnMut(&Input, &mut Summary) -> Next) -> anyhow::Result<Summary> {
    super::host::refuse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(observe(wish, each))
}

async fn observe(wish: Wish, mut each: impl FnMut(&Input, &mut Summary) -> Next) -> anyhow::Result<Summary> {
    // Taken over before the probes are attached: an early Ctrl-C must not leave half a start behind.
    let mut stop = Stop::new()?;
    let mut summary = Summary::default();
    let mut source = Source::start(&wish)?;
    let end = tokio::time::sleep(wish.duration.unwrap_or(Duration::MAX / 4));
    tokio::pin!(end);
    let mut result = Ok(());
    'all: loop {
        let batch = tokio::select! {
            // The end wins over a source that always has something.
            biased;
            () = stop.wait() => break,
            () = &mut end, if wish.duration.is_some() => break,
            batch = source.next_batch() => batch?,
        };
        for input in &batch {
            announce(input);
            summary.input(input);
            match each(input, &mut summary) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break 'all,
                Err(err) => {
                    result = Err(err);
                    break 'all;
                }
            }
        }
    }
    for input in source.stop(&mut summary) {
        summary.input(&input);
        if result.is_ok() {
            result = each(&input, &mut summary).map(drop);
        }
    }
    result.map(|()| summary)
}

/// The summary, on stderr.
pub(super) fn report(summary: &Summary, verdicts: bool) {
    for line in summary.lines(verdicts) {
        say(line);
    }
}

/// What people and scripts wait for on stderr: degradations, one line each, then `ready`.
fn announce(input: &Input) {
    match input {
        Input::Started(started) => degraded(started).iter().for_each(say),
        Input::Ready { .. } => {
            let _ = writeln!(std::io::stderr().lock(), "ready");
        }
        _ => {}
    }
}

/// One line for each thing that this kernel or this host does not give.
pub(super) fn degraded(started: &Started) -> Vec<String> {
    let mut lines: Vec<String> = started.degraded.iter().map(|d| format!("degraded ({}): {}", d.id, d.text)).collect();
    for hook in &started.hooks {
        if let HookState::Failed { why } = &hook.state {
            lines.push(format!("degraded (hook): {} is not attached: {why}", hook.hook));
        }
    }
    lines
}

/// Ctrl-C or SIGTERM.
struct Stop {
    int: Signal,
    term: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot take over signals");
        Ok(Stop { int: take(SignalKind::interrupt())?, term: take(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// The live source, as far as the commands need it.
struct Source {}

impl Source {
    fn start(_wish: &Wish) -> anyhow::Result<Self> {
        anyhow::bail!("this build has no live source")
    }

    async fn next_batch(&mut self) -> anyhow::Result<Vec<Input>> {
        std::future::pending().await
    }

    fn stop(self, _summary: &mut Summary) -> Vec<Input> {
        Vec::new()
    }
}
