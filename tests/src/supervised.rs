//! nginx and php-fpm in one container, with supervisord as its PID 1.

use crate::guard::{self, Dir};
use crate::launch::Spec;
use crate::net::listens;
use crate::nginx::{self, Nginx, NginxConf};
use crate::php::{self, FpmConf};
use crate::pod::Pod;
use crate::site::Php;
use anyhow::{Result, anyhow, bail};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn binary() -> Result<PathBuf> {
    let dirs = ["/usr/bin", "/usr/local/bin"];
    let found = dirs.iter().map(|d| Path::new(d).join("supervisord")).find(|p| p.is_file());
    found.ok_or_else(|| anyhow!("supervisord is not installed (apt-get install supervisor)"))
}

/// How supervisord stops the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// nginx has the higher priority: it is started last and stopped first.
    pub nginx_first: bool,
    /// Seconds; supervisord's default is 10.
    pub stopwaitsecs: Option<u64>,
    /// After that time the whole process group is killed, and not the master alone.
    pub killasgroup: bool,
}

/// Returns supervisord's container when both servers listen.
///
/// Both programs have `stopsignal=QUIT` and, unless `order` says otherwise, the default priority, as most images do:
/// supervisord stops the last started first, and that is php-fpm, because programs of one priority are started by name.
pub(crate) fn start(
    pod: &Pod,
    dir: &Dir,
    www: &Path,
    nginx: &NginxConf,
    fpm: &FpmConf,
    order: Order,
) -> Result<(Nginx, Php)> {
    let php = php::Files::new(dir, www, fpm)?;
    let nginx = NginxConf { fastcgi: Some(php.address.clone()), ..nginx.clone() };
    let web = nginx::Files::of_pod(dir, www, &nginx)?;
    let base = dir.open_subdir("supervisor")?;
    let (config, log) = (base.join("supervisord.conf"), base.join("supervisord.log"));
    let mut text = format!(
        "[supervisord]\nnodaemon = true\nuser = root\nlogfile = {0}/main.log\npidfile = {0}/supervisord.pid\n",
        base.display()
    );
    let programs = [("nginx", &web.argv, &web.error_log, 20), ("php-fpm", &php.argv, &php.log, 10)];
    // startsecs: what ends within it is started again, whatever autorestart says.
    for (name, argv, log, priority) in programs {
        let _ = write!(
            text,
            "[program:{name}]\ncommand = {}\nstopsignal = QUIT\nautorestart = false\nstartsecs = 0\n\
             stdout_logfile = NONE\nredirect_stderr = false\nstderr_logfile = {}\n",
            words(argv)?,
            log.display()
        );
        if order.nginx_first {
            let _ = writeln!(text, "priority = {priority}");
        }
        if order.killasgroup {
            text.push_str("killasgroup = true\n");
        }
        if let Some(seconds) = order.stopwaitsecs {
            let _ = writeln!(text, "stopwaitsecs = {seconds}");
        }
    }
    std::fs::write(&config, text)?;
    let mut spec = Spec::new([binary()?.into_os_string(), "-c".into(), config.into()]);
    spec.log = Some(log.clone());
    let container = pod.start(spec)?;
    let nginx::Files { access_log, error_log, program, argv } = web;
    let mut server = Nginx { container, access_log, error_log, program, argv };
    // supervisord, two masters, and all that they start.
    let wanted = 3 + nginx.workers as usize + fpm.at_start();
    let pid = server.container.pid();
    let started = guard::wait("nginx and php-fpm under supervisord", Duration::from_secs(30), || {
        let listen = listens(pid, nginx.port) && php.listens(pid, fpm);
        let up = listen && server.container.cgroup.procs().len() == wanted;
        up || !server.container.running()
    });
    if started.is_err() || !server.container.running() {
        let read = |p: &Path| std::fs::read_to_string(p).unwrap_or_default();
        bail!("supervisord did not start its programs: {}{}{}", read(&log), read(&server.error_log), read(&php.log));
    }
    Ok((server, Php { program: php.program, ledger: php.ledger }))
}

/// supervisord splits a command as a shell does; the harness's own paths need no quotes.
fn words(argv: &[OsString]) -> Result<String> {
    let words: Option<Vec<&str>> = argv.iter().map(|a| a.to_str()).collect();
    let words = words.filter(|w| w.iter().all(|w| !w.contains([' ', '"', '\'', '%', ';', '\\'])));
    words.map(|w| w.join(" ")).ok_or_else(|| anyhow!("cannot be put into supervisord's configuration: {argv:?}"))
}
