//! The load client and its ledger, proven against real servers without the tracer.

use anyhow::Result;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::Duration;
use why502_tests::guard::{self, wait};
use why502_tests::load::{Load, LoadConf, Outcome, Progress, Request};
use why502_tests::php::FpmConf;
use why502_tests::site::{Site, SiteConf};

fn by_outcome(requests: &[Request]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for r in requests {
        *counts.entry(r.outcome.name()).or_default() += 1;
    }
    counts
}

#[test]
fn term_under_busy_connections() -> Result<()> {
    if let Some(why) = guard::why_not_live() {
        eprintln!("skipped: {why}");
        return Ok(());
    }
    let _turn = guard::turn()?;
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        for keep_alive in [true, false] {
            let site = Site::start(&SiteConf { fpm: Some(FpmConf::default()), ..SiteConf::default() })?;
            let mut conf = LoadConf::new(site.pod_addr(false), "/static");
            conf.more_paths = vec!["/fast.php".into(), "/slow.php?ms=30".into()];
            (conf.connections, conf.keep_alive, conf.max_refused) = (40, keep_alive, Some(60));
            let load = Load::start(Some(site.client.path()), conf)?;
            wait("500 answers", Duration::from_secs(20), || Progress::get(&load.progress.answered) >= 500)?;
            site.nginx.container.signal(signal)?;
            let requests = load.join()?;
            let counts = by_outcome(&requests);
            println!("{signal} keep-alive {keep_alive}: {} lines, {counts:?}", requests.len());
            let refused = counts.get("refused").copied().unwrap_or(0);
            assert!(refused >= 60, "the listener was closed, but only {refused} attempts were refused");
            assert!(requests.iter().all(|r| r.local.port() != 0), "a request without its local port");
            assert!(requests.iter().all(|r| r.outcome != Outcome::Timeout), "a request was left hanging");
        }
    }
    Ok(())
}
