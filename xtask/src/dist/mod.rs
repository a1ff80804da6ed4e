//! `cargo xtask dist`: what is handed out, all in `target/dist`.
//!
//! ```text
//! binary  the static program (musl: nothing of the host is needed, its own resolver included)
//! files   what goes beside it: manual pages, completions, the systemd unit, licences
//! deb     a Debian package of these
//! image   container images from scratch, by docker
//! ```

mod binary;
mod deb;
mod files;
mod image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, For};
use crate::{chart, sh};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask dist
  cargo xtask dist --no-image               without docker
  DOCKER_HOST=unix:///run/docker.sock cargo xtask dist")]
pub(crate) struct Args {
    /// Leave the container images out: docker is not needed then
    #[arg(long)]
    no_image: bool,
    /// Pack this program, which is built already, instead of building the static one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where everything is put; emptied first [default: target/dist]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Of the whole workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    // Said before minutes are spent on the build.
    if !args.no_image {
        image::reachable()?;
    }
    let dist = args.to.clone().unwrap_or_else(|| sh::target_dir().join("dist"));
    let program = match &args.binary {
        Some(program) => program.canonicalize().with_context(|| program.display().to_string())?,
        None => {
            setup::ensure(For::Build)?;
            binary::build()?
        }
    };
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(|| format!("emptying {}", dist.display()))?;
    }
    fs::create_dir_all(&dist)?;
    let work = tempfile::tempdir().context("making a temporary folder")?;
    let root = work.path().join("root");
    files::lay_out(&program, &root)?;

    let arch = std::env::consts::ARCH;
    let name = format!("why502-{VERSION}-{arch}-linux");
    files::portable(&root, &work.path().join(&name))?;
    archive(work.path(), &name, &dist.join(format!("{name}.tar.gz")))?;
    deb::build(&root, work.path(), &dist)?;
    chart::package(&dist)?;
    fs::copy(chart::manifests(), dist.join(format!("why502-{VERSION}.yaml")))?;
    if !args.no_image {
        image::build(&program, work.path(), &dist)?;
    }
    let sums = sums(&dist)?;
    print!("{sums}");
    println!("dist        {} ({:.0?})", dist.display(), start.elapsed());
    Ok(())
}

/// A .tar.gz of a folder in `parent` that is the same whenever and by whomever it is made.
pub(crate) fn archive(parent: &Path, name: &str, to: &Path) -> Result<()> {
    let mut cmd = Command::new("tar");
    cmd.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu", "--mode=go-w"]);
    cmd.arg(format!("--mtime=@{}", epoch())).args(["-I", "gzip -n9", "-C"]).arg(parent).arg("-cf").arg(to).arg(name);
    sh::run(&mut cmd)
}

/// The time of every file in what is made: of the last commit, so that one commit gives the same bytes again.
fn epoch() -> u64 {
    let said = std::env::var("SOURCE_DATE_EPOCH").ok();
    let commit = || sh::capture(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(sh::root())).ok();
    said.or_else(commit).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Writes SHA256SUMS of what is there.
fn sums(dist: &Path) -> Result<String> {
    let mut names: Vec<_> = fs::read_dir(dist)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let text = sh::capture(Command::new("sha256sum").arg("--").args(names).current_dir(dist))?;
    fs::write(dist.join("SHA256SUMS"), &text)?;
    Ok(text)
}
