//! A stop: verdict and advice on top, the picture, and the same facts as tables.

use super::facts;
use super::html::{Html, component};
use super::scene::{self, Scene};
use super::svg::{self, Plan};
use super::{StopPage, words};
use crate::model::incident::{Cause, Incident, Outcome, Stop};
use std::collections::BTreeMap;

/// Requests that are listed one by one.
const LISTED_MAX: usize = 200;
/// Up to here without being asked.
const OPEN_MAX: usize = 12;

pub(super) fn title(page: &StopPage) -> String {
    let mut servers: Vec<&str> = [page.stop].into_iter().chain(page.others).map(|s| s.server.as_str()).collect();
    servers.sort_unstable();
    servers.dedup();
    let stop = page.stop;
    format!("{} in {} stopped", servers.join(" and "), words::pod(stop.pod.as_ref(), stop.container.as_ref()))
}

/// `ids`: what the ids of this section begin with; `served`: there are pages of the incidents.
pub(super) fn section(page: &StopPage, ids: &str, served: bool, html: &mut Html) {
    let stops: Vec<&Stop> = [page.stop].into_iter().chain(page.others).collect();
    let scene = scene::scene(&stops, page.incidents);
    html.tag("section").class("stop").num("id", format_args!("{ids}stop")).body(|html| {
        html.tag("h1").text(&title(page));
        subtitle(page.stop, html);
        verdict(page, &stops, html);
        facts::advice(&merged(&stops), html);
        html.tag("h2").text("Timeline");
        match &scene {
            Some(scene) => picture(scene, ids, html),
            None => html.tag("p").text("Nothing of this stop has a time: there is no picture."),
        }
        if let Some(scene) = &scene {
            steps(scene, page.stop, ids, html);
        }
        losses(page, scene.as_ref(), served, html);
        facts::missing(&page.stop.missing, html);
        html.tag("p").class("sub").body(|html| {
            html.text("id ");
            html.tag("code").text(&page.stop.id);
            html.text(" on ");
            html.text(&page.stop.node);
        });
    });
}

fn subtitle(stop: &Stop, html: &mut Html) {
    html.tag("p").class("sub").body(|html| {
        html.text(&words::moment(&stop.at));
        html.text(&format!(", {}, trigger {}", stop.signal.as_deref().unwrap_or("no signal seen"), stop.trigger));
        if let Some(workload) = stop.pod.as_ref().and_then(|p| p.workload.as_ref()) {
            html.text(&format!(", {workload}"));
        }
        if let Some(container) = &stop.container {
            let name = container.name.as_deref().unwrap_or("container");
            html.text(&format!(", {name} {}", words::short(&container.id, 13)));
        }
    });
}

fn verdict(page: &StopPage, stops: &[&Stop], html: &mut Html) {
    let lost: u64 = stops.iter().map(|s| s.incidents).sum();
    let class = if lost == 0 { "verdict none" } else { "verdict" };
    html.tag("div").class(class).body(|html| {
        html.tag("p").class("big").text(&match lost {
            0 => "No request was lost.".to_string(),
            1 => "1 request was lost.".to_string(),
            n => format!("{n} requests were lost."),
        });
        let mut by_cause: BTreeMap<&str, u64> = BTreeMap::new();
        for (cause, n) in stops.iter().flat_map(|s| &s.by_cause) {
            *by_cause.entry(cause.as_str()).or_default() += n;
        }
        let mut causes: Vec<(&str, u64)> = by_cause.into_iter().collect();
        causes.sort_by_key(|(cause, n)| (std::cmp::Reverse(*n), *cause));
        for (cause, n) in causes {
            html.tag("p").body(|html| {
                html.tag("b").text(&n.to_string());
                html.text(" ");
                html.tag("span").class("cause").text(cause);
                let mut of_it = page.incidents.iter().filter(|i| i.cause.id() == cause).map(|i| &i.summary);
                if let Some(example) = of_it.next() {
                    let alike = of_it.all(|summary| summary == example);
                    html.text(if alike { ": " } else { ", the first: " });
                    html.text(example);
                }
            });
        }
        numbers(page.stop, html);
    });
}

