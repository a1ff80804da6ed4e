//! Incidents and stops as short blocks for people: what failed, why, how, what to change, how sure.
//!
//! The chain is printed in the order in which things happened, the trigger first and the lost request last: one reads
//! it like a log. (In JSON it is effect first, as the rules build it.)

use super::escape::escape;
use crate::check::{Finding, Report, Severity};
use crate::explain::advice;
use crate::model::incident::{Advice, After, Bound, Container, Incident, Missing, Pod, Stop};
use crate::model::time::time_of_day;
use crate::model::{Level, Output};
use std::fmt::Write as _;

/// No line is longer, unless one word is.
pub const WIDTH: usize = 100;
/// Where the values of a block begin.
const COLUMN: usize = 10;

/// Colours, or none: the caller knows what stdout is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paint {
    pub on: bool,
}

/// SGR codes.
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
    pub fn bold(self, text: &str) -> String {
        self.with(BOLD, text)
    }
    pub fn dim(self, text: &str) -> String {
        self.with(DIM, text)
    }
    pub fn red(self, text: &str) -> String {
        self.with(RED, text)
    }
    pub fn yellow(self, text: &str) -> String {
        self.with(YELLOW, text)
    }
    pub fn cyan(self, text: &str) -> String {
        self.with(CYAN, text)
    }
}

/// An incident's or a stop's block, with an empty line at its end so that blocks stay apart in a stream.
pub fn output(output: &Output, paint: Paint) -> String {
    match output {
        Output::Incident(incident) => self::incident(incident, paint),
        Output::Stop(stop) => self::stop(stop, paint),
    }
}

pub fn incident(i: &Incident, paint: Paint) -> String {
    let mut block = Block { out: String::new(), paint };
    block.head(&i.at, (RED, i.outcome.id()), &subject(i.pod.as_ref(), i.container.as_ref()));
    block.row("", &exchange(i), None);
    block.row("why", &i.summary, Some(BOLD));
    block.row("", &classification(i), None);
    block.chain(i);
    block.advice(&i.advice);
    block.confidence(i);
    block.missing(&i.missing);
    if i.loss.in_window > 0 {
        let by: Vec<String> = i.loss.by_hook.iter().map(|(hook, n)| format!("{hook} {n}")).collect();
        block.row("lost", &format!("{} events in this window: {}", i.loss.in_window, by.join(", ")), Some(YELLOW));
    }
    let stop = i.stop.as_ref().map(|stop| format!(", part of stop {stop}")).unwrap_or_default();
    block.row("id", &format!("{}{stop}", i.id), Some(DIM));
    block.end()
}

pub fn stop(s: &Stop, paint: Paint) -> String {
    let mut block = Block { out: String::new(), paint };
    let signal = s.signal.as_deref().unwrap_or("no signal seen");
    let whose = format!("{} in {}", s.server, subject(s.pod.as_ref(), s.container.as_ref()));
    block.head(&s.at, (CYAN, "stopped"), &whose);
    block.row("", &format!("{signal}, trigger {}", s.trigger), None);
    let name_width = s.phases.iter().map(|p| escape(&p.name).chars().count()).max().unwrap_or(0);
    let ms: Vec<String> = s.phases.iter().map(|p| format!("+{} ms", p.after_ms)).collect();
    let ms_width = ms.iter().map(String::len).max().unwrap_or(0);
    for (n, (phase, ms)) in s.phases.iter().zip(&ms).enumerate() {
        let lead = format!("{ms:>ms_width$}  {:<name_width$}  ", escape(&phase.name));
        block.hanging(if n == 0 { "phases" } else { "" }, &lead, &phase.text);
    }
    for (label, text) in numbers(s) {
        block.row(label, &text, None);
    }
    if s.incidents == 0 {
        block.row("lost", "no request", Some(GREEN));
    } else {
        let by: Vec<String> = s.by_cause.iter().map(|(cause, n)| format!("{cause} {n}")).collect();
        let noun = if s.incidents == 1 { "request" } else { "requests" };
        block.row("lost", &format!("{} {noun}: {}", s.incidents, by.join(", ")), Some(RED));
    }
    if !s.advice.is_empty() {
        block.advice(&s.advice);
    }
    block.missing(&s.missing);
    block.row("id", &s.id, Some(DIM));
    block.end()
}

