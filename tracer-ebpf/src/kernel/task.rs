//! struct task_struct.

use super::cgroup;
use super::mem::{Mem, Probed, Typed, probe};
use crate::maps::HAS_TASK_BTF;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use why502_ebpf::fields::globals as f;
use why502_ebpf::{Task, quality};

/// include/linux/pid_namespace.h MAX_PID_NS_LEVEL.
const MAX_LEVEL: u32 = 32;
/// sizeof(struct upid): an int and a pointer.
const UPID_SIZE: usize = 16;

/// Writes a task argument of a hook.
///
/// # Safety
/// `dst` is inside a reserved record; `task` came from `arg::pointer` and is typed `task_struct`.
#[inline(always)]
pub unsafe fn write(dst: *mut Task, task: *const u8) -> u16 {
    write_by::<Typed>(dst, task)
}

/// Writes `current`. Before 5.11 there is no typed `current`, so the same fields are probed.
///
/// # Safety
/// `dst` is inside a reserved record.
#[inline(always)]
pub unsafe fn write_current(dst: *mut Task) -> u16 {
    if HAS_TASK_BTF.load() != 0 {
        write_by::<Typed>(dst, bpf_get_current_task_btf() as *const u8)
    } else {
        write_by::<Probed>(dst, bpf_get_current_task() as *const u8)
    }
}

/// `current`'s v2 cgroup id and flags.
#[inline(always)]
pub unsafe fn current_cgroup() -> u64 {
    if HAS_TASK_BTF.load() != 0 {
        cgroup::of_task::<Typed>(bpf_get_current_task_btf() as *const u8)
    } else {
        cgroup::of_task::<Probed>(bpf_get_current_task() as *const u8)
    }
}

/// `current`: leader start, tgid, flags: what a digest keeps.
#[inline(always)]
pub unsafe fn current_brief() -> (u64, u32, u32) {
    if HAS_TASK_BTF.load() != 0 {
        brief::<Typed>(bpf_get_current_task_btf() as *const u8)
    } else {
        brief::<Probed>(bpf_get_current_task() as *const u8)
    }
}

#[inline(always)]
unsafe fn brief<M: Mem>(t: *const u8) -> (u64, u32, u32) {
    let leader = Probed::ptr(t, &f::TASK_GROUP_LEADER);
    (Probed::u64(leader, &f::TASK_START_BOOTTIME), M::u32(t, &f::TASK_TGID), M::u32(t, &f::TASK_FLAGS))
}

/// `tgid` and `pid` of a task argument.
#[inline(always)]
pub unsafe fn ids(task: *const u8) -> (u32, u32) {
    (Typed::u32(task, &f::TASK_TGID), Typed::u32(task, &f::TASK_PID))
}

/// include/linux/sched/signal.h SIGNAL_GROUP_EXIT.
const GROUP_EXIT: u32 = 4;

/// The wait(2) status of an exiting process. After exit_group(2) or a deadly signal it is the group's: a thread that was
/// ending by itself at that moment keeps its own in `exit_code` (kernel/exit.c, do_group_exit()).
#[inline(always)]
pub unsafe fn exit_code(task: *const u8) -> u32 {
    let signal = Probed::ptr(task, &f::TASK_SIGNAL);
    if !signal.is_null() && Probed::u32(signal, &f::SIGNAL_FLAGS) & GROUP_EXIT != 0 {
        return Probed::u32(signal, &f::SIGNAL_EXIT_CODE);
    }
    Typed::u32(task, &f::TASK_EXIT_CODE)
}

/// Names the process of a task for good: start of its leader, and tgid.
#[inline(always)]
pub unsafe fn process(task: *const u8) -> [u64; 2] {
    let (start, tgid, _) = brief::<Typed>(task);
    [start, u64::from(tgid)]
}

