//! AF_UNIX: what a closing server throws away, connects that fail, and everything beside it that must stay silent.

use super::Fire;
use super::child::{Child, kill};
use super::facts::{CLIENT, Facts, SERVER};
use super::manifest::Expect;
use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use serde_json::{Value, json};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const REQUEST: [u8; 552] = [b'r'; 552];
const ANSWER: [u8; 77] = [b'a'; 77];

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    let u = Unix::new(fire)?;
    killed(&u)?;
    one_process(&u)?;
    refused(&u)
}

/// Only the connects, for a run whose why502 sees them in another way.
pub(crate) fn connects(fire: &Fire) -> Result<()> {
    refused(&Unix::new(fire)?)
}

/// A directory for sockets, whose paths must be short, and what the cases share.
struct Unix<'a> {
    fire: &'a Fire,
    dir: PathBuf,
    netns: u32,
}

impl Drop for Unix<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Both ends of a connection, accepted.
struct Pair {
    listener: UnixListener,
    client: UnixStream,
    server: UnixStream,
}

impl<'a> Unix<'a> {
    fn new(fire: &'a Fire) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("why502-fire-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { fire, dir, netns: super::facts::netns()? })
    }

    /// A path of its own for each case, which it names in the records.
    fn path(&self, case: &str) -> PathBuf {
        self.dir.join(case)
    }

    fn pair(&self, path: &Path) -> Result<Pair> {
        let listener = UnixListener::bind(path)?;
        let client = UnixStream::connect(path)?;
        let (server, _) = listener.accept()?;
        Ok(Pair { listener, client, server })
    }

    fn expect(&self, e: Expect) -> Result<()> {
        self.fire.manifest.expect(e)
    }

    /// `count` records of unread bytes and of connections that nobody accepted.
    fn dropped(&self, name: &str, path: &str, bytes: usize, embryos: usize, want: &Value) -> Result<()> {
        let mut data = want.clone();
        data["client_sk"] = json!({"$not": 0});
        data["server_sk"] = json!({"$not": 0});
        data["netns"] = json!(self.netns);
        let mut embryo = data.clone();
        embryo["client_sk"] = json!(0);
        embryo["len"] = json!(0);
        for (embryo, count, want, what) in [(false, bytes, data, "bytes"), (true, embryos, embryo, "embryos")] {
            let select = json!({"kind": "unix-dropped", "path": path, "embryo": embryo});
            self.expect(Expect::one(&format!("unix {name}: {what}"), select, want).times(count))?;
        }
        Ok(())
    }

    fn silent(&self, name: &str, path: &Path) -> Result<()> {
        self.dropped(name, text(path)?, 0, 0, &json!({}))
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}

/// A server process that is killed while it has a request.
fn killed(u: &Unix<'_>) -> Result<()> {
    let path = u.path("killed");
    let mut child = Child::ready(|line| {
        let listener = UnixListener::bind(&path)?;
        line.ready();
        let accepted = listener.accept()?;
        line.ready();
        drop(accepted);
        bail!("not killed")
    })?;
    u.fire.cgroups.put(SERVER, child.pid)?;
    let facts = child.facts()?;
    u.fire.cgroups.enter(CLIENT)?;
    let mut client = UnixStream::connect(&path)?;
    u.fire.cgroups.enter(super::facts::MAIN)?;
    client.write_all(&REQUEST)?;
    child.tell(0)?;
    child.hear()?;
    kill(child.pid, libc::SIGKILL)?;
    child.end()?;
    let want = json!({
        "len": REQUEST.len(), "task": facts.exiting(), "quality": [],
        "server_cgroup": u.fire.cgroups.id(SERVER)?, "client_cgroup": u.fire.cgroups.id(CLIENT)?,
    });
    u.dropped("killed with a request", text(&path)?, 1, 0, &want)?;
    reset(&mut client)
}

/// The client must have been told.
fn reset(client: &mut UnixStream) -> Result<()> {
    match client.read(&mut [0; 8]) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("{other:?} instead of a reset"),
    }
}

/// Both ends in a child of ours.
fn one_process(u: &Unix<'_>) -> Result<()> {
    let child = Child::ready(|line| {
        super::signals::ignore(libc::SIGPIPE)?;
        line.ready();
        let us = Facts::own()?;
        lost(u, &us)?;
        quiet(u)?;
        strangers(u, &us)?;
        Ok(0)
    })?;
    u.fire.cgroups.put(SERVER, child.pid)?;
    child.finish()?;
    Ok(())
}

