//! A small reader of BTF, the kernel's own type information (Documentation/bpf/btf.rst).
//!
//! Why not a crate: rustc emits no CO-RE relocations, so field offsets are resolved here and handed to the probes as
//! read-only globals; the members that matter sit in anonymous structs and unions (`skc_daddr`, `si_code`), which the
//! crates at hand do not descend into. One pass indexes the types, no type is copied.
//!
//! Bytes in, answers out: any input gives `Ok` or a typed error, never a panic. Only [`read`] does I/O.

use std::path::Path;

/// Where the running kernel shows its BTF.
pub const VMLINUX: &str = "sys/kernel/btf/vmlinux";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("not usable BTF: {0}")]
    Header(&'static str),
    #[error("BTF type {id} reaches beyond its section")]
    Truncated { id: u32 },
    #[error("BTF type {id} is of kind {kind}, which this program does not know")]
    UnknownKind { id: u32, kind: u8 },
    #[error("BTF refers to type {id}, which does not exist")]
    NoTypeId { id: u32 },
    #[error("BTF string at {offset} is outside the string section or has no end")]
    BadString { offset: u32 },
    #[error("the kernel has no {what} {name}")]
    NoType { what: &'static str, name: String },
    #[error("the kernel's struct {strukt} has no member {member}")]
    NoMember { strukt: String, member: String },
    #[error("{strukt}.{member} is a bitfield and has no address")]
    Bitfield { strukt: String, member: String },
    #[error("{strukt}.{member} is neither a struct nor a union")]
    NotAggregate { strukt: String, member: String },
    #[error("the kernel's enum {name} has no value {value}")]
    NoValue { name: String, value: String },
    #[error("BTF type {id} has no size")]
    NoSize { id: u32 },
    #[error("BTF type {id} nests too deep")]
    TooDeep { id: u32 },
}

type Result<T> = std::result::Result<T, BtfError>;

mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const FWD: u8 = 7;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FUNC: u8 = 12;
    pub(super) const FUNC_PROTO: u8 = 13;
    pub(super) const VAR: u8 = 14;
    pub(super) const DATASEC: u8 = 15;
    pub(super) const FLOAT: u8 = 16;
    pub(super) const DECL_TAG: u8 = 17;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

const MAGIC: u16 = 0xeb9f;
/// `sizeof(struct btf_header)`, `btf_type`.
const HEADER: usize = 24;
const TYPE: usize = 12;
/// Chains of typedefs and qualifiers, nesting of anonymous members: far above what the kernel has, ends every cycle.
const DEPTH: u32 = 32;
/// Members visited for one name: ends what hand-made BTF could blow up by nesting the same struct often.
const VISITS: u32 = 20_000;

/// A member of a struct, found by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the outer struct.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Its type's id, as declared.
    pub type_id: u32,
}

/// `btf_type`: name, packed info, and size or type id.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    kind_flag: bool,
    vlen: u32,
    size_or_type: u32,
    /// Offset in the type section of what follows the 12 bytes.
    tail: usize,
}

/// Parsed BTF that borrows its bytes.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset in `types` of type id `index + 1`; id 0 is void.
    offsets: Vec<u32>,
    /// (hash of name, id), sorted: structs, unions, enums and typedefs, which are what is looked up.
    names: Vec<(u64, u32)>,
    pointer_size: u32,
}

/// The raw BTF at `path`, which is [`VMLINUX`] below the root.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    Some(u32::from_ne_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

/// FNV-1a: the names come from the kernel, nobody chooses them to collide, and a collision only costs a comparison.
fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

