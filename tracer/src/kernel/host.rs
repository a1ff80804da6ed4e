//! The host as why502 finds it: rights, kernel release, boot id, namespaces, mounts. Every reader takes the root
//! directory (`/`), so fixtures can feed it, and a pod can use a host mount.

use std::fs;
use std::path::{Path, PathBuf};

/// A capability that matters here: bit and name (include/uapi/linux/capability.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    pub bit: u32,
    pub name: &'static str,
}

macro_rules! capabilities {
    ($($konst:ident $bit:literal;)*) => {
        $(pub const $konst: Capability = Capability { bit: $bit, name: stringify!($konst) };)*
        /// All that why502 looks at.
        pub const CAPABILITIES: &[Capability] = &[$($konst),*];
    };
}
capabilities! {
    CAP_DAC_READ_SEARCH 2;
    CAP_SYS_PTRACE 19;
    CAP_SYS_ADMIN 21;
    CAP_SYS_RESOURCE 24;
    CAP_PERFMON 38;
    CAP_BPF 39;
}

/// The process's effective capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    pub effective: u64,
}

impl Rights {
    /// From /proc/self/status below `root`; `None` when it cannot be read.
    pub fn read(root: &Path) -> Option<Rights> {
        let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
        Rights::parse(&status)
    }

    pub fn parse(status: &str) -> Option<Rights> {
        let hex = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?.trim();
        Some(Rights { effective: u64::from_str_radix(hex, 16).ok()? })
    }

    pub fn has(&self, capability: Capability) -> bool {
        self.effective >> capability.bit & 1 == 1
    }

    /// Names of what lacks for loading and attaching the probes: CAP_BPF and CAP_PERFMON, which CAP_SYS_ADMIN stands for.
    pub fn missing_to_load(&self) -> Vec<&'static str> {
        if self.has(CAP_SYS_ADMIN) {
            return Vec::new();
        }
        [CAP_BPF, CAP_PERFMON].into_iter().filter(|c| !self.has(*c)).map(|c| c.name).collect()
    }

    /// What lacks for reading other users' processes (exe, namespaces, sockets). Without it names are missing.
    pub fn missing_to_identify(&self) -> Vec<&'static str> {
        [CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH].into_iter().filter(|c| !self.has(*c)).map(|c| c.name).collect()
    }
}

/// Where the kernel's file systems are, as /proc/self/mountinfo tells: paths inside `root`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    pub tracefs: Option<PathBuf>,
    pub cgroup2: Option<PathBuf>,
    /// v1 hierarchies: controllers (`memory`, `cpu,cpuacct` is two) and mount point.
    pub cgroup1: Vec<(Vec<String>, PathBuf)>,
}

/// In this order a v1 hierarchy is taken to name tasks: runtimes put containers into all of them, the first ones are
/// the least likely to be shared or absent. net_cls and net_prio are left out: they are often mounted and unused.
const V1_ORDER: [&str; 8] = ["memory", "pids", "cpu", "cpuacct", "freezer", "devices", "blkio", "cpuset"];

impl Mounts {
    pub fn read(root: &Path) -> Mounts {
        fs::read_to_string(root.join("proc/self/mountinfo")).map(|text| Mounts::parse(&text)).unwrap_or_default()
    }

    /// Fields of a line: id, parent, major:minor, root, mount point, options, tags…, `-`, type, source, super options.
    pub fn parse(mountinfo: &str) -> Mounts {
        let mut mounts = Mounts::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(inner), Some(point)) = (left.next(), left.next()) else { continue };
            // A part of a file system that is mounted elsewhere (a container's own view) is not the whole tree.
            if inner != "/" && !inner.starts_with("/..") {
                continue;
            }
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            let point = PathBuf::from(unescape(point));
            match kind {
                "tracefs" => mounts.tracefs = mounts.tracefs.or(Some(point)),
                "cgroup2" => mounts.cgroup2 = mounts.cgroup2.or(Some(point)),
                "cgroup" => {
                    let known = |o: &&str| V1_ORDER.contains(o);
                    let controllers: Vec<String> = options.split(',').filter(known).map(str::to_owned).collect();
                    if !controllers.is_empty() {
                        mounts.cgroup1.push((controllers, point));
                    }
                }
                _ => {}
            }
        }
        mounts
    }

    /// The v1 controller that names tasks, and where its hierarchy is mounted.
    pub fn v1(&self) -> Option<(&str, &Path)> {
        V1_ORDER.iter().find_map(|want| {
            let (_, point) = self.cgroup1.iter().find(|(controllers, _)| controllers.iter().any(|c| c == want))?;
            Some((*want, point.as_path()))
        })
    }
}

/// mountinfo writes blanks, tabs, newlines and backslashes in octal: `\040`.
pub(crate) fn unescape(path: &str) -> String {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What identifies the host and the boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Host name.
    pub node: String,
    pub boot_id: String,
    /// Inodes of the host's network and pid namespaces; 0 unknown: /proc is a container's, or may not be read.
    pub netns: u32,
    pub pidns: u32,
}

