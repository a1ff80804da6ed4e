//! Single children of php-fpm that end in the middle of a request: crashes, timeouts, kills; and children that only end.
//!
//! `RUNS=20` for the full figure, `FULL=1` for both kinds of socket; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::Result;
use why502_tests::accuracy::live;

/// The other kind of socket, which the recordings and the drawn plays have as well.
fn full(name: &str, words: &[&str]) -> Result<()> {
    if std::env::var_os("FULL").is_none() {
        println!("{name} {words:?}: skipped: only with FULL=1");
        return Ok(());
    }
    live(name, words)
}

#[test]
fn crashes() -> Result<()> {
    live("fpm-child-crash", &["tcp"])
}

#[test]
fn crashes_on_a_unix_socket() -> Result<()> {
    full("fpm-child-crash", &["unix"])
}

#[test]
fn ends_by_itself() -> Result<()> {
    live("fpm-child-exits", &["unix"])
}

#[test]
fn killed_alone() -> Result<()> {
    live("fpm-child-killed", &[])
}

#[test]
fn takes_too_long() -> Result<()> {
    full("fpm-request-terminate-timeout", &["tcp"])
}

#[test]
fn takes_too_long_on_a_unix_socket() -> Result<()> {
    live("fpm-request-terminate-timeout", &["unix"])
}

#[test]
fn does_not_heed_its_timeout() -> Result<()> {
    live("php-hard-timeout", &[])
}

#[test]
fn out_of_memory() -> Result<()> {
    live("oom-killed", &["tcp"])
}

#[test]
fn out_of_memory_on_a_unix_socket() -> Result<()> {
    full("oom-killed", &["unix"])
}

#[test]
fn children_that_only_end() -> Result<()> {
    live("fpm-reaping", &[])
}

#[test]
fn ends_with_a_request_on_its_kept_connection() -> Result<()> {
    live("fpm-max-requests-reset", &["tcp"])
}

#[test]
fn ends_with_a_request_on_its_kept_unix_connection() -> Result<()> {
    full("fpm-max-requests-reset", &["unix"])
}

#[test]
fn ends_with_a_request_that_is_repeated() -> Result<()> {
    live("fpm-max-requests-repeated", &["tcp"])
}
