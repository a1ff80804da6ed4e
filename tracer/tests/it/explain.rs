//! `why502 explain` on a real stop: nginx in a container, three requests waiting, SIGTERM, one late connection.
//! The recording was cut down to the inputs of that container.

use crate::schema::{INCIDENT, STOP, check, schema};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn recording() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/nginx-sigterm.rec")
}

fn explain(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_why502"));
    command.arg("explain").args(args).arg(recording()).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_lost_request_and_the_stop_as_json() {
    let output = explain(&["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let (_, incident) = schema(INCIDENT);
    let (_, stop) = schema(STOP);
    let mut causes: BTreeMap<String, u32> = BTreeMap::new();
    let lines = lines(&output);
    for line in &lines {
        if line["type"] == "incident" {
            check(&incident, line);
            *causes.entry(line["cause"].as_str().unwrap().to_owned()).or_default() += 1;
            assert_eq!(line["pod"]["uid"], "11111111-2222-3333-4444-555555555555");
        } else {
            check(&stop, line);
            assert_eq!(line["incidents"], 4);
            assert_eq!(line["signal"], "SIGTERM");
        }
    }
    assert_eq!(lines.len(), 5, "four incidents and one stop");
    assert_eq!(causes, BTreeMap::from([("endpoint-race".into(), 1), ("nginx-fast-shutdown".into(), 3)]));
}

/// php-fpm with process_control_timeout = 2 and requests of 6 s: the first child to go is gone before the others are told.
#[test]
fn a_timeout_of_php_fpm_that_was_too_short() {
    let file = recording().with_file_name("short-control-timeout.rec");
    let output = Command::new(env!("CARGO_BIN_EXE_why502")).args(["explain", "-o", "json"]).arg(file).output().unwrap();
    let lines = lines(&output);
    let of = |cause: &str| lines.iter().filter(|line| line["cause"] == cause).collect::<Vec<_>>();
    let cut = of("grace-period-exceeded");
    assert_eq!((cut.len(), of("fpm-accept-queue-dropped").len()), (4, 4));
    for line in cut {
        assert_eq!(
            (&line["sub_cause"], &line["trigger"]),
            (&"process-control-timeout".into(), &"manual-signal".into())
        );
        assert!(line["confidence"]["value"].as_f64().unwrap() > 0.95, "{line}");
        let rules = line["chain"].as_array().unwrap().iter().map(|l| l["rule"].as_str().unwrap());
        let rules: Vec<&str> = rules.filter(|rule| !rule.starts_with("beside-")).collect();
        assert_eq!(rules[2..], ["killed-by-this-signal", "quit-and-then-term", "master-stops-its-children"]);
        assert_eq!(line["advice"][0]["id"], "fpm-process-control-timeout");
    }
}

#[test]
fn the_same_as_text() {
    let output = explain(&[]);
    let text = str::from_utf8(&output.stdout).unwrap();
    let blocks: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(blocks.len(), 5, "{text}");
    for block in blocks {
        let first = block.lines().next().unwrap();
        assert!(first.starts_with("2026-11-22 21:28:01."), "{first}");
        assert!(block.lines().skip(1).all(|line| line.starts_with("  ")), "{block}");
        assert!(block.lines().all(|line| line.chars().count() <= 100), "{block}");
    }
    assert!(text.contains("  change  - Dockerfile of the nginx image (dockerfile): STOPSIGNAL SIGQUIT "), "{text}");
    assert!(!text.contains('\x1b'), "no colours in a pipe");
    let stderr = str::from_utf8(&output.stderr).unwrap();
    assert!(stderr.contains("4 incidents, 1 stop: endpoint-race 1, nginx-fast-shutdown 3"), "{stderr}");
    assert!(stderr.contains("no records lost"), "{stderr}");
}

#[test]
fn colours_when_asked_for() {
    let painted = |args: &[&str]| explain(args).stdout.contains(&0x1b);
    assert!(painted(&["--color", "always"]));
    assert!(!painted(&["--color", "never"]));
    assert!(!painted(&["--color", "always", "-o", "json"]), "JSON has no colours");
}

#[test]
fn replay_gives_the_same_bytes() {
    for args in [&["-o", "json"][..], &["--all"]] {
        let first = explain(args).stdout;
        assert!(!first.is_empty());
        assert_eq!(explain(args).stdout, first);
    }
}

/// The end was cut off: what was seen before is still explained, since the end closes what is open.
#[test]
fn without_its_last_second() {
    let whole = std::fs::read_to_string(recording()).unwrap();
    let cut: Vec<&str> = whole.lines().take_while(|line| !line.contains("\"kind\":\"reset-received\"")).collect();
    assert!(cut.len() < whole.lines().count());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.rec");
    std::fs::write(&path, cut.join("\n") + "\n0bad").unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_why502")).args(["explain", "-o", "json"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let causes: Vec<Value> = lines(&output).into_iter().filter(|l| l["type"] == "incident").collect();
    assert_eq!(causes.len(), 4, "{causes:#?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: recording ends inside line "));
}

/// `why502 explain … | head -1`.
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let files = vec![recording(); 300];
    let mut child = Command::new(env!("CARGO_BIN_EXE_why502"))
        .arg("explain")
        .args(files)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("unanswered"), "{first}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
