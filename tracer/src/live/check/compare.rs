//! What the records of our own doings must say. Pure but for [`Us::read`].

use super::CheckError;
use super::acts::{self, Child, Connection};
use crate::kernel::host::{self, INIT_PIDNS};
use crate::model::event::{Execed, ResetSent, Side, SigInfo, SignalGenerated, Task, TcpState, tcp};
use crate::model::input::Hierarchy;
use crate::sources::cgroups::Trees;
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use why502_ebpf::quality;

/// PROC_TIME_INIT_INO of include/linux/proc_ns.h.
const INIT_TIMENS: u32 = 0xefff_fffa;

/// What we know of ourselves without the probes. `None`: cannot be known here, is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Us {
    pub(super) pid: u32,
    pub(super) netns: u32,
    pub(super) pidns: u32,
    pub(super) comm: Option<String>,
    pub(super) start_ticks: Option<u64>,
    pub(super) ppid: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) cgroup: Option<u64>,
    pub(super) cgroup_v1: Option<u64>,
}

impl Us {
    pub(super) fn read() -> Us {
        let root = Path::new("/");
        // In a private cgroup namespace /proc names our own cgroup `/`, and the host's tree is mounted elsewhere.
        let trees = Trees::find(root);
        let text = |path: &str| fs::read_to_string(path).ok();
        let namespace = |name| host::namespace(root, "self", name).unwrap_or(0);
        // After the last ')': state, ppid, …; the start time is the 20th of these.
        let stat = text("/proc/self/stat");
        let field = |n: usize| stat.as_deref()?.rsplit_once(')')?.1.split_whitespace().nth(n)?.parse::<u64>().ok();
        let pidns = namespace("pid");
        let whole_users = text("/proc/self/uid_map").is_some_and(|m| m.split_whitespace().eq(["0", "0", "4294967295"]));
        Us {
            pid: std::process::id(),
            netns: namespace("net"),
            pidns,
            comm: text("/proc/thread-self/comm").map(|c| c.trim_end_matches('\n').to_owned()),
            // In another time namespace /proc shows another boot time.
            start_ticks: field(19).filter(|_| namespace("time") == INIT_TIMENS || namespace("time") == 0),
            ppid: field(1).filter(|_| pidns == INIT_PIDNS).and_then(|p| u32::try_from(p).ok()),
            uid: whole_users.then(|| rustix::process::getuid().as_raw()),
            cgroup: trees.own_id(root, Hierarchy::V2),
            cgroup_v1: trees.own_id(root, Hierarchy::V1),
        }
    }

    /// The task is a thread of ours.
    pub(super) fn is(&self, task: &Task) -> bool {
        self.is_pid(task, self.pid)
    }

    /// The task is of the process that is `pid` in our pid namespace. In the initial one its tgid says so; in an inner one
    /// only the pair of namespace and pid in it does. Either is enough: one of them may be what is wrong.
    pub(super) fn is_pid(&self, task: &Task, pid: u32) -> bool {
        self.pidns == INIT_PIDNS && task.tgid == pid || task.pidns == self.pidns && task.ns_pid == pid
    }
}

pub(super) type Verdict = Result<(), CheckError>;

pub(super) fn same<T: PartialEq + Display>(
    record: &'static str,
    field: &'static str,
    found: &T,
    wanted: &T,
) -> Verdict {
    if found == wanted {
        return Ok(());
    }
    let (found, wanted) = (found.to_string(), wanted.to_string());
    Err(CheckError::Wrong { record, field, found, wanted })
}

pub(super) fn known<T: PartialEq + Display>(
    record: &'static str,
    field: &'static str,
    found: &T,
    wanted: &Option<T>,
) -> Verdict {
    wanted.as_ref().map_or(Ok(()), |wanted| same(record, field, found, wanted))
}

pub(super) fn holds(record: &'static str, field: &'static str, found: impl Display, wanted: &str, ok: bool) -> Verdict {
    let wrong = |found: String| CheckError::Wrong { record, field, found, wanted: wanted.to_owned() };
    if ok { Ok(()) } else { Err(wrong(found.to_string())) }
}

/// One of our own threads.
pub(super) fn ourselves(record: &'static str, us: &Us, t: &Task) -> Verdict {
    common(record, us, t, us.pid)?;
    known(record, "task.start_boottime (ticks)", &t.key().start_ticks, &us.start_ticks)?;
    known(record, "task.real_parent", &t.ppid, &us.ppid)?;
    known(record, "task.comm", &t.comm, &us.comm)
}

/// What we share with a child of ours.
fn common(record: &'static str, us: &Us, t: &Task, pid: u32) -> Verdict {
    if us.pidns == INIT_PIDNS {
        same(record, "task.tgid", &t.tgid, &pid)?;
    }
    same(record, "pid.numbers[].nr", &t.ns_pid, &pid)?;
    same(record, "pid.numbers[].ns", &t.pidns, &us.pidns)?;
    same(record, "task.nsproxy.net_ns", &t.netns, &us.netns)?;
    known(record, "task.cred.uid", &t.uid, &us.uid)?;
    known(record, "task.cgroups.dfl_cgrp", &t.cgroup, &us.cgroup)?;
    known(record, "task.cgroups.subsys[]", &t.cgroup_v1, &us.cgroup_v1)
}

pub(super) fn fork(us: &Us, c: &Child, parent: &Task, child: &Task) -> Verdict {
    const R: &str = "sched_process_fork";
    ourselves(R, us, parent)?;
    common(R, us, child, c.pid)?;
    same(R, "child task.pid", &child.pid, &child.tgid)?;
    same(R, "child task.real_parent", &child.ppid, &parent.tgid)
}

