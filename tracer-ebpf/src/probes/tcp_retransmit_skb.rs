//! `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb [, int err])`, the third argument since 6.17.
//!
//! Only in SYN_SENT: a full backlog drops the SYN without any event, and the second SYN is all that shows. Runs for every
//! retransmitted segment of the node, so it returns at once in any other state.

use crate::emit::{count, emit};
use crate::kernel::{arg, sock};
use crate::maps;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::TCP_RETRANSMIT_SKB as HOOK;
use why502_ebpf::{TcpNotice, counter, kind};

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    let Some(sk) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let state = sock::state(sk);
    count(HOOK, counter::SEEN);
    if state != sock::state::SYN_SENT {
        return count(HOOK, counter::UNINTERESTING);
    }
    let Some(tp) = sock::tcp(sk) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    if maps::skipped(sock::cgroup_id(sk)) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<TcpNotice>(HOOK, kind::SYN_RETRANSMIT, |p| super::write_notice(p, sk, tp, state));
}
