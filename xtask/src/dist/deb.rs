//! The Debian package, by dpkg-deb: it is on every Debian and Ubuntu, and in the repositories of the others.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{VERSION, epoch};
use crate::sh;

/// Debian's names of architectures.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Packs a copy of `root`.
pub(super) fn build(root: &Path, work: &Path, dist: &Path) -> Result<()> {
    if sh::find("dpkg-deb").is_none() {
        bail!("dpkg-deb is missing, which makes the Debian package: install the package `dpkg`");
    }
    let tree = work.join("deb");
    sh::run(Command::new("cp").arg("-a").arg(root).arg(&tree))?;
    for page in fs::read_dir(tree.join("usr/share/man/man1"))?.flatten() {
        // Debian wants them so; -n: no time in it.
        sh::run(Command::new("gzip").arg("-n9").arg(page.path()))?;
    }
    let control = tree.join("DEBIAN");
    fs::create_dir(&control)?;
    let from = sh::root().join("packaging/deb");
    for (name, mode) in [("conffiles", 0o644), ("postinst", 0o755), ("prerm", 0o755), ("postrm", 0o755)] {
        fs::copy(from.join(name), control.join(name)).with_context(|| name.to_owned())?;
        fs::set_permissions(control.join(name), fs::Permissions::from_mode(mode))?;
    }
    let size = sh::capture(Command::new("du").args(["-sk", "--apparent-size"]).arg(root))?;
    let size = size.split_whitespace().next().unwrap_or("0").to_owned();
    let text = fs::read_to_string(from.join("control"))?;
    let text = text.replace("@VERSION@", VERSION).replace("@ARCH@", architecture()).replace("@SIZE@", &size);
    fs::write(control.join("control"), text)?;
    let to = dist.join(format!("why502_{VERSION}_{}.deb", architecture()));
    let mut cmd = Command::new("dpkg-deb");
    cmd.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&to);
    cmd.env("SOURCE_DATE_EPOCH", epoch().to_string());
    sh::capture(&mut cmd).map(|_| ())
}
