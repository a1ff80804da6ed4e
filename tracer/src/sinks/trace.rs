//! Events as single lines for people, close to what strace, ss and tcpdump print.
//!
//! ```text
//! 14:03:22.118204 nginx[8593/1] <-- SIGTERM {si_code=SI_USER} from runc[8632] (host)
//! ```
//! A process is `comm[pid]`, or `comm[pid/pid in its own namespace]` where these differ.

use super::escape::{escape, quote};
use super::names;
use super::text::Paint;
use crate::model::event::{
    Event, EventKind, ResetSent, ResetSocket, Side, SigInfo, SignalDelivered, SignalGenerated, Task, TcpNotice,
    TcpState, Tuple, tcp,
};
use std::fmt::Write as _;
use std::net::SocketAddr;

/// What an event line needs to know beside the event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Time of day, or the boot time where no clock sample came yet.
    pub time: &'a str,
    /// Inode of the host's pid namespace, 0 unknown: marks a sender outside of all containers.
    pub host_pidns: u32,
    /// Container or pod name, empty for none.
    pub place: &'a str,
    /// Name of the reset reason on this kernel.
    pub reset_reason: Option<&'a str>,
    pub paint: Paint,
}

/// One event, without the line end.
pub fn line(event: &Event, context: Context<'_>) -> String {
    let paint = context.paint;
    let mut out = format!("{} ", paint.dim(context.time));
    match &event.kind {
        EventKind::SignalGenerated(s) => signal_generated(&mut out, s, context),
        EventKind::SignalDelivered(s) => signal_delivered(&mut out, s, paint),
        EventKind::Forked { parent, child } => {
            _ = write!(out, "{} forked {}", process(parent, paint), process(child, paint));
        }
        EventKind::Execed(e) => {
            let argv: Vec<String> = e.argv.iter().map(|arg| quote(arg)).collect();
            let cut = if event.quality & why502_ebpf::quality::ARGV_CUT != 0 { ", ..." } else { "" };
            let path = quote(&e.path);
            _ = write!(out, "{} execve({path}, [{}{cut}])", process(&e.task, paint), argv.join(", "));
        }
        EventKind::Exited { task, code } => {
            _ = write!(out, "{} +++ {} +++", process(task, paint), exit(*code));
        }
        EventKind::TcpState(s) => tcp_state(&mut out, s, paint),
        EventKind::ResetSent(r) => reset_sent(&mut out, r, context),
        EventKind::ResetReceived(n) => {
            _ = write!(out, "tcp {} {}", tuple(&n.tuple, n.side), paint.red("RST received"));
            notice(&mut out, n);
        }
        EventKind::SynRetransmitted(n) => {
            _ = write!(out, "tcp {} {}", tuple(&n.tuple, n.side), paint.yellow("SYN sent again"));
            notice(&mut out, n);
        }
        EventKind::UnixDropped(d) => {
            let what = if d.embryo { "connection dropped from the accept queue" } else { "closed with bytes unread" };
            _ = write!(out, "unix {} {} by {}", quote(&d.path), paint.yellow(what), process(&d.task, paint));
        }
        EventKind::UnixRefused(r) => {
            let error = crate::explain::chain::errno(r.error);
            _ = write!(
                out,
                "unix {} {} = {error}",
                process(&r.task, paint),
                paint.yellow(&format!("connect({})", quote(&r.path)))
            );
        }
        EventKind::NginxLogged(l) => {
            let (level, format) = (names::nginx_level(l.level), quote(&l.format));
            _ = write!(out, "{} logs {} {format}", process(&l.task, paint), paint.yellow(&level));
            if l.errno != 0 {
                _ = write!(out, ", errno {}", crate::explain::chain::errno(l.errno));
            }
        }
        EventKind::NginxErrorPage(p) => {
            _ = write!(out, "{} answers {}", process(&p.task, paint), paint.red(&p.status.to_string()));
            if let Some(t) = &p.client {
                _ = write!(out, " to {}", SocketAddr::new(t.remote_ip, t.remote_port));
            }
        }
        EventKind::OomVictim { task } => {
            _ = write!(out, "{} {}", process(task, paint), paint.red("chosen by the OOM killer"));
        }
    }
    if !context.place.is_empty() {
        _ = write!(out, "  {}", paint.cyan(&format!("[{}]", escape(context.place))));
    }
    for id in names::quality(event.quality) {
        // The cut is shown in the arguments themselves.
        if id != "argv-cut" {
            _ = write!(out, " {}", paint.yellow(&format!("({id})")));
        }
    }
    out
}

/// `nginx[8593/1]`.
fn process(task: &Task, paint: Paint) -> String {
    let comm = escape(&task.comm);
    let name = if task.comm.is_empty() { "?" } else { &comm };
    let thread = if task.pid == task.tgid { String::new() } else { format!(" thread {}", task.pid) };
    let ns = if task.ns_pid == 0 || task.ns_pid == task.tgid { String::new() } else { format!("/{}", task.ns_pid) };
    format!("{}[{}{ns}{thread}]", paint.bold(name), task.tgid)
}

