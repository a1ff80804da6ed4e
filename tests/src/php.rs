//! php-fpm as a container, its scripts, and the ledger that the scripts write.

use crate::guard::{self, Dir, unprivileged_user};
use crate::launch::Spec;
use crate::net::listens;
use crate::pod::{Container, Pid1, Pod};
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `php-fpm8.2` and the like in /usr/sbin, the newest one; or a plain `php-fpm`.
pub fn binary() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for dir in ["/usr/sbin", "/usr/local/sbin"] {
        let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
        found.extend(names.map(|e| e.path()).filter(|p| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.strip_prefix("php-fpm").is_some_and(|v| v.chars().all(|c| c.is_ascii_digit() || c == '.'))
        }));
    }
    found.sort();
    found.pop().ok_or_else(|| anyhow!("php-fpm is not installed (apt-get install php-fpm)"))
}

#[derive(Clone, Debug)]
pub enum FpmListen {
    /// On 127.0.0.1.
    Tcp(u16),
    /// On ::1.
    Tcp6(u16),
    /// A socket in the site's directory.
    Unix,
}

/// When children are made: `pm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// All of them at the start.
    #[default]
    Static,
    /// All but one at the start, that one when none is idle.
    Dynamic,
    /// Each when a connection comes.
    Ondemand,
}

impl Pool {
    /// Its name in php-fpm's configuration.
    pub fn id(self) -> &'static str {
        match self {
            Pool::Static => "static",
            Pool::Dynamic => "dynamic",
            Pool::Ondemand => "ondemand",
        }
    }
}

#[derive(Clone, Debug)]
pub struct FpmConf {
    pub listen: FpmListen,
    pub pool: Pool,
    /// At most.
    pub children: u32,
    /// Seconds.
    pub process_control_timeout: u32,
    pub backlog: Option<u32>,
    /// More directives of `[global]` and of the pool.
    pub global_extra: String,
    pub pool_extra: String,
    pub pid1: Pid1,
    /// The file name of the program, when it is not php-fpm's own: a copy is started.
    pub name: Option<&'static str>,
}

impl Default for FpmConf {
    fn default() -> Self {
        Self {
            listen: FpmListen::Tcp(9000),
            pool: Pool::Static,
            children: 4,
            process_control_timeout: 0,
            backlog: None,
            global_extra: String::new(),
            pool_extra: String::new(),
            pid1: Pid1::Server,
            name: None,
        }
    }
}

impl FpmConf {
    /// Children that are there before the first request.
    pub(crate) fn at_start(&self) -> usize {
        match self.pool {
            Pool::Static => self.children as usize,
            Pool::Dynamic => (self.children as usize).saturating_sub(1).max(1),
            Pool::Ondemand => 0,
        }
    }
}

/// A running php-fpm and its files.
#[derive(Debug)]
pub struct Fpm {
    pub container: Container,
    pub log: PathBuf,
    pub program: PathBuf,
    /// What nginx's `fastcgi_pass` takes.
    pub address: String,
    pub(crate) ledger: PathBuf,
}

/// What a php-fpm is started with.
pub(crate) struct Files {
    pub argv: Vec<OsString>,
    pub program: PathBuf,
    pub log: PathBuf,
    /// As `fastcgi_pass` takes it.
    pub address: String,
    pub ledger: PathBuf,
    listen: String,
}

/// A line of the scripts' ledger.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Served {
    /// `start` or `end`.
    pub ev: String,
    pub id: String,
    /// Pid in the container.
    pub pid: u32,
    /// CLOCK_MONOTONIC, ns: CLOCK_BOOTTIME on a machine that was never suspended.
    pub t: u64,
    /// The other end of nginx's connection, which the request came by.
    pub addr: String,
    pub port: u16,
}

