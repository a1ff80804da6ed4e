//! php-fpm that takes nothing in: its queue on a unix socket is full, or it has not begun to listen.

use super::inits::own_init;
use super::loads::load;
use super::php::tell_php;
use crate::accuracy::layout::Fastcgi;
use crate::accuracy::scenario::{Known, Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::{Load, LoadConf, Progress, Request};
use crate::nginx::Upstream;
use crate::php::{Fpm, Pool};
use crate::scene::{Loads, Scene};
use crate::site::{Site, SiteConf};
use anyhow::{Context, Result};
use nix::sys::signal::Signal::SIGQUIT;
use std::time::Duration;
use why502::model::incident::Cause::{self, FpmAcceptQueueDropped, FpmListenQueueFull, FpmNotListening};

/// Answers of 502 that are waited for.
const FULL: u64 = 40;
const EARLY: u64 = 40;
/// A child that has done its last work is gone within this time.
const SOON_NS: u64 = 100_000_000;

pub(super) const ALL: &[Scenario] = &[
    // Over TCP a full queue drops the SYN, and nginx's own retransmit gets in or times out.
    Scenario {
        name: "fpm-listen-queue-full",
        cause: Some(FpmListenQueueFull),
        sub_cause: None,
        fit: |d| d.layout.fastcgi = Fastcgi::Unix,
        site: |d| {
            let mut site = d.site(1);
            site.fpm.iter_mut().for_each(|f| f.backlog = Some(1));
            site
        },
        loads: |d, site| {
            let mut conf = load(d, site, "/slow.php?ms=300", "slow");
            (conf.connections, conf.refused_pause) = (d.slow, Duration::from_millis(50));
            Loads { slow: Some(conf), ..Loads::default() }
        },
        act: |scene, _, _| {
            wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= FULL)?;
            end_load(scene)
        },
        made: &[502],
        truth: |_, _, started| if started { &[] } else { &[FpmListenQueueFull] },
    },
    // Children that have done their work end, and take nothing more out of the queue.
    Scenario {
        name: "fpm-accept-queue-full",
        cause: Some(FpmAcceptQueueDropped),
        sub_cause: None,
        // Four children have to be there when the four requests come: the queue is short.
        fit: |d| (d.layout.fastcgi, d.layout.pool) = (Fastcgi::Unix, Pool::Static),
        site: |d| {
            let mut site = d.site(4);
            if let Some(fpm) = &mut site.fpm {
                // Room for the first ones, should they all come before a child takes one.
                (fpm.backlog, fpm.process_control_timeout) = (Some(4), 10);
            }
            site
        },
        loads: |d, site| {
            let mut conf = load(d, site, "/slow.php?ms=1000", "slow");
            conf.more_paths = vec!["/slow.php?ms=3000".into()];
            (conf.connections, conf.max_attempts) = (4, Some(4));
            Loads { slow: Some(conf), in_php: 4, ..Loads::default() }
        },
        act: |scene, d, marks| {
            tell_php(scene, d, marks, SIGQUIT)?;
            let late = load(d, &scene.site, "/fast.php", "late");
            let progress = scene.add(LoadConf { connections: 8, refused_pause: Duration::from_millis(100), ..late })?;
            wait("the end of php-fpm", LIMIT, || scene.site.php_master().is_none())?;
            let before = Progress::get(&progress.errors);
            wait("the 502s after it", LIMIT, || Progress::get(&progress.errors) >= before + 8)
        },
        made: &[502],
        truth: queue_fills,
    },
    Scenario {
        name: "fpm-not-started",
        cause: Some(FpmNotListening),
        sub_cause: Some("not-started"),
        fit: |d| {
            own_init(d);
            if d.layout.fastcgi == Fastcgi::Unix {
                d.layout.fastcgi = Fastcgi::Tcp;
            }
        },
        site: without_php,
        loads: early,
        act: begin_php,
        made: &[502],
        truth: |_, _, _| &[FpmNotListening],
    },
    // Nobody ever listens on this path: whether somebody had before why502 came, it cannot know.
    Scenario {
        name: "fpm-absent",
        cause: Some(FpmNotListening),
        sub_cause: None,
        fit: |d| {
            own_init(d);
            d.layout.fastcgi = Fastcgi::Unix;
        },
        site: without_php,
        loads: early,
        act: |scene, _, _| {
            wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= EARLY)?;
            end_load(scene)
        },
        made: &[502],
        truth: |_, _, _| &[FpmNotListening],
    },
];

fn without_php(d: &Draw) -> SiteConf {
    let mut site = d.site(4);
    site.nginx.fastcgi = Some(match d.layout.fastcgi {
        Fastcgi::Tcp => format!("127.0.0.1:{}", d.php_port),
        Fastcgi::Tcp6 => format!("[::1]:{}", d.php_port),
        Fastcgi::Unix => "unix:/run/why502-nobody/php.sock".into(),
    });
    site.fpm = None;
    site
}

fn early(d: &Draw, site: &Site) -> Loads {
    let mut conf = load(d, site, "/fast.php", "early");
    (conf.connections, conf.keep_alive) = (d.fast, d.layout.keep_alive);
    (conf.think, conf.refused_pause) = (Duration::from_millis(5), Duration::from_millis(20));
    Loads { fast: Some(conf), ..Loads::default() }
}

fn begin_php(scene: &Scene, d: &Draw, _: &Marks) -> Result<()> {
    wait("the first 502s", LIMIT, || scene.count(|p| &p.errors) >= EARLY)?;
    let site = &scene.site;
    let conf = d.site(4).fpm.context("a site without php-fpm")?;
    let _php = Fpm::start(&site.pod, &site.dir, &site.dir.join("www"), &conf)?;
    wait("the first answers", LIMIT, || scene.count(|p| &p.answered) >= 50)?;
    // php-fpm goes with this function: nobody must ask it any more by then.
    end_load(scene)
}

fn end_load(scene: &Scene) -> Result<()> {
    let loads = || [&scene.slow, &scene.fast].into_iter().flatten();
    loads().for_each(Load::move_away);
    wait("the end of the load", LIMIT, || loads().all(Load::finished))
}

/// Until the first child has done its work all of them would be busy without the stop as well.
fn queue_fills(k: &Known, r: &Request, started: bool) -> &'static [Cause] {
    let free = k.served.iter().filter(|s| s.ev == "end").map(|s| s.t).min().unwrap_or(u64::MAX);
    let (before, after) = (r.t_end < free, r.t_sent.is_some_and(|sent| sent > free + SOON_NS));
    match k.upstream.get(&r.id) {
        Some(Upstream::NoPort | Upstream::NoWay | Upstream::NoneLeft | Upstream::Invalid) => &[],
        _ if started => &[],
        Some(Upstream::Refused) => &[FpmNotListening],
        // It was in the queue until the end.
        Some(Upstream::Ended) => &[FpmAcceptQueueDropped],
        Some(Upstream::Full) if after => &[FpmAcceptQueueDropped],
        _ if before => &[FpmListenQueueFull],
        Some(Upstream::Full) => &[FpmListenQueueFull, FpmAcceptQueueDropped],
        None => &[FpmListenQueueFull, FpmAcceptQueueDropped, FpmNotListening],
    }
}
