//! Lines on their way to stdout. A reader of stdout that is slow, stopped or gone must not stop the ring from being
//! drained: a thread of its own writes, a bounded queue lies before it, and what does not fit is counted.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

/// Bytes that may wait: some seconds of a busy node's events.
pub const BYTES: usize = 16 << 20;

/// Why nothing more is written.
#[derive(Debug)]
enum End {
    /// The reader went away: not an error (EPIPE).
    Closed,
    Failed(std::io::Error),
}

/// The sending end. Dropping it without [`Queue::finish`] lets the thread write what is queued, unwatched.
pub struct Queue {
    lines: Sender<String>,
    end: Receiver<Result<(), End>>,
    over: Arc<AtomicBool>,
    /// Bytes in the queue, and how many may be.
    waiting: Arc<AtomicUsize>,
    max: usize,
    dropped: AtomicU64,
}

impl Queue {
    /// Starts the writing thread. It writes what is queued at once and flushes when the queue is empty.
    pub fn new(to: impl Write + Send + 'static, max: usize) -> std::io::Result<Self> {
        let (lines, from) = channel::<String>();
        let (done, end) = channel();
        let (over, waiting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (flag, rest) = (Arc::clone(&over), Arc::clone(&waiting));
        thread::Builder::new().name("stdout".into()).spawn(move || {
            let result = write_all(from, to, &rest);
            flag.store(true, Ordering::Release);
            // The receiver may be gone: then nobody wants to know.
            let _ = done.send(result);
        })?;
        Ok(Queue { lines, end, over, waiting, max, dropped: AtomicU64::new(0) })
    }

    /// Queues one line (its end is added), or counts it as dropped. Never blocks.
    pub fn push(&self, line: String) {
        let len = line.len();
        if self.waiting.fetch_add(len, Ordering::Relaxed) + len > self.max {
            self.waiting.fetch_sub(len, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Fails when the reader is gone: `is_over` tells.
        let _ = self.lines.send(line);
    }

    /// The reader of stdout is gone, or writing failed: [`Queue::finish`] says which.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Lines that did not fit.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Lets the thread write what is queued, for `patience` at most. A reader that closed its end is no error.
    pub fn finish(self, patience: Duration) -> std::io::Result<()> {
        let Queue { lines, end, .. } = self;
        drop(lines);
        match end.recv_timeout(patience) {
            Ok(Ok(()) | Err(End::Closed)) => Ok(()),
            Ok(Err(End::Failed(err))) => Err(err),
            Err(_) => Err(std::io::Error::new(ErrorKind::TimedOut, "its reader takes nothing any more")),
        }
    }
}

fn write_all(from: Receiver<String>, to: impl Write, waiting: &AtomicUsize) -> Result<(), End> {
    let mut to = std::io::BufWriter::new(to);
    loop {
        let line = match from.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Empty) => {
                to.flush().map_err(end)?;
                match from.recv() {
                    Ok(line) => line,
                    Err(_) => return Ok(()),
                }
            }
            Err(TryRecvError::Disconnected) => return to.flush().map_err(end),
        };
        to.write_all(line.as_bytes()).and_then(|()| to.write_all(b"\n")).map_err(end)?;
        waiting.fetch_sub(line.len(), Ordering::Relaxed);
    }
}

fn end(err: std::io::Error) -> End {
    if err.kind() == ErrorKind::BrokenPipe { End::Closed } else { End::Failed(err) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, PipeWriter, Read};

    fn pipe() -> (PipeReader, PipeWriter) {
        std::io::pipe().unwrap()
    }

    #[test]
    fn writes_everything_in_order() {
        let (mut reader, writer) = pipe();
        let queue = Queue::new(writer, BYTES).unwrap();
        for i in 0..100 {
            queue.push(format!("line {i}"));
        }
        queue.finish(Duration::from_secs(10)).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let wanted: String = (0..100).map(|i| format!("line {i}\n")).collect();
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_reader_that_is_gone_ends_it_quietly() {
        let (reader, writer) = pipe();
        drop(reader);
        let queue = Queue::new(writer, 1000).unwrap();
        while !queue.is_over() {
            queue.push("into the void".into());
            thread::yield_now();
        }
        queue.finish(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_reader_that_stands_still_blocks_nobody_and_what_is_dropped_is_counted() {
        let (mut reader, writer) = pipe();
        let queue = Queue::new(writer, 400_000).unwrap();
        let long = "x".repeat(100_000);
        let pushed = 50;
        for _ in 0..pushed {
            queue.push(long.clone());
        }
        let dropped = queue.dropped();
        assert!(dropped > 0, "a pipe and 400 kB cannot hold 5 MB");
        let text = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text.lines().count() as u64)
        });
        queue.finish(Duration::from_secs(10)).unwrap();
        assert_eq!(text.join().unwrap().unwrap() + dropped, pushed);
    }

    #[test]
    fn patience_ends() {
        let (_reader, writer) = pipe();
        let queue = Queue::new(writer, BYTES).unwrap();
        queue.push("x".repeat(1_000_000));
        let err = queue.finish(Duration::from_millis(20)).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::TimedOut);
    }
}
