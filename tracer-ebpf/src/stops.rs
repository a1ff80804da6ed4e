//! What a cgroup does after it was told to stop. Connections that end with their answer sent are not sent up; of those of a
//! stopping container two numbers and two times are kept here instead.

use crate::emit::count;
use crate::kernel::mem::{Mem, Probed};
use crate::kernel::sock::TcpInfo;
use crate::kernel::task;
use crate::maps::{STOP_COUNTS, STOPPING, STOPS_SEEN};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use core::mem::MaybeUninit;
use why502_ebpf::fields::globals as f;
use why502_ebpf::{StopCounts, Stopping, counter};

const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGTERM: u32 = 15;
/// TRACE_SIGNAL_DELIVERED of include/trace/events/signal.h: neither ignored nor pending already.
const DELIVERED: u32 = 0;
/// An older entry is of a stop that did not come.
const LIFE_NS: u64 = 3_600_000_000_000;
/// The root of the v2 hierarchy, in which all sockets of a pure v1 node are.
const ROOT: u64 = 1;

/// Is this the first stop signal of the target's cgroup? From another process, and not from a parent in the same cgroup: a
/// master that replaces its workers stops nothing.
///
/// # Safety
/// `target` is a typed task.
#[inline(always)]
pub unsafe fn signalled(hook: u32, target: *const u8, cgroup: u64, sig: u32, result: u32) {
    if (sig != SIGTERM && sig != SIGQUIT && sig != SIGINT) || result != DELIVERED || cgroup <= ROOT {
        return;
    }
    let (tgid, pid) = task::ids(target);
    let (_, sender, _) = task::current_brief();
    if tgid != pid || sender == tgid {
        return;
    }
    let parent = Probed::ptr(target, &f::TASK_REAL_PARENT);
    if Probed::u32(parent, &f::TASK_TGID) == sender && task::current_cgroup() == cgroup {
        return;
    }
    let now = bpf_ktime_get_boot_ns();
    if let Some(old) = STOPPING.get_ptr(&cgroup)
        && now.wrapping_sub((*old).at) < LIFE_NS
    {
        return;
    }
    let first = Stopping { at: now, jiffies: bpf_jiffies64() };
    // Field by field: of a struct with so many zeros LLVM makes a call of memset.
    let mut counts = MaybeUninit::<StopCounts>::uninit();
    let p = counts.as_mut_ptr();
    put!(p, signal = now);
    put!(p, accepted = 0);
    put!(p, last_accept = 0);
    put!(p, answered = 0);
    put!(p, last_answered = 0);
    if STOP_COUNTS.insert(&cgroup, &*p, 0).is_err() || STOPPING.insert(&cgroup, &first, 0).is_err() {
        return count(hook, counter::LOST_MAP);
    }
    if let Some(seen) = STOPS_SEEN.get_ptr_mut(0) {
        seen.write_volatile(1);
    }
}

/// False until the first stop: no look-up then.
#[inline(always)]
pub fn any() -> bool {
    // SAFETY: a slot of an array map.
    STOPS_SEEN.get_ptr(0).is_some_and(|seen| unsafe { *seen } != 0)
}

/// A connection of this cgroup's listener was established.
#[inline(always)]
pub unsafe fn accepted(cgroup: u64) {
    let Some(stop) = STOPPING.get_ptr(&cgroup) else { return };
    let Some(counts) = counts(cgroup, (*stop).at) else { return };
    put!(counts, accepted = (*counts).accepted + 1);
    put!(counts, last_accept = bpf_ktime_get_boot_ns());
}

/// A server's connection ends with its answer sent. If its last data had come before the signal and the answer went out
/// after it, the request was in flight. To a tick: one within the signal's own is left out.
#[inline(always)]
pub unsafe fn answered(cgroup: u64, info: &TcpInfo) {
    let Some(stop) = STOPPING.get_ptr(&cgroup) else { return };
    let (since, signal) = ((*stop).at, (*stop).jiffies as u32);
    let came = info.lrcvtime.wrapping_sub(signal);
    let sent = info.lsndtime.wrapping_sub(signal);
    if came as i32 > 0 || sent as i32 <= 0 {
        return;
    }
    let Some(counts) = counts(cgroup, since) else { return };
    put!(counts, answered = (*counts).answered + 1);
    // The close may come much later than the answer, whose time is known in ticks only; how long they are follows from
    // the time since the signal, which is known in both units.
    let ticks = u64::from((bpf_jiffies64() as u32).wrapping_sub(signal));
    let elapsed = bpf_ktime_get_boot_ns().wrapping_sub(since);
    if ticks == 0 || elapsed > LIFE_NS {
        return;
    }
    let at = since + u64::from(sent) * elapsed / ticks;
    if (*counts).last_answered < at {
        put!(counts, last_answered = at);
    }
}

/// This CPU's counts of the stop that began at `signal`. A slot that another CPU made, or that is of an older stop, begins
/// at 0.
#[inline(always)]
unsafe fn counts(cgroup: u64, signal: u64) -> Option<*mut StopCounts> {
    let counts = STOP_COUNTS.get_ptr_mut(&cgroup)?;
    if (*counts).signal != signal {
        put!(counts, signal = signal);
        put!(counts, accepted = 0);
        put!(counts, last_accept = 0);
        put!(counts, answered = 0);
        put!(counts, last_answered = 0);
    }
    Some(counts)
}
