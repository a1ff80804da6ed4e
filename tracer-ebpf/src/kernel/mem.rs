//! Two ways to load a member: typed, where the verifier knows the pointer's type, and through a helper.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};

/// Loads members of kernel structs at offsets that userspace resolved from BTF.
pub trait Mem {
    unsafe fn u8(p: *const u8, off: &Global<u32>) -> u8;
    unsafe fn u16(p: *const u8, off: &Global<u32>) -> u16;
    unsafe fn u32(p: *const u8, off: &Global<u32>) -> u32;
    unsafe fn u64(p: *const u8, off: &Global<u32>) -> u64;
    unsafe fn ptr(p: *const u8, off: &Global<u32>) -> *const u8;
    /// Second 8 bytes of a 16-byte member.
    unsafe fn u64_hi(p: *const u8, off: &Global<u32>) -> u64;
}

/// Plain loads: checked by the verifier against BTF. Most pointers that come from another typed load have an exception table
/// and give 0 when they are bad; arguments, and what newer verifiers trust by RCU (`cgroups`, `real_parent`), have none: the
/// first are range-tested (`kernel::arg`), of the second only those are loaded so that live as long as the task itself.
pub struct Typed;

impl Mem for Typed {
    #[inline(always)]
    unsafe fn u8(p: *const u8, off: &Global<u32>) -> u8 {
        p.add(off.load() as usize).read_volatile()
    }
    #[inline(always)]
    unsafe fn u16(p: *const u8, off: &Global<u32>) -> u16 {
        p.add(off.load() as usize).cast::<u16>().read_volatile()
    }
    #[inline(always)]
    unsafe fn u32(p: *const u8, off: &Global<u32>) -> u32 {
        p.add(off.load() as usize).cast::<u32>().read_volatile()
    }
    #[inline(always)]
    unsafe fn u64(p: *const u8, off: &Global<u32>) -> u64 {
        p.add(off.load() as usize).cast::<u64>().read_volatile()
    }
    #[inline(always)]
    unsafe fn ptr(p: *const u8, off: &Global<u32>) -> *const u8 {
        p.add(off.load() as usize).cast::<*const u8>().read_volatile()
    }
    #[inline(always)]
    unsafe fn u64_hi(p: *const u8, off: &Global<u32>) -> u64 {
        p.add(off.load() as usize + 8).cast::<u64>().read_volatile()
    }
}

/// A pointer member, typed, or `None` when it is no address of the kernel: those have their highest bit set, on x86-64 as
/// on arm64. Twice the same load, as in `kernel::arg`: the first for a test that no verifier prunes, the second for its
/// NULL test.
///
/// # Safety
/// `p` is typed, and the member a pointer that is valid wherever it is one of the kernel's.
#[inline(always)]
pub unsafe fn kernel_ptr(p: *const u8, off: &Global<u32>) -> Option<*const u8> {
    if (Typed::ptr(p, off) as i64) >= 0 {
        return None;
    }
    let member = Typed::ptr(p, off);
    if member.is_null() { None } else { Some(member) }
}

/// `bpf_probe_read_kernel`: for pointers that are only numbers to the verifier. A bad address gives 0.
pub struct Probed;

/// Reads a plain value at an address; 0 when that faults.
///
/// # Safety
/// None beyond the helper's own: it never faults.
#[inline(always)]
pub unsafe fn probe<T: Copy + Default>(at: *const u8) -> T {
    let mut v = T::default();
    bpf_probe_read_kernel((&raw mut v).cast(), size_of::<T>() as u32, at.cast());
    (&raw const v).read_volatile()
}

/// Reads a plain value of `current`'s own memory; 0 when that faults or its page is not there.
///
/// # Safety
/// None beyond the helper's own: it never faults.
#[inline(always)]
pub unsafe fn user<T: Copy + Default>(at: u64) -> T {
    let mut v = T::default();
    bpf_probe_read_user((&raw mut v).cast(), size_of::<T>() as u32, at as *const _);
    (&raw const v).read_volatile()
}

impl Mem for Probed {
    #[inline(always)]
    unsafe fn u8(p: *const u8, off: &Global<u32>) -> u8 {
        probe(p.wrapping_add(off.load() as usize))
    }
    #[inline(always)]
    unsafe fn u16(p: *const u8, off: &Global<u32>) -> u16 {
        probe(p.wrapping_add(off.load() as usize))
    }
    #[inline(always)]
    unsafe fn u32(p: *const u8, off: &Global<u32>) -> u32 {
        probe(p.wrapping_add(off.load() as usize))
    }
    #[inline(always)]
    unsafe fn u64(p: *const u8, off: &Global<u32>) -> u64 {
        probe(p.wrapping_add(off.load() as usize))
    }
    #[inline(always)]
    unsafe fn ptr(p: *const u8, off: &Global<u32>) -> *const u8 {
        probe::<u64>(p.wrapping_add(off.load() as usize)) as *const u8
    }
    #[inline(always)]
    unsafe fn u64_hi(p: *const u8, off: &Global<u32>) -> u64 {
        probe(p.wrapping_add(off.load() as usize + 8))
    }
}
