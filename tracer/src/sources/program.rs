//! The program that a process runs: which file it is to the kernel, where its functions are, and whether somebody has put a
//! breakpoint there.
//!
//! Containers of one image run one inode of a lower layer, but each sees it through its own overlay mount, with its own
//! device number; stat(2) hands through what the lower file has in inode, size and times. Whether the kernel takes two
//! processes' programs for one file is asked of the kernel: a uprobe's breakpoint is in the memory of both, or of one.

use crate::kernel::host;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64, Sym64};
use object::pod::{self, Pod};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// /proc/PID/maps and mountinfo of a process with much in it.
const TEXT_MAX: u64 = 4 << 20;
/// What is compared at a function's start: one instruction's worth.
const INSTRUCTION: usize = 4;

/// Tells files apart, whichever mount they are seen through: nobody can set a change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    ino: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    fn of(meta: &fs::Metadata) -> FileId {
        FileId {
            ino: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The start of a function in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From the begin of the file.
    pub offset: u64,
    /// What is there.
    code: [u8; INSTRUCTION],
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoPlaces {
    #[error("its program has no symbol {0}: it is stripped, or not nginx")]
    NoSymbol(&'static str),
    #[error("its program has a symbol table of {0} bytes, more than is looked into")]
    TooLarge(u64),
    #[error("its program cannot be read: {0}")]
    Unreadable(String),
}

/// The program of a process. Holds it open, and with it the container's mount: not for long.
#[derive(Debug)]
pub struct Program {
    file: File,
    pub id: FileId,
    /// As /proc/PID/exe says it: a path in the process's own mount namespace. Hostile.
    pub exe: String,
    /// Id of the mount that it is seen through.
    pub mount: u64,
}

impl Program {
    /// What a process runs now.
    pub fn of(root: &Path, pid: u32) -> io::Result<Program> {
        let link = root.join(format!("proc/{pid}/exe"));
        let exe = fs::read_link(&link)?.to_string_lossy().into_owned();
        let file = File::open(&link)?;
        let id = FileId::of(&file.metadata()?);
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let mount = info.lines().find_map(|l| l.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
        Ok(Program { file, id, exe, mount: mount.unwrap_or(0) })
    }

    /// Where these functions begin, by `.dynsym` and `.symtab`. Tables of more than `max` bytes are not looked into.
    pub fn places<const N: usize>(&self, names: [&'static str; N], max: u64) -> Result<[Place; N], NoPlaces> {
        let elf = Elf { file: &self.file, max };
        let found = elf.functions(names)?;
        let mut places = [Place { offset: 0, code: [0; INSTRUCTION] }; N];
        for (n, place) in places.iter_mut().enumerate() {
            place.offset = found[n].ok_or(NoPlaces::NoSymbol(names[n]))?;
            self.file.read_exact_at(&mut place.code, place.offset).map_err(|e| NoPlaces::Unreadable(e.to_string()))?;
        }
        Ok(places)
    }

    /// The same file as it is in a layer below the overlay, where the runtime's layers can be reached, from here or through
    /// the root of PID 1: who holds it so keeps no container's mount busy.
    pub fn below_overlay(&self, root: &Path, pid: u32) -> Option<OwnedFd> {
        let mounts = text(&root.join(format!("proc/{pid}/mountinfo"))).ok()?;
        let (point, layers) = layers(&mounts, self.mount)?;
        let inner = Path::new(&self.exe).strip_prefix(&point).ok()?;
        let init = root.join("proc/1/root");
        let from = |dir: &Path, layer: &str| Some(dir.join(layer.strip_prefix('/')?).join(inner));
        layers.iter().flat_map(|layer| [from(root, layer), from(&init, layer)]).flatten().find_map(|path| {
            // Only named, not opened: it may be anything.
            let fd = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
            let file = File::from(fd);
            (FileId::of(&file.metadata().ok()?) == self.id).then(|| file.into())
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A path that leads to just this file, whatever a container does meanwhile to the names that led to it.
pub fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A 64-bit ELF file of this machine's byte order. A container made it: each number in it may be a lie, so all that is read
/// is bounded, and where it leads is compared with what the process has there.
struct Elf<'f> {
    file: &'f File,
    /// Bytes of one table.
    max: u64,
}

/// x86-64 and arm64 as Linux runs it.
const ENDIAN: object::Endianness = object::Endianness::Little;

impl Elf<'_> {
    fn read(&self, at: u64, size: u64) -> Result<Vec<u8>, NoPlaces> {
        if size > self.max {
            return Err(NoPlaces::TooLarge(size));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| NoPlaces::TooLarge(size))?];
        self.file.read_exact_at(&mut bytes, at).map_err(|e| NoPlaces::Unreadable(e.to_string()))?;
        Ok(bytes)
    }

    fn table<T: Pod>(&self, at: u64, count: u64) -> Result<Table<T>, NoPlaces> {
        let bytes = self.read(at, count.saturating_mul(size_of::<T>() as u64))?;
        let mut words = vec![0u64; bytes.len().div_ceil(size_of::<u64>())];
        pod::bytes_of_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
        Ok(Table { words, count: bytes.len() / size_of::<T>(), of: PhantomData })
    }

    /// The offset of each function in the file.
    fn functions<const N: usize>(&self, names: [&'static str; N]) -> Result<[Option<u64>; N], NoPlaces> {
        let header = self.table::<FileHeader64<_>>(0, 1)?;
        let header = header.all().first().filter(|h| {
            h.e_ident.magic == elf::ELFMAG && h.e_ident.class == elf::ELFCLASS64 && h.e_ident.data == elf::ELFDATA2LSB
        });
        let header = header.ok_or_else(|| NoPlaces::Unreadable("it is no ELF file of this machine".into()))?;
        let sections =
            self.table::<SectionHeader64<_>>(header.e_shoff.get(ENDIAN), header.e_shnum.get(ENDIAN).into())?;
        let segments =
            self.table::<ProgramHeader64<_>>(header.e_phoff.get(ENDIAN), header.e_phnum.get(ENDIAN).into())?;
        let mut found = [None; N];
        for kind in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
            for section in sections.all().iter().filter(|s| s.sh_type.get(ENDIAN) == kind) {
                let strings = sections.all().get(section.sh_link.get(ENDIAN) as usize);
                let Some(strings) = strings else { continue };
                let strings = self.read(strings.sh_offset.get(ENDIAN), strings.sh_size.get(ENDIAN))?;
                let count = section.sh_size.get(ENDIAN) / size_of::<Sym64<object::Endianness>>() as u64;
                for symbol in self.table::<Sym64<_>>(section.sh_offset.get(ENDIAN), count)?.all() {
                    // Defined, and somewhere: 0 is SHN_UNDEF.
                    if symbol.st_shndx.get(ENDIAN) == elf::SHN_UNDEF || symbol.st_value.get(ENDIAN) == 0 {
                        continue;
                    }
                    let name = strings.get(symbol.st_name.get(ENDIAN) as usize..).unwrap_or_default();
                    let is =
                        |want: &&str| name.strip_prefix(want.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
                    let Some(n) = names.iter().position(is) else { continue };
                    found[n] = found[n].or_else(|| offset(segments.all(), symbol.st_value.get(ENDIAN)));
                }
            }
            if found.iter().all(Option::is_some) {
                break;
            }
        }
        Ok(found)
    }
}

/// Structures of a file. In words, because they want to be aligned so.
struct Table<T> {
    words: Vec<u64>,
    count: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Table<T> {
    fn all(&self) -> &[T] {
        pod::slice_from_bytes(pod::bytes_of_slice(&self.words), self.count).map_or(&[], |(all, _)| all)
    }
}

/// Where an address is in the file: in an executable segment, or nowhere.
fn offset(segments: &[ProgramHeader64<object::Endianness>], address: u64) -> Option<u64> {
    let code = |s: &&ProgramHeader64<_>| s.p_type.get(ENDIAN) == elf::PT_LOAD && s.p_flags.get(ENDIAN) & elf::PF_X != 0;
    segments.iter().filter(code).find_map(|s| {
        let inside = address.checked_sub(s.p_vaddr.get(ENDIAN)).filter(|inside| *inside < s.p_filesz.get(ENDIAN))?;
        s.p_offset.get(ENDIAN).checked_add(inside)
    })
}

/// Does the memory of this process differ from its file there? `None`: it does not run this code, or cannot be read.
pub fn has_breakpoint(root: &Path, pid: u32, exe: &str, place: &Place) -> Option<bool> {
    let maps = text(&root.join(format!("proc/{pid}/maps"))).ok()?;
    let address = address(&maps, exe, place.offset)?;
    let memory = File::open(root.join(format!("proc/{pid}/mem"))).ok()?;
    let mut code = [0; INSTRUCTION];
    memory.read_exact_at(&mut code, address).ok()?;
    Some(code != place.code)
}

/// Where a file's code is in memory: `55d0c0a5e000-55d0c0b45000 r-xp 0001f000 08:01 2757 /usr/sbin/nginx`.
fn address(maps: &str, exe: &str, offset: u64) -> Option<u64> {
    maps.lines().find_map(|line| {
        let mut words = line.splitn(6, ' ');
        let (range, perms, from) = (words.next()?, words.next()?, words.next()?);
        let name = words.nth(2)?.trim_start();
        let hex = |word: &str| u64::from_str_radix(word, 16).ok();
        let (start, end) = range.split_once('-')?;
        let (start, end, from) = (hex(start)?, hex(end)?, hex(from)?);
        let inside = offset.checked_sub(from).filter(|inside| *inside < end.saturating_sub(start))?;
        (perms.contains('x') && name == exe).then(|| start.checked_add(inside)).flatten()
    })
}

/// Mount point and directories of an overlay mount, uppermost first; `None` for any other mount.
fn layers(mountinfo: &str, id: u64) -> Option<(String, Vec<String>)> {
    let line = mountinfo.lines().find(|l| l.split(' ').next().and_then(|w| w.parse().ok()) == Some(id))?;
    let (left, right) = line.split_once(" - ")?;
    let point = host::unescape(left.split(' ').nth(4)?);
    let mut right = right.split(' ');
    if right.next() != Some("overlay") {
        return None;
    }
    // A comma or colon in a name is escaped in ways that differ: such a layer is not found, and is not needed.
    let options = host::unescape(right.nth(1)?);
    let value = |key: &'static str| options.split(',').filter_map(move |o| o.strip_prefix(key));
    let upper = value("upperdir=").map(str::to_owned);
    let lower = value("lowerdir=").chain(value("lowerdir+=")).flat_map(|dirs| dirs.split(':')).map(str::to_owned);
    Some((point, upper.chain(lower).collect()))
}

/// A file of /proc, which a hostile process may make long.
fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_code_is_in_memory() {
        let maps = "55d0c0a3f000-55d0c0a5e000 r--p 00000000 08:01 2757                       /usr/sbin/nginx\n\
                    55d0c0a5e000-55d0c0b45000 r-xp 0001f000 08:01 2757                       /usr/sbin/nginx\n\
                    55d0c0b45000-55d0c0b7e000 r--p 00106000 08:01 2757                       /usr/sbin/nginx\n\
                    7f0000000000-7f0000001000 r-xp 0001f000 00:31 9                          /lib/my lib.so (deleted)\n\
                    7fff5e1fe000-7fff5e21f000 rw-p 00000000 00:00 0                          [stack]\n";
        assert_eq!(address(maps, "/usr/sbin/nginx", 0x20010), Some(0x55d0c0a5f010));
        assert_eq!(address(maps, "/usr/sbin/nginx", 0x106000), None, "no code");
        assert_eq!(address(maps, "/usr/sbin/ngin", 0x20010), None);
        assert_eq!(address(maps, "/lib/my lib.so (deleted)", 0x1f008), Some(0x7f0000000008));
        assert_eq!(address("junk\n- - - - - -\n", "x", 0), None);
    }

    #[test]
    fn layers_of_an_overlay() {
        let info = "612 580 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l/a\\040b:/l/c,upperdir=/u,workdir=/w\n\
                    613 612 0:51 / /srv rw - overlay overlay rw,lowerdir+=/x,lowerdir+=/y\n\
                    614 612 0:5 / /dev rw - devtmpfs udev rw\n";
        let want = ["/u", "/l/a b", "/l/c"].map(str::to_owned).to_vec();
        assert_eq!(layers(info, 612), Some(("/".into(), want)));
        assert_eq!(layers(info, 613), Some(("/srv".into(), vec!["/x".into(), "/y".into()])));
        assert_eq!(layers(info, 614), None);
        assert_eq!(layers(info, 1), None);
    }

    #[test]
    fn our_own_program() {
        let pid = std::process::id();
        let program = Program::of(Path::new("/"), pid).unwrap();
        assert!(program.mount != 0 && !program.exe.is_empty());
        assert_eq!(program.id, Program::of(Path::new("/"), pid).unwrap().id);
        let [main] = program.places(["main"], u64::MAX).unwrap();
        assert_eq!(has_breakpoint(Path::new("/"), pid, &program.exe, &main), Some(false));
        let moved = Place { code: [0xcc; INSTRUCTION], ..main };
        assert_eq!(has_breakpoint(Path::new("/"), pid, &program.exe, &moved), Some(true));
        assert!(matches!(program.places(["main"], 4096), Err(NoPlaces::TooLarge(_))));
        assert_eq!(program.places(["no_such_function"], u64::MAX), Err(NoPlaces::NoSymbol("no_such_function")));
    }
}
