//! The container images, built and saved by docker.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::docker::Docker;
use super::{VERSION, epoch, files};
use crate::sh;

/// Where root is not allowed, the rights are the file's: the kernel gives them to whoever runs it.
const FILE_CAPABILITIES: &str = "cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search+ep";

/// `why502:VERSION`, which runs as root, and `why502:VERSION-nonroot`, whose program has file capabilities. Gives the
/// archive that holds both.
pub(super) fn build(docker: &Docker, program: &Path, notices: &str, work: &Path, dist: &Path) -> Result<PathBuf> {
    let plain = format!("why502:{VERSION}");
    let capable = format!("why502:{VERSION}-nonroot");
    one(docker, program, notices, work, &plain, false)?;
    one(docker, program, notices, work, &capable, true)?;
    let to = dist.join(format!("why502-{VERSION}-image.tar"));
    // No registry: `docker load` and `ctr images import` take it.
    sh::run(docker.command().arg("save").arg("-o").arg(&to).args([&plain, &capable]))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
    Ok(to)
}

fn one(docker: &Docker, program: &Path, notices: &str, work: &Path, tag: &str, capable: bool) -> Result<()> {
    let (context, root) = (work.join("image"), work.join("image-root"));
    for dir in [&context, &root] {
        // Of the other image.
        let _ = fs::remove_dir_all(dir);
        fs::create_dir(dir)?;
    }
    files::put(program, &root.join("why502"), 0o755)?;
    let licences = root.join("licenses");
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        files::put(&sh::root().join(name), &licences.join(name), 0o644)?;
    }
    files::write(&licences.join(files::NOTICES), notices)?;
    for dir in [&root, &licences] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]).arg(format!("--mtime=@{}", epoch()));
    if capable {
        sh::run(Command::new("setcap").arg(FILE_CAPABILITIES).arg(root.join("why502")))
            .context("setcap (of the package libcap2-bin) as root makes the image for other users than root")?;
        tar.args(["--format=pax", "--xattrs", "--xattrs-include=security.capability"]);
    }
    sh::run(tar.arg("-C").arg(&root).arg("-cf").arg(context.join("root.tar")).args(["why502", "licenses"]))?;
    let mut build = docker.command();
    build.args(["build", "-q", "-t", tag, "--build-arg", &format!("VERSION={VERSION}")]);
    build.args(["--build-arg", if capable { "USER=65532:65532" } else { "USER=0:0" }]);
    build.arg("-f").arg(sh::root().join("packaging/Dockerfile")).arg(&context);
    // The builder that every docker has.
    build.env("DOCKER_BUILDKIT", "0");
    let id = sh::capture(&mut build)?;
    println!("image       {tag} {}", id.trim());
    Ok(())
}
