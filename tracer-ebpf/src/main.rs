//! The probes. One file per hook in `probes/`; `kernel/` is the only place that reads kernel structs, `emit.rs` the only
//! writer of the ring, `maps.rs` holds every map.
//!
//! What keeps a probe from harming the node (docs/decisions.md, "Safe probes"):
//! * pointer arguments are range-tested before use (`kernel::arg`): the kernel passes NULL and small integers where the
//!   verifier believes in a trusted pointer, and a trusted load has no exception table;
//! * siginfo is never loaded typed (`kernel::siginfo`);
//! * records are written field by field with volatile stores, so that LLVM makes no `memset`/`memcpy` calls of them: a
//!   bpf-to-bpf call together with a faulting load panics 5.10.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(unsafe_op_in_unsafe_fn, reason = "here every line reads kernel memory; the contract is stated per function")]
#![allow(unreachable_pub, reason = "the attribute macros need `pub` entry points in private modules")]

#[cfg(target_arch = "bpf")]
#[macro_use]
mod emit;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod probes;
#[cfg(target_arch = "bpf")]
mod stops;

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The host build only checks that the package compiles; `cargo xtask build` makes the object.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
