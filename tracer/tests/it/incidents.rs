//! `why502 incidents` on a directory and on a running server, and what `serve` refuses.

use crate::samples::{bare_incident, incident};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output as Ended, Stdio};
use std::sync::Arc;
use std::time::Duration;
use why502::model::Output;
use why502::model::incident::Incident;
use why502::serve::{Bounds, Server, State};
use why502::sinks::{json, text};
use why502::store::{Limits, Now, Store, sink};

const PATIENCE: Duration = Duration::from_secs(60);

fn why502(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_why502"));
    command.args(args).env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Ended {
    why502(args).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let ended = run(args);
    assert!(ended.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

fn outputs() -> [Output; 2] {
    let hostile = Incident { summary: "\u{1b}[2Jgone\u{202e}".into(), ..bare_incident() };
    [incident(), hostile].map(|incident| Output::Incident(Box::new(incident)))
}

fn store(dir: &Path) -> Store {
    let now = || Now { boot_id: "b".into(), boot_s: 1, wall_s: 1 };
    let store = Store::start(dir, Limits::default(), sink::WAITING, now).unwrap();
    outputs().iter().for_each(|output| store.push(json::output(output).unwrap()));
    store
}

#[test]
fn a_hostile_path_is_written_out_once() {
    let mut incident = incident();
    incident.server.path = Some("/run/\u{1b}[2J.sock".into());
    let block = text::output(&Output::Incident(Box::new(incident)), text::Paint { on: false });
    assert!(block.contains("-> unix:/run/\\x1b[2J.sock"), "{block}");
}

#[test]
fn a_directory_prints_what_watch_printed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    prints(&store, &["--store", dir.path().to_str().unwrap()]);
    assert!(store.finish(PATIENCE));
}

#[test]
fn an_agent_prints_what_watch_printed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let state = Arc::new(State::new(store.view()));
    let server = Server::start(TcpListener::bind("127.0.0.1:0").unwrap(), state, Bounds::default()).unwrap();
    prints(&store, &["--url", &format!("http://{}", server.address)]);
    server.stop();
    assert!(store.finish(PATIENCE));
}

fn prints(store: &Store, from: &[&str]) {
    let begin = std::time::Instant::now();
    while *store.view().durable.borrow() < 2 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let lines: String = outputs().iter().map(|output| json::output(output).unwrap() + "\n").collect();
    let blocks: String = outputs().iter().map(|output| text::output(output, text::Paint { on: false })).collect();
    let with = |more: &[&str]| stdout(&[&["incidents"], from, more].concat());
    assert_eq!(with(&["-o", "json"]), lines);
    assert_eq!(with(&[]), blocks);
    assert_eq!(with(&["--cause", "unexplained", "-o", "json"]).lines().count(), 1);
    assert_eq!(with(&["--workload", "web", "--namespace", "shop", "-o", "json"]).lines().count(), 1);
    assert_eq!(with(&["--kind", "stops"]), "");
    assert_eq!(with(&["--since", "2026-11-22T14:03:22.2Z"]), "");
    let ended = run(&[&["incidents"], from, &["--limit", "1", "-o", "json"]].concat());
    assert!(String::from_utf8_lossy(&ended.stderr).contains("more than the newest 1"), "{ended:?}");

    let follow = [&["incidents"], from, &["--follow", "-o", "json"]].concat();
    let mut child = why502(&follow).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || said.next().unwrap().unwrap() + "\n";
    assert_eq!(next() + &next(), lines);
    let more = json::output(&Output::Incident(Box::new(incident()))).unwrap().replace("i-8f1f6a0c-17", "the-next");
    store.push(more.clone());
    assert_eq!(next(), more + "\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn bad_usage_and_nothing_there() {
    for args in [
        &["incidents", "--limit", "0"][..],
        &["incidents", "--cause", "bad-weather"],
        &["incidents", "--since", "tomorrow"],
        &["incidents", "--url", "localhost"],
        &["incidents", "--url", "http://x:1", "--store", "x"],
        &["serve", "--listen", "everywhere"],
        &["serve", "--store-size", "1"],
        &["serve", "--store-age", "1s"],
        &["serve", "--otlp", "https://collector"],
    ] {
        let ended = run(args);
        assert_eq!(ended.status.code(), Some(2), "{args:?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{args:?}");
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nothing");
    // What a variable says wrong is told before anything is made.
    let mut serve = why502(&["serve", "--otlp", "--store", nowhere.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    let ended = serve.env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector").output().unwrap();
    assert!(ended.status.code() == Some(1) && !nowhere.exists(), "{ended:?}");
    for args in [["--url", &format!("http://{free}")], ["--store", nowhere.to_str().unwrap()]] {
        let ended = run(&[&["incidents"], &args[..]].concat());
        assert_eq!(ended.status.code(), Some(1), "{args:?}");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(stderr.starts_with("why502: ") && stderr.lines().count() == 1, "{stderr}");
    }
}

/// What people see first: 24 to 50 lines are a terminal.
#[test]
fn help_fits_in_a_screen() {
    for (command, wanted) in ["serve", "incidents", "kubectl"].into_iter().flat_map(|c| [(c, "-h"), (c, "--help")]) {
        let help = stdout(&[command, wanted]);
        assert!(help.contains("Examples:"), "{help}");
        assert!(help.lines().count() <= 48, "{command}: {} lines\n{help}", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}
