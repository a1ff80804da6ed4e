//! What was played, as sections of docs/kubernetes.md.

use super::operator::{Row, Seen, Shown};
use super::stories::{Played, Story};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::path::Path;
use why502::model::incident::Incident;

/// Where a section is in the page.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    begin: &'static str,
    end: &'static str,
}

/// Of the stories.
pub const STORIES: Place =
    Place { begin: "<!-- cluster: begin, written by `cargo xtask cluster` -->\n", end: "<!-- cluster: end -->\n" };
/// Of the chart.
pub const CHART: Place =
    Place { begin: "<!-- chart: begin, written by `cargo xtask cluster --chart` -->\n", end: "<!-- chart: end -->\n" };
/// Lines of an output that are shown, and bytes of a line.
const LINES: usize = 40;
const WIDTH: usize = 240;

/// What an operator saw, by profile.
pub fn chart(about: &str, seen: &[(&str, Seen)]) -> String {
    let mut text = format!("{about}\n\n");
    text += "| profile | what was done | lost of requests | explained | causes |\n|---|---|---|---|---|\n";
    for (profile, row) in seen.iter().flat_map(|(profile, s)| s.rows.iter().map(move |row| (profile, row))) {
        let Row { name, command, lost, requests, result } = row;
        let causes: Vec<String> = result.by_cause.iter().map(|(cause, n)| format!("{n} `{cause}`")).collect();
        let (explained, causes) = (result.explained, causes.join(", "));
        let _ = writeln!(text, "| {profile} | {name}: `{command}` | {lost} of {requests} | {explained} | {causes} |");
    }
    for Shown { title, command, output } in seen.iter().flat_map(|(_, s)| &s.shown) {
        let mut lines: Vec<String> = output.trim_end().lines().map(shortened).collect();
        let more = lines.len().saturating_sub(LINES);
        if more > 0 {
            lines.truncate(LINES);
            lines.push(format!("… ({more} more lines)"));
        }
        let title = if title.is_empty() { String::new() } else { format!("{title}\n\n") };
        let _ = write!(text, "\n{title}```console\n$ {command}\n{}\n```\n", lines.join("\n"));
    }
    text
}

fn shortened(line: &str) -> String {
    let line = line.trim_end();
    if line.len() <= WIDTH { line.to_owned() } else { format!("{}…", &line[..line.floor_char_boundary(WIDTH)]) }
}

/// The stories' text.
pub fn render(about: &str, played: &[(&Story, Played)]) -> String {
    let mut text = format!("{about}\n\n");
    text += "| what was done | lost of requests | explained | cause | trigger |\n|---|---|---|---|---|\n";
    for (story, p) in played {
        let _ = writeln!(
            text,
            "| {}: `{}` | {} of {} | {} | `{}` | `{}` |",
            story.name, story.command, p.lost, p.requests, p.result.explained, story.cause, story.trigger
        );
    }
    text += "\nOne chain of each, effect first:\n";
    for (story, p) in played {
        let _ = write!(text, "\n**{}**\n\n```\n{}```\n", story.name, chain(&p.told));
    }
    text
}

fn chain(told: &Incident) -> String {
    let mut text = format!("{}\n", told.summary);
    for link in &told.chain {
        let _ = writeln!(text, "  {}", link.text);
    }
    for m in &told.missing {
        let _ = writeln!(text, "  missing: {} ({})", m.fact, m.effect);
    }
    text
}

/// Puts a section into a file, in the place of the one that is there.
pub fn put(file: &Path, place: Place, section: &str) -> Result<()> {
    let Place { begin, end } = place;
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let (head, rest) = text.split_once(begin).with_context(|| format!("{} has no place for it", file.display()))?;
    let (_, tail) = rest.split_once(end).with_context(|| format!("the section of {} has no end", file.display()))?;
    ensure!(!section.contains(end), "the section contains its own end");
    std::fs::write(file, format!("{head}{begin}{section}{end}{tail}")).with_context(|| file.display().to_string())
}
