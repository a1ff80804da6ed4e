use super::*;
use crate::model::EventId;
use crate::model::event::{
    Digest, Execed, ResetSent, ResetSocket, Side, SigInfo, SignalGenerated, Task, TcpState, UnixDropped, UnixRefused,
};
use acts::Child;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const PIDNS: u32 = 0xefff_fffc;

fn us() -> Us {
    Us {
        pid: 100,
        netns: 9,
        pidns: PIDNS,
        comm: Some("why502".into()),
        start_ticks: Some(5),
        ppid: Some(1),
        uid: Some(0),
        cgroup: Some(77),
        cgroup_v1: Some(88),
    }
}

fn task(tgid: u32) -> Task {
    Task {
        tgid,
        pid: tgid,
        ns_pid: tgid,
        ppid: if tgid == 100 { 1 } else { 100 },
        uid: 0,
        pidns: PIDNS,
        netns: 9,
        flags: 0,
        cgroup: 77,
        cgroup_v1: 88,
        start_ns: 50_000_001,
        comm: "why502".into(),
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn acts() -> Acts {
    let quiet = Connection { server: at(4000), client: at(5000), received: 502, sent: 0, unread: 0 };
    let reset = Connection { server: at(4001), client: at(5001), received: 17, sent: 3, unread: 5 };
    let unix = unix::Act { path: "@ours".into(), closes: true, connects: true };
    let child = Some(Child { pid: 101, status: 256 });
    Acts { child, connections: vec![quiet, reset], signalled: true, unix: Some(unix) }
}

fn tuple(local_port: u16, remote_port: u16) -> Tuple {
    let ip = |port| if port == 0 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    Tuple { local_ip: ip(local_port), local_port, remote_ip: ip(remote_port), remote_port, netns: 9 }
}

fn tcp(local: u16, remote: u16, old: u8, new: u8) -> TcpState {
    TcpState {
        sk: 1,
        sk_cgroup: 77,
        tuple: tuple(local, remote),
        family: 2,
        oldstate: old,
        newstate: new,
        side: if remote == 0 { Side::Listener } else { Side::Server },
        accepted: true,
        bytes_received: 502,
        bytes_sent: 0,
        bytes_acked: 0,
        rcv_nxt: 1502,
        copied_seq: 1502,
        rcv_wup: 1000,
        write_seq: 7,
        snd_una: 7,
        snd_nxt: 7,
        lsndtime: 90,
        lrcvtime: 91,
        jiffies: 92,
        total_retrans: 0,
        pingpong: 0,
        sk_shutdown: 3,
        sk_err: 0,
        ack_backlog: 0,
        max_ack_backlog: 7,
        task: task(100),
    }
}

fn reset() -> ResetSent {
    let digest: Option<Digest> = None;
    ResetSent {
        sk: 1,
        sk_cgroup: 77,
        tuple: tuple(4001, 5001),
        reason: None,
        socket: ResetSocket::Full,
        active: true,
        state: 7,
        accepted: true,
        port_known: true,
        in_flags: 0,
        in_len: 0,
        in_seq: 0,
        in_ack: 0,
        rcv_nxt: 17,
        copied_seq: 12,
        bytes_received: 17,
        bytes_sent: 3,
        digest,
        task: task(100),
    }
}

fn dropped(embryo: bool) -> UnixDropped {
    UnixDropped {
        server_sk: 1,
        client_sk: if embryo { 0 } else { 2 },
        server_cgroup: 77,
        client_cgroup: 77,
        netns: 9,
        embryo,
        len: if embryo { 0 } else { 13 },
        path: "@ours".into(),
        task: task(100),
    }
}

/// The records of a kernel whose offsets are right.
fn records() -> Vec<EventKind> {
    let argv = vec!["why502-self-check".to_owned(), "--version".to_owned()];
    let mut second = tcp(4001, 5001, 1, 7);
    (second.bytes_received, second.bytes_sent, second.copied_seq) = (17, 3, 1497);
    (second.rcv_wup, second.snd_una) = (1502, 4);
    let signal = SignalGenerated {
        signal: 18,
        code: 0,
        si_pid: 100,
        info: SigInfo::Real,
        result: 1,
        group: true,
        sender: task(100),
        target: task(100),
    };
    vec![
        EventKind::Forked { parent: task(100), child: task(101) },
        EventKind::Execed(Execed { task: task(101), old_pid: 101, path: "/proc/self/exe".into(), argv }),
        EventKind::Exited { task: task(101), code: 256 },
        EventKind::SignalGenerated(signal),
        EventKind::TcpState(tcp(4000, 0, 7, 10)),
        EventKind::TcpState(tcp(4000, 5000, 1, 4)),
        EventKind::TcpState(tcp(4000, 0, 10, 7)),
        EventKind::TcpState(tcp(4001, 0, 7, 10)),
        EventKind::TcpState(second),
        EventKind::ResetSent(reset()),
        EventKind::TcpState(tcp(4001, 0, 10, 7)),
        EventKind::UnixDropped(dropped(false)),
        EventKind::UnixDropped(dropped(true)),
        EventKind::UnixRefused(UnixRefused { error: 111, path: "@ours".into(), task: task(100) }),
    ]
    .into_iter()
    .map(|kind| match kind {
        // A listener is bound to loopback.
        EventKind::TcpState(mut s) if s.tuple.remote_port == 0 => {
            s.tuple.local_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
            EventKind::TcpState(s)
        }
        other => other,
    })
    .collect()
}

fn event(kind: EventKind) -> Event {
    Event { id: EventId(0), at: 1000, cpu: 0, quality: 0, kind }
}

fn own() -> Own {
    let ports = vec![4000, 4001];
    Own { us: Some(us()), child: Some(101), child_tgid: None, ports, until: 2000 }
}

fn check(records: Vec<EventKind>) -> Result<Option<CheckError>, CheckError> {
    let (mut own, mut found, acts) = (own(), Found::default(), acts());
    for kind in records {
        let event = event(kind);
        if own.made(&event) {
            found.take(&event, &us(), &acts)?;
        }
    }
    let unseen = found.unseen(&acts).map(|_| CheckError::Unseen { record: "unix", act: "unix socket" });
    Ok(found.missing(&acts).or(unseen))
}

#[test]
fn right_records_pass() {
    assert_eq!(check(records()), Ok(None));
}

#[test]
fn every_missing_record_is_noticed() {
    for i in 0..records().len() {
        let mut some = records();
        let gone = some.remove(i);
        let missing = check(some).unwrap();
        // Only the opening of a listener is not waited for.
        let opening = matches!(&gone, EventKind::TcpState(s) if s.newstate == 10);
        assert_eq!(missing.is_none(), opening, "{gone:?}");
    }
}

/// Changes one record and gives the field that the error names.
fn wrong(change: impl Fn(&mut EventKind)) -> &'static str {
    let mut all = records();
    all.iter_mut().for_each(change);
    match check(all) {
        Err(CheckError::Wrong { field, .. }) => field,
        other => panic!("not noticed: {other:?}"),
    }
}

fn task_of(kind: &mut EventKind) -> Option<&mut Task> {
    match kind {
        EventKind::Forked { parent, .. } => Some(parent),
        _ => None,
    }
}

#[test]
fn wrong_task_fields_are_named() {
    type Change = fn(&mut Task);
    let changes: [(&str, Change); 9] = [
        ("task.tgid", |t| t.tgid = 7),
        ("pid.numbers[].nr", |t| t.ns_pid = 7),
        ("pid.numbers[].ns", |t| t.pidns = 7),
        ("task.nsproxy.net_ns", |t| t.netns = 7),
        ("task.cred.uid", |t| t.uid = 7),
        ("task.cgroups.dfl_cgrp", |t| t.cgroup = 7),
        ("task.cgroups.subsys[]", |t| t.cgroup_v1 = 7),
        ("task.start_boottime (ticks)", |t| t.start_ns = 7),
        ("task.comm", |t| t.comm = "x".into()),
    ];
    for (field, change) in changes {
        assert_eq!(wrong(|kind| task_of(kind).into_iter().for_each(change)), field);
    }
}

#[test]
fn wrong_socket_fields_are_named() {
    type Change = fn(&mut TcpState);
    let changes: [(&str, Change); 12] = [
        ("skc_rcv_saddr", |s| s.tuple.local_ip = IpAddr::V4(Ipv4Addr::BROADCAST)),
        ("skc_daddr", |s| s.tuple.remote_ip = IpAddr::V4(Ipv4Addr::BROADCAST)),
        ("sk_cgrp_data", |s| s.sk_cgroup = 1),
        ("skc_family", |s| s.family = 10),
        ("sk_socket", |s| s.accepted = false),
        ("sk_shutdown", |s| s.sk_shutdown = 0),
        ("bytes_received", |s| std::mem::swap(&mut s.bytes_received, &mut s.bytes_sent)),
        ("rcv_nxt - copied_seq", |s| std::mem::swap(&mut s.rcv_nxt, &mut s.rcv_wup)),
        ("write_seq - snd_nxt", |s| s.write_seq = 99),
        ("snd_nxt - snd_una", |s| s.snd_una = 90),
        ("total_retrans", |s| s.total_retrans = 3),
        ("lrcvtime", |s| s.lrcvtime = 900_000),
    ];
    for (field, change) in changes {
        let on_close = |kind: &mut EventKind| match kind {
            EventKind::TcpState(s) if s.tuple.remote_port != 0 => change(s),
            _ => {}
        };
        assert_eq!(wrong(on_close), field);
    }
    let backlog = |kind: &mut EventKind| match kind {
        EventKind::TcpState(s) if s.newstate == 7 && s.tuple.remote_port == 0 => s.max_ack_backlog = 128,
        _ => {}
    };
    assert_eq!(wrong(backlog), "sk_max_ack_backlog");
}

#[test]
fn wrong_unix_fields_are_named() {
    type Change = fn(&mut UnixDropped);
    let changes: [(&str, Change); 6] = [
        ("unix_address.name", |d| d.path = "@other".into()),
        ("sk_buff.len", |d| d.len = 7),
        ("skc_net", |d| d.netns = 7),
        ("task.cgroups.dfl_cgrp", |d| d.server_cgroup = 7),
        ("sk_cgrp_data", |d| d.client_cgroup = 7),
        ("unix_sock.peer", |d| d.server_sk = d.client_sk),
    ];
    for (field, change) in changes {
        let on_drop = |kind: &mut EventKind| {
            if let EventKind::UnixDropped(d) = kind {
                change(d);
            }
        };
        assert_eq!(wrong(on_drop), field);
    }
    let refused = |kind: &mut EventKind| {
        if let EventKind::UnixRefused(r) = kind {
            r.error = 2;
        }
    };
    assert_eq!(wrong(refused), "result");
}

#[test]
fn hooks_that_are_not_attached_are_not_waited_for() {
    let act = |closes, connects| unix::Act { path: "@ours".into(), closes, connects };
    let none = unix::Found::default();
    assert!(none.missing(&act(false, false)).is_none());
    assert!(none.missing(&act(true, false)).is_some_and(|text| text.starts_with("closes")));
    assert!(none.missing(&act(false, true)).is_some_and(|text| text.starts_with("failed connects")));
}

#[test]
fn what_others_do_is_not_ours() {
    let mut own = own();
    let mut others = vec![EventKind::Exited { task: task(55), code: 0 }];
    others.push(EventKind::Forked { parent: task(100), child: task(102) });
    let mut elsewhere = tcp(4000, 5000, 1, 4);
    elsewhere.tuple.netns = 10;
    others.push(EventKind::TcpState(elsewhere));
    others.push(EventKind::TcpState(tcp(80, 5000, 1, 4)));
    for kind in others {
        assert!(!own.made(&event(kind)));
    }
    let later = Event { at: 3000, ..event(EventKind::TcpState(tcp(4000, 5000, 1, 4))) };
    assert!(!own.made(&later), "ports are used again");
    assert!(own.made(&Event { at: 1000, ..later }));
}

#[test]
fn the_acts_can_be_done_here() {
    let _alone = crate::live::tests::alone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (acts, problems) = runtime.block_on(Acts::perform(false, &[]));
    assert_eq!(problems, [""; 0]);
    assert!(acts.child.is_some() && acts.signalled && acts.connections.len() >= 2 && acts.unix.is_some());
}
