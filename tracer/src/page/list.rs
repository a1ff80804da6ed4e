//! Incidents and stops: as a list with filters, and all of a recording.

use super::html::{Html, component};
use super::{StopPage, facts, incident, stop, words};
use crate::model::Output;
use crate::model::incident::{Cause, Incident, Stop};
use std::collections::BTreeMap;

/// Rows of a page; what is more has pages of its own.
pub const ROWS_MAX: usize = 500;
/// Stops and lone incidents that a file shows in full.
const FULL_MAX: usize = 100;

/// As it came with the request: the form shows it again, and links to other pages keep it. Hostile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `all`, `incidents`, `stops`.
    pub kind: String,
    pub namespace: String,
    pub pod: String,
    pub workload: String,
    pub cause: String,
    pub since: String,
    pub until: String,
}

impl Filter {
    fn fields(&self) -> [(&'static str, &str); 7] {
        [
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("pod", &self.pod),
            ("workload", &self.workload),
            ("cause", &self.cause),
            ("since", &self.since),
            ("until", &self.until),
        ]
    }

    /// The query of a link that keeps it.
    fn query(&self, before: u64) -> String {
        let kept = self.fields().into_iter().filter(|(_, value)| !value.is_empty());
        let mut parts: Vec<String> = kept.map(|(name, value)| format!("{name}={}", component(value))).collect();
        parts.push(format!("before={before}"));
        format!("?{}", parts.join("&"))
    }
}

/// A page of the list.
#[derive(Clone, Copy, Debug)]
pub struct ListPage<'a> {
    pub node: &'a str,
    pub filter: &'a Filter,
    /// Newest first. Incidents of one stop are folded; at most [`ROWS_MAX`] rows are shown.
    pub rows: &'a [Output],
    /// Cursor of the next older page.
    pub older: Option<u64>,
    /// This is not the newest page.
    pub paged: bool,
    /// What is wrong with the filter.
    pub problem: Option<&'a str>,
    /// Why something may be missing here: a sentence each.
    pub notices: &'a [String],
}

pub(super) fn section(page: &ListPage, html: &mut Html) {
    html.tag("h1").text("Incidents and stops");
    let node = if page.node.is_empty() { "this node".into() } else { format!("node {}", page.node) };
    html.tag("p").class("sub").text(&format!("of {node}, newest first"));
    for notice in page.notices {
        html.tag("p").class("notice").attr("role", "status").text(notice);
    }
    form(page.filter, html);
    if let Some(problem) = page.problem {
        html.tag("p").class("notice").attr("role", "alert").text(problem);
    }
    if page.rows.is_empty() && page.problem.is_none() {
        html.tag("p").text("Nothing here: no request was lost and nothing was stopped, as far as this filter goes.");
    } else if !page.rows.is_empty() {
        html.tag("div").class("scroll").body(|html| {
            html.tag("table").class("list").body(|html| {
                let names = [("", "when"), ("", "what"), ("", "where"), ("", "why"), ("wide", "trigger")];
                facts::heads(&names, html);
                html.tag("tbody").body(|html| {
                    for (output, n) in folded(page.rows).into_iter().take(ROWS_MAX) {
                        row(output, n, html);
                    }
                });
            });
        });
    }
    html.tag("nav").class("pages").attr("aria-label", "Pages").body(|html| {
        if page.paged {
            html.tag("a").attr("href", "./").text("Newest");
        }
        if let Some(before) = page.older {
            html.tag("a").attr("rel", "next").attr("href", &page.filter.query(before)).text("Older");
        }
    });
}

fn form(filter: &Filter, html: &mut Html) {
    html.tag("form").attr("method", "get").attr("action", "./").attr("role", "search").body(|html| {
        select("kind", "show", &filter.kind, &["all", "incidents", "stops"], html);
        let causes: Vec<&str> = [""].into_iter().chain(Cause::ALL.iter().map(|c| c.id())).collect();
        select("cause", "cause", &filter.cause, &causes, html);
        for (name, value) in filter.fields().into_iter().filter(|(name, _)| !matches!(*name, "kind" | "cause")) {
            html.tag("label").body(|html| {
                html.text(name);
                let hint = match name {
                    "since" | "until" => "10m, or a UTC time",
                    "workload" => "Deployment/web",
                    _ => "",
                };
                html.tag("input").attr("name", name).attr("value", value).attr("placeholder", hint).empty();
            });
        }
        html.tag("button").attr("type", "submit").text("Filter");
    });
}

fn select(name: &'static str, label: &'static str, now: &str, all: &[&str], html: &mut Html) {
    html.tag("label").body(|html| {
        html.text(label);
        html.tag("select").attr("name", name).body(|html| {
            for value in all {
                let shown = if value.is_empty() { "any" } else { value };
                html.tag("option").attr("value", value).flag("selected", *value == now).text(shown);
            }
        });
    });
}

/// Incidents of one stop that have their cause and outcome in common are one row, with their number.
fn folded(rows: &[Output]) -> Vec<(&Output, usize)> {
    let mut out: Vec<(&Output, usize)> = Vec::new();
    let mut places = BTreeMap::new();
    for output in rows {
        let key = match output {
            Output::Incident(i) => i.stop.as_ref().map(|stop| (stop, i.cause, i.sub_cause.as_ref(), i.outcome)),
            Output::Stop(_) => None,
        };
        match key.map(|key| *places.entry(key).or_insert(out.len())) {
            Some(place) if place < out.len() => out[place].1 += 1,
            _ => out.push((output, 1)),
        }
    }
    out
}

