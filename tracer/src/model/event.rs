//! Events: what a kernel hook reported, decoded. Immutable; later stages only refer to them by [`Event::id`].

use super::kube::FactId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// CLOCK_BOOTTIME in nanoseconds.
pub type BootNs = u64;

/// Position in the merged input sequence, given when a record is drained. Printed as `e17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub u64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// What a link or a phase rests on: an event of the kernel, or what somebody else said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cited {
    Said(FactId),
    Event(EventId),
}

impl fmt::Display for Cited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cited::Said(id) => id.fmt(f),
            Cited::Event(id) => id.fmt(f),
        }
    }
}

/// Names a process for good: a tgid is reused, a tgid with its leader's start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcKey {
    pub tgid: u32,
    /// `start_boottime` of the leader in USER_HZ ticks (10 ms), which is what /proc/PID/stat shows as well.
    pub start_ticks: u64,
}

/// Nanoseconds of one USER_HZ tick, the resolution of /proc/PID/stat field 22.
pub const TICK_NS: u64 = 10_000_000;

/// A task as a record carried it. Ids are the initial namespaces' unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub tgid: u32,
    pub pid: u32,
    /// Pid of the process in its own pid namespace; 0 unknown.
    pub ns_pid: u32,
    pub ppid: u32,
    pub uid: u32,
    /// Inode of the pid and the network namespace; 0 unknown.
    pub pidns: u32,
    pub netns: u32,
    /// `task_struct.flags`.
    pub flags: u32,
    /// v2 and v1 cgroup ids; 0 unknown.
    pub cgroup: u64,
    pub cgroup_v1: u64,
    pub start_ns: u64,
    /// Raw, as the kernel has it: hostile. Escape before printing.
    pub comm: String,
}

impl Task {
    /// `PF_EXITING` of include/linux/sched.h.
    pub const PF_EXITING: u32 = 0x4;

    pub fn key(&self) -> ProcKey {
        ProcKey { tgid: self.tgid, start_ticks: self.start_ns / TICK_NS }
    }
    pub fn exiting(&self) -> bool {
        self.flags & Self::PF_EXITING != 0
    }
}

/// A connection from the local socket's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// IPv4 and v4-mapped addresses are `IpAddr::V4`.
    pub local_ip: IpAddr,
    pub local_port: u16,
    pub remote_ip: IpAddr,
    pub remote_port: u16,
    /// Inode number of the network namespace of the local socket.
    pub netns: u32,
}

impl Tuple {
    /// The same connection seen from the other end (the namespace stays the local one's).
    pub fn flipped(&self) -> (IpAddr, u16, IpAddr, u16) {
        (self.remote_ip, self.remote_port, self.local_ip, self.local_port)
    }
    pub fn ends(&self) -> (IpAddr, u16, IpAddr, u16) {
        (self.local_ip, self.local_port, self.remote_ip, self.remote_port)
    }
}

