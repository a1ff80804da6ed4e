//! nginx as a container: the pod's server and the edge in front of it.

use crate::guard::{self, Dir, run, unprivileged_user};
use crate::launch::Spec;
use crate::net::listens;
use crate::pod::{Container, Pid1, Pod};
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn binary() -> Result<PathBuf> {
    let dirs = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/nginx/sbin"];
    let found = dirs.iter().map(|d| Path::new(d).join("nginx")).find(|p| p.is_file());
    found.ok_or_else(|| anyhow!("nginx is not installed (apt-get install nginx-light)"))
}

/// Which addresses port 80 listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listen {
    V4,
    V6,
    /// Two sockets, one of each family.
    Both,
    /// One IPv6 socket that takes IPv4 as well: its IPv4 clients have v4-mapped addresses.
    Mapped,
}

/// The pod's nginx. Port 80, or another: `/static` is answered by nginx itself, `*.php` by php-fpm, `/444` by a bare close.
#[derive(Clone, Debug)]
pub struct NginxConf {
    pub workers: u32,
    pub listen: Listen,
    pub reuseport: bool,
    pub backlog: Option<u32>,
    /// Seconds.
    pub keepalive_timeout: u32,
    pub keepalive_requests: u32,
    /// `off`, `on`, `always`.
    pub lingering_close: &'static str,
    /// Port 443 as well, with or without session tickets.
    pub tls: Option<Tls>,
    /// Port 81 speaks HTTP/2 without TLS.
    pub http2: bool,
    /// `127.0.0.1:9000` or `unix:/path`; without it php is not served.
    pub fastcgi: Option<String>,
    /// `server` lines of an `upstream {}` that php is asked through, instead of one server; `$php` is that one's address.
    pub servers: Option<String>,
    /// More directives for `http {}` and `server {}`.
    pub http_extra: String,
    pub server_extra: String,
    pub main_extra: String,
    pub pid1: Pid1,
    pub port: u16,
    /// The file name of the program, when it is not nginx's own: a copy is started.
    pub name: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Tickets,
    NoTickets,
}

impl Default for NginxConf {
    fn default() -> Self {
        Self {
            workers: 1,
            listen: Listen::V4,
            reuseport: false,
            backlog: None,
            keepalive_timeout: 75,
            // A benchmark's worth of requests on one connection: nginx's own default closes one after 1000.
            keepalive_requests: 100_000_000,
            lingering_close: "on",
            tls: None,
            http2: false,
            fastcgi: None,
            servers: None,
            http_extra: String::new(),
            server_extra: String::new(),
            main_extra: String::new(),
            pid1: Pid1::Server,
            port: 80,
            name: None,
        }
    }
}

/// A running nginx and its files.
#[derive(Debug)]
pub struct Nginx {
    pub container: Container,
    pub access_log: PathBuf,
    pub error_log: PathBuf,
    pub program: PathBuf,
    /// Its command line, without what a PID 1 before it is told.
    pub argv: Vec<OsString>,
}

/// What an nginx is started with.
pub(crate) struct Files {
    pub argv: Vec<OsString>,
    pub program: PathBuf,
    pub access_log: PathBuf,
    pub error_log: PathBuf,
}

impl Files {
    fn new(dir: &Dir, name: &str, program: PathBuf, render: impl FnOnce(&Path) -> String) -> Result<Self> {
        let base = dir.open_subdir(&format!("nginx-{name}"))?;
        let config = base.join("nginx.conf");
        std::fs::write(&config, render(&base))?;
        let (access_log, error_log) = (base.join("access.log"), base.join("error.log"));
        let argv = vec![program.clone().into(), "-c".into(), config.into(), "-p".into(), base.into()];
        Ok(Self { argv, program, access_log, error_log })
    }

    pub(crate) fn of_pod(dir: &Dir, www: &Path, conf: &NginxConf) -> Result<Self> {
        let certificate = conf.tls.map(|_| certificate(dir)).transpose()?;
        let program = dir.named(binary()?, conf.name)?;
        Self::new(dir, "pod", program, |base| render(conf, base, www, certificate.as_deref()))
    }
}

