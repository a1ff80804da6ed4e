//! Requests on a kept connection whose php-fpm child has done its `pm.max_requests`, by hand.

use super::unix::{child, fpm, only, pod, rules};
use super::{Node, S, causes, master, state, task};
use crate::model::event::{EventKind, NginxErrorPage, NginxLogged, Side, Task, TcpState, Tuple, tcp};
use crate::model::{Cause, Level};

const MS: u64 = 1_000_000;
const T: u64 = 200 * S;
const SEND_SHUTDOWN: u8 = 2;

/// php's end.
fn fcgi() -> Tuple {
    let ip = "127.0.0.1".parse().unwrap();
    Tuple { local_ip: ip, local_port: 9000, remote_ip: ip, remote_port: 40_000, netns: task().netns }
}

fn close(old: u8, new: u8, shut: u8, by: Task) -> EventKind {
    EventKind::TcpState(TcpState {
        sk: 70,
        tuple: fcgi(),
        oldstate: old,
        newstate: new,
        side: Side::Server,
        sk_shutdown: shut,
        bytes_received: 1200,
        copied_seq: 1000,
        task: by,
        ..state()
    })
}

impl Node {
    fn half_closes(&mut self, at: u64) -> &mut Self {
        self.event(at, close(tcp::ESTABLISHED, tcp::FIN_WAIT1, SEND_SHUTDOWN, child(1)))
    }

    fn says_it_ended(&mut self, at: u64) -> &mut Self {
        let format = "upstream prematurely closed connection".into();
        self.event(
            at,
            EventKind::NginxLogged(NginxLogged { task: task(), level: 4, errno: 0, format, connection: None }),
        )
    }

    fn nginx_closes(&mut self, at: u64) -> &mut Self {
        self.event(at, close(tcp::FIN_WAIT2, tcp::CLOSE, 3, task()))
    }

    /// As its own end shows it.
    fn nginx_ends(&mut self, at: u64) -> &mut Self {
        let t = fcgi();
        let (local_ip, local_port, remote_ip, remote_port) = t.flipped();
        let tuple = Tuple { local_ip, local_port, remote_ip, remote_port, netns: t.netns };
        let (oldstate, newstate) = (tcp::CLOSE_WAIT, tcp::LAST_ACK);
        let ends = TcpState { sk: 71, tuple, oldstate, newstate, side: Side::Client, task: task(), ..state() };
        self.event(at, EventKind::TcpState(ends))
    }

    fn makes_a_page(&mut self, at: u64) -> &mut Self {
        let page = NginxErrorPage { task: task(), status: 502, connection: None, client: None };
        self.event(at, EventKind::NginxErrorPage(page))
    }

    /// All of it, in its order.
    fn thrown_away(&mut self, code: u32) -> &mut Self {
        self.half_closes(T).says_it_ended(T + MS).nginx_closes(T + MS + 1).makes_a_page(T + MS + 2);
        self.exits(T + 9 * MS, child(1), code)
    }
}

#[test]
fn a_request_that_a_child_throws_away_is_told() {
    let mut node = pod(false);
    let said = node.thrown_away(0).said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.confidence.level), (Cause::FpmMaxRequestsReset, Level::Certain), "{one:#?}");
    assert_eq!(one.response.status, Some(502));
    assert!(rules(one).contains(&"ended-by-itself-right-after"), "{:?}", rules(one));
}

/// nginx's FIN finds the child at work on its socket, and is told in the child's name when the page is made already.
#[test]
fn a_fin_that_waits_for_the_child_hides_nothing() {
    let mut node = pod(false);
    node.half_closes(T).says_it_ended(T + MS).nginx_ends(T + MS + 1).makes_a_page(T + MS + 2);
    node.event(T + MS + 3, close(tcp::FIN_WAIT2, tcp::CLOSE, 3, child(1))).exits(T + 9 * MS, child(1), 0);
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.confidence.level), (Cause::FpmMaxRequestsReset, Level::Certain), "{one:#?}");

    // Both ends tell, in order.
    let mut node = pod(false);
    node.half_closes(T).says_it_ended(T + MS).nginx_ends(T + MS + 1).nginx_closes(T + MS + 2).makes_a_page(T + MS + 3);
    assert_eq!(only(&node.exits(T + 9 * MS, child(1), 0).said(true)).cause, Cause::FpmMaxRequestsReset);

    // The end of nginx alone: of which connection of php-fpm it is, nobody says.
    let mut node = pod(false);
    node.says_it_ended(T + MS).nginx_ends(T + MS + 1).makes_a_page(T + MS + 2).exits(T + 9 * MS, child(1), 0);
    assert!(!causes(&node.said(true)).contains(&Cause::FpmMaxRequestsReset));
}

#[test]
fn without_a_page_nothing_was_lost() {
    let mut node = pod(false);
    node.half_closes(T).says_it_ended(T + MS).nginx_closes(T + MS + 1).exits(T + 9 * MS, child(1), 0);
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn a_child_that_was_told_or_that_fails_has_not_done_its_requests() {
    let never = |node: &mut Node, what: &str| {
        let said = node.said(true);
        assert!(!causes(&said).contains(&Cause::FpmMaxRequestsReset), "{what}: {said:#?}");
    };
    never(pod(false).thrown_away(255 << 8), "a status of its own");
    never(pod(false).signal(T - MS, 15, child(1)).thrown_away(0), "told to end");
    never(pod(false).signal(T - MS, 3, fpm()).thrown_away(0), "its master was told");
    let by_another = |node: &mut Node| {
        node.half_closes(T).says_it_ended(T + MS).event(T + MS + 1, close(tcp::FIN_WAIT2, tcp::CLOSE, 3, master()));
        node.makes_a_page(T + MS + 2).exits(T + 9 * MS, child(1), 0);
    };
    let mut node = pod(false);
    by_another(&mut node);
    never(&mut node, "another process closed");
}

/// Nothing shows a unix connection's half close.
#[test]
fn on_a_unix_socket_it_is_possible_at_most_and_only_where_php_fpm_has_one() {
    for has_one in [true, false] {
        let mut node = pod(has_one);
        node.says_it_ended(T).makes_a_page(T + 1).exits(T + 9 * MS, child(1), 0);
        let said = node.said(true);
        if has_one {
            let one = only(&said);
            assert_eq!((one.cause, one.confidence.level), (Cause::FpmMaxRequestsReset, Level::Possible), "{one:#?}");
            assert!(one.missing.iter().any(|m| m.fact == "kept-connection"), "{:?}", one.missing);
        } else {
            assert_eq!(causes(&said), []);
        }
    }
    // Long after, or with a status of its own.
    for (at, code) in [(T + S, 0), (T + MS, 255 << 8)] {
        let mut node = pod(true);
        node.says_it_ended(T).makes_a_page(T + 1).exits(at, child(1), code);
        assert_eq!(causes(&node.said(true)), [], "{at} {code}");
    }
}
