//! Incidents and stops at an OpenTelemetry receiver: a real one (the Rotel collector), and a played one that is away, slow or odd.

use crate::samples;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use why502::model::Output;
use why502::model::incident::{Incident, Stop};
use why502::sinks::otlp::{Entry, Headers, Receiver, entry};
use why502::sinks::outbox::{Outbox, Stats};

const PATIENCE: Duration = Duration::from_secs(60);

fn outbox(address: &str, max: usize) -> Outbox<Entry> {
    let headers: Headers = "x-tenant=shop".parse().unwrap();
    Outbox::start("otlp", Receiver::new(format!("http://{address}").parse().unwrap(), headers), max).unwrap()
}

fn incident(id: &str) -> Entry {
    entry(&Output::Incident(Box::new(Incident { id: id.into(), ..samples::incident() })))
}

fn wait(outbox: &Outbox<Entry>, until: impl Fn(&Stats) -> bool) -> Stats {
    let start = Instant::now();
    loop {
        let stats = outbox.stats();
        if until(&stats) {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "{stats:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The collector, when `cargo xtask setup` brought it or it is in the path.
fn rotel() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent()?.join("rotel/rotel/rotel-agent");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::split_paths(&paths).map(|dir| dir.join("rotel-agent"));
    [target].into_iter().chain(named).find(|path| path.is_file())
}

/// A collector that prints what came.
struct Collector {
    child: Child,
    address: String,
    lines: mpsc::Receiver<String>,
}

impl Collector {
    fn start(path: &PathBuf) -> Collector {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (address, grpc) = (free(), free());
        let mut child = Command::new(path)
            .args(["start", "--otlp-http-endpoint", &address, "--otlp-grpc-endpoint", &grpc, "--exporter", "blackhole"])
            .args(["--disable-batching", "--debug-log", "logs", "--debug-log-verbosity", "detailed"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (said, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        let collector = Collector { child, address, lines };
        let start = Instant::now();
        while TcpStream::connect(&collector.address).is_err() {
            assert!(start.elapsed() < PATIENCE, "the collector does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        collector
    }

    /// What it printed, up to a line with this.
    fn until(&self, text: &str) -> String {
        let start = Instant::now();
        let mut all = String::new();
        while !all.contains(text) {
            match self.lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(line) => all.extend([&line, "\n"]),
                Err(e) => panic!("no {text:?} ({e}) in\n{all}"),
            }
        }
        all
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_collector_takes_incidents_and_stops() {
    let Some(path) = rotel() else {
        println!("skipped: no rotel-agent here; `cargo xtask setup` brings it (PyPI: rotel)");
        return;
    };
    let collector = Collector::start(&path);
    let outbox = outbox(&collector.address, 100);
    let hostile = Incident { id: "i-9".into(), summary: "\u{1b}[2J\u{202e}\0".into(), ..samples::bare_incident() };
    outbox.push(incident("i-1"));
    outbox.push(entry(&Output::Incident(Box::new(hostile))));
    outbox.push(entry(&Output::Stop(Box::new(Stop { id: "s-last".into(), ..samples::stop() }))));
    let stats = wait(&outbox, |stats| stats.sent == 3);
    assert_eq!((stats.waiting, stats.dropped, stats.refused, stats.failing), (0, 0, 0, None));
    let said = collector.until("why502.missing");
    println!("{said}");
}
