//! `why502 trace`: every event, live, one line each.

use super::kube::KubeArgs;
use super::live::{self, View, Wish};
use super::output::OutputArgs;
use super::runtime::RuntimeArgs;
use super::watch::PATIENCE;
use crate::correlate::pods::Pods;
use crate::explain::{container_of, pod_of};
use crate::identity::{ContainerInfo, Limits, Table};
use crate::live::{UnixConnect, UprobesWanted};
use crate::model::event::{EventKind, Task, Tuple};
use crate::model::incident::Container;
use crate::model::time::{WallClock, time_of_day};
use crate::model::{BootNs, Event, Input};
use crate::sinks::json::EventLine;
use crate::sinks::queue::{self, Queue};
use crate::sinks::text::Paint;
use crate::sinks::{names, trace};
use anyhow::Context;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  why502 trace --signal TERM,QUIT,KILL
  why502 trace --port 80,9000 --kind tcp-state,reset-sent
  why502 trace --comm nginx -o json | jq .

An event is printed when it fits every given option. Several values of one option, by commas or
by repeating it, are alternatives.";

/// Print the events that the kernel reports
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Also signals that neither end a process nor tell a server to stop: SIGCHLD, SIGALRM ...
    #[arg(long)]
    all_signals: bool,
    /// End by itself after this time: 90s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = super::record::duration)]
    duration: Option<Duration>,
    /// How failed connects to unix sockets are seen
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    unix_connect: UnixConnect,
    /// Whether nginx's own error messages and statuses are seen
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    uprobes: UprobesWanted,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    output: OutputArgs,
    // Last: its heading would go on over what follows.
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
struct Filter {
    /// Container's name, or its id from the start
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    container: Vec<String>,
    /// Pod's name, or its uid
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pod: Vec<String>,
    /// Name of a process of the event, as in /proc/PID/comm
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    comm: Vec<String>,
    /// Pid of a process of the event, as the host sees it
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// Signals and exits by this signal: TERM, SIGTERM or 15
    #[arg(long, value_name = "SIGNAL", value_delimiter = ',', value_parser = signal)]
    signal: Vec<u32>,
    /// Local or remote TCP port
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    port: Vec<u16>,
    /// Kind of event
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(names::KINDS))]
    kind: Vec<String>,
}

