//! The picture: rows, arrows, bars and their labels, as SVG. Sizes are px; nothing is scaled, so that text keeps its size.
//! It is two drawings side by side: the names of the rows, which stay where they are, and the chart, which may be scrolled.

use super::density;
use super::html::{Html, Px};
use super::scale::Scale;
use super::scene::{Request, RowKey, Scene, Server, Step, StepKind};
use super::words;
use crate::model::BootNs;
use crate::model::incident::Outcome;

pub const LABELS_W: f64 = 186.0;
pub const CHART_W: f64 = 968.0;
/// Characters of a row's name: they are bold, and what is wider loses its beginning.
const LABEL_MAX: usize = 22;
/// Left and right of the first and the last time.
const PAD: (f64, f64) = (20.0, 80.0);
const AXIS_H: f64 = 24.0;
const BAND_H: f64 = 20.0;
const ROW_H: f64 = 40.0;
/// Half of the height of what lives.
const LIFE: f64 = 4.0;
const BADGE: f64 = 9.0;
/// Font sizes, as in the stylesheet.
const TEXT: f64 = 12.0;
const SMALL: f64 = 11.0;
/// More requests than these are drawn as densities.
pub const BARS_MAX: usize = 60;
/// Up to here bars are thick.
const THICK_MAX: usize = 16;

/// A rectangle that something is drawn in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Area {
    pub fn meets(&self, other: &Area) -> bool {
        self.x < other.x + other.w
            && other.x < self.x + self.w
            && self.y < other.y + other.h
            && other.y < self.y + self.h
    }
}

/// How wide a text is at most, as fonts go: the browser's own is not known here.
fn width(text: &str, size: f64) -> f64 {
    // What is escaped gets longer.
    width_of_shown(&crate::sinks::escape::escape(text), size)
}

/// The same of what is escaped already.
pub fn width_of_shown(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if c.is_ascii() { 0.62 } else { 1.05 }).sum::<f64>() * size
}

/// Where everything is.
pub(super) struct Plan<'s> {
    scene: &'s Scene,
    scale: Scale,
    /// Of each step: times that are the same stand beside each other.
    xs: Vec<f64>,
    /// Middle of each row.
    rows: Vec<(RowKey, f64)>,
    /// Top of each server's requests.
    servers: Vec<f64>,
    height: f64,
    taken: Vec<Area>,
    /// Ids of this picture begin so: a page may hold several.
    ids: String,
}

impl<'s> Plan<'s> {
    pub(super) fn new(scene: &'s Scene, ids: &str) -> Self {
        let mut times: Vec<BootNs> = Vec::new();
        for step in &scene.steps {
            times.push(times.last().map_or(step.at, |last| step.at.max(last + 1)));
        }
        let requests = || scene.servers.iter().flat_map(|s| &s.requests);
        let lost = requests().map(|r| r.at);
        let mut others = vec![scene.from, scene.to, scene.zero];
        others.extend(requests().filter_map(|r| r.from).min());
        others.extend(lost.clone().min().into_iter().chain(lost.max()));
        others.extend(scene.steps.iter().map(|s| s.until));
        let scale = Scale::new(&times, &others, CHART_W - PAD.0 - PAD.1);
        let xs = times.iter().map(|t| PAD.0 + scale.x(*t)).collect();
        let mut y = AXIS_H + scene.bands.len() as f64 * BAND_H + 4.0;
        let (mut rows, mut servers) = (Vec::new(), vec![0.0; scene.servers.len()]);
        for row in &scene.rows {
            rows.push((row.key, y + ROW_H / 2.0));
            y += ROW_H;
            if let Some(n) = scene.servers.iter().position(|s| s.row == row.key) {
                servers[n] = y;
                y += requests_height(&scene.servers[n]);
            }
        }
        Plan { scene, scale, xs, rows, servers, height: y + 6.0, taken: Vec::new(), ids: ids.to_string() }
    }

    fn x(&self, at: BootNs) -> f64 {
        PAD.0 + self.scale.x(at)
    }

    fn y(&self, key: RowKey) -> f64 {
        self.rows.iter().find(|(k, _)| *k == key).map_or(0.0, |(_, y)| *y)
    }

    /// Draws a text unless something is there already.
    fn place(&mut self, area: Area) -> bool {
        let inside = area.x >= 0.0 && area.x + area.w <= CHART_W;
        let free = inside && !self.taken.iter().any(|t| t.meets(&area));
        if free {
            self.taken.push(area);
        }
        free
    }

