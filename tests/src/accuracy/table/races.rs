//! Keep-alive races: the server closes a connection while the client's next request is on its way. A path with a delay makes
//! the window wide enough to hit it every time.

use super::loads::load;
use super::nginx::{free, stop};
use crate::accuracy::scenario::Scenario;
use crate::accuracy::{Draw, LIMIT};
use crate::guard::wait;
use crate::scene::Loads;
use crate::site::SiteConf;
use crate::truth;
use crate::tun::Trouble;
use nix::sys::signal::Signal::{SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::model::incident::Cause::{KeepaliveRace, KeepaliveRaceOnShutdown};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "keepalive-race",
        cause: Some(KeepaliveRace),
        sub_cause: None,
        fit: free,
        site: |d| {
            let mut site = over(d, delay(d, 40));
            site.nginx.keepalive_timeout = 1;
            site
        },
        loads: |d, site| {
            let mut conf = load(d, site, "/static", "race");
            // The server's second begins when it has answered, one delay before the client has the answer. A request that
            // leaves within (1 s - 2 delays, 1 s) after that meets the close.
            (conf.connections, conf.think) = (d.slow, Duration::from_secs(1) - delay(d, 40));
            Loads { fast: Some(conf), ..Loads::default() }
        },
        act: |scene, d, _| wait("the races", LIMIT, || scene.count(|p| &p.failed) >= 2 * d.slow as u64),
        made: &[],
        truth: |_, r, started| truth::keepalive_race(r, started),
    },
    Scenario {
        name: "keepalive-race-on-shutdown",
        cause: Some(KeepaliveRaceOnShutdown),
        sub_cause: None,
        fit: free,
        site: |d| over(d, delay(d, 15)),
        loads: |d, site| {
            let mut conf = load(d, site, "/static", "race");
            conf.more_paths = vec!["/fast.php".into()];
            (conf.connections, conf.max_refused) = (d.slow + d.fast, Some(20));
            Loads { fast: Some(conf), answered: 300, ..Loads::default() }
        },
        act: |scene, d, marks| {
            stop(scene, d, marks, if d.other { SIGTERM } else { SIGQUIT })?;
            scene.refused()
        },
        made: &[],
        truth: |k, r, started| truth::nginx_stop(k.draw.other)(r, started),
    },
];

fn over(d: &Draw, delay: Duration) -> SiteConf {
    SiteConf { trouble: Some(Trouble { delay, ..Trouble::default() }), ..d.site(4) }
}

/// One way. Below 30 ms a busy machine's timers miss the window too often.
fn delay(d: &Draw, own: u64) -> Duration {
    Duration::from_millis(d.pause.map_or(own, |ms| 30 + ms % 40))
}
