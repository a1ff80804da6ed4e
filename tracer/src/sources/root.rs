//! Files below a directory that somebody else controls: a container's root, or a directory that was given.
//!
//! All paths are resolved by openat2(2) inside that directory, so a symlink of the container never leads out of it, and
//! what is not a plain file (a FIFO, a device) is not read.

use crate::check::files::{File, Files, component, is_plain};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// No configuration is larger; a hostile one ends here.
pub const FILE_MAX: u64 = 4 << 20;
/// Directory entries looked at for one pattern.
const ENTRIES_MAX: usize = 20_000;
/// Files that one pattern may match.
const MATCHES_MAX: usize = 2_000;

#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    /// What paths below it begin with, as the configuration writes them: empty for a container.
    prefix: String,
}

impl Root {
    /// The root directory of a running process, as it sees it.
    pub fn of_process(proc: &Path, pid: u32) -> io::Result<Root> {
        Root::open(&proc.join(pid.to_string()).join("root"), String::new())
    }

    /// The directory that the file `name` is in; paths are relative to ours, as `name` is.
    pub fn beside(name: &str) -> io::Result<Root> {
        let prefix = name.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
        let dir = if prefix.is_empty() { ".".to_owned() } else { prefix.clone() };
        Root::open(Path::new(&dir), prefix)
    }

    fn open(path: &Path, prefix: String) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root { dir: rustix::fs::open(path, flags, Mode::empty())?, prefix })
    }

    fn at(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let outside = || io::Error::new(io::ErrorKind::NotFound, "outside of the directory that was given");
        let inner = path.strip_prefix(&self.prefix).ok_or_else(outside)?;
        if self.prefix.is_empty() || !inner.starts_with('/') {
            let inner = if inner.is_empty() { "." } else { inner };
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            return Ok(openat2(&self.dir, inner, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?);
        }
        Err(outside())
    }

    /// A plain file's text; what is no UTF-8 in it is replaced.
    pub fn read(&self, path: &str) -> io::Result<String> {
        // A FIFO that nobody writes to would keep us waiting.
        let fd = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file"));
        }
        bounded(std::fs::File::from(fd))
    }

    /// Names in a directory, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let fd = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd)?.take(ENTRIES_MAX) {
            names.extend(entry?.file_name().to_str().ok().filter(|n| !matches!(*n, "." | "..")).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Can this be executed?
    pub fn is_program(&self, path: &str) -> bool {
        let Ok(fd) = self.at(path, OFlags::PATH) else { return false };
        fstat(&fd).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
        })
    }

    /// The file name that a path leads to, symlinks followed: `/bin/sh` → `dash`.
    pub fn real_name(&self, path: &str) -> Option<String> {
        let fd = self.at(path, OFlags::PATH).ok()?;
        let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Paths that match, each component by itself.
    fn expand(&self, pattern: &str) -> io::Result<Vec<String>> {
        let mut found = vec![String::new()];
        for (n, part) in pattern.split('/').enumerate() {
            let mut next = Vec::new();
            for base in &found {
                let join = |name: &str| if n == 0 { name.to_owned() } else { format!("{base}/{name}") };
                if is_plain(part) {
                    next.push(join(part));
                    continue;
                }
                let dir = if n == 0 {
                    "."
                } else if base.is_empty() {
                    "/"
                } else {
                    base
                };
                for name in self.list(dir).unwrap_or_default() {
                    if component(part, &name) {
                        next.push(join(&name));
                    }
                }
                if next.len() > MATCHES_MAX {
                    return Err(io::Error::other(format!("more than {MATCHES_MAX} files")));
                }
            }
            found = next;
        }
        Ok(found)
    }
}

