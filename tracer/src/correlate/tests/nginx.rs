//! What nginx says itself, by hand.

use super::unix::{child, dropped, fpm, only, pod, refused, rules};
use super::{Node, S, causes, exiting, late_data, state, syn_refused, task};
use crate::model::event::{
    EventKind, NginxErrorPage, NginxLogged, ResetSent, ResetSocket, Side, Task, TcpState, Tuple, tcp,
};
use crate::model::incident::{Mechanism, Outcome};
use crate::model::input::{Carries, CarriesFact, LossFact, LossKind};
use crate::model::{Cause, Input, Level};

const MS: u64 = 1_000_000;
const US: u64 = 1_000;

fn logged(errno: u32, format: &str) -> EventKind {
    EventKind::NginxLogged(NginxLogged { task: task(), level: 4, errno, format: format.into(), connection: None })
}

fn page(status: u32) -> EventKind {
    EventKind::NginxErrorPage(NginxErrorPage { task: task(), status, connection: None, client: None })
}

/// The worker's end of a connection to php-fpm over TCP.
fn to_php(port: u16) -> Tuple {
    let ip = "127.0.0.1".parse().unwrap();
    Tuple { local_ip: ip, local_port: port, remote_ip: ip, remote_port: 9000, netns: task().netns }
}

/// nginx closes an answer that it has not read.
fn reset(port: u16, by: Task) -> EventKind {
    EventKind::ResetSent(ResetSent {
        sk: 77,
        tuple: to_php(port),
        socket: ResetSocket::Full,
        active: true,
        accepted: false,
        port_known: false,
        bytes_received: 9089,
        bytes_sent: 544,
        rcv_nxt: 9089,
        copied_seq: 4096,
        digest: None,
        task: by,
        ..late_data(0, 0)
    })
}

const TOO_BIG: &str = "upstream sent too big header";

#[test]
fn an_answer_that_nginx_does_not_take_is_told_in_its_words() {
    let mut node = pod(true);
    node.event(200 * S, logged(0, TOO_BIG))
        .event(200 * S + US, reset(40000, task()))
        .event(200 * S + 2 * US, page(502));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.sub_cause.as_deref()), (Cause::UpstreamResponseInvalid, Some("header-too-big")));
    assert_eq!((one.outcome, one.mechanism), (Outcome::ErrorMade, Mechanism::Protocol));
    assert_eq!((one.response.status, one.response.source.as_str()), (Some(502), "nginx"));
    assert_eq!(rules(one), ["nginx-made-the-error", "nginx-said-why"]);
    assert!(
        one.chain[1].text.contains("127.0.0.1:9000") && one.chain[1].text.contains("4096 bytes of 9089"),
        "{one:#?}"
    );
    assert!(one.container.as_ref().is_some_and(|c| c.id.starts_with('a')), "{:?}", one.container);
    // 9089 bytes had come: 16k take them.
    assert_eq!((one.advice[0].value, one.advice[0].unit.as_deref()), (Some(16), Some("KiB")));
}

