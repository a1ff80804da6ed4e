//! cgroup ids: the kernfs inode of the cgroup's directory, which is what `stat` shows in cgroupfs.

use super::mem::{Mem, Probed, Typed};
use crate::maps::{CGROUP_V1, HAS_SK_CGROUP_PTR};
use aya_ebpf::Global;
use why502_ebpf::fields::globals as f;

/// v2 id of a task's cgroup: `task->cgroups->dfl_cgrp->kn->id`.
#[inline(always)]
pub unsafe fn of_task<M: Mem>(task: *const u8) -> u64 {
    let set = M::ptr(task, &f::TASK_CGROUPS);
    if set.is_null() {
        return 0;
    }
    id::<M>(M::ptr(set, &f::CSS_SET_DFL_CGRP))
}

/// v1 id: `task->cgroups->subsys[chosen]->cgroup->kn->id`; userspace added the chosen index to the offset.
#[inline(always)]
pub unsafe fn v1_of_task<M: Mem>(task: *const u8) -> u64 {
    if CGROUP_V1.load() == 0 {
        return 0;
    }
    let set = M::ptr(task, &f::TASK_CGROUPS);
    if set.is_null() {
        return 0;
    }
    let css = M::ptr(set, &f::CSS_SET_SUBSYS);
    if css.is_null() {
        return 0;
    }
    id::<M>(M::ptr(css, &f::CSS_CGROUP))
}

#[inline(always)]
unsafe fn id<M: Mem>(cgroup: *const u8) -> u64 {
    if cgroup.is_null() {
        return 0;
    }
    let kn = M::ptr(cgroup, &f::CGROUP_KN);
    if kn.is_null() {
        return 0;
    }
    M::u64(kn, &f::KN_ID)
}

/// v2 id of the cgroup that the socket was created in; 0 unknown. Accepted sockets have the listener's.
#[inline(always)]
pub unsafe fn of_sock(sk: *const u8) -> u64 {
    if HAS_SK_CGROUP_PTR.load() != 0 {
        let cgroup = sk
            .add(f::SK_CGRP_DATA.load() as usize + f::SK_CGRP_PTR.load() as usize)
            .cast::<*const u8>()
            .read_volatile();
        id::<Typed>(cgroup)
    } else {
        tagged(sk)
    }
}

/// The same of a socket that is only a number to the verifier.
#[inline(always)]
pub unsafe fn of_plain_sock(sk: *const u8) -> u64 {
    if HAS_SK_CGROUP_PTR.load() != 0 {
        id::<Probed>(Probed::ptr(sk.wrapping_add(f::SK_CGRP_DATA.load() as usize), &f::SK_CGRP_PTR))
    } else {
        tagged(sk)
    }
}

/// 5.10.218 and older: a union whose low bits say "no cgroup here, but a net_cls/net_prio id".
/// include/linux/cgroup-defs.h, struct sock_cgroup_data.
#[inline(always)]
unsafe fn tagged(sk: *const u8) -> u64 {
    let val = Probed::u64(sk.wrapping_add(f::SK_CGRP_DATA.load() as usize), &ZERO);
    if val == 0 || val & 3 != 0 { 0 } else { id::<Probed>(val as *const u8) }
}

static ZERO: Global<u32> = Global::new(0);
