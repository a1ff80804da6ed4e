//! What stops and incidents have in common on a page: advice, what is missing, a chain.

use super::html::Html;
use super::words;
use crate::model::incident::{Advice, Incident, Missing, Outcome};

pub(super) fn advice(all: &[Advice], html: &mut Html) {
    if all.is_empty() {
        return;
    }
    html.tag("h2").text(if all.len() > 1 { "What to change (all of it together)" } else { "What to change" });
    html.tag("ul").class("advice").body(|html| {
        for a in all {
            html.tag("li").body(|html| {
                html.tag("details").body(|html| {
                    html.tag("summary").body(|html| {
                        html.tag("b").text(&a.target);
                        html.text(": ");
                        html.tag("code").text(&a.change);
                    });
                    html.tag("span").class("why").text(&a.why);
                });
            });
        }
    });
}

pub(super) fn missing(all: &[Missing], html: &mut Html) {
    if all.is_empty() {
        return;
    }
    html.tag("h2").text("What is not known");
    html.tag("ul").body(|html| {
        for m in all {
            html.tag("li").body(|html| {
                html.tag("code").text(&m.fact);
                html.text(": ");
                html.text(&m.effect);
            });
        }
    });
}

/// In the order in which things happened: the trigger first.
pub(super) fn chain(i: &Incident, html: &mut Html) {
    html.tag("ol").class("chain").body(|html| {
        for link in i.told() {
            html.tag("li").body(|html| {
                let us = link.offset_us;
                let sign = if us < 0 { "\u{2212}" } else { "+" };
                html.tag("b").text(&match us {
                    0 => "0".to_string(),
                    _ => format!("{sign}{}", words::span(us.unsigned_abs().saturating_mul(1000))),
                });
                html.text(" ");
                html.text(&link.text);
                html.text(" ");
                html.tag("code").text(&link.id);
            });
        }
    });
}

pub(super) fn outcome(outcome: Outcome, html: &mut Html) {
    let class = match outcome {
        Outcome::Unanswered => "outcome unanswered",
        Outcome::Truncated => "outcome truncated",
        Outcome::Refused => "outcome refused",
        Outcome::ErrorMade => "outcome error-made",
    };
    html.tag("span").class(class).text(outcome.id());
}

/// What an outcome means.
pub(super) fn meaning(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unanswered => "no byte of an answer",
        Outcome::Truncated => "a part of the answer",
        Outcome::Refused => "never accepted",
        Outcome::ErrorMade => "nginx answered 5xx itself",
    }
}

/// Header cells.
pub(super) fn heads(names: &[(&'static str, &'static str)], html: &mut Html) {
    html.tag("thead").body(|html| {
        html.tag("tr").body(|html| {
            for (class, name) in names {
                html.tag("th").attr("scope", "col").class(class).text(name);
            }
        });
    });
}
