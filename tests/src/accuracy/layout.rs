//! What a scenario is played on: addresses, sockets, containers, workers; and the numbers of one play.

use super::dice::Dice;
use crate::nginx::{Listen, NginxConf};
use crate::php::{FpmConf, FpmListen, Pool};
use crate::pod::Pid1;
use crate::site::SiteConf;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// How nginx reaches php-fpm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fastcgi {
    Tcp,
    Tcp6,
    Unix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The client comes by IPv6.
    pub v6: bool,
    pub listen: Listen,
    pub fastcgi: Fastcgi,
    /// nginx and php-fpm in one container, under a supervisord.
    pub together: bool,
    /// tini is PID 1 of each container.
    pub tini: bool,
    /// Of the fast requests; the slow ones are the first of their connections anyway.
    pub keep_alive: bool,
    pub workers: u32,
    /// A listening socket for each worker.
    pub reuseport: bool,
    /// When php-fpm makes its children.
    pub pool: Pool,
    /// why502 has its probes in nginx as well. It is one why502 for all plays of a round.
    pub uprobes: bool,
}

/// The names by which `--layout` asks for one side of a choice.
pub const WORDS: &str = "v4, v6, tcp, tcp6, unix, one, two, tini, bare, keep-alive, per-request, reuseport, shared, static, \
    dynamic, ondemand, uprobes, no-uprobes";

/// The columns of the report: a side of every choice is in each play.
pub const SIDES: [&str; 15] = [
    "IPv4",
    "IPv6",
    "php by TCP",
    "by TCP over IPv6",
    "by unix socket",
    "one container, supervisord",
    "two, tini",
    "two, no tini",
    "keep-alive",
    "a connection per request",
    "static pool",
    "dynamic pool",
    "ondemand pool",
    "uprobes",
    "no uprobes",
];

impl Layout {
    /// Taken in turn: every value of one choice meets every value of most others within 30 plays.
    pub fn nth(n: u64) -> Self {
        let v6 = n % 2 == 1;
        let listens: &[Listen] = if v6 { &[Listen::Both, Listen::V6] } else { &[Listen::V4, Listen::Mapped] };
        Self {
            v6,
            listen: listens[usize::from(n / 4 % 2 == 1)],
            fastcgi: [Fastcgi::Tcp, Fastcgi::Unix, Fastcgi::Tcp6][(n % 3) as usize],
            together: n % 5 == 4,
            tini: n % 5 == 2,
            keep_alive: (n / 2).is_multiple_of(2),
            workers: 1 + u32::from(n / 3 % 2 == 1),
            reuseport: n % 7 == 5,
            pool: [Pool::Static, Pool::Dynamic, Pool::Ondemand][(n / 5 % 3) as usize],
            uprobes: true,
        }
    }

    pub fn drawn(dice: &mut Dice) -> Self {
        let mut layout = Self::nth(dice.between(0, 419));
        layout.keep_alive = dice.coin();
        layout.workers = 1 + u32::from(dice.coin());
        layout.pool = dice.pick(&[Pool::Static, Pool::Dynamic, Pool::Ondemand]);
        layout
    }

    /// Its sides, as [`SIDES`] names them.
    pub fn sides(&self) -> [&'static str; 6] {
        let php = match self.fastcgi {
            Fastcgi::Tcp => SIDES[2],
            Fastcgi::Tcp6 => SIDES[3],
            Fastcgi::Unix => SIDES[4],
        };
        let containers = match (self.together, self.tini) {
            (true, _) => SIDES[5],
            (false, true) => SIDES[6],
            (false, false) => SIDES[7],
        };
        let pool = match self.pool {
            Pool::Static => SIDES[10],
            Pool::Dynamic => SIDES[11],
            Pool::Ondemand => SIDES[12],
        };
        let keep = SIDES[8 + usize::from(!self.keep_alive)];
        [SIDES[usize::from(self.v6)], php, containers, keep, pool, SIDES[13 + usize::from(!self.uprobes)]]
    }

    /// One side of one choice, by its name: see [`WORDS`].
    pub fn with(&mut self, word: &str) -> Result<()> {
        match word {
            "v4" => (self.v6, self.listen) = (false, Listen::V4),
            "v6" => (self.v6, self.listen) = (true, Listen::Both),
            "tcp" => self.fastcgi = Fastcgi::Tcp,
            "tcp6" => self.fastcgi = Fastcgi::Tcp6,
            "unix" => self.fastcgi = Fastcgi::Unix,
            "one" => self.together = true,
            "two" => self.together = false,
            "tini" => self.tini = true,
            "bare" => self.tini = false,
            "keep-alive" => self.keep_alive = true,
            "per-request" => self.keep_alive = false,
            "reuseport" => self.reuseport = true,
            "shared" => self.reuseport = false,
            "static" => self.pool = Pool::Static,
            "dynamic" => self.pool = Pool::Dynamic,
            "ondemand" => self.pool = Pool::Ondemand,
            "uprobes" => self.uprobes = true,
            "no-uprobes" => self.uprobes = false,
            _ => bail!("{word:?} is no layout: one of {WORDS}"),
        }
        Ok(())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listen = match self.listen {
            Listen::V4 => "",
            Listen::V6 => " v6only",
            Listen::Both => " dual",
            Listen::Mapped => " mapped",
        };
        let fastcgi = match self.fastcgi {
            Fastcgi::Tcp => "tcp",
            Fastcgi::Tcp6 => "tcp6",
            Fastcgi::Unix => "unix",
        };
        let pid1 = match (self.together, self.tini) {
            (true, _) => "one container",
            (false, true) => "two, tini",
            (false, false) => "two containers",
        };
        let family = if self.v6 { "v6" } else { "v4" };
        let keep = if self.keep_alive { "keep-alive" } else { "per-request" };
        let reuse = if self.reuseport { " reuseport" } else { "" };
        write!(f, "{family}{listen}, {fastcgi}, {pid1}, {keep}, {} worker{reuse}", self.workers)?;
        if self.pool != Pool::Static {
            write!(f, ", {}", self.pool.id())?;
        }
        if self.uprobes { Ok(()) } else { f.write_str(", no uprobes") }
    }
}

