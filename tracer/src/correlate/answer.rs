//! The close-time rule: was the request that this connection carried answered when it left ESTABLISHED?
//!
//! Read from the socket at its first transition out of ESTABLISHED (docs/causes.md, "The close-time rule"). Verified
//! against per-request ledgers; its limits (jiffy ties, HTTP/2, protocols where the client speaks last) are in
//! docs/limitations.md.

use crate::model::event::{TcpState, tcp};

/// include/net/sock.h SEND_SHUTDOWN.
const SEND_SHUTDOWN: u8 = 2;
/// errno values that `sk_err` takes, include/uapi/asm-generic/errno.h.
const EPIPE: u32 = 32;
const ECONNRESET: u32 = 104;

/// Who ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closer {
    /// The local side, by close() or by exiting.
    Local,
    /// The listener's close threw the connection out of the accept queue.
    AcceptQueue,
    /// The peer's FIN came first.
    PeerFin,
    /// The peer's reset came first.
    PeerReset,
    /// The path died (timeouts, unreachable) or an administrator destroyed the socket: `sk_err` says which.
    Other(u32),
}

/// Why a request counts as unanswered; the clause that held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// Bytes came, none went: nothing was ever answered on this connection.
    NothingSent,
    /// Bytes of a request were never read by the application.
    Unread,
    /// The last data segment came after the last one that was sent.
    ReceivedLast,
    /// Both in the same jiffy, but what came was not acknowledged together with data.
    TieUnacked,
    /// Never accepted: with how many bytes is in the event.
    NeverAccepted,
}

impl Clause {
    pub fn text(self) -> &'static str {
        match self {
            Clause::NothingSent => "nothing was ever sent on this connection",
            Clause::Unread => "the request was still unread in the socket",
            Clause::ReceivedLast => "the last data that came is newer than the last that went",
            Clause::TieUnacked => "the last data that came had not been answered",
            Clause::NeverAccepted => "it was still in the accept queue",
        }
    }
}

/// Ends the connection, and who did it.
pub fn closer(s: &TcpState) -> Closer {
    if s.newstate == tcp::CLOSE_WAIT {
        return Closer::PeerFin;
    }
    match s.sk_err {
        0 if !s.accepted && s.newstate == tcp::CLOSE => Closer::AcceptQueue,
        0 => Closer::Local,
        EPIPE | ECONNRESET => Closer::PeerReset,
        other => Closer::Other(other),
    }
}

/// Bytes of requests that came: since CLOSE_WAIT the peer's FIN is counted as one.
pub fn received(s: &TcpState) -> u64 {
    s.bytes_received.saturating_sub(u64::from(s.newstate == tcp::CLOSE_WAIT))
}

/// Bytes that the application never read.
pub fn unread(s: &TcpState) -> u32 {
    s.rcv_nxt.wrapping_sub(s.copied_seq).saturating_sub(u32::from(s.newstate == tcp::CLOSE_WAIT))
}

/// `Some`: the connection ended with a request unanswered, by this clause. `http`: unread bytes are a request (FastCGI
/// leaves 8 unread bytes behind in the best of cases).
pub fn unanswered(s: &TcpState, http: bool) -> Option<Clause> {
    if closer(s) == Closer::AcceptQueue {
        return Some(Clause::NeverAccepted);
    }
    if received(s) == 0 {
        return None;
    }
    if s.bytes_sent == 0 {
        return Some(Clause::NothingSent);
    }
    // A lingering close half-closes after the answer (413 during an upload): the rest of the upload is not a request.
    if s.newstate == tcp::FIN_WAIT1 && s.sk_shutdown == SEND_SHUTDOWN {
        return None;
    }
    let peer_first = s.newstate == tcp::CLOSE_WAIT;
    // Unread data makes close() reset the connection, so only EST→CLOSE can carry this clause.
    if http && s.newstate == tcp::CLOSE && s.sk_err == 0 && unread(s) > 0 {
        return Some(Clause::Unread);
    }
    match (s.lrcvtime.wrapping_sub(s.lsndtime)) as i32 {
        1.. => Some(Clause::ReceivedLast),
        // With the peer's FIN in, rcv_nxt and pingpong no longer tell the two apart.
        0 if !peer_first && (s.rcv_nxt != s.rcv_wup || s.pingpong == 0) => Some(Clause::TieUnacked),
        _ => None,
    }
}

/// How long the request had been there, ms: since the last data segment came. `None` when HZ is unknown.
pub fn age_ms(s: &TcpState, hz: Option<u32>) -> Option<u64> {
    let jiffies = u64::from(s.jiffies.wrapping_sub(s.lrcvtime));
    // A stamp from before the connection was established is no age.
    if s.lrcvtime == 0 || jiffies > u64::from(u32::MAX / 2) {
        return None;
    }
    Some(jiffies * 1000 / u64::from(hz?))
}

