//! The Debian package, by dpkg-deb: it is on every Debian and Ubuntu, and in the repositories of the others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{VERSION, epoch, files};
use crate::sh;

/// Debian's names of architectures.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Where it is.
pub(super) fn path(dist: &Path) -> PathBuf {
    dist.join(format!("why502_{VERSION}_{}.deb", architecture()))
}

/// Packs a copy of `root`.
pub(super) fn build(root: &Path, work: &Path, dist: &Path) -> Result<()> {
    if sh::find("dpkg-deb").is_none() {
        bail!("dpkg-deb is missing, which makes the Debian package: install the package `dpkg`");
    }
    let tree = work.join("deb");
    sh::run(Command::new("cp").arg("-a").arg(root).arg(&tree))?;
    let from = sh::root().join("packaging/deb");
    let date = sh::capture(Command::new("date").args(["-uR", "-d", &format!("@{}", epoch())]))?;
    let filled = |name: &str, size: &str| -> Result<String> {
        let text = fs::read_to_string(from.join(name)).with_context(|| name.to_owned())?;
        let text = text.replace("@VERSION@", VERSION).replace("@ARCH@", architecture());
        Ok(text.replace("@SIZE@", size).replace("@DATE@", date.trim()))
    };
    let docs = tree.join(files::DOCUMENTS);
    files::write(&docs.join("changelog"), &filled("changelog", "")?)?;
    files::put(&from.join("lintian-overrides"), &tree.join("usr/share/lintian/overrides/why502"), 0o644)?;
    let manual = fs::read_dir(tree.join(files::MANUAL))?.flatten().map(|page| page.path());
    for file in manual.chain([docs.join("changelog"), docs.join(files::NOTICES)]) {
        // Debian wants them so; -n: no time in it.
        sh::run(Command::new("gzip").arg("-n9").arg(file))?;
    }
    for name in files::PLUGINS {
        let page = tree.join(files::MANUAL).join(format!("{name}.1.gz"));
        symlink("why502-kubectl.1.gz", &page).with_context(|| page.display().to_string())?;
    }
    let size = sh::capture(Command::new("du").args(["-sk", "--apparent-size"]).arg(&tree))?;
    let size = size.split_whitespace().next().unwrap_or("0").to_owned();
    // Of the files that are no configuration, as `debsums` reads it.
    let mut sums = Command::new("sh");
    sums.args(["-c", "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum"]).current_dir(&tree);
    let sums = sh::capture(&mut sums)?;
    let control = tree.join("DEBIAN");
    fs::create_dir(&control)?;
    fs::write(control.join("md5sums"), sums)?;
    for (name, mode) in [("conffiles", 0o644), ("postinst", 0o755), ("prerm", 0o755), ("postrm", 0o755)] {
        files::put(&from.join(name), &control.join(name), mode)?;
    }
    fs::write(control.join("control"), filled("control", &size)?)?;
    // Whatever the umask is.
    sh::run(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(&tree))?;
    let mut cmd = Command::new("dpkg-deb");
    cmd.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(path(dist));
    cmd.env("SOURCE_DATE_EPOCH", epoch().to_string());
    sh::capture(&mut cmd).map(|_| ())
}