#[test]
fn neither_a_line_nor_a_page_alone_is_a_loss() {
    let alone = [logged(0, TOO_BIG), page(502), logged(0, "no live upstreams"), page(504)];
    for (n, kind) in alone.into_iter().enumerate() {
        let mut node = pod(true);
        node.event(200 * S, kind);
        assert_eq!(causes(&node.said(true)), [], "{n}");
    }
    // Of two workers.
    let mut node = pod(true);
    let other = Task { tgid: 8598, pid: 8598, ..task() };
    node.event(200 * S, logged(0, TOO_BIG));
    node.event(
        200 * S + US,
        EventKind::NginxErrorPage(NginxErrorPage { task: other, status: 502, connection: None, client: None }),
    );
    assert_eq!(causes(&node.said(true)), []);
    // Of another time.
    let mut node = pod(true);
    node.event(200 * S, logged(0, TOO_BIG)).event(201 * S, page(502));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn a_connection_of_another_time_or_worker_is_not_the_answers() {
    let mut node = pod(true);
    let other = Task { tgid: 8598, pid: 8598, ..task() };
    node.event(199 * S, reset(40001, task())).event(200 * S, logged(0, TOO_BIG));
    node.event(200 * S + US, reset(40002, other)).event(200 * S + 2 * US, page(502));
    let said = node.said(true);
    assert!(!only(&said).chain[1].text.contains("127.0.0.1"), "{said:#?}");
    assert_eq!(only(&said).advice[0].value, None);
}

#[test]
fn what_php_writes_to_stderr_is_no_reason() {
    let mut node = pod(true);
    node.event(200 * S, logged(0, "FastCGI sent in stderr: \"%*s\"")).event(200 * S + US, page(502));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn a_refused_connect_gets_the_status_that_nginx_made_of_it() {
    let mut node = pod(true);
    node.event(200 * S, refused(11)).event(200 * S + US, logged(11, "connect() to %V failed"));
    node.event(200 * S + 2 * US, page(502));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.response.status), (Cause::FpmListenQueueFull, Some(502)));
    assert_eq!(one.chain.last().map(|l| l.rule.as_str()), Some("beside-nginx-answered"));
}

#[test]
fn an_attempt_that_nginx_repeats_is_no_lost_request() {
    let mut node = pod(true);
    node.event(200 * S, refused(11)).event(200 * S + US, logged(11, "connect() to %V failed"));
    assert_eq!(causes(&node.said(true)), []);
    // Two servers, and both are full: one request, one incident.
    let mut node = pod(true);
    for n in 0..2 {
        let at = 200 * S + n * 2 * US;
        node.event(at, refused(11)).event(at + US, logged(11, "connect() to %V failed"));
    }
    node.event(200 * S + 4 * US, page(502));
    let said = node.said(true);
    assert_eq!((only(&said).cause, only(&said).response.status), (Cause::FpmListenQueueFull, Some(502)));
    // A page that comes late may be its own, and records that were lost may have had it.
    let mut node = pod(true);
    node.event(200 * S, refused(11)).event(200 * S + US, logged(11, "connect() to %V failed"));
    node.event(200 * S + 100 * MS, page(502));
    assert_eq!(causes(&node.said(true)), [Cause::FpmListenQueueFull]);
    let mut node = pod(true);
    node.event(200 * S, refused(11)).event(200 * S + US, logged(11, "connect() to %V failed"));
    let (from, to) = (200 * S, 200 * S + MS);
    let hook = "ngx_http_special_response_handler".into();
    node.inputs.push(Input::Loss(LossFact { from, to, hook, kind: LossKind::RingFull, count: 1 }));
    assert_eq!(causes(&node.said(true)), [Cause::FpmListenQueueFull]);
}

#[test]
fn without_lines_of_nginx_everything_is_as_before() {
    let mut node = pod(true);
    node.event(200 * S, refused(11));
    let said = node.said(true);
    assert_eq!((only(&said).cause, only(&said).response.status), (Cause::FpmListenQueueFull, None));
    assert_eq!(only(&said).confidence.level, Level::Certain);
}

/// php-fpm is killed with `n` requests, and nginx says what it made of them.
fn killed(n: u64, lines: &[Option<u32>]) -> Node {
    let mut node = pod(true);
    node.signal(200 * S, 15, fpm()).inside(200 * S + US, 15, fpm(), child(1));
    node.exits(200 * S + MS - 1, child(1), 15);
    for n in 0..n {
        node.event(200 * S + MS + n, EventKind::UnixDropped(dropped(50 + 2 * n, exiting(child(1)))));
    }
    for (n, line) in lines.iter().enumerate() {
        let at = 200 * S + 2 * MS + 10 * US * n as u64;
        node.event(at, logged(0, "upstream prematurely closed connection"));
        if let Some(status) = line {
            node.event(at + US, page(*status));
        }
    }
    node
}

