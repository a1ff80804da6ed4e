//! A store at its full size: how long a start takes, and each kind of question; and that many who ask for the worst at once
//! hold up neither the pipeline nor a liveness probe. Prints its figures.
//!
//! `cargo test --release -p why502 --test it full_store -- --ignored --nocapture`; `MIB=32` for a smaller one, `STORE=DIR` keeps it.

use crate::page_samples::recorded;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use why502::model::Input;
use why502::serve::{Bounds, Server, State};
use why502::store::{Disk, Limits, Now, Store, sink};

const BOOT: &str = "8f1f6a0c-0000-4000-8000-000000000001";

fn now() -> Now {
    Now { boot_id: BOOT.into(), boot_s: 1_000, wall_s: 1_795_356_000 }
}

/// Real records, each with an id of its own, of a hundred pods; until there are so many bytes.
fn fill(dir: &Path, bytes: u64) -> u64 {
    let mut kinds = Vec::new();
    for name in
        ["nginx-sigterm", "quit-then-term", "oom-killed", "unix-term", "supervisord", "containerd-prestop-failed"]
    {
        let (stops, incidents) = recorded(name);
        kinds.extend(incidents.iter().map(|i| (i.id.clone(), serde_json::to_string(i).unwrap())));
        kinds.extend(stops.iter().map(|s| (s.id.clone(), serde_json::to_string(s).unwrap())));
    }
    let limits = Limits { max_bytes: bytes + (8 << 20), ..Limits::default() };
    let mut disk = Disk::open(dir, limits, &now()).unwrap();
    let mut n = disk.last();
    while disk.bytes() < bytes {
        let record = |n: u64| {
            let (id, json) = &kinds[n as usize % kinds.len()];
            json.replace(&**id, &format!("{}-{n:016x}", &id[..1]))
        };
        let batch: Vec<String> = (n..n + 500).map(record).collect();
        n = disk.append(&batch, &now()).unwrap();
    }
    n
}

fn ask(at: SocketAddr, path: &str) -> (u16, usize) {
    let mut stream = TcpStream::connect(at).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let status = String::from_utf8_lossy(&all[..all.len().min(64)]);
    (status.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0), all.len())
}

#[test]
#[ignore = "minutes, and 256 MiB of disk: prints figures"]
fn full_store() {
    let number = |name: &str, or: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("STORE").map_or_else(|| temporary.path().join("store"), PathBuf::from);
    let records = fill(&dir, number("MIB", 256) << 20);
    let begin = Instant::now();
    let store = Store::start(&dir, Limits { max_bytes: 1 << 30, ..Limits::default() }, sink::WAITING, now).unwrap();
    println!(
        "{records} records, {} MiB; opened in {:.3} s",
        store.view().stats().bytes >> 20,
        begin.elapsed().as_secs_f64()
    );
    let state = Arc::new(State::new(store.view()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(listener, Arc::clone(&state), Bounds::default()).unwrap();
    let at = server.address;
    let last = records - 1;
    let worst = "/incidents?cause=php-hard-timeout&limit=1000";
    for path in [
        "/incidents?limit=100".to_owned(),
        "/incidents?limit=1000".into(),
        "/".into(),
        "/incidents?workload=Deployment/nothing".into(),
        "/incidents?since=1h".into(),
        worst.into(),
        format!("/stops/s-{last:016x}"),
        "/stop/s-0000000000000000".into(),
        format!("/incident/i-{:016x}", 1),
    ] {
        let begin = Instant::now();
        let (status, bytes) = ask(at, &path);
        println!("{:8.3} s  {status} {:6} KiB  {path}", begin.elapsed().as_secs_f64(), bytes >> 10);
    }
    crowd(at, worst, &state);
    server.stop();
    assert!(store.finish(Duration::from_secs(10)));
}

/// As many as there may be ask for what takes longest; a liveness probe and the pipeline go on.
fn crowd(at: SocketAddr, worst: &str, state: &State) {
    let over = AtomicBool::new(false);
    let (answered, refused, latest) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let count = if ask(at, worst).0 == 200 { &answered } else { &refused };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // What the pipeline does for each input.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                state.tally().input(&Input::Tick { at: 1 });
                std::thread::sleep(Duration::from_millis(1));
                let late = begin.elapsed().as_micros() as u64;
                latest.fetch_max(late, Ordering::Relaxed);
            }
        });
        for _ in 0..100 {
            let begin = Instant::now();
            assert_eq!(ask(at, "/healthz").0, 200);
            slowest = slowest.max(begin.elapsed());
            std::thread::sleep(Duration::from_millis(200));
        }
        over.store(true, Ordering::Relaxed);
    });
    println!(
        "60 who ask for the worst, 20 s: {answered:?} answered, {refused:?} turned away; /healthz after {} ms at most; a millisecond of the pipeline took {} ms at most",
        slowest.as_millis(),
        latest.into_inner() / 1000
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}