fn signal_generated(out: &mut String, s: &SignalGenerated, context: Context<'_>) {
    let paint = context.paint;
    let name = names::signal(s.signal);
    _ = write!(out, "{} <-- {} {{si_code={}", process(&s.target, paint), paint.red(&name), code(s));
    if s.info == SigInfo::Real && s.code <= 0 {
        _ = write!(out, ", si_pid={}", s.si_pid);
    }
    out.push('}');
    if !s.group {
        out.push_str(" to one thread");
    }
    match s.info {
        SigInfo::Kernel => _ = write!(out, " from the kernel in {}", process(&s.sender, paint)),
        _ => _ = write!(out, " from {}", process(&s.sender, paint)),
    }
    if context.host_pidns != 0 && s.sender.pidns == context.host_pidns && s.target.pidns != s.sender.pidns {
        out.push_str(" (host)");
    }
    if s.result != 0 {
        _ = write!(out, " {}", paint.yellow(&names::signal_result(s.result)));
    }
}

fn code(s: &SignalGenerated) -> String {
    names::si_code(s.signal, s.code)
}

fn signal_delivered(out: &mut String, s: &SignalDelivered, paint: Paint) {
    let handler = match s.handler {
        0 => "default action",
        1 => "ignored",
        _ => "handler",
    };
    let name = paint.red(&names::signal(s.signal));
    let si_code = names::si_code(s.signal, s.code);
    _ = write!(out, "{} --- {name} {{si_code={si_code}}} --- {handler}", process(&s.task, paint));
}

/// As in wait(2): `exited with 0`, `killed by SIGKILL (core dumped)`.
fn exit(code: u32) -> String {
    let signal = code & 0x7f;
    if signal == 0 {
        return format!("exited with {}", code >> 8 & 0xff);
    }
    let core = if code & 0x80 != 0 { " (core dumped)" } else { "" };
    format!("killed by {}{core}", names::signal(signal))
}

/// The local end first; the arrow shows who opened the connection.
fn tuple(t: &Tuple, side: Side) -> String {
    let local = SocketAddr::new(t.local_ip, t.local_port);
    let remote = SocketAddr::new(t.remote_ip, t.remote_port);
    match side {
        Side::Listener => local.to_string(),
        Side::Server => format!("{local} <- {remote}"),
        Side::Client => format!("{local} -> {remote}"),
    }
}

fn tcp_state(out: &mut String, s: &TcpState, paint: Paint) {
    let (old, new) = (names::tcp_state(s.oldstate), names::tcp_state(s.newstate));
    _ = write!(out, "tcp {} {old} -> {}", tuple(&s.tuple, s.side), paint.bold(&new));
    if s.side == Side::Listener {
        _ = write!(out, " queue={}/{}", s.ack_backlog, s.max_ack_backlog);
    } else {
        _ = write!(out, " rx={} tx={}", s.bytes_received, s.bytes_sent);
        // Sequence numbers wrap; so do the differences.
        let unread = s.rcv_nxt.wrapping_sub(s.copied_seq);
        let unacked = s.write_seq.wrapping_sub(s.snd_una);
        if unread != 0 {
            _ = write!(out, " unread={unread}");
        }
        if unacked != 0 {
            _ = write!(out, " unacked={unacked}");
        }
        if !s.accepted {
            out.push_str(" not accepted");
        }
    }
    if s.sk_err != 0 {
        _ = write!(out, " err={}", names::errno(s.sk_err));
    }
    _ = write!(out, " by {}", process(&s.task, paint));
    if s.task.exiting() {
        out.push_str(" exiting");
    }
}

fn reset_sent(out: &mut String, r: &ResetSent, context: Context<'_>) {
    let paint = context.paint;
    // Who opened it is known only for ports that listen.
    let side = if r.port_known { Side::Server } else { Side::Client };
    _ = write!(out, "tcp {} {}", tuple(&r.tuple, side), paint.red("RST sent"));
    match (context.reset_reason, r.reason) {
        (Some(name), _) => _ = write!(out, " reason={}", escape(name)),
        (None, Some(number)) => _ = write!(out, " reason={number}"),
        (None, None) => {}
    }
    if r.active {
        out.push_str(" on its own account");
    } else {
        _ = write!(out, " to [{}] len={}", names::packet_flags(r.in_flags), r.in_len);
    }
    match r.socket {
        ResetSocket::None => out.push_str(", no socket"),
        ResetSocket::TimeWait => out.push_str(", socket in TIME_WAIT"),
        ResetSocket::Request => out.push_str(", socket in SYN_RECV"),
        ResetSocket::Full => {
            _ = write!(out, ", {} rx={} tx={}", names::tcp_state(r.state), r.bytes_received, r.bytes_sent);
            if !r.accepted && r.state != tcp::LISTEN {
                out.push_str(" not accepted");
            }
        }
    }
    if let Some(digest) = &r.digest {
        _ = write!(out, ", closed before by {} rx={} tx={}", digest.tgid, digest.bytes_received, digest.bytes_sent);
    }
    if r.active {
        _ = write!(out, " by {}", process(&r.task, paint));
    }
}

fn notice(out: &mut String, n: &TcpNotice) {
    _ = write!(out, " in {} rx={} tx={}", names::tcp_state(n.state), n.bytes_received, n.bytes_sent);
    if n.total_retrans != 0 {
        _ = write!(out, " retransmitted={}", n.total_retrans);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_as_in_wait() {
        assert_eq!(exit(0), "exited with 0");
        assert_eq!(exit(124 << 8), "exited with 124");
        assert_eq!(exit(9), "killed by SIGKILL");
        assert_eq!(exit(11 | 0x80), "killed by SIGSEGV (core dumped)");
    }
}
