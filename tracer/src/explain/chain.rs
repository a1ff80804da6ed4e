//! The explanation: links from the loss back to what set it off. A link is made from an event, never from thin air.

use super::View;
use super::kube::Told;
use super::server::Server;
use super::{said, sender};
use crate::correlate::answer::{self, Closer};
use crate::correlate::ends::End;
use crate::correlate::history::{ExitFact, OomMark, Signal, Upstream, sig};
use crate::correlate::kept::HalfClose;
use crate::correlate::lost::{
    Conn, ErrorMade, Evidence, ListenerClosed, Lost, NotConnected, QueueFull, RefusedAt, Thrown,
};
use crate::correlate::nginx::{Failed, Page};
use crate::correlate::stops::Command;
use crate::identity::{ExecRef, Place, Process, Role};
use crate::model::event::{BootNs, Cited, EventId, ProcKey, ResetSent, Task, TcpState, Tuple};
use crate::model::incident::{Link, ProcessRef};

pub use super::sender::{Sender, sender_kind, sender_text, trigger};

/// A chain in which signals lead to signals ends somewhere.
const LINKS_MAX: usize = 16;
/// Rules of links that are told beside the explanation begin so: nothing follows from them.
const BESIDE: &str = "beside-";
pub const BESIDE_FAILED_COMMAND: &str = "beside-failed-command";
const BESIDE_PAGE: &str = "beside-nginx-answered";
/// Likewise: what shows that the whole pod is being stopped.
pub const BESIDE_POD_STOP: &str = "beside-the-stop-of-the-pod";
/// Likewise: what the requesting end of the connection saw, and what may have been it.
const BESIDE_REQUESTER: &str = "beside-the-requesting-end";
const BESIDE_PROBABLE_REQUESTER: &str = "beside-a-probable-requesting-end";

/// Likewise: what shows that a master goes on after one of its children has ended.
const BESIDE_GOES_ON: &str = "beside-its-master-goes-on";

/// A link before its times are written out.
#[derive(Clone, Debug)]
struct Proto {
    event: Cited,
    at: BootNs,
    /// When it was heard of, where the API said it.
    seen_at: Option<BootNs>,
    kind: &'static str,
    rule: &'static str,
    process: Option<ProcessRef>,
    text: String,
}

/// Links in the order effect → cause.
#[derive(Clone, Debug)]
pub struct Chain {
    lost_at: BootNs,
    links: Vec<Proto>,
    /// What is not known of where its signals came from.
    unseen: Vec<String>,
    /// The signal that nothing in the chain led to.
    root: Option<Signal>,
}

impl Chain {
    pub fn new(lost_at: BootNs) -> Self {
        Chain { lost_at, links: Vec::new(), unseen: Vec::new(), root: None }
    }

    /// Time of the first thing in it.
    pub fn earliest(&self) -> BootNs {
        self.links.iter().map(|l| l.at).min().unwrap_or(self.lost_at)
    }

    /// The first link of every chain: the loss itself.
    pub fn loss(&mut self, lost: &Lost, server: &Server, view: &View) {
        let task = match &lost.evidence {
            Evidence::UnixRefused { what, .. } => Some(&what.task),
            Evidence::NotConnected { state, why: NotConnected::GivenUp { .. } } => Some(&state.task),
            _ => lost.server.as_ref().and_then(|a| a.task.as_ref()),
        };
        self.links.push(Proto {
            event: Cited::Event(lost.event),
            at: lost.at,
            seen_at: None,
            kind: match lost.evidence {
                Evidence::Close { .. } => "tcp-close",
                Evidence::UnixClose { .. } => "unix-close",
                Evidence::UnixRefused { .. } => "unix-refused",
                Evidence::Refused { seen: RefusedAt::Requester(_), .. } | Evidence::NotConnected { .. } => "tcp-state",
                Evidence::ErrorMade(_) | Evidence::ThrownAway(_) => "nginx-error-page",
                _ => "reset-sent",
            },
            rule: match lost.evidence {
                Evidence::Close { .. } => "close-time-rule",
                Evidence::Refused { seen: RefusedAt::Server(_), .. } => "syn-reset",
                Evidence::Refused { seen: RefusedAt::Requester(_), .. } => "connect-refused",
                Evidence::NotConnected { .. } => "connect-failed",
                Evidence::LateData { .. } => "data-after-close",
                Evidence::Handshake { .. } => "handshake-without-listener",
                Evidence::UnixClose { .. } => "unix-close-unread",
                Evidence::UnixRefused { .. } => "unix-connect-failed",
                Evidence::ErrorMade(_) => "nginx-made-the-error",
                Evidence::ThrownAway(_) => "thrown-away-unread",
            },
            process: task.map(|t| process_ref(t, view)),
            text: loss_text(lost, server, view),
        });
    }

