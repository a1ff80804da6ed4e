//! `cargo xtask chart`: the plain manifests, rendered from the Helm chart, so that there is one source.
//!
//! helm is in no Debian package. What it renders with is: Go's templates and sprig; packaging/render is a page of Go around
//! them. `--helm` compares it with helm itself. The manifests are kept in the repository, and carry digests of what they were made of: a unit test finds stale ones
//! without Go.

mod helm;
mod values;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::dist::{VERSION, archive};
use crate::{apt, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail when a manifest is not what the chart renders
    #[arg(long)]
    check: bool,
    /// Lint and render it by helm as well: the one in PATH, or that of an npm package
    #[arg(long)]
    helm: bool,
}

/// What is rendered: file, and the values that differ from the chart's own.
const VARIANTS: [(&str, &[&str]); 3] = [
    ("why502.yaml", &[]),
    ("why502-nonroot.yaml", &["rights.nonRoot=true", "store.kind=emptyDir"]),
    (
        "why502-everything.yaml",
        &[
            "rights.uprobes=true",
            "rights.bpfStats=true",
            "rights.oldKernel=true",
            "rights.runtimeSocket=/run/containerd/containerd.sock",
            "rights.seccomp.type=Localhost",
            "kubernetes.endpoints=true",
            "otlp.endpoint=http://otel-collector.monitoring:4318",
            "otlp.headersSecret.name=otel",
            "otlp.attributes={k8s.cluster.name: prod, deployment.environment.name: live}",
            "serviceMonitor.enabled=true",
            "alerts.enabled=true",
            "dashboard.enabled=true",
        ],
    ),
];
/// Sets of values that the chart has to refuse.
const REFUSED: [&[&str]; 3] = [
    &["rights.nonRoot=true"],
    &["rights.nonRoot=true", "store.kind=emptyDir", "rights.uprobes=true"],
    &["rights.nonRoot=true", "store.kind=emptyDir", "rights.runtimeSocket=/run/crio/crio.sock"],
];

fn chart() -> PathBuf {
    sh::root().join("packaging/helm/why502")
}

fn folder() -> PathBuf {
    sh::root().join("packaging/manifests")
}

/// Those of the chart's own values.
pub(crate) fn manifests() -> PathBuf {
    folder().join(VARIANTS[0].0)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let renderer = renderer()?;
    let render = |values: &[&str]| render(&renderer, values);
    for values in REFUSED {
        ensure!(render(values).is_err(), "the chart took values that contradict each other: {values:?}");
    }
    values::shown(render)?;
    write(&chart().join("README.md"), &values::readme()?, args.check)?;
    for (name, values) in VARIANTS {
        let body = render(values)?;
        let text = format!("{}{body}", header(&body, values)?);
        write(&folder().join(name), &text, args.check)?;
    }
    if args.helm {
        helm::compare(render)?;
    }
    Ok(())
}

/// Or fails when something else is there.
fn write(path: &Path, text: &str, check: bool) -> Result<()> {
    if check {
        let there = fs::read_to_string(path).unwrap_or_default();
        ensure!(there == text, "{} is not what the chart makes it: cargo xtask chart", path.display());
    } else {
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    println!("rendered    {}", path.display());
    Ok(())
}

/// As `helm template` with these values, into a file.
pub(crate) fn render_to(values: &[&str], to: &Path) -> Result<()> {
    fs::write(to, render(&renderer()?, values)?).with_context(|| to.display().to_string())
}

/// The chart as `helm install` takes it: why502-VERSION.tgz.
pub(crate) fn package(dist: &Path) -> Result<()> {
    let parent = chart();
    archive(parent.parent().context("a folder")?, "why502", &dist.join(format!("why502-{VERSION}.tgz")))
}

/// Builds packaging/render.
fn renderer() -> Result<PathBuf> {
    let go = sh::find("go").or_else(newest_go);
    let sprig = Path::new("/usr/share/gocode/src/github.com/Masterminds/sprig");
    if go.is_none() || !sprig.is_dir() {
        const PACKAGES: [&str; 2] = ["golang-go", "golang-github-masterminds-sprig-dev"];
        if !sh::is_root() || !apt::present() {
            bail!("the chart is rendered by Go with sprig: apt-get install {}", PACKAGES.join(" "));
        }
        let missing = if go.is_none() { &PACKAGES[..] } else { &PACKAGES[1..] };
        apt::install(missing)?;
    }
    let go = go.or_else(|| sh::find("go")).or_else(newest_go).context("Go is installed, but there is no `go`")?;
    let to = sh::target_dir().join("render");
    let mut cmd = Command::new(go);
    cmd.args(["build", "-o"]).arg(&to).arg(".").current_dir(sh::root().join("packaging/render"));
    // Debian's libraries, and nothing of a network.
    cmd.env("GOPATH", "/usr/share/gocode").env("GO111MODULE", "off").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    cmd.env("GOCACHE", sh::target_dir().join("go-cache"));
    sh::run(&mut cmd)?;
    Ok(to)
}

/// Debian's packages of one version are in no folder of PATH.
fn newest_go() -> Option<PathBuf> {
    let mut all: Vec<_> = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path().join("bin/go")).collect();
    all.retain(|path| path.parent().is_some_and(|p| p.to_string_lossy().contains("/go-")) && path.is_file());
    all.sort();
    all.pop()
}

