//! `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)`, 5.10–7.3.
//!
//! Who sent which signal to whom, and whether it was ignored: the root of almost every chain. `current` is the sender
//! (since 7.3 a plain kill(2) carries no siginfo at all). Rate: signals; SIGCHLD and Go's SIGURG are masked by default.

use crate::emit::{count, emit};
use crate::kernel::{arg, siginfo, task};
use crate::maps;
use crate::stops;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::SIGNAL_GENERATE as HOOK;
use why502_ebpf::{SignalGenerate, counter, kind};

#[btf_tracepoint(function = "signal_generate")]
pub fn signal_generate(ctx: BtfTracePointContext) -> i32 {
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
    let Some(target) = arg::pointer(ctx, 2) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let cgroup = crate::kernel::cgroup::of_task::<crate::kernel::mem::Typed>(target);
    if maps::skipped(cgroup) {
        return count(HOOK, counter::SKIPPED);
    }
    let result = arg::raw(ctx, 4) as u32;
    stops::signalled(HOOK, target, cgroup, sig, result);
    let (info, code, si_pid) = siginfo::read(ctx, 1);
    dev_log!(ctx, "signal {} info {} code {}", sig, info, code);
    emit::<SignalGenerate>(HOOK, kind::SIGNAL_GENERATE, |p| {
        put!(p, sig = sig);
        put!(p, code = code);
        put!(p, si_pid = si_pid);
        put!(p, info = info);
        put!(p, group = arg::raw(ctx, 3) as u32);
        put!(p, result = result);
        task::write_current(core::ptr::addr_of_mut!((*p).sender))
            | task::write(core::ptr::addr_of_mut!((*p).target), target)
    });
}