/// `::ffff:a.b.c.d` becomes IPv4.
pub fn canonical_ip(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub at: BootNs,
    pub cpu: u16,
    /// `why502_ebpf::quality` bits.
    pub quality: u16,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventKind {
    SignalGenerated(SignalGenerated),
    SignalDelivered(SignalDelivered),
    Forked { parent: Task, child: Task },
    Execed(Execed),
    Exited { task: Task, code: u32 },
    TcpState(TcpState),
    ResetSent(ResetSent),
    ResetReceived(TcpNotice),
    SynRetransmitted(TcpNotice),
    OomVictim { task: Task },
    UnixDropped(UnixDropped),
    UnixRefused(UnixRefused),
    NginxLogged(NginxLogged),
    NginxErrorPage(NginxErrorPage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SigInfo {
    /// SEND_SIG_NOINFO: a plain kill(2) on newer kernels.
    None,
    /// SEND_SIG_PRIV: by the kernel itself.
    Kernel,
    Real,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalGenerated {
    pub signal: u32,
    pub code: i32,
    pub si_pid: u32,
    pub info: SigInfo,
    /// 0 delivered, 1 ignored, 2 already pending, 3 overflow, 4 info lost (include/trace/events/signal.h).
    pub result: u32,
    pub group: bool,
    pub sender: Task,
    pub target: Task,
}

/// si_code values used by the rules (include/uapi/asm-generic/siginfo.h).
pub const SI_USER: i32 = 0;
pub const SI_KERNEL: i32 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalDelivered {
    pub signal: u32,
    pub code: i32,
    /// 0 SIG_DFL, 1 SIG_IGN, 2 a handler.
    pub handler: u32,
    pub sa_flags: u32,
    pub task: Task,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execed {
    pub task: Task,
    pub old_pid: u32,
    /// As given to execve: may be relative, may be a script. Hostile.
    pub path: String,
    /// Leading arguments, cut at 256 bytes in all. Hostile.
    pub argv: Vec<String>,
}

/// TCP states, include/net/tcp_states.h.
pub mod tcp {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    Client,
    Server,
    Listener,
}

/// `inet_sock_set_state`, with the fields of the close-time rule (docs/causes.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    pub sk: u64,
    pub sk_cgroup: u64,
    pub tuple: Tuple,
    pub family: u16,
    pub oldstate: u8,
    pub newstate: u8,
    pub side: Side,
    /// A process held the socket; false at a close: it was still in the accept queue.
    pub accepted: bool,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub bytes_acked: u64,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub rcv_wup: u32,
    pub write_seq: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub lsndtime: u32,
    pub lrcvtime: u32,
    pub jiffies: u32,
    pub total_retrans: u32,
    pub pingpong: u8,
    pub sk_shutdown: u8,
    pub sk_err: u32,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub task: Task,
}

/// What was kept in the kernel of a connection that the server closed first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub at: BootNs,
    pub sk_cgroup: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub start_ns: u64,
    pub tgid: u32,
    pub flags: u32,
    pub newstate: u8,
    /// The close was sent up as an event of its own.
    pub reported: bool,
    /// shutdown(SHUT_WR) and not close(): more of the same request is expected after it.
    pub half_closed: bool,
    /// The next byte that was expected at the close.
    #[serde(default)]
    pub rcv_nxt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetSocket {
    None,
    Full,
    TimeWait,
    Request,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetSent {
    pub sk: u64,
    pub sk_cgroup: u64,
    /// Local is the side that sent the reset.
    pub tuple: Tuple,
    /// `enum sk_rst_reason`; `None` on kernels that give none.
    pub reason: Option<u32>,
    pub socket: ResetSocket,
    pub active: bool,
    pub state: u8,
    pub accepted: bool,
    /// The local port listens or has listened, as the kernel-side table knows.
    pub port_known: bool,
    /// Of the packet that is answered; 0 for an active reset.
    pub in_flags: u8,
    pub in_len: u32,
    pub in_seq: u32,
    pub in_ack: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub digest: Option<Digest>,
    pub task: Task,
}

/// TCP header flags, as in [`ResetSent::in_flags`].
pub mod tcp_flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// A reset that arrived, or a SYN that was sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpNotice {
    pub sk: u64,
    pub sk_cgroup: u64,
    pub tuple: Tuple,
    pub state: u8,
    pub side: Side,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub total_retrans: u32,
    /// Where both directions began, as sequence numbers: `snd_una - bytes_acked`, which is the initial one of an end that
    /// connected, and `rcv_nxt - bytes_received`, the byte after the other end's. Absent in older recordings.
    #[serde(default)]
    pub first_sent: Option<u32>,
    #[serde(default)]
    pub first_received: Option<u32>,
}

/// `kfree_skb` of what a closing AF_UNIX stream socket had in its receive queue (`unix_release_sock()`): bytes that the
/// server never read, or (`embryo`) a connection that nobody had accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixDropped {
    /// The server's socket of this connection; names the connection. Bytes whose sender has closed its end since make no
    /// record: nobody waits for an answer.
    pub server_sk: u64,
    /// The socket that had sent the bytes; 0 for an embryo.
    pub client_sk: u64,
    /// v2 cgroup of the task that closes; 0 unknown. The kernel makes a server's end of a connection in connect(2), in the
    /// client's cgroup and network namespace.
    pub server_cgroup: u64,
    /// v2 cgroup that the client connected in (an embryo), or made its socket in.
    pub client_cgroup: u64,
    /// The client's.
    pub netns: u32,
    /// The connection itself, thrown out of a listener's accept queue.
    pub embryo: bool,
    /// Of the skb, with what had been read of it already; 0 for an embryo.
    pub len: u32,
    /// The server's address: a path, or `@name` for an abstract one. Hostile.
    pub path: String,
    /// Who closed.
    pub task: Task,
}

/// `unix_stream_connect()` failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixRefused {
    /// Positive errno: 2 ENOENT, 11 EAGAIN (the accept queue is full), 111 ECONNREFUSED …
    pub error: u32,
    /// As [`UnixDropped::path`].
    pub path: String,
    /// Who wanted to connect.
    pub task: Task,
}

/// nginx wrote a line to its error log, at level `error` or worse (`ngx_log_error_core()`). Its arguments are not seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NginxLogged {
    /// Who logs.
    pub task: Task,
    /// 1 emerg, 2 alert, 3 crit, 4 error.
    pub level: u32,
    /// The errno that the line is about; 0 none.
    pub errno: u32,
    /// The printf format, of at most 96 bytes: `connect() failed`, `%V sent …`. Hostile.
    pub format: String,
    /// nginx's own number of its client's connection, `*17` in the log: no two connections of one nginx have the same. Of a
    /// line that is about no connection `None`, as in older recordings.
    #[serde(default)]
    pub connection: Option<u64>,
}

/// nginx answers a request by itself, with 500 to 504 (`ngx_http_special_response_handler()`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NginxErrorPage {
    pub task: Task,
    pub status: u32,
    /// As [`NginxLogged::connection`]. Requests on one HTTP/2 connection share it.
    #[serde(default)]
    pub connection: Option<u64>,
    /// The client's connection from nginx's side, as its socket has it. `None` where it is a unix socket or QUIC, where it
    /// could not be read, and in older recordings.
    #[serde(default)]
    pub client: Option<Tuple>,
}
