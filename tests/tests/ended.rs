//! Servers that end unasked, hooks that do nothing, proxies that go first: and what only looks like it.

use anyhow::Result;
use why502_tests::accuracy::live;

#[test]
fn nginx_is_ended_by_a_signal() -> Result<()> {
    live("nginx-crashed", &[])
}

#[test]
fn nginx_ends_by_its_own_fault() -> Result<()> {
    live("nginx-faults", &[])
}

#[test]
fn nginx_is_started_again_in_its_pod() -> Result<()> {
    live("nginx-restarting", &[])
}

#[test]
fn php_fpm_is_ended_by_a_signal() -> Result<()> {
    live("fpm-crashed", &["tcp"])
}

#[test]
fn php_fpm_ends_by_its_own_fault() -> Result<()> {
    live("fpm-faults", &["tcp"])
}

#[test]
fn php_fpm_does_not_come_back_from_a_reload() -> Result<()> {
    live("fpm-bad-reload", &["tcp"])
}

#[test]
fn the_hook_fails() -> Result<()> {
    live("prestop-failed", &[])
}

#[test]
fn a_probe_fails_before_the_stop() -> Result<()> {
    live("failing-probe", &[])
}

#[test]
fn the_proxy_goes_first() -> Result<()> {
    live("sidecar-gone-first", &[])
}

#[test]
fn a_proxy_that_is_stopped_alone() -> Result<()> {
    live("proxy-stopped-alone", &[])
}

#[test]
fn what_is_behind_the_proxy_goes_first() -> Result<()> {
    live("app-gone-first", &[])
}

/// Its master lives on, and forks another one.
#[test]
fn a_worker_of_nginx_crashes() -> Result<()> {
    live("nginx-worker-crash", &[])
}

#[test]
fn somebody_kills_a_worker_of_nginx() -> Result<()> {
    live("nginx-worker-killed", &["reuseport"])
}
