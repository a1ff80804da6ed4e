use super::*;
use crate::model::event::{ResetSocket, Side, SigInfo};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A record as the probes write it: zeroed, then field by field at the ABI's offsets.
struct Record(Vec<u8>);

impl Record {
    fn new<T>(kind: u16, quality: u16) -> Record {
        let mut r = Record(vec![0; size_of::<T>()]);
        let len = size_of::<T>() as u16;
        r.put(offset_of!(abi::Header, ts), &1_000_000_007u64.to_ne_bytes())
            .put(offset_of!(abi::Header, kind), &kind.to_ne_bytes())
            .put(offset_of!(abi::Header, len), &len.to_ne_bytes())
            .put(offset_of!(abi::Header, cpu), &3u16.to_ne_bytes())
            .put(offset_of!(abi::Header, quality), &quality.to_ne_bytes());
        r
    }
    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Record {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
    fn u8(&mut self, at: usize, v: u8) -> &mut Record {
        self.put(at, &[v])
    }
    fn u32(&mut self, at: usize, v: u32) -> &mut Record {
        self.put(at, &v.to_ne_bytes())
    }
    fn u64(&mut self, at: usize, v: u64) -> &mut Record {
        self.put(at, &v.to_ne_bytes())
    }
    /// A task whose fields all differ: `n`, `n + 1`, …
    fn task(&mut self, at: usize, n: u32) -> &mut Record {
        self.u64(at + offset_of!(abi::Task, start), 10_000_000 * u64::from(n))
            .u64(at + offset_of!(abi::Task, cgroup), u64::from(n) + 1)
            .u64(at + offset_of!(abi::Task, cgroup_v1), u64::from(n) + 2)
            .u32(at + offset_of!(abi::Task, tgid), n + 3)
            .u32(at + offset_of!(abi::Task, pid), n + 4)
            .u32(at + offset_of!(abi::Task, ppid), n + 5)
            .u32(at + offset_of!(abi::Task, ns_pid), n + 6)
            .u32(at + offset_of!(abi::Task, pidns), n + 7)
            .u32(at + offset_of!(abi::Task, netns), n + 8)
            .u32(at + offset_of!(abi::Task, flags), n + 9)
            .u32(at + offset_of!(abi::Task, uid), n + 10)
            .put(at + offset_of!(abi::Task, comm), b"php-fpm8.2\0junk")
    }
    fn tuple(&mut self, at: usize, laddr: [u8; 16], raddr: [u8; 16]) -> &mut Record {
        self.put(at + offset_of!(abi::Tuple, laddr), &laddr)
            .put(at + offset_of!(abi::Tuple, raddr), &raddr)
            .put(at + offset_of!(abi::Tuple, lport), &80u16.to_ne_bytes())
            .put(at + offset_of!(abi::Tuple, rport), &51514u16.to_ne_bytes())
            .u32(at + offset_of!(abi::Tuple, netns), 4_026_532_210)
    }
    fn decode(&self) -> Event {
        let event = decode(&self.0, EventId(17)).unwrap();
        assert_eq!((event.id, event.at, event.cpu), (EventId(17), 1_000_000_007, 3));
        event
    }
    fn error(&self) -> DecodeError {
        decode(&self.0, EventId(1)).unwrap_err()
    }
}

fn want_task(n: u32) -> m::Task {
    m::Task {
        start_ns: 10_000_000 * u64::from(n),
        cgroup: u64::from(n) + 1,
        cgroup_v1: u64::from(n) + 2,
        tgid: n + 3,
        pid: n + 4,
        ppid: n + 5,
        ns_pid: n + 6,
        pidns: n + 7,
        netns: n + 8,
        flags: n + 9,
        uid: n + 10,
        comm: "php-fpm8.2".into(),
    }
}

const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 3, 7];

fn want_tuple() -> m::Tuple {
    m::Tuple {
        local_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 3, 7)),
        local_port: 80,
        remote_ip: IpAddr::V6(Ipv6Addr::from(V6)),
        remote_port: 51514,
        netns: 4_026_532_210,
    }
}

