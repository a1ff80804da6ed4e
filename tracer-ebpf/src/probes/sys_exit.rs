//! `sys_exit(struct pt_regs *regs, long ret)`, 5.10–7.3: the failed connect(2) to an AF_UNIX address where
//! `unix_stream_connect()` cannot be traced.
//!
//! Only when asked for: this tracepoint, whatever its program does, puts syscall-trace work on every task of the node
//! (kernel/tracepoint.c, syscall_regfunc()). Runs for every system call, so what is not a failed connect leaves by the
//! first two tests, and uncounted. Whether the socket is a stream does not show here.

use crate::emit::count;
use crate::kernel::{arg, mem, syscall, unix};
use crate::maps::CONNECT_NR;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::counter;
use why502_ebpf::names::hook::SYS_EXIT as HOOK;

#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    let result = arg::raw(ctx, 1) as i64;
    if result >= 0 {
        return;
    }
    let Some(regs) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    if syscall::number(regs) != CONNECT_NR.load() || syscall::is_32_bit(regs) {
        return;
    }
    count(HOOK, counter::SEEN);
    let (name, len) = (syscall::arg2(regs) as *const u8, syscall::arg3(regs) as u32);
    if !super::connect_failed(result as i32) || mem::user::<u16>(name as u64) != unix::AF_UNIX {
        return count(HOOK, counter::UNINTERESTING);
    }
    super::refused(HOOK, result as i32, |dst| unix::write_user_sockaddr(dst, name, len.into()));
}
