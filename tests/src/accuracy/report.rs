//! The figures as a page in Markdown; the terminal shows the same.

use super::figures::{Count, Figures, OfCause, percentile, wilson};
use super::layout::SIDES;
use super::table::{all, named};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use why502::model::incident::Cause;

/// Under which circumstances the figures came to be.
#[derive(Clone, Debug)]
pub struct Setting {
    /// That made the page.
    pub command: String,
    pub kernel: String,
    pub commit: String,
    /// Such as `2026-11-23`.
    pub date: String,
    pub nginx: String,
    pub php: String,
    pub seed: Option<u64>,
    pub took: Duration,
    /// So many lost requests are wanted of each cause.
    pub least: u64,
}

fn percent(hits: u64, n: u64) -> String {
    if n == 0 {
        return "–".into();
    }
    let (low, _) = wilson(hits, n);
    format!("{:.1}% (≥ {:.1}%)", 100.0 * hits as f64 / n as f64, 100.0 * low)
}

fn ms(ns: Option<u64>) -> String {
    ns.map_or("–".into(), |ns| format!("{}", ns / 1_000_000))
}

fn counts<'a>(of: impl IntoIterator<Item = (&'a str, &'a u64)>) -> String {
    let all: Vec<String> = of.into_iter().map(|(name, n)| format!("{name} {n}")).collect();
    all.join(", ")
}

/// Below it people say what they found out about the deviations; it stays when the report is made again.
pub const REMARKS: &str = "## Remarks";

/// The whole report; `drawn` are the plays of `figures` that dice chose.
pub fn page(figures: &Figures, drawn: &Figures, setting: &Setting) -> String {
    let mut out = String::new();
    let command = &setting.command;
    let _ = write!(out, "# Accuracy\n\nMade by `{command}`:\n{HEAD}");
    let Setting { command: _, kernel, commit, date, nginx, php, seed, took, least } = setting;
    let seed = seed.map_or(String::new(), |seed| format!(", the last {} drawn with seed {seed}", drawn.plays));
    let _ = writeln!(
        out,
        "| | |\n|---|---|\n| kernel | {kernel} |\n| commit | {commit} |\n| date | {date} |\n| servers | {nginx}, {php} |\n\
         | plays | {}{seed} |\n| took | {} min |\n",
        figures.plays,
        took.as_secs().div_ceil(60)
    );
    out += &text(figures, *least);
    if drawn.plays > 0 {
        out.push_str("## Shuffled plays alone\n\n");
        totals(&mut out, drawn);
        causes(&mut out, drawn);
    }
    deviations(&mut out, figures);
    out
}

/// The tables alone; `least`: so many lost requests are wanted of each cause.
pub fn text(figures: &Figures, least: u64) -> String {
    let mut out = String::new();
    totals(&mut out, figures);
    out.push_str("## Per cause\n\n");
    causes(&mut out, figures);
    short(&mut out, figures, least);
    provoked(&mut out, figures);
    confusion(&mut out, figures);
    layouts(&mut out, figures);
    latency(&mut out, figures);
    calibration(&mut out, figures);
    scenarios(&mut out, figures);
    out
}

fn totals(out: &mut String, f: &Figures) {
    let lost: u64 = f.causes.values().map(|c| c.lost).sum();
    let right: u64 = f.causes.values().map(|c| c.right).sum();
    let share = |of: Option<f64>| of.map_or("–".into(), |x| format!("{:.2}%", 100.0 * x));
    let _ = writeln!(
        out,
        "{lost} lost requests, {right} with a right verdict. Mean over causes: precision {}, recall {}. \
         Verdicts that blame a wrong cause or are about no lost request: {}. Incidents of a wrong pod: {}. Wrong \
         `sub_cause`: {}. Wrong mechanism: {}. Truncated answers, not counted: {}. Requests whose client gave up: {}. Plays that came to no \
         end: {}.\n\n{} plays, {} pods. {} of the pods were stopped or under load at the same moment as others: they lost {} \
         requests, {} with a right verdict of their own pod.\n",
        share(f.macro_mean(OfCause::precision)),
        share(f.macro_mean(OfCause::recall)),
        f.false_blame(),
        f.wrong_pod,
        f.wrong_sub_cause,
        f.wrong_mechanism,
        f.truncated,
        f.unclear,
        f.unplayed,
        f.plays,
        f.pods,
        f.beside_pods,
        f.beside.lost,
        f.beside.right,
    );
    let controls = f.scenarios.iter().filter(|(name, _)| named(name).is_some_and(|s| s.cause.is_none()));
    let sum = controls
        .fold((0, 0, 0, 0), |sum, (_, s)| (sum.0 + s.plays, sum.1 + s.requests, sum.2 + s.lost, sum.3 + s.deviations));
    let _ = writeln!(
        out,
        "Pods of controls: {}, with {} requests. Lost by what they do not provoke: {}. Deviations: {}.\n",
        sum.0, sum.1, sum.2, sum.3
    );
}