fn numbers(stop: &Stop, html: &mut Html) {
    let f = &stop.in_flight;
    let mut all: Vec<(&str, String)> = Vec::new();
    match (f.at_signal, f.answered) {
        (Some(0), _) if f.cut == 0 => all.push(("in flight at the signal", "none".into())),
        (Some(n), answered) => {
            let answered = answered.map(|n| format!(", {n} answered")).unwrap_or_default();
            all.push(("in flight at the signal", format!("{n}{answered}, {} cut", f.cut)));
        }
        (None, _) if f.cut > 0 => all.push(("cut", f.cut.to_string())),
        _ => {}
    }
    all.extend(f.longest_ms.map(|ms| ("longest request, at least", words::ms(ms))));
    all.extend(f.drain_ms.map(|ms| ("last answer after the signal", words::ms(ms))));
    all.extend(stop.accepted_after.filter(|a| a.count > 0).map(|a| ("accepted after the signal", a.count.to_string())));
    all.extend(stop.late.filter(|a| a.count > 0).map(|a| ("came when nobody listened", a.count.to_string())));
    if let Some(g) = &stop.grace {
        let left =
            if g.left_ms > 0 { format!("{} left", words::ms(g.left_ms.unsigned_abs())) } else { "all used".into() };
        all.push(("grace period", format!("{}, {left}", words::ms(g.ms))));
    }
    if all.is_empty() {
        return;
    }
    html.tag("ul").class("facts").body(|html| {
        for (name, value) in all {
            html.tag("li").body(|html| {
                html.text(name);
                html.text(" ");
                html.tag("b").text(&value);
            });
        }
    });
}

fn merged(stops: &[&Stop]) -> Vec<crate::model::incident::Advice> {
    let mut all = Vec::new();
    for stop in stops {
        crate::explain::advice::merge(&mut all, &stop.advice);
    }
    all
}

fn picture(scene: &Scene, ids: &str, html: &mut Html) {
    html.tag("a").class("skip").num("href", format_args!("#{ids}steps")).text("Skip the picture: the same as a table");
    html.tag("figure").body(|html| {
        let label = "Timeline of the stop; the tables below say the same";
        // It can be scrolled by keys, so it has to take the focus.
        html.tag("div").class("picture").attr("tabindex", "0").attr("role", "region").attr("aria-label", label).body(|html| {
            let mut plan = Plan::new(scene, ids);
            plan.labels(html);
            plan.chart(html, label);
        });
        legend(scene, html);
        html.tag("figcaption").text(
            "Times count from the stop signal to the container. The longer a gap, the more it is shortened (by its \
             logarithm), so that a tenth of a millisecond and half a minute are both to be seen. Numbers lead to the table below.",
        );
    });
}

fn legend(scene: &Scene, html: &mut Html) {
    let requests = || scene.servers.iter().flat_map(|s| &s.requests);
    html.tag("ul").class("legend").body(|html| {
        let outcomes = Outcome::ALL.iter().filter(|o| requests().any(|r| r.outcome == **o));
        for outcome in outcomes {
            html.tag("li").body(|html| {
                html.tag("svg").num("width", 26).num("height", 12).attr("aria-hidden", "true").body(|html| {
                    let class = svg::bar_class(*outcome);
                    html.tag("rect").class(class).num("x", 0).num("y", 2).num("width", 19).num("height", 8).empty();
                    svg::mark(*outcome, 19.0, 6.0, 4.5, html);
                });
                html.text(&format!("{outcome}: {}", facts::meaning(*outcome)));
            });
        }
        let mut swatch = |class: &'static str, what: &str| {
            html.tag("li").body(|html| {
                html.tag("svg").num("width", 26).num("height", 12).attr("aria-hidden", "true").body(|html| {
                    html.tag("rect").class(class).num("x", 0).num("y", 2).num("width", 24).num("height", 8).empty();
                });
                html.text(what);
            });
        };
        if scene.servers.iter().any(|s| s.answered.is_some()) {
            swatch("bar answered", "answered after the signal, counted together");
        }
        swatch("life", "process is there");
        swatch("life open", "port is open");
    });
}

fn steps(scene: &Scene, stop: &Stop, ids: &str, html: &mut Html) {
    html.tag("h2").num("id", format_args!("{ids}steps")).text("What happened");
    html.tag("div").class("scroll").body(|html| {
        html.tag("table").body(|html| {
            facts::heads(
                &[("n", "no."), ("n", "since the signal"), ("", "who"), ("", "what"), ("t wide", "event")],
                html,
            );
            html.tag("tbody").body(|html| {
                for (n, step) in scene.steps.iter().enumerate() {
                    html.tag("tr").num("id", format_args!("{ids}step-{}", n + 1)).body(|html| {
                        html.tag("td").class("n").body(|html| {
                            html.tag("a").num("href", format_args!("#{ids}mark-{}", n + 1)).text(&(n + 1).to_string());
                        });
                        html.tag("td").class("n").text(&words::exactly(scene.zero, step.at));
                        html.tag("td").text(&step.who);
                        html.tag("td").body(|html| {
                            html.text(&step.text);
                            if step.count > 1 {
                                let more = step.count - 1;
                                let last = words::exactly(scene.zero, step.until);
                                html.text(&format!("; {more} more like it, the last at {last}"));
                            }
                        });
                        html.tag("td").class("t wide").text(step.event.as_deref().unwrap_or(""));
                    });
                }
            });
        });
    });
    let cut = scene.cut + stop.timeline.cut;
    if cut > 0 {
        html.tag("p").class("sub").text(&format!("{cut} more signals, exits and closes are left out here."));
    }
}

