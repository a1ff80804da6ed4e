//! A hook that is not there at all: none of its records, and its status says so. What rested on it falls and names it; what
//! did not is told as before, and no other cause takes its place with certainty.

use crate::evidence::{certain, connection, recordings, run};
use std::collections::{BTreeMap, BTreeSet};
use why502::explain::confidence::additional;
use why502::model::input::HookState;
use why502::model::{Cause, Event, EventKind, Incident, Input};
use why502::ring::drain::hook_of;

/// What became of the verdicts of a cause.
#[derive(Default)]
struct Fate {
    all: usize,
    /// The same cause, lowered or not.
    same: usize,
    lowered: usize,
    unexplained: usize,
    /// Another cause, never as certain.
    other: usize,
    /// The loss itself was not seen.
    unseen: usize,
}

fn without(hook: &str, inputs: &[Input]) -> Vec<Input> {
    let of_it = |i: &&Input| match i {
        // Of failed connects to unix sockets there is one of two hooks.
        Input::Event(Event { kind: EventKind::UnixRefused(_), .. }) => {
            !matches!(hook, "unix_stream_connect" | "sys_exit")
        }
        Input::Event(e) => hook_of(&e.kind) != hook,
        // Counted by its probe.
        Input::StopCounters(_) => hook != "inet_sock_set_state",
        _ => true,
    };
    let mut left: Vec<Input> = inputs.iter().filter(of_it).cloned().collect();
    for input in &mut left {
        if let Input::Started(s) = input {
            let rows = s.hooks.iter_mut().filter(|h| h.hook == hook);
            rows.for_each(|h| h.state = HookState::Failed { why: "not here".into() });
        }
    }
    left
}

fn names_it(i: &Incident, hook: &str) -> bool {
    i.confidence.lowered_by.iter().any(|why| why.contains(hook)) || i.missing.iter().any(|m| m.fact.contains(hook))
}

#[test]
fn a_hook_that_is_not_there_is_named_and_blames_nobody() {
    let recordings = recordings();
    let hooks: BTreeSet<String> = recordings
        .iter()
        .flat_map(|(_, inputs)| inputs.iter())
        .filter_map(|i| match i {
            Input::Started(s) => Some(s.hooks.iter().filter(|h| h.state == HookState::Attached)),
            _ => None,
        })
        .flatten()
        .map(|h| h.hook.clone())
        .collect();
    let mut table: BTreeMap<(String, Cause), Fate> = BTreeMap::new();
    let mut wrong = BTreeMap::new();
    for (file, inputs) in &recordings {
        let originals = run(inputs);
        for hook in &hooks {
            let attached = |i: &Input| match i {
                Input::Started(s) => s.hooks.iter().any(|h| &h.hook == hook && h.state == HookState::Attached),
                _ => false,
            };
            if !inputs.iter().any(attached) {
                continue;
            }
            let left = run(&without(hook, inputs));
            let mut rest: BTreeMap<_, Vec<&Incident>> = BTreeMap::new();
            left.iter().for_each(|i| rest.entry(connection(i)).or_default().push(i));
            for original in &originals {
                let fate = table.entry((hook.clone(), original.cause)).or_default();
                fate.all += 1;
                let Some(now) = rest.get(&connection(original)).and_then(|all| all.first()) else {
                    fate.unseen += 1;
                    continue;
                };
                match now.cause {
                    cause if cause == original.cause => fate.same += 1,
                    Cause::Unexplained => fate.unexplained += 1,
                    _ => fate.other += 1,
                }
                fate.lowered += usize::from(now.confidence.value < original.confidence.value);
                let also = original.also_matched.contains(&now.cause);
                let harmless = now.cause.not_the_server() && original.cause.not_the_server();
                if certain(now) && now.cause != original.cause && !also && !harmless {
                    let line = format!("{file}: without {hook}, {} is {} with certainty", original.cause, now.cause);
                    wrong.insert(line.clone(), line);
                }
                let additional = additional(hook);
                let fell = now.cause != original.cause || now.confidence.value < original.confidence.value;
                if !names_it(now, hook) && (!additional || fell) {
                    let line =
                        format!("{file}: without {hook}, {} ({} before) does not name it", now.cause, original.cause);
                    wrong.insert(line.clone(), line);
                }
                if certain(now) && !additional {
                    let line = format!("{file}: without {hook}, {} is still certain", now.cause);
                    wrong.insert(line.clone(), line);
                }
            }
        }
    }
    println!(
        "{:<22} {:<28} {:>5} {:>5} {:>7} {:>11} {:>6} {:>6}",
        "hook", "cause", "all", "same", "lowered", "unexplained", "other", "unseen"
    );
    for ((hook, cause), f) in &table {
        let cause = cause.id();
        println!(
            "{hook:<22} {cause:<28} {:>5} {:>5} {:>7} {:>11} {:>6} {:>6}",
            f.all, f.same, f.lowered, f.unexplained, f.other, f.unseen
        );
    }
    assert!(hooks.len() >= 12, "{hooks:?}");
    let lines: Vec<&str> = wrong.values().map(String::as_str).collect();
    assert!(lines.is_empty(), "{} kinds\n{}", lines.len(), lines.join("\n"));
}
