//! `sched_process_exit(struct task_struct *task [, bool group_dead])`: the second argument came with 6.16.
//!
//! How a process ended. Runs in do_exit() before the files, and so before the sockets, are closed. Rate: exits; threads
//! are left out until the last one goes.

use crate::emit::{count, emit};
use crate::kernel::{arg, task};
use crate::maps;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::SCHED_PROCESS_EXIT as HOOK;
use why502_ebpf::{Exit, counter, kind};

#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let Some(t) = arg::pointer(ctx, 0) else {
        return count(HOOK, counter::BAD_ARG);
    };
    if !task::group_dead(t) {
        return count(HOOK, counter::UNINTERESTING);
    }
    if maps::skipped(crate::kernel::cgroup::of_task::<crate::kernel::mem::Typed>(t)) {
        return count(HOOK, counter::SKIPPED);
    }
    // Threads that end at the same time all find nobody left: up to 6.15 the hook runs long after `live` was decremented,
    // behind exit_mm(), which wakes those who wait for the thread.
    if !maps::first_end(task::process(t)) {
        return count(HOOK, counter::UNINTERESTING);
    }
    emit::<Exit>(HOOK, kind::EXIT, |p| {
        put!(p, code = task::exit_code(t));
        put!(p, _reserved = 0);
        task::write(core::ptr::addr_of_mut!((*p).task), t)
    });
}
