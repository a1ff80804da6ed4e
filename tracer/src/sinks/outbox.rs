//! What leaves the node for somebody else's server. A thread of its own carries it there; a bounded queue lies before it,
//! what does not fit is counted, and a server that is away is asked again, less and less often. The pipeline never waits.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Between two tries: doubled from the first to the last, and up to half of it less by chance, so that all nodes do not
/// ask at once.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A server may ask for less than the first pause and for more than the last one, but neither for none nor for any time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// For one try.
const TRY: Duration = Duration::from_secs(30);
/// What could not be delivered for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(3600);

/// What became of a try.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// All there, but for so many that the server did not want.
    Done { refused: u64, why: Option<String> },
    /// Not now: again after this time, or when we like.
    Later { after: Option<Duration>, why: String },
    /// Never.
    Refused { why: String },
}

impl Sent {
    pub fn done() -> Sent {
        Sent::Done { refused: 0, why: None }
    }
}

/// The way to a server.
pub trait Carrier: Send + 'static {
    type Item: Send + 'static;
    /// Items in one go.
    const BATCH: usize;
    fn carry(&mut self, items: &[Self::Item]) -> impl Future<Output = Sent>;
}

/// How an outbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub sent: u64,
    /// Did not fit into the queue, or were given up.
    pub dropped: u64,
    /// The server did not want them.
    pub refused: u64,
    /// Tries that failed.
    pub failures: u64,
    pub waiting: u64,
    /// Why the last try failed; `None`: it did not.
    pub failing: Option<String>,
}

struct State<T> {
    queue: VecDeque<T>,
    /// Until then what waits may be delivered, then it is over.
    closing: Option<Instant>,
    ended: bool,
    stats: Stats,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// For the thread.
    news: Notify,
    /// For who waits for the end.
    over: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pipeline's end of it.
pub struct Outbox<T> {
    shared: Arc<Shared<T>>,
    max: usize,
}

/// Where its figures are read.
pub type Gauge = Arc<dyn Fn() -> Stats + Send + Sync>;

impl<T: Send + 'static> Outbox<T> {
    /// Starts the thread; at most `max` items wait.
    pub fn start<C: Carrier<Item = T>>(name: &str, carrier: C, max: usize) -> std::io::Result<Outbox<T>> {
        let state = State { queue: VecDeque::new(), closing: None, ended: false, stats: Stats::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), news: Notify::new(), over: Condvar::new() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let there = Arc::clone(&shared);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            runtime.block_on(deliver(&there, carrier));
            there.lock().ended = true;
            there.over.notify_all();
            // A look-up of a name may hang for long.
            runtime.shutdown_background();
        })?;
        Ok(Outbox { shared, max })
    }

    /// Queues one, or counts it as dropped. Never waits.
    pub fn push(&self, item: T) {
        let mut state = self.shared.lock();
        if state.queue.len() >= self.max {
            state.stats.dropped += 1;
            return;
        }
        state.queue.push_back(item);
        state.stats.waiting += 1;
        drop(state);
        self.shared.news.notify_one();
    }

    pub fn stats(&self) -> Stats {
        self.shared.lock().stats.clone()
    }

    pub fn gauge(&self) -> Gauge {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || shared.lock().stats.clone())
    }

    /// Delivers what waits, trying at most for `patience`. Gives what is left.
    pub fn finish(self, patience: Duration) -> Stats {
        self.shared.lock().closing = Some(Instant::now() + patience);
        self.shared.news.notify_one();
        let state = self.shared.lock();
        let done = self.shared.over.wait_timeout_while(state, patience, |state| !state.ended);
        let state = done.unwrap_or_else(PoisonError::into_inner).0;
        state.stats.clone()
    }
}

async fn deliver<C: Carrier>(shared: &Shared<C::Item>, mut carrier: C) {
    loop {
        let batch: Vec<C::Item> = {
            let mut state = shared.lock();
            let many = state.queue.len().min(C::BATCH);
            if many == 0 && state.closing.is_some() {
                return;
            }
            state.queue.drain(..many).collect()
        };
        if batch.is_empty() {
            shared.news.notified().await;
            continue;
        }
        let whole = batch.len() as u64;
        let sent = persist(shared, &mut carrier, &batch).await;
        let mut state = shared.lock();
        let Some((refused, why)) = sent else {
            if state.closing.is_some() {
                // They are still waiting.
                return;
            }
            state.stats.waiting -= whole;
            state.stats.dropped += whole;
            continue;
        };
        state.stats.waiting -= whole;
        state.stats.refused += refused;
        state.stats.sent += whole - refused;
        state.stats.failing = why;
    }
}

