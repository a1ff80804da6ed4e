//! What the check does: things with a known outcome that disturb nobody.

use super::unix;
use crate::model::input::HookStatus;
use rustix::process::{Signal, getpid, kill_process};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// SIGCONT to ourselves: nothing happens, unless we were stopped, which we are not.
pub(super) const SIGNAL: u32 = 18;
/// What the child is called.
pub(super) const ARG0: &str = "why502-self-check";
/// Its argument: every build of why502 answers it and ends, other programs refuse it and end.
pub(super) const ARG: &str = "--version";
/// What it executes.
pub(super) const EXE: &str = "/proc/self/exe";
/// Backlog of our listeners: an unusual number.
pub(super) const BACKLOG: u32 = 7;

/// A child that has ended.
#[derive(Debug)]
pub(super) struct Child {
    /// In our pid namespace.
    pub(super) pid: u32,
    /// As wait(2) gave it.
    pub(super) status: u32,
}

/// A connection that the server side closed first, seen from there.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) server: SocketAddr,
    pub(super) client: SocketAddr,
    /// Bytes that came to and went from the server side.
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Bytes of `received` that nobody read: the close becomes a reset.
    pub(super) unread: u32,
}

#[derive(Debug, Default)]
pub(super) struct Acts {
    pub(super) child: Option<Child>,
    pub(super) connections: Vec<Connection>,
    pub(super) signalled: bool,
    pub(super) unix: Option<unix::Act>,
}

impl Acts {
    /// Does all of it; what cannot be done here is told in the second value.
    pub(super) async fn perform(all_signals: bool, hooks: &[HookStatus]) -> (Acts, Vec<String>) {
        let mut acts = Acts::default();
        let mut problems = Vec::new();
        match child().await {
            Ok(child) => acts.child = Some(child),
            Err(e) => problems.push(format!("no child process: {e}")),
        }
        acts.signalled = all_signals || super::super::signal_mask(false) >> SIGNAL & 1 == 1;
        if let Err(e) = kill_process(getpid(), Signal::CONT) {
            acts.signalled = false;
            problems.push(format!("no signal to ourselves: {e}"));
        }
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for (what, done) in [("quiet", quiet(v4, 502)), ("reset", reset(v4))] {
            match done {
                Ok(c) => acts.connections.push(c),
                Err(e) => problems.push(format!("no {what} connection over loopback: {e}")),
            }
        }
        // Hosts without IPv6 are no problem: there will be no IPv6 connection to misread.
        acts.connections.extend(quiet(IpAddr::V6(Ipv6Addr::LOCALHOST), 42));
        match unix::Act::perform(hooks) {
            Ok(act) => acts.unix = Some(act),
            Err(e) => problems.push(format!("no unix sockets: {e}")),
        }
        (acts, problems)
    }

    pub(super) fn ports(&self) -> Vec<u16> {
        self.connections.iter().map(|c| c.server.port()).collect()
    }
}

async fn child() -> io::Result<Child> {
    let mut command = Command::new(EXE);
    command.arg0(ARG0).arg(ARG).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Child { pid: child.id(), status: status.into_raw() as u32 });
        }
        if began.elapsed() > Duration::from_secs(2) {
            child.kill()?;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Nothing here waits for anybody: all of it is over loopback.
const PATIENCE: Duration = Duration::from_secs(2);

/// Both ends of a new connection, and its listener.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    listener: TcpListener,
}

impl Pair {
    fn new(ip: IpAddr) -> io::Result<Pair> {
        let listener = TcpListener::bind((ip, 0))?;
        rustix::net::listen(&listener, BACKLOG as i32)?;
        let client = connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.set_read_timeout(Some(PATIENCE))?;
        server.set_read_timeout(Some(PATIENCE))?;
        Ok(Pair { client, server, listener })
    }

    /// Bytes to the server side; returns when all have arrived there.
    fn send(&mut self, bytes: usize) -> io::Result<()> {
        self.client.write_all(&vec![b'x'; bytes])?;
        let began = Instant::now();
        while self.server.peek(&mut vec![0; bytes])? < bytes {
            if began.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The server side closes, then the client, then the listener.
    fn close(mut self, received: u64, sent: u64, unread: u32) -> io::Result<Connection> {
        let (server, client) = (self.server.local_addr()?, self.client.local_addr()?);
        drop(self.server);
        // The end, or the reset, has come to the client before it closes too.
        let _ = self.client.read(&mut [0; 8]);
        drop(self.client);
        drop(self.listener);
        Ok(Connection { server, client, received, sent, unread })
    }
}

/// From 127.0.0.2 where that can be, so that the two addresses differ.
fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // It bounds connect(2) as well.
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(PATIENCE))?;
    if to.is_ipv4() {
        let _ = net::bind(&fd, &SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0)));
    }
    net::connect(&fd, &to)?;
    Ok(TcpStream::from(fd))
}

/// A request that was read whole and not answered.
fn quiet(ip: IpAddr, received: usize) -> io::Result<Connection> {
    let mut pair = Pair::new(ip)?;
    pair.send(received)?;
    pair.server.read_exact(&mut vec![0; received])?;
    pair.close(received as u64, 0, 0)
}

/// Four bytes there and back, one at a time, which makes the server side delay its ACKs; then 13 bytes that nobody reads
/// and nobody acknowledges before the close, which becomes a reset.
fn reset(ip: IpAddr) -> io::Result<Connection> {
    let mut pair = Pair::new(ip)?;
    for _ in 0..4 {
        pair.send(1)?;
        pair.server.read_exact(&mut [0])?;
        pair.server.write_all(b"y")?;
        pair.client.read_exact(&mut [0])?;
    }
    pair.send(13)?;
    pair.close(17, 4, 13)
}
