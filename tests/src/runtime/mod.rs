//! Pods run by real container runtimes, each in a network namespace and a directory of its own.
//!
//! ```text
//! images      nginx, php-fpm and pause as images, made of this machine's programs
//! daemon      a runtime's daemon, and what it leaves behind
//! docker      dockerd, driven by its command line
//! containerd  containerd with its CRI plugin; cri: the client, speaking as a kubelet does; messages: of that protocol
//! deployed    a pod of nginx, php-fpm and more under load
//! agent       the agent's own container, with the chart's rights
//! ```

pub mod agent;
pub mod containerd;
pub mod cri;
mod daemon;
pub mod deployed;
pub mod docker;
pub mod images;
mod messages;

pub use daemon::{Daemon, Scratch, View};

use anyhow::Result;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A pod to run.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Below the cgroup hierarchies' roots, with a leading slash; without it the runtime's own choice.
    pub cgroup_parent: Option<String>,
    pub names: Names,
}

/// How the runtime names cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `…/pod<uid>/<id>`
    #[default]
    Cgroupfs,
    /// `….slice/cri-containerd-<id>.scope`
    Systemd,
}

/// A container to run in a pod.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub name: String,
    pub image: String,
    pub argv: Vec<OsString>,
    /// Directories that it sees where they are outside.
    pub shows: Vec<PathBuf>,
    /// Of its pod.
    pub grace: Duration,
    /// As the kubelet writes it down; it is run by who stops the container.
    pub pre_stop: Option<Vec<String>>,
    /// Starts of this container before.
    pub attempt: u32,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub spec: PodSpec,
    /// Of the pod's own container.
    pub id: String,
    pub ip: Ipv4Addr,
}

#[derive(Clone, Debug)]
pub struct Running {
    pub name: String,
    /// As the runtime tells it: 64 hex digits.
    pub id: String,
    /// Host pid of its PID 1.
    pub pid: i32,
}

/// A container of the agent, which may have ended.
#[derive(Clone, Debug)]
pub struct AgentRun {
    pub id: String,
    /// Host pid of its PID 1, 0 when it has ended.
    pub pid: i32,
    /// Of the pod that was made for it, if any.
    pub pod: Option<Pod>,
}

/// The names that a runtime tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    pub container: String,
    /// Namespace and name.
    pub pod: Option<(String, String)>,
}

/// What every runtime can do.
pub trait Engine: Sync {
    /// Its name and version.
    fn label(&self) -> String;
    /// Where it is asked for names.
    fn socket(&self) -> PathBuf;
    /// Requests come from there.
    fn netns(&self) -> PathBuf;
    /// What it calls a pod's container, and whether it knows the pod's name.
    fn called(&self, pod: &PodSpec, container: &str) -> Called;
    fn pod(&self, spec: &PodSpec) -> Result<Pod>;
    fn start(&self, pod: &Pod, spec: &ContainerSpec) -> Result<Running>;
    /// Runs the agent in a pod of its own, under this name. It may end at once.
    fn agent(&self, name: &str, agent: &agent::Agent) -> Result<AgentRun>;
    /// What the agent said.
    fn said(&self, agent: &AgentRun) -> String;
    fn remove_agent(&self, agent: &AgentRun) -> Result<()>;
    /// The image's stop signal, and SIGKILL after that time. Returns when the container has ended.
    fn stop(&self, container: &Running, grace: Duration) -> Result<()>;
    /// Runs a command in a container: its exit code.
    fn exec(&self, container: &Running, argv: &[String]) -> Result<i32>;
    fn remove(&self, container: &Running) -> Result<()>;
    /// With all that runs in it.
    fn remove_pod(&self, pod: &Pod) -> Result<()>;
}

/// Removes the cgroups of a pod that the runtime left: those above its containers' own, in every hierarchy.
pub(crate) fn remove_cgroups(parent: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(root), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) else { continue };
        let mut dir = Path::new(root).join(parent.trim_start_matches('/'));
        // Only empty directories can be removed, so what others use stays.
        while dir != Path::new(root) && (std::fs::remove_dir(&dir).is_ok() || !dir.exists()) {
            dir.pop();
        }
    }
}
