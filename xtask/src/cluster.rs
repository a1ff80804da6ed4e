//! `cargo xtask cluster`: ends of pods on a real Kubernetes node, explained.
//!
//! Debian has no package of the kubelet and the API server, but it has their source with all that it needs: they are built
//! from it once, which takes about a quarter of an hour on two CPUs, and are used again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup::{self, For};
use crate::suites::{Suite, Suites};
use crate::{apt, build, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory with kube-apiserver, kube-controller-manager and kubelet; without it they are built
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Write what was seen into docs/kubernetes.md
    #[arg(long)]
    report: bool,
    /// Handed on to the runner (`-- --help` lists what it takes)
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The suite whose `kubernetes` is the whole tree; in later ones it is kubectl alone.
const SUITE: Suite = Suite::of_sources("bookworm");
const GO: &str = "/usr/lib/go-1.19/bin";
const PROGRAMS: [&str; 3] = ["kubelet", "kube-controller-manager", "kube-apiserver"];
/// Of the package's upstream release; without it the programs call themselves v0.0.0.
const VERSION: &str = "1.20.2";

pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!("the cluster loads eBPF programs and runs containers, so it has to run as root");
    }
    setup::ensure(For::Test)?;
    // Each is its own package's only program here; a kubectl of another origin is as good.
    for (program, package) in [("etcd", "etcd-server"), ("kubectl", "kubernetes-client")] {
        if sh::find(program).is_none() {
            apt::install(&[package])?;
        }
    }
    let programs = match &args.programs {
        Some(dir) => dir.canonicalize().with_context(|| dir.display().to_string())?,
        None => built()?,
    };
    let package = vec!["why502-tests".into()];
    let why502 = build::run(&build::Args { package, ..Default::default() })?;
    let mut command = Command::new(why502.with_file_name("why502-cluster"));
    command.env("WHY502_BIN", &why502).arg("--programs").arg(&programs);
    if args.report {
        command.args(["--report", "docs/kubernetes.md"]);
    }
    sh::run(command.args(&args.rest))
}

/// Where the programs are; builds what is missing.
fn built() -> Result<PathBuf> {
    let dir = sh::target_dir().join("kubernetes");
    if PROGRAMS.iter().all(|name| dir.join(name).is_file()) {
        return Ok(dir);
    }
    let start = Instant::now();
    println!(
        "kubernetes  {VERSION} is built from Debian's source package: about 15 minutes, 3 GB in {}",
        dir.display()
    );
    apt::install(&["golang-1.19-go", "dpkg-dev"])?;
    let work = dir.join("work");
    let root = work.join("go/src/k8s.io/kubernetes");
    if !root.join("cmd").is_dir() {
        unpack(&work, &root)?;
    }
    let go = |args: &[&str]| {
        let mut cmd = Command::new(Path::new(GO).join("go"));
        cmd.args(args).current_dir(&root).env("GOPATH", work.join("go")).env("GOCACHE", work.join("cache"));
        // The tree carries what it needs in vendor/, and its go.mod does not agree with it.
        cmd.env("GO111MODULE", "off").env("CGO_ENABLED", "0").env("GOFLAGS", "");
        sh::run(&mut cmd)
    };
    openapi(&work, &root, &go)?;
    let (major, minor) = ("1", VERSION.split('.').nth(1).unwrap_or_default());
    let set =
        |name: &str, value: &str| format!("-X k8s.io/kubernetes/vendor/k8s.io/component-base/version.{name}={value}");
    let version = [set("gitVersion", &format!("v{VERSION}")), set("gitMajor", major), set("gitMinor", minor)].join(" ");
    for name in PROGRAMS {
        let partial = work.join(name);
        let to = partial.display().to_string();
        go(&["build", "-ldflags", &format!("-s -w {version}"), "-o", &to, &format!("k8s.io/kubernetes/cmd/{name}")])?;
        // Renamed when it is whole.
        fs::rename(&partial, dir.join(name))?;
        println!("built       {} ({:.0?} since the start)", dir.join(name).display(), start.elapsed());
    }
    fs::remove_dir_all(&work).context("removing the sources")?;
    Ok(dir)
}

/// Debian's source package, without Debian's changes: those are for kubectl.
fn unpack(work: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    let suites = Suites::prepare(work.join("apt"), &[SUITE], None)?;
    suites.update()?;
    sh::run(suites.command("apt-get").args(["source", "-qq", "--download-only", "kubernetes"]).current_dir(work))?;
    let files = fs::read_dir(work)?.flatten().map(|entry| entry.path());
    let mut archives = files.filter(|path| path.to_string_lossy().contains(".orig.tar."));
    let archive = archives.next().context("apt-get source left no .orig.tar")?;
    sh::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(root).arg("--strip-components=1"))
}

/// The API server's schema is generated, and not in the package.
fn openapi(work: &Path, root: &Path, go: &dyn Fn(&[&str]) -> Result<()>) -> Result<()> {
    let generator = work.join("openapi-gen");
    let to = generator.display().to_string();
    go(&["build", "-o", &to, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"])?;
    let marked = sh::capture(
        Command::new("grep")
            .args(["-rlE", "--include=*.go", "--exclude=*_test.go", "^// *\\+k8s:openapi-gen="])
            .args(["pkg", "cmd", "staging/src/k8s.io"])
            .current_dir(root),
    )?;
    let mut packages: Vec<String> = marked
        .lines()
        .filter_map(|file| Some(Path::new(file).parent()?.display().to_string()))
        .filter(|dir| !["testdata", "sample-", "/test/"].iter().any(|part| dir.contains(part)))
        .map(|dir| match dir.strip_prefix("staging/src/") {
            Some(staged) => format!("k8s.io/kubernetes/vendor/{staged}"),
            None => format!("k8s.io/kubernetes/{dir}"),
        })
        .collect();
    packages.sort();
    packages.dedup();
    ensure!(!packages.is_empty(), "the source has no API types");
    let mut cmd = Command::new(&generator);
    cmd.args([
        "-i",
        &packages.join(","),
        "-p",
        "k8s.io/kubernetes/pkg/generated/openapi",
        "-O",
        "zz_generated.openapi",
    ]);
    cmd.args(["-h", "hack/boilerplate/boilerplate.generatego.txt", "-r"]).arg(work.join("violations"));
    cmd.arg("--output-base").arg(work.join("go/src"));
    cmd.current_dir(root).env("GOPATH", work.join("go")).env("GO111MODULE", "off").env("GOFLAGS", "");
    let path = std::env::var("PATH").unwrap_or_default();
    sh::run(cmd.env("PATH", format!("{GO}:{path}")))
}
