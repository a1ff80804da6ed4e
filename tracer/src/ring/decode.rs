//! Bytes of one record → [`Event`]. Pure. Each field is read at its `offset_of!` with a bounds check, nothing is cast: a
//! short, long, unknown or hostile record is an error that names what is wrong, never a crash and never a guess.

use crate::model::event::{self as m, Event, EventId, EventKind};
use core::mem::offset_of;
use std::net::IpAddr;
use why502_ebpf as abi;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a record of {len} bytes has no header")]
    NoHeader { len: usize },
    #[error("unknown record kind {kind} of {len} bytes: probes and program are of different builds")]
    UnknownKind { kind: u16, len: usize },
    #[error("a {what} record has {len} bytes, its header says {says} and its fields need {needs}")]
    BadLength { what: &'static str, len: usize, says: usize, needs: usize },
    #[error("a {what} record has {value} in {field}")]
    BadValue { what: &'static str, field: &'static str, value: u64 },
}

/// A fixed-width value on the wire, in this machine's byte order: the kernel that wrote it is the one that runs.
trait Wire: Sized {
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! wire {
    ($($t:ty),*) => { $(impl Wire for $t {
        fn read(bytes: &[u8]) -> Option<Self> {
            Some(<$t>::from_ne_bytes(bytes.get(..size_of::<$t>())?.try_into().ok()?))
        }
    })* };
}
wire!(u8, u16, u32, u64, i32);

impl<const N: usize> Wire for [u8; N] {
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.get(..N)?.try_into().ok()
    }
}

/// An address: four words that are in network order in memory, so their bytes are the address's bytes.
impl Wire for [u32; 4] {
    fn read(bytes: &[u8]) -> Option<Self> {
        let w = |i: usize| u32::read(bytes.get(i * 4..)?);
        Some([w(0)?, w(1)?, w(2)?, w(3)?])
    }
}

/// A record, or a struct inside it that starts at `base`.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    base: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn get<T: Wire>(&self, offset: usize) -> Result<T, DecodeError> {
        self.base.checked_add(offset).and_then(|at| self.bytes.get(at..)).and_then(T::read).ok_or(
            DecodeError::BadLength {
                what: self.what,
                len: self.bytes.len(),
                says: self.bytes.len(),
                needs: self.base + offset + size_of::<T>(),
            },
        )
    }

    fn inner(&self, offset: usize) -> Reader<'a> {
        Reader { base: self.base + offset, ..*self }
    }

    fn bad(&self, field: &'static str, value: impl Into<u64>) -> DecodeError {
        DecodeError::BadValue { what: self.what, field, value: value.into() }
    }
}

/// Reads the named fields of one ABI struct into variables of the same names; the types come from the use.
macro_rules! fields {
    ($r:expr, $t:ty: $($field:ident),* $(,)?) => { $(let $field = $r.get(offset_of!($t, $field))?;)* };
}

/// Timestamp of a record, for ordering, if it has a header at all.
pub fn timestamp(bytes: &[u8]) -> Option<m::BootNs> {
    u64::read(bytes.get(offset_of!(abi::Header, ts)..)?)
}

/// Where a log line's format is in its task's memory, when the record could not carry it.
pub fn unread_format(bytes: &[u8]) -> Option<u64> {
    let read = |offset: usize| bytes.get(offset..).and_then(u16::read);
    let (kind, quality) = (read(offset_of!(abi::Header, kind))?, read(offset_of!(abi::Header, quality))?);
    if kind != abi::kind::NGINX_LOG || quality & abi::quality::NO_FORMAT == 0 {
        return None;
    }
    u64::read(bytes.get(offset_of!(abi::NginxLog, format_at)..)?).filter(|at| *at != 0)
}