    /// What nginx said before it answered with an error, in its own words.
    pub fn said(&mut self, failed: &Failed, rule: &'static str, view: &View) {
        let l = &failed.logged;
        let errno = if l.errno == 0 { String::new() } else { format!(" ({})", self::errno(l.errno)) };
        let upstream = failed.upstream.map_or(String::new(), |(t, came)| {
            let to = std::net::SocketAddr::new(t.remote_ip, t.remote_port);
            format!(
                "; it closed its connection to {to}, of whose answer it had read {} bytes of {}",
                came.read, came.received
            )
        });
        let text = format!("nginx logged \"{}\"{errno}{upstream}", l.format);
        self.push(failed.event, failed.at, "nginx-logged", rule, Some(process_ref(&l.task, view)), text);
    }

    /// The error page that nginx made of a failure that another record shows.
    pub fn answered(&mut self, page: &Page, nginx: &Task, view: &View) {
        let to = page.client.as_ref().map(to_client).unwrap_or_default();
        let text = format!("nginx answered its client with {}{to}", page.status);
        let process = Some(process_ref(nginx, view));
        self.push(page.event, page.at, "nginx-error-page", BESIDE_PAGE, process, text);
    }

    /// Puts a loss before what this chain was made for: that is why nginx asked nobody this time.
    pub fn behind(&mut self, lost: &Lost, made: &ErrorMade, server: &Server, view: &View) {
        let mut front = Chain::new(lost.at);
        front.loss(lost, server, view);
        front.said(&made.failed, "nginx-said-why", view);
        front.links.append(&mut self.links);
        (self.links, self.lost_at) = (front.links, lost.at);
    }

    pub fn exit(&mut self, exit: &ExitFact, rule: &'static str, view: &View) {
        let how = ended(exit.code);
        let who = describe(&exit.task, view);
        self.push(exit.event, exit.at, "exit", rule, Some(process_ref(&exit.task, view)), format!("{who} {how}"));
    }

    /// A child half-closed its connection with a request unread on it.
    pub fn half_closed(&mut self, half: &HalfClose, view: &View) {
        let task = &half.state.task;
        let who = describe(task, view);
        let text = format!("{who} half-closed the connection after its last answer, with another request unread on it");
        let process = Some(process_ref(task, view));
        self.push(half.event, half.at, "tcp-close", "half-closed-with-a-request", process, text);
    }

    /// The OOM killer's choice, which tells its kill from any other.
    pub fn oom_mark(&mut self, mark: &OomMark, victim: &Task, view: &View) {
        let text = format!("the kernel's OOM killer chose {}", describe(victim, view));
        self.push(mark.event, mark.at, "oom-victim", "chosen-by-the-oom-killer", Some(process_ref(victim, view)), text);
    }

    /// A child that took the place of the one that ended: its master goes on.
    pub fn replaced(&mut self, child: &Process, event: EventId, at: BootNs, view: &View) {
        let text = format!("its master started another child, {}, in its place", child.key.tgid);
        self.push(event, at, "fork", BESIDE_GOES_ON, Some(process_ref_of(child, view)), text);
    }

