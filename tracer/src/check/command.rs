//! What becomes PID 1 of a container, from the command that starts it, and whether it hears the stop signal.

use super::known;
use super::shell::{self, Sh, Simple, base};
use crate::identity::{Program, program};

/// Wrappers within wrappers.
const DEPTH_MAX: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Nginx,
    PhpFpm,
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Server::Nginx => "nginx",
            Server::PhpFpm => "php-fpm",
        }
    }

    pub fn of(command: &str) -> Option<Server> {
        match program(base(command)) {
            Program::Nginx => Some(Server::Nginx),
            Program::PhpFpm => Some(Server::PhpFpm),
            _ => None,
        }
    }
}

/// Who gets the stop signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pid1 {
    /// The server, or an init that hands the signal on to it.
    Server(Server),
    Supervisor,
    /// Has no handler, so the kernel throws the signal away. `sure`: not only with some shells.
    Deaf {
        sure: bool,
        why: String,
    },
    /// Ends on the signal without waiting for the server, which the kernel then kills.
    Leaves {
        why: String,
    },
    Unknown {
        why: String,
    },
}

/// What is known of the image.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub sh: Sh,
    /// Scripts of the image that are at hand: path, text.
    pub scripts: Vec<(String, String)>,
    /// Made from an official image: its entrypoint is the known one.
    pub official: bool,
}

/// What a container's command starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub pid1: Pid1,
    /// Servers that are named on the way.
    pub servers: Vec<Server>,
}

/// Follows a command to what runs as PID 1.
pub fn start(argv: &[String], around: &Surroundings) -> Start {
    let mut found = Start { pid1: unknown("there is no command"), servers: Vec::new() };
    found.pid1 = follow(argv, around, &mut found.servers, 0);
    if let Pid1::Server(server) = found.pid1 {
        found.servers.push(server);
    }
    found.servers.sort_unstable();
    found.servers.dedup();
    found
}

/// runit's runsvdir ends on SIGTERM at once (HUP would stop its services), whatever they do.
pub fn runit() -> Pid1 {
    Pid1::Leaves { why: "runsvdir ends on SIGTERM and waits for no service".to_owned() }
}

fn unknown(why: impl Into<String>) -> Pid1 {
    Pid1::Unknown { why: why.into() }
}

fn follow(argv: &[String], around: &Surroundings, servers: &mut Vec<Server>, depth: usize) -> Pid1 {
    let Some(first) = argv.first() else { return unknown("there is no command") };
    if depth > DEPTH_MAX {
        return unknown("too many commands that start commands");
    }
    let name = base(first);
    if let Some(server) = Server::of(name) {
        return Pid1::Server(server);
    }
    let rest = &argv[1..];
    let text_of = |path: &str| around.scripts.iter().find(|(known, _)| known == path || base(known) == path);
    if let Some(sh) = Sh::of(name, around.sh) {
        return shell(rest, sh, around, servers, depth);
    }
    match name {
        "supervisord" => return Pid1::Supervisor,
        "runsvdir" => return runit(),
        "python" | "python2" | "python3" if rest.iter().any(|word| base(word) == "supervisord") => {
            return Pid1::Supervisor;
        }
        // They pass signals on to their only child, which is not PID 1: no handler is no protection for it.
        "tini" | "tini-static" | "docker-init" | "dumb-init" | "catatonit" => {
            let inner = rest
                .iter()
                .position(|word| word == "--")
                .map_or_else(|| rest.iter().position(|word| !word.starts_with('-')), |dashes| Some(dashes + 1));
            return match follow(&rest[inner.unwrap_or(rest.len())..], around, servers, depth + 1) {
                // Not PID 1 itself, so the default action is taken: it ends, and the init with it.
                Pid1::Deaf { sure: true, .. } => {
                    let why = format!("{name} passes the signal on to a shell, which ends of it, and {name} with it");
                    Pid1::Leaves { why }
                }
                Pid1::Deaf { .. } => unknown(format!("{name} starts a shell, which may stay and end of the signal")),
                other => other,
            };
        }
        // They become what they start.
        "exec" | "nice" | "nohup" | "stdbuf" | "env" | "command" => {
            let skip = rest.iter().take_while(|word| word.starts_with('-') || word.contains('=')).count();
            return follow(&rest[skip..], around, servers, depth + 1);
        }
        "gosu" | "su-exec" | "chroot" => return follow(rest.get(1..).unwrap_or_default(), around, servers, depth + 1),
        // No handler for any stop signal.
        "tail" | "sleep" | "cat" | "inotifywait" => {
            return Pid1::Deaf { sure: true, why: format!("{name} is PID 1 and handles no signal") };
        }
        _ => {}
    }
    if let Some((_, text)) = text_of(first) {
        return script(text, rest, around, servers, depth);
    }
    if around.official && known::execs_its_arguments(first) {
        return follow(rest, around, servers, depth + 1);
    }
    unknown(format!("what {first} does is not known"))
}

