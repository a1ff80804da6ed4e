//! `tcp_send_reset(const struct sock *sk, const struct sk_buff *skb [, enum sk_rst_reason reason])`, the reason since
//! 6.10; before that the hook does not run for resets without a full socket (NULL, TIME_WAIT) at all.
//!
//! A refused SYN, data after a close, an accept queue thrown away. `skb` is the packet that is answered, NULL for an
//! active reset (tcp_send_active_reset()), which is traced after its transmission.

use crate::emit::{count, emit};
use crate::kernel::{arg, packet, sock, task};
use crate::maps::{self, DIGESTS, HAS_RESET_REASON};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::TCP_SEND_RESET as HOOK;
use why502_ebpf::{Digest, NO_REASON, ResetSent, Tuple, counter, kind, quality, sk_kind};

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototypes above; the verifier checks them against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

/// What is known of the local socket.
struct Local {
    kind: u8,
    state: u8,
    accepted: u8,
    cgroup: u64,
    netns: u32,
    rcv_nxt: u32,
    copied_seq: u32,
    rx: u64,
    tx: u64,
    tuple: Tuple,
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let local = local(arg::pointer(ctx, 0));
    if local.kind == sk_kind::FULL && maps::skipped(local.cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    let mut q = 0;
    let mut tuple = local.tuple;
    let (mut seq, mut ack, mut len, mut flags) = (0, 0, 0, 0);
    let skb = arg::pointer(ctx, 1);
    let active = skb.is_none();
    if let Some(skb) = skb {
        match packet::segment(skb, local.netns) {
            Some(s) => {
                tuple = s.tuple;
                (seq, ack, len, flags) = (s.seq, s.ack, s.len, s.flags);
            }
            None => q |= quality::NO_PACKET,
        }
    }
    let digest = DIGESTS.get_ptr(&tuple);
    // Through memory, or LLVM joins the two NULL tests below into one `or` of pointers, which no verifier accepts.
    let closed_at = match digest {
        Some(d) => core::ptr::addr_of!((*d).ts).read_volatile(),
        None => 0,
    };
    let port_known = super::listens(tuple.netns, tuple.lport);
    // A SYN to a port that never listened is a scan or an early probe: counted, not sent up.
    if local.kind == sk_kind::NONE && closed_at == 0 && !port_known {
        return count(HOOK, counter::UNINTERESTING);
    }
    let reason = if HAS_RESET_REASON.load() != 0 { arg::raw(ctx, 2) as u32 } else { NO_REASON };
    emit::<ResetSent>(HOOK, kind::RESET_SENT, |p| {
        write_digest(core::ptr::addr_of_mut!((*p).digest), digest);
        // Read again: kept from above, LLVM spills it on one path only, and 5.10 refuses the read on the other.
        match arg::pointer(ctx, 0) {
            Some(sk) => sock::write_id(core::ptr::addr_of_mut!((*p).sk), sk),
            None => put!(p, sk = 0),
        }
        put!(p, sk_cgroup = local.cgroup);
        sock::write_tuple(core::ptr::addr_of_mut!((*p).tuple), &tuple);
        put!(p, reason = reason);
        put!(p, in_len = len);
        put!(p, in_seq = seq);
        put!(p, in_ack = ack);
        put!(p, rcv_nxt = local.rcv_nxt);
        put!(p, copied_seq = local.copied_seq);
        put!(p, bytes_received = local.rx);
        put!(p, bytes_sent = local.tx);
        put!(p, in_flags = flags);
        put!(p, sk_kind = local.kind);
        put!(p, active = active as u8);
        put!(p, state = local.state);
        put!(p, port_known = port_known as u8);
        put!(p, accepted = local.accepted);
        put!(p, _reserved = 0);
        q | task::write_current(core::ptr::addr_of_mut!((*p).task))
    });
}

#[inline(always)]
unsafe fn local(sk: Option<*const u8>) -> Local {
    let mut l = Local {
        kind: sk_kind::NONE,
        state: 0,
        accepted: 0,
        cgroup: 0,
        netns: 0,
        rcv_nxt: 0,
        copied_seq: 0,
        rx: 0,
        tx: 0,
        tuple: Tuple { laddr: [0; 4], raddr: [0; 4], lport: 0, rport: 0, netns: 0 },
    };
    let Some(sk) = sk else { return l };
    l.state = sock::state(sk);
    l.netns = sock::netns(sk);
    // Timewait and request sockets share only sock_common with struct sock: nothing beyond it may be believed.
    if l.state == sock::state::TIME_WAIT {
        l.kind = sk_kind::TIME_WAIT;
        l.tuple = sock::tuple(sk, sock::num(sk));
        return l;
    }
    if l.state == sock::state::NEW_SYN_RECV {
        l.kind = sk_kind::REQUEST;
        l.tuple = sock::tuple(sk, sock::num(sk));
        return l;
    }
    l.kind = sk_kind::FULL;
    let Some(tp) = sock::tcp(sk) else { return l };
    l.cgroup = sock::cgroup_id(sk);
    l.accepted = sock::accepted(sk) as u8;
    l.tuple = sock::tuple(sk, sock::sport_of_tcp(tp));
    let info = sock::info(tp);
    l.rcv_nxt = info.rcv_nxt;
    l.copied_seq = info.copied_seq;
    l.rx = info.bytes_received;
    l.tx = info.bytes_sent;
    l
}

#[inline(always)]
unsafe fn write_digest(dst: *mut Digest, src: Option<*const Digest>) {
    match src {
        Some(d) => {
            put!(dst, ts = (*d).ts);
            put!(dst, sk_cgroup = (*d).sk_cgroup);
            put!(dst, bytes_received = (*d).bytes_received);
            put!(dst, bytes_sent = (*d).bytes_sent);
            put!(dst, start = (*d).start);
            put!(dst, tgid = (*d).tgid);
            put!(dst, flags = (*d).flags);
            put!(dst, newstate = (*d).newstate);
            put!(dst, bits = (*d).bits);
            put!(dst, rcv_nxt = (*d).rcv_nxt);
            put!(dst, _reserved = 0);
        }
        None => {
            put!(dst, ts = 0);
            put!(dst, sk_cgroup = 0);
            put!(dst, bytes_received = 0);
            put!(dst, bytes_sent = 0);
            put!(dst, start = 0);
            put!(dst, tgid = 0);
            put!(dst, flags = 0);
            put!(dst, newstate = 0);
            put!(dst, bits = 0);
            put!(dst, rcv_nxt = 0);
            put!(dst, _reserved = 0);
        }
    }
}
