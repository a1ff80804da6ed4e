//! Pages: what is on them, where it stands, that no text becomes markup, that colours can be told apart.

use crate::hostile::{HOSTILE, hostile};
use crate::page_dom::{Element, parse};
use crate::page_samples::{many, names, recorded, with_api};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use why502::model::{Incident, Output, Stop};
use why502::page::svg::{Area, CHART_W, width_of_shown};
use why502::page::{self, Filter, ListPage, ROWS_MAX, StopPage};

const RECORDINGS: &[&str] = &[
    "nginx-sigterm",
    "supervisord",
    "short-control-timeout",
    "containerd-prestop-failed",
    "several-stops",
    "grace-period",
    "shell-as-pid-1",
    "stopwaitsecs",
    "unix-supervisord",
    "one-container-killed",
    "failing-probe",
];

fn one(stop: &Stop, incidents: &[Incident]) -> String {
    page::stop(&StopPage { stop, others: &[], incidents, left_out: 0 })
}

fn file(name: &str) -> String {
    let (stops, incidents) = recorded(name);
    page::file(name, &stops, &incidents, 0)
}

/// Elements within the `nth` chart.
fn charts(all: &[Element]) -> Vec<Vec<&Element>> {
    let roots = (0..all.len()).filter(|n| all[*n].name == "svg" && all[*n].has_class("chart"));
    roots.map(|root| all.iter().filter(|e| e.parents.contains(&root)).collect()).collect()
}

fn texts(chart: &[&Element]) -> Vec<(String, Area)> {
    let texts = chart.iter().filter(|e| e.name == "text");
    let area = |e: &&Element| {
        let size = if e.has_class("small") || e.has_class("no") { 11.0 } else { 12.0 };
        let w = width_of_shown(&e.text, size) * if e.has_class("no") { 0.85 } else { 1.0 };
        let x = e.num("x") - if e.attr("text-anchor") == "middle" { w / 2.0 } else { 0.0 };
        (e.text.clone(), Area { x, y: e.num("y") - size * 0.8, w, h: size })
    };
    texts.map(area).collect()
}

/// Rows, and the words at their steps, as a reader meets them.
fn outline(page: &str) -> Vec<String> {
    let all = parse(page);
    let names = all.iter().filter(|e| e.name == "text" && e.has_class("name")).map(|e| e.text.clone());
    let charts = charts(&all);
    let chart = charts.into_iter().flatten();
    let words =
        chart.filter(|e| e.name == "text" && (e.has_class("word") || e.has_class("no"))).map(|e| e.text.clone());
    names.chain(words).collect()
}

#[test]
fn the_picture_of_an_nginx() {
    let wanted = ["elsewhere", "nginx master", "nginx workers (2)", "nginx requests"];
    let steps = ["1", "SIGTERM", "2", "exit 0 ×2", "3", "port closed", "4", "exit 0"];
    assert_eq!(outline(&file("nginx-sigterm")), [&wanted[..], &steps].concat());
}

#[test]
fn the_picture_of_a_php_fpm() {
    let rows = ["host", "php-fpm master", "php-fpm children (28)", "php-fpm requests"];
    let steps = [
        "1",
        "SIGQUIT",
        "2",
        "SIGQUIT ×28",
        "3",
        "last answer",
        "4",
        "exit 0 ×16",
        "5",
        "last accept",
        "6",
        "SIGTERM ×12",
        "7",
        "killed: SIGTERM ×12",
        "8",
        "port closed",
        "9",
        "exit 0",
    ];
    assert_eq!(outline(&file("short-control-timeout")), [&rows[..], &steps].concat());
}

