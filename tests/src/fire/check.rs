//! Compares a manifest with the events that why502 printed.

use super::manifest::{self, Expect, Kernel, Line, Needs};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use why502::model::event::{EventKind, TICK_NS};

/// The outcome of a comparison.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: usize,
    /// One line each.
    pub failed: Vec<String>,
    /// One line each: what this machine did not allow.
    pub skipped: Vec<String>,
}

impl Report {
    /// Another one's results as well.
    pub fn add(&mut self, other: Report) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// One condition of its own.
    pub fn that(&mut self, name: &str, ok: bool, why: impl FnOnce() -> String) {
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(format!("{name}: {}", why()));
        }
    }
}

/// Checks files; `events` holds one event a line.
///
/// # Errors
/// When a file cannot be read or the manifest is not one. An event that is none is a failure in the report.
pub fn files(manifest: &Path, events: &Path) -> Result<Report> {
    let (events, bad) = read_events(events)?;
    let mut report = compare(&manifest::read(manifest)?, &events)?;
    report.that("every line is an event", bad.is_none(), || bad.unwrap_or_default());
    Ok(report)
}

/// The events of a file, and what is wrong with the first line that is none.
///
/// # Errors
/// When the file cannot be read.
pub fn read_events(path: &Path) -> Result<(Vec<Value>, Option<String>)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut all = Vec::new();
    let mut bad = None;
    for (n, line) in (1..).zip(BufReader::new(file).lines()) {
        match event(&line?) {
            Ok(event) => all.push(annotate(event)),
            Err(e) => bad = bad.or_else(|| Some(format!("line {n}: {e:#}"))),
        }
    }
    Ok((all, bad))
}

/// One line of `why502 trace -o json`: an event of the model, with its names beside it.
fn event(line: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(line)?;
    EventKind::deserialize(&value)?;
    ensure!(value["type"] == "event" && value["at_boot_ns"].is_u64(), "not an event");
    Ok(value)
}

/// Compares a manifest with events as [`read_events`] gives them.
///
/// # Errors
/// When the manifest does not start with the kernel.
pub fn compare(manifest: &[Line], events: &[Value]) -> Result<Report> {
    let mut report = Report::default();
    let Some(Line::Kernel(kernel)) = manifest.first() else { bail!("the manifest does not start with the kernel") };
    for line in manifest {
        match line {
            Line::Kernel(_) => {}
            Line::Skipped { name, why } => report.skipped.push(format!("{name}: {why}")),
            Line::Expect(e) => {
                let wrong = check(e, kernel, events);
                report.that(&e.name, wrong.is_none(), || wrong.unwrap_or_default());
            }
        }
    }
    Ok(report)
}

/// `None` when the expectation holds, else why not, in one line.
fn check(e: &Expect, kernel: &Kernel, events: &[Value]) -> Option<String> {
    let absent = e.needs == Needs::ReplyResets && !kernel.reset_reasons;
    let (min, max) = if absent { (0, 0) } else { (e.min, e.max) };
    let found: Vec<_> = events.iter().filter(|v| fits(&e.select, v)).collect();
    if found.len() < min || found.len() > max {
        let wanted = if min == max { min.to_string() } else { format!("{min} to {max}") };
        let mut why = format!("{} records instead of {wanted}", found.len());
        if absent {
            why += " (this kernel reports no resets that answer a packet without a full socket)";
        }
        if found.len() < min
            && let Some(near) = nearest(&e.select, events)
        {
            let _ = write!(why, "; nearest: {near}");
        }
        let _ = write!(why, "; looked for {}", e.select);
        return Some(why);
    }
    let mut want = e.want.clone();
    if e.reason.is_some() {
        want["reason"] = json!(e.reason.filter(|_| kernel.reset_reasons));
    }
    found.iter().find_map(|v| {
        let wrong = diff(&want, v);
        (!wrong.is_empty()).then(|| format!("{} (event {})", wrong.join(", "), v["id"]))
    })
}

