//! `kfree_skb(struct sk_buff *skb, void *location [, enum skb_drop_reason reason [, struct sock *rx_sk]])`, the reason
//! since 5.17, the fourth argument since 6.11.
//!
//! AF_UNIX sockets have no state tracepoint: what unix_release_sock() (net/unix/af_unix.c) throws out of the queue of a
//! closing server is all that shows a request that it never read, or a connection that nobody accepted. Runs for every
//! dropped packet of the node, so everything else leaves by one of the first three tests, and uncounted.
//!
//! * Bytes: `skb->sk` is the sender's socket, whose peer is the one that closes. A peer that has no address is a client:
//!   an answer that nobody read is no lost request. No peer: the client closed first.
//! * An embryo, a connection in a listener's queue: `skb` is empty and `skb->sk` the server's socket of the connection
//!   itself (unix_stream_connect()); unix_release_sock() has released it before, with the bytes that it had.
//!
//! Up to 6.13 unix_stream_sendmsg() frees by the same function what it cannot send any more, and unix_stream_connect() the
//! embryo of a connect that failed. The first has not set `consumed`, which unix_release_sock() does on these kernels; the
//! second's socket has no address yet. Since 6.14 only closing gives the reason SOCKET_CLOSE.

use crate::emit::{count, emit};
use crate::kernel::{arg, sock, task, unix};
use crate::maps::{self, HAS_DROP_REASON, UNIX_DROP_REASON, UNIX_REASON_IS_CLOSE};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::KFREE_SKB as HOOK;
use why502_ebpf::{UnixDropped, counter, kind};

#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototypes above; the verifier checks them against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    if HAS_DROP_REASON.load() != 0 && arg::raw(ctx, 2) as u32 != UNIX_DROP_REASON.load() {
        return;
    }
    let Some(skb) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let Some(sender) = unix::sender(skb) else { return };
    count(HOOK, counter::SEEN);
    let len = unix::len(skb);
    let embryo = len == 0;
    if !embryo && UNIX_REASON_IS_CLOSE.load() == 0 && unix::consumed(skb) != len {
        return count(HOOK, counter::UNINTERESTING);
    }
    let server = if embryo { sender } else { unix::peer(sender) };
    let address = unix::closing_server(server);
    if address.is_null() {
        return count(HOOK, counter::UNINTERESTING);
    }
    let cgroup = task::current_cgroup();
    if maps::skipped(cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<UnixDropped>(HOOK, kind::UNIX_DROPPED, |p| {
        sock::write_id(core::ptr::addr_of_mut!((*p).server_sk), server);
        if embryo {
            put!(p, client_sk = 0);
        } else {
            sock::write_id(core::ptr::addr_of_mut!((*p).client_sk), sender);
        }
        put!(p, server_cgroup = cgroup);
        put!(p, client_cgroup = unix::cgroup_id(sender));
        put!(p, netns = unix::netns(server));
        put!(p, len = len);
        put!(p, embryo = embryo as u8);
        put!(p, _reserved[0] = 0);
        put!(p, _reserved[1] = 0);
        put!(p, _reserved[2] = 0);
        put!(p, _reserved[3] = 0);
        put!(p, _reserved[4] = 0);
        let n = unix::write_address(core::ptr::addr_of_mut!((*p).path), address);
        put!(p, path_len = n);
        task::write_current(core::ptr::addr_of_mut!((*p).task))
    });
}
