//! `why502 incidents`: what an agent kept, from its directory or from its HTTP server.

use super::output::OutputArgs;
use super::say;
use super::serve::{LISTEN, STORE};
use crate::kernel::clock;
use crate::serve::client::{Agent, Url};
use crate::sinks::json;
use crate::sinks::queue::{self, Queue};
use crate::store::query::{Found, Kind, LIMIT, Query, causes, limit, moment};
use crate::store::scan::Scan;
use anyhow::Context;
use clap::ValueEnum;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  why502 incidents                      the newest 100 of this node's agent
  why502 incidents --since 1h --namespace shop --workload Deployment/web
  why502 incidents --url http://10.0.3.7:9502 --kind stops -o json
  why502 incidents --follow             and what comes, until Ctrl-C";

/// How often a directory is looked at for news.
const LOOK: Duration = Duration::from_millis(250);
/// How long after an agent went it is asked again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    All,
    Incidents,
    Stops,
}

/// Print the incidents and stops that an agent (why502 serve) kept
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Ask a running agent [default: the one of this host, when it answers]
    #[arg(long, value_name = "URL", conflicts_with = "store")]
    url: Option<Url>,
    /// Read an agent's directory, also beside it or after its end
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Of this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Of this pod
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Of this workload: Deployment/web, or web
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Of this stop: itself and its incidents
    #[arg(long, value_name = "ID")]
    stop: Option<String>,
    /// Then go on with what comes
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    output: OutputArgs,
}

// Which of all there are, whoever's they are. (A doc comment would become that of the command.)
#[derive(Debug, clap::Args)]
pub(super) struct Wanted {
    /// Which
    #[arg(long, value_enum, value_name = "KIND", default_value = "all")]
    kind: Which,
    /// With one of these causes: their ids, with commas
    #[arg(long, value_name = "ID", value_parser = known)]
    cause: Option<String>,
    /// From this time on: 2026-11-22T14:03:22Z, or how long ago: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<String>,
    /// The newest so many, 1 to 1000
    #[arg(long, value_name = "NUMBER", value_parser = limit, default_value_t = LIMIT)]
    pub(super) limit: usize,
}

/// Bad usage is told before anything is asked.
fn known(text: &str) -> Result<String, String> {
    causes(text).map(|_| text.to_owned())
}

fn time(text: &str) -> Result<String, String> {
    moment(text, clock::sample().wall_ns)
}

impl Wanted {
    pub(super) fn query(&self) -> Query {
        Query {
            kind: match self.kind {
                Which::All => Kind::All,
                Which::Incidents => Kind::Incidents,
                Which::Stops => Kind::Stops,
            },
            causes: self.cause.iter().flat_map(|ids| ids.split(',').map(str::to_owned)).collect(),
            since: self.since.clone(),
            until: self.until.clone(),
            limit: Some(self.limit),
            ..Query::default()
        }
    }
}

impl Args {
    fn query(&self) -> Query {
        Query {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            workload: self.workload.clone(),
            stop: self.stop.clone(),
            ..self.wanted.query()
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let printer = Printer {
        output: args.output,
        lines: Queue::new(std::io::stdout(), queue::BYTES).context("cannot start the writing thread")?,
    };
    let result = match (&args.store, &args.url) {
        (Some(dir), _) => from_store(dir, &args, &printer),
        (None, Some(url)) => from_agent(&Agent::new(url.clone())?, &args, &printer),
        (None, None) => {
            let agent = Agent::new(format!("http://{LISTEN}").parse().map_err(anyhow::Error::msg)?)?;
            match agent.is_there() {
                true => from_agent(&agent, &args, &printer),
                false => from_store(Path::new(STORE), &args, &printer)
                    .with_context(|| format!("no agent answers at http://{LISTEN}")),
            }
        }
    };
    let written = printer.lines.finish(super::watch::PATIENCE);
    result?;
    written.context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

fn from_store(dir: &Path, args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let read = || format!("cannot read the store {}", dir.display());
    let mut query = args.query();
    let Found { records, cursor, more } = query.run(dir, u64::MAX).with_context(read)?;
    printer.more(more, args.wanted.limit);
    for record in records {
        printer.print(&record.json)?;
    }
    query.limit = None;
    let mut scan = Scan::after(dir, cursor);
    while args.follow && !printer.lines.is_over() {
        match scan.next(u64::MAX).with_context(read)? {
            Some(record) if query.matches(&record.json) => printer.print(&record.json)?,
            Some(_) => {}
            None => std::thread::sleep(LOOK),
        }
    }
    Ok(())
}

fn from_agent(agent: &Agent, args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let mut query = args.query();
    let page = agent.page(&query)?;
    printer.more(page.more, args.wanted.limit);
    for item in &page.items {
        printer.print(item.get())?;
    }
    query.limit = None;
    let mut cursor = page.cursor;
    while args.follow && !printer.lines.is_over() {
        query.after = Some(cursor);
        let ended = agent.follow(&query, |seq, json| -> anyhow::Result<_> {
            cursor = seq;
            printer.print(json)?;
            Ok(if printer.lines.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if let Some(why) = ended {
            // A rollout of the agent, say: it goes on where it was.
            say(format_args!("{why}; asking again"));
            std::thread::sleep(AGAIN);
        }
    }
    Ok(())
}

/// What was found, on stdout.
pub(super) struct Printer {
    pub(super) output: OutputArgs,
    pub(super) lines: Queue,
}

impl Printer {
    pub(super) fn print(&self, json: &str) -> anyhow::Result<()> {
        if self.output.json() {
            self.lines.push(json.to_owned());
            return Ok(());
        }
        // Of a newer why502, or not an incident at all.
        match json::parse(json) {
            Ok(output) => self.lines.push(self.output.render(&output, self.output.paint())?),
            Err(e) => say(format_args!("a record is not known to this version ({e}); -o json prints it")),
        }
        Ok(())
    }

    pub(super) fn more(&self, more: bool, limit: usize) {
        if more {
            say(format_args!("there are more than the newest {limit}: --limit, --since, --until"));
        }
    }
}
