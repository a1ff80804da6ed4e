//! What all live commands share: refusals before anything is loaded, one loop that feeds every input to the command,
//! and an orderly end.

use super::kube::Kube;
use super::say;
use super::specs::Specs;
use super::summary::Summary;
use crate::live::{Live, Options, UnixConnect, UprobesWanted};
use crate::model::Input;
use crate::model::input::{HookState, NginxProbesFact, NginxProbesState, SourceFact, SourceState, Started};
use crate::model::kube::Said;
use crate::ring::shed;
use crate::sources::runtimes;
use anyhow::Context;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use why502_ebpf::names;

/// What a command wants of the live source.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    /// All signals, not only those that end a process or tell a server to stop.
    pub(super) all_signals: bool,
    /// End by itself after this time.
    pub(super) duration: Option<Duration>,
    pub(super) unix_connect: UnixConnect,
    pub(super) uprobes: UprobesWanted,
    pub(super) specs: Specs,
    pub(super) runtimes: runtimes::Wish,
    pub(super) kube: Kube,
    pub(super) shed: Option<shed::Wanted>,
}

/// Whether to go on.
pub(super) type Next = anyhow::Result<ControlFlow<()>>;

/// What a command sees beside the input.
pub(super) struct View<'a> {
    pub(super) summary: &'a mut Summary,
    /// Names of the running kernel's reset reasons, by number.
    pub(super) reset_reasons: &'a BTreeMap<u32, String>,
    /// The source itself; `None` for the last inputs, when its probes are detached.
    pub(super) live: Option<&'a Live>,
}

/// Runs until Ctrl-C, SIGTERM, the wished time or `each` ends it; then the probes are detached, the last inputs are
/// fed, and the summary is complete.
pub(super) fn run(wish: Wish, each: impl FnMut(&Input, View<'_>) -> Next) -> anyhow::Result<Summary> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(observe(wish, each))
}

async fn observe(wish: Wish, mut each: impl FnMut(&Input, View<'_>) -> Next) -> anyhow::Result<Summary> {
    // Taken over before the probes are attached: an early Ctrl-C must not leave half a start behind.
    let mut stop = Stop::new()?;
    let Wish { all_signals, unix_connect, uprobes, duration, mut specs, runtimes, kube, shed } = wish;
    let Kube { place, node } = kube;
    let options =
        Options { all_signals, unix_connect, uprobes, runtimes, kube: place, node, shed, ..Options::default() };
    let mut live = tokio::select! {
        biased;
        () = stop.wait() => anyhow::bail!("ended by a signal before the start was done"),
        live = Live::start(options) => live?,
    };
    let reset_reasons = live.reset_reasons().clone();
    let mut summary = Summary::default();
    let mut feed = |input: &Input, summary: &mut Summary, live: Option<&Live>| {
        summary.input(input);
        let mut next = each(input, View { summary: &mut *summary, reset_reasons: &reset_reasons, live });
        for more in specs.after(input) {
            let view = View { summary: &mut *summary, reset_reasons: &reset_reasons, live };
            next = next.and_then(|_| each(&more, view));
        }
        // After the command: at `ready` a recording is on the disk.
        announce(input);
        next
    };
    let end = tokio::time::sleep(duration.unwrap_or_default());
    tokio::pin!(end);
    let mut result = Ok(());
    'all: loop {
        let batch = tokio::select! {
            // The end wins over a source that always has something.
            biased;
            () = stop.wait() => break,
            () = &mut end, if duration.is_some() => break,
            batch = live.next_batch() => batch,
        };
        live.take_warnings().iter().for_each(say);
        for input in &batch {
            match feed(input, &mut summary, Some(&live)) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break 'all,
                Err(err) => {
                    result = Err(err);
                    break 'all;
                }
            }
        }
    }
    let (last, totals) = live.stop();
    for input in &last {
        if result.is_ok() {
            result = feed(input, &mut summary, None).map(drop);
        }
    }
    summary.answered = Some(totals.hooks.iter().map(|hook| hook.answered).sum());
    let resets =
        totals.hooks.iter().filter(|hook| hook.hook == names::HOOKS[names::hook::TCP_SEND_RESET as usize].name);
    summary.strange_resets = resets.map(|hook| hook.uninteresting).sum();
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
        Input::Source(fact) => say(source(fact)),
        Input::NginxProbes(fact) => nginx_probes(fact).iter().for_each(say),
        Input::Kube(fact) => {
            if let Said::Api(api) = &fact.said {
                let state = match &api.why {
                    Some(why) => format!("not heard any more: {why}"),
                    None => "watched".into(),
                };
                say(format_args!("Kubernetes API: {} {state}", api.resource));
            }
        }
        _ => {}
    }
}

fn source(fact: &SourceFact) -> String {
    let name = if fact.name.is_empty() { "a container runtime" } else { &fact.name };
    match &fact.state {
        SourceState::Connected => format!("{name} answers at {}", fact.source),
        SourceState::Lost { why } => format!("{name} at {} cannot be asked: {why}", fact.source),
    }
}

/// What the uprobes do not see. `say` escapes.
fn nginx_probes(fact: &NginxProbesFact) -> Option<String> {
    let (id, exe) = (fact.process.tgid, &fact.exe);
    match &fact.state {
        NginxProbesState::Attached => None,
        NginxProbesState::Detached { why } => {
            Some(format!("degraded (nginx-uprobes): detached from nginx {exe} (pid {id}): {why}"))
        }
        NginxProbesState::Failed { why } => {
            Some(format!("degraded (nginx-uprobes): not attached to nginx {exe} (pid {id}): {why}"))
        }
    }
}

/// One line for each thing that this kernel or this host does not give.
fn degraded(started: &Started) -> Vec<String> {
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
