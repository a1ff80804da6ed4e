//! How often why502 is right: plays every scenario with real nginx and php-fpm, and prints the figures.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use why502_tests::accuracy::{self, Figures, Order, REMARKS, Series, Setting, WORDS, new_seed, page, text};
use why502_tests::guard;

#[derive(Parser)]
#[command(about = "Plays every scenario with real nginx and php-fpm, and compares each lost request with its verdict")]
struct Args {
    /// The why502 binary; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    why502: Option<PathBuf>,
    /// Plays of each scenario
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Then play those again by which fewer requests than that were lost to what they provoke
    #[arg(long, value_name = "LOST", default_value_t = 0)]
    at_least: u64,
    /// Then draw scenario, layout, timing, ports, names and counts; the seed makes the same draws again
    #[arg(long, value_name = "SEED", num_args = 0..=1)]
    shuffle: Option<Option<u64>>,
    /// So many drawn plays; without it as many as there are others
    #[arg(long, value_name = "PLAYS", requires = "shuffle")]
    draws: Option<u64>,
    /// Replay the plays that the repository keeps, or those of a directory; needs neither root nor servers
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with_all = ["runs", "shuffle", "at_least", "record"])]
    replay: Option<Option<PathBuf>>,
    /// Play each scenario once and keep it in this directory for --replay, in the place of what is kept there of it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["runs", "shuffle", "at_least"])]
    record: Option<PathBuf>,
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
    /// Keep the turn among the live tests of this machine for so many seconds, and not for one play
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    hold: u64,
    /// Where the recordings and ledgers of deviations are kept
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir().join("why502-deviations"))]
    keep: PathBuf,
    /// Fail when the mean precision or the mean recall over the causes is below this
    #[arg(long, default_value_t = 0.995)]
    mean: f64,
    /// Fail when the precision or the recall of a cause is below this
    #[arg(long, default_value_t = 0.97)]
    worst: f64,
    /// Fail when more verdicts than this blame a wrong cause, or are about no lost request
    #[arg(long, default_value_t = 0)]
    false_blame: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(dir) = &args.replay {
        return ended(replay(&args, dir.clone().unwrap_or_else(accuracy::place)));
    }
    if let Some(why) = guard::why_not_live() {
        eprintln!("why502-accuracy: cannot run here: {why}");
        return ExitCode::FAILURE;
    }
    ended(guard::catch_interrupts().and_then(|()| run(&args)))
}

