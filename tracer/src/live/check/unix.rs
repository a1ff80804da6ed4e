//! The same for AF_UNIX: a server of ours that closes with a request unread and a connection in its queue, then a connect
//! that nobody takes. Its hooks are optional: what does not come is told, what comes and is wrong is refused.

use super::CheckError;
use super::compare::{self, Us, Verdict};
use crate::model::event::{Event, EventKind, UnixDropped, UnixRefused};
use crate::model::input::{HookState, HookStatus};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use why502_ebpf::names::{HOOKS, hook};

/// Bytes that nobody reads.
const UNREAD: u32 = 13;
/// include/uapi/asm-generic/errno.h
const ECONNREFUSED: u32 = 111;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Act {
    /// The server's address, as records have it.
    pub(super) path: String,
    /// The hooks for closes and for failed connects are attached.
    pub(super) closes: bool,
    pub(super) connects: bool,
}

impl Act {
    /// In the abstract namespace: leaves no file behind.
    pub(super) fn perform(hooks: &[HookStatus]) -> io::Result<Act> {
        let attached = |hook: u32| {
            let name = HOOKS[hook as usize].name;
            hooks.iter().any(|s| s.hook == name && s.state == HookState::Attached)
        };
        let name = format!("why502-self-check-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = UnixListener::bind_addr(&address)?;
        let mut client = UnixStream::connect_addr(&address)?;
        let (server, _) = listener.accept()?;
        client.write_all(&[b'x'; UNREAD as usize])?;
        drop(server);
        let queued = UnixStream::connect_addr(&address)?;
        drop(listener);
        drop(queued);
        if UnixStream::connect_addr(&address).is_ok() {
            return Err(io::Error::other("somebody listens on a name of ours"));
        }
        Ok(Act {
            path: format!("@{name}"),
            closes: attached(hook::KFREE_SKB),
            connects: attached(hook::UNIX_STREAM_CONNECT) || attached(hook::SYS_EXIT),
        })
    }
}

/// The record is of something that this process did.
pub(super) fn made(us: &Us, event: &Event) -> bool {
    match &event.kind {
        EventKind::UnixDropped(d) => us.is(&d.task),
        EventKind::UnixRefused(r) => us.is(&r.task),
        _ => false,
    }
}

/// Which of the expected records came.
#[derive(Debug, Default)]
pub(super) struct Found {
    bytes: bool,
    embryo: bool,
    refused: bool,
}

impl Found {
    pub(super) fn take(&mut self, event: &Event, us: &Us, act: &Act) -> Result<(), CheckError> {
        match &event.kind {
            EventKind::UnixDropped(d) => {
                *(if d.embryo { &mut self.embryo } else { &mut self.bytes }) = true;
                dropped(us, act, d)
            }
            EventKind::UnixRefused(r) => {
                self.refused = true;
                refused(us, act, r)
            }
            _ => Ok(()),
        }
    }

    /// What did not come.
    pub(super) fn missing(&self, act: &Act) -> Option<&'static str> {
        if act.closes && !(self.bytes && self.embryo) {
            return Some("closes of unix sockets are not reported on this kernel: requests lost there stay unseen");
        }
        (act.connects && !self.refused).then_some("failed connects to unix sockets are not reported on this kernel")
    }
}

fn dropped(us: &Us, act: &Act, d: &UnixDropped) -> Verdict {
    const R: &str = "kfree_skb";
    compare::same(R, "unix_address.name", &d.path, &act.path)?;
    compare::ourselves(R, us, &d.task)?;
    compare::same(R, "sk_buff.len", &d.len, &if d.embryo { 0 } else { UNREAD })?;
    compare::same(R, "skc_net", &d.netns, &us.netns)?;
    compare::known(R, "task.cgroups.dfl_cgrp", &d.server_cgroup, &us.cgroup)?;
    compare::known(R, "sk_cgrp_data", &d.client_cgroup, &us.cgroup)?;
    compare::holds(R, "unix_sock.peer", d.server_sk, "another socket than its own", d.server_sk != d.client_sk)
}

fn refused(us: &Us, act: &Act, r: &UnixRefused) -> Verdict {
    const R: &str = "unix_stream_connect";
    compare::same(R, "sockaddr_un.sun_path", &r.path, &act.path)?;
    compare::ourselves(R, us, &r.task)?;
    compare::same(R, "result", &r.error, &ECONNREFUSED)
}
