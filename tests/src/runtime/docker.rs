//! dockerd, driven by the `docker` command.

use super::agent::{Agent, Seccomp};
use super::daemon::{Daemon, Scratch, View};
use super::{AgentRun, Called, ContainerSpec, Engine, Pod, PodSpec, Running, images};
use crate::guard::run;
use crate::launch::sibling;
use crate::net::{Link, Netns};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The runtime of containers that get CAP_BPF and CAP_PERFMON from it, where dockerd does not know these.
const WITH_BPF: &str = "bpf";

/// Dropped in this order: the daemon, what it left, its network.
#[derive(Debug)]
pub struct Docker {
    host: String,
    version: String,
    #[expect(dead_code, reason = "ended on drop")]
    daemon: Daemon,
    #[expect(dead_code, reason = "removed on drop")]
    scratch: Scratch,
    netns: Netns,
}

/// Why dockerd cannot be started here.
pub fn why_not() -> Option<String> {
    let found = |name: &str| in_path(name).is_some();
    for (name, package) in [("dockerd", "docker.io"), ("docker", "docker.io"), ("iptables", "iptables")] {
        if !found(name) {
            return Some(format!("needs {name} (apt-get install {package})"));
        }
    }
    images::why_not()
}

/// A program in PATH, or where root's PATH looks.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|p| p.is_file())
}

impl Docker {
    /// A dockerd of its own, with the images loaded.
    pub fn start(view: View) -> Result<Self> {
        let (scratch, netns) = (Scratch::new()?, Netns::new("docker")?);
        let host = format!("unix://{}", scratch.join("docker.sock").display());
        // The bridge of each has its own addresses: incidents are told apart by them.
        let bridge = format!("{}/24", Link::unique().left4);
        let mut argv: Vec<OsString> = vec!["dockerd".into(), "-H".into(), host.clone().into()];
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            argv.extend([flag.into(), scratch.join(name).into()]);
        }
        argv.extend(["--bip".into(), bridge.into()]);
        let with_bpf = scratch.join("why502-runc-bpf");
        symlink(sibling("why502-runc")?, &with_bpf)?;
        argv.push(format!("--add-runtime={WITH_BPF}={}", with_bpf.display()).into());
        let up = || run("docker", &["-H", &host, "version"]).is_ok();
        let daemon = Daemon::start(&netns, view, argv, scratch.join("log"), &up)?;
        let docker = Self { host, version: String::new(), daemon, scratch, netns };
        let version = docker.run(&["version", "-f", "{{.Server.Version}}"])?.trim().to_string();
        docker.run(&["load", "-q", "-i", &images::archive()?.display().to_string()])?;
        Ok(Self { version, ..docker })
    }

    /// `docker …`
    pub fn run(&self, args: &[&str]) -> Result<String> {
        run("docker", &[&["-H", &self.host], args].concat())
    }

    /// `docker kill -s SIGNAL`
    pub fn kill(&self, container: &Running, signal: Signal) -> Result<()> {
        self.run(&["kill", "-s", signal.as_str(), &container.id]).map(|_| ())
    }

    fn run_agent(&self, name: &str, agent: &Agent, more: &[&str]) -> Result<AgentRun> {
        let mut args: Vec<String> = ["run", "-d", "--name", name].map(String::from).to_vec();
        args.extend(more.iter().map(ToString::to_string));
        args.push(format!("--user={}:{}", agent.user, agent.group));
        args.push(format!("--memory={}", agent.memory));
        args.extend(agent.read_only.then(|| "--read-only".into()));
        args.extend(agent.host_pid.then(|| "--pid=host".into()));
        args.extend(agent.no_new_privs.then(|| "--security-opt=no-new-privileges".into()));
        if let Seccomp::Localhost(file) = &agent.seccomp {
            args.push(format!("--security-opt=seccomp={}", file.display()));
        }
        args.extend(agent.drop.iter().map(|right| format!("--cap-drop={right}")));
        args.extend(agent.add.iter().map(|right| format!("--cap-add={right}")));
        for shown in &agent.shown {
            let mode = if shown.read_only { ":ro" } else { "" };
            args.push(format!("--volume={}:{}{mode}", shown.from.display(), shown.to));
        }
        args.extend(agent.program.iter().map(|program| format!("--entrypoint={program}")));
        args.push(agent.image.clone());
        args.extend(agent.args.iter().cloned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let id = self.run(&args)?.trim().to_string();
        let pid = self.run(&["inspect", "-f", "{{.State.Pid}}", &id])?;
        Ok(AgentRun { pid: pid.trim().parse().with_context(|| format!("pid of {name}: {pid}"))?, id, pod: None })
    }

    fn container(&self, name: &str, args: &[&str]) -> Result<Running> {
        let id = self.run(&[&["run", "-d", "--name", name], args].concat())?.trim().to_string();
        let pid = self.run(&["inspect", "-f", "{{.State.Pid}}", &id])?;
        let pid = pid.trim().parse().with_context(|| format!("pid of {name}: {pid}"))?;
        Ok(Running { name: name.into(), id, pid })
    }
}