    pub fn listener_closed(&mut self, closed: &ListenerClosed, address: &str, view: &View) {
        let how = if closed.task.exiting() { "by exiting" } else { "by closing it" };
        let text =
            format!("{address} stopped listening: {} held it last and ended it {how}", describe(&closed.task, view));
        self.push(
            closed.event,
            closed.at,
            "listener-closed",
            "last-listener-of-the-port",
            Some(process_ref(&closed.task, view)),
            text,
        );
    }

    /// The record that shows a connection to have been in the queue of a listener that was closed.
    pub fn thrown_out(&mut self, thrown: &Thrown, lost: &Lost, view: &View) {
        let task = lost.server.as_ref().and_then(|a| a.task.as_ref());
        let who = task.map_or("its owner".into(), |t| describe(t, view));
        let text = format!("{who} closed the listener of {} with the connection still in its queue", lost.address());
        let process = task.map(|t| process_ref(t, view));
        self.push(thrown.event, thrown.at, "listener-closed", "thrown-out-of-the-queue", process, text);
    }

    pub fn signal(&mut self, signal: &Signal, rule: &'static str, view: &View) {
        let what = &signal.what;
        let text = format!(
            "{} sent {}{} to {}",
            sender_text(signal, view),
            sig::name(what.signal),
            said::compared(signal, view),
            describe(&what.target, view)
        );
        self.push(signal.event, signal.at, "signal", rule, Some(process_ref(&what.target, view)), text);
        self.origin(signal, rule, view);
    }

    /// What had the sender send it: a signal that it had got itself, or somebody who ran it in the container.
    fn origin(&mut self, signal: &Signal, rule: &str, view: &View) {
        if let Some(outer) = sender::before(signal, view).filter(|_| self.links.len() < LINKS_MAX) {
            return self.signal(outer, "passed-on", view);
        }
        if !rule.starts_with(BESIDE) {
            self.root = Some(signal.clone());
        }
        if let Some(command) = view.table.run_from_outside(&signal.what.sender.key())
            && let Some(exec) = command.execs.iter().rev().find(|e| e.at <= signal.at)
        {
            let text = format!("`{}` was run in the container from outside of it", sender::command_line(command));
            let process = process_ref_of(command, view);
            return self.push(exec.event, exec.at, "exec", "run-from-outside", Some(process), text);
        }
        self.unseen.extend(sender::unseen(signal, view));
    }

    /// The signal that nothing in the chain led to: what the API knows of follows on it.
    pub fn root(&self) -> Option<&Signal> {
        self.root.as_ref()
    }

    /// The hook that ran before the signal, by its exit.
    pub fn hook_ran(&mut self, exit: &ExitFact, text: String, view: &View) {
        self.push(exit.event, exit.at, "exit", "the-hook-ran-first", Some(process_ref(&exit.task, view)), text);
    }

    /// What the API said.
    pub fn told(&mut self, told: &Told) {
        let Told { id, at, seen_at, kind, rule, ref text } = *told;
        let (event, text) = (Cited::Said(id), text.clone());
        self.links.push(Proto { event, at, seen_at: Some(seen_at), kind, rule, process: None, text });
    }

    /// What is not known of where its signals came from.
    pub fn unseen(&self) -> &[String] {
        &self.unseen
    }

    /// A command that was run in the container from outside of it, by its exit.
    pub fn command(&mut self, command: &Command, exit: &ExitFact, rule: &'static str, view: &View) {
        let how = ended(exit.code);
        let text = format!(
            "`{}`, run in the container from outside of it, {how}; no signal came of it",
            command.argv.join(" ")
        );
        self.push(exit.event, exit.at, "exec-failed", rule, Some(process_ref(&exit.task, view)), text);
    }

    /// The last SYN of a connect that nobody answered.
    pub fn syn_again(&mut self, event: EventId, at: BootNs, state: &TcpState) {
        let text = format!("the SYN was sent again, {} times in all", state.total_retrans);
        self.push(event, at, "syn-retransmitted", "nobody-answered", None, text);
    }

    /// A listener whose queue had been filled.
    pub fn queue_full(&mut self, full: &QueueFull, address: &str) {
        let text = format!("the accept queue of {address} was full: it held {} connections", full.holds);
        self.push(full.event, full.at, "tcp-state", "the-queue-was-full", None, text);
    }

