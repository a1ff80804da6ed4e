//! Kubernetes objects in YAML or JSON: what they say about starting and stopping a pod's containers.
//!
//! Only what matters for a stop is read; everything else, and every kind that runs no pods, is passed over. The reader is
//! bounded (nodes, aliases, depth) by the YAML library's own budget.

use crate::model::input::SpecFact;
use crate::model::place::{At, Place, Trouble};
use crate::sinks::names::signal_number;
use serde::Deserialize;
use serde_saphyr::Spanned;

/// Kubernetes' own.
pub const GRACE_DEFAULT: u64 = 30;
/// Objects within lists within lists.
const DEPTH_MAX: usize = 4;

/// One pod, or what makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `Deployment`
    pub kind: String,
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub at: Place,
    /// terminationGracePeriodSeconds.
    pub grace: At<u64>,
    /// PID 1 is the pause container's: signals go to the containers' own first processes all the same.
    pub shares_pids: bool,
    /// Init containers that end are left out, sidecars are in.
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub at: Place,
    pub image: Option<String>,
    /// Replaces the image's ENTRYPOINT.
    pub command: Option<At<Vec<String>>>,
    /// Replaces its CMD.
    pub args: Option<At<Vec<String>>>,
    pub pre_stop: Option<At<Handler>>,
    /// lifecycle.stopSignal (Kubernetes 1.33).
    pub stop_signal: Option<At<u32>>,
    /// An init container with restartPolicy Always: stopped after the others.
    pub sidecar: bool,
    /// containerPort of its ports.
    pub ports: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    Exec(Vec<String>),
    /// Seconds.
    Sleep(u64),
    /// httpGet or tcpSocket: what it does depends on who answers.
    Http,
}

/// All pods of a file, in its order.
pub fn read(name: &str, text: &str) -> Result<Vec<Workload>, Trouble> {
    let mut found = Vec::new();
    for (first, document) in documents(text) {
        let place = |line: u64| Place::line(name, first + u32::try_from(line).unwrap_or(0).max(1) - 1);
        let options = serde_saphyr::options! { with_snippet: false };
        let trouble = |e: &serde_saphyr::Error| {
            let text = e.to_string();
            // The location is said in front, in one form for all inputs.
            let what = text.split(" at line ").next().unwrap_or(&text).to_owned();
            Trouble::new(place(e.location().map_or(1, |at| at.line())), what)
        };
        let head: Head = serde_saphyr::from_str_with_options(document, options.clone()).map_err(|e| trouble(&e))?;
        match serde_saphyr::from_str_with_options::<Object>(document, options) {
            Ok(object) => object.workloads(&place, &mut found, 0)?,
            // Of other kinds nothing is known but their kind: they may have anything where a pod's template would be.
            Err(_) if head.kind.is_some_and(|kind| !KINDS.contains(&kind.as_str())) => {}
            Err(e) => return Err(trouble(&e)),
        }
    }
    Ok(found)
}

/// What it says about stopping its containers, as facts. `pod_uid` when it is about one pod. Their time is the caller's.
pub fn facts(source: &str, pod_uid: Option<&str>, workload: &Workload) -> Vec<SpecFact> {
    let name = workload.name.as_deref().unwrap_or("");
    let fact = |c: &Container| SpecFact {
        at: 0,
        source: source.to_owned(),
        pod_uid: pod_uid.map(str::to_owned),
        workload: format!("{}/{name}", workload.kind),
        container: c.name.clone(),
        pre_stop: match c.pre_stop.as_ref().map(|hook| &hook.value) {
            Some(Handler::Exec(argv)) => Some(argv.clone()),
            _ => None,
        },
        stop_signal: c.stop_signal.as_ref().map(|signal| signal.value),
        grace_s: workload.grace.value,
    };
    workload.containers.iter().map(fact).collect()
}

/// The documents of a stream, each with its first line. A `---` at the beginning of a line is always a mark: text within
/// a document is indented.
fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut out = Vec::new();
    let (mut start, mut first, mut at) = (0, 1u32, 0);
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        at += line.len();
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.trim().is_empty() || rest.starts_with([' ', '#'])) {
            out.push((first, &text[start..at - line.len()]));
            (start, first) = (at, number + 1);
        }
    }
    out.push((first, &text[start..]));
    out.retain(|(_, document)| {
        let said = |line: &str| !line.is_empty() && !line.starts_with('#') && !line.starts_with("...");
        document.lines().any(|line| said(line.trim()))
    });
    out
}

/// Kinds of Kubernetes itself that run pods.
const KINDS: &[&str] = &[
    "Pod",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "Job",
    "CronJob",
    "PodTemplate",
    "List",
];