fn unix_dropped(path: &[u8], path_len: u16) -> Record {
    use abi::UnixDropped as T;
    let mut r = Record::new::<T>(abi::kind::UNIX_DROPPED, 0);
    r.task(offset_of!(T, task), 50).u64(offset_of!(T, server_sk), 1).u64(offset_of!(T, client_sk), 2);
    r.u64(offset_of!(T, server_cgroup), 3).u64(offset_of!(T, client_cgroup), 4).u32(offset_of!(T, netns), 5);
    r.u32(offset_of!(T, len), 552).u8(offset_of!(T, embryo), 1);
    r.put(offset_of!(T, path_len), &path_len.to_ne_bytes()).put(offset_of!(T, path), path);
    r
}

fn unix_refused(path: &[u8], path_len: u16) -> Record {
    use abi::UnixRefused as T;
    let mut r = Record::new::<T>(abi::kind::UNIX_REFUSED, 0);
    r.task(offset_of!(T, task), 60).u32(offset_of!(T, error), 111);
    r.put(offset_of!(T, path_len), &path_len.to_ne_bytes()).put(offset_of!(T, path), path);
    r
}

fn nginx_log(format: &[u8], format_len: u16) -> Record {
    use abi::NginxLog as T;
    let mut r = Record::new::<T>(abi::kind::NGINX_LOG, 0);
    r.task(offset_of!(T, task), 70).u32(offset_of!(T, level), 4).u32(offset_of!(T, errno), 111);
    r.u64(offset_of!(T, connection), 17);
    r.put(offset_of!(T, format_len), &format_len.to_ne_bytes()).put(offset_of!(T, format), format);
    r
}

fn nginx_error_page() -> Record {
    use abi::NginxErrorPage as T;
    let mut r = Record::new::<T>(abi::kind::NGINX_ERROR_PAGE, 0);
    r.task(offset_of!(T, task), 80).u32(offset_of!(T, status), 502).u64(offset_of!(T, connection), 17);
    r.tuple(offset_of!(T, client), MAPPED, V6);
    r
}

fn signal_generate() -> Record {
    use abi::SignalGenerate as T;
    let mut r = Record::new::<T>(abi::kind::SIGNAL_GENERATE, 0);
    r.task(offset_of!(T, sender), 100).task(offset_of!(T, target), 200);
    r.u32(offset_of!(T, sig), 15).put(offset_of!(T, code), &(-6i32).to_ne_bytes()).u32(offset_of!(T, si_pid), 7);
    r.u32(offset_of!(T, info), abi::info::REAL).u32(offset_of!(T, result), 2).u32(offset_of!(T, group), 1);
    r
}

fn exec(path_len: u16, argv_len: u16) -> Record {
    use abi::Exec as T;
    let mut r = Record::new::<T>(abi::kind::EXEC, abi::quality::ARGV_CUT);
    r.task(offset_of!(T, task), 30).u32(offset_of!(T, old_pid), 31);
    r.put(offset_of!(T, path_len), &path_len.to_ne_bytes()).put(offset_of!(T, argv_len), &argv_len.to_ne_bytes());
    r.put(offset_of!(T, path), b"/usr/sbin/nginx\0").put(offset_of!(T, argv), b"nginx\0\0-s\0qu\xfft\0");
    r
}

