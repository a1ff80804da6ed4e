//! The server in this process, with clients that are plain sockets: what they send and take is what a test says.

use super::client::{Agent, ClientError};
use super::*;
use crate::model::Input;
use crate::model::input::{Degraded, HookState, HookStatus, Started};
use crate::store::{Limits, Now, Query, Store, sink};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::ControlFlow;
use std::time::Instant;

const SLOW: Duration = Duration::from_secs(60);

struct Site {
    _dir: tempfile::TempDir,
    store: Store,
    state: Arc<State>,
    server: Server,
}

fn record(n: u64) -> String {
    let (kind, more) = if n.is_multiple_of(10) { ("stop", "") } else { ("incident", r#""cause":"endpoint-race","#) };
    format!(
        r#"{{"type":"{kind}","id":"{n}","at":"2026-11-22T14:03:00.{n:09}Z",{more}"stop":"{}","pod":{{"namespace":"shop","name":"w\u001b[31m","workload":"Deployment/web"}}}}"#,
        n.div_ceil(10) * 10
    )
}

fn site(records: u64, bounds: Bounds) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let now = || Now { boot_id: "b".into(), boot_s: 1, wall_s: 1 };
    let store = Store::start(dir.path(), Limits::default(), sink::WAITING, now).unwrap();
    (1..=records).for_each(|n| store.push(record(n)));
    let state = Arc::new(State::new(store.view()));
    wait("the store", || *state.store.durable.borrow() == records);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(listener, Arc::clone(&state), bounds).unwrap();
    Site { _dir: dir, store, state, server }
}

fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < SLOW, "not in a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Site {
    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.address).unwrap();
        stream.set_read_timeout(Some(SLOW)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// The whole answer of a request that is the connection's last.
    fn ask(&self, request: &str) -> String {
        let mut text = String::new();
        self.send(request).read_to_string(&mut text).unwrap();
        text
    }

    fn get(&self, path: &str) -> (u16, String) {
        let text = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn json(&self, path: &str) -> serde_json::Value {
        let (code, body) = self.get(path);
        assert_eq!(code, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}\n{page}")).parse().unwrap()
    }

    /// A stream, after its header.
    fn follow(&self, path: &str, accept: &str) -> BufReader<TcpStream> {
        let request = format!("GET {path} HTTP/1.0\r\nAccept: {accept}\r\n\r\n");
        let mut stream = BufReader::new(self.send(&request));
        let head: Vec<String> =
            std::iter::from_fn(|| Some(line(&mut stream)).filter(|line| !line.is_empty())).collect();
        assert!(head[0].contains(" 200 "), "{head:?}");
        stream
    }

    fn agent(&self) -> Agent {
        Agent::new(format!("http://{}", self.server.address).parse().unwrap()).unwrap()
    }

    fn end(self) {
        self.server.stop();
        assert!(self.store.finish(SLOW));
    }
}

fn line(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line.trim_end_matches(['\r', '\n']).to_owned()
}

fn ids(page: &serde_json::Value) -> Vec<u64> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn lists_with_filters_and_cursors() {
    let site = site(25, Bounds::default());
    let page = site.json("/records?limit=3");
    assert_eq!((ids(&page), page["more"] == true, page["cursor"].as_u64()), (vec![23, 24, 25], true, Some(25)));
    assert_eq!(ids(&site.json(&format!("/records?limit=3&before={}", page["before"]))), [20, 21, 22]);
    let page = site.json("/incidents?limit=3&after=8");
    assert_eq!((ids(&page), page["cursor"].as_u64()), (vec![9, 11, 12], Some(12)));
    assert_eq!(ids(&site.json("/stops")), [10, 20]);
    assert_eq!(ids(&site.json("/stops?workload=web&namespace=shop&pod=w%1b%5B31m")), [10, 20]);
    assert_eq!(ids(&site.json("/stops?namespace=other")), [0; 0]);
    assert_eq!(ids(&site.json("/records?after=25")), [0; 0]);
    let stop = site.json("/stops/20");
    assert_eq!((stop["stop"]["id"].as_str(), stop["incidents"].as_array().unwrap().len()), (Some("20"), 9));
    site.end();
}

#[test]
fn what_is_wrong_is_told() {
    let site = site(1, Bounds::default());
    for (path, code, says) in [
        ("/incidents?limit=zero", 400, "1 to 1000"),
        ("/incidents?colour=red", 400, "namespace, pod"),
        ("/incidents?cause=nonsense", 400, "endpoint-race"),
        ("/incidents?after=2", 400, "without after"),
        ("/incidents?pod=a%00%1b%5B31m&x", 400, "\"x\" is not known"),
        ("/stops/nothing", 404, "no stop"),
        ("/nothing", 404, "/ lists"),
        ("/../../etc/passwd", 404, "/ lists"),
        ("/stops/..%2f..%2fetc", 404, "no stop"),
        ("/incidents/nothing", 404, "no such incident"),
        ("/incidents/", 404, "/ lists"),
    ] {
        let (found, body) = site.get(path);
        assert_eq!(found, code, "{path}: {body}");
        assert!(body.contains(says) && body.lines().count() == 1, "{path}: {body}");
        assert!(!body.contains('\x1b'), "{body:?}");
    }
    let post = site.ask("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405 ") && post.to_lowercase().contains("allow: get, head"), "{post}");
    let head = site.ask("HEAD /incidents HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for target in ["*", "localhost", "localhost:9502"] {
        let odd = site.ask(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert!(odd.starts_with("HTTP/1.1 404 "), "{target}: {odd}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(site.server.address).unwrap();
    // It may be closed before it has taken everything.
    let _ = stream.write_all(long.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&text));
    site.end();
}

#[test]
fn pages_for_browsers_and_lists_for_programs() {
    let site = site(1, Bounds::default());
    let ask = |path: &str, more: &str| site.ask(&format!("GET {path} HTTP/1.0\r\n{more}\r\n"));
    let page = ask("/", "Accept: application/xhtml+xml, text/html;q=0.9\r\n");
    let head = page.split("\r\n\r\n").next().unwrap().to_lowercase();
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'self'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "vary: accept",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    // The record of this test is none of this version.
    assert!(page.contains("1 records are of another version") && page.contains("It is starting"), "{page}");
    assert!(ask("/", "Accept: */*\r\n").contains("/healthz       200"));
    assert!(ask("/style.css", "").to_lowercase().contains("content-type: text/css"));
    let wrong = ask("/?cause=nonsense", "Accept: text/html\r\n");
    assert!(
        wrong.contains(" 400 ") && wrong.contains("no cause is called") && !wrong.contains("Nothing here"),
        "{wrong}"
    );
    assert!(ask("/stop/17", "").contains(" 404 ") && ask("/incident/17", "").contains(" 404 "));
    let (code, json) = site.get("/incidents/1");
    assert_eq!((code, json), (200, record(1) + "\n"));
    site.end();
}

#[test]
fn a_name_that_somebody_else_gives_to_this_address_is_turned_away() {
    let site = site(1, Bounds::default());
    let code = |host: &str| {
        let text = site.ask(&format!("GET /incidents HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        text.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for host in ["localhost", "LOCALHOST:9502", "127.0.0.1", "127.0.0.1:1", "[::1]:9502", "10.1.2.3"] {
        assert_eq!(code(host), 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:9502", "localhost.evil.example", "x@evil.example", ""] {
        assert!([400, 403].contains(&code(host)), "{host}");
    }
    site.end();
}

fn started(hook: HookState) -> Input {
    Input::Started(Started {
        at: 1,
        version: "0".into(),
        node: "n".into(),
        boot_id: "b".into(),
        kernel: "6.18".into(),
        hooks: vec![HookStatus { hook: "signal_generate".into(), state: hook }],
        degraded: Vec::new(),
        reset_reasons: Vec::new(),
        host_netns: 0,
        host_pidns: 0,
    })
}

#[test]
fn health_and_readiness() {
    let site = site(0, Bounds { still: Duration::from_millis(1), ..Bounds::default() });
    assert_eq!(site.json("/healthz")["status"], "starting");
    assert_eq!(site.get("/readyz").0, 503);
    site.state.tally().input(&started(HookState::Attached));
    wait("standing still", || site.get("/healthz").0 == 503);
    site.end();

    let site = self::site(0, Bounds::default());
    site.state.tally().input(&started(HookState::Attached));
    site.state.tally().input(&Input::Ready { at: 2 });
    assert_eq!(site.json("/healthz")["status"], "ok");
    assert_eq!(site.get("/readyz"), (200, "ready\n".into()));
    let page = site.get("/metrics").1;
    assert!(page.contains("why502_probe_status{hook=\"signal_generate\",status=\"attached\"} 1\n"), "{page}");
    assert!(page.contains("why502_build_info{version=\"0\",kernel=\"6.18\",node=\"n\"} 1\n"), "{page}");
    site.state.tally().input(&started(HookState::Failed { why: "x".into() }));
    let health = site.json("/healthz");
    assert_eq!((&health["status"], &health["degraded"][0]), (&"degraded".into(), &"hook signal_generate".into()));
    // What no verdict needs is told, and is not worth an alarm.
    let mut lacking = started(HookState::Attached);
    let lack = |id: &str| Degraded { id: id.into(), text: String::new() };
    if let Input::Started(started) = &mut lacking {
        started.degraded = vec![lack("no-tracefs"), lack("no-nginx-uprobes")];
    }
    site.state.tally().input(&lacking);
    let health = site.json("/healthz");
    assert_eq!((&health["status"], health["lacks"].as_array().unwrap().len()), (&"ok".into(), 2), "{health}");
    if let Input::Started(started) = &mut lacking {
        started.degraded.push(lack("no-reply-resets"));
    }
    site.state.tally().input(&lacking);
    let health = site.json("/healthz");
    assert_eq!((&health["status"], &health["degraded"]), (&"degraded".into(), &serde_json::json!(["no-reply-resets"])));
    site.state.tally().input(&Input::Stopped { at: 3 });
    assert_eq!(site.get("/readyz").0, 503);
    site.end();
}

#[test]
fn streams_give_what_comes_and_can_be_taken_up_again() {
    let site = site(3, Bounds { heartbeat: Duration::from_millis(20), ..Bounds::default() });
    let mut lines = site.follow("/incidents?follow=1", "*/*");
    let mut events = site.follow("/records?follow=1&after=2", "text/event-stream");
    assert_eq!([line(&mut events), line(&mut events)], ["id: 3".into(), format!("data: {}", record(3))]);
    assert_eq!(line(&mut events), "");
    assert_eq!(line(&mut events), ":", "it lives");
    site.store.push(record(4));
    let mut next = || loop {
        let line = line(&mut lines);
        if !line.is_empty() {
            return line;
        }
    };
    assert_eq!(next(), record(4), "from now on");
    let mut data = |prefix: &str| loop {
        let line = line(&mut events);
        if let Some(rest) = line.strip_prefix(prefix) {
            return rest.to_owned();
        }
    };
    assert_eq!((data("id: "), data("data: ")), ("4".into(), record(4)));

    let agent = site.agent();
    let page = agent.page(&Query { limit: Some(2), ..Query::default() }).unwrap();
    assert_eq!((page.items.len(), page.cursor, page.items[1].get()), (2, 4, &*record(4)));
    site.store.push(record(5));
    let mut seen = Vec::new();
    let query = Query { after: Some(3), ..Query::default() };
    let ended = agent.follow(&query, |seq, json| -> Result<_, ClientError> {
        seen.push((seq, json.to_owned()));
        Ok(if seq == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    assert_eq!(ended.unwrap(), None);
    assert_eq!(seen, [(4, record(4)), (5, record(5))]);
    let error = agent.page(&Query { after: Some(99), ..Query::default() }).unwrap_err();
    assert!(error.to_string().contains("answers 400: cursor 99"), "{error}");

    // The end of the agent is the end of its streams.
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        events.read_to_string(&mut rest).unwrap();
    });
    site.end();
    reader.join().unwrap();
}

#[test]
fn slow_and_hanging_clients_hold_nobody_up() {
    let bounds = Bounds {
        connections: 8,
        streams: 2,
        header_time: Duration::from_millis(300),
        write_time: Duration::from_millis(300),
        ..Bounds::default()
    };
    let site = site(0, bounds);
    // Half a header, nothing, and a connection that is kept for later.
    let mut half = site.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-");
    let mut none = site.send("");
    let mut idle = site.send("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for stream in [&mut half, &mut none, &mut idle] {
        let mut rest = Vec::new();
        // Closed, with or without an answer, and not after a minute.
        let _ = stream.read_to_end(&mut rest);
    }

    // Streams that nobody reads, with more than a socket holds.
    let big = format!(r#"{{"type":"incident","id":"1","at":"2026","pad":"{}"}}"#, "x".repeat(1 << 20));
    let hang = || site.send("GET /incidents?follow=1&after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _hanging = [hang(), hang()];
    wait("two streams", || site.get("/incidents?follow=1").0 == 503);
    for n in 1..=20 {
        let begin = Instant::now();
        site.store.push(big.clone());
        assert!(begin.elapsed() < Duration::from_secs(5));
        wait("the record", || *site.state.store.durable.borrow() == n);
        assert!(site.get("/metrics").1.contains("why502_store_ok 1"));
    }
    assert!(site.metric("why502_http_refused_total{reason=\"streams\"}") >= 1.0);
    wait("the hanging ones to be cut off", || site.metric("why502_http_connections") == 1.0);
    let mut again = site.follow("/incidents?follow=1&after=19", "*/*");
    assert_eq!(line(&mut again).len(), big.len());
    drop(again);
    site.end();
}

#[test]
fn connections_are_bounded() {
    let site = site(0, Bounds { connections: 4, ..Bounds::default() });
    let mut held: Vec<TcpStream> = (0..4).map(|_| site.send("")).collect();
    wait("a refusal", || {
        let mut stream = site.send("GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        text.is_empty()
    });
    let one = held.pop().unwrap();
    one.shutdown(Shutdown::Both).unwrap();
    drop(one);
    wait("room", || {
        let mut stream = site.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut text = String::new();
        stream.read_to_string(&mut text).is_ok() && text.contains("why502_http_refused_total{reason=\"connections\"}")
    });
    drop(held);
    site.end();
}
