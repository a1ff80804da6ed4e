//! nginx could not connect to what it passes requests on to, and not for want of a listener.

use super::chain::Chain;
use super::confidence::Confidence;
use super::server::Server;
use super::{Finding, View};
use crate::correlate::lost::{Evidence, Lost, NotConnected};
use crate::model::event::TcpState;
use crate::model::incident::{Cause, Missing, Trigger};

/// tcp_v4_connect() and tcp_v6_connect() took a socket back to CLOSE that had no local port yet: there was none to give.
pub fn no_port(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let (state, NotConnected::NoPort) = not_connected(lost)? else { return None };
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    Some(Finding {
        cause: Cause::EphemeralPortsExhausted,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!("nginx had no local port left for a connection to {}", target(state)),
        chain,
        confidence: Confidence::of(0.97),
        missing: Vec::new(),
    })
}

/// An error of the path came for a SYN: no way leads to that address any more, or nobody there answers.
pub fn network_gone(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let (state, NotConnected::Unreachable { alone }) = not_connected(lost)? else { return None };
    let mut confidence = Confidence::of(0.9);
    confidence.because("what took the way to that address away was not seen: a pod's network, or another part of it");
    if !alone {
        confidence.cap(0.65, "other programs of that container connect as well: which of them it was is not known");
    }
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    Some(Finding {
        cause: Cause::PodNetworkGone,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!("no way leads to {}: nginx could not connect", target(state)),
        chain,
        confidence,
        missing: vec![Missing {
            fact: "network".into(),
            effect: "the end of a network is no event: that the address was a pod's is known from its use only".into(),
        }],
    })
}

/// The accept queue had no room: the kernel drops SYNs, and nginx gave up after some.
pub fn syn_drop(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let (state, NotConnected::GivenUp { full }) = not_connected(lost)? else { return None };
    let mut chain = Chain::new(lost.at);
    let mut confidence = Confidence::of(0.95);
    chain.loss(lost, server, view);
    if let Some((event, at)) = view.history.syn_sent_again(&state.tuple) {
        chain.syn_again(event, at, state);
    }
    match full {
        Some(full) => chain.queue_full(full, &lost.address()),
        None => {
            confidence.cap(0.7, "that the accept queue was full was not seen: a packet may be lost for other reasons")
        }
    }
    Some(Finding {
        cause: Cause::SynDrop,
        sub_cause: None,
        trigger: Trigger::Unknown,
        summary: format!(
            "nginx gave a connection to {} up after {} SYNs: {} listens and has no room in its queue (a 504, not a 502)",
            target(state),
            state.total_retrans + 1,
            server.name()
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

fn not_connected(lost: &Lost) -> Option<(&TcpState, &NotConnected)> {
    match &lost.evidence {
        Evidence::NotConnected { state, why } => Some((state, why)),
        _ => None,
    }
}

fn target(state: &TcpState) -> std::net::SocketAddr {
    std::net::SocketAddr::new(state.tuple.remote_ip, state.tuple.remote_port)
}