/// What the API said, the hook and the grace period.
#[test]
fn the_picture_of_a_pod_that_is_deleted() {
    let (stop, incidents) = with_api();
    let page = one(&stop, &incidents);
    let rows = ["API, kubelet", "runtime", "commands", "nginx master", "nginx workers", "nginx requests"];
    let outline = outline(&page);
    assert_eq!(outline[..rows.len()], rows);
    for word in ["deleted", "unready", "endpoints gone", "preStop", "SIGTERM"] {
        assert!(outline.iter().any(|w| w == word), "{word}: {outline:?}");
    }
    let all = parse(&page);
    let bands: Vec<&str> =
        all.iter().filter(|e| e.has_class("small") && e.name == "text").map(|e| e.text.as_str()).collect();
    assert!(bands.contains(&"grace period 5 s, 4.98 s left") && bands.contains(&"preStop 5.00 s"), "{bands:?}");
}

/// Two nginx of a pod have the names of their containers.
#[test]
fn two_of_a_kind_are_told_apart() {
    let outline = outline(&file("sidecar-gone-first"));
    let masters: BTreeSet<&String> = outline.iter().filter(|word| word.starts_with("nginx master")).collect();
    assert_eq!(masters.len(), 2, "{outline:?}");
}

/// Two servers of one container are one picture: that is what shows the order.
#[test]
fn the_picture_of_a_supervisord() {
    let outline = outline(&file("supervisord"));
    let rows = [
        "host",
        "PID 1: supervisord",
        "nginx master",
        "nginx workers",
        "php-fpm master",
        "php-fpm children (28)",
        "nginx requests",
        "php-fpm requests",
    ];
    assert_eq!(outline[..rows.len()], rows);
    assert_eq!(outline.iter().filter(|word| *word == "SIGQUIT").count(), 2, "to each of the two: {outline:?}");
}

#[test]
fn no_label_is_on_another() {
    let mut pages: Vec<(String, String)> = names().into_iter().map(|name| (name.clone(), file(&name))).collect();
    for n in [0, 1, 50, 60, 61, 1000] {
        let (stop, incidents) = many(n);
        pages.push((format!("{n} requests"), one(&stop, &incidents)));
    }
    let (stop, incidents) = with_api();
    pages.push(("deleted".into(), one(&stop, &incidents)));
    for text in HOSTILE {
        let (stop, incidents) = hostile(text);
        pages.push((format!("{text:?}"), one(&stop, &incidents)));
    }
    let mut seen = 0;
    for (name, page) in &pages {
        let all = parse(page);
        for chart in charts(&all) {
            let texts = texts(&chart);
            for (n, (a, area)) in texts.iter().enumerate() {
                seen += 1;
                assert!(area.x >= -0.1 && area.x + area.w <= CHART_W + 0.1, "{name}: {a:?} at {area:?}");
                for (b, other) in &texts[n + 1..] {
                    assert!(!area.meets(other), "{name}: {a:?} at {area:?} and {b:?} at {other:?}");
                }
            }
        }
    }
    assert!(seen > 300, "{seen} labels");
}

#[test]
fn a_thousand_requests_are_few_shapes() {
    let size = |n| {
        let (stop, incidents) = many(n);
        let all = parse(&one(&stop, &incidents));
        charts(&all)[0].len()
    };
    assert!(size(50) > 100, "each has its bar");
    assert!(size(1000) < 700, "{}", size(1000));
    let (stop, incidents) = many(1000);
    let page = one(&stop, &incidents);
    assert!(page.len() < 200_000, "{} bytes", page.len());
    // What is drawn together is still all there.
    let all = parse(&page);
    let lost: u64 = all
        .iter()
        .filter(|e| e.name == "title" && e.text.starts_with("lost here: "))
        .flat_map(|e| {
            e.text["lost here: ".len()..]
                .split(", ")
                .map(|part| part.split(' ').next().unwrap().parse::<u64>().unwrap())
        })
        .sum();
    assert_eq!(lost, 1000);
}

