//! The chart's manifests, applied to the cluster by kubectl, and the agent that the DaemonSet runs.

use super::{Cluster, NODE};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Of the release that `cargo xtask cluster` renders, which is also its name.
pub const NAMESPACE: &str = "why502";
/// The kinds of the Prometheus operator, from its repository.
const KINDS: [&str; 2] = ["servicemonitors", "prometheusrules"];

/// One agent.
#[derive(Clone, Debug)]
pub struct AgentPod {
    pub name: String,
    pub uid: String,
    /// Host pid.
    pub pid: u32,
    pub restarts: u64,
}

/// A manifest that is applied. Deleted on drop.
#[derive(Debug)]
pub struct Installed<'c> {
    cluster: &'c Cluster,
    manifest: PathBuf,
    /// What kubectl said of each object.
    pub created: Vec<String>,
    gone: bool,
}

/// The file of a kind's definition.
fn definition(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/prometheus-operator/{kind}.yaml"))
}

/// `kubectl apply` of the definitions of ServiceMonitor and PrometheusRule.
pub fn define_kinds(cluster: &Cluster) -> Result<()> {
    for kind in KINDS {
        cluster.kubectl(&["apply", "-f", &definition(kind).display().to_string()])?;
        let name = format!("crd/{kind}.monitoring.coreos.com");
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &name])?;
    }
    Ok(())
}

impl<'c> Installed<'c> {
    /// First as a rehearsal that the API server checks, then really.
    pub fn apply(cluster: &'c Cluster, manifest: &Path) -> Result<Self> {
        let ns = serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        cluster.apply(&ns)?;
        let file = manifest.display().to_string();
        let rehearsed = cluster.kubectl(&["apply", "--dry-run=server", "-f", &file])?;
        let mut installed = Self { cluster, manifest: manifest.into(), created: Vec::new(), gone: false };
        let created = cluster.kubectl(&["apply", "-f", &file])?;
        installed.created = created.lines().map(str::to_owned).collect();
        let promised: Vec<&str> = rehearsed.lines().map(|l| l.trim_end_matches(" (server dry run)")).collect();
        ensure!(promised == installed.created, "the rehearsal said {promised:?}, then {:?}", installed.created);
        ensure!(installed.created.iter().all(|l| l.ends_with(" created")), "not new: {:?}", installed.created);
        Ok(installed)
    }

    /// Its agent, when the DaemonSet says that all are ready. `not`: one that was before.
    pub fn ready(&self, not: Option<&AgentPod>) -> Result<AgentPod> {
        let mut found = None;
        let waited = crate::guard::wait("a ready agent", crate::scene::LIMIT, || {
            found = self.pod().ok().flatten().filter(|pod| not.is_none_or(|old| old.uid != pod.uid));
            found.is_some()
        });
        waited.with_context(|| self.state())?;
        let status = ["-n", NAMESPACE, "rollout", "status", "daemonset/why502", "--timeout=60s"];
        self.cluster.kubectl(&status).with_context(|| self.state())?;
        found.context("no pod")
    }

    fn pod(&self) -> Result<Option<AgentPod>> {
        let said = self.cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "json"])?;
        let list: Value = serde_json::from_str(&said)?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(pod) = items.iter().find(|pod| !pod["metadata"]["deletionTimestamp"].is_string()) else {
            return Ok(None);
        };
        let status = &pod["status"]["containerStatuses"][0];
        if status["ready"] != true {
            return Ok(None);
        }
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let id = text(&status["containerID"]);
        let id = id.rsplit('/').next().unwrap_or_default();
        ensure!(pod["spec"]["nodeName"] == NODE, "the agent is on no node");
        Ok(Some(AgentPod {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            pid: u32::try_from(self.cluster.runtime.cri.pid(id)?)?,
            restarts: status["restartCount"].as_u64().unwrap_or(u64::MAX),
        }))
    }

    /// Why it may not be ready: its pods, their Events and their logs.
    fn state(&self) -> String {
        let ask = |args: &[&str]| match self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat()) {
            Ok(said) => said,
            Err(e) => format!("{e:#}\n"),
        };
        let words = ["describe", "pods,daemonsets"];
        format!("{}{}", ask(&words), ask(&["logs", "-l", "app.kubernetes.io/name=why502", "--tail=20"]))
    }

    /// What an agent has said on its standard error and output.
    pub fn log(&self, pod: &AgentPod) -> Result<String> {
        self.cluster.kubectl(&["-n", NAMESPACE, "logs", &pod.name])
    }

    /// From an agent, by way of the API server.
    pub fn get(&self, pod: &AgentPod, path: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:9502/proxy{path}", pod.name);
        self.cluster.kubectl(&["get", "--raw", &path])
    }

    /// `kubectl delete -f`: returns when nothing of it is left in the API.
    pub fn remove(mut self) -> Result<()> {
        self.gone = true;
        self.delete()?;
        let kinds =
            "daemonsets,pods,serviceaccounts,configmaps,services,networkpolicies,servicemonitors,prometheusrules";
        let label = "app.kubernetes.io/name=why502";
        let left = self.cluster.kubectl(&["-n", NAMESPACE, "get", kinds, "-l", label, "-o", "name"])?;
        let wide = "clusterroles,clusterrolebindings,priorityclasses";
        let wide = self.cluster.kubectl(&["get", wide, "-l", label, "-o", "name"])?;
        if !left.trim().is_empty() || !wide.trim().is_empty() {
            bail!("left in the API: {left}{wide}");
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        let file = self.manifest.display().to_string();
        self.cluster.kubectl(&["delete", "-f", &file, "--timeout=60s"])?;
        let pods = ["-n", NAMESPACE, "get", "pods", "-o", "name"];
        self.cluster.wait("the end of the agents", &pods, str::is_empty)
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if !self.gone
            && let Err(e) = self.delete()
        {
            eprintln!("cannot remove the agents: {e:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the definition does not name is an error, as it is for `kubectl apply`.
    fn close(schema: &mut Value) {
        if let Value::Object(map) = schema {
            let named = map.contains_key("properties") && !map.contains_key("additionalProperties");
            if named && map.get("x-kubernetes-preserve-unknown-fields") != Some(&json!(true)) {
                map.insert("additionalProperties".into(), json!(false));
            }
            map.values_mut().for_each(close);
        } else if let Value::Array(all) = schema {
            all.iter_mut().for_each(close);
        }
    }

    fn wrong(kind: &str, object: &Value) -> Vec<String> {
        let text = std::fs::read_to_string(definition(kind)).unwrap();
        let definition: Value = serde_saphyr::from_str(&text).unwrap();
        let mut schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        close(&mut schema);
        let validator = jsonschema::validator_for(&schema).unwrap();
        validator.iter_errors(object).map(|e| format!("{e} at {}", e.instance_path())).collect()
    }

    #[test]
    fn the_operators_kinds_take_what_the_chart_renders() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/manifests/why502-everything.yaml");
        let all: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(manifest).unwrap()).unwrap();
        for (kind, file) in [("ServiceMonitor", KINDS[0]), ("PrometheusRule", KINDS[1])] {
            let object = all.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
            assert_eq!(wrong(file, object), Vec::<String>::new(), "{kind}");
            let mut other = object.clone();
            other["spec"]["endpoint"] = json!([]);
            assert_eq!(wrong(file, &other).len(), 1, "an unknown field of {kind} is not found");
        }
    }
}
