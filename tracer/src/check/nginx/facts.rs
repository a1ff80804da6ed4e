//! What of a configuration decides about a stop.

use super::super::files::Files;
use super::{Config, Directive, milliseconds, parse};
use crate::model::place::{At, Place, Trouble};

/// nginx's own defaults (http core, fastcgi and proxy modules).
const KEEPALIVE_DEFAULT: u64 = 75;
const READ_TIMEOUT_DEFAULT: u64 = 60;

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
    /// Where requests go by FastCGI, as written.
    pub fastcgi: Vec<At<String>>,
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
            let mut any = false;
            for server in http.block.iter().flatten().filter(|d| d.name == "server" && d.block.is_some()) {
                any = true;
                facts.server(config, server, &inherited)?;
            }
            facts.serves |= any;
            if !any {
                facts.note_idle(&inherited.idle);
                facts.locations(config, http, &inherited)?;
            }
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
                    self.note_silence(&outer.fastcgi_read, config.place(d));
                }
                "proxy_pass" => self.note_silence(&outer.proxy_read, config.place(d)),
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

    /// `pass` stands for a timeout that nobody has set.
    fn note_silence(&mut self, seconds: &At<u64>, pass: Place) {
        if self.upstream_silence.as_ref().is_none_or(|known| known.value < seconds.value) {
            self.upstream_silence = Some(At::new(seconds.value, seconds.at.clone().unwrap_or(pass)));
        }
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