/// All that `check` has found, what to change for it, and what was not looked at.
pub fn report(report: &Report, paint: Paint) -> String {
    let mut block = Block { out: String::new(), paint };
    let mut changes = Vec::new();
    for finding in &report.findings {
        block.finding(finding);
        block.line("");
        advice::merge(&mut changes, &finding.advice);
    }
    let summary = report.summary();
    if report.findings.is_empty() {
        block.row("found", "nothing: as far as it is given here, the next stop loses no request", Some(GREEN));
    } else {
        let n = |n: u64, what: &str| (n > 0).then(|| format!("{n} that {what}"));
        let counts = [n(summary.will_lose, "will lose requests"), n(summary.may_lose, "may lose requests")];
        block.row("found", &counts.into_iter().flatten().collect::<Vec<String>>().join(", "), Some(BOLD));
        block.advice(&changes);
    }
    for missing in &report.not_checked {
        block.hanging("", "not checked: ", &format!("{}: {}", missing.fact, missing.effect));
    }
    block.out
}

/// What a stop found and left, as far as it is known.
fn numbers(s: &Stop) -> Vec<(&'static str, String)> {
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let mut rows = Vec::new();
    let f = &s.in_flight;
    let longest = f.longest_ms.map(|ms| format!("; the longest took at least {}", seconds(ms))).unwrap_or_default();
    if f.at_signal == Some(0) && f.cut == 0 {
        rows.push(("open", "nothing was in flight at the signal".into()));
    } else if let Some(n) = f.at_signal {
        let drain = f.drain_ms.map(|ms| format!(" (the last after {})", seconds(ms))).unwrap_or_default();
        let answered = f.answered.map(|n| format!(": {n} answered{drain}")).unwrap_or_default();
        rows.push(("open", format!("{n} in flight at the signal{answered}; {} cut{longest}", f.cut)));
    } else if f.cut > 0 {
        rows.push(("open", format!("{} cut{longest}", f.cut)));
    }
    let last = |after: &After| after.last_ms.map(|ms| format!(", the last {} after", seconds(ms))).unwrap_or_default();
    let some = |after: &Option<After>| after.filter(|a| a.count > 0);
    let accepted = some(&s.accepted_after).map(|a| format!("{} connections accepted{} the signal", a.count, last(&a)));
    let late = some(&s.late).map(|a| format!("{} refused{} the listener's close", a.count, last(&a)));
    let after: Vec<String> = [accepted, late].into_iter().flatten().collect();
    if !after.is_empty() {
        rows.push(("after", after.join("; ")));
    }
    if let Some(g) = &s.grace {
        let text = match g.left_ms {
            left @ 1.. => format!("{} of {} left ({})", seconds(left.unsigned_abs()), seconds(g.ms), g.source),
            _ => format!("all of {} used ({})", seconds(g.ms), g.source),
        };
        rows.push(("grace", text));
    }
    rows
}

/// `2026-11-22 14:03:22.118204 UTC`.
fn day_and_time(rfc3339: &str) -> String {
    match rfc3339.split_once('T') {
        Some((day, _)) => format!("{} {} UTC", escape(day), escape(time_of_day(rfc3339))),
        None => escape(rfc3339).into_owned(),
    }
}

/// Whose request it was: `shop/web-7d9f nginx 3f2a9c41d0e7 (containerd)`, with whatever of it is known. Not escaped.
fn subject(pod: Option<&Pod>, container: Option<&Container>) -> String {
    let mut parts = Vec::new();
    if let Some(pod) = pod {
        parts.push(match (&pod.namespace, &pod.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            (None, Some(name)) => name.clone(),
            _ => format!("pod {}", pod.uid),
        });
    }
    if let Some(container) = container {
        parts.push(container.name.clone().unwrap_or_else(|| "container".to_string()));
        // Twelve hex digits are what docker and crictl print.
        parts.push(container.id.chars().take(12).collect());
        parts.extend(container.runtime.as_ref().map(|runtime| format!("({runtime})")));
    }
    if parts.is_empty() { "no known container".to_string() } else { parts.join(" ") }
}