fn lost(u: &Unix<'_>, us: &Facts) -> Result<()> {
    let server = u.fire.cgroups.id(SERVER)?;
    let want = |len: usize| json!({"len": len, "task": us.json(), "server_cgroup": server, "client_cgroup": server});

    let path = u.path("unread");
    let mut pair = u.pair(&path)?;
    pair.client.write_all(&REQUEST)?;
    drop(pair.server);
    reset(&mut pair.client)?;
    // On the dead connection: must not be taken for bytes that a server threw away.
    ensure!(pair.client.write(&ANSWER).is_err(), "sent to nobody");
    u.dropped("closed with a request", text(&path)?, 1, 0, &want(REQUEST.len()))?;

    let path = u.path("partly");
    let mut pair = u.pair(&path)?;
    pair.client.write_all(&REQUEST)?;
    pair.server.read_exact(&mut [0; 10])?;
    drop(pair.server);
    u.dropped("closed with a part read", text(&path)?, 1, 0, &want(REQUEST.len()))?;

    // Two records for two writes.
    let path = u.path("twice");
    let mut pair = u.pair(&path)?;
    pair.client.write_all(&ANSWER)?;
    pair.client.write_all(&ANSWER)?;
    drop(pair.server);
    u.dropped("closed with two writes", text(&path)?, 2, 0, &want(ANSWER.len()))?;

    let path = u.path("queue");
    let listener = UnixListener::bind(&path)?;
    u.fire.cgroups.enter(CLIENT)?;
    let mut asked = UnixStream::connect(&path)?;
    let mut silent = UnixStream::connect(&path)?;
    u.fire.cgroups.enter(SERVER)?;
    asked.write_all(&REQUEST)?;
    drop(listener);
    reset(&mut asked)?;
    reset(&mut silent)?;
    let queued = json!({"task": us.json(), "server_cgroup": server, "client_cgroup": u.fire.cgroups.id(CLIENT)?});
    u.dropped("listener with a queue", text(&path)?, 1, 2, &queued)?;

    // No path, and NULs in the name.
    let name = format!("why502\0fire {}", std::process::id());
    let addr = UnixAddr::new_abstract(name.as_bytes())?;
    let listener = stream()?;
    bind(listener.as_raw_fd(), &addr)?;
    listen(&listener, Backlog::new(4)?)?;
    let listener = UnixListener::from(listener);
    let client = stream()?;
    connect(client.as_raw_fd(), &addr)?;
    let mut client = UnixStream::from(client);
    client.write_all(&REQUEST)?;
    drop(listener.accept()?);
    u.dropped("abstract", &format!("@{}", name.replace('\0', "@")), 1, 0, &want(REQUEST.len()))
}

/// Nothing is lost here.
fn quiet(u: &Unix<'_>) -> Result<()> {
    let answered = |pair: &mut Pair| {
        pair.client.write_all(&REQUEST)?;
        pair.server.read_exact(&mut [0; REQUEST.len()])?;
        pair.server.write_all(&ANSWER)
    };
    let path = u.path("orderly");
    let mut pair = u.pair(&path)?;
    answered(&mut pair)?;
    pair.client.read_exact(&mut [0; ANSWER.len()])?;
    drop(pair.server);
    drop(pair.client);
    drop(pair.listener);
    u.silent("orderly end", &path)?;

    // The client's queue holds what it did not want.
    let path = u.path("answer");
    let mut pair = u.pair(&path)?;
    answered(&mut pair)?;
    drop(pair.client);
    drop(pair.server);
    u.silent("client closes with an answer unread", &path)?;

    let path = u.path("gave-up");
    let mut pair = u.pair(&path)?;
    pair.client.write_all(&REQUEST)?;
    drop(pair.client);
    drop(pair.server);
    u.silent("client closes first", &path)?;

    // The server is gone when the client speaks: what cannot be sent was in nobody's queue.
    let path = u.path("late");
    let mut pair = u.pair(&path)?;
    drop(pair.server);
    ensure!(pair.client.write(&REQUEST).is_err_and(|e| e.kind() == ErrorKind::BrokenPipe), "no broken pipe");
    u.silent("request after the close", &path)?;

    let path = u.path("datagrams");
    let datagrams = UnixDatagram::bind(&path)?;
    UnixDatagram::unbound()?.send_to(&REQUEST, &path)?;
    drop(datagrams);
    u.silent("datagrams", &path)
}

/// Sockets that nobody serves: no record of this process but those above.
fn strangers(u: &Unix<'_>, us: &Facts) -> Result<()> {
    let (mut a, b) = UnixStream::pair()?;
    a.write_all(&REQUEST)?;
    drop(b);
    drop(a);
    let select = json!({"kind": "unix-dropped", "path": "", "task": {"tgid": us.tgid}});
    u.expect(Expect::none("unix socketpair", select))
}