#[test]
fn ids_are_there_once_and_links_lead_somewhere() {
    for name in RECORDINGS {
        let all = parse(&file(name));
        let mut ids = BTreeSet::new();
        for id in all.iter().filter_map(|e| e.attrs.get("id")) {
            assert!(ids.insert(id.clone()), "{name}: {id} twice");
        }
        let links: Vec<&str> = all.iter().filter_map(|e| e.attrs.get("href")?.strip_prefix('#')).collect();
        assert!(!links.is_empty());
        for link in links {
            assert!(ids.contains(link), "{name}: nothing is called {link}");
        }
    }
}

/// Everything in the picture is in the tables.
#[test]
fn each_step_is_a_row_as_well() {
    for name in RECORDINGS {
        let all = parse(&file(name));
        let steps = all.iter().filter(|e| e.name == "a" && e.has_class("step")).count();
        let rows = all.iter().filter(|e| e.name == "tr" && e.attr("id").contains("step-")).count();
        assert!(steps > 0 && steps == rows, "{name}: {steps} steps, {rows} rows");
        for (n, element) in all.iter().enumerate() {
            if element.name == "a" && (element.has_class("step") || element.has_class("request")) {
                let said = all.iter().any(|e| e.name == "title" && e.parents.last() == Some(&n) && !e.text.is_empty());
                assert!(said, "{name}: {element:?} says nothing");
            }
        }
    }
}

const ELEMENTS: &str = "html head meta title link style body header main footer nav a section h1 h2 p ul ol li b code span \
    details summary figure figcaption div svg g text rect line path circle table thead tbody tr th td form label select \
    option input button";
const ATTRS: &str = "lang charset name content http-equiv rel href class id tabindex role aria-label aria-hidden width height \
    viewBox x y x1 y1 x2 y2 cx cy r d text-anchor preserveAspectRatio scope open method action value placeholder selected type";

fn harmless(page: &str, what: &str) {
    let elements: BTreeSet<&str> = ELEMENTS.split_whitespace().collect();
    let attrs: BTreeSet<&str> = ATTRS.split_whitespace().collect();
    for e in parse(page) {
        assert!(elements.contains(e.name.as_str()), "{what}: {e:?}");
        for (name, value) in &e.attrs {
            assert!(attrs.contains(name.as_str()), "{what}: {e:?}");
            if matches!(name.as_str(), "href" | "action") {
                let local = ["#", "./", "../", "stop/", "incident/", "?", "style.css"];
                let fine = local.iter().any(|start| value.starts_with(start)) || value == "data:,";
                assert!(fine && !value.contains(['<', '"', '\'', ' ', '\n']), "{what}: {value:?}");
                let inner = value.strip_prefix("../").unwrap_or(value);
                assert!(
                    !inner.split('/').any(|part| part == ".." || part.contains(':')) || value == "data:,",
                    "{what}: {value:?}"
                );
            }
        }
    }
    assert!(!page.contains(['\u{202e}', '\u{0}', '\u{1b}', '\r', '\u{2028}', '\u{feff}']), "{what}");
}

#[test]
fn no_text_becomes_markup() {
    for text in HOSTILE {
        let (stop, incidents) = hostile(text);
        let page = one(&stop, &incidents);
        harmless(&page, text);
        harmless(&page::incident(&incidents[0]), text);
        harmless(&page::file(text, std::slice::from_ref(&stop), &incidents, 3), text);
        let rows = vec![Output::Stop(Box::new(stop)), Output::Incident(Box::new(incidents[0].clone()))];
        let t = || text.to_string();
        let filter = Filter { kind: t(), namespace: t(), pod: t(), workload: t(), cause: t(), since: t(), until: t() };
        let problem = Some(*text);
        harmless(
            &page::list(&ListPage {
                node: text,
                filter: &filter,
                rows: &rows,
                older: Some(7),
                paged: true,
                problem,
                notices: &[text.to_string()],
            }),
            text,
        );
        // It is there to be read.
        let shown = why502::sinks::escape::escape(text).into_owned();
        assert!(parse(&page).iter().any(|e| e.text.contains(&shown)), "{text:?}");
    }
}

