//! A Kubernetes node of its own: etcd, an API server, the controllers, the scheduler, a kubelet and a containerd, all real,
//! in one network namespace that the host reaches over a veth pair. There is no proxy: the load goes to the pods' addresses,
//! and the API server has the address of its Service.
//!
//! ```text
//! control_plane  etcd, kube-apiserver, kube-controller-manager, kube-scheduler, with keys of their own
//! node           the kubelet, and what it changes on the machine
//! workload       a Deployment of nginx and php-fpm
//! stories        what is played, and what must be said of it
//! chart          the chart's manifests, applied
//! operator       what is done with them, and what must be seen
//! report         docs/kubernetes.md
//! ```

pub mod chart;
pub mod control_plane;
mod node;
pub mod operator;
pub mod report;
pub mod stories;
mod workload;

pub use workload::{Workload, WorkloadConf};

use crate::guard::run;
use crate::net::{Netns, veth};
use crate::runtime::Scratch;
use crate::runtime::containerd::{self, Containerd};
use anyhow::{Context, Result, bail};
use control_plane::ControlPlane;
use node::Node;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name of the only node.
pub const NODE: &str = "why502-node";
/// `cargo xtask cluster` builds them.
const PROGRAMS: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];

/// Dropped in this order: the kubelet, the control plane, the runtime with all containers, the keys and data, the network.
#[derive(Debug)]
pub struct Cluster {
    node: Node,
    pub control: ControlPlane,
    pub runtime: Containerd,
    pub kubeconfig: PathBuf,
    #[expect(dead_code, reason = "removed on drop")]
    scratch: Scratch,
    #[expect(dead_code, reason = "removed on drop")]
    host: Netns,
}

/// Why none can be started with the programs of this directory.
pub fn why_not(programs: &Path) -> Option<String> {
    for name in PROGRAMS {
        if !programs.join(name).is_file() {
            return Some(format!("needs {name} in {} (cargo xtask cluster builds it)", programs.display()));
        }
    }
    for (name, package) in [("etcd", "etcd-server"), ("kubectl", "kubernetes-client"), ("openssl", "openssl")] {
        if crate::runtime::docker::in_path(name).is_none() {
            return Some(format!("needs {name} (apt-get install {package})"));
        }
    }
    containerd::why_not()
}

impl Cluster {
    /// Returns when the node is ready.
    pub fn start(programs: &Path) -> Result<Self> {
        let first = containerd::found().into_iter().next().context("no containerd")?;
        let runtime = Containerd::start(&first, crate::runtime::View::Hosts)?;
        let (scratch, host) = (Scratch::new()?, Netns::of_host("cluster")?);
        let link = veth(&host, runtime.network())?;
        let service = format!("{}/32", control_plane::SERVICE);
        runtime.network().ip(&["addr", "add", &service, "dev", "lo"])?;
        let control = ControlPlane::start(programs, runtime.network(), link.right4, &scratch)?;
        let kubeconfig = control.kubeconfig.clone();
        let node = Node::start(programs, &runtime, &control, link.right4, &scratch)?;
        let cluster = Self { node, control, runtime, kubeconfig, scratch, host };
        cluster.wait(
            "the node",
            &["get", "node", NODE, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"],
            |said| said == "True",
        )?;
        Ok(cluster)
    }

    /// Images for pods, of an archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let programs = containerd::found().into_iter().next().context("no containerd")?;
        self.runtime.import(&programs, archive)
    }

    /// Versions, for people.
    pub fn label(&self) -> Result<String> {
        use crate::runtime::Engine as _;
        let node = self.kubectl(&["get", "node", NODE, "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"])?;
        Ok(format!("Kubernetes {node}, {}", self.runtime.label()))
    }

    /// What `why502 watch` is told of it.
    pub fn watch_args(&self) -> Vec<String> {
        let (config, socket) = (self.kubeconfig.display(), self.runtime.cri.socket().display());
        let args = ["--kube", &config.to_string(), "--node", NODE, "--runtime", &format!("unix://{socket}")];
        args.map(String::from).to_vec()
    }

    /// What it printed on stdout.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let config = format!("--kubeconfig={}", self.kubeconfig.display());
        run("kubectl", &[&[config.as_str()], args].concat())
    }

    /// `kubectl apply` of one object.
    pub fn apply(&self, object: &serde_json::Value) -> Result<()> {
        let mut command = Command::new("kubectl");
        command.arg(format!("--kubeconfig={}", self.kubeconfig.display())).args(["apply", "-f", "-"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.context("cannot start kubectl")?;
        child.stdin.take().context("no stdin")?.write_all(object.to_string().as_bytes())?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// Asks until `enough` of what kubectl prints.
    pub fn wait(&self, what: &str, args: &[&str], enough: impl Fn(&str) -> bool) -> Result<()> {
        let asked = || self.kubectl(args).is_ok_and(|said| enough(said.trim()));
        crate::guard::wait(what, crate::scene::LIMIT, asked).with_context(|| self.node.complaints())
    }
}
