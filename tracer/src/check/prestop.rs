//! What a preStop command does, read from the command: how long it takes, whom it tells to stop, why it fails.

use super::command::Server;
use super::shell::{self, Joined, Sh, Simple, base};
use crate::sinks::names::signal_number;

const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGTERM: u32 = 15;

/// Of a command, as far as it can be told by reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Seconds before it tells a server to stop; all of its time when it tells none.
    pub before: u64,
    pub told: Option<Told>,
    /// Seconds after that.
    pub after: u64,
    /// It then waits until the server is gone.
    pub waits: bool,
    pub broken: Option<Broken>,
    /// Commands whose effect is not known.
    pub unknown: Vec<String>,
}

impl Effect {
    pub fn sleep(seconds: u64) -> Effect {
        Effect { before: seconds, ..Effect::default() }
    }

    /// Seconds until the hook returns, unless it waits for the server.
    pub fn seconds(&self) -> u64 {
        self.before.saturating_add(self.after)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub signal: u32,
    /// By `kill … 1`: whatever PID 1 is.
    pub pid1: bool,
}

/// The hook fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// In every image.
    pub sure: bool,
    pub why: String,
}

/// Where the hook runs.
pub struct Place<'a> {
    /// `/bin/sh` of the image.
    pub sh: Sh,
    /// Servers of this container, none when that is not known.
    pub servers: &'a [Server],
    /// Is this program in the container? Only a running one can tell.
    pub has: Option<&'a dyn Fn(&str) -> bool>,
}

enum Act {
    Sleep(u64),
    Tell(Told),
    /// Succeeds only when the server is gone.
    Wait,
    Nothing,
    Fails(Broken),
    Unknown,
}

fn fails(sure: bool, why: impl Into<String>) -> Act {
    Act::Fails(Broken { sure, why: why.into() })
}

/// `exec.command` of a hook.
pub fn effect(argv: &[String], place: &Place) -> Effect {
    let mut effect = Effect::default();
    let Some(first) = argv.first() else {
        effect.broken = Some(Broken { sure: true, why: "the command is empty".into() });
        return effect;
    };
    if let Some(sh) = Sh::of(first, place.sh) {
        match script(argv) {
            Ok(Some(text)) => run(&shell::commands(&text), Some(sh), place, &mut effect),
            Ok(None) => effect.unknown.push(argv.join(" ")),
            Err(why) => effect.broken = Some(Broken { sure: true, why }),
        }
        if effect.broken.is_none() {
            effect.broken = absent(first, place);
        }
        return effect;
    }
    if let Some(why) = needs_a_shell(argv) {
        effect.broken = Some(Broken { sure: true, why });
        return effect;
    }
    run(&[Simple { words: argv.to_vec(), ..Simple::default() }], None, place, &mut effect);
    effect
}

/// The text of `sh -c TEXT`; `None` for a script's file.
fn script(argv: &[String]) -> Result<Option<String>, String> {
    const OPTIONS: &str = "abcCefhiklmnpPrstuvxBDEHITV";
    let mut args = argv[1..].iter();
    if base(&argv[0]) == "busybox" {
        args.next();
    }
    while let Some(word) = args.next() {
        if !word.starts_with(['-', '+']) || word.len() < 2 {
            return Ok(None);
        }
        if word.starts_with("--") {
            continue;
        }
        let letters = &word[1..];
        if let Some(letter) = letters.chars().find(|c| !OPTIONS.contains(*c) && !matches!(c, 'o' | 'O')) {
            let what = if signal_number(letters).is_some() { ": it is not kill" } else { "" };
            return Err(format!("{} does not know the option -{letter} of {word:?}{what}", base(&argv[0])));
        }
        if letters.contains('c') {
            return args.next().cloned().map(Some).ok_or_else(|| "sh -c without a command".to_owned());
        }
        if letters.contains(['o', 'O']) {
            args.next();
        }
    }
    Err("a shell without a command ends at once".to_owned())
}