fn shell(args: &[String], sh: Sh, around: &Surroundings, servers: &mut Vec<Server>, depth: usize) -> Pid1 {
    let mut args = args.iter();
    // `busybox sh -c …`
    let mut next = args.next();
    if next.is_some_and(|word| matches!(word.as_str(), "sh" | "ash")) {
        next = args.next();
    }
    while let Some(word) = next {
        if !word.starts_with(['-', '+']) || word == "-" {
            let text = around.scripts.iter().find(|(path, _)| path == word || base(path) == word);
            let rest: Vec<String> = args.cloned().collect();
            return match text {
                Some((_, text)) => script(text, &rest, around, servers, depth),
                None => unknown(format!("what the script {word} does is not known")),
            };
        }
        if word.starts_with('-') && !word.starts_with("--") && word.contains('c') {
            let Some(text) = args.next() else { return unknown("sh -c without a command") };
            return line(text, sh, around, servers, depth);
        }
        if word == "-o" || word == "-O" {
            args.next();
        }
        next = args.next();
    }
    unknown("a shell without a command")
}

/// `sh -c '…'`
fn line(text: &str, sh: Sh, around: &Surroundings, servers: &mut Vec<Server>, depth: usize) -> Pid1 {
    let commands = shell::commands(text);
    match replaced(&commands, &[], around, servers, depth) {
        Found::Pid1(pid1) => pid1,
        Found::Child { name, last } => {
            let why = format!("a shell stays PID 1 and starts {name} as its child");
            match sh {
                _ if !last => Pid1::Deaf { sure: true, why },
                Sh::Dash => Pid1::Deaf { sure: true, why },
                Sh::Ash | Sh::Bash => Server::of(&name).map_or_else(|| unknown(why), Pid1::Server),
                Sh::Unknown => {
                    Pid1::Deaf { sure: false, why: format!("{why} (dash, of Debian, does; bash and busybox do not)") }
                }
            }
        }
    }
}

/// A script's file: no shell replaces itself by the last command of a file.
fn script(text: &str, args: &[String], around: &Surroundings, servers: &mut Vec<Server>, depth: usize) -> Pid1 {
    match text.lines().next().and_then(|first| first.strip_prefix("#!")) {
        Some(interpreter) if !interpreter.split_whitespace().any(|word| Sh::of(word, Sh::Unknown).is_some()) => {
            return unknown(format!("an entrypoint of {}", interpreter.trim()));
        }
        _ => {}
    }
    match replaced(&shell::commands(text), args, around, servers, depth) {
        Found::Pid1(pid1) => pid1,
        Found::Child { name, .. } => {
            let why = format!("the entrypoint script stays PID 1: it starts {name} without exec");
            Pid1::Deaf { sure: true, why }
        }
    }
}

enum Found {
    Pid1(Pid1),
    /// The shell starts this server as a child; as its very last command?
    Child {
        name: String,
        last: bool,
    },
}

fn replaced(
    commands: &[Simple],
    args: &[String],
    around: &Surroundings,
    servers: &mut Vec<Server>,
    depth: usize,
) -> Found {
    for command in commands {
        servers.extend(Server::of(command.name()).filter(|_| !is_tool(&command.words)));
    }
    let is_exec = |c: &&Simple| c.name() == "exec" && c.words.get(1).is_some_and(|word| !word.starts_with(['<', '>']));
    if let Some(exec) = commands.iter().rfind(is_exec) {
        let words = if is_arguments(&exec.words[1]) { args } else { &exec.words[1..] };
        return Found::Pid1(follow(words, around, servers, depth + 1));
    }
    if commands.iter().any(|c| c.name() == "trap") {
        return Found::Pid1(unknown("PID 1 is a shell with a trap: what it does is not known"));
    }
    // A server that stays in the foreground, or one that became a daemon while the shell waits for something else.
    let found = commands.iter().enumerate().rev().find_map(|(n, c)| {
        let words = if is_arguments(c.name()) { args } else { &c.words[..] };
        let name = words.first()?;
        let server = Server::of(name).filter(|_| !is_tool(words));
        let program = server.map_or_else(|| base(name).to_owned(), |server| server.name().to_owned());
        let known = server.is_some() || program == "supervisord";
        known.then(|| Found::Child { name: program, last: n + 1 == commands.len() && !c.background && !c.nested })
    });
    found.unwrap_or_else(|| Found::Pid1(unknown("PID 1 is a shell script that does not show what it starts")))
}

fn is_arguments(word: &str) -> bool {
    matches!(word, "$@" | "${@}" | "$*")
}

