//! How often why502 is right: plays every scenario with real nginx and php-fpm, and prints the figures.

use anyhow::{Context, Result};
use clap::Parser;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use why502_tests::accuracy::{Figures, Order, Series, Setting, WORDS, new_seed, page, text};
use why502_tests::guard;

#[derive(Parser)]
#[command(about = "Plays every scenario with real nginx and php-fpm, and compares each lost request with its verdict")]
struct Args {
    /// The why502 binary; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    why502: Option<PathBuf>,
    /// Plays of each scenario
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Draw scenario, layout, timing, ports, names and counts; the seed makes the same draws again
    #[arg(long, value_name = "SEED", num_args = 0..=1)]
    shuffle: Option<Option<u64>>,
    /// Only these scenarios, or those of these causes
    #[arg(long, value_name = "SCENARIO|CAUSE")]
    only: Vec<String>,
    #[arg(long, value_name = "WORD", value_delimiter = ',', help = format!("Parts of the layout that stay: {WORDS}"))]
    layout: Vec<String>,
    /// Leave out the plays with several pods at once
    #[arg(long)]
    alone: bool,
    /// Write the page of the figures here
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the recordings and ledgers of deviations are kept
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir().join("why502-deviations"))]
    keep: PathBuf,
    /// Fail when the mean recall over the causes is below this
    #[arg(long, default_value_t = 0.995)]
    recall: f64,
    /// Fail when more verdicts than this blame a wrong cause, or are about no lost request
    #[arg(long, default_value_t = 0)]
    false_blame: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(why) = guard::why_not_live() {
        eprintln!("why502-accuracy: cannot run here: {why}");
        return ExitCode::FAILURE;
    }
    match guard::catch_interrupts().and_then(|()| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("why502-accuracy: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let why502 = match &args.why502 {
        Some(path) => path.clone(),
        None => why502_tests::launch::sibling("why502").context("--why502 PATH names it")?,
    };
    let seed = args.shuffle.map(|seed| seed.unwrap_or_else(new_seed));
    if let Some(seed) = seed {
        println!("seed {seed}");
    }
    let order = Order {
        runs: args.runs,
        seed,
        only: args.only.clone(),
        layout: args.layout.clone(),
        together: !args.alone && args.only.is_empty(),
        plays: None,
        keep: args.keep.clone(),
    };
    let mut series = Series::new(&why502, order)?;
    let done = series.run();
    println!("\n{}", text(&series.figures));
    done?;
    if let Some(file) = &args.report {
        let setting = setting(&series, seed)?;
        std::fs::write(file, page(&series.figures, &setting)).with_context(|| format!("{}", file.display()))?;
        println!("written: {}", file.display());
    }
    Ok(good_enough(&series.figures, args))
}

/// Says on stderr what falls short.
fn good_enough(figures: &Figures, args: &Args) -> bool {
    let mut short = Vec::new();
    let recall = figures.macro_mean(|c| c.recall()).unwrap_or(1.0);
    if recall < args.recall {
        short.push(format!("mean recall {recall:.4}, wanted {}", args.recall));
    }
    if figures.false_blame() > args.false_blame {
        short.push(format!("{} verdicts with a false blame, allowed {}", figures.false_blame(), args.false_blame));
    }
    if figures.wrong_pod + figures.wrong_sub_cause > 0 {
        short.push(format!("{} wrong pods, {} wrong sub causes", figures.wrong_pod, figures.wrong_sub_cause));
    }
    let unplayed = figures.deviations.iter().filter(|d| d.contains("not played") || d.contains("did not happen"));
    short.extend(unplayed.cloned());
    for line in &short {
        eprintln!("why502-accuracy: {line}");
    }
    short.is_empty()
}

fn setting(series: &Series, seed: Option<u64>) -> Result<Setting> {
    let said = |program: PathBuf, args: &[&str]| -> Result<String> {
        let out = Command::new(&program).args(args).output().with_context(|| program.display().to_string())?;
        // nginx -v speaks on stderr.
        let text = String::from_utf8_lossy(if out.stdout.is_empty() { &out.stderr } else { &out.stdout }).into_owned();
        Ok(text.lines().next().unwrap_or_default().trim().to_string())
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let commit = said("git".into(), &["rev-parse", "--short=10", "HEAD"]).unwrap_or_default();
    let php = said(why502_tests::php::binary()?, &["-n", "-v"])?;
    Ok(Setting {
        kernel: kernel.trim().to_string(),
        commit,
        date: said("date".into(), &["-u", "+%Y-%m-%d"])?,
        nginx: said(why502_tests::nginx::binary()?, &["-v"])?.replace("nginx version: ", ""),
        php: php.split(" (").next().unwrap_or(&php).to_string(),
        plays: series.plays,
        seed,
        took: series.took,
    })
}
