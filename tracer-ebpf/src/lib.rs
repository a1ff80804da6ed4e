//! The wire format between the probes (this package's binary) and userspace.
//!
//! Rules: `repr(C)`, fixed widths, no `enum`, `bool` or pointer on the wire, no implicit padding (checked below), the
//! [`Header`] first. Userspace never casts bytes to these structs: it reads each field at its offset with a bounds check
//! (`tracer/src/ring/decode.rs`), so a short or unknown record is an error and not a crash.
//!
//! Times are `bpf_ktime_get_boot_ns()`: nanoseconds of CLOCK_BOOTTIME, taken *after* the ring slot was reserved.
#![no_std]

pub mod fields;
pub mod names;

/// Grows when a record changes in a way that an older userspace would misread.
pub const ABI_VERSION: u16 = 1;

/// Longest path and argv prefix that an [`Exec`] record carries, in bytes.
pub const EXEC_STR: usize = 256;
/// Room for `sockaddr_un.sun_path` (108 bytes), rounded up to whole words.
pub const UNIX_PATH: usize = 112;
/// How much of a log line's format is carried.
pub const NGINX_FORMAT: usize = 96;
/// Kernel's TASK_COMM_LEN.
pub const COMM: usize = 16;

/// What a record is ([`Header::kind`]).
pub mod kind {
    pub const SIGNAL_GENERATE: u16 = 1;
    pub const SIGNAL_DELIVER: u16 = 2;
    pub const FORK: u16 = 3;
    pub const EXEC: u16 = 4;
    pub const EXIT: u16 = 5;
    pub const TCP_STATE: u16 = 6;
    pub const RESET_SENT: u16 = 7;
    pub const RESET_RECEIVED: u16 = 8;
    pub const SYN_RETRANSMIT: u16 = 9;
    pub const OOM_VICTIM: u16 = 10;
    pub const UNIX_DROPPED: u16 = 11;
    pub const UNIX_REFUSED: u16 = 12;
    pub const NGINX_LOG: u16 = 13;
    pub const NGINX_ERROR_PAGE: u16 = 14;
}

/// Bits of [`Header::quality`]: what could not be read while the record was written.
pub mod quality {
    /// `task->thread_pid` was already gone: namespace pid and pid namespace are 0.
    pub const NO_NS_PID: u16 = 1;
    /// argv could not be read from the new program's memory.
    pub const NO_ARGV: u16 = 1 << 1;
    /// argv is longer than what is carried.
    pub const ARGV_CUT: u16 = 1 << 2;
    /// the packet that a reset answers could not be read.
    pub const NO_PACKET: u16 = 1 << 3;
    /// the network namespace could not be read.
    pub const NO_NETNS: u16 = 1 << 4;
    /// the socket's cgroup is not known (tagged `sk_cgrp_data` of old kernels).
    pub const NO_SK_CGROUP: u16 = 1 << 5;
    /// `bpf_skc_to_tcp_sock` gave nothing: the byte counters are 0 and mean nothing.
    pub const NO_TCP_SOCK: u16 = 1 << 6;
    /// the format of a log line could not be read: nobody had touched its page in this process yet.
    pub const NO_FORMAT: u16 = 1 << 7;
}

/// First 16 bytes of every record.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// CLOCK_BOOTTIME, ns.
    pub ts: u64,
    pub kind: u16,
    /// Length of the whole record in bytes.
    pub len: u16,
    pub cpu: u16,
    pub quality: u16,
}

/// A task as it was when the record was written. All ids are the initial namespaces' unless said otherwise.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Task {
    /// `start_boottime` of the thread group leader, ns. With `tgid` it names a process for good.
    pub start: u64,
    /// Id (kernfs inode) of the task's cgroup in the default (v2) hierarchy.
    pub cgroup: u64,
    /// The same in the v1 hierarchy that `names::CGROUP_V1` chose; 0 where there is none.
    pub cgroup_v1: u64,
    pub tgid: u32,
    pub pid: u32,
    /// tgid of `real_parent`.
    pub ppid: u32,
    /// The process's pid in its own (innermost) pid namespace.
    pub ns_pid: u32,
    /// Inode numbers of the pid and network namespaces; 0 when unknown or already dropped (exiting).
    pub pidns: u32,
    pub netns: u32,
    /// `task_struct.flags`: PF_EXITING is 4, PF_KTHREAD 0x0020_0000.
    pub flags: u32,
    pub uid: u32,
    pub comm: [u8; COMM],
}

/// A TCP connection seen from the local socket. Addresses are in network byte order, IPv4 as ::ffff:a.b.c.d, so that an
/// IPv4 packet and the dual-stack socket that it belongs to carry the same key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub laddr: [u32; 4],
    pub raddr: [u32; 4],
    /// Host byte order.
    pub lport: u16,
    pub rport: u16,
    pub netns: u32,
}

