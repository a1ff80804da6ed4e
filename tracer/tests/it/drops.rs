//! A share of all records is lost, as by a ring that is full again and again: whoever may have missed something says so, is
//! certain of nothing, and no other cause is certain in its place.

use crate::evidence::{certain, connection, recordings, run};
use std::collections::BTreeMap;
use why502::model::input::{LossFact, LossKind};
use why502::model::{BootNs, Incident, Input};
use why502::ring::drain::hook_of;
use why502::ring::shed::{Shed, Wanted};

/// Without them, and with what the live source would say of that: by hook, before the tick that closes the batch.
fn shed(inputs: &[Input], wanted: Wanted) -> (Vec<Input>, Vec<LossFact>) {
    let mut shed = Shed::new(wanted);
    let (mut out, mut losses) = (Vec::new(), Vec::new());
    let (mut ready, mut since): (bool, BootNs) = (false, 0);
    for input in inputs {
        match input {
            Input::Event(e) if ready && shed.takes(hook_of(&e.kind)) => continue,
            Input::Ready { at } => (ready, since) = (true, *at),
            Input::Tick { at } | Input::Stopped { at } => {
                for (hook, count) in shed.taken() {
                    let (hook, kind) = (hook.to_string(), LossKind::RingFull);
                    losses.push(LossFact { from: since, to: *at, hook, kind, count });
                    out.extend(losses.last().cloned().map(Input::Loss));
                }
                since = *at;
            }
            _ => {}
        }
        out.push(input.clone());
    }
    (out, losses)
}

#[test]
fn who_may_have_missed_something_says_so() {
    let recordings = recordings();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    for (share, seeds) in [(0.05, 1..=4), (0.5, 5..=8)] {
        let (mut all, mut said, mut of_window) = (0, 0, 0);
        for (file, inputs) in &recordings {
            let originals: BTreeMap<_, Incident> = run(inputs).into_iter().map(|i| (connection(&i), i)).collect();
            for seed in seeds.clone() {
                let (left, losses) = shed(inputs, Wanted { share, seed });
                for i in run(&left) {
                    all += 1;
                    said += usize::from(i.loss.in_window > 0);
                    // The window is longer than that: it begins a second before the chain does.
                    let from = i.at_boot_ns.saturating_sub(1_000_000_000);
                    let near = losses.iter().any(|l| l.to >= from && l.from <= i.at_boot_ns);
                    of_window += usize::from(near);
                    let what = format!("{file}, {share} by {seed}: {}", i.cause);
                    if near && (i.loss.in_window == 0 || certain(&i)) {
                        wrong.insert(what.clone(), format!("{what}: lost {} {}", i.loss.in_window, i.confidence.level));
                    }
                    let before = originals.get(&connection(&i));
                    let right = before.is_some_and(|o| {
                        o.cause == i.cause
                            || o.also_matched.contains(&i.cause)
                            || o.cause.not_the_server() && i.cause.not_the_server()
                    });
                    if certain(&i) && !right {
                        let before = before.map_or("nothing", |o| o.cause.id());
                        wrong.insert(what.clone(), format!("{what} with certainty, {before} before"));
                    }
                }
            }
        }
        println!("{share}: {all} incidents, {of_window} within a second after a loss, {said} say so");
        assert!(of_window > 1000 && said >= of_window, "{of_window} of {all}, {said}");
    }
    let lines: Vec<&str> = wrong.values().map(String::as_str).collect();
    assert!(lines.is_empty(), "{} kinds\n{}", lines.len(), lines.join("\n"));
}