/// Words that only a shell understands, in a command that has none.
fn needs_a_shell(argv: &[String]) -> Option<String> {
    let first = &argv[0];
    if first.contains(char::is_whitespace) {
        return Some(format!("there is no program called {first:?}: each word is an item of its own, or sh -c"));
    }
    let operator = |word: &&String| matches!(word.as_str(), "&&" | "||" | ";" | "|" | "&" | ">" | ">>");
    if let Some(word) = argv.iter().find(operator) {
        return Some(format!("{word:?} means something in a shell only: here it is an argument of {first}"));
    }
    let builtin = ["exec", "while", "if", "for", "source", ".", "trap", "set", "export", ":", "eval"];
    builtin
        .contains(&first.as_str())
        .then(|| format!("{first} is a word of the shell, not a program: sh -c is missing"))
}

fn absent(program: &str, place: &Place) -> Option<Broken> {
    let there = place.has?(program);
    (!there).then(|| Broken { sure: true, why: format!("{program} is not in the container") })
}

fn run(commands: &[Simple], sh: Option<Sh>, place: &Place, effect: &mut Effect) {
    let mut ok = true;
    for command in commands {
        match command.joined {
            Joined::IfDone if !ok => continue,
            Joined::IfFailed if ok => continue,
            _ => {}
        }
        ok = true;
        match act(&command.words, sh, place) {
            // A loop or a branch: how often is not known, but what it waits for is.
            Act::Sleep(_) if command.nested => {}
            Act::Sleep(_) if command.background => {}
            Act::Sleep(seconds) if effect.told.is_some() => effect.after = effect.after.saturating_add(seconds),
            Act::Sleep(seconds) => effect.before = effect.before.saturating_add(seconds),
            // The first one counts: a second graceful signal changes nothing.
            Act::Tell(told) => effect.told = effect.told.or(Some(told)),
            Act::Wait if command.condition || !command.nested => effect.waits |= effect.told.is_some(),
            Act::Wait | Act::Nothing => {}
            Act::Fails(why) => {
                ok = false;
                effect.broken.get_or_insert(why);
            }
            Act::Unknown => effect.unknown.push(command.words.join(" ")),
        }
    }
}

fn act(words: &[String], sh: Option<Sh>, place: &Place) -> Act {
    let Some(first) = words.first() else { return Act::Nothing };
    let program = base(first);
    let rest = &words[1..];
    let builtins = ["kill", "echo", "true", "false", "test", "[", "printf", "cd", "set", "export", ":", "wait", "exec"];
    if !(sh.is_some() && builtins.contains(&program))
        && let Some(broken) = absent(first, place)
    {
        return Act::Fails(broken);
    }
    if Server::of(program) == Some(Server::Nginx) {
        return nginx(rest, place);
    }
    match program {
        "sleep" => sleep(rest),
        "exec" | "command" | "nohup" => act(rest, sh, place),
        "timeout" => {
            let skip = rest.iter().take_while(|word| word.starts_with('-')).count();
            act(rest.get(skip + 1..).unwrap_or_default(), sh, place)
        }
        "kill" => kill(rest, sh, place),
        "pkill" | "killall" => {
            let signal = rest.iter().find_map(|word| word.strip_prefix('-').and_then(signal_number));
            match rest.iter().rfind(|word| !word.starts_with('-')) {
                Some(name) if Server::of(name).is_some() => {
                    Act::Tell(Told { signal: signal.unwrap_or(SIGTERM), pid1: false })
                }
                _ => Act::Unknown,
            }
        }
        "pgrep" | "pidof" | "[" | "test" | "[[" => Act::Wait,
        "tail" if rest.iter().any(|word| word.starts_with("--pid")) => Act::Wait,
        "echo" | "true" | ":" | "date" | "touch" | "logger" | "sync" | "printf" | "set" | "export" | "cd" | "wait"
        | "rm" | "cat" | "ps" => Act::Nothing,
        _ => Act::Unknown,
    }
}

fn nginx(args: &[String], place: &Place) -> Act {
    if !place.servers.is_empty() && !place.servers.contains(&Server::Nginx) {
        return fails(false, "nginx is not what runs in this container");
    }
    let signal = args.iter().position(|word| word == "-s").and_then(|at| args.get(at + 1));
    match signal.map(String::as_str).or_else(|| args.iter().find_map(|word| word.strip_prefix("-s"))) {
        Some("quit") => Act::Tell(Told { signal: SIGQUIT, pid1: false }),
        Some("stop") => Act::Tell(Told { signal: SIGTERM, pid1: false }),
        Some("reload" | "reopen") => Act::Nothing,
        Some(other) => fails(true, format!("nginx does not know -s {other}")),
        None if args.iter().any(|word| matches!(word.as_str(), "-t" | "-T" | "-v" | "-V")) => Act::Nothing,
        None => fails(false, "nginx without -s wants to start a second one"),
    }
}