/// The name of a pod's container: names are the daemon's, not the pod's.
fn name(pod: &PodSpec, container: &str) -> String {
    format!("{}_{container}", pod.name)
}

impl Engine for Docker {
    fn label(&self) -> String {
        format!("dockerd {}", self.version)
    }

    fn socket(&self) -> PathBuf {
        self.host.trim_start_matches("unix://").into()
    }

    fn netns(&self) -> PathBuf {
        self.netns.path()
    }

    fn called(&self, pod: &PodSpec, container: &str) -> Called {
        Called { container: name(pod, container), pod: None }
    }

    fn pod(&self, spec: &PodSpec) -> Result<Pod> {
        let parent: Vec<&str> = spec.cgroup_parent.iter().flat_map(|p| ["--cgroup-parent", p]).collect();
        let pause = self.container(&name(spec, "pod"), &[&parent[..], &[images::PAUSE]].concat())?;
        let ip = self.run(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", &pause.id])?;
        let ip = ip.trim().parse().with_context(|| format!("address of {}: {ip}", spec.name))?;
        Ok(Pod { spec: spec.clone(), id: pause.id, ip })
    }

    fn start(&self, pod: &Pod, spec: &ContainerSpec) -> Result<Running> {
        let network = format!("container:{}", pod.id);
        let mut args: Vec<String> = vec!["--network".into(), network];
        args.extend(pod.spec.cgroup_parent.iter().flat_map(|p| ["--cgroup-parent".into(), p.clone()]));
        args.extend(spec.shows.iter().flat_map(|dir| ["-v".into(), format!("{0}:{0}", dir.display())]));
        args.push(spec.image.clone());
        args.extend(spec.argv.iter().map(|word| word.to_string_lossy().into_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.container(&name(&pod.spec, &spec.name), &args)
    }

    fn agent(&self, name: &str, agent: &Agent) -> Result<AgentRun> {
        let newer = |right: &String| *right == "BPF" || *right == "PERFMON";
        let too_old = |e: &anyhow::Error| format!("{e:#}").contains("unknown capability");
        match self.run_agent(name, agent, &[]) {
            // All of these rights come from runc then, or none.
            Err(e) if too_old(&e) && agent.add.iter().filter(|right| newer(right)).count() == 2 => {
                println!("{}: CAP_BPF and CAP_PERFMON are given by runc: it has no names for them", self.label());
                let mut rest = agent.clone();
                rest.add.retain(|right| !newer(right));
                self.run_agent(name, &rest, &["--runtime", WITH_BPF])
            }
            other => other,
        }
    }

    fn said(&self, agent: &AgentRun) -> String {
        let out = Command::new("docker").args(["-H", &self.host, "logs", &agent.id]).stdin(Stdio::null()).output();
        out.map(|out| String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()).unwrap_or_default()
    }

    fn remove_agent(&self, agent: &AgentRun) -> Result<()> {
        self.run(&["rm", "-f", &agent.id]).map(|_| ())
    }

    fn stop(&self, container: &Running, grace: Duration) -> Result<()> {
        self.run(&["stop", "-t", &grace.as_secs().to_string(), &container.id]).map(|_| ())
    }

    fn exec(&self, container: &Running, argv: &[String]) -> Result<i32> {
        let mut command = Command::new("docker");
        command.args(["-H", &self.host, "exec", &container.id]).args(argv).stdin(Stdio::null());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().context("cannot start docker")?;
        status.code().context("docker exec was killed")
    }

    fn remove(&self, container: &Running) -> Result<()> {
        self.run(&["rm", "-f", &container.id]).map(|_| ())
    }

    fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let all = self.run(&["ps", "-aq", "--no-trunc", "--filter", &format!("name=^/{}_", pod.spec.name)])?;
        let ids: Vec<&str> = all.split_whitespace().collect();
        if !ids.is_empty() {
            self.run(&[&["rm", "-f"], &ids[..]].concat())?;
        }
        if let Some(parent) = &pod.spec.cgroup_parent {
            super::remove_cgroups(parent);
        }
        Ok(())
    }
}
