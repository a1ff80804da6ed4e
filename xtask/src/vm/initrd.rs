//! The guest's root: an uncompressed cpio in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
//! Uncompressed, because unpacking costs more in an emulated guest than reading.

use crate::sh;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

enum Node {
    Dir,
    File { mode: u32, data: Vec<u8> },
    Link(String),
}

/// What goes into the guest. Paths are relative to its root; parent directories come by themselves.
#[derive(Default)]
pub(super) struct Initrd {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Initrd {
    /// busybox with all its applets, and an empty skeleton.
    pub(super) fn with_busybox() -> Result<Self> {
        let busybox = sh::find("busybox")
            .context("busybox is missing: apt-get install --no-install-recommends busybox-static")?;
        ensure!(
            libraries(&busybox)?.is_empty(),
            "{} is not static: apt-get install --no-install-recommends busybox-static",
            busybox.display()
        );
        let mut it = Self::default();
        it.program(&busybox, "bin/busybox")?;
        for applet in sh::capture(Command::new(&busybox).arg("--list"))?.lines().filter(|a| *a != "busybox") {
            it.add(&format!("bin/{applet}"), Node::Link("busybox".into()));
        }
        for dir in ["proc", "sys", "dev", "tmp", "run", "root", "etc"] {
            it.add(dir, Node::Dir);
        }
        it.text("etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
        it.text("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
        Ok(it)
    }

    pub(super) fn text(&mut self, to: &str, mode: u32, text: &str) {
        self.add(to, Node::File { mode, data: text.as_bytes().to_vec() });
    }

    /// A program of the host with the shared libraries that it needs, each where the loader looks for it.
    pub(super) fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        for lib in libraries(from)? {
            let to = lib.to_str().context("library path")?.trim_start_matches('/').to_owned();
            self.file(&lib, &to)?;
        }
        self.file(from, to)
    }

    fn file(&mut self, from: &Path, to: &str) -> Result<()> {
        let what = || from.display().to_string();
        let data = fs::read(from).with_context(what)?;
        let mode = fs::metadata(from).with_context(what)?.permissions().mode() & 0o777;
        self.add(to, Node::File { mode, data });
        Ok(())
    }

    fn add(&mut self, to: &str, node: Node) {
        let path: PathBuf = Path::new(to).components().filter(|c| matches!(c, Component::Normal(_))).collect();
        for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            self.nodes.entry(parent.to_owned()).or_insert(Node::Dir);
        }
        self.nodes.insert(path, node);
    }

    /// Parents sort before their children, as the kernel's unpacker needs it.
    pub(super) fn write(&self, mut out: impl Write) -> Result<()> {
        // The first entry is the guest's `/`.
        entry(&mut out, 1, ".", DIR | 0o755, b"")?;
        for (number, (path, node)) in (2..).zip(&self.nodes) {
            let name = path.to_str().context("path in the initramfs")?;
            match node {
                Node::Dir => entry(&mut out, number, name, DIR | if name == "tmp" { 0o1777 } else { 0o755 }, b"")?,
                Node::File { mode, data } => entry(&mut out, number, name, FILE | mode, data)?,
                Node::Link(to) => entry(&mut out, number, name, LINK | 0o777, to.as_bytes())?,
            }
        }
        entry(&mut out, 0, "TRAILER!!!", 0, b"")?;
        out.flush()?;
        Ok(())
    }
}

fn entry(out: &mut impl Write, ino: u32, name: &str, mode: u32, data: &[u8]) -> Result<()> {
    let size = u32::try_from(data.len()).with_context(|| format!("{name} is too large for a cpio"))?;
    let links = if mode & DIR == DIR { 2 } else { 1 };
    let name_size = u32::try_from(name.len() + 1)?;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let fields = [ino, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut head = String::from("070701");
    for f in fields {
        head += &format!("{f:08X}");
    }
    out.write_all(head.as_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(b"\0")?;
    pad(out, head.len() + name.len() + 1)?;
    out.write_all(data)?;
    Ok(pad(out, data.len())?)
}

/// Header with name, and data, end at multiples of 4.
fn pad(out: &mut impl Write, len: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..len.next_multiple_of(4) - len])
}

/// Shared libraries as ldd(1) resolves them; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // ldd fails on static programs: no output is an answer, not an error.
    let out = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("ldd")?;
    parse_ldd(&String::from_utf8_lossy(&out.stdout)).with_context(|| format!("ldd {}", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut libs = Vec::new();
    for line in text.lines() {
        ensure!(!line.contains("not found"), "{}", line.trim());
        // "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "\t/lib64/ld-linux-x86-64.so.2 (0x…)"
        let path = line.rsplit("=> ").next().unwrap_or(line).trim().split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            libs.push(PathBuf::from(path));
        }
    }
    Ok(libs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let libs = parse_ldd(text).unwrap();
        assert_eq!(libs, [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn newc_is_aligned_and_ordered() {
        let mut it = Initrd::default();
        it.text("a/b/c", 0o755, "hello");
        it.add("a/l", Node::Link("b".into()));
        let mut out = Vec::new();
        it.write(&mut out).unwrap();
        let mut names = Vec::new();
        let mut at = 0;
        while at < out.len() {
            assert_eq!(&out[at..at + 6], b"070701");
            let field = |n: usize| {
                let s = std::str::from_utf8(&out[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                usize::from_str_radix(s, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = std::str::from_utf8(&out[at + 110..at + 110 + name_size - 1]).unwrap();
            names.push(name.to_owned());
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "a/b/c" {
                assert_eq!(&out[data..data + size], b"hello");
                assert_eq!(field(1), 0o100_755);
            }
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(names, [".", "a", "a/b", "a/b/c", "a/l", "TRAILER!!!"]);
    }
}