impl Files for Root {
    fn matching(&self, pattern: &str) -> Result<Vec<File>, String> {
        if is_plain(pattern) {
            let text = self.read(pattern).map_err(|e| e.to_string())?;
            return Ok(vec![File { name: pattern.to_owned(), text }]);
        }
        if !pattern.starts_with(&self.prefix) {
            return Err("outside of the directory that was given".to_owned());
        }
        let mut files = Vec::new();
        for name in self.expand(pattern).map_err(|e| e.to_string())? {
            // What vanished meanwhile, or is a directory, is none of them.
            if let Ok(text) = self.read(&name) {
                files.push(File { name, text });
            }
        }
        Ok(files)
    }
}

/// All of a reader, unless that is too much.
pub fn bounded(from: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", FILE_MAX >> 20)));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join("root").join(name);
        fs::create_dir_all(at("etc/conf.d/sub")).unwrap();
        fs::create_dir_all(at("bin")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        for (name, text) in [
            ("etc/main.conf", "main"),
            ("etc/conf.d/b.conf", "b"),
            ("etc/conf.d/a.conf", "a"),
            ("etc/conf.d/.c.conf", "c"),
        ] {
            fs::write(at(name), text).unwrap();
        }
        fs::write(at("bin/dash"), "").unwrap();
        fs::set_permissions(at("bin/dash"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("dash", at("bin/sh")).unwrap();
        symlink("/etc/conf.d/a.conf", at("etc/absolute.conf")).unwrap();
        symlink("../../secret", at("etc/up.conf")).unwrap();
        symlink(dir.path().join("secret"), at("etc/out.conf")).unwrap();
        symlink("/", at("etc/conf.d/sub/loop")).unwrap();
        dir
    }

    #[test]
    fn nothing_leads_out() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root"), String::new()).unwrap();
        assert_eq!(root.read("/etc/main.conf").unwrap(), "main");
        assert_eq!(root.read("/etc/absolute.conf").unwrap(), "a", "absolute links begin at the root");
        assert!(root.read("/etc/up.conf").is_err());
        assert!(root.read("/etc/out.conf").is_err());
        assert!(root.read("/../secret").is_err());
        assert!(root.read("/etc").is_err(), "a directory");
        assert!(root.is_program("/bin/sh") && !root.is_program("/etc/main.conf") && !root.is_program("/bin"));
        assert_eq!(root.real_name("/bin/sh").unwrap(), "dash");
    }

    #[test]
    fn patterns() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root"), String::new()).unwrap();
        let names = |pattern: &str| {
            let found = root.matching(pattern).unwrap();
            found.into_iter().map(|file| file.name).collect::<Vec<String>>()
        };
        assert_eq!(names("/etc/conf.d/*.conf"), ["/etc/conf.d/a.conf", "/etc/conf.d/b.conf"]);
        assert_eq!(names("/e*/conf.?/[b].conf"), ["/etc/conf.d/b.conf"]);
        assert_eq!(names("/none/*"), [""; 0]);
        assert!(root.matching("/none").is_err());
        let beside = Root::beside(dir.path().join("root/etc/main.conf").to_str().unwrap()).unwrap();
        let prefix = dir.path().join("root/etc").display().to_string();
        assert_eq!(beside.matching(&format!("{prefix}/conf.d/*.conf")).unwrap().len(), 2);
        assert_eq!(beside.read(&format!("{prefix}/main.conf")).unwrap(), "main");
        assert!(beside.matching("/etc/passwd").is_err());
        assert!(beside.read(&format!("{prefix}/../bin/sh")).is_err());
    }

    #[test]
    fn a_fifo_and_a_giant_are_refused() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root"), String::new()).unwrap();
        let fifo = dir.path().join("root/etc/fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
        assert_eq!(root.read("/etc/fifo").unwrap_err().to_string(), "not a plain file");
        fs::File::create(dir.path().join("root/etc/giant")).unwrap().set_len(FILE_MAX + 1).unwrap();
        assert_eq!(root.read("/etc/giant").unwrap_err().to_string(), "larger than 4 MiB");
    }
}
