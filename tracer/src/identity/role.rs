//! What a process is. The program decides, then parent and children; a process's own word (comm, title) alone is
//! never `sure`, because anybody can call himself nginx.

use super::cgroups::Place;
use super::process::{Image, ImageFrom, Process, base};
use super::table::Table;
use crate::model::ProcKey;
use crate::model::input::ProcessFact;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    NginxMaster,
    NginxWorker,
    /// `nginx -s quit`, `nginx -t`, the launcher of a daemon: short-lived, serves nobody.
    NginxCtl,
    PhpFpmMaster,
    PhpFpmChild,
    /// Starts and stops servers: supervisord, s6, runit, systemd.
    Supervisor,
    /// Passes signals on and reaps: tini, dumb-init, catatonit, pause.
    Init,
    /// A container runtime's process outside of every container.
    Runtime,
    Shell,
    Other,
}

impl Role {
    /// The stable name used in outputs.
    pub fn id(self) -> &'static str {
        match self {
            Role::NginxMaster => "nginx-master",
            Role::NginxWorker => "nginx-worker",
            Role::NginxCtl => "nginx-ctl",
            Role::PhpFpmMaster => "php-fpm-master",
            Role::PhpFpmChild => "php-fpm-child",
            Role::Supervisor => "supervisor",
            Role::Init => "init",
            Role::Runtime => "runtime",
            Role::Shell => "shell",
            Role::Other => "other",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleInfo {
    pub role: Role,
    /// Rests on the program and on seen relations, not on a name that the process gave itself.
    pub sure: bool,
    /// The rule that decided, in a few words.
    pub why: &'static str,
}

/// What a program is by its file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    PhpFpm,
    Supervisor,
    Init,
    Runtime,
    Shell,
    Other,
}

/// What a program of this file name is taken for.
pub fn program(name: &str) -> Kind {
    Kind::of_name(name)
}

impl Kind {
    /// With whether it is sure.
    pub(super) fn of(p: &Process) -> (Kind, bool) {
        let Some(image) = p.image.as_ref() else { return (Kind::of_name(&p.comm), false) };
        if image.exe.is_empty() || is_descriptor(&image.exe) {
            let arg0 = image.argv.first().map_or("", |a| base(a));
            return match Kind::of_name(arg0) {
                Kind::Other => (Kind::of_name(&p.comm), false),
                kind => (kind, false),
            };
        }
        let kind = Kind::of_image(image);
        if kind == Kind::Other
            && let Some((kind, _)) = title(image)
        {
            return (kind, false); // a server under another file name, or a liar
        }
        (kind, true)
    }

    fn of_image(image: &Image) -> Kind {
        let name = image.base();
        if name.starts_with("python") && image.argv.iter().skip(1).any(|a| base(a) == "supervisord") {
            return Kind::Supervisor; // a script: /proc shows its interpreter
        }
        Kind::of_name(name)
    }

