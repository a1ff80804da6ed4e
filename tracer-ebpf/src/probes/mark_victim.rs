//! `mark_victim(struct task_struct *task, uid_t uid)`, or `mark_victim(int pid)` up to 5.10.218 and 6.7.
//!
//! The OOM killer's choice. Tells an OOM kill from every other SIGKILL.

use crate::emit::{count, emit};
use crate::kernel::{arg, task};
use crate::maps::HAS_VICTIM_TASK;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::MARK_VICTIM as HOOK;
use why502_ebpf::{OomVictim, counter, kind};

#[btf_tracepoint(function = "mark_victim")]
pub fn mark_victim(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototypes above, told apart by userspace from BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    if HAS_VICTIM_TASK.load() != 0 {
        let Some(t) = arg::pointer(ctx, 0) else {
            return count(HOOK, counter::BAD_ARG);
        };
        emit::<OomVictim>(HOOK, kind::OOM_VICTIM, |p| task::write(core::ptr::addr_of_mut!((*p).task), t));
    } else {
        emit::<OomVictim>(HOOK, kind::OOM_VICTIM, |p| {
            let pid = arg::raw(ctx, 0) as u32;
            put!(p, task.start = 0);
            put!(p, task.cgroup = 0);
            put!(p, task.cgroup_v1 = 0);
            put!(p, task.tgid = 0);
            put!(p, task.pid = pid);
            put!(p, task.ppid = 0);
            put!(p, task.ns_pid = 0);
            put!(p, task.pidns = 0);
            put!(p, task.netns = 0);
            put!(p, task.flags = 0);
            put!(p, task.uid = 0);
            let comm = core::ptr::addr_of_mut!((*p).task.comm).cast::<u64>();
            comm.write_volatile(0);
            comm.add(1).write_volatile(0);
            why502_ebpf::quality::NO_NS_PID
        });
    }
}
