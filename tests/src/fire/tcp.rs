//! Connections: every way to close, to be reset, to be refused, over IPv4, IPv6 and v4-mapped, in a network namespace of
//! our own. One process holds both ends, so every `current` is known; the sockets are made in different cgroups.

use super::Fire;
use super::child::{Child, PATIENCE};
use super::facts::{CLIENT, Facts, MAIN, SERVER, netns};
use super::manifest::Expect;
use super::sock::{Client, FAMILIES, Family, info, linger_zero, loopback_up, tuple};
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::time::Instant;

mod late;

/// include/net/rstreason.h, `enum sk_rst_reason`: the same numbers in every kernel that has it.
pub(crate) mod reason {
    pub(crate) const NO_SOCKET: u32 = 1;
    pub(crate) const TCP_FLAGS: u32 = 6;
    pub(crate) const ABORT_ON_DATA: u32 = 8;
    pub(crate) const TIMEWAIT_SOCKET: u32 = 9;
    pub(crate) const ABORT_ON_CLOSE: u32 = 11;
    pub(crate) const TCP_STATE: u32 = 14;
}

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// Never listened on.
const CLOSED_PORT: u16 = 20_999;
const REQUEST: [u8; 75] = [b'r'; 75];
const ANSWER: [u8; 120] = [b'a'; 120];
const LATE: [u8; 51] = [b'l'; 51];

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    let child = Child::ready(|line| {
        // SAFETY: flags only.
        let r = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(r == 0, "unshare: {}", std::io::Error::last_os_error());
        loopback_up()?;
        super::signals::ignore(libc::SIGPIPE)?;
        fire.cgroups.enter(SERVER)?;
        line.ready();
        all(fire)?;
        fire.cgroups.enter(MAIN)?;
        Ok(0)
    })?;
    fire.hold_netns(child.pid)?;
    child.finish()?;
    Ok(())
}

/// A family's cases, with what they share.
struct Tcp<'a> {
    fire: &'a Fire,
    family: Family,
    netns: u32,
    us: Facts,
    server_cgroup: u64,
    client_cgroup: u64,
    /// The listener of the cases that need no other.
    listener: TcpListener,
    port: u16,
}

/// Both ends of a connection, accepted.
struct Pair {
    client: Client,
    server: TcpStream,
}

fn all(fire: &Fire) -> Result<()> {
    let mut overflows = Vec::new();
    let mut families = Vec::new();
    for (n, family) in (0u16..).zip(FAMILIES) {
        let port = 20_000 + n * 100;
        let t = Tcp {
            fire,
            family: *family,
            netns: netns()?,
            us: Facts::own()?,
            server_cgroup: fire.cgroups.id(SERVER)?,
            client_cgroup: fire.cgroups.id(CLIENT)?,
            listener: family.listener(port, 64)?,
            port,
        };
        t.expect_listener(port, CLOSE, LISTEN, json!({"max_ack_backlog": 64}))?;
        // Takes a second: begins first, ends last.
        overflows.push(t.overflow()?);
        families.push(t);
    }
    for t in &families {
        one_family(t)?;
    }
    for (t, o) in families.iter().zip(overflows) {
        t.overflowed(o).with_context(|| format!("{} overflow", t.family.name))?;
    }
    for t in families {
        let (fire, family, tuple) =
            (t.fire, t.family, json!({"local_port": t.port, "remote_port": 0, "netns": t.netns}));
        let want = t.listener_want(LISTEN, CLOSE, json!({"ack_backlog": 0}));
        drop(t);
        fire.manifest.expect(Expect::one(
            &format!("{}: last listener closes", family.name),
            json!({"kind": "tcp-state", "newstate": CLOSE, "tuple": tuple}),
            want,
        ))?;
    }
    Ok(())
}

type Case<'a> = fn(&Tcp<'a>) -> Result<()>;

