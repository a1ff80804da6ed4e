//! The docker daemon that builds the images: the one that answers, or one that is started for it and ended again.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// A cold start on a busy machine.
const UP: Duration = Duration::from_secs(60);

pub(super) struct Docker {
    /// Of our own daemon.
    host: Option<String>,
    daemon: Option<Child>,
    #[expect(dead_code, reason = "removed on drop, after the daemon's end")]
    folder: Option<tempfile::TempDir>,
}

impl Docker {
    /// Fails with what to do where no docker can be had.
    pub(super) fn reachable() -> Result<Self> {
        if sh::find("docker").is_none() {
            bail!("docker is missing, which builds the images: apt-get install docker.io, or --no-image to go without");
        }
        let said = sh::capture(Command::new("docker").args(["version", "-f", "{{.Server.Version}}"]));
        match said {
            Ok(_) => Ok(Self { host: None, daemon: None, folder: None }),
            // Who names a daemon means that one.
            Err(_) if std::env::var_os("DOCKER_HOST").is_none() && sh::is_root() && sh::find("dockerd").is_some() => {
                Self::start().context("no docker daemon answers, and none can be started; --no-image goes without")
            }
            Err(e) => Err(e).context(
                "docker's daemon does not answer: start it, name it in DOCKER_HOST, or --no-image to go without",
            ),
        }
    }

    /// A daemon without a network, which no build of `FROM scratch` needs.
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let place = |name: &str| folder.path().join(name).display().to_string();
        let host = format!("unix://{}", place("sock"));
        let mut cmd = Command::new("dockerd");
        cmd.args(["-H", &host, "--iptables=false", "--bridge=none", "--storage-driver=vfs"]);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            cmd.args([option, &place(name)]);
        }
        let log = std::fs::File::create(place("log"))?;
        // Ctrl-C is for us: it ends when this is dropped.
        cmd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let daemon = cmd.spawn().context("starting dockerd")?;
        let log = place("log");
        let mut docker = Self { host: Some(host), daemon: Some(daemon), folder: Some(folder) };
        let start = Instant::now();
        while sh::capture(docker.command().args(["version", "-f", "{{.Server.Version}}"])).is_err() {
            let ended = docker.daemon.as_mut().is_none_or(|daemon| !matches!(daemon.try_wait(), Ok(None)));
            if ended || start.elapsed() > UP {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("dockerd said: {}", said.lines().last().unwrap_or("nothing"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(docker)
    }

    /// `docker`, of that daemon.
    pub(super) fn command(&self) -> Command {
        let mut cmd = Command::new("docker");
        if let Some(host) = &self.host {
            cmd.args(["-H", host]);
        }
        cmd
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        // In order, so that it ends its containerd.
        let _ = Command::new("kill").arg(daemon.id().to_string()).status();
        let start = Instant::now();
        while matches!(daemon.try_wait(), Ok(None)) && start.elapsed() < UP {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}