/// The record of the same kind with the fewest differing fields.
fn nearest(select: &Value, events: &[Value]) -> Option<String> {
    let same = events.iter().filter(|v| v["kind"] == select["kind"]);
    let wrong = same.map(|v| diff(select, v)).min_by_key(Vec::len)?;
    Some(wrong.join(", "))
}

/// Fields of `want` that `got` does not match, as text; fields that only `got` has do not matter. An object with one key
/// that starts with `$` is a test:
/// `$not` another value, `$in` one of a list, `$has` a list that holds it, `$ge` and `$le` numbers, `$mask` `[mask, bits]`, `$prefix` a string of at least
/// `min(len, 100)` bytes that the given one starts with, `$starts` a list whose first elements are these.
pub fn diff(want: &Value, got: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    walk("", want, got, &mut wrong);
    wrong
}

/// The same without the words: of all events few are meant.
fn fits(want: &Value, got: &Value) -> bool {
    match want {
        Value::Object(fields) => {
            test(fields, got).unwrap_or_else(|| fields.iter().all(|(key, want)| fits(want, &got[key])))
        }
        _ => want == got,
    }
}

fn walk(path: &str, want: &Value, got: &Value, wrong: &mut Vec<String>) {
    match want {
        Value::Null if path.is_empty() => {}
        Value::Object(fields) => match test(fields, got) {
            Some(true) => {}
            Some(false) => wrong.push(format!("{path} is {got}, wanted {want}")),
            None => {
                for (key, want) in fields {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, want, &got[key], wrong);
                }
            }
        },
        _ if want == got => {}
        _ => wrong.push(format!("{path} is {got}, wanted {want}")),
    }
}

fn test(fields: &Map<String, Value>, got: &Value) -> Option<bool> {
    let (key, arg) = fields.iter().next().filter(|_| fields.len() == 1)?;
    let number = |v: &Value| v.as_i64();
    Some(match key.as_str() {
        "$not" => got != arg && !got.is_null(),
        "$in" => arg.as_array().is_some_and(|all| all.contains(got)),
        "$has" => got.as_array().is_some_and(|all| all.contains(arg)),
        "$ge" => number(got) >= number(arg) && got.is_number(),
        "$le" => number(got) <= number(arg) && got.is_number(),
        "$mask" => match (got.as_u64(), arg[0].as_u64()) {
            (Some(got), Some(mask)) => Some(got & mask) == arg[1].as_u64(),
            _ => false,
        },
        "$prefix" => match (got.as_str(), arg.as_str()) {
            (Some(got), Some(whole)) => whole.starts_with(got) && got.len() >= whole.len().min(100),
            _ => false,
        },
        "$starts" => match (got.as_array(), arg.as_array()) {
            (Some(got), Some(first)) => got.starts_with(first),
            _ => false,
        },
        _ => return None,
    })
}

/// Adds what is easier to state than the raw fields: `start_ticks` beside every `start_ns`, and of sequence numbers and
/// jiffies their differences.
fn annotate(mut event: Value) -> Value {
    ticks(&mut event);
    let less = |a: &str, b: &str| {
        let number = |k: &str| event[k].as_u64().and_then(|n| u32::try_from(n).ok());
        Some(number(a)?.wrapping_sub(number(b)?))
    };
    let sums = [
        ("unread", less("rcv_nxt", "copied_seq")),
        ("unacked", less("write_seq", "snd_una")),
        ("lrcv_age", less("jiffies", "lrcvtime")),
    ];
    for (name, value) in sums {
        if let Some(v) = value {
            event[name] = json!(v);
        }
    }
    event
}

