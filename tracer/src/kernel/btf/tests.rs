use super::builder::Builder;
use super::*;
use proptest::prelude::*;

#[test]
fn finds_members_in_anonymous_structs_and_unions() {
    // struct sock_common { union { u64 skc_addrpair; struct { u32 skc_daddr; u32 skc_rcv_saddr; }; }; … u16 skc_family; }
    let mut b = Builder::new();
    let (u16_, u32_, u64_) = (b.int("u16", 2), b.int("u32", 4), b.int("u64", 8));
    let be32 = b.alias("__be32", kind::TYPEDEF, u32_);
    let pair = b.strukt("", 8, &[("skc_daddr", be32, 0), ("skc_rcv_saddr", be32, 32)]);
    let addresses = b.aggregate(kind::UNION, false, "", 8, &[("skc_addrpair", u64_, 0), ("", pair, 0)]);
    b.strukt("sock_common", 24, &[("skc_x", u64_, 0), ("", addresses, 64), ("skc_family", u16_, 128)]);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.member("sock_common", "skc_rcv_saddr").map(|m| (m.offset, m.size)), Ok((12, 4)));
    assert_eq!(btf.member("sock_common", "skc_daddr").map(|m| (m.offset, m.size)), Ok((8, 4)));
    assert_eq!(btf.member("sock_common", "skc_family").map(|m| (m.offset, m.size)), Ok((16, 2)));
    assert_eq!(
        btf.member("sock_common", "skc_nope"),
        Err(BtfError::NoMember { strukt: "sock_common".into(), member: "skc_nope".into() })
    );
    assert_eq!(btf.member("sock", "sk_err"), Err(BtfError::NoType { what: "struct", name: "sock".into() }));
}

#[test]
fn walks_paths_and_takes_the_first_alternative_that_exists() {
    let mut b = Builder::new();
    let u32_ = b.int("u32", 4);
    let u64_ = b.int("u64", 8);
    let inner = b.strukt("ns_common", 16, &[("ops", u64_, 0), ("inum", u32_, 64)]);
    let volatile = b.alias("", kind::VOLATILE, inner);
    let constant = b.alias("", kind::CONST, volatile);
    let pointer = b.pointer(inner);
    let index = b.int("int", 4);
    let array = b.array(pointer, index, 13);
    let tag = b.alias("rcu", kind::TYPE_TAG, inner);
    let tagged = b.pointer(tag);
    let members = [("ns", constant, 64), ("subsys", array, 192), ("real_start_time", u64_, 1024), ("t", tagged, 1088)];
    b.strukt("net", 200, &members);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.member("net", "ns.inum").map(|m| (m.offset, m.size)), Ok((16, 4)));
    assert_eq!(btf.member("net", "subsys").map(|m| (m.offset, m.size)), Ok((24, 13 * 8)));
    assert_eq!(btf.member("net", "start_boottime|real_start_time").map(|m| m.offset), Ok(128));
    assert!(matches!(btf.member("net", "subsys.x"), Err(BtfError::NotAggregate { .. })));
    assert!(btf.is_pointer_to(btf.member("net", "t").unwrap().type_id, "ns_common"));
    assert!(!btf.is_pointer_to(btf.member("net", "ns").unwrap().type_id, "ns_common"));
}

#[test]
fn refuses_bitfields_of_both_encodings() {
    let mut b = Builder::new();
    let u32_ = b.int("u32", 4);
    let three_bits = b.int_bits("unsigned int", 4, 3);
    b.aggregate(kind::STRUCT, true, "new", 8, &[("flags", u32_, 3 << 24 | 5), ("plain", u32_, 32)]);
    b.strukt("old", 8, &[("flags", three_bits, 0), ("shifted", u32_, 3), ("plain", u32_, 32)]);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    for (strukt, member) in [("new", "flags"), ("old", "flags"), ("old", "shifted")] {
        let want = Err(BtfError::Bitfield { strukt: strukt.into(), member: member.into() });
        assert_eq!(btf.member(strukt, member), want);
    }
    assert_eq!(btf.member("new", "plain").map(|m| m.offset), Ok(4));
    assert_eq!(btf.member("old", "plain").map(|m| m.offset), Ok(4));
}

