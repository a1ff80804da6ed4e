//! The agent's own container, run with exactly the rights that the chart's manifests give it.

use crate::net::join_thread;
use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As the API has them; what is not named here is passed over.
#[derive(Deserialize)]
struct Manifest {
    kind: Option<String>,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    template: Option<Template>,
}

#[derive(Deserialize)]
struct Template {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default)]
    host_network: bool,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    image: String,
    args: Vec<String>,
    security_context: SecurityContext,
    resources: Resources,
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    privileged: bool,
    run_as_user: u32,
    run_as_group: u32,
    allow_privilege_escalation: bool,
    read_only_root_filesystem: bool,
    capabilities: Capabilities,
    seccomp_profile: SeccompProfile,
}

#[derive(Deserialize)]
struct Capabilities {
    drop: Vec<String>,
    add: Vec<String>,
}

#[derive(Deserialize)]
struct SeccompProfile {
    r#type: String,
}

#[derive(Deserialize)]
struct Resources {
    limits: Limits,
}

#[derive(Deserialize)]
struct Limits {
    memory: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeMount {
    name: String,
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    host_path: Option<HostPath>,
}

#[derive(Deserialize)]
struct HostPath {
    path: PathBuf,
}

/// Which system calls there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The runtime's own profile.
    RuntimeDefault,
    /// This file.
    Localhost(PathBuf),
}

/// A directory or file of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub from: PathBuf,
    pub to: String,
    pub read_only: bool,
}

/// The agent's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub image: String,
    /// `None`: the image's own.
    pub program: Option<String>,
    pub args: Vec<String>,
    pub user: u32,
    pub group: u32,
    /// `allowPrivilegeEscalation: false`
    pub no_new_privs: bool,
    pub read_only: bool,
    pub drop: Vec<String>,
    pub add: Vec<String>,
    pub host_pid: bool,
    pub seccomp: Seccomp,
    pub shown: Vec<Shown>,
    /// Bytes.
    pub memory: u64,
}

/// Where the agent's store is in its container.
pub const STORE: &str = "/var/lib/why502";

impl Agent {
    /// As a rendered manifest has it. `seccomp` is in the place of the file that a node has.
    pub fn of_manifest(text: &str, seccomp: &Path) -> Result<Agent> {
        let all: Vec<Manifest> = serde_saphyr::from_multiple(text).context("a manifest")?;
        let daemon = all.into_iter().find(|m| m.kind.as_deref() == Some("DaemonSet")).context("no DaemonSet")?;
        let pod = daemon.spec.and_then(|s| s.template).context("a DaemonSet without a template")?.spec;
        let [container] = <[Container; 1]>::try_from(pod.containers).map_err(|_| anyhow!("not one container"))?;
        let rights = container.security_context;
        ensure!(!rights.privileged && !pod.host_network, "that is more than the chart is to give");
        let volume = |m: VolumeMount| {
            let from = pod.volumes.iter().find(|v| v.name == m.name).and_then(|v| v.host_path.as_ref());
            from.map(|from| Shown { from: from.path.clone(), to: m.mount_path, read_only: m.read_only })
        };
        let megabytes = container.resources.limits.memory.strip_suffix("Mi").context("a limit in Mi")?;
        Ok(Agent {
            image: container.image,
            program: None,
            args: container.args,
            user: rights.run_as_user,
            group: rights.run_as_group,
            no_new_privs: !rights.allow_privilege_escalation,
            read_only: rights.read_only_root_filesystem,
            drop: rights.capabilities.drop,
            add: rights.capabilities.add,
            host_pid: pod.host_pid,
            seccomp: match rights.seccomp_profile.r#type.as_str() {
                "RuntimeDefault" => Seccomp::RuntimeDefault,
                _ => Seccomp::Localhost(seccomp.into()),
            },
            shown: container.volume_mounts.into_iter().filter_map(volume).collect(),
            memory: megabytes.parse::<u64>()? << 20,
        })
    }

    /// With its store in this directory of the node.
    pub fn storing_in(mut self, dir: &Path) -> Agent {
        self.shown.retain(|s| s.to != STORE);
        self.shown.push(Shown { from: dir.into(), to: STORE.into(), read_only: false });
        self
    }

    /// Without a Kubernetes API, which these runtimes have none of.
    pub fn without_kubernetes(mut self) -> Agent {
        self.args.retain(|arg| arg != "--events");
        self.args.iter_mut().filter(|arg| arg.starts_with("--kube=")).for_each(|arg| *arg = "--kube=none".into());
        self
    }

    /// Where it listens.
    pub fn port(&self) -> Result<u16> {
        let at = self.args.iter().find_map(|arg| arg.strip_prefix("--listen=0.0.0.0:")).context("no --listen")?;
        Ok(at.parse()?)
    }
}

/// Asks the agent whose PID 1 is this process, from inside its network namespace: status and body.
pub fn ask(pid: i32, port: u16, path: &str) -> Result<(u16, String)> {
    std::thread::scope(|s| {
        let asked = s.spawn(|| {
            join_thread(Path::new(&format!("/proc/{pid}/ns/net")))?;
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
            let status = head.split(' ').nth(1).context("no status")?;
            Ok((status.parse()?, body.to_owned()))
        });
        asked.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> String {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/manifests");
        std::fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn the_charts_own_values_give_the_least() {
        let agent = Agent::of_manifest(&manifest("why502.yaml"), Path::new("/x.json")).unwrap();
        assert_eq!((agent.user, agent.group, agent.no_new_privs, agent.read_only), (0, 0, true, true));
        assert_eq!((&*agent.drop, agent.host_pid), (&["ALL".to_owned()][..], true));
        assert!(!agent.add.iter().any(|c| c == "SYS_ADMIN" || c == "SYS_RESOURCE"), "{:?}", agent.add);
        assert_eq!((agent.port().unwrap(), agent.seccomp.clone()), (9502, Seccomp::RuntimeDefault));
        let writes: Vec<_> = agent.shown.iter().filter(|s| !s.read_only).map(|s| &*s.to).collect();
        assert_eq!(writes, [STORE]);
    }

    #[test]
    fn another_user_has_no_right_of_root() {
        let agent = Agent::of_manifest(&manifest("why502-nonroot.yaml"), Path::new("/x.json")).unwrap();
        assert!(agent.user != 0 && agent.group != 0 && !agent.no_new_privs && agent.read_only);
        assert!(Agent::of_manifest("kind: Pod\n", Path::new("/x.json")).is_err());
    }
}