    /// The names of the rows.
    pub(super) fn labels(&self, html: &mut Html) {
        let (w, h) = (LABELS_W, self.height);
        html.tag("svg")
            .class("names")
            .px("width", w)
            .px("height", h)
            .num("viewBox", format_args!("0 0 {} {}", Px(w), Px(h)))
            // Where a stylesheet makes it narrower, it loses its left side and keeps its size.
            .attr("preserveAspectRatio", "xMaxYMid slice")
            .attr("aria-hidden", "true")
            .body(|html| {
                for row in &self.scene.rows {
                    let y = self.y(row.key);
                    html.tag("text").class("name").px("x", w - 8.0).px("y", y + 4.0).attr("text-anchor", "end").body(
                        |html| {
                            html.tag("title").text(&row.title);
                            html.text(&words::short(&row.label, LABEL_MAX));
                        },
                    );
                }
            });
    }

    pub(super) fn chart(&mut self, html: &mut Html, label: &str) {
        let h = self.height;
        html.tag("svg")
            .class("chart")
            .px("width", CHART_W)
            .px("height", h)
            .num("viewBox", format_args!("0 0 {} {}", Px(CHART_W), Px(h)))
            .attr("role", "group")
            .attr("aria-label", label)
            .body(|html| {
                self.bands(html);
                self.axis(html);
                self.lives(html);
                self.reserve();
                let scene = self.scene;
                for (n, server) in scene.servers.iter().enumerate() {
                    self.requests(server, self.servers[n], html);
                }
                for n in 0..scene.steps.len() {
                    self.step(n, html);
                }
            });
    }

    fn bands(&mut self, html: &mut Html) {
        for (n, band) in self.scene.bands.iter().enumerate() {
            let y = AXIS_H + n as f64 * BAND_H;
            let (x, to) = (self.x(band.from), if band.open { CHART_W } else { self.x(band.to) });
            let w = (to - x).max(3.0);
            if band.class == "hook" {
                // What else happened while it ran.
                html.tag("rect")
                    .class("shade")
                    .px("x", x)
                    .px("y", y)
                    .px("width", w)
                    .px("height", self.height - y)
                    .empty();
            }
            let class = if band.class == "hook" { "band hook" } else { "band grace" };
            html.tag("rect").class(class).px("x", x).px("y", y + 1.0).px("width", w).px("height", BAND_H - 3.0).body(
                |html| {
                    html.tag("title").text(&band.title);
                },
            );
            let text = words::short(&band.label, 60);
            let long = width(&text, SMALL);
            // Within it, or beside it.
            let at = [x + 6.0, to + 6.0, x - long - 6.0].into_iter().find(|at| {
                let inside = *at > x && *at < to;
                *at >= 0.0 && at + long <= if inside { to - 4.0 } else { CHART_W }
            });
            if let Some(at) = at {
                self.taken.push(Area { x: at, y, w: long, h: BAND_H });
                html.tag("text").class("small").px("x", at).px("y", y + 13.0).text(&text);
            }
        }
    }

    /// The time at each step, as far as there is room: the stop signal and the ends first.
    fn axis(&mut self, html: &mut Html) {
        let scene = self.scene;
        let (zero, bottom) = (self.x(scene.zero), self.height);
        // Not over the words of a band.
        let top = AXIS_H + scene.bands.len() as f64 * BAND_H;
        html.tag("line").class("zero").px("x1", zero).px("y1", top).px("x2", zero).px("y2", bottom).empty();
        let mut times = vec![(scene.zero, zero)];
        times.extend([scene.from, scene.to].map(|t| (t, self.x(t))));
        times.extend(scene.steps.iter().map(|s| s.at).zip(self.xs.iter().copied()));
        let mut said = std::collections::BTreeSet::new();
        for (at, x) in times {
            let text = words::since(scene.zero, at);
            // Twice the same number says nothing: the table below has more digits.
            if said.contains(&text) {
                continue;
            }
            let w = width(&text, SMALL);
            let left = (x - w / 2.0).max(0.0).min(CHART_W - w);
            // A gap to the next one, or two numbers are read as one.
            if self.place(Area { x: left - 5.0_f64.min(left), y: 2.0, w: w + 5.0, h: AXIS_H - 6.0 }) {
                html.tag("text").class("small time").px("x", left).px("y", 14.0).text(&text);
                said.insert(text);
                html.tag("line").class("tick").px("x1", x).px("y1", AXIS_H - 7.0).px("x2", x).px("y2", bottom).empty();
            }
        }
    }