/// HZ from one record: jiffies start at −300 s (include/linux/jiffies.h INITIAL_JIFFIES) and advance with the boot
/// clock, as long as the machine was never suspended.
pub fn hz(boot_ns: u64, jiffies: u32) -> Option<u32> {
    [100u32, 250, 300, 1000].into_iter().find(|hz| {
        let expected = (boot_ns / 1_000_000 * u64::from(*hz) / 1000) as u32;
        let since_boot = jiffies.wrapping_add(300 * hz);
        let off = since_boot.wrapping_sub(expected) as i32;
        off.unsigned_abs() < *hz
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::event::{Side, Task, Tuple};

    /// An answered keep-alive connection that the local side closes.
    pub(crate) fn state() -> TcpState {
        TcpState {
            sk: 1,
            sk_cgroup: 44,
            tuple: Tuple {
                local_ip: "10.0.3.7".parse().unwrap(),
                local_port: 80,
                remote_ip: "10.0.9.2".parse().unwrap(),
                remote_port: 51514,
                netns: 7,
            },
            family: 2,
            oldstate: tcp::ESTABLISHED,
            newstate: tcp::FIN_WAIT1,
            side: Side::Server,
            accepted: true,
            bytes_received: 79,
            bytes_sent: 600,
            bytes_acked: 600,
            rcv_nxt: 1080,
            copied_seq: 1080,
            rcv_wup: 1080,
            write_seq: 5601,
            snd_una: 5601,
            snd_nxt: 5601,
            lsndtime: 1000,
            lrcvtime: 999,
            jiffies: 1200,
            total_retrans: 0,
            pingpong: 1,
            sk_shutdown: 3,
            sk_err: 0,
            ack_backlog: 0,
            max_ack_backlog: 0,
            task: task(),
        }
    }

    pub(crate) fn task() -> Task {
        Task {
            tgid: 8597,
            pid: 8597,
            ns_pid: 2,
            ppid: 8593,
            uid: 33,
            pidns: 9,
            netns: 7,
            flags: 0,
            cgroup: 44,
            cgroup_v1: 0,
            start_ns: 5_000_000_000,
            comm: "nginx".into(),
        }
    }

    #[test]
    fn an_answered_idle_connection_is_answered() {
        assert_eq!(unanswered(&state(), true), None);
    }

    #[test]
    fn each_clause() {
        let first = TcpState { bytes_sent: 0, ..state() };
        assert_eq!(unanswered(&first, true), Some(Clause::NothingSent));
        let unread = TcpState { copied_seq: 1000, newstate: tcp::CLOSE, ..state() };
        assert_eq!(unanswered(&unread, true), Some(Clause::Unread));
        assert_eq!(unanswered(&unread, false), None, "FastCGI leaves bytes unread");
        let later = TcpState { lrcvtime: 1001, ..state() };
        assert_eq!(unanswered(&later, true), Some(Clause::ReceivedLast));
        let tie = TcpState { lrcvtime: 1000, pingpong: 0, ..state() };
        assert_eq!(unanswered(&tie, true), Some(Clause::TieUnacked));
        let tie = TcpState { lrcvtime: 1000, rcv_wup: 1000, ..state() };
        assert_eq!(unanswered(&tie, true), Some(Clause::TieUnacked));
        let tie = TcpState { lrcvtime: 1000, ..state() };
        assert_eq!(unanswered(&tie, true), None);
    }

    #[test]
    fn jiffies_wrap() {
        let wrapped = TcpState { lsndtime: u32::MAX, lrcvtime: 1, ..state() };
        assert_eq!(unanswered(&wrapped, true), Some(Clause::ReceivedLast));
    }

    #[test]
    fn lingering_close_after_an_early_answer_is_answered() {
        let early = TcpState { lrcvtime: 1010, copied_seq: 500, sk_shutdown: SEND_SHUTDOWN, ..state() };
        assert_eq!(unanswered(&early, true), None);
    }

    #[test]
    fn the_peers_fin_is_not_a_request_byte() {
        let idle = TcpState { newstate: tcp::CLOSE_WAIT, bytes_received: 1, bytes_sent: 0, ..state() };
        assert_eq!(unanswered(&idle, true), None);
        assert_eq!(closer(&idle), Closer::PeerFin);
        let tie = TcpState { newstate: tcp::CLOSE_WAIT, lrcvtime: 1000, pingpong: 0, ..state() };
        assert_eq!(unanswered(&tie, true), None);
    }

    #[test]
    fn errors_are_not_the_local_sides_act() {
        let peer = TcpState { newstate: tcp::CLOSE, sk_err: ECONNRESET, ..state() };
        assert_eq!(closer(&peer), Closer::PeerReset);
        let killed = TcpState { newstate: tcp::CLOSE, sk_err: 103, ..state() };
        assert_eq!(closer(&killed), Closer::Other(103));
    }

    #[test]
    fn accept_queue_children_have_no_process() {
        let queued = TcpState { newstate: tcp::CLOSE, accepted: false, bytes_received: 0, ..state() };
        assert_eq!(closer(&queued), Closer::AcceptQueue);
        assert_eq!(unanswered(&queued, true), Some(Clause::NeverAccepted));
    }

    #[test]
    fn hz_from_one_record() {
        let boot = 1_000_000_000_000u64;
        for want in [100u32, 250, 300, 1000] {
            let jiffies = (1000 * want).wrapping_sub(300 * want);
            assert_eq!(hz(boot, jiffies), Some(want));
        }
        assert_eq!(hz(boot, 77), None);
        assert_eq!(age_ms(&state(), Some(250)), Some(804));
    }
}
