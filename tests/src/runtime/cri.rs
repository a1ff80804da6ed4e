//! A client of the CRI that sends what a kubelet sends for a pod's life, with the labels and annotations that it writes.

use super::agent::{Agent, Seccomp};
use super::messages::*;
use super::{AgentRun, ContainerSpec, Names, Pod, PodSpec, Running};
use crate::cgroup::pod_uid;
use anyhow::{Context, Result, anyhow};
use hyper::http::uri::PathAndQuery;
use prost::Message;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

/// More than anything takes but a stop, which adds its grace period, or a command.
const LIMIT: Duration = Duration::from_secs(60);
/// Namespaces: of the pod, of the container alone, of the node.
const OF_POD: i32 = 0;
const OF_CONTAINER: i32 = 1;
const OF_NODE: i32 = 2;

/// What a kubelet hides of /proc and /sys, and what nobody may write there (`procMount: Default`).
const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Its calls block, and may come from several threads.
#[derive(Debug)]
pub struct Cri {
    pub socket: PathBuf,
    /// Containers' logs.
    logs: PathBuf,
    /// Containers get limits of resources.
    limits: bool,
}

impl Cri {
    /// `limits`: the runtime's cgroups have the controllers for them.
    pub fn new(socket: PathBuf, logs: PathBuf, limits: bool) -> Self {
        Self { socket, logs, limits }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The runtime's name and version.
    pub fn version(&self) -> Result<String> {
        let said: VersionResponse = self.call("Version", VersionRequest {}, Duration::from_secs(5))?;
        Ok(format!("{} {}", said.runtime_name, said.runtime_version))
    }

    /// One call, on a connection of its own: a restarted runtime has another socket by the same name.
    fn call<Q, A>(&self, method: &str, request: Q, limit: Duration) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        let socket = self.socket.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime
            .block_on(async move {
                let to = tower::service_fn(move |_: Uri| {
                    let socket = socket.clone();
                    async move {
                        let stream = tokio::net::UnixStream::connect(socket).await?;
                        Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                    }
                });
                let channel: Channel = Endpoint::from_static("http://localhost").connect_with_connector(to).await?;
                let mut grpc = Grpc::new(channel);
                grpc.ready().await?;
                let call = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default());
                let answer = tokio::time::timeout(limit, call).await.map_err(|_| anyhow!("no answer in {limit:?}"))?;
                answer
                    .map(tonic::Response::into_inner)
                    .map_err(|status| anyhow!("{}: {}", status.code(), status.message()))
            })
            .with_context(|| format!("CRI {method}"))
    }

    fn sandbox(&self, spec: &PodSpec) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: spec.name.clone(),
            uid: spec.uid.clone(),
            namespace: spec.namespace.clone(),
            attempt: 0,
        };
        let namespaces = NamespaceOption { network: OF_POD, pid: OF_CONTAINER };
        let logs = self.logs.join(format!("{}_{}_{}", spec.namespace, spec.name, spec.uid));
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: spec.name.clone(),
            log_directory: logs.display().to_string(),
            labels: labels(spec, None),
            annotations: strings(&[("kubernetes.io/config.source", "api")]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: spec.cgroup_parent.clone().unwrap_or_default(),
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
            }),
        }
    }

    pub fn run_pod(&self, spec: &PodSpec) -> Result<Pod> {
        self.run_sandbox(spec, self.sandbox(spec))
    }

    fn run_sandbox(&self, spec: &PodSpec, config: PodSandboxConfig) -> Result<Pod> {
        std::fs::create_dir_all(&config.log_directory)?;
        let handler = match spec.names {
            Names::Cgroupfs => "",
            Names::Systemd => "systemd",
        };
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
        let PodId { pod_sandbox_id: id } = self.call("RunPodSandbox", request, LIMIT)?;
        let status: PodSandboxStatusResponse =
            self.call("PodSandboxStatus", PodId { pod_sandbox_id: id.clone() }, LIMIT)?;
        let ip = status.status.and_then(|s| s.network).map(|n| n.ip).unwrap_or_default();
        let ip = ip.parse().with_context(|| format!("address of pod {}: {ip:?}", spec.name))?;
        Ok(Pod { spec: spec.clone(), id, ip })
    }

    pub fn start(&self, pod: &Pod, spec: &ContainerSpec) -> Result<Running> {
        let sandbox = self.sandbox(&pod.spec);
        std::fs::create_dir_all(Path::new(&sandbox.log_directory).join(&spec.name))?;
        let shown = |dir: &PathBuf| {
            let path = dir.display().to_string();
            Mount { container_path: path.clone(), host_path: path, readonly: false }
        };
        let limits = LinuxContainerResources { cpu_shares: 102, memory_limit_in_bytes: 512 << 20 };
        let namespaces = NamespaceOption { network: OF_POD, pid: OF_CONTAINER };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }),
            image: Some(ImageSpec { image: spec.image.clone() }),
            command: spec.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            args: Vec::new(),
            mounts: spec.shows.iter().map(shown).collect(),
            labels: labels(&pod.spec, Some(&spec.name)),
            annotations: annotations(spec),
            log_path: format!("{}/{}.log", spec.name, spec.attempt),
            linux: Some(LinuxContainerConfig {
                resources: self.limits.then_some(limits),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
            }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let made: ContainerId = self.call("CreateContainer", request, LIMIT)?;
        let id = made.container_id.clone();
        let _: Empty = self.call("StartContainer", made, LIMIT)?;
        let pid = self.pid(&id).with_context(|| spec.name.clone())?;
        Ok(Running { name: spec.name.clone(), id, pid })
    }

    /// A pod with the agent in it, as a kubelet makes it of the manifest. It may end at once.
    pub fn agent(&self, name: &str, agent: &Agent) -> Result<AgentRun> {
        let uid = pod_uid();
        let spec = PodSpec {
            namespace: "why502".into(),
            name: name.into(),
            cgroup_parent: Some(format!("/kubepods/burstable/pod{uid}")),
            uid,
            names: Names::Cgroupfs,
        };
        let pid = if agent.host_pid { OF_NODE } else { OF_CONTAINER };
        let mut sandbox = self.sandbox(&spec);
        let options = sandbox.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        options.context("a sandbox has options")?.namespace_options = Some(NamespaceOption { network: OF_POD, pid });
        let pod = self.run_sandbox(&spec, sandbox.clone())?;
        std::fs::create_dir_all(Path::new(&sandbox.log_directory).join(name))?;
        let mounts = agent.shown.iter().map(|shown| Mount {
            container_path: shown.to.clone(),
            host_path: shown.from.display().to_string(),
            readonly: shown.read_only,
        });
        let (profile_type, localhost_ref) = match &agent.seccomp {
            Seccomp::RuntimeDefault => (0, String::new()),
            Seccomp::Localhost(file) => (2, file.display().to_string()),
        };
        let limits = LinuxContainerResources { cpu_shares: 20, memory_limit_in_bytes: i64::try_from(agent.memory)? };
        let rights = LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: agent.add.clone(),
                drop_capabilities: agent.drop.clone(),
            }),
            namespace_options: Some(NamespaceOption { network: OF_POD, pid }),
            run_as_user: Some(Int64Value { value: agent.user.into() }),
            run_as_group: Some(Int64Value { value: agent.group.into() }),
            readonly_rootfs: agent.read_only,
            no_new_privs: agent.no_new_privs,
            masked_paths: MASKED.map(String::from).to_vec(),
            readonly_paths: READ_ONLY.map(String::from).to_vec(),
            seccomp: Some(SecurityProfile { profile_type, localhost_ref }),
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: agent.image.clone() }),
            command: agent.program.iter().cloned().collect(),
            args: agent.args.clone(),
            mounts: mounts.collect(),
            labels: labels(&spec, Some(name)),
            annotations: HashMap::new(),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig {
                resources: self.limits.then_some(limits),
                security_context: Some(rights),
            }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let start = || -> Result<AgentRun> {
            let made: ContainerId = self.call("CreateContainer", request, LIMIT)?;
            let id = made.container_id.clone();
            let _: Empty = self.call("StartContainer", made, LIMIT)?;
            let pid = self.pid(&id).unwrap_or(0);
            Ok(AgentRun { id, pid, pod: Some(pod.clone()) })
        };
        start().inspect_err(|_| {
            let _ = self.stop_pod(&pod.id).and_then(|()| self.remove_pod(&pod.id));
        })
    }

    /// What the containers of a pod said.
    pub fn log(&self, spec: &PodSpec) -> String {
        let path = Path::new(&self.sandbox(spec).log_directory).join(&spec.name).join("0.log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Host pid of a container's PID 1.
    pub fn pid(&self, id: &str) -> Result<i32> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: true };
        let status: ContainerStatusResponse = self.call("ContainerStatus", request, LIMIT)?;
        let info: Value = serde_json::from_str(status.info.get("info").map_or("null", String::as_str))?;
        let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0).context("a container without a pid")
    }

    pub fn stop(&self, container: &str, grace: Duration) -> Result<()> {
        let timeout = grace.as_secs().cast_signed();
        let request = StopContainerRequest { container_id: container.into(), timeout };
        self.call("StopContainer", request, LIMIT + grace).map(|_: Empty| ())
    }

    /// The command's exit code.
    pub fn exec(&self, container: &str, argv: &[String]) -> Result<i32> {
        let request = ExecSyncRequest { container_id: container.into(), cmd: argv.to_vec(), timeout: 0 };
        let done: ExecSyncResponse = self.call("ExecSync", request, LIMIT)?;
        if done.exit_code != 0 {
            println!("{argv:?}: exit {}: {}", done.exit_code, String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(done.exit_code)
    }

    pub fn remove(&self, container: &str) -> Result<()> {
        self.call("RemoveContainer", ContainerId { container_id: container.into() }, LIMIT).map(|_: Empty| ())
    }

    pub fn stop_pod(&self, pod: &str) -> Result<()> {
        self.call("StopPodSandbox", PodId { pod_sandbox_id: pod.into() }, LIMIT).map(|_: Empty| ())
    }

    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        self.call("RemovePodSandbox", PodId { pod_sandbox_id: pod.into() }, LIMIT).map(|_: Empty| ())
    }
}

fn strings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn labels(pod: &PodSpec, container: Option<&str>) -> HashMap<String, String> {
    let mut labels = strings(&[
        ("io.kubernetes.pod.name", &pod.name),
        ("io.kubernetes.pod.namespace", &pod.namespace),
        ("io.kubernetes.pod.uid", &pod.uid),
    ]);
    match container {
        Some(name) => labels.insert("io.kubernetes.container.name".into(), name.into()),
        None => labels.insert("app".into(), "web".into()),
    };
    labels
}

fn annotations(spec: &ContainerSpec) -> HashMap<String, String> {
    let mut annotations = strings(&[
        ("io.kubernetes.container.hash", "deadbeef"),
        ("io.kubernetes.container.restartCount", &spec.attempt.to_string()),
        ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
        ("io.kubernetes.container.terminationMessagePolicy", "File"),
        ("io.kubernetes.pod.terminationGracePeriod", &spec.grace.as_secs().to_string()),
    ]);
    if let Some(command) = &spec.pre_stop {
        let handler = json!({ "exec": { "command": command } }).to_string();
        annotations.insert("io.kubernetes.container.preStopHandler".into(), handler);
    }
    annotations
}
