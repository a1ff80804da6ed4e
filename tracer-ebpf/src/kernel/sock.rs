//! struct sock and what is around it.

use super::cgroup;
use super::mem::{Mem, Probed, Typed};
use crate::maps::SK_SALT;
use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use why502_ebpf::Tuple;
use why502_ebpf::fields::globals as f;

/// include/net/tcp_states.h
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const NEW_SYN_RECV: u8 = 12;
}

const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const SOCK_STREAM: u16 = 1;
/// include/net/sock.h SEND_SHUTDOWN: shutdown(SHUT_WR) alone; close() sets both halves before it changes the state.
pub const SEND_SHUTDOWN: u8 = 2;
/// ::ffff:0:0/96 as the third word of an address in network byte order.
pub const MAPPED: u32 = 0xffff_0000;

#[inline(always)]
pub unsafe fn family(sk: *const u8) -> u16 {
    Typed::u16(sk, &f::SK_FAMILY)
}

#[inline(always)]
pub unsafe fn state(sk: *const u8) -> u8 {
    Typed::u8(sk, &f::SK_STATE)
}

#[inline(always)]
pub unsafe fn err(sk: *const u8) -> u32 {
    Typed::u32(sk, &f::SK_ERR)
}

#[inline(always)]
pub unsafe fn shutdown(sk: *const u8) -> u8 {
    Typed::u8(sk, &f::SK_SHUTDOWN)
}

/// A process holds the socket. inet_csk_listen_stop() closes children that nobody accepted: those have no `sk_socket`.
#[inline(always)]
pub unsafe fn accepted(sk: *const u8) -> bool {
    !Typed::ptr(sk, &f::SK_SOCKET).is_null()
}

#[inline(always)]
pub unsafe fn backlog(sk: *const u8) -> (u32, u32) {
    (Typed::u32(sk, &f::SK_ACK_BACKLOG), Typed::u32(sk, &f::SK_MAX_ACK_BACKLOG))
}

#[inline(always)]
pub unsafe fn cgroup_id(sk: *const u8) -> u64 {
    cgroup::of_sock(sk)
}

/// Names the socket without giving its address away. Arithmetic on a typed pointer is refused, so it goes through the
/// record, from where it comes back as a number.
///
/// # Safety
/// `dst` is inside a reserved record.
#[inline(always)]
pub unsafe fn write_id(dst: *mut u64, sk: *const u8) {
    dst.write_volatile(sk as u64);
    let plain = dst.read_volatile();
    dst.write_volatile(plain ^ SK_SALT.load());
}

#[inline(always)]
pub unsafe fn netns(sk: *const u8) -> u32 {
    netns_by::<Typed>(sk)
}

#[inline(always)]
unsafe fn netns_by<M: Mem>(sk: *const u8) -> u32 {
    let net = M::ptr(sk, &f::SK_NET);
    if net.is_null() { 0 } else { M::u32(net, &f::NET_INUM) }
}

/// The tcp_sock of a full TCP socket, typed; `None` for timewait and request sockets and for other protocols.
#[inline(always)]
pub unsafe fn tcp(sk: *const u8) -> Option<*const u8> {
    let tp = bpf_skc_to_tcp_sock(sk as *mut _) as *const u8;
    if tp.is_null() { None } else { Some(tp) }
}

/// Local port (host order) that outlives the unhashing at CLOSE, when `skc_num` is already 0.
#[inline(always)]
pub unsafe fn sport_of_tcp(tp: *const u8) -> u16 {
    u16::from_be(Typed::u16(tp, &f::INET_SPORT))
}

/// `skc_num`: right for timewait sockets, whose memory ends before inet_sport.
#[inline(always)]
pub unsafe fn num(sk: *const u8) -> u16 {
    Typed::u16(sk, &f::SK_NUM)
}

/// The tuple of any socket, timewait included, as a value on the stack (it is a map key).
#[inline(always)]
pub unsafe fn tuple(sk: *const u8, lport: u16) -> Tuple {
    tuple_by::<Typed>(sk, lport)
}

/// The tuple of a connected internet stream socket that is only a number to the verifier; all zeros for any other, and for
/// null.
#[inline(always)]
pub unsafe fn connected(sk: *const u8) -> Tuple {
    if sk.is_null() || !is_connected(sk) {
        return Tuple { laddr: [0; 4], raddr: [0; 4], lport: 0, rport: 0, netns: 0 };
    }
    // Of the inet_sock that it is: it outlives the unhashing.
    tuple_by::<Probed>(sk, u16::from_be(Probed::u16(sk, &f::INET_SPORT)))
}

