//! Pages: incidents and stops of a node as a list, each stop as a picture, all of a recording as one file. Pure: what is
//! known in, HTML out. No script, nothing from elsewhere.
//!
//! A served page takes its style from [`STYLE`] at `style.css` beside the list, and is meant for the [`CSP`]; its links are
//! relative, so that it works behind any proxy: the list at `.`, `stop/ID` and `incident/ID` below it.

mod density;
mod facts;
mod html;
mod incident;
mod list;
mod scale;
mod scene;
mod stop;
pub mod svg;
mod words;

use crate::model::incident::{Incident, Stop};
use html::Html;

pub use list::{Filter, ListPage, ROWS_MAX, together};

/// The one stylesheet.
pub const STYLE: &str = include_str!("style.css");
/// Header `Content-Security-Policy` for served pages.
pub const CSP: &str =
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
/// For a file, which has its style in it.
const CSP_FILE: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'";

/// A stop, and what belongs to its picture.
#[derive(Clone, Copy, Debug)]
pub struct StopPage<'a> {
    pub stop: &'a Stop,
    /// Stops of the same pod at the same time: the other server of the container, the other containers.
    pub others: &'a [Stop],
    /// Of all of these stops.
    pub incidents: &'a [Incident],
    /// How many of them are not given here, because there are too many.
    pub left_out: u64,
}

/// One stop.
pub fn stop(page: &StopPage) -> String {
    let title = stop::title(page);
    document(&title, Frame::Served { root: "../" }, |html| stop::section(page, "", true, html))
}

/// One incident.
pub fn incident(incident: &Incident) -> String {
    document(&incident::title(incident), Frame::Served { root: "../" }, |html| incident::section(incident, true, html))
}

/// Incidents and stops with filters.
pub fn list(page: &ListPage) -> String {
    document("Incidents and stops", Frame::Served { root: "" }, |html| list::section(page, html))
}

/// What there is to say instead of a stop or an incident.
pub fn message(title: &str, text: &str) -> String {
    document(title, Frame::Served { root: "../" }, |html| {
        html.tag("h1").text(title);
        html.tag("p").text(text);
        html.tag("p").body(|html| html.tag("a").attr("href", "../").text("Incidents and stops of this node"));
    })
}

/// All stops and incidents of a recording as one file. `name`: the recording's.
pub fn file(name: &str, stops: &[Stop], incidents: &[Incident], left_out: u64) -> String {
    document(&format!("why502: {name}"), Frame::File, |html| list::all(name, stops, incidents, left_out, html))
}

#[derive(Clone, Copy)]
enum Frame {
    /// `root`: the way to the list.
    Served {
        root: &'static str,
    },
    File,
}

fn document(title: &str, frame: Frame, body: impl FnOnce(&mut Html)) -> String {
    let mut html = Html::document();
    html.tag("html").attr("lang", "en").body(|html| {
        html.tag("head").body(|html| {
            html.tag("meta").attr("charset", "utf-8").empty();
            html.tag("title").text(title);
            html.tag("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1").empty();
            // An empty one: browsers ask for it otherwise.
            html.tag("link").attr("rel", "icon").attr("href", "data:,").empty();
            match frame {
                Frame::Served { root } => {
                    html.tag("link").attr("rel", "stylesheet").num("href", format_args!("{root}style.css")).empty();
                }
                Frame::File => {
                    html.tag("meta").attr("http-equiv", "Content-Security-Policy").attr("content", CSP_FILE).empty();
                    html.tag("style").body(|html| html.literal(STYLE));
                }
            }
        });
        html.tag("body").body(|html| {
            html.tag("header").body(|html| match frame {
                Frame::Served { root } => {
                    let list = if root.is_empty() { "./" } else { root };
                    html.tag("a").attr("href", list).text("why502");
                    html.text(": incidents and stops of this node");
                }
                Frame::File => html.text("why502"),
            });
            html.tag("main").body(body);
            html.tag("footer").body(|html| html.text(concat!("why502 ", env!("CARGO_PKG_VERSION"))));
        });
    });
    html.finish()
}
