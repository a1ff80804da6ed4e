//! `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`, 5.10–7.3.
//!
//! Listeners that open and close, and the first transition out of ESTABLISHED: there the socket still tells which side
//! spoke last. Runs a few times per connection on the whole node, so it returns early: answered connections are only
//! counted, and a connection that the server side closed first leaves a digest for a reset that may come later. Once a
//! container was told to stop, connections that are established are looked at as well (`stops`). A requesting end that got
//! the server's FIN in place of an answer is looked at once more when its process closes it: who that was, and whether it
//! did so by exiting, is not known at the FIN.
//!
//! A server that half-closes a kept connection (php-fpm's child, when it has done its `pm.max_requests`) throws away the request
//! that the other end has sent meanwhile, without any reset: told are the half close with a request unread, and the other
//! end's close of such a connection or of one on which data came after the half close.
//!
//! A connect that fails is told where it tells of a server: refused at its own address, without a local port, given up while
//! its SYN was being sent again, or with an error of the path. What became of connects that got an answer is not.
//! A listener whose accept queue has just been filled is told ten times a second at most: from then on SYNs are dropped, and
//! nothing else shows it.

use crate::emit::{count, emit};
use crate::kernel::sock::{self, TcpInfo, state};
use crate::kernel::{arg, task};
use crate::maps::{self, DIGESTS, FULL, LISTENERS};
use crate::stops;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::INET_SOCK_SET_STATE as HOOK;
use why502_ebpf::{Digest, PortKey, TcpState, Tuple, counter, digest_bits, kind, side};

/// include/linux/sched.h
const PF_EXITING: u32 = 4;
/// include/uapi/asm-generic/errno.h
const ECONNREFUSED: u32 = 111;
/// FastCGI's last, empty record, which php-fpm never reads: what it half-closes with no more than that was answered.
const FASTCGI_END: u32 = 8;
/// Between two records of one port's full accept queue.
const FULL_NS: u64 = 100_000_000;

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let (old, new) = (arg::raw(ctx, 1) as u8, arg::raw(ctx, 2) as u8);
    let listener = new == state::LISTEN || (old == state::LISTEN && new == state::CLOSE);
    let closing =
        old == state::ESTABLISHED && (new == state::FIN_WAIT1 || new == state::CLOSE || new == state::CLOSE_WAIT);
    if old == state::SYN_RECV && new == state::ESTABLISHED && stops::any() {
        if let Some(sk) = arg::pointer(ctx, 0) {
            stops::accepted(sock::cgroup_id(sk));
        }
        return count(HOOK, counter::UNINTERESTING);
    }
    if old == state::LISTEN && new == state::SYN_RECV {
        return taken(ctx);
    }
    let failed = old == state::SYN_SENT && new == state::CLOSE;
    if old == state::CLOSE_WAIT && (new == state::LAST_ACK || new == state::CLOSE) {
        return closed_after_eof(ctx, old, new);
    }
    if old == state::FIN_WAIT2 && new == state::CLOSE {
        return closed_after_half_close(ctx, old, new);
    }
    if !listener && !closing && !failed {
        return count(HOOK, counter::UNINTERESTING);
    }
    let Some(sk) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let Some(tp) = sock::tcp(sk) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    let cgroup = sock::cgroup_id(sk);
    if maps::skipped(cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    dev_log!(ctx, "state {} to {}", old, new);
    // skc_num is already 0 at CLOSE.
    let lport = sock::sport_of_tcp(tp);
    let tuple = sock::tuple(sk, lport);
    if failed && !connect_told(sk, tp, &tuple) {
        return count(HOOK, counter::UNINTERESTING);
    }
    let info = sock::info(tp);
    if failed {
        emit::<TcpState>(HOOK, kind::TCP_STATE, |p| write(p, sk, tp, cgroup, &tuple, &info, old, new, side::CLIENT));
    } else if listener {
        listener_changed(sk, tp, cgroup, &tuple, &info, old, new);
    } else {
        connection_closing(sk, tp, cgroup, &tuple, &info, old, new);
    }
}

