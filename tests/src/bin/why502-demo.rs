//! The demo: a real local pod loses requests, and why502 says why.
//!
//! client → edge nginx → pod (nginx and php-fpm, a container each), under load; then SIGTERM to nginx, PID 1 of its
//! container, from outside, as `docker stop` and a kubelet do it. The client's ledger and why502's incidents are compared
//! one by one.

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::signal::Signal;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use why502::model::incident::{Cause, Incident};
use why502_tests::guard::{self, Dir, wait};
use why502_tests::ledger::{self, Rules};
use why502_tests::load::{Load, LoadConf, Progress, Request};
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{self, Tracer};

#[derive(Parser)]
#[command(about = "A real local pod loses requests, and why502 explains each of them")]
struct Args {
    /// The why502 binary; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    why502: Option<PathBuf>,
    /// The stop signal: TERM or QUIT
    #[arg(long, default_value = "TERM", value_parser = stop_signal)]
    signal: Signal,
    /// Busy connections of the client
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Keep the recording here
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

fn stop_signal(name: &str) -> Result<Signal, String> {
    match name {
        "TERM" => Ok(Signal::SIGTERM),
        "QUIT" => Ok(Signal::SIGQUIT),
        _ => Err("one of TERM, QUIT".into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(why) = guard::why_not_live() {
        eprintln!("why502-demo: cannot run here: {why}");
        return ExitCode::FAILURE;
    }
    match guard::catch_interrupts().and_then(|()| demo(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("why502-demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args) -> Result<bool> {
    let why502 = match &args.why502 {
        Some(path) => path.clone(),
        None => why502_tests::launch::sibling("why502").context("--why502 PATH names it")?,
    };
    let _turn = guard::turn()?;
    let files = Dir::new()?;
    let recording = args.record.clone().unwrap_or_else(|| files.join("demo.rec"));

    let fpm = FpmConf { children: 8, ..FpmConf::default() };
    let site = Site::start(&SiteConf { fpm: Some(fpm), edge: Some(16), ..SiteConf::default() })?;
    println!("1. A pod: nginx (PID 1 in its container, host pid {}) and php-fpm, behind an edge nginx.", pid(&site));

    let watch = Tracer::watch(&why502, &["--record".as_ref(), recording.as_os_str()])?;
    println!("2. why502 watches the node's kernel: no change to nginx, php or the pod.");

    let mut conf = LoadConf::new(site.addr(), "/static");
    conf.more_paths = vec!["/fast.php".into(), "/slow.php?ms=120".into()];
    conf.connections = args.connections.into();
    // What comes after the stop is refused: a few of these are enough.
    conf.refused_pause = Duration::from_millis(300);
    let load = Load::start(Some(site.client.path()), conf)?;
    let half = Duration::from_secs(30);
    wait("the load to run", half, || Progress::get(&load.progress.answered) >= 1000)?;
    let signal = args.signal;
    println!("3. {} busy connections; now {signal} to nginx, as a runtime's stop does it.", args.connections);
    site.nginx.container.signal(signal)?;
    let enough = u64::from(args.connections) + 20;
    wait("the requests that are lost", half, || Progress::get(&load.progress.errors) >= enough)?;
    let requests = load.stop()?;
    let rules = Rules { made: &[502], seen: site.started_scripts()?, allowed: &allowed };
    let lost = requests.iter().filter(|r| ledger::is_lost(r, rules.made)).count();
    watch.wait_for(lost, &site)?;
    let said = watch.stop()?;
    let result = ledger::compare(&requests, &said.claims(&site), &rules);

    println!("4. The client: {} requests, {lost} of them lost {:?}.", result.requests, result.lost);
    println!("   why502:     {} incidents {:?}.\n", result.explained + result.false_incidents.len(), result.by_cause);
    if let Some(one) = example(&said.incidents, &site) {
        let block = block(&why502, &recording, &one.id)?;
        println!("One of them in full (why502 explain):\n\n{block}\n");
    }
    if let Some(kept) = &args.record {
        println!("The recording is {}.", kept.display());
    }
    for line in result.complaints() {
        println!("   {line}");
    }
    let equal = result.exact() && lost > 0 && result.truncated == 0;
    println!(
        "The client lost {lost}, why502 explained {}: {}",
        result.explained,
        if equal { "exact." } else { "DIFFERENT." }
    );
    if lost == 0 {
        bail!("nothing was lost: the demo has nothing to show");
    }
    Ok(equal)
}

fn pid(site: &Site) -> i32 {
    site.nginx.container.pid()
}

/// Behind the edge the client sees 502 for everything: php's own ledger narrows some of them down.
fn allowed(_: &Request, started: bool) -> &'static [Cause] {
    if started {
        &[Cause::NginxFastShutdown]
    } else {
        &[Cause::NginxFastShutdown, Cause::NginxAcceptQueueDropped, Cause::EndpointRace, Cause::KeepaliveRaceOnShutdown]
    }
}

/// The one that says most: a request cut in flight rather than one refused later.
fn example<'a>(incidents: &'a [Incident], site: &Site) -> Option<&'a Incident> {
    let ours: Vec<&Incident> = incidents.iter().filter(|i| site.owns(i.server.ip, i.server.netns)).collect();
    let cut = ours.iter().find(|i| i.cause == Cause::NginxFastShutdown);
    cut.or(ours.first()).copied()
}

/// The incident's block of `why502 explain`: blocks are apart by empty lines, and each names its id.
fn block(why502: &std::path::Path, recording: &std::path::Path, id: &str) -> Result<String> {
    let color = if std::io::stdout().is_terminal() { "always" } else { "never" };
    let text = tracer::explain(why502, recording, &["-o", "text", "--color", color])?;
    let block = text.split("\n\n").find(|b| b.contains(id));
    Ok(block.with_context(|| format!("the replay of the recording has no incident {id}"))?.to_string())
}