#[test]
fn tells_the_two_shapes_of_sock_cgroup_data() {
    let mut b = Builder::new();
    let (u16_, u32_, u64_) = (b.int("u16", 2), b.int("u32", 4), b.int("u64", 8));
    let cgroup = b.strukt("cgroup", 8, &[("x", u64_, 0)]);
    let pointer = b.pointer(cgroup);
    let mut newer = Builder::new();
    std::mem::swap(&mut newer, &mut b);
    newer.strukt("sock_cgroup_data", 16, &[("cgroup", pointer, 0), ("classid", u32_, 64), ("prioidx", u16_, 96)]);
    let data = newer.build();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.member("sock_cgroup_data", "cgroup").map(|m| (m.offset, m.size)), Ok((0, 8)));
    assert!(btf.member("sock_cgroup_data", "val").is_err());

    // 5.10.218: struct { union { struct { u8 is_data:1 …; u16 prioidx; u32 classid; }; u64 val; }; }
    let (u16_, u32_, u64_) = (b.int("u16", 2), b.int("u32", 4), b.int("u64", 8));
    let tagged = b.strukt("", 8, &[("prioidx", u16_, 16), ("classid", u32_, 32)]);
    let either = b.aggregate(kind::UNION, false, "", 8, &[("", tagged, 0), ("val", u64_, 0)]);
    b.strukt("sock_cgroup_data", 8, &[("", either, 0)]);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert!(btf.member("sock_cgroup_data", "cgroup").is_err());
    assert_eq!(btf.member("sock_cgroup_data", "val").map(|m| (m.offset, m.size)), Ok((0, 8)));
}

#[test]
fn reads_enums_of_both_widths() {
    let mut b = Builder::new();
    b.enumeration("sk_rst_reason", false, &[("SK_RST_REASON_NOT_SPECIFIED", 0), ("SK_RST_REASON_NO_SOCKET", 1)]);
    b.enumeration("signed", true, &[("MINUS", -1)]);
    b.enumeration("unsigned", false, &[("BIG", -1)]);
    b.enumeration64("wide", &[("HUGE", 0x1_0000_0002)]);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.enum_value("sk_rst_reason", "SK_RST_REASON_NO_SOCKET"), Ok(1));
    assert_eq!(btf.enum_values("sk_rst_reason").unwrap().len(), 2);
    assert_eq!(btf.enum_value("signed", "MINUS"), Ok(-1));
    assert_eq!(btf.enum_value("unsigned", "BIG"), Ok(0xffff_ffff));
    assert_eq!(btf.enum_value("wide", "HUGE"), Ok(0x1_0000_0002));
    assert!(matches!(btf.enum_value("wide", "NONE"), Err(BtfError::NoValue { .. })));
    assert!(matches!(btf.enum_value("none", "NONE"), Err(BtfError::NoType { .. })));
}

#[test]
fn reads_tracepoint_prototypes() {
    let mut b = Builder::new();
    let int = b.int("int", 4);
    let task = b.strukt("task_struct", 4, &[("pid", int, 0)]);
    let task_pointer = b.pointer(task);
    let sock = b.strukt("sock", 4, &[("x", int, 0)]);
    let const_sock = b.alias("", kind::CONST, sock);
    let sock_pointer = b.pointer(const_sock);
    b.tracepoint("mark_victim", &[task_pointer, int]);
    b.tracepoint("mark_victim_old", &[int]);
    b.tracepoint("two", &[sock_pointer, sock_pointer]);
    b.tracepoint("three", &[sock_pointer, sock_pointer, int]);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert!(btf.is_pointer_to(btf.tracepoint_args("mark_victim").unwrap()[0], "task_struct"));
    assert!(!btf.is_pointer_to(btf.tracepoint_args("mark_victim_old").unwrap()[0], "task_struct"));
    assert_eq!(btf.tracepoint_args("two").unwrap().len(), 2);
    let three = btf.tracepoint_args("three").unwrap();
    assert!(btf.is_pointer_to(three[0], "sock") && three.len() == 3);
    assert!(matches!(btf.tracepoint_args("none"), Err(BtfError::NoType { .. })));
}

#[test]
fn cycles_and_unknown_kinds_are_errors() {
    let mut b = Builder::new();
    let looped = b.alias("loop", kind::TYPEDEF, 1);
    let self_holding = b.strukt("self", 8, &[("", 2, 0), ("after", looped, 0)]);
    assert_eq!((looped, self_holding), (1, 2));
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert!(matches!(btf.size(1), Err(BtfError::TooDeep { .. })));
    assert!(matches!(btf.member("self", "after"), Err(BtfError::TooDeep { .. })));
    assert!(matches!(btf.size(99), Err(BtfError::NoTypeId { id: 99 })));

    let mut b = Builder::new();
    b.alias("new", 25, 0);
    assert_eq!(Btf::parse(&b.build()).err(), Some(BtfError::UnknownKind { id: 1, kind: 25 }));
}

