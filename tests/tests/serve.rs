//! `why502 serve` beside real pods, killed with -9 again and again: every incident and stop that it ever served is there
//! afterwards, no probe is left, and the next one goes on.
//!
//! `KILLS=50` for the full figure.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use why502_tests::guard::{self, Dir, wait};
use why502_tests::load::LoadConf;
use why502_tests::scene::{LIMIT, Loads, Scene};
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{Tracer, binary};

/// Numbers and records that a stream gave.
type Served = Arc<Mutex<BTreeMap<u64, String>>>;

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn get(at: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.contains(" 200 "), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// Collects everything that the agent serves from now on until it dies.
fn follow(at: SocketAddr, served: &Served) -> Result<std::thread::JoinHandle<()>> {
    let mut stream = TcpStream::connect(at)?;
    write!(stream, "GET /records?follow=1&after=0 HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n")?;
    let served = Arc::clone(served);
    Ok(std::thread::spawn(move || {
        let mut seq = 0;
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(id) = line.strip_prefix("id: ") {
                seq = id.parse().unwrap_or(0);
            } else if let Some(json) = line.strip_prefix("data: ").filter(|json| json.ends_with('}')) {
                served.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, json.to_owned());
            }
        }
    }))
}

fn agent(store: &Path, at: SocketAddr) -> Result<Tracer> {
    let at = at.to_string();
    let args = ["serve".as_ref(), "--store".as_ref(), store.as_os_str(), "--listen".as_ref(), at.as_ref()];
    Tracer::start(&binary()?, &args)
}

/// What `why502 incidents` reads from the directory, in order.
fn kept(store: &Path) -> Result<Vec<String>> {
    let out =
        Command::new(binary()?).args(["incidents", "--limit", "1000", "-o", "json", "--store"]).arg(store).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.lines().map(str::to_owned).collect())
}

/// A pod that loses requests: nginx gets SIGTERM while php works for it.
fn lose() -> Result<()> {
    let site = Site::start(&SiteConf { fpm: Some(Default::default()), ..SiteConf::default() })?;
    let slow = LoadConf { connections: 3, max_refused: Some(3), ..LoadConf::new(site.addr(), "/slow.php?ms=3000") };
    let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: 3, ..Loads::default() })?;
    scene.site.signal_nginx(Signal::SIGTERM)?;
    scene.refused()?;
    scene.end()?;
    Ok(())
}

#[test]
fn killed_at_any_time_it_keeps_what_it_served() -> Result<()> {
    let _turn = guard::turn()?;
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = Dir::new()?;
    let store = dir.join("store");
    let served = Served::default();
    let kills = guard::number("KILLS", 3);
    for run in 0..kills {
        let at = free_port()?;
        let agent = agent(&store, at)?;
        ensure!(get(at, "/readyz")? == "ready\n");
        let reader = follow(at, &served)?;
        let before = served.lock().unwrap_or_else(PoisonError::into_inner).len();
        lose()?;
        // In some rounds as soon as something new is served, in others when the verdicts are out, in others before.
        match run % 3 {
            0 => wait("records", LIMIT, || served.lock().unwrap_or_else(PoisonError::into_inner).len() > before)?,
            1 => {
                let lost = "why502_lost_requests_total{cause=\"nginx-fast-shutdown\"";
                let page = || get(at, "/metrics").unwrap_or_default();
                wait("the lost requests", LIMIT, || page().contains(lost))?;
                ensure!(page().contains("why502_probe_status{hook=\"signal_generate\",status=\"attached\"} 1"));
                ensure!(get(at, "/healthz")?.contains("\"ready\":true"));
            }
            _ => {}
        }
        let pid = Pid::from_raw(i32::try_from(agent.pid())?);
        kill(pid, Signal::SIGKILL)?;
        reader.join().ok();
        drop(agent);
    }
    let kept = kept(&store)?;
    let served = served.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(!served.is_empty());
    for (seq, json) in served.iter() {
        ensure!(kept.get(usize::try_from(*seq)? - 1) == Some(json), "record {seq} was served and is not there: {json}");
    }
    println!("{kills} kills: {} records served, {} kept", served.len(), kept.len());

    // And an orderly end.
    let at = free_port()?;
    let agent = agent(&store, at)?;
    let stream = follow(at, &Served::default())?;
    let said = agent.stop()?;
    ensure!(said.status.success(), "{:?}", said.stderr);
    wait("the end of its streams", Duration::from_secs(30), || stream.is_finished())
}
