//! Numbers of the kernel's interface by their names, as strace and ss write them.

use crate::model::event::{EventKind, tcp, tcp_flags};
use why502_ebpf::quality as bit;

/// Linux's signals 1–31 on every architecture that why502 is built for (include/uapi/asm-generic/signal.h).
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// `SIGTERM`, `SIGRT_3`, or the number.
pub fn signal(number: u32) -> String {
    match (number as usize).checked_sub(1).and_then(|i| SIGNALS.get(i)) {
        Some(name) => (*name).to_string(),
        // strace counts real-time signals from the kernel's SIGRTMIN.
        None if (32..=64).contains(&number) => format!("SIGRT_{}", number - 32),
        None => number.to_string(),
    }
}

/// The number of `SIGTERM`, `term` or `15`.
pub fn signal_number(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(n) = name.strip_prefix("RT_") {
        return n.parse().ok().filter(|n| *n <= 32).map(|n: u32| 32 + n);
    }
    SIGNALS.iter().position(|s| &s[3..] == name).map(|i| i as u32 + 1)
}

/// `si_code` (include/uapi/asm-generic/siginfo.h). Positive codes mean something else for each signal.
pub fn si_code(number: u32, code: i32) -> String {
    let name = match (code, number) {
        (0, _) => "SI_USER",
        (0x80, _) => "SI_KERNEL",
        (-1, _) => "SI_QUEUE",
        (-2, _) => "SI_TIMER",
        (-3, _) => "SI_MESGQ",
        (-4, _) => "SI_ASYNCIO",
        (-5, _) => "SI_SIGIO",
        (-6, _) => "SI_TKILL",
        (-7, _) => "SI_DETHREAD",
        (-60, _) => "SI_ASYNCNL",
        (1, 11) => "SEGV_MAPERR",
        (2, 11) => "SEGV_ACCERR",
        (1, 7) => "BUS_ADRALN",
        (2, 7) => "BUS_ADRERR",
        (1, 17) => "CLD_EXITED",
        (2, 17) => "CLD_KILLED",
        (3, 17) => "CLD_DUMPED",
        (4, 17) => "CLD_TRAPPED",
        (5, 17) => "CLD_STOPPED",
        (6, 17) => "CLD_CONTINUED",
        _ => return code.to_string(),
    };
    name.to_string()
}

/// What became of a generated signal (include/trace/events/signal.h, `TRACE_SIGNAL_*`).
pub fn signal_result(result: u32) -> String {
    match result {
        0 => "delivered".into(),
        1 => "ignored".into(),
        2 => "already pending".into(),
        3 => "lost: queue full".into(),
        4 => "delivered without its details".into(),
        other => format!("result {other}"),
    }
}

/// A TCP state as `ss` and the kernel name it (include/net/tcp_states.h).
pub fn tcp_state(state: u8) -> String {
    let name = match state {
        tcp::ESTABLISHED => "ESTABLISHED",
        tcp::SYN_SENT => "SYN_SENT",
        tcp::SYN_RECV => "SYN_RECV",
        tcp::FIN_WAIT1 => "FIN_WAIT1",
        tcp::FIN_WAIT2 => "FIN_WAIT2",
        tcp::TIME_WAIT => "TIME_WAIT",
        tcp::CLOSE => "CLOSE",
        tcp::CLOSE_WAIT => "CLOSE_WAIT",
        tcp::LAST_ACK => "LAST_ACK",
        tcp::LISTEN => "LISTEN",
        tcp::CLOSING => "CLOSING",
        12 => "NEW_SYN_RECV",
        13 => "BOUND_INACTIVE",
        other => return other.to_string(),
    };
    name.to_string()
}

/// TCP flags in tcpdump's letters: `S`, `P.`, `R.`.
pub fn packet_flags(flags: u8) -> String {
    let letters = [
        (tcp_flags::SYN, 'S'),
        (tcp_flags::FIN, 'F'),
        (tcp_flags::RST, 'R'),
        (tcp_flags::PSH, 'P'),
        (tcp_flags::ACK, '.'),
    ];
    letters.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter).collect()
}

