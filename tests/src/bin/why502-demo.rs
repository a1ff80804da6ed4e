//! The demo, in five acts: a real local pod is deleted and loses requests, why502 says why and what to change, and the act
//! is played again with that change: nothing is lost any more.
//!
//! client → edge nginx → pod (nginx and php-fpm, a container each). The harness plays the kubelet (hooks, stop signals, grace
//! period) and the balancer, which learns of the deletion a while later. The client's ledger and why502's incidents are
//! compared one by one.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::Signal::SIGQUIT;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use why502::explain::advice;
use why502::model::incident::{Advice, Cause, Incident};
use why502::sinks::text::{self, Paint};
use why502_tests::advised::{Act, Plan, Traffic, unhappy};
use why502_tests::guard::{self, Dir};
use why502_tests::kubelet::{Deletion, PreStop, Stop};
use why502_tests::ledger::{self, Rules};
use why502_tests::php::FpmConf;
use why502_tests::scene::Over;
use why502_tests::site::SiteConf;
use why502_tests::tracer::{Tracer, claims};
use why502_tests::tun::Trouble;

#[derive(Parser)]
#[command(about = "A real local pod loses requests in five ways; why502 explains each of them and how to lose none")]
struct Args {
    /// The why502 binary; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    why502: Option<PathBuf>,
    /// Only this act, 1 to 5
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    act: Option<u8>,
    /// Keep the recording here
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(why) = guard::why_not_live() {
        eprintln!("why502-demo: cannot run here: {why}");
        return ExitCode::FAILURE;
    }
    match guard::catch_interrupts().and_then(|()| demo(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("why502-demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every verdict is given within 2 s.
const VERDICTS: Duration = Duration::from_millis(2500);

struct Story {
    title: &'static str,
    /// What happens, in a sentence or two.
    what: &'static str,
    /// The incident that is shown is of this cause.
    show: Cause,
    plan: Plan,
    traffic: Traffic,
}

fn demo(args: &Args) -> Result<bool> {
    let why502 = match &args.why502 {
        Some(path) => path.clone(),
        None => why502_tests::launch::sibling("why502").context("--why502 PATH names it")?,
    };
    let _turn = guard::turn()?;
    let files = Dir::new()?;
    let recording = args.record.clone().unwrap_or_else(|| files.join("demo.rec"));
    let watch = Tracer::watch(&why502, &["--record".as_ref(), recording.as_os_str()])?;
    println!("why502 watches the node's kernel. Nothing is changed in nginx, php or the pods for it.");
    let (mut sums, mut good) = (Vec::new(), true);
    for (n, story) in (1..).zip(acts()).filter(|(n, _)| args.act.is_none_or(|act| act == *n)) {
        let (lost, explained, again) = play(n, &story, &watch)?;
        good &= lost == explained && again == 0;
        sums.push(format!(
            "  {n}. {:<44} lost {lost:>3}, explained {explained:>3}; with the advice {again:>3}",
            story.title
        ));
    }
    watch.stop()?;
    println!("\n{}", sums.join("\n"));
    if let Some(kept) = &args.record {
        println!("\nThe recording is {}: why502 explain {} says the same again.", kept.display(), kept.display());
    }
    Ok(good)
}

/// Lost, explained, lost with the advice applied.
fn play(n: u8, story: &Story, watch: &Tracer) -> Result<(usize, usize, usize)> {
    let paint = Paint { on: std::io::stdout().is_terminal() };
    println!("\n{}\n{}", paint.bold(&format!("Act {n}: {}", story.title)), story.what);
    let (over, incidents) = shown(story, watch)?;
    let rules = Rules {
        made: &[502],
        seen: over.site.started_scripts()?,
        allowed: &|_, _| Cause::ALL,
        mechanisms: &ledger::any_mechanism,
    };
    let result = ledger::compare(&over.requests, &claims(&incidents, &over.site), &rules);
    let (lost, explained) = (result.lost_total(), result.explained);
    let by: Vec<String> = result.by_cause.iter().map(|(cause, n)| format!("{cause} {n}")).collect();
    println!("\n  client   {} requests, {lost} lost", result.requests);
    println!("  why502   {explained} of them explained: {}", by.join(", "));
    for line in result.complaints() {
        println!("  {}", paint.red(&line));
    }
    // The request that was cut latest tells most; of equal ones the last one knows most of the stop.
    let of_cause = incidents.iter().filter(|i| i.cause == story.show);
    let example = of_cause.max_by_key(|i| (i.age_ms, i.at_boot_ns)).context("an act shows its cause")?;
    println!("\n{}", text::incident(example, paint).trim_end());

    let mut all: Vec<Advice> = Vec::new();
    incidents.iter().for_each(|i| advice::merge(&mut all, &i.advice));
    drop(over);
    let mut plan = story.plan.clone();
    let rest = plan.apply(&all);
    let kept = |a: &Advice| rest.contains(&a.id) || a.id == "grace-period" && a.value.is_none();
    let done: Vec<String> = all.iter().filter(|a| !kept(a)).map(short).collect();
    println!("\n  again, with {}", done.join(", "));
    let start = guard::boot_ns();
    let (over, _) = plan.stage()?.play(&story.traffic)?;
    let unhappy = unhappy(&over);
    let false_ones = heard(watch, &over, start)?.len();
    ensure!(false_ones <= unhappy.len(), "{false_ones} incidents where nothing was lost");
    for line in unhappy.iter().take(5) {
        println!("  {}", paint.red(line));
    }
    let sum = format!("lost {lost} -> {}", unhappy.len());
    println!("  client   {} requests, {} lost: {}", over.requests.len(), unhappy.len(), paint.bold(&sum));
    Ok((lost, explained, unhappy.len()))
}

fn short(a: &Advice) -> String {
    let value = a.value.map(|v| format!(" {v} {}", a.unit.as_deref().unwrap_or_default())).unwrap_or_default();
    format!("{}{value}", a.id)
}

/// The act, until something is lost to its cause: a race is not lost by every stop.
fn shown(story: &Story, watch: &Tracer) -> Result<(Over, Vec<Incident>)> {
    for _ in 0..5 {
        let start = guard::boot_ns();
        let (over, _) = story.plan.stage()?.play(&story.traffic)?;
        let incidents = heard(watch, &over, start)?;
        if incidents.iter().any(|i| i.cause == story.show) {
            return Ok((over, incidents));
        }
    }
    bail!("no request was lost to {}: the act has nothing to show", story.show)
}

/// The incidents of a site that is over, as many as its client lost or as come in the time that a verdict may take.
/// `since`: the numbers of its network namespaces may have been another site's before.
fn heard(watch: &Tracer, over: &Over, since: u64) -> Result<Vec<Incident>> {
    let lost = over.lost(&[502]);
    let here = |i: &Incident| {
        let ours = over.site.owns(i.server.ip, i.server.netns) || over.site.owns(i.requester.ip, i.server.netns);
        ours && i.at_boot_ns >= since
    };
    let so_far = || watch.incidents().map(|all| all.into_iter().filter(here).collect::<Vec<_>>());
    let start = Instant::now();
    guard::wait("verdicts", VERDICTS * 2, || {
        start.elapsed() >= VERDICTS || lost > 0 && so_far().is_ok_and(|all| all.len() >= lost)
    })?;
    so_far()
}

fn acts() -> [Story; 5] {
    let fpm = FpmConf { children: 24, process_control_timeout: 10, ..FpmConf::default() };
    let quit = Stop { signal: SIGQUIT, ..Stop::default() };
    // php-fpm is no trouble until the last act: a native sidecar, which is stopped after nginx.
    let base = Plan {
        site: SiteConf { fpm: Some(fpm.clone()), edge: Some(64), ..SiteConf::default() },
        act: Act::Delete,
        deletion: Deletion { propagation: Duration::from_millis(1000), ..Deletion::default() },
        nginx: Stop::default(),
        quit_hook: false,
        proxy: Stop::default(),
        told: false,
        fpm: Some(Stop { sidecar: true, ..quit.clone() }),
    };
    let traffic = Traffic { slow: 8, in_php: 8, slow_ms: 900, fast: 8, answered: 500, ..Traffic::default() };
    let trouble = Some(Trouble { delay: Duration::from_millis(10), ..Trouble::default() });
    let soon = Deletion { propagation: Duration::from_millis(300), ..base.deletion };
    [
        Story {
            title: "SIGTERM",
            what: "The pod is deleted: SIGTERM to nginx. The balancer hears of it a second later.",
            show: Cause::NginxFastShutdown,
            plan: base.clone(),
            traffic,
        },
        Story {
            title: "SIGQUIT",
            what: "The image has STOPSIGNAL SIGQUIT, and the balancer is quick; but the network takes its 10 ms, and nginx closes\nidle connections to which the next request is on its way.",
            show: Cause::KeepaliveRaceOnShutdown,
            plan: Plan {
                site: SiteConf { trouble, ..base.site.clone() },
                deletion: soon,
                nginx: quit.clone(),
                ..base.clone()
            },
            traffic: Traffic { slow: 0, in_php: 0, fast: 32, think: Duration::ZERO, answered: 1000, ..traffic },
        },
        Story {
            title: "SIGQUIT with late connections",
            what: "The same, and the balancer goes on sending for a second: nginx finishes what it has, but nobody listens any more.",
            show: Cause::EndpointRace,
            plan: Plan { nginx: quit.clone(), ..base.clone() },
            traffic: Traffic { keep_alive: false, ..traffic },
        },
        Story {
            title: "preStop `nginx -s quit`, then SIGTERM",
            what: "The hook asks nginx to quit and is back at once: the SIGTERM that follows overrides the quit.",
            show: Cause::QuitThenTerm,
            plan: Plan { quit_hook: true, ..base.clone() },
            traffic,
        },
        Story {
            title: "php-fpm: SIGQUIT with timeout 0",
            what: "nginx sleeps before it stops, as it should; php-fpm beside it is stopped at once, and\nprocess_control_timeout is 0, its default.",
            show: Cause::FpmControlTimeoutZero,
            plan: Plan {
                site: SiteConf { fpm: Some(FpmConf { process_control_timeout: 0, ..fpm }), ..base.site.clone() },
                nginx: Stop { pre_stop: Some(PreStop::Sleep(Duration::from_secs(2))), ..quit.clone() },
                fpm: Some(quit),
                ..base
            },
            traffic,
        },
    ]
}
