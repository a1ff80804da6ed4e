//! What runtimes leave on the disk for each container: OCI bundles, runc's state, Docker's and containers/storage's own
//! files. Read for one container at a time, when its cgroup comes up and no socket tells of it.
//!
//! Everything is below a root (`/`, or a host mount), bounded, and read with patience: a file that is not there, or not
//! whole yet, tells nothing.

use super::kubelet;
use super::runtimes::fact;
use crate::model::input::{ContainerFact, PodFact};
use crate::sinks::names::signal_number;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// No bundle is longer; what is, is not read.
const FILE_MAX: u64 = 16 << 20;

/// Bundles of containerd (CRI, nerdctl, Docker's own containerd), k3s, microk8s: below each the namespaces.
const CONTAINERD: &[&str] = &[
    "run/containerd/io.containerd.runtime.v2.task",
    "run/k3s/containerd/io.containerd.runtime.v2.task",
    "run/docker/containerd/daemon/io.containerd.runtime.v2.task",
    "var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task",
];
/// containerd's namespaces that are looked into.
const NAMESPACES: &[&str] = &["k8s.io", "moby", "default"];
/// Bundles of CRI-O and podman.
const STORAGE: &str = "run/containers/storage/overlay-containers";
/// What containers/storage knows of all its containers: names.
const STORAGE_NAMES: &str = "var/lib/containers/storage/overlay-containers/containers.json";
/// Docker's own file of a container.
const DOCKER: &str = "var/lib/docker/containers";
/// runc's roots: the container's labels hold the bundle's path and its annotations.
const RUNC: &[&str] = &[
    "run/containerd/runc/k8s.io",
    "run/docker/runtime-runc/moby",
    "run/runc",
    "run/containerd/runc/default",
    "run/k3s/containerd/runc/k8s.io",
];

