//! An incident or a stop → a log record, by the semantic conventions' names where there are such, else `why502.*`.

use super::messages::{AnyValue, ArrayValue, KeyValue, LogRecord, Value};
use crate::model::Output;
use crate::model::incident::{Advice, Bound, Container, Incident, Link, Missing, Pod, Stop};
use jiff::Timestamp;

/// Bytes of one string, and of one list: what is longer says no more, and thousands of records may have to wait.
const TEXT: usize = 1_024;
const LIST: usize = 4_096;

const INFO: (i32, &str) = (9, "INFO");
const WARN: (i32, &str) = (13, "WARN");
const ERROR: (i32, &str) = (17, "ERROR");

/// A record, and whose it is: the server that lost the request, not why502.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub resource: Vec<KeyValue>,
    pub record: LogRecord,
}

/// Attributes in the order in which they are added; absent ones are left out, as OTLP wants it.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue { key: key.to_owned(), value: Some(value.into()) });
    }

    fn text(&mut self, key: &str, text: impl AsRef<str>) {
        self.add(key, Value::String(cut(text.as_ref()).to_owned()));
    }

    fn maybe(&mut self, key: &str, text: Option<impl AsRef<str>>) {
        text.into_iter().for_each(|text| self.text(key, text));
    }

    fn number(&mut self, key: &str, number: Option<u64>) {
        number.into_iter().for_each(|n| self.add(key, Value::Int(i64::try_from(n).unwrap_or(i64::MAX))));
    }

    fn list(&mut self, key: &str, texts: impl Iterator<Item = String>) {
        let (mut values, mut size): (Vec<AnyValue>, usize) = (Vec::new(), 0);
        for text in texts {
            let text = cut(&text);
            size += text.len();
            if size > LIST {
                break;
            }
            values.push(Value::String(text.to_owned()).into());
        }
        if !values.is_empty() {
            self.add(key, Value::Array(ArrayValue { values }));
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT)]
}

pub fn entry(output: &Output) -> Entry {
    match output {
        Output::Incident(incident) => self::incident(incident),
        Output::Stop(stop) => self::stop(stop),
    }
}

/// 0 where the wall time was not known, which OTLP calls unknown.
fn unix_ns(at: &str) -> u64 {
    at.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_nanosecond()).ok()).unwrap_or(0)
}

fn resource(node: &str, pod: Option<&Pod>, container: Option<&Container>) -> Vec<KeyValue> {
    let mut to = Attributes::default();
    let workload = pod.and_then(|pod| pod.workload.as_deref()).and_then(|workload| workload.split_once('/'));
    let pod_name = pod.and_then(|pod| pod.name.as_deref());
    let container_name = container.and_then(|container| container.name.as_deref());
    // As the conventions derive it for Kubernetes: workload, pod, container.
    let service = workload.map(|(_, name)| name).or(pod_name).or(container_name).unwrap_or("unknown_service");
    to.text("service.name", service);
    let namespace = pod.and_then(|pod| pod.namespace.as_deref());
    to.maybe("service.namespace", namespace);
    if let (Some(namespace), Some(pod), Some(container)) = (namespace, pod_name, container_name) {
        to.text("service.instance.id", format!("{namespace}.{pod}.{container}"));
    }
    to.maybe("k8s.namespace.name", namespace);
    to.maybe("k8s.pod.name", pod_name);
    to.maybe("k8s.pod.uid", pod.map(|pod| &pod.uid));
    if let Some((kind, name)) = workload
        && ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob"].contains(&kind)
    {
        to.text(&format!("k8s.{}.name", kind.to_lowercase()), name);
    }
    to.maybe("k8s.container.name", pod.and(container_name));
    to.maybe("container.name", if pod.is_none() { container_name } else { None });
    to.maybe("container.id", container.map(|container| &container.id));
    to.maybe("container.runtime.name", container.and_then(|container| container.runtime.as_deref()));
    // Without a pod nothing says that this host is one of Kubernetes.
    to.maybe("k8s.node.name", pod.map(|_| node));
    to.text("host.name", node);
    to.0
}