impl Files {
    pub(crate) fn new(dir: &Dir, www: &Path, conf: &FpmConf) -> Result<Self> {
        let base = dir.open_subdir("fpm")?;
        let ledger = base.join("ledger.jsonl");
        write_scripts(www, &ledger)?;
        let (listen, address) = match conf.listen {
            FpmListen::Tcp(port) => (format!("127.0.0.1:{port}"), format!("127.0.0.1:{port}")),
            FpmListen::Tcp6(port) => (format!("[::1]:{port}"), format!("[::1]:{port}")),
            FpmListen::Unix => {
                let path = base.join("php.sock").display().to_string();
                (path.clone(), format!("unix:{path}"))
            }
        };
        let config = base.join("fpm.conf");
        std::fs::write(&config, render(conf, &listen))?;
        let log = base.join("fpm.log");
        // -n: without php.ini, so that the distribution's extensions and limits play no part.
        let program = dir.named(binary()?, conf.name)?;
        let argv = vec![
            program.clone().into(),
            "-n".into(),
            "-d".into(),
            STACK.into(),
            "-d".into(),
            FFI.into(),
            "-F".into(),
            "-y".into(),
            config.into(),
        ];
        Ok(Self { argv, program, log, address, ledger, listen })
    }

    /// In the network namespace of this process.
    pub(crate) fn listens(&self, pid: i32, conf: &FpmConf) -> bool {
        match conf.listen {
            FpmListen::Tcp(port) | FpmListen::Tcp6(port) => listens(pid, port),
            FpmListen::Unix => Path::new(&self.listen).exists(),
        }
    }
}

impl Fpm {
    /// Writes the scripts to `www` and starts php-fpm; returns when all of its children are there.
    pub fn start(pod: &Pod, dir: &Dir, www: &Path, conf: &FpmConf) -> Result<Self> {
        let files = Files::new(dir, www, conf)?;
        let mut spec = Spec::new(conf.pid1.words().iter().map(OsString::from).chain(files.argv.iter().cloned()));
        spec.log = Some(files.log.clone());
        let container = pod.start(spec)?;
        let (log, program, address) = (files.log.clone(), files.program.clone(), files.address.clone());
        let mut fpm = Self { container, log, program, address, ledger: files.ledger.clone() };
        let pid = fpm.container.pid();
        let started = guard::wait("php-fpm", Duration::from_secs(20), || {
            let children = || fpm.container.master(&fpm.program).map_or(0, |m| fpm.container.children_of(m).len());
            // Where it is asked already, some are more.
            (files.listens(pid, conf) && children() >= conf.at_start()) || !fpm.container.running()
        });
        if started.is_err() || !fpm.container.running() {
            let log = std::fs::read_to_string(&fpm.log).unwrap_or_default();
            return Err(anyhow!("php-fpm did not start: {}", log.trim()));
        }
        Ok(fpm)
    }

    /// What the scripts have written until now.
    pub fn served(&self) -> Result<Vec<Served>> {
        read_ledger(&self.ledger)
    }
}

/// Ids of the requests that a script has started for: nginx had read these.
pub fn started(served: &[Served]) -> HashSet<String> {
    served.iter().filter(|s| s.ev == "start").map(|s| s.id.clone()).collect()
}

/// The whole lines of the scripts' ledger.
pub(crate) fn read_ledger(ledger: &Path) -> Result<Vec<Served>> {
    let text = std::fs::read_to_string(ledger).unwrap_or_default();
    // A killed child may leave half of a line; only the last one of the file can be without its end.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|l| serde_json::from_str(l).with_context(|| format!("php ledger: {l}"))).collect()
}

fn render(conf: &FpmConf, listen: &str) -> String {
    let (user, group) = unprivileged_user();
    let backlog = conf.backlog.map_or(String::new(), |b| format!("listen.backlog = {b}"));
    let spare = match conf.pool {
        Pool::Dynamic => format!(
            "pm.start_servers = {}\npm.min_spare_servers = 1\npm.max_spare_servers = {}\n",
            conf.at_start(),
            conf.children
        ),
        Pool::Static | Pool::Ondemand => String::new(),
    };
    format!(
        "[global]\ndaemonize = no\nerror_log = /proc/self/fd/2\nprocess_control_timeout = {}\n{}\n\
         [www]\nuser = {user}\ngroup = {group}\nlisten = {listen}\nlisten.mode = 0666\n{backlog}\n\
         pm = {}\npm.max_children = {}\n{spare}{}\n",
        conf.process_control_timeout,
        conf.global_extra,
        conf.pool.id(),
        conf.children,
        conf.pool_extra,
    )
}

