//! nginx's own words: seen of an nginx that ran before, of one that came later, after a reload, in two containers over one
//! layer once each; given up when they run too often; and nothing is left of them afterwards.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use why502::probes::nginx::functions;
use why502::sources::program::{self, Program};
use why502_tests::guard::{self, Dir, Turn, run, wait};
use why502_tests::launch::Spec;
use why502_tests::nginx::binary;
use why502_tests::pod::{Container, Pod};
use why502_tests::tracer::{self, Tracer};

const LIMIT: Duration = Duration::from_secs(30);
/// For each request of a flood.
const REWRITES: usize = 20;

/// An nginx in a container, whose program is seen through an overlay mount of its own.
struct Overlaid {
    container: Container,
    mount: PathBuf,
    socket: PathBuf,
}

/// The program alone in a layer.
fn layer(dir: &Dir) -> Result<PathBuf> {
    let lower = dir.open_subdir("lower")?;
    std::fs::copy(binary()?, lower.join("nginx")).context("cannot copy nginx")?;
    Ok(lower)
}

/// As a runtime does it. `index=on`: the kernel refuses it while another mount of the same upper layer is alive.
fn overlay(dir: &Dir, lower: &Path, name: &str) -> Result<PathBuf> {
    let [mount, upper, work] = ["mount", "upper", "work"].map(|kind| dir.open_subdir(&format!("{name}-{kind}")));
    let (mount, upper, work) = (mount?, upper?, work?);
    let [l, u, w] = [lower, &upper, &work].map(|p| p.display().to_string());
    let options = format!("index=on,lowerdir={l},upperdir={u},workdir={w}");
    run("mount", &["-t", "overlay", "overlay", "-o", &options, mount.to_str().context("path")?])?;
    Ok(mount)
}

impl Overlaid {
    fn start(pod: &Pod, dir: &Dir, lower: &Path, name: &str) -> Result<Self> {
        let mount = overlay(dir, lower, name)?;
        let base = dir.open_subdir(name)?;
        let (socket, config) = (base.join("socket"), base.join("nginx.conf"));
        let b = base.display();
        // Two lines each in the log, at a level that is of no interest.
        let rewrites = "rewrite ^(.*)$ $1; ".repeat(REWRITES);
        let text = format!(
            "daemon off; worker_processes 1; pid {b}/pid; error_log {b}/error.log notice;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path {b}/body; proxy_temp_path {b}/proxy;\n\
             fastcgi_temp_path {b}/fastcgi; uwsgi_temp_path {b}/uwsgi; scgi_temp_path {b}/scgi;\n\
             server {{ listen unix:{b}/socket; keepalive_requests 1000000; location /gone {{ proxy_pass http://unix:{b}/nobody:/; }}\n\
             location /moved {{ rewrite_log on; {rewrites} return 302 /; }} location / {{ return 200 fine; }} }} }}\n"
        );
        std::fs::write(&config, text)?;
        let argv =
            [mount.join("nginx"), "-c".into(), config, "-p".into(), base.clone(), "-e".into(), base.join("first.log")];
        let container = pod.start(Spec::new(argv))?;
        let works = || UnixStream::connect(&socket).is_ok() && !container.children().is_empty();
        wait("nginx and its worker", LIMIT, works)?;
        Ok(Self { container, mount, socket })
    }

    /// Nothing keeps its mount busy.
    fn end(self) -> Result<()> {
        let Self { container, mount, .. } = self;
        drop(container);
        let free = || run("umount", &[mount.to_str().unwrap_or_default()]).is_ok();
        wait("the container's mount to be free", LIMIT, free)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1).unwrap_or_default().to_owned())
    }

    fn lose(&self, requests: usize) -> Result<()> {
        for _ in 0..requests {
            ensure!(self.get("/gone")? == "502", "no 502");
        }
        Ok(())
    }

    fn worker(&self) -> Result<i32> {
        self.container.children().first().copied().context("no worker")
    }

    /// Both functions of this process have a breakpoint, or (`false`) none of them.
    fn probed(&self, pid: i32, want: bool) -> bool {
        let pid = pid.unsigned_abs();
        let Ok(program) = Program::of(Path::new("/"), pid) else { return false };
        let Ok(places) = program.places(functions(), u64::MAX) else { return false };
        places.iter().all(|p| program::has_breakpoint(Path::new("/"), pid, &program.exe, p) == Some(want))
    }

    fn wait_probed(&self, want: bool) -> Result<()> {
        let what = if want { "breakpoints" } else { "the end of the breakpoints" };
        wait(what, LIMIT, || self.worker().is_ok_and(|pid| self.probed(pid, want)))
    }
}

/// Where overlaid containers are started. Dropped in this order: the pod, its files, the machine's turn.
struct Ground {
    pod: Pod,
    lower: PathBuf,
    dir: Dir,
    _turn: Turn,
}

impl Ground {
    /// `None`, and it says why: the machine cannot do it.
    fn new(name: &str) -> Result<Option<Self>> {
        if let Some(why) = guard::why_not_traced() {
            println!("{name}: skipped: {why}");
            return Ok(None);
        }
        let turn = guard::turn()?;
        let dir = Dir::new()?;
        let lower = layer(&dir)?;
        if let Err(e) = overlay(&dir, &lower, "try") {
            println!("{name}: skipped: no overlay mounts here: {e:#}");
            return Ok(None);
        }
        Ok(Some(Self { pod: Pod::new(name)?, lower, dir, _turn: turn }))
    }