fn ticks(value: &mut Value) {
    if let Value::Object(fields) = value {
        if let Some(ns) = fields.get("start_ns").and_then(Value::as_u64) {
            fields.insert("start_ticks".into(), json!(ns / TICK_NS));
        }
        fields.values_mut().for_each(ticks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(reset_reasons: bool) -> Line {
        Line::Kernel(Kernel { release: "x".into(), reset_reasons })
    }

    fn run(e: Expect, reset_reasons: bool, events: &[Value]) -> Report {
        compare(&[kernel(reset_reasons), Line::Expect(e)], events).unwrap()
    }

    #[test]
    fn values_counts_and_absence() {
        let events = [json!({"id": 1, "kind": "exited", "task": {"tgid": 5, "comm": "a"}, "code": 256})];
        let e = |want| Expect::one("x", json!({"kind": "exited", "task": {"tgid": 5}}), want);
        assert_eq!(run(e(json!({"code": 256})), true, &events).passed, 1);
        assert_eq!(run(e(json!({"code": 0})), true, &events).failed.len(), 1);
        assert_eq!(run(e(json!({"task": {"comm": "b"}})), true, &events).failed.len(), 1);
        assert_eq!(run(e(json!({"task": {"missing": 1}})), true, &events).failed.len(), 1);
        assert_eq!(run(e(json!({})).times(2), true, &events).failed.len(), 1);
        assert_eq!(run(e(json!({})).times(0), true, &events).failed.len(), 1);
        let other = Expect::one("x", json!({"kind": "exited", "task": {"tgid": 6}}), json!({}));
        assert!(run(other, true, &events).failed[0].contains("task.tgid is 5, wanted 6"));
    }

    #[test]
    fn resets_on_kernels_without_reasons() {
        let reset = |reason: Value| json!({"id": 1, "kind": "reset-sent", "reason": reason});
        let e = || Expect::one("x", json!({"kind": "reset-sent"}), json!({})).reason(1);
        assert_eq!(run(e(), true, &[reset(json!(1))]).passed, 1);
        assert_eq!(run(e(), true, &[reset(json!(2))]).failed.len(), 1);
        assert_eq!(run(e(), true, &[reset(Value::Null)]).failed.len(), 1);
        assert_eq!(run(e(), false, &[reset(Value::Null)]).passed, 1);
        assert_eq!(run(e(), false, &[reset(json!(1))]).failed.len(), 1);
        assert_eq!(run(e().reply_reset(), false, &[]).passed, 1);
        assert_eq!(run(e().reply_reset(), false, &[reset(Value::Null)]).failed.len(), 1);
        assert_eq!(run(e().reply_reset(), true, &[]).failed.len(), 1);
    }

    #[test]
    fn tests_on_values() {
        let ok = |want: Value, got: Value| {
            let (want, got) = (json!({ "k": want }), json!({ "k": got }));
            let fits = fits(&want, &got);
            assert_eq!(fits, diff(&want, &got).is_empty());
            fits
        };
        assert!(ok(json!({"$not": 0}), json!(2)) && !ok(json!({"$not": 0}), json!(0)));
        assert!(ok(json!({"$in": [1, 2]}), json!(2)) && !ok(json!({"$in": [1, 2]}), json!(3)));
        assert!(
            ok(json!({"$ge": 2}), json!(2)) && !ok(json!({"$ge": 2}), json!(1)) && !ok(json!({"$ge": 2}), Value::Null)
        );
        assert!(
            ok(json!({"$le": 2}), json!(-1)) && !ok(json!({"$le": 2}), json!(3)) && !ok(json!({"$le": 2}), Value::Null)
        );
        assert!(ok(json!({"$mask": [4, 4]}), json!(12)) && !ok(json!({"$mask": [4, 0]}), json!(12)));
        let long = "x".repeat(300);
        assert!(ok(json!({ "$prefix": long }), json!(&long[..255])));
        assert!(!ok(json!({ "$prefix": long }), json!("x")) && !ok(json!({"$prefix": "abc"}), json!("")));
        assert!(ok(json!({"$starts": ["a"]}), json!(["a", "b"])) && !ok(json!({"$starts": ["b"]}), json!(["a", "b"])));
    }

    #[test]
    fn derived_values() {
        let e = annotate(json!({"rcv_nxt": 3, "copied_seq": 4294967295u32, "task": {"start_ns": 25_000_000}}));
        assert_eq!(e["unread"], 4);
        assert_eq!(e["task"]["start_ticks"], 2);
    }
}