#[test]
fn cut_requests_get_a_status_only_where_all_have_it() {
    let statuses = |mut node: Node| -> Vec<_> { node.said(true).iter().map(|i| i.response.status).collect() };
    assert_eq!(statuses(killed(1, &[Some(502)])), [Some(502)]);
    assert_eq!(statuses(killed(2, &[Some(502), Some(502)])), [Some(502), Some(502)]);
    assert_eq!(statuses(killed(2, &[Some(502)])), [None, None]);
    // One more line: an answer that was cut in its middle.
    assert_eq!(statuses(killed(2, &[None, Some(502), Some(502)])), [None, None]);
    assert_eq!(statuses(killed(1, &[])), [None]);
}

#[test]
fn where_some_were_repeated_none_is_lost_with_certainty() {
    let said = killed(2, &[Some(502), None]).said(true);
    assert_eq!(said.len(), 2);
    for i in &said {
        assert_eq!(i.confidence.level, Level::Possible, "{i:#?}");
        assert!(i.missing.iter().any(|m| m.fact == "next-upstream"));
    }
    // Over a unix socket part of an answer may have gone: no page is not enough.
    assert_eq!(killed(1, &[None]).said(true)[0].confidence.level, Level::Possible);
    let level = |lines: &[Option<u32>]| killed(1, lines).said(true)[0].confidence.level;
    assert_eq!((level(&[]), level(&[Some(502)])), (Level::Certain, Level::Certain));
}

/// The connect of the worker's port `port` to a php-fpm that does not listen is refused.
fn refused_by_tcp(node: &mut Node, at: u64, port: u16) {
    let s = TcpState {
        sk: u64::from(port),
        tuple: to_php(port),
        side: Side::Client,
        oldstate: tcp::SYN_SENT,
        newstate: tcp::CLOSE,
        sk_err: 111,
        ..state()
    };
    node.event(at, EventKind::TcpState(s));
}

#[test]
fn refused_connects_are_paired_in_their_order() {
    let mut node = pod(false);
    for n in 0..2 {
        refused_by_tcp(&mut node, 200 * S + n, 40000 + n as u16);
    }
    for n in 0..2 {
        node.event(200 * S + MS + 2 * n, logged(111, "connect() failed")).event(200 * S + MS + 2 * n + 1, page(502));
    }
    // Later, one that is repeated elsewhere.
    refused_by_tcp(&mut node, 201 * S, 40002);
    node.event(201 * S + MS, logged(111, "connect() failed"));
    let said = node.said(true);
    let all: Vec<_> = said.iter().map(|i| (i.requester.port, i.cause, i.response.status)).collect();
    let lost = |port| (Some(port), Cause::FpmNotListening, Some(502));
    assert_eq!(all, [lost(40000), lost(40001)]);
}

/// The kernel's table of ports outlives a namespace whose number is given again: the reset of a port that nobody else knows.
#[test]
fn a_reset_that_tells_nothing_hides_no_refused_connect() {
    for known in [false, true] {
        let mut node = pod(false);
        let t = to_php(40000);
        if known {
            let server = Tuple {
                local_ip: t.remote_ip,
                local_port: t.remote_port,
                remote_ip: t.local_ip,
                remote_port: t.local_port,
                ..t
            };
            let EventKind::ResetSent(reset) = syn_refused() else { unreachable!() };
            node.event(200 * S - US, EventKind::ResetSent(ResetSent { tuple: server, task: task(), ..reset }));
        }
        refused_by_tcp(&mut node, 200 * S, 40000);
        let said = node.said(true);
        assert_eq!(only(&said).cause, Cause::FpmNotListening, "{known}");
    }
}

