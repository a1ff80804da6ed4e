//! The live commands of the built binary. They need root and the probes inside (`cargo xtask test`); elsewhere they say
//! that they were skipped.

use crate::schema::{EVENT, check, schema};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

/// Whether this binary can load its probes here; says why not, once.
fn works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let output = Command::new(env!("CARGO_BIN_EXE_why502")).args(["doctor", "-o", "json"]).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        if report["ok"] != true {
            // Past the harness's capture, so that it is seen.
            let _ = writeln!(std::io::stderr(), "skipped: live commands: {}", report["error"]);
        }
        report["ok"] == true
    })
}

/// A running why502 whose stderr was read up to `ready`. Killed when dropped.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// stderr before `ready`.
    before: String,
}

impl Running {
    fn start(args: &[&str], stdout: Stdio) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_why502"));
        let mut child = command.args(args).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut running = Running { child, stderr, before: String::new() };
        loop {
            let mut line = String::new();
            let n = running.stderr.read_line(&mut line).unwrap();
            assert!(n > 0, "ended before `ready`: {}", running.before);
            if line == "ready\n" {
                return running;
            }
            running.before.push_str(&line);
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; gives its status and what it said after `ready`.
    fn end(mut self) -> (ExitStatus, String) {
        let mut after = String::new();
        self.stderr.read_to_string(&mut after).unwrap();
        (self.child.wait().unwrap(), after)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watch_ends_with_a_summary() {
    if !works() {
        return;
    }
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let running = Running::start(&["watch", "-o", "json"], Stdio::null());
        assert!(running.before.lines().all(|line| line.starts_with("why502: degraded (")), "{}", running.before);
        running.signal(signal);
        let (status, after) = running.end();
        assert_eq!(status.code(), Some(0), "{after}");
        let lines: Vec<&str> = after.lines().collect();
        assert_eq!(lines.len(), 3, "{after}");
        assert!(
            lines[0].contains(" s observed, ") && lines[0].contains(" answered (counted in the kernel)"),
            "{after}"
        );
        assert!(lines[1].contains(" incident") && lines[1].contains(" stop"), "{after}");
        assert!(lines[2] == "why502: no records lost" || lines[2].starts_with("why502: records lost: "), "{after}");
    }
}

#[test]
fn trace_prints_what_fits_its_filters_and_nothing_else() {
    if !works() {
        return;
    }
    // A name of our own: other processes of this machine must not be seen.
    let dir = tempfile::tempdir().unwrap();
    let name = format!("it{}", std::process::id());
    let program = dir.path().join(&name);
    std::fs::copy("/bin/sh", &program).unwrap();
    let args = ["trace", "-o", "json", "--comm", &name, "--kind", "execed,exited,signal-generated"];
    let mut running = Running::start(&args, Stdio::piped());
    let status = Command::new(&program).args(["-c", "kill -TERM $$", "why502-arg"]).status().unwrap();
    assert!(!status.success());
    let mut stdout = BufReader::new(running.child.stdout.take().unwrap());
    let (_, validator) = schema(EVENT);
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != "exited") {
        let mut line = String::new();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "ended early: {kinds:?}");
        let event: Value = serde_json::from_str(&line).unwrap();
        check(&validator, &event);
        assert!(event["at"].is_string(), "{event}");
        if event["kind"] == "execed" {
            assert_eq!(event["argv"][3], "why502-arg");
        }
        kinds.push(event["kind"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["execed", "signal-generated", "exited"]);
    // Gone while it runs: noticed at the next line, and a quiet end.
    drop(stdout);
    let ended = loop {
        let _ = Command::new(&program).args(["-c", "exit"]).status().unwrap();
        if let Some(status) = running.child.try_wait().unwrap() {
            break status;
        }
    };
    assert_eq!(ended.code(), Some(0));
    assert!(!running.end().1.contains("pipe"));
}

#[test]
fn what_was_recorded_can_be_explained() {
    if !works() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("live.rec");
    let running = Running::start(&["record", "-o", path.to_str().unwrap(), "--duration", "1s"], Stdio::piped());
    let (status, after) = running.end();
    assert_eq!(status.code(), Some(0), "{after}");
    assert!(after.contains(" inputs written to "), "{after}");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "command lines are for the owner only");
    let output = Command::new(env!("CARGO_BIN_EXE_why502")).arg("explain").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"), "a complete recording has its end mark");
}

/// Killed, a recording is cut, and says so.
#[test]
fn a_killed_recording_is_cut() {
    if !works() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("killed.rec");
    let running = Running::start(&["record", "-o", path.to_str().unwrap()], Stdio::null());
    running.signal(rustix::process::Signal::KILL);
    assert!(!running.end().0.success());
    let output = Command::new(env!("CARGO_BIN_EXE_why502")).arg("explain").arg(&path).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("warning: recording ends ") && stderr.contains("the end of the observation is missing"));
}

/// Whichever way it ends, kill -9 included, none of its programs is left in the kernel.
#[test]
fn nothing_stays_attached() {
    if !works() {
        return;
    }
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let running = Running::start(&["watch"], Stdio::null());
        let programs = programs_of(running.child.id());
        assert!(programs.len() >= 10, "only {programs:?} are loaded");
        running.signal(signal);
        running.end();
        // The kernel frees programs a little after the last descriptor is closed.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let left = || {
            // One that goes while it is looked at is an error.
            let loaded = aya::programs::loaded_programs().filter_map(Result::ok).map(|p| p.id());
            loaded.filter(|id| programs.contains(id)).collect::<Vec<_>>()
        };
        while !left().is_empty() {
            assert!(std::time::Instant::now() < deadline, "after {signal:?} {:?} are still loaded", left());
            std::thread::yield_now();
        }
    }
}

/// Ids of the BPF programs that a process holds.
fn programs_of(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = entries.filter_map(|e| std::fs::read_to_string(e.unwrap().path()).ok());
    let id = |text: String| text.lines().find_map(|l| l.strip_prefix("prog_id:")?.trim().parse().ok());
    texts.filter_map(id).collect()
}

#[test]
fn a_full_disk_is_one_line() {
    if !works() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_why502")).args(["record", "-o", "/dev/full"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.matches("No space left").count(), 1, "{stderr}");
    let missing = Path::new("/nonexistent/dir/x.rec");
    let output = Command::new(env!("CARGO_BIN_EXE_why502")).args(["record", "-o"]).arg(missing).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr.iter().filter(|b| **b == b'\n').count(), 1);
}
