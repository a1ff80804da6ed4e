//! The built binary: streams, exit codes, recordings of every state.

use crate::recording::bytes;
use crate::samples;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn why502() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_why502"));
    command.env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    why502().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// A recording in a directory of its own.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn explain(path: &Path) -> Output {
    why502().arg("explain").arg(path).output().unwrap()
}

#[test]
fn bad_usage_is_2_on_stderr() {
    for args in [
        &["explode"][..],
        &[],
        &["explain"],
        &["watch", "--frobnicate"],
        &["watch", "-o", "yaml"],
        &["record"],
        &["record", "-o", "x", "--duration", "soon"],
        &["trace", "--signal", "SIGNONE"],
        &["trace", "--kind", "no-such-kind"],
        &["trace", "--port", "70000"],
        &["completions", "tcsh"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_are_results() {
    for args in [&["--help"][..], &["watch", "--help"], &["trace", "-h"], &["--version"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
        assert!(text(&output.stdout).lines().all(|line| line.chars().count() <= 100), "{}", text(&output.stdout));
    }
    assert!(text(&run(&["--help"]).stdout).contains("Examples:"));
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("why502"), "{shell}");
    }
}

#[test]
fn a_whole_recording_is_explained() {
    let (_dir, path) = file("whole.rec", &bytes(&samples::inputs()));
    let output = explain(&path);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("4.500 s observed, 22 events: execed 1,"), "{stderr}");
    assert!(stderr.contains("lost: tcp_send_reset/bad-argument 5,"), "{stderr}");
    assert!(!stderr.contains("warning"), "{stderr}");
    assert!(stderr.lines().all(|line| line.starts_with("why502: ")), "{stderr}");
}

#[test]
fn a_cut_recording_is_explained_with_a_warning() {
    let whole = bytes(&samples::inputs());
    let (_dir, path) = file("cut.rec", &whole[..whole.len() - 10]);
    let output = explain(&path);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("cut.rec: warning: recording ends inside line "), "{stderr}");
    assert!(stderr.contains(" inputs read, the end of the observation is missing\n"), "{stderr}");
    // It is the end that is missing, not what was seen.
    assert!(stderr.contains("22 events"), "{stderr}");

    let last = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    let (_dir, path) = file("no-end.rec", &whole[..last]);
    let output = explain(&path);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("without its end mark"), "{}", text(&output.stderr));
}

#[test]
fn a_recording_without_any_input_is_a_failure() {
    for empty in [&b""[..], b"why502-rec", b"why502-recording 0\n"] {
        let (_dir, path) = file("empty.rec", empty);
        let output = explain(&path);
        assert_eq!(output.status.code(), Some(1), "{empty:?}");
        assert!(text(&output.stderr).contains("0 inputs read"), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_damaged_recording_is_explained_up_to_the_damage() {
    let mut damaged = bytes(&samples::inputs());
    let at = damaged.len() - 60;
    damaged[at] ^= 1;
    let (_dir, path) = file("damaged.rec", &damaged);
    let output = explain(&path);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("22 events"), "{stderr}");
    let told = stderr.lines().last().unwrap();
    assert!(told.contains("damaged.rec: line ") && told.contains("is damaged: its checksum is"), "{stderr}");
}

#[test]
fn what_is_no_recording_is_told_in_one_line() {
    let (dir, path) = file("readme", b"# why502\n");
    for (path, wanted) in [
        (path, "not a recording"),
        (dir.path().join("missing"), "No such file"),
        (dir.path().to_path_buf(), "Is a directory"),
    ] {
        let output = explain(&path);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr.contains(wanted) && stderr.lines().count() == 1, "{stderr}");
    }
    let (_dir, path) = file("v1", b"why502-recording 1\n");
    assert!(text(&explain(&path).stderr).contains("a recording of version \"1\"; this why502 reads version 0"));
}

#[test]
fn several_files_are_each_explained() {
    let (_good, good) = file("good.rec", &bytes(&samples::inputs()));
    let (_bad, bad) = file("bad.rec", b"no");
    let output = why502().arg("explain").args([&bad, &good]).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("bad.rec: not a recording") && stderr.contains("good.rec: 4.500 s observed"), "{stderr}");
}