fn tcp_state() -> Record {
    use abi::TcpState as T;
    let mut r = Record::new::<T>(abi::kind::TCP_STATE, 0);
    r.task(offset_of!(T, task), 40).tuple(offset_of!(T, tuple), MAPPED, V6);
    r.u64(offset_of!(T, sk), 1).u64(offset_of!(T, sk_cgroup), 2).u64(offset_of!(T, bytes_received), 3);
    r.u64(offset_of!(T, bytes_sent), 4).u64(offset_of!(T, bytes_acked), 5);
    r.u32(offset_of!(T, rcv_nxt), 6).u32(offset_of!(T, copied_seq), 7).u32(offset_of!(T, rcv_wup), 8);
    r.u32(offset_of!(T, write_seq), 9).u32(offset_of!(T, snd_una), 10).u32(offset_of!(T, snd_nxt), 11);
    r.u32(offset_of!(T, lsndtime), 12).u32(offset_of!(T, lrcvtime), 13).u32(offset_of!(T, jiffies), 14);
    r.u32(offset_of!(T, total_retrans), 15).u32(offset_of!(T, ack_backlog), 16);
    r.u32(offset_of!(T, max_ack_backlog), 17).u32(offset_of!(T, sk_err), 104);
    r.put(offset_of!(T, family), &10u16.to_ne_bytes()).u8(offset_of!(T, oldstate), 1).u8(offset_of!(T, newstate), 4);
    r.u8(offset_of!(T, pingpong), 3).u8(offset_of!(T, sk_shutdown), 2).u8(offset_of!(T, side), 1);
    r.u8(offset_of!(T, accepted), 1);
    r
}

fn reset_sent() -> Record {
    use abi::ResetSent as T;
    let mut r = Record::new::<T>(abi::kind::RESET_SENT, 0);
    r.task(offset_of!(T, task), 50).tuple(offset_of!(T, tuple), MAPPED, V6);
    let digest = offset_of!(T, digest);
    r.u64(digest + offset_of!(abi::Digest, ts), 1).u64(digest + offset_of!(abi::Digest, sk_cgroup), 2);
    r.u64(digest + offset_of!(abi::Digest, bytes_received), 3).u64(digest + offset_of!(abi::Digest, bytes_sent), 4);
    r.u64(digest + offset_of!(abi::Digest, start), 5).u32(digest + offset_of!(abi::Digest, tgid), 6);
    r.u32(digest + offset_of!(abi::Digest, flags), 7).u32(digest + offset_of!(abi::Digest, newstate), 4);
    r.u32(digest + offset_of!(abi::Digest, bits), 1);
    r.u64(offset_of!(T, sk), 8).u64(offset_of!(T, sk_cgroup), 9).u32(offset_of!(T, reason), 11);
    r.u32(offset_of!(T, in_len), 12).u32(offset_of!(T, in_seq), 13).u32(offset_of!(T, in_ack), 14);
    r.u32(offset_of!(T, rcv_nxt), 15).u32(offset_of!(T, copied_seq), 16);
    r.u64(offset_of!(T, bytes_received), 17).u64(offset_of!(T, bytes_sent), 18).u8(offset_of!(T, in_flags), 24);
    r.u8(offset_of!(T, sk_kind), 2).u8(offset_of!(T, active), 1).u8(offset_of!(T, state), 6);
    r.u8(offset_of!(T, port_known), 1).u8(offset_of!(T, accepted), 0);
    r
}

fn notice(kind: u16) -> Record {
    use abi::TcpNotice as T;
    let mut r = Record::new::<T>(kind, 0);
    r.u64(offset_of!(T, sk), 1).u64(offset_of!(T, sk_cgroup), 2).u64(offset_of!(T, bytes_received), 3);
    r.u64(offset_of!(T, bytes_sent), 4).tuple(offset_of!(T, tuple), MAPPED, V6);
    r.u8(offset_of!(T, state), 2).u8(offset_of!(T, side), 0).u32(offset_of!(T, total_retrans), 5);
    r.u32(offset_of!(T, first_sent), 6).u32(offset_of!(T, first_received), 7);
    r
}

