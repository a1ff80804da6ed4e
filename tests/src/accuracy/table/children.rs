//! Single children of php-fpm that end in the middle of a request, and children that end when it is over.

use super::loads::{load, slow};
use super::nginx::{free, nothing};
use crate::accuracy::scenario::Scenario;
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::load::Progress;
use crate::memory::Limit;
use crate::php::Pool;
use crate::scene::{Loads, Scene};
use crate::site::{Site, SiteConf};
use anyhow::{Context, Result};
use nix::sys::signal::Signal::{SIGABRT, SIGKILL, SIGSEGV, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::time::Duration;
use why502::model::incident::Cause::{
    FpmChildCrash, FpmChildKilled, FpmRequestTerminateTimeout, OomKilled, PhpHardTimeout,
};

/// Answers of 502 that are waited for.
const CRASHES: u64 = 24;
/// Victims of the OOM killer.
const KILLS: u64 = 12;
/// Each takes two seconds of a CPU.
const HARD: u64 = 8;
/// Answers of the controls: each closes a connection to php.
const CLOSES: u64 = 3000;

pub(super) const ALL: &[Scenario] = &[
    // Every second request crashes its child; the others are answered beside it.
    Scenario {
        name: "fpm-child-crash",
        cause: Some(FpmChildCrash),
        sub_cause: None,
        fit: free,
        site: |d| pool(d, 4, ""),
        loads: |d, site| ending(d, site, "/crash.php"),
        act: |scene, _, _| errors(scene, CRASHES),
        made: &[502],
        truth: |_, r, _| if r.path.starts_with("/crash") { &[FpmChildCrash] } else { &[] },
    },
    Scenario {
        name: "fpm-child-exits",
        cause: Some(FpmChildCrash),
        sub_cause: Some("exited"),
        fit: free,
        site: |d| pool(d, 4, "php_admin_value[extension] = ffi.so\n"),
        loads: |d, site| ending(d, site, "/exit.php?status=3"),
        act: |scene, _, _| errors(scene, CRASHES),
        made: &[502],
        truth: |_, r, _| if r.path.starts_with("/exit") { &[FpmChildCrash] } else { &[] },
    },
    // From outside, one child after the other: not a crash, whatever the signal.
    Scenario {
        name: "fpm-child-killed",
        cause: Some(FpmChildKilled),
        sub_cause: None,
        fit: free,
        site: |d| d.site(d.slow),
        loads: |d, site| Loads { slow: Some(slow(d, site, 3000)), in_php: d.slow, ..Loads::default() },
        act: |scene, d, _| {
            let master = scene.site.php_master().context("no php-fpm runs")?;
            let signals = [SIGKILL, SIGTERM, SIGSEGV, SIGABRT];
            for (n, pid) in scene.site.php_container().children_of(master).into_iter().enumerate() {
                let before = scene.count(|p| &p.errors);
                kill(Pid::from_raw(pid), signals[(n + d.n as usize) % signals.len()])?;
                // It may have been between two requests.
                let gone = || !scene.site.php_container().children_of(master).contains(&pid);
                wait("the end of the child", LIMIT, || gone() || scene.count(|p| &p.errors) > before)?;
            }
            Ok(())
        },
        made: &[502],
        truth: |_, _, started| if started { &[FpmChildKilled] } else { &[] },
    },
    // More requests than children: some wait, and are cut later.
    Scenario {
        name: "fpm-request-terminate-timeout",
        cause: Some(FpmRequestTerminateTimeout),
        sub_cause: None,
        fit: free,
        site: |d| pool(d, d.slow.div_ceil(2), "request_terminate_timeout = 1s\n"),
        loads: |d, site| Loads { slow: Some(slow(d, site, 60_000)), in_php: d.slow.div_ceil(2), ..Loads::default() },
        act: |scene, d, _| {
            errors(scene, d.slow as u64)?;
            scene.slow.iter().for_each(crate::load::Load::move_away);
            Ok(())
        },
        made: &[502],
        truth: |_, _, started| if started { &[FpmRequestTerminateTimeout] } else { &[] },
    },
    // One long call into C: max_execution_time cannot end it, hard_timeout does.
    Scenario {
        name: "php-hard-timeout",
        cause: Some(PhpHardTimeout),
        sub_cause: None,
        fit: free,
        site: |d| pool(d, 2, "php_admin_value[max_execution_time] = 1\nphp_admin_value[hard_timeout] = 1\n"),
        loads: |d, site| {
            let mut conf = load(d, site, "/busy.php", "busy");
            (conf.connections, conf.max_attempts) = (2, Some(HARD));
            Loads { slow: Some(conf), ..Loads::default() }
        },
        act: |scene, _, _| errors(scene, HARD),
        made: &[502],
        truth: |_, _, started| if started { &[PhpHardTimeout] } else { &[] },
    },
    // Its own limit, and a script that takes what it gets.
    Scenario {
        name: "oom-killed",
        cause: Some(OomKilled),
        sub_cause: Some("container-limit"),
        fit: free,
        site: |d| pool(d, 4, ""),
        loads: |d, site| {
            let mut conf = load(d, site, "/fast.php", "fast");
            (conf.connections, conf.think) = (2, Duration::from_millis(20));
            Loads { fast: Some(conf), answered: 5, ..Loads::default() }
        },
        act: |scene, d, _| {
            let _limit = Limit::set(&scene.site.php_container().cgroup, 64 << 20)?;
            let mut conf = load(d, &scene.site, "/takes.php", "takes");
            (conf.connections, conf.max_attempts) = (2, Some(KILLS));
            conf.refused_pause = Duration::from_millis(5);
            let progress = scene.add(conf)?;
            wait("the 502s", LIMIT, || Progress::get(&progress.ended) >= KILLS)
        },
        made: &[502],
        truth: |_, r, started| if started && r.path.starts_with("/takes") { &[OomKilled] } else { &[] },
    },
    // Children are started for a burst and told to end when they idle, or end after some requests: nobody loses anything.
    Scenario {
        name: "fpm-reaping",
        cause: None,
        sub_cause: None,
        fit: |d| {
            if d.layout.pool == Pool::Static {
                d.layout.pool = Pool::Ondemand;
            }
        },
        site: |d| pool(d, 8, "pm.process_idle_timeout = 1s\npm.max_requests = 50\n"),
        loads: |d, site| {
            let mut conf = load(d, site, "/fast.php", "fast");
            (conf.connections, conf.keep_alive) = (d.fast.min(8), d.layout.keep_alive);
            Loads { fast: Some(conf), answered: CLOSES, ..Loads::default() }
        },
        act: |scene, d, _| {
            scene.fast.iter().for_each(crate::load::Load::move_away);
            // Those that idle are told to end.
            let container = scene.site.php_container();
            let children = || scene.site.php_master().map_or(0, |m| container.children_of(m).len());
            wait("idle children to end", LIMIT, || d.layout.pool != Pool::Ondemand || children() == 0)
        },
        made: &[502, 504],
        truth: nothing,
    },
];

/// A pool with these lines.
fn pool(d: &Draw, children: usize, lines: &str) -> SiteConf {
    let mut site = d.site(children);
    site.fpm.iter_mut().for_each(|f| f.pool_extra = lines.into());
    site
}

/// A load that ends its children, beside one that does not.
fn ending(d: &Draw, site: &Site, path: &str) -> Loads {
    let mut conf = load(d, site, path, "ends");
    conf.more_paths = vec!["/fast.php".into()];
    (conf.connections, conf.keep_alive) = (d.fast.min(6), d.layout.keep_alive);
    (conf.think, conf.refused_pause) = (Duration::from_millis(5), Duration::from_millis(5));
    Loads { fast: Some(conf), ..Loads::default() }
}

fn errors(scene: &Scene, least: u64) -> Result<()> {
    wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= least)
}