/// The other end closed first. What was answered, and the server's end of a connection that its client left, end here.
#[inline(always)]
unsafe fn closed_after_eof(ctx: &BtfTracePointContext, old: u8, new: u8) {
    let Some(sk) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let Some(tp) = sock::tcp(sk) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    let info = sock::info(tp);
    // The FIN is counted as a received byte. A tie is a short answer far more often than none.
    let unanswered = info.bytes_received <= 1 || (info.lsndtime.wrapping_sub(info.lrcvtime) as i32) > 0;
    if info.bytes_sent == 0 || !unanswered || sock::err(sk) != 0 {
        return count(HOOK, counter::UNINTERESTING);
    }
    let tuple = sock::tuple(sk, sock::sport_of_tcp(tp));
    if super::listens(tuple.netns, tuple.lport) {
        return count(HOOK, counter::UNINTERESTING);
    }
    let cgroup = sock::cgroup_id(sk);
    if maps::skipped(cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<TcpState>(HOOK, kind::TCP_STATE, |p| write(p, sk, tp, cgroup, &tuple, &info, old, new, side::CLIENT));
}

/// The other end closed a connection that its server had half-closed. Worth a record where a request was thrown away.
#[inline(always)]
unsafe fn closed_after_half_close(ctx: &BtfTracePointContext, old: u8, new: u8) {
    let Some(sk) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let Some(tp) = sock::tcp(sk) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    let info = sock::info(tp);
    // Most were answered, and nothing came since.
    if info.bytes_sent == 0 || (info.lrcvtime.wrapping_sub(info.lsndtime) as i32) < 0 {
        return count(HOOK, counter::UNINTERESTING);
    }
    let tuple = sock::tuple(sk, sock::sport_of_tcp(tp));
    let Some(digest) = DIGESTS.get_ptr(&tuple) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    let bits = (*digest).bits;
    let before = (*digest).bytes_received;
    // The other end's FIN is counted as a received byte.
    let more = info.bytes_received.wrapping_sub(before) > 1;
    if bits & digest_bits::HALF_CLOSED == 0 || !more && bits & digest_bits::REPORTED == 0 {
        return count(HOOK, counter::UNINTERESTING);
    }
    let cgroup = sock::cgroup_id(sk);
    if maps::skipped(cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<TcpState>(HOOK, kind::TCP_STATE, |p| write(p, sk, tp, cgroup, &tuple, &info, old, new, side::SERVER));
}

/// A connect that failed: is it worth a record?
#[inline(always)]
unsafe fn connect_told(sk: *const u8, tp: *const u8, tuple: &Tuple) -> bool {
    match sock::err(sk) {
        // A refused connect is told by the reset that refuses it, but for a port that never listened: there only a client
        // of the same network namespace, at its own address, asks for a server that is to be there.
        ECONNREFUSED => own_address(tuple),
        // tcp_v4_connect() and tcp_v6_connect() found no local port; or somebody closed it when no SYN had been answered.
        0 => tuple.lport == 0 || sock::total_retrans(tp) > 0,
        _ => true,
    }
}

/// A connection was made from a listener: inet_csk_clone_lock() has copied that one, its port and queue included, and the
/// connection itself is not counted yet. With a queue that has no room for another one SYNs are dropped.
#[inline(always)]
unsafe fn taken(ctx: &BtfTracePointContext) {
    let Some(sk) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let (backlog, max_backlog) = sock::backlog(sk);
    if backlog < max_backlog {
        return count(HOOK, counter::UNINTERESTING);
    }
    let Some(tp) = sock::tcp(sk) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    let cgroup = sock::cgroup_id(sk);
    if maps::skipped(cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    let tuple = sock::tuple(sk, sock::num(sk));
    let key = PortKey { netns: tuple.netns, port: u32::from(tuple.lport) };
    let now = bpf_ktime_get_boot_ns();
    if now.wrapping_sub(super::since(&FULL, &key)) < FULL_NS {
        return count(HOOK, counter::UNINTERESTING);
    }
    if FULL.insert(key, now, 0).is_err() {
        count(HOOK, counter::LOST_MAP);
    }
    let info = sock::info(tp);
    emit::<TcpState>(HOOK, kind::TCP_STATE, |p| {
        write(p, sk, tp, cgroup, &tuple, &info, state::LISTEN, state::SYN_RECV, side::LISTENER)
    });
}

#[inline(always)]
unsafe fn listener_changed(sk: *const u8, tp: *const u8, cgroup: u64, tuple: &Tuple, info: &TcpInfo, old: u8, new: u8) {
    if new == state::LISTEN {
        // At TCP_CLOSE -> TCP_LISTEN, inet_csk_listen_start() has the port in skc_num only: inet_sport is set after it.
        let key = PortKey { netns: tuple.netns, port: u32::from(sock::num(sk)) };
        if LISTENERS.insert(key, bpf_ktime_get_boot_ns(), 0).is_err() {
            count(HOOK, counter::LOST_MAP);
        }
        let tuple = sock::tuple(sk, sock::num(sk));
        emit::<TcpState>(HOOK, kind::TCP_STATE, |p| write(p, sk, tp, cgroup, &tuple, info, old, new, side::LISTENER));
    } else {
        emit::<TcpState>(HOOK, kind::TCP_STATE, |p| write(p, sk, tp, cgroup, tuple, info, old, new, side::LISTENER));
    }
}

#[inline(always)]
unsafe fn connection_closing(
    sk: *const u8,
    tp: *const u8,
    cgroup: u64,
    tuple: &Tuple,
    info: &TcpInfo,
    old: u8,
    new: u8,
) {
    let server = super::listens(tuple.netns, tuple.lport);
    let (start, tgid, flags) = task::current_brief();
    let peer_first = new == state::CLOSE_WAIT;
    let report = if server { server_report(sk, info, new, flags) } else { client_report(sk, info, new) };
    if server && !peer_first {
        let half = new == state::FIN_WAIT1 && sock::shutdown(sk) == sock::SEND_SHUTDOWN;
        let bits = if half { digest_bits::HALF_CLOSED } else { 0 };
        let digest = Digest {
            ts: bpf_ktime_get_boot_ns(),
            sk_cgroup: cgroup,
            bytes_received: info.bytes_received,
            bytes_sent: info.bytes_sent,
            start,
            tgid,
            flags,
            newstate: u32::from(new),
            bits: bits | if report { digest_bits::REPORTED } else { 0 },
            rcv_nxt: info.rcv_nxt,
            _reserved: 0,
        };
        if DIGESTS.insert(tuple, &digest, 0).is_err() {
            count(HOOK, counter::LOST_MAP);
        }
    }
    if !report {
        if server && stops::any() {
            stops::answered(cgroup, info);
        }
        return count(HOOK, counter::ANSWERED);
    }
    let side = if server { side::SERVER } else { side::CLIENT };
    emit::<TcpState>(HOOK, kind::TCP_STATE, |p| write(p, sk, tp, cgroup, tuple, info, old, new, side));
}

/// Everything that userspace's close-time rule could call unanswered (docs/causes.md), and every close by an exiting task:
/// truncated answers look idle, and only the circumstances tell.
#[inline(always)]
unsafe fn server_report(sk: *const u8, info: &TcpInfo, new: u8, task_flags: u32) -> bool {
    let peer_first = new == state::CLOSE_WAIT;
    if !peer_first && task_flags & PF_EXITING != 0 && sock::err(sk) == 0 {
        return true;
    }
    if new == state::CLOSE && !sock::accepted(sk) && sock::err(sk) == 0 {
        return true; // dropped from the accept queue
    }
    // Since CLOSE_WAIT counts the peer's FIN as a received byte.
    let rx = info.bytes_received.wrapping_sub(u64::from(peer_first));
    if rx == 0 {
        return false;
    }
    if info.bytes_sent == 0 {
        return true;
    }
    // shutdown(SHUT_WR) after something was sent: the application has said what it wanted to say. Another request that it has
    // not read is another matter.
    if new == state::FIN_WAIT1 && sock::shutdown(sk) == sock::SEND_SHUTDOWN {
        return info.rcv_nxt.wrapping_sub(info.copied_seq) > FASTCGI_END;
    }
    let age = info.lrcvtime.wrapping_sub(info.lsndtime) as i32;
    if age > 0 {
        return true;
    }
    if peer_first {
        return false; // rcv_nxt and rcv_wup already count the FIN
    }
    if new == state::CLOSE && info.rcv_nxt != info.copied_seq {
        return true;
    }
    age == 0 && (info.rcv_nxt != info.rcv_wup || info.pingpong == 0)
}

/// Both ends have one address: 127.0.0.1, ::1, or the pod's own.
#[inline(always)]
fn own_address(t: &Tuple) -> bool {
    t.laddr[0] == t.raddr[0] && t.laddr[1] == t.raddr[1] && t.laddr[2] == t.raddr[2] && t.laddr[3] == t.raddr[3]
}

/// The requesting end gave up: it spoke last and closes first.
#[inline(always)]
unsafe fn client_report(sk: *const u8, info: &TcpInfo, new: u8) -> bool {
    if new == state::CLOSE_WAIT || sock::err(sk) != 0 || info.bytes_sent == 0 {
        return false;
    }
    info.bytes_received == 0 || (info.lsndtime.wrapping_sub(info.lrcvtime) as i32) > 0
}

#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "all of it is already in registers; a struct would be copied to the stack"
)]
unsafe fn write(
    p: *mut TcpState,
    sk: *const u8,
    tp: *const u8,
    cgroup: u64,
    tuple: &Tuple,
    info: &TcpInfo,
    old: u8,
    new: u8,
    side: u8,
) -> u16 {
    sock::write_id(core::ptr::addr_of_mut!((*p).sk), sk);
    put!(p, sk_cgroup = cgroup);
    put!(p, bytes_received = info.bytes_received);
    put!(p, bytes_sent = info.bytes_sent);
    put!(p, bytes_acked = sock::bytes_acked(tp));
    sock::write_tuple(core::ptr::addr_of_mut!((*p).tuple), tuple);
    put!(p, rcv_nxt = info.rcv_nxt);
    put!(p, copied_seq = info.copied_seq);
    put!(p, rcv_wup = info.rcv_wup);
    put!(p, write_seq = sock::write_seq(tp));
    put!(p, snd_una = sock::snd_una(tp));
    put!(p, snd_nxt = sock::snd_nxt(tp));
    put!(p, lsndtime = info.lsndtime);
    put!(p, lrcvtime = info.lrcvtime);
    put!(p, jiffies = bpf_jiffies64() as u32);
    put!(p, total_retrans = sock::total_retrans(tp));
    let (backlog, max_backlog) = sock::backlog(sk);
    put!(p, ack_backlog = backlog);
    put!(p, max_ack_backlog = max_backlog);
    put!(p, sk_err = sock::err(sk));
    put!(p, family = sock::family(sk));
    put!(p, oldstate = old);
    put!(p, newstate = new);
    put!(p, pingpong = info.pingpong);
    put!(p, sk_shutdown = sock::shutdown(sk));
    put!(p, side = side);
    put!(p, accepted = sock::accepted(sk) as u8);
    put!(p, _reserved = 0);
    task::write_current(core::ptr::addr_of_mut!((*p).task))
}
