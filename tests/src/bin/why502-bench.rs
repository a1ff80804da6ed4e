//! What watching costs: nanoseconds per hit of each probe (the kernel's own run statistics), and the throughput of a pod's
//! nginx with and without why502, in pairs. These machines are noisy: only ratios of one run mean anything.

use anyhow::{Context, Result, bail};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use clap::Parser;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use why502_ebpf::names::HOOKS;
use why502_tests::guard::{self, wait};
use why502_tests::load::{Load, LoadConf, Progress};
use why502_tests::nginx::NginxConf;
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::Tracer;

/// Measure the cost of watching on a real local pod.
#[derive(Parser)]
struct Args {
    /// The binary to measure.
    #[arg(long)]
    why502: PathBuf,
    /// Pairs of measurements, without and with why502.
    #[arg(long, default_value_t = 6)]
    pairs: u32,
    /// Seconds of load per measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only the part about uprobes.
    #[arg(long)]
    only_uprobes: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(why) = guard::why_not_live() {
        bail!("{why}");
    }
    let _turn = guard::turn()?;
    println!("kernel {}", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    if !args.only_uprobes {
        for (name, keep_alive) in [("connection per request", false), ("keep-alive", true)] {
            measure(&args, name, keep_alive)?;
        }
    }
    println!("\nuprobes on nginx: throughput with --uprobes on / off, {} pairs of {} s", args.pairs, args.seconds);
    let debug = || NginxConf { main_extra: "error_log /dev/null debug;".into(), ..NginxConf::default() };
    let moved = || NginxConf { server_extra: "location /moved { return 302 /; }".into(), ..NginxConf::default() };
    for (name, conf, path, keep_alive) in [
        ("keep-alive", NginxConf::default(), "/static", true),
        ("connection per request", NginxConf::default(), "/static", false),
        ("all 404, keep-alive", NginxConf::default(), "/not-there", true),
        ("all 302, keep-alive", moved(), "/moved", true),
        ("error_log debug, keep-alive", debug(), "/static", true),
    ] {
        with_uprobes(&args, name, conf, path, keep_alive)?;
    }
    Ok(())
}

/// The same why502 with and without uprobes, one after the other, in changing order. The kernel's statistics are read apart:
/// they cost something themselves.
fn with_uprobes(args: &Args, name: &str, nginx: NginxConf, path: &str, keep_alive: bool) -> Result<()> {
    let site = Site::start(&SiteConf { nginx, ..SiteConf::default() })?;
    let time = Duration::from_secs(args.seconds);
    let measured = |uprobes: &str| -> Result<(f64, Vec<String>)> {
        let watch = Tracer::watch(&args.why502, &["--uprobes".as_ref(), uprobes.as_ref()])?;
        let rate = rate(&site, path, keep_alive, time)?;
        Ok((rate, watch.stop()?.stderr))
    };
    let (mut ratios, mut given_up) = (Vec::new(), 0);
    rate(&site, path, keep_alive, time)?; // warm
    for pair in 0..args.pairs {
        let ((off, _), (on, said)) = if pair % 2 == 0 {
            let off = measured("off")?;
            (off, measured("on")?)
        } else {
            let on = measured("on")?;
            (measured("off")?, on)
        };
        ratios.push(on / off);
        given_up += usize::from(said.iter().any(|l| l.contains("too often")));
    }
    let watch = Tracer::watch(&args.why502, &["--uprobes".as_ref(), "on".as_ref()])?;
    let stats = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS (needs CAP_SYS_ADMIN)")?;
    let requests = rate(&site, path, keep_alive, Duration::from_secs(1))?;
    let hits: Vec<_> =
        run_stats(watch.pid())?.into_iter().filter(|(hook, _, hits)| hook.starts_with("ngx_") && *hits > 0).collect();
    drop(stats);
    watch.stop()?;
    ratios.sort_by(f64::total_cmp);
    println!(
        "  {name}: median {:.3}, range {:.3} to {:.3}; taken off in {given_up} of {} runs",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
        args.pairs
    );
    for (hook, time, hits) in hits {
        let each = hits as f64 / requests;
        println!("    {hook:<34} {:>6} ns per hit in the program, about {each:.2} hits per request", time / hits);
    }
    Ok(())
}

fn measure(args: &Args, name: &str, keep_alive: bool) -> Result<()> {
    let site = Site::start(&SiteConf::default())?;
    let time = Duration::from_secs(args.seconds);
    let mut ratios = Vec::new();
    let mut hooks: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut requests = 0.0;
    rate(&site, "/static", keep_alive, time)?; // warm
    for _ in 0..args.pairs {
        let bare = rate(&site, "/static", keep_alive, time)?;
        let watch = Tracer::watch(&args.why502, &[])?;
        let watched = rate(&site, "/static", keep_alive, time)?;
        ratios.push(watched / bare);
        let stats = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS (needs CAP_SYS_ADMIN)")?;
        requests += rate(&site, "/static", keep_alive, time)? * time.as_secs_f64();
        for (hook, time, hits) in run_stats(watch.pid())? {
            let sum = hooks.entry(hook).or_default();
            (sum.0, sum.1) = (sum.0 + time, sum.1 + hits);
        }
        drop(stats);
        watch.stop()?;
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "\n{name}: throughput with why502 / without, {} pairs of {} s: median {:.3}, range {:.3} to {:.3}",
        args.pairs,
        args.seconds,
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    let total: u64 = hooks.values().map(|(time, _)| time).sum();
    for (hook, (time, hits)) in hooks.iter().filter(|(_, (_, hits))| *hits > 0) {
        println!("  {hook:<22} {:>6} ns per hit, {:>6.2} hits per request", time / hits, *hits as f64 / requests);
    }
    println!("  all hooks              {:>6.0} ns per request (both ends are on this host)", total as f64 / requests);
    Ok(())
}

/// Answers per second.
fn rate(site: &Site, path: &str, keep_alive: bool, time: Duration) -> Result<f64> {
    let mut conf = LoadConf::new(site.pod_addr(false), path);
    (conf.connections, conf.keep_alive) = (16, keep_alive);
    let load = Load::start(Some(site.client.path()), conf)?;
    wait("the first answers", Duration::from_secs(30), || Progress::get(&load.progress.answered) > 100)?;
    let (before, start) = (Progress::get(&load.progress.answered), Instant::now());
    std::thread::sleep(time);
    let answered = Progress::get(&load.progress.answered) - before;
    let rate = answered as f64 / start.elapsed().as_secs_f64();
    load.stop()?;
    Ok(rate)
}

/// Run time (ns) and hits of the programs of one process since statistics were enabled: another why502 may be running.
fn run_stats(pid: u32) -> Result<Vec<(&'static str, u64, u64)>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = text.lines().find_map(|l| l.strip_prefix("prog_id:")).and_then(|id| id.trim().parse::<u32>().ok());
        ids.extend(id);
    }
    let mut all = Vec::new();
    for info in loaded_programs() {
        let info = info?;
        // The kernel keeps 15 bytes of a name.
        let hook = HOOKS.iter().find(|h| info.name_as_str() == Some(&h.name[..h.name.len().min(15)]));
        if let Some(hook) = hook.filter(|_| ids.contains(&info.id())) {
            all.push((hook.name, info.run_time().as_nanos() as u64, info.run_count()));
        }
    }
    Ok(all)
}