/// A file name may hold anything.
#[test]
fn hostile_file_names_are_escaped() {
    let (_dir, path) = file("\x1b[2J\n.rec", b"no");
    let output = explain(&path);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("\\x1b[2J") && !stderr.contains('\x1b'), "{stderr:?}");
    assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
}

/// Whoever reads stdout may leave at once: no message, exit 0.
#[test]
fn a_closed_stdout_is_a_quiet_end() {
    let (_dir, path) = file("whole.rec", &bytes(&samples::inputs()));
    for args in [&["completions", "bash"][..], &["--help"], &["explain", "--all", path.to_str().unwrap()]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = why502().args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("pipe"), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_full_stdout_is_a_failure() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = why502().args(["completions", "bash"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
}

#[test]
fn a_closed_stderr_is_nobodys_error() {
    let (_dir, path) = file("whole.rec", &bytes(&samples::inputs()));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = why502().arg("explain").arg(&path).stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Without rights every live command refuses with one line, before it touches anything.
#[test]
fn no_rights_is_one_line() {
    if !is_root() {
        return skip("only root can give up its rights to try this");
    }
    // A copy that another user may execute, wherever the build lies.
    let dir =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let program = dir.path().join("why502");
    // By another process: a descriptor that we write with could be inherited by a program that a test beside this one is
    // just starting, and then the copy is "text file busy".
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_why502")).arg(&program).status().unwrap();
    assert!(copied.success());
    let out = dir.path().join("kept.rec");
    fs::write(&out, "kept").unwrap();
    let record = ["record", "-o", out.to_str().unwrap()];
    for args in [&["watch"][..], &["trace"], &record, &["doctor"]] {
        let output = Command::new(&program).args(args).uid(65534).gid(65534).current_dir("/").output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        let told = "cannot load eBPF programs: CAP_BPF and CAP_PERFMON are missing (run as root, ";
        if args == ["doctor"] {
            assert!(text(&output.stdout).contains(told), "{}", text(&output.stdout));
        } else {
            assert!(stderr.starts_with(&format!("why502: {told}")) && stderr.lines().count() == 1, "{stderr}");
            assert!(output.stdout.is_empty());
        }
    }
    assert_eq!(fs::read_to_string(&out).unwrap(), "kept", "a refused record must not replace its file");
}

/// A kernel without BTF, as far as a mount can make one.
#[test]
fn no_btf_is_one_line() {
    if !is_root() || !Path::new("/sys/kernel/btf").is_dir() {
        return skip("it takes root and a kernel with BTF to hide it");
    }
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" watch";
    let output =
        Command::new("unshare").args(["-m", "sh", "-c", script]).arg(env!("CARGO_BIN_EXE_why502")).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("why502: this kernel has no BTF (/sys/kernel/btf/vmlinux is missing)"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// doctor's JSON is one line on stdout whatever the host is.
#[test]
fn doctor_always_reports() {
    let output = run(&["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 1);
    assert_eq!(report["type"], "doctor");
    assert_eq!(output.status.code(), Some(if report["ok"] == true { 0 } else { 1 }), "{report:#}");
    assert_eq!(report["error"].is_null(), report["ok"] == true, "{report:#}");
    assert!(report["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
}

/// What `serve` is to be run with, and what to do where it would not start.
#[test]
fn doctor_looks_where_serve_would() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store").display().to_string();
    let output = run(&["doctor", "--listen", &at, "--store", &store]);
    let output = text(&output.stdout);
    let listen = format!("listen        {at} in use by another program: --listen takes another address\n");
    assert!(output.contains(&listen), "{output}");
    assert!(output.contains(&format!("store         {store} will be made; ")), "{output}");
    assert!(!Path::new(&store).exists(), "doctor leaves nothing behind");
    fs::write(&store, "").unwrap();
    let output = run(&["doctor", "--store", &store, "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["serve"]["store"]["state"], "unusable", "{report:#}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn skip(why: &str) {
    // Past the harness's capture, so that it is seen.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
