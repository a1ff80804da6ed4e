//! One file per hook. Each says what the hook is, why it is here and how often it runs; the entry counts and filters, the
//! record is written inside `emit`.

mod inet_sock_set_state;
mod kfree_skb;
mod mark_victim;
mod ngx_http_special_response_handler;
mod ngx_log_error_core;
mod sched_process_exec;
mod sched_process_exit;
mod sched_process_fork;
mod signal_deliver;
mod signal_generate;
mod sys_exit;
mod tcp_receive_reset;
mod tcp_retransmit_skb;
mod tcp_send_reset;
mod unix_stream_connect;

use crate::emit::{add_one, count, emit};
use crate::kernel::{sock, task};
use crate::maps::{self, HAS_COOKIE, LISTENERS};
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::ProbeContext;
use why502_ebpf::{PortKey, TcpNotice, UNIX_PATH, UnixRefused, counter, kind, side};

/// Bit of this signal in SIG_MASK.
#[inline(always)]
fn signal_wanted(sig: u32) -> bool {
    sig < 64 && crate::maps::SIG_MASK.load() & (1 << sig) != 0 || sig == 64
}

/// Does (or did) this port listen in this network namespace?
#[inline(always)]
fn listens(netns: u32, port: u16) -> bool {
    // By its value (the time of the LISTEN): LLVM likes to join two NULL tests into an `or` of map pointers, which the
    // verifier refuses.
    since(&LISTENERS, &PortKey { netns, port: u32::from(port) }) != 0
}

/// The time that a map has of a port; 0 without one.
#[inline(always)]
fn since(map: &LruHashMap<PortKey, u64>, key: &PortKey) -> u64 {
    match map.get_ptr(key) {
        // SAFETY: a map value; LRU entries stay readable for the run of a program.
        Some(since) => unsafe { since.read_volatile() },
        None => 0,
    }
}

/// The part that received resets and retransmitted SYNs share.
///
/// # Safety
/// `p` is a reserved record, `sk` a typed full socket.
#[inline(always)]
unsafe fn write_notice(p: *mut TcpNotice, sk: *const u8, tp: *const u8, state: u8) -> u16 {
    let lport = sock::sport_of_tcp(tp);
    let tuple = sock::tuple(sk, lport);
    let info = sock::info(tp);
    sock::write_id(core::ptr::addr_of_mut!((*p).sk), sk);
    put!(p, sk_cgroup = sock::cgroup_id(sk));
    put!(p, bytes_received = info.bytes_received);
    put!(p, bytes_sent = info.bytes_sent);
    sock::write_tuple(core::ptr::addr_of_mut!((*p).tuple), &tuple);
    put!(p, state = state);
    put!(p, side = if listens(tuple.netns, lport) { side::SERVER } else { side::CLIENT });
    put!(p, _reserved[0] = 0);
    put!(p, _reserved[1] = 0);
    put!(p, total_retrans = sock::total_retrans(tp));
    put!(p, first_sent = sock::snd_una(tp).wrapping_sub(sock::bytes_acked(tp) as u32));
    put!(p, first_received = info.rcv_nxt.wrapping_sub(info.bytes_received as u32));
    0
}

/// Counts a hit for the attachment that it belongs to: userspace detaches what runs too often.
#[inline(always)]
fn nginx_hit(ctx: &ProbeContext) {
    let slot = if HAS_COOKIE.load() != 0 {
        // SAFETY: the context of a uprobe, for which the helper is made.
        unsafe { bpf_get_attach_cookie(ctx.regs.cast()) as u32 }
    } else {
        0
    };
    add_one(&maps::NGINX_HITS, slot);
}

/// A failure of connect(2), from its result. EINPROGRESS is none, and what is 512 and above is the kernel's own (ERESTARTSYS:
/// the call is made again).
#[inline(always)]
fn connect_failed(result: i32) -> bool {
    const EINPROGRESS: i32 = 115;
    result < 0 && result != -EINPROGRESS && result > -512
}

/// The record that both ways to see a failed connect share; `path` writes the address and gives its length.
#[inline(always)]
fn refused(hook: u32, result: i32, path: impl FnOnce(*mut [u8; UNIX_PATH]) -> u16) {
    // SAFETY: `current` only.
    if maps::skipped(unsafe { task::current_cgroup() }) {
        return count(hook, counter::SKIPPED);
    }
    // SAFETY: writes the reserved record that it is given.
    emit::<UnixRefused>(hook, kind::UNIX_REFUSED, |p| unsafe {
        put!(p, error = result.wrapping_neg() as u32);
        put!(p, path_len = path(core::ptr::addr_of_mut!((*p).path)));
        put!(p, _reserved = 0);
        task::write_current(core::ptr::addr_of_mut!((*p).task))
    });
}