    fn start(&self, name: &str) -> Result<Overlaid> {
        Overlaid::start(&self.pod, &self.dir, &self.lower, name)
    }
}

/// Events of a process: 502 answered, lines about a server that is not there.
fn seen(lines: &[String], pid: i32) -> Result<(usize, usize)> {
    let (mut answers, mut reasons) = (0, 0);
    for line in lines {
        let event: Value = serde_json::from_str(line)?;
        if event["task"]["tgid"] != pid {
            continue;
        }
        match event["kind"].as_str() {
            Some("nginx-error-page") => {
                ensure!(event["status"] == 502, "{line}");
                answers += 1;
            }
            Some("nginx-logged") => {
                ensure!(event["level"] == 3 || event["level"] == 4, "{line}");
                ensure!(event["errno"] == 2 && event["format"] == "connect() to %V failed", "{line}");
                reasons += 1;
            }
            other => bail!("{other:?} in {line}"),
        }
    }
    Ok((answers, reasons))
}

fn trace() -> Result<Tracer> {
    let args = ["trace", "-o", "json", "--uprobes", "on", "--kind", "nginx-logged", "--kind", "nginx-error-page"];
    Tracer::start(&tracer::binary()?, &args.map(AsRef::as_ref))
}

#[test]
fn each_502_of_each_container_once() -> Result<()> {
    let Some(ground) = Ground::new("uprobes")? else { return Ok(()) };
    let before = ground.start("before")?;
    let first = before.worker()?;
    ensure!(before.probed(first, false), "somebody else probes it");

    let trace = trace()?;
    before.wait_probed(true)?;
    before.lose(3)?;
    // Another container over the same layer: another device number, the same file of the kernel's.
    let later = ground.start("later")?;
    later.wait_probed(true)?;
    let second = later.worker()?;
    later.lose(4)?;
    before.lose(1)?;

    before.container.signal(Signal::SIGHUP)?;
    wait("another worker", LIMIT, || before.container.children().iter().any(|pid| *pid != first))?;
    wait("the end of the first worker", LIMIT, || !before.container.children().contains(&first))?;
    let third = before.worker()?;
    before.lose(2)?;

    // The first container goes, and the other one is seen as before.
    before.end()?;
    ensure!(later.probed(second, true), "the other container lost its breakpoints");
    later.lose(2)?;
    // One that comes again is seen again.
    let again = ground.start("again")?;
    again.wait_probed(true)?;
    again.end()?;

    let said = trace.stop()?;
    ensure!(said.status.success(), "{}: {:?}", said.status, said.stderr);
    for (pid, requests) in [(first, 4), (second, 6), (third, 2)] {
        ensure!(
            seen(&said.lines, pid)? == (requests, requests),
            "{pid}, {requests}: {:#?} {:#?}",
            said.lines,
            said.stderr
        );
    }
    ensure!(later.probed(second, false), "a breakpoint is left");
    later.lose(1)
}

#[test]
fn nothing_of_a_container_is_kept() -> Result<()> {
    let Some(ground) = Ground::new("uprobes-kept")? else { return Ok(()) };
    let trace = trace()?;
    let nginx = ground.start("kept")?;
    nginx.wait_probed(true)?;
    nginx.end()?;
    // Refused as long as anything has hold of the overlay's file system.
    wait("its upper layer to be free", LIMIT, || overlay(&ground.dir, &ground.lower, "kept").is_ok())?;
    trace.stop().map(drop)
}

#[test]
fn what_runs_too_often_is_given_up() -> Result<()> {
    let Some(ground) = Ground::new("uprobes-flood")? else { return Ok(()) };
    let nginx = ground.start("flood")?;
    let trace = trace()?;
    let worker = nginx.worker()?;
    nginx.wait_probed(true)?;
    // Redirects, as fast as they go, until that is too often.
    let mut stream = UnixStream::connect(&nginx.socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let batch = "GET /moved HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
    let mut answers = [0; 65536];
    let mut sent = 0;
    while nginx.probed(worker, true) {
        for _ in 0..4 {
            stream.write_all(batch.as_bytes())?;
            // Each answer says `302` once in its first line.
            let mut found = 0;
            while found < 50 {
                let n = stream.read(&mut answers)?;
                ensure!(n > 0, "nginx closed after {sent} requests");
                found += String::from_utf8_lossy(&answers[..n]).matches("HTTP/1.1 302").count();
            }
            sent += 50;
        }
        ensure!(sent < 500_000, "{sent} redirects, and the breakpoints are still there");
    }
    nginx.wait_probed(false)?;
    // A burst is allowed.
    ensure!(sent * (2 * REWRITES + 1) > 20_000, "given up after {sent} redirects");
    let said = trace.stop()?;
    let told = said.stderr.iter().any(|l| l.contains("nginx-uprobes") && l.contains("too often"));
    ensure!(told && said.status.success(), "{:?}", said.stderr);
    Ok(())
}
