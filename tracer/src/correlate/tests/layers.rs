//! An edge nginx in another pod, by hand: what it says of the end of its connection belongs to the pod's incident.

use super::{Node, S, exiting, fact, known, master, state, task};
use crate::model::event::{EventKind, NginxErrorPage, NginxLogged, Side, Task, TcpNotice, TcpState, Tuple, tcp};
use crate::model::{Incident, Input};

const MS: u64 = 1_000_000;
const US: u64 = 1_000;
/// Container of the other pod.
const EDGE: u64 = 45;

fn edge_master() -> Task {
    Task { tgid: 7_000, pid: 7_000, ns_pid: 1, pidns: 8, netns: 8, cgroup: EDGE, start_ns: 4 * S, ..master() }
}

fn edge() -> Task {
    let start_ns = 4 * S + MS;
    Task { tgid: 7_001, pid: 7_001, ns_pid: 2, ppid: 7_000, pidns: 8, netns: 8, cgroup: EDGE, start_ns, ..task() }
}

fn node() -> Node {
    let mut node = Node::new();
    node.inputs.insert(2, Input::Process(fact(&edge_master(), "/usr/sbin/nginx", "nginx: master process nginx")));
    known(&mut node, &edge(), "/usr/sbin/nginx", "nginx: worker process");
    node
}

/// The edge's end of the connection of [`cut`], as it is on its side of a node that translates addresses.
fn end(task: Task) -> TcpState {
    let tuple = Tuple {
        local_ip: "10.0.8.8".parse().unwrap(),
        local_port: 33333,
        remote_ip: "10.96.0.1".parse().unwrap(),
        remote_port: 80,
        netns: 8,
    };
    TcpState {
        sk: 70,
        sk_cgroup: EDGE,
        side: Side::Client,
        oldstate: tcp::CLOSE_WAIT,
        newstate: tcp::LAST_ACK,
        tuple,
        bytes_sent: 79,
        bytes_acked: 80,
        snd_una: 1080,
        // The server began at 5000, and its FIN has come.
        bytes_received: 1,
        rcv_nxt: 5002,
        copied_seq: 5002,
        task,
        ..state()
    }
}

/// The pod's nginx is ended by SIGTERM with a request unanswered: received 79 bytes from 1001 on, sent none from 5001 on.
fn cut(node: &mut Node) {
    node.signal(200 * S, 15, master());
    node.event(200 * S + MS, EventKind::Exited { task: exiting(task()), code: 0 });
    let s = TcpState { bytes_sent: 0, bytes_acked: 0, snd_una: 5001, task: exiting(task()), ..state() };
    node.event(200 * S + 2 * MS, EventKind::TcpState(s));
}

fn says(node: &mut Node, at: u64) {
    let format = "upstream prematurely closed connection".to_string();
    node.event(at, EventKind::NginxLogged(NginxLogged { task: edge(), level: 4, errno: 0, format, connection: None }));
}

fn page(task: Task) -> NginxErrorPage {
    NginxErrorPage { task, status: 502, connection: None, client: None }
}

fn only(node: &mut Node) -> Incident {
    let mut said = node.said(true);
    assert_eq!(said.len(), 1, "{said:#?}");
    said.remove(0)
}

fn beside(i: &Incident) -> &str {
    &i.chain.iter().find(|l| l.rule == "beside-the-requesting-end").unwrap().text
}

#[test]
fn the_page_of_an_edge_is_its_pods_incident() {
    let at = 200 * S + 3 * MS;
    let mut node = node();
    cut(&mut node);
    says(&mut node, at);
    node.event(at + US, EventKind::TcpState(end(edge())));
    node.event(at + 2 * US, EventKind::NginxErrorPage(page(edge())));
    let i = only(&mut node);
    assert_eq!((i.response.status, i.response.source.as_str()), (Some(502), "nginx"));
    assert_eq!((i.requester.kind.as_str(), i.requester.known_by.as_deref()), ("edge", Some("sequence-numbers")));
    assert!(i.requester.container.as_ref().is_some_and(|c| c.starts_with('b')), "{i:#?}");
    assert!(i.requester.pod.as_ref().is_some_and(|p| p.uid.starts_with('9')), "{i:#?}");
    assert!(beside(&i).contains("10.0.8.8:33333 -> 10.96.0.1:80"), "{i:#?}");
}

#[test]
fn a_page_of_another_connection_is_not() {
    // Of this worker, after the end of another connection; of another worker; long after.
    let other = Tuple { local_port: 33334, ..end(edge()).tuple };
    let stranger = Task { tgid: 7_002, pid: 7_002, ..edge() };
    for (n, (tuple, by, later)) in
        [(other, edge(), 0), (end(edge()).tuple, stranger, 0), (end(edge()).tuple, edge(), 300 * MS)]
            .into_iter()
            .enumerate()
    {
        let at = 200 * S + 3 * MS;
        let mut node = node();
        cut(&mut node);
        says(&mut node, at);
        node.event(at + US, EventKind::TcpState(TcpState { tuple, ..end(edge()) }));
        node.event(at + 2 * US + later, EventKind::NginxErrorPage(page(by)));
        let i = only(&mut node);
        // With the same numbers it is the same connection, whatever the addresses.
        assert_eq!(i.response.status, (n == 0).then_some(502), "{n}: {i:#?}");
    }
}

/// The line alone: the attempt may have been repeated, and the incident says no more than that.
#[test]
fn an_edge_that_made_no_page() {
    let at = 200 * S + 3 * MS;
    let mut node = node();
    cut(&mut node);
    says(&mut node, at);
    node.event(at + US, EventKind::TcpState(end(edge())));
    let i = only(&mut node);
    assert_eq!(i.response.status, None);
    assert!(beside(&i).contains("made no error page"), "{i:#?}");
}

#[test]
fn weak_evidence_names_nobody() {
    let notice = |first: Option<u32>, port: u16| {
        let tuple = Tuple { local_ip: state().tuple.remote_ip, local_port: port, ..end(edge()).tuple };
        let (state, side, total_retrans) = (tcp::ESTABLISHED, Side::Client, 0);
        EventKind::ResetReceived(TcpNotice {
            sk: 70,
            sk_cgroup: EDGE,
            tuple,
            state,
            side,
            bytes_received: 0,
            bytes_sent: 79,
            total_retrans,
            first_sent: first,
            first_received: None,
        })
    };
    let play = |kind: EventKind| {
        let mut node = node();
        cut(&mut node);
        node.event(200 * S + 3 * MS, kind);
        let i = only(&mut node);
        (i.requester.known_by.clone(), i.requester.container.is_some(), i.requester.kind)
    };
    let port = state().tuple.remote_port;
    let by = |id: Option<&str>, named: bool, kind: &str| (id.map(str::to_string), named, kind.to_string());
    assert_eq!(play(notice(Some(1000), port + 1)), by(Some("sequence-numbers"), true, "edge"));
    assert_eq!(play(notice(Some(1001), port)), by(None, false, "unknown"), "another connection of the same source");
    assert_eq!(play(notice(None, port)), by(Some("address-and-time"), false, "unknown"));
    assert_eq!(play(notice(None, port + 1)), by(None, false, "unknown"));
}