/// A line of the access log: the server's ledger.
#[derive(Clone, Debug, Deserialize)]
pub struct Access {
    /// Wall time at the end of the request, seconds.
    pub msec: f64,
    pub connection: u64,
    pub remote_addr: String,
    pub remote_port: String,
    /// The query's `id`; empty without one.
    pub id: String,
    pub uri: String,
    pub status: u16,
    /// `OK` when the request was completed.
    pub completion: String,
    pub request_time: f64,
    pub upstream_addr: String,
    /// Such as `502`, or empty.
    pub upstream_status: String,
}

/// What nginx's error log says about a request that it could not pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upstream {
    /// Nobody listened: ECONNREFUSED or ENOENT.
    Refused,
    /// EAGAIN of a unix socket.
    Full,
    /// EADDRNOTAVAIL: nginx itself had no port for the connection.
    NoPort,
    /// The connection was there, and ended without an answer.
    Ended,
    /// EHOSTUNREACH, ENETUNREACH: no way leads there.
    NoWay,
    /// All servers had failed, and are left alone.
    NoneLeft,
    /// There was an answer, which it did not take.
    Invalid,
}

impl Upstream {
    pub fn words(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Full => "queue full",
            Self::NoPort => "no port",
            Self::Ended => "ended",
            Self::NoWay => "no way",
            Self::NoneLeft => "no live upstreams",
            Self::Invalid => "invalid answer",
        }
    }

    /// Request id and what became of it, of a line of the error log.
    fn of(line: &str) -> Option<(String, Self)> {
        let about = line.split_once(", request: \"")?.1;
        let query = about.split([' ', '"']).nth(1)?.split_once('?')?.1;
        let id = query.split('&').find_map(|part| part.strip_prefix("id="))?;
        let what = match line {
            l if l.contains("(111: ") || l.contains("(2: ") => Self::Refused,
            l if l.contains("(11: ") => Self::Full,
            l if l.contains("(99: ") => Self::NoPort,
            l if l.contains("(113: ") || l.contains("(101: ") => Self::NoWay,
            l if l.contains("(104: ") || l.contains("prematurely closed") => Self::Ended,
            l if l.contains("no live upstreams") => Self::NoneLeft,
            l if l.contains("upstream sent ") => Self::Invalid,
            _ => return None,
        };
        Some((id.to_string(), what))
    }
}

impl Nginx {
    /// What it could not pass on, by request id.
    pub fn upstream_errors(&self) -> Result<BTreeMap<String, Upstream>> {
        let log = std::fs::read(&self.error_log).with_context(|| self.error_log.display().to_string())?;
        let mut all = BTreeMap::new();
        for (id, what) in String::from_utf8_lossy(&log).lines().filter_map(Upstream::of) {
            // That no server is left says nothing new of a request that has just met the last one.
            if what == Upstream::NoneLeft && all.contains_key(&id) {
                continue;
            }
            all.insert(id, what);
        }
        Ok(all)
    }

    /// Starts the pod's nginx and waits until all of its workers are there.
    pub fn start(pod: &Pod, dir: &Dir, www: &Path, conf: &NginxConf) -> Result<Self> {
        let files = Files::of_pod(dir, www, conf)?;
        Self::run(pod, files, "pod", conf, &conf.ports())
    }

    /// Starts a proxy on port 80, an edge or a sidecar by its name, that passes everything on to `to` over at most `keepalive`
    /// idle connections; what fails there, once more to `other`.
    pub fn start_proxy(
        pod: &Pod,
        dir: &Dir,
        name: &str,
        to: SocketAddr,
        other: Option<SocketAddr>,
        keepalive: u32,
    ) -> Result<Self> {
        let files = Files::new(dir, name, binary()?, |base| render_proxy(base, to, other, keepalive))?;
        Self::run(pod, files, name, &NginxConf::default(), &[80])
    }