/// `nginx -t`, `nginx -s quit`, `php-fpm -t`: no server.
fn is_tool(words: &[String]) -> bool {
    words.iter().skip(1).any(|word| matches!(word.as_str(), "-t" | "-T" | "-tt" | "-s" | "-v" | "-V" | "--test"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn around(sh: Sh, scripts: &[(&str, &str)]) -> Surroundings {
        let scripts = scripts.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Surroundings { sh, scripts, official: true }
    }

    fn pid1(words: &[&str], sh: Sh) -> Pid1 {
        start(&argv(words), &around(sh, &[])).pid1
    }

    fn deaf(pid1: &Pid1) -> Option<bool> {
        match pid1 {
            Pid1::Deaf { sure, .. } => Some(*sure),
            _ => None,
        }
    }

    #[test]
    fn servers_and_inits() {
        use Server::*;
        for (words, want) in [
            (&["nginx", "-g", "daemon off;"][..], Pid1::Server(Nginx)),
            (&["/usr/sbin/php-fpm8.2", "-F"], Pid1::Server(PhpFpm)),
            (&["tini", "-g", "--", "nginx"], Pid1::Server(Nginx)),
            (&["dumb-init", "php-fpm"], Pid1::Server(PhpFpm)),
            (&["/docker-entrypoint.sh", "nginx"], Pid1::Server(Nginx)),
            (&["docker-php-entrypoint", "php-fpm"], Pid1::Server(PhpFpm)),
            (&["env", "A=b", "gosu", "www", "nginx"], Pid1::Server(Nginx)),
            (&["/usr/bin/supervisord", "-n"], Pid1::Supervisor),
            (&["python3", "/usr/bin/supervisord"], Pid1::Supervisor),
            (&["/bin/sh", "-c", "cd /x && exec nginx"], Pid1::Server(Nginx)),
            (&["/bin/sh", "-ec", "exec supervisord -n"], Pid1::Supervisor),
        ] {
            assert_eq!(pid1(words, Sh::Dash), want, "{words:?}");
        }
    }

    #[test]
    fn shells_that_stay() {
        for (words, sh, want) in [
            (&["/bin/sh", "-c", "nginx -g 'daemon off;'"][..], Sh::Dash, Some(true)),
            (&["/bin/sh", "-c", "nginx -g 'daemon off;'"], Sh::Unknown, Some(false)),
            (&["/bin/sh", "-c", "nginx -g 'daemon off;'"], Sh::Ash, None),
            (&["/bin/bash", "-c", "a; nginx -g 'daemon off;'"], Sh::Dash, None),
            (&["/bin/sh", "-c", "nginx & wait"], Sh::Ash, Some(true)),
            (&["/bin/sh", "-c", "php-fpm -D; nginx -g 'daemon off;' & wait"], Sh::Bash, Some(true)),
            (&["tail", "-f", "/dev/null"], Sh::Unknown, Some(true)),
            (&["/bin/sh", "-c", "trap 'x' TERM; nginx & wait"], Sh::Dash, None),
            (&["/app/start"], Sh::Dash, None),
        ] {
            assert_eq!(deaf(&pid1(words, sh)), want, "{words:?}");
        }
    }

    #[test]
    fn who_does_not_wait() {
        let leaves = |words: &[&str]| matches!(pid1(words, Sh::Dash), Pid1::Leaves { .. });
        assert!(leaves(&["tini", "--", "sh", "-c", "nginx & wait"]));
        assert!(leaves(&["runsvdir", "/etc/service"]));
        assert!(!leaves(&["tini", "--", "sh", "-c", "exec nginx"]));
    }

    #[test]
    fn scripts() {
        use Server::*;
        let of = |text: &str, words: &[&str]| start(&argv(words), &around(Sh::Bash, &[("/start.sh", text)]));
        let start = of("#!/bin/sh\nphp-fpm -D\nexec nginx -g 'daemon off;'\n", &["/start.sh"]);
        assert_eq!((start.pid1, start.servers), (Pid1::Server(Nginx), vec![Nginx, PhpFpm]));
        let start = of("#!/bin/bash\nset -e\nexec \"$@\"\n", &["start.sh", "php-fpm"]);
        assert_eq!(start.pid1, Pid1::Server(PhpFpm));
        assert_eq!(deaf(&of("#!/bin/sh\n\"$@\"\n", &["sh", "/start.sh", "nginx"]).pid1), Some(true));
        assert_eq!(deaf(&of("#!/bin/sh\nnginx -t\nnginx -g 'daemon off;'\n", &["/start.sh"]).pid1), Some(true));
        assert_eq!(deaf(&of("#!/usr/bin/env python3\nprint()", &["/start.sh"]).pid1), None);
        assert_eq!(deaf(&of("#!/bin/sh\n/other.sh\n", &["/start.sh"]).pid1), None);
        let looped = of("exec /start.sh\n", &["/start.sh"]);
        assert!(matches!(looped.pid1, Pid1::Unknown { .. }));
    }
}
