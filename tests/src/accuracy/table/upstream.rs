//! What nginx alone knows of a request that it passes on: answers that it does not take, servers that it leaves alone, attempts
//! that it repeats. Seen by uprobes only.

use super::loads::{load, sent_once};
use super::php::tell_php;
use crate::accuracy::layout::Fastcgi;
use crate::accuracy::scenario::{Marks, Scenario};
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::{LoadConf, Progress, Shape};
use crate::scene::{Loads, Scene, pass};
use crate::site::{Site, SiteConf};
use anyhow::Result;
use nix::sys::signal::Signal::SIGTERM;
use std::time::Duration;
use why502::model::incident::Cause::{FpmMaxRequestsReset, FpmNotListening, UpstreamResponseInvalid};

/// Answers that are waited for.
const ANSWERS: u64 = 24;
/// Nobody ever listens there.
const NOBODY: u16 = 9777;

pub(in crate::accuracy) const ALL: &[Scenario] = &[
    Scenario {
        name: "upstream-header-too-big",
        cause: Some(UpstreamResponseInvalid),
        sub_cause: Some("header-too-big"),
        fit: |d| d.layout.uprobes = true,
        site: |d| d.site(4),
        loads: |_, _| Loads::default(),
        act: |scene, d, _| ask(scene, d, "/big.php"),
        made: &[502],
        truth: |_, _, started| if started { &[UpstreamResponseInvalid] } else { &[] },
    },
    Scenario {
        name: "upstream-header-invalid",
        cause: Some(UpstreamResponseInvalid),
        sub_cause: Some("header-invalid"),
        fit: |d| d.layout.uprobes = true,
        site: |d| d.site(4),
        loads: |_, _| Loads::default(),
        act: |scene, d, _| ask(scene, d, "/bad.php"),
        made: &[502],
        truth: |_, _, started| if started { &[UpstreamResponseInvalid] } else { &[] },
    },
    // Both servers of the upstream are one php-fpm. Once it was refused twice nginx asks it no more for ten seconds.
    Scenario {
        name: "no-live-upstreams",
        cause: Some(FpmNotListening),
        sub_cause: Some("stopped-first"),
        fit: by_tcp,
        site: |d| several(d, &format!("server {0}; server {0};", php(d))),
        loads: |_, _| Loads::default(),
        act: stop_and_ask,
        made: &[502],
        truth: |_, _, _| &[FpmNotListening],
    },
    // Every other request meets the server that is not there first, and is answered by the other one.
    Scenario {
        name: "next-upstream-answers",
        cause: None,
        sub_cause: None,
        fit: by_tcp,
        site: |d| several(d, &format!("server {} max_fails=0; server {} max_fails=0;", at(d, NOBODY), php(d))),
        loads: |_, _| Loads::default(),
        act: |scene, d, _| ask(scene, d, "/fast.php"),
        made: &[502],
        truth: |_, _, _| &[],
    },
    // Each child answers a few, and is a while yet at the last one when the next request comes on its connection.
    Scenario {
        name: "fpm-max-requests-reset",
        cause: Some(FpmMaxRequestsReset),
        sub_cause: None,
        fit: kept,
        site: |d| keeps(d),
        loads: |_, _| Loads::default(),
        act: |scene, d, _| {
            pass(PROBED_MS)?;
            let shape = Shape::Upload { bytes: 64, expect: false };
            let progress = scene.add(LoadConf { shape, ..few(d, &scene.site) })?;
            wait("the 502s", LIMIT, || Progress::get(&progress.errors) >= ANSWERS)
        },
        made: &[502],
        truth: |_, _, started| if started { &[] } else { &[FpmMaxRequestsReset] },
    },
    // What nginx repeats is answered by another child.
    Scenario {
        name: "fpm-max-requests-repeated",
        cause: None,
        sub_cause: None,
        fit: kept,
        site: |d| keeps(d),
        loads: |_, _| Loads::default(),
        act: |scene, d, _| {
            pass(PROBED_MS)?;
            let progress = scene.add(few(d, &scene.site))?;
            wait("the answers", LIMIT, || Progress::get(&progress.answered) >= 5 * ANSWERS)
        },
        made: &[502],
        truth: |_, _, _| &[],
    },
];

fn kept(d: &mut Draw) {
    d.layout.uprobes = true;
    sent_once(d);
}

/// A child for every connection that a worker may keep: one without a child would wait for ever.
fn keeps(d: &Draw) -> SiteConf {
    let mut site = d.site(12);
    site.fpm.iter_mut().for_each(|f| f.pool_extra = "pm.max_requests = 3\n".into());
    site.nginx.servers = Some("server $php; keepalive 16;".into());
    site.nginx.server_extra = "    fastcgi_keep_conn on;".into();
    site
}

fn few(d: &Draw, site: &Site) -> LoadConf {
    let mut conf = asks(d, site, "/late.php");
    (conf.connections, conf.think) = (4, Duration::from_millis(2));
    conf
}

fn by_tcp(d: &mut Draw) {
    d.layout.uprobes = true;
    // A refused connect to a path needs no turn of the event loop: TCP is the harder way.
    if d.layout.fastcgi == Fastcgi::Unix {
        d.layout.fastcgi = Fastcgi::Tcp;
    }
}

fn at(d: &Draw, port: u16) -> String {
    if d.layout.fastcgi == Fastcgi::Tcp6 { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") }
}

fn php(d: &Draw) -> String {
    at(d, d.php_port)
}

fn several(d: &Draw, servers: &str) -> SiteConf {
    let mut site = d.site(4);
    site.nginx.servers = Some(servers.into());
    site
}

fn asks(d: &Draw, site: &Site, path: &str) -> LoadConf {
    let mut conf = load(d, site, path, "asks");
    (conf.connections, conf.keep_alive) = (d.fast, d.layout.keep_alive);
    (conf.think, conf.refused_pause) = (Duration::from_millis(5), Duration::from_millis(50));
    conf
}

/// A why502 that runs already has found the nginx that was just started, and put its probes in.
const PROBED_MS: u64 = 1_000;

/// Until so many were answered.
fn ask(scene: &Scene, d: &Draw, path: &str) -> Result<()> {
    pass(PROBED_MS)?;
    let progress = scene.add(asks(d, &scene.site, path))?;
    wait("the answers", LIMIT, || Progress::get(&progress.answered) >= ANSWERS)
}

fn stop_and_ask(scene: &Scene, d: &Draw, marks: &Marks) -> Result<()> {
    tell_php(scene, d, marks, SIGTERM)?;
    wait("the end of php-fpm", LIMIT, || scene.site.php_master().is_none())?;
    ask(scene, d, "/fast.php")
}
