//! Turns this kernel's BTF into the read-only globals of the probes: an offset for each member of
//! [`why502_ebpf::fields::FIELDS`], and a few flags that tell which of two shapes the kernel has.
//!
//! The verifier checks each offset and width again when it loads the probes; what it cannot see (two members of one
//! width swapped) is checked against live values at the start (`live/check.rs`).

use super::btf::{Btf, BtfError};
use crate::model::input::Degraded;
use std::collections::BTreeMap;
use why502_ebpf::{fields as table, names};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("this kernel lacks {strukt}.{path}, which the probes need: {source}")]
    Missing { strukt: &'static str, path: &'static str, source: BtfError },
    #[error("{strukt}.{path} has {found} bytes on this kernel, the probes read {wanted}")]
    Size { strukt: &'static str, path: &'static str, found: u32, wanted: u32 },
    #[error("this kernel's tracepoint {tracepoint} cannot be understood: {source}")]
    Prototype { tracepoint: &'static str, source: BtfError },
}

/// What is set in the object before it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Globals {
    /// Name of the `u32` global → value: offsets and flags.
    pub values: Vec<(&'static str, u32)>,
    /// `enum sk_rst_reason`: value → name without its prefix; empty before 6.10.
    pub reset_reasons: BTreeMap<u32, String>,
    /// What this kernel cannot tell.
    pub degraded: Vec<Degraded>,
}

impl Globals {
    /// The value of one global; `None` when no such global is set.
    pub fn get(&self, symbol: &str) -> Option<u32> {
        self.values.iter().find(|(s, _)| *s == symbol).map(|(_, v)| *v)
    }
}

/// Resolves everything. `v1` is the v1 cgroup controller whose hierarchy names tasks (`memory`, `pids` …), if one is
/// mounted.
pub fn resolve(btf: &Btf<'_>, v1: Option<&str>) -> Result<Globals, FieldError> {
    let mut values = Vec::with_capacity(table::FIELDS.len() + 8);
    for field in table::FIELDS {
        values.push((field.symbol, offset(btf, field)?));
    }
    let mut globals = Globals { values, reset_reasons: reset_reasons(btf), degraded: Vec::new() };
    flags(btf, &mut globals)?;
    cgroup_v1(btf, v1, &mut globals);
    syscall(&mut globals);
    Ok(globals)
}

fn offset(btf: &Btf<'_>, field: &table::Field) -> Result<u32, FieldError> {
    let (strukt, path) = (field.strukt, field.path);
    match btf.member(strukt, path) {
        Ok(member) if field.size == 0 || member.size == field.size => Ok(member.offset),
        Ok(member) => Err(FieldError::Size { strukt, path, found: member.size, wanted: field.size }),
        Err(BtfError::NoMember { .. } | BtfError::NoType { .. }) if field.optional => Ok(table::MISSING),
        Err(source) => Err(FieldError::Missing { strukt, path, source }),
    }
}