fn causes(out: &mut String, f: &Figures) {
    out.push_str("| cause | lost | of those decided by the ledgers | right | missed | false | precision | recall |\n|---|--:|--:|--:|--:|--:|--:|--:|\n");
    for (cause, c) in &f.causes {
        let (precision, recall) = (c.precision(), c.recall());
        let _ = writeln!(
            out,
            "| `{cause}` | {} | {} | {} | {} | {} | {} | {} |",
            c.lost,
            c.decided,
            c.right,
            c.missed,
            c.false_claims,
            percent(precision.0, precision.1),
            percent(recall.0, recall.1)
        );
    }
    out.push('\n');
}

fn cell(c: &Count) -> String {
    if c.lost == c.right { c.lost.to_string() } else { format!("{} ({} not right)", c.lost, c.lost - c.right) }
}

fn provoked(out: &mut String, f: &Figures) {
    out.push_str("What the scenarios are there to provoke, with its `sub_cause`:\n\n| cause | sub cause | lost | right | share (95% lower bound) |\n|---|---|--:|--:|--:|\n");
    for ((cause, sub), c) in &f.provoked {
        let share = percent(c.right, c.lost);
        let _ = writeln!(out, "| `{cause}` | {} | {} | {} | {share} |", sub.unwrap_or("any"), c.lost, c.right);
    }
    out.push('\n');
}

fn layouts(out: &mut String, f: &Figures) {
    out.push_str("## Layouts\n\nLost requests of each cause by what they were lost on: the client's way into the pod, nginx's way to php-fpm, and who is\nPID 1.\n\n");
    let _ = writeln!(out, "| cause | {} |\n|---|{}", SIDES.join(" | "), "--:|".repeat(SIDES.len()));
    let lost: Vec<Cause> = f.causes.iter().filter(|(_, c)| c.lost > 0).map(|(cause, _)| *cause).collect();
    for cause in lost {
        let of = |side: &&'static str| f.layouts.get(&(cause, *side)).map_or("–".into(), cell);
        let cells: Vec<String> = SIDES.iter().map(of).collect();
        let _ = writeln!(out, "| `{cause}` | {} |", cells.join(" | "));
    }
    out.push('\n');
}

fn confusion(out: &mut String, f: &Figures) {
    out.push_str("## Confusion, mechanisms, sub causes\n\n| cause | wrong verdicts said | mechanisms of the right ones | sub causes |\n|---|---|---|---|\n");
    for (cause, c) in f.causes.iter().filter(|(_, c)| c.lost > 0) {
        let confused = counts(c.confused.iter().map(|(name, n)| (*name, n)));
        let mechanisms = counts(c.mechanisms.iter().map(|(name, n)| (*name, n)));
        let subs = counts(c.sub_causes.iter().map(|(name, n)| (if name.is_empty() { "none" } else { name }, n)));
        let confused = if confused.is_empty() { "–".into() } else { confused };
        let _ = writeln!(out, "| `{cause}` | {confused} | {mechanisms} | {subs} |");
    }
    out.push_str("\nWhat the ledgers say of how a request was lost (what the client saw, whether php had begun it, what nginx logged), and the\nmechanism that its verdict names:\n\n| seen | verdicts | mechanisms | not right |\n|---|--:|---|--:|\n");
    let mut seen: BTreeMap<&str, Vec<(&str, &u64, u64)>> = BTreeMap::new();
    for ((outcome, mechanism), (n, wrong)) in &f.mechanisms {
        seen.entry(outcome).or_default().push((mechanism, n, *wrong));
    }
    for (outcome, of) in seen {
        let (sum, wrong): (u64, u64) = of.iter().fold((0, 0), |sum, (_, n, wrong)| (sum.0 + **n, sum.1 + wrong));
        let named = counts(of.into_iter().map(|(name, n, _)| (name, n)));
        let _ = writeln!(out, "| {outcome} | {sum} | {named} | {wrong} |");
    }
    out.push('\n');
}

