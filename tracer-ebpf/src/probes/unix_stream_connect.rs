//! fexit of `int unix_stream_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags)`, 5.10–7.3
//! (`struct sockaddr_unsized` since 6.19): where the kernel has BPF trampolines.
//!
//! A connect that fails: nobody listens, the queue is full, no such path. Nothing else shows it. Rate: connects to AF_UNIX
//! stream sockets.

use crate::emit::count;
use crate::kernel::{arg, unix};
use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;
use why502_ebpf::counter;
use why502_ebpf::names::hook::UNIX_STREAM_CONNECT as HOOK;

#[fexit(function = "unix_stream_connect")]
pub fn unix_stream_connect(ctx: FExitContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &FExitContext) {
    count(HOOK, counter::SEEN);
    let result = arg::raw(ctx, 4) as i32;
    if !super::connect_failed(result) {
        return count(HOOK, counter::UNINTERESTING);
    }
    let (name, len) = (arg::raw(ctx, 1), arg::raw(ctx, 2) as u32);
    super::refused(HOOK, result, |dst| unix::write_sockaddr(dst, name as *const u8, len.into()));
}
