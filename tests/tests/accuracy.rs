//! Causes that dice choose, live: as they were kept (tests/recordings), and with other timing, ports, names and counts. Every
//! lost request has one incident with a right cause. `cargo xtask accuracy` does this at length; the recordings replay
//! with the unit tests.
//!
//! `PLAYS=30` for more of them, `SEED=…` for the same ones again.

use anyhow::{Result, ensure};
use why502_tests::accuracy::{as_kept, drawn, new_seed};
use why502_tests::guard;

/// The seed of this run; `None`: nothing can be played here.
fn seed() -> Option<u64> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return None;
    }
    let seed = guard::number("SEED", new_seed());
    println!("SEED={seed}");
    Some(seed)
}

#[test]
fn five_causes_as_they_were_kept() -> Result<()> {
    let Some(seed) = seed() else { return Ok(()) };
    let _turn = guard::turn()?;
    let bad = as_kept(usize::try_from(guard::number("PLAYS", 5))?, seed)?;
    ensure!(bad.is_empty(), "SEED={seed}:\n{}", bad.join("\n"));
    Ok(())
}

#[test]
fn what_the_dice_choose() -> Result<()> {
    let Some(seed) = seed() else { return Ok(()) };
    let figures = drawn(guard::number("PLAYS", 2), seed)?;
    ensure!(figures.deviations.is_empty(), "SEED={seed}:\n{}", figures.deviations.join("\n"));
    Ok(())
}
