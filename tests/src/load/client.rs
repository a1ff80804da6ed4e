//! The client's event loop: every connection is a small state machine, and each of its requests ends in one ledger line.

use super::http::Answer;
use super::record::{Outcome, Request};
use super::{Abort, LoadConf, Shape};
use crate::guard::boot_ns;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, sockopt};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Counters of a running load, for tests that wait on a condition.
#[derive(Debug, Default)]
pub struct Progress {
    pub sent: AtomicU64,
    pub answered: AtomicU64,
    /// Sent, and not ended in any way.
    pub in_flight: AtomicU64,
    pub refused: AtomicU64,
    /// Answered with a status of 500 or above.
    pub errors: AtomicU64,
    /// Ended in another way than by an answer.
    pub failed: AtomicU64,
    /// Ledger lines, of requests and of connections without one.
    pub ended: AtomicU64,
    /// Kept connections that were found closed before a request was sent on them: nothing was lost.
    pub closed_idle: AtomicU64,
    pub connections: AtomicU64,
}

impl Progress {
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// A running load. Dropping it stops it as well.
#[derive(Debug)]
pub struct Load {
    pub progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Request>>>>,
}

impl Load {
    /// On a thread of its own, inside the network namespace at `netns` when there is one.
    pub fn start(netns: Option<PathBuf>, conf: LoadConf) -> Result<Self> {
        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let (progress2, stop2) = (progress.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || {
            if let Some(path) = netns {
                crate::net::join_thread(&path)?;
            }
            Client::new(conf, progress2)?.run(&stop2)
        })?;
        Ok(Self { progress, stop, thread: Some(thread) })
    }