fn render(renderer: &Path, values: &[&str]) -> Result<String> {
    sh::capture(Command::new(renderer).arg(chart()).args(["why502", "why502"]).args(values))
}

/// What a reader has to know, and what [`stale`] compares.
fn header(body: &str, values: &[&str]) -> Result<String> {
    let set = values.iter().map(|value| format!("#   --set {value}\n")).collect::<String>();
    Ok(format!(
        "# Made by `cargo xtask chart` of packaging/helm/why502; do not edit.\n\
         # helm template why502 packaging/helm/why502 --namespace why502\n{set}\
         # source {} text {}\n",
        source()?,
        digest(body.as_bytes())?
    ))
}

/// Of everything that a manifest is made of.
fn source() -> Result<String> {
    let mut all = Vec::new();
    let files = sh::capture(
        Command::new("find")
            .arg(chart())
            .arg(sh::root().join("packaging/render"))
            .args(["-type", "f", "-not", "-name", "*.md"]),
    )?;
    let mut files: Vec<&str> = files.lines().collect();
    files.sort_unstable();
    for file in files {
        all.extend(fs::read(file).with_context(|| file.to_owned())?);
    }
    digest(&all)
}

/// The first half of its SHA-256.
fn digest(bytes: &[u8]) -> Result<String> {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    let said = sh::capture(Command::new("sha256sum").arg(file.path()))?;
    said.get(..32).map(str::to_owned).context("sha256sum said nothing")
}

/// Why a manifest is not up to date.
#[cfg(test)]
fn stale(text: &str) -> Result<Option<&'static str>> {
    let at = text.find("# source ").context("no digests")?;
    let (line, body) = text[at..].split_once('\n').context("no text")?;
    let words: Vec<&str> = line.split(' ').collect();
    let [_, _, source_then, _, text_then] = words[..] else { bail!("digests: {line:?}") };
    Ok(if text_then != digest(body.as_bytes())? {
        Some("it was edited by hand")
    } else if source_then != source()? {
        Some("the chart has changed since")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_what_the_chart_renders() {
        for (name, _) in VARIANTS {
            let text = fs::read_to_string(folder().join(name)).expect(name);
            assert_eq!(stale(&text).expect(name), None, "{name}: cargo xtask chart");
        }
    }

    #[test]
    fn a_changed_manifest_is_found() {
        let text = fs::read_to_string(manifests()).expect("there");
        let changed = text.replace("hostPID: true", "hostPID: false");
        assert_eq!(stale(&changed).expect("digests"), Some("it was edited by hand"));
        let source = source().expect("a digest");
        let older = text.replace(&source, "00000000000000000000000000000000");
        assert_eq!(stale(&older).expect("digests"), Some("the chart has changed since"));
        assert!(stale("apiVersion: v1\n").is_err());
    }

    #[test]
    fn one_version_everywhere() {
        let about = fs::read_to_string(chart().join("Chart.yaml")).expect("there");
        for key in ["version", "appVersion"] {
            assert!(about.lines().any(|line| line == format!("{key}: {VERSION}")), "{key} is not {VERSION}:\n{about}");
        }
    }
}