    fn lives(&self, html: &mut Html) {
        for row in &self.scene.rows {
            let y = self.y(row.key);
            html.tag("line").class("row").px("x1", 0.0).px("y1", y).px("x2", CHART_W).px("y2", y).empty();
            if row.lives() {
                let w = row.until.map_or(CHART_W, |until| self.x(until));
                let class = if matches!(row.key, RowKey::Connections(_)) { "life open" } else { "life" };
                html.tag("rect")
                    .class(class)
                    .px("x", 0.0)
                    .px("y", y - LIFE)
                    .px("width", w)
                    .px("height", 2.0 * LIFE)
                    .empty();
            }
        }
        for step in self.scene.steps.iter().filter(|s| s.to == RowKey::Command && s.until > s.at) {
            let (x, to, y) = (self.x(step.at), self.x(step.until), self.y(step.to));
            html.tag("rect")
                .class("life")
                .px("x", x)
                .px("y", y - LIFE)
                .px("width", to - x)
                .px("height", 2.0 * LIFE)
                .empty();
        }
    }

    /// Arrows and badges stand where they have to: labels find their places between them.
    fn reserve(&mut self) {
        for (step, x) in self.scene.steps.iter().zip(&self.xs) {
            let (top, bottom) = self.ends(step);
            self.taken.push(Area { x: x - 3.0, y: top, w: 6.0, h: bottom - top });
            let badge = self.badge(step);
            self.taken.push(Area { x: x - BADGE, y: badge - BADGE, w: 2.0 * BADGE, h: 2.0 * BADGE });
        }
    }

    fn badge(&self, step: &Step) -> f64 {
        self.y(step.from.unwrap_or(step.to))
    }

    fn ends(&self, step: &Step) -> (f64, f64) {
        let (a, b) = (self.badge(step), self.y(step.to));
        (a.min(b), a.max(b))
    }

    fn step(&mut self, n: usize, html: &mut Html) {
        let (step, x) = (&self.scene.steps[n], self.xs[n]);
        let (badge, target) = (self.badge(step), self.y(step.to));
        let number = (n + 1).to_string();
        let said = format!("{number}. {} {}: {}", words::exactly(self.scene.zero, step.at), step.who, step.text);
        let class = match step.kind {
            StepKind::Signal => "step signal",
            StepKind::Exit => "step exit",
            StepKind::Phase => "step phase",
        };
        let many = if step.count > 1 { format!(" ×{}", step.count) } else { String::new() };
        let short = words::short(&step.short, 24) + &many;
        let w = width(&short, TEXT);
        let up = if target < badge { -1.0 } else { 1.0 };
        let half = (badge + target) / 2.0 + 4.0;
        let mut spots = vec![(x + BADGE + 3.0, badge - 7.0), (x - BADGE - 3.0 - w, badge - 7.0)];
        if target != badge {
            spots.extend([(x + 6.0, half), (x - 6.0 - w, half), (x + 6.0, half - 12.0), (x - 6.0 - w, half - 12.0)]);
        }
        spots.extend([(x + BADGE + 3.0, badge + 16.0), (x - BADGE - 3.0 - w, badge + 16.0)]);
        let spot = spots.into_iter().find(|(x, y)| self.place(Area { x: *x, y: y - TEXT, w, h: TEXT + 3.0 }));
        let (id, row) = (format!("{}mark-{number}", self.ids), format!("#{}step-{number}", self.ids));
        html.tag("a").attr("id", &id).attr("href", &row).class(class).body(|html| {
            html.tag("title").text(&said);
            if target != badge {
                let (from, tip) = (badge + up * BADGE, target - up * (LIFE + 1.0));
                html.tag("line").class("arrow").px("x1", x).px("y1", from).px("x2", x).px("y2", tip - up * 6.0).empty();
                let (l, r, b) = (Px(x - 4.5), Px(x + 4.5), Px(tip - up * 8.0));
                html.tag("path")
                    .class("head")
                    .num("d", format_args!("M{l} {b}L{r} {b}L{} {}Z", Px(x), Px(tip)))
                    .empty();
            }
            html.tag("circle").class("badge").px("cx", x).px("cy", badge).px("r", BADGE).empty();
            let class = if n < 9 { "no" } else { "no two" };
            html.tag("text").class(class).px("x", x).px("y", badge + 4.0).attr("text-anchor", "middle").text(&number);
            if let Some((x, y)) = spot {
                html.tag("text").class("word").px("x", x).px("y", y).text(&short);
            }
        });
    }

