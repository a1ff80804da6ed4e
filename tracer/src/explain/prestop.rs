//! A command that was run in the container from outside, failed, and sent nothing, right before the stop signal.
//!
//! A preStop hook looks like that when it is mistyped; an exec probe that fails in the same seconds looks the same. Only a
//! pod spec whose hook has this very command line makes it a cause; without one it is told beside the chain.

use super::chain::{self, Chain, Sender};
use super::confidence::Confidence;
use super::server::{Kind, Server};
use super::{Finding, View, said};
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::Lost;
use crate::correlate::stops::{Command, commands_before};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::Cause;

/// A process and its parents are not followed further.
const GENERATIONS: usize = 8;

/// A hook that fails later than this has held the stop signal back for that time, whatever else it was for.
const AT_ONCE_NS: u64 = 1_000_000_000;

/// The hook of the pod's spec failed, so nothing held the stop signal back or came before it.
pub fn failed(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let asked = asked(lost, server, view)?;
    let at_once = |c: &Command, exit: &ExitFact| exit.at.saturating_sub(c.at) < AT_ONCE_NS;
    let (command, exit) =
        failures(server, asked, view).into_iter().find(|(c, exit)| at_once(c, exit) && is_hook(c, view))?;
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    if let Some(exit) = server.exit(view).filter(|e| server.exiting && e.at <= lost.at) {
        chain.exit(exit, "sockets-are-closed-by-exit", view);
    }
    chain.signal(asked, "the-stop-signal-came-at-once", view);
    chain.command(&command, exit, "the-hook-failed", view);
    let mut confidence = Confidence::of(0.9);
    confidence.because("what the hook would have done, had it worked, is not known");
    Some(Finding {
        cause: Cause::PrestopFailed,
        sub_cause: None,
        trigger: chain::trigger(asked, view),
        summary: format!(
            "the preStop hook did nothing ({}), and {} came {} ms later",
            how(exit),
            sig::name(asked.what.signal),
            asked.at.saturating_sub(exit.at) / 1_000_000
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// The same without a spec that says what it was: told beside the explanation.
pub fn note(chain: &mut Chain, lost: &Lost, server: &Server, view: &View) {
    let Some(asked) = asked(lost, server, view) else { return };
    if let Some((command, exit)) = failures(server, asked, view).first() {
        chain.command(command, exit, chain::BESIDE_FAILED_COMMAND, view);
    }
}

fn how(exit: &ExitFact) -> String {
    match (exit.code & 0x7f, exit.code >> 8 & 0xff) {
        (0, status) => format!("it exited with status {status}"),
        (s, _) => format!("it was killed by {}", sig::name(s)),
    }
}

/// The signal from outside that began the stop of which this loss is a part.
fn asked<'v>(lost: &Lost, server: &Server, view: &'v View) -> Option<&'v Signal> {
    let by_stop = lost.cut_in_flight() || lost.thrown_out_of_queue() || lost.refused() || lost.late_data();
    if !by_stop || !matches!(server.kind, Kind::Nginx | Kind::PhpFpm) {
        return None;
    }
    // Killed at the end of its grace period, or crashed: another hook would not have changed that.
    if server.exit(view).is_some_and(|e| e.at <= lost.at && e.code & 0x7f == sig::KILL) {
        return None;
    }
    let first = server.asked_first(view, lost.at)?;
    let sender = first.what.sender.key();
    let inside = chain::sender_kind(first, view) == Sender::SameContainer;
    let first = match inside {
        // Passed on by PID 1.
        true => {
            let to = view.history.signals_to(&sender).iter();
            to.filter(|s| s.at <= first.at && sig::asks_to_stop(s.what.signal) && !s.to_itself())
                .min_by_key(|s| s.at)?
        }
        false => first,
    };
    matches!(chain::sender_kind(first, view), Sender::Runtime | Sender::Host).then_some(first)
}

/// Commands from outside that had failed right before this signal, and had sent nothing to the server; the last one first.
fn failures<'v>(server: &Server, asked: &Signal, view: &'v View) -> Vec<(Command, &'v ExitFact)> {
    let mut found: Vec<_> = commands_before(asked.at, &asked.what, view.table)
        .into_iter()
        .filter_map(|c| {
            let exit = view.history.exit_of(&c.key).filter(|e| e.code != 0 && e.at <= asked.at)?;
            (!sent_anything(&c, server, asked.at, view)).then_some((c, exit))
        })
        .collect();
    found.sort_by_key(|(_, exit)| std::cmp::Reverse((exit.at, exit.event)));
    found
}

/// It, or a process that it started, sent a signal to the server.
fn sent_anything(command: &Command, server: &Server, until: BootNs, view: &View) -> bool {
    let own = |key: ProcKey| {
        let parents = std::iter::successors(Some(key), |k| view.table.process(k)?.parent);
        parents.take(GENERATIONS).any(|k| k == command.key)
    };
    let targets = server.master.into_iter().chain(server.process);
    let mut signals = targets.flat_map(|t| view.history.signals_to(&t));
    signals.any(|s| s.at >= command.at && s.at <= until && own(s.what.sender.key()))
}

/// The spec of its container has this very command line as a preStop hook.
pub fn is_hook(command: &Command, view: &View) -> bool {
    said::hooks(view.table.container_of(&command.key), view).any(|hook| same(hook, command))
}

/// A script runs as an argument of its interpreter, which may have one option before it (load_script()).
fn same(hook: &[String], command: &Command) -> bool {
    let kept: usize = command.argv.iter().map(|a| a.len() + 1).sum();
    let ran = |skip: usize| command.argv.get(skip..).is_some_and(|argv| agrees(hook, argv, kept >= ARGV_KEPT));
    let script = hook.first().is_some_and(|program| program.starts_with('/'));
    ran(0) || script && (ran(1) || ran(2))
}

/// Records keep 256 bytes of the arguments: what is there must agree, to the end of the shorter.
fn agrees(hook: &[String], argv: &[String], cut: bool) -> bool {
    let Some((last, whole)) = argv.split_last() else { return false };
    let first = hook.get(..whole.len()) == Some(whole);
    match hook.get(whole.len()) {
        Some(arg) if cut => first && arg.starts_with(last.as_str()),
        Some(arg) => first && arg == last && hook.len() == argv.len(),
        None => false,
    }
}

/// Bytes of the arguments from which on they may have been cut (the record's 256, less one argument's end).
const ARGV_KEPT: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str]) -> Command {
        Command {
            key: ProcKey { tgid: 1, start_ticks: 1 },
            at: 0,
            event: None,
            argv: argv.iter().map(|a| (*a).to_string()).collect(),
            exit: None,
        }
    }

    #[test]
    fn only_the_same_command_line_is_the_hook() {
        let hook: Vec<String> = ["/bin/sh", "-SIGQUIT", "1"].map(String::from).to_vec();
        assert!(same(&hook, &command(&["/bin/sh", "-SIGQUIT", "1"])));
        assert!(!same(&hook, &command(&["/bin/sh", "-SIGQUIT"])), "shorter");
        assert!(!same(&hook, &command(&["/bin/sh", "-SIGQUIT", "1", "x"])), "longer");
        assert!(!same(&hook, &command(&["/bin/sh", "-c", "1"])));
        assert!(!same(&hook, &command(&[])));
        let script = vec!["/hook.sh".to_string(), "now".to_string()];
        assert!(same(&script, &command(&["/bin/sh", "/hook.sh", "now"])), "by its first line");
        assert!(same(&script, &command(&["/bin/bash", "-e", "/hook.sh", "now"])));
        assert!(!same(&script, &command(&["/bin/sh", "/hook.sh"])) && !same(&script, &command(&["/bin/sh", "now"])));
        let long = "x".repeat(400);
        let hook = vec!["sh".to_string(), long.clone(), "end".to_string()];
        assert!(same(&hook, &command(&["sh", &long[..253]])), "cut in the record");
        assert!(!same(&hook, &command(&["sh", &long[..100]])), "not cut: another argument");
    }
}
