//! A pod that a container runtime runs: nginx and php-fpm in containers of their own, and more beside them when asked.

use super::{ContainerSpec, Engine, Names, Pod, PodSpec, Running, images};
use crate::cgroup::pod_uid;
use crate::guard::{self, Dir};
use crate::net::listens;
use crate::nginx::{self, NginxConf};
use crate::php::{self, FpmConf, FpmListen, Served};
use crate::scene::Watch;
use crate::site::{Ground, Territory};
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Nothing starts slower, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Clone, Debug)]
pub struct DeployedConf {
    pub name: String,
    pub nginx: NginxConf,
    pub fpm: FpmConf,
    /// STOPSIGNAL of the images.
    pub nginx_stop: Signal,
    pub php_stop: Signal,
    /// A kubelet's cgroup for the pod; else the runtime's own choice.
    pub kubepods: bool,
    pub names: Names,
    /// A third container, that has nothing to do with requests.
    pub sidecar: bool,
    /// What a kubelet writes down with nginx's container.
    pub grace: Duration,
    pub pre_stop: Hook,
}

/// nginx's preStop hook.
#[derive(Clone, Debug, Default)]
pub enum Hook {
    #[default]
    None,
    Command(&'static [&'static str]),
    /// nginx's own command line, and `-s quit`.
    NginxQuit,
}

impl Default for DeployedConf {
    fn default() -> Self {
        Self {
            name: "web-0".into(),
            nginx: NginxConf::default(),
            fpm: FpmConf { children: 16, ..FpmConf::default() },
            nginx_stop: Signal::SIGTERM,
            php_stop: Signal::SIGQUIT,
            kubepods: true,
            names: Names::Cgroupfs,
            sidecar: false,
            grace: Duration::from_secs(30),
            pre_stop: Hook::None,
        }
    }
}

/// A running pod. Removed on drop.
pub struct Deployed<'e> {
    pub engine: &'e dyn Engine,
    pub pod: Pod,
    pub nginx: Running,
    pub php: Running,
    pub sidecar: Option<Running>,
    pub dir: Dir,
    /// nginx's command line.
    pub nginx_argv: Vec<String>,
    nginx_spec: ContainerSpec,
    php_spec: ContainerSpec,
    php_port: u16,
    workers: usize,
    children: usize,
    ledger: PathBuf,
    netns: Vec<u32>,
}

impl<'e> Deployed<'e> {
    pub fn start(engine: &'e dyn Engine, conf: &DeployedConf) -> Result<Self> {
        let dir = Dir::new()?;
        let www = dir.open_subdir("www")?;
        let FpmListen::Tcp(php_port) = conf.fpm.listen else { bail!("php-fpm listens on TCP here") };
        let php = php::Files::new(&dir, &www, &conf.fpm)?;
        let nginx_conf = NginxConf { fastcgi: Some(php.address.clone()), ..conf.nginx.clone() };
        let nginx = nginx::Files::of_pod(&dir, &www, &nginx_conf)?;
        let uid = pod_uid();
        let spec = PodSpec {
            namespace: "shop".into(),
            name: conf.name.clone(),
            cgroup_parent: conf.kubepods.then(|| format!("/kubepods/burstable/pod{uid}")),
            uid,
            names: conf.names,
        };
        let container = |name: &str, stop: Signal, argv: Vec<OsString>| ContainerSpec {
            name: name.into(),
            image: images::server(stop),
            argv,
            shows: vec![dir.path().to_path_buf()],
            grace: conf.grace,
            pre_stop: None,
            attempt: 0,
        };
        let php_spec = container("php", conf.php_stop, php.argv);
        let mut nginx_spec = container("nginx", conf.nginx_stop, nginx.argv);
        let nginx_argv: Vec<String> = nginx_spec.argv.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        let quit = || [&nginx_argv[..], &["-s".into(), "quit".into()]].concat();
        nginx_spec.pre_stop = match conf.pre_stop {
            Hook::None => None,
            Hook::Command(words) => Some(words.iter().map(ToString::to_string).collect()),
            Hook::NginxQuit => Some(quit()),
        };
        let pod = engine.pod(&spec)?;
        // From here on the pod is removed, also after an error.
        let nobody = |name: &str| Running { name: name.into(), id: String::new(), pid: 0 };
        let mut site = Self {
            engine,
            pod,
            nginx: nobody("nginx"),
            php: nobody("php"),
            sidecar: None,
            nginx_argv,
            nginx_spec,
            php_spec,
            php_port,
            workers: conf.nginx.workers as usize,
            children: conf.fpm.children as usize,
            ledger: php.ledger,
            netns: Vec::new(),
            dir,
        };
        site.start_php()?;
        site.start_nginx()?;
        if conf.sidecar {
            let argv = ["/bin/sh", "-c", "trap 'exit 0' TERM QUIT; while :; do sleep 1; done"].map(OsString::from);
            let spec = ContainerSpec { argv: argv.to_vec(), name: "sidecar".into(), ..site.php_spec.clone() };
            site.sidecar = Some(engine.start(&site.pod, &spec)?);
        }
        let inode = |path: PathBuf| Ok::<_, anyhow::Error>(u32::try_from(std::fs::metadata(path)?.ino())?);
        site.netns = vec![inode(format!("/proc/{}/ns/net", site.nginx.pid).into())?, inode(engine.netns())?];
        Ok(site)
    }

