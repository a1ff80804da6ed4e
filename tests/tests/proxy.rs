//! A proxy that is not nginx, in a container of its own before the pod's nginx: haproxy with its master.
//! What it had passed on when it was stopped is told by the nginx behind it, and only when the whole pod is being stopped.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::SIGTERM;
use std::net::SocketAddr;
use std::path::Path;
use why502::model::incident::{Cause, Incident, Level};
use why502_tests::guard::{self, wait};
use why502_tests::launch::Spec;
use why502_tests::load::{Load, LoadConf};
use why502_tests::nginx::NginxConf;
use why502_tests::php::FpmConf;
use why502_tests::pod::Container;
use why502_tests::scene::{LIMIT, Loads, Scene, Watch, pass};
use why502_tests::site::{Site, SiteConf};
use why502_tests::{net, schema};

const SLOW: usize = 8;
const PORT: u16 = 8088;
/// The app's preStop hook, which waits longer than anybody looks.
const HOOK: [&str; 2] = ["/bin/sleep", "600"];

fn skipped(name: &str) -> bool {
    let installed = Path::new("/usr/sbin/haproxy").is_file();
    let lacks = (!installed).then(|| "haproxy is not installed (apt-get install haproxy)".to_string());
    let why = lacks.or_else(guard::why_not_traced);
    if let Some(why) = &why {
        println!("{name}: skipped: {why}");
    }
    why.is_some()
}

fn start_proxy(site: &Site) -> Result<Container> {
    let config = site.dir.join("haproxy.cfg");
    let text = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen app\n  bind :{PORT}\n  server nginx 127.0.0.1:{}\n",
        site.pod_addr(false).port()
    );
    std::fs::write(&config, text)?;
    let argv = ["haproxy", "-W", "-db", "-f", config.to_str().context("a path")?];
    let mut proxy = site.pod.start(Spec::new(argv))?;
    let pid = proxy.pid();
    wait("haproxy to listen", LIMIT, || net::listens(pid, PORT) || !proxy.running())?;
    ensure!(proxy.running(), "haproxy ended");
    Ok(proxy)
}

/// What why502 says when haproxy is stopped while requests are in php; with its pod, or alone.
fn said(whole_pod: bool) -> Result<(Vec<Incident>, usize)> {
    let nginx = NginxConf { port: 8080, ..NginxConf::default() };
    let fpm = FpmConf { children: 2 * SLOW as u32, ..FpmConf::default() };
    let site = Site::start(&SiteConf { nginx, fpm: Some(fpm), ..SiteConf::default() })?;
    let proxy = start_proxy(&site)?;
    let spec = site.dir.join("pod.json");
    let hook = serde_json::json!({"preStop": {"exec": {"command": HOOK}}});
    let containers = serde_json::json!([{"name": "nginx", "lifecycle": hook}]);
    let text = serde_json::json!({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": containers}});
    std::fs::write(&spec, text.to_string())?;
    let watch = Watch::with(&site, &["--pod-spec", spec.to_str().context("a path")?])?;
    let to = SocketAddr::new(site.pod_addr(false).ip(), PORT);
    let mut slow = LoadConf::new(to, "/slow.php?ms=20000");
    (slow.connections, slow.max_attempts) = (SLOW, Some(SLOW as u64));
    let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: SLOW, ..Loads::default() })?;
    let hook = whole_pod.then(|| scene.site.nginx.container.exec(&HOOK)).transpose()?;
    proxy.signal(SIGTERM)?;
    wait("the cut requests", LIMIT, || scene.slow.iter().all(Load::finished))?;
    // Until every verdict is final: who is told within a second was not made to wait.
    pass(1500)?;
    drop(hook);
    let over = scene.end()?;
    let lost = over.lost(&[]);
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let ours = |i: &Incident| over.site.owns(i.server.ip, i.server.netns);
    Ok((said.incidents.into_iter().filter(ours).collect(), lost))
}

#[test]
fn haproxy_goes_before_the_nginx_behind_it() -> Result<()> {
    let name = "haproxy goes first";
    if skipped(name) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    for run in 1..=guard::number("RUNS", 1) {
        let (incidents, lost) = said(true)?;
        println!("{name}, run {run}: lost {lost}, told {}", incidents.len());
        ensure!(lost == SLOW && incidents.len() == SLOW, "{lost} lost, {incidents:#?}");
        for i in &incidents {
            let chain: Vec<_> = i.chain.iter().map(|l| (l.rule.as_str(), l.text.as_str())).collect();
            let told = i.cause == Cause::SidecarGoneFirst && i.confidence.level == Level::Likely;
            let tells = |rule: &str, text: &str| chain.iter().any(|(r, t)| *r == rule && t.contains(text));
            ensure!(told, "{}: {chain:#?}", i.summary);
            ensure!(tells("a-proxy-of-this-server", "haproxy"), "{chain:#?}");
            ensure!(tells("the-proxy-was-told-to-stop", "SIGTERM to haproxy"), "{chain:#?}");
            ensure!(tells("beside-the-stop-of-the-pod", "sleep 600"), "{chain:#?}");
        }
    }
    Ok(())
}

/// Its own container is restarted: no order would have helped, and of haproxy itself nothing is known.
#[test]
fn haproxy_is_stopped_alone() -> Result<()> {
    let name = "haproxy alone";
    if skipped(name) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let (incidents, lost) = said(false)?;
    println!("{name}: lost {lost}, told {}", incidents.len());
    ensure!(lost == SLOW && incidents.is_empty(), "{lost} lost, {incidents:#?}");
    Ok(())
}