fn signal(text: &str) -> Result<u32, String> {
    names::signal_number(text).ok_or_else(|| format!("{text:?} is no signal"))
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::host::refuse()?;
    let paint = args.output.paint();
    let lines = Queue::new(std::io::stdout(), queue::BYTES).context("cannot start the writing thread")?;
    let mut tracer = Tracer::new(&args, paint);
    let wish = Wish {
        all_signals: args.all_signals,
        duration: args.duration,
        unix_connect: args.unix_connect,
        uprobes: args.uprobes,
        runtimes: args.runtime.wish()?,
        kube: args.kube.resolve()?,
        ..Wish::default()
    };
    let mut summary = live::run(wish, |input, view| {
        if let Some(line) = tracer.input(input, &view)? {
            lines.push(line);
        }
        Ok(if lines.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    summary.lost("stdout", "slow-reader", lines.dropped());
    let written = lines.finish(PATIENCE);
    live::report(&summary, false);
    written.context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// Inputs to lines.
struct Tracer<'a> {
    args: &'a Args,
    paint: Paint,
    clock: WallClock,
    host_pidns: u32,
    who: Table,
    pods: Pods,
}

impl<'a> Tracer<'a> {
    fn new(args: &'a Args, paint: Paint) -> Self {
        let who = Table::new(Limits::default());
        Tracer { args, paint, clock: WallClock::default(), host_pidns: 0, who, pods: Pods::default() }
    }

    fn input(&mut self, input: &Input, view: &View<'_>) -> anyhow::Result<Option<String>> {
        self.who.observe(input);
        match input {
            Input::Started(started) => self.host_pidns = started.host_pidns,
            Input::Clock { at, wall_ns } => self.clock.sample(*at, *wall_ns),
            Input::Kube(fact) => self.pods.observe(fact, &self.clock),
            Input::Event(event) => {
                let container = container(&self.who, &event.kind);
                if self.args.filter.fits(event) && self.args.filter.fits_place(container, &self.pods) {
                    return self.line(event, container, view).map(Some);
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn line(&self, event: &Event, container: Option<&ContainerInfo>, view: &View<'_>) -> anyhow::Result<String> {
        let at = self.clock.rfc3339(event.at);
        let reset_reason = match &event.kind {
            EventKind::ResetSent(r) => r.reason.and_then(|reason| view.reset_reasons.get(&reason)).map(String::as_str),
            _ => None,
        };
        if self.args.output.json() {
            let mut line = EventLine::new(event);
            line.at = at;
            line.reset_reason = reset_reason;
            line.pod = container.and_then(|c| pod_of(c, &self.pods));
            line.container = container.map(|c| container_of(c, &self.pods));
            return Ok(line.to_json()?);
        }
        let time = at.as_deref().map_or_else(|| since_boot(event.at), |at| time_of_day(at).to_string());
        let place = container.map(|c| place(c, &self.pods)).unwrap_or_default();
        let context =
            trace::Context { time: &time, host_pidns: self.host_pidns, place: &place, reset_reason, paint: self.paint };
        Ok(trace::line(event, context))
    }
}

/// `web-0/nginx`, or the id where no runtime names it.
fn place(of: &ContainerInfo, pods: &Pods) -> String {
    let (container, pod) = (container_of(of, pods), pod_of(of, pods).and_then(|pod| pod.name));
    // Twelve hex digits are what docker and crictl print.
    let name = container.name.unwrap_or_else(|| container.id.chars().take(12).collect());
    pod.map_or_else(|| name.clone(), |pod| format!("{pod}/{name}"))
}

/// The container that an event is about: a socket's own where it is known, since the task may be anybody; the target's
/// and not the sender's.
fn container<'t>(who: &'t Table, kind: &EventKind) -> Option<&'t ContainerInfo> {
    let socket = |cgroup: u64| (cgroup != 0).then(|| who.container_of_cgroup(cgroup, 0)).flatten();
    let task = |task: &Task| who.container_of_cgroup(task.cgroup, task.cgroup_v1);
    match kind {
        EventKind::SignalGenerated(s) => task(&s.target),
        EventKind::SignalDelivered(s) => task(&s.task),
        EventKind::Forked { child, .. } => task(child),
        EventKind::Execed(e) => task(&e.task),
        EventKind::Exited { task: t, .. } | EventKind::OomVictim { task: t } => task(t),
        EventKind::TcpState(s) => socket(s.sk_cgroup).or_else(|| task(&s.task)),
        EventKind::ResetSent(r) => socket(r.sk_cgroup).or_else(|| r.digest.as_ref().and_then(|d| socket(d.sk_cgroup))),
        EventKind::ResetReceived(n) | EventKind::SynRetransmitted(n) => socket(n.sk_cgroup),
        EventKind::UnixDropped(d) => socket(d.server_cgroup).or_else(|| task(&d.task)),
        EventKind::UnixRefused(r) => task(&r.task),
        EventKind::NginxLogged(l) => task(&l.task),
        EventKind::NginxErrorPage(p) => task(&p.task),
    }
}

/// As dmesg prints it: `[12345.678901]`.
fn since_boot(at: BootNs) -> String {
    format!("[{}.{:06}]", at / 1_000_000_000, at / 1000 % 1_000_000)
}

impl Filter {
    fn fits(&self, event: &Event) -> bool {
        let tasks = tasks(&event.kind);
        any(&self.kind, |kind| kind == names::kind(&event.kind))
            && any(&self.comm, |comm| tasks.iter().any(|task| task.comm == *comm))
            && any(&self.pid, |pid| tasks.iter().any(|task| task.tgid == *pid || task.pid == *pid))
            && any(&self.signal, |signal| signal_of(&event.kind) == Some(*signal))
            && any(&self.port, |port| {
                tuple(&event.kind).is_some_and(|t| t.local_port == *port || t.remote_port == *port)
            })
    }

    fn fits_place(&self, container: Option<&ContainerInfo>, pods: &Pods) -> bool {
        if self.container.is_empty() && self.pod.is_empty() {
            return true;
        }
        let (of, pod) = (container.map(|c| container_of(c, pods)), container.and_then(|c| pod_of(c, pods)));
        any(&self.container, |name| {
            let fits = |c: &Container| c.id.starts_with(name.as_str()) || c.name.as_ref() == Some(name);
            !name.is_empty() && of.as_ref().is_some_and(fits)
        }) && any(&self.pod, |name| pod.as_ref().is_some_and(|p| p.uid == *name || p.name.as_ref() == Some(name)))
    }
}

/// An option that was not given fits everything.
fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(fits)
}

/// The tasks that an event is about. The task of a reset in answer to a packet is whoever was interrupted.
fn tasks(kind: &EventKind) -> Vec<&Task> {
    match kind {
        EventKind::SignalGenerated(s) => vec![&s.target, &s.sender],
        EventKind::SignalDelivered(s) => vec![&s.task],
        EventKind::Forked { parent, child } => vec![parent, child],
        EventKind::Execed(e) => vec![&e.task],
        EventKind::Exited { task, .. } | EventKind::OomVictim { task } => vec![task],
        EventKind::TcpState(s) => vec![&s.task],
        EventKind::ResetSent(r) if r.active => vec![&r.task],
        EventKind::UnixDropped(d) => vec![&d.task],
        EventKind::UnixRefused(r) => vec![&r.task],
        EventKind::NginxLogged(l) => vec![&l.task],
        EventKind::NginxErrorPage(p) => vec![&p.task],
        EventKind::ResetSent(_) | EventKind::ResetReceived(_) | EventKind::SynRetransmitted(_) => Vec::new(),
    }
}

fn tuple(kind: &EventKind) -> Option<&Tuple> {
    match kind {
        EventKind::TcpState(s) => Some(&s.tuple),
        EventKind::ResetSent(r) => Some(&r.tuple),
        EventKind::ResetReceived(n) | EventKind::SynRetransmitted(n) => Some(&n.tuple),
        EventKind::NginxErrorPage(p) => p.client.as_ref(),
        _ => None,
    }
}

fn signal_of(kind: &EventKind) -> Option<u32> {
    match kind {
        EventKind::SignalGenerated(s) => Some(s.signal),
        EventKind::SignalDelivered(s) => Some(s.signal),
        EventKind::Exited { code, .. } => Some(code & 0x7f).filter(|signal| *signal != 0),
        _ => None,
    }
}
