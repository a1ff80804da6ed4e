//! More lost requests than bars can show: how many were open, and how many were lost, in each slice of the picture.

use super::html::{Html, Px};
use super::scene::Request;
use super::svg::{CHART_W, bar_class, width_of_shown};
use crate::model::BootNs;
use crate::model::incident::Outcome;

/// Width of a slice, px.
const SLICE: f64 = 6.0;
const HALF: f64 = 64.0;
const GAP: f64 = 22.0;
/// Both halves with their captions.
pub(super) const HEIGHT: f64 = 2.0 * (HALF + GAP);
const SLICES: usize = (CHART_W / SLICE) as usize + 1;

/// Per slice, per outcome.
type Counts = Vec<[u64; 4]>;

fn index(outcome: Outcome) -> usize {
    Outcome::ALL.iter().position(|o| *o == outcome).unwrap_or(0)
}

fn slice(x: f64) -> usize {
    ((x / SLICE).max(0.0) as usize).min(SLICES - 1)
}

pub(super) fn draw(requests: &[Request], x: impl Fn(BootNs) -> f64, y: f64, html: &mut Html) {
    let (mut open, mut lost): (Counts, Counts) = (vec![[0; 4]; SLICES], vec![[0; 4]; SLICES]);
    for r in requests {
        let (at, kind) = (slice(x(r.at)), index(r.outcome));
        lost[at][kind] += r.weight;
        if let Some(from) = r.from {
            for counts in &mut open[slice(x(from))..=at] {
                counts[kind] += r.weight;
            }
        }
    }
    half("open, and lost later", &open, y, html);
    half("lost", &lost, y + HALF + GAP, html);
}

fn half(what: &str, counts: &Counts, y: f64, html: &mut Html) {
    let most = counts.iter().map(|c| c.iter().sum::<u64>()).max().unwrap_or(0);
    let caption = format!("{what}: up to {most} in one slice");
    let bottom = y + GAP - 4.0 + HALF;
    // Where nothing is in its way: the caption stands above its half.
    html.tag("rect")
        .class("plate")
        .px("x", 0.0)
        .px("y", y)
        .px("width", width_of_shown(&caption, 11.0) + 12.0)
        .px("height", 15.0)
        .empty();
    html.tag("text").class("small").px("x", 6.0).px("y", y + 11.0).text(&caption);
    html.tag("line").class("row").px("x1", 0.0).px("y1", bottom).px("x2", CHART_W).px("y2", bottom).empty();
    if most == 0 {
        return;
    }
    for (n, kinds) in counts.iter().enumerate().filter(|(_, kinds)| kinds.iter().any(|k| *k > 0)) {
        let mut top = bottom;
        let said: Vec<String> = Outcome::ALL
            .iter()
            .zip(kinds)
            .filter(|(_, k)| **k > 0)
            .map(|(outcome, k)| format!("{k} {outcome}"))
            .collect();
        html.tag("g").class("slice").body(|html| {
            html.tag("title").text(&format!("{what} here: {}", said.join(", ")));
            for (outcome, k) in Outcome::ALL.iter().zip(kinds).filter(|(_, k)| **k > 0) {
                // One of a thousand is still to be seen.
                let h = (HALF * *k as f64 / most as f64).max(2.0);
                top -= h;
                html.tag("rect")
                    .class(bar_class(*outcome))
                    .num("x", Px(n as f64 * SLICE))
                    .px("y", top)
                    .px("width", SLICE - 1.0)
                    .px("height", h)
                    .empty();
            }
        });
    }
}
