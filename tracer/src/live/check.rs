//! The check at the start: why502 does a few things itself whose outcome it knows, and compares the probes' records of
//! them field by field. A wrong offset that the verifier let pass (two members of one width swapped, a kernel whose BTF
//! does not describe it) is an error that names the field, not a wrong verdict later.
//!
//! Done: a child process that ends at once, TCP connections over loopback and AF_UNIX ones, a signal without effect to
//! ourselves. The records of these never reach the input sequence.

mod acts;
mod compare;
mod unix;

use crate::kernel::clock;
use crate::model::BootNs;
use crate::model::event::{Event, EventKind, Tuple};
use crate::model::input::{Degraded, HookStatus};
use crate::ring::drain::{Batch, Drain};
use acts::{Acts, Connection};
use compare::Us;
use std::time::Duration;

/// How long the records of our own doings may take.
const PATIENCE: u64 = 3_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error(
        "checked at start: {record} says {field} = {found}, it is {wanted}: this kernel's structs are not what its BTF \
         says, refusing to run"
    )]
    Wrong { record: &'static str, field: &'static str, found: String, wanted: String },
    #[error("checked at start: no {record} record of why502's own {act} came: the probes do not work on this kernel")]
    Unseen { record: &'static str, act: &'static str },
}

/// What the check found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) own: Own,
    /// Everything that was drained meanwhile, our own records included.
    pub(super) batches: Vec<Batch>,
    /// What could not be tried here, and optional hooks that told nothing.
    pub(super) unchecked: Vec<Degraded>,
}

/// Which records are of our own doings.
#[derive(Debug, Default)]
pub(super) struct Own {
    us: Option<Us>,
    /// The child in our pid namespace, and once its fork was seen its id in the kernel's.
    child: Option<u32>,
    child_tgid: Option<u32>,
    /// (address, port) pairs that only we used, in our network namespace.
    ports: Vec<u16>,
    /// After this time nothing is taken for ours any more: ports and pids are used again.
    until: BootNs,
}

impl Own {
    /// The record is of something that the check did.
    pub(super) fn made(&mut self, event: &Event) -> bool {
        let Some(us) = &self.us else { return false };
        if event.at > self.until {
            return false;
        }
        let child = |tgid: u32| self.child_tgid == Some(tgid);
        let ours =
            |t: &Tuple| t.netns == us.netns && [t.local_port, t.remote_port].iter().any(|p| self.ports.contains(p));
        match &event.kind {
            EventKind::Forked { parent, child } => {
                let made = us.is(parent) && self.child.is_some_and(|pid| us.is_pid(child, pid));
                if made {
                    self.child_tgid = Some(child.tgid);
                }
                made
            }
            EventKind::Execed(e) => child(e.task.tgid),
            EventKind::Exited { task, .. } => child(task.tgid),
            EventKind::SignalGenerated(s) => {
                s.signal == acts::SIGNAL && us.is(&s.sender) && us.is(&s.target) || child(s.target.tgid)
            }
            EventKind::SignalDelivered(s) => child(s.task.tgid),
            EventKind::TcpState(s) => ours(&s.tuple),
            EventKind::ResetSent(r) => ours(&r.tuple),
            EventKind::ResetReceived(n) | EventKind::SynRetransmitted(n) => ours(&n.tuple),
            EventKind::UnixDropped(_) | EventKind::UnixRefused(_) => unix::made(us, event),
            EventKind::OomVictim { .. } | EventKind::NginxLogged(_) | EventKind::NginxErrorPage(_) => false,
        }
    }
}

