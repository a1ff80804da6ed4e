//! What nginx alone knows of the requests that it passes on, by probes in nginx: an answer that it does not take, and what to
//! change so that it takes it; servers that it asks one after the other, and that it leaves alone.
//!
//! `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::SIGTERM;
use why502::model::incident::{Cause, Mechanism, Outcome};
use why502_tests::guard::{self, run, wait};
use why502_tests::ledger::Comparison;
use why502_tests::load::{LoadConf, Progress};
use why502_tests::nginx::NginxConf;
use why502_tests::php::{FpmConf, FpmListen};
use why502_tests::scene::{LIMIT, Loads, Scene, Watch};
use why502_tests::site::{Site, SiteConf, Territory};
use why502_tests::tracer::Said;

/// Answers of each kind that are waited for.
const ANSWERS: u64 = 24;

fn why_not() -> Option<String> {
    guard::why_not_traced()
}

fn site(listen: FpmListen, nginx: NginxConf) -> Result<Site> {
    Site::start(&SiteConf { nginx, fpm: Some(FpmConf { listen, ..FpmConf::default() }), ..SiteConf::default() })
}

fn asks(site: &Site, path: &str) -> LoadConf {
    let mut conf = LoadConf::new(site.pod_addr(false), path);
    (conf.connections, conf.refused_pause) = (4, std::time::Duration::from_millis(20));
    conf
}

fn exact(name: &str, result: &Comparison) -> Result<()> {
    println!("{name}: {result}");
    ensure!(result.exact(), "{name}: {}", result.complaints().join("\n"));
    Ok(())
}

/// nginx's own connection to the client tells nothing of such a loss, and is named all the same.
fn names_its_clients(result: &Comparison) -> Result<()> {
    for (request, claim) in &result.verdicts {
        let ends = (claim.requester, claim.server);
        ensure!(ends == (Some(request.local), Some(request.remote)), "{} > {}: {claim}", request.local, request.remote);
    }
    Ok(())
}

/// Until so many were answered, or answered with an error; gives what was said of them.
fn play(name: &str, site: Site, path: &str, cause: &'static [Cause]) -> Result<(Comparison, Said)> {
    let watch = Watch::with(&site, &["--uprobes", "on"])?;
    let loads = Loads { fast: Some(asks(&site, path)), ..Loads::default() };
    let scene = Scene::start(site, &loads)?;
    wait("the answers", LIMIT, || scene.count(|p| &p.answered) >= ANSWERS)?;
    let (result, said) = scene.end()?.heard(name, watch, &[502], &move |_, _| cause)?;
    exact(name, &result)?;
    Ok((result, said))
}

#[test]
fn a_header_that_is_too_big_and_the_buffer_that_it_needs() -> Result<()> {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let php = || FpmListen::Tcp(9000);
    let first = site(php(), NginxConf::default())?;
    let ours = first.territory();
    let cause: &[Cause] = &[Cause::UpstreamResponseInvalid];
    let (result, said) = play("header too big", first, "/big.php", cause)?;
    ensure!(result.lost_total() as u64 >= ANSWERS, "{result}");
    names_its_clients(&result)?;
    let mut changes = Vec::new();
    for i in said.incidents.iter().filter(|i| ours.owns(None, i.server.netns)) {
        ensure!((i.outcome, i.response.status) == (Outcome::ErrorMade, Some(502)), "{i:#?}");
        ensure!(i.sub_cause.as_deref() == Some("header-too-big") && i.confidence.value >= 0.95, "{i:#?}");
        let advice = i.advice.iter().find(|a| a.id == "upstream-buffer-size").context("no advice")?;
        ensure!(advice.value.is_some(), "its buffer was seen: {i:#?}");
        changes.push((advice.value, advice.change.clone()));
    }
    // As it is advised, nginx takes the answer.
    let (_, change) = changes.into_iter().max().context("no incident")?;
    let directives = change.split("  (").next().unwrap_or_default().to_string();
    let nginx = NginxConf { server_extra: directives, ..NginxConf::default() };
    let (result, _) = play("with the buffer", site(php(), nginx)?, "/big.php", &[])?;
    ensure!(result.lost_total() == 0, "{result}");
    Ok(())
}

