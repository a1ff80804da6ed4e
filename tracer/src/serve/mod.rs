//! HTTP: metrics, health, and what is in the store. On a thread and a runtime of its own, with bounds on everything that a
//! client can take: whatever clients do, the pipeline does not notice.
//!
//! A stream (`follow=1`) has no queue: each reads the store at its own pace from where it is, so a slow client is late and
//! loses nothing.

mod answer;
pub mod client;
mod lookup;
mod page;
mod params;
mod patience;
mod room;
mod route;
mod seats;
mod stream;
#[cfg(test)]
mod tests;

use crate::metrics::Tally;
use crate::metrics::text::Text;
use crate::metrics::{HTTP_CONNECTIONS, HTTP_REFUSED, HTTP_REQUESTS};
use crate::store::View;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use patience::Patience;
use seats::Seats;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    /// Of them, those of one address that is not this host's own.
    pub of_one: usize,
    /// Of them, streams: the rest stays free for those who ask once, such as Prometheus.
    pub streams: usize,
    /// Until a request's header is there, and between requests.
    pub header_time: Duration,
    /// A client that takes nothing for so long is cut off.
    pub write_time: Duration,
    /// A stream without news says that it lives.
    pub heartbeat: Duration,
    /// Without an input for so long the pipeline stands still. On an idle node it moves five times a second.
    pub still: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            connections: 64,
            of_one: 24,
            streams: 16,
            header_time: Duration::from_secs(10),
            write_time: Duration::from_secs(30),
            heartbeat: Duration::from_secs(15),
            still: Duration::from_secs(30),
        }
    }
}

/// Bytes and fields of a request's header.
const HEADER_BYTES: usize = 16 << 10;
const HEADER_FIELDS: usize = 64;
/// Threads that read the store; what is more waits its turn.
const READERS: usize = 2;
/// Their niceness: they may have what the pipeline leaves them.
const READERS_NICE: i32 = 10;
/// What is open at the end gets so long to finish.
const GRACE: Duration = Duration::from_secs(2);

/// What the server shows.
pub struct State {
    pub tally: Mutex<Tally>,
    pub store: View,
}

impl State {
    pub fn new(store: View) -> State {
        State { tally: Mutex::default(), store }
    }

    /// For a moment: the pipeline takes it for each input.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server's own figures.
#[derive(Default)]
struct Own {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    refused_connections: AtomicU64,
    refused_streams: AtomicU64,
    refused_answers: AtomicU64,
}

/// What each request needs.
struct Shared {
    state: Arc<State>,
    own: Own,
    bounds: Bounds,
    streams: Arc<Semaphore>,
    seats: Arc<Seats>,
    /// See [`room`].
    answers: Arc<Semaphore>,
    ending: watch::Receiver<bool>,
}

impl Shared {
    fn count(&self, route: &'static str, code: u16) {
        let mut requests = self.own.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, code)).or_default() += 1;
    }

    fn write(&self, text: &mut Text) {
        let requests = self.own.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, code), count) in requests.iter() {
            text.add(&HTTP_REQUESTS, &[route, &code.to_string()], count);
        }
        text.add(&HTTP_CONNECTIONS, &[], self.seats.taken());
        text.add(&HTTP_REFUSED, &["connections"], self.own.refused_connections.load(Ordering::Relaxed));
        text.add(&HTTP_REFUSED, &["streams"], self.own.refused_streams.load(Ordering::Relaxed));
        text.add(&HTTP_REFUSED, &["answers"], self.own.refused_answers.load(Ordering::Relaxed));
    }
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on a listening socket.
    pub fn start(listener: TcpListener, state: Arc<State>, bounds: Bounds) -> io::Result<Server> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (end, ending) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            // The readers' threads; a sandbox may not allow it.
            .on_thread_start(|| _ = rustix::process::setpriority_process(None, READERS_NICE))
            .build()?;
        let answers = Arc::new(Semaphore::new(room::ALL as usize));
        let streams = Arc::new(Semaphore::new(bounds.streams));
        let seats = Seats::new(bounds.connections, bounds.of_one);
        let shared = Arc::new(Shared { state, own: Own::default(), bounds, streams, seats, answers, ending });
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(accept(listener, shared));
            // A reader that hangs on a broken disk is left behind.
            runtime.shutdown_timeout(GRACE);
        })?;
        Ok(Server { address, end, thread: Some(thread) })
    }

    /// Ends streams, lets answers be finished for a moment, and closes.
    pub fn stop(mut self) {
        self.end.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let mut ending = shared.ending.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = ending.wait_for(|end| *end) => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, most likely: the next ones have to wait as well.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(seat) = shared.seats.take(peer.ip()) else {
            shared.own.refused_connections.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            connection(stream, &shared).await;
            drop(seat);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, shared.seats.empty(shared.bounds.connections)).await;
}

/// Until the client goes, hangs, or the server ends. Its errors are its own.
async fn connection(stream: TcpStream, shared: &Arc<Shared>) {
    // Lines of a stream go out at once.
    let _ = stream.set_nodelay(true);
    let loopback = stream.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let io = Patience::new(TokioIo::new(stream), shared.bounds.write_time);
    let service = service_fn(|request| {
        let shared = Arc::clone(shared);
        async move { Ok::<_, std::convert::Infallible>(route::answer(&request, loopback, &shared).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.bounds.header_time)
        .max_header_size(HEADER_BYTES)
        .max_buf_size(HEADER_BYTES.max(32 << 10))
        .max_headers(HEADER_FIELDS)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let mut ending = shared.ending.clone();
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ending.wait_for(|end| *end) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
