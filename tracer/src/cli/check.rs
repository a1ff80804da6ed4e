//! `why502 check`: what the next stop of a pod would lose, from its configuration files or from a running container.

use super::output::OutputArgs;
use super::say;
use crate::check::assemble::{Given, Image, Unmatched, assemble};
use crate::check::files::{File, Files, NoFiles};
use crate::check::setup::EDGE_IDLE_DEFAULT;
use crate::check::{self, Report, dockerfile, fpm, image, nginx, supervisor};
use crate::model::place::{Place, Trouble};
use crate::sinks::{json, text};
use crate::sources::root::{Root, bounded};
use crate::sources::running::{self, Wanted};
use crate::sources::spec;
use anyhow::Context;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  nginx -T | why502 check --nginx - --fpm www.conf --dockerfile Dockerfile --spec deploy.yaml
  why502 check --dockerfile nginx=web/Dockerfile --dockerfile php=app/Dockerfile --spec pod.yaml
  why502 check --container 3f2a9c41 --spec pod.yaml --longest-request 20

A container is read in place, with the others of its pod; stop signal, preStop hook and grace
period are not seen there: --image, --dockerfile or --spec tell them.
Exit codes: 0 nothing found, 1 something found, 2 bad usage or unreadable input.";

const USAGE: &str = "why502 check [OPTIONS] --nginx FILE | --spec FILE | --container ID | ...";

const STDIN: &str = "-";

/// Tell what the next stop of a pod would lose, before it happens
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
#[command(group = clap::ArgGroup::new("input").required(true).multiple(true)
    .args(["nginx", "fpm", "supervisord", "dockerfile", "image", "spec", "container", "pid"]))]
