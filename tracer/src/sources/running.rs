//! Containers that run here, as far as a check needs them: who is PID 1, what it listens to, what the servers' configuration
//! files say. Found by cgroup; nothing of a runtime is asked.

use super::procfs;
use super::root::Root;
use crate::check::assemble::Running;
use crate::check::command::{self, Pid1, Server};
use crate::check::files::File;
use crate::check::shell::{Sh, base};
use crate::check::{fpm, nginx, supervisor};
use crate::identity::{ContainerRef, Program, container, program};
use crate::model::BootNs;
use crate::model::input::{CarriesFact, ProcessFact};
use crate::model::place::Trouble;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

const SIGQUIT: u32 = 3;
const SIGTERM: u32 = 15;
/// Where the masters look when nobody says where: Debian and the official image, nginx's own default, OpenResty.
const NGINX_CONF: &[&str] = &[
    "/etc/nginx/nginx.conf",
    "/usr/local/nginx/conf/nginx.conf",
    "/usr/local/openresty/nginx/conf/nginx.conf",
    "/opt/bitnami/nginx/conf/nginx.conf",
];
/// The official image's, Alpine's. Others say it in their title.
const FPM_CONF: &[&str] = &["/usr/local/etc/php-fpm.conf", "/etc/php-fpm.conf"];
/// supervisor/options.py, `default_configfile()`.
const SUPERVISOR_CONF: &[&str] =
    &["/etc/supervisor/supervisord.conf", "/etc/supervisord.conf", "/etc/supervisor/conf.d/supervisord.conf"];
/// Of a container without one.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read /proc: {0}")]
    Proc(#[source] io::Error),
    #[error("no running container's id begins with {0:?}")]
    NoContainer(String),
    #[error("{0:?} could be several containers: {1}")]
    Ambiguous(String, String),
    #[error("there is no process {0}")]
    NoProcess(u32),
    #[error("process {0} is in no container, by its cgroup")]
    NotInContainer(u32),
    #[error("container {container}: {trouble}")]
    Configuration { container: String, trouble: Trouble },
    #[error("container {container}: {file}: {source}")]
    Unreadable { container: String, file: String, source: io::Error },
}

/// Which container.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The beginning of its id.
    Container(String),
    Pid(u32),
}

struct Process {
    fact: ProcessFact,
    /// Whole, unlike the fact's.
    argv: Vec<String>,
}

impl Process {
    fn program(&self) -> Program {
        let exe = base(self.fact.exe.trim_end_matches(" (deleted)"));
        match program(exe) {
            Program::Other if exe.starts_with("python") && self.argv.iter().any(|a| base(a) == "supervisord") => {
                Program::Supervisor
            }
            Program::Other if exe.is_empty() => program(&self.fact.comm),
            known => known,
        }
    }

    fn server(&self) -> Option<Server> {
        match self.program() {
            Program::Nginx => Some(Server::Nginx),
            Program::PhpFpm => Some(Server::PhpFpm),
            _ => None,
        }
    }

    fn catches(&self, signal: u32) -> bool {
        self.fact.sig_cgt & (1 << (signal - 1)) != 0
    }
}

