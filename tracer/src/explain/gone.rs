//! What took away the listener that a connection needed. Over TCP the close of a listener is an event; over AF_UNIX nothing
//! reports it: what it had in its queue tells, or the exit of the process that had it.

use super::View;
use super::chain::Chain;
use super::confidence::Confidence;
use super::server::Server;
use crate::correlate::answer::Closer;
use crate::correlate::history::{ExitFact, Signal};
use crate::correlate::lost::{Evidence, ListenerClosed, Lost, Thrown};
use crate::model::event::{BootNs, ProcKey};

/// A listener's children are thrown out in the same close() that ended the listener (inet_csk_listen_stop()).
const QUEUE_NS: u64 = 100_000_000;
/// php-fpm closes and unlinks its sockets a little before it exits (fpm_sockets_cleanup()).
const CLEANUP_NS: u64 = 500_000_000;

pub enum Gone<'v> {
    /// The close of the last TCP socket that listened.
    Closed(ListenerClosed),
    /// This loss is itself the close of an AF_UNIX listener: the connection was in its queue.
    Queue { at: BootNs, thrown: Thrown, exit: Option<&'v ExitFact>, closer: Option<ProcKey> },
    /// The exit of the process that had listened on an AF_UNIX path.
    Exit(&'v ExitFact),
}

impl<'v> Gone<'v> {
    /// `None`: it was not the lack of a listener, or what ended it is not known.
    pub fn of(lost: &Lost, server: &Server, view: &'v View) -> Option<Self> {
        match &lost.evidence {
            Evidence::Refused { closed: Some(closed), .. } => Some(Gone::Closed(closed.clone())),
            Evidence::Handshake { .. } | Evidence::Close { .. } => queue_closed(lost, view).map(Gone::Closed),
            Evidence::UnixClose { thrown: Some(thrown), .. } => {
                let closer = server.process.filter(|_| server.exiting);
                let exit = server.exit(view).filter(|e| server.exiting && e.at <= lost.at);
                Some(Gone::Queue { at: lost.at, thrown: *thrown, exit, closer })
            }
            Evidence::UnixRefused { .. } if lost.refused() => {
                server.exit(view).filter(|e| e.at <= lost.at.saturating_add(CLEANUP_NS)).map(Gone::Exit)
            }
            _ => None,
        }
    }

    pub fn at(&self) -> BootNs {
        match self {
            Gone::Closed(closed) => closed.at,
            Gone::Queue { at, .. } => *at,
            Gone::Exit(exit) => exit.at,
        }
    }

    /// The process whose exit was the end of the listener; `None` when it closed it and lived on.
    pub fn exited(&self) -> Option<ProcKey> {
        match self {
            Gone::Closed(closed) => closed.task.exiting().then(|| closed.task.key()),
            Gone::Queue { closer, .. } => *closer,
            Gone::Exit(exit) => Some(exit.task.key()),
        }
    }

    /// The links from the loss to the end of the listener.
    pub fn link(&self, chain: &mut Chain, lost: &Lost, view: &View) {
        match self {
            Gone::Closed(closed) => chain.listener_closed(closed, &lost.address(), view),
            Gone::Queue { thrown, exit, .. } => {
                chain.thrown_out(thrown, lost, view);
                if let Some(exit) = exit {
                    chain.exit(exit, "sockets-are-closed-by-exit", view);
                }
            }
            Gone::Exit(exit) => chain.exit(exit, "socket-goes-with-its-process", view),
        }
    }
}

/// The chain that refused, dropped and half-open connections share: loss ← listener gone ← stop signal.
pub fn after(lost: &Lost, server: &Server, gone: &Gone, signal: &Signal, view: &View) -> (Chain, Confidence) {
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    gone.link(&mut chain, lost, view);
    chain.signal(signal, "stop-signal-closes-the-listener", view);
    let mut confidence = Confidence::of(0.98);
    if let Evidence::Handshake { reset, .. } = &lost.evidence
        && reset.in_len == 0
        && !reset.active
    {
        confidence.cap(0.65, "a bare ACK may also be a late duplicate of a finished connection");
    }
    if let Gone::Queue { closer: Some(_), exit: None, .. } = gone {
        confidence.cap(0.8, "the exit of the process that had the socket was not seen");
    }
    (chain, confidence)
}

/// The TCP listener's close that a dropped or half-open connection belongs to.
fn queue_closed(lost: &Lost, view: &View) -> Option<ListenerClosed> {
    match &lost.evidence {
        Evidence::Handshake { closed, .. } => Some(closed.clone()),
        Evidence::Close { closer: Closer::AcceptQueue, .. } => {
            let t = lost.tcp()?;
            let from = lost.at.saturating_sub(QUEUE_NS);
            let closes = view.table.listeners().closes(t.netns, t.local_ip, t.local_port, from, lost.at);
            // With SO_REUSEPORT several sockets of the port may close at once: the one of the same task is meant.
            let owner = lost.server.as_ref().map(|a| a.key);
            let close = closes.iter().rev().find(|c| c.closer == owner)?;
            let event = close.event?;
            Some(ListenerClosed { event, at: close.at, task: view.history.listener_closer(event, lost.at)?.clone() })
        }
        _ => None,
    }
}
