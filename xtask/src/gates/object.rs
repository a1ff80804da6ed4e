//! The gate on the compiled probes: reads the object's instructions, so that it needs no disassembler.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use object::elf::SHF_EXECINSTR;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SymbolKind};

/// `BPF_JMP | BPF_CALL` (include/uapi/linux/bpf.h).
const CALL: u8 = 0x85;
/// `BPF_LD | BPF_IMM | BPF_DW`: two slots long, the second holds the upper half of the constant and is no instruction.
const LD_IMM64: u8 = 0x18;
/// Source register of a call to another BPF function; 0 is a helper, 2 a kernel function.
const PSEUDO_CALL: u8 = 1;
const PSEUDO_KFUNC_CALL: u8 = 2;

/// LLVM's own library calls. bpf-linker keeps them in every object; as long as nothing calls them, no program holds them.
const DEAD: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];
/// Kinds of programs that need only CAP_BPF and CAP_PERFMON, and nothing of tracefs. fexit needs BPF trampolines, so such a
/// hook must be optional. So must a uprobe: it loads with the same rights and is attached with CAP_SYS_ADMIN only.
const KINDS: [&str; 5] = ["tp_btf/", "raw_tp/", "raw_tracepoint/", "fexit/", "uprobe"];

/// What the object holds, for the line that `build` prints.
#[derive(Debug)]
pub(crate) struct Summary {
    programs: usize,
    instructions: usize,
    bytes: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} programs, {} instructions, {} KiB", self.programs, self.instructions, self.bytes / 1024)
    }
}

/// An instruction that the gate refuses.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    /// Number of the instruction in its section, as disassemblers count them.
    index: usize,
    source: u8,
}

/// Every call that is not one of a helper.
fn calls(code: &[u8]) -> Vec<Call> {
    let mut found = Vec::new();
    let mut slots = code.chunks_exact(8).enumerate();
    while let Some((index, slot)) = slots.next() {
        // struct bpf_insn: code, then dst_reg in the lower and src_reg in the upper half of a byte.
        let (op, source) = (slot[0], slot[1] >> 4);
        if op == LD_IMM64 {
            slots.next();
        } else if op == CALL && source != 0 {
            found.push(Call { index, source });
        }
    }
    found
}

/// Checks the object; the error lists all that is wrong with it and why it is.
pub(crate) fn check(bytes: &[u8], trace_log: bool) -> Result<Summary> {
    let file = object::File::parse(bytes).context("the probes' object is not an ELF file")?;
    let mut wrong = Vec::new();
    let mut summary = Summary { programs: 0, instructions: 0, bytes: bytes.len() };

    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(SHF_EXECINSTR) == 0 || section.size() == 0 {
            continue;
        }
        let name = section.name().context("a section's name")?;
        let code = section.data().with_context(|| format!("the code of {name}"))?;
        for call in calls(code) {
            let callee = callee(&file, &section, call.index as u64 * 8);
            wrong.push(match call.source {
                PSEUDO_CALL => format!(
                    "{name}: instruction {} calls the BPF function {callee}. On Linux 5.10 a program with such a call \
                     panics the node when a typed load faults (search_bpf_extables on a NULL table). Write records \
                     field by field with write_volatile, no [0; N], no copy of more than two words, and mark \
                     functions #[inline(always)]",
                    call.index
                ),
                PSEUDO_KFUNC_CALL => {
                    format!("{name}: instruction {} calls a kernel function, which 5.10 does not know", call.index)
                }
                other => format!("{name}: instruction {}: a call of unknown kind {other}", call.index),
            });
        }
        if name == ".text" {
            continue; // its functions are looked at below
        }
        summary.programs += 1;
        summary.instructions += code.len() / 8;
        if !KINDS.iter().any(|kind| name.starts_with(kind)) {
            wrong.push(format!(
                "{name}: only {} programs may be in the base set: others need tracefs or CAP_SYS_ADMIN",
                KINDS.join(", ")
            ));
        }
    }

    for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.is_definition()) {
        let name = symbol.name().context("a function's name")?;
        let in_text = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
            .is_some_and(|section| section.name() == Ok(".text"));
        if in_text && !DEAD.contains(&name) {
            wrong.push(format!("{name}: a function of its own, so something calls it: mark it #[inline(always)]"));
        }
    }
    if !trace_log && file.symbol_by_name("AYA_LOGS").is_some() {
        wrong.push("AYA_LOGS: a log line is compiled in, and each one wakes the reader: only with --trace-log".into());
    }
    if file.section_by_name(".BTF").is_none() {
        wrong.push(".BTF: missing, so no tp_btf program can be loaded: is bpf-linker given --btf?".into());
    }
    if !license(&file).is_some_and(|text| text.contains("GPL")) {
        wrong.push("license: not a GPL-compatible one, so the kernel refuses the helpers that the probes need".into());
    }
    if summary.programs == 0 {
        wrong.push("no program in it".into());
    }
    if !wrong.is_empty() {
        bail!("the gate on the probes' object refuses:\n  - {}", wrong.join("\n  - "));
    }
    Ok(summary)
}

