//! Arguments of a tp_btf or fexit program: slots of 8 bytes. After the arguments of an fexit program comes the result. A
//! uprobe's are in the registers of the task.

use aya_ebpf::EbpfContext;
use aya_ebpf::programs::ProbeContext;

/// The raw 8 bytes of argument `n`.
///
/// # Safety
/// The hook has more than `n` slots (the verifier refuses the load otherwise).
#[inline(always)]
pub unsafe fn raw(ctx: &impl EbpfContext, n: usize) -> u64 {
    (ctx.as_ptr() as *const u64).add(n).read_volatile()
}

/// Argument `n` as a kernel pointer, or `None` when it cannot be one.
///
/// Two loads of the same slot: the first is a plain number and its test is a real one that no verifier prunes; the second
/// is the typed pointer, with the NULL test that 6.12 and newer ask for. Volatile, or LLVM would merge them.
///
/// # Safety
/// As [`raw`]; the argument is a pointer in the hook's prototype.
#[inline(always)]
pub unsafe fn pointer(ctx: &impl EbpfContext, n: usize) -> Option<*const u8> {
    let slot = (ctx.as_ptr() as *const u64).add(n);
    if slot.read_volatile() < 4096 {
        return None;
    }
    let p = slot.read_volatile() as *const u8;
    if p.is_null() {
        return None;
    }
    Some(p)
}

/// Argument `n` of a C function of userspace, as its register has it: an address is one of the task's own memory.
#[inline(always)]
pub fn register(ctx: &ProbeContext, n: usize) -> u64 {
    ctx.arg::<u64>(n).unwrap_or(0)
}
