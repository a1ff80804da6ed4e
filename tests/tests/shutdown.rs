//! Stops that go wrong with slow requests in flight: a drain that is cut off, a kill, a signal that nobody hears, php-fpm's
//! fast end, a supervisor's order. Every request that the client lost has one incident, with an allowed cause.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::Result;
use why502_tests::accuracy::live;

#[test]
fn term_with_slow_requests() -> Result<()> {
    live("nginx-term", &[])
}

#[test]
fn quit_then_term() -> Result<()> {
    live("quit-then-term", &[])
}

#[test]
fn a_queue_behind_stuck_workers() -> Result<()> {
    live("nginx-accept-queue-dropped", &[])
}

#[test]
fn the_grace_period_ends() -> Result<()> {
    live("grace-period-exceeded", &[])
}

#[test]
fn killed_without_a_word() -> Result<()> {
    live("nginx-killed", &[])
}

#[test]
fn pid_1_is_a_shell() -> Result<()> {
    live("pid1-ignores-stop-signal", &[])
}

#[test]
fn the_shutdown_timeout_of_a_stop() -> Result<()> {
    live("worker-shutdown-timeout", &[])
}

#[test]
fn the_shutdown_timeout_of_a_reload() -> Result<()> {
    live("worker-shutdown-timeout-reload", &[])
}

#[test]
fn a_reload_loses_nothing() -> Result<()> {
    live("reload", &[])
}

#[test]
fn a_stop_without_requests_loses_nothing() -> Result<()> {
    live("idle-stop", &[])
}

#[test]
fn supervisord_stops_php_first() -> Result<()> {
    live("supervisor-stop-order", &[])
}

#[test]
fn a_crash_before_a_stop() -> Result<()> {
    live("crash-then-term", &[])
}
