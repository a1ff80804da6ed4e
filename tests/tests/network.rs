//! What the network does to a pod: no local port, no way to it, no room in a queue. Not all of it is a pod's doing.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::time::Duration;
use why502::model::incident::{Cause, Incident, Mechanism};
use why502_tests::accuracy::live;
use why502_tests::guard::{self, run, wait};
use why502_tests::ledger::{Rules, any_mechanism, compare};
use why502_tests::load::{LoadConf, Progress};
use why502_tests::php::{FpmConf, FpmListen};
use why502_tests::pod::stopped;
use why502_tests::scene::{LIMIT, Loads, Scene, Watch, pass};
use why502_tests::schema;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{binary, explain};

#[test]
fn nginx_has_no_local_port() -> Result<()> {
    live("ephemeral-ports-exhausted", &["two"])
}

/// The edge is the one without ports, and the pod is not to blame.
#[test]
fn the_edge_has_no_local_port() -> Result<()> {
    const NAME: &str = "no port at the edge";
    if skipped(NAME) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let fpm = Some(FpmConf { children: 24, ..FpmConf::default() });
    let site = Site::start(&SiteConf { fpm, edge: Some(1), ..SiteConf::default() })?;
    let edge = site.edge.as_ref().context("no edge")?;
    let write = || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40007\n");
    edge.pod.netns.run(write)??;
    let uid = edge.pod.uid.clone();
    let watch = Watch::of(&site)?;
    let mut load = LoadConf::new(site.addr(), "/slow.php?ms=300");
    (load.connections, load.refused_pause) = (16, Duration::from_millis(50));
    let scene = Scene::start(site, &Loads { slow: Some(load), ..Loads::default() })?;
    wait("the 502s", LIMIT, || scene.count(|p| &p.errors) >= 20)?;
    let allowed =
        |_: &_, started: bool| -> &'static [Cause] { if started { &[] } else { &[Cause::EphemeralPortsExhausted] } };
    let (result, said) = scene.end()?.heard(NAME, watch, &[502], &allowed)?;
    println!("{NAME}: {result}");
    ensure!(result.complaints_in(1).is_empty(), "{}", result.complaints().join("\n"));
    let others = said.incidents.iter().filter(|i| i.cause == Cause::EphemeralPortsExhausted);
    let wrong: Vec<&Incident> = others.filter(|i| i.pod.as_ref().is_none_or(|p| p.uid != uid)).collect();
    ensure!(wrong.is_empty(), "of another pod than the edge's: {wrong:#?}");
    Ok(())
}

/// The pod's link is down: nobody answers the edge's question for its address, and connect fails after three of them.
#[test]
fn the_way_to_the_pod_is_gone() -> Result<()> {
    const NAME: &str = "no way to the pod";
    if skipped(NAME) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = Site::start(&SiteConf { edge: Some(1), ..SiteConf::default() })?;
    let watch = Watch::of(&site)?;
    site.link_down()?;
    let edge = site.edge.as_ref().context("no edge")?;
    run("ip", &["-n", &edge.pod.netns.name, "neigh", "flush", "all"])?;
    let uid = edge.pod.uid.clone();
    let mut load = LoadConf::new(site.addr(), "/static");
    (load.connections, load.max_attempts) = (12, Some(12));
    let scene = Scene::start(site, &Loads { fast: Some(load), ..Loads::default() })?;
    wait("the 502s", LIMIT, || scene.fast.iter().all(|l| l.finished()))?;
    ensure!(scene.count(|p| &p.errors) == 12, "they were to be answered with 502");
    let (result, said) = scene.end()?.heard(NAME, watch, &[502], &|_, _| &[Cause::PodNetworkGone])?;
    println!("{NAME}: {result}");
    ensure!(result.complaints_in(1).is_empty(), "{}", result.complaints().join("\n"));
    let right = |i: &&Incident| i.mechanism == Mechanism::NetworkGone && i.pod.as_ref().is_some_and(|p| p.uid == uid);
    let told: Vec<_> = said.incidents.iter().filter(|i| i.cause == Cause::PodNetworkGone).collect();
    ensure!(told.iter().all(right), "{told:#?}");
    Ok(())
}