/// `signal_generate`. kernel/signal.c, `__send_signal_locked()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SignalGenerate {
    pub hdr: Header,
    /// `current`: who runs the kernel code that sends. For SI_USER that is the sender.
    pub sender: Task,
    pub target: Task,
    pub sig: u32,
    /// `si_code` where there is a siginfo; SI_USER (0) for SEND_SIG_NOINFO, SI_KERNEL (0x80) for SEND_SIG_PRIV.
    pub code: i32,
    /// `si_pid` in the target's pid namespace; meaningful only for `info == info::REAL` and `code <= 0`.
    pub si_pid: u32,
    /// See [`info`].
    pub info: u32,
    /// TRACE_SIGNAL_DELIVERED 0, IGNORED 1, ALREADY_PENDING 2, OVERFLOW_FAIL 3, LOSE_INFO 4.
    pub result: u32,
    /// 1: to the process, 0: to one thread.
    pub group: u32,
}

/// What the siginfo argument of `signal_generate` was.
pub mod info {
    /// SEND_SIG_NOINFO: a plain kill(2) on 7.3 and newer; the sender is `current`.
    pub const NONE: u32 = 0;
    /// SEND_SIG_PRIV: from the kernel.
    pub const KERNEL: u32 = 1;
    /// A `kernel_siginfo`.
    pub const REAL: u32 = 2;
}

/// `signal_deliver`. kernel/signal.c, `get_signal()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SignalDeliver {
    pub hdr: Header,
    pub task: Task,
    pub sig: u32,
    pub code: i32,
    /// 0 SIG_DFL, 1 SIG_IGN, 2 a handler (its address stays in the kernel).
    pub handler: u32,
    pub sa_flags: u32,
}

/// `sched_process_fork`, of processes only (threads are left out). kernel/fork.c, `kernel_clone()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Fork {
    pub hdr: Header,
    pub parent: Task,
    pub child: Task,
}

/// `sched_process_exec`. fs/exec.c, `exec_binprm()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Exec {
    pub hdr: Header,
    pub task: Task,
    /// tid before exec, when another thread than the leader called it.
    pub old_pid: u32,
    /// Bytes of `path` and `argv` that are filled.
    pub path_len: u16,
    pub argv_len: u16,
    /// `linux_binprm.filename`.
    pub path: [u8; EXEC_STR],
    /// The first bytes of the new argument area: NUL between arguments.
    pub argv: [u8; EXEC_STR],
}

/// `sched_process_exit` of the last thread of a process. kernel/exit.c, `do_exit()`; sockets are closed after it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Exit {
    pub hdr: Header,
    pub task: Task,
    /// As in wait(2): `code & 0x7f` is the signal, `code >> 8 & 0xff` the exit status.
    pub code: u32,
    pub _reserved: u32,
}

/// `inet_sock_set_state`: a listener that opened or closed, the first transition out of ESTABLISHED of a connection
/// that may have been left unanswered, or the close of a requesting end that got the other one's FIN and no answer.
/// net/ipv4/af_inet.c.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpState {
    pub hdr: Header,
    /// `current`; the actor only in process context (a close or an exit), else whoever was interrupted.
    pub task: Task,
    /// Salted socket address: tells sockets apart, tells nothing of the kernel's layout.
    pub sk: u64,
    /// Id of the v2 cgroup that the socket was created in; accepted sockets inherit the listener's.
    pub sk_cgroup: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub bytes_acked: u64,
    pub tuple: Tuple,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub rcv_wup: u32,
    pub write_seq: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    /// jiffies of the last data segment sent and received, and now. One tick is 1..10 ms.
    pub lsndtime: u32,
    pub lrcvtime: u32,
    pub jiffies: u32,
    pub total_retrans: u32,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub sk_err: u32,
    pub family: u16,
    pub oldstate: u8,
    pub newstate: u8,
    pub pingpong: u8,
    pub sk_shutdown: u8,
    /// See [`side`].
    pub side: u8,
    /// 1 when a process holds the socket (`sk->sk_socket`): 0 at a close means that it was still in the accept queue.
    pub accepted: u8,
    pub _reserved: u32,
}

/// Which end of a connection a socket is.
pub mod side {
    /// The local port is not known to have listened: the end that connected, or a listener from before the start.
    pub const CLIENT: u8 = 0;
    pub const SERVER: u8 = 1;
    /// The record is about a listener.
    pub const LISTENER: u8 = 2;
}

