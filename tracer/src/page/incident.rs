//! One lost request in full.

use super::html::{Html, component};
use super::{facts, words};
use crate::model::incident::{Advice, Incident};

/// Others of a kind that are listed one by one, and up to where without being asked.
const LISTED_MAX: usize = 200;
const OPEN_MAX: usize = 12;

pub(super) fn title(i: &Incident) -> String {
    format!("Request to {} lost: {}", words::pod(i.pod.as_ref(), i.container.as_ref()), i.cause)
}

/// They came about in one way, to one place.
pub(super) fn alike(a: &Incident, b: &Incident) -> bool {
    let of = |i: &Incident| {
        let place = i.pod.as_ref().map(|p| p.uid.clone()).or_else(|| i.container.as_ref().map(|c| c.id.clone()));
        (place, i.cause, i.sub_cause.clone(), i.mechanism, i.outcome, i.confidence.level)
    };
    of(a) == of(b)
}

/// Several that are alike: the first in full, the others in a table.
pub(super) fn group(all: &[&Incident], html: &mut Html) {
    let [first, others @ ..] = all else { return };
    let mut advice = Vec::new();
    all.iter().for_each(|i| crate::explain::advice::merge(&mut advice, &i.advice));
    body(first, &advice, false, html);
    if others.is_empty() {
        return;
    }
    html.tag("h2").text(&match others.len() {
        1 => "1 more was lost in the same way".to_string(),
        n => format!("{n} more were lost in the same way"),
    });
    html.tag("details").flag("open", others.len() <= OPEN_MAX).body(|html| {
        html.tag("summary").text("Each of them");
        html.tag("div").class("scroll").body(|html| {
            html.tag("table").body(|html| {
                facts::heads(&[("", "lost at"), ("n", "age"), ("", "from"), ("", "to"), ("", "why")], html);
                html.tag("tbody").body(|html| {
                    for i in others.iter().take(LISTED_MAX) {
                        html.tag("tr").num("id", component(&i.id)).body(|html| {
                            html.tag("td").class("t").text(&words::moment(&i.at));
                            html.tag("td").class("n").text(&i.age_ms.map(words::ms).unwrap_or_default());
                            html.tag("td").text(&words::requester(i));
                            html.tag("td").text(&words::address(i));
                            html.tag("td").text(&i.summary);
                        });
                    }
                });
            });
        });
        if others.len() > LISTED_MAX {
            html.tag("p").class("sub").text(&format!("{} more are not listed.", others.len() - LISTED_MAX));
        }
    });
}

pub(super) fn section(i: &Incident, served: bool, html: &mut Html) {
    body(i, &i.advice, served, html);
}

fn body(i: &Incident, advice: &[Advice], served: bool, html: &mut Html) {
    html.tag("section").class("stop").num("id", component(&i.id)).body(|html| {
        html.tag("h1").text(&title(i));
        html.tag("p").class("sub").text(&format!(
            "{}, {} → {}, mechanism {}, trigger {}",
            words::moment(&i.at),
            words::requester(i),
            words::address(i),
            i.mechanism,
            i.trigger
        ));
        html.tag("div").class("verdict").body(|html| {
            html.tag("p").class("big").text(&i.summary);
            html.tag("p").body(|html| {
                let sub = i.sub_cause.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
                html.tag("span").class("cause").text(&format!("{}{sub}", i.cause));
                html.text(" ");
                facts::outcome(i.outcome, html);
                html.text(&format!(" ({})", facts::meaning(i.outcome)));
            });
            html.tag("ul").class("facts").body(|html| {
                let mut fact = |name: &str, value: String| {
                    html.tag("li").body(|html| {
                        html.text(name);
                        html.text(" ");
                        html.tag("b").text(&value);
                    });
                };
                let sure = format!("{} ({:.2})", i.confidence.level, i.confidence.value);
                fact("sure:", sure);
                for why in &i.confidence.lowered_by {
                    fact("less sure because", why.clone());
                }
                if let Some(ms) = i.age_ms {
                    fact("lost after", words::ms(ms));
                }
                if let Some(status) = i.response.status {
                    fact("status", format!("{status} (from {})", i.response.source));
                }
                fact("lost:", words::requests(u64::from(i.requests.count), i.requests.bound));
                if !i.also_matched.is_empty() {
                    let also: Vec<&str> = i.also_matched.iter().map(|c| c.id()).collect();
                    fact("also matched", also.join(", "));
                }
            });
        });
        facts::advice(advice, html);
        html.tag("h2").text("How it came about");
        facts::chain(i, html);
        facts::missing(&i.missing, html);
        if i.loss.in_window > 0 {
            html.tag("p").text(&format!("{} events of this time were not seen.", i.loss.in_window));
        }
        html.tag("p").class("sub").body(|html| {
            html.text("id ");
            html.tag("code").text(&i.id);
            html.text(" on ");
            html.text(&i.node);
            if let Some(stop) = &i.stop {
                html.text(", part of ");
                match served {
                    true => html.tag("a").num("href", format_args!("../stop/{}", component(stop))).text("this stop"),
                    false => html.text(&format!("stop {stop}")),
                }
            }
        });
    });
}
