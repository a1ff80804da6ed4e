//! An edge that finds no way to its pod.

use super::loads::load;
use super::nginx::apart;
use crate::accuracy::LIMIT;
use crate::accuracy::layout::Draw;
use crate::accuracy::scenario::{Known, Marks, Scenario};
use crate::guard::{run, wait};
use crate::load::{Progress, Request};
use crate::nginx::{Listen, Upstream};
use crate::scene::{Loads, Scene};
use crate::site::SiteConf;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use why502::model::incident::Cause::{self, PodNetworkGone};

pub(super) const ALL: &[Scenario] = &[
    // The pod's link goes down: nobody answers the edge's question for its address.
    Scenario {
        name: "pod-network-gone",
        cause: Some(PodNetworkGone),
        sub_cause: None,
        fit: behind_an_edge,
        site: |d| SiteConf { edge: Some(16), ..d.site(4) },
        loads: |_, _| Loads::default(),
        act: link_down,
        made: &[502],
        truth: no_way,
    },
];

/// Which asks for its pod by IPv4 and takes both families itself, on port 80.
fn behind_an_edge(d: &mut Draw) {
    apart(d);
    d.layout.listen = Listen::V4;
}

fn link_down(scene: &Scene, d: &Draw, marks: &Marks) -> Result<()> {
    let site = &scene.site;
    let edge = site.edge.as_ref().context("this site has no edge")?;
    marks.set("down");
    site.link_down()?;
    run("ip", &["-n", &edge.pod.netns.name, "neigh", "flush", "all"])?;
    let mut conf = load(d, site, "/static", "edge");
    if d.layout.v6 {
        conf.target = SocketAddr::new(edge.link.right6.into(), 80);
    } else {
        conf.target = site.addr();
    }
    let all = d.slow + d.fast;
    (conf.connections, conf.keep_alive, conf.max_attempts) = (all, d.layout.keep_alive, Some(all as u64));
    let progress = scene.add(conf)?;
    wait("the 502s", LIMIT, || Progress::get(&progress.errors) >= all as u64)
}

/// The edge's log says what its connect failed with.
fn no_way(k: &Known, r: &Request, _: bool) -> &'static [Cause] {
    match k.upstream.get(&r.id) {
        Some(Upstream::NoWay) => &[PodNetworkGone],
        _ => &[],
    }
}
