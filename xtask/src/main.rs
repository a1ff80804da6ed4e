//! `cargo xtask`: everything that a developer or a CI machine does with this project. One file per subcommand.

mod accuracy;
mod apt;
mod bench;
mod build;
mod chart;
mod cluster;
mod collector;
mod containerds;
mod demo;
mod dist;
mod gates;
mod kernels;
mod lint;
mod setup;
mod sh;
mod suites;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// why502's own tasks: set up the machine, build with the probes inside, show it, test it
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Examples:
  cargo xtask setup --for build    only what a build needs (compiler's core for BPF, bpf-linker)
  cargo xtask build                target/release/why502, probes inside
  sudo -E env \"PATH=$PATH\" cargo xtask demo
  cargo xtask test --skip-vm       units and live tests, without the QEMU kernels"
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what is needed; safe to run twice
    Setup(setup::Args),
    /// Build the probes, check them, and build target/release/why502 with them inside
    Build(build::Args),
    /// Set up, build, and run the demo: a real local pod that loses requests, explained (root)
    Demo(demo::Args),
    /// Set up, build, and run every test: units, live on this kernel, QEMU kernels (root)
    Test(test::Args),
    /// Run why502, attached and under fire, on the kernels of real nodes in QEMU
    Vm(vm::Args),
    /// Set up, build, and measure what watching costs: ns per probe, throughput in pairs (root)
    Bench(bench::Args),
    /// Set up, build, and measure how often why502 is right: every cause played, every lost request compared (root)
    Accuracy(accuracy::Args),
    /// Set up, build, and end pods of a real Kubernetes node under load (root; the first time it builds the kubelet: 15 min)
    Cluster(cluster::Args),
    /// Render the Helm chart into the plain manifests, and check it (needs Go and sprig, which it installs)
    Chart(chart::Args),
    /// Build what is handed out: static binary, deb, images, chart, manifests (target/dist)
    Dist(dist::Args),
    /// Check the probes' sources: the rules against kernel panics, and clippy for the BPF target
    Lint(lint::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(&args).map(|_| ()),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Accuracy(args) => accuracy::run(&args),
        Task::Cluster(args) => cluster::run(&args),
        Task::Chart(args) => chart::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Lint(args) => lint::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
