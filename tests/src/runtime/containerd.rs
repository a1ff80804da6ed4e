//! containerd with its CRI plugin.

use super::agent::Agent;
use super::cri::Cri;
use super::daemon::{Daemon, Scratch, View};
use super::docker::in_path;
use super::{AgentRun, Called, ContainerSpec, Engine, Pod, PodSpec, Running, images};
use crate::guard::run;
use crate::launch::sibling;
use crate::net::{Link, Netns};
use anyhow::{Context, Result};
use serde_json::json;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where the distribution has its CNI plugins.
const CNI: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Dropped in this order: the daemon, what it left, its network.
#[derive(Debug)]
pub struct Containerd {
    pub cri: Cri,
    label: String,
    daemon: Mutex<Daemon>,
    #[expect(dead_code, reason = "removed on drop")]
    scratch: Scratch,
    netns: Netns,
}

/// The directories of the programs of each containerd that is here: the distribution's own first, then those that
/// `WHY502_CONTAINERDS` names (`cargo xtask test --full` unpacks newer ones).
pub fn found() -> Vec<PathBuf> {
    let own = in_path("containerd").and_then(|program| program.parent().map(Path::to_path_buf));
    let more = std::env::var_os("WHY502_CONTAINERDS").unwrap_or_default();
    let more: Vec<PathBuf> = std::env::split_paths(&more).filter(|dir| dir.join("containerd").is_file()).collect();
    own.into_iter().chain(more).collect()
}

/// Why none can be started here.
pub fn why_not() -> Option<String> {
    if found().is_empty() {
        return Some("needs containerd (apt-get install containerd)".into());
    }
    for (name, package) in [("runc", "runc"), ("iptables", "iptables")] {
        if in_path(name).is_none() {
            return Some(format!("needs {name} (apt-get install {package})"));
        }
    }
    if cni().is_none() {
        return Some("needs the CNI plugin `bridge` (apt-get install containernetworking-plugins)".into());
    }
    images::why_not()
}

fn cni() -> Option<&'static str> {
    CNI.into_iter().find(|dir| Path::new(dir).join("bridge").is_file())
}

impl Containerd {
    /// The containerd of this directory, with the images imported.
    pub fn start(programs: &Path, view: View) -> Result<Self> {
        let (scratch, netns) = (Scratch::new()?, Netns::new("containerd")?);
        let socket = scratch.join("containerd.sock");
        let config = scratch.join("config.toml");
        std::fs::write(&config, configure(&scratch, &socket, view)?)?;
        let cri = Cri::new(socket.clone(), scratch.join("logs"), view == View::Hosts);
        let program = programs.join("containerd");
        // It looks for its shims in PATH.
        let mut path = vec![programs.to_path_buf()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut set = std::ffi::OsString::from("PATH=");
        set.push(std::env::join_paths(path)?);
        let argv = vec!["env".into(), set, program.into(), "-c".into(), config.into()];
        let daemon = Daemon::start(&netns, view, argv, scratch.join("log"), &|| cri.version().is_ok())?;
        let label = cri.version()?;
        let containerd = Self { cri, label, daemon: Mutex::new(daemon), scratch, netns };
        containerd.import(programs, &images::archive()?)?;
        Ok(containerd)
    }

    /// `ctr images import`
    pub fn import(&self, programs: &Path, archive: &Path) -> Result<()> {
        let (ctr, socket) = (programs.join("ctr").display().to_string(), self.cri.socket.display().to_string());
        let archive = archive.display().to_string();
        run(&ctr, &["-a", &socket, "-n", "k8s.io", "images", "import", &archive]).map(|_| ())
    }

    /// Ends it as a crash does and starts it again; shims and containers go on meanwhile.
    pub fn restart(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon.kill()?;
        daemon.start_again(&|| self.cri.version().is_ok())
    }

    /// Where the daemon and the pods' bridge are.
    pub fn network(&self) -> &Netns {
        &self.netns
    }
}

/// The configuration, and the files that it names.
fn configure(scratch: &Scratch, socket: &Path, view: View) -> Result<String> {
    let (cni_conf, here) = (scratch.join("cni"), scratch.path().display());
    std::fs::create_dir(&cni_conf)?;
    let link = Link::unique();
    let [a, b, c, _] = link.left4.octets();
    let ipam = json!({
        "type": "host-local", "dataDir": scratch.join("ipam"), "ranges": [[{ "subnet": format!("{a}.{b}.{c}.0/24") }]],
        // Pods that ask a cluster's API server.
        "routes": [{ "dst": "10.96.0.0/24" }],
    });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "ipam": ipam });
    let list = json!({ "cniVersion": "0.4.0", "name": "why502", "plugins": [bridge] });
    std::fs::write(cni_conf.join("10-why502.conflist"), list.to_string())?;
    let cni = cni().context("no CNI plugins")?;
    let handlers: String = [("runc", false), ("systemd", true)]
        .into_iter()
        .map(|(handler, systemd)| {
            // What the wrapper changes is its name.
            let mut name = "why502-runc".to_string();
            if systemd {
                name += "-systemd";
            }
            if view == View::PureV2 {
                name += "-unlimited";
            }
            let wrapper = scratch.join(&name);
            sibling("why502-runc").and_then(|to| Ok(symlink(to, &wrapper)?))?;
            Ok(format!(
                "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{handler}]\nruntime_type = \
             \"io.containerd.runc.v2\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{handler}.options]\n\
             SystemdCgroup = false\nBinaryName = \"{}\"\n",
                wrapper.display()
            ))
        })
        .collect::<Result<_>>()?;
    Ok(format!(
        r#"version = 2
root = "{here}/root"
state = "{here}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
netns_mounts_under_state_dir = true
# Without CAP_SYS_RESOURCE the pause container's -998 is refused.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{cni_conf}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
{handlers}"#,
        socket = socket.display(),
        pause = images::PAUSE,
        cni_conf = cni_conf.display(),
    ))
}

impl Engine for Containerd {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn socket(&self) -> PathBuf {
        self.cri.socket.clone()
    }

    fn netns(&self) -> PathBuf {
        self.netns.path()
    }

    fn called(&self, pod: &PodSpec, container: &str) -> Called {
        Called { container: container.into(), pod: Some((pod.namespace.clone(), pod.name.clone())) }
    }

    fn pod(&self, spec: &PodSpec) -> Result<Pod> {
        self.cri.run_pod(spec)
    }

    fn start(&self, pod: &Pod, spec: &ContainerSpec) -> Result<Running> {
        self.cri.start(pod, spec)
    }

    fn agent(&self, name: &str, agent: &Agent) -> Result<AgentRun> {
        self.cri.agent(name, agent)
    }

    fn said(&self, agent: &AgentRun) -> String {
        agent.pod.as_ref().map(|pod| self.cri.log(&pod.spec)).unwrap_or_default()
    }

    fn remove_agent(&self, agent: &AgentRun) -> Result<()> {
        agent.pod.as_ref().map_or(Ok(()), |pod| self.remove_pod(pod))
    }

    fn stop(&self, container: &Running, grace: Duration) -> Result<()> {
        self.cri.stop(&container.id, grace)
    }

    fn exec(&self, container: &Running, argv: &[String]) -> Result<i32> {
        self.cri.exec(&container.id, argv)
    }

    fn remove(&self, container: &Running) -> Result<()> {
        self.cri.remove(&container.id)
    }

    fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.cri.stop_pod(&pod.id)?;
        self.cri.remove_pod(&pod.id)?;
        if let Some(parent) = &pod.spec.cgroup_parent {
            super::remove_cgroups(parent);
        }
        Ok(())
    }
}