/// The container, and the others of its pod. `root` is `/`.
pub fn find(root: &Path, wanted: &Wanted) -> Result<Vec<Running>, Error> {
    let proc = root.join("proc");
    let mut all: BTreeMap<String, (ContainerRef, Vec<u32>)> = BTreeMap::new();
    for entry in fs::read_dir(&proc).map_err(Error::Proc)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(of) = container_of(&proc, pid) {
            all.entry(of.id.clone()).or_insert_with(|| (of, Vec::new())).1.push(pid);
        }
    }
    let id = match wanted {
        Wanted::Pid(pid) => {
            if !proc.join(pid.to_string()).exists() {
                return Err(Error::NoProcess(*pid));
            }
            container_of(&proc, *pid).ok_or(Error::NotInContainer(*pid))?.id
        }
        Wanted::Container(prefix) => {
            let found: Vec<&String> = all.keys().filter(|id| id.starts_with(prefix.as_str())).collect();
            match found[..] {
                [] => return Err(Error::NoContainer(prefix.clone())),
                [only] => only.clone(),
                _ => {
                    let ids: Vec<&str> = found.iter().map(|id| short(id)).collect();
                    return Err(Error::Ambiguous(prefix.clone(), ids.join(", ")));
                }
            }
        }
    };
    let pod = all.get(&id).and_then(|(of, _)| of.pod_uid.clone());
    let mut running = Vec::new();
    for (other, (of, pids)) in &all {
        if *other == id || (pod.is_some() && of.pod_uid == pod) {
            running.extend(look(root, other, pids)?);
        }
    }
    Ok(running)
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn container_of(proc: &Path, pid: u32) -> Option<ContainerRef> {
    let text = fs::read(proc.join(pid.to_string()).join("cgroup")).ok()?;
    // `hierarchy:controllers:path`, one line for each hierarchy.
    String::from_utf8_lossy(&text).lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(container::parse)
}

/// `None`: it has ended meanwhile.
fn look(root: &Path, id: &str, pids: &[u32]) -> Result<Option<Running>, Error> {
    let proc = root.join("proc");
    let read = |pid: &u32| {
        let fact = procfs::read_process(root, *pid, 0).ok()?;
        Some(Process { fact, argv: words(&proc.join(pid.to_string()).join("cmdline")) })
    };
    let processes: Vec<Process> = pids.iter().filter_map(read).collect();
    let inside = |pid: u32| processes.iter().any(|p| p.fact.key.tgid == pid);
    // In a shared pid namespace nobody of the container is PID 1: its first process is who gets the signal.
    let first = processes.iter().find(|p| p.fact.ns_pid == 1).or_else(|| {
        let outer = processes.iter().filter(|p| !inside(p.fact.ppid));
        outer.min_by_key(|p| p.fact.key.start_ticks)
    });
    let Some(first) = first else { return Ok(None) };
    let unreadable =
        |file: &str, source| Error::Unreadable { container: short(id).to_owned(), file: file.to_owned(), source };
    let pid = first.fact.key.tgid;
    let files = Root::of_process(&proc, pid).map_err(|e| unreadable(&format!("/proc/{pid}/root"), e))?;
    let mut servers: Vec<Server> = processes.iter().filter_map(Process::server).collect();
    servers.sort_unstable();
    servers.dedup();
    let master = |server: Server| {
        let parent_is =
            |p: &Process| processes.iter().any(|q| q.fact.key.tgid == p.fact.ppid && q.server() == Some(server));
        processes.iter().find(|p| p.server() == Some(server) && !parent_is(p))
    };
    let named = |trouble: Trouble| Error::Configuration { container: short(id).to_owned(), trouble };
    let open = |candidates: &[String]| -> Result<Option<File>, Error> {
        for name in candidates {
            match files.read(name) {
                Ok(text) => return Ok(Some(File { name: name.clone(), text })),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(unreadable(name, e)),
            }
        }
        Ok(None)
    };
    let nginx = match master(Server::Nginx) {
        None => None,
        Some(p) => match open(&nginx_conf(&p.argv))? {
            None => None,
            Some(file) => Some(nginx::Facts::read(&file.name, &file.text, &files).map_err(named)?),
        },
    };
    let fpm = match master(Server::PhpFpm) {
        None => None,
        Some(p) => match open(&fpm_conf(&p.argv))? {
            None => None,
            Some(file) => Some(fpm::Facts::read(&[file], &files).map_err(named)?),
        },
    };
    let supervisor = match processes.iter().find(|p| p.program() == Program::Supervisor) {
        None => None,
        Some(p) => match open(&supervisor_conf(&p.argv))? {
            None => None,
            Some(file) => Some(supervisor::Facts::read(&file, &files).map_err(named)?),
        },
    };
    let path = environment(&proc, pid, "PATH").unwrap_or_else(|| PATH_DEFAULT.to_owned());
    let sh = files.real_name("/bin/sh").map_or(Sh::Unknown, |name| Sh::of(&name, Sh::Unknown).unwrap_or(Sh::Unknown));
    let pid1 = pid1(first, &processes);
    let has = move |program: &str| match program.contains('/') {
        true => files.is_program(program),
        false => path.split(':').any(|dir| files.is_program(&format!("{}/{program}", dir.trim_end_matches('/')))),
    };
    Ok(Some(Running { name: short(id).to_owned(), servers, pid1, sh, has: Box::new(has), nginx, fpm, supervisor }))
}

