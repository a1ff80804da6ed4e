//! The symbols that userspace and the object agree on: hooks, maps and read-only globals that are not field offsets.

/// One hook: its program name in the object, what it attaches to, and its row in the counters.
pub struct Hook {
    /// Program and counter name, and the name users see.
    pub name: &'static str,
    pub at: At,
}

/// What a program attaches to: a place of the hook's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The `btf_trace_*` tracepoint.
    Tracepoint,
    /// The end of the kernel's function: only kernels with BPF trampolines (x86-64 5.5, arm64 6.0; with ftrace).
    FunctionExit,
    /// The start of a function of each nginx on the node. Only with CAP_SYS_ADMIN.
    Nginx,
}

macro_rules! hooks {
    (@at) => { At::Tracepoint };
    (@at exit) => { At::FunctionExit };
    (@at nginx) => { At::Nginx };
    ($($idx:literal $konst:ident $name:literal $($at:ident)?;)*) => {
        /// Counter rows of the hooks.
        pub mod hook { $(pub const $konst: u32 = $idx;)* }
        /// All hooks, in the order of their counter rows.
        pub const HOOKS: &[Hook] = &[$(Hook { name: $name, at: hooks!(@at $($at)?) }),*];
        const _: () = { let mut i = 0; $(assert!(i == $idx); i += 1;)* let _ = i; };
    };
}
hooks! {
    0 SIGNAL_GENERATE "signal_generate";
    1 SIGNAL_DELIVER "signal_deliver";
    2 SCHED_PROCESS_FORK "sched_process_fork";
    3 SCHED_PROCESS_EXEC "sched_process_exec";
    4 SCHED_PROCESS_EXIT "sched_process_exit";
    5 INET_SOCK_SET_STATE "inet_sock_set_state";
    6 TCP_SEND_RESET "tcp_send_reset";
    7 TCP_RECEIVE_RESET "tcp_receive_reset";
    8 TCP_RETRANSMIT_SKB "tcp_retransmit_skb";
    9 MARK_VICTIM "mark_victim";
    10 KFREE_SKB "kfree_skb";
    11 UNIX_STREAM_CONNECT "unix_stream_connect" exit;
    12 SYS_EXIT "sys_exit";
    13 NGX_LOG "ngx_log_error_core" nginx;
    14 NGX_ERROR_PAGE "ngx_http_special_response_handler" nginx;
}

/// The ring buffer.
pub const MAP_EVENTS: &str = "EVENTS";
/// Per-CPU counters, see [`crate::counter`].
pub const MAP_COUNTERS: &str = "COUNTERS";
/// cgroup id → 1: tasks and sockets of these cgroups are left out (fail-open: what is not listed is watched).
pub const MAP_SKIP: &str = "SKIP_CGROUPS";
/// [`crate::PortKey`] → time of the last LISTEN, ns.
pub const MAP_LISTENERS: &str = "LISTENERS";
/// [`crate::Tuple`] → [`crate::Digest`].
pub const MAP_DIGESTS: &str = "DIGESTS";
/// v2 cgroup id → [`crate::Stopping`].
pub const MAP_STOPPING: &str = "STOPPING";
/// v2 cgroup id → [`crate::StopCounts`] of each CPU.
pub const MAP_STOP_COUNTS: &str = "STOP_COUNTS";

/// How often the functions of nginx ran, by the cookie of the attachment (0 where there are no cookies).
pub const MAP_NGINX_HITS: &str = "NGINX_HITS";
/// Its slots.
pub const NGINX_SLOTS: u32 = 128;

/// Mixed into socket ids (u64).
pub const SK_SALT: &str = "SK_SALT";
/// Bit `n` set: signal `n` is recorded (u64).
pub const SIG_MASK: &str = "SIG_MASK";
/// Ring bytes pending above which the reader is woken at once; below it reads by timer (u32).
pub const WAKE_BYTES: &str = "WAKE_BYTES";
/// 1: `bpf_get_current_task_btf` exists (5.11) (u32).
pub const HAS_TASK_BTF: &str = "HAS_TASK_BTF";
/// 1: `tcp_send_reset` passes a reason (6.10) (u32).
pub const HAS_RESET_REASON: &str = "HAS_RESET_REASON";
/// 1: `mark_victim` passes a task (6.8, and backports), 0: a pid (u32).
pub const HAS_VICTIM_TASK: &str = "HAS_VICTIM_TASK";
/// 1: `sock_cgroup_data` has a plain cgroup pointer, 0: the tagged union of 5.10.218 and older (u32).
pub const HAS_SK_CGROUP_PTR: &str = "HAS_SK_CGROUP_PTR";
/// 1: `kfree_skb` passes a reason (5.17) (u32).
pub const HAS_DROP_REASON: &str = "HAS_DROP_REASON";
/// The reason that `unix_release_sock()` gives: SOCKET_CLOSE since 6.14, before it the unspecified one (u32).
pub const UNIX_DROP_REASON: &str = "UNIX_DROP_REASON";
/// 1: that reason is given by closing sockets only (u32).
pub const UNIX_REASON_IS_CLOSE: &str = "UNIX_REASON_IS_CLOSE";
/// 1: an attachment has a cookie, `bpf_get_attach_cookie` (5.15) (u32).
pub const HAS_COOKIE: &str = "HAS_COOKIE";
/// Number of connect(2) (u32).
pub const CONNECT_NR: &str = "CONNECT_NR";
/// 1: a v1 hierarchy was chosen for `Task::cgroup_v1` (u32).
pub const CGROUP_V1: &str = "CGROUP_V1";