fn flags(btf: &Btf<'_>, globals: &mut Globals) -> Result<(), FieldError> {
    let args = |tracepoint: &'static str| {
        btf.tracepoint_args(tracepoint).map_err(|source| FieldError::Prototype { tracepoint, source })
    };
    // bpf_get_current_task_btf(), 5.11: before it the probes read the current task by bpf_probe_read_kernel.
    let task_btf = btf.enum_value("bpf_func_id", "BPF_FUNC_get_current_task_btf").is_ok();
    // tcp_send_reset(sk, skb, reason), 6.10.
    let reason = args("tcp_send_reset")?.len() >= 3;
    // mark_victim(int pid) until 6.8; newer stable kernels of every series pass the task.
    let victim = args("mark_victim").is_ok_and(|a| a.first().is_some_and(|id| btf.is_pointer_to(*id, "task_struct")));
    // The layout of sock_cgroup_data changed inside 5.10.y: never decide by version.
    // kfree_skb(skb, location, reason), 5.17; closing AF_UNIX sockets give one of their own since 6.14, both in one series.
    let drop_reason = args("kfree_skb").is_ok_and(|a| a.len() >= 3);
    let reason_of = |name: &str| {
        let value = btf.enum_value("skb_drop_reason", &format!("SKB_DROP_REASON_{name}")).ok()?;
        u32::try_from(value).ok()
    };
    let close = reason_of("SOCKET_CLOSE");
    let unix_reason = close.or_else(|| reason_of("NOT_SPECIFIED"));
    let cgroup_ptr = globals.get("SK_CGRP_PTR").is_some_and(|o| o != table::MISSING);
    for (name, on) in [
        (names::HAS_TASK_BTF, task_btf),
        (names::HAS_COOKIE, btf.enum_value("bpf_func_id", "BPF_FUNC_get_attach_cookie").is_ok()),
        (names::HAS_RESET_REASON, reason),
        (names::HAS_VICTIM_TASK, victim),
        (names::HAS_SK_CGROUP_PTR, cgroup_ptr),
        (names::HAS_DROP_REASON, drop_reason && unix_reason.is_some()),
        (names::UNIX_REASON_IS_CLOSE, drop_reason && close.is_some()),
    ] {
        globals.values.push((name, u32::from(on)));
    }
    globals.values.push((names::UNIX_DROP_REASON, unix_reason.unwrap_or(0)));
    if !reason {
        globals.degrade("no-reset-reason", "this kernel does not say why it sends a reset (6.10 and newer do)");
        // Before the same release tcp_v4_send_reset() ran the hook for full sockets only.
        globals.degrade(
            "no-reply-resets",
            "this kernel does not report resets to a closed port or connection: refused connections and late data stay unseen",
        );
    }
    if !cgroup_ptr {
        globals.degrade(
            "sk-cgroup-tagged",
            "this kernel forgets a socket's cgroup once net_cls or net_prio is used (fixed in later 5.10 releases)",
        );
    }
    Ok(())
}

/// `css_set.subsys[]` is indexed by `enum cgroup_subsys_id`; the probes take one slot, so its offset is added here.
fn cgroup_v1(btf: &Btf<'_>, v1: Option<&str>, globals: &mut Globals) {
    let index = v1.and_then(|controller| {
        // The v1 controller `blkio` is `io` in the kernel's enum.
        let name = if controller == "blkio" { "io" } else { controller };
        let index = btf.enum_value("cgroup_subsys_id", &format!("{name}_cgrp_id")).ok()?;
        u32::try_from(index).ok()
    });
    if let (Some(controller), None) = (v1, index) {
        let text = format!("the v1 cgroup controller {controller} is mounted but unknown to the kernel's types");
        globals.degrade("no-cgroup1-index", &text);
    }
    if let Some(index) = index
        && let Some((_, subsys)) = globals.values.iter_mut().find(|(s, _)| *s == "CSS_SET_SUBSYS")
    {
        *subsys += index * 8;
    }
    globals.values.push((names::CGROUP_V1, u32::from(index.is_some())));
}

/// The registers of a system call, of this program's architecture: it is the kernel's as well.
fn syscall(globals: &mut Globals) {
    // arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h: connect(2).
    globals.values.push((names::CONNECT_NR, if cfg!(target_arch = "x86_64") { 42 } else { 203 }));
    if cfg!(target_arch = "x86_64") {
        return;
    }
    // pt_regs.regs[] of arm64: the second and the third argument.
    for (symbol, register) in [("PT_ARG2", 1), ("PT_ARG3", 2)] {
        let at = globals.values.iter_mut().find(|(s, v)| *s == symbol && *v != table::MISSING);
        at.into_iter().for_each(|(_, offset)| *offset += register * 8);
    }
}

impl Globals {
    fn degrade(&mut self, id: &str, text: &str) {
        self.degraded.push(Degraded { id: id.to_owned(), text: text.to_owned() });
    }
}

