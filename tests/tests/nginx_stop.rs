//! SIGTERM and SIGQUIT to nginx under busy connections: every request that the client lost has one incident, with an allowed
//! cause.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::Result;
use why502_tests::accuracy::live;

#[test]
fn term_under_busy_keep_alive_connections() -> Result<()> {
    live("nginx-term-busy", &["keep-alive"])
}

#[test]
fn term_under_a_connection_per_request() -> Result<()> {
    live("nginx-term-busy", &["per-request"])
}

#[test]
fn quit_under_busy_keep_alive_connections() -> Result<()> {
    live("nginx-quit-busy", &["keep-alive"])
}

#[test]
fn quit_under_a_connection_per_request() -> Result<()> {
    live("nginx-quit-busy", &["per-request"])
}
