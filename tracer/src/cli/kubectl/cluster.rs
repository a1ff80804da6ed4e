//! What kubectl is asked: its own configuration, log-in and rights are the user's, and none of it is done a second time here.

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

/// Labels of the chart's pods.
pub(super) const SELECTOR: &str = "app.kubernetes.io/name=why502";
/// Port of an agent whose pod names none.
const PORT: u16 = 9502;
/// kubectl waits for an API server without an end otherwise.
const REQUEST: &str = "--request-timeout=30s";

/// A cluster, by what is handed on to kubectl.
pub(super) struct Cluster {
    flags: Vec<OsString>,
}

/// A pod with an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentPod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) port: u16,
    /// Why it cannot be asked now.
    pub(super) away: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    namespace: String,
    name: String,
    #[serde(default)]
    generate_name: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Debug, Deserialize)]
struct Owner {
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    name: String,
    container_port: u16,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: String,
}

impl Pod {
    /// Its node, when no other pod ever had its name: controllers but the StatefulSet's make names by chance, people do not.
    pub(super) fn only_node(&self) -> Option<String> {
        let by_chance = ["ReplicaSet", "DaemonSet", "Job", "ReplicationController"];
        let owned = self.metadata.owner_references.iter().any(|owner| by_chance.contains(&&*owner.kind));
        let unique = owned && !self.metadata.generate_name.is_empty();
        (unique && !self.spec.node_name.is_empty()).then(|| self.spec.node_name.clone())
    }

    fn agent(self) -> AgentPod {
        let ports = || self.spec.containers.iter().flat_map(|container| &container.ports);
        let port = ports().find(|port| port.name == "http").map_or(PORT, |port| port.container_port);
        let away = match (self.metadata.deletion_timestamp.is_some(), &*self.status.phase) {
            (true, _) => Some("is being deleted".to_owned()),
            (false, "Running") => None,
            (false, phase) => Some(format!("is {phase}, not Running")),
        };
        let node = if self.spec.node_name.is_empty() { "(none yet)".into() } else { self.spec.node_name };
        AgentPod { namespace: self.metadata.namespace, name: self.metadata.name, node, port, away }
    }
}

impl Cluster {
    pub(super) fn new(flags: [(&str, &Option<String>); 3]) -> Cluster {
        let given =
            flags.into_iter().filter_map(|(name, value)| Some(OsString::from(format!("{name}={}", value.as_ref()?))));
        Cluster { flags: given.collect() }
    }

    /// kubectl, of this cluster.
    pub(super) fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.flags).stdin(Stdio::null());
        command
    }

    fn ask(&self, args: &[&str]) -> anyhow::Result<String> {
        let ended = self.kubectl().args(args).output().map_err(not_started)?;
        if !ended.status.success() {
            bail!("{}", complaint(&ended.stderr));
        }
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    /// What there is, for a person who is typing: nothing, when kubectl has no answer at once.
    pub(super) fn names(&self, args: &[&str]) -> Vec<String> {
        let ended = self.kubectl().args(args).args(["-o", "name", "--request-timeout=3s"]).output();
        // Of several kinds those are there that may be read.
        let text = ended.map(|ended| ended.stdout).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// The context's namespace.
    pub(super) fn namespace(&self) -> anyhow::Result<String> {
        let said = self.ask(&["config", "view", "--minify", "-o", "jsonpath={..namespace}"]);
        let said = said.context("the namespace is not known (-n NAME gives it)")?;
        let name = said.trim();
        Ok(if name.is_empty() { "default".into() } else { super::name(name).map_err(|why| anyhow!(why))? })
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Option<Pod>> {
        let said = self.ask(&["get", "pod", name, "-n", namespace, "--ignore-not-found", "-o", "json", REQUEST]);
        let said = said.with_context(|| format!("cannot look up pod {namespace}/{name}"))?;
        if said.trim().is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&said).context("kubectl's pod is not understood")?))
    }

    /// The agents, by their nodes.
    pub(super) fn agents(&self, namespace: Option<&str>, selector: &str) -> anyhow::Result<Vec<AgentPod>> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Pod>,
        }
        let mut args = vec!["get", "pods", "-l", selector, "-o", "json", REQUEST];
        args.extend(namespace.map_or(vec!["--all-namespaces"], |name| vec!["-n", name]));
        let said = self.ask(&args).map_err(|e| {
            let what = match namespace {
                Some(name) => format!("cannot list the agents in namespace {name}"),
                None if forbidden(&e.to_string()) => {
                    "cannot list the agents (--agents NAMESPACE asks for one namespace only)".into()
                }
                None => "cannot list the agents".into(),
            };
            e.context(what)
        })?;
        let List { items } = serde_json::from_str(&said).context("kubectl's list of pods is not understood")?;
        let mut agents: Vec<AgentPod> = items.into_iter().map(Pod::agent).collect();
        if agents.is_empty() {
            let place = namespace.map_or_else(|| "any namespace".to_owned(), |name| format!("namespace {name}"));
            bail!(
                "no agent in {place}: no pod has the labels {selector}. Install the chart (packaging/helm/why502), or say \
                 where they are: --agents NAMESPACE, --agents-selector LABELS"
            );
        }
        agents.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        // While one takes the other's place, the node has two: the one that answers is enough.
        let running: Vec<String> = agents.iter().filter(|a| a.away.is_none()).map(|a| a.node.clone()).collect();
        agents.retain(|agent| agent.away.is_none() || !running.contains(&agent.node));
        Ok(agents)
    }
}

