//! One lost request in full.

use super::html::{Html, component};
use super::{facts, words};
use crate::model::incident::Incident;

pub(super) fn title(i: &Incident) -> String {
    format!("Request to {} lost: {}", words::pod(i.pod.as_ref(), i.container.as_ref()), i.cause)
}

pub(super) fn section(i: &Incident, served: bool, html: &mut Html) {
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
        html.tag("h2").text("How it came about");
        facts::chain(i, html);
        facts::advice(&i.advice, html);
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
