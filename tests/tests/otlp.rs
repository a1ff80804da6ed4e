//! `why502 serve --otlp` beside real pods, and a real collector that is away, comes, is killed and comes again.

#[path = "../../tracer/tests/it/collector.rs"]
mod collector;

use anyhow::{Context, Result, ensure};
use collector::Collector;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use why502::model::incident::Cause;
use why502_tests::agent::{Agent, kept};
use why502_tests::guard::{self, Dir, wait};
use why502_tests::load::LoadConf;
use why502_tests::scene::{LIMIT, Loads, Scene};
use why502_tests::site::{Site, SiteConf};

/// A pod loses requests: nginx gets SIGTERM while php works for it.
fn lose() -> Result<Site> {
    let site = Site::start(&SiteConf { fpm: Some(Default::default()), ..SiteConf::default() })?;
    let slow = LoadConf { connections: 3, max_refused: Some(3), ..LoadConf::new(site.addr(), "/slow.php?ms=3000") };
    let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: 3, ..Loads::default() })?;
    scene.site.signal_nginx(Signal::SIGTERM)?;
    scene.refused()?;
    Ok(scene.end()?.site)
}

/// Ids of the records about a site, once there are the incidents that were cut and the stop; others may come later.
fn lost(agent: &Agent) -> Result<(Site, Vec<String>)> {
    let site = lose()?;
    let ours = || -> Result<Vec<Value>> {
        let page: Value = serde_json::from_str(&agent.get("/records?limit=1000")?)?;
        let uids = site.pod_uids();
        let ours = |record: &&Value| uids.iter().any(|uid| record["pod"]["uid"] == uid.as_str());
        Ok(page["items"].as_array().context("no items")?.iter().filter(ours).cloned().collect())
    };
    let mut found = Vec::new();
    let complete = || {
        found = ours().unwrap_or_default();
        let cut = found.iter().filter(|record| record["cause"] == Cause::NginxFastShutdown.id()).count();
        cut >= 3 && found.iter().any(|record| record["type"] == "stop")
    };
    wait("three incidents and the stop", LIMIT, complete)?;
    let id = |record: &Value| record["id"].as_str().map(str::to_owned).context("no id");
    let ids = found.iter().map(id).collect::<Result<_>>()?;
    Ok((site, ids))
}

fn record(id: &String) -> String {
    format!("why502.id: Str({id})\n")
}

#[test]
fn what_a_pod_lost_reaches_a_receiver_that_was_away() -> Result<()> {
    const NAME: &str = "serve --otlp";
    if let Some(why) = guard::why_not_traced() {
        println!("{NAME}: skipped: {why}");
        return Ok(());
    }
    let Some(rotel) = collector::find() else {
        collector::skipped(NAME);
        return Ok(());
    };
    let _turn = guard::turn()?;
    let dir = Dir::new()?;
    let store = dir.join("store");
    let address = collector::free_address();
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{address}");
    let variables = [&*endpoint, "OTEL_RESOURCE_ATTRIBUTES=k8s.cluster.name=prod"];
    let start = || Agent::start_with(&store, &variables, &["--otlp"]);
    let figure = |agent: &Agent, name: &str| agent.metric(&format!("why502_export_{name}"), &["to=\"otlp\""]);

    // Nobody is there: verdicts are kept and shown all the same.
    let agent = start()?;
    let (site, before) = lost(&agent)?;
    wait("a failure", LIMIT, || figure(&agent, "failures_total").is_ok_and(|n| n > 0.0))?;
    ensure!(figure(&agent, "ok")? == 0.0 && figure(&agent, "sent_total")? == 0.0);
    ensure!(figure(&agent, "waiting")? >= before.len() as f64);
    let failing = format!("OTLP log records cannot be delivered: http://{address}/v1/logs cannot be reached");
    wait("a line on stderr", LIMIT, || agent.tracer.says(&failing))?;
    // It comes: they are late, and each there once.
    let mut receiver = Collector::start(&rotel, &address);
    receiver.until(&before.iter().map(record).collect::<Vec<_>>());
    wait("all to be sent", LIMIT, || figure(&agent, "waiting").is_ok_and(|n| n == 0.0))?;
    let about = [
        format!("k8s.pod.uid: Str({})\n", site.pod_uids().first().context("no pod")?),
        "k8s.cluster.name: Str(prod)\n".into(),
        "error.type: Str(nginx-fast-shutdown)\n".into(),
        "EventName: why502.stop\n".into(),
    ];
    receiver.until(&about);
    let once =
        |receiver: &Collector, ids: &[String]| ids.iter().all(|id| receiver.said.matches(&record(id)).count() == 1);
    ensure!(once(&receiver, &before), "twice:\n{}", receiver.said);
    ensure!(figure(&agent, "ok")? == 1.0 && figure(&agent, "dropped_total")? == 0.0);
    ensure!(figure(&agent, "sent_total")? >= before.len() as f64);
    wait("a line on stderr", LIMIT, || agent.tracer.says("OTLP log records are delivered again"))?;

    // It is killed, and the agent after it: what waited is in the store, and never comes to the receiver.
    let said = receiver.end();
    let once = |said: &str, ids: &[String]| ids.iter().all(|id| said.matches(&record(id)).count() == 1);
    ensure!(once(&said, &before), "twice:\n{said}");
    let failures = figure(&agent, "failures_total")?;
    let (_, between) = lost(&agent)?;
    wait("another failure", LIMIT, || figure(&agent, "failures_total").is_ok_and(|n| n > failures))?;
    kill(Pid::from_raw(i32::try_from(agent.tracer.pid())?), Signal::SIGKILL)?;
    drop(agent);
    let mut receiver = Collector::start(&rotel, &address);
    let agent = start()?;
    let (_, after) = lost(&agent)?;
    receiver.until(&after.iter().map(record).collect::<Vec<_>>());
    let said = agent.stop()?;
    ensure!(said.status.success(), "{:?}", said.stderr);
    let lines = |text: &str| said.stderr.iter().filter(|line| line.contains(text)).count();
    ensure!(lines("OTLP") == 1 && lines(&format!("go to http://{address}/v1/logs")) == 1, "{:?}", said.stderr);
    let came = receiver.end();
    ensure!(once(&came, &after), "twice:\n{came}");
    let forgotten = before.iter().chain(&between);
    ensure!(forgotten.into_iter().all(|id| !came.contains(&record(id))), "nobody remembers what waited:\n{came}");
    let kept: Vec<Value> = kept(&["--store".as_ref(), store.as_os_str()])?
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect::<Result<_, _>>()?;
    let kept: BTreeSet<&str> = kept.iter().filter_map(|record| record["id"].as_str()).collect();
    ensure!([before, between, after].iter().flatten().all(|id| kept.contains(&**id)), "the store has all of them");
    Ok(())
}