#[test]
fn signals() {
    let EventKind::SignalGenerated(s) = signal_generate().decode().kind else { panic!() };
    assert_eq!((s.signal, s.code, s.si_pid, s.info, s.result, s.group), (15, -6, 7, SigInfo::Real, 2, true));
    assert_eq!((s.sender, s.target), (want_task(100), want_task(200)));

    use abi::SignalDeliver as T;
    let mut r = Record::new::<T>(abi::kind::SIGNAL_DELIVER, abi::quality::NO_NS_PID);
    r.task(offset_of!(T, task), 20).u32(offset_of!(T, sig), 3).u32(offset_of!(T, code), 0x80);
    r.u32(offset_of!(T, handler), 2).u32(offset_of!(T, sa_flags), 0x1400_0000);
    let event = r.decode();
    assert_eq!(event.quality, abi::quality::NO_NS_PID);
    let want = m::SignalDelivered { signal: 3, code: 0x80, handler: 2, sa_flags: 0x1400_0000, task: want_task(20) };
    assert_eq!(event.kind, EventKind::SignalDelivered(want));
}

#[test]
fn processes() {
    let mut r = Record::new::<abi::Fork>(abi::kind::FORK, 0);
    r.task(offset_of!(abi::Fork, parent), 1).task(offset_of!(abi::Fork, child), 2);
    assert_eq!(r.decode().kind, EventKind::Forked { parent: want_task(1), child: want_task(2) });

    let mut r = Record::new::<abi::Exit>(abi::kind::EXIT, 0);
    r.task(offset_of!(abi::Exit, task), 3).u32(offset_of!(abi::Exit, code), 139);
    assert_eq!(r.decode().kind, EventKind::Exited { task: want_task(3), code: 139 });

    let mut r = Record::new::<abi::OomVictim>(abi::kind::OOM_VICTIM, 0);
    r.task(offset_of!(abi::OomVictim, task), 4);
    assert_eq!(r.decode().kind, EventKind::OomVictim { task: want_task(4) });
}

#[test]
fn exec_strings() {
    let event = exec(16, 15).decode();
    assert_eq!(event.quality, abi::quality::ARGV_CUT);
    let EventKind::Execed(e) = event.kind else { panic!() };
    assert_eq!((e.task, e.old_pid, e.path.as_str()), (want_task(30), 31, "/usr/sbin/nginx"));
    assert_eq!(e.argv, ["nginx", "", "-s", "qu\u{fffd}t"]);

    let EventKind::Execed(cut) = exec(9, 8).decode().kind else { panic!() };
    assert_eq!((cut.path.as_str(), cut.argv), ("/usr/sbin", vec!["nginx".to_owned(), String::new(), "-".to_owned()]));
    let EventKind::Execed(none) = exec(0, 0).decode().kind else { panic!() };
    assert_eq!((none.path.as_str(), none.argv.len()), ("", 0));

    let bad = |field, value| DecodeError::BadValue { what: "exec", field, value };
    assert_eq!(exec(257, 0).error(), bad("path_len", 257));
    assert_eq!(exec(0, u16::MAX).error(), bad("argv_len", 65535));
}

#[test]
fn tcp_states() {
    let EventKind::TcpState(s) = tcp_state().decode().kind else { panic!() };
    let want = m::TcpState {
        sk: 1,
        sk_cgroup: 2,
        tuple: want_tuple(),
        family: 10,
        oldstate: 1,
        newstate: 4,
        side: Side::Server,
        accepted: true,
        bytes_received: 3,
        bytes_sent: 4,
        bytes_acked: 5,
        rcv_nxt: 6,
        copied_seq: 7,
        rcv_wup: 8,
        write_seq: 9,
        snd_una: 10,
        snd_nxt: 11,
        lsndtime: 12,
        lrcvtime: 13,
        jiffies: 14,
        total_retrans: 15,
        pingpong: 3,
        sk_shutdown: 2,
        sk_err: 104,
        ack_backlog: 16,
        max_ack_backlog: 17,
        task: want_task(40),
    };
    assert_eq!(s, want);
    let mut r = tcp_state();
    r.u8(offset_of!(abi::TcpState, side), 9);
    assert_eq!(r.error(), DecodeError::BadValue { what: "tcp_state", field: "side", value: 9 });
}

