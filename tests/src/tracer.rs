//! Starts why502 beside a scenario, and reads what it says.

use crate::guard;
use crate::ledger::Claim;
use crate::site::Ground;
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use why502::model::incident::{Incident, Stop};

/// The binary that `WHY502_BIN` names.
pub fn binary() -> Result<PathBuf> {
    std::env::var_os("WHY502_BIN").map(PathBuf::from).ok_or_else(|| anyhow!("WHY502_BIN is not set"))
}

/// Attaching may wait for the verifier on a busy machine.
const READY: Duration = Duration::from_secs(90);
/// At the end it prints what is still open.
const END: Duration = Duration::from_secs(30);

/// A running `why502 watch` or `why502 record`. Ended on drop.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// An incident, and when its line was read, boot ns; of a replay nothing was.
#[derive(Clone, Debug)]
pub struct Heard {
    pub claim: Claim,
    pub read: Option<u64>,
}

/// As of a replay: nobody read it.
impl From<&Incident> for Heard {
    fn from(i: &Incident) -> Self {
        Self { claim: i.into(), read: None }
    }
}

/// What it said until its end.
#[derive(Debug)]
pub struct Said {
    pub incidents: Vec<Incident>,
    pub stops: Vec<Stop>,
    /// As they were printed.
    pub lines: Vec<String>,
    pub stderr: Vec<String>,
    pub status: ExitStatus,
}

impl Said {
    /// The incidents of this site: other tests of this machine have incidents of their own.
    pub fn claims(&self, site: &impl Ground) -> Vec<Claim> {
        claims(&self.incidents, site)
    }
}

pub fn claims(incidents: &[Incident], site: &impl Ground) -> Vec<Claim> {
    let here = site.territory();
    incidents.iter().map(Claim::from).filter(|c| here.has(c)).collect()
}

impl Tracer {
    /// `why502 watch -o json`, ready.
    pub fn watch(binary: &Path, more: &[&OsStr]) -> Result<Self> {
        Self::start(binary, &[&["watch".as_ref(), "-o".as_ref(), "json".as_ref()], more].concat())
    }

    /// `why502 record -o FILE`, ready.
    pub fn record(binary: &Path, file: &Path) -> Result<Self> {
        Self::start(binary, &["record".as_ref(), "-o".as_ref(), file.as_ref()])
    }

    /// Any command that says `ready` on stderr.
    pub fn start(binary: &Path, args: &[&OsStr]) -> Result<Self> {
        let mut tracer = Self::start_unready(binary, args)?;
        let name = format!("{} {args:?}", binary.display());
        let waited = guard::wait(&format!("`ready` of {name}"), READY, || tracer.ready() || !tracer.running());
        if let Err(e) = waited.and_then(|()| if tracer.ready() { Ok(()) } else { bail!("{name} ended") }) {
            let said = tracer.stderr.snapshot().join("\n");
            return Err(e.context(format!("its stderr: {said}")));
        }
        Ok(tracer)
    }