#[test]
fn says_what_is_wrong_with_a_header() {
    let good = Builder::new().build();
    assert!(Btf::parse(&good).is_ok());
    let mut swapped = good.clone();
    swapped.swap(0, 1);
    let error = |data: &[u8]| Btf::parse(data).err().unwrap();
    assert_eq!(error(&swapped), BtfError::Header("other byte order"));
    assert_eq!(error(b"ELF"), BtfError::Header("no magic number"));
    assert_eq!(error(&good[..10]), BtfError::Header("short header"));
    let mut outside = good;
    outside[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(error(&outside), BtfError::Header("string section outside the data"));
}

fn ask_everything(btf: &Btf<'_>) {
    for strukt in ["task_struct", "sock_common", "net", "x"] {
        for path in ["pid", "skc_daddr", "ns.inum", "a.b.c|d"] {
            let _ = btf.member(strukt, path);
        }
    }
    let _ = btf.enum_values("sk_rst_reason");
    let _ = btf.enum_value("cgroup_subsys_id", "memory_cgrp_id");
    for id in btf.tracepoint_args("mark_victim").unwrap_or_default() {
        let _ = btf.is_pointer_to(id, "task_struct");
        let _ = btf.size(id);
    }
}

fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let u32_ = b.int("u32", 4);
    let pair = b.strukt("", 8, &[("skc_daddr", u32_, 0), ("skc_rcv_saddr", u32_, 32)]);
    let either = b.aggregate(kind::UNION, true, "", 8, &[("", pair, 0)]);
    b.strukt("sock_common", 16, &[("", either, 0), ("skc_num", u32_, 64)]);
    let task = b.strukt("task_struct", 16, &[("pid", u32_, 32)]);
    let pointer = b.pointer(task);
    b.tracepoint("mark_victim", &[pointer, u32_]);
    b.enumeration("sk_rst_reason", false, &[("A", 0), ("B", 1)]);
    b.enumeration64("cgroup_subsys_id", &[("memory_cgrp_id", 4)]);
    let array = b.array(pointer, u32_, 9);
    b.strukt("net", 80, &[("ns", array, 0)]);
    b.build()
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(data in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(btf) = Btf::parse(&data) {
            ask_everything(&btf);
        }
    }

    #[test]
    fn mutated_btf_gives_an_answer(changes in proptest::collection::vec((0usize..4096, any::<u8>()), 1..12)) {
        let mut data = sample();
        for (at, byte) in changes {
            let at = at % data.len();
            data[at] = byte;
        }
        if let Ok(btf) = Btf::parse(&data) {
            ask_everything(&btf);
        }
    }

    #[test]
    fn truncated_btf_gives_an_error(keep in 0usize..1000) {
        let data = sample();
        let keep = keep % data.len();
        prop_assert!(Btf::parse(&data[..keep]).is_err());
    }
}

/// The running kernel's BTF, or a printed reason why there is none.
fn live() -> Option<Vec<u8>> {
    let path = Path::new("/").join(VMLINUX);
    match read(&path) {
        Ok(data) => Some(data),
        Err(e) => {
            eprintln!("skipped: {}: {e}", path.display());
            None
        }
    }
}

#[test]
fn the_running_kernels_btf() {
    let Some(data) = live() else { return };
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.member("task_struct", "comm").unwrap().size, 16);
    assert_eq!(btf.member("sock_common", "skc_daddr").map(|m| (m.offset, m.size)), Ok((0, 4)));
    assert_eq!(btf.member("sock_common", "skc_v6_rcv_saddr").unwrap().size, 16);
    assert_eq!(btf.member("kernel_siginfo", "si_code").map(|m| m.offset), Ok(8));
    assert_eq!(btf.tracepoint_args("signal_generate").unwrap().len(), 5);
    assert_eq!(btf.enum_value("bpf_map_type", "BPF_MAP_TYPE_RINGBUF"), Ok(27));
    ask_everything(&btf);
}

#[test]
fn mutations_of_the_running_kernels_btf() {
    let Some(mut data) = live() else { return };
    // Deterministic: every case is one changed byte in the middle of the types, then put back.
    let mut state: u64 = 502;
    for _ in 0..20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % data.len();
        let old = data[at];
        data[at] ^= (state >> 24) as u8 | 1;
        if let Ok(btf) = Btf::parse(&data) {
            ask_everything(&btf);
        }
        data[at] = old;
    }
}
