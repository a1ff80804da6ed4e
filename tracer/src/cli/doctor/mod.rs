//! `why502 doctor`: what this host allows. It loads and attaches the probes, since nothing else tells for sure, and
//! detaches them at once.

mod place;

use super::kube::{Kube, KubeArgs};
use super::output::OutputArgs;
use super::runtime::RuntimeArgs;
use super::serve::{LISTEN, STORE};
use crate::kernel::btf;
use crate::kernel::host::{CAPABILITIES, Host, Mounts, Rights};
use crate::live::{Live, Options};
use crate::model::Input;
use crate::model::input::{Degraded, HookState, HookStatus, NginxProbesFact, NginxProbesState, Started};
use crate::sinks::escape::escape;
use crate::sources::kube::{Examined, examine};
use crate::sources::runtimes::{self, Found, Wish};
use anyhow::Context;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  why502 doctor
  why502 doctor --events --listen 10.0.3.7:9502     what `serve` is to be run with
  why502 doctor -o json | jq .hooks

Exit code 1 when why502 cannot work here; what is only degraded is told and does not count.";

/// Tell what this host allows: kernel, probes, capabilities, runtimes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Where serve is to listen
    #[arg(long, value_name = "IP:PORT", default_value = LISTEN)]
    listen: SocketAddr,
    /// Directory of serve's incidents
    #[arg(long, value_name = "DIR", default_value = STORE)]
    store: PathBuf,
    /// Ask the Kubernetes API for the right to write Events as well
    #[arg(long)]
    events: bool,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The findings; this is the JSON as well.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "type")]
    kind: &'static str,
    schema: u32,
    version: &'static str,
    /// why502 can work here.
    ok: bool,
    /// Why it cannot.
    error: Option<String>,
    node: String,
    kernel: String,
    boot_id: String,
    /// The kernel's type information is there.
    btf: bool,
    capabilities: Vec<CapabilityState>,
    cgroups: CgroupLayout,
    tracefs: Option<String>,
    hooks: Vec<HookStatus>,
    degraded: Vec<Degraded>,
    /// Each nginx that runs, and whether the uprobes see it.
    nginx: Vec<NginxProbesFact>,
    runtimes: Vec<RuntimeSocket>,
    /// Null: not asked.
    kubernetes: Option<Examined>,
    /// What only `serve` needs.
    serve: place::Place,
    /// It is to write Events, too.
    #[serde(skip)]
    events: bool,
}

#[derive(Debug, Serialize)]
struct CapabilityState {
    name: &'static str,
    effective: bool,
}

#[derive(Debug, Serialize)]
struct CgroupLayout {
    /// `v2`, `hybrid` (both), `v1`, `none`.
    layout: &'static str,
    v2: Option<String>,
    /// Mount point and controller of the v1 hierarchy that names tasks.
    v1: Option<String>,
    v1_controller: Option<String>,
}