fn sleep(args: &[String]) -> Act {
    if args.is_empty() {
        return fails(true, "sleep without a time");
    }
    let mut total = 0u64;
    for arg in args {
        if arg.contains(['$', '`']) {
            return Act::Unknown;
        }
        if arg == "infinity" {
            return Act::Sleep(u64::MAX);
        }
        let end = arg.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(arg.len());
        let factor = match &arg[end..] {
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return fails(true, format!("sleep does not know the time {arg:?}")),
        };
        let Ok(number) = arg[..end].parse::<f64>() else {
            return fails(true, format!("sleep does not know the time {arg:?}"));
        };
        // Whole seconds, rounded down: what is left of them is not relied on. The cast saturates.
        total = total.saturating_add((number * factor) as u64);
    }
    Act::Sleep(total)
}

fn kill(args: &[String], sh: Option<Sh>, place: &Place) -> Act {
    let mut name: Option<&str> = None;
    let mut targets = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix('-') {
            Some("s" | "-signal" | "n") => name = words.next().map(String::as_str),
            Some("-") => {}
            Some(signal) if name.is_none() && targets.is_empty() => name = Some(signal),
            _ => targets.push(word.as_str()),
        }
    }
    if name == Some("0") {
        return Act::Wait; // is it still there?
    }
    let Some(signal) = name.map_or(Some(SIGTERM), signal_number) else {
        return fails(true, format!("kill does not know the signal {:?}", name.unwrap_or_default()));
    };
    let prefixed = name.is_some_and(|name| name.to_ascii_uppercase().starts_with("SIG"));
    match sh {
        // dash 0.5.12: "Illegal option -S", "invalid signal number or name: SIGQUIT".
        Some(Sh::Dash) if prefixed => {
            return fails(true, "the kill of dash (/bin/sh of Debian and Ubuntu) knows QUIT, but not SIGQUIT");
        }
        Some(Sh::Unknown) if prefixed => {
            return fails(false, "where /bin/sh is dash (Debian, Ubuntu), its kill knows QUIT, but not SIGQUIT");
        }
        None if place.has.is_none() => {
            let why = "without a shell kill has to be a program: slim images have none (it is in procps)";
            return fails(false, why);
        }
        _ => {}
    }
    if targets.is_empty() {
        return fails(true, "kill without a process");
    }
    if !matches!(signal, SIGINT | SIGQUIT | SIGTERM) {
        return Act::Unknown;
    }
    let of_server = |target: &&str| {
        let target = target.to_ascii_lowercase();
        ["nginx", "php"].iter().any(|name| target.contains(name))
    };
    match targets[..] {
        ["1"] => Act::Tell(Told { signal, pid1: true }),
        [ref target] if of_server(target) => Act::Tell(Told { signal, pid1: false }),
        _ => Act::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn of(words: &[&str], sh: Sh) -> Effect {
        effect(&argv(words), &Place { sh, servers: &[Server::Nginx], has: None })
    }

    fn broken(words: &[&str], sh: Sh) -> Option<bool> {
        of(words, sh).broken.map(|broken| broken.sure)
    }

    #[test]
    fn hooks_that_work() {
        let quit = |pid1| Some(Told { signal: SIGQUIT, pid1 });
        let sh = |text: &str| of(&["/bin/sh", "-c", text], Sh::Dash);
        assert_eq!(of(&["/bin/sleep", "5"], Sh::Unknown), Effect::sleep(5));
        assert_eq!(sh("sleep 1m 2.9"), Effect::sleep(62));
        assert_eq!(of(&["nginx", "-s", "quit"], Sh::Unknown), Effect { told: quit(false), ..Effect::default() });
        let then = Effect { before: 5, told: quit(false), after: 10, ..Effect::default() };
        assert_eq!(sh("sleep 5 && /usr/sbin/nginx -s quit; sleep 10"), then);
        let waiting = Effect { told: quit(true), waits: true, ..Effect::default() };
        assert_eq!(sh("kill -QUIT 1; while kill -0 1; do sleep 1; done"), waiting);
        assert!(sh("nginx -s quit; while pgrep -x nginx; do sleep 1; done").waits);
        assert!(!sh("while pgrep -x nginx; do sleep 1; done").waits, "nobody was told to stop");
        assert_eq!(sh("kill -s QUIT $(cat /run/nginx.pid)").told, quit(false));
        assert_eq!(sh("nginx -s stop").told, Some(Told { signal: SIGTERM, pid1: false }));
        assert_eq!(sh("curl -s localhost/drain; sleep 3").unknown, ["curl -s localhost/drain"]);
        assert_eq!(of(&["/bin/sh", "/drain.sh"], Sh::Dash).unknown.len(), 1);
        assert_eq!(sh("exec sleep 4"), Effect::sleep(4));
        assert_eq!(sh("sleep infinity").before, u64::MAX);
        assert_eq!(sh("true || sleep 9"), Effect::default());
    }

    #[test]
    fn hooks_that_fail() {
        for (words, sh, want) in [
            (&["/bin/sh", "-SIGQUIT", "1"][..], Sh::Unknown, Some(true)),
            (&["bash", "-SIGQUIT", "1"], Sh::Unknown, Some(true)),
            (&["nginx -s quit"], Sh::Unknown, Some(true)),
            (&["nginx", "-s", "quit", "&&", "sleep", "5"], Sh::Unknown, Some(true)),
            (&["/bin/sh", "-c", "sleep", "5"], Sh::Unknown, Some(true)),
            (&["sh", "-c"], Sh::Unknown, Some(true)),
            (&["kill", "-SIGQUIT", "1"], Sh::Unknown, Some(false)),
            (&["sh", "-c", "kill -SIGQUIT 1"], Sh::Dash, Some(true)),
            (&["sh", "-c", "kill -SIGQUIT 1"], Sh::Unknown, Some(false)),
            (&["sh", "-c", "kill -SIGQUIT 1"], Sh::Ash, None),
            (&["bash", "-c", "kill -SIGQUIT 1"], Sh::Dash, None),
            (&["sh", "-c", "sleep 5s5"], Sh::Dash, Some(true)),
            (&["exec", "sleep", "5"], Sh::Dash, Some(true)),
            (&[], Sh::Dash, Some(true)),
            (&["nginx", "-s", "drain"], Sh::Dash, Some(true)),
        ] {
            assert_eq!(broken(words, sh), want, "{words:?}");
        }
        // What comes after a failed command runs unless it waits for success.
        let effect = of(&["sh", "-c", "kill -SIGQUIT 1; sleep 5"], Sh::Dash);
        assert_eq!((effect.before, effect.told, effect.broken.is_some()), (5, None, true));
        assert_eq!(of(&["sh", "-c", "kill -SIGQUIT 1 && sleep 5"], Sh::Dash).before, 0);
    }

    #[test]
    fn what_the_container_has_decides() {
        let has = |program: &str| program == "/bin/sh" || program == "sh";
        let at = |servers: &[Server], words: &[&str]| {
            effect(&argv(words), &Place { sh: Sh::Dash, servers, has: Some(&has) }).broken
        };
        assert!(at(&[Server::Nginx], &["sleep", "5"]).unwrap().why.contains("sleep is not in the container"));
        assert!(at(&[Server::Nginx], &["sh", "-c", "sleep 5"]).unwrap().sure);
        assert_eq!(at(&[Server::Nginx], &["sh", "-c", "kill -QUIT 1"]), None);
        assert!(at(&[Server::Nginx], &["bash", "-c", "true"]).unwrap().sure);
        let no =
            effect(&argv(&["nginx", "-s", "quit"]), &Place { sh: Sh::Dash, servers: &[Server::PhpFpm], has: None });
        assert_eq!(no.broken.unwrap().why, "nginx is not what runs in this container");
    }

    proptest! {
        #[test]
        fn any_command(words in proptest::collection::vec("[a-z0-9 ;&|$.\"'-]{0,12}", 0..5), script in "\\PC{0,60}") {
            for sh in [Sh::Dash, Sh::Ash, Sh::Unknown] {
                let place = Place { sh, servers: &[], has: None };
                let _ = effect(&words, &place);
                let _ = effect(&argv(&["sh", "-c", &script]), &place).seconds();
            }
        }
    }
}