fn pid1(first: &Process, all: &[Process]) -> Pid1 {
    let name = if first.fact.exe.is_empty() { &first.fact.comm } else { base(&first.fact.exe) };
    if let Some(server) = first.server() {
        return Pid1::Server(server);
    }
    match first.program() {
        _ if name == "runsvdir" => command::runit(),
        Program::Supervisor if name == "supervisord" || name.starts_with("python") => Pid1::Supervisor,
        Program::Init => {
            let children = all.iter().filter(|p| p.fact.ppid == first.fact.key.tgid);
            match children.clone().find_map(Process::server) {
                Some(server) => Pid1::Server(server),
                None if children.clone().any(|p| p.program() == Program::Supervisor) => Pid1::Supervisor,
                // Not PID 1 itself, so without a handler the default action is taken.
                None if children.clone().any(|p| p.program() == Program::Shell && !p.catches(SIGTERM)) => {
                    let why = format!("{name} passes the signal on to a shell, which ends of it, and {name} with it");
                    Pid1::Leaves { why }
                }
                None => Pid1::Unknown { why: format!("{name} passes the signal on to its child, which is no server") },
            }
        }
        _ if first.fact.ns_pid != 1 => {
            Pid1::Unknown { why: format!("the first process is {name}, in a pid namespace of several containers") }
        }
        // The kernel gives PID 1 no default action (sig_task_ignored(), SIGNAL_UNKILLABLE).
        _ if !first.catches(SIGTERM) && !first.catches(SIGQUIT) => Pid1::Deaf {
            sure: true,
            why: format!(
                "PID 1 is {name} (process {}), which has no handler for SIGTERM or SIGQUIT",
                first.fact.key.tgid
            ),
        },
        _ => Pid1::Unknown { why: format!("PID 1 is {name}, and what its signal handlers do is not known") },
    }
}

/// What the ports of an nginx carry, by its configuration as it is on its disk now. Nothing for what is no nginx master, or
/// cannot be read.
pub fn carries(root: &Path, pid: u32, at: BootNs) -> Vec<CarriesFact> {
    let proc = root.join("proc");
    let argv = words(&proc.join(pid.to_string()).join("cmdline"));
    if !argv.first().is_some_and(|title| title.starts_with("nginx: master process")) {
        return Vec::new();
    }
    let (Ok(process), Ok(files)) = (procfs::read_process(root, pid, at), Root::of_process(&proc, pid)) else {
        return Vec::new();
    };
    let text = nginx_conf(&argv).into_iter().find_map(|name| Some((files.read(&name).ok()?, name)));
    let config = text.and_then(|(text, name)| nginx::parse(&name, &text, &files).ok());
    let found = config.map(|config| nginx::carries(&config)).unwrap_or_default();
    found.into_iter().map(|(port, what)| CarriesFact { at, netns: process.netns, port, what }).collect()
}