fn ended(result: Result<bool>) -> ExitCode {
    match result {
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
    if let Some(dir) = &args.record {
        return record(&why502, dir, &args.only);
    }
    let seed = args.shuffle.map(|seed| seed.unwrap_or_else(new_seed));
    if let Some(seed) = seed {
        println!("seed {seed}");
    }
    let all = Series::scenarios(&args.only)?.len() as u64 * args.runs.max(1);
    let order = Order {
        runs: args.runs,
        at_least: args.at_least,
        drawn: seed.map_or(0, |_| args.draws.unwrap_or(all)),
        seed: seed.unwrap_or_default(),
        only: args.only.clone(),
        layout: args.layout.clone(),
        together: !args.alone && args.only.is_empty(),
        hold: Duration::from_secs(args.hold),
        keep: args.keep.clone(),
    };
    let mut series = Series::new(&why502, order)?;
    // Of the start: the report itself changes the checkout.
    let mut setting = Setting { least: args.at_least, ..setting(seed)? };
    let done = series.run(|series| {
        setting.took = series.took;
        args.report.iter().try_for_each(|file| write(file, series, &setting))
    });
    println!("\n{}", text(&series.figures, args.at_least));
    done?;
    Ok(good_enough(&series.figures, args))
}

/// The same figures as of live plays, of the recordings.
fn replay(args: &Args, dir: PathBuf) -> Result<bool> {
    let all = accuracy::recordings(&dir)?;
    let all: Vec<_> = all.into_iter().filter(|one| accuracy::is_of(one.ledgers.part.scenario, &args.only)).collect();
    ensure!(!all.is_empty(), "{} has no such recording", dir.display());
    let figures = accuracy::replayed(&all);
    println!("{}", text(&figures, 0));
    figures.deviations.iter().for_each(|line| println!("DEVIATION {line}"));
    Ok(good_enough(&figures, args))
}

/// What cannot be kept is said, and the others are.
fn record(why502: &Path, dir: &Path, only: &[String]) -> Result<bool> {
    let mut failed = 0;
    for scenario in Series::scenarios(only)? {
        let part = accuracy::kept(scenario);
        if let Some(why) = part.why_not() {
            println!("{part}: skipped: {why}");
            continue;
        }
        let turn = guard::turn()?;
        let kept = accuracy::record(why502, part.clone(), dir);
        drop(turn);
        match kept {
            Ok(said) => println!("{part}: {said}"),
            Err(e) if !guard::interrupted() => {
                println!("{part}: not kept: {e:#}");
                failed += 1;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(failed == 0)
}

/// After each round: an interrupted series has its figures as well. What people wrote below stays.
fn write(file: &Path, series: &Series, setting: &Setting) -> Result<()> {
    let old = std::fs::read_to_string(file).unwrap_or_default();
    let remarks = old.find(REMARKS).map_or(REMARKS, |at| &old[at..]);
    let text = format!("{}\n{}\n", page(&series.figures, &series.drawn, setting), remarks.trim_end());
    std::fs::write(file, text).with_context(|| format!("{}", file.display()))
}

/// Says on stderr what falls short.
fn good_enough(figures: &Figures, args: &Args) -> bool {
    let mut short = Vec::new();
    for (what, mean) in
        [("precision", figures.macro_mean(|c| c.precision())), ("recall", figures.macro_mean(|c| c.recall()))]
    {
        short.extend(mean.filter(|m| *m < args.mean).map(|m| format!("mean {what} {m:.4}, wanted {}", args.mean)));
    }
    let (verdicts, right) = figures.from_confidence(95);
    if (right as f64) < 0.99 * verdicts as f64 {
        short.push(format!("{right} of {verdicts} verdicts that are certain are right, wanted 99%"));
    }
    if figures.false_blame() > args.false_blame {
        short.push(format!("{} verdicts with a false blame, allowed {}", figures.false_blame(), args.false_blame));
    }
    let Figures { wrong_pod, wrong_sub_cause, wrong_mechanism, .. } = figures;
    if wrong_pod + wrong_sub_cause + wrong_mechanism > 0 {
        short.push(format!("{wrong_pod} wrong pods, {wrong_sub_cause} sub causes, {wrong_mechanism} mechanisms"));
    }
    let unplayed = figures.deviations.iter().filter(|d| d.contains("not played") || d.contains("did not happen"));
    short.extend(unplayed.cloned());
    let worst = figures.causes.iter().filter(|(_, c)| c.lost > 0).map(|(cause, c)| {
        let share = |(hits, n): (u64, u64)| if n == 0 { 1.0 } else { hits as f64 / n as f64 };
        (cause, share(c.recall()).min(share(c.precision())))
    });
    short.extend(worst.filter(|(_, s)| *s < args.worst).map(|(c, s)| format!("{c}: {s:.4}, wanted {}", args.worst)));
    let few = figures.provoked.iter().filter(|(_, c)| c.lost < args.at_least);
    short.extend(few.map(|((cause, sub), c)| format!("{cause} {}: only {} lost", sub.unwrap_or_default(), c.lost)));
    for line in &short {
        eprintln!("why502-accuracy: {line}");
    }
    short.is_empty()
}

/// As people type it.
fn command(args: impl Iterator<Item = String>) -> String {
    let mut words = vec!["cargo xtask accuracy".to_string()];
    let mut args = args;
    while let Some(word) = args.next() {
        match word.as_str() {
            // Places of this machine.
            "--why502" | "--keep" => drop(args.next()),
            _ => words.push(word),
        }
    }
    words.join(" ")
}

fn setting(seed: Option<u64>) -> Result<Setting> {
    let said = |program: PathBuf, args: &[&str]| -> Result<String> {
        let out = Command::new(&program).args(args).output().with_context(|| program.display().to_string())?;
        // nginx -v speaks on stderr.
        let text = String::from_utf8_lossy(if out.stdout.is_empty() { &out.stderr } else { &out.stdout }).into_owned();
        Ok(text.lines().next().unwrap_or_default().trim().to_string())
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let commit = said("git".into(), &["describe", "--always", "--dirty= and changes", "--exclude=*", "--abbrev=10"])
        .unwrap_or_default();
    let php = said(why502_tests::php::binary()?, &["-n", "-v"])?;
    Ok(Setting {
        command: command(std::env::args().skip(1)),
        // Without what its builder calls it.
        kernel: kernel.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default().to_string(),
        commit,
        date: said("date".into(), &["-u", "+%Y-%m-%d"])?,
        nginx: said(why502_tests::nginx::binary()?, &["-v"])?.replace("nginx version: ", ""),
        php: php.split(" (").next().unwrap_or(&php).to_string(),
        seed,
        took: Duration::ZERO,
        least: 0,
    })
}