    /// The balancer has learned that the pod is going away: no further request is begun here, kept connections are closed,
    /// and requests under way come to their end.
    pub fn move_away(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// No further request is begun; those under way come to their end first.
    pub fn stop(self) -> Result<Vec<Request>> {
        self.move_away();
        self.join()
    }

    /// Waits until the load has come to its own end (`max_attempts`, `max_refused`).
    pub fn join(mut self) -> Result<Vec<Request>> {
        let thread = self.thread.take().ok_or_else(|| anyhow!("the load was joined before"))?;
        thread.join().map_err(|_| anyhow!("the load client panicked"))?
    }

    pub fn finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum State {
    /// No connection; the next attempt is due at this time.
    Waiting(u64),
    Connecting,
    /// A request is on its way, or its answer.
    Active,
    /// Kept; the next request is due at this time.
    Kept(u64),
    /// A connection without a request; the client closes it at this time.
    Holding(u64),
    Finished,
}

/// The request of a connection, from the decision to send it.
#[derive(Debug)]
struct Current {
    id: String,
    path: String,
    out: Vec<u8>,
    /// Goes out after `100 Continue`.
    body_later: Vec<u8>,
    sent: usize,
    answer: Answer,
    received: u64,
    t_sent: Option<u64>,
    deadline: u64,
    abort_at: Option<u64>,
}

#[derive(Debug)]
struct Slot {
    state: State,
    fd: Option<OwnedFd>,
    connection: u64,
    local: SocketAddr,
    t_connect: u64,
    answered: u64,
    current: Option<Current>,
}

struct Client {
    conf: LoadConf,
    progress: Arc<Progress>,
    epoll: Epoll,
    slots: Vec<Slot>,
    ledger: Vec<Request>,
    attempts: u64,
    next_at: u64,
    /// The configured end is reached: nothing more is begun, and what was begun goes its way.
    full: bool,
    /// The caller wants the end: connections without a request are closed at once.
    stopping: bool,
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 2)
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Client {
    fn new(conf: LoadConf, progress: Arc<Progress>) -> Result<Self> {
        let nowhere = conf.target;
        let slot = |_| Slot {
            state: State::Waiting(0),
            fd: None,
            connection: 0,
            local: nowhere,
            t_connect: 0,
            answered: 0,
            current: None,
        };
        let slots = (0..conf.connections).map(slot).collect();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
        Ok(Self {
            conf,
            progress,
            epoll,
            slots,
            ledger: Vec::new(),
            attempts: 0,
            next_at: 0,
            full: false,
            stopping: false,
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Vec<Request>> {
        for i in 0..self.slots.len() {
            self.slots[i].state = State::Waiting(self.pace(boot_ns()));
        }
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            self.stopping |= stop.load(Ordering::Relaxed);
            let now = boot_ns();
            let mut wake = u64::MAX;
            for i in 0..self.slots.len() {
                if self.due(i) <= now || self.full || self.stopping {
                    self.advance(i)?;
                }
                wake = wake.min(self.due(i));
            }
            if self.slots.iter().all(|s| matches!(s.state, State::Finished)) {
                return Ok(self.ledger);
            }
            // At least every 20 ms, to see the wish to stop.
            let left = wake.saturating_sub(boot_ns()).div_ceil(1_000_000).min(20);
            let timeout = EpollTimeout::try_from(i32::try_from(left)?)?;
            let n = match self.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(e) => bail!("epoll_wait: {e}"),
            };
            for event in &events[..n] {
                self.advance(usize::try_from(event.data())?)?;
            }
        }
    }

    /// When the slot wants to be looked at, without an event of its socket.
    fn due(&self, i: usize) -> u64 {
        let slot = &self.slots[i];
        match (&slot.state, &slot.current) {
            (State::Waiting(at) | State::Kept(at) | State::Holding(at), _) => *at,
            (State::Active | State::Connecting, Some(c)) => c.deadline.min(c.abort_at.unwrap_or(u64::MAX)),
            _ => u64::MAX,
        }
    }

    /// The time of the next request that the rate allows.
    fn pace(&mut self, wanted: u64) -> u64 {
        let Some(rate) = self.conf.rate else { return wanted };
        let at = self.next_at.max(wanted);
        self.next_at = at + (1e9 / rate) as u64;
        at
    }

    /// Takes a slot as far as it goes without waiting.
    fn advance(&mut self, i: usize) -> Result<()> {
        loop {
            let now = boot_ns();
            let again = match self.slots[i].state {
                State::Finished => false,
                State::Waiting(_) | State::Kept(_) if self.full || self.stopping => {
                    self.slots[i].fd = None;
                    self.slots[i].state = State::Finished;
                    false
                }
                State::Waiting(at) => now >= at && self.connect(i, now)?,
                State::Connecting => self.connecting(i, now),
                State::Active => self.exchange(i, now),
                State::Kept(at) => self.kept(i, now >= at, now)?,
                State::Holding(until) => self.holding(i, now >= until || self.stopping),
            };
            if !again {
                return Ok(());
            }
        }
    }

    fn connect(&mut self, i: usize, now: u64) -> Result<bool> {
        let target = SockaddrStorage::from(self.conf.target);
        let family = if self.conf.target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(family, SockType::Stream, flags, None).context("cannot make a socket")?;
        socket::setsockopt(&fd, sockopt::TcpNoDelay, &true).context("TCP_NODELAY")?;
        let result = socket::connect(fd.as_raw_fd(), &target);
        add(&self.progress.connections);
        let current = self.new_request(now);
        let slot = &mut self.slots[i];
        slot.connection = Progress::get(&self.progress.connections);
        (slot.t_connect, slot.answered, slot.current) = (now, 0, Some(current));
        slot.local = local_addr(&fd).unwrap_or(slot.local);
        slot.state = State::Connecting;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(&fd, EpollEvent::new(interest, i as u64)).context("epoll_ctl")?;
        slot.fd = Some(fd);
        match result {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => self.connect_failed(i, e),
        }
        Ok(true)
    }

    fn connect_failed(&mut self, i: usize, e: Errno) {
        let outcome = match e {
            Errno::ECONNREFUSED => Outcome::Refused,
            // Established and reset before this loop came to look.
            Errno::ECONNRESET | Errno::EPIPE => Outcome::ConnectReset,
            e => Outcome::ConnectFailed { errno: e as i32 },
        };
        self.finish(i, outcome, false);
    }

    fn connecting(&mut self, i: usize, now: u64) -> bool {
        let Some(fd) = &self.slots[i].fd else { return false };
        match socket::getsockopt(fd, sockopt::SocketError).map(Errno::from_raw) {
            Ok(e) if e as i32 != 0 => {
                self.connect_failed(i, e);
                return true;
            }
            Err(e) => {
                self.connect_failed(i, e);
                return true;
            }
            Ok(_) => {}
        }
        // An event of an earlier socket of this slot says nothing about this one.
        if socket::getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_err() {
            let timed_out = self.slots[i].current.as_ref().is_some_and(|c| now >= c.deadline);
            if timed_out {
                self.connect_failed(i, Errno::ETIMEDOUT);
            }
            return timed_out;
        }
        if let Some(c) = &mut self.slots[i].current {
            c.deadline = now + ns(self.conf.timeout);
        }
        self.slots[i].state = State::Active;
        if let Shape::Idle(hold) | Shape::IdleHttp2(hold) = self.conf.shape {
            // A failure shows at the first read as well.
            let _ = self.send_some(i);
            self.slots[i].state = State::Holding(now + ns(hold));
        }
        true
    }

    fn new_request(&mut self, now: u64) -> Current {
        self.attempts += 1;
        self.full |= self.conf.max_attempts.is_some_and(|max| self.attempts >= max);
        let paths = 1 + self.conf.more_paths.len() as u64;
        let turn = usize::try_from(self.attempts % paths).unwrap_or(0);
        let path = if turn == 0 { &self.conf.path } else { &self.conf.more_paths[turn - 1] };
        let id = format!("{}{}", self.conf.prefix, self.attempts);
        let path = format!("{path}{}id={id}", if path.contains('?') { '&' } else { '?' });
        let (out, body_later) = super::shape::bytes(&self.conf, &path);
        Current {
            id,
            path,
            out,
            body_later,
            sent: 0,
            answer: Answer::default(),
            received: 0,
            t_sent: None,
            deadline: now + ns(self.conf.timeout),
            abort_at: None,
        }
    }

    /// A kept connection: looked at first, as a careful client does.
    fn kept(&mut self, i: usize, due: bool, now: u64) -> Result<bool> {
        let Some(fd) = &self.slots[i].fd else { return Ok(false) };
        let mut byte = [0; 1];
        let look = socket::recv(fd.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        if !matches!(look, Err(Errno::EAGAIN)) {
            add(&self.progress.closed_idle);
            let State::Kept(at) = self.slots[i].state else { return Ok(false) };
            self.slots[i].fd = None;
            self.slots[i].state = State::Waiting(at);
            return Ok(due);
        }
        if !due {
            return Ok(false);
        }
        let current = self.new_request(now);
        self.slots[i].current = Some(current);
        self.slots[i].state = State::Active;
        Ok(true)
    }

    /// Sends what can be sent. The error is send(2)'s.
    fn send_some(&mut self, i: usize) -> Result<(), Errno> {
        let abort = self.conf.abort.map(|(after, _)| ns(after));
        let slot = &mut self.slots[i];
        let (Some(fd), Some(c)) = (&slot.fd, &mut slot.current) else { return Ok(()) };
        if c.answer.may_send_body() {
            c.out.append(&mut c.body_later);
        }
        while c.sent < c.out.len() {
            // Taken before the call: the answer may be here before it returns.
            let before = boot_ns();
            match socket::send(fd.as_raw_fd(), &c.out[c.sent..], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(n) => {
                    c.sent += n;
                    if c.t_sent.is_none() {
                        c.t_sent = Some(before);
                        c.abort_at = abort.map(|after| before + after);
                        add(&self.progress.sent);
                        add(&self.progress.in_flight);
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads what can be read. `Ok(true)`: the connection has ended in order.
    fn read_some(&mut self, i: usize) -> Result<bool, Result<Errno, &'static str>> {
        let slot = &mut self.slots[i];
        let (Some(fd), Some(c)) = (&slot.fd, &mut slot.current) else { return Ok(false) };
        let mut buffer = [0; 16 * 1024];
        loop {
            match socket::recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    c.answer.closed();
                    return Ok(true);
                }
                Ok(n) => {
                    c.received += n as u64;
                    c.answer.feed(&buffer[..n]).map_err(Err)?;
                    if c.answer.complete() {
                        return Ok(false);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Ok(e)),
            }
        }
    }

    fn exchange(&mut self, i: usize, now: u64) -> bool {
        let mut send_error = self.send_some(i).err();
        let read = self.read_some(i);
        if self.slots[i].current.as_ref().is_some_and(|c| c.answer.may_send_body() && !c.body_later.is_empty()) {
            // The permission has just come; no event of the socket will tell it again.
            send_error = self.send_some(i).err();
        }
        let Some(c) = &self.slots[i].current else { return false };
        let unsent = c.t_sent.is_none();
        let outcome = if c.answer.complete() {
            match c.answer.status() {
                status @ ..400 => Outcome::Ok { status },
                status => Outcome::HttpError { status },
            }
        } else if unsent && (send_error.is_some() || !matches!(read, Ok(false))) && self.slots[i].answered > 0 {
            // Closed between the look and the first byte: nothing went out, so a careful client starts anew.
            add(&self.progress.closed_idle);
            let slot = &mut self.slots[i];
            (slot.fd, slot.current, slot.state) = (None, None, State::Waiting(now));
            return true;
        } else if let Err(Err(why)) = read {
            eprintln!("request {}: {why}", c.id);
            Outcome::Truncated
        } else if c.answer.begun() && !matches!(read, Ok(false)) {
            Outcome::Truncated
        } else if unsent && let Some(e) = send_error {
            match e {
                Errno::ECONNRESET | Errno::EPIPE => Outcome::ConnectReset,
                e => Outcome::SendFailed { errno: e as i32 },
            }
        } else if let Ok(true) = read {
            Outcome::Eof
        } else if let Err(Ok(e)) = read {
            match e {
                Errno::ECONNRESET => Outcome::Reset,
                e => Outcome::ConnectFailed { errno: e as i32 },
            }
        } else if let Some(e) = send_error {
            Outcome::SendFailed { errno: e as i32 }
        } else if c.abort_at.is_some_and(|at| now >= at) {
            Outcome::Aborted
        } else if now >= c.deadline {
            Outcome::Timeout
        } else {
            return false;
        };
        let whole = c.sent == c.out.len() && c.body_later.is_empty();
        let keep = self.conf.keep_alive && whole && c.answer.complete() && c.answer.keeps() && read == Ok(false);
        self.finish(i, outcome, keep);
        true
    }

    fn holding(&mut self, i: usize, over: bool) -> bool {
        let slot = &mut self.slots[i];
        let (Some(fd), Some(c)) = (&slot.fd, &mut slot.current) else { return false };
        let mut buffer = [0; 4096];
        let closed = loop {
            match socket::recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => break true,
                Ok(n) => {
                    c.received += n as u64;
                    let reply = super::shape::http2_replies(&buffer[..n]);
                    let _ = socket::send(fd.as_raw_fd(), &reply, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
                }
                Err(Errno::EAGAIN) => break false,
                Err(Errno::EINTR) => {}
                Err(_) => break true,
            }
        };
        if !closed && !over {
            return false;
        }
        self.finish(i, Outcome::NoRequest { closed_by_server: closed }, false);
        true
    }

    /// Writes the ledger line and decides what the slot does next.
    fn finish(&mut self, i: usize, outcome: Outcome, keep: bool) {
        let now = boot_ns();
        let slot = &mut self.slots[i];
        let Some(c) = slot.current.take() else { return };
        let p = &self.progress;
        add(&p.ended);
        if c.t_sent.is_some() {
            p.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        let error = matches!(outcome, Outcome::HttpError { status: 500.. });
        if error {
            add(&p.errors);
        }
        match outcome {
            Outcome::Ok { .. } | Outcome::HttpError { .. } => add(&p.answered),
            Outcome::Refused => add(&p.refused),
            _ => add(&p.failed),
        }
        let partial = matches!(self.conf.shape, Shape::PartialHeader | Shape::PartialBody);
        let without = matches!(self.conf.shape, Shape::Idle(_) | Shape::IdleHttp2(_));
        self.ledger.push(Request {
            id: c.id,
            connection: slot.connection,
            answered_before: slot.answered,
            path: c.path,
            local: slot.local,
            remote: self.conf.target,
            t_connect: slot.t_connect,
            t_sent: c.t_sent,
            t_end: now,
            bytes_sent: c.sent as u64,
            sent_all: !partial && !without && c.sent == c.out.len() && c.body_later.is_empty(),
            bytes_received: c.received,
            deliberate: partial || without || outcome == Outcome::Aborted,
            outcome,
        });
        if let (Outcome::Aborted, Some((_, Abort::Rst)), Some(fd)) = (outcome, self.conf.abort, &slot.fd) {
            let _ = socket::setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
        slot.answered += 1;
        if !keep {
            slot.fd = None;
        }
        let refusals = Progress::get(&p.refused);
        self.full |= outcome == Outcome::Refused && self.conf.max_refused.is_some_and(|max| refusals >= max);
        let pause = if error || outcome == Outcome::Refused { self.conf.refused_pause } else { self.conf.think };
        let at = self.pace(now + ns(pause));
        self.slots[i].state = if keep { State::Kept(at) } else { State::Waiting(at) };
    }
}

fn local_addr(fd: &OwnedFd) -> Option<SocketAddr> {
    let addr: SockaddrStorage = socket::getsockname(fd.as_raw_fd()).ok()?;
    if let Some(v4) = addr.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    addr.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}