    /// A server that was there and did not listen yet, by the exec that began it.
    pub fn started(&mut self, server: &Process, exec: ExecRef, view: &View) {
        let role = view.table.role(&server.key).role;
        let process = ProcessRef {
            pid: server.ns_pid,
            host_pid: server.key.tgid,
            comm: server.comm.clone(),
            role: Some(role.id().to_string()),
        };
        let text = format!("{} {} was started", server.comm, server.key.tgid);
        self.push(exec.event, exec.at, "exec", "started-and-not-listening-yet", Some(process), text);
    }

    /// A connection of a proxy to the server behind it.
    pub fn upstream(&mut self, upstream: &Upstream, server: &Process, view: &View) {
        let t = &upstream.tuple;
        let text = format!(
            "it had a connection to port {} of {} {} in another container of the pod, which had not been told to stop",
            t.remote_port, server.comm, server.key.tgid
        );
        let process = Some(process_ref(&upstream.task, view));
        self.push(upstream.event, upstream.at, "tcp-close", "a-proxy-of-this-server", process, text);
    }

    /// The requesting end of the connection went with its process.
    pub fn requester_ended(&mut self, event: EventId, at: BootNs, task: &Task, view: &View) {
        let text = format!("{} had the other end of this connection, and closed it by exiting", describe(task, view));
        self.push(event, at, "tcp-close", "a-proxy-of-this-server", Some(process_ref(task, view)), text);
    }

    /// What the requesting end of this connection saw; `sure`: that it is its other end.
    pub fn requester(&mut self, end: &End, sure: bool, text: String, view: &View) {
        let rule = if sure { BESIDE_REQUESTER } else { BESIDE_PROBABLE_REQUESTER };
        let kind = if end.task.is_some() { "tcp-close" } else { "reset-received" };
        self.push(end.event, end.at, kind, rule, end.task.as_ref().map(|t| process_ref(t, view)), text);
        // Next to the loss, which it shows from the other side.
        let last = self.links.len() - 1;
        self.links[1.min(last)..].rotate_right(1);
    }

    /// Whether a link of it is this event.
    pub fn names(&self, event: EventId) -> bool {
        self.links.iter().any(|l| l.event == Cited::Event(event))
    }

    /// A preStop hook that was running: the pod is being stopped, and its container's stop signal waits.
    pub fn hook(&mut self, command: &Process, exec: ExecRef, view: &View) {
        let text = format!(
            "`{}`, the preStop hook of the server behind it, was running: its container had not been told yet",
            sender::command_line(command)
        );
        self.push(exec.event, exec.at, "exec", BESIDE_POD_STOP, Some(process_ref_of(command, view)), text);
    }

    fn push(
        &mut self,
        event: EventId,
        at: BootNs,
        kind: &'static str,
        rule: &'static str,
        process: Option<ProcessRef>,
        text: String,
    ) {
        self.links.push(Proto { event: Cited::Event(event), at, seen_at: None, kind, rule, process, text });
    }

    pub fn finish(self, view: &View) -> Vec<Link> {
        // Nothing follows from what is told beside the explanation, and it follows from nothing.
        let beside = |l: &Proto| l.rule.starts_with(BESIDE);
        let because: Vec<_> = (1..=self.links.len())
            .map(|next| {
                let follows = self.links[next..].iter().find(|l| !beside(l)).filter(|_| !beside(&self.links[next - 1]));
                follows.map(|l| l.event.to_string())
            })
            .collect();
        let lost_at = self.lost_at;
        self.links
            .into_iter()
            .zip(because)
            .map(|(l, because)| Link {
                id: l.event.to_string(),
                at: super::incident::time(view, l.at),
                seen_at: l.seen_at.map(|t| super::incident::time(view, t)),
                offset_us: (l.at as i64 - lost_at as i64) / 1000,
                kind: l.kind.into(),
                because,
                rule: l.rule.into(),
                process: l.process,
                text: l.text,
            })
            .collect()
    }
}

