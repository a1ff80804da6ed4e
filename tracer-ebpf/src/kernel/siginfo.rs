//! struct kernel_siginfo, the argument that may be 0, 1 or a pointer.
//!
//! `__send_signal_locked()` passes SEND_SIG_NOINFO (0) and SEND_SIG_PRIV (1) through to the tracepoint. Verifiers of
//! 6.12–7.1 type the argument as trusted and accept a plain load without an exception table: the first SIGALRM of an
//! itimer would then panic the node. So the slot is read as a number, and only `bpf_probe_read_kernel` goes through it.

use super::arg;
use super::mem::probe;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::fields::globals as f;
use why502_ebpf::info;

const SI_KERNEL: i32 = 0x80;

/// (info kind, si_code, si_pid) of argument `n`.
///
/// # Safety
/// Argument `n` is the hook's siginfo.
#[inline(always)]
pub unsafe fn read(ctx: &BtfTracePointContext, n: usize) -> (u32, i32, u32) {
    let raw = arg::raw(ctx, n);
    if raw == 1 {
        return (info::KERNEL, SI_KERNEL, 0);
    }
    if raw < 4096 {
        return (info::NONE, 0, 0);
    }
    let p = raw as *const u8;
    let code: i32 = probe(p.wrapping_add(f::SIGINFO_CODE.load() as usize));
    let pid: u32 = probe(p.wrapping_add(f::SIGINFO_PID.load() as usize));
    (info::REAL, code, pid)
}

/// (handler kind, sa_flags) of a `k_sigaction` argument; probed for the same reason.
///
/// # Safety
/// Argument `n` is the hook's k_sigaction.
#[inline(always)]
pub unsafe fn action(ctx: &BtfTracePointContext, n: usize) -> (u32, u32) {
    let raw = arg::raw(ctx, n);
    if raw < 4096 {
        return (0, 0);
    }
    let p = raw as *const u8;
    let handler: u64 = probe(p.wrapping_add(f::KSIG_HANDLER.load() as usize));
    let flags: u64 = probe(p.wrapping_add(f::KSIG_FLAGS.load() as usize));
    (if handler > 1 { 2 } else { handler as u32 }, flags as u32)
}
