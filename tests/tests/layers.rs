//! One lost request, several layers: an edge nginx and the pod behind it on one node, with and without address translation
//! between them. One incident for each request, which names the edge.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use why502::model::incident::{Cause, Incident, Mechanism};
use why502_tests::guard::{self, wait};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::nat::Nat;
use why502_tests::php::FpmConf;
use why502_tests::scene::{LIMIT, Loads, Scene, Watch};
use why502_tests::schema;
use why502_tests::site::{Edge, Site, SiteConf};

const SLOW: usize = 6;
const LATE: usize = 4;

fn skipped(name: &str, lacks: Option<String>) -> bool {
    let why = lacks.or_else(guard::why_not_traced);
    if let Some(why) = &why {
        println!("{name}: skipped: {why}");
    }
    why.is_some()
}

fn site(nat: Option<Nat>) -> Result<Site> {
    let fpm = FpmConf { children: 2 * SLOW as u32, ..FpmConf::default() };
    Site::start(&SiteConf { fpm: Some(fpm), edge: Some(16), nat, ..SiteConf::default() })
}

/// Requests through the edge that php works on.
fn begin(site: Site) -> Result<Scene> {
    let mut slow = LoadConf::new(site.addr(), "/slow.php?ms=20000");
    (slow.connections, slow.max_attempts) = (SLOW, Some(SLOW as u64));
    Scene::start(site, &Loads { slow: Some(slow), in_php: SLOW, ..Loads::default() })
}

fn edge(site: &Site) -> Result<&Edge> {
    site.edge.as_ref().context("a site with an edge")
}