/// `SK_RST_REASON_TCP_ABORT_ON_CLOSE` → `TCP_ABORT_ON_CLOSE`.
fn reset_reasons(btf: &Btf<'_>) -> BTreeMap<u32, String> {
    let values = btf.enum_values("sk_rst_reason").unwrap_or_default();
    let short = |name: String| name.strip_prefix("SK_RST_REASON_").unwrap_or(&name).to_owned();
    values.into_iter().filter_map(|(name, value)| Some((u32::try_from(value).ok()?, short(name)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::{VMLINUX, builder::Builder, read};
    use std::path::Path;

    /// A kernel made of exactly the members that the table wants, each struct laid out in the table's order.
    fn kernel(drop: &str, resize: &str, old: bool) -> Vec<u8> {
        let mut b = Builder::new();
        let ints = [b.int("u8", 1), b.int("u16", 2), b.int("u32", 4), b.int("u64", 8)];
        let wide = b.array(ints[3], ints[2], 2);
        let mut structs: BTreeMap<&str, Vec<(&str, u32, u32)>> = BTreeMap::new();
        for f in table::FIELDS {
            if f.symbol == drop || (old && f.symbol == "SK_CGRP_PTR") {
                continue;
            }
            let size = if f.symbol == resize { 2 } else { f.size };
            let type_id = match size {
                1 => ints[0],
                2 => ints[1],
                4 => ints[2],
                16 => wide,
                _ => ints[3],
            };
            // Only the last name of a dotted path needs to exist once the ones before it are structs: see below.
            let members = structs.entry(f.strukt).or_default();
            let at = members.len() as u32 * 128;
            members.push((f.path.split('|').next().unwrap(), type_id, at));
        }
        for (strukt, members) in &structs {
            let mut flat: Vec<(&str, u32, u32)> = Vec::new();
            for (path, type_id, at) in members {
                let mut parts: Vec<&str> = path.split('.').collect();
                let last = parts.pop().unwrap();
                let (mut name, mut inner) = (last, *type_id);
                while let Some(outer) = parts.pop() {
                    inner = b.strukt("", 16, &[(name, inner, 0)]);
                    name = outer;
                }
                // Two paths through one named struct would need merging: give each its own alternative by an
                // anonymous struct, which the reader searches in turn.
                flat.push((name, inner, *at));
            }
            merge(&mut b, strukt, flat);
        }
        let task = b.strukt("task_struct", 4, &[]);
        let task = b.pointer(task);
        let victim = if old { ints[2] } else { task };
        b.tracepoint("mark_victim", &[victim]);
        let reset: &[u32] = if old { &[task, task] } else { &[task, task, ints[2]] };
        b.tracepoint("tcp_send_reset", reset);
        b.tracepoint("kfree_skb", reset);
        b.enumeration(
            "skb_drop_reason",
            false,
            if old { &[("SKB_DROP_REASON_NOT_SPECIFIED", 2)] } else { &[("SKB_DROP_REASON_SOCKET_CLOSE", 4)] },
        );
        let helpers: &[(&str, i32)] =
            if old { &[("BPF_FUNC_x", 1)] } else { &[("BPF_FUNC_get_current_task_btf", 158)] };
        b.enumeration("bpf_func_id", false, helpers);
        b.enumeration("cgroup_subsys_id", false, &[("memory_cgrp_id", 4), ("io_cgrp_id", 3)]);
        if !old {
            b.enumeration("sk_rst_reason", false, &[("SK_RST_REASON_NO_SOCKET", 1)]);
        }
        b.build()
    }

    /// Several structs of one name are allowed in BTF: one for each member whose outer name is already taken.
    fn merge(b: &mut Builder, strukt: &str, members: Vec<(&str, u32, u32)>) {
        let mut first: Vec<(&str, u32, u32)> = Vec::new();
        for m in members {
            if first.iter().any(|f| f.0 == m.0) {
                b.strukt(strukt, 4096, &[m]);
            } else {
                first.push(m);
            }
        }
        b.strukt(strukt, 4096, &first);
    }

    fn resolved(data: &[u8], v1: Option<&str>) -> Result<Globals, FieldError> {
        resolve(&Btf::parse(data).unwrap(), v1)
    }

    #[test]
    fn resolves_every_field_of_the_table() {
        let g = resolved(&kernel("", "", false), None).unwrap();
        assert_eq!(g.get("TASK_PID"), Some(0));
        assert_eq!(g.get("TASK_TGID"), Some(16));
        let flags = [names::HAS_TASK_BTF, names::HAS_RESET_REASON, names::HAS_VICTIM_TASK, names::HAS_SK_CGROUP_PTR];
        assert_eq!(flags.map(|f| g.get(f)), [Some(1); 4]);
        assert_eq!(g.get(names::CGROUP_V1), Some(0));
        assert_eq!(g.values.len(), table::FIELDS.len() + 10);
        assert_eq!(g.get(names::HAS_COOKIE), Some(0));
        let unix = [names::HAS_DROP_REASON, names::UNIX_REASON_IS_CLOSE, names::UNIX_DROP_REASON];
        assert_eq!(unix.map(|f| g.get(f)), [Some(1), Some(1), Some(4)]);
        assert_eq!(g.reset_reasons.get(&1).map(String::as_str), Some("NO_SOCKET"));
        assert_eq!(g.degraded, []);
    }

    #[test]
    fn an_old_kernel_lacks_reasons_and_pointers_and_says_so() {
        let g = resolved(&kernel("", "", true), None).unwrap();
        let flags = [names::HAS_TASK_BTF, names::HAS_RESET_REASON, names::HAS_VICTIM_TASK, names::HAS_SK_CGROUP_PTR];
        assert_eq!(flags.map(|f| g.get(f)), [Some(0); 4]);
        assert_eq!(g.get("SK_CGRP_PTR"), Some(table::MISSING));
        let unix = [names::HAS_DROP_REASON, names::UNIX_REASON_IS_CLOSE, names::UNIX_DROP_REASON];
        assert_eq!(unix.map(|f| g.get(f)), [Some(0), Some(0), Some(2)]);
        assert!(g.reset_reasons.is_empty());
        let ids: Vec<&str> = g.degraded.iter().map(|d| d.id.as_str()).collect();
        assert_eq!(ids, ["no-reset-reason", "no-reply-resets", "sk-cgroup-tagged"]);
    }

    #[test]
    fn the_slot_of_the_v1_controller_is_added() {
        let data = kernel("", "", false);
        let base = resolved(&data, None).unwrap().get("CSS_SET_SUBSYS").unwrap();
        for (controller, index) in [("memory", 4), ("blkio", 3)] {
            let g = resolved(&data, Some(controller)).unwrap();
            assert_eq!((g.get("CSS_SET_SUBSYS"), g.get(names::CGROUP_V1)), (Some(base + 8 * index), Some(1)));
        }
        let g = resolved(&data, Some("hugetlb")).unwrap();
        assert_eq!((g.get("CSS_SET_SUBSYS"), g.get(names::CGROUP_V1)), (Some(base), Some(0)));
        assert_eq!(g.degraded[0].id, "no-cgroup1-index");
    }

    #[test]
    fn errors_name_the_member() {
        let missing = resolved(&kernel("SK_ERR", "", false), None).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "this kernel lacks sock.sk_err, which the probes need: the kernel's struct sock has no member sk_err"
        );
        let resized = resolved(&kernel("", "TASK_TGID", false), None).unwrap_err();
        assert_eq!(resized, FieldError::Size { strukt: "task_struct", path: "tgid", found: 2, wanted: 4 });
    }

    #[test]
    fn the_running_kernel_has_all_of_them() {
        let path = Path::new("/").join(VMLINUX);
        let Ok(data) = read(&path) else {
            eprintln!("skipped: no {}", path.display());
            return;
        };
        let g = resolved(&data, Some("memory")).unwrap();
        for field in table::FIELDS.iter().filter(|f| !f.optional) {
            assert_ne!(g.get(field.symbol), Some(table::MISSING), "{}", field.symbol);
        }
        assert_ne!(g.get("TASK_PID"), g.get("TASK_TGID"));
    }
}
