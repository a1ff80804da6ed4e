//! Every kernel struct member that a probe reads. The only place that names kernel members.
//!
//! rustc emits no CO-RE relocations, so userspace resolves each offset from /sys/kernel/btf/vmlinux and sets it as a
//! frozen read-only global before load; the verifier then checks the offset and the width against its own BTF.

/// One member to resolve.
pub struct Field {
    /// Name of the `u32` global in the object.
    pub symbol: &'static str,
    pub strukt: &'static str,
    /// Dotted path; anonymous members are searched by themselves. Alternatives are separated by `|`.
    pub path: &'static str,
    /// Size in bytes that the probe loads; refused when BTF disagrees (0: not checked).
    pub size: u32,
    /// Missing is allowed; the global then stays [`MISSING`].
    pub optional: bool,
}

/// Value of the global of a member that this kernel lacks. Beyond every struct, so the verifier refuses a stray use.
pub const MISSING: u32 = 0x00ff_ffff;

macro_rules! fields {
    ($($symbol:ident $strukt:literal $path:literal $size:literal $($opt:ident)?;)*) => {
        /// The table, in no particular order.
        pub const FIELDS: &[Field] = &[$(Field {
            symbol: stringify!($symbol), strukt: $strukt, path: $path, size: $size, optional: fields!(@opt $($opt)?),
        }),*];
        /// The globals themselves, for the object.
        #[cfg(target_arch = "bpf")]
        pub mod globals {
            use aya_ebpf::Global;
            $(#[unsafe(no_mangle)] pub static $symbol: Global<u32> = Global::new(super::MISSING);)*
        }
    };
    (@opt) => { false };
    (@opt optional) => { true };
}

fields! {
    TASK_PID "task_struct" "pid" 4;
    TASK_TGID "task_struct" "tgid" 4;
    TASK_FLAGS "task_struct" "flags" 4;
    TASK_COMM "task_struct" "comm" 16;
    TASK_EXIT_CODE "task_struct" "exit_code" 4;
    TASK_REAL_PARENT "task_struct" "real_parent" 8;
    TASK_GROUP_LEADER "task_struct" "group_leader" 8;
    TASK_START_BOOTTIME "task_struct" "start_boottime|real_start_time" 8;
    TASK_THREAD_PID "task_struct" "thread_pid" 8;
    TASK_NSPROXY "task_struct" "nsproxy" 8;
    TASK_CGROUPS "task_struct" "cgroups" 8;
    TASK_CRED "task_struct" "cred" 8;
    TASK_MM "task_struct" "mm" 8;
    TASK_SIGNAL "task_struct" "signal" 8;
    TASK_FILES "task_struct" "files" 8 optional;
    FILES_FDT "files_struct" "fdt" 8 optional;
    FDT_MAX "fdtable" "max_fds" 4 optional;
    FDT_FD "fdtable" "fd" 8 optional;
    FILE_PRIVATE "file" "private_data" 8 optional;
    SOCKET_FILE "socket" "file" 8 optional;
    SOCKET_SK "socket" "sk" 8 optional;
    CRED_UID "cred" "uid" 4;
    SIGNAL_LIVE "signal_struct" "live" 4;
    SIGNAL_FLAGS "signal_struct" "flags" 4;
    SIGNAL_EXIT_CODE "signal_struct" "group_exit_code" 4;
    MM_ARG_START "mm_struct" "arg_start" 8;
    MM_ARG_END "mm_struct" "arg_end" 8;
    NSPROXY_NET "nsproxy" "net_ns" 8;
    NET_INUM "net" "ns.inum" 4;
    PID_LEVEL "pid" "level" 4;
    PID_NUMBERS "pid" "numbers" 0;
    UPID_NR "upid" "nr" 4;
    UPID_NS "upid" "ns" 8;
    PIDNS_INUM "pid_namespace" "ns.inum" 4;
    CSS_SET_DFL_CGRP "css_set" "dfl_cgrp" 8;
    CSS_SET_SUBSYS "css_set" "subsys" 0;
    CSS_CGROUP "cgroup_subsys_state" "cgroup" 8;
    CGROUP_KN "cgroup" "kn" 8;
    KN_ID "kernfs_node" "id" 8;
    BPRM_FILENAME "linux_binprm" "filename" 8;
    SIGINFO_CODE "kernel_siginfo" "si_code" 4;
    SIGINFO_PID "kernel_siginfo" "_sifields._kill._pid" 4;
    KSIG_HANDLER "k_sigaction" "sa.sa_handler" 8;
    KSIG_FLAGS "k_sigaction" "sa.sa_flags" 8;
    SK_FAMILY "sock_common" "skc_family" 2;
    SK_STATE "sock_common" "skc_state" 1;
    SK_NUM "sock_common" "skc_num" 2;
    SK_DPORT "sock_common" "skc_dport" 2;
    SK_DADDR "sock_common" "skc_daddr" 4;
    SK_RCV_SADDR "sock_common" "skc_rcv_saddr" 4;
    SK_V6_DADDR "sock_common" "skc_v6_daddr" 16;
    SK_V6_RCV_SADDR "sock_common" "skc_v6_rcv_saddr" 16;
    SK_NET "sock_common" "skc_net" 8;
    SK_ERR "sock" "sk_err" 4;
    SK_SOCKET "sock" "sk_socket" 8;
    SK_SHUTDOWN "sock" "sk_shutdown" 1;
    SK_TYPE "sock" "sk_type" 2;
    SK_PROTOCOL "sock" "sk_protocol" 0;
    SK_ACK_BACKLOG "sock" "sk_ack_backlog" 4;
    SK_MAX_ACK_BACKLOG "sock" "sk_max_ack_backlog" 4;
    SK_CGRP_DATA "sock" "sk_cgrp_data" 0;
    SK_CGRP_PTR "sock_cgroup_data" "cgroup" 8 optional;
    SK_CGRP_VAL "sock_cgroup_data" "val" 8 optional;
    INET_SPORT "inet_sock" "inet_sport" 2;
    TCP_BYTES_RECEIVED "tcp_sock" "bytes_received" 8;
    TCP_BYTES_SENT "tcp_sock" "bytes_sent" 8;
    TCP_BYTES_ACKED "tcp_sock" "bytes_acked" 8;
    TCP_RCV_NXT "tcp_sock" "rcv_nxt" 4;
    TCP_COPIED_SEQ "tcp_sock" "copied_seq" 4;
    TCP_RCV_WUP "tcp_sock" "rcv_wup" 4;
    TCP_WRITE_SEQ "tcp_sock" "write_seq" 4;
    TCP_SND_UNA "tcp_sock" "snd_una" 4;
    TCP_SND_NXT "tcp_sock" "snd_nxt" 4;
    TCP_LSNDTIME "tcp_sock" "lsndtime" 4;
    TCP_TOTAL_RETRANS "tcp_sock" "total_retrans" 4;
    TCP_LRCVTIME "tcp_sock" "inet_conn.icsk_ack.lrcvtime" 4;
    TCP_PINGPONG "tcp_sock" "inet_conn.icsk_ack.pingpong" 1;
    SKB_HEAD "sk_buff" "head" 8;
    SKB_NETWORK_HEADER "sk_buff" "network_header" 2;
    SKB_TRANSPORT_HEADER "sk_buff" "transport_header" 2;
    SKB_DEV "sk_buff" "dev" 8;
    SKB_LEN "sk_buff" "len" 4;
    SKB_SK "sk_buff" "sk" 8;
    SKB_CB "sk_buff" "cb" 0;
    UNIX_CB_CONSUMED "unix_skb_parms" "consumed" 4 optional;
    UNIX_PEER "unix_sock" "peer" 8 optional;
    UNIX_ADDR "unix_sock" "addr" 8 optional;
    UNIX_ADDR_LEN "unix_address" "len" 4 optional;
    UNIX_ADDR_NAME "unix_address" "name" 0 optional;
    PT_SYSCALL "pt_regs" "orig_ax|syscallno" 0 optional;
    PT_ARG2 "pt_regs" "si|regs" 0 optional;
    PT_ARG3 "pt_regs" "dx|regs" 0 optional;
    PT_CS "pt_regs" "cs" 0 optional;
    DEV_NET "net_device" "nd_net" 8;
}