    fn requests(&mut self, server: &Server, top: f64, html: &mut Html) {
        let mut y = top;
        if let Some((n, from, to)) = server.answered {
            let (x, to) = (self.x(from), self.x(to));
            let text = format!("{n} answered");
            html.tag("rect")
                .class("bar answered")
                .px("x", x)
                .px("y", y)
                .px("width", (to - x).max(4.0))
                .px("height", 8.0)
                .body(|html| {
                    html.tag("title").text(&format!("{n} requests that were in flight at the signal were answered"));
                });
            let w = width(&text, SMALL);
            if let Some(at) = [to + 8.0, x - w - 8.0].into_iter().find(|at| *at >= 0.0 && at + w <= CHART_W) {
                self.taken.push(Area { x: at, y: y - 4.0, w, h: 16.0 });
                html.tag("text").class("small").px("x", at).px("y", y + 8.0).text(&text);
            }
            y += 18.0;
        }
        if server.requests.len() > BARS_MAX {
            return density::draw(&server.requests, |at| self.x(at), y, html);
        }
        let (pitch, h) = pitch(server.requests.len());
        for request in &server.requests {
            self.bar(request, y, h, html);
            y += pitch;
        }
    }

    fn bar(&self, r: &Request, y: f64, h: f64, html: &mut Html) {
        let (x, to) = (self.x(r.from.unwrap_or(r.at)), self.x(r.at));
        let middle = y + h / 2.0;
        html.tag("a").num("href", format_args!("#{}", super::html::component(&r.id))).class("request").body(|html| {
            let said = format!("{} at {}", r.title, words::exactly(self.scene.zero, r.at));
            html.tag("title").text(&said);
            if to - x > 0.5 {
                html.tag("rect")
                    .class(bar_class(r.outcome))
                    .px("x", x)
                    .px("y", y)
                    .px("width", to - x)
                    .px("height", h)
                    .empty();
            }
            mark(r.outcome, to, middle, h.max(5.0) / 2.0 + 1.0, html);
        });
    }
}

/// Pitch and thickness of so many bars.
fn pitch(n: usize) -> (f64, f64) {
    if n <= THICK_MAX { (14.0, 9.0) } else { (8.0, 5.0) }
}

fn requests_height(server: &Server) -> f64 {
    let answered = if server.answered.is_some() { 18.0 } else { 0.0 };
    let n = server.requests.len();
    let lost = match n {
        0 => 0.0,
        n if n > BARS_MAX => density::HEIGHT,
        n => n as f64 * pitch(n).0,
    };
    answered + lost + if answered + lost > 0.0 { 8.0 } else { 0.0 }
}

pub(super) fn bar_class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unanswered => "bar unanswered",
        Outcome::Truncated => "bar truncated",
        Outcome::Refused => "bar refused",
        Outcome::ErrorMade => "bar error-made",
    }
}

/// What tells the outcome without its colour: a cross, half a circle, an empty diamond, a square.
pub(super) fn mark(outcome: Outcome, x: f64, y: f64, r: f64, html: &mut Html) {
    let (l, t, right, b) = (Px(x - r), Px(y - r), Px(x + r), Px(y + r));
    let (cx, cy) = (Px(x), Px(y));
    let (class, d) = match outcome {
        Outcome::Unanswered => ("mark unanswered", format!("M{l} {t}L{right} {b}M{l} {b}L{right} {t}")),
        Outcome::Truncated => ("mark truncated", format!("M{cx} {t}A{0} {0} 0 0 1 {cx} {b}Z", Px(r))),
        Outcome::Refused => ("mark refused", format!("M{l} {cy}L{cx} {t}L{right} {cy}L{cx} {b}Z")),
        Outcome::ErrorMade => ("mark error-made", format!("M{l} {t}H{right}V{b}H{l}Z")),
    };
    html.tag("path").class(class).attr("d", &d).empty();
}