pub(super) fn exec(us: &Us, c: &Child, e: &Execed, q: u16) -> Verdict {
    const R: &str = "sched_process_exec";
    common(R, us, &e.task, c.pid)?;
    same(R, "binprm.filename", &e.path.as_str(), &acts::EXE)?;
    holds(R, "mm.arg_start", "nothing", "our arguments", q & quality::NO_ARGV == 0)?;
    let argv = e.argv.join(" ");
    same(R, "mm.arg_start", &argv, &format!("{} {}", acts::ARG0, acts::ARG))
}

pub(super) fn exit(_us: &Us, c: &Child, _task: &Task, code: u32) -> Verdict {
    same("sched_process_exit", "task.exit_code", &code, &c.status)
}

pub(super) fn signal(us: &Us, s: &SignalGenerated) -> Verdict {
    const R: &str = "signal_generate";
    ourselves(R, us, &s.sender)?;
    // The target is our thread group's leader or a thread: only what they share.
    common(R, us, &s.target, us.pid)?;
    same(R, "si_code", &s.code, &0)?;
    if s.info == SigInfo::Real {
        same(R, "si_pid", &s.si_pid, &us.pid)?;
    }
    Ok(())
}

fn ends(
    record: &'static str,
    us: &Us,
    t: &crate::model::Tuple,
    server: SocketAddr,
    client: Option<SocketAddr>,
) -> Verdict {
    same(record, "skc_net", &t.netns, &us.netns)?;
    same(record, "skc_rcv_saddr", &t.local_ip, &server.ip())?;
    same(record, "skc_num", &t.local_port, &server.port())?;
    let Some(client) = client else { return Ok(()) };
    same(record, "skc_daddr", &t.remote_ip, &client.ip())?;
    same(record, "skc_dport", &t.remote_port, &client.port())
}

pub(super) fn listening(us: &Us, c: &Connection, s: &TcpState) -> Verdict {
    const R: &str = "inet_sock_set_state (listen)";
    ends(R, us, &s.tuple, c.server, None)?;
    ourselves(R, us, &s.task)?;
    known(R, "sk_cgrp_data", &s.sk_cgroup, &us.cgroup)
}

/// A listener without room: ours never have one connection too many.
pub(super) fn full(s: &TcpState) -> Verdict {
    same("inet_sock_set_state (full queue)", "sk_max_ack_backlog", &s.max_ack_backlog, &acts::BACKLOG)
}

/// The server side's close, or the listener's.
pub(super) fn closed(us: &Us, c: &Connection, listener: bool, s: &TcpState) -> Verdict {
    let family = if c.server.is_ipv4() { 2 } else { 10 };
    if listener {
        const R: &str = "inet_sock_set_state (listener)";
        ends(R, us, &s.tuple, c.server, None)?;
        same(R, "skc_family", &s.family, &family)?;
        return same(R, "sk_max_ack_backlog", &s.max_ack_backlog, &acts::BACKLOG);
    }
    const R: &str = "inet_sock_set_state (close)";
    ends(R, us, &s.tuple, c.server, Some(c.client))?;
    ourselves(R, us, &s.task)?;
    known(R, "sk_cgrp_data", &s.sk_cgroup, &us.cgroup)?;
    same(R, "skc_family", &s.family, &family)?;
    same(R, "oldstate", &s.oldstate, &tcp::ESTABLISHED)?;
    let newstate = if c.unread > 0 { tcp::CLOSE } else { tcp::FIN_WAIT1 };
    same(R, "newstate", &s.newstate, &newstate)?;
    same(R, "side", &format!("{:?}", s.side), &format!("{:?}", Side::Server))?;
    same(R, "sk_socket", &s.accepted, &true)?;
    same(R, "sk_err", &s.sk_err, &0)?;
    same(R, "sk_shutdown", &s.sk_shutdown, &3)?;
    same(R, "bytes_received", &s.bytes_received, &c.received)?;
    same(R, "bytes_sent", &s.bytes_sent, &c.sent)?;
    holds(R, "bytes_acked", s.bytes_acked, "at most what was sent", s.bytes_acked <= c.sent + 1)?;
    same(R, "rcv_nxt - copied_seq", &s.rcv_nxt.wrapping_sub(s.copied_seq), &c.unread)?;
    let unacked = s.rcv_nxt.wrapping_sub(s.rcv_wup);
    holds(R, "rcv_nxt - rcv_wup", unacked, "at most what came", u64::from(unacked) <= c.received)?;
    same(R, "write_seq - snd_nxt", &s.write_seq.wrapping_sub(s.snd_nxt), &0)?;
    let in_flight = s.snd_nxt.wrapping_sub(s.snd_una);
    holds(R, "snd_nxt - snd_una", in_flight, "at most what was sent", u64::from(in_flight) <= c.sent)?;
    same(R, "total_retrans", &s.total_retrans, &0)?;
    // 10 s in ticks of the fastest clock: the socket is a few ms old.
    for (field, at) in [("lrcvtime", s.lrcvtime), ("lsndtime", s.lsndtime)] {
        let age = s.jiffies.wrapping_sub(at);
        holds(R, field, age, "a few ticks ago", age < 10_000)?;
    }
    Ok(())
}

pub(super) fn reset(us: &Us, c: &Connection, r: &ResetSent) -> Verdict {
    const R: &str = "tcp_send_reset";
    ends(R, us, &r.tuple, c.server, Some(c.client))?;
    ourselves(R, us, &r.task)?;
    same(R, "bytes_received", &r.bytes_received, &c.received)?;
    same(R, "bytes_sent", &r.bytes_sent, &c.sent)?;
    same(R, "rcv_nxt - copied_seq", &r.rcv_nxt.wrapping_sub(r.copied_seq), &c.unread)?;
    same(R, "port_known", &r.port_known, &true)
}
