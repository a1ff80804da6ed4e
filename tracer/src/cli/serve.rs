//! `why502 serve`: what an agent on a node runs. The same pipeline as `watch`; the verdicts go into the store, which HTTP
//! shows.

use super::export::{ExportArgs, Exports};
use super::judge::{Judge, is_blamed};
use super::kube::KubeArgs;
use super::live::{self, Wish};
use super::record::duration;
use super::runtime::RuntimeArgs;
use super::say;
use super::specs::SpecArgs;
use super::watch::PATIENCE;
use crate::kernel::clock;
use crate::kernel::host::Host;
use crate::live::{UnixConnect, UprobesWanted};
use crate::model::{BootNs, Input};
use crate::ring::shed;
use crate::serve::{Bounds, Server, State};
use crate::sinks::json;
use crate::sinks::recording::time_of;
use crate::store::quota::Quota;
use crate::store::{Limits, Now, Store, sink};
use anyhow::Context;
use aya::sys::{Stats, enable_stats};
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  why502 serve
  curl -s 'localhost:9502/incidents?since=1h' | jq -r '.items[] | [.at, .cause, .summary] | @tsv'
  why502 incidents --follow             the same in the terminal; / lists what HTTP gives

It prints `ready` on stderr once every lost request is seen. Ctrl-C or SIGTERM ends it.";

/// Where incidents are kept, unless told otherwise.
pub(super) const STORE: &str = "/var/lib/why502";
/// Port of the HTTP server.
pub(super) const LISTEN: &str = "127.0.0.1:9502";
/// The kernel's counters are read for the metrics at most this often, ns.
const COUNTERS: u64 = 2_000_000_000;

/// Watch as an agent: keep incidents, serve them and metrics over HTTP
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Where HTTP is served. Anybody who reaches it can read incidents: loopback unless told otherwise
    #[arg(long, value_name = "IP:PORT", default_value = LISTEN)]
    listen: SocketAddr,
    /// Directory of the incidents
    #[arg(long, value_name = "DIR", default_value = STORE)]
    store: PathBuf,
    /// Greatest size of the store: 64M, 1G; the oldest go first
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes)]
    store_size: u64,
    /// Greatest age in the store: 36h, 14d
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = age)]
    store_age: Duration,
    /// Also keep what is not the server's doing: client aborts, edge timeouts, resets by the requester
    #[arg(long)]
    all: bool,
    /// How failed connects to unix sockets are seen (watch --help says more)
    #[arg(long, value_enum, value_name = "auto|syscalls|off", default_value_t, hide_possible_values = true)]
    unix_connect: UnixConnect,
    /// Whether nginx's own error messages and statuses are seen
    #[arg(long, value_enum, value_name = "auto|on|off", default_value_t, hide_possible_values = true)]
    uprobes: UprobesWanted,
    /// Measure what the probes take (why502_probe_run_seconds_total): the kernel times each BPF program of the node as long. Takes
    /// CAP_SYS_ADMIN
    #[arg(long)]
    bpf_stats: bool,
    /// For tests of what is said then: lose this share of the records
    #[arg(long, value_name = "SHARE[:SEED]", hide = true)]
    shed: Option<shed::Wanted>,
    #[command(flatten)]
    specs: SpecArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    export: ExportArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::host::refuse()?;
    let specs = args.specs.read()?;
    let runtimes = args.runtime.wish()?;
    let kube = args.kube.resolve()?;
    let Host { boot_id, node: host, .. } = Host::read(Path::new("/"));
    let exports = args.export.resolve(&kube, &host)?;
    let _timed = args.bpf_stats.then(timed).transpose()?;
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {} (--listen takes another address)", args.listen))?;
    let limits = Limits { max_bytes: args.store_size, max_age_s: args.store_age.as_secs() };
    let store = Store::start(&args.store, limits, sink::WAITING, move || Now::read(&boot_id))?;
    let state = Arc::new(State::new(store.view()));
    let server = Server::start(listener, Arc::clone(&state), Bounds::default()).context("cannot start HTTP")?;
    say(format_args!("http://{} and {}", server.address, args.store.display()));
    let exports = exports.start(&state)?;
    let mut agent = Agent {
        judge: Judge::new(),
        state,
        all: args.all,
        quota: Quota::default(),
        exports,
        counted: 0,
        complaint: None,
    };
    let wish = Wish {
        all_signals: false,
        duration: None,
        unix_connect: args.unix_connect,
        uprobes: args.uprobes,
        specs,
        runtimes,
        kube,
        shed: args.shed,
    };
    let result = live::run(wish, |input, view| agent.feed(input, view, &store));
    let Agent { judge, state, exports, .. } = agent;
    // Also when the start failed: what was kept before is safe, and clients are told.
    server.stop();
    let kept = store.finish(PATIENCE);
    exports.finish(PATIENCE);
    let mut summary = result?;
    judge.conclude(&mut summary);
    let stats = state.store.stats();
    summary.lost("store", "disk", stats.dropped + stats.waiting as u64);
    live::report(&summary, true);
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Until it is dropped, or the process ends (bpf_enable_stats() of kernel/bpf/syscall.c).
fn timed() -> anyhow::Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("--bpf-stats: the kernel did not allow it (CAP_SYS_ADMIN)")
}