fn one_family<'a>(t: &Tcp<'a>) -> Result<()> {
    let cases: &[(&str, Case<'a>)] = &[
        ("closed port", Tcp::closed_port),
        ("listener gone", Tcp::listener_gone),
        ("linger at the server", Tcp::linger_server),
        ("close with unread data", Tcp::unread),
        ("reset by the client", Tcp::linger_client),
        ("pending connections", Tcp::pending),
        ("answered, late data", Tcp::late_data),
        ("answered, gone, late data", Tcp::late_data_listener),
        ("answered, all gone, late data", Tcp::late_data_no_socket),
        ("data to an orphan", Tcp::orphan),
        ("unanswered close", Tcp::unanswered),
        ("unanswered shutdown", Tcp::unanswered_shutdown),
        ("unanswered exit", Tcp::unanswered_exit),
        ("client closes first", Tcp::client_first),
        ("nothing asked", Tcp::idle),
    ];
    for (name, case) in cases {
        case(t).with_context(|| format!("{} {name}", t.family.name))?;
    }
    Ok(())
}

impl Tcp<'_> {
    fn expect(&self, name: &str, kind: &str, tuple: &Value, want: Value) -> Result<()> {
        self.fire.manifest.expect(self.record(name, kind, tuple, want))
    }

    fn record(&self, name: &str, kind: &str, tuple: &Value, want: Value) -> Expect {
        let name = format!("{}: {name}", self.family.name);
        Expect::one(&name, json!({"kind": kind, "tuple": tuple}), want)
    }

    fn listener_want(&self, old: u8, new: u8, more: Value) -> Value {
        let mut want = json!({
            "side": "listener", "oldstate": old, "newstate": new, "family": self.family.number(),
            "sk_cgroup": self.server_cgroup, "task": self.us.json(),
            "tuple": {"local_ip": self.family.listen, "remote_ip": unspecified(self.family.listen)}, "quality": [],
        });
        merge(&mut want, more);
        want
    }

    fn expect_listener(&self, port: u16, old: u8, new: u8, more: Value) -> Result<()> {
        let name = format!("{}: listener {}", self.family.name, if new == LISTEN { "opens" } else { "closes" });
        let tuple = json!({"local_port": port, "remote_port": 0, "netns": self.netns});
        let select = json!({"kind": "tcp-state", "newstate": new, "tuple": tuple});
        self.fire.manifest.expect(Expect::one(&name, select, self.listener_want(old, new, more)))
    }

    /// A client socket, made in the client's cgroup.
    fn client<T>(&self, make: impl FnOnce(&Family) -> Result<T>) -> Result<T> {
        self.fire.cgroups.enter(CLIENT)?;
        let made = make(&self.family);
        self.fire.cgroups.enter(SERVER)?;
        made
    }

    fn pair(&self) -> Result<Pair> {
        self.pair_at(&self.listener, self.port)
    }

    fn pair_at(&self, listener: &TcpListener, port: u16) -> Result<Pair> {
        let client = self.client(|f| f.connected(port))?;
        let (server, from) = listener.accept()?;
        ensure!(from.port() == client.port, "accepted somebody else");
        server.set_read_timeout(Some(PATIENCE))?;
        client.stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Pair { client, server })
    }

    /// A pair whose server has read a request.
    fn asked(&self) -> Result<Pair> {
        self.asked_at(&self.listener, self.port)
    }

    fn asked_at(&self, listener: &TcpListener, port: u16) -> Result<Pair> {
        let mut pair = self.pair_at(listener, port)?;
        pair.client.stream.write_all(&REQUEST)?;
        pair.server.read_exact(&mut [0; REQUEST.len()])?;
        Ok(pair)
    }

    /// A pair whose server has answered as well.
    fn answered_at(&self, listener: &TcpListener, port: u16) -> Result<Pair> {
        let mut pair = self.asked_at(listener, port)?;
        pair.server.write_all(&ANSWER)?;
        pair.client.stream.read_exact(&mut [0; ANSWER.len()])?;
        Ok(pair)
    }

    fn server_tuple(&self, client: &Client) -> Value {
        self.tuple(self.port, client.port)
    }

    fn tuple(&self, local: u16, remote: u16) -> Value {
        tuple(self.family.ip(), local, (self.family.ip(), remote), self.netns)
    }

    /// What the record of an unanswered close says, unless `more` says otherwise.
    fn lost(&self, newstate: u8, more: Value) -> Value {
        let mut want = json!({
            "oldstate": ESTABLISHED, "newstate": newstate, "family": self.family.number(), "side": "server",
            "sk_cgroup": self.server_cgroup, "accepted": true, "sk_err": 0, "task": self.us.json(),
            "bytes_received": REQUEST.len(), "bytes_sent": 0, "unread": 0, "unacked": 0, "total_retrans": 0,
            "sk_shutdown": 3, "lrcv_age": {"$le": 60_000}, "tuple": {"netns": self.netns}, "quality": [],
        });
        merge(&mut want, more);
        want
    }

    /// What a reset sent on the server's own account says.
    fn active(&self, accepted: bool) -> Value {
        json!({
            "active": true, "socket": "full", "in_flags": 0, "in_len": 0, "port_known": true, "accepted": accepted,
            "sk_cgroup": self.server_cgroup, "bytes_received": REQUEST.len(), "bytes_sent": 0, "task": self.us.json(),
        })
    }

    /// A reset that arrives at the client.
    fn expect_at_client(&self, name: &str, client: &Client, state: u8, sent: usize) -> Result<()> {
        let remote = if state == SYN_SENT { CLOSED_PORT } else { self.port };
        let end = Instant::now() + PATIENCE;
        let mut truth = info(&client.stream)?;
        while truth.state != CLOSE {
            ensure!(Instant::now() < end, "{name}: no reset at the client");
            truth = info(&client.stream)?;
        }
        // More than was written when the machine is so slow that TCP repeats itself.
        let bytes_sent = truth.bytes_sent;
        ensure!(bytes_sent >= u64::try_from(sent)?, "{name}: {bytes_sent} bytes sent");
        let tuple = self.tuple(client.port, remote);
        let want = json!({
            "side": "client", "state": state, "sk_cgroup": self.client_cgroup, "bytes_sent": bytes_sent, "quality": [],
        });
        self.expect(&format!("{name}: reset at the client"), "reset-received", &tuple, want)
    }

    /// A reset that answers a packet for a port that listens or has listened.
    fn reply(&self, flags: u8, len: usize) -> Value {
        json!({
            "active": false, "in_flags": {"$mask": [0x1f, flags]}, "in_len": len, "port_known": true, "quality": [],
        })
    }

    /// A port that never listened: somebody's scan. Only counted; the client, which may be a proxy, still tells.
    fn closed_port(&self) -> Result<()> {
        let client = self.client(Family::bound)?;
        let e = client.connect(CLOSED_PORT).err().context("connected to a closed port")?;
        ensure!(e.kind() == ErrorKind::ConnectionRefused, "{e}");
        let select = json!({"kind": "reset-sent", "tuple": self.tuple(CLOSED_PORT, client.port)});
        self.fire.manifest.expect(Expect::none(&format!("{}: closed port: reset", self.family.name), select))?;
        self.expect_at_client("closed port", &client, SYN_SENT, 0)
    }

    /// As after a stop: the port has listened.
    fn listener_gone(&self) -> Result<()> {
        let port = self.port + 1;
        let listener = self.family.listener(port, 5)?;
        self.expect_listener(port, CLOSE, LISTEN, json!({"max_ack_backlog": 5}))?;
        drop(listener);
        self.expect_listener(port, LISTEN, CLOSE, json!({"ack_backlog": 0}))?;
        let client = self.client(Family::bound)?;
        ensure!(client.connect(port).is_err(), "connected to a closed port");
        let mut want = self.reply(2, 0);
        merge(&mut want, json!({"socket": "none", "digest": null}));
        let tuple = self.tuple(port, client.port);
        let e = self.record("listener gone: reset", "reset-sent", &tuple, want);
        self.fire.manifest.expect(e.reply_reset().reason(reason::NO_SOCKET))
    }

    fn linger_server(&self) -> Result<()> {
        let name = "linger at the server";
        let pair = self.asked()?;
        linger_zero(&pair.server)?;
        drop(pair.server);
        let tuple = self.server_tuple(&pair.client);
        self.expect(name, "tcp-state", &tuple, self.lost(CLOSE, json!({})))?;
        let e = self.record(&format!("{name}: reset"), "reset-sent", &tuple, self.active(true));
        self.fire.manifest.expect(e.reason(reason::TCP_STATE))?;
        self.expect_at_client(name, &pair.client, ESTABLISHED, REQUEST.len())
    }

    fn unread(&self) -> Result<()> {
        let name = "close with unread data";
        let mut pair = self.pair()?;
        pair.client.stream.write_all(&REQUEST)?;
        // It has arrived when it can be peeked at.
        pair.server.peek(&mut [0; 1])?;
        drop(pair.server);
        let tuple = self.server_tuple(&pair.client);
        self.expect(name, "tcp-state", &tuple, self.lost(CLOSE, json!({"unread": REQUEST.len()})))?;
        let e = self.record(&format!("{name}: reset"), "reset-sent", &tuple, self.active(true));
        self.fire.manifest.expect(e.reason(reason::ABORT_ON_CLOSE))?;
        self.expect_at_client(name, &pair.client, ESTABLISHED, REQUEST.len())
    }

    fn linger_client(&self) -> Result<()> {
        let name = "reset by the client";
        let mut pair = self.asked()?;
        let tuple = self.server_tuple(&pair.client);
        let flipped = self.tuple(pair.client.port, self.port);
        linger_zero(&pair.client.stream)?;
        drop(pair.client);
        let e = pair.server.read(&mut [0; 8]).err().context("no reset at the server")?;
        ensure!(e.kind() == ErrorKind::ConnectionReset, "{e}");
        let mut want = self.lost(CLOSE, json!({"sk_err": libc::ECONNRESET, "sk_shutdown": {"$ge": 0}}));
        // In softirq: `current` is whoever was interrupted.
        want["task"] = json!({});
        self.expect(name, "tcp-state", &tuple, want)?;
        let want = json!({
            "side": "server", "state": ESTABLISHED, "sk_cgroup": self.server_cgroup,
            "bytes_received": REQUEST.len(), "bytes_sent": 0,
        });
        self.expect(&format!("{name}: received"), "reset-received", &tuple, want)?;
        let want = json!({
            "active": true, "port_known": false, "sk_cgroup": self.client_cgroup, "bytes_sent": REQUEST.len(),
            "task": self.us.json(),
        });
        let e = self.record(&format!("{name}: sent"), "reset-sent", &flipped, want);
        self.fire.manifest.expect(e.reason(reason::TCP_STATE))
    }

    /// Accepted by the kernel, not by the process, when the listener closes.
    fn pending(&self) -> Result<()> {
        let name = "pending connection";
        let port = self.port + 2;
        let listener = self.family.listener(port, 8)?;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = self.client(|f| f.connected(port))?;
            client.stream.write_all(&REQUEST)?;
            wait_acked(&client.stream)?;
            clients.push(client);
        }
        drop(listener);
        self.expect_listener(port, LISTEN, CLOSE, json!({"ack_backlog": 3, "max_ack_backlog": 8}))?;
        for client in &clients {
            let tuple = self.tuple(port, client.port);
            let more = json!({"accepted": false, "unread": REQUEST.len(), "sk_shutdown": {"$ge": 0}});
            self.expect(name, "tcp-state", &tuple, self.lost(CLOSE, more))?;
            let e = self.record(&format!("{name}: reset"), "reset-sent", &tuple, self.active(false));
            self.fire.manifest.expect(e.reason(reason::TCP_STATE))?;
        }
        Ok(())
    }

    fn unanswered(&self) -> Result<()> {
        let pair = self.asked()?;
        let tuple = self.server_tuple(&pair.client);
        let truth = info(&pair.server)?;
        drop(pair.server);
        let mut want = self.lost(FIN_WAIT1, json!({}));
        merge(
            &mut want,
            json!({
                "bytes_received": truth.bytes_received, "bytes_sent": truth.bytes_sent,
                "bytes_acked": truth.bytes_acked, "task": {"flags": {"$mask": [4, 0]}},
            }),
        );
        self.expect("unanswered close", "tcp-state", &tuple, want)
    }

    fn unanswered_shutdown(&self) -> Result<()> {
        let pair = self.asked()?;
        pair.server.shutdown(Shutdown::Write)?;
        let want = self.lost(FIN_WAIT1, json!({"sk_shutdown": 2}));
        self.expect("unanswered shutdown", "tcp-state", &self.server_tuple(&pair.client), want)
    }

    fn unanswered_exit(&self) -> Result<()> {
        let Pair { client, server } = self.asked()?;
        let held = &client;
        let worker = Child::ready(move |line| {
            // Keeps its copy of the socket to its end, and not the client's.
            // SAFETY: this process never uses the descriptor again.
            unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(&held.stream)) };
            line.ready();
            // Not closed before the end.
            std::mem::forget(server);
            Ok(0)
        })?;
        // The parent's copy moved into the closure, which ended here.
        let facts = worker.facts()?;
        worker.finish()?;
        let mut want = self.lost(FIN_WAIT1, json!({}));
        want["task"] = facts.exiting();
        self.expect("unanswered exit", "tcp-state", &self.server_tuple(&client), want)
    }

    /// The requester gives up. Its FIN counts as a received byte.
    fn client_first(&self) -> Result<()> {
        let Pair { client, mut server } = self.asked()?;
        let tuple = self.server_tuple(&client);
        drop(client);
        ensure!(server.read(&mut [0; 8])? == 0, "no end of file");
        let mut want = self.lost(CLOSE_WAIT, json!({"bytes_received": REQUEST.len() + 1, "sk_shutdown": {"$ge": 0}}));
        // In softirq, and the FIN is neither acknowledged nor read yet.
        (want["task"], want["unread"]) = (json!({}), json!({"$ge": 0}));
        self.expect("client closes first", "tcp-state", &tuple, want)
    }

    fn idle(&self) -> Result<()> {
        let Pair { client, server } = self.pair()?;
        let tuple = self.server_tuple(&client);
        drop(server);
        let none = json!({"kind": "tcp-state", "tuple": tuple});
        self.fire.manifest.expect(Expect::none(&format!("{}: nothing asked", self.family.name), none))
    }

    /// listen(0) takes one connection; the SYNs of more are dropped, and sent again after a second.
    fn overflow(&self) -> Result<Overflow> {
        let port = self.port + 3;
        let listener = self.family.listener(port, 0)?;
        let first = self.client(|f| f.connected(port))?;
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let client = self.client(Family::bound)?;
            client.stream.set_nonblocking(true)?;
            let e = client.connect(port).err().context("connected at once")?;
            ensure!(e.raw_os_error() == Some(libc::EINPROGRESS), "{e}");
            waiting.push(client);
        }
        Ok(Overflow { listener, first, waiting, port })
    }

    fn overflowed(&self, o: Overflow) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        for client in &o.waiting {
            let mut now = info(&client.stream)?;
            while now.total_retrans == 0 && Instant::now() < end {
                std::thread::sleep(std::time::Duration::from_millis(10));
                now = info(&client.stream)?;
            }
            ensure!(now.state == SYN_SENT && now.total_retrans > 0, "no SYN was sent again");
            let tuple = self.tuple(client.port, o.port);
            let want = json!({
                "side": "client", "state": SYN_SENT, "sk_cgroup": self.client_cgroup, "quality": [],
                "total_retrans": {"$ge": 1}, "bytes_sent": 0,
            });
            let count = usize::try_from(now.total_retrans)?;
            self.fire
                .manifest
                .expect(self.record("SYN sent again", "syn-retransmitted", &tuple, want).between(count, count + 1))?;
        }
        drop(o.waiting);
        let never = json!({"kind": "syn-retransmitted", "tuple": self.tuple(o.first.port, o.port)});
        self.fire.manifest.expect(Expect::none(&format!("{}: accepted SYN", self.family.name), never))?;
        drop(o.listener);
        self.expect_listener(o.port, LISTEN, CLOSE, json!({"ack_backlog": 1, "max_ack_backlog": 0}))
    }
}

struct Overflow {
    listener: TcpListener,
    first: Client,
    waiting: Vec<Client>,
    port: u16,
}

/// The remote end of a listener.
fn unspecified(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Until the peer's kernel has all that was sent.
fn wait_acked(stream: &TcpStream) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = info(stream)?;
        // bytes_acked counts the SYN as well.
        if now.bytes_acked > now.bytes_sent {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not acknowledged");
        std::thread::yield_now();
    }
}

/// Puts the fields of `more` into `base`, objects into objects.
pub(crate) fn merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) if !more.keys().any(|k| k.starts_with('$')) => {
            for (k, v) in more {
                merge(base.entry(k).or_insert(Value::Null), v);
            }
        }
        (base, more) => *base = more,
    }
}