/// No thread of the process is left (`signal->live` was decremented before the hook: kernel/exit.c, do_exit()).
#[inline(always)]
pub unsafe fn group_dead(task: *const u8) -> bool {
    let signal = Probed::ptr(task, &f::TASK_SIGNAL);
    !signal.is_null() && Probed::u32(signal, &f::SIGNAL_LIVE) == 0
}

/// Start and end of the argument area in the task's own memory.
#[inline(always)]
pub unsafe fn arg_area(task: *const u8) -> (u64, u64) {
    let mm = Probed::ptr(task, &f::TASK_MM);
    if mm.is_null() {
        return (0, 0);
    }
    (Probed::u64(mm, &f::MM_ARG_START), Probed::u64(mm, &f::MM_ARG_END))
}

#[inline(always)]
unsafe fn write_by<M: Mem>(dst: *mut Task, t: *const u8) -> u16 {
    let mut quality = 0;
    // Probed, because newer verifiers give typed loads through these two no exception table, and `current` in softirq may
    // be a task whose parent is already gone.
    let leader = Probed::ptr(t, &f::TASK_GROUP_LEADER);
    put!(dst, start = Probed::u64(leader, &f::TASK_START_BOOTTIME));
    put!(dst, cgroup = cgroup::of_task::<M>(t));
    put!(dst, cgroup_v1 = cgroup::v1_of_task::<M>(t));
    put!(dst, tgid = M::u32(t, &f::TASK_TGID));
    put!(dst, pid = M::u32(t, &f::TASK_PID));
    let parent = Probed::ptr(t, &f::TASK_REAL_PARENT);
    put!(dst, ppid = if parent.is_null() { 0 } else { Probed::u32(parent, &f::TASK_TGID) });

    // task->nsproxy is NULL once an exiting task has dropped its namespaces.
    let nsproxy = M::ptr(t, &f::TASK_NSPROXY);
    let net = if nsproxy.is_null() { nsproxy } else { M::ptr(nsproxy, &f::NSPROXY_NET) };
    put!(dst, netns = if net.is_null() { 0 } else { M::u32(net, &f::NET_INUM) });
    put!(dst, flags = M::u32(t, &f::TASK_FLAGS));
    let cred = M::ptr(t, &f::TASK_CRED);
    put!(dst, uid = if cred.is_null() { 0 } else { M::u32(cred, &f::CRED_UID) });

    // pid->numbers[level]: a variable index is refused on a typed pointer, so this chain is probed.
    let pid = Probed::ptr(leader, &f::TASK_THREAD_PID);
    let mut ns_pid = 0;
    let mut pidns = 0;
    let level = if pid.is_null() { MAX_LEVEL + 1 } else { Probed::u32(pid, &f::PID_LEVEL) };
    if level <= MAX_LEVEL {
        let upid = pid.wrapping_add(f::PID_NUMBERS.load() as usize).wrapping_add(level as usize * UPID_SIZE);
        ns_pid = Probed::u32(upid, &f::UPID_NR);
        let ns = Probed::ptr(upid, &f::UPID_NS);
        pidns = if ns.is_null() { 0 } else { Probed::u32(ns, &f::PIDNS_INUM) };
    } else {
        quality |= quality::NO_NS_PID;
    }
    put!(dst, ns_pid = ns_pid);
    put!(dst, pidns = pidns);

    // char comm[16] as two words: typed loads accept that, and no copy loop is made.
    let comm = core::ptr::addr_of_mut!((*dst).comm).cast::<u64>();
    comm.write_volatile(M::u64(t, &f::TASK_COMM));
    comm.add(1).write_volatile(M::u64_hi(t, &f::TASK_COMM));
    quality
}

/// `linux_binprm->filename`, an address of a NUL-terminated kernel string.
#[inline(always)]
pub unsafe fn exec_path(bprm: *const u8) -> *const u8 {
    probe::<u64>(bprm.wrapping_add(f::BPRM_FILENAME.load() as usize)) as *const u8
}
