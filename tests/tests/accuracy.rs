//! Scenarios that dice choose, with timing, ports, names and counts: every lost request has one incident with a right cause.
//! `cargo xtask accuracy` does this at length.
//!
//! `PLAYS=30` for more of them, `SEED=…` for the same ones again.

use anyhow::{Result, ensure};
use why502_tests::accuracy::{drawn, live, new_seed};
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

/// nginx and php-fpm die in one moment: what nginx had passed on is lost once.
#[test]
fn a_container_of_both_is_killed() -> Result<()> {
    live("nginx-killed", &["one", "tcp"])
}

#[test]
fn pid_1_takes_the_signal_and_does_nothing() -> Result<()> {
    live("pid1-passes-nothing-on", &[])
}

#[test]
fn pid_1_ends_well_and_takes_the_server_along() -> Result<()> {
    live("nginx-goes-with-pid1", &[])
}

#[test]
fn nobody_ever_listened_on_the_socket() -> Result<()> {
    live("fpm-absent", &[])
}
