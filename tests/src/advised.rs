//! A pod's end as it is configured, what an advice changes in it, and how it is played: with the advice applied nothing
//! may be lost any more.

use crate::kubelet::{Deletion, PreStop, Stop, Stopped};
use crate::load::{Load, LoadConf, Outcome, Progress};
use crate::nginx::{Nginx, NginxConf};
use crate::php::{Fpm, FpmConf, FpmListen};
use crate::pod::Pid1;
use crate::scene::{LIMIT, Loads, Over, Scene, pass};
use crate::site::{Site, SiteConf};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::fmt::Write as _;
use std::time::Duration;
use why502::model::incident::Advice;

/// What ends the pod, or what else happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The kubelet ends it: hooks, stop signals, grace period.
    Delete,
    /// SIGKILL to its containers, and nothing before.
    Kill,
    /// SIGHUP to nginx; then the load goes on for so many ms.
    Reload(u64),
    /// nginx's container is stopped and another one is started in its place; then the load goes on for so many ms.
    Restart(u64),
    /// A server ends by a signal that nobody sends on purpose, for good; the load goes on for so many ms.
    Crash(Server, u64),
    /// php-fpm is started so many ms after nginx; then the load goes on for as long again.
    LateFpm(u64),
    /// The load runs for so many ms.
    Nothing(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Nginx,
    PhpFpm,
}

/// A pod with its configuration, and its end.
#[derive(Clone, Debug)]
pub struct Plan {
    pub site: SiteConf,
    pub act: Act,
    pub deletion: Deletion,
    pub nginx: Stop,
    /// nginx's preStop hook is `nginx -s quit`.
    pub quit_hook: bool,
    /// `None`: php-fpm outlives the scenario.
    pub fpm: Option<Stop>,
    /// Of the proxy before nginx, when the site has one.
    pub proxy: Stop,
    /// why502 is given the pod's spec.
    pub told: bool,
}

/// What the client sends.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Connections with requests that php works on for `slow_ms`; the end begins when it works on `in_php` of them.
    pub slow: usize,
    pub slow_ms: u32,
    pub in_php: usize,
    /// Connections with requests that are answered at once; the end begins after `answered` of them.
    pub fast: usize,
    pub paths: &'static [&'static str],
    pub keep_alive: bool,
    pub think: Duration,
    pub answered: u64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            slow: 12,
            slow_ms: 1500,
            in_php: 12,
            fast: 12,
            paths: &["/static", "/fast.php"],
            keep_alive: true,
            think: Duration::from_millis(2),
            answered: 200,
        }
    }
}

impl Traffic {
    fn loads(&self, site: &Site) -> Loads {
        let load = |prefix: &str, connections: usize, path: &str| {
            let mut conf = LoadConf::new(site.addr(), path);
            (conf.connections, conf.prefix) = (connections, prefix.into());
            // A client that was turned away comes back, but not at once.
            conf.refused_pause = Duration::from_millis(300);
            conf
        };
        let slow = load("slow", self.slow, &format!("/slow.php?ms={}", self.slow_ms));
        let mut fast = load("fast", self.fast, self.paths.first().copied().unwrap_or("/static"));
        fast.more_paths = self.paths.iter().skip(1).map(ToString::to_string).collect();
        (fast.keep_alive, fast.think) = (self.keep_alive, self.think);
        Loads {
            slow: (self.slow > 0).then_some(slow),
            in_php: self.in_php,
            fast: (self.fast > 0).then_some(fast),
            answered: self.answered,
        }
    }
}

/// A pod in its site, before its end.
#[derive(Debug)]
pub struct Stage {
    pub site: Site,
    plan: Plan,
}

impl Plan {
    pub fn stage(&self) -> Result<Stage> {
        let mut conf = self.site.clone();
        if let Act::LateFpm(_) = self.act {
            conf.nginx.fastcgi = Some(address(conf.fpm.as_ref())?);
            conf.fpm = None;
        }
        Ok(Stage { site: Site::start(&conf)?, plan: self.clone() })
    }

    /// Does what the advice says; the ids that this harness has no way to do are returned.
    pub fn apply(&mut self, advice: &[Advice]) -> Vec<String> {
        advice.iter().filter(|a| self.apply_one(&a.id, a.value).is_none()).map(|a| a.id.clone()).collect()
    }