/// One play of a scenario: its layout and its numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draw {
    /// Tells plays apart in outputs.
    pub n: u64,
    pub layout: Layout,
    /// Between two acts of the scenario, if it is not to take its own time.
    pub pause: Option<u64>,
    /// Where a scenario has two ways, this is the second one.
    pub other: bool,
    /// Of drawn plays only; those that are kept as recordings are not drawn.
    #[serde(skip)]
    pub nginx_name: Option<&'static str>,
    #[serde(skip)]
    pub php_name: Option<&'static str>,
    pub port: u16,
    pub php_port: u16,
    /// Connections with slow requests, and with fast ones.
    pub slow: usize,
    pub fast: usize,
}

impl Draw {
    /// The `n`th play without dice.
    pub fn nth(n: u64) -> Self {
        Self {
            n,
            layout: Layout::nth(n),
            pause: None,
            other: n / 2 % 2 == 1,
            nginx_name: None,
            php_name: None,
            port: 80,
            php_port: 9000,
            slow: 24,
            fast: 12,
        }
    }

    pub fn drawn(n: u64, dice: &mut Dice) -> Self {
        let nginx = [None, None, Some("nginx-1.22"), Some("openresty"), Some("nginx-debug"), Some("angie")];
        let php = [None, None, Some("php-fpm"), Some("php-fpm83"), Some("php82-fpm")];
        Self {
            n,
            layout: Layout::drawn(dice),
            pause: Some(dice.spread(5, 3000)),
            other: dice.coin(),
            nginx_name: dice.pick(&nginx),
            php_name: dice.pick(&php),
            port: dice.pick(&[80, 8080, 8081, 3000, 31080]),
            php_port: dice.pick(&[9000, 9001, 9999, 19000]),
            slow: dice.between(8, 32) as usize,
            fast: dice.between(4, 24) as usize,
        }
    }

    /// The time between two acts, ms; `own` without dice.
    pub fn pause(&self, own: u64) -> u64 {
        self.pause.unwrap_or(own)
    }

    /// The pod of this layout; php has `children`.
    pub fn site(&self, children: usize) -> SiteConf {
        let layout = &self.layout;
        let pid1 = if layout.tini && !layout.together { Pid1::Tini } else { Pid1::Server };
        let nginx = NginxConf {
            workers: layout.workers,
            listen: layout.listen,
            reuseport: layout.reuseport,
            pid1,
            port: self.port,
            name: self.nginx_name,
            ..NginxConf::default()
        };
        let listen = match layout.fastcgi {
            Fastcgi::Tcp => FpmListen::Tcp(self.php_port),
            Fastcgi::Tcp6 => FpmListen::Tcp6(self.php_port),
            Fastcgi::Unix => FpmListen::Unix,
        };
        let children = u32::try_from(children).unwrap_or(u32::MAX);
        let fpm = FpmConf { listen, pool: layout.pool, children, pid1, name: self.php_name, ..FpmConf::default() };
        SiteConf { nginx, fpm: Some(fpm), supervised: layout.together, ..SiteConf::default() }
    }
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.layout)?;
        if let Some(ms) = self.pause {
            write!(f, ", {:?}", Duration::from_millis(ms))?;
        }
        if self.other {
            f.write_str(", other way")?;
        }
        for name in [self.nginx_name, self.php_name].into_iter().flatten() {
            write!(f, ", {name}")?;
        }
        if (self.port, self.php_port) != (80, 9000) {
            write!(f, ", ports {} {}", self.port, self.php_port)?;
        }
        write!(f, ", {}+{} connections", self.slow, self.fast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn thirty_plays_meet_every_layout_word() {
        let mut texts = BTreeSet::new();
        for n in 0..30 {
            let layout = Layout::nth(n);
            assert!(!layout.v6 || matches!(layout.listen, Listen::Both | Listen::V6), "{layout}");
            assert!(layout.v6 || matches!(layout.listen, Listen::V4 | Listen::Mapped), "{layout}");
            texts.extend(layout.to_string().split(", ").map(String::from));
        }
        for word in [
            "v4",
            "v4 mapped",
            "v6 dual",
            "v6 v6only",
            "tcp",
            "tcp6",
            "unix",
            "one container",
            "tini",
            "dynamic",
            "ondemand",
        ] {
            assert!(texts.contains(word), "no play has {word}: {texts:?}");
        }
        assert!(texts.iter().any(|t| t.ends_with("2 worker reuseport")), "{texts:?}");
    }

    #[test]
    fn words_are_what_the_help_says() {
        let mut layout = Layout::nth(0);
        for word in WORDS.split(", ") {
            layout.with(word).expect(word);
        }
        assert!(layout.with("v5").is_err());
    }
}