    /// why502 beside it, which asks its runtime for names.
    pub fn watch(&self) -> Result<Watch> {
        let socket = format!("unix://{}", self.engine.socket().display());
        Watch::at(self.dir.join("watch.rec"), &["--runtime", &socket])
    }

    /// Starts nginx's container, again when there was one, and returns when all of its workers are there.
    pub fn start_nginx(&mut self) -> Result<()> {
        self.nginx = self.engine.start(&self.pod, &self.nginx_spec)?;
        self.nginx_spec.attempt += 1;
        ready(&self.nginx, 80, self.workers)
    }

    /// The same for php-fpm.
    pub fn start_php(&mut self) -> Result<()> {
        self.php = self.engine.start(&self.pod, &self.php_spec)?;
        self.php_spec.attempt += 1;
        ready(&self.php, self.php_port, self.children)
    }

    /// Ends the pod's containers as a kubelet does: nginx's preStop command first, and the stop signals with what is left
    /// of the grace period, but no less than 2 s.
    pub fn delete(&self) -> Result<()> {
        let (begin, grace) = (Instant::now(), self.nginx_spec.grace);
        let end = |container: &Running, pre_stop: Option<&Vec<String>>| {
            if let Some(command) = pre_stop {
                self.engine.exec(container, command)?;
            }
            let left = grace.saturating_sub(begin.elapsed()).max(Duration::from_secs(2));
            self.engine.stop(container, left)
        };
        thread::scope(|scope| {
            let others = [Some(&self.php), self.sidecar.as_ref()];
            let others: Vec<_> = others.into_iter().flatten().map(|c| scope.spawn(move || end(c, None))).collect();
            let nginx = end(&self.nginx, self.nginx_spec.pre_stop.as_ref());
            let join = |thread: thread::ScopedJoinHandle<Result<()>>| {
                thread.join().map_err(|_| anyhow!("a thread of the deletion panicked"))?
            };
            others.into_iter().try_for_each(join)?;
            nginx
        })
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.pod.ip.into(), 80)
    }
}

/// Waits until a server listens and has its children.
fn ready(container: &Running, port: u16, children: usize) -> Result<()> {
    let Running { name, pid, .. } = container;
    let up = || listens(*pid, port) && guard::children(*pid).len() == children;
    let gone = || guard::is_gone(&pid.to_string());
    guard::wait(&format!("container {name}"), LIMIT, || up() || gone())?;
    if gone() {
        bail!("container {name} ended at once");
    }
    Ok(())
}

impl Ground for Deployed<'_> {
    fn client(&self) -> PathBuf {
        self.engine.netns()
    }

    fn served(&self) -> Result<Vec<Served>> {
        php::read_ledger(&self.ledger)
    }

    fn territory(&self) -> Territory {
        Territory { ips: vec![self.pod.ip.into()], netns: self.netns.clone() }
    }
}

impl Drop for Deployed<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.engine.remove_pod(&self.pod).context("cannot remove a pod") {
            eprintln!("{e:#}");
        }
    }
}
