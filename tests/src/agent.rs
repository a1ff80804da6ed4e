//! A `why502 serve` of a test: its directory, its address, what it gives over HTTP, and what of it is in the kernel.

use crate::guard::{self, wait};
use crate::scene::LIMIT;
use crate::tracer::{Said, Tracer, binary};
use anyhow::{Context, Result, bail, ensure};
use aya::programs::loaded_programs;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Ended on drop.
#[derive(Debug)]
pub struct Agent {
    pub tracer: Tracer,
    pub at: SocketAddr,
}

impl Agent {
    /// Ready.
    pub fn start(store: &Path) -> Result<Self> {
        let at = free_port()?;
        Ok(Self { tracer: Tracer::start(&binary()?, &args(store, &at.to_string()))?, at })
    }

    /// Ready, with more variables (`NAME=value`) and options.
    pub fn start_with(store: &Path, variables: &[&str], more: &[&str]) -> Result<Self> {
        let at = free_port()?;
        let (binary, at_text) = (binary()?, at.to_string());
        let words = variables.iter().map(OsStr::new).chain([binary.as_os_str()]);
        let words = words.chain(args(store, &at_text)).chain(more.iter().map(OsStr::new));
        Ok(Self { tracer: Tracer::start(Path::new("/usr/bin/env"), &words.collect::<Vec<_>>())?, at })
    }

    /// Does not wait for anything.
    pub fn start_unready(store: &Path) -> Result<Self> {
        let at = free_port()?;
        Ok(Self { tracer: Tracer::start_unready(&binary()?, &args(store, &at.to_string()))?, at })
    }

    /// Ready, in a cgroup from the first page on: what the kernel allocates for its maps counts as well. `procs`: that
    /// cgroup's file.
    pub fn start_in(store: &Path, procs: &Path) -> Result<Self> {
        let at = free_port()?;
        let (binary, at_text) = (binary()?, at.to_string());
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        let words: [&OsStr; 4] = ["-c".as_ref(), script.as_ref(), procs.as_ref(), binary.as_ref()];
        let words = [&words[..], &args(store, &at_text)].concat();
        Ok(Self { tracer: Tracer::start(Path::new("/bin/sh"), &words)?, at })
    }

    /// The body of a 200.
    pub fn get(&self, path: &str) -> Result<String> {
        get(self.at, path)
    }

    /// Sum of the samples of a metric whose labels contain all of these: `hook="signal_generate"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum(&self.get("/metrics")?, name, labels))
    }

    /// SIGTERM or SIGINT's orderly end.
    pub fn stop(self) -> Result<Said> {
        self.tracer.stop()
    }
}

fn args<'a>(store: &'a Path, at: &'a str) -> [&'a OsStr; 5] {
    ["serve".as_ref(), "--store".as_ref(), store.as_os_str(), "--listen".as_ref(), at.as_ref()]
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn get(at: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html, */*\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.contains(" 200 "), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// Of a page of metrics.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = rest.rsplit_once(' ')?;
        let is = (found.is_empty() || found.starts_with('{')) && labels.iter().all(|label| found.contains(label));
        if is { value.parse::<f64>().ok() } else { None }
    };
    page.lines().filter_map(of).fold(0.0, |all, one| all + one)
}

/// `why502 incidents` with these options: its lines.
pub fn kept(options: &[&OsStr]) -> Result<Vec<String>> {
    let out = Command::new(binary()?).args(["incidents", "--limit", "1000", "-o", "json"]).args(options).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.lines().map(str::to_owned).collect())
}

/// Everything that agents on one directory ever served: numbers and records.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Mutex<BTreeMap<u64, String>>>);

impl Served {
    /// Collects from an agent, from its first answer until it dies. `over`: it is dead.
    pub fn follow(&self, at: SocketAddr, over: impl Fn() -> bool + Send + 'static) -> JoinHandle<()> {
        let served = self.clone();
        std::thread::spawn(move || {
            while !over() {
                if let Ok(stream) = TcpStream::connect(at) {
                    // Its death is an end like any other.
                    let _ = served.collect(stream);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    }

    fn collect(&self, mut stream: TcpStream) -> Result<()> {
        write!(stream, "GET /records?follow=1&after=0 HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n")?;
        let mut seq = 0;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            if let Some(id) = line.strip_prefix("id: ") {
                seq = id.parse().unwrap_or(0);
            } else if let Some(json) = line.strip_prefix("data: ").filter(|json| json.ends_with('}')) {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, json.to_owned());
            }
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it is in the directory, to the byte, under its number.
    pub fn is_in(&self, store: &Path) -> Result<()> {
        let kept = kept(&["--store".as_ref(), store.as_os_str()])?;
        for (seq, json) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let there = usize::try_from(*seq)?.checked_sub(1).and_then(|n| kept.get(n));
            ensure!(there == Some(json), "record {seq} was served and is not there: {json}");
        }
        Ok(())
    }
}

/// The kernel's BPF programs before a test.
#[derive(Debug)]
pub struct Kernel {
    before: BTreeSet<u32>,
    names: BTreeSet<String>,
}

impl Kernel {
    pub fn look() -> Self {
        Self { before: programs().into_keys().collect(), names: BTreeSet::new() }
    }

    /// Learns the names of a ready agent's programs. An error: it has hardly any, so nothing could be found left.
    pub fn learn(&mut self, pid: u32) -> Result<()> {
        let (mine, all) = (programs_of(pid), programs());
        self.names.extend(mine.iter().filter_map(|id| all.get(id).cloned()));
        ensure!(self.names.len() >= 8, "why502 has {} programs only", self.names.len());
        Ok(())
    }

    /// Waits until none is left that was not there before and is called as ours; a link keeps its program. Those that
    /// another running why502 holds are its own.
    pub fn nothing_left(&self) -> Result<()> {
        ensure!(!self.names.is_empty(), "the names are not known");
        let left = || {
            let ours =
                programs().into_iter().filter(|(id, name)| !self.before.contains(id) && self.names.contains(name));
            let mut ours: BTreeMap<u32, String> = ours.collect();
            if !ours.is_empty() {
                others().into_iter().flat_map(programs_of).for_each(|id| drop(ours.remove(&id)));
            }
            ours
        };
        // The kernel frees them a little after the last descriptor is closed.
        match wait("the kernel to free the probes", Duration::from_secs(20), || left().is_empty()) {
            Ok(()) => Ok(()),
            Err(e) if guard::interrupted() => Err(e),
            Err(_) => bail!("these probes are left: {:?}", left()),
        }
    }
}

/// Ids and names.
fn programs() -> BTreeMap<u32, String> {
    // One that goes while it is looked at is an error.
    let all = loaded_programs().filter_map(Result::ok);
    all.map(|p| (p.id(), p.name_as_str().unwrap_or_default().to_owned())).collect()
}

/// Ids of the programs that a process holds.
fn programs_of(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = entries.filter_map(|e| std::fs::read_to_string(e.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|l| l.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

/// Pids of all running why502.
fn others() -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "why502"))
        .collect()
}