fn latency(out: &mut String, f: &Figures) {
    out.push_str(
        "## Latency\n\nms. *Decided*: from the last fact of a verdict's chain to the time at which it was final, in the\nsequence of events. *Read*: to the time at which a reader had its line, with everything between the kernel and the pipe.\n*Window*: the longest from a loss to its verdict; every rule waits the same time.\n\n| cause | decided p50 | p99 | read p50 | p99 | window |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for (cause, c) in f.causes.iter().filter(|(_, c)| c.right > 0) {
        let (d, r) = (&c.decided_after, &c.read_after);
        let at = |values, share| ms(percentile(values, share));
        let _ = writeln!(
            out,
            "| `{cause}` | {} | {} | {} | {} | {} |",
            at(d, 0.5),
            at(d, 0.99),
            at(r, 0.5),
            at(r, 0.99),
            ms(Some(c.window))
        );
    }
    out.push('\n');
}

fn calibration(out: &mut String, f: &Figures) {
    out.push_str("## Calibration\n\nOf the verdicts of each confidence, how many were right; [confidence](confidence.md) says what the number\nis made of. Calibrated means: no bin is right less often than it says (`unexplained` says nothing). Verdicts about no lost\nrequest count as wrong.\n\n| confidence | verdicts | right | share (95% bounds) | |\n|--:|--:|--:|--:|---|\n");
    for (bin, low, high) in BINS {
        let (n, right) = f.calibration.range(low..high).fold((0, 0), |sum, (_, of)| (sum.0 + of.0, sum.1 + of.1));
        let note = match wilson(right, n) {
            _ if n == 0 => "none given",
            _ if low == 0 => "",
            (_, most) if most < f64::from(low) / 100.0 => "**claims too much**",
            _ => "holds",
        };
        let _ = writeln!(out, "| {bin} | {n} | {right} | {} | {note} |", between(right, n));
    }
    let (n, right) = f.from_confidence(95);
    let _ = writeln!(out, "| **≥ 0.95** | {n} | {right} | {} | {} |\n", between(right, n), claim(n, right));
    curve(out, f);
}

/// The claim: of the verdicts that are given as certain, 99% and more are right.
fn claim(n: u64, right: u64) -> &'static str {
    match right as f64 >= 0.99 * n as f64 {
        _ if n == 0 => "none given",
        true => "the claim of 99% holds",
        false => "**below the claim of 99%**",
    }
}

/// Each value that was given: `o` is the share that was right, `|` the lower bound of it, `+` what the number says.
fn curve(out: &mut String, f: &Figures) {
    const WIDTH: usize = 50;
    let column = |share: f64| (share.clamp(0.0, 1.0) * WIDTH as f64).round() as usize;
    out.push_str("Each value that was given: `o` the share that was right, `|` its lower bound, `+` what the value says.\n\n```\n");
    for (confidence, (n, right)) in f.calibration.range(1..).rev() {
        let mut line = vec![' '; WIDTH + 1];
        line[column(f64::from(*confidence) / 100.0)] = '+';
        line[column(wilson(*right, *n).0)] = '|';
        line[column(*right as f64 / *n as f64)] = 'o';
        let line: String = line.into_iter().collect();
        let _ = writeln!(out, "{:.2} {line} {right} of {n}", f64::from(*confidence) / 100.0);
    }
    let _ = writeln!(out, "     0%{:>w$}\n```\n", "100%", w = WIDTH - 1);
}

fn between(hits: u64, n: u64) -> String {
    if n == 0 {
        return "–".into();
    }
    let (low, high) = wilson(hits, n);
    format!("{:.1}% ({:.1} to {:.1}%)", 100.0 * hits as f64 / n as f64, 100.0 * low, 100.0 * high)
}

/// Hundredths, from and below.
const BINS: [(&str, u32, u32); 7] = [
    ("0.99 and 1", 99, 101),
    ("0.97 and 0.98", 97, 99),
    ("0.95 and 0.96", 95, 97),
    ("0.90 to 0.94", 90, 95),
    ("0.70 to 0.89 (likely)", 70, 90),
    ("0.01 to 0.69 (possible)", 1, 70),
    ("0 (unexplained)", 0, 1),
];

/// What a cause lacks of the figures that are wanted.
fn short(out: &mut String, f: &Figures, least: u64) {
    let _ = writeln!(
        out,
        "## What falls short\n\nWanted: no cause below 97% in precision or recall, and {least} lost requests of each. Reasons are in the remarks.\n"
    );
    let mut lines = Vec::new();
    for (cause, c) in &f.causes {
        for (what, (hits, n)) in [("precision", c.precision()), ("recall", c.recall())] {
            if n > 0 && (hits as f64) < 0.97 * n as f64 {
                lines.push(format!("`{cause}`: {what} {}", percent(hits, n)));
            }
        }
    }
    for cause in all().iter().filter_map(|s| s.cause).collect::<BTreeSet<_>>() {
        let lost = f.causes.get(&cause).map_or(0, |c| c.lost);
        if lost < least {
            lines.push(format!("`{cause}`: {lost} lost requests"));
        }
    }
    let judged = |c: &&Cause| !c.not_the_server() && **c != Cause::Unexplained;
    let provoked: BTreeSet<Cause> = all().iter().filter_map(|s| s.cause).collect();
    let never = Cause::ALL.iter().filter(judged).filter(|c| !provoked.contains(c) && !f.causes.contains_key(c));
    lines.extend(never.map(|c| format!("`{c}`: no scenario provokes it")));
    if lines.is_empty() {
        lines.push("Nothing.".into());
    }
    lines.iter().for_each(|line| {
        let _ = writeln!(out, "- {line}");
    });
    out.push('\n');
}

