//! Sockets as the cases need them: chosen backlogs, lingers, ports; and what TCP_INFO says.

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, connect, listen,
    setsockopt, socket, sockopt,
};
use serde_json::{Value, json};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

/// One way to speak TCP on the loopback.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    /// What the listener binds, and its record says.
    pub(crate) listen: IpAddr,
    /// What the client connects to.
    to: IpAddr,
}

const fn v6(last: u16, mapped: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, mapped, if mapped == 0 { 0 } else { 0x7f00 }, last))
}

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// `mapped`: a dual-stack listener, and IPv4 inside IPv6 sockets at both ends.
pub(crate) const FAMILIES: &[Family] = &[
    Family { name: "v4", listen: V4, to: V4 },
    Family { name: "v6", listen: v6(1, 0), to: v6(1, 0) },
    Family { name: "mapped", listen: v6(0, 0), to: v6(1, 0xffff) },
];

impl Family {
    /// `sk_family` of both ends.
    pub(crate) fn number(&self) -> i32 {
        if self.to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
    }

    /// The loopback address that records have: v4-mapped is IPv4.
    pub(crate) fn ip(&self) -> IpAddr {
        self.to.to_canonical()
    }

    pub(crate) fn listener(&self, port: u16, backlog: i32) -> Result<TcpListener> {
        let fd = self.socket()?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        on_addr(SocketAddr::new(self.listen, port), |a| bind(fd.as_raw_fd(), a)).context("bind")?;
        listen(&fd, Backlog::new(backlog)?).context("listen")?;
        Ok(fd.into())
    }

    /// A client that is bound already, so that its port is known even if connecting fails.
    pub(crate) fn bound(&self) -> Result<Client> {
        self.bound_to(0)
    }

    /// The same, to this port.
    pub(crate) fn bound_to(&self, port: u16) -> Result<Client> {
        let fd = self.socket()?;
        on_addr(SocketAddr::new(self.to, port), |a| bind(fd.as_raw_fd(), a)).context("bind")?;
        let stream = TcpStream::from(fd);
        Ok(Client { port: stream.local_addr()?.port(), family: *self, stream })
    }

    pub(crate) fn connected(&self, port: u16) -> Result<Client> {
        let client = self.bound()?;
        client.connect(port).context("connect")?;
        Ok(client)
    }

    fn socket(&self) -> Result<OwnedFd> {
        let family = if self.number() == libc::AF_INET { AddressFamily::Inet } else { AddressFamily::Inet6 };
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("socket")
    }
}

fn on_addr<T>(addr: SocketAddr, f: impl Fn(&dyn SockaddrLike) -> nix::Result<T>) -> nix::Result<T> {
    match addr {
        SocketAddr::V4(a) => f(&SockaddrIn::from(a)),
        SocketAddr::V6(a) => f(&SockaddrIn6::from(a)),
    }
}

pub(crate) struct Client {
    pub(crate) port: u16,
    family: Family,
    pub(crate) stream: TcpStream,
}

impl Client {
    pub(crate) fn connect(&self, port: u16) -> io::Result<()> {
        let fd = self.stream.as_raw_fd();
        on_addr(SocketAddr::new(self.family.to, port), |a| connect(fd, a)).map_err(io::Error::from)
    }
}

/// The connection as a record of the end `ip:port` has it.
pub(crate) fn tuple(ip: IpAddr, port: u16, remote: (IpAddr, u16), netns: u32) -> Value {
    json!({"local_ip": ip, "local_port": port, "remote_ip": remote.0, "remote_port": remote.1, "netns": netns})
}

/// close(2) then resets the connection.
pub(crate) fn linger_zero(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &linger).context("SO_LINGER")
}

/// The fields of `struct tcp_info` that the cases use (include/uapi/linux/tcp.h).
pub(crate) struct Info {
    pub(crate) state: u8,
    pub(crate) total_retrans: u32,
    pub(crate) bytes_acked: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
}

pub(crate) fn info(stream: &TcpStream) -> Result<Info> {
    let mut raw = [0u8; 256];
    let mut len: libc::socklen_t = 256;
    // SAFETY: the kernel writes at most `len` bytes into `raw`.
    let r = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, raw.as_mut_ptr().cast(), &raw mut len)
    };
    ensure!(r == 0, "TCP_INFO: {}", io::Error::last_os_error());
    let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    ensure!(len >= 208, "TCP_INFO has only {len} bytes");
    Ok(Info {
        state: raw[0],
        total_retrans: word(100),
        bytes_acked: long(120),
        bytes_received: long(128),
        bytes_sent: long(200),
    })
}

/// State of the socket (or TIME_WAIT socket) of this namespace with these ports, as /proc/net/tcp and tcp6 show it.
/// A TIME_WAIT socket shows its substate there.
pub(crate) fn state(local_port: u16, remote_port: u16) -> Result<Option<u8>> {
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        for line in std::fs::read_to_string(file)?.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let port = |n: usize| {
                let hex = words.get(n)?.rsplit(':').next()?;
                u16::from_str_radix(hex, 16).ok()
            };
            if port(1) == Some(local_port) && port(2) == Some(remote_port) {
                return Ok(Some(u8::from_str_radix(words.get(3).context("state")?, 16)?));
            }
        }
    }
    Ok(None)
}

/// Until the socket's state is this; `None`: until it is gone.
pub(crate) fn wait_state(local_port: u16, remote_port: u16, wanted: Option<u8>) -> Result<()> {
    let end = std::time::Instant::now() + super::child::PATIENCE;
    loop {
        let now = state(local_port, remote_port)?;
        if now == wanted {
            return Ok(());
        }
        if std::time::Instant::now() > end {
            bail!("socket {local_port} -> {remote_port} is in state {now:?}, not {wanted:?}");
        }
        std::thread::yield_now();
    }
}

/// Brings this network namespace's loopback up.
pub(crate) fn loopback_up() -> Result<()> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid; the kernel reads the name and the flags.
    let r = unsafe {
        let mut req: libc::ifreq = std::mem::zeroed();
        req.ifr_name[0] = b'l'.cast_signed();
        req.ifr_name[1] = b'o'.cast_signed();
        req.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
        libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const req)
    };
    ensure!(r == 0, "loopback: {}", io::Error::last_os_error());
    Ok(())
}