/// A code as in wait(2), as half a sentence.
fn ended(code: u32) -> String {
    match (code & 0x7f, code >> 8 & 0xff) {
        (0, status) => format!("exited with status {status}"),
        (s, _) => format!("was killed by {}", sig::name(s)),
    }
}

/// What somebody sees of the loss, as half a sentence.
pub fn what_happened(lost: &Lost, server: &Server) -> String {
    let who = server.name();
    match &lost.evidence {
        Evidence::Close { closer: Closer::AcceptQueue, .. } => {
            format!("a connection was thrown out of {who}'s accept queue")
        }
        Evidence::Close { closer: Closer::Local, .. } => format!("{who} closed the connection without an answer"),
        Evidence::Close { closer: Closer::PeerFin, .. } => "the requesting side closed first".into(),
        Evidence::Close { closer: Closer::PeerReset, .. } => "the requesting side reset the connection".into(),
        Evidence::Close { closer: Closer::Other(err), .. } => {
            format!("the connection was ended with error {err} by neither side")
        }
        Evidence::UnixRefused { .. } if lost.queue_full() => format!("{who}'s listen queue had no room"),
        Evidence::Refused { .. } | Evidence::UnixRefused { .. } => "the connection was refused".into(),
        Evidence::NotConnected { .. } => "no connection came about".into(),
        Evidence::UnixClose { thrown: Some(_), .. } => format!("a connection was thrown out of {who}'s accept queue"),
        Evidence::UnixClose { .. } => format!("{who} closed the connection without an answer"),
        Evidence::LateData { .. } => format!("the request came after {who} had closed the connection"),
        Evidence::Handshake { .. } => "the listener went away during the handshake".into(),
        Evidence::ErrorMade(made) => format!("nginx answered with {} itself", made.status),
        Evidence::ThrownAway(_) => "a request on a kept connection of php-fpm was never read".into(),
    }
}

fn loss_text(lost: &Lost, server: &Server, view: &View) -> String {
    let peer = match &lost.conn {
        Conn::Tcp(t) if t.remote_port == 0 => format!("from {}", t.remote_ip),
        Conn::Tcp(t) => format!("from {}", std::net::SocketAddr::new(t.remote_ip, t.remote_port)),
        Conn::Unix { path, .. } => format!("over unix:{path}"),
        Conn::Hidden { .. } if matches!(lost.evidence, Evidence::ThrownAway(_)) => "over a unix socket".into(),
        Conn::Hidden { client, .. } => {
            let to = client.as_ref().map(to_client).unwrap_or_default();
            return format!("{}{to}: no connection of it shows a failure", what_happened(lost, server));
        }
    };
    let happened = what_happened(lost, server);
    let detail = match &lost.evidence {
        Evidence::Close { state, clause, .. } => format!(
            "{} bytes received, {} sent; {}{}",
            answer::received(state),
            state.bytes_sent,
            clause.text(),
            if lost.server.as_ref().is_some_and(|a| a.exiting) { "; closed by the exit of the process" } else { "" },
        ),
        Evidence::Refused { seen: RefusedAt::Server(reset), .. } => {
            format!("its SYN was answered with a reset{}", reason_text(reset, view))
        }
        Evidence::Refused { seen: RefusedAt::Requester(s), .. } => {
            format!("{} {} could not connect to port {}", s.task.comm, s.task.tgid, s.tuple.remote_port)
        }
        Evidence::NotConnected { state, why } => {
            let to = std::net::SocketAddr::new(state.tuple.remote_ip, state.tuple.remote_port);
            match why {
                NotConnected::NoPort => format!("connect to {to} found no free local port (99, EADDRNOTAVAIL)"),
                NotConnected::Unreachable { .. } => format!("connect to {to} failed with {}", errno(state.sk_err)),
                NotConnected::GivenUp { .. } => {
                    format!("connect to {to} was given up; its SYN had been sent {} times", state.total_retrans + 1)
                }
            }
        }
        Evidence::LateData { reset, .. } => {
            format!("{} bytes of it were answered with a reset{}", reset.in_len, reason_text(reset, view))
        }
        Evidence::Handshake { reset, .. } => format!(
            "{} was answered with a reset{}",
            match reset.in_len {
                _ if reset.active => "the completed handshake".into(),
                0 => "its last ACK".into(),
                n => format!("its {n} bytes of data"),
            },
            reason_text(reset, view)
        ),
        Evidence::UnixClose { dropped, thrown: Some(_) } => format!("{} bytes of it were never read", dropped.len),
        Evidence::UnixClose { dropped, .. } => format!("bytes of it ({}) were still unread", dropped.len),
        Evidence::UnixRefused { what, .. } => format!("connect failed with {}", errno(what.error)),
        Evidence::ThrownAway(thrown) => {
            let page =
                thrown.failed.page.map_or(String::new(), |p| format!("nginx answered its client with {}", p.status));
            match &thrown.left {
                Some(s) if thrown.half.is_some() => {
                    format!("{page}; the connection had carried {} bytes of answers and was half-closed", s.bytes_sent)
                }
                Some(s) => {
                    format!(
                        "{page}; it came after the half close of a connection with {} bytes of answers",
                        s.bytes_sent
                    )
                }
                None => page,
            }
        }
        Evidence::ErrorMade(_) => String::new(),
    };
    format!("{happened} ({peer}): {detail}")
}

