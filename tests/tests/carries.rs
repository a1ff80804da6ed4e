//! Connections that are more than one HTTP/1.1 request after the other, at rest when nginx is stopped: real HTTP/2 without TLS,
//! and an upgraded one. Nothing of them is lost, and nothing of them may be called lost but as a possibility.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::SIGTERM;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use why502::model::incident::{Cause, Level};
use why502_tests::guard::{self, wait};
use why502_tests::load::{Load, LoadConf, Shape};
use why502_tests::nginx::NginxConf;
use why502_tests::scene::{LIMIT, Loads, Scene, Watch};
use why502_tests::site::{Ground, Site, SiteConf};

fn site(nginx: NginxConf) -> Result<Site> {
    Site::start(&SiteConf { nginx, ..SiteConf::default() })
}

/// Everything that was said of the port is possible at most; how much that is.
fn capped(scene: Scene, watch: Watch, port: u16) -> Result<usize> {
    let over = scene.end()?;
    let said = watch.tracer.stop()?;
    ensure!(said.status.success(), "{}", said.stderr.join("\n"));
    let claims = said.claims(&over.site);
    let ours: Vec<_> = claims.iter().filter(|c| c.server.is_some_and(|s| s.port() == port)).collect();
    let sure: Vec<String> = ours.iter().filter(|c| c.level != Level::Possible).map(ToString::to_string).collect();
    ensure!(sure.is_empty(), "{}", sure.join("\n"));
    Ok(ours.len())
}

#[test]
fn idle_http2_that_a_stop_cuts() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = site(NginxConf { http2: true, ..NginxConf::default() })?;
    let watch = Watch::of(&site)?;
    let mut conf = LoadConf::new(site.pod_addr(false), "/");
    conf.target.set_port(81);
    (conf.connections, conf.keep_alive, conf.max_attempts) = (8, false, Some(8));
    conf.shape = Shape::IdleHttp2(Duration::from_secs(120));
    let _load = Load::start(Some(site.client()), conf)?;
    let mut scene = Scene::start(site, &Loads::default())?;
    // The client's last word is the acknowledgement of what nginx said first.
    wait("the idle connections", LIMIT, || idle(&scene.site, 81) == 8)?;
    why502_tests::scene::pass(300)?;
    scene.site.signal_nginx(SIGTERM)?;
    wait("the end of nginx", LIMIT, || !scene.site.nginx.container.running())?;
    println!("idle HTTP/2: {} of 8 called possibly lost", capped(scene, watch, 81)?);
    Ok(())
}

/// Connections of the pod on this port that have nothing to read.
fn idle(site: &Site, port: u16) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/net/tcp", site.nginx.container.pid())).unwrap_or_default();
    let rows = text.lines().skip(1).map(|l| l.split_whitespace().map(String::from).collect::<Vec<_>>());
    let local = format!(":{port:04X}");
    rows.filter(|f| f.len() > 4 && f[3] == "01" && f[1].ends_with(&local) && f[4].ends_with(":00000000")).count()
}

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: pod\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// An upgraded connection through nginx, on which the client spoke last.
fn upgraded(site: &Site) -> Result<[TcpStream; 3]> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    site.pod.netns.run(move || -> Result<[TcpStream; 3]> {
        let behind = TcpListener::bind(local(9888))?;
        let mut client = TcpStream::connect(local(80))?;
        client.set_read_timeout(Some(LIMIT))?;
        client.write_all(ASK.as_bytes())?;
        let (mut server, _) = behind.accept()?;
        server.set_read_timeout(Some(LIMIT))?;
        let mut buffer = [0; 4096];
        ensure!(server.read(&mut buffer)? > 0, "no request came");
        server.write_all(SWITCH.as_bytes())?;
        let n = client.read(&mut buffer)?;
        ensure!(buffer[..n].starts_with(b"HTTP/1.1 101"), "nginx did not switch");
        why502_tests::scene::pass(50)?;
        client.write_all(b"a message")?;
        ensure!(server.read(&mut buffer)? > 0, "no message came");
        let other = client.try_clone()?;
        Ok([client, other, server])
    })?
}

fn passes_upgrades() -> String {
    "location /ws { proxy_pass http://127.0.0.1:9888; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
     proxy_set_header Connection \"upgrade\"; }"
        .into()
}

#[test]
fn an_upgraded_connection_that_a_stop_cuts() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = site(NginxConf { server_extra: passes_upgrades(), ..NginxConf::default() })?;
    let watch = Watch::of(&site)?;
    let _held = upgraded(&site)?;
    let mut scene = Scene::start(site, &Loads::default())?;
    scene.site.signal_nginx(SIGTERM)?;
    wait("the end of nginx", LIMIT, || !scene.site.nginx.container.running())?;
    let possible = capped(scene, watch, 80)?;
    println!("an upgraded connection: {possible} called possibly lost");
    ensure!(possible == 1, "the close of the connection was seen");
    Ok(())
}

/// A port that carries nothing else stays as sure as it was.
#[test]
fn a_request_beside_is_still_certain() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let site = Site::start(&SiteConf {
        nginx: NginxConf { http2: true, ..NginxConf::default() },
        fpm: Some(why502_tests::php::FpmConf::default()),
        ..SiteConf::default()
    })?;
    let watch = Watch::of(&site)?;
    let mut conf = LoadConf::new(site.pod_addr(false), "/fast.php");
    // The second request of each connection is the slow one.
    conf.more_paths = vec!["/slow.php?ms=60000".into()];
    (conf.connections, conf.max_refused) = (4, Some(4));
    conf.refused_pause = Duration::from_millis(50);
    let mut scene = Scene::start(site, &Loads { slow: Some(conf), in_php: 1, ..Loads::default() })?;
    scene.site.signal_nginx(SIGTERM)?;
    wait("the end of nginx", LIMIT, || !scene.site.nginx.container.running())?;
    scene.refused()?;
    let (result, said) = scene.end()?.heard("beside HTTP/2", watch, &[], &|_, _| {
        &[Cause::NginxFastShutdown, Cause::EndpointRace, Cause::NginxAcceptQueueDropped, Cause::KeepaliveRaceOnShutdown]
    })?;
    println!("beside HTTP/2: {result}");
    let cut = said.incidents.iter().find(|i| i.cause == Cause::NginxFastShutdown).context("nothing was cut")?;
    ensure!(cut.confidence.level == Level::Certain, "{cut:#?}");
    Ok(())
}
