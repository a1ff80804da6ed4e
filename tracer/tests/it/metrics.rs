//! The table of metrics, and what has to agree with it: docs/metrics.md, the dashboard, the alert rules. Floods and hostile
//! labels.

use crate::samples::{incident, started, stop};
use serde_json::Value;
use std::collections::BTreeSet;
use why502::metrics::tally::{OTHER, OWNERS, SERIES};
use why502::metrics::text::Text;
use why502::metrics::{ALL, Metric, Tally, Type};
use why502::model::incident::*;
use why502::model::{Cause, Input, Output};
use why502::store::quota::{FOR_STOPS, PER_HOUR, Quota};

const DOC: &str = include_str!("../../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../../packaging/helm/why502/files/dashboard.json");
const ALERTS: &str = include_str!("../../../packaging/helm/why502/files/alerts.yaml");

fn row(metric: &Metric) -> String {
    let kind = match metric.kind {
        Type::Counter => "counter",
        Type::Gauge => "gauge",
    };
    let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    format!("| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help)
}

#[test]
fn the_document_has_the_table() {
    let rows: Vec<String> = ALL.iter().map(|metric| row(metric)).collect();
    let is_row = |line: &&str| line.starts_with("| `why502_") || line.starts_with("| `process_");
    let found: Vec<&str> = DOC.lines().filter(is_row).collect();
    assert_eq!(found, rows, "docs/metrics.md needs these rows:\n{}\n", rows.join("\n"));
}

/// Names of metrics and of labels in an expression of PromQL, as far as ours go.
fn names(expr: &str) -> (Vec<String>, Vec<String>) {
    let (mut metrics, mut labels) = (Vec::new(), Vec::new());
    let mut quoted = false;
    let mut depth = 0;
    let mut by = false;
    let mut word = String::new();
    for c in expr.chars().chain([' ']) {
        if c == '"' {
            quoted = !quoted;
        }
        if quoted {
            continue;
        }
        if c.is_ascii_alphanumeric() || c == '_' || c == '$' {
            word.push(c);
            continue;
        }
        let plain = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if plain && (depth > 0 || (by && !["by", "on", "without", "ignoring"].contains(&&*word))) {
            labels.push(word.clone());
        } else if word.starts_with("why502_") || word.starts_with("process_") {
            metrics.push(word.clone());
        }
        by = (by || ["by", "on", "without", "ignoring"].contains(&&*word)) && c != ')';
        word.clear();
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    (metrics, labels)
}

/// Every metric and label of an expression exists.
fn check(expr: &str) {
    let (metrics, labels) = names(expr);
    assert!(!metrics.is_empty(), "no metric of ours in {expr}");
    let found: Vec<&&Metric> = metrics
        .iter()
        .map(|name| ALL.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{name}: {expr}")))
        .collect();
    for label in labels {
        // What Prometheus adds itself.
        let known = ["job", "instance"].contains(&&*label) || found.iter().any(|m| m.labels.contains(&&*label));
        assert!(known, "no label {label}: {expr}");
    }
    for metric in found {
        let growing = expr.contains("rate(") || expr.contains("increase(");
        assert!(metric.kind == Type::Gauge || growing, "{} only ever grows: {expr}", metric.name);
    }
}

#[test]
fn expressions_are_taken_apart() {
    let (metrics, labels) = names(r#"sum by (cause, pod) (rate(why502_x_total{namespace=~"$ns",a!="b c"}[5m])) > 0"#);
    assert_eq!(metrics, ["why502_x_total"]);
    assert_eq!(labels, ["cause", "pod", "namespace", "a"]);
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" => found.push(text.clone()),
                    value => expressions(value, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let mut found = Vec::new();
    expressions(&serde_json::from_str(DASHBOARD).unwrap(), &mut found);
    assert!(found.len() > 10, "{}", found.len());
    found.iter().for_each(|expr| check(expr));
}

#[derive(serde::Deserialize)]
struct Alerts {
    groups: Vec<Group>,
}

#[derive(serde::Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

#[derive(serde::Deserialize)]
struct Alert {
    alert: String,
    expr: String,
    annotations: std::collections::BTreeMap<String, String>,
}

#[test]
fn the_alerts_ask_for_what_there_is() {
    let alerts: Alerts = serde_saphyr::from_str(ALERTS).unwrap();
    let rules: Vec<Alert> = alerts.groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(rules.len() >= 6, "{}", rules.len());
    for rule in &rules {
        if !rule.expr.contains("up{") && !rule.expr.contains("absent(up") {
            check(&rule.expr);
        }
        assert!(rule.alert.starts_with("Why502") && rule.annotations.contains_key("description"), "{}", rule.alert);
    }
}

fn page(tally: &Tally) -> String {
    let mut text = Text::default();
    tally.write(&mut text);
    text.finish()
}

fn samples<'a>(page: &'a str, name: &str) -> Vec<(&'a str, u64)> {
    let of = |line: &'a str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ");
    page.lines().filter_map(of).map(|(labels, value)| (labels, value.parse().unwrap())).collect()
}

fn lost(namespace: &str, workload: &str) -> Output {
    let pod = Pod { namespace: Some(namespace.into()), name: None, uid: "u".into(), workload: Some(workload.into()) };
    Output::Incident(Box::new(Incident { pod: Some(pod), ..incident() }))
}

#[test]
fn a_flood_of_names_stays_bounded_and_nothing_is_lost_of_the_sum() {
    let mut tally = Tally::default();
    tally.output(&lost("shop", "Deployment/web"));
    let flood = 20_000;
    for n in 0..flood {
        tally.output(&lost(&format!("ns-{n}"), &format!("Deployment/{n}")));
    }
    tally.output(&lost("shop", "Deployment/web"));
    let page = page(&tally);
    let series = samples(&page, "why502_lost_requests_total");
    assert_eq!(series.len(), OWNERS + 1, "and one for all others");
    assert_eq!(series.iter().map(|(_, count)| count).sum::<u64>(), flood + 2);
    let of = |labels: &str| series.iter().find(|(found, _)| found.contains(labels)).map(|(_, count)| *count);
    assert_eq!(of(r#"namespace="shop",workload="Deployment/web""#), Some(2), "the neighbour still has its own");
    let other = format!(r#"namespace="{OTHER}",workload="{OTHER}""#);
    assert_eq!(of(&other), Some(flood + 1 - OWNERS as u64));
    assert!(page.contains(&format!("why502_series_overflow_total {}\n", flood + 1 - OWNERS as u64)));
}

#[test]
fn every_combination_of_ids_stays_bounded_too() {
    let mut tally = Tally::default();
    let mut fed = 0;
    for &cause in Cause::ALL.iter().filter(|cause| !cause.not_the_server()) {
        for &mechanism in Mechanism::ALL {
            for &trigger in Trigger::ALL {
                let what = Incident { cause, mechanism, trigger, pod: None, container: None, ..incident() };
                tally.output(&Output::Incident(Box::new(what)));
                fed += 1;
            }
        }
    }
    let page = page(&tally);
    let series = samples(&page, "why502_lost_requests_total");
    assert!(fed > SERIES as u64, "{fed}");
    assert_eq!(series.len(), SERIES + 1);
    assert_eq!(series.iter().map(|(_, count)| count).sum::<u64>(), fed);
}

#[test]
fn hostile_names_stay_inside_their_label() {
    let evil = "a\"} 1\nwhy502_ready 0\n# \u{1b}[31m\u{202e}\\";
    let mut tally = Tally::default();
    tally.output(&lost(evil, &"é".repeat(100_000)));
    let container = Container { id: "c".into(), name: Some(evil.into()), runtime: None };
    tally.output(&Output::Incident(Box::new(Incident { pod: None, container: Some(container), ..incident() })));
    let page = page(&tally);
    assert_eq!(page.lines().filter(|line| line.starts_with("why502_ready")).count(), 1);
    assert!(page.chars().all(|c| c == '\n' || !c.is_control()) && !page.contains('\u{202e}'), "{page}");
    assert_eq!(samples(&page, "why502_lost_requests_total").len(), 2);
    assert!(page.lines().all(|line| line.len() < 2_000), "values are cut");
    assert!(page.contains(r#"workload="Container/a\"} 1\\nwhy502_ready 0"#), "{page}");
}

#[test]
fn one_containers_flood_leaves_room_for_its_neighbours() {
    let of = |id: &str| {
        let container = Container { id: id.into(), name: None, runtime: None };
        Output::Incident(Box::new(Incident { container: Some(container), ..incident() }))
    };
    let (mut quota, hour) = (Quota::default(), 3_600_000_000_000);
    let kept = (0..PER_HOUR + 100).filter(|_| quota.takes(&of("flood"), 5)).count() as u64;
    assert_eq!(kept, PER_HOUR - FOR_STOPS);
    let container = Container { id: "flood".into(), name: None, runtime: None };
    let stop = Output::Stop(Box::new(Stop { container: Some(container), ..stop() }));
    let stops = (0..PER_HOUR).filter(|_| quota.takes(&stop, 5)).count() as u64;
    assert_eq!(stops, FOR_STOPS, "a stop that lost too many to keep is kept itself");
    assert!(quota.takes(&of("neighbour"), 5));
    let made_up = (0..100_000).filter(|n| quota.takes(&of(&n.to_string()), 6)).count() as u64;
    assert!(made_up < 10_000, "{made_up}: names that are made up have one share together");
    assert!(quota.takes(&of("neighbour"), 7));
    assert!(quota.takes(&of("flood"), hour), "the next hour");
}

#[test]
fn each_family_of_the_table_is_served_by_something() {
    // What the tally itself gives; the store's, the server's and the process's own are in their modules' tests.
    let mut tally = Tally::default();
    tally.input(&Input::Started(started()));
    crate::samples::inputs().iter().for_each(|input| tally.input(input));
    let other = Incident { cause: Cause::ClientAbort, ..incident() };
    [lost("shop", "web"), Output::Incident(Box::new(other))].iter().for_each(|output| tally.output(output));
    let page = page(&tally);
    let there: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for metric in [
        "ready",
        "build_info",
        "lost_requests_total",
        "not_the_server_total",
        "signals_total",
        "resets_total",
        "events_total",
        "loss_total",
        "probe_status",
        "source_up",
        "series_overflow_total",
        "input_age_seconds",
    ] {
        assert!(there.contains(&*format!("why502_{metric}")), "{metric}\n{page}");
    }
}