/// What is kept of a connection that the server side closed first: a later reset needs it (value of the DIGESTS map).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Digest {
    /// Time of the close, ns of CLOCK_BOOTTIME; 0 means that there is no digest.
    pub ts: u64,
    pub sk_cgroup: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Leader start and tgid of the task that closed.
    pub start: u64,
    pub tgid: u32,
    /// Its `task_struct.flags`.
    pub flags: u32,
    /// What the connection became: FIN_WAIT1 (4) or CLOSE (7).
    pub newstate: u32,
    /// See [`digest_bits`].
    pub bits: u32,
    /// The next byte that was expected: later data of the same connection begins close to it.
    pub rcv_nxt: u32,
    pub _reserved: u32,
}

/// [`Digest::bits`].
pub mod digest_bits {
    /// The close was sent up as a [`crate::TcpState`] record of its own.
    pub const REPORTED: u32 = 1;
    /// shutdown(SHUT_WR) and not close(): a lingering close, after which more of the same request is expected.
    pub const HALF_CLOSED: u32 = 1 << 1;
}

/// `tcp_send_reset`. net/ipv4/tcp_ipv4.c `tcp_v4_send_reset()`, tcp_output.c `tcp_send_active_reset()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ResetSent {
    pub hdr: Header,
    /// `current`; the actor only for an active reset.
    pub task: Task,
    /// The closed connection's digest, looked up by the tuple of the packet that is answered.
    pub digest: Digest,
    pub sk: u64,
    pub sk_cgroup: u64,
    /// Local is the side that sends the reset.
    pub tuple: Tuple,
    /// `enum sk_rst_reason`, [`NO_REASON`] on kernels without it (before 6.10).
    pub reason: u32,
    /// Payload bytes of the packet that is answered.
    pub in_len: u32,
    pub in_seq: u32,
    pub in_ack: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// TCP flags of the packet that is answered (FIN 1, SYN 2, RST 4, PSH 8, ACK 16); 0 for an active reset.
    pub in_flags: u8,
    /// See [`sk_kind`].
    pub sk_kind: u8,
    /// 1: sent on the local side's own account, 0: in answer to a packet.
    pub active: u8,
    /// `skc_state` of the socket, 0 without one.
    pub state: u8,
    /// 1 when the local port is in the LISTENERS map: it listens or has listened.
    pub port_known: u8,
    pub accepted: u8,
    pub _reserved: u16,
}

/// [`ResetSent::reason`] where the kernel gives none.
pub const NO_REASON: u32 = u32::MAX;

/// What the `sk` argument of `tcp_send_reset` was.
pub mod sk_kind {
    /// NULL: no socket has this tuple.
    pub const NONE: u8 = 0;
    pub const FULL: u8 = 1;
    /// A timewait socket: only its tuple may be read.
    pub const TIME_WAIT: u8 = 2;
    /// A request socket (SYN_RECV).
    pub const REQUEST: u8 = 3;
}

/// `tcp_receive_reset`: a reset arrived for this socket. net/ipv4/tcp_input.c `tcp_reset()`.
/// `tcp_retransmit_skb` in SYN_SENT uses the same shape.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpNotice {
    pub hdr: Header,
    pub sk: u64,
    pub sk_cgroup: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub tuple: Tuple,
    pub state: u8,
    pub side: u8,
    pub _reserved: [u8; 2],
    pub total_retrans: u32,
    /// `snd_una - bytes_acked` and `rcv_nxt - bytes_received`: where both directions began. With the other end of the
    /// connection they have in common what address translation leaves alone.
    pub first_sent: u32,
    pub first_received: u32,
}

/// `mark_victim`: the OOM killer chose this task. mm/oom_kill.c `mark_oom_victim()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OomVictim {
    pub hdr: Header,
    /// On kernels whose hook passes only a pid, all but `task.pid` is 0.
    pub task: Task,
}

/// `kfree_skb` of what a closing AF_UNIX stream socket had in its receive queue. net/unix/af_unix.c, `unix_release_sock()`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnixDropped {
    pub hdr: Header,
    /// `current`, who closes.
    pub task: Task,
    /// Salted, as [`TcpState::sk`].
    pub server_sk: u64,
    /// 0 for an embryo.
    pub client_sk: u64,
    /// Of `current`: the socket itself was made by the connecting task, in that one's cgroup.
    pub server_cgroup: u64,
    pub client_cgroup: u64,
    pub netns: u32,
    /// `skb->len`.
    pub len: u32,
    /// Bytes of `path` that are filled.
    pub path_len: u16,
    /// 1: a connection that nobody accepted, thrown out with its listener.
    pub embryo: u8,
    pub _reserved: [u8; 5],
    /// `sun_path` of the server's address; begins with NUL when it is abstract.
    pub path: [u8; UNIX_PATH],
}