pub(super) struct Args {
    /// Output of `nginx -T`, or nginx.conf; NAME is the container's in the spec
    #[arg(long, value_name = "[NAME=]FILE")]
    nginx: Vec<String>,
    /// php-fpm.conf, a pool, or output of `php-fpm -tt`
    #[arg(long, value_name = "FILE")]
    fpm: Vec<String>,
    /// supervisord.conf
    #[arg(long, value_name = "FILE")]
    supervisord: Option<String>,
    /// Dockerfile; NAME is the container's in the spec
    #[arg(long, value_name = "[NAME=]FILE")]
    dockerfile: Vec<String>,
    /// Image configuration: OCI, or from `docker inspect`
    #[arg(long, value_name = "[NAME=]FILE")]
    image: Vec<String>,
    /// Pod, Deployment, StatefulSet ... in YAML or JSON
    #[arg(long, value_name = "FILE", alias = "pod-spec")]
    spec: Vec<String>,
    /// A container that runs here, by the beginning of its id
    #[arg(long, value_name = "ID", conflicts_with = "pid")]
    container: Option<String>,
    /// The same, by the pid of one of its processes
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// How long the longest request takes
    #[arg(long, value_name = "SECONDS")]
    longest_request: Option<u64>,
    /// How long the edge keeps idle connections to the pod
    #[arg(long, value_name = "SECONDS", default_value_t = EDGE_IDLE_DEFAULT)]
    edge_idle: u64,
    /// Grace period, where no spec tells it (docker stop: 10)
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Input that cannot be used: exit code 2.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot read {0}: {1}")]
    Read(String, #[source] io::Error),
    #[error("only one FILE can be - (standard input)")]
    TwiceStdin,
    #[error(transparent)]
    Trouble(#[from] Trouble),
    #[error(transparent)]
    Unmatched(#[from] Unmatched),
    #[error(transparent)]
    Running(#[from] running::Error),
    #[error("{0}: no pod, and nothing that makes pods")]
    NoPods(String),
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let reports = match reports(&args) {
        Ok(reports) => reports,
        Err(err) => {
            say(err);
            return Ok(ExitCode::from(2));
        }
    };
    let report = together(reports);
    print(&args.output, &report).context("cannot write to stdout")?;
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn reports(args: &Args) -> Result<Vec<Report>, Unusable> {
    let all = args.fpm.iter().chain(&args.supervisord).chain(&args.spec);
    let images = args.nginx.iter().chain(&args.dockerfile).chain(&args.image).map(|arg| named(arg).1);
    if all.map(String::as_str).chain(images).filter(|name| *name == STDIN).count() > 1 {
        return Err(Unusable::TwiceStdin);
    }
    Ok(assemble(&given(args)?)?.iter().map(check::check).collect())
}

fn given(args: &Args) -> Result<Given, Unusable> {
    let mut given = Given { grace: args.grace, longest: args.longest_request, ..Given::default() };
    given.edge_idle = args.edge_idle;
    for arg in &args.nginx {
        let (container, name) = named(arg);
        let file = read(name)?;
        let facts = nginx::Facts::read(&file.name, &file.text, beside(name).as_ref())?;
        given.nginx.push((container.map(str::to_owned), facts));
    }
    if let Some(first) = args.fpm.first() {
        let files = args.fpm.iter().map(|name| read(name)).collect::<Result<Vec<File>, Unusable>>()?;
        given.fpm = Some(fpm::Facts::read(&files, beside(first).as_ref())?);
    }
    if let Some(name) = &args.supervisord {
        given.supervisor = Some(supervisor::Facts::read(&read(name)?, beside(name).as_ref())?);
    }
    for arg in &args.dockerfile {
        let (container, name) = named(arg);
        let file = read(name)?;
        let facts = dockerfile::Facts::read(&file.name, &file.text)?;
        let image = Image::of_dockerfile(&facts, scripts(name, &facts));
        given.images.push(Image { container: container.map(str::to_owned), ..image });
    }
    for arg in &args.image {
        let (container, name) = named(arg);
        let file = read(name)?;
        let image = Image::of_config(image::Facts::read(&file.name, &file.text)?);
        given.images.push(Image { container: container.map(str::to_owned), ..image });
    }
    for name in &args.spec {
        let file = read(name)?;
        let workloads = spec::read(&file.name, &file.text)?;
        if workloads.is_empty() {
            return Err(Unusable::NoPods(file.name));
        }
        given.workloads.extend(workloads);
    }
    let container = args.container.clone().map(Wanted::Container);
    if let Some(wanted) = container.or(args.pid.map(Wanted::Pid)) {
        given.running = running::find(Path::new("/"), &wanted)?;
    }
    Ok(given)
}

fn read(name: &str) -> Result<File, Unusable> {
    let text = if name == STDIN { bounded(io::stdin().lock()) } else { std::fs::File::open(name).and_then(bounded) };
    let text = text.map_err(|e| Unusable::Read(name.to_owned(), e))?;
    Ok(File { name: if name == STDIN { "(stdin)".to_owned() } else { name.to_owned() }, text })
}

/// Only what lies in the file's own directory: other paths are the container's, not this host's.
fn beside(name: &str) -> Box<dyn Files> {
    match Root::beside(name) {
        Ok(root) if name != STDIN => Box::new(root),
        _ => Box::new(NoFiles),
    }
}

/// `NAME=FILE`, unless there is a file of that whole name.
fn named(arg: &str) -> (Option<&str>, &str) {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
    };
    match arg.split_once('=') {
        Some((name, file)) if is_name(name) && !Path::new(arg).exists() => (Some(name), file),
        _ => (None, arg),
    }
}

/// Scripts that the image copies from beside its Dockerfile: an entrypoint may be among them.
fn scripts(name: &str, facts: &dockerfile::Facts) -> Vec<(String, String)> {
    let Ok(root) = Root::beside(name) else { return Vec::new() };
    let dir = Place::of(name).file.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    let wanted = facts.copies.iter().filter(|_| name != STDIN);
    let text = |from: &str| root.read(&format!("{dir}{}", from.trim_start_matches("./"))).ok();
    wanted.filter_map(|(to, from)| Some((to.clone(), text(from)?))).filter(|(_, text)| text.starts_with("#!")).collect()
}

/// One report of all pods: what was not checked is the same for most.
fn together(reports: Vec<Report>) -> Report {
    let mut all = Report::default();
    for report in reports {
        all.findings.extend(report.findings);
        for missing in report.not_checked {
            if !all.not_checked.contains(&missing) {
                all.not_checked.push(missing);
            }
        }
    }
    all.findings.sort_by_key(|finding| finding.severity);
    all
}

fn print(output: &OutputArgs, report: &Report) -> anyhow::Result<()> {
    let mut to = io::BufWriter::new(io::stdout().lock());
    if output.json() {
        for finding in &report.findings {
            writeln!(to, "{}", json::line(finding)?)?;
        }
        writeln!(to, "{}", json::line(&report.summary())?)?;
    } else {
        write!(to, "{}", text::report(report, output.paint()))?;
    }
    Ok(to.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_before_files() {
        assert_eq!(named("php=app/Dockerfile"), (Some("php"), "app/Dockerfile"));
        assert_eq!(named("app/a=b/Dockerfile"), (None, "app/a=b/Dockerfile"));
        assert_eq!(named("Dockerfile"), (None, "Dockerfile"));
        assert_eq!(named("nginx=-"), (Some("nginx"), "-"));
    }
}
