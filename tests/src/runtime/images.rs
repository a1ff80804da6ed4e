//! Images of nginx and php-fpm, made of this machine's own programs: no registry, no package is fetched.
//!
//! All images share one layer (the programs, the libraries that they ask for, a static busybox); they differ in their
//! STOPSIGNAL. The archive is of the kind that `docker save` writes, which `docker load` and `ctr images import` read.

use crate::guard::{self, run};
use crate::{nginx, php};
use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// An image of the servers, whose STOPSIGNAL is this one.
pub fn server(stop: Signal) -> String {
    let word = stop.as_str().trim_start_matches("SIG").to_lowercase();
    format!("localhost/why502-{word}:1")
}

/// What a pod's own container runs, whose namespaces the others share. It waits, as Kubernetes' pause does.
pub const PAUSE: &str = "localhost/why502-pause:1";

const STOP_SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGQUIT];
/// What pods and hooks call; busybox is all of them.
const TOOLS: &[&str] = &["sh", "sleep", "kill", "cat", "true", "false"];
/// Changes when what is below makes another image of the same programs.
const FORMAT: u32 = 1;

fn busybox() -> Option<PathBuf> {
    ["/bin", "/usr/bin"].iter().map(|dir| Path::new(dir).join("busybox")).find(|p| p.is_file())
}

/// Why no image can be made here.
pub fn why_not() -> Option<String> {
    busybox().is_none().then(|| "needs busybox (apt-get install busybox-static)".to_string())
}

/// The archive of all images, made at the first call on this machine and after a change of the programs.
pub fn archive() -> Result<PathBuf> {
    let programs = [nginx::binary()?, php::binary()?, busybox().context("no busybox")?];
    let mut key = format!("v{FORMAT}");
    for program in &programs {
        use std::os::unix::fs::MetadataExt;
        let meta = program.metadata()?;
        key += &format!("-{}-{}", meta.len(), meta.mtime());
    }
    let cache = cache()?;
    let done = cache.join(format!("images-{key}.tar"));
    if done.is_file() {
        return Ok(done);
    }
    let work = guard::Dir::new()?;
    let root = work.join("root");
    root_fs(&root, &programs)?;
    let made = pack(work.path(), &root)?;
    std::fs::create_dir_all(&cache)?;
    // A test beside this one may do the same: the name appears when the file is whole.
    let partial = cache.join(format!("images-{}.partial", std::process::id()));
    std::fs::copy(&made, &partial).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, &done)?;
    Ok(done)
}

/// Beside the tests' own program, in the build's directory.
fn cache() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find the running executable")?;
    let dir = exe.ancestors().nth(2).ok_or_else(|| anyhow!("{} is in no directory", exe.display()))?;
    Ok(dir.join("why502-images"))
}

fn root_fs(root: &Path, programs: &[PathBuf]) -> Result<()> {
    for dir in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "run", "proc", "sys", "dev", "root"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    // Where nginx looks before it has read its configuration, and what php-fpm's time zones are made of.
    for dir in ["var/log/nginx", "var/lib/nginx", "usr/share/zoneinfo"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    std::fs::create_dir(root.join("tmp"))?;
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
    let mut files: BTreeSet<PathBuf> = programs.iter().cloned().collect();
    for program in programs {
        files.extend(libraries(program));
    }
    files.extend(["UTC", "zone.tab", "tzdata.zi"].map(|name| Path::new("/usr/share/zoneinfo").join(name)));
    for file in files.iter().filter(|file| file.exists()) {
        let to = root.join(file.strip_prefix("/").unwrap_or(file));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // Follows symlinks: a library is called by its soname and nothing else.
        std::fs::copy(file, &to).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let busybox = programs.last().context("no programs")?;
    for tool in TOOLS {
        symlink(busybox, root.join("usr/bin").join(tool))?;
    }
    let (user, group) = guard::unprivileged_user();
    std::fs::write(root.join("etc/passwd"), lines("/etc/passwd", &["root", &user]))?;
    std::fs::write(root.join("etc/group"), lines("/etc/group", &["root", &group]))?;
    std::fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files\n")?;
    Ok(())
}

/// The shared libraries of a program, as this machine's own loader finds them; none of a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = run("ldd", &[&program.display().to_string()]).unwrap_or_default();
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader by its path alone.
    let paths = said.lines().filter_map(|l| l.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// The lines of these names in a file such as /etc/passwd.
fn lines(file: &str, names: &[&str]) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let of = |l: &&str| l.split(':').next().is_some_and(|name| names.contains(&name));
    text.lines().filter(of).map(|l| format!("{l}\n")).collect()
}

/// The archive: manifest.json, a configuration per image, and the one layer.
fn pack(work: &Path, root: &Path) -> Result<PathBuf> {
    let out = work.join("archive");
    std::fs::create_dir(&out)?;
    let layer = out.join("layer.tar");
    let (layer_text, root_text) = (layer.display().to_string(), root.display().to_string());
    let plain = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
    run("tar", &[&plain[..], &["-C", &root_text, "-cf", &layer_text, "."]].concat())?;
    let digest = |file: &str| -> Result<String> {
        let said = run("sha256sum", &[file])?;
        said.split_whitespace().next().map(str::to_string).context("sha256sum said nothing")
    };
    let layer_digest = digest(&layer_text)?;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut images = vec![(PAUSE.to_string(), json!({ "Entrypoint": ["/bin/sleep", "2147483647"] }))];
    let servers = STOP_SIGNALS.map(|signal| (server(signal), json!({ "StopSignal": signal.as_str() })));
    images.extend(servers);
    let mut manifest = Vec::new();
    for (name, mut config) in images {
        config["Env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        let created = "2020-01-01T00:00:00Z";
        let text = serde_json::to_string(&json!({
            "architecture": arch, "os": "linux", "created": created, "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
            "history": [{ "created": created, "created_by": "why502's tests" }],
        }))?;
        let file = out.join("config");
        std::fs::write(&file, text)?;
        let config_name = format!("{}.json", digest(&file.display().to_string())?);
        std::fs::rename(&file, out.join(&config_name))?;
        manifest.push(json!({ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }));
    }
    std::fs::write(out.join("manifest.json"), serde_json::to_string(&manifest)?)?;
    let archive = work.join("images.tar");
    run("tar", &["-C", &out.display().to_string(), "-cf", &archive.display().to_string(), "."])?;
    Ok(archive)
}