#[test]
fn the_list_has_pages_and_keeps_its_filter() {
    let (_, incidents) = many(50);
    let lone = |i: &Incident| Output::Incident(Box::new(Incident { stop: None, ..i.clone() }));
    let rows: Vec<Output> = incidents.iter().cycle().take(10_000).map(lone).collect();
    let filter = Filter { namespace: "a b&c".into(), kind: "incidents".into(), ..Filter::default() };
    let page = page::list(&ListPage {
        node: "node-1",
        filter: &filter,
        rows: &rows,
        older: Some(4711),
        paged: false,
        problem: None,
        notices: &[],
    });
    let all = parse(&page);
    let shown = all.iter().filter(|e| e.name == "td" && e.has_class("trigger")).count();
    assert_eq!(shown, ROWS_MAX);
    let next = all.iter().find(|e| e.attr("rel") == "next").unwrap();
    assert_eq!(next.attr("href"), "?kind=incidents&namespace=a%20b%26c&before=4711");
    assert!(all.iter().any(|e| e.name == "input" && e.attr("name") == "namespace" && e.attr("value") == "a b&c"));
    assert!(
        all.iter().any(|e| e.name == "option" && e.attr("value") == "incidents" && e.attrs.contains_key("selected"))
    );
}

#[test]
fn the_list_folds_what_a_stop_lost() {
    let (stop, incidents) = many(1000);
    let rows: Vec<Output> =
        incidents.into_iter().map(|i| Output::Incident(Box::new(i))).chain([Output::Stop(Box::new(stop))]).collect();
    let filter = Filter::default();
    let page = page::list(&ListPage {
        node: "n",
        filter: &filter,
        rows: &rows,
        older: None,
        paged: true,
        problem: None,
        notices: &[],
    });
    let all = parse(&page);
    let counts: Vec<&str> = all.iter().filter(|e| e.name == "b").map(|e| e.text.as_str()).collect();
    assert_eq!(counts, ["700 × ", "100 × ", "200 × ", "nginx stopped"]);
    assert!(all.iter().any(|e| e.name == "a" && e.text == "Newest") && !page.contains("Older"));
}

#[test]
fn a_stop_without_times_and_incidents_without_a_stop() {
    let (mut stops, incidents) = recorded("nginx-sigterm");
    stops[0].phases.clear();
    stops[0].timeline = Default::default();
    assert!(one(&stops[0], &incidents).contains("there is no picture"));
    let page = page::file("x.rec", &[], &incidents, 0);
    let kinds: BTreeSet<_> = incidents.iter().map(|i| (i.cause.id(), i.mechanism.id(), i.outcome.id())).collect();
    assert_eq!(page.matches("How it came about").count(), kinds.len(), "one of each kind is told in full");
    assert!(kinds.len() < incidents.len());
    let all = parse(&page);
    assert!(incidents.iter().all(|i| all.iter().any(|e| e.attr("id") == i.id)), "and all are there");
    assert!(page.find("What to change") < page.find("How it came about"), "advice is on top");
    assert!(page::file("x.rec", &[], &[], 0).contains("No request was lost, and nothing was stopped."));
}

#[test]
fn explain_writes_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let (to, from) =
        (dir.path().join("x.html"), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/nginx-sigterm.rec"));
    let explain =
        |to: &str| Command::new(env!("CARGO_BIN_EXE_why502")).args(["explain", "--html", to, from]).output().unwrap();
    let written = explain(to.to_str().unwrap());
    assert!(written.status.success() && written.stdout.is_empty(), "{written:?}");
    let piped = explain("-");
    assert_eq!(std::fs::read(&to).unwrap(), piped.stdout);
    harmless(str::from_utf8(&piped.stdout).unwrap(), "nginx-sigterm");
    let failed = explain(dir.path().join("none/x.html").to_str().unwrap());
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
}

type Rgb = [f64; 3];

