//! struct unix_sock and its addresses. The verifier knows no way from `struct sock` to it before 5.16, and all of this is
//! rare: but for the two tests at the door everything is probed.

use super::cgroup;
use super::mem::{Mem, Probed, Typed, kernel_ptr};
use super::sock::{SOCK_STREAM, state};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use why502_ebpf::UNIX_PATH;
use why502_ebpf::fields::globals as f;

pub const AF_UNIX: u16 = 1;
/// sizeof(sockaddr_un.sun_path); `sun_family` stands before it.
const SUN_PATH: u64 = 108;
const FAMILY_SIZE: u64 = 2;

/// The AF_UNIX stream socket that sent `skb` (skb_set_owner_w()), as a number; `None` for every other skb.
///
/// Up to 6.8 the fragments of an IP packet keep their offset where `sk` is (`ip_defrag_offset`), and newer verifiers give
/// loads through `skb->sk` no exception table: hence the test for a kernel address.
///
/// # Safety
/// `skb` is typed `sk_buff`.
#[inline(always)]
pub unsafe fn sender(skb: *const u8) -> Option<*const u8> {
    let sk = kernel_ptr(skb, &f::SKB_SK)?;
    if Typed::u16(sk, &f::SK_FAMILY) != AF_UNIX || Typed::u16(sk, &f::SK_TYPE) != SOCK_STREAM {
        return None;
    }
    Some(Probed::ptr(skb, &f::SKB_SK))
}

#[inline(always)]
pub unsafe fn len(skb: *const u8) -> u32 {
    Probed::u32(skb, &f::SKB_LEN)
}

/// UNIXCB(skb).consumed: how much of a stream's skb was read. Up to 6.13 unix_release_sock() sets it to the whole length
/// before it frees what it finds in the queue.
#[inline(always)]
pub unsafe fn consumed(skb: *const u8) -> u32 {
    Probed::u32(skb.wrapping_add(f::SKB_CB.load() as usize), &f::UNIX_CB_CONSUMED)
}

/// The other end; null once one of the two has closed this end.
#[inline(always)]
pub unsafe fn peer(sk: *const u8) -> *const u8 {
    Probed::ptr(sk, &f::UNIX_PEER)
}

/// The address of a server's socket that is being closed, null for any other. An accepted socket has its listener's
/// address, a connecting one none unless it was bound. A stream socket is in TCP_CLOSE before it is connected, when it has
/// no peer and (made by unix_stream_connect()) no address, and after unix_release_sock() took hold of it: never between.
#[inline(always)]
pub unsafe fn closing_server(sk: *const u8) -> *const u8 {
    if Probed::u8(sk, &f::SK_STATE) != state::CLOSE {
        return core::ptr::null();
    }
    Probed::ptr(sk, &f::UNIX_ADDR)
}

#[inline(always)]
pub unsafe fn cgroup_id(sk: *const u8) -> u64 {
    cgroup::of_plain_sock(sk)
}

#[inline(always)]
pub unsafe fn netns(sk: *const u8) -> u32 {
    let net = Probed::ptr(sk, &f::SK_NET);
    if net.is_null() { 0 } else { Probed::u32(net, &f::NET_INUM) }
}

/// Copies `sun_path` of a `struct unix_address`; gives its length.
///
/// # Safety
/// `dst` is inside a reserved record.
#[inline(always)]
pub unsafe fn write_address(dst: *mut [u8; UNIX_PATH], addr: *const u8) -> u16 {
    let name = addr.wrapping_add(f::UNIX_ADDR_NAME.load() as usize);
    write_sockaddr(dst, name, Probed::u32(addr, &f::UNIX_ADDR_LEN).into())
}

/// Copies `sun_path` of a sockaddr in kernel memory, of which `len` bytes are valid; gives its length.
///
/// # Safety
/// As [`write_address`].
#[inline(always)]
pub unsafe fn write_sockaddr(dst: *mut [u8; UNIX_PATH], name: *const u8, len: u64) -> u16 {
    let n = path_len(len);
    let src = name.wrapping_add(FAMILY_SIZE as usize);
    if bpf_probe_read_kernel(dst.cast(), n as u32, src.cast()) == 0 { n as u16 } else { 0 }
}

/// The same of a sockaddr in `current`'s memory.
///
/// # Safety
/// As [`write_address`].
#[inline(always)]
pub unsafe fn write_user_sockaddr(dst: *mut [u8; UNIX_PATH], name: *const u8, len: u64) -> u16 {
    let n = path_len(len);
    let src = name.wrapping_add(FAMILY_SIZE as usize);
    if bpf_probe_read_user(dst.cast(), n as u32, src.cast()) == 0 { n as u16 } else { 0 }
}

#[inline(always)]
fn path_len(len: u64) -> u64 {
    if len < FAMILY_SIZE {
        return 0;
    }
    let mut n = len - FAMILY_SIZE;
    if n > SUN_PATH {
        n = SUN_PATH;
    }
    n
}