/// How many of them were refused, and why; `None`: given up, or the end came.
async fn persist<C: Carrier>(
    shared: &Shared<C::Item>,
    carrier: &mut C,
    batch: &[C::Item],
) -> Option<(u64, Option<String>)> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let sent = match timeout(TRY, carrier.carry(batch)).await {
            Ok(sent) => sent,
            Err(_) => Sent::Later { after: None, why: "no answer in time".into() },
        };
        let (after, why) = match sent {
            Sent::Done { refused, why } => return Some((refused.min(batch.len() as u64), why)),
            Sent::Refused { why } => return Some((batch.len() as u64, Some(why))),
            Sent::Later { after, why } => (after, why),
        };
        {
            let mut state = shared.lock();
            state.stats.failures += 1;
            state.stats.failing = Some(why);
        }
        if start.elapsed() >= GIVE_UP {
            return None;
        }
        let until = Instant::now() + after.unwrap_or_else(|| some_of(pause)).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        pause = (pause * 2).min(LAST_PAUSE);
        // The end shortens the pauses: it is then or never.
        loop {
            let closing = shared.lock().closing;
            let now = Instant::now();
            if closing.is_some_and(|end| now + FIRST_PAUSE >= end) {
                return None;
            }
            let left = match closing {
                Some(_) => until.saturating_duration_since(now).min(FIRST_PAUSE / 2),
                None => until.saturating_duration_since(now),
            };
            if left.is_zero() {
                break;
            }
            let slept = tokio::select! {
                () = sleep(left) => true,
                () = shared.news.notified() => false,
            };
            if slept {
                break;
            }
        }
    }
}

/// Half of it to all of it.
fn some_of(pause: Duration) -> Duration {
    let mut chance = [0_u8; 2];
    // Without chance it is the whole.
    let _ = rustix::rand::getrandom(&mut chance, rustix::rand::GetRandomFlags::empty());
    pause - pause / 2 * u32::from(u16::from_le_bytes(chance)) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Answers from a list, then with success; tells what came.
    struct Played {
        answers: Vec<Sent>,
        came: mpsc::Sender<Vec<u32>>,
    }

    impl Carrier for Played {
        type Item = u32;
        const BATCH: usize = 3;

        async fn carry(&mut self, items: &[u32]) -> Sent {
            self.came.send(items.to_vec()).unwrap();
            if self.answers.is_empty() { Sent::done() } else { self.answers.remove(0) }
        }
    }

    fn played(answers: Vec<Sent>, max: usize) -> (Outbox<u32>, mpsc::Receiver<Vec<u32>>) {
        let (came, all) = mpsc::channel();
        (Outbox::start("test", Played { answers, came }, max).unwrap(), all)
    }

    fn later(after_ms: u64) -> Sent {
        Sent::Later { after: Some(Duration::from_millis(after_ms)), why: "away".into() }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn tries_again_in_order_and_loses_nothing() {
        let (outbox, came) = played(vec![later(1), later(1)], 100);
        outbox.push(1);
        assert_eq!([came.recv().unwrap(), came.recv().unwrap(), came.recv().unwrap()], [[1], [1], [1]]);
        (2..=8).for_each(|n| outbox.push(n));
        let stats = outbox.finish(LONG);
        assert_eq!((stats.sent, stats.failures, stats.waiting, stats.failing), (8, 2, 0, None));
        let rest: Vec<u32> = came.iter().flatten().collect();
        assert_eq!(rest, (2..=8).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_refused_is_not_tried_again() {
        let refused = Sent::Refused { why: "no right".into() };
        let partly = Sent::Done { refused: 1, why: Some("one is odd".into()) };
        let (outbox, came) = played(vec![refused, partly], 100);
        outbox.push(1);
        came.recv().unwrap();
        outbox.push(2);
        came.recv().unwrap();
        let stats = outbox.finish(LONG);
        assert_eq!((stats.sent, stats.refused, stats.failing.as_deref()), (0, 2, Some("one is odd")));
    }

    #[test]
    fn a_server_that_is_away_costs_no_memory_and_no_time() {
        let (outbox, came) = played((0..1000).map(|_| later(60_000)).collect(), 10);
        outbox.push(0);
        came.recv().unwrap();
        (1..=50).for_each(|n| outbox.push(n));
        // Its answer is written down after it came.
        let start = Instant::now();
        while outbox.stats().failing.is_none() && start.elapsed() < LONG {
            std::thread::yield_now();
        }
        let stats = outbox.stats();
        assert_eq!((stats.waiting, stats.dropped, stats.failing.as_deref()), (11, 40, Some("away")));
        let start = Instant::now();
        let stats = outbox.finish(Duration::from_millis(100));
        assert_eq!((stats.waiting, stats.sent), (11, 0));
        assert!(start.elapsed() < LONG);
    }

    #[test]
    fn pauses_differ() {
        let all: std::collections::BTreeSet<Duration> = (0..50).map(|_| some_of(LAST_PAUSE)).collect();
        assert!(all.len() > 10 && all.iter().all(|p| (LAST_PAUSE / 2..=LAST_PAUSE).contains(p)), "{all:?}");
    }
}
