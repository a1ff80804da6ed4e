use super::*;
use crate::model::event::{Side, Task, Tuple};
use proptest::prelude::*;

const S: BootNs = 1_000_000_000;

fn key(tgid: u32) -> ProcKey {
    ProcKey { tgid, start_ticks: u64::from(tgid) }
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// A change of state of a socket in namespace 2, made by a process that started `tgid` ticks after boot.
pub(in crate::identity) fn state(sk: u64, local: &str, port: u16, tgid: u32, old: u8, new: u8) -> TcpState {
    let task = Task {
        tgid,
        pid: tgid,
        ns_pid: 1,
        ppid: 1,
        uid: 0,
        pidns: 1,
        netns: 2,
        flags: 0,
        cgroup: 7,
        cgroup_v1: 0,
        start_ns: u64::from(tgid) * crate::model::event::TICK_NS,
        comm: "nginx".into(),
    };
    let tuple = Tuple { local_ip: ip(local), local_port: port, remote_ip: ip("0.0.0.0"), remote_port: 0, netns: 2 };
    TcpState {
        sk,
        sk_cgroup: 7,
        tuple,
        family: 2,
        oldstate: old,
        newstate: new,
        side: Side::Listener,
        accepted: true,
        bytes_received: 0,
        bytes_sent: 0,
        bytes_acked: 0,
        rcv_nxt: 0,
        copied_seq: 0,
        rcv_wup: 0,
        write_seq: 0,
        snd_una: 0,
        snd_nxt: 0,
        lsndtime: 0,
        lrcvtime: 0,
        jiffies: 0,
        total_retrans: 0,
        pingpong: 0,
        sk_shutdown: 0,
        sk_err: 0,
        ack_backlog: 0,
        max_ack_backlog: 511,
        task,
    }
}

struct Feed {
    l: Listeners,
    next: u64,
}

impl Feed {
    fn new() -> Feed {
        Feed { l: Listeners::new(1000), next: 0 }
    }
    fn event(&mut self, at: BootNs, state: &TcpState) -> EventId {
        self.next += 1;
        self.l.observe_state(EventId(self.next), at, state, None);
        EventId(self.next)
    }
    fn open(&mut self, at: BootNs, sk: u64, local: &str, port: u16) -> EventId {
        self.event(at, &state(sk, local, port, 20, tcp::CLOSE, tcp::LISTEN))
    }
    fn close(&mut self, at: BootNs, sk: u64, local: &str, port: u16) -> EventId {
        self.event(at, &state(sk, local, port, 21, tcp::LISTEN, tcp::CLOSE))
    }
    fn scan(&mut self, at: BootNs, inode: u64, local: &str, port: u16, holders: &[u32]) {
        let holders = holders.iter().map(|t| key(*t)).collect();
        self.l.observe_fact(&ListenerFact { at, netns: 2, ip: ip(local), port, inode, holders, closed: false }, None);
    }
    /// `+n` since s (`?` unknown): n sockets; `-` closed at, open since; `.` never.
    fn at(&self, at: BootNs, to: &str, port: u16) -> String {
        let since = |s: Option<BootNs>| s.map_or("?".to_owned(), |s| s.to_string());
        match self.l.state_at(2, ip(to), port, at) {
            ListenState::NeverSeen => ".".to_owned(),
            ListenState::Listening { since: s, sockets, .. } => format!("+{sockets} {}", since(s)),
            ListenState::Closed { at, open_since, .. } => format!("-{at} {}", since(open_since)),
        }
    }
}

#[test]
fn opens_and_closes() {
    let mut f = Feed::new();
    assert_eq!(f.at(5, "10.0.0.1", 80), ".");
    f.open(10, 1, "0.0.0.0", 80);
    let closed = f.close(20, 1, "0.0.0.0", 80);
    assert_eq!(f.at(9, "10.0.0.1", 80), ".");
    assert_eq!(f.at(10, "10.0.0.1", 80), "+1 10");
    assert_eq!(f.at(19, "10.0.0.1", 80), "+1 10");
    assert_eq!(f.at(20, "10.0.0.1", 80), "-20 10");
    assert_eq!(f.at(20, "10.0.0.1", 81), ".");
    assert!(matches!(f.l.state_at(3, ip("10.0.0.1"), 80, 20), ListenState::NeverSeen), "another namespace");
    let ListenState::Closed { event, closer, owner, .. } = f.l.state_at(2, ip("10.0.0.1"), 80, 99) else {
        panic!("not closed")
    };
    assert_eq!((event, closer), (Some(closed), Some(key(21))));
    assert_eq!((owner.opener, owner.cgroup), (Some(key(20)), 7));
    f.open(30, 2, "0.0.0.0", 80);
    assert_eq!(f.at(29, "10.0.0.1", 80), "-20 10");
    assert_eq!(f.at(30, "10.0.0.1", 80), "+1 30");
    assert_eq!(f.l.opened_after(2, ip("10.0.0.1"), 80, 20).map(|(at, _)| at).collect::<Vec<_>>(), [30]);
}

#[test]
fn a_port_closes_with_its_last_socket() {
    let mut f = Feed::new();
    for sk in 1..=3 {
        f.open(10 + sk, sk, "0.0.0.0", 80);
    }
    f.close(20, 1, "0.0.0.0", 80);
    f.close(21, 3, "0.0.0.0", 80);
    assert_eq!(f.at(22, "10.0.0.1", 80), "+1 12");
    f.close(23, 2, "0.0.0.0", 80);
    assert_eq!(f.at(23, "10.0.0.1", 80), "-23 12");
    let closes = f.l.closes(2, ip("10.0.0.1"), 80, 0, 99);
    assert_eq!(
        closes.iter().map(|c| (c.at, c.sk, c.left)).collect::<Vec<_>>(),
        [(20, Some(1), 2), (21, Some(3), 1), (23, Some(2), 0)]
    );
    assert!(f.l.by_sk.is_empty());
}

#[test]
fn wildcards_and_families() {
    let mut f = Feed::new();
    f.open(10, 1, "::", 80);
    f.open(10, 2, "127.0.0.1", 9000);
    assert_eq!(f.at(11, "10.0.0.1", 80), "+1 10", "dual stack, or taken as such");
    assert_eq!(f.at(11, "fd00::1", 80), "+1 10");
    assert_eq!(f.at(11, "::ffff:10.0.0.1", 80), "+1 10");
    assert_eq!(f.at(11, "127.0.0.1", 9000), "+1 10");
    assert_eq!(f.at(11, "10.0.0.1", 9000), ".");
    f.open(12, 3, "0.0.0.0", 80);
    f.close(13, 1, "::", 80);
    assert_eq!(f.at(13, "10.0.0.1", 80), "+1 12");
    assert_eq!(f.at(13, "fd00::1", 80), "-13 10", "0.0.0.0 takes no IPv6");
}

#[test]
fn scanned_sockets_are_closed_by_events() {
    let mut f = Feed::new();
    f.scan(100 * S, 11, "0.0.0.0", 80, &[20, 30]);
    f.scan(100 * S, 12, "0.0.0.0", 80, &[21]);
    f.scan(100 * S, 12, "0.0.0.0", 80, &[21, 31]);
    assert_eq!(f.at(101 * S, "10.0.0.1", 80), "+2 ?");
    f.close(101 * S, 5, "0.0.0.0", 80);
    assert_eq!(f.at(101 * S, "10.0.0.1", 80), "+1 ?");
    let ListenState::Listening { owner, .. } = f.l.state_at(2, ip("10.0.0.1"), 80, 101 * S) else { panic!() };
    assert_eq!(owner.holders, [key(20), key(30)], "the closer held the other one");
    f.close(102 * S, 6, "0.0.0.0", 80);
    assert_eq!(f.at(103 * S, "10.0.0.1", 80), format!("-{} ?", 102 * S));
}

#[test]
fn scan_and_events_see_one_socket_once() {
    // Opened, then scanned.
    let mut f = Feed::new();
    f.open(10 * S, 1, "0.0.0.0", 80);
    f.scan(11 * S, 5, "0.0.0.0", 80, &[20]);
    assert_eq!(f.at(12 * S, "10.0.0.1", 80), format!("+1 {}", 10 * S));
    f.close(13 * S, 1, "0.0.0.0", 80);
    assert_eq!(f.at(13 * S, "10.0.0.1", 80), format!("-{} {}", 13 * S, 10 * S));
    // The event is drained after the fact was fed.
    let mut f = Feed::new();
    f.scan(11 * S, 5, "0.0.0.0", 80, &[20]);
    f.open(10 * S, 1, "0.0.0.0", 80);
    assert_eq!(f.at(12 * S, "10.0.0.1", 80), format!("+1 {}", 10 * S));
    f.close(13 * S, 1, "0.0.0.0", 80);
    assert_eq!(f.at(13 * S, "10.0.0.1", 80), format!("-{} {}", 13 * S, 10 * S));
    // Scanned, closed, and only then the fact is fed.
    let mut f = Feed::new();
    f.close(12 * S, 1, "0.0.0.0", 80);
    f.scan(11 * S, 5, "0.0.0.0", 80, &[20]);
    assert_eq!(f.at(11 * S, "10.0.0.1", 80), "+1 ?");
    assert_eq!(f.at(13 * S, "10.0.0.1", 80), format!("-{} ?", 12 * S));
    // Opened after the scan: another one.
    let mut f = Feed::new();
    f.scan(11 * S, 5, "0.0.0.0", 80, &[20]);
    f.open(12 * S, 1, "0.0.0.0", 80);
    assert_eq!(f.at(13 * S, "10.0.0.1", 80), "+2 ?");
    f.close(14 * S, 1, "0.0.0.0", 80);
    assert_eq!(f.at(15 * S, "10.0.0.1", 80), "+1 ?", "its own close, not the scanned one's");
    // Closed long before the scan: what the scan found is another one.
    let mut f = Feed::new();
    f.close(5 * S, 1, "0.0.0.0", 80);
    f.scan(11 * S, 5, "0.0.0.0", 80, &[20]);
    assert_eq!(f.at(12 * S, "10.0.0.1", 80), "+1 ?");
}

#[test]
fn a_close_without_an_open_still_tells() {
    let mut f = Feed::new();
    let id = f.close(20, 1, "0.0.0.0", 80);
    assert_eq!(f.at(19, "10.0.0.1", 80), "+1 ?", "it listened until then");
    assert_eq!(f.at(20, "10.0.0.1", 80), "-20 ?");
    assert_eq!(f.l.closes(2, ip("10.0.0.1"), 80, 0, 99)[0].event, Some(id));
}

#[test]
fn a_missed_close_is_concluded() {
    let mut f = Feed::new();
    f.open(10, 1, "0.0.0.0", 80);
    f.open(20, 1, "0.0.0.0", 81);
    assert_eq!(f.at(21, "10.0.0.1", 80), "-20 10");
    assert_eq!(f.l.closes(2, ip("10.0.0.1"), 80, 0, 99)[0].event, None);
    assert_eq!(f.at(21, "10.0.0.1", 81), "+1 20");
    // The port may be given back already when the close comes.
    f.close(22, 1, "0.0.0.0", 0);
    assert_eq!(f.at(22, "10.0.0.1", 81), "-22 20");
}

#[test]
fn other_transitions_mean_nothing() {
    let mut f = Feed::new();
    f.event(10, &state(1, "0.0.0.0", 80, 20, tcp::ESTABLISHED, tcp::CLOSE));
    f.open(10, 2, "0.0.0.0", 0);
    f.scan(10, 3, "0.0.0.0", 0, &[]);
    assert!(f.l.is_empty() && f.l.by_sk.is_empty());
}

#[test]
fn closes_are_kept_and_then_forgotten() {
    let mut f = Feed::new();
    for sk in 1..=2 {
        f.open(sk, sk, "0.0.0.0", 80);
        f.close(10 + sk, sk, "0.0.0.0", 80);
    }
    f.l.advance(KEEP_NS + 11);
    assert_eq!(f.l.len(), 2);
    f.l.advance(KEEP_NS + 2 * S);
    assert_eq!(f.l.len(), 1);
    assert_eq!(f.at(KEEP_NS + 2 * S, "10.0.0.1", 80), "-12 2", "the last one stays");
    f.l.advance(KEEP_LAST_NS + 2 * S);
    assert!(f.l.is_empty() && f.l.per_netns.is_empty());
    assert_eq!(f.l.evicted(), 0);
}

#[test]
fn bounded_per_namespace() {
    let mut f = Feed::new();
    f.l = Listeners::new(80);
    let mut other = state(1, "0.0.0.0", 80, 20, tcp::CLOSE, tcp::LISTEN);
    other.tuple.netns = 3;
    f.event(1, &other);
    for n in 0..1000u16 {
        f.open(u64::from(n), 100 + u64::from(n), "0.0.0.0", 1000 + n);
        if n % 3 == 0 {
            f.close(u64::from(n), 100 + u64::from(n), "0.0.0.0", 1000 + n);
        }
    }
    assert!(f.l.len() <= 11);
    assert!(f.l.by_sk.len() <= f.l.len());
    assert!(f.l.evicted() >= 900);
    assert!(matches!(f.l.state_at(3, ip("10.0.0.1"), 80, 2000), ListenState::Listening { .. }));
    // One address, closed again and again.
    let mut f = Feed::new();
    f.l = Listeners::new(1 << 20);
    for n in 0..2000 {
        f.open(n, 1, "0.0.0.0", 80);
        f.close(n, 1, "0.0.0.0", 80);
    }
    assert_eq!(f.l.len(), CLOSED_MAX);
    assert_eq!(f.at(3000, "10.0.0.1", 80), "-1999 1999");
}

proptest! {
    #[test]
    fn any_history(steps in proptest::collection::vec((0u8..4, 1u64..5, 0u64..40, 80u16..82), 0..80)) {
        let run = || {
            let mut f = Feed::new();
            f.l = Listeners::new(16);
            for (what, sk, at, port) in &steps {
                match what {
                    0 => drop(f.open(*at, *sk, "0.0.0.0", *port)),
                    1 => drop(f.close(*at, *sk, "0.0.0.0", *port)),
                    2 => f.scan(*at, *sk, "0.0.0.0", *port, &[20]),
                    _ => f.l.advance(*at * 100 * S),
                }
                assert_eq!(f.l.len(), f.l.addresses.values().map(Vec::len).sum::<usize>());
                assert_eq!(f.l.len(), f.l.per_netns.values().sum::<usize>());
                assert!(f.l.len() <= 16);
                for (sk, key) in &f.l.by_sk {
                    let open = |s: &&Socket| s.sk == Some(*sk) && s.closed.is_none();
                    assert_eq!(f.l.addresses[key].iter().filter(open).count(), 1);
                }
            }
            format!("{:?}", f.l)
        };
        prop_assert_eq!(run(), run());
    }
}