#[test]
fn nobody_is_asked_because_of_what_failed_before() {
    let mut node = pod(true);
    // The only server that is left is full, and is left alone from then on.
    node.event(200 * S, refused(11)).event(200 * S + US, logged(11, "connect() to %V failed"));
    node.event(200 * S + 2 * US, logged(0, "no live upstreams")).event(200 * S + 3 * US, page(502));
    node.event(201 * S, logged(0, "no live upstreams")).event(201 * S + US, page(502));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::FpmListenQueueFull, Cause::FpmListenQueueFull], "{said:#?}");
    assert_eq!(said[0].outcome, Outcome::Refused, "the attempt tells of its request");
    assert_eq!((said[1].outcome, said[1].response.status), (Outcome::ErrorMade, Some(502)));
    assert_eq!(rules(&said[1])[..3], ["nginx-made-the-error", "nginx-said-why", "unix-connect-failed"]);
    assert_eq!(said[1].confidence.level, Level::Likely);
    assert!(!said[1].advice.is_empty());
    // Soon after two refusals, of which the second had its page: another request.
    let mut node = pod(true);
    for n in 0..2 {
        let at = 200 * S + n * 2 * US;
        node.event(at, refused(11)).event(at + US, logged(11, "connect() to %V failed"));
    }
    node.event(200 * S + 4 * US, page(502));
    node.event(200 * S + 2 * MS, logged(0, "no live upstreams")).event(200 * S + 2 * MS + US, page(502));
    let said = node.said(true);
    assert_eq!(said.iter().map(|i| i.outcome).collect::<Vec<_>>(), [Outcome::Refused, Outcome::ErrorMade], "{said:#?}");
    // What had failed was not seen.
    let mut node = pod(true);
    node.event(201 * S, logged(0, "no live upstreams")).event(201 * S + US, page(502));
    let said = node.said(true);
    assert_eq!((only(&said).cause, only(&said).confidence.value), (Cause::Unexplained, 0.0));
    assert!(only(&said).missing.iter().any(|m| m.fact == "upstream-failures"));
}

/// A client of the pod's nginx, from its side.
fn client() -> Tuple {
    let (local_ip, remote_ip) = ("10.9.0.2".parse().unwrap(), "10.9.0.1".parse().unwrap());
    Tuple { local_ip, local_port: 80, remote_ip, remote_port: 40312, netns: task().netns }
}

fn line_of(number: u64, errno: u32, format: &str) -> EventKind {
    let EventKind::NginxLogged(line) = logged(errno, format) else { unreachable!() };
    EventKind::NginxLogged(NginxLogged { connection: Some(number), ..line })
}

fn page_of(number: u64, status: u32) -> EventKind {
    EventKind::NginxErrorPage(NginxErrorPage { task: task(), status, connection: Some(number), client: Some(client()) })
}

#[test]
fn the_client_of_what_only_nginx_tells() {
    let mut node = pod(true);
    node.event(200 * S, line_of(17, 0, TOO_BIG)).event(200 * S + US, page_of(17, 502));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.requester.ip, one.requester.port), (Some(client().remote_ip), Some(40312)));
    assert_eq!((one.server.ip, one.server.port), (Some(client().local_ip), Some(80)));
    assert!(one.chain[0].text.contains("(10.9.0.1:40312)"), "{one:#?}");
    // Of an attempt that its own records show it is told beside the explanation: its requester is nginx.
    let mut node = pod(true);
    node.event(200 * S, refused(11)).event(200 * S + US, line_of(17, 11, "connect() to %V failed"));
    node.event(200 * S + 2 * US, page_of(17, 502));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.response.status, one.requester.ip), (Some(502), None));
    let page = one.chain.iter().find(|l| l.kind == "nginx-error-page").unwrap();
    assert!(page.text.ends_with("502 (10.9.0.1:40312)"), "{one:#?}");
}

