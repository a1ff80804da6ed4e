//! Connects that fail, by hand: whose they are, and what they may say.

use super::{Node, S, host, known, master, task};
use crate::correlate::answer::tests::state;
use crate::model::event::{EventKind, Side, Task, TcpState, Tuple, tcp};
use crate::model::{Cause, Incident, Level};

const EHOSTUNREACH: u32 = 113;

/// A connect of the pod's nginx to 10.0.5.1:9000.
fn failed() -> TcpState {
    let tuple = Tuple {
        local_ip: "10.0.3.7".parse().unwrap(),
        local_port: 41_000,
        remote_ip: "10.0.5.1".parse().unwrap(),
        remote_port: 9000,
        netns: 7,
    };
    TcpState { oldstate: tcp::SYN_SENT, newstate: tcp::CLOSE, side: Side::Client, tuple, task: task(), ..state() }
}

fn said(node: &mut Node, s: TcpState) -> Vec<Incident> {
    node.event(200 * S, EventKind::TcpState(s));
    node.said(true)
}

fn without_port(by: Task) -> TcpState {
    let s = failed();
    TcpState { tuple: Tuple { local_port: 0, ..s.tuple }, task: by, ..s }
}

#[test]
fn no_port_is_nginxs_loss_and_nobody_elses() {
    let said_of = |s| said(&mut Node::new(), s);
    let told = said_of(without_port(task()));
    assert_eq!(told.len(), 1);
    let i = &told[0];
    assert_eq!((i.cause, i.confidence.level), (Cause::EphemeralPortsExhausted, Level::Certain));
    assert_eq!((i.requester.port, i.server.port), (None, Some(9000)));
    assert_eq!(i.container.as_ref().unwrap().id, "a".repeat(64));
    let mut node = Node::new();
    let curl = Task { tgid: 4_000, pid: 4_000, comm: "curl".into(), ..task() };
    known(&mut node, &curl, "/usr/bin/curl", "curl -s 10.0.5.1");
    assert!(said(&mut node, without_port(curl)).is_empty());
    // It had a port, and was closed before anything came of it.
    assert!(said_of(failed()).is_empty());
}

#[test]
fn an_error_of_the_path_is_told_by_the_sockets_cgroup() {
    let unreachable = || TcpState { sk_err: EHOSTUNREACH, task: host(), ..failed() };
    let told = said(&mut Node::new(), unreachable());
    assert_eq!((told[0].cause, told[0].confidence.level), (Cause::PodNetworkGone, Level::Likely));
    // A cron job of the same container may have been the one.
    let mut node = Node::new();
    let cron = Task { tgid: 4_000, pid: 4_000, ns_pid: 40, comm: "cron".into(), ..task() };
    known(&mut node, &cron, "/usr/sbin/cron", "cron -f");
    assert_eq!(said(&mut node, unreachable())[0].confidence.level, Level::Possible);
    // Another container's.
    assert!(said(&mut Node::new(), TcpState { sk_cgroup: 45, ..unreachable() }).is_empty());
    let timed_out = TcpState { sk_err: 110, ..unreachable() };
    assert!(said(&mut Node::new(), timed_out).is_empty());
}

/// SYNs that are not answered are the queue's doing only where somebody is known to listen.
#[test]
fn a_connect_that_was_given_up() {
    let to = |port: u16| {
        let s = failed();
        let tuple = Tuple { remote_ip: s.tuple.local_ip, remote_port: port, ..s.tuple };
        TcpState { total_retrans: 2, tuple, ..s }
    };
    assert!(said(&mut Node::new(), to(9000)).is_empty(), "nobody is known to listen there");
    assert!(said(&mut Node::new(), TcpState { total_retrans: 0, ..to(80) }).is_empty());
    let told = said(&mut Node::new(), to(80));
    assert_eq!((told[0].cause, told[0].confidence.level), (Cause::SynDrop, Level::Likely));
    let mut node = Node::new();
    let full = TcpState {
        oldstate: tcp::LISTEN,
        newstate: tcp::SYN_RECV,
        side: Side::Listener,
        ack_backlog: 511,
        max_ack_backlog: 511,
        tuple: Tuple { local_port: 80, ..state().tuple },
        task: master(),
        ..state()
    };
    node.event(199 * S, EventKind::TcpState(full));
    let told = said(&mut node, to(80));
    assert_eq!((told[0].cause, told[0].confidence.level), (Cause::SynDrop, Level::Certain));
    assert!(told[0].chain.iter().any(|l| l.rule == "the-queue-was-full"));
}
