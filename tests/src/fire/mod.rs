//! Fire: does what every probe must report, hard and with known facts, and compares.
//!
//! ```text
//! drive      starts why502, waits for `ready`, fires, stops it, checks
//! signals, processes, namespaces, tcp, unix, nginx, oom, flood, stops   what is done
//! manifest   one line for each record that must (or must not) be there
//! check      manifest against the events that why502 printed
//! facts      what /proc and stat(2) say of a task: the truth that a record is compared with
//! ```
//! Used by `cargo xtask vm` in guests and by the smoke test on the live kernel. The program that fires stays
//! single-threaded, because it forks.

pub mod check;
mod child;
pub mod drive;
mod facts;
mod flood;
pub mod manifest;
mod namespaces;
pub mod nginx;
mod oom;
mod processes;
mod signals;
mod sock;
mod stops;
mod tcp;
mod unix;

use anyhow::{Context, Result};
use facts::Cgroups;
use manifest::Manifest;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};

pub use child::act_as_told;

/// What the cases share.
pub(crate) struct Fire {
    manifest: Manifest,
    cgroups: Cgroups,
    /// A directory of our own for programs to execute.
    dir: PathBuf,
    /// Our own program.
    exe: PathBuf,
    /// Network namespaces that were used, held so that no other one gets the inode number.
    netns: RefCell<Vec<File>>,
}

impl Fire {
    /// Holds the network namespace of a process to the end.
    fn hold_netns(&self, pid: u32) -> Result<()> {
        let path = format!("/proc/{pid}/ns/net");
        self.netns.borrow_mut().push(File::open(&path).context(path)?);
        Ok(())
    }
}

type Case = fn(&Fire) -> Result<()>;

/// Does everything and writes the manifest. `dir` is scratch space.
///
/// # Errors
/// When something could not be done at all; what this machine does not allow is a skipped line of the manifest.
pub fn fire(manifest: &Path, dir: &Path) -> Result<()> {
    let all: &[(&str, Case)] = &[
        ("signals", signals::fire),
        ("processes", processes::fire),
        ("namespaces", namespaces::fire),
        ("tcp", tcp::fire),
        ("unix", unix::fire),
        ("nginx", nginx::fire),
        ("oom", oom::fire),
        ("flood", flood::fire),
    ];
    perform(manifest, dir, all)
}

/// Only connects to unix sockets.
///
/// # Errors
/// As [`fire`].
pub fn fire_connects(manifest: &Path, dir: &Path) -> Result<()> {
    perform(manifest, dir, &[("unix connects", unix::connects)])
}

/// Only stops of a server.
///
/// # Errors
/// As [`fire`].
pub fn fire_stops(manifest: &Path, dir: &Path) -> Result<()> {
    perform(manifest, dir, &[("stops", stops::fire)])
}

fn perform(manifest: &Path, dir: &Path, all: &[(&str, Case)]) -> Result<()> {
    let exe = std::env::current_exe().context("own program")?;
    let cgroups = Cgroups::create().context("cgroups for the test")?;
    let manifest = Manifest::create(manifest)?;
    let fire = Fire { manifest, cgroups, dir: dir.to_owned(), exe, netns: RefCell::default() };
    for (name, case) in all {
        case(&fire).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}
