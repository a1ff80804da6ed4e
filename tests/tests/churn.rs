//! A busy node in small: containerd starts and stops pods one after another while one why502 watches. Every request that was
//! lost has its incident, with the container and the pod that it was lost by, and why502 does not grow.
//!
//! Played with `FULL=1`. `CHURN_SECONDS=300` for how long, `CHURN_PODS=67` for at least so many; `RECORDINGS=DIR` keeps what was
//! recorded.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use why502::model::incident::Cause;
use why502_tests::guard;
use why502_tests::ledger::{Rules, any_mechanism, compare};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::runtime::containerd::{self, Containerd};
use why502_tests::runtime::deployed::{Deployed, DeployedConf};
use why502_tests::runtime::{Engine, View};
use why502_tests::scene::{LIMIT, Watch, keep};
use why502_tests::site::{Ground, Territory};
use why502_tests::truth;
use why502_tests::{php, schema};

/// MiB that it may grow by from the tenth pod to the last: what it remembers of the dead is bounded.
const GROWTH: f64 = 40.0;

/// One pod's life: a request that php works on, and one that is on its way when nginx is stopped.
struct Life {
    container: String,
    uid: String,
    name: String,
}

#[test]
fn pods_come_and_go() -> Result<()> {
    let why = containerd::why_not().or_else(guard::why_not_full);
    if let Some(why) = why {
        println!("pods come and go: skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let (seconds, pods) = (guard::number("CHURN_SECONDS", 300), guard::number("CHURN_PODS", 67));
    let containerd = Containerd::start(&containerd::found()[0], View::Hosts)?;
    let dir = guard::Dir::new()?;
    let socket = format!("unix://{}", containerd.socket().display());
    let mut watch = Watch::at(dir.join("watch.rec"), &["--runtime", &socket])?;
    let (mut lives, mut requests, mut seen) = (BTreeMap::new(), Vec::new(), HashSet::new());
    let mut here = Territory::default();
    let mut grown: Vec<f64> = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(seconds) || lives.len() < pods as usize {
        let n = lives.len();
        let prefix = format!("pod{n}x");
        let conf = DeployedConf { name: format!("web-{n}"), sidecar: true, ..DeployedConf::default() };
        let site = Deployed::start(&containerd, &conf)?;
        let mut load = LoadConf::new(site.addr(), "/slow.php?ms=20000");
        (load.connections, load.max_refused, load.prefix) = (2, Some(2), prefix.clone());
        let load = Load::start(Some(site.client()), load)?;
        guard::wait("requests in php", LIMIT, || site.served().is_ok_and(|s| s.len() >= 2))?;
        containerd.stop(&site.nginx, Duration::from_secs(5))?;
        guard::wait("the refused", LIMIT, || load.finished())?;
        ensure!(Progress::get(&load.progress.failed) >= 2, "nothing was lost in {}", conf.name);
        requests.extend(load.join()?);
        seen.extend(php::started(&site.served()?));
        let territory = site.territory();
        here.ips.extend(territory.ips);
        here.netns.extend(territory.netns);
        lives
            .insert(prefix, Life { container: site.nginx.id.clone(), uid: site.pod.spec.uid.clone(), name: conf.name });
        drop(site);
        grown.push(resident(watch.tracer.pid())?);
        if n % 20 == 9 {
            println!("{} pods, {} containers: {:.1} MiB", n + 1, 4 * (n + 1), grown[n]);
        }
        ensure!(watch.tracer.running(), "why502 ended");
    }
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let claims = said.incidents.iter().map(Into::into).filter(|c| here.has(c)).collect::<Vec<_>>();
    let rules = Rules { made: &[], seen, allowed: &truth::nginx_stop(true), mechanisms: &any_mechanism };
    let result = compare(&requests, &claims, &rules);
    let (first, last) = (grown[9.min(grown.len() - 1)], grown[grown.len() - 1]);
    let (count, took) = (lives.len(), begin.elapsed().as_secs());
    println!("{} containers in {count} pods, {took} s: {result}", 4 * count);
    println!("resident: {first:.1} MiB after ten pods, {last:.1} MiB at the end");
    let wanted = std::env::var_os("RECORDINGS").map(PathBuf::from);
    if wanted.is_some() || !result.exact() {
        keep(wanted, "churn", &watch.recording, &requests)?;
    }
    let complaints = result.complaints_in(20);
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    for (request, claim) in &result.verdicts {
        let prefix = request.id.split_once('x').map(|(pod, _)| format!("{pod}x")).unwrap_or_default();
        let life = lives.get(&prefix).with_context(|| format!("no pod {prefix}"))?;
        let told = said.incidents.iter().find(|i| i.id == claim.id).context("an incident has another id")?;
        let pod = told.pod.as_ref().map(|p| (p.uid.as_str(), p.name.as_deref()));
        ensure!(pod == Some((&life.uid, Some(&life.name))), "pod {pod:?}, not {}: {}", life.name, claim.summary);
        let container = told.container.as_ref().map(|c| (c.id.as_str(), c.name.as_deref()));
        ensure!(container == Some((&life.container, Some("nginx"))), "{container:?}: {}", claim.summary);
    }
    ensure!(result.by_cause.contains_key(Cause::NginxFastShutdown.id()), "nothing was cut: {result}");
    ensure!(last - first < GROWTH, "it grew from {first:.1} to {last:.1} MiB");
    Ok(())
}

/// Resident memory of a process, MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("why502 is gone")?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
    Ok(kib.and_then(|kib| kib.parse::<f64>().ok()).context("no VmRSS")? / 1024.0)
}