#[test]
fn a_page_of_another_client_is_another_requests() {
    let mut node = pod(true);
    node.event(200 * S, line_of(17, 0, TOO_BIG)).event(200 * S + US, page_of(18, 503));
    assert_eq!(causes(&node.said(true)), []);
    // The attempt was repeated, and the next request of this worker was turned away.
    let play = |number| {
        let mut node = pod(true);
        node.event(200 * S, refused(11)).event(200 * S + US, line_of(17, 11, "connect() to %V failed"));
        node.event(200 * S + 2 * US, page_of(number, 503));
        node.said(true).len()
    };
    assert_eq!((play(17), play(18)), (1, 0));
    // Nor is the attempt before "no live upstreams" this request's, unless it has its number.
    let play = |number| {
        let mut node = pod(true);
        node.event(200 * S, refused(11)).event(200 * S + US, line_of(number, 11, "connect() to %V failed"));
        node.event(200 * S + 2 * US, line_of(18, 0, "no live upstreams")).event(200 * S + 3 * US, page_of(18, 502));
        node.said(true).iter().map(|i| i.outcome).collect::<Vec<_>>()
    };
    assert_eq!(play(18), [Outcome::Refused]);
    assert_eq!(play(17), [Outcome::ErrorMade]);
}

#[test]
fn no_way_leads_to_the_upstream() {
    let said_of = |errno: u32, format: &str, line: u64, page: u64| {
        let mut node = pod(true);
        node.event(200 * S, line_of(line, errno, format)).event(200 * S + US, page_of(page, 502));
        node.said(true)
    };
    for (errno, at_most) in [(113, 0.9), (101, 0.8)] {
        let said = said_of(errno, "connect() to %V failed", 17, 17);
        let i = only(&said);
        assert_eq!(
            (i.cause, i.mechanism, i.outcome),
            (Cause::PodNetworkGone, Mechanism::NetworkGone, Outcome::ErrorMade)
        );
        assert!((i.confidence.value - at_most).abs() < 1e-9, "{i:#?}");
        assert_eq!((i.requester.port, i.response.status), (Some(40312), Some(502)));
        assert!(i.chain.iter().any(|l| l.rule == "nginx-said-why"), "{i:#?}");
    }
    // Known only later: then the socket shows it. Of nobody's request, and of another's.
    assert_eq!(causes(&said_of(113, "connect() failed", 17, 17)), []);
    assert_eq!(causes(&said_of(101, "connect() to %V failed", 18, 17)), []);
    let mut node = pod(true);
    node.event(200 * S, logged(101, "connect() to %V failed")).event(200 * S + US, page_of(17, 502));
    assert_eq!(causes(&node.said(true)), []);
    // Another server was asked: nothing is lost, whatever becomes of the next request.
    let mut node = pod(true);
    node.event(200 * S, line_of(17, 113, "connect() to %V failed"));
    node.event(200 * S + MS, line_of(18, 0, TOO_BIG)).event(200 * S + MS + US, page_of(18, 502));
    assert_eq!(causes(&node.said(true)), [Cause::UpstreamResponseInvalid]);
    // And when none is left of them: the request that met the last, and one that nginx asks nobody for.
    let mut node = pod(true);
    node.event(200 * S, line_of(17, 113, "connect() to %V failed"));
    node.event(200 * S + US, line_of(17, 0, "no live upstreams")).event(200 * S + 2 * US, page_of(17, 502));
    node.event(201 * S, line_of(18, 0, "no live upstreams")).event(201 * S + US, page_of(18, 502));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::PodNetworkGone; 2]);
    assert!(said[1].confidence.value <= 0.8 && said[1].summary.contains("without asking anybody"), "{:#?}", said[1]);
}