fn scenarios(out: &mut String, f: &Figures) {
    out.push_str("## Scenarios\n\nThose without a cause are controls: whatever they lose is not the server's doing, or their own.\n\n| scenario | provokes | plays | requests | lost | deviations |\n|---|---|--:|--:|--:|--:|\n");
    for (name, s) in &f.scenarios {
        let cause = named(name).and_then(|s| s.cause).map_or("–".into(), |c| format!("`{c}`"));
        let _ = writeln!(out, "| {name} | {cause} | {} | {} | {} | {} |", s.plays, s.requests, s.lost, s.deviations);
    }
    out.push('\n');
}

fn deviations(out: &mut String, f: &Figures) {
    let _ = writeln!(out, "## Deviations\n");
    if f.deviations.is_empty() {
        out.push_str("None.\n");
        return;
    }
    for line in f.deviations.iter().take(40) {
        let _ = writeln!(out, "- {}", line.replace('|', "\\|"));
    }
    if f.deviations.len() > 40 {
        let _ = writeln!(out, "- … and {} more", f.deviations.len() - 40);
    }
}

const HEAD: &str = "the output of one series, except for the remarks at its end. Deviations are all of that series; the recording and the ledger of
each are kept (`--keep`).

First every scenario is played so many times (`--runs`), each time on another layout; then those are played again of whose
cause fewer requests were lost than are wanted (`--at-least`); then dice choose (`--shuffle`) the scenario, the layout, the time
between its acts (5 to 3000 ms), ports, program names and how many connections there are. Every second round has no probes in
nginx. In each round some plays have several pods: two that are stopped at one moment for different causes, such a pair beside
ten pods under load that nothing happens to, a stop without a loss beside a pod that answers 502 by itself.

Every scenario is a pod of real nginx and php-fpm under load, in network and pid namespaces and cgroups of its own, to which
one thing happens. why502 watches the kernel beside it. Then each request of the client's ledger (which connection, what was
sent, how it ended) is compared with the incidents: one for each lost request, none for any other, with a cause and a mechanism
that are right for it. What is right follows from the scenario, from what the client saw, from what the php scripts wrote down
when they started and ended, and from what nginx's error log says of requests that it could not pass on (refused, queue full,
no port, no way, ended, no server left, an invalid answer); nothing of it is why502's own.

Where these ledgers leave more than one cause (a connection that was reset may have waited in the queue or have just been
taken), each of them counts as right; the second column says for how many they leave one. Requests that an nginx answered
with 502 are joined to incidents by time, because the connection between the servers has no number in any ledger: within one
moment causes and mechanisms must be right as a set. Bounds are the lower ends of Wilson's 95% intervals.

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_no_figure_that_was_not_measured() {
        let mut figures = Figures::default();
        let of = OfCause {
            lost: 200,
            decided: 180,
            right: 199,
            missed: 1,
            decided_after: vec![700_000_000],
            ..OfCause::default()
        };
        figures.causes.insert(Cause::QuitThenTerm, of);
        figures.causes.insert(Cause::ClientAbort, OfCause { false_claims: 1, ..OfCause::default() });
        figures.calibration.insert(99, (199, 199));
        let text = text(&figures, 200);
        assert!(
            text.contains("| `quit-then-term` | 200 | 180 | 199 | 1 | 0 | 100.0% (≥ 98.1%) | 99.5% (≥ 97.2%) |"),
            "{text}"
        );
        assert!(text.contains("| `client-abort` | 0 | 0 | 0 | 0 | 1 | 0.0% (≥ 0.0%) | – |"), "{text}");
        assert!(text.contains("| `quit-then-term` | 700 | 700 | – | – | 0 |"), "{text}");
        assert!(
            text.contains("| **≥ 0.95** | 199 | 199 | 100.0% (98.1 to 100.0%) | the claim of 99% holds |"),
            "{text}"
        );
        assert!(text.contains("- `client-abort`: precision 0.0%") && !text.contains("- `quit-then-term`"));
    }
}