/// PHP 8.3 and later end a recursion in time; older ones do not know the setting.
const STACK: &str = "zend.max_allowed_stack_size=-1";
/// For pools that load it; a pool cannot set it.
const FFI: &str = "ffi.enable=1";

/// `common.php` writes a line when a request starts and one when its script has ended: one write(2) with O_APPEND each,
/// so lines of several children never mix.
const COMMON: &str = r#"<?php
function ledger($ev) {
    $line = json_encode(['ev' => $ev, 'id' => (string)($_GET['id'] ?? ''), 'pid' => getmypid(), 't' => hrtime(true),
        'addr' => $_SERVER['REMOTE_ADDR'] ?? '', 'port' => (int)($_SERVER['REMOTE_PORT'] ?? 0)]);
    file_put_contents(LEDGER, $line . "\n", FILE_APPEND);
}
// A signal cuts usleep() short: only the deadline counts.
function stay_until($deadline) {
    while (($left = $deadline - hrtime(true)) > 0) usleep((int)max(1, $left / 1000));
}
ledger('start');
"#;

const SCRIPTS: &[(&str, &str)] = &[
    ("fast.php", "echo \"fast\\n\"; ledger('end');\n"),
    // The answer is over, and its child busy for a while yet: the next request on a kept connection waits for it.
    ("late.php", "echo \"late\\n\"; ledger('end'); fastcgi_finish_request(); stay_until(hrtime(true) + 20000000);\n"),
    ("slow.php", "stay_until(hrtime(true) + 1000000 * (int)($_GET['ms'] ?? 1000)); echo \"slow\\n\"; ledger('end');\n"),
    (
        "sse.php",
        "header('Content-Type: text/event-stream');\n$n = (int)($_GET['n'] ?? 3);\nfor ($i = 0; $i < $n; $i++) {\n    \
         echo \"data: $i\\n\\n\"; @ob_flush(); flush();\n    stay_until(hrtime(true) + 3000000);\n}\nledger('end');\n",
    ),
    ("status.php", "http_response_code((int)($_GET['code'] ?? 200)); echo \"status\\n\"; ledger('end');\n"),
    // More than nginx's buffer for a header, and a name that is none.
    ("big.php", "header('X-Big: ' . str_repeat('x', 9000)); echo \"big\\n\"; ledger('end');\n"),
    ("bad.php", "header('Bad Header Name: x'); echo \"bad\\n\"; ledger('end');\n"),
    // Recursion through C, until the stack is gone.
    ("crash.php", "function f() { array_map('f', [1]); }\nf();\n"),
    // Through a library call, as an extension would.
    ("exit.php", "FFI::cdef('void _exit(int);')->_exit((int)($_GET['status'] ?? 1));\n"),
    // More and more, without PHP's own limit.
    (
        "takes.php",
        "ini_set('memory_limit', '-1');\n$all = [];\nfor ($i = 0; $i < 1024; $i++) $all[] = str_repeat('x', 1 << 20);\n\
         ledger('end');\n",
    ),
    // One call into C that takes longer than anybody waits.
    ("busy.php", "hash_pbkdf2('sha256', 'x', 'y', 2000000000);\nledger('end');\n"),
    (
        "drip.php",
        "$n = (int)($_GET['n'] ?? 5);\nfor ($i = 0; $i < $n; $i++) {\n    echo str_repeat('.', 64), \"\\n\"; \
         @ob_flush(); flush();\n    stay_until(hrtime(true) + 200000000);\n}\nledger('end');\n",
    ),
];

fn write_scripts(www: &Path, ledger: &Path) -> Result<()> {
    let common = COMMON.replacen("<?php", &format!("<?php\nconst LEDGER = '{}';", ledger.display()), 1);
    std::fs::write(www.join("common.php"), common)?;
    for (name, body) in SCRIPTS {
        let text = format!("<?php\nrequire __DIR__ . '/common.php';\n{body}");
        std::fs::write(www.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}