/// Does the acts, waits for their records and compares. The probes must be attached.
pub(super) async fn run(drain: &mut Drain, all_signals: bool, hooks: &[HookStatus]) -> Result<Checked, CheckError> {
    let us = Us::read();
    let (acts, problems) = Acts::perform(all_signals, hooks).await;
    let mut own = Own {
        us: Some(us.clone()),
        child: acts.child.as_ref().map(|c| c.pid),
        child_tgid: None,
        ports: acts.ports(),
        until: BootNs::MAX,
    };
    let mut found = Found::default();
    let mut batches = Vec::new();
    let began = clock::boot_ns();
    loop {
        let batch = drain.pass();
        for event in &batch.events {
            if own.made(event) {
                found.take(event, &us, &acts)?;
            }
        }
        batches.push(batch);
        let late = clock::boot_ns().saturating_sub(began) > PATIENCE;
        match (found.missing(&acts), found.unseen(&acts)) {
            (None, None) => break,
            (None, Some(_)) if late => break,
            (Some(unseen), _) if late => return Err(unseen),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    own.until = clock::boot_ns();
    let degraded = |id: &str, text: String| Degraded { id: id.to_owned(), text };
    let partial = format!("the probes could not be checked whole at the start: {}", problems.join("; "));
    let partial = (!problems.is_empty()).then(|| degraded("check-partial", partial));
    let unseen = found.unseen(&acts).map(|what| degraded("unix-unseen", what.to_owned()));
    let unchecked = partial.into_iter().chain(unseen).collect();
    Ok(Checked { own, batches, unchecked })
}

/// Which of the expected records came.
#[derive(Debug, Default)]
struct Found {
    fork: bool,
    exec: bool,
    exit: bool,
    signal: bool,
    /// Per connection: listener closed, connection closed.
    closes: Vec<(u16, bool)>,
    resets: Vec<u16>,
    unix: unix::Found,
}

impl Found {
    fn take(&mut self, event: &Event, us: &Us, acts: &Acts) -> Result<(), CheckError> {
        match (&event.kind, &acts.child) {
            (EventKind::Forked { parent, child }, Some(c)) => {
                self.fork = true;
                compare::fork(us, c, parent, child)
            }
            (EventKind::Execed(e), Some(c)) => {
                self.exec = true;
                compare::exec(us, c, e, event.quality)
            }
            (EventKind::Exited { task, code }, Some(c)) => {
                self.exit = true;
                compare::exit(us, c, task, *code)
            }
            (EventKind::SignalGenerated(s), _) if s.signal == acts::SIGNAL => {
                self.signal = true;
                compare::signal(us, s)
            }
            // Another process may use a port of ours on another address: it is not checked.
            (EventKind::TcpState(s), _) if us.is(&s.task) => {
                let Some((connection, listener)) = acts.of(&s.tuple) else { return Ok(()) };
                if listener && s.newstate == crate::model::event::tcp::LISTEN {
                    return compare::listening(us, connection, s);
                }
                if s.newstate == crate::model::event::tcp::SYN_RECV {
                    return compare::full(s);
                }
                if s.tuple.local_port == connection.server.port() {
                    self.closes.push((connection.server.port(), listener));
                    return compare::closed(us, connection, listener, s);
                }
                Ok(())
            }
            (EventKind::ResetSent(r), _) if us.is(&r.task) => {
                let Some((connection, _)) = acts.of(&r.tuple) else { return Ok(()) };
                if !r.active || r.tuple.local_port != connection.server.port() {
                    return Ok(());
                }
                self.resets.push(connection.server.port());
                compare::reset(us, connection, r)
            }
            (EventKind::UnixDropped(_) | EventKind::UnixRefused(_), _) => {
                acts.unix.as_ref().map_or(Ok(()), |act| self.unix.take(event, us, act))
            }
            _ => Ok(()),
        }
    }

    /// What the optional hooks did not tell yet.
    fn unseen(&self, acts: &Acts) -> Option<&'static str> {
        acts.unix.as_ref().and_then(|act| self.unix.missing(act))
    }

    /// The first record that did not come yet.
    fn missing(&self, acts: &Acts) -> Option<CheckError> {
        let unseen = |record, act| Some(CheckError::Unseen { record, act });
        if acts.child.is_some() {
            for (came, record) in [
                (self.fork, "sched_process_fork"),
                (self.exec, "sched_process_exec"),
                (self.exit, "sched_process_exit"),
            ] {
                if !came {
                    return unseen(record, "child");
                }
            }
        }
        if acts.signalled && !self.signal {
            return unseen("signal_generate", "signal");
        }
        for connection in &acts.connections {
            let port = connection.server.port();
            if !self.closes.contains(&(port, false)) {
                return unseen("inet_sock_set_state", "connection");
            }
            if !self.closes.contains(&(port, true)) {
                return unseen("inet_sock_set_state", "listener");
            }
            if connection.unread > 0 && !self.resets.contains(&port) {
                return unseen("tcp_send_reset", "reset connection");
            }
        }
        None
    }
}

impl Acts {
    /// The connection that a tuple belongs to; true: it is its listener.
    fn of(&self, t: &Tuple) -> Option<(&Connection, bool)> {
        let is = |c: &&Connection| {
            let ports = [c.server.port(), c.client.port()];
            // Our own IPv4 and IPv6 connections may have been given the same port.
            if c.server.is_ipv4() != t.local_ip.is_ipv4() {
                return false;
            }
            t.local_port == ports[0] && (t.remote_port == ports[1] || t.remote_port == 0)
                || t.local_port == ports[1] && t.remote_port == ports[0]
        };
        self.connections.iter().find(is).map(|c| (c, t.remote_port == 0))
    }
}

#[cfg(test)]
mod tests;
