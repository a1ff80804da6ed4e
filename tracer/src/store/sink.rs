//! The store as a sink: a thread of its own writes and syncs, a bounded queue lies before it. A disk that is slow, full or
//! broken holds nobody up: records wait in memory, what does not fit any more is counted, and it is tried again.

use super::{Disk, Limits, Now, StoreError};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;

/// Bytes that may wait: seconds of the worst flood, hours of an ordinary node with a full disk.
pub const WAITING: usize = 16 << 20;
/// Bytes of records that are synced together.
const BATCH: usize = 1 << 20;
/// Between two tries at a disk that fails.
const RETRY: Duration = Duration::from_secs(1);
/// Retention also without new records.
const IDLE: Duration = Duration::from_secs(60);

/// How the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records synced since the start.
    pub written: u64,
    /// Records that did not fit into the queue.
    pub dropped: u64,
    /// Tries at writing that failed.
    pub failures: u64,
    /// Damaged lines that were found at the start.
    pub damaged: u64,
    /// Why nothing can be written now.
    pub failing: Option<String>,
    /// Records that wait.
    pub waiting: usize,
    /// First and last number that can be there, 0 for none.
    pub first: u64,
    pub last: u64,
    pub bytes: u64,
    pub segments: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<String>,
    bytes: usize,
    closing: bool,
    /// The thread writes no more.
    ended: bool,
    stats: Stats,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running store.
pub struct Store {
    dir: PathBuf,
    shared: Arc<Shared>,
    durable: watch::Receiver<u64>,
    max_waiting: usize,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the directory and starts the writing thread. `now` reads the clocks.
    pub fn start(
        dir: &Path,
        limits: Limits,
        max_waiting: usize,
        now: impl Fn() -> Now + Send + 'static,
    ) -> Result<Store, StoreError> {
        let disk = Disk::open(dir, limits, &now())?;
        let (tell, durable) = watch::channel(disk.last());
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new() });
        shared.lock().stats = Stats { damaged: disk.damaged(), ..of(&disk) };
        let writer = Writer { disk, shared: Arc::clone(&shared), tell, batch: Vec::new() };
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(now))
            .map_err(|why| StoreError::Io { dir: dir.to_path_buf(), why })?;
        Ok(Store { dir: dir.to_path_buf(), shared, durable, max_waiting, thread: Some(thread) })
    }

    /// Queues one record (JSON, no line end), or counts it as dropped. Never waits for the disk.
    pub fn push(&self, json: String) {
        let mut state = self.shared.lock();
        if state.bytes + json.len() > self.max_waiting {
            state.stats.dropped += 1;
            return;
        }
        state.bytes += json.len();
        state.queue.push_back(json);
        state.stats.waiting += 1;
        drop(state);
        self.shared.wake.notify_one();
    }

    /// What may be read now, and hearing of more.
    pub fn view(&self) -> View {
        View { dir: self.dir.clone(), durable: self.durable.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Writes what waits, trying at most for `patience`. False: records were lost.
    pub fn finish(mut self, patience: Duration) -> bool {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        let state = self.shared.lock();
        let done = self.shared.wake.wait_timeout_while(state, patience, |state| !state.ended);
        let state = done.unwrap_or_else(PoisonError::into_inner).0;
        let (left, ended) = (state.stats.waiting, state.ended);
        drop(state);
        if ended && let Some(thread) = self.thread.take() {
            // It is about to return.
            let _ = thread.join();
        }
        left == 0
    }
}

/// The reading side of a running store.
#[derive(Clone)]
pub struct View {
    pub dir: PathBuf,
    /// The number of the last record that is synced.
    pub durable: watch::Receiver<u64>,
    shared: Arc<Shared>,
}

impl View {
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats.clone()
    }
}

struct Writer {
    disk: Disk,
    shared: Arc<Shared>,
    tell: watch::Sender<u64>,
    /// Taken from the queue and not yet synced.
    batch: Vec<String>,
}

impl Writer {
    fn run(mut self, now: impl Fn() -> Now) {
        let mut failing = false;
        loop {
            let closing = {
                let state = self.shared.lock();
                let patience = if failing { RETRY } else { IDLE };
                let idle = |state: &mut State| !state.closing && (failing || state.queue.is_empty());
                let (mut state, _) =
                    self.shared.wake.wait_timeout_while(state, patience, idle).unwrap_or_else(PoisonError::into_inner);
                while self.batch.iter().map(String::len).sum::<usize>() < BATCH {
                    let Some(next) = state.queue.pop_front() else { break };
                    self.batch.push(next);
                }
                state.closing
            };
            failing = !self.write(&now());
            let mut state = self.shared.lock();
            if closing && (failing || state.stats.waiting == 0) {
                state.ended = true;
                self.shared.wake.notify_all();
                return;
            }
        }
    }

    /// False when the disk did not take it.
    fn write(&mut self, now: &Now) -> bool {
        let written = self.batch.len();
        let done = if written == 0 {
            self.disk.retire(now);
            Ok(())
        } else {
            self.disk.append(&self.batch, now).map(|last| {
                self.tell.send_replace(last);
            })
        };
        let mut state = self.shared.lock();
        let was = std::mem::take(&mut state.stats);
        state.stats = Stats { failing: None, ..was };
        match done {
            Ok(()) => {
                state.bytes -= self.batch.drain(..).map(|json| json.len()).sum::<usize>();
                state.stats.waiting -= written;
                state.stats.written += written as u64;
            }
            Err(e) => {
                state.stats.failures += 1;
                state.stats.failing = Some(e.to_string());
            }
        }
        let fresh = of(&self.disk);
        let stats = &mut state.stats;
        (stats.first, stats.last, stats.bytes, stats.segments) = (fresh.first, fresh.last, fresh.bytes, fresh.segments);
        stats.failing.is_none()
    }
}

fn of(disk: &Disk) -> Stats {
    let first = if disk.segments() == 0 { 0 } else { disk.first() };
    Stats { first, last: disk.last(), bytes: disk.bytes(), segments: disk.segments(), ..Stats::default() }
}
