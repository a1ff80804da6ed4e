//! What of a configuration decides about a stop.

use super::super::files::Files;
use super::{Config, Directive, milliseconds, parse};
use crate::model::place::{At, Place, Trouble};

/// nginx's own defaults (http core, fastcgi and proxy modules).
const KEEPALIVE_DEFAULT: u64 = 75;
const READ_TIMEOUT_DEFAULT: u64 = 60;
const HTTP: u16 = 80;

/// An idle timeout of kept connections, where it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Seconds, rounded down; 0 keeps no connection.
    pub seconds: At<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// One for each server and location that sets its own, and for servers that inherit.
    pub idle: Vec<Idle>,
    /// Milliseconds.
    pub worker_shutdown_timeout: Option<At<u64>>,
    /// How long the slowest upstream may be silent: the longest read timeout of what is passed on, seconds.
    pub upstream_silence: Option<At<u64>>,
    /// The same of FastCGI alone.
    pub fastcgi_silence: Option<At<u64>>,
    /// Where requests go by FastCGI, as written.
    pub fastcgi: Vec<At<String>>,
    /// Ports that its servers listen on.
    pub listens: Vec<u16>,
    /// Ports of its own network namespace, the pod, to which it passes HTTP requests on.
    pub passes: Vec<At<u16>>,
    /// There is a server at all.
    pub serves: bool,
    /// Includes that were not at hand.
    pub missing: Vec<String>,
}

/// What holds unless a block says otherwise.
#[derive(Clone)]
struct Inherited {
    idle: At<u64>,
    fastcgi_read: At<u64>,
    proxy_read: At<u64>,
}

impl Facts {
    pub fn read(name: &str, text: &str, files: &dyn Files) -> Result<Facts, Trouble> {
        Facts::of(&parse(name, text, files)?)
    }

    pub(super) fn of(config: &Config) -> Result<Facts, Trouble> {
        let mut facts = Facts { missing: config.missing.iter().map(|(p, _)| p.clone()).collect(), ..Facts::default() };
        if let Some(d) = last(&config.directives, "worker_shutdown_timeout") {
            facts.worker_shutdown_timeout = Some(time(config, d, 1000)?);
        }
        let defaults = Inherited {
            idle: At::default_of(KEEPALIVE_DEFAULT),
            fastcgi_read: At::default_of(READ_TIMEOUT_DEFAULT),
            proxy_read: At::default_of(READ_TIMEOUT_DEFAULT),
        };
        // A file of conf.d alone has its servers, or even locations, at the top.
        let fragment = Directive {
            name: "http".to_owned(),
            args: Vec::new(),
            block: Some(config.directives.clone()),
            file: 0,
            line: 1,
        };
        let https = config.directives.iter().filter(|d| d.name == "http");
        let blocks: Vec<&Directive> = https.collect();
        for http in if blocks.is_empty() { vec![&fragment] } else { blocks } {
            let inherited = facts.inherit(config, http, &defaults)?;
            let upstreams = upstreams(http);
            let mut any = false;
            for server in http.block.iter().flatten().filter(|d| d.name == "server" && d.block.is_some()) {
                any = true;
                facts.note_listens(server);
                facts.server(config, server, &inherited)?;
            }
            facts.serves |= any;
            if !any {
                facts.note_idle(&inherited.idle);
                facts.locations(config, http, &inherited)?;
            }
            facts.note_passes(config, http, &upstreams);
        }
        Ok(facts)
    }

    fn server(&mut self, config: &Config, server: &Directive, outer: &Inherited) -> Result<(), Trouble> {
        let inherited = self.inherit(config, server, outer)?;
        self.note_idle(&inherited.idle);
        self.locations(config, server, &inherited)
    }

    /// Depth is bounded by the parser.
    fn locations(&mut self, config: &Config, block: &Directive, outer: &Inherited) -> Result<(), Trouble> {
        for d in block.block.iter().flatten() {
            match d.name.as_str() {
                "location" | "if" | "limit_except" if d.block.is_some() => {
                    let inherited = self.inherit(config, d, outer)?;
                    if inherited.idle != outer.idle {
                        self.note_idle(&inherited.idle);
                    }
                    self.locations(config, d, &inherited)?;
                }
                "fastcgi_pass" => {
                    let to = d.args.first().cloned().unwrap_or_default();
                    self.fastcgi.push(At::new(to, config.place(d)));
                    longer(&mut self.upstream_silence, &outer.fastcgi_read, config.place(d));
                    longer(&mut self.fastcgi_silence, &outer.fastcgi_read, config.place(d));
                }
                "proxy_pass" => longer(&mut self.upstream_silence, &outer.proxy_read, config.place(d)),
                _ => {}
            }
        }
        Ok(())
    }

