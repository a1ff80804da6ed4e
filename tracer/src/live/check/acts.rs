//! What the check does: things with a known outcome that disturb nobody.

use rustix::process::{Signal, getpid, kill_process};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
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
}

impl Acts {
    /// Does all of it; what cannot be done here is told in the second value.
    pub(super) async fn perform(all_signals: bool) -> (Acts, Vec<String>) {
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
        for (ip, received, unread, sent) in [(v4, 502, 0, 0), (v4, 17, 5, 3)] {
            match connection(ip, received, unread, sent) {
                Ok(c) => acts.connections.push(c),
                Err(e) => problems.push(format!("no connection over {ip}: {e}")),
            }
        }
        // Hosts without IPv6 are no problem: there will be no IPv6 connection to misread.
        acts.connections.extend(connection(IpAddr::V6(Ipv6Addr::LOCALHOST), 42, 0, 0));
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

/// A listener, a connection to it, `received` bytes in, all but `unread` of them read, `sent` bytes out; then the server
/// side closes, then the listener. Over loopback nothing of this waits for anybody.
fn connection(ip: IpAddr, received: u64, unread: u32, sent: u64) -> io::Result<Connection> {
    let listener = TcpListener::bind((ip, 0))?;
    rustix::net::listen(&listener, BACKLOG as i32)?;
    let address = listener.local_addr()?;
    let wait = Some(Duration::from_secs(2));
    let mut client = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    client.set_read_timeout(wait)?;
    let (mut server, from) = listener.accept()?;
    server.set_read_timeout(wait)?;
    client.write_all(&vec![b'x'; received as usize])?;
    // All of it must have arrived before the close.
    let mut peeked = vec![0; received as usize];
    let began = Instant::now();
    while server.peek(&mut peeked)? < peeked.len() && began.elapsed() < Duration::from_secs(2) {
        std::thread::yield_now();
    }
    server.read_exact(&mut vec![0; received as usize - unread as usize])?;
    if sent > 0 {
        server.write_all(&vec![b'y'; sent as usize])?;
        client.read_exact(&mut vec![0; sent as usize])?;
    }
    drop(server);
    // The end, or the reset, has come to the client before it closes too.
    let _ = client.read(&mut [0; 8]);
    let _ = client.shutdown(Shutdown::Both);
    Ok(Connection { server: address, client: from, received, sent, unread })
}
