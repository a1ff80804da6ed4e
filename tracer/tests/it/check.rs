//! `why502 check` on configurations as they are found: Debian's, the official images', a Deployment with the usual
//! mistakes and one without.

use crate::schema;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const FINDING: &str = include_str!("../../../docs/schema/finding.json");

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/check")
}

fn why502(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_why502"));
    command.env_remove("NO_COLOR").current_dir(dir()).stdin(Stdio::null()).arg("check").args(args);
    command
}

fn run(args: &[&str]) -> Output {
    why502(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The lines of JSON, each against the schema.
fn lines(args: &[&str]) -> Vec<Value> {
    let output = run(&[&["-o", "json"], args].concat());
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let (_, validator) = schema::schema(FINDING);
    let parse = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let all: Vec<Value> = text(&output.stdout).lines().map(parse).collect();
    all.iter().for_each(|line| schema::check(&validator, line));
    let found = all.len() - 1;
    assert_eq!(output.status.code(), Some(i32::from(found > 0)));
    assert_eq!(all[found]["type"], "check");
    let counted = all[found]["will_lose"].as_u64().unwrap() + all[found]["may_lose"].as_u64().unwrap();
    assert_eq!(counted, found as u64);
    all
}

/// `cause severity file:line` of each finding.
fn findings(args: &[&str]) -> Vec<String> {
    let all = lines(args);
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let one = |f: &Value| {
        let at = &f["at"];
        let line = at["line"].as_u64().map_or(String::new(), |line| format!(":{line}"));
        let place = if at.is_null() { String::new() } else { format!(" {}{line}", word(&at["file"])) };
        format!("{} {}{place}", word(&f["cause"]), word(&f["severity"]))
    };
    all.iter().filter(|f| f["type"] == "finding").map(one).collect()
}

const PHP_CONF: &[&str] = &["--fpm", "docker-fpm.conf", "--nginx", "official-nginx-T.txt"];

#[test]
fn a_sound_pod_is_clean() {
    let args = [&["--spec", "clean-pod.yaml", "--longest-request", "25"], PHP_CONF].concat();
    let all = lines(&args);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0]["not_checked"], Value::Array(vec![]));
    let output = run(&args);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "  found   nothing: as far as it is given here, the next stop loses no request\n");
    // One second less, and it is not.
    let args = [&["--spec", "clean-pod.yaml", "--longest-request", "31"], PHP_CONF].concat();
    assert_eq!(findings(&args), ["grace-period-exceeded will-lose clean-pod.yaml:9"]);
}

#[test]
fn the_schema_is_strict() {
    let args = ["--spec", "mistakes-pod.yaml", "--dockerfile", "nginx.Dockerfile", "--fpm", "docker-fpm.conf"];
    let all = lines(&args);
    let finding = all.iter().find(|f| !f["advice"].as_array().unwrap().is_empty() && f["at"]["line"].is_u64()).unwrap();
    schema::strict(FINDING, &[finding.clone(), all.last().unwrap().clone()]);
}

#[test]
fn the_usual_mistakes() {
    let args = ["--spec", "mistakes-pod.yaml", "--dockerfile", "nginx.Dockerfile", "--dockerfile", "php.Dockerfile"];
    let args = [&args[..], &["--nginx", "debian-nginx-T.txt", "--fpm", "debian-fpm-tt.txt"]].concat();
    assert_eq!(
        findings(&args),
        [
            "prestop-failed will-lose mistakes-pod.yaml:14",
            "nginx-fast-shutdown will-lose nginx.Dockerfile:8",
            "endpoint-race will-lose mistakes-pod.yaml:14",
            "keepalive-race-on-shutdown may-lose mistakes-pod.yaml:14",
            "nginx-accept-queue-dropped may-lose mistakes-pod.yaml:14",
            "fpm-fast-shutdown may-lose php.Dockerfile:3",
            "fpm-not-listening may-lose mistakes-pod.yaml:16",
            "fpm-accept-queue-dropped may-lose mistakes-pod.yaml:16",
        ]
    );
}

#[test]
fn text_is_aligned_and_plain_in_a_pipe() {
    let args = ["--dockerfile", "nginx.Dockerfile", "--grace", "10", "--longest-request", "20"];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1));
    let out = text(&output.stdout);
    let want = "\
will-lose  nginx-fast-shutdown
  at      nginx.Dockerfile:8
  why     it is stopped with SIGTERM, the default, which nginx takes as \"drop everything now\": every
          request under way is cut
  change  stopsignal-sigquit, prestop-sleep, grace-period
  missing pod-spec: a preStop hook may do something before the stop signal

  found   1 that will lose requests
  change  - Dockerfile of the nginx image (dockerfile): STOPSIGNAL SIGQUIT";
    assert!(out.starts_with(want), "{out}");
    assert!(out.contains("20 s longest request"), "{out}");
    let last = "          not checked: nginx-conf: worker-shutdown-timeout, keepalive-race\n";
    assert!(out.ends_with(last), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    let colored = run(&[&["--color", "always"], &args[..]].concat());
    assert!(text(&colored.stdout).contains("\x1b[1;31mwill-lose"));
}