    fn run(pod: &Pod, files: Files, name: &str, conf: &NginxConf, ports: &[u16]) -> Result<Self> {
        let mut spec = Spec::new(conf.pid1.words().iter().map(OsString::from).chain(files.argv.clone()));
        spec.log = Some(files.error_log.clone());
        let container = pod.start(spec)?;
        let Files { argv, program, access_log, error_log } = files;
        let mut nginx = Self { container, access_log, error_log, program, argv };
        let pid = nginx.container.pid();
        let started = guard::wait(&format!("nginx ({name})"), Duration::from_secs(20), || {
            let up = ports.iter().all(|p| listens(pid, *p)) && nginx.workers().len() == conf.workers as usize;
            up || !nginx.container.running()
        });
        if started.is_err() || !nginx.container.running() {
            let log = std::fs::read_to_string(&nginx.error_log).unwrap_or_default();
            return Err(anyhow!("nginx ({name}) did not start: {}", log.trim()));
        }
        Ok(nginx)
    }

    /// Host pids of the workers that have taken their unprivileged user: before that one is still starting.
    pub fn workers(&self) -> Vec<i32> {
        self.container.master(&self.program).map(|m| self.container.children_of(m)).unwrap_or_default()
    }

    /// What it has logged until now.
    pub fn accesses(&self) -> Result<Vec<Access>> {
        let text = std::fs::read_to_string(&self.access_log).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("access log: {l}"))).collect()
    }
}

impl NginxConf {
    fn ports(&self) -> Vec<u16> {
        let mut ports = vec![self.port];
        ports.extend(self.tls.map(|_| 443));
        ports.extend(self.http2.then_some(81));
        ports
    }

    fn listens(&self, port: u16, more: &str) -> String {
        let mut options = more.to_string();
        if self.reuseport {
            options += " reuseport";
        }
        if let Some(backlog) = self.backlog {
            let _ = write!(options, " backlog={backlog}");
        }
        match self.listen {
            Listen::V4 => format!("listen {port}{options};"),
            Listen::V6 => format!("listen [::]:{port}{options} ipv6only=on;"),
            Listen::Both => format!("listen {port}{options}; listen [::]:{port}{options} ipv6only=on;"),
            Listen::Mapped => format!("listen [::]:{port}{options} ipv6only=off;"),
        }
    }
}

/// What every nginx of the harness has in common: no daemon, its own directory for everything, a log line per request.
fn frame(base: &Path, workers: u32, main: &str, http: &str) -> String {
    let (user, group) = unprivileged_user();
    let dir = base.display();
    let mut temp = String::new();
    for (directive, name) in
        [("client_body", "body"), ("proxy", "proxy"), ("fastcgi", "fcgi"), ("uwsgi", "uwsgi"), ("scgi", "scgi")]
    {
        let _ = writeln!(temp, "  {directive}_temp_path {dir}/{name};");
    }
    format!(
        r#"daemon off;
user {user} {group};
worker_processes {workers};
pid {dir}/nginx.pid;
error_log stderr info;
{main}
events {{ worker_connections 8192; }}
http {{
{temp}
  log_format ledger escape=json '{{"msec":$msec,"connection":$connection,"remote_addr":"$remote_addr",'
    '"remote_port":"$remote_port","id":"$arg_id","uri":"$uri","status":$status,"completion":"$request_completion",'
    '"request_time":$request_time,"upstream_addr":"$upstream_addr","upstream_status":"$upstream_status"}}';
  access_log {dir}/access.log ledger;
{http}
}}
"#
    )
}