#[test]
fn a_connect_without_a_port_has_its_line_and_its_page() {
    let connect = |at: u64, node: &mut Node| {
        let ends = to_php(0);
        let state = TcpState {
            oldstate: tcp::SYN_SENT,
            newstate: tcp::CLOSE,
            side: Side::Client,
            tuple: ends,
            task: task(),
            ..state()
        };
        node.event(at, EventKind::TcpState(state));
    };
    let line = |number| line_of(number, 99, "connect() to %V failed");
    let mut node = pod(true);
    connect(200 * S, &mut node);
    node.event(200 * S + US, line(17)).event(200 * S + 2 * US, page_of(17, 502));
    let said = node.said(true);
    let i = only(&said);
    assert_eq!((i.cause, i.confidence.level), (Cause::EphemeralPortsExhausted, Level::Certain));
    assert_eq!((i.outcome, i.response.status), (Outcome::Refused, Some(502)));
    // No page: another server answered. Without uprobes nothing is known of that.
    let mut node = pod(true);
    connect(200 * S, &mut node);
    node.event(200 * S + US, line(17));
    assert_eq!(causes(&node.said(true)), []);
    let mut node = pod(true);
    connect(200 * S, &mut node);
    assert_eq!(causes(&node.said(true)), [Cause::EphemeralPortsExhausted]);
    // No socket of this worker was left without a port just before: it is something else.
    let mut node = pod(true);
    node.event(200 * S + US, line(17)).event(200 * S + 2 * US, page_of(17, 502));
    let said = node.said(true);
    let i = only(&said);
    assert_eq!((i.cause, i.sub_cause.as_deref()), (Cause::Unexplained, Some("no-local-address")));
}

#[test]
fn a_timeout_is_nobodys_death() {
    let closes = |side, newstate, tuple: Tuple, by: Task| {
        EventKind::TcpState(TcpState {
            side,
            newstate,
            tuple,
            bytes_sent: if side == Side::Client { 544 } else { 0 },
            bytes_received: if side == Side::Client { 0 } else { 545 },
            // The two ends of one connection began at the same numbers.
            rcv_nxt: if side == Side::Client { 5001 } else { 1546 },
            snd_una: if side == Side::Client { 1000 } else { 5001 },
            bytes_acked: 0,
            task: by,
            ..state()
        })
    };
    let t = to_php(40000);
    let server = Tuple { local_port: 9000, remote_port: 40000, ..t };
    let play = |line: bool| {
        let mut node = pod(false);
        let listener = TcpState {
            oldstate: tcp::CLOSE,
            newstate: tcp::LISTEN,
            side: Side::Listener,
            tuple: Tuple { remote_port: 0, ..server },
            task: fpm(),
            ..state()
        };
        node.event(150 * S, EventKind::TcpState(listener));
        if line {
            node.event(200 * S, logged(110, "upstream timed out"));
        }
        node.event(200 * S + US, closes(Side::Client, tcp::FIN_WAIT1, t, task()));
        node.event(200 * S + 2 * US, closes(Side::Server, tcp::CLOSE_WAIT, server, task()));
        if line {
            node.event(200 * S + 3 * US, page(504));
        }
        let said = node.said(true);
        let one = only(&said);
        assert_eq!(one.cause, Cause::EdgeTimeout, "{one:#?}");
        (one.confidence.level, one.response.status)
    };
    assert_eq!(play(true), (Level::Certain, Some(504)));
    assert_eq!(play(false), (Level::Likely, None));
}

#[test]
fn a_connection_that_carries_more_than_requests_is_possibly_lost() {
    let play = |what: Option<Carries>, sent: u64| {
        let mut node = Node::new();
        if let Some(what) = what {
            let (at, netns, port) = (3, task().netns, 80);
            node.inputs.push(Input::Carries(CarriesFact { at, netns, port, what }));
        }
        node.signal(200 * S, 15, super::master());
        node.event(200 * S + MS - 1, EventKind::Exited { task: exiting(task()), code: 0 });
        let cut = TcpState { lrcvtime: 1001, bytes_sent: sent, task: exiting(task()), ..state() };
        node.event(200 * S + MS, EventKind::TcpState(cut));
        let said = node.said(true);
        assert_eq!(only(&said).cause, Cause::NginxFastShutdown);
        only(&said).confidence.level
    };
    assert_eq!(play(None, 600), Level::Certain);
    assert_eq!(play(Some(Carries::Http2), 600), Level::Possible);
    assert_eq!(play(Some(Carries::Upgraded), 600), Level::Possible);
    // Nothing was ever answered on it: it is neither yet.
    assert_eq!(play(Some(Carries::Upgraded), 0), Level::Certain);
}