#[test]
fn resets() {
    let EventKind::ResetSent(s) = reset_sent().decode().kind else { panic!() };
    let digest = m::Digest {
        at: 1,
        sk_cgroup: 2,
        bytes_received: 3,
        bytes_sent: 4,
        start_ns: 5,
        tgid: 6,
        flags: 7,
        newstate: 4,
        reported: true,
        half_closed: false,
        rcv_nxt: 0,
    };
    let want = m::ResetSent {
        sk: 8,
        sk_cgroup: 9,
        tuple: want_tuple(),
        reason: Some(11),
        socket: ResetSocket::TimeWait,
        active: true,
        state: 6,
        accepted: false,
        port_known: true,
        in_flags: 24,
        in_len: 12,
        in_seq: 13,
        in_ack: 14,
        rcv_nxt: 15,
        copied_seq: 16,
        bytes_received: 17,
        bytes_sent: 18,
        digest: Some(digest),
        task: want_task(50),
    };
    assert_eq!(s, want);

    let mut r = reset_sent();
    r.u64(offset_of!(abi::ResetSent, digest), 0).u32(offset_of!(abi::ResetSent, reason), abi::NO_REASON);
    let EventKind::ResetSent(s) = r.decode().kind else { panic!() };
    assert_eq!((s.digest, s.reason), (None, None));
    r.u8(offset_of!(abi::ResetSent, sk_kind), 4);
    assert_eq!(r.error(), DecodeError::BadValue { what: "reset_sent", field: "sk_kind", value: 4 });
}

#[test]
fn notices() {
    let want = m::TcpNotice {
        sk: 1,
        sk_cgroup: 2,
        tuple: want_tuple(),
        state: 2,
        side: Side::Client,
        bytes_received: 3,
        bytes_sent: 4,
        total_retrans: 5,
        first_sent: Some(6),
        first_received: Some(7),
    };
    assert_eq!(notice(abi::kind::RESET_RECEIVED).decode().kind, EventKind::ResetReceived(want.clone()));
    assert_eq!(notice(abi::kind::SYN_RETRANSMIT).decode().kind, EventKind::SynRetransmitted(want));
}

#[test]
fn lengths_that_do_not_fit_are_named() {
    assert_eq!(decode(&[1, 2, 3], EventId(1)), Err(DecodeError::NoHeader { len: 3 }));
    let mut unknown = notice(abi::kind::RESET_RECEIVED);
    unknown.put(offset_of!(abi::Header, kind), &999u16.to_ne_bytes());
    assert_eq!(unknown.error(), DecodeError::UnknownKind { kind: 999, len: 104 });
    let mut short = notice(abi::kind::RESET_RECEIVED);
    short.0.truncate(90);
    let bad = |len, says| DecodeError::BadLength { what: "reset_received", len, says, needs: 104 };
    assert_eq!(short.error(), bad(90, 104));
    let mut lying = notice(abi::kind::RESET_RECEIVED);
    lying.put(offset_of!(abi::Header, len), &90u16.to_ne_bytes());
    assert_eq!(lying.error(), bad(104, 90));
    // A later version may append.
    let mut longer = notice(abi::kind::RESET_RECEIVED);
    longer.0.extend([0; 8]);
    longer.put(offset_of!(abi::Header, len), &112u16.to_ne_bytes());
    longer.decode();
}