    fn apply_one(&mut self, id: &str, value: Option<u64>) -> Option<()> {
        let seconds = value.map(Duration::from_secs);
        match id {
            "stopsignal-sigquit" => (self.nginx.signal, self.quit_hook) = (Signal::SIGQUIT, false),
            "prestop-sleep" => (self.nginx.pre_stop, self.quit_hook) = (Some(PreStop::Sleep(seconds?)), false),
            // The advice is "so long, or longer": the least must do. Without a value nothing was seen that needs more.
            "grace-period" => self.deletion.grace = seconds.unwrap_or(self.deletion.grace),
            "stop-before-kill" => self.act = Act::Delete,
            "exec-in-entrypoint" => self.site.nginx.pid1 = Pid1::Server,
            "worker-shutdown-timeout" => {
                self.site.nginx.main_extra = format!("worker_shutdown_timeout {}s;", value?);
            }
            "keepalive-timeout-longer-than-edge" => self.site.nginx.keepalive_timeout = u32::try_from(value?).ok()?,
            // The client never lets a connection idle for as long as that.
            "edge-keepalive-timeout" => {}
            "fpm-stopsignal-sigquit" => self.fpm.as_mut()?.signal = Signal::SIGQUIT,
            "fpm-process-control-timeout" => {
                self.site.fpm.as_mut()?.process_control_timeout = u32::try_from(value?).ok()?;
            }
            "nginx-stops-first" => match seconds {
                Some(sleep) => self.fpm.as_mut()?.pre_stop = Some(PreStop::Sleep(sleep)),
                None => self.fpm.as_mut()?.sidecar = true,
            },
            // What stands in its place is another advice of the set.
            "prestop-command" => self.nginx.pre_stop = None,
            "native-sidecar" => self.proxy.sidecar = true,
            "replace-not-restart" => self.act = Act::Delete,
            "start-fpm-first" => match self.act {
                Act::LateFpm(ms) => self.act = Act::Nothing(ms),
                _ => return None,
            },
            // It has no value: what waits at most is seen by nobody.
            "fpm-max-children" => self.site.fpm.as_mut()?.children = 28,
            "fpm-listen-backlog" => self.site.fpm.as_mut()?.backlog = None,
            "edge-retry-idempotent" if self.site.edge.is_some() => self.site.replica = true,
            // The crash happens again. That this pod is not asked any more until it listens is the replica's part.
            "keep-nginx-up" | "keep-fpm-up" | "readiness-probe" => {}
            "supervisor-priority" => self.site.supervisor.nginx_first = true,
            "supervisor-stopwaitsecs" => self.site.supervisor.stopwaitsecs = value,
            _ => return None,
        }
        Some(())
    }
}

impl Stage {
    /// Returns when the pod is gone and every request has come to its end.
    pub fn play(self, traffic: &Traffic) -> Result<(Over, Vec<Stopped>)> {
        let Self { site, plan } = self;
        let loads = traffic.loads(&site);
        let mut scene = Scene::start(site, &loads)?;
        // Servers that come later live until the load has ended.
        let (mut _nginx, mut _fpm) = (None, None);
        let stopped = match plan.act {
            Act::Delete => plan.delete(&mut scene)?,
            Act::Kill => {
                scene.site.nginx.container.signal(Signal::SIGKILL)?;
                if let (Some(fpm), Some(_)) = (&scene.site.fpm, &plan.fpm) {
                    fpm.container.signal(Signal::SIGKILL)?;
                }
                pass(u64::try_from(plan.deletion.propagation.as_millis())?)?;
                Vec::new()
            }
            Act::Reload(ms) => {
                scene.site.nginx.container.signal(Signal::SIGHUP)?;
                pass(ms)?;
                Vec::new()
            }
            Act::Restart(ms) => {
                let site = &mut scene.site;
                site.nginx.container.signal(plan.nginx.signal)?;
                site.nginx.container.wait(LIMIT)?;
                let fastcgi = site.fpm.as_ref().map(|fpm| fpm.address.clone());
                let conf = NginxConf { fastcgi, ..plan.site.nginx.clone() };
                _nginx = Some(Nginx::start(&site.pod, &site.dir, &site.dir.join("www"), &conf)?);
                pass(ms)?;
                Vec::new()
            }
            Act::Crash(server, ms) => {
                match server {
                    Server::Nginx => scene.site.signal_nginx(Signal::SIGSEGV)?,
                    Server::PhpFpm => scene.site.signal_php(Signal::SIGSEGV)?,
                }
                pass(ms)?;
                Vec::new()
            }
            Act::LateFpm(ms) => {
                pass(ms)?;
                let site = &scene.site;
                let conf = plan.site.fpm.as_ref().context("without php-fpm none can be late")?;
                _fpm = Some(Fpm::start(&site.pod, &site.dir, &site.dir.join("www"), conf)?);
                pass(ms)?;
                Vec::new()
            }
            Act::Nothing(ms) => {
                pass(ms)?;
                Vec::new()
            }
        };
        Ok((scene.end()?, stopped))
    }
}

