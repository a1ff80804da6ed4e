//! JSON: one object a line, as `docs/schema/` describes it. serde escapes control characters; bidi characters stay as
//! they are, since a program reads this.

use crate::model::event::{Event, EventKind};
use crate::model::incident::{Container, Pod, SCHEMA};
use crate::model::{BootNs, Output};
use serde::Serialize;

/// One incident or stop, without the line end.
pub fn output(output: &Output) -> serde_json::Result<String> {
    serde_json::to_string(output)
}

/// Any other object, without the line end.
pub fn line(object: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(object)
}

/// An event as `trace` prints it: the event itself, with the names of the container that it belongs to.
#[derive(Debug, Serialize)]
pub struct EventLine<'a> {
    #[serde(rename = "type")]
    kind_of_line: &'static str,
    schema: u32,
    id: String,
    /// RFC 3339 with ns; null before the first clock sample.
    pub at: Option<String>,
    at_boot_ns: BootNs,
    cpu: u16,
    /// Ids of [`super::names::QUALITY`]: what could not be read.
    quality: Vec<&'static str>,
    pub pod: Option<Pod>,
    pub container: Option<Container>,
    /// Name of a sent reset's `reason` on this kernel: the numbers differ from release to release.
    pub reset_reason: Option<&'a str>,
    #[serde(flatten)]
    kind: &'a EventKind,
}

impl<'a> EventLine<'a> {
    pub fn new(event: &'a Event) -> Self {
        EventLine {
            kind_of_line: "event",
            schema: SCHEMA,
            id: event.id.to_string(),
            at: None,
            at_boot_ns: event.at,
            cpu: event.cpu,
            quality: super::names::quality(event.quality),
            pod: None,
            container: None,
            reset_reason: None,
            kind: &event.kind,
        }
    }

    /// Without the line end.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// What [`output`] wrote. An error: it is of another version of why502, or something else.
pub fn parse(json: &str) -> serde_json::Result<Output> {
    #[derive(serde::Deserialize)]
    struct Typed<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
    }
    Ok(match &*serde_json::from_str::<Typed<'_>>(json)?.kind {
        "stop" => Output::Stop(Box::new(serde_json::from_str(json)?)),
        _ => Output::Incident(Box::new(serde_json::from_str(json)?)),
    })
}