    fn inherit(&self, config: &Config, block: &Directive, outer: &Inherited) -> Result<Inherited, Trouble> {
        let of = block.block.as_deref().unwrap_or_default();
        let seconds = |name: &str, outer: &At<u64>| match last(of, name) {
            None => Ok(outer.clone()),
            Some(d) => time(config, d, 1000).map(|ms| At { value: ms.value / 1000, at: ms.at }),
        };
        Ok(Inherited {
            idle: seconds("keepalive_timeout", &outer.idle)?,
            fastcgi_read: seconds("fastcgi_read_timeout", &outer.fastcgi_read)?,
            proxy_read: seconds("proxy_read_timeout", &outer.proxy_read)?,
        })
    }

    fn note_idle(&mut self, seconds: &At<u64>) {
        let idle = Idle { seconds: seconds.clone() };
        if !self.idle.contains(&idle) {
            self.idle.push(idle);
        }
    }

    fn note_listens(&mut self, server: &Directive) {
        let listens = server.block.iter().flatten().filter(|d| d.name == "listen" && d.block.is_none());
        let mut ports: Vec<u16> = listens.clone().filter_map(|d| port(d.args.first()?)).collect();
        if listens.count() == 0 {
            ports.push(HTTP); // as root; else nginx takes 8000
        }
        self.listens.extend(ports);
        self.listens.sort_unstable();
        self.listens.dedup();
    }

    /// Depth is bounded by the parser.
    fn note_passes(&mut self, config: &Config, block: &Directive, upstreams: &[(&str, u16)]) {
        for d in block.block.iter().flatten() {
            if d.block.is_some() {
                self.note_passes(config, d, upstreams);
            } else if let ("proxy_pass", Some(to)) = (d.name.as_str(), d.args.first()) {
                let host = to.split_once("://").map_or(to.as_str(), |(_, rest)| rest);
                let host = host.split('/').next().unwrap_or_default();
                let named = upstreams.iter().filter(|(name, _)| *name == host).map(|(_, port)| *port);
                let ports = local(host).into_iter().chain(named);
                self.passes.extend(ports.map(|port| At::new(port, config.place(d))));
            }
        }
    }
}

/// Names of upstreams with the ports of the pod among their servers.
fn upstreams(http: &Directive) -> Vec<(&str, u16)> {
    let blocks = http.block.iter().flatten().filter(|d| d.name == "upstream");
    let servers = |d: &Directive| -> Vec<u16> {
        let all = d.block.iter().flatten().filter(|d| d.name == "server");
        all.filter_map(|d| local(d.args.first()?)).collect()
    };
    blocks
        .filter_map(|d| Some((d.args.first()?.as_str(), d)))
        .flat_map(|(n, d)| servers(d).into_iter().map(move |p| (n, p)))
        .collect()
}

/// The port, when the host is this network namespace.
fn local(address: &str) -> Option<u16> {
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => address,
    };
    let here =
        host == "localhost" || host == "[::1]" || host.strip_prefix("127.").is_some_and(|rest| rest.contains('.'));
    here.then(|| if host == address { Some(HTTP) } else { port(address) })?
}

/// Of `80`, `127.0.0.1:80`, `[::]:80`, `*:80`; 80 of an address without one.
pub(super) fn port(address: &str) -> Option<u16> {
    if address.starts_with("unix:") {
        return None;
    }
    match address.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse().ok(),
        Some(_) => Some(HTTP),
        None => address.parse().ok().or(Some(HTTP)),
    }
}

/// `pass` stands for a timeout that nobody has set.
fn longer(known: &mut Option<At<u64>>, seconds: &At<u64>, pass: Place) {
    if known.as_ref().is_none_or(|known| known.value < seconds.value) {
        *known = Some(At::new(seconds.value, seconds.at.clone().unwrap_or(pass)));
    }
}

/// nginx refuses a second one of these in a block; with files missing from one another there may be two.
fn last<'a>(block: &'a [Directive], name: &str) -> Option<&'a Directive> {
    block.iter().rfind(|d| d.name == name && d.block.is_none())
}

fn time(config: &Config, d: &Directive, unit: u64) -> Result<At<u64>, Trouble> {
    let text = d.args.first().map_or("", |a| a);
    match milliseconds(text, unit) {
        Some(value) => Ok(At::new(value, config.place(d))),
        None => Err(Trouble::new(config.place(d), format!("{} {text:?} is not a time", d.name))),
    }
}
