//! `cargo xtask dist`: what is handed out, all in `target/dist`.
//!
//! ```text
//! binary  the static program (musl: nothing of the host is needed, its own resolver included)
//! deps    what is linked into it: licences, bill of materials
//! files   what goes beside it: manual pages, completions, the systemd unit, licences
//! deb     a Debian package of these
//! image   container images from scratch, by docker; docker: the daemon that builds them
//! check   the Debian package, installed, upgraded, removed and purged under a systemd of its own
//! ```

mod binary;
mod check;
mod deb;
mod deps;
mod docker;
mod files;
mod image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::docker::Docker;
use crate::setup::{self, For};
use crate::{chart, sh};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask dist
  cargo xtask dist --no-image               without docker
  cargo xtask dist --check                  and try the Debian package (root; not on this machine's own system)
  DOCKER_HOST=unix:///run/docker.sock cargo xtask dist")]
pub(crate) struct Args {
    /// Leave the container images out: docker is not needed then
    #[arg(long)]
    no_image: bool,
    /// Pack this program, which is built already, instead of building the static one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Then install, upgrade, run, remove and purge the Debian package on a copy of this system that is thrown away (root)
    #[arg(long)]
    check: bool,
    /// Where everything is put, in the place of what an earlier run put there [default: target/dist]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Of the whole workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

const SUMS: &str = "SHA256SUMS";

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    // Said before minutes are spent on the build.
    let docker = if args.no_image { None } else { Some(Docker::reachable()?) };
    if args.check {
        check::possible()?;
    }
    let dist = args.to.clone().unwrap_or_else(|| sh::target_dir().join("dist"));
    let program = match &args.binary {
        Some(program) => program.canonicalize().with_context(|| program.display().to_string())?,
        None => {
            setup::ensure(For::Build)?;
            binary::build()?
        }
    };
    fs::create_dir_all(&dist)?;
    empty(&dist)?;
    let work = tempfile::tempdir().context("making a temporary folder")?;
    let root = work.path().join("root");
    let crates = deps::linked()?;
    let notices = deps::notices(&crates)?;
    files::lay_out(&program, &notices, &root)?;

    let arch = std::env::consts::ARCH;
    let name = format!("why502-{VERSION}-{arch}-linux");
    files::portable(&root, &work.path().join(&name))?;
    archive(work.path(), &name, &dist.join(format!("{name}.tar.gz")))?;
    deb::build(&root, work.path(), &dist)?;
    chart::package(&dist)?;
    fs::copy(chart::manifests(), dist.join(format!("why502-{VERSION}.yaml")))?;
    fs::write(dist.join(format!("why502-{VERSION}.cdx.json")), deps::bill(&crates, VERSION, epoch())?)?;
    if let Some(docker) = &docker {
        image::build(docker, &program, &notices, work.path(), &dist)?;
    }
    print!("{}", sums(&dist)?);
    println!("dist        {} ({:.0?})", dist.display(), start.elapsed());
    if args.check {
        check::run(&deb::path(&dist))?;
    }
    Ok(())
}

/// Takes away what an earlier run made, and nothing else.
fn empty(dist: &Path) -> Result<()> {
    let files: Vec<PathBuf> = fs::read_dir(dist)?.flatten().map(|entry| entry.path()).collect();
    let ours = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_file() && (name == SUMS || name.starts_with("why502"))
    };
    if let Some(other) = files.iter().find(|path| !ours(path)) {
        bail!("{} is not of `cargo xtask dist`: --to names a folder of its own", other.display());
    }
    files.iter().try_for_each(fs::remove_file).with_context(|| format!("emptying {}", dist.display()))
}

/// The images alone, of a static program that is built for them: their archive.
pub(crate) fn images() -> Result<PathBuf> {
    let docker = Docker::reachable()?;
    let program = binary::build()?;
    let work = tempfile::tempdir().context("making a temporary folder")?;
    let to = sh::target_dir().join("images");
    fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
    image::build(&docker, &program, &deps::notices(&deps::linked()?)?, work.path(), &to)
}

/// A .tar.gz of a folder in `parent` that is the same whenever and by whomever it is made.
pub(crate) fn archive(parent: &Path, name: &str, to: &Path) -> Result<()> {
    let mut cmd = Command::new("tar");
    cmd.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu", "--mode=u=rwX,go=rX"]);
    cmd.arg(format!("--mtime=@{}", epoch())).args(["-I", "gzip -n9", "-C"]).arg(parent).arg("-cf").arg(to).arg(name);
    sh::run(&mut cmd)
}

/// The time of every file in what is made: of the last commit, so that one commit gives the same bytes again.
fn epoch() -> u64 {
    let said = std::env::var("SOURCE_DATE_EPOCH").ok();
    let commit = || sh::capture(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(sh::root())).ok();
    said.or_else(commit).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Writes SHA256SUMS of what is there, and tells the sizes as well.
fn sums(dist: &Path) -> Result<String> {
    let mut names: Vec<_> = fs::read_dir(dist)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let text = sh::capture(Command::new("sha256sum").arg("--").args(names).current_dir(dist))?;
    fs::write(dist.join(SUMS), &text)?;
    let line = |line: &str| -> Result<String> {
        let (_, name) = line.split_once("  ").context("sha256sum")?;
        let size = fs::metadata(dist.join(name))?.len();
        Ok(format!("{:>9} KiB  {line}\n", size.div_ceil(1024)))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_is_taken_away() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in [SUMS, "why502_0.0.9_amd64.deb"] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        empty(dir.path()).expect("emptied");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0);
        fs::write(dir.path().join("why502.txt"), "").expect("written");
        fs::write(dir.path().join("thesis.txt"), "").expect("written");
        assert!(empty(dir.path()).expect_err("not ours").to_string().contains("thesis.txt"));
        assert!(dir.path().join("why502.txt").exists());
    }
}
