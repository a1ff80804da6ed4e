//! Builds small BTF blobs for tests.

use super::kind;

/// Types get ids 1, 2, 3 … in the order they are added; each method returns the id.
pub(crate) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next: u32,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder { types: Vec::new(), strings: vec![0], next: 1 }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn push(&mut self, name: &str, kind: u8, flag: bool, vlen: usize, size_or_type: u32, tail: &[u32]) -> u32 {
        let name = self.name(name);
        let info = u32::from(flag) << 31 | u32::from(kind) << 24 | vlen as u32;
        for word in [name, info, size_or_type].iter().chain(tail) {
            self.types.extend(word.to_ne_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.int_bits(name, bytes, bytes * 8)
    }

    pub(crate) fn int_bits(&mut self, name: &str, bytes: u32, bits: u32) -> u32 {
        self.push(name, kind::INT, false, 0, bytes, &[bits])
    }

    pub(crate) fn pointer(&mut self, to: u32) -> u32 {
        self.push("", kind::PTR, false, 0, to, &[])
    }

    pub(crate) fn array(&mut self, of: u32, index: u32, count: u32) -> u32 {
        self.push("", kind::ARRAY, false, 0, 0, &[of, index, count])
    }

    pub(crate) fn alias(&mut self, name: &str, kind: u8, of: u32) -> u32 {
        self.push(name, kind, false, 0, of, &[])
    }

    /// Members: name, type, offset in bits.
    pub(crate) fn strukt(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.aggregate(kind::STRUCT, false, name, size, members)
    }

    pub(crate) fn aggregate(&mut self, kind: u8, flag: bool, name: &str, size: u32, m: &[(&str, u32, u32)]) -> u32 {
        let tail: Vec<u32> = m.iter().flat_map(|(n, t, at)| [self.name(n), *t, *at]).collect();
        self.push(name, kind, flag, m.len(), size, &tail)
    }

    pub(crate) fn enumeration(&mut self, name: &str, signed: bool, values: &[(&str, i32)]) -> u32 {
        let tail: Vec<u32> = values.iter().flat_map(|(n, v)| [self.name(n), *v as u32]).collect();
        self.push(name, kind::ENUM, signed, values.len(), 4, &tail)
    }

    pub(crate) fn enumeration64(&mut self, name: &str, values: &[(&str, u64)]) -> u32 {
        let tail: Vec<u32> = values.iter().flat_map(|(n, v)| [self.name(n), *v as u32, (*v >> 32) as u32]).collect();
        self.push(name, kind::ENUM64, false, values.len(), 8, &tail)
    }

    /// `typedef void (*btf_trace_<name>)(void *, args…)`.
    pub(crate) fn tracepoint(&mut self, name: &str, args: &[u32]) -> u32 {
        let void_pointer = self.pointer(0);
        let tail: Vec<u32> = std::iter::once(&void_pointer).chain(args).flat_map(|t| [0, *t]).collect();
        let proto = self.push("", kind::FUNC_PROTO, false, args.len() + 1, 0, &tail);
        let pointer = self.pointer(proto);
        self.alias(&format!("btf_trace_{name}"), kind::TYPEDEF, pointer)
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(super::MAGIC.to_ne_bytes());
        out.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [super::HEADER as u32, 0, types, types, strings] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }
}
