//! Keep-alive races: the server closes a connection while the client's next request is on its way. A path with a delay makes
//! the window wide enough to hit it every time.
//!
//! `RUNS=20` for the full figure; `RECORDINGS=DIR` keeps what was recorded of each run.

use anyhow::Result;
use why502_tests::accuracy::live;

#[test]
fn idle_timeout_meets_the_next_request() -> Result<()> {
    live("keepalive-race", &[])
}

#[test]
fn a_stop_meets_requests_on_their_way() -> Result<()> {
    live("keepalive-race-on-shutdown", &[])
}
