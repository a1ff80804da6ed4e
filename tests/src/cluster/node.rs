//! The kubelet.

use super::NODE;
use super::control_plane::ControlPlane;
use crate::runtime::containerd::Containerd;
use crate::runtime::{Daemon, Scratch, View, images, remove_cgroups};
use anyhow::Result;
use serde_json::json;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// What a kubelet sets for the whole machine (pkg/kubelet/cm/container_manager_linux.go setupKernelTunables()).
const TUNABLES: [&str; 5] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
];
/// Where it keeps things whatever its root directory is.
const PLACES: [&str; 3] = ["/var/lib/kubelet", "/var/log/pods", "/var/log/containers"];

/// Dropped in this order: the kubelet, then what it changed is put back.
#[derive(Debug)]
pub struct Node {
    kubelet: Daemon,
    #[expect(dead_code, reason = "put back on drop")]
    machine: Machine,
}

impl Node {
    pub fn start(
        programs: &Path,
        runtime: &Containerd,
        control: &ControlPlane,
        ip: Ipv4Addr,
        scratch: &Scratch,
    ) -> Result<Self> {
        let machine = Machine::remember();
        let config = scratch.join("kubelet.json");
        std::fs::write(&config, configuration(ip, &control.authority).to_string())?;
        let endpoint = format!("unix://{}", runtime.cri.socket().display());
        let args = [
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", control.kubeconfig.display()),
            "--container-runtime=remote".into(),
            format!("--container-runtime-endpoint={endpoint}"),
            format!("--image-service-endpoint={endpoint}"),
            format!("--pod-infra-container-image={}", images::PAUSE),
            format!("--root-dir={}", scratch.join("kubelet").display()),
            format!("--cert-dir={}", scratch.join("kubelet-pki").display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={ip}"),
        ];
        let argv = std::iter::once(programs.join("kubelet").into()).chain(args.map(OsString::from)).collect();
        // Whether it is up is asked of the API server.
        let kubelet = Daemon::start(runtime.network(), View::Hosts, argv, scratch.join("kubelet.log"), &|| true)?;
        Ok(Self { kubelet, machine })
    }

    /// Why the cluster may not do what it should: the last errors of the kubelet's log.
    pub fn complaints(&self) -> String {
        let log = std::fs::read_to_string(&self.kubelet.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().filter(|l| l.starts_with(['E', 'F'])).take(6).collect();
        format!("the kubelet says: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

fn configuration(ip: Ipv4Addr, authority: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "address": ip,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": false }, "x509": { "clientCAFile": authority },
        },
        "authorization": { "mode": "AlwaysAllow" },
        "resolvConf": "/dev/null",
        // Nobody answers there; without one it complains of each pod.
        "clusterDNS": ["10.96.0.10"],
        // Below zero needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        "syncFrequency": "10s",
        // A full disk of the build machine is none of this node's business.
        "evictionHard": { "memory.available": "10Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" },
    })
}

/// What a kubelet changes on its machine, as it was before.
#[derive(Debug)]
struct Machine {
    tunables: Vec<(&'static str, String)>,
    made: Vec<PathBuf>,
}

impl Machine {
    fn remember() -> Self {
        let read = |path: &'static str| Some((path, std::fs::read_to_string(path).ok()?));
        let tunables = TUNABLES.into_iter().filter_map(read).collect();
        let made = PLACES.map(PathBuf::from).into_iter().filter(|p| !p.exists()).collect();
        Self { tunables, made }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (path, value) in &self.tunables {
            if std::fs::read_to_string(path).is_ok_and(|now| now != *value)
                && let Err(e) = std::fs::write(path, value.trim())
            {
                eprintln!("cannot set {path} back to {}: {e}", value.trim());
            }
        }
        for dir in &self.made {
            // It may never have been made.
            let _ = std::fs::remove_dir_all(dir);
        }
        for class in ["/kubepods/burstable", "/kubepods/besteffort"] {
            remove_cgroups(class);
        }
    }
}