fn stream() -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("socket")
}

/// Connects that fail, each by a child, so that its records are told from all others.
fn refused(u: &Unix<'_>) -> Result<()> {
    let absent = u.path("absent");
    let stale = u.path("stale");
    drop(UnixListener::bind(&stale)?);
    let full = u.path("full");
    let queue = stream()?;
    bind(queue.as_raw_fd(), &UnixAddr::new(&full)?)?;
    // unix_recvq_full(): a queue of n takes n + 1.
    listen(&queue, Backlog::new(0)?)?;
    let _first = UnixStream::connect(&full)?;
    let good = u.path("good");
    let listener = UnixListener::bind(&good)?;
    // As long as they can be: no room for a NUL.
    let long = format!("{}/{}", u.dir.display(), "l".repeat(200));
    let long = &long[..108];
    let name = format!("why502 nobody {}", std::process::id());
    let cases: &[(&str, UnixAddr, i32, String)] = &[
        ("absent", UnixAddr::new(&absent)?, libc::ENOENT, text(&absent)?.into()),
        ("stale", UnixAddr::new(&stale)?, libc::ECONNREFUSED, text(&stale)?.into()),
        ("full", UnixAddr::new(&full)?, libc::EAGAIN, text(&full)?.into()),
        ("abstract", UnixAddr::new_abstract(name.as_bytes())?, libc::ECONNREFUSED, format!("@{name}")),
    ];
    for (what, addr, error, path) in cases {
        let facts = connecting(u, |fd| {
            let got = connect(fd, addr).err().map(|e| e as i32);
            ensure!(got == Some(*error), "{what}: {got:?} instead of {error}");
            Ok(())
        })?;
        one_refusal(u, what, &facts, *error, path)?;
    }
    let facts = connecting(u, |fd| long_connect(fd, long))?;
    one_refusal(u, "long", &facts, libc::ENOENT, long)?;

    let facts = connecting(u, |fd| connect(fd, &UnixAddr::new(&good)?).context("connect"))?;
    u.expect(Expect::none("unix connect that works", json!({"kind": "unix-refused", "task": {"tgid": facts.tgid}})))?;
    // Another family's failure is in the TCP records.
    let facts = connecting(u, |_| {
        ensure!(std::net::TcpStream::connect("127.0.0.1:1").is_err(), "somebody listens on port 1");
        Ok(())
    })?;
    u.expect(Expect::none("TCP connect that fails", json!({"kind": "unix-refused", "task": {"tgid": facts.tgid}})))?;
    drop(listener);
    drop(queue);
    Ok(())
}

/// Runs `connect` on a fresh non-blocking socket in a child of its own. Gives the child's facts.
fn connecting(u: &Unix<'_>, connect: impl FnOnce(i32) -> Result<()>) -> Result<Facts> {
    let child = Child::ready(|line| {
        line.ready();
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
        connect(fd.as_raw_fd())?;
        Ok(0)
    })?;
    u.fire.cgroups.put(CLIENT, child.pid)?;
    let facts = child.facts()?;
    child.finish()?;
    Ok(facts)
}

fn one_refusal(u: &Unix<'_>, what: &str, facts: &Facts, error: i32, path: &str) -> Result<()> {
    let select = json!({"kind": "unix-refused", "task": {"tgid": facts.tgid}});
    let want = json!({"error": error, "path": path, "task": facts.json(), "quality": []});
    u.expect(Expect::one(&format!("unix connect, {what}"), select, want))?;
    // The embryo of a connect that failed was never in a queue.
    let select = json!({"kind": "unix-dropped", "task": {"tgid": facts.tgid}});
    u.expect(Expect::none(&format!("unix connect, {what}: nothing dropped"), select))
}

/// connect(2) to an absent path of 108 bytes, which nix does not make.
fn long_connect(fd: i32, path: &str) -> Result<()> {
    let mut addr = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    ensure!(path.len() == addr.sun_path.len(), "path of {} bytes", path.len());
    for (to, from) in addr.sun_path.iter_mut().zip(path.bytes()) {
        *to = from.cast_signed();
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: connect(2) reads `len` bytes of `addr`.
    let r = unsafe { libc::connect(fd, (&raw const addr).cast(), len) };
    let error = std::io::Error::last_os_error().raw_os_error();
    ensure!(r == -1 && error == Some(libc::ENOENT), "connect: {r}, {error:?}");
    Ok(())
}