#[derive(Debug, Serialize)]
struct RuntimeSocket {
    path: String,
    reachable: bool,
    /// `containerd 1.7.24`, as it says itself.
    runtime: Option<String>,
    /// Why it cannot be asked.
    error: Option<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let root = Path::new("/");
    let kube = args.kube.resolve()?;
    let mut report = look(root, place::look(&args.store, args.listen));
    report.events = args.events;
    if let Some(name) = &kube.node {
        report.node.clone_from(name);
    }
    report.runtimes = runtimes(root, &args.runtime.wish()?)?;
    report.kubernetes = ask(kube, &report.node, args.events)?;
    match super::host::refuse().and_then(|()| try_probes()) {
        Ok((started, nginx)) => {
            report.hooks = started.hooks;
            report.degraded = started.degraded;
            report.nginx = nginx;
            report.ok = true;
        }
        Err(err) => report.error = Some(format!("{err:#}")),
    }
    let text = if args.output.json() { serde_json::to_string(&report)? + "\n" } else { text(&report) };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What can be seen without the probes.
fn look(root: &Path, serve: place::Place) -> Report {
    let host = Host::read(root);
    let mounts = Mounts::read(root);
    let rights = Rights::read(root);
    let path = |path: &Path| path.display().to_string();
    Report {
        kind: "doctor",
        schema: crate::model::incident::SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        ok: false,
        error: None,
        node: host.node,
        kernel: host.kernel,
        boot_id: host.boot_id,
        btf: root.join(btf::VMLINUX).exists(),
        capabilities: CAPABILITIES
            .iter()
            .map(|c| CapabilityState { name: c.name, effective: rights.is_some_and(|rights| rights.has(*c)) })
            .collect(),
        cgroups: CgroupLayout {
            layout: match (&mounts.cgroup2, mounts.v1()) {
                (Some(_), None) => "v2",
                (Some(_), Some(_)) => "hybrid",
                (None, Some(_)) => "v1",
                (None, None) => "none",
            },
            v2: mounts.cgroup2.as_deref().map(path),
            v1: mounts.v1().map(|(_, point)| path(point)),
            v1_controller: mounts.v1().map(|(controller, _)| controller.to_string()),
        },
        tracefs: mounts.tracefs.as_deref().map(path),
        hooks: Vec::new(),
        degraded: Vec::new(),
        nginx: Vec::new(),
        runtimes: Vec::new(),
        kubernetes: None,
        serve,
        events: false,
    }
}

fn runtimes(root: &Path, wish: &Wish) -> anyhow::Result<Vec<RuntimeSocket>> {
    let socket = |found: Found| RuntimeSocket {
        path: found.path,
        reachable: found.answer.is_ok(),
        runtime: found.answer.as_ref().ok().cloned(),
        error: found.answer.err(),
    };
    let found = runtimes::found(root, wish).context("cannot start")?;
    Ok(found.into_iter().map(socket).collect())
}

fn ask(kube: Kube, node: &str, events: bool) -> anyhow::Result<Option<Examined>> {
    let Some(place) = kube.place else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    Ok(Some(runtime.block_on(examine(place, kube.node.as_deref().unwrap_or(node), events))))
}

/// Loads, attaches, checks, detaches: what `watch` would say at its start.
fn try_probes() -> anyhow::Result<(Started, Vec<NginxProbesFact>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let mut live = Live::start(Options::default()).await?;
        let first = live.next_batch().await;
        live.stop();
        let (mut started, mut nginx) = (None, Vec::new());
        for input in first {
            match input {
                Input::Started(fact) => started = Some(fact),
                Input::NginxProbes(fact) => nginx.push(fact),
                _ => {}
            }
        }
        Ok((started.context("the live source did not say how it started")?, nginx))
    })
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let mut row = |label: &str, value: &str| _ = writeln!(out, "{label:<13} {}", escape(value));
    row("why502", report.version);
    row("node", &report.node);
    row("kernel", &report.kernel);
    row("BTF", if report.btf { "yes" } else { "missing (/sys/kernel/btf/vmlinux)" });
    let names = |effective: bool| {
        let of = report.capabilities.iter().filter(|c| c.effective == effective);
        of.map(|c| c.name).collect::<Vec<_>>().join(" ")
    };
    row("capabilities", &some(names(true), "none"));
    if !names(false).is_empty() {
        row("", &format!("not: {}", names(false)));
    }
    let cgroups = &report.cgroups;
    let mut layout = cgroups.layout.to_string();
    if let Some(v2) = &cgroups.v2 {
        _ = write!(layout, ", v2 at {v2}");
    }
    if let (Some(v1), Some(controller)) = (&cgroups.v1, &cgroups.v1_controller) {
        _ = write!(layout, ", v1 {controller} at {v1}");
    }
    row("cgroups", &layout);
    row("tracefs", report.tracefs.as_deref().unwrap_or("not mounted"));
    let runtime = |r: &RuntimeSocket| match (&r.runtime, &r.error) {
        (Some(name), _) => format!("{} {name}", r.path),
        (None, error) => format!("{} not reachable: {}", r.path, error.as_deref().unwrap_or("?")),
    };
    let runtimes: Vec<String> = report.runtimes.iter().map(runtime).collect();
    if runtimes.is_empty() {
        row("runtimes", "no socket found: containers are named by what is on the disk, or by their ids");
    }
    for (n, runtime) in runtimes.iter().enumerate() {
        row(if n == 0 { "runtimes" } else { "" }, runtime);
    }
    for (n, line) in kubernetes(report.kubernetes.as_ref(), report.events).iter().enumerate() {
        row(if n == 0 { "kubernetes" } else { "" }, line);
    }
    for (label, found) in [("store", &report.serve.store), ("listen", &report.serve.listen)] {
        row(label, &format!("{} {}", found.what, found.text));
    }
    for (n, hook) in report.hooks.iter().enumerate() {
        let state = match &hook.state {
            HookState::Attached => "ok".to_string(),
            HookState::Skipped { why } => format!("skipped: {why}"),
            HookState::Failed { why } => format!("failed: {why}"),
        };
        row(if n == 0 { "probes" } else { "" }, &format!("{:<20} {state}", hook.hook));
    }
    for (n, nginx) in report.nginx.iter().enumerate() {
        let state = match &nginx.state {
            NginxProbesState::Attached => "seen by uprobes".to_string(),
            NginxProbesState::Detached { why } | NginxProbesState::Failed { why } => {
                format!("not seen by uprobes: {why}")
            }
        };
        let line = format!("{} (pid {}) {state}", nginx.exe, nginx.process.tgid);
        row(if n == 0 { "nginx" } else { "" }, &line);
    }
    for (n, d) in report.degraded.iter().enumerate() {
        row(if n == 0 { "degraded" } else { "" }, &format!("{}: {}", d.id, d.text));
    }
    match &report.error {
        None => row("result", "why502 works here"),
        Some(error) => row("result", &format!("why502 cannot work here: {error}")),
    }
    out
}

/// What the API lets us do, and what is not known because of what it does not.
fn kubernetes(found: Option<&Examined>, events: bool) -> Vec<String> {
    let Some(found) = found else {
        let without =
            if events { "not asked: serve --events does not start without it (--kube)" } else { "not asked (--kube)" };
        return vec![without.into()];
    };
    let version = found.version.as_deref().unwrap_or("unknown version");
    let mut lines = match &found.error {
        Some(error) => vec![format!("cannot be asked: {error}")],
        None => vec![format!("reachable, {version}")],
    };
    match (found.node_known, found.pods) {
        (Some(false), _) => lines.push("it knows no node of this name: give it with --node or NODE_NAME".into()),
        (_, Some(1)) => lines.push("1 pod on this node".into()),
        (_, Some(pods)) => lines.push(format!("{pods} pods on this node")),
        _ => {}
    }
    let holes = found.access.iter().filter(|a| !a.allowed);
    lines.extend(holes.map(|a| {
        let lost = if a.writes { "not done" } else { "not known" };
        format!(
            "not allowed: {}, so {lost}: {} (a role like the chart's templates/rbac.yaml gives it)",
            a.what, a.gives
        )
    }));
    lines
}

fn some(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_string() } else { text }
}
