//! The packet that a reset answers. Everything here is probed: resets are rare, and nothing of an skb needs to be trusted.

use super::mem::{Mem, Probed, probe};
use super::sock::MAPPED;
use why502_ebpf::Tuple;
use why502_ebpf::fields::globals as f;

/// Headers of a received TCP segment, seen from its receiver.
pub struct Segment {
    pub tuple: Tuple,
    pub seq: u32,
    pub ack: u32,
    /// Payload bytes.
    pub len: u32,
    pub flags: u8,
}

/// `skb` is the offending packet of tcp_v4_send_reset()/tcp_v6_send_reset(): its header offsets are set.
/// `netns_fallback` is used when `skb->dev` is not set (output path on loopback).
///
/// # Safety
/// `skb` is non-null; a stale one only gives zeroes.
#[inline(always)]
pub unsafe fn segment(skb: *const u8, netns_fallback: u32) -> Option<Segment> {
    let head = Probed::ptr(skb, &f::SKB_HEAD);
    if head.is_null() {
        return None;
    }
    let nh = Probed::u16(skb, &f::SKB_NETWORK_HEADER);
    let th = Probed::u16(skb, &f::SKB_TRANSPORT_HEADER);
    // 0xffff: the offset was never set (skb_transport_header_was_set()).
    if th == u16::MAX || th <= nh {
        return None;
    }
    let ip = head.wrapping_add(nh as usize);
    let tcp = head.wrapping_add(th as usize);
    let version: u8 = probe::<u8>(ip) >> 4;
    let (src, dst, total);
    if version == 4 {
        src = [0, 0, MAPPED, probe::<u32>(ip.wrapping_add(12))];
        dst = [0, 0, MAPPED, probe::<u32>(ip.wrapping_add(16))];
        total = u32::from(u16::from_be(probe::<u16>(ip.wrapping_add(2))));
    } else if version == 6 {
        src = [
            probe::<u32>(ip.wrapping_add(8)),
            probe::<u32>(ip.wrapping_add(12)),
            probe::<u32>(ip.wrapping_add(16)),
            probe::<u32>(ip.wrapping_add(20)),
        ];
        dst = [
            probe::<u32>(ip.wrapping_add(24)),
            probe::<u32>(ip.wrapping_add(28)),
            probe::<u32>(ip.wrapping_add(32)),
            probe::<u32>(ip.wrapping_add(36)),
        ];
        total = u32::from(u16::from_be(probe::<u16>(ip.wrapping_add(4)))) + 40;
    } else {
        return None;
    }
    let doff = u32::from(probe::<u8>(tcp.wrapping_add(12)) >> 4) * 4;
    let l3 = u32::from(th - nh);
    Some(Segment {
        tuple: Tuple {
            laddr: dst,
            raddr: src,
            lport: u16::from_be(probe::<u16>(tcp.wrapping_add(2))),
            rport: u16::from_be(probe::<u16>(tcp)),
            netns: netns(skb, netns_fallback),
        },
        seq: u32::from_be(probe::<u32>(tcp.wrapping_add(4))),
        ack: u32::from_be(probe::<u32>(tcp.wrapping_add(8))),
        len: total.saturating_sub(l3).saturating_sub(doff),
        flags: probe::<u8>(tcp.wrapping_add(13)),
    })
}

#[inline(always)]
unsafe fn netns(skb: *const u8, fallback: u32) -> u32 {
    if fallback != 0 {
        return fallback;
    }
    let dev = Probed::ptr(skb, &f::SKB_DEV);
    if (dev as u64) < 4096 {
        return 0;
    }
    let net = Probed::ptr(dev, &f::DEV_NET);
    if net.is_null() { 0 } else { Probed::u32(net, &f::NET_INUM) }
}