/// Linux errno values that a socket carries in `sk_err` (asm-generic/errno.h).
pub fn errno(number: u32) -> String {
    let name = match number {
        32 => "EPIPE",
        100 => "ENETDOWN",
        101 => "ENETUNREACH",
        103 => "ECONNABORTED",
        104 => "ECONNRESET",
        110 => "ETIMEDOUT",
        111 => "ECONNREFUSED",
        112 => "EHOSTDOWN",
        113 => "EHOSTUNREACH",
        other => return other.to_string(),
    };
    name.to_string()
}

/// What a record could not read, with the ids of docs/events.md.
pub const QUALITY: &[(u16, &str)] = &[
    (bit::NO_NS_PID, "no-ns-pid"),
    (bit::NO_ARGV, "no-argv"),
    (bit::ARGV_CUT, "argv-cut"),
    (bit::NO_PACKET, "no-packet"),
    (bit::NO_NETNS, "no-netns"),
    (bit::NO_SK_CGROUP, "no-sk-cgroup"),
    (bit::NO_TCP_SOCK, "no-tcp-sock"),
    (bit::NO_FORMAT, "no-format"),
];

/// Level of a line in nginx's error log, as it stands there.
pub fn nginx_level(level: u32) -> String {
    match level {
        1 => "emerg".into(),
        2 => "alert".into(),
        3 => "crit".into(),
        4 => "error".into(),
        other => other.to_string(),
    }
}

pub fn quality(bits: u16) -> Vec<&'static str> {
    QUALITY.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, id)| *id).collect()
}

/// Ids of the event kinds, as they stand in JSON and in `--kind`.
pub const KINDS: &[&str] = &[
    "signal-generated",
    "signal-delivered",
    "forked",
    "execed",
    "exited",
    "tcp-state",
    "reset-sent",
    "reset-received",
    "syn-retransmitted",
    "oom-victim",
    "unix-dropped",
    "unix-refused",
    "nginx-logged",
    "nginx-error-page",
];

pub fn kind(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::SignalGenerated(_) => "signal-generated",
        EventKind::SignalDelivered(_) => "signal-delivered",
        EventKind::Forked { .. } => "forked",
        EventKind::Execed(_) => "execed",
        EventKind::Exited { .. } => "exited",
        EventKind::TcpState(_) => "tcp-state",
        EventKind::ResetSent(_) => "reset-sent",
        EventKind::ResetReceived(_) => "reset-received",
        EventKind::SynRetransmitted(_) => "syn-retransmitted",
        EventKind::OomVictim { .. } => "oom-victim",
        EventKind::UnixDropped(_) => "unix-dropped",
        EventKind::UnixRefused(_) => "unix-refused",
        EventKind::NginxLogged(_) => "nginx-logged",
        EventKind::NginxErrorPage(_) => "nginx-error-page",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal(15), "SIGTERM");
        assert_eq!(signal(3), "SIGQUIT");
        assert_eq!(signal(9), "SIGKILL");
        assert_eq!(signal(31), "SIGSYS");
        assert_eq!(signal(34), "SIGRT_2");
        assert_eq!((signal(0), signal(65)), ("0".into(), "65".into()));
        for number in 1..=64 {
            assert_eq!(signal_number(&signal(number)), Some(number));
            assert_eq!(signal_number(&number.to_string()), Some(number));
        }
        assert_eq!(signal_number("term"), Some(15));
        assert_eq!(signal_number("sigquit"), Some(3));
        for bad in ["", "SIG", "0", "65", "TERMINATE", "-1", "RT_33"] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn packet_flags_as_in_tcpdump() {
        assert_eq!(packet_flags(tcp_flags::SYN), "S");
        assert_eq!(packet_flags(tcp_flags::PSH | tcp_flags::ACK), "P.");
        assert_eq!(packet_flags(0), "");
    }

    #[test]
    fn quality_bits_by_id() {
        assert_eq!(quality(0), Vec::<&str>::new());
        assert_eq!(quality(bit::NO_ARGV | bit::NO_TCP_SOCK), ["no-argv", "no-tcp-sock"]);
    }
}