#[test]
fn a_header_that_is_none_over_a_unix_socket() -> Result<()> {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = site(FpmListen::Unix, NginxConf::default())?;
    let ours = site.territory();
    let (result, said) = play("invalid header", site, "/bad.php", &[Cause::UpstreamResponseInvalid])?;
    ensure!(result.lost_total() as u64 >= ANSWERS, "{result}");
    names_its_clients(&result)?;
    let ours = said.incidents.iter().filter(|i| ours.owns(None, i.server.netns));
    for i in ours {
        ensure!(i.sub_cause.as_deref() == Some("header-invalid"), "{i:#?}");
        ensure!(i.summary.contains("upstream sent invalid header"), "nginx's own words: {}", i.summary);
    }
    Ok(())
}

/// Every other request meets a server first that is not there.
#[test]
fn what_another_server_answers_is_not_lost() -> Result<()> {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let servers = "server 127.0.0.1:9777 max_fails=0; server 127.0.0.1:9000 max_fails=0;";
    let nginx = NginxConf { servers: Some(servers.into()), ..NginxConf::default() };
    let site = site(FpmListen::Tcp(9000), nginx)?;
    let (result, said) = play("another server", site, "/fast.php", &[])?;
    ensure!(result.lost_total() == 0, "{result}");
    // The attempts were seen, and told as what they are.
    let told = said.stderr.iter().any(|line| line.contains("nginx repeated elsewhere"));
    ensure!(told, "no attempt failed: {}", said.stderr.join("\n"));
    Ok(())
}

/// connect() says so at once, and no socket shows anything: of a route that says that nobody is there, and of none at all.
#[test]
fn no_way_leads_to_a_server() -> Result<()> {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let play_with = |name: &str, route: &str, servers: &str, cause| -> Result<(Comparison, Said, Territory)> {
        let nginx = NginxConf { servers: Some(servers.into()), ..NginxConf::default() };
        let site = site(FpmListen::Tcp(9000), nginx)?;
        run("ip", &["-n", &site.pod.netns.name, "route", "add", route, "198.51.100.1"])?;
        let ours = site.territory();
        let (result, said) = play(name, site, "/fast.php", cause)?;
        Ok((result, said, ours))
    };
    for (name, route, errno) in [
        ("unreachable", "unreachable", "113 (No route to host)"),
        ("no route", "throw", "101 (Network is unreachable)"),
    ] {
        let (result, said, ours) = play_with(name, route, "server 198.51.100.1:9000;", &[Cause::PodNetworkGone])?;
        ensure!(result.lost_total() as u64 >= ANSWERS, "{result}");
        names_its_clients(&result)?;
        for i in said.incidents.iter().filter(|i| ours.owns(None, i.server.netns)) {
            ensure!((i.mechanism, i.response.status) == (Mechanism::NetworkGone, Some(502)), "{i:#?}");
            ensure!(i.summary.contains(errno), "{errno}: {i:#?}");
        }
    }
    // Who meets it first is answered by the other server.
    let servers = "server 198.51.100.1:9000 max_fails=0; server 127.0.0.1:9000 max_fails=0;";
    let (result, ..) = play_with("no way to one of two", "unreachable", servers, &[])?;
    ensure!(result.lost_total() == 0, "{result}");
    Ok(())
}

/// Both servers are one php-fpm: once it was refused twice, nginx asks it no more.
#[test]
fn no_server_is_left() -> Result<()> {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let servers = "server 127.0.0.1:9000; server 127.0.0.1:9000;";
    let nginx = NginxConf { servers: Some(servers.into()), ..NginxConf::default() };
    let site = site(FpmListen::Tcp(9000), nginx)?;
    let ours = site.territory();
    let watch = Watch::with(&site, &["--uprobes", "on"])?;
    let scene = Scene::start(site, &Loads::default())?;
    scene.site.php_container().signal(SIGTERM)?;
    wait("the end of php-fpm", LIMIT, || scene.site.php_master().is_none())?;
    let progress = scene.add(asks(&scene.site, "/fast.php"))?;
    wait("the 502s", LIMIT, || Progress::get(&progress.errors) >= ANSWERS)?;
    let (result, said) = scene.end()?.heard("no server left", watch, &[502], &|_, _| &[Cause::FpmNotListening])?;
    exact("no server left", &result)?;
    let asked_nobody = |i: &&why502::model::Incident| i.outcome == Outcome::ErrorMade;
    let ours: Vec<_> = said.incidents.iter().filter(|i| ours.owns(None, i.server.netns)).collect();
    ensure!(ours.iter().copied().any(|i| asked_nobody(&i)), "nginx asked each time");
    ensure!(ours.iter().all(|i| i.response.status == Some(502)), "every page was seen");
    Ok(())
}