fn all() -> Vec<Record> {
    let mut all = vec![signal_generate(), exec(16, 15), tcp_state(), reset_sent()];
    all.extend([notice(abi::kind::RESET_RECEIVED), notice(abi::kind::SYN_RETRANSMIT)]);
    all.push(Record::new::<abi::SignalDeliver>(abi::kind::SIGNAL_DELIVER, 0));
    all.push(Record::new::<abi::Fork>(abi::kind::FORK, 0));
    all.push(Record::new::<abi::Exit>(abi::kind::EXIT, 0));
    all.push(Record::new::<abi::OomVictim>(abi::kind::OOM_VICTIM, 0));
    all.extend([unix_dropped(b"/s", 2), unix_refused(b"\0s", 2), nginx_log(b"%s", 2), nginx_error_page()]);
    all
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = decode(&bytes, EventId(0));
        let _ = timestamp(&bytes);
    }

    /// Random kinds and lengths seldom meet: here the header is right and the rest is not.
    #[test]
    fn any_payload_gives_an_answer(which in 0usize..10, payload in proptest::collection::vec(any::<u8>(), 600)) {
        let mut record = all().swap_remove(which).0;
        let len = record.len();
        record[16..].copy_from_slice(&payload[..len - 16]);
        if let Ok(event) = decode(&record, EventId(0)) {
            prop_assert_eq!(event.at, 1_000_000_007);
        }
    }

    #[test]
    fn every_truncation_is_an_error(which in 0usize..10, keep in 0usize..700) {
        let record = all().swap_remove(which).0;
        if keep < record.len() {
            prop_assert!(decode(&record[..keep], EventId(0)).is_err());
        }
    }
}

#[test]
fn unix_sockets() {
    let want = m::UnixDropped {
        server_sk: 1,
        client_sk: 2,
        server_cgroup: 3,
        client_cgroup: 4,
        netns: 5,
        embryo: true,
        len: 552,
        path: "/run/php.sock".into(),
        task: want_task(50),
    };
    assert_eq!(unix_dropped(b"/run/php.sock\0", 14).decode().kind, EventKind::UnixDropped(want));
    let want = m::UnixRefused { error: 111, path: "/run/php.sock".into(), task: want_task(60) };
    // The whole of sun_path, as programs give it, with what they had there before.
    assert_eq!(unix_refused(b"/run/php.sock\0junk", 108).decode().kind, EventKind::UnixRefused(want));
}

#[test]
fn unix_paths() {
    let path = |bytes: &[u8], len| match unix_refused(bytes, len).decode().kind {
        EventKind::UnixRefused(r) => r.path,
        other => panic!("{other:?}"),
    };
    assert_eq!(path(b"\0name", 5), "@name");
    assert_eq!(path(b"\0a\0b\0\0", 6), "@a@b", "NULs within, and padding");
    assert_eq!(path(b"\0", 108), "@");
    assert_eq!(path(b"", 0), "");
    assert_eq!(path(b"/x\xff", 3), "/x\u{fffd}");
    assert_eq!(path(&[b'p'; 108], 108).len(), 108, "a path may fill its place, without a NUL");
    let too_long = DecodeError::BadValue { what: "unix_refused", field: "path_len", value: 113 };
    assert_eq!(unix_refused(b"/x", 113).error(), too_long);
}

#[test]
fn what_nginx_logs_and_answers() {
    let want = m::NginxLogged {
        task: want_task(70),
        level: 4,
        errno: 111,
        format: "connect() failed".into(),
        connection: Some(17),
    };
    assert_eq!(nginx_log(b"connect() failed\0junk", 16).decode().kind, EventKind::NginxLogged(want));
    let full = nginx_log(&[b'x'; abi::NGINX_FORMAT], 96).decode().kind;
    assert!(matches!(full, EventKind::NginxLogged(l) if l.format == "x".repeat(96)));
    let none = nginx_log(b"", 0).decode().kind;
    assert!(matches!(none, EventKind::NginxLogged(l) if l.format.is_empty()));
    let too_long = DecodeError::BadValue { what: "nginx_log", field: "format_len", value: 97 };
    assert_eq!(nginx_log(b"x", 97).error(), too_long);
    let page = |connection, client| {
        EventKind::NginxErrorPage(m::NginxErrorPage { task: want_task(80), status: 502, connection, client })
    };
    let mut record = nginx_error_page();
    assert_eq!(record.decode().kind, page(Some(17), Some(want_tuple())));
    record.u64(offset_of!(abi::NginxErrorPage, connection), 0);
    record.put(offset_of!(abi::NginxErrorPage, client), &[0; size_of::<abi::Tuple>()]);
    assert_eq!(record.decode().kind, page(None, None), "what the probe could not read");
}