/// Losses that have cause, way and outcome in common.
type Groups<'i> = BTreeMap<(Cause, Option<&'i str>, &'static str, Outcome), Vec<&'i Incident>>;

fn losses(page: &StopPage, scene: Option<&Scene>, served: bool, html: &mut Html) {
    let mut groups: Groups = BTreeMap::new();
    for i in page.incidents {
        groups.entry((i.cause, i.sub_cause.as_deref(), i.mechanism.id(), i.outcome)).or_default().push(i);
    }
    if groups.is_empty() {
        return;
    }
    let zero = scene.map_or(0, |s| s.zero);
    html.tag("h2").text("Lost requests");
    html.tag("div").class("scroll").body(|html| {
        html.tag("table").body(|html| {
            let names = [
                ("n", "requests"),
                ("", "cause"),
                ("", "how"),
                ("", "outcome"),
                ("n", "when"),
                ("n wide", "age"),
                ("wide", "sure"),
            ];
            facts::heads(&names, html);
            html.tag("tbody").body(|html| {
                let mut sorted: Vec<_> = groups.iter().collect();
                sorted.sort_by_key(|(key, all)| (std::cmp::Reverse(all.len()), **key));
                for ((cause, sub, mechanism, outcome), all) in sorted {
                    html.tag("tr").body(|html| {
                        html.tag("td").class("n").text(&all.len().to_string());
                        let sub = sub.map(|s| format!("/{s}")).unwrap_or_default();
                        html.tag("td").body(|html| html.tag("span").class("cause").text(&format!("{cause}{sub}")));
                        html.tag("td").text(mechanism);
                        html.tag("td").body(|html| facts::outcome(*outcome, html));
                        let times = || all.iter().map(|i| i.at_boot_ns);
                        let said = |t: Option<u64>| t.map(|t| words::since(zero, t)).unwrap_or_default();
                        html.tag("td").class("n").text(&range(said(times().min()), said(times().max())));
                        let ages = || all.iter().filter_map(|i| i.age_ms);
                        let said = |ms: Option<u64>| ms.map(words::ms).unwrap_or_default();
                        html.tag("td").class("n wide").text(&range(said(ages().min()), said(ages().max())));
                        let sure = all.iter().map(|i| i.confidence.level).max();
                        html.tag("td").class("wide").text(sure.map_or("", |level| level.id()));
                    });
                }
            });
        });
    });
    if page.left_out > 0 {
        html.tag("p").class("sub").text(&format!("{} more are not shown here.", page.left_out));
    }
    for all in groups.values() {
        html.tag("details").body(|html| {
            html.tag("summary").text(&format!("How the first {} ({}) came about", all[0].outcome, all[0].cause));
            facts::chain(all[0], html);
        });
    }
    listed(page.incidents, zero, served, html);
}

fn range(from: String, to: String) -> String {
    if from == to { from } else { format!("{from} … {to}") }
}

fn listed(incidents: &[Incident], zero: u64, served: bool, html: &mut Html) {
    let shown = &incidents[..incidents.len().min(LISTED_MAX)];
    html.tag("details").flag("open", shown.len() <= OPEN_MAX).body(|html| {
        html.tag("summary").text(&match incidents.len() {
            n if n > shown.len() => format!("The first {} requests one by one", shown.len()),
            _ => "Each request".to_string(),
        });
        html.tag("div").class("scroll").body(|html| {
            html.tag("table").body(|html| {
                let names =
                    [("n", "lost at"), ("n", "age"), ("", "from"), ("", "to"), ("", "outcome"), ("wide", "cause")];
                facts::heads(&names, html);
                html.tag("tbody").body(|html| {
                    for i in shown {
                        html.tag("tr").num("id", component(&i.id)).body(|html| {
                            html.tag("td").class("n").body(|html| {
                                let when = words::exactly(zero, i.at_boot_ns);
                                match served {
                                    true => html
                                        .tag("a")
                                        .num("href", format_args!("../incident/{}", component(&i.id)))
                                        .text(&when),
                                    false => html.text(&when),
                                }
                            });
                            html.tag("td").class("n").text(&i.age_ms.map(words::ms).unwrap_or_default());
                            html.tag("td").text(&words::requester(i));
                            html.tag("td").text(&words::address(i));
                            html.tag("td").body(|html| facts::outcome(i.outcome, html));
                            html.tag("td").class("wide").text(i.cause.id());
                        });
                    }
                });
            });
        });
    });
}