fn row(output: &Output, n: usize, html: &mut Html) {
    html.tag("tr").body(|html| match output {
        Output::Stop(s) => {
            let lost = match s.incidents {
                0 => "nothing lost".to_string(),
                n => words::requests(n, crate::model::incident::Bound::Exact) + " lost",
            };
            when(&s.at, &format!("stop/{}", component(&s.id)), html);
            html.tag("td").body(|html| {
                html.tag("b").text(&format!("{} stopped", s.server));
                html.text(", ");
                let class = if s.incidents == 0 { "outcome answered" } else { "outcome unanswered" };
                html.tag("span").class(class).text(&lost);
            });
            place(s.pod.as_ref(), s.container.as_ref(), html);
            let mut by: Vec<(&String, u64)> = s.by_cause.iter().map(|(cause, n)| (cause, *n)).collect();
            by.sort_by_key(|(cause, n)| (std::cmp::Reverse(*n), *cause));
            let by: Vec<String> = by.into_iter().map(|(cause, n)| format!("{n} {cause}")).collect();
            html.tag("td").body(|html| {
                html.tag("span").class("cause").text(&by.join(", "));
                if let Some(first) = s.advice.first() {
                    let more =
                        if s.advice.len() > 1 { format!(", and {} more", s.advice.len() - 1) } else { String::new() };
                    html.tag("span").class("why").text(&format!("change {}: {}{more}", first.target, first.change));
                }
            });
            html.tag("td").class("trigger").text(s.trigger.id());
        }
        Output::Incident(i) => {
            when(&i.at, &format!("incident/{}", component(&i.id)), html);
            html.tag("td").body(|html| {
                if n > 1 {
                    html.tag("b").text(&format!("{n} × "));
                }
                facts::outcome(i.outcome, html);
                if let Some(stop) = &i.stop {
                    html.text(", ");
                    html.tag("a").num("href", format_args!("stop/{}", component(stop))).text("in a stop");
                }
            });
            place(i.pod.as_ref(), i.container.as_ref(), html);
            html.tag("td").body(|html| {
                html.tag("span").class("cause").text(i.cause.id());
                html.text(" ");
                html.text(&i.summary);
            });
            html.tag("td").class("trigger").text(i.trigger.id());
        }
    });
}

fn when(at: &str, link: &str, html: &mut Html) {
    html.tag("td").body(|html| html.tag("a").attr("href", link).text(&words::moment(at)));
}

fn place(
    pod: Option<&crate::model::incident::Pod>,
    container: Option<&crate::model::incident::Container>,
    html: &mut Html,
) {
    html.tag("td").body(|html| {
        html.text(&words::pod(pod, container));
        if let Some(workload) = pod.and_then(|p| p.workload.as_ref()) {
            html.tag("span").class("why").text(workload);
        }
    });
}

/// Stops with their pictures, then what belongs to none.
pub(super) fn all(name: &str, stops: &[Stop], incidents: &[Incident], left_out: u64, html: &mut Html) {
    let mut rest: Vec<&Stop> = stops.iter().collect();
    let mut shown = 0;
    while !rest.is_empty() && shown < FULL_MAX {
        let main = rest.remove(0);
        // One picture for one pod's end: the servers of a container, the containers of a pod.
        let (with, without): (Vec<&Stop>, Vec<&Stop>) = rest.into_iter().partition(|s| together(main, s));
        rest = without;
        let others: Vec<Stop> = with.into_iter().cloned().collect();
        let ids: Vec<&str> = [main].into_iter().chain(&others).map(|s| s.id.as_str()).collect();
        let of = |i: &&Incident| i.stop.as_deref().is_some_and(|stop| ids.contains(&stop));
        let incidents: Vec<Incident> = incidents.iter().filter(of).cloned().collect();
        let page = StopPage { stop: main, others: &others, incidents: &incidents, left_out: 0 };
        stop::section(&page, &format!("s{shown}-"), false, html);
        shown += 1;
    }
    let known = |i: &Incident| i.stop.as_ref().is_some_and(|id| stops.iter().any(|s| s.id == *id));
    let lone: Vec<&Incident> = incidents.iter().filter(|i| !known(i)).collect();
    // Twenty requests that died of one thing are told once.
    let mut groups: Vec<Vec<&Incident>> = Vec::new();
    for i in &lone {
        match groups.iter_mut().find(|group| incident::alike(group[0], i)) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    for group in groups.iter().take(FULL_MAX) {
        incident::group(group, html);
    }
    if stops.is_empty() && incidents.is_empty() {
        html.tag("h1").text(name);
        html.tag("p").text("No request was lost, and nothing was stopped.");
    }
    let unshown: usize = groups.iter().skip(FULL_MAX).map(Vec::len).sum();
    let more = (rest.len() + unshown) as u64 + left_out;
    if more > 0 {
        html.tag("p")
            .text(&format!("{more} more stops and incidents of {name} are not shown here: why502 explain lists them."));
    }
}

/// Two ends of the same pod, or of the same container where no pod is known, at the same time.
pub fn together(a: &Stop, b: &Stop) -> bool {
    let same = match (&a.pod, &b.pod) {
        (Some(a), Some(b)) => a.uid == b.uid,
        (None, None) => {
            a.container.is_some() && a.container.as_ref().map(|c| &c.id) == b.container.as_ref().map(|c| &c.id)
        }
        _ => false,
    };
    // RFC 3339 with nine digits: their order is that of the times.
    same && a.boot_id == b.boot_id && a.at <= b.ended_at && b.at <= a.ended_at
}
