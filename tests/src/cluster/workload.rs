//! A Deployment of nginx and php-fpm, of which one pod runs at a time.

use super::{Cluster, NODE};
use crate::guard::{self, Dir};
use crate::net::listens;
use crate::nginx::{self, NginxConf};
use crate::php::{self, FpmConf, FpmListen, Served};
use crate::runtime::{Engine as _, images};
use crate::site::{Ground, Territory};
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub const NAMESPACE: &str = "shop";
const APP: &str = "web";

#[derive(Clone, Debug)]
pub struct WorkloadConf {
    pub nginx: NginxConf,
    pub fpm: FpmConf,
    /// STOPSIGNAL of the images.
    pub nginx_stop: Signal,
    pub php_stop: Signal,
    pub grace_s: u64,
    /// Command of nginx's container; `@nginx` stands for nginx's own command line.
    pub pre_stop: Option<Vec<&'static str>>,
    /// preStop of php-fpm's container, so that it outlives nginx: seconds.
    pub php_sleep: Option<u32>,
    /// The kubelet kills php-fpm's container when this file of [`Workload::dir`] is there.
    pub liveness: bool,
}

impl Default for WorkloadConf {
    fn default() -> Self {
        Self {
            nginx: NginxConf::default(),
            fpm: FpmConf { children: 16, ..FpmConf::default() },
            nginx_stop: Signal::SIGTERM,
            php_stop: Signal::SIGQUIT,
            grace_s: 20,
            pre_stop: None,
            php_sleep: Some(7),
            liveness: false,
        }
    }
}

/// A pod as the API tells it.
#[derive(Clone, Debug)]
pub struct Deployed {
    pub name: String,
    pub uid: String,
    pub ip: IpAddr,
    pub nginx_id: String,
    pub php_id: String,
}

/// A Deployment whose pod is ready. Deleted on drop, with the namespace's Service.
pub struct Workload<'c> {
    pub cluster: &'c Cluster,
    pub pod: Deployed,
    pub dir: Dir,
    ledger: PathBuf,
    netns: Vec<u32>,
    manifest: Value,
}

/// The file whose appearance makes the liveness probe of php-fpm's container fail.
pub const DEAD: &str = "dead";

impl<'c> Workload<'c> {
    pub fn start(cluster: &'c Cluster, conf: &WorkloadConf) -> Result<Self> {
        let dir = Dir::new()?;
        let www = dir.open_subdir("www")?;
        let FpmListen::Tcp(php_port) = conf.fpm.listen else { bail!("php-fpm listens on TCP here") };
        let php = php::Files::new(&dir, &www, &conf.fpm)?;
        let nginx_conf = NginxConf { fastcgi: Some(php.address.clone()), ..conf.nginx.clone() };
        let nginx = nginx::Files::of_pod(&dir, &www, &nginx_conf)?;
        let words = |argv: &[std::ffi::OsString]| -> Vec<String> {
            argv.iter().map(|w| w.to_string_lossy().into_owned()).collect()
        };
        let (nginx_argv, php_argv) = (words(&nginx.argv), words(&php.argv));
        let manifest = deployment(conf, &dir, &nginx_argv, &php_argv);
        let ns = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        cluster.apply(&ns)?;
        cluster.apply(&service())?;
        cluster.apply(&manifest)?;
        let none = Deployed {
            name: String::new(),
            uid: String::new(),
            ip: IpAddr::from([0; 4]),
            nginx_id: String::new(),
            php_id: String::new(),
        };
        let ledger = php.ledger;
        let mut workload = Self { cluster, pod: none, dir, ledger, netns: Vec::new(), manifest };
        workload.pod = workload.wait_ready()?;
        let inode = |path: PathBuf| Ok::<_, anyhow::Error>(u32::try_from(std::fs::metadata(path)?.ino())?);
        let pid = cluster.runtime.cri.pid(&workload.pod.nginx_id)?;
        // A container without a readiness probe is ready as soon as it runs.
        let ports = [80, php_port];
        guard::wait("nginx and php-fpm to listen", crate::scene::LIMIT, || {
            ports.iter().all(|port| listens(pid, *port))
        })?;
        workload.netns = vec![inode(format!("/proc/{pid}/ns/net").into())?, inode(cluster.runtime.netns())?];
        Ok(workload)
    }

    /// Waits for a pod that is ready and in the Service's endpoints.
    fn wait_ready(&self) -> Result<Deployed> {
        let mut found = None;
        guard::wait("a ready pod", crate::scene::LIMIT, || {
            found = self.ready_pod().ok().flatten();
            found.is_some()
        })?;
        found.ok_or_else(|| anyhow!("no pod"))
    }

    fn ready_pod(&self) -> Result<Option<Deployed>> {
        let said = self.cluster.kubectl(&["-n", NAMESPACE, "get", "pods,endpoints", "-o", "json"])?;
        let list: Value = serde_json::from_str(&said)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let of = |kind: &str| items.iter().filter(move |i| i["kind"] == kind).cloned().collect::<Vec<_>>();
        let in_service = of("Endpoints")
            .iter()
            .filter_map(|e| e["subsets"][0]["addresses"][0]["ip"].as_str().map(str::to_string))
            .collect::<Vec<_>>();
        for pod in of("Pod") {
            let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
            if pod["metadata"]["deletionTimestamp"].is_string() || !in_service.iter().any(|i| i == ip) {
                continue;
            }
            let id = |name: &str| {
                let all = pod["status"]["containerStatuses"].as_array()?;
                let one = all.iter().find(|c| c["name"] == name)?;
                Some(one["containerID"].as_str()?.rsplit('/').next()?.to_string())
            };
            let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
            let (Some(nginx_id), Some(php_id)) = (id("nginx"), id("php")) else { continue };
            return Ok(Some(Deployed {
                name: text(&pod["metadata"]["name"]),
                uid: text(&pod["metadata"]["uid"]),
                ip: ip.parse().context("podIP")?,
                nginx_id,
                php_id,
            }));
        }
        Ok(None)
    }

