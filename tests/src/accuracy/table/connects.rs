//! nginx that cannot connect to php-fpm, which listens.

use super::loads::load;
use crate::accuracy::layout::{Draw, Fastcgi};
use crate::accuracy::scenario::Scenario;
use crate::accuracy::{LIMIT, scenario};
use crate::guard::wait;
use crate::load::{Load, Progress, Request};
use crate::nginx::Upstream;
use crate::scene::{Loads, Scene};
use crate::site::Site;
use anyhow::{Context, Result};
use std::time::Duration;
use why502::model::incident::Cause::{self, EphemeralPortsExhausted};

/// Answers of 502 that are waited for.
const WITHOUT_PORT: u64 = 40;

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "ephemeral-ports-exhausted",
    cause: Some(EphemeralPortsExhausted),
    sub_cause: None,
    fit: |d| {
        over_tcp(d);
        d.slow = d.slow.max(12);
    },
    site: |d| d.site(d.slow + 4),
    loads: |d, site| slow(d, site, 300, d.slow),
    // php works on as many requests as there are ports: nginx has one connection for each.
    act: |scene, _, marks| {
        few_ports(&scene.site, 8)?;
        marks.set("few");
        wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= WITHOUT_PORT)?;
        end_load(scene)
    },
    made: &[502],
    truth: no_port,
}];

fn over_tcp(d: &mut Draw) {
    if d.layout.fastcgi == Fastcgi::Unix {
        d.layout.fastcgi = Fastcgi::Tcp;
    }
}

fn slow(d: &Draw, site: &Site, ms: u64, connections: usize) -> Loads {
    let mut conf = load(d, site, &format!("/slow.php?ms={ms}"), "slow");
    (conf.connections, conf.refused_pause) = (connections, Duration::from_millis(50));
    Loads { slow: Some(conf), ..Loads::default() }
}

/// Ports that the kernel gives to connections of the pod, from now on.
pub(crate) fn few_ports(site: &Site, n: u16) -> Result<()> {
    let range = format!("40000 {}\n", 40000 + n - 1);
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    site.pod.netns.run(|| std::fs::write(path, range))?.with_context(|| format!("cannot write {path}"))
}

/// nginx's own log says what its connect failed with.
fn no_port(k: &scenario::Known, r: &Request, started: bool) -> &'static [Cause] {
    match k.upstream.get(&r.id) {
        Some(Upstream::NoPort) if !started => &[EphemeralPortsExhausted],
        _ => &[],
    }
}

fn end_load(scene: &Scene) -> Result<()> {
    let loads = || scene.slow.iter();
    loads().for_each(Load::move_away);
    wait("the end of the load", LIMIT, || loads().all(|l| l.finished() || Progress::get(&l.progress.answered) == 0))
}