fn render(conf: &NginxConf, base: &Path, www: &Path, certificate: Option<&Path>) -> String {
    let mut listens = conf.listens(conf.port, "");
    if conf.http2 {
        listens += &conf.listens(81, " http2");
    }
    if let (Some(tls), Some(files)) = (conf.tls, certificate) {
        let tickets = if tls == Tls::Tickets { "on" } else { "off" };
        let f = files.display();
        let _ = write!(listens, "{} ssl_certificate {f}.crt; ssl_certificate_key {f}.key;", conf.listens(443, " ssl"));
        let _ = write!(listens, "ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets {tickets};");
        listens += " ssl_session_cache shared:tls:1m;";
    }
    let php = conf.fastcgi.as_ref().map_or(String::new(), |fastcgi| {
        let upstream = if conf.servers.is_some() { "several" } else { fastcgi };
        format!(
            r"    location ~ ^/.+\.php$ {{
      fastcgi_pass {upstream};
      fastcgi_buffering off;
      fastcgi_param SCRIPT_FILENAME {www}$uri;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param REQUEST_URI $request_uri;
      fastcgi_param SERVER_PROTOCOL $server_protocol;
      fastcgi_param REMOTE_ADDR $remote_addr;
      fastcgi_param REMOTE_PORT $remote_port;
    }}",
            www = www.display()
        )
    });
    let http = format!(
        r#"  keepalive_timeout {ka};
  keepalive_requests {kr};
  lingering_close {linger};
{servers}
{http_extra}
  server {{
    {listens}
{server_extra}
    location = /static {{ return 200 "static\n"; }}
    location = /444 {{ return 444; }}
    location = /small {{ client_max_body_size 1k; return 200 "small\n"; }}
{php}
  }}"#,
        ka = conf.keepalive_timeout,
        kr = conf.keepalive_requests,
        linger = conf.lingering_close,
        servers = conf.servers.as_ref().map_or(String::new(), |all| {
            let all = all.replace("$php", conf.fastcgi.as_deref().unwrap_or_default());
            format!("  upstream several {{ {all} }}")
        }),
        http_extra = conf.http_extra,
        server_extra = conf.server_extra,
    );
    frame(base, conf.workers, &conf.main_extra, &http)
}

fn render_proxy(base: &Path, pod: SocketAddr, other: Option<SocketAddr>, keepalive: u32) -> String {
    let backup = other.map_or(String::new(), |other| format!("server {other} backup;"));
    let again = if other.is_some() { "error http_502" } else { "off" };
    let http = format!(
        r#"  keepalive_requests 100000000;
  upstream pod {{ server {pod} max_fails=0; {backup} keepalive {keepalive}; keepalive_requests 100000000; }}
  server {{
    listen 80;
    listen [::]:80 ipv6only=on;
    location / {{
      proxy_pass http://pod;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_next_upstream {again};
      proxy_request_buffering off;
    }}
  }}"#
    );
    frame(base, 1, "", &http)
}

/// A self-signed certificate: `<returned>.crt` and `.key`.
fn certificate(dir: &Dir) -> Result<PathBuf> {
    let base = dir.join("tls");
    let (crt, key) = (format!("{}.crt", base.display()), format!("{}.key", base.display()));
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let to = ["-keyout", key.as_str(), "-out", crt.as_str(), "-days", "2", "-subj", "/CN=pod"];
    run("openssl", &[&new[..], &to[..]].concat())?;
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_log_is_a_ledger() {
        let line = |what: &str| {
            format!(
                "2026/11/23 03:00:00 [error] 7#7: *25 {what} while connecting to upstream, client: 10.0.0.1, server: , \
                 request: \"GET /slow.php?ms=3&id=slow-12 HTTP/1.1\", upstream: \"fastcgi://127.0.0.1:9000\", host: \"pod\""
            )
        };
        let of = |what: &str| Upstream::of(&line(what));
        let is = |what| Some(("slow-12".to_string(), what));
        assert_eq!(of("connect() failed (111: Connection refused)"), is(Upstream::Refused));
        assert_eq!(of("connect() to unix:/x failed (2: No such file or directory)"), is(Upstream::Refused));
        assert_eq!(of("connect() to unix:/x failed (11: Resource temporarily unavailable)"), is(Upstream::Full));
        assert_eq!(
            of("connect() to 127.0.0.1:9000 failed (99: Cannot assign requested address)"),
            is(Upstream::NoPort)
        );
        assert_eq!(of("recv() failed (104: Connection reset by peer)"), is(Upstream::Ended));
        assert_eq!(of("upstream prematurely closed connection"), is(Upstream::Ended));
        assert_eq!(of("connect() failed (113: No route to host)"), is(Upstream::NoWay));
        assert_eq!(of("no live upstreams"), is(Upstream::NoneLeft));
        assert_eq!(of("upstream sent too big header"), is(Upstream::Invalid));
        assert_eq!(of("something else"), None);
        assert_eq!(Upstream::of("2026/11/23 03:00:00 [notice] 7#7: signal 3 (SIGQUIT) received"), None);
    }
}