#[test]
fn the_images_configurations() {
    let images = ["--image", "nginx=official-nginx-image.json", "--image", "php=official-php-image.json"];
    let spec = ["--spec", "mistakes-pod.yaml", "--longest-request", "5"];
    let found = findings(&[&images[..], &spec, PHP_CONF].concat());
    assert_eq!(
        found,
        [
            "prestop-failed will-lose mistakes-pod.yaml:14",
            "endpoint-race will-lose mistakes-pod.yaml:14",
            "fpm-control-timeout-zero will-lose docker-fpm.conf",
            "keepalive-race-on-shutdown may-lose mistakes-pod.yaml:14",
            "nginx-accept-queue-dropped may-lose mistakes-pod.yaml:14",
            "fpm-not-listening may-lose mistakes-pod.yaml:16",
            "fpm-accept-queue-dropped may-lose mistakes-pod.yaml:16",
        ]
    );
    // Unnamed, they are told apart by what they run.
    let unnamed = ["--image", "official-nginx-image.json", "--image", "official-php-image.json"];
    assert_eq!(findings(&[&unnamed[..], &spec, PHP_CONF].concat()), found);
    assert_eq!(findings(&["--image", "official-nginx-image.json"]), [""; 0]);
}

#[test]
fn an_entrypoint_script_beside_its_dockerfile() {
    let found = findings(&["--dockerfile", "start.Dockerfile"]);
    assert_eq!(found, ["pid1-ignores-stop-signal will-lose start.Dockerfile:5"]);
}

#[test]
fn supervisord_with_debian_configurations() {
    let args = ["--supervisord", "supervisord.conf", "--nginx", "debian-nginx-T.txt", "--fpm", "debian-www.conf"];
    assert_eq!(findings(&args), ["supervisor-stop-order will-lose supervisord.conf:10"]);
}

#[test]
fn standard_input_is_read_once() {
    let mut child =
        why502(&["--nginx", "-", "-o", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let conf = b"worker_shutdown_timeout 5s; http { server { location / { proxy_pass http://a; } } }";
    child.stdin.take().unwrap().write_all(conf).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\"file\":\"(stdin)\",\"line\":1"), "{}", text(&output.stdout));
    let twice = run(&["--nginx", "-", "--fpm", "-"]);
    assert_eq!(
        (twice.status.code(), text(&twice.stderr)),
        (Some(2), "why502: only one FILE can be - (standard input)\n")
    );
}

/// A file of its own, and what is said of it.
fn refused(option: &str, content: &[u8], wanted: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    std::fs::write(&path, content).unwrap();
    let output = run(&[option, path.to_str().unwrap()]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.contains(wanted) && stderr.lines().count() == 1, "{stderr}");
    assert!(!stderr.trim_end().contains(|c: char| c.is_control()), "{stderr:?}");
}

#[test]
fn bad_input_is_2_with_file_and_line() {
    refused("--nginx", b"http {\n  server {\n", "input:2: unexpected end of the file, block \"server\" is not closed");
    refused("--nginx", b"a \x1b[31m\n\n}", "unexpected \"}\", \";\" is missing after \"a\"");
    refused("--nginx", b"worker_shutdown_timeout \x1b[31m;", "is not a time");
    refused(
        "--fpm",
        b"[global]\nprocess_control_timeout = x\n",
        "input:2: process_control_timeout \"x\" is not a time",
    );
    refused("--supervisord", b"[program:x]\nstopsignal=\x1b[31m\n", "is not a signal");
    refused("--dockerfile", b"hello\n", "input:1: \"HELLO\" before the first FROM: not a Dockerfile");
    refused("--image", b"{", "input:1: not JSON");
    refused("--spec", b"kind: Pod\nspec:\n\tx: 1\n", "input:3: ");
    refused("--spec", b"kind: Service\n", "no pod, and nothing that makes pods");
    refused("--nginx", &vec![b'#'; (4 << 20) + 1], "larger than 4 MiB");
    let output = run(&["--nginx", "no-such-file"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("why502: cannot read no-such-file: No such file"));
    let output = run(&["--pid", "4294967295"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), "why502: there is no process 4294967295\n"));
    let output = run(&["--spec", "mistakes-pod.yaml", "--dockerfile", "db=php.Dockerfile"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("which container is it of?"), "{}", text(&output.stderr));
}

#[test]
fn hostile_names_are_written_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod.yaml");
    let pod =
        "kind: Pod\nmetadata: {name: \"\\e[31mred\"}\nspec: {containers: [{name: \"\\u202egnp\", image: nginx}]}\n";
    std::fs::write(&path, pod).unwrap();
    let output = run(&["--spec", path.to_str().unwrap()]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("Pod/\\x1b[31mred, container \\u{202e}gnp"), "{out}");
}

#[test]
fn help_has_examples_and_bad_usage_is_2() {
    let help = run(&["--help"]);
    let out = text(&help.stdout);
    assert_eq!(help.status.code(), Some(0));
    assert!(out.contains("Examples:") && out.contains("Exit codes:"), "{out}");
    assert!(out.lines().count() <= 34 && out.lines().all(|line| line.chars().count() <= 100), "{out}");
    for args in [&[][..], &["--longest-request", "5"], &["--pid", "x"], &["--pid", "1", "--container", "a"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

/// docs/check.md has a section for every cause that a rule gives, docs/events.md a word for every member.
#[test]
fn everything_is_documented() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/rules");
    let code: String = std::fs::read_dir(rules)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("tests.rs"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let page = include_str!("../../../docs/check.md");
    let mut given = 0;
    for cause in why502::model::incident::Cause::ALL {
        if code.contains(&format!("Cause::{cause:?},")) || code.contains(&format!("(Cause::{cause:?}")) {
            given += 1;
            assert!(page.contains(&format!("`{cause}`")), "{cause}");
        }
    }
    assert!(given >= 15, "{given}");
    let events = include_str!("../../../docs/events.md");
    for member in ["severity", "workload", "at", "will_lose", "may_lose", "not_checked"] {
        assert!(events.contains(&format!("`{member}`")), "{member}");
    }
}
