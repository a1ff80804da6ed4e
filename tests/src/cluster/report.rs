//! What was played, as a section of docs/kubernetes.md.

use super::stories::{Played, Story};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::path::Path;
use why502::model::incident::Incident;

const BEGIN: &str = "<!-- cluster: begin, written by `cargo xtask cluster` -->\n";
const END: &str = "<!-- cluster: end -->\n";

/// The section's text.
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

/// Puts the section into a file, in the place of the one that is there.
pub fn put(file: &Path, section: &str) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let (head, rest) = text.split_once(BEGIN).with_context(|| format!("{} has no place for it", file.display()))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("the section of {} has no end", file.display()))?;
    ensure!(!section.contains(END), "the section contains its own end");
    std::fs::write(file, format!("{head}{BEGIN}{section}{END}{tail}")).with_context(|| file.display().to_string())
}