fn license<'a>(file: &object::File<'a>) -> Option<&'a str> {
    let section = file.section_by_name("license")?;
    std::str::from_utf8(section.data().ok()?).ok()
}

/// Name of the function that the relocation at this offset of a section points to.
fn callee(file: &object::File<'_>, section: &object::Section<'_, '_>, offset: u64) -> String {
    let target = section.relocations().find(|(at, _)| *at == offset).map(|(_, relocation)| relocation.target());
    match target {
        Some(object::RelocationTarget::Symbol(index)) => {
            let name = file.symbol_by_index(index).and_then(|symbol| symbol.name().map(str::to_owned));
            name.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "(no name)".into())
        }
        _ => "(no name)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELPER: [u8; 8] = [0x85, 0x00, 0, 0, 0x83, 0, 0, 0];
    // `llvm-objdump -d`: "23: 85 10 00 00 ff ff ff ff  call -1", R_BPF_64_32 memset.
    const MEMSET: [u8; 8] = [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
    const KFUNC: [u8; 8] = [0x85, 0x20, 0, 0, 0, 0, 0, 0];
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn finds_bpf_to_bpf_calls() {
        let code = [HELPER, EXIT, MEMSET, KFUNC].concat();
        let found = calls(&code);
        assert_eq!(found, [Call { index: 2, source: PSEUDO_CALL }, Call { index: 3, source: PSEUDO_KFUNC_CALL }]);
        assert_eq!(calls(&[HELPER, EXIT].concat()), []);
    }

    #[test]
    fn a_constant_that_looks_like_a_call_is_none() {
        let load = [0x18, 0x11, 0, 0, 0, 0, 0, 0];
        assert_eq!(calls(&[load, MEMSET, EXIT].concat()), []);
        assert_eq!(calls(&[load, EXIT, MEMSET].concat()), [Call { index: 2, source: PSEUDO_CALL }]);
    }

    /// An ELF file of one section per (name, flags, contents), with a symbol table of (name, section).
    fn elf(sections: &[(&str, u64, &[u8])], functions: &[(&str, u16)]) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |text: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut body = Vec::new();
        let mut headers = vec![[0u8; 64]];
        // sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize
        let header = |name: u32, kind: u32, flags: u64, at: usize, size: usize, link: u32, info: u32, entry: u64| {
            let mut h = Vec::new();
            h.extend(name.to_le_bytes());
            h.extend(kind.to_le_bytes());
            for word in [flags, 0, 64 + at as u64, size as u64] {
                h.extend(word.to_le_bytes());
            }
            h.extend(link.to_le_bytes());
            h.extend(info.to_le_bytes());
            h.extend(1u64.to_le_bytes());
            h.extend(entry.to_le_bytes());
            <[u8; 64]>::try_from(h).expect("64 bytes")
        };
        for (text, flags, data) in sections {
            headers.push(header(name(text), 1, *flags, body.len(), data.len(), 0, 0, 0));
            body.extend_from_slice(data);
        }
        let mut symbols = vec![0u8; 24];
        for (text, section) in functions {
            symbols.extend(name(text).to_le_bytes());
            symbols.extend([0x12, 0]); // STB_GLOBAL, STT_FUNC
            symbols.extend(section.to_le_bytes());
            symbols.extend([0; 16]);
        }
        let strtab = headers.len() as u32 + 1;
        headers.push(header(name(".symtab"), 2, 0, body.len(), symbols.len(), strtab, 1, 24));
        body.extend_from_slice(&symbols);
        let own = name(".strtab");
        headers.push(header(own, 3, 0, body.len(), strings.len(), 0, 0, 0));
        body.extend_from_slice(&strings);

        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([1, 0, 247, 0, 1, 0, 0, 0]); // ET_REL, EM_BPF
        file.extend([0; 16]);
        file.extend((64 + body.len() as u64).to_le_bytes());
        file.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0]);
        file.extend((headers.len() as u16).to_le_bytes());
        file.extend((strtab as u16).to_le_bytes());
        assert_eq!(file.len(), 64);
        file.extend_from_slice(&body);
        file.extend(headers.concat());
        file
    }

    const EXEC: u64 = 4 | 2;
    const LICENSE: (&str, u64, &[u8]) = ("license", 2, b"Dual MIT/GPL\0");
    const BTF: (&str, u64, &[u8]) = (".BTF", 0, b"x");

    fn refusal(bytes: &[u8]) -> String {
        format!("{:#}", check(bytes, false).expect_err("must be refused"))
    }

    #[test]
    fn passes_a_clean_object_with_the_linkers_dead_memset() {
        let code = [HELPER, EXIT].concat();
        let good = elf(
            &[(".text", EXEC, &EXIT), ("tp_btf/signal_deliver", EXEC, &code), LICENSE, BTF],
            &[("memset", 1), ("signal_deliver", 2)],
        );
        let summary = check(&good, false).expect("clean");
        assert_eq!((summary.programs, summary.instructions), (1, 2));
    }

    #[test]
    fn refuses_each_thing_by_name() {
        let call = elf(&[("tp_btf/x", EXEC, &MEMSET), LICENSE, BTF], &[]);
        assert!(refusal(&call).contains("tp_btf/x: instruction 0 calls the BPF function"));
        assert!(refusal(&call).contains("5.10"));

        let own = elf(&[(".text", EXEC, &EXIT), ("tp_btf/x", EXEC, &EXIT), LICENSE, BTF], &[("fill", 1)]);
        assert!(refusal(&own).contains("fill: a function of its own"));

        let kind = elf(&[("kprobe/x", EXEC, &EXIT), LICENSE, BTF], &[]);
        assert!(refusal(&kind).contains("kprobe/x: only tp_btf/"));

        let log = elf(&[("tp_btf/x", EXEC, &EXIT), LICENSE, BTF], &[("AYA_LOGS", 1)]);
        assert!(refusal(&log).contains("AYA_LOGS"));
        assert!(check(&log, true).is_ok(), "--trace-log allows it");

        let bare = elf(&[("tp_btf/x", EXEC, &EXIT)], &[]);
        assert!(refusal(&bare).contains(".BTF: missing") && refusal(&bare).contains("license:"));

        assert!(refusal(&elf(&[LICENSE, BTF], &[])).contains("no program"));
        assert!(refusal(b"not elf").contains("not an ELF file"));
    }

    #[test]
    fn bad_bytes_are_an_error_and_no_panic() {
        let good = elf(&[("tp_btf/x", EXEC, &EXIT), LICENSE, BTF], &[("x", 1)]);
        assert!(check(&good, false).is_ok());
        for end in 0..good.len() {
            let _ = check(&good[..end], false);
        }
    }
}
