//! Controls: what looks like a cause, and is none.

use super::loads::{fast, load, sent_once, slow};
use super::nginx::{apart, free, nothing, plenty, stop};
use crate::accuracy::LIMIT;
use crate::accuracy::scenario::Scenario;
use crate::guard::wait;
use crate::load::{Abort, Load, LoadConf, Outcome, Progress, Shape};
use crate::scene::{Loads, pass};
use crate::truth;
use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::model::incident::Cause::{FpmChildCrash, KeepaliveRace, NginxFastShutdown};

pub(super) const ALL: &[Scenario] = &[
    // php and nginx answer 502 by their own will.
    Scenario {
        name: "answers-502",
        cause: None,
        sub_cause: None,
        fit: free,
        site: |d| {
            let mut site = d.site(4);
            site.nginx.server_extra = "location = /502 { return 502; }".into();
            site
        },
        loads: |d, site| {
            let mut conf = fast(d, site);
            conf.path = "/502".into();
            conf.more_paths = vec!["/status.php?code=502".into(), "/static".into()];
            Loads { fast: Some(conf), answered: 60, ..Loads::default() }
        },
        act: |scene, d, _| {
            pass(d.pause(300))?;
            let progress = &scene.fast;
            let enough = || progress.iter().all(|l| Progress::get(&l.progress.answered) >= 120);
            wait("the answers", LIMIT, enough)
        },
        made: &[],
        truth: nothing,
    },
    // Clients that hang up while php works for them.
    Scenario {
        name: "clients-give-up",
        cause: None,
        sub_cause: None,
        fit: free,
        site: |d| d.site(d.slow),
        loads: |d, site| {
            let how = if d.other { Abort::Rst } else { Abort::Fin };
            let abort = Some((Duration::from_millis(30), how));
            let slow = LoadConf { abort, max_refused: None, ..slow(d, site, 200) };
            Loads { slow: Some(slow), fast: Some(fast(d, site)), answered: 20, ..Loads::default() }
        },
        act: |scene, d, _| {
            let enough = || scene.slow.iter().all(|l| Progress::get(&l.progress.sent) >= 2 * d.slow as u64);
            wait("the clients' patience", LIMIT, enough)?;
            scene.slow.iter().for_each(Load::move_away);
            // What php still worked on by then has its end, and nobody to tell.
            pass(500)
        },
        made: &[502],
        truth: nothing,
    },
    // php is slower than nginx is patient: it answers 504, to those that php works for and to those that wait for a child.
    Scenario {
        name: "nginx-gives-up",
        cause: None,
        sub_cause: None,
        fit: free,
        site: |d| {
            let mut site = d.site(d.slow.div_ceil(2));
            site.nginx.server_extra = "fastcgi_read_timeout 1s;".into();
            site
        },
        loads: |d, site| {
            let conf = LoadConf { max_attempts: Some(d.slow as u64), ..slow(d, site, 2500) };
            Loads { slow: Some(conf), in_php: d.slow.div_ceil(2), ..Loads::default() }
        },
        act: |scene, d, _| {
            wait("the 504s", LIMIT, || scene.count(|p| &p.errors) >= d.slow as u64)?;
            wait("the ends of the scripts", LIMIT, || scene.in_php() == 0)
        },
        made: &[502],
        truth: nothing,
    },
    // Half a request: nginx closes when it has waited long enough for the rest.
    Scenario {
        name: "half-a-request",
        cause: None,
        sub_cause: None,
        fit: free,
        site: |d| {
            let mut site = d.site(4);
            site.nginx.server_extra = "client_header_timeout 1s; client_body_timeout 1s;".into();
            site
        },
        loads: |d, site| {
            let shape = if d.other { Shape::PartialBody } else { Shape::PartialHeader };
            let path = if d.other { "/fast.php" } else { "/static" };
            let half = LoadConf { shape, connections: d.slow, keep_alive: false, ..load(d, site, path, "half") };
            let half = LoadConf { max_attempts: Some(d.slow as u64), ..half };
            Loads { slow: Some(half), fast: Some(fast(d, site)), answered: 20, ..Loads::default() }
        },
        act: |scene, _, _| {
            wait("nginx's patience", LIMIT, || scene.slow.iter().all(Load::finished))?;
            // A worker that ends in the next moment may have closed them for that.
            pass(1000)
        },
        made: &[502],
        truth: nothing,
    },
    // Under load, and nobody does anything to it.
    Scenario {
        name: "quiet",
        cause: None,
        sub_cause: None,
        fit: |d| d.fast = d.fast.min(4),
        site: |d| d.site(2),
        loads: |d, site| {
            let mut conf = fast(d, site);
            conf.more_paths = vec!["/fast.php".into()];
            conf.think = Duration::from_millis(20);
            Loads { fast: Some(conf), answered: 20, ..Loads::default() }
        },
        act: |_, d, _| pass(d.pause(500)),
        made: &[],
        truth: nothing,
    },
    // Kept connections, and no request on any of them.
    Scenario {
        name: "idle-stop",
        cause: None,
        sub_cause: None,
        fit: apart,
        site: |d| d.site(2),
        loads: |d, site| {
            let conf = LoadConf { connections: d.slow, think: LIMIT, ..load(d, site, "/static", "idle") };
            Loads { fast: Some(conf), answered: d.slow as u64, ..Loads::default() }
        },
        act: |scene, d, marks| {
            pass(d.pause(100))?;
            let site = &scene.site;
            stop(scene, d, marks, [SIGTERM, SIGKILL, SIGQUIT][(d.n % 3) as usize])?;
            wait("the end of nginx", LIMIT, || site.nginx.container.cgroup.procs().is_empty())
        },
        made: &[],
        truth: nothing,
    },
    // Old workers finish what they have; only what races with an idle close can be lost.
    Scenario {
        name: "reload",
        cause: None,
        sub_cause: None,
        fit: sent_once,
        site: plenty,
        loads: |d, site| {
            let one = Some(d.slow as u64);
            let slow = LoadConf { max_attempts: one, ..slow(d, site, 1500) };
            Loads { slow: Some(slow), in_php: d.slow, fast: Some(fast(d, site)), answered: 100 }
        },
        act: |scene, d, marks| {
            stop(scene, d, marks, SIGHUP)?;
            wait("the slow answers", LIMIT, || scene.slow.iter().all(Load::finished))
        },
        made: &[],
        truth: |_, r, started| if started || r.fresh() { &[] } else { &[KeepaliveRace] },
    },
    // A child crashes, and then nginx is stopped: the stop is not to blame for the crash.
    Scenario {
        name: "crash-then-term",
        cause: Some(NginxFastShutdown),
        sub_cause: None,
        fit: |d| d.pause = d.pause.map(|ms| ms.min(1200)),
        site: plenty,
        loads: |d, site| {
            let mut crash = load(d, site, "/crash.php", "crash");
            (crash.max_attempts, crash.refused_pause) = (Some(3), Duration::from_millis(1));
            Loads { slow: Some(slow(d, site, 5000)), in_php: d.slow, fast: Some(crash), answered: 3 }
        },
        act: |scene, d, marks| {
            pass(d.pause(1000))?;
            stop(scene, d, marks, SIGTERM)?;
            scene.refused()
        },
        made: &[502],
        truth: |_, r, started| match r.outcome {
            Outcome::HttpError { .. } => &[FpmChildCrash],
            _ => truth::nginx_stop(true)(r, started),
        },
    },
];
