//! Incidents and stops at an OpenTelemetry receiver: a real one (the Rotel collector), and a played one that is away, slow or odd.

use crate::collector::{self, Collector};
use crate::samples;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use why502::model::Output;
use why502::model::incident::{Cause, Incident, Link, Stop};
use why502::sinks::otlp::{Endpoint, Entry, Receiver, Settings, entry};
use why502::sinks::outbox::{Outbox, Stats};

const PATIENCE: Duration = Duration::from_secs(60);

fn outbox(address: &str, max: usize) -> Outbox<Entry> {
    let variable = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("x-tenant=shop".into()),
        "OTEL_RESOURCE_ATTRIBUTES" => Some("k8s.cluster.name=prod,k8s.node.name=wrong".into()),
        _ => None,
    };
    let settings = Settings::read(Some(Endpoint::base(&format!("http://{address}")).unwrap()), variable).unwrap();
    Outbox::start("otlp", Receiver::new(settings), max).unwrap()
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

#[test]
fn what_is_not_known_is_left_out() {
    let of = |incident: Incident| entry(&Output::Incident(Box::new(incident)));
    let keys = |entry: &Entry| -> Vec<String> {
        entry.resource.iter().chain(&entry.record.attributes).map(|pair| pair.key.clone()).collect()
    };
    let (full, bare) = (keys(&of(samples::incident())), keys(&of(samples::bare_incident())));
    for key in ["k8s.pod.name", "k8s.container.name", "container.id", "why502.stop", "why502.chain", "why502.age_ms"] {
        assert!(full.iter().any(|k| k == key), "{key}: {full:?}");
        assert!(!bare.iter().any(|k| k == key), "{key}: {bare:?}");
    }
    for key in ["service.name", "host.name", "error.type", "client.address", "server.port", "why502.confidence.value"] {
        assert!(bare.iter().any(|k| k == key), "{key}: {bare:?}");
    }
    assert!(!bare.iter().any(|k| k == "k8s.node.name"), "nothing says that it is one");
    // Who stores them as objects cannot have a value beside fields.
    let stop = keys(&entry(&Output::Stop(Box::new(samples::stop()))));
    for key in full.iter().chain(&stop) {
        let inside =
            full.iter().chain(&stop).find(|k| k.strip_prefix(&**key).is_some_and(|rest| rest.starts_with('.')));
        assert_eq!(inside, None, "{key}");
    }
    let blameless = of(Incident { cause: Cause::ClientAbort, ..samples::incident() }).record;
    assert_eq!((of(samples::incident()).record.severity_number, blameless.severity_number), (17, 9));
    // A clock that was not known is OTLP's unknown, not 1970's first nanoseconds.
    let record = of(Incident { at: "boot+17ns".into(), ..samples::incident() }).record;
    assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (0, 1_795_356_204_118_204_113));
}

#[test]
fn a_record_is_bounded_whatever_names_are() {
    let mut long = samples::incident();
    long.summary = "€".repeat(10_000);
    let link = long.chain[0].clone();
    long.chain = (0..500).map(|n| Link { text: format!("{n}{}", "é".repeat(3_000)), ..link.clone() }).collect();
    let record = entry(&Output::Incident(Box::new(long))).record;
    let size = format!("{record:?}").len();
    assert!(size < 40_000, "{size}");
    assert!(record.attributes.iter().any(|pair| pair.key == "why502.chain"));
}

#[test]
fn a_real_collector_takes_incidents_and_stops() {
    let Some(path) = collector::find() else { return collector::skipped("a real collector") };
    let mut collector = Collector::start(&path, &collector::free_address());
    let outbox = outbox(&collector.address, 100);
    let hostile = Incident { id: "i-9".into(), summary: "\u{1b}[2J\u{202e}\0".into(), ..samples::bare_incident() };
    outbox.push(incident("i-1"));
    outbox.push(entry(&Output::Incident(Box::new(hostile))));
    outbox.push(entry(&Output::Stop(Box::new(Stop { id: "s-last".into(), ..samples::stop() }))));
    let stats = wait(&outbox, |stats| stats.sent == 3);
    assert_eq!((stats.waiting, stats.dropped, stats.refused, stats.failing), (0, 0, 0, None));
    collector.until(&[
        // Whose it is.
        "service.name: Str(web)",
        "service.instance.id: Str(shop.web-7d9f-x2k1.nginx)",
        "k8s.cluster.name: Str(prod)",
        "k8s.namespace.name: Str(shop)",
        "k8s.pod.name: Str(web-7d9f-x2k1)",
        "k8s.pod.uid: Str(11111111-2222-3333-4444-555555555555)",
        "k8s.deployment.name: Str(web)",
        "k8s.node.name: Str(node-1)",
        "container.id: Str(3f2a9c41d0e7",
        // What it is, and when.
        "InstrumentationScope why502",
        "Timestamp: 1795356202118204113",
        "ObservedTimestamp: 1795356204118204113",
        "SEVERITY_NUMBER_ERROR(17)",
        "EventName: why502.incident",
        "event.name: Str(why502.incident)",
        "error.type: Str(nginx-fast-shutdown)",
        "client.address: Str(10.0.9.2)",
        "client.port: Int(51514)",
        "server.address: Str(10.0.3.7)",
        "server.port: Int(80)",
        "why502.confidence.value: Double(0.98)",
        "why502.chain: Slice(Str(the exiting worker closed",
        "why502.id: Str(i-1)",
        "why502.id: Str(i-9)",
        // The stop.
        "EventName: why502.stop",
        "SEVERITY_NUMBER_WARN(13)",
        "why502.id: Str(s-last)",
        "why502.incidents: Int(4)",
    ]);
    let said = &collector.said;
    assert!(!said.contains("http.response.status_code"), "absent is left out:\n{said}");
}

