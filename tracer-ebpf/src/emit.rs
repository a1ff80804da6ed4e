//! The only writer of the ring, and the counters.

use crate::maps::{COUNTERS, EVENTS, WAKE_BYTES};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use aya_ebpf::maps::PerCpuArray;
use why502_ebpf::{Header, counter};

/// One volatile store into a record. Whole-struct stores become `memset`/`memcpy` calls, which are not safe on 5.10.
macro_rules! put {
    ($p:expr, $($f:tt)+) => { put!(@ $p, [] $($f)+) };
    (@ $p:expr, [$($f:tt)*] = $v:expr) => { core::ptr::addr_of_mut!((*$p).$($f)*).write_volatile($v) };
    (@ $p:expr, [$($f:tt)*] $next:tt $($rest:tt)*) => { put!(@ $p, [$($f)* $next] $($rest)*) };
}

/// A log line while developing a probe; nothing in a shipped object.
macro_rules! dev_log {
    ($ctx:expr, $($what:tt)+) => {
        #[cfg(feature = "trace-log")]
        aya_log_ebpf::debug!($ctx, $($what)+);
    };
}

/// Adds one to a counter of a hook.
#[inline(always)]
pub fn count(hook: u32, what: u32) {
    add_one(&COUNTERS, hook * counter::PER_HOOK + what);
}

/// Adds one to a slot; one that is not there is not counted.
#[inline(always)]
pub fn add_one(to: &PerCpuArray<u64>, slot: u32) {
    if let Some(p) = to.get_ptr_mut(slot) {
        // SAFETY: a per-CPU slot of this CPU; tracing programs do not migrate while they run.
        unsafe { *p += 1 }
    }
}

/// Reserves a record, stamps it, lets `fill` write the rest (it returns the quality bits), and commits it. A full ring is
/// counted, never waited for.
///
/// `T` must be one of the wire structs: `repr(C)` with [`Header`] first.
#[inline(always)]
pub fn emit<T: 'static>(hook: u32, kind: u16, fill: impl FnOnce(*mut T) -> u16) {
    let Some(mut slot) = EVENTS.reserve::<T>(0) else {
        count(hook, counter::LOST_RING);
        return;
    };
    let p = slot.as_mut_ptr();
    let h = p.cast::<Header>();
    // SAFETY: `p` is a reserved slot of `size_of::<T>()` bytes that begins with a Header.
    unsafe {
        // Stamped after the reservation: measured inversions between CPUs are then at most tens of µs.
        put!(h, ts = bpf_ktime_get_boot_ns());
        put!(h, kind = kind);
        put!(h, len = size_of::<T>() as u16);
        put!(h, cpu = bpf_get_smp_processor_id() as u16);
        let quality = fill(p);
        put!(h, quality = quality);
    }
    // Waking the reader costs more than the record: it reads by timer, and is woken only when the ring fills up.
    let wake = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= u64::from(WAKE_BYTES.load());
    slot.submit(u64::from(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
    count(hook, counter::SENT);
}