    /// `kubectl delete pod`, which does not wait for its end.
    pub fn delete_pod(&self) -> Result<()> {
        self.kubectl(&["delete", "pod", &self.pod.name, "--wait=false"])
    }

    /// To no pod at all.
    pub fn scale_down(&self) -> Result<()> {
        self.kubectl(&["scale", "deployment", APP, "--replicas=0"])
    }

    /// Another template: the old pod goes first.
    pub fn roll_out(&self) -> Result<()> {
        let mut next = self.manifest.clone();
        next["spec"]["template"]["metadata"]["annotations"] = json!({ "rolled": "out" });
        self.cluster.apply(&next)
    }

    /// php-fpm's liveness probe fails from now on.
    pub fn die(&self) -> Result<()> {
        Ok(std::fs::write(self.dir.join(DEAD), "")?)
    }

    /// `kubectl delete pod`; then the API server ends, and containerd is killed and started again, while preStop runs.
    pub fn delete_pod_alone(&self) -> Result<()> {
        self.delete_pod()?;
        let pid = self.cluster.runtime.cri.pid(&self.pod.nginx_id)?;
        guard::wait("the preStop command", crate::scene::LIMIT, || runs_beside(pid, "sleep"))?;
        self.cluster.control.stop_api()?;
        self.cluster.runtime.restart()
    }

    /// Waits until the kubelet has started php-fpm's container again.
    pub fn php_restarted(&self) -> Result<()> {
        let path = "jsonpath={.status.containerStatuses[?(@.name=='php')].restartCount}";
        let ready = "jsonpath={.status.containerStatuses[?(@.name=='php')].ready}";
        let get = |path| ["-n", NAMESPACE, "get", "pod", self.pod.name.as_str(), "-o", path];
        self.cluster.wait("the restart of php-fpm", &get(path), |said| said == "1")?;
        self.cluster.wait("php-fpm to be ready", &get(ready), |said| said == "true")
    }

    fn kubectl(&self, args: &[&str]) -> Result<()> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat()).map(|_| ())
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.pod.ip, 80)
    }
}

impl Ground for Workload<'_> {
    fn client(&self) -> PathBuf {
        self.cluster.runtime.netns()
    }

    fn served(&self) -> Result<Vec<Served>> {
        php::read_ledger(&self.ledger)
    }

    fn territory(&self) -> Territory {
        Territory { ips: vec![self.pod.ip], netns: self.netns.clone() }
    }
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        let gone = self.kubectl(&["delete", "deployment", APP, "--wait=false"]).and_then(|()| {
            self.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--wait=true", "--timeout=60s"])
        });
        if let Err(e) = gone {
            eprintln!("cannot remove the deployment: {e:#}");
        }
    }
}

/// Whether a program runs in the pid namespace of this process.
fn runs_beside(pid: i32, comm: &str) -> bool {
    let namespace = |dir: &std::path::Path| std::fs::read_link(dir.join("ns/pid")).ok();
    let Some(here) = namespace(format!("/proc/{pid}").as_ref()) else { return false };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.map(|entry| entry.path()).any(|dir| {
        std::fs::read_to_string(dir.join("comm")).is_ok_and(|c| c.trim() == comm)
            && namespace(&dir).is_some_and(|ns| ns == here)
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": APP, "namespace": NAMESPACE },
        "spec": { "selector": { "app": APP }, "ports": [{ "port": 80 }] },
    })
}

fn deployment(conf: &WorkloadConf, dir: &Dir, nginx: &[String], php: &[String]) -> Value {
    let files = json!([{ "name": "files", "mountPath": dir.path() }]);
    let container = |name: &str, stop: Signal, argv: &[String]| {
        json!({
            "name": name, "image": images::server(stop), "imagePullPolicy": "Never", "command": argv,
            "volumeMounts": files,
        })
    };
    let (mut nginx_container, mut php_container) =
        (container("nginx", conf.nginx_stop, nginx), container("php", conf.php_stop, php));
    if let Some(command) = &conf.pre_stop {
        let command: Vec<&str> = command
            .iter()
            .flat_map(|word| if *word == "@nginx" { nginx.iter().map(String::as_str).collect() } else { vec![*word] })
            .collect();
        nginx_container["lifecycle"] = json!({ "preStop": { "exec": { "command": command } } });
    }
    if let Some(seconds) = conf.php_sleep {
        let command = ["/bin/sleep".to_string(), seconds.to_string()];
        php_container["lifecycle"] = json!({ "preStop": { "exec": { "command": command } } });
    }
    if conf.liveness {
        // It fails once.
        let test = format!("! rm {} 2>/dev/null", dir.join(DEAD).display());
        php_container["livenessProbe"] =
            json!({ "exec": { "command": ["/bin/sh", "-c", test] }, "periodSeconds": 1, "failureThreshold": 1 });
    }
    let labels = json!({ "app": APP });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": APP, "namespace": NAMESPACE },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": labels },
            "strategy": { "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "nodeName": NODE,
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": conf.grace_s,
                    "containers": [php_container, nginx_container],
                    "volumes": [{ "name": "files", "hostPath": { "path": dir.path() } }],
                },
            },
        },
    })
}