/// Everything that is told of one container, `None` when there is nothing. The id must be a container's, as a cgroup's path
/// names it: it becomes part of file names.
pub(super) fn look(root: &Path, id: &str) -> Option<ContainerFact> {
    if !fact::is_id(id) {
        return None;
    }
    // A bundle without annotations names nothing.
    let named = |found: &ContainerFact| found.name.is_some() || found.pod.is_some();
    [docker, storage, containerd, runc].into_iter().find_map(|read| read(root, id).filter(named))
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

fn containerd(root: &Path, id: &str) -> Option<ContainerFact> {
    let bundles =
        CONTAINERD.iter().flat_map(|dir| NAMESPACES.iter().map(move |ns| format!("{dir}/{ns}/{id}/config.json")));
    let (path, bundle) =
        bundles.into_iter().find_map(|path| Some((root.join(&path), json::<Bundle>(&root.join(&path))?)))?;
    let mut found = of_annotations(id, &path, &bundle.annotations);
    found.runtime =
        Some(if path.components().any(|c| c.as_os_str() == "moby") { "docker" } else { "containerd" }.into());
    Some(found)
}

/// The annotations that containerd's CRI and CRI-O put into a bundle.
fn of_annotations(id: &str, path: &Path, annotations: &BTreeMap<String, String>) -> ContainerFact {
    let get = |key: &str| annotations.get(key).cloned();
    let mut found = ContainerFact { id: id.to_owned(), source: path.display().to_string(), ..ContainerFact::default() };
    // CRI-O keeps what kubelet gave in annotations of its own, as JSON.
    let inner = |key: &str| -> BTreeMap<String, String> {
        annotations.get(key).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    };
    let (labels, more) = (inner("io.kubernetes.cri-o.Labels"), inner("io.kubernetes.cri-o.Annotations"));
    kubelet::add(&mut found, &labels, &more);
    kubelet::add(&mut found, annotations, annotations);
    found.name = found.name.or_else(|| get("io.kubernetes.cri.container-name"));
    if found.name.as_deref() == Some("POD") {
        found.name = None;
    }
    found.image = get("io.kubernetes.cri.image-name").or_else(|| get("io.kubernetes.cri-o.ImageName"));
    found.pod = found.pod.or_else(|| {
        Some(PodFact {
            namespace: get("io.kubernetes.cri.sandbox-namespace"),
            name: get("io.kubernetes.cri.sandbox-name"),
            uid: get("io.kubernetes.cri.sandbox-uid")?,
        })
    });
    found.stop_signal = get("org.opencontainers.image.stopSignal").and_then(|s| signal_number(&s));
    found.labels = labels;
    fact::clip(&mut found);
    found
}

fn storage(root: &Path, id: &str) -> Option<ContainerFact> {
    #[derive(Deserialize)]
    struct Stored {
        #[serde(default)]
        id: String,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        metadata: String,
    }
    #[derive(Default, Deserialize)]
    struct Metadata {
        #[serde(rename = "image-name")]
        image: Option<String>,
        #[serde(rename = "pod-id")]
        pod: Option<String>,
    }
    let path = root.join(STORAGE).join(id).join("userdata/config.json");
    let bundle: Bundle = json(&path)?;
    let mut found = of_annotations(id, &path, &bundle.annotations);
    let crio = bundle.annotations.keys().any(|key| key.starts_with("io.kubernetes.cri-o."));
    found.runtime = Some(if crio { "cri-o" } else { "podman" }.into());
    if found.stop_signal == Some(SIGTERM) {
        // podman writes its default as well: it declares nothing.
        found.stop_signal = None;
    }
    if !crio {
        let all: Vec<Stored> = json(&root.join(STORAGE_NAMES)).unwrap_or_default();
        if let Some(stored) = all.into_iter().find(|stored| stored.id == id) {
            let metadata: Metadata = serde_json::from_str(&stored.metadata).unwrap_or_default();
            found.name = found.name.or_else(|| stored.names.into_iter().next());
            found.image = found.image.or(metadata.image);
            found.pod = found.pod.or_else(|| {
                let uid = metadata.pod.filter(|uid| !uid.is_empty())?;
                Some(PodFact { namespace: None, name: None, uid })
            });
        }
    }
    fact::clip(&mut found);
    Some(found)
}

const SIGTERM: u32 = 15;

fn docker(root: &Path, id: &str) -> Option<ContainerFact> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Kept {
        #[serde(default)]
        name: String,
        config: Config,
        restart_count: Option<u32>,
        created: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        image: Option<String>,
        stop_signal: Option<String>,
        stop_timeout: Option<i64>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Host {
        cgroup_parent: String,
    }
    let dir = root.join(DOCKER).join(id);
    let path = dir.join("config.v2.json");
    let kept: Kept = json(&path)?;
    let host: Host = json(&dir.join("hostconfig.json")).unwrap_or_default();
    let found = fact::Docker {
        id: id.to_owned(),
        source: path.display().to_string(),
        runtime: "docker",
        name: kept.name,
        image: kept.config.image,
        labels: kept.config.labels,
        restarts: kept.restart_count,
        stop_signal: kept.config.stop_signal.as_deref().and_then(signal_number),
        stop_timeout: kept.config.stop_timeout,
        cgroup_parent: host.cgroup_parent,
        created: kept.created,
    };
    Some(found.fact())
}

fn runc(root: &Path, id: &str) -> Option<ContainerFact> {
    #[derive(Deserialize)]
    struct State {
        config: Config,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        labels: Vec<String>,
    }
    let paths = RUNC.iter().map(|dir| root.join(dir).join(id).join("state.json"));
    let (path, state): (PathBuf, State) = paths.into_iter().find_map(|path| Some((path.clone(), json(&path)?)))?;
    let labels = state.config.labels.iter().filter_map(|label| label.split_once('='));
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Some(of_annotations(id, &path, &labels))
}

fn json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    // A pipe would wait for its writer.
    let file =
        std::fs::OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text).ok()?;
    if text.len() as u64 > FILE_MAX {
        return None;
    }
    serde_json::from_slice(&text).ok()
}