    /// Does not wait: for starts in the middle of things.
    pub fn start_unready(binary: &Path, args: &[&OsStr]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl(2) and sigaction(2) are plain system calls, allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                prctl::set_pdeathsig(Signal::SIGINT)?;
                // A shell's background jobs ignore SIGINT, and hand that on.
                signal(Signal::SIGINT, SigHandler::SigDfl)?;
                Ok(())
            })
        };
        // A Ctrl-C at a terminal is for the harness, which ends the tracer when it is time.
        let child = command.process_group(0).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", binary.display()))?;
        let stdout = Lines::of(child.stdout.take().ok_or_else(|| anyhow!("no stdout"))?)?;
        let stderr = Lines::of(child.stderr.take().ok_or_else(|| anyhow!("no stderr"))?)?;
        Ok(Self { child, stdout, stderr })
    }

    /// It has said that all probes are attached and the start-up scan is done.
    pub fn ready(&self) -> bool {
        self.stderr.snapshot().iter().any(|l| l.trim() == "ready" || l.trim() == "why502: ready")
    }

    /// It has said this on stderr.
    pub fn says(&self, text: &str) -> bool {
        self.stderr.snapshot().iter().any(|line| line.contains(text))
    }

    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed until now.
    pub fn incidents(&self) -> Result<Vec<Incident>> {
        Ok(parse(&self.stdout.snapshot())?.0)
    }

    /// The incidents after the first `*lines` lines, which moves on.
    pub fn more(&self, lines: &mut usize) -> Result<Vec<Heard>> {
        let new = self.stdout.since(*lines);
        *lines += new.len();
        let mut all = Vec::new();
        for (at, line) in new {
            all.extend(parse(&[line])?.0.iter().map(|i| Heard { claim: i.into(), read: Some(at) }));
        }
        Ok(all)
    }

    /// Waits until there are so many incidents of this site, or for as long as a verdict may take (2 s) and some more: what
    /// is missing then stays missing.
    pub fn wait_for(&self, incidents: usize, site: &impl Ground) -> Result<()> {
        let (here, mut lines, mut found) = (site.territory(), 0, 0);
        let enough = || {
            let new = self.more(&mut lines).unwrap_or_default();
            found += new.iter().filter(|h| here.has(&h.claim)).count();
            found >= incidents
        };
        let waited = guard::wait("incidents", Duration::from_secs(5), enough);
        if guard::interrupted() { waited } else { Ok(()) }
    }

    /// SIGINT, and everything it has said.
    pub fn stop(mut self) -> Result<Said> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        if self.running() {
            kill(pid, Signal::SIGINT).context("cannot interrupt why502")?;
        }
        let mut status = None;
        let ended = guard::wait("the end of why502 after SIGINT", END, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        let stderr = self.stderr.finish(ended.is_ok());
        let lines = self.stdout.finish(ended.is_ok());
        ended.with_context(|| format!("its stderr: {}", stderr.join("\n")))?;
        let (incidents, stops) = parse(&lines)?;
        let status = status.ok_or_else(|| anyhow!("why502 has no exit status"))?;
        Ok(Said { incidents, stops, lines, stderr, status })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if self.running() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// The JSON lines of an output.
pub fn parse(lines: &[String]) -> Result<(Vec<Incident>, Vec<Stop>)> {
    let (mut incidents, mut stops) = (Vec::new(), Vec::new());
    for line in lines {
        let value: serde_json::Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        match value["type"].as_str() {
            Some("incident") => incidents.push(serde_json::from_value(value).with_context(|| line.clone())?),
            Some("stop") => stops.push(serde_json::from_value(value).with_context(|| line.clone())?),
            // Consumers bear what they do not know.
            _ => {}
        }
    }
    Ok((incidents, stops))
}

/// `why502 explain FILE` with these options: its stdout.
pub fn explain(binary: &Path, file: &Path, options: &[&str]) -> Result<String> {
    let out = Command::new(binary).arg("explain").arg(file).args(options).stdin(Stdio::null()).output();
    let out = out.with_context(|| format!("cannot start {}", binary.display()))?;
    if !out.status.success() {
        bail!("why502 explain {}: {}: {}", file.display(), out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    String::from_utf8(out.stdout).context("why502 explain printed something that is not UTF-8")
}

/// Collects lines on a thread, with the boot time of each.
#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<Vec<(u64, String)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    fn of(from: impl Read + Send + 'static) -> Result<Self> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = lines.clone();
        let thread = std::thread::Builder::new().name("lines".into()).spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                to.lock().unwrap_or_else(PoisonError::into_inner).push((guard::boot_ns(), line));
            }
        })?;
        Ok(Self { lines, thread: Some(thread) })
    }

    fn snapshot(&self) -> Vec<String> {
        self.since(0).into_iter().map(|(_, line)| line).collect()
    }

    fn since(&self, lines: usize) -> Vec<(u64, String)> {
        let all = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(lines..).unwrap_or_default().to_vec()
    }

    /// `ended`: the writer is gone, so the rest can be waited for.
    fn finish(&mut self, ended: bool) -> Vec<String> {
        if let (true, Some(thread)) = (ended, self.thread.take()) {
            let _ = thread.join();
        }
        self.snapshot()
    }
}