/// Who asked whom, what came back. Not escaped.
fn exchange(i: &Incident) -> String {
    let server = match &i.server.path {
        Some(path) => format!("unix:{path}"),
        None => endpoint(i.server.ip, i.server.port),
    };
    let requester = endpoint(i.requester.ip, i.requester.port);
    let mut text = format!("{requester} -> {server}");
    if i.requester.kind != "unknown" {
        _ = write!(text, ", requester: {}", i.requester.kind);
    }
    if i.requests.count != 1 || i.requests.bound == Bound::AtLeast {
        let bound = if i.requests.bound == Bound::AtLeast { "at least " } else { "" };
        let noun = if i.requests.count == 1 { "request" } else { "requests" };
        _ = write!(text, ", {bound}{} {noun}", i.requests.count);
    }
    if let Some(ms) = i.age_ms {
        _ = write!(text, ", lost after {ms} ms");
    }
    match i.response.status {
        Some(status) => _ = write!(text, ", status {status} (from {})", i.response.source),
        None if i.response.bytes > 0 => _ = write!(text, ", {} bytes of an answer sent", i.response.bytes),
        None => {}
    }
    text
}

fn endpoint(ip: Option<std::net::IpAddr>, port: Option<u16>) -> String {
    match (ip, port) {
        (Some(ip), Some(port)) => std::net::SocketAddr::new(ip, port).to_string(),
        (Some(ip), None) => ip.to_string(),
        (None, _) => "a local process".into(),
    }
}

fn classification(i: &Incident) -> String {
    let sub = i.sub_cause.as_ref().map(|sub| format!("/{sub}")).unwrap_or_default();
    let mut text = format!("cause {}{sub}, mechanism {}, trigger {}", i.cause, i.mechanism, i.trigger);
    if !i.also_matched.is_empty() {
        let also: Vec<&str> = i.also_matched.iter().map(|c| c.id()).collect();
        _ = write!(text, "; also matched: {}", also.join(", "));
    }
    text
}

/// Lines with a label column; every value is escaped here, and only here.
struct Block {
    out: String,
    paint: Paint,
}

impl Block {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// When, what, whose: in one line where that fits.
    fn head(&mut self, at: &str, what: (&str, &str), whose: &str) {
        let at = day_and_time(at);
        let (code, what) = what;
        let width = format!("{at}  {what}  {}", escape(whose)).chars().count();
        let head = format!("{}  {}", self.paint.bold(&at), self.paint.with(code, what));
        if width <= WIDTH {
            let whose = self.paint.bold(&escape(whose));
            self.line(&format!("{head}  {whose}"));
        } else {
            self.line(&head);
            self.row("", whose, Some(BOLD));
        }
    }

    fn label(&mut self, label: &str) {
        let padded = format!("  {label:<width$}", width = COLUMN - 2);
        let painted = if label.is_empty() { padded } else { self.paint.cyan(&padded) };
        self.out.push_str(&painted);
    }

    fn row(&mut self, label: &str, value: &str, code: Option<&str>) {
        let value = escape(value);
        for (n, line) in wrap(&value, WIDTH - COLUMN).into_iter().enumerate() {
            self.label(if n == 0 { label } else { "" });
            let line = code.map_or_else(|| line.to_string(), |code| self.paint.with(code, line));
            self.line(&line);
        }
    }

    /// A value that begins with `lead`; later lines stand under what follows it. `lead` is not escaped.
    fn hanging(&mut self, label: &str, lead: &str, value: &str) {
        let indent = lead.chars().count();
        let value = escape(value);
        // However long the lead, some room is left for words.
        for (n, line) in wrap(&value, (WIDTH - COLUMN).saturating_sub(indent).max(30)).into_iter().enumerate() {
            self.label(if n == 0 { label } else { "" });
            let lead = if n == 0 { lead.to_string() } else { " ".repeat(indent) };
            self.line(&format!("{lead}{line}"));
        }
    }

    fn chain(&mut self, i: &Incident) {
        let links = i.told();
        let offsets: Vec<String> = links.iter().map(|link| milliseconds(link.offset_us)).collect();
        let width = offsets.iter().map(String::len).max().unwrap_or(0);
        let ids = i.chain.iter().map(|link| escape(&link.id).chars().count()).max().unwrap_or(0);
        for (n, (link, offset)) in links.into_iter().zip(&offsets).enumerate() {
            let lead = format!("{offset:>width$} ms  {:<ids$}  ", escape(&link.id));
            self.hanging(if n == 0 { "how" } else { "" }, &lead, &link.text);
        }
        if i.chain.is_empty() {
            self.row("how", "no event is known that led to it", None);
        }
    }