/// The incidents of this site, ended and compared with the schema.
fn said(watch: Watch, name: &str, site: &Site, lost: usize) -> Result<Vec<Incident>> {
    watch.tracer.wait_for(lost, site)?;
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    if let Some(dir) = std::env::var_os("RECORDINGS") {
        let name = format!("{}.rec", name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        std::fs::copy(&watch.recording, std::path::Path::new(&dir).join(name))?;
    }
    Ok(said.incidents.into_iter().filter(|i| site.owns(i.server.ip, i.server.netns)).collect())
}

/// The pod is stopped while it works, and asked again when it is gone.
fn pod_stops(name: &str, nat: Option<Nat>, known_by: &str) -> Result<()> {
    if skipped(name, nat.and_then(|_| Nat::lacks())) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    for run in 1..=guard::number("RUNS", 1) {
        let site = site(nat)?;
        let watch = Watch::of(&site)?;
        let mut scene = begin(site)?;
        scene.site.signal_nginx(SIGTERM)?;
        wait("the cut requests", LIMIT, || scene.slow.iter().all(Load::finished))?;
        scene.site.nginx.container.wait(LIMIT)?;
        let mut late = LoadConf::new(scene.site.addr(), "/static");
        (late.connections, late.max_attempts) = (1, Some(LATE as u64));
        let late = scene.add(late)?;
        wait("the refused requests", LIMIT, || Progress::get(&late.errors) >= LATE as u64)?;
        let over = scene.end()?;
        let incidents = said(watch, name, &over.site, SLOW + LATE)?;
        let of = |cause| incidents.iter().filter(|i| i.cause == cause).count();
        println!(
            "{name}, run {run}: {} requests got no answer but the edge's 502; {} incidents, {} cut, {} refused",
            over.requests
                .iter()
                .filter(|r| matches!(r.outcome, why502_tests::load::Outcome::HttpError { status: 502 }))
                .count(),
            incidents.len(),
            of(Cause::NginxFastShutdown),
            of(Cause::EndpointRace)
        );
        ensure!(incidents.len() == SLOW + LATE, "{incidents:#?}");
        ensure!((of(Cause::NginxFastShutdown), of(Cause::EndpointRace)) == (SLOW, LATE), "{incidents:#?}");
        let edge = edge(&over.site)?;
        for i in &incidents {
            let r = &i.requester;
            ensure!(r.known_by.as_deref() == Some(known_by), "{i:#?}");
            ensure!(r.kind == "edge" && r.container.as_ref() == Some(&edge.nginx.container.id), "{i:#?}");
            ensure!(r.pod.as_ref().is_some_and(|p| p.uid == edge.pod.uid), "{i:#?}");
            let tells = i.chain.iter().filter(|l| l.rule == "beside-the-requesting-end").count();
            ensure!(tells == 1, "{i:#?}");
        }
    }
    Ok(())
}

#[test]
fn a_pod_behind_an_edge() -> Result<()> {
    pod_stops("edge and pod", None, "addresses")
}

#[test]
fn behind_a_service() -> Result<()> {
    pod_stops("edge, DNAT, pod", Some(Nat::Dnat), "sequence-numbers")
}

#[test]
fn behind_a_node_that_masquerades() -> Result<()> {
    pod_stops("edge, DNAT and MASQUERADE, pod", Some(Nat::Masquerade), "sequence-numbers")
}

/// The edge is killed with the ends of its connections unread: each request is lost once, between the client and the edge.
#[test]
fn edge_and_pod_together() -> Result<()> {
    let name = "edge and pod together";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    for run in 1..=guard::number("RUNS", 1) {
        let site = site(None)?;
        let watch = Watch::of(&site)?;
        let mut scene = begin(site)?;
        let edge_workers = edge(&scene.site)?.nginx.workers();
        for pid in &edge_workers {
            kill(Pid::from_raw(*pid), SIGSTOP)?;
        }
        scene.site.signal_nginx(SIGTERM)?;
        scene.site.nginx.container.wait(LIMIT)?;
        edge(&scene.site)?.nginx.container.signal(SIGKILL)?;
        wait("the cut requests", LIMIT, || scene.slow.iter().all(Load::finished))?;
        let over = scene.end()?;
        let incidents = said(watch, name, &over.site, SLOW)?;
        let at_edge = incidents
            .iter()
            .filter(|i| Some(i.server.netns) == over.site.edge.as_ref().and_then(|e| e.pod.netns.inode().ok()));
        println!("{name}, run {run}: {} incidents, {} of the edge", incidents.len(), at_edge.clone().count());
        ensure!(incidents.len() == SLOW && at_edge.count() == SLOW, "{incidents:#?}");
        ensure!(incidents.iter().all(|i| i.mechanism == Mechanism::ClosedInFlight), "{incidents:#?}");
    }
    Ok(())
}

/// Two edges with one address and one source port, before two pods with one address: the same 4-tuples, and only the sequence
/// numbers tell whose is whose.
#[test]
fn two_edges_with_the_same_addresses() -> Result<()> {
    let name = "two edges with the same addresses";
    if skipped(name, None) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    for run in 1..=guard::number("RUNS", 1) {
        let one = site(None)?;
        let link = Some(one.link);
        let two = Site::start(&SiteConf { fpm: Some(FpmConf::default()), edge: Some(1), link, ..SiteConf::default() })?;
        let sites = [one, two];
        for site in &sites {
            // One port for connections to anywhere.
            let range = "/proc/sys/net/ipv4/ip_local_port_range";
            edge(site)?.pod.netns.run(|| std::fs::write(range, "40000 40000"))??;
        }
        let watch = Watch::of(&sites[0])?;
        let mut loads = Vec::new();
        for site in &sites {
            let mut slow = LoadConf::new(site.addr(), "/slow.php?ms=20000");
            slow.max_attempts = Some(1);
            loads.push(Load::start(Some(site.client.path()), slow)?);
        }
        let started = |site: &Site| site.started_scripts().is_ok_and(|s| !s.is_empty());
        wait("both requests", LIMIT, || sites.iter().all(started))?;
        for site in &sites {
            site.signal_nginx(SIGTERM)?;
        }
        wait("the cut requests", LIMIT, || loads.iter().all(Load::finished))?;
        let incidents = said(watch, name, &sites[0], 2)?;
        println!("{name}, run {run}: {} incidents", incidents.len());
        ensure!(incidents.len() == 2, "{incidents:#?}");
        for site in &sites {
            let netns = site.pod.netns.inode()?;
            let i = incidents.iter().find(|i| i.server.netns == netns).context("an incident of each pod")?;
            ensure!(i.requester.port == Some(40000), "the ports were to be the same: {i:#?}");
            ensure!(i.requester.container.as_ref() == Some(&edge(site)?.nginx.container.id), "{i:#?}");
        }
    }
    Ok(())
}
