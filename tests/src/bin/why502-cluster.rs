//! Ends of pods on a real Kubernetes node, under load: what was lost, and what why502 says of it. And the chart on such a
//! node.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use why502_tests::cluster::{self, Cluster, operator, report, stories};
use why502_tests::guard;

#[derive(Parser)]
#[command(
    about = "Deletes, scales down, rolls out and kills pods of a real Kubernetes node, and compares each lost request"
)]
struct Args {
    /// Directory of kube-apiserver, kube-controller-manager and kubelet
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// Only stories with this in their name
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Write what was seen into this page
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Archive of the agent's images: the chart is installed instead, and used as an operator does
    #[arg(long, value_name = "FILE", requires_all = ["manifest", "manifest_nonroot"], conflicts_with = "only")]
    image: Option<PathBuf>,
    /// The chart, rendered with the rights of its own values
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// The chart, rendered for another user than root
    #[arg(long, value_name = "FILE")]
    manifest_nonroot: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(why) = guard::why_not_traced().or_else(|| cluster::why_not(&args.programs)) {
        eprintln!("why502-cluster: cannot run here: {why}");
        return ExitCode::FAILURE;
    }
    match guard::catch_interrupts().and_then(|()| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("why502-cluster: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let _turn = guard::turn()?;
    let start = std::time::Instant::now();
    let cluster = Cluster::start(&args.programs)?;
    let label = cluster.label()?;
    println!("{label}: the node is ready after {:.1?}", start.elapsed());
    match (&args.image, &args.manifest, &args.manifest_nonroot) {
        (Some(image), Some(manifest), Some(nonroot)) => {
            cluster.import(image)?;
            install(args, &cluster, &label, [manifest, nonroot])
        }
        _ => play(args, &cluster, &label),
    }
}

fn install(args: &Args, cluster: &Cluster, label: &str, manifests: [&Path; 2]) -> Result<()> {
    let [root, nonroot] = manifests;
    let seen = [
        ("A, the chart's own", operator::all(cluster, root).context("profile A")?),
        ("B, not root", operator::not_root(cluster, nonroot).context("profile B")?),
    ];
    if let Some(file) = &args.report {
        report::put(file, report::CHART, &report::chart(label, &seen)).context("cannot write the report")?;
    }
    println!("the chart: installed, used and uninstalled with {} profiles", seen.len());
    Ok(())
}

fn play(args: &Args, cluster: &Cluster, label: &str) -> Result<()> {
    let all = stories::all();
    let wanted = all.iter().filter(|s| args.only.as_ref().is_none_or(|word| s.name.contains(word.as_str())));
    let (mut played, mut failed) = (Vec::new(), Vec::new());
    for story in wanted {
        match stories::play(cluster, story) {
            Ok(p) => {
                println!("{}: {}", story.name, p.result);
                played.push((story, p));
            }
            Err(e) => {
                println!("{}: FAILED: {e:#}", story.name);
                failed.push(story.name);
            }
        }
        ensure!(!guard::interrupted(), "interrupted");
    }
    ensure!(!played.is_empty() || !failed.is_empty(), "no story has that in its name");
    if let Some(file) = &args.report {
        report::put(file, report::STORIES, &report::render(label, &played)).context("cannot write the report")?;
    }
    ensure!(
        failed.is_empty(),
        "{} of {} stories failed: {}",
        failed.len(),
        failed.len() + played.len(),
        failed.join(", ")
    );
    Ok(())
}