    fn advice(&mut self, advice: &[Advice]) {
        if advice.is_empty() {
            self.row("change", "nothing is advised on these facts", None);
        }
        for (n, a) in advice.iter().enumerate() {
            let mut text = format!("{} ({}): {}", a.target, a.kind, a.change);
            // Most changes name their value themselves.
            if let Some(value) = a.value.filter(|value| !a.change.contains(&value.to_string())) {
                let unit = a.unit.as_ref().map(|unit| format!(" {unit}")).unwrap_or_default();
                _ = write!(text, " [{value}{unit}]");
            }
            self.hanging(if n == 0 { "change" } else { "" }, "- ", &text);
            let mut why = a.why.clone();
            if !a.needs.is_empty() {
                _ = write!(why, " (only together with {})", a.needs.join(", "));
            }
            self.hanging("", "  ", &why);
        }
    }

    /// Its changes by their ids: several findings share them, so they are written out once.
    fn finding(&mut self, f: &Finding) {
        let code = match f.severity {
            Severity::WillLose => RED,
            Severity::MayLose => YELLOW,
        };
        let whose: Vec<String> = [f.workload.clone(), f.container.as_ref().map(|name| format!("container {name}"))]
            .into_iter()
            .flatten()
            .collect();
        let severity = self.paint.with(code, &format!("{:<9}", f.severity.id()));
        let sub = f.sub_cause.as_ref().map(|sub| format!(" ({sub})")).unwrap_or_default();
        let cause = self.paint.bold(&format!("{}{}", f.cause, escape(&sub)));
        let line = format!("{severity}  {cause}  {}", escape(&whose.join(", ")));
        self.line(line.trim_end());
        if let Some(at) = &f.at {
            self.row("at", &at.to_string(), None);
        }
        self.row("why", &f.summary, None);
        let ids: Vec<&str> = f.advice.iter().map(|a| a.id.as_str()).collect();
        if !ids.is_empty() {
            self.row("change", &ids.join(", "), None);
        }
        self.missing(&f.missing);
    }

    fn confidence(&mut self, i: &Incident) {
        let code = match i.confidence.level {
            Level::Certain => GREEN,
            Level::Likely => YELLOW,
            Level::Possible => RED,
        };
        let mut text = format!("{} ({:.2})", i.confidence.level, i.confidence.value);
        if !i.confidence.lowered_by.is_empty() {
            _ = write!(text, ", lowered by: {}", i.confidence.lowered_by.join("; "));
        }
        self.row("sure", &text, Some(code));
    }

    fn missing(&mut self, missing: &[Missing]) {
        for (n, m) in missing.iter().enumerate() {
            self.row(if n == 0 { "missing" } else { "" }, &format!("{}: {}", m.fact, m.effect), None);
        }
    }

    fn end(mut self) -> String {
        self.out.push('\n');
        self.out
    }
}

/// Microseconds as signed milliseconds: `-1002.113`.
fn milliseconds(us: i64) -> String {
    let sign = if us < 0 { "-" } else { "" };
    let us = us.unsigned_abs();
    format!("{sign}{}.{:03}", us / 1000, us % 1000)
}

/// Breaks at spaces; a word longer than the line stands alone. There is always one line.
fn wrap(text: &str, width: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text.trim();
    while rest.chars().count() > width {
        let limit = rest.char_indices().nth(width).map_or(rest.len(), |(at, _)| at);
        // A space right behind the limit still ends a full line.
        let before = if rest[limit..].starts_with(' ') { Some(limit) } else { rest[..limit].rfind(' ') };
        let at = match before {
            Some(at) => at,
            None => match rest[limit..].find(' ') {
                Some(at) => limit + at,
                None => break,
            },
        };
        lines.push(rest[..at].trim_end());
        rest = rest[at..].trim_start();
    }
    lines.push(rest);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wraps_at_spaces_only() {
        assert_eq!(wrap("a bb ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrap("abcdefgh i", 4), ["abcdefgh", "i"]);
        assert_eq!(wrap("abcdefgh", 4), ["abcdefgh"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("ünï cödé", 4), ["ünï", "cödé"]);
    }

    #[test]
    fn milliseconds_keep_their_sign() {
        assert_eq!(milliseconds(-1_002_113), "-1002.113");
        assert_eq!(milliseconds(-7), "-0.007");
        assert_eq!(milliseconds(0), "0.000");
        assert_eq!(milliseconds(i64::MIN), "-9223372036854775.808");
    }

    proptest! {
        #[test]
        fn wrapping_loses_no_word(text in "[a-zé ]{0,200}", width in 1usize..40) {
            let lines = wrap(&text, width);
            let words: Vec<&str> = lines.iter().flat_map(|l| l.split_whitespace()).collect();
            prop_assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
            prop_assert!(lines.iter().all(|l| l.chars().count() <= width || !l.contains(' ')));
        }
    }
}