enum Play {
    /// Status, and more headers.
    Answer(&'static str, &'static str),
    /// Closes instead of an answer.
    HangUp,
}

/// A request, and the number of its connection.
struct Came {
    connection: usize,
    at: Instant,
    head: String,
    body: Vec<u8>,
}

/// Answers as told, then always with 200.
fn played(plays: Vec<Play>) -> (String, mpsc::Receiver<Came>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (came, all) = mpsc::channel();
    std::thread::spawn(move || {
        let mut plays = plays.into_iter();
        for (connection, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some((head, body)) = read(&mut stream) {
                if came.send(Came { connection, at: Instant::now(), head, body }).is_err() {
                    return;
                }
                let (status, headers) = match plays.next() {
                    Some(Play::HangUp) => break,
                    Some(Play::Answer(status, headers)) => (status, headers),
                    None => ("200 OK", ""),
                };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n{headers}\r\n");
                if stream.get_mut().write_all(answer.as_bytes()).is_err() || headers.contains("close") {
                    break;
                }
            }
        }
    });
    (address, all)
}

/// A request; `None` at the end of the connection.
fn read(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    let mut body = vec![0; length.trim().parse().ok()?];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

#[test]
fn what_a_receiver_cannot_take_now_is_sent_again() {
    let (address, came) = played(vec![
        Play::Answer("503 Service Unavailable", "retry-after: 1\r\n"),
        Play::Answer("429 Too Many Requests", "retry-after: 0\r\n"),
        Play::HangUp,
        Play::Answer("502 Bad Gateway", "retry-after: 0\r\n"),
        Play::Answer("504 Gateway Timeout", "retry-after: 0\r\n"),
    ]);
    let outbox = outbox(&address, 100);
    outbox.push(incident("i-1"));
    let stats = wait(&outbox, |stats| stats.sent == 1);
    assert_eq!((stats.refused, stats.dropped, stats.waiting, stats.failing), (0, 0, 0, None));
    let all: Vec<Came> = came.try_iter().collect();
    assert!(all.len() >= 6, "{}", all.len());
    assert!(all.iter().all(|one| one.body == all[0].body && !one.body.is_empty()), "the same each time");
    assert!(all[1].at - all[0].at >= Duration::from_secs(1), "as the receiver asked");
    for want in ["post /v1/logs http/1.1\r\n", "content-type: application/x-protobuf\r\n", "x-tenant: shop\r\n"] {
        assert!(all[0].head.contains(want), "{want:?} in {}", all[0].head);
    }
    assert_eq!(all[0].connection, all[1].connection, "a connection is kept");
    assert_ne!(all[1].connection, all[all.len() - 1].connection, "a new one after the receiver hung up");
}

#[test]
fn what_a_receiver_refuses_is_counted_and_said_and_the_next_goes_on() {
    let (address, came) =
        played(vec![Play::Answer("400 Bad Request", ""), Play::Answer("200 OK", "connection: close\r\n")]);
    let outbox = outbox(&address, 100);
    outbox.push(incident("i-1"));
    let stats = wait(&outbox, |stats| stats.refused == 1);
    assert!(stats.failing.is_some_and(|why| why.contains("/v1/logs answers 400")));
    outbox.push(incident("i-2"));
    wait(&outbox, |stats| stats.sent == 1);
    outbox.push(incident("i-3"));
    let stats = outbox.finish(PATIENCE);
    assert_eq!(
        (stats.sent, stats.refused, stats.failures, stats.waiting),
        (2, 1, 0, 0),
        "a closed connection is no failure"
    );
    assert_eq!(came.try_iter().count(), 3);
}

#[test]
fn a_receiver_that_is_away_costs_a_bounded_queue() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let outbox = outbox(&nobody, 10);
    (0..100).for_each(|_| outbox.push(incident("i-1")));
    let stats = wait(&outbox, |stats| stats.failures > 0);
    // Ten wait, and ten at most are on their way.
    assert!(stats.dropped >= 80 && stats.dropped + stats.waiting == 100, "{stats:?}");
    assert!(stats.failing.is_some_and(|why| why.contains("cannot be reached")));
    let left = outbox.finish(Duration::from_millis(50));
    assert_eq!(left.sent, 0);
}
