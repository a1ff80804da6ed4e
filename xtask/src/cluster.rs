//! `cargo xtask cluster`: ends of pods on a real Kubernetes node, explained; with `--chart`, by the agent that the chart
//! installs.
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
use crate::{apt, build, chart, dist, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory with kube-apiserver, kube-controller-manager, kube-scheduler and kubelet; without it they are built
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Write what was seen into docs/kubernetes.md
    #[arg(long)]
    report: bool,
    /// Install the chart instead, and do with it what an operator does: Events, kubectl why502, metrics
    #[arg(long)]
    chart: bool,
    /// The images, as `cargo xtask dist` wrote them; without it they are built
    #[arg(long, value_name = "FILE", requires = "chart")]
    image: Option<PathBuf>,
    /// Handed on to the runner (`-- --help` lists what it takes)
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The suite whose `kubernetes` is the whole tree; in later ones it is kubectl alone.
const SUITE: Suite = Suite::of_sources("bookworm");
const GO: &str = "/usr/lib/go-1.19/bin";
const PROGRAMS: [&str; 4] = ["kubelet", "kube-scheduler", "kube-controller-manager", "kube-apiserver"];
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
    let work = tempfile::tempdir().context("making a temporary folder")?;
    if args.chart {
        let image = match &args.image {
            Some(image) => image.canonicalize().with_context(|| image.display().to_string())?,
            None => dist::images()?,
        };
        command.arg("--image").arg(image);
        for (option, file, values) in manifests(&work.path().join("store")) {
            let (to, values) = (work.path().join(file), values.iter().map(String::as_str).collect::<Vec<_>>());
            chart::render_to(&values, &to)?;
            command.arg(option).arg(to);
        }
    }
    sh::run(command.args(&args.rest))
}

/// The runner's option, a file, and the values that differ from the chart's own.
fn manifests(store: &Path) -> [(&'static str, &'static str, Vec<String>); 2] {
    let common = [
        "kubernetes.endpoints=true",
        "serviceMonitor.enabled=true",
        "alerts.enabled=true",
        "dashboard.enabled=true",
        "networkPolicy.enabled=true",
    ];
    let with = |more: &[String]| common.iter().map(ToString::to_string).chain(more.iter().cloned()).collect();
    // Nothing of this machine's own agent is touched.
    let root = with(&[format!("store.path={}", store.display())]);
    let nonroot = with(&["rights.nonRoot=true".into(), "store.kind=emptyDir".into()]);
    [("--manifest", "why502.yaml", root), ("--manifest-nonroot", "why502-nonroot.yaml", nonroot)]
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
    apt::install(&["golang-1.19-go", "dpkg-dev", "golang-github-modern-go-reflect2-dev"])?;
    let work = dir.join("work");
    let root = work.join("go/src/k8s.io/kubernetes");
    if !root.join("cmd").is_dir() {
        unpack(&work, &root)?;
        renew_reflect2(&root)?;
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
    // The API server tells the second one's.
    let set = |name: &str, value: &str| {
        let of = |package: &str| format!("-X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}");
        [of("component-base/version"), of("client-go/pkg/version")].join(" ")
    };
    let version = [set("gitVersion", &format!("v{VERSION}")), set("gitMajor", major), set("gitMinor", minor)].join(" ");
    for name in PROGRAMS.into_iter().filter(|name| !dir.join(name).is_file()) {
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

/// The tree's own reflect2 iterates maps by the runtime of Go before 1.18: an API server built with a newer one ends with a
/// segmentation violation at the first object of a kind that a CustomResourceDefinition made.
fn renew_reflect2(root: &Path) -> Result<()> {
    const PATH: &str = "github.com/modern-go/reflect2";
    let (old, new) = (root.join("vendor").join(PATH), Path::new("/usr/share/gocode/src").join(PATH));
    fs::remove_dir_all(&old).with_context(|| old.display().to_string())?;
    sh::run(Command::new("cp").arg("-rL").arg(new).arg(old))
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
