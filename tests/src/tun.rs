//! A path between two network namespaces with delay, loss, duplicates and reordering: two tun devices, joined by a thread
//! that carries the packets. Kernels without netem need it, and here every lost packet is counted.

use crate::net::{Link, Netns};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the path does to packets. Chances are per packet, 0..=1.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// One way.
    pub delay: Duration,
    pub loss: f64,
    pub duplicate: f64,
    /// Such a packet is held back by `reorder_by`, so later ones overtake it.
    pub reorder: f64,
    pub reorder_by: Duration,
    /// The same seed makes the same choices for the same packets.
    pub seed: u64,
}

impl Default for Trouble {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(3),
            seed: 502,
        }
    }
}

/// What was done, for checks that the path was as bad as asked for.
#[derive(Debug, Default)]
pub struct Counters {
    pub carried: AtomicU64,
    pub lost: AtomicU64,
    pub duplicated: AtomicU64,
    pub reordered: AtomicU64,
}

/// A running forwarder. Stops, and its devices vanish, on drop.
#[derive(Debug)]
pub struct Tun {
    pub link: Link,
    pub counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tun {
    pub fn join(left: &Netns, right: &Netns, trouble: Trouble) -> Result<Self> {
        let link = Link::unique();
        let (a, b) = (device(left)?, device(right)?);
        link.assign((left, DEVICE), (right, DEVICE))?;
        let (stop, counters) = (Arc::new(AtomicBool::new(false)), Arc::new(Counters::default()));
        let (stop2, counters2) = (stop.clone(), counters.clone());
        let thread = std::thread::Builder::new().name("tun".into()).spawn(move || {
            if let Err(e) = Forwarder::new(a, b, trouble, counters2).run(&stop2) {
                eprintln!("tun forwarder: {e:#}");
            }
        })?;
        Ok(Self { link, counters, stop, thread: Some(thread) })
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const DEVICE: &str = "w5tun";

nix::ioctl_write_int!(tunsetiff, b'T', 202);

/// Makes a tun device in the namespace. It stays there whatever thread uses the file.
fn device(ns: &Netns) -> Result<OwnedFd> {
    ns.run(|| -> Result<OwnedFd> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file: File = options.open("/dev/net/tun").context("cannot open /dev/net/tun")?;
        // SAFETY: ifreq is plain data for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads one ifreq at the address that it is given, which lives until after the call.
        unsafe { tunsetiff(file.as_raw_fd(), (&raw mut request) as u64) }.context("cannot make a tun device")?;
        Ok(file.into())
    })?
}

/// When it is due, in which order it came, and to which side it goes.
type Queued = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Forwarder {
    ends: [OwnedFd; 2],
    trouble: Trouble,
    counters: Arc<Counters>,
    queue: BinaryHeap<Queued>,
    order: u64,
    random: u64,
}

impl Forwarder {
    fn new(a: OwnedFd, b: OwnedFd, trouble: Trouble, counters: Arc<Counters>) -> Self {
        Self { ends: [a, b], trouble, counters, queue: BinaryHeap::new(), order: 0, random: trouble.seed | 1 }
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let wait = match self.queue.peek() {
                // poll(2) counts milliseconds: waking a little late is better than spinning.
                Some(Reverse((due, ..))) => due.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000),
                None => 50,
            };
            let timeout = PollTimeout::try_from(i32::try_from(wait.min(50)).unwrap_or(50)).unwrap_or(PollTimeout::ZERO);
            let mut fds = [0, 1].map(|i| PollFd::new(self.ends[i].as_fd(), PollFlags::POLLIN));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => bail!("poll: {e}"),
            }
            let readable = [0, 1].map(|i| fds[i].any().unwrap_or(false));
            for (from, readable) in readable.into_iter().enumerate() {
                if readable {
                    self.take_in(from)?;
                }
            }
            self.send_due();
        }
        Ok(())
    }

    fn take_in(&mut self, from: usize) -> Result<()> {
        let mut packet = vec![0; 65536];
        loop {
            let n = match read(&self.ends[from], &mut packet) {
                Ok(n) => n,
                Err(Errno::EAGAIN) => return Ok(()),
                // The device goes down with its namespace.
                Err(e) => bail!("read: {e}"),
            };
            let c = self.counters.clone();
            c.carried.fetch_add(1, Ordering::Relaxed);
            if self.chance(self.trouble.loss) {
                c.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let mut due = Instant::now() + self.trouble.delay;
            if self.chance(self.trouble.reorder) {
                c.reordered.fetch_add(1, Ordering::Relaxed);
                due += self.trouble.reorder_by;
            }
            if self.chance(self.trouble.duplicate) {
                c.duplicated.fetch_add(1, Ordering::Relaxed);
                self.enqueue(due, 1 - from, packet[..n].to_vec());
            }
            self.enqueue(due, 1 - from, packet[..n].to_vec());
        }
    }

    fn enqueue(&mut self, due: Instant, to: usize, packet: Vec<u8>) {
        self.order += 1;
        self.queue.push(Reverse((due, self.order, to, packet)));
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((due, ..))) = self.queue.peek()
            && *due <= now
            && let Some(Reverse((_, _, to, packet))) = self.queue.pop()
        {
            // A full device queue drops packets, as any path does.
            let _ = write(&self.ends[to], &packet);
        }
    }

    /// xorshift64: any even spread will do.
    fn chance(&mut self, p: f64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64 <= p && p > 0.0
    }
}
