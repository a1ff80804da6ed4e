//! struct pt_regs at the end of a system call. Userspace resolved the members for its own architecture: x86-64 names the
//! registers, arm64 has them in an array, and keeps all but the first argument as they were.

use super::mem::{Mem, Typed};
use why502_ebpf::fields::{MISSING, globals as f};

/// __USER32_CS of arch/x86/include/asm/segment.h: a system call of a 32-bit program, with numbers of its own.
const USER32_CS: u16 = 0x23;

#[inline(always)]
pub unsafe fn number(regs: *const u8) -> u32 {
    Typed::u32(regs, &f::PT_SYSCALL)
}

#[inline(always)]
pub unsafe fn is_32_bit(regs: *const u8) -> bool {
    f::PT_CS.load() != MISSING && Typed::u16(regs, &f::PT_CS) == USER32_CS
}

#[inline(always)]
pub unsafe fn arg2(regs: *const u8) -> u64 {
    Typed::u64(regs, &f::PT_ARG2)
}

#[inline(always)]
pub unsafe fn arg3(regs: *const u8) -> u64 {
    Typed::u64(regs, &f::PT_ARG3)
}