impl Host {
    pub fn read(root: &Path) -> Host {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default().trim().to_owned();
        let init = |name: &str| initial(root).and_then(|pid| namespace(root, pid, name)).unwrap_or(0);
        Host {
            kernel: text("proc/sys/kernel/osrelease"),
            node: text("proc/sys/kernel/hostname"),
            boot_id: text("proc/sys/kernel/random/boot_id"),
            netns: init("net"),
            pidns: init("pid"),
        }
    }
}

/// PROC_PID_INIT_INO of include/linux/proc_ns.h: the initial pid namespace.
pub const INIT_PIDNS: u32 = 0xefff_fffc;

/// A process that is in the host's own namespaces: kthreadd, or PID 1 when this /proc is the initial pid namespace's
/// (a container's PID 1 is not).
fn initial(root: &Path) -> Option<&'static str> {
    let comm = fs::read_to_string(root.join("proc/2/comm")).unwrap_or_default();
    if comm.trim_end() == "kthreadd" && namespace(root, "2", "net").is_some() {
        return Some("2");
    }
    (namespace(root, "1", "pid") == Some(INIT_PIDNS)).then_some("1")
}

/// Inode of a process's namespace: its link reads `net:[4026531840]`.
pub fn namespace(root: &Path, pid: &str, name: &str) -> Option<u32> {
    let link = fs::read_link(root.join("proc").join(pid).join("ns").join(name)).ok()?;
    link.to_str()?.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_name_what_lacks() {
        let status = |eff: &str| Rights::parse(&format!("Name:\tx\nCapPrm:\t0000\nCapEff:\t{eff}\n")).unwrap();
        assert_eq!(status("0000000000000000").missing_to_load(), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(status("0000008000000000").missing_to_load(), ["CAP_PERFMON"]);
        assert_eq!(status("000000c000000000").missing_to_load(), [""; 0]);
        assert_eq!(status("0000000000200000").missing_to_load(), [""; 0], "CAP_SYS_ADMIN stands for both");
        assert_eq!(status("000001fffeffffff").missing_to_identify(), [""; 0]);
        assert!(!status("000001fffeffffff").has(CAP_SYS_RESOURCE));
        assert_eq!(status("000000c000000000").missing_to_identify(), ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]);
        assert_eq!(Rights::parse("CapEff:\tzz"), None);
        assert_eq!(Rights::parse(""), None);
    }

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:39 /kubepods/pod1 /x/memory rw,relatime - cgroup cgroup rw,memory
43 23 0:12 / /sys/kernel/tracing\\040dir rw - tracefs tracefs rw
broken line
";

    #[test]
    fn mounts_of_a_hybrid_host() {
        let m = Mounts::parse(HYBRID);
        assert_eq!(m.cgroup2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(m.tracefs.as_deref(), Some(Path::new("/sys/kernel/tracing dir")));
        assert_eq!(m.cgroup1.len(), 3, "name=systemd has no controller, a part of a tree does not count");
        assert_eq!(m.v1(), Some(("pids", Path::new("/sys/fs/cgroup/pids"))));
    }

    #[test]
    fn a_pure_v2_host_has_no_v1() {
        let m = Mounts::parse("30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate");
        assert_eq!(m.v1(), None);
        assert!(m.cgroup2.is_some() && m.tracefs.is_none());
        assert_eq!(Mounts::parse(""), Mounts::default());
    }

    #[test]
    fn host_and_namespaces_from_a_fixture() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("proc/sys/kernel/osrelease", "6.12.43\n");
        put("proc/sys/kernel/hostname", "node-1\n");
        put("proc/sys/kernel/random/boot_id", "b00t\n");
        fs::create_dir_all(root.join("proc/1/ns")).unwrap();
        std::os::unix::fs::symlink("net:[4026531840]", root.join("proc/1/ns/net")).unwrap();
        let pidns = root.join("proc/1/ns/pid");
        std::os::unix::fs::symlink("pid:[4026532188]", &pidns).unwrap();
        let host = Host::read(root);
        assert_eq!((host.kernel.as_str(), host.node.as_str(), host.boot_id.as_str()), ("6.12.43", "node-1", "b00t"));
        assert_eq!((host.netns, host.pidns), (0, 0), "a container's PID 1 is not the host's");
        fs::remove_file(&pidns).unwrap();
        std::os::unix::fs::symlink("pid:[4026531836]", &pidns).unwrap();
        let host = Host::read(root);
        assert_eq!((host.netns, host.pidns), (4_026_531_840, INIT_PIDNS));
        put("proc/2/comm", "kthreadd\n");
        fs::create_dir_all(root.join("proc/2/ns")).unwrap();
        std::os::unix::fs::symlink("net:[7]", root.join("proc/2/ns/net")).unwrap();
        assert_eq!(Host::read(root).netns, 7, "kthreadd never leaves the host's namespaces");
    }

    #[test]
    fn this_host() {
        let host = Host::read(Path::new("/"));
        assert!(!host.kernel.is_empty() && host.boot_id.len() == 36, "{host:?}");
        assert!(Rights::read(Path::new("/")).is_some());
        assert_eq!(namespace(Path::new("/"), "self", "net").map(|n| n > 4_000_000_000), Some(true));
    }
}
