//! Stops of php-fpm behind the pod's nginx. What was cut in a child, what waited in the accept queue and what came afterwards
//! are three causes.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::Result;
use why502_tests::accuracy::live;

#[test]
fn quit_without_a_control_timeout() -> Result<()> {
    live("fpm-control-timeout-zero", &["tcp"])
}

#[test]
fn quit_with_a_control_timeout() -> Result<()> {
    live("fpm-accept-queue-dropped", &["tcp"])
}

#[test]
fn term() -> Result<()> {
    live("fpm-fast-shutdown", &["tcp"])
}

#[test]
fn killed() -> Result<()> {
    live("fpm-killed", &["tcp6"])
}

#[test]
fn stopped_before_nginx() -> Result<()> {
    live("fpm-not-listening-stopped-first", &["tcp6"])
}