impl<'a> Btf<'a> {
    /// Checks the header and indexes all types. `data` is in this machine's byte order.
    pub fn parse(data: &'a [u8]) -> Result<Btf<'a>> {
        let magic = data.get(..2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        match magic {
            Some(MAGIC) => {}
            Some(m) if m.swap_bytes() == MAGIC => return Err(BtfError::Header("other byte order")),
            _ => return Err(BtfError::Header("no magic number")),
        }
        if data.get(2) != Some(&1) {
            return Err(BtfError::Header("version is not 1"));
        }
        let word = |at: usize| u32_at(data, at).map(|w| w as usize).ok_or(BtfError::Header("short header"));
        let header = word(4)?;
        if header < HEADER {
            return Err(BtfError::Header("short header"));
        }
        let section = |offset: usize, len: usize| {
            let start = header.checked_add(offset)?;
            data.get(start..start.checked_add(len)?)
        };
        let types = section(word(8)?, word(12)?).ok_or(BtfError::Header("type section outside the data"))?;
        let strings = section(word(16)?, word(20)?).ok_or(BtfError::Header("string section outside the data"))?;
        let mut btf = Btf {
            types,
            strings,
            offsets: Vec::with_capacity(types.len() / 24),
            names: Vec::with_capacity(types.len() / 96),
            pointer_size: size_of::<*const ()>() as u32,
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.types.len() {
            let id = self.offsets.len() as u32 + 1;
            let t = self.type_at(at).ok_or(BtfError::Truncated { id })?;
            let vlen = t.vlen as usize;
            let tail = match t.kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => vlen * 12,
                kind::ENUM | kind::FUNC_PROTO => vlen * 8,
                kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
                kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
                kind => return Err(BtfError::UnknownKind { id, kind }),
            };
            let next = t.tail + tail;
            if next > self.types.len() {
                return Err(BtfError::Truncated { id });
            }
            if t.name != 0 && matches!(t.kind, kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::TYPEDEF) {
                self.names.push((hash(self.string(t.name)?), id));
            }
            // Sections are below 4 GiB: their length is a u32.
            self.offsets.push(at as u32);
            at = next;
        }
        self.names.sort_unstable();
        Ok(())
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let name = u32_at(self.types, at)?;
        let info = u32_at(self.types, at + 4)?;
        let size_or_type = u32_at(self.types, at + 8)?;
        Some(Type {
            name,
            kind: (info >> 24 & 0x1f) as u8,
            kind_flag: info >> 31 == 1,
            vlen: info & 0xffff,
            size_or_type,
            tail: at + TYPE,
        })
    }

    fn get(&self, id: u32) -> Result<Type> {
        let index = (id as usize).wrapping_sub(1);
        let at = self.offsets.get(index).ok_or(BtfError::NoTypeId { id })?;
        self.type_at(*at as usize).ok_or(BtfError::Truncated { id })
    }

    fn string(&self, offset: u32) -> Result<&'a [u8]> {
        let rest = self.strings.get(offset as usize..).ok_or(BtfError::BadString { offset })?;
        let end = rest.iter().position(|b| *b == 0).ok_or(BtfError::BadString { offset })?;
        Ok(&rest[..end])
    }

    fn word(&self, at: usize, id: u32) -> Result<u32> {
        u32_at(self.types, at).ok_or(BtfError::Truncated { id })
    }

    /// Ids of the types of this name and one of these kinds, in the order of the file.
    fn named<'s>(&'s self, name: &'s str, kinds: &'s [u8]) -> impl Iterator<Item = (u32, Type)> + 's {
        let want = hash(name.as_bytes());
        let first = self.names.partition_point(|(h, _)| *h < want);
        self.names[first..].iter().take_while(move |(h, _)| *h == want).filter_map(move |(_, id)| {
            let t = self.get(*id).ok()?;
            (kinds.contains(&t.kind) && self.string(t.name).ok()? == name.as_bytes()).then_some((*id, t))
        })
    }

    /// Strips typedefs and qualifiers.
    fn peel(&self, id: u32) -> Result<(u32, Type)> {
        let mut id = id;
        for _ in 0..DEPTH {
            let t = self.get(id)?;
            match t.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = t.size_or_type,
                _ => return Ok((id, t)),
            }
        }
        Err(BtfError::TooDeep { id })
    }

    /// Size in bytes of a type.
    pub fn size(&self, id: u32) -> Result<u32> {
        let mut id = id;
        let mut count: u32 = 1;
        for _ in 0..DEPTH {
            let (peeled, t) = self.peel(id)?;
            let one = match t.kind {
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => t.size_or_type,
                kind::PTR => self.pointer_size,
                kind::ARRAY => {
                    let elements = self.word(t.tail + 8, peeled)?;
                    count = count.checked_mul(elements).ok_or(BtfError::NoSize { id: peeled })?;
                    id = self.word(t.tail, peeled)?;
                    continue;
                }
                _ => return Err(BtfError::NoSize { id: peeled }),
            };
            return count.checked_mul(one).ok_or(BtfError::NoSize { id: peeled });
        }
        Err(BtfError::TooDeep { id })
    }

    /// Whether the kernel has a struct or union of this name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.named(name, &[kind::STRUCT, kind::UNION]).next().is_some()
    }

    /// A member by its dotted path; anonymous structs and unions on the way are searched by themselves. Alternatives are
    /// separated by `|`, the first that exists is taken. Where several structs have the name, the first that has it.
    pub fn member(&self, strukt: &str, path: &str) -> Result<Member> {
        let mut found = false;
        let mut error = None;
        for alternative in path.split('|') {
            for (id, _) in self.named(strukt, &[kind::STRUCT, kind::UNION]) {
                found = true;
                match self.walk(strukt, id, alternative) {
                    Ok(member) => return Ok(member),
                    // A real defect of one alternative says more than the absence of another.
                    Err(e @ BtfError::NoMember { .. }) => error = error.or(Some(e)),
                    Err(e) => error = Some(e),
                }
            }
        }
        if !found {
            return Err(BtfError::NoType { what: "struct", name: strukt.to_owned() });
        }
        Err(error.unwrap_or_else(|| BtfError::NoMember { strukt: strukt.to_owned(), member: path.to_owned() }))
    }

    fn walk(&self, strukt: &str, id: u32, path: &str) -> Result<Member> {
        let named = |e: fn(String, String) -> BtfError| e(strukt.to_owned(), path.to_owned());
        let mut id = id;
        let mut bits: u64 = 0;
        for name in path.split('.') {
            let (outer, t) = self.peel(id)?;
            if !matches!(t.kind, kind::STRUCT | kind::UNION) {
                return Err(named(|strukt, member| BtfError::NotAggregate { strukt, member }));
            }
            let mut visits = VISITS;
            let (inner, at, bitfield) = self
                .search(outer, t, name.as_bytes(), 0, &mut visits)?
                .ok_or_else(|| named(|strukt, member| BtfError::NoMember { strukt, member }))?;
            bits = bits.checked_add(at).ok_or(BtfError::Truncated { id: outer })?;
            if bitfield || self.is_bit_int(inner)? {
                return Err(named(|strukt, member| BtfError::Bitfield { strukt, member }));
            }
            id = inner;
        }
        if !bits.is_multiple_of(8) {
            return Err(named(|strukt, member| BtfError::Bitfield { strukt, member }));
        }
        let offset = u32::try_from(bits / 8).map_err(|_| BtfError::Truncated { id })?;
        Ok(Member { offset, size: self.size(id)?, type_id: id })
    }

    /// Old compilers put a bitfield's width into the integer type instead of the member.
    fn is_bit_int(&self, id: u32) -> Result<bool> {
        let (id, t) = self.peel(id)?;
        if t.kind != kind::INT {
            return Ok(false);
        }
        let encoding = self.word(t.tail, id)?;
        Ok(encoding & 0xff != t.size_or_type.saturating_mul(8) || encoding >> 16 & 0xff != 0)
    }

    /// (type id, offset in bits, is a bitfield) of a member, descending into anonymous ones.
    fn search(&self, id: u32, t: Type, name: &[u8], depth: u32, visits: &mut u32) -> Result<Option<(u32, u64, bool)>> {
        if depth > DEPTH {
            return Err(BtfError::TooDeep { id });
        }
        for i in 0..t.vlen as usize {
            *visits = visits.checked_sub(1).ok_or(BtfError::TooDeep { id })?;
            let at = t.tail + i * 12;
            let (member_name, member_type, raw) = (self.word(at, id)?, self.word(at + 4, id)?, self.word(at + 8, id)?);
            // With kind_flag the upper 8 bits are the bitfield's width (0: none).
            let (offset, width) = if t.kind_flag { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            if member_name != 0 {
                if self.string(member_name)? == name {
                    return Ok(Some((member_type, u64::from(offset), width != 0)));
                }
                continue;
            }
            let (inner, anonymous) = self.peel(member_type)?;
            if !matches!(anonymous.kind, kind::STRUCT | kind::UNION) {
                continue; // unnamed padding bits
            }
            if let Some((found, inner_offset, bitfield)) = self.search(inner, anonymous, name, depth + 1, visits)? {
                return Ok(Some((found, u64::from(offset) + inner_offset, bitfield)));
            }
        }
        Ok(None)
    }

    /// All values of an enum, in the order of their declaration.
    pub fn enum_values(&self, name: &str) -> Result<Vec<(String, i64)>> {
        let no_type = || BtfError::NoType { what: "enum", name: name.to_owned() };
        let (id, t) = self.named(name, &[kind::ENUM, kind::ENUM64]).next().ok_or_else(no_type)?;
        (0..t.vlen as usize).map(|i| self.enumerator(id, t, i)).map(|r| r.map(|(n, v)| (lossy(n), v))).collect()
    }

    /// One value of an enum.
    pub fn enum_value(&self, name: &str, value: &str) -> Result<i64> {
        let mut found = false;
        for (id, t) in self.named(name, &[kind::ENUM, kind::ENUM64]) {
            found = true;
            for i in 0..t.vlen as usize {
                let (n, v) = self.enumerator(id, t, i)?;
                if n == value.as_bytes() {
                    return Ok(v);
                }
            }
        }
        let name = name.to_owned();
        Err(if found {
            BtfError::NoValue { name, value: value.to_owned() }
        } else {
            BtfError::NoType { what: "enum", name }
        })
    }

    fn enumerator(&self, id: u32, t: Type, i: usize) -> Result<(&'a [u8], i64)> {
        if t.kind == kind::ENUM {
            let at = t.tail + i * 8;
            let raw = self.word(at + 4, id)?;
            // kind_flag: the enum is signed.
            let value = if t.kind_flag { i64::from(raw as i32) } else { i64::from(raw) };
            return Ok((self.string(self.word(at, id)?)?, value));
        }
        let at = t.tail + i * 12;
        let value = u64::from(self.word(at + 8, id)?) << 32 | u64::from(self.word(at + 4, id)?);
        Ok((self.string(self.word(at, id)?)?, value as i64))
    }

    /// The prototype of a tracepoint: the types of its arguments as a `tp_btf` program sees them, without the leading
    /// `void *__data` of `btf_trace_<name>`.
    pub fn tracepoint_args(&self, tracepoint: &str) -> Result<Vec<u32>> {
        let name = format!("btf_trace_{tracepoint}");
        let no_type = || BtfError::NoType { what: "tracepoint", name: tracepoint.to_owned() };
        let (_, typedef) = self.named(&name, &[kind::TYPEDEF]).next().ok_or_else(no_type)?;
        let (_, pointer) = self.peel(typedef.size_or_type)?;
        if pointer.kind != kind::PTR {
            return Err(no_type());
        }
        let (id, proto) = self.peel(pointer.size_or_type)?;
        if proto.kind != kind::FUNC_PROTO {
            return Err(no_type());
        }
        (1..proto.vlen as usize).map(|i| self.word(proto.tail + i * 8 + 4, id)).collect()
    }

    /// Whether `id` is a pointer, however qualified, to the struct of this name.
    pub fn is_pointer_to(&self, id: u32, strukt: &str) -> bool {
        let pointee = || -> Option<bool> {
            let (_, pointer) = self.peel(id).ok()?;
            let (_, t) = (pointer.kind == kind::PTR).then(|| self.peel(pointer.size_or_type))?.ok()?;
            Some(t.kind == kind::STRUCT && self.string(t.name).ok()? == strukt.as_bytes())
        };
        pointee().unwrap_or(false)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
pub(crate) mod builder;
#[cfg(test)]
mod tests;