/// `--name: #rrggbb` of both schemes.
fn palettes() -> [BTreeMap<String, Rgb>; 2] {
    let (light, dark) = page::STYLE.split_once("@media (prefers-color-scheme: dark)").unwrap();
    let dark = dark.split_once("* { box-sizing").unwrap().0;
    [light, dark].map(|css| {
        let vars = css.split(['{', ';']).filter_map(|part| part.trim().strip_prefix("--")?.split_once(": #"));
        vars.map(|(name, hex)| {
            let channel = |n: usize| f64::from(u8::from_str_radix(&hex[n..n + 2], 16).unwrap()) / 255.0;
            (name.to_string(), [channel(0), channel(2), channel(4)])
        })
        .collect()
    })
}

fn linear(c: f64) -> f64 {
    if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
}

/// WCAG 2.2, relative luminance and contrast ratio.
fn contrast(a: Rgb, b: Rgb) -> f64 {
    let luminance = |[r, g, b]: Rgb| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[test]
fn contrast_is_that_of_wcag_aa_in_both_schemes() {
    for (scheme, p) in ["light", "dark"].into_iter().zip(palettes()) {
        let check = |a: &str, b: &str, least: f64| {
            let ratio = contrast(p[a], p[b]);
            assert!(ratio >= least, "{scheme}: {a} on {b} is {ratio:.2}, not {least}");
        };
        // 1.4.3: text.
        for (text, on) in [
            ("text", "page"),
            ("text", "plate"),
            ("text", "shade"),
            ("text", "life"),
            ("text", "open"),
            ("text", "grace"),
            ("text", "hook"),
            ("faint", "page"),
            ("faint", "plate"),
            ("faint", "shade"),
            ("link", "page"),
            ("link", "plate"),
            ("badge-text", "badge"),
            ("badge-text", "link"),
            ("unanswered", "page"),
            ("truncated", "page"),
            ("refused", "page"),
            ("error-made", "page"),
            ("answered", "page"),
        ] {
            check(text, on, 4.5);
        }
        // 1.4.11: what has to be seen to understand the picture.
        for shape in ["unanswered", "truncated", "refused", "error-made", "answered", "arrow", "badge", "zero"] {
            check(shape, "page", 3.0);
            check(shape, "shade", 3.0);
        }
        check("arrow", "life", 3.0);
        check("badge", "open", 3.0);
    }
}

/// Viénot, Brettel and Mollon 1999: what a dichromat sees, in linear RGB; then CIELAB and its distance.
fn seen(c: Rgb, [rg, bb]: [[f64; 3]; 2]) -> [f64; 3] {
    let [r, g, b] = c.map(linear);
    let mix = |m: [f64; 3]| m[0] * r + m[1] * g + m[2] * b;
    let (red, blue) = (mix(rg), mix(bb));
    let xyz = [
        (0.4124 * red + 0.3576 * red + 0.1805 * blue) / 0.9505,
        0.2126 * red + 0.7152 * red + 0.0722 * blue,
        (0.0193 * red + 0.1192 * red + 0.9505 * blue) / 1.089,
    ];
    let f = |t: f64| if t > 0.008856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
    let [x, y, z] = xyz.map(f);
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[test]
fn outcomes_are_told_apart_without_red_and_green() {
    let protan = [[0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]];
    let deutan = [[0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]];
    for (scheme, p) in ["light", "dark"].into_iter().zip(palettes()) {
        let all = ["unanswered", "truncated", "refused", "error-made", "answered"];
        for eye in [protan, deutan] {
            for (n, a) in all.iter().enumerate() {
                for b in &all[n + 1..] {
                    let (x, y) = (seen(p[*a], eye), seen(p[*b], eye));
                    let far = (0..3).map(|i| (x[i] - y[i]).powi(2)).sum::<f64>().sqrt();
                    // Beside colour each has a mark of its own shape; two that are close are told apart by that.
                    assert!(far > 9.0, "{scheme}: {a} and {b} are {far:.1} apart");
                }
            }
        }
    }
}
