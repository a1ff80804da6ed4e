//! One file per hook. Each says what the hook is, why it is here and how often it runs; the entry counts and filters, the
//! record is written inside `emit`.

mod inet_sock_set_state;
mod mark_victim;
mod sched_process_exec;
mod sched_process_exit;
mod sched_process_fork;
mod signal_deliver;
mod signal_generate;
mod tcp_receive_reset;
mod tcp_retransmit_skb;
mod tcp_send_reset;

use crate::kernel::sock;
use crate::maps::LISTENERS;
use why502_ebpf::{PortKey, TcpNotice, side};

/// Bit of this signal in SIG_MASK.
#[inline(always)]
fn signal_wanted(sig: u32) -> bool {
    sig < 64 && crate::maps::SIG_MASK.load() & (1 << sig) != 0 || sig == 64
}

/// Does (or did) this port listen in this network namespace?
#[inline(always)]
fn listens(netns: u32, port: u16) -> bool {
    let key = PortKey { netns, port: u32::from(port) };
    // By its value (the time of the LISTEN): LLVM likes to join two NULL tests into an `or` of map pointers, which the
    // verifier refuses.
    match LISTENERS.get_ptr(&key) {
        // SAFETY: a map value; LRU entries stay readable for the run of a program.
        Some(since) => unsafe { since.read_volatile() != 0 },
        None => false,
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
    0
}