fn incident(i: &Incident) -> Entry {
    let mut to = Attributes::default();
    to.text("event.name", "why502.incident");
    to.text("error.type", i.cause.id());
    to.text("why502.id", &i.id);
    to.text("why502.outcome", i.outcome.id());
    to.text("why502.mechanism", i.mechanism.id());
    to.text("why502.cause", i.cause.id());
    to.maybe("why502.sub_cause", i.sub_cause.as_deref());
    to.text("why502.trigger", i.trigger.id());
    to.maybe("why502.stop", i.stop.as_deref());
    to.number("why502.requests.count", Some(i.requests.count.into()));
    to.text("why502.requests.bound", if i.requests.bound == Bound::Exact { "exact" } else { "at-least" });
    to.number("why502.age_ms", i.age_ms);
    to.add("why502.confidence.value", Value::Double(i.confidence.value));
    to.text("why502.confidence.level", i.confidence.level.id());
    to.maybe("client.address", i.requester.ip.map(|ip| ip.to_string()));
    to.number("client.port", i.requester.port.map(u64::from));
    to.maybe("server.address", i.server.ip.map(|ip| ip.to_string()).or_else(|| i.server.path.clone()));
    to.number("server.port", i.server.port.map(u64::from));
    to.text("network.transport", if i.server.path.is_some() { "unix" } else { "tcp" });
    to.number("http.response.status_code", i.response.status.map(u64::from));
    to.list("why502.chain", i.chain.iter().map(|link: &Link| link.text.clone()));
    said(&mut to, &i.advice, &i.missing);
    // What the server had no part in is no error of its.
    let severity = if i.cause.not_the_server() { INFO } else { ERROR };
    record((&i.at, &i.decided_at), severity, "why502.incident", &i.summary, to, {
        resource(&i.node, i.pod.as_ref(), i.container.as_ref())
    })
}

fn stop(s: &Stop) -> Entry {
    let mut to = Attributes::default();
    to.text("event.name", "why502.stop");
    to.text("why502.id", &s.id);
    to.text("why502.server", &s.server);
    to.text("why502.trigger", s.trigger.id());
    to.maybe("why502.signal", s.signal.as_deref());
    to.number("why502.incidents", Some(s.incidents));
    to.list("why502.by_cause", s.by_cause.iter().map(|(cause, count)| format!("{cause}={count}")));
    to.number("why502.in_flight.at_signal", s.in_flight.at_signal);
    to.number("why502.in_flight.answered", s.in_flight.answered);
    to.number("why502.in_flight.cut", Some(s.in_flight.cut));
    to.number("why502.grace_ms", s.grace.as_ref().map(|grace| grace.ms));
    to.list("why502.phases", s.phases.iter().map(|p| format!("+{} ms {}: {}", p.after_ms, p.name, p.text)));
    said(&mut to, &s.advice, &s.missing);
    let signal = s.signal.as_deref().unwrap_or("no signal seen");
    let lost = match s.incidents {
        0 => "no request was lost".to_owned(),
        1 => "1 request was lost".to_owned(),
        n => format!("{n} requests were lost"),
    };
    let body = format!("{} was stopped ({signal}, {}): {lost}", s.server, s.trigger);
    let severity = if s.incidents == 0 { INFO } else { WARN };
    record((&s.at, &s.ended_at), severity, "why502.stop", &body, to, {
        resource(&s.node, s.pod.as_ref(), s.container.as_ref())
    })
}

fn said(to: &mut Attributes, advice: &[Advice], missing: &[Missing]) {
    to.list("why502.advice", advice.iter().map(|a| format!("{} ({}): {}", a.target, a.kind, a.change)));
    to.list("why502.missing", missing.iter().map(|m| m.fact.clone()));
}

fn record(
    (at, observed): (&str, &str),
    (number, text): (i32, &str),
    name: &str,
    body: &str,
    attributes: Attributes,
    resource: Vec<KeyValue>,
) -> Entry {
    let record = LogRecord {
        time_unix_nano: unix_ns(at),
        observed_time_unix_nano: unix_ns(observed),
        severity_number: number,
        severity_text: text.to_owned(),
        body: Some(Value::String(cut(body).to_owned()).into()),
        attributes: attributes.0,
        event_name: name.to_owned(),
    };
    Entry { resource, record }
}