/// A connect(2) to an AF_UNIX address that failed. `unix_stream_connect()`, or the system call's exit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnixRefused {
    pub hdr: Header,
    pub task: Task,
    /// Positive errno.
    pub error: u32,
    /// Bytes of `path` that are filled.
    pub path_len: u16,
    pub _reserved: u16,
    /// As [`UnixDropped::path`], as the caller gave it: what follows a NUL in a path means nothing.
    pub path: [u8; UNIX_PATH],
}

/// `ngx_log_error_core()`, level `error` and worse. src/core/ngx_log.c.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NginxLog {
    pub hdr: Header,
    pub task: Task,
    /// NGX_LOG_EMERG 1 … NGX_LOG_ERR 4.
    pub level: u32,
    pub errno: u32,
    /// Where the format is in the task's memory, for a second try.
    pub format_at: u64,
    /// As [`NginxErrorPage::connection`], of the request that the line is about.
    pub connection: u64,
    /// Bytes of `format` that are filled.
    pub format_len: u16,
    pub _reserved: [u8; 6],
    pub format: [u8; NGINX_FORMAT],
}

/// `ngx_http_special_response_handler()`, 500 to 504. src/http/ngx_http_special_response.c.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NginxErrorPage {
    pub hdr: Header,
    pub task: Task,
    pub status: u32,
    pub _reserved: u32,
    /// nginx's own number of its client's connection; 0 unknown.
    pub connection: u64,
    /// That connection, from nginx's side; `rport` is 0 when it is not known, or not an internet socket.
    pub client: Tuple,
}

/// Key of the LISTENERS map: ports that listen or have listened.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PortKey {
    pub netns: u32,
    pub port: u32,
}

/// The first stop signal of a cgroup (value of the STOPPING map, by v2 cgroup id).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stopping {
    /// ns of CLOCK_BOOTTIME.
    pub at: u64,
    pub jiffies: u64,
}

/// What one CPU saw of a cgroup since its first stop signal (value of the STOP_COUNTS map). Times are ns of
/// CLOCK_BOOTTIME, 0: none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StopCounts {
    /// [`Stopping::at`] of the stop that is counted: another one's counts begin at 0.
    pub signal: u64,
    /// Server-side connections established since.
    pub accepted: u64,
    pub last_accept: u64,
    /// Server-side connections whose last data came before the signal and whose answer was sent after it.
    pub answered: u64,
    /// When the last of these answers was sent, to a tick.
    pub last_answered: u64,
}

/// Indexes of the COUNTERS per-CPU array: `hook * counter::PER_HOOK + counter`.
pub mod counter {
    pub const PER_HOOK: u32 = 8;
    /// The hook ran.
    pub const SEEN: u32 = 0;
    /// A record was written.
    pub const SENT: u32 = 1;
    /// The ring was full: a record is lost.
    pub const LOST_RING: u32 = 2;
    /// Left out by the cgroup filter.
    pub const SKIPPED: u32 = 3;
    /// Not of interest by rule: threads, masked signals, inner TCP states, unknown ports.
    pub const UNINTERESTING: u32 = 4;
    /// Connections that ended with their answer sent: counted here instead of being sent up.
    pub const ANSWERED: u32 = 5;
    /// An argument failed its range test.
    pub const BAD_ARG: u32 = 6;
    /// A map update failed (digest or listener): something later may be unexplained.
    pub const LOST_MAP: u32 = 7;
}

macro_rules! layout {
    ($($t:ident = $size:expr, $align:expr;)*) => { $(
        const _: () = assert!(size_of::<$t>() == $size, concat!("size of ", stringify!($t)));
        const _: () = assert!(align_of::<$t>() == $align, concat!("alignment of ", stringify!($t)));
    )* };
}
layout! {
    Header = 16, 8;
    Task = 72, 8;
    Tuple = 40, 4;
    SignalGenerate = 16 + 144 + 24, 8;
    SignalDeliver = 16 + 72 + 16, 8;
    Fork = 16 + 144, 8;
    Exec = 16 + 72 + 8 + 512, 8;
    Exit = 16 + 72 + 8, 8;
    TcpState = 16 + 72 + 40 + 40 + 52 + 12, 8;
    Digest = 64, 8;
    ResetSent = 16 + 72 + 64 + 16 + 40 + 24 + 16 + 8, 8;
    TcpNotice = 16 + 32 + 40 + 16, 8;
    OomVictim = 16 + 72, 8;
    PortKey = 8, 4;
    Stopping = 16, 8;
    StopCounts = 40, 8;
    UnixDropped = 16 + 72 + 32 + 8 + 8 + 112, 8;
    UnixRefused = 16 + 72 + 8 + 112, 8;
    NginxLog = 16 + 72 + 32 + 96, 8;
    NginxErrorPage = 16 + 72 + 16 + 40, 8;
}
