//! `tcp_receive_reset(struct sock *sk)`, 5.10–7.3.
//!
//! A reset arrived: a close that follows is the peer's doing. Runs in softirq of whatever task was interrupted.

use crate::emit::{count, emit};
use crate::kernel::{arg, sock};
use crate::maps;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::TCP_RECEIVE_RESET as HOOK;
use why502_ebpf::{TcpNotice, counter, kind};

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let Some(sk) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let Some(tp) = sock::tcp(sk) else {
        return count(HOOK, counter::UNINTERESTING);
    };
    if maps::skipped(sock::cgroup_id(sk)) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<TcpNotice>(HOOK, kind::RESET_RECEIVED, |p| super::write_notice(p, sk, tp, sock::state(sk)));
}
