//! Scenarios that dice choose, with timing, ports, names and counts: every lost request has one incident with a right cause.
//! `cargo xtask accuracy` does this at length.
//!
//! `PLAYS=30` for more of them, `SEED=…` for the same ones again.

use anyhow::{Result, ensure};
use why502_tests::accuracy::{drawn, new_seed};
use why502_tests::guard;

#[test]
fn what_the_dice_choose() -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("skipped: {why}");
        return Ok(());
    }
    let seed = guard::number("SEED", new_seed());
    println!("SEED={seed}");
    let figures = drawn(guard::number("PLAYS", 3), seed)?;
    ensure!(figures.deviations.is_empty(), "SEED={seed}:\n{}", figures.deviations.join("\n"));
    Ok(())
}
