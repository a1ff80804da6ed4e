//! `sched_process_exec(struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)`, 5.10–7.3.
//!
//! What a process became: its path and the first 256 bytes of argv, read while it cannot be gone. Rate: execs.

use crate::emit::{count, emit};
use crate::kernel::{arg, task};
use crate::maps;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use why502_ebpf::names::hook::SCHED_PROCESS_EXEC as HOOK;
use why502_ebpf::{EXEC_STR, Exec, counter, kind, quality};

#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype above; the verifier checks it against the kernel's BTF.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &BtfTracePointContext) {
    count(HOOK, counter::SEEN);
    let (Some(t), Some(bprm)) = (arg::pointer(ctx, 0), arg::pointer(ctx, 2)) else {
        return count(HOOK, counter::BAD_ARG);
    };
    if maps::skipped(crate::kernel::cgroup::of_task::<crate::kernel::mem::Typed>(t)) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<Exec>(HOOK, kind::EXEC, |p| {
        let mut q = task::write(core::ptr::addr_of_mut!((*p).task), t);
        put!(p, old_pid = arg::raw(ctx, 1) as u32);

        let dst = core::ptr::addr_of_mut!((*p).path).cast::<u8>();
        let n = bpf_probe_read_kernel_str(dst.cast(), EXEC_STR as u32, task::exec_path(bprm).cast());
        put!(p, path_len = if n > 0 { n as u16 - 1 } else { 0 });

        // Only as long as the area is: what follows it in memory is the environment, which is none of our business.
        let (start, end) = task::arg_area(t);
        let mut len = end.wrapping_sub(start);
        if len > EXEC_STR as u64 {
            len = EXEC_STR as u64;
            q |= quality::ARGV_CUT;
        }
        let dst = core::ptr::addr_of_mut!((*p).argv).cast::<u8>();
        let read = start != 0 && bpf_probe_read_user(dst.cast(), len as u32, start as *const _) == 0;
        if !read {
            q |= quality::NO_ARGV;
            len = 0;
        }
        put!(p, argv_len = len as u16);
        q
    });
}
