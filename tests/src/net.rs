//! Network namespaces and veth pairs, made with `ip`.

use crate::guard::{run, serial};
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// A named network namespace with `lo` up. Deleted on drop.
#[derive(Debug)]
pub struct Netns {
    pub name: String,
}

impl Netns {
    /// `tag` is a short word for people: `pod`, `edge`.
    pub fn new(tag: &str) -> Result<Self> {
        let ns = Self { name: format!("w5-{}-{}-{tag}", std::process::id(), serial()) };
        run("ip", &["netns", "add", &ns.name])?;
        run("ip", &["-n", &ns.name, "link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// A name for the harness's own network namespace, the host's; dropping it takes away the name only.
    pub fn of_host(tag: &str) -> Result<Self> {
        let ns = Self { name: format!("w5-{}-{}-{tag}", std::process::id(), serial()) };
        run("ip", &["netns", "attach", &ns.name, &std::process::id().to_string()])?;
        Ok(ns)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Inode number, which is what the tracer calls `netns`.
    pub fn inode(&self) -> Result<u32> {
        use std::os::unix::fs::MetadataExt;
        Ok(u32::try_from(std::fs::metadata(self.path())?.ino())?)
    }

    /// Runs `f` on a thread of its own inside the namespace: setns(2) moves one thread only, and for good.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|s| {
            let thread = s.spawn(|| {
                join_thread(&self.path())?;
                Ok(f())
            });
            thread.join().map_err(|_| anyhow!("a thread in netns {} panicked", self.name))?
        })
    }

    /// `ip -n <name> …`
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        run("ip", &[&["-n", self.name.as_str()], args].concat())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(e) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("{e}");
        }
    }
}

/// Moves the calling thread into the network namespace at `path`, for good.
pub fn join_thread(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open netns {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter netns {}", path.display()))
}

/// The addresses of one link; `left` is the requesting side.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub left4: Ipv4Addr,
    pub right4: Ipv4Addr,
    pub left6: Ipv6Addr,
    pub right6: Ipv6Addr,
}

impl Link {
    /// Addresses that no other link of this machine's harnesses has at the moment: incidents of tests that run beside
    /// each other are told apart by them.
    pub fn unique() -> Self {
        let n = std::process::id().wrapping_mul(31).wrapping_add(serial());
        let [_, _, b, c] = n.to_be_bytes();
        let v4 = |last| Ipv4Addr::new(10, b, c, last);
        let v6 = |last| Ipv6Addr::new(0xfd50, 0x2502, u16::from(b), u16::from(c), 0, 0, 0, last);
        Self { left4: v4(1), right4: v4(2), left6: v6(1), right6: v6(2) }
    }

    pub fn ips(self) -> [IpAddr; 4] {
        [self.left4.into(), self.right4.into(), self.left6.into(), self.right6.into()]
    }

    /// Gives the addresses to two devices and sets them up. nodad: an address must be usable at once.
    pub(crate) fn assign(&self, left: (&Netns, &str), right: (&Netns, &str)) -> Result<()> {
        for ((ns, dev), v4, v6) in [(left, self.left4, self.left6), (right, self.right4, self.right6)] {
            ns.ip(&["addr", "add", &format!("{v4}/24"), "dev", dev])?;
            ns.ip(&["-6", "addr", "add", &format!("{v6}/64"), "dev", dev, "nodad"])?;
            ns.ip(&["link", "set", dev, "up"])?;
        }
        Ok(())
    }
}

/// Joins two namespaces by a veth pair. It goes away with the namespaces.
pub fn veth(left: &Netns, right: &Netns) -> Result<Link> {
    veth_at(left, right, Link::unique())
}

/// The same, with these addresses.
pub fn veth_at(left: &Netns, right: &Netns, link: Link) -> Result<Link> {
    let n = serial();
    let (a, b) = (format!("vl{n}"), format!("vr{n}"));
    let args = ["link", "add", &a, "netns", &left.name, "type", "veth", "peer", "name", &b, "netns", &right.name];
    run("ip", &args)?;
    link.assign((left, &a), (right, &b))?;
    Ok(link)
}

/// Deletes the namespaces that earlier, killed runs of the harness left behind.
pub fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix("w5-").and_then(|r| r.split('-').next());
        if maker.is_some_and(crate::guard::is_gone) {
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}

/// Whether a TCP port listens in the namespace of process `pid`, without sending it a packet: a refused readiness
/// connection would be a kernel event of its own.
pub fn listens(pid: i32, port: u16) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().and_then(|l| l.rsplit(':').next()).and_then(|p| u16::from_str_radix(p, 16).ok());
            local == Some(port) && fields.nth(1) == Some("0A")
        })
    })
}