/// The network of a pod goes away under its requests: their answers go nowhere, and the pod has done nothing.
#[test]
fn a_pod_that_loses_its_network_is_not_blamed() -> Result<()> {
    const NAME: &str = "a pod without its network";
    if skipped(NAME) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let fpm = Some(FpmConf { children: 12, ..FpmConf::default() });
    let site = Site::start(&SiteConf { fpm, ..SiteConf::default() })?;
    let watch = Watch::with(&site, &["--all"])?;
    let mut load = LoadConf::new(site.pod_addr(false), "/slow.php?ms=700");
    (load.connections, load.max_attempts, load.timeout) = (8, Some(8), Duration::from_secs(3));
    let scene = Scene::start(site, &Loads { slow: Some(load), in_php: 8, ..Loads::default() })?;
    scene.site.link_down()?;
    wait("the ends of the scripts", LIMIT, || scene.in_php() == 0)?;
    wait("the clients' patience", LIMIT, || scene.slow.iter().all(|l| l.finished()))?;
    // Verdicts of the ends of these connections would be final by then.
    pass(1000)?;
    let over = scene.end()?;
    let said = watch.tracer.stop()?;
    let told: Vec<_> = said.claims(&over.site).into_iter().filter(|c| !c.cause.not_the_server()).collect();
    println!("{NAME}: {} requests without an answer, {} blamed on the pod", over.requests.len(), told.len());
    ensure!(told.is_empty(), "{}", told[0]);
    Ok(())
}

/// A full accept queue is told only when it is asked for: who does not get in gets a 504. php-fpm's only child stands still, and
/// two connections that wait fill the queue; every SYN that comes then is dropped.
#[test]
fn a_full_tcp_queue_is_recognised() -> Result<()> {
    const NAME: &str = "a full TCP queue";
    if skipped(NAME) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let fpm = FpmConf { children: 1, backlog: Some(1), listen: FpmListen::Tcp(9000), ..FpmConf::default() };
    let mut conf = SiteConf { fpm: Some(fpm), ..SiteConf::default() };
    // A second SYN leaves after one second.
    conf.nginx.server_extra = "fastcgi_connect_timeout 2500ms;".into();
    let site = Site::start(&conf)?;
    let watch = Watch::with(&site, &["--all"])?;
    let load = |path: &str, prefix: &str, n: u64| {
        let mut load = LoadConf::new(site.pod_addr(false), path);
        (load.connections, load.max_attempts, load.prefix) = (usize::try_from(n).unwrap_or(1), Some(n), prefix.into());
        load
    };
    let (queued, late) = (load("/fast.php", "queued", 2), load("/fast.php", "late", 8));
    let pid = site.nginx.container.pid();
    let master = site.php_master().context("no php-fpm runs")?;
    let child = *site.php_container().children_of(master).first().context("no child")?;
    let scene = Scene::start(site, &Loads::default())?;
    kill(Pid::from_raw(child), SIGSTOP)?;
    wait("the child to stand still", LIMIT, || stopped(child))?;
    let queued = scene.add(queued)?;
    wait("a full queue", LIMIT, || waiting(pid, 9000) == Some(2))?;
    let late = scene.add(late)?;
    wait("the 504s", LIMIT, || Progress::get(&late.ended) == 8)?;
    kill(Pid::from_raw(child), SIGCONT)?;
    wait("the answers of those that waited", LIMIT, || Progress::get(&queued.answered) == 2)?;
    let over = scene.end()?;
    watch.tracer.wait_for(over.lost(&[504]), &over.site)?;
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let replayed = explain(&binary()?, &watch.recording, &["--all", "-o", "json"])?;
    ensure!(replayed.lines().eq(said.lines.iter()), "the replay of the recording says something else");
    let seen = over.site.started_scripts()?;
    let rules = Rules { made: &[504], seen, allowed: &|_, _| &[Cause::SynDrop], mechanisms: &any_mechanism };
    let result = compare(&over.requests, &said.claims(&over.site), &rules);
    println!("{NAME}: {result}");
    ensure!(result.lost_total() == 8, "the scenario did not happen");
    ensure!(result.complaints_in(1).is_empty(), "{}", result.complaints().join("\n"));
    let full = |i: &&Incident| i.chain.iter().any(|l| l.rule == "the-queue-was-full");
    let told: Vec<_> = said.incidents.iter().filter(|i| i.cause == Cause::SynDrop).collect();
    ensure!(told.iter().all(full), "{told:#?}");
    Ok(())
}

/// Connections in the accept queue of a port, in the network namespace of a process.
fn waiting(pid: i32, port: u16) -> Option<u32> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    let listens = |f: &Vec<&str>| f.len() > 4 && f[1].ends_with(&format!(":{port:04X}")) && f[3] == "0A";
    let row = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).find(listens)?;
    u32::from_str_radix(row[4].split_once(':')?.1, 16).ok()
}

fn skipped(name: &str) -> bool {
    guard::why_not_traced().inspect(|why| println!("{name}: skipped: {why}")).is_some()
}
