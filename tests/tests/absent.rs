//! A server that is not there yet: nginx takes requests on before its php-fpm listens. And what asks for closed ports without
//! being a request.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::{Result, ensure};
use std::time::Duration;
use why502::model::incident::Cause;
use why502_tests::guard::{self, wait};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::php::{Fpm, FpmConf};
use why502_tests::scene::{LIMIT, Loads, Scene, Watch};
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