/// ` (10.0.0.7:40312)`
fn to_client(t: &Tuple) -> String {
    format!(" ({})", std::net::SocketAddr::new(t.remote_ip, t.remote_port))
}

/// As a log of nginx has it.
pub fn errno(error: u32) -> String {
    match error {
        2 => "2 (No such file or directory)".into(),
        11 => "11 (Resource temporarily unavailable)".into(),
        13 => "13 (Permission denied)".into(),
        99 => "99 (Cannot assign requested address)".into(),
        101 => "101 (Network is unreachable)".into(),
        111 => "111 (Connection refused)".into(),
        113 => "113 (No route to host)".into(),
        other => other.to_string(),
    }
}

/// The name that this kernel gives to a reset reason; nothing where it has none.
fn reason_text(reset: &ResetSent, view: &View) -> String {
    let names = view.started.map_or(&[][..], |s| &s.reset_reasons);
    match (reset.reason, names.iter().find(|(value, _)| Some(*value) == reset.reason)) {
        (_, Some((_, name))) => format!(", reason {name}"),
        (Some(number), None) => format!(", reason {number}"),
        (None, _) => String::new(),
    }
}

pub fn process_ref(task: &Task, view: &View) -> ProcessRef {
    named(task.ns_pid, task.key(), &task.comm, view)
}

fn process_ref_of(process: &Process, view: &View) -> ProcessRef {
    named(process.ns_pid, process.key, &process.comm, view)
}

fn named(pid: u32, key: ProcKey, comm: &str, view: &View) -> ProcessRef {
    let role = view.table.role(&key).role;
    ProcessRef {
        pid,
        host_pid: key.tgid,
        comm: comm.to_owned(),
        role: (role != Role::Other).then(|| role.id().to_string()),
    }
}

/// `nginx master 8593 (PID 1)`.
pub fn describe(task: &Task, view: &View) -> String {
    let role = view.table.role(&task.key()).role;
    let name = match role {
        Role::Other | Role::Init | Role::Supervisor | Role::Shell | Role::Runtime => task.comm.clone(),
        known => known.id().replace('-', " ").replace("php fpm", "php-fpm"),
    };
    let inside = matches!(view.table.place(task), Place::Container(_));
    let pid = (inside && task.ns_pid != 0 && task.ns_pid != task.tgid)
        .then(|| format!("PID {} in its container", task.ns_pid));
    let pool = view.table.process(&task.key()).filter(|_| role == Role::PhpFpmChild).and_then(Process::pool);
    let more: Vec<String> = pid.into_iter().chain(pool.map(|p| format!("pool {p}"))).collect();
    match more.is_empty() {
        true => format!("{name} {}", task.tgid),
        false => format!("{name} {} ({})", task.tgid, more.join(", ")),
    }
}
