//! `signal_deliver(int sig, struct kernel_siginfo *info, struct k_sigaction *ka)`, 5.10–7.3.
//!
//! What the task really did with a signal: default, ignored or a handler. `current` is the target. SIGKILL shows here
//! without its sender, whoever sent it: only `signal_generate` knows.

use crate::emit::{count, emit};
use crate::kernel::{arg, siginfo, task};
use crate::maps;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::SIGNAL_DELIVER as HOOK;
use why502_ebpf::{SignalDeliver, counter, kind};

#[btf_tracepoint(function = "signal_deliver")]
pub fn signal_deliver(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let sig = arg::raw(ctx, 0) as u32;
    if !super::signal_wanted(sig) {
        return count(HOOK, counter::UNINTERESTING);
    }
    if maps::skipped(task::current_cgroup()) {
        return count(HOOK, counter::SKIPPED);
    }
    let (_, code, _) = siginfo::read(ctx, 1);
    let (handler, sa_flags) = siginfo::action(ctx, 2);
    emit::<SignalDeliver>(HOOK, kind::SIGNAL_DELIVER, |p| {
        put!(p, sig = sig);
        put!(p, code = code);
        put!(p, handler = handler);
        put!(p, sa_flags = sa_flags);
        task::write_current(core::ptr::addr_of_mut!((*p).task))
    });
}