impl Plan {
    fn delete(&self, scene: &mut Scene) -> Result<Vec<Stopped>> {
        let Scene { site, slow, fast, .. } = scene;
        let nginx = self.nginx_stop(site);
        let mut containers = vec![(&mut site.nginx.container, nginx)];
        if let (Some(fpm), Some(stop)) = (&mut site.fpm, &self.fpm) {
            containers.push((&mut fpm.container, stop.clone()));
        }
        if let Some(proxy) = &mut site.sidecar {
            containers.push((&mut proxy.container, self.proxy.clone()));
        }
        let loads: Vec<&Load> = [&*slow, &*fast].into_iter().flatten().collect();
        let stopped = self.deletion.run(containers, || loads.iter().for_each(|l| l.move_away()))?;
        crate::guard::wait("the last requests", LIMIT, || {
            loads.iter().all(|l| l.finished() || Progress::get(&l.progress.in_flight) == 0)
        })?;
        Ok(stopped)
    }
}

impl Plan {
    fn nginx_stop(&self, site: &Site) -> Stop {
        let mut nginx = self.nginx.clone();
        if self.quit_hook {
            let words = site.nginx.argv.iter().map(|w| w.to_string_lossy().into_owned());
            nginx.pre_stop = Some(PreStop::Exec(words.chain(["-s", "quit"].map(String::from)).collect()));
        }
        nginx
    }

    /// The plan as a pod's spec. What it does not say of its images is their Dockerfiles' part.
    pub fn spec(&self, site: &Site) -> Result<String> {
        let grace = self.deletion.grace.as_secs();
        let mut text = format!("kind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: {grace}\n");
        let mut sidecars = String::new();
        let mut containers = String::new();
        let mut add = |name: &str, port: Option<u16>, stop: &Stop, sidecar: bool| -> Result<()> {
            let to = if sidecar { &mut sidecars } else { &mut containers };
            container(to, name, port, stop, sidecar)
        };
        if site.fpm.is_some() {
            let fpm = self.fpm.clone().unwrap_or(Stop { sidecar: true, signal: Signal::SIGQUIT, ..Stop::default() });
            add("php-fpm", None, &fpm, fpm.sidecar)?;
        }
        add("nginx", Some(self.site.nginx.port), &self.nginx_stop(site), false)?;
        if site.sidecar.is_some() {
            add("proxy", Some(80), &self.proxy, self.proxy.sidecar)?;
        }
        for (what, list) in [("initContainers", sidecars), ("containers", containers)] {
            if !list.is_empty() {
                _ = write!(text, "  {what}:\n{list}");
            }
        }
        Ok(text)
    }
}

fn container(text: &mut String, name: &str, port: Option<u16>, stop: &Stop, sidecar: bool) -> Result<()> {
    _ = write!(text, "  - name: {name}\n    image: registry.example/{name}:1\n");
    if sidecar {
        text.push_str("    restartPolicy: Always\n");
    }
    if let Some(port) = port {
        _ = writeln!(text, "    ports: [{{containerPort: {port}}}]");
    }
    _ = writeln!(text, "    lifecycle:\n      stopSignal: {}", stop.signal.as_str());
    match &stop.pre_stop {
        None => {}
        Some(PreStop::Sleep(time)) => {
            _ = writeln!(text, "      preStop: {{sleep: {{seconds: {}}}}}", time.as_secs());
        }
        Some(PreStop::Exec(argv)) => {
            _ = writeln!(text, "      preStop: {{exec: {{command: {}}}}}", serde_json::to_string(argv)?);
        }
    }
    Ok(())
}

fn address(fpm: Option<&FpmConf>) -> Result<String> {
    match fpm.map(|fpm| &fpm.listen) {
        Some(FpmListen::Tcp(port)) => Ok(format!("127.0.0.1:{port}")),
        other => bail!("where php-fpm will listen is not known: {other:?}"),
    }
}

/// Requests that were not answered as they should have been, whoever is to blame.
pub fn unhappy(over: &Over) -> Vec<String> {
    let fine = |o: Outcome| matches!(o, Outcome::Ok { .. });
    over.requests
        .iter()
        .filter(|r| !fine(r.outcome))
        .map(|r| format!("{} {}: {}", r.id, r.path, r.outcome.name()))
        .collect()
}
