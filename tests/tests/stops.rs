//! The numbers that are told of a stop, against the client's own ledger.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal::{self, SIGQUIT, SIGTERM};
use std::time::Duration;
use why502::model::incident::Stop;
use why502_tests::advised::{Act, Plan, Traffic};
use why502_tests::guard::{self, boot_ns};
use why502_tests::kubelet::{self, Deletion};
use why502_tests::load::{Outcome, Request};
use why502_tests::php::FpmConf;
use why502_tests::scene::{Over, Watch};
use why502_tests::schema;
use why502_tests::site::SiteConf;

/// The client's clock and the kernel's are read so far from what they are about, on a busy machine.
const SLACK_MS: u64 = 250;

struct Played {
    over: Over,
    stop: Stop,
    /// Boot ns.
    signal: u64,
}

/// nginx is stopped under requests of 1.5 s, with new connections beside them.
fn played(signal: Signal) -> Result<Played> {
    let fpm = FpmConf { children: 16, ..FpmConf::default() };
    let plan = Plan {
        site: SiteConf { fpm: Some(fpm), ..SiteConf::default() },
        act: Act::Delete,
        deletion: Deletion { propagation: Duration::from_millis(800), ..Deletion::default() },
        nginx: kubelet::Stop { signal, ..kubelet::Stop::default() },
        quit_hook: false,
        proxy: kubelet::Stop::default(),
        told: false,
        fpm: None,
    };
    let traffic = Traffic { keep_alive: false, paths: &["/static"], ..Traffic::default() };
    let stage = plan.stage()?;
    let watch = Watch::of(&stage.site)?;
    let (over, stopped) = stage.play(&traffic)?;
    let ended = boot_ns();
    let container = over.site.nginx.container.id.clone();
    let told = |stop: &Stop| stop.container.as_ref().is_some_and(|c| c.id == container);
    // A stop is told two seconds after its last loss; at the end of the observation in any case.
    guard::wait("the stop", Duration::from_secs(10), || boot_ns() > ended + 3_000_000_000)?;
    let said = watch.tracer.stop()?;
    schema::check(&said)?;
    let stop = said.stops.into_iter().find(told).context("no stop of the pod's nginx was told")?;
    ensure!(stop.missing.is_empty(), "missing: {:?}", stop.missing);
    let first = stopped.first().and_then(|s| s.signalled).context("nginx was not signalled")?;
    let phase = stop.phases.iter().find(|p| p.name == "stop-signal").context("no stop signal was told")?;
    ensure!(phase.after_ms == 0 && first < Duration::from_secs(1), "{:?}", stop.phases);
    let signal = signal_time(&over);
    Ok(Played { over, stop, signal })
}

/// By the client's own clock: the last fast request was answered right before it, good to a few ms.
fn signal_time(over: &Over) -> u64 {
    let fast = over.requests.iter().filter(|r| r.id.starts_with("fast") && matches!(r.outcome, Outcome::Ok { .. }));
    fast.map(|r| r.t_end).max().unwrap_or(0)
}

#[test]
fn what_a_quit_finishes_and_refuses() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let Played { over, stop, signal } = played(SIGQUIT)?;
    let slow = over.requests.iter().filter(|r| r.id.starts_with("slow"));
    let finished: Vec<u64> =
        slow.filter(|r| matches!(r.outcome, Outcome::Ok { .. }) && r.t_end > signal).map(|r| r.t_end).collect();
    let refused: Vec<u64> = over.requests.iter().filter(|r| r.outcome == Outcome::Refused).map(|r| r.t_end).collect();
    let ms = |until: &[u64]| (until.iter().max().copied().unwrap_or(0).saturating_sub(signal)) / 1_000_000;
    println!(
        "SIGQUIT: {} finished, {} refused; {:?} {:?} {:?}",
        finished.len(),
        refused.len(),
        stop.in_flight,
        stop.late,
        stop.accepted_after
    );
    // Of the fast ones some may be in flight at that moment.
    let answered = stop.in_flight.answered.context("answered requests were not counted")?;
    ensure!((finished.len() as u64..=finished.len() as u64 + 12).contains(&answered), "{answered} answered");
    ensure!(stop.in_flight.at_signal == Some(answered + stop.in_flight.cut), "{:?}", stop.in_flight);
    let drain = stop.in_flight.drain_ms.context("the drain has no end")?;
    ensure!(drain.abs_diff(ms(&finished)) < SLACK_MS, "drained in {drain} ms, by the ledger {}", ms(&finished));
    let late = stop.late.context("late connections are not told")?;
    ensure!(late.count == refused.len() as u64, "{late:?}");
    ensure!(late.last_ms.is_some_and(|last| last.abs_diff(ms(&refused)) < SLACK_MS), "{late:?}, {}", ms(&refused));
    Ok(())
}

#[test]
fn what_a_term_cuts() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let Played { over, stop, .. } = played(SIGTERM)?;
    // The client connects again at once: what it sends then is thrown out of the queue.
    let waited = |r: &Request| r.t_sent.is_some_and(|sent| r.t_end - sent > 20_000_000);
    let ended = |r: &Request| matches!(r.outcome, Outcome::Eof | Outcome::Reset) && waited(r);
    let cut = over.requests.iter().filter(|r| r.id.starts_with("slow") && ended(r)).count() as u64;
    println!("SIGTERM: {cut} cut; {:?}", stop.in_flight);
    ensure!((cut..=cut + 12).contains(&stop.in_flight.cut), "{cut} cut by the ledger, {:?}", stop.in_flight);
    ensure!(stop.in_flight.at_signal.is_some_and(|n| n >= cut), "{:?}", stop.in_flight);
    let causes: u64 = stop.by_cause.values().sum();
    ensure!(causes == stop.incidents && causes == over.lost(&[502]) as u64, "{causes} of {} lost", over.lost(&[502]));
    ensure!(!stop.advice.is_empty());
    Ok(())
}
