//! A server that is not there yet: nginx takes requests on before its php-fpm listens, or is started again. And what asks for closed ports without
//! being a request.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal::SIGTERM;
use std::time::Duration;
use why502::model::incident::{Cause, Incident, Level, Mechanism};
use why502_tests::guard::{self, wait};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::nginx::{Nginx, NginxConf};
use why502_tests::php::{Fpm, FpmConf};
use why502_tests::scene::{LIMIT, Loads, Scene, Watch, pass};
use why502_tests::schema;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::claims;

/// Answers of 502 before php-fpm is started, and others after it.
const EARLY: u64 = 60;
const ANSWERED: u64 = 50;
/// Connects to a port that nobody has.
const PROBES: u64 = 200;

/// nginx passes on to 127.0.0.1:9000, where nobody listens.
fn without_php() -> Result<Site> {
    let mut conf = SiteConf::default();
    conf.nginx.fastcgi = Some("127.0.0.1:9000".into());
    Site::start(&conf)
}

#[test]
fn php_fpm_comes_later() -> Result<()> {
    let name = "php-fpm comes later";
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let runs = guard::number("RUNS", 2);
    for run in 1..=runs {
        let site = without_php()?;
        let watch = Watch::of(&site)?;
        let mut load = LoadConf::new(site.pod_addr(false), "/fast.php");
        (load.connections, load.refused_pause) = (8, Duration::from_millis(20));
        load.think = Duration::from_millis(5);
        let scene = Scene::start(site, &Loads { fast: Some(load), ..Loads::default() })?;
        wait("the first 502s", LIMIT, || scene.count(|p| &p.errors) >= EARLY)?;
        let site = &scene.site;
        let _php = Fpm::start(&site.pod, &site.dir, &site.dir.join("www"), &FpmConf::default())?;
        wait("the first answers", LIMIT, || scene.count(|p| &p.answered) >= ANSWERED)?;
        let (result, said) = scene.end()?.heard(name, watch, &[502], &|_, _| &[Cause::FpmNotListening])?;
        println!("{name}, run {run}: {result}");
        let bad = result.complaints_in(runs);
        ensure!(bad.is_empty(), "{}", bad.join("\n"));
        ensure!(result.lost_total() as u64 >= EARLY, "the scenario did not happen");
        let others = said.incidents.iter().filter(|i| i.cause == Cause::FpmNotListening);
        let wrong: Vec<_> = others.filter(|i| i.sub_cause.as_deref() != Some("not-started")).collect();
        ensure!(wrong.is_empty(), "another sub-cause: {wrong:#?}");
    }
    Ok(())
}

/// A pod whose nginx is stopped on a signal, under connections that are refused from then on; `act` does it.
fn refused_after(act: impl FnOnce(&Scene) -> Result<()>) -> Result<Vec<Incident>> {
    let fpm = Some(FpmConf::default());
    let site = Site::start(&SiteConf { fpm, ..SiteConf::default() })?;
    let watch = Watch::of(&site)?;
    let mut load = LoadConf::new(site.pod_addr(false), "/static");
    (load.connections, load.keep_alive, load.refused_pause) = (2, false, Duration::from_millis(20));
    load.think = Duration::from_millis(5);
    let scene = Scene::start(site, &Loads { fast: Some(load), answered: 50, ..Loads::default() })?;
    act(&scene)?;
    let over = scene.end()?;
    watch.tracer.wait_for(over.lost(&[]), &over.site)?;
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let refused = |i: &Incident| over.site.owns(i.server.ip, i.server.netns) && i.mechanism == Mechanism::Refused;
    Ok(said.incidents.into_iter().filter(refused).collect())
}

fn refused_more(scene: &Scene, n: u64) -> Result<()> {
    let refused = || scene.count(|p| &p.refused);
    let until = refused() + n;
    wait("refused attempts", LIMIT, || refused() >= until)
}

/// As long as nothing shows whether a pod goes or stays, nothing is certain; and what was final stays true.
#[test]
fn a_restart_that_begins_late() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("a late restart: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let told = refused_after(|scene| {
        let site = &scene.site;
        site.nginx.container.signal(SIGTERM)?;
        refused_more(scene, 5)?;
        // Verdicts of these are final by then.
        pass(1500)?;
        let before = scene.count(|p| &p.answered);
        let _again = Nginx::start(&site.pod, &site.dir, &site.dir.join("www"), &NginxConf::default())?;
        wait("answers of the new one", LIMIT, || scene.count(|p| &p.answered) >= before + 50)?;
        scene.fast.iter().for_each(Load::move_away);
        wait("the end of the load", LIMIT, || scene.fast.iter().all(Load::finished))
    })?;
    let (early, late): (Vec<_>, Vec<_>) = told.iter().partition(|i| i.cause == Cause::EndpointRace);
    println!("a late restart: {} told as endpoint-race, {} as restarting", early.len(), late.len());
    ensure!(!early.is_empty() && !late.is_empty(), "the scenario did not happen: {told:#?}");
    for i in early {
        let missing = i.missing.iter().any(|m| m.fact == "pod-stop");
        ensure!(missing && i.confidence.level == Level::Likely, "{i:#?}");
    }
    for i in late {
        let restarting = i.cause == Cause::NginxNotListening && i.sub_cause.as_deref() == Some("restarting");
        ensure!(restarting, "{i:#?}");
    }
    Ok(())
}

#[test]
fn a_whole_pod_that_is_stopped() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("a whole pod: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let told = refused_after(|scene| {
        scene.site.nginx.container.signal(SIGTERM)?;
        scene.site.php_container().signal(SIGTERM)?;
        refused_more(scene, 5)
    })?;
    println!("a whole pod: {} told", told.len());
    let race = |i: &Incident| i.cause == Cause::EndpointRace && i.confidence.level == Level::Certain;
    let shown = |i: &Incident| i.chain.iter().any(|l| l.rule == "beside-the-stop-of-the-pod");
    ensure!(!told.is_empty() && told.iter().all(|i| race(i) && shown(i)), "{told:#?}");
    Ok(())
}

#[test]
fn probes_of_closed_ports_are_no_requests() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("probes of closed ports: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = without_php()?;
    let watch = Watch::of(&site)?;
    // From inside of the pod to its own address, as an exec probe does it; from outside, as a scan does it.
    let places = [(site.pod.netns.path(), "127.0.0.1:9000"), (site.pod.netns.path(), "127.0.0.1:8081")];
    let outside = (site.client.path(), format!("{}:81", site.pod_addr(false).ip()));
    let all = places.map(|(netns, addr)| (netns, addr.to_string())).into_iter().chain([outside]);
    for (netns, addr) in all {
        let mut conf = LoadConf::new(addr.parse()?, "/");
        (conf.connections, conf.max_refused) = (4, Some(PROBES));
        let load = Load::start(Some(netns), conf)?;
        wait("the refused probes", LIMIT, || load.finished())?;
        ensure!(Progress::get(&load.progress.refused) >= PROBES, "they were to be refused");
        load.stop()?;
    }
    let said = watch.tracer.stop()?;
    let ours = claims(&said.incidents, &site);
    ensure!(ours.is_empty(), "{} incidents, the first: {}", ours.len(), ours[0]);
    println!("{} refused probes, no incident", 3 * PROBES);
    Ok(())
}