/// Decodes one record; the caller gives the id.
pub fn decode(bytes: &[u8], id: EventId) -> Result<Event, DecodeError> {
    let (what, needs) = match bytes.get(offset_of!(abi::Header, kind)..).and_then(u16::read) {
        None => return Err(DecodeError::NoHeader { len: bytes.len() }),
        Some(kind) => shape(kind).ok_or(DecodeError::UnknownKind { kind, len: bytes.len() })?,
    };
    let r = Reader { bytes, base: 0, what };
    fields!(r, abi::Header: ts, kind, len, cpu, quality);
    let says = <usize as From<u16>>::from(len);
    // Longer is allowed: a later version may append fields.
    if bytes.len() < needs || says != bytes.len() {
        return Err(DecodeError::BadLength { what, len: bytes.len(), says, needs });
    }
    let kind = match kind {
        abi::kind::SIGNAL_GENERATE => EventKind::SignalGenerated(signal_generated(r)?),
        abi::kind::SIGNAL_DELIVER => EventKind::SignalDelivered(signal_delivered(r)?),
        abi::kind::FORK => EventKind::Forked {
            parent: task(r.inner(offset_of!(abi::Fork, parent)))?,
            child: task(r.inner(offset_of!(abi::Fork, child)))?,
        },
        abi::kind::EXEC => EventKind::Execed(execed(r)?),
        abi::kind::EXIT => {
            fields!(r, abi::Exit: code);
            EventKind::Exited { task: task(r.inner(offset_of!(abi::Exit, task)))?, code }
        }
        abi::kind::TCP_STATE => EventKind::TcpState(tcp_state(r)?),
        abi::kind::RESET_SENT => EventKind::ResetSent(reset_sent(r)?),
        abi::kind::RESET_RECEIVED => EventKind::ResetReceived(tcp_notice(r)?),
        abi::kind::SYN_RETRANSMIT => EventKind::SynRetransmitted(tcp_notice(r)?),
        abi::kind::OOM_VICTIM => EventKind::OomVictim { task: task(r.inner(offset_of!(abi::OomVictim, task)))? },
        abi::kind::UNIX_DROPPED => EventKind::UnixDropped(unix_dropped(r)?),
        abi::kind::UNIX_REFUSED => EventKind::UnixRefused(unix_refused(r)?),
        abi::kind::NGINX_LOG => EventKind::NginxLogged(nginx_logged(r)?),
        abi::kind::NGINX_ERROR_PAGE => EventKind::NginxErrorPage(nginx_error_page(r)?),
        kind => return Err(DecodeError::UnknownKind { kind, len: bytes.len() }),
    };
    Ok(Event { id, at: ts, cpu, quality, kind })
}

/// Name and size of each record kind.
fn shape(kind: u16) -> Option<(&'static str, usize)> {
    Some(match kind {
        abi::kind::SIGNAL_GENERATE => ("signal_generate", size_of::<abi::SignalGenerate>()),
        abi::kind::SIGNAL_DELIVER => ("signal_deliver", size_of::<abi::SignalDeliver>()),
        abi::kind::FORK => ("fork", size_of::<abi::Fork>()),
        abi::kind::EXEC => ("exec", size_of::<abi::Exec>()),
        abi::kind::EXIT => ("exit", size_of::<abi::Exit>()),
        abi::kind::TCP_STATE => ("tcp_state", size_of::<abi::TcpState>()),
        abi::kind::RESET_SENT => ("reset_sent", size_of::<abi::ResetSent>()),
        abi::kind::RESET_RECEIVED => ("reset_received", size_of::<abi::TcpNotice>()),
        abi::kind::SYN_RETRANSMIT => ("syn_retransmit", size_of::<abi::TcpNotice>()),
        abi::kind::OOM_VICTIM => ("oom_victim", size_of::<abi::OomVictim>()),
        abi::kind::UNIX_DROPPED => ("unix_dropped", size_of::<abi::UnixDropped>()),
        abi::kind::UNIX_REFUSED => ("unix_refused", size_of::<abi::UnixRefused>()),
        abi::kind::NGINX_LOG => ("nginx_log", size_of::<abi::NginxLog>()),
        abi::kind::NGINX_ERROR_PAGE => ("nginx_error_page", size_of::<abi::NginxErrorPage>()),
        _ => return None,
    })
}

fn task(r: Reader<'_>) -> Result<m::Task, DecodeError> {
    fields!(r, abi::Task: start, cgroup, cgroup_v1, tgid, pid, ppid, ns_pid, pidns, netns, flags, uid);
    let comm: [u8; abi::COMM] = r.get(offset_of!(abi::Task, comm))?;
    Ok(m::Task {
        tgid,
        pid,
        ns_pid,
        ppid,
        uid,
        pidns,
        netns,
        flags,
        cgroup,
        cgroup_v1,
        start_ns: start,
        comm: text(&comm),
    })
}

fn tuple(r: Reader<'_>) -> Result<m::Tuple, DecodeError> {
    fields!(r, abi::Tuple: laddr, raddr, lport, rport, netns);
    Ok(m::Tuple { local_ip: ip(laddr), local_port: lport, remote_ip: ip(raddr), remote_port: rport, netns })
}