#[derive(Deserialize)]
struct Head {
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Object {
    kind: Option<Spanned<String>>,
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    template: Option<Template>,
    items: Option<Vec<Object>>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct Template {
    spec: Option<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    template: Option<Box<Template>>,
    job_template: Option<Box<Template>>,
    termination_grace_period_seconds: Option<Spanned<u64>>,
    share_process_namespace: Option<bool>,
    containers: Option<Vec<Spanned<RawContainer>>>,
    init_containers: Option<Vec<Spanned<RawContainer>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    name: Option<String>,
    image: Option<String>,
    command: Option<Spanned<Vec<String>>>,
    args: Option<Spanned<Vec<String>>>,
    restart_policy: Option<String>,
    lifecycle: Option<Lifecycle>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    container_port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    pre_stop: Option<Spanned<RawHandler>>,
    stop_signal: Option<Spanned<String>>,
}

#[derive(Deserialize)]
struct RawHandler {
    exec: Option<Exec>,
    sleep: Option<Sleep>,
}

#[derive(Deserialize)]
struct Exec {
    #[serde(default)]
    command: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Sleep {
    seconds: Option<u64>,
}

type Lines<'a> = &'a dyn Fn(u64) -> Place;

impl Object {
    fn workloads(self, place: Lines, found: &mut Vec<Workload>, depth: usize) -> Result<(), Trouble> {
        let Some(kind) = self.kind else {
            return Err(Trouble::new(place(1), "an object without a kind: not a Kubernetes object"));
        };
        let line = kind.defined.line();
        if kind.value == "List" && depth < DEPTH_MAX {
            for object in self.items.unwrap_or_default() {
                object.workloads(place, found, depth + 1)?;
            }
            return Ok(());
        }
        let metadata = self.metadata.unwrap_or_default();
        let spec = self.spec.or_else(|| self.template.and_then(|template| template.spec));
        let Some(spec) = spec.and_then(Spec::of_pod) else { return Ok(()) };
        let grace = match spec.termination_grace_period_seconds {
            Some(grace) => At::new(grace.value, place(grace.defined.line())),
            None => At::default_of(GRACE_DEFAULT),
        };
        let mut containers = Vec::new();
        let sidecars = spec.init_containers.into_iter().flatten().filter(|c| c.value.is_sidecar());
        for (raw, sidecar) in
            spec.containers.into_iter().flatten().map(|c| (c, false)).chain(sidecars.map(|c| (c, true)))
        {
            containers.push(container(raw, sidecar, place)?);
        }
        found.push(Workload {
            kind: kind.value,
            name: metadata.name,
            namespace: metadata.namespace,
            at: place(line),
            grace,
            shares_pids: spec.share_process_namespace.unwrap_or(false),
            containers,
        });
        Ok(())
    }
}

impl Spec {
    /// Down the templates to the pod's own. Their depth is bounded by the reader.
    fn of_pod(self) -> Option<Spec> {
        if self.containers.is_some() {
            return Some(self);
        }
        self.template.or(self.job_template)?.spec?.of_pod()
    }
}

impl RawContainer {
    fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }
}

fn container(raw: Spanned<RawContainer>, sidecar: bool, place: Lines) -> Result<Container, Trouble> {
    let at = place(raw.defined.line());
    let c = raw.value;
    let Some(name) = c.name else { return Err(Trouble::new(at, "a container without a name")) };
    let words = |list: Spanned<Vec<String>>| At::new(list.value, place(list.defined.line()));
    let lifecycle = c.lifecycle;
    let (pre_stop, stop_signal) = lifecycle.map_or((None, None), |l| (l.pre_stop, l.stop_signal));
    let stop_signal = stop_signal.map(|signal| {
        let at = place(signal.defined.line());
        let wrong = || Trouble::new(at.clone(), format!("stopSignal {:?} is not a signal", signal.value));
        Ok(At::new(signal_number(&signal.value).ok_or_else(wrong)?, at.clone()))
    });
    let pre_stop = pre_stop.map(|hook| {
        let at = place(hook.defined.line());
        let handler = match (hook.value.exec, hook.value.sleep) {
            (Some(exec), _) => Handler::Exec(exec.command.unwrap_or_default()),
            (None, Some(sleep)) => Handler::Sleep(sleep.seconds.unwrap_or(0)),
            (None, None) => Handler::Http,
        };
        At::new(handler, at)
    });
    Ok(Container {
        name,
        at,
        image: c.image,
        command: c.command.map(words),
        args: c.args.map(words),
        pre_stop,
        stop_signal: stop_signal.transpose()?,
        sidecar,
        ports: c.ports.into_iter().flatten().filter_map(|port| port.container_port).collect(),
    })
}

#[cfg(test)]
mod tests;