#[inline(always)]
unsafe fn is_connected(sk: *const u8) -> bool {
    let family = Probed::u16(sk, &f::SK_FAMILY);
    (family == AF_INET || family == AF_INET6)
        && Probed::u16(sk, &f::SK_TYPE) == SOCK_STREAM
        && Probed::u8(sk, &f::SK_STATE) != state::LISTEN
}

#[inline(always)]
unsafe fn tuple_by<M: Mem>(sk: *const u8, lport: u16) -> Tuple {
    let rport = u16::from_be(M::u16(sk, &f::SK_DPORT));
    let netns = netns_by::<M>(sk);
    if M::u16(sk, &f::SK_FAMILY) == AF_INET6 {
        let (l0, l1) = (M::u64(sk, &f::SK_V6_RCV_SADDR), M::u64_hi(sk, &f::SK_V6_RCV_SADDR));
        let (r0, r1) = (M::u64(sk, &f::SK_V6_DADDR), M::u64_hi(sk, &f::SK_V6_DADDR));
        Tuple {
            laddr: [l0 as u32, (l0 >> 32) as u32, l1 as u32, (l1 >> 32) as u32],
            raddr: [r0 as u32, (r0 >> 32) as u32, r1 as u32, (r1 >> 32) as u32],
            lport,
            rport,
            netns,
        }
    } else {
        Tuple {
            laddr: [0, 0, MAPPED, M::u32(sk, &f::SK_RCV_SADDR)],
            raddr: [0, 0, MAPPED, M::u32(sk, &f::SK_DADDR)],
            lport,
            rport,
            netns,
        }
    }
}

/// # Safety
/// `dst` is inside a reserved record.
#[inline(always)]
pub unsafe fn write_tuple(dst: *mut Tuple, t: &Tuple) {
    put!(dst, laddr[0] = t.laddr[0]);
    put!(dst, laddr[1] = t.laddr[1]);
    put!(dst, laddr[2] = t.laddr[2]);
    put!(dst, laddr[3] = t.laddr[3]);
    put!(dst, raddr[0] = t.raddr[0]);
    put!(dst, raddr[1] = t.raddr[1]);
    put!(dst, raddr[2] = t.raddr[2]);
    put!(dst, raddr[3] = t.raddr[3]);
    put!(dst, lport = t.lport);
    put!(dst, rport = t.rport);
    put!(dst, netns = t.netns);
}

/// The fields of the close-time rule.
pub struct TcpInfo {
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub rcv_wup: u32,
    pub lsndtime: u32,
    pub lrcvtime: u32,
    pub pingpong: u8,
}

#[inline(always)]
pub unsafe fn info(tp: *const u8) -> TcpInfo {
    TcpInfo {
        bytes_received: Typed::u64(tp, &f::TCP_BYTES_RECEIVED),
        bytes_sent: Typed::u64(tp, &f::TCP_BYTES_SENT),
        rcv_nxt: Typed::u32(tp, &f::TCP_RCV_NXT),
        copied_seq: Typed::u32(tp, &f::TCP_COPIED_SEQ),
        rcv_wup: Typed::u32(tp, &f::TCP_RCV_WUP),
        lsndtime: Typed::u32(tp, &f::TCP_LSNDTIME),
        lrcvtime: Typed::u32(tp, &f::TCP_LRCVTIME),
        pingpong: Typed::u8(tp, &f::TCP_PINGPONG),
    }
}

#[inline(always)]
pub unsafe fn bytes_acked(tp: *const u8) -> u64 {
    Typed::u64(tp, &f::TCP_BYTES_ACKED)
}

#[inline(always)]
pub unsafe fn write_seq(tp: *const u8) -> u32 {
    Typed::u32(tp, &f::TCP_WRITE_SEQ)
}

#[inline(always)]
pub unsafe fn snd_una(tp: *const u8) -> u32 {
    Typed::u32(tp, &f::TCP_SND_UNA)
}

#[inline(always)]
pub unsafe fn snd_nxt(tp: *const u8) -> u32 {
    Typed::u32(tp, &f::TCP_SND_NXT)
}

#[inline(always)]
pub unsafe fn total_retrans(tp: *const u8) -> u32 {
    Typed::u32(tp, &f::TCP_TOTAL_RETRANS)
}
