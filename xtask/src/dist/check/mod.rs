//! `cargo xtask dist --check`: is the Debian package one that works?
//!
//! A copy of this system's root (overlayfs, thrown away) is booted by its own systemd in namespaces of its own, and dpkg works there as
//! it does anywhere: machine.sh makes it, inside.sh is what is tried. The kernel is this one, so the probes are loaded for
//! real, with the rights that the unit gives. Nothing of it reaches the machine: /sys and /proc/sys are read only.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh;

const MACHINE: &str = include_str!("machine.sh");
const INSIDE: &str = include_str!("inside.sh");
/// Where Debian has it; /lib leads to /usr/lib.
const SYSTEMD: &str = "/lib/systemd/systemd";
/// Of the whole machine, seconds.
const LIMIT: &str = "300";

/// Fails with what is missing, before minutes are spent on the build.
pub(super) fn possible() -> Result<()> {
    ensure!(sh::is_root(), "--check makes namespaces and mounts: run it as root");
    for (program, package) in [("dpkg", "dpkg"), ("unshare", "util-linux"), ("timeout", "coreutils")] {
        ensure!(
            sh::find(program).is_some(),
            "{program} is missing, which --check needs: install the package `{package}`"
        );
    }
    ensure!(Path::new(SYSTEMD).is_file(), "{SYSTEMD} is missing, which starts the service: apt-get install systemd");
    Ok(())
}

pub(super) fn run(deb: &Path) -> Result<()> {
    lintian(deb)?;
    let work = tempfile::tempdir().context("making a temporary folder")?;
    let at = |name: &str| work.path().join(name);
    fs::write(at("inside.sh"), INSIDE)?;
    fs::write(at("machine.sh"), MACHINE)?;
    fs::copy(deb, at("why502.deb"))?;
    let group = cgroup()?;
    fs::create_dir(&group).with_context(|| group.display().to_string())?;
    let mut cmd = Command::new("timeout");
    // The group first: the namespace's root is where one is when it is made.
    cmd.args(["-k", "5", LIMIT, "sh", "-c", r#"echo $$ >"$1/cgroup.procs" && shift && exec "$@""#, "sh"]).arg(&group);
    cmd.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "--net"]);
    cmd.args(["sh", "-eu"]).arg(at("machine.sh")).arg(work.path());
    let ended = sh::capture(&mut cmd);
    let told = fs::read_to_string(at("told")).unwrap_or_default();
    print!("{told}");
    // Systemd has made more in it.
    let _ = sh::run(Command::new("find").arg(&group).args(["-depth", "-type", "d", "-delete"]));
    let log = || fs::read_to_string(at("log")).unwrap_or_default();
    let said = ended.with_context(log)?;
    if !told.lines().any(|line| line == "done") || told.lines().any(|line| line.starts_with("FAILED")) {
        bail!("the Debian package does not do what it should\n{}{said}", log());
    }
    Ok(())
}

/// Debian's own check; each tag that is left is explained in packaging/deb/lintian-overrides.
fn lintian(deb: &Path) -> Result<()> {
    if sh::find("lintian").is_none() {
        println!("skipped     lintian: it is not installed (apt-get install lintian)");
        return Ok(());
    }
    let mut cmd = Command::new("lintian");
    // It does not want to be root, and needs not be.
    cmd.args(["--allow-root", "--display-info", "--fail-on", "error,warning,info", "--tag-display-limit", "0"])
        .arg(deb);
    let out = cmd.output().context("lintian")?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success() && said.trim().is_empty(), "lintian: {}{said}", String::from_utf8_lossy(&out.stderr));
    println!("ok          lintian has nothing to say");
    Ok(())
}

/// A cgroup of version 2 that is not there yet.
fn cgroup() -> Result<std::path::PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("mounts")?;
    let root = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, at, "cgroup2", ..] => Some(at.to_owned()),
        _ => None,
    });
    Ok(Path::new(&root.context("no cgroup2 is mounted, which systemd needs")?)
        .join(format!("why502-dist-{}", std::process::id())))
}