/// Options of a master that has written its title over them: `nginx: master process nginx -c /x -g daemon off;`.
fn nginx_conf(argv: &[String]) -> Vec<String> {
    let line = argv.join(" ");
    let line = line.strip_prefix("nginx: master process ").unwrap_or(&line);
    let words: Vec<&str> = line.split_whitespace().collect();
    let option = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1).copied());
    let prefix = option("-p").map(|p| format!("{}/", p.trim_end_matches('/')));
    match option("-c") {
        Some(path) if path.starts_with('/') => vec![path.to_owned()],
        Some(path) => {
            let defaults = NGINX_CONF.iter().filter_map(|conf| conf.strip_suffix("nginx.conf"));
            let below = defaults.map(str::to_owned);
            prefix.into_iter().chain(below).map(|dir| format!("{dir}{path}")).collect()
        }
        None => NGINX_CONF.iter().map(|conf| (*conf).to_owned()).collect(),
    }
}

/// `php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)`, or its arguments.
fn fpm_conf(argv: &[String]) -> Vec<String> {
    let title = argv.first().and_then(|title| title.strip_prefix("php-fpm: master process ("));
    if let Some(path) = title.and_then(|rest| rest.split(')').next()) {
        return vec![path.to_owned()];
    }
    match option(argv, &["-y", "--fpm-config"]) {
        Some(path) => vec![path],
        None => FPM_CONF.iter().map(|conf| (*conf).to_owned()).collect(),
    }
}

fn supervisor_conf(argv: &[String]) -> Vec<String> {
    match option(argv, &["-c", "--configuration"]) {
        Some(path) => vec![path],
        None => SUPERVISOR_CONF.iter().map(|conf| (*conf).to_owned()).collect(),
    }
}

/// `-c X`, `-cX`, `--long X`, `--long=X`.
fn option(argv: &[String], names: &[&str]) -> Option<String> {
    argv.iter().enumerate().skip(1).find_map(|(at, word)| {
        names.iter().find_map(|name| match word.strip_prefix(name)? {
            "" => argv.get(at + 1).cloned(),
            rest => rest.strip_prefix('=').or((!name.starts_with("--")).then_some(rest)).map(str::to_owned),
        })
    })
}

fn words(cmdline: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    // Titles are padded with zeros; MAX_ARG_STRLEN bounds one argument.
    if let Ok(file) = fs::File::open(cmdline) {
        let _ = file.take(128 << 10).read_to_end(&mut bytes);
    }
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    bytes[..end].split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn environment(proc: &Path, pid: u32, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(proc.join(pid.to_string()).join("environ")).ok()?;
    file.take(128 << 10).read_to_end(&mut bytes).ok()?;
    let entry = bytes.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    entry.map(|value| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn where_the_configurations_are() {
        let nginx = |words: &[&str]| nginx_conf(&argv(words));
        assert_eq!(nginx(&["nginx: master process nginx -c /x/a.conf -p /x"]), ["/x/a.conf"]);
        assert_eq!(nginx(&["nginx", "-p", "/srv/", "-c", "b.conf"])[0], "/srv/b.conf");
        assert_eq!(nginx(&["nginx: master process nginx -g daemon off;"])[0], "/etc/nginx/nginx.conf");
        assert_eq!(fpm_conf(&argv(&["php-fpm: master process (/etc/php-fpm.conf)"])), ["/etc/php-fpm.conf"]);
        assert_eq!(fpm_conf(&argv(&["php-fpm", "-F", "-y", "/a"])), ["/a"]);
        assert_eq!(fpm_conf(&argv(&["php-fpm", "--fpm-config=/b"])), ["/b"]);
        assert_eq!(fpm_conf(&argv(&["php-fpm"]))[0], "/usr/local/etc/php-fpm.conf");
        assert_eq!(supervisor_conf(&argv(&["supervisord", "-n", "-c", "/c"])), ["/c"]);
        assert_eq!(supervisor_conf(&argv(&["supervisord", "-c/c"])), ["/c"]);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let no = |wanted: Wanted| find(Path::new("/"), &wanted).err().unwrap().to_string();
        assert_eq!(no(Wanted::Container("zz".into())), "no running container's id begins with \"zz\"");
        assert_eq!(no(Wanted::Pid(u32::MAX)), format!("there is no process {}", u32::MAX));
    }
}
