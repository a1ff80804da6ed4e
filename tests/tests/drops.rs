//! Records are lost between the kernel and the verdicts, live: every incident of the window says so, and is certain of nothing.
//! That a ring which is really full is counted by hook as well is shown beside the live source (tracer/src/live/tests.rs).

use anyhow::{Result, ensure};
use why502::model::incident::Level;
use why502::model::input::LossKind;
use why502_tests::accuracy::{Draw, shed};
use why502_tests::guard;

/// `SEED=…` for the same losses again, as far as the same records come.
fn lost_by(share: f64) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{share}: skipped: {why}");
        return Ok(());
    }
    let seed = guard::number("SEED", 502);
    let _turn = guard::turn()?;
    let mut draw = Draw::nth(0);
    (draw.slow, draw.fast) = (24, 12);
    let shed = shed("nginx-term-busy", draw, share, seed)?;
    // Only what was dropped here: whatever else is lost shows nothing.
    let dropped: u64 = shed.losses.iter().filter(|l| l.kind == LossKind::RingFull).map(|l| l.count).sum();
    let other: Vec<_> = shed.losses.iter().filter(|l| l.kind != LossKind::RingFull).collect();
    ensure!(other.is_empty(), "{other:?}");
    let found = dropped as f64 / (dropped + shed.events) as f64;
    ensure!((share / 3.0..=share * 2.0).contains(&found), "{dropped} dropped, {} left: not {share}", shed.events);
    let (mut of_window, mut certain) = (0, 0);
    for i in &shed.incidents {
        // The window is longer: it begins a second before the chain does, and ends with the verdict.
        let from = i.at_boot_ns.saturating_sub(1_000_000_000);
        let near = shed.losses.iter().any(|l| l.to >= from && l.from <= i.at_boot_ns);
        let says_so =
            i.loss.in_window > 0 && i.confidence.lowered_by.iter().any(|why| why.contains("records were lost"));
        ensure!(!near || says_so, "nothing is said of what was lost around {}: {:?}", i.summary, i.loss);
        ensure!(!near || i.confidence.level != Level::Certain, "certain in spite of a loss: {}", i.summary);
        of_window += usize::from(near);
        certain += usize::from(i.confidence.level == Level::Certain);
    }
    let (all, lost, hooks) = (shed.incidents.len(), shed.lost, shed.losses.len());
    println!(
        "SEED={seed}, {share}: {lost} lost requests, {all} incidents; {dropped} records dropped ({hooks} facts), {of_window} \
         incidents within a second after a drop, {certain} certain"
    );
    ensure!(shed.wrong.is_empty(), "{}", shed.wrong.join("\n"));
    ensure!(dropped > 0 && of_window > 0, "nothing was dropped around a loss: this shows nothing");
    Ok(())
}

#[test]
fn one_record_of_twenty() -> Result<()> {
    lost_by(0.05)
}

#[test]
fn every_second_record() -> Result<()> {
    lost_by(0.5)
}
