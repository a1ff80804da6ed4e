//! The load client on its own: prints its ledger, one JSON line per request, and a summary on stderr.

use anyhow::Result;
use clap::Parser;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use why502_tests::guard;
use why502_tests::load::{Abort, Load, LoadConf, Shape};

#[derive(Parser)]
struct Args {
    /// Address and port of the server
    target: SocketAddr,
    #[arg(default_value = "/static")]
    path: String,
    /// Network namespace to run in, by path
    #[arg(long)]
    netns: Option<PathBuf>,
    #[arg(short, long, default_value_t = 1)]
    connections: usize,
    /// A connection for every request
    #[arg(long)]
    per_request: bool,
    /// Milliseconds between an answer and the next request
    #[arg(long, default_value_t = 0)]
    think_ms: u64,
    /// Requests per second of all connections together
    #[arg(long)]
    rate: Option<f64>,
    /// Stop after so many attempts
    #[arg(short = 'n', long)]
    requests: Option<u64>,
    /// Stop after so many refused connections
    #[arg(long)]
    max_refused: Option<u64>,
    /// Stop after so many seconds
    #[arg(long)]
    seconds: Option<f64>,
    /// POST so many bytes
    #[arg(long)]
    upload: Option<usize>,
    /// Ask for 100 Continue before an upload
    #[arg(long, requires = "upload")]
    expect: bool,
    /// Close each connection so many milliseconds after the request
    #[arg(long)]
    abort_ms: Option<u64>,
    /// Abort by a reset
    #[arg(long, requires = "abort_ms")]
    rst: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    guard::catch_interrupts()?;
    let mut conf = LoadConf::new(args.target, &args.path);
    conf.connections = args.connections;
    conf.keep_alive = !args.per_request;
    conf.think = Duration::from_millis(args.think_ms);
    conf.rate = args.rate;
    (conf.max_attempts, conf.max_refused) = (args.requests, args.max_refused);
    if let Some(bytes) = args.upload {
        conf.shape = Shape::Upload { bytes, expect: args.expect };
    }
    let how = if args.rst { Abort::Rst } else { Abort::Fin };
    conf.abort = args.abort_ms.map(|ms| (Duration::from_millis(ms), how));
    let load = Load::start(args.netns, conf)?;
    let start = Instant::now();
    let over = || args.seconds.is_some_and(|s| start.elapsed().as_secs_f64() >= s);
    while !load.finished() && !guard::interrupted() && !over() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let closed_idle = load.progress.clone();
    let requests = load.stop()?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut by_outcome: BTreeMap<String, u64> = BTreeMap::new();
    for request in &requests {
        *by_outcome.entry(request.outcome.name()).or_default() += 1;
        writeln!(out, "{}", serde_json::to_string(request)?)?;
    }
    out.flush()?;
    let idle = closed_idle.closed_idle.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("{} lines, {idle} idle closes; {by_outcome:?}", requests.len());
    Ok(())
}