    fn of_name(name: &str) -> Kind {
        if is_nginx(name) {
            return Kind::Nginx;
        }
        if is_php_fpm(name) {
            return Kind::PhpFpm;
        }
        match name {
            "supervisord" | "s6-svscan" | "s6-supervise" | "runsvdir" | "runsv" | "runit" | "runit-init"
            | "circusd" | "systemd" => Kind::Supervisor,
            "tini" | "tini-static" | "docker-init" | "podman-init" | "dumb-init" | "catatonit" | "pause" | "init" => {
                Kind::Init
            }
            "runc" | "crun" | "youki" | "runsc" | "containerd" | "dockerd" | "conmon" | "conmonrs" | "crio"
            | "podman" | "kubelet" | "cri-dockerd" | "k3s" | "k0s" => Kind::Runtime,
            "sh" | "bash" | "dash" | "ash" | "busybox" | "zsh" | "ksh" => Kind::Shell,
            _ if name.starts_with("containerd-shim") || name.starts_with("runc:[") => Kind::Runtime,
            _ if name.starts_with("s6-linux-init") => Kind::Supervisor,
            _ if name.ends_with(".sh") => Kind::Shell,
            _ => Kind::Other,
        }
    }
}

/// Is this process a server, a supervisor or a runtime, as far as /proc tells? Generous: a name is enough.
pub fn is_notable(fact: &ProcessFact) -> bool {
    let image = Image::new(&fact.exe, &fact.argv, ImageFrom::Proc);
    let notable = |k: Kind| matches!(k, Kind::Nginx | Kind::PhpFpm | Kind::Supervisor | Kind::Runtime);
    notable(Kind::of_image(&image)) || notable(Kind::of_name(&fact.comm)) || title(&image).is_some()
}

/// Is this an nginx or a php-fpm, as far as /proc tells?
pub fn is_server(fact: &ProcessFact) -> bool {
    let image = Image::new(&fact.exe, &fact.argv, ImageFrom::Proc);
    let kind = title(&image).map_or_else(|| Kind::of_image(&image), |(kind, _)| kind);
    matches!(kind, Kind::Nginx | Kind::PhpFpm)
}

/// Is this a php-fpm, as far as /proc tells?
pub fn is_php_fpm_process(fact: &ProcessFact) -> bool {
    let image = Image::new(&fact.exe, &fact.argv, ImageFrom::Proc);
    let titled = title(&image).is_some_and(|(kind, _)| kind == Kind::PhpFpm);
    titled || Kind::of_image(&image) == Kind::PhpFpm
}

/// Would this program, by its path, be a php-fpm?
pub fn is_php_fpm_program(path: &str) -> bool {
    is_php_fpm(base(path))
}

/// Would this program, by its path, be an nginx?
pub fn is_nginx_program(path: &str) -> bool {
    is_nginx(base(path))
}

/// Programs run from a descriptor (runc's clone of itself) have no name of their own.
fn is_descriptor(path: &str) -> bool {
    path.starts_with("/proc/self/") || path.starts_with("/dev/fd/") || path.starts_with("/memfd:")
}

fn is_nginx(name: &str) -> bool {
    const NAMES: &[&str] = &["nginx", "nginx-debug", "openresty", "openresty-debug", "angie", "angie-debug", "tengine"];
    // Not nginx-ingress-controller, nginx-prometheus-exporter and the like.
    NAMES.contains(&name) || name.strip_prefix("nginx").is_some_and(is_version)
}

fn is_php_fpm(name: &str) -> bool {
    // php-fpm, php-fpm83, php-fpm8.2, php-fpm-8.2; php8.2-fpm, php82-fpm
    if let Some(rest) = name.strip_prefix("php-fpm") {
        return rest.is_empty() || is_version(rest);
    }
    name.strip_prefix("php").and_then(|r| r.strip_suffix("-fpm")).is_some_and(is_version)
}

fn is_version(s: &str) -> bool {
    let s = s.strip_prefix('-').unwrap_or(s);
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// Titles that nginx and php-fpm write over their arguments: program, and whether it is the master.
fn title(image: &Image) -> Option<(Kind, bool)> {
    if image.from != ImageFrom::Proc {
        return None; // at exec no title is written yet, and a fork inherits its parent's
    }
    let text = image.argv.first()?;
    if let Some(rest) = ["nginx: ", "angie: "].iter().find_map(|name| text.strip_prefix(name)) {
        // "worker process", "worker process is shutting down", "cache manager process" …
        return Some((Kind::Nginx, rest.starts_with("master process")));
    }
    if let Some(rest) = text.strip_prefix("php-fpm: ") {
        return Some((Kind::PhpFpm, rest.starts_with("master process")));
    }
    None
}

/// Do the arguments make nginx a tool rather than a server? Read as `ngx_get_options()` does.
fn nginx_is_tool(argv: &[String]) -> bool {
    let mut args = argv.iter().skip(1);
    while let Some(arg) = args.next() {
        let Some(letters) = arg.strip_prefix('-') else { return false };
        for (i, letter) in letters.char_indices() {
            match letter {
                's' | 't' | 'T' | 'v' | 'V' | 'h' | '?' => return true,
                'p' | 'c' | 'e' | 'g' => {
                    if i + 1 == letters.len() {
                        args.next(); // its value is the next argument
                    }
                    break;
                }
                _ => {}
            }
        }
    }
    false
}

/// The same for php-fpm: test, version, info, modules, help.
fn php_fpm_is_tool(argv: &[String]) -> bool {
    let long = ["--test", "--version", "--info", "--modules", "--help"];
    argv.iter()
        .skip(1)
        .any(|a| long.contains(&a.as_str()) || matches!(a.as_str(), "-t" | "-tt" | "-v" | "-i" | "-m" | "-h" | "-?"))
}

impl Table {
    /// What a process is, as far as is known now. A worker seen before its first relative may be told differently
    /// later; `sure` is given only for what does not change.
    pub fn role(&self, key: &ProcKey) -> RoleInfo {
        let Some(p) = self.process(key) else {
            return RoleInfo { role: Role::Other, sure: false, why: "process never seen" };
        };
        let (kind, sure) = self.kind(p);
        let why = if sure { "by its program" } else { "by its name only" };
        match kind {
            Kind::Nginx | Kind::PhpFpm if self.only_says_so(p) => RoleInfo {
                role: Role::Other,
                sure: false,
                why: "it calls itself a server, and has no worker or master",
            },
            Kind::Nginx | Kind::PhpFpm => self.server_role(p, kind, sure),
            Kind::Supervisor => RoleInfo { role: Role::Supervisor, sure, why },
            Kind::Init => RoleInfo { role: Role::Init, sure, why },
            Kind::Shell => RoleInfo { role: Role::Shell, sure, why },
            Kind::Runtime => match self.place_of(key) {
                Place::Host => RoleInfo { role: Role::Runtime, sure, why },
                Place::Container(_) => {
                    RoleInfo { role: Role::Other, sure, why: "a runtime's program, but inside a container" }
                }
                Place::Unknown => RoleInfo { role: Role::Other, sure: false, why: "its cgroup is not known" },
            },
            Kind::Other => {
                if p.image.is_none() && self.place_of(key) == Place::Host && self.below_runtime(key) {
                    return RoleInfo {
                        role: Role::Runtime,
                        sure: false,
                        why: "child of a runtime, outside containers",
                    };
                }
                RoleInfo { role: Role::Other, sure, why }
            }
        }
    }

    /// What a process runs. A fork of a server under another file name is one as well: its own title is not known, that
    /// of its parent is.
    pub(super) fn kind(&self, p: &Process) -> (Kind, bool) {
        let own = Kind::of(p);
        let fork = !p.execed() && p.image.as_ref().is_none_or(|i| i.from == ImageFrom::Parent);
        if own.0 != Kind::Other || !fork {
            return own;
        }
        match self.parent(&p.key).map(Kind::of).or(p.parent_kind) {
            Some((kind @ (Kind::Nginx | Kind::PhpFpm), false)) => (kind, false),
            _ => own,
        }
    }

    /// Only its title makes it a server, and nothing around it does: a master has children that run the same program, a
    /// worker has a master.
    fn only_says_so(&self, p: &Process) -> bool {
        let Some((kind, master)) = p.image.as_ref().filter(|i| Kind::of_image(i) == Kind::Other).and_then(title) else {
            return false;
        };
        if master {
            return !self.children(&p.key).any(|c| !c.execed() && self.kind(c).0 == kind);
        }
        let parent = self.parent(&p.key).and_then(|parent| parent.image.as_ref());
        parent.and_then(title) != Some((kind, true))
    }

    fn below_runtime(&self, key: &ProcKey) -> bool {
        let mut at = *key;
        // Four levels reach from a helper of runc past the shim; a bound ends any loop.
        for _ in 0..4 {
            let Some(parent) = self.parent(&at) else { return false };
            if Kind::of(parent) == (Kind::Runtime, true) {
                return self.place_of(&parent.key) == Place::Host;
            }
            at = parent.key;
        }
        false
    }

    fn server_role(&self, p: &Process, kind: Kind, sure: bool) -> RoleInfo {
        let role = |master: bool| match (kind, master) {
            (Kind::Nginx, true) => Role::NginxMaster,
            (Kind::Nginx, false) => Role::NginxWorker,
            (_, true) => Role::PhpFpmMaster,
            (_, false) => Role::PhpFpmChild,
        };
        let tool = if kind == Kind::Nginx { Role::NginxCtl } else { Role::Other };
        let own = p.image.as_ref().filter(|i| i.from != ImageFrom::Parent);
        if let Some((_, master)) = own.and_then(title) {
            return RoleInfo { role: role(master), sure, why: "by its program and title" };
        }
        let is_tool = if kind == Kind::Nginx { nginx_is_tool } else { php_fpm_is_tool };
        if own.is_some_and(|i| is_tool(&i.argv)) {
            return RoleInfo { role: tool, sure, why: "by its arguments" };
        }
        let same = |other: &Process| self.kind(other).0 == kind;
        let is_parent = |of: &ProcKey| self.children(of).any(|c| same(c) && !c.execed());
        // A worker never execs, so who started the program is the master: also in a binary upgrade, where the new
        // master is a child of the old one.
        if p.execed() {
            if let Some(seen) = self.is_launcher(p, kind) {
                return RoleInfo { role: tool, sure: sure && seen, why: "started a daemon and left" };
            }
            return RoleInfo { role: role(true), sure, why: "it started the program" };
        }
        let parent = self.parent(&p.key).map(|parent| self.kind(parent)).or(p.parent_kind);
        match parent {
            Some((k, parent_sure)) if k == kind => {
                if is_parent(&p.key) {
                    return RoleInfo { role: role(true), sure, why: "a daemon: forked, and has workers" };
                }
                if self.parent(&p.key).is_some_and(|parent| outlived(p, parent)) {
                    return RoleInfo { role: role(true), sure: false, why: "a daemon: its parent left with status 0" };
                }
                RoleInfo { role: role(false), sure: sure && parent_sure, why: "its parent is the master" }
            }
            _ if is_parent(&p.key) => RoleInfo { role: role(true), sure, why: "it has workers" },
            // Reparented, or its parent is not known: only a fork that was seen tells for sure.
            Some((_, parent_sure)) => {
                let sure = sure && parent_sure && p.fork_event.is_some();
                RoleInfo { role: role(true), sure, why: "its parent runs another program" }
            }
            None if p.ns_pid == 1 => RoleInfo { role: role(true), sure, why: "PID 1 of its container" },
            None => RoleInfo { role: role(false), sure: false, why: "its parent is not known" },
        }
    }

    /// A daemon's first process: it exited with 0 and left one child. Whether that one's workers were seen, which
    /// makes it sure.
    fn is_launcher(&self, p: &Process, kind: Kind) -> Option<bool> {
        let same_fork = |c: &Process| !c.execed() && self.kind(c).0 == kind;
        let mut forks = self.children(&p.key).filter(|c| same_fork(c));
        let (only, None) = (forks.next()?, forks.next()) else { return None };
        if p.exited?.status() != Some(0) {
            return None;
        }
        let has_workers = self.children(&only.key).any(same_fork);
        (has_workers || outlived(only, p)).then_some(has_workers)
    }
}

/// Was this process there when its parent left with status 0? A worker never is: both masters wait for all their
/// children before they exit (ngx_master_process_cycle(), fpm_pctl_action_last()).
fn outlived(p: &Process, parent: &Process) -> bool {
    parent.exited.is_some_and(|gone| gone.status() == Some(0) && p.exited.is_none_or(|e| e.at > gone.at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn args(s: &str) -> Vec<String> {
        s.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn names() {
        for n in ["nginx", "nginx-debug", "openresty", "angie", "nginx1.25", "nginx-1.27.4"] {
            assert_eq!(Kind::of_name(n), Kind::Nginx, "{n}");
        }
        for n in ["php-fpm", "php-fpm8.2", "php-fpm83", "php8.2-fpm", "php82-fpm", "php-fpm-8.3"] {
            assert_eq!(Kind::of_name(n), Kind::PhpFpm, "{n}");
        }
        for n in [
            "",
            "nginx-ingress-controller",
            "nginx-prometheus-exporter",
            "nginxd",
            "php-fpm_exporter",
            "php-fpm-healthcheck",
            "php-fpm-",
            "php",
            "php8.2",
            "php-cgi",
        ] {
            assert_eq!(Kind::of_name(n), Kind::Other, "{n}");
        }
        assert_eq!(Kind::of_name("containerd-shim-runc-v2"), Kind::Runtime);
        assert_eq!(Kind::of_name("docker-entrypoint.sh"), Kind::Shell);
    }

    #[test]
    fn nginx_options() {
        for a in [
            "nginx -s quit",
            "nginx -squit",
            "nginx -t",
            "nginx -qt",
            "nginx -c /x -t",
            "nginx -c/x -T",
            "nginx -V",
            "nginx -p /pre -s stop",
            "nginx -?",
        ] {
            assert!(nginx_is_tool(&args(a)), "{a}");
        }
        for a in
            ["nginx", "nginx -g daemon_off;", "nginx -c /etc/t.conf", "nginx -p -s", "nginx -gt", "nginx -q", "nginx s"]
        {
            assert!(!nginx_is_tool(&args(a)), "{a}");
        }
        assert!(php_fpm_is_tool(&args("php-fpm8.2 -t")));
        assert!(!php_fpm_is_tool(&args("php-fpm8.2 -F -y /etc/t.conf")));
    }

    proptest! {
        #[test]
        fn any_arguments(argv in proptest::collection::vec("-?.{0,10}", 0..8)) {
            let _ = (nginx_is_tool(&argv), php_fpm_is_tool(&argv));
            let image = Image::new(argv.first().map_or("", String::as_str), &argv, ImageFrom::Proc);
            let _ = (Kind::of_image(&image), title(&image));
        }
    }
}