pub(super) fn not_started(e: std::io::Error) -> anyhow::Error {
    match e.kind() {
        ErrorKind::NotFound => {
            anyhow!("there is no kubectl in the path: install it, or ask an agent with why502 incidents --url")
        }
        _ => anyhow!(e).context("kubectl cannot be started"),
    }
}

/// It is a right that is missing, as the API server says it.
pub(super) fn forbidden(why: &str) -> bool {
    why.to_lowercase().contains("forbidden")
}

/// What kubectl said last: its warnings come before.
pub(super) fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    format!("kubectl: {}", last.unwrap_or("failed and did not say why"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn owned(kind: &str, generated: &str) -> Option<String> {
        let meta = json!({"name": "web-1", "generateName": generated, "ownerReferences": [{"kind": kind}]});
        pod(json!({"metadata": meta, "spec": {"nodeName": "n1"}})).only_node()
    }

    #[test]
    fn a_pod_is_on_one_node_when_its_name_is_only_its_own() {
        assert_eq!(owned("ReplicaSet", "web-").as_deref(), Some("n1"));
        assert_eq!(owned("StatefulSet", "web-"), None, "web-1 may have run elsewhere before");
        assert_eq!(owned("ReplicaSet", ""), None);
        assert_eq!(pod(json!({"metadata": {"name": "web"}, "spec": {"nodeName": "n1"}})).only_node(), None);
        assert_eq!(pod(json!({"metadata": {"name": "web"}})).only_node(), None);
    }

    #[test]
    fn agents_and_why_one_cannot_be_asked() {
        let agent = |phase: &str, deleted: Option<&str>, ports: serde_json::Value| {
            let meta = json!({"name": "a", "namespace": "w", "deletionTimestamp": deleted});
            let spec = json!({"nodeName": "n1", "containers": [{"ports": ports}]});
            pod(json!({"metadata": meta, "spec": spec, "status": {"phase": phase}})).agent()
        };
        let there = agent("Running", None, json!([{"containerPort": 1}, {"name": "http", "containerPort": 8080}]));
        assert_eq!((there.port, there.away, &*there.node), (8080, None, "n1"));
        let going = agent("Running", Some("2026-11-22T14:03:22Z"), json!([]));
        assert_eq!((going.port, going.away.as_deref()), (9502, Some("is being deleted")));
        assert_eq!(agent("Pending", None, json!([])).away.as_deref(), Some("is Pending, not Running"));
    }

    #[test]
    fn the_last_word_counts() {
        assert_eq!(complaint(b"W1 deprecated\nerror: no\n\n"), "kubectl: error: no");
        assert_eq!(complaint(b""), "kubectl: failed and did not say why");
    }
}