fn ip(words: [u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    m::canonical_ip(bytes)
}

fn side(r: Reader<'_>, side: u8) -> Result<m::Side, DecodeError> {
    match side {
        abi::side::CLIENT => Ok(m::Side::Client),
        abi::side::SERVER => Ok(m::Side::Server),
        abi::side::LISTENER => Ok(m::Side::Listener),
        other => Err(r.bad("side", other)),
    }
}

fn signal_generated(r: Reader<'_>) -> Result<m::SignalGenerated, DecodeError> {
    fields!(r, abi::SignalGenerate: sig, code, si_pid, info, result, group);
    let group: u32 = group;
    let info = match info {
        abi::info::NONE => m::SigInfo::None,
        abi::info::KERNEL => m::SigInfo::Kernel,
        abi::info::REAL => m::SigInfo::Real,
        other => return Err(r.bad("info", other)),
    };
    Ok(m::SignalGenerated {
        signal: sig,
        code,
        si_pid,
        info,
        result,
        group: group != 0,
        sender: task(r.inner(offset_of!(abi::SignalGenerate, sender)))?,
        target: task(r.inner(offset_of!(abi::SignalGenerate, target)))?,
    })
}

fn signal_delivered(r: Reader<'_>) -> Result<m::SignalDelivered, DecodeError> {
    fields!(r, abi::SignalDeliver: sig, code, handler, sa_flags);
    let task = task(r.inner(offset_of!(abi::SignalDeliver, task)))?;
    Ok(m::SignalDelivered { signal: sig, code, handler, sa_flags, task })
}

fn execed(r: Reader<'_>) -> Result<m::Execed, DecodeError> {
    fields!(r, abi::Exec: old_pid, path_len, argv_len);
    let path: [u8; abi::EXEC_STR] = r.get(offset_of!(abi::Exec, path))?;
    let argv: [u8; abi::EXEC_STR] = r.get(offset_of!(abi::Exec, argv))?;
    let (path_len, argv_len): (u16, u16) = (path_len, argv_len);
    let path = path.get(..path_len.into()).ok_or_else(|| r.bad("path_len", path_len))?;
    let argv = argv.get(..argv_len.into()).ok_or_else(|| r.bad("argv_len", argv_len))?;
    Ok(m::Execed {
        task: task(r.inner(offset_of!(abi::Exec, task)))?,
        old_pid,
        path: text(path),
        argv: arguments(argv),
    })
}

fn tcp_state(r: Reader<'_>) -> Result<m::TcpState, DecodeError> {
    fields!(r, abi::TcpState: sk, sk_cgroup, bytes_received, bytes_sent, bytes_acked, rcv_nxt, copied_seq, rcv_wup);
    fields!(r, abi::TcpState: write_seq, snd_una, snd_nxt, lsndtime, lrcvtime, jiffies, total_retrans, ack_backlog);
    fields!(r, abi::TcpState: max_ack_backlog, sk_err, family, oldstate, newstate, pingpong, sk_shutdown, accepted);
    let accepted: u8 = accepted;
    Ok(m::TcpState {
        sk,
        sk_cgroup,
        tuple: tuple(r.inner(offset_of!(abi::TcpState, tuple)))?,
        family,
        oldstate,
        newstate,
        side: side(r, r.get(offset_of!(abi::TcpState, side))?)?,
        accepted: accepted != 0,
        bytes_received,
        bytes_sent,
        bytes_acked,
        rcv_nxt,
        copied_seq,
        rcv_wup,
        write_seq,
        snd_una,
        snd_nxt,
        lsndtime,
        lrcvtime,
        jiffies,
        total_retrans,
        pingpong,
        sk_shutdown,
        sk_err,
        ack_backlog,
        max_ack_backlog,
        task: task(r.inner(offset_of!(abi::TcpState, task)))?,
    })
}

fn digest(r: Reader<'_>) -> Result<Option<m::Digest>, DecodeError> {
    fields!(r, abi::Digest: ts, sk_cgroup, bytes_received, bytes_sent, start, tgid, flags, newstate, bits, rcv_nxt);
    let (newstate, bits): (u32, u32) = (newstate, bits);
    if ts == 0 {
        return Ok(None);
    }
    Ok(Some(m::Digest {
        at: ts,
        sk_cgroup,
        bytes_received,
        bytes_sent,
        start_ns: start,
        tgid,
        flags,
        newstate: u8::try_from(newstate).map_err(|_| r.bad("digest.newstate", newstate))?,
        reported: bits & abi::digest_bits::REPORTED != 0,
        half_closed: bits & abi::digest_bits::HALF_CLOSED != 0,
        rcv_nxt,
    }))
}

fn reset_sent(r: Reader<'_>) -> Result<m::ResetSent, DecodeError> {
    fields!(r, abi::ResetSent: sk, sk_cgroup, reason, in_len, in_seq, in_ack, rcv_nxt, copied_seq, bytes_received);
    fields!(r, abi::ResetSent: bytes_sent, in_flags, sk_kind, active, state, port_known, accepted);
    let (reason, active, port_known, accepted): (u32, u8, u8, u8) = (reason, active, port_known, accepted);
    let socket = match sk_kind {
        abi::sk_kind::NONE => m::ResetSocket::None,
        abi::sk_kind::FULL => m::ResetSocket::Full,
        abi::sk_kind::TIME_WAIT => m::ResetSocket::TimeWait,
        abi::sk_kind::REQUEST => m::ResetSocket::Request,
        other => return Err(r.bad("sk_kind", other)),
    };
    Ok(m::ResetSent {
        sk,
        sk_cgroup,
        tuple: tuple(r.inner(offset_of!(abi::ResetSent, tuple)))?,
        reason: (reason != abi::NO_REASON).then_some(reason),
        socket,
        active: active != 0,
        state,
        accepted: accepted != 0,
        port_known: port_known != 0,
        in_flags,
        in_len,
        in_seq,
        in_ack,
        rcv_nxt,
        copied_seq,
        bytes_received,
        bytes_sent,
        digest: digest(r.inner(offset_of!(abi::ResetSent, digest)))?,
        task: task(r.inner(offset_of!(abi::ResetSent, task)))?,
    })
}

fn tcp_notice(r: Reader<'_>) -> Result<m::TcpNotice, DecodeError> {
    fields!(r, abi::TcpNotice: sk, sk_cgroup, bytes_received, bytes_sent, state, total_retrans);
    fields!(r, abi::TcpNotice: first_sent, first_received);
    Ok(m::TcpNotice {
        sk,
        sk_cgroup,
        tuple: tuple(r.inner(offset_of!(abi::TcpNotice, tuple)))?,
        state,
        side: side(r, r.get(offset_of!(abi::TcpNotice, side))?)?,
        bytes_received,
        bytes_sent,
        total_retrans,
        first_sent: Some(first_sent),
        first_received: Some(first_received),
    })
}

fn unix_dropped(r: Reader<'_>) -> Result<m::UnixDropped, DecodeError> {
    fields!(r, abi::UnixDropped: server_sk, client_sk, server_cgroup, client_cgroup, netns, len, embryo);
    let embryo: u8 = embryo;
    Ok(m::UnixDropped {
        server_sk,
        client_sk,
        server_cgroup,
        client_cgroup,
        netns,
        embryo: embryo != 0,
        len,
        path: unix_path(r, offset_of!(abi::UnixDropped, path), offset_of!(abi::UnixDropped, path_len))?,
        task: task(r.inner(offset_of!(abi::UnixDropped, task)))?,
    })
}

fn unix_refused(r: Reader<'_>) -> Result<m::UnixRefused, DecodeError> {
    fields!(r, abi::UnixRefused: error);
    Ok(m::UnixRefused {
        error,
        path: unix_path(r, offset_of!(abi::UnixRefused, path), offset_of!(abi::UnixRefused, path_len))?,
        task: task(r.inner(offset_of!(abi::UnixRefused, task)))?,
    })
}

fn nginx_logged(r: Reader<'_>) -> Result<m::NginxLogged, DecodeError> {
    fields!(r, abi::NginxLog: level, errno, format_len, connection);
    let (format, format_len): ([u8; abi::NGINX_FORMAT], u16) = (r.get(offset_of!(abi::NginxLog, format))?, format_len);
    let format = format.get(..format_len.into()).ok_or_else(|| r.bad("format_len", format_len))?;
    let task = task(r.inner(offset_of!(abi::NginxLog, task)))?;
    Ok(m::NginxLogged { task, level, errno, format: text(format), connection: number(connection) })
}

fn nginx_error_page(r: Reader<'_>) -> Result<m::NginxErrorPage, DecodeError> {
    fields!(r, abi::NginxErrorPage: status, connection);
    let client = tuple(r.inner(offset_of!(abi::NginxErrorPage, client)))?;
    Ok(m::NginxErrorPage {
        task: task(r.inner(offset_of!(abi::NginxErrorPage, task)))?,
        status,
        connection: number(connection),
        client: (client.remote_port != 0).then_some(client),
    })
}

/// 0 is none.
fn number(connection: u64) -> Option<u64> {
    (connection != 0).then_some(connection)
}

/// A path up to its NUL. An abstract name begins with NUL and has no end but its length: each NUL is shown as `@`, as
/// /proc/net/unix does; programs that give the whole `sun_path` pad it, which is not shown.
fn unix_path(r: Reader<'_>, path: usize, len: usize) -> Result<String, DecodeError> {
    let (path, len): ([u8; abi::UNIX_PATH], u16) = (r.get(path)?, r.get(len)?);
    let path = path.get(..len.into()).ok_or_else(|| r.bad("path_len", len))?;
    if path.first() != Some(&0) {
        return Ok(text(path));
    }
    let end = path.iter().rposition(|b| *b != 0).unwrap_or(0);
    let name: Vec<u8> = path[..=end].iter().map(|b| if *b == 0 { b'@' } else { *b }).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Up to the first NUL; what is not UTF-8 becomes U+FFFD.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Each argument ends with a NUL, the last one may be cut before it. An empty argument is an argument.
fn arguments(bytes: &[u8]) -> Vec<String> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect()
}

#[cfg(test)]
mod tests;
