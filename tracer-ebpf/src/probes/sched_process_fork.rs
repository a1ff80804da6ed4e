//! `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, 5.10–7.3.
//!
//! A worker's or child's parent, known before /proc could be asked. Threads are left out. Rate: forks.

use crate::emit::{count, emit};
use crate::kernel::{arg, task};
use crate::maps;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::SCHED_PROCESS_FORK as HOOK;
use why502_ebpf::{Fork, counter, kind};

#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let (Some(parent), Some(child)) = (arg::pointer(ctx, 0), arg::pointer(ctx, 1)) else {
        return count(HOOK, counter::BAD_ARG);
    };
    let (tgid, pid) = task::ids(child);
    if tgid != pid {
        return count(HOOK, counter::UNINTERESTING);
    }
    if maps::skipped(crate::kernel::cgroup::of_task::<crate::kernel::mem::Typed>(child)) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<Fork>(HOOK, kind::FORK, |p| {
        task::write(core::ptr::addr_of_mut!((*p).parent), parent)
            | task::write(core::ptr::addr_of_mut!((*p).child), child)
    });
}