struct Agent {
    judge: Judge,
    state: Arc<State>,
    all: bool,
    quota: Quota,
    exports: Exports,
    /// When the kernel's counters were read last.
    counted: BootNs,
    /// What was said about the store last.
    complaint: Option<String>,
}

impl Agent {
    fn feed(&mut self, input: &Input, view: live::View<'_>, store: &Store) -> live::Next {
        let outputs = self.judge.feed(input);
        {
            let mut tally = self.state.tally();
            tally.input(input);
            outputs.iter().for_each(|output| tally.output(output));
        }
        for output in &outputs {
            view.summary.output(output);
            if !self.all && !is_blamed(output) {
                continue;
            }
            if self.quota.takes(output, time_of(input)) {
                store.push(json::output(output)?);
                self.exports.kept(output);
            } else {
                self.state.tally().skipped();
            }
        }
        self.exports.feed(input, &outputs, &self.state);
        if let (Input::Tick { .. } | Input::Ready { .. }, Some(live)) = (input, view.live) {
            let now = clock::boot_ns();
            if now.saturating_sub(self.counted) >= COUNTERS {
                self.counted = now;
                // Without them the last ones stand; that they cannot be read is a warning of the source already.
                if let Ok(hooks) = live.so_far() {
                    self.state.tally().hooks(hooks);
                }
                self.exports.complain();
            }
            self.complain();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One line when the disk begins or ends to fail.
    fn complain(&mut self) {
        let failing = self.state.store.stats().failing;
        if failing != self.complaint {
            match &failing {
                Some(why) => say(format_args!("incidents cannot be written, they wait in memory: {why}")),
                None => say("incidents are written again"),
            }
            self.complaint = failing;
        }
    }
}

/// `64M`: powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size from 1M to 1T, such as 64M or 1G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return Err(bad()),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|size| (1 << 20..=1 << 40).contains(size)).ok_or_else(bad)
}

/// A time, where a day is 24 hours.
fn age(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    let age = match days {
        Some(days) => Duration::from_secs(u64::from(days) * 86_400),
        None => duration(text)?,
    };
    if age < Duration::from_secs(60) {
        return Err(format!("{text:?} is less than a minute"));
    }
    Ok(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        for bad in ["", "M", "1", "64MB", "-1G", "1.5G", "99999999999999999999", "2T", "9000000T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(age("14d"), Ok(Duration::from_secs(14 * 86_400)));
        assert_eq!(age("36h"), Ok(Duration::from_secs(36 * 3600)));
        for bad in ["", "d", "0d", "5s", "-1d"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
