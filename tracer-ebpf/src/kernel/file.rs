//! struct file: the socket behind a file descriptor of `current`. Cold (a page of nginx's), so all of it is probed.

use super::mem::{Mem, Probed, probe};
use aya_ebpf::helpers::generated::bpf_get_current_task;
use core::ptr::null;
use why502_ebpf::fields::globals as f;

/// sizeof(struct file *).
const SLOT: usize = 8;

/// The `struct sock` of a descriptor; null when it is no socket. The number is not to be trusted, and what
/// `private_data` is depends on the kind of file: a socket is known by pointing back, twice.
#[inline(always)]
pub unsafe fn sock_of(fd: u32) -> *const u8 {
    let files = Probed::ptr(bpf_get_current_task() as *const u8, &f::TASK_FILES);
    let table = Probed::ptr(files, &f::FILES_FDT);
    if fd >= Probed::u32(table, &f::FDT_MAX) {
        return null();
    }
    let slot = Probed::ptr(table, &f::FDT_FD).wrapping_add(fd as usize * SLOT);
    let file = probe::<u64>(slot) as *const u8;
    let socket = Probed::ptr(file, &f::FILE_PRIVATE);
    if file.is_null() || socket.is_null() || Probed::ptr(socket, &f::SOCKET_FILE) != file {
        return null();
    }
    let sk = Probed::ptr(socket, &f::SOCKET_SK);
    if sk.is_null() || Probed::ptr(sk, &f::SK_SOCKET) != socket {
        return null();
    }
    sk
}
