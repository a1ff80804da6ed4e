//! Container runtimes: who they are, and what they say of containers, live.
//!
//! One thread with its own small runtime. Each socket has a task that lists once, follows the runtime's events where it
//! has them for everybody, answers questions about single containers, and comes back by itself when the runtime was gone.
//! Nothing is asked in a circle: a container that no event told of is asked for when its cgroup comes up, then what the
//! runtime left on the disk is read. Whatever a runtime does, the verdicts do not wait for it.

pub(super) mod fact;
mod find;
mod link;

use super::{cri, docker, oci};
use crate::kernel::clock;
use crate::model::Input;
use crate::model::input::{ContainerFact, SourceFact, SourceState};
use find::{Kind, Socket};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

pub use find::{Found, Wish, found};
pub(super) use link::{CALL, LIST, PING, Trouble, connect, within};

/// A runtime that was not there is looked for again.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Reconnecting: first after this time, then after twice as long each time, up to the other.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A socket that nobody listens on is tried more often: it costs nobody anything.
const BACKOFF_CONNECT: Duration = Duration::from_secs(1);
/// Who answered for so long has no trouble with us.
const STEADY: Duration = Duration::from_secs(30);
/// When a container that nobody knows is asked for: a sandbox is known to its runtime some time after its cgroup is.
const TRIES_MS: [u64; 4] = [0, 300, 1_000, 4_000];
/// Facts that wait to be taken.
const FACTS_MAX: usize = 8_192;
/// Containers that wait to be asked for; what comes on top of that stays without names.
const WANTS_MAX: usize = 4_096;
/// Questions that wait at one socket.
const ASKS_MAX: usize = 256;
/// Containers that are remembered as told of.
const KNOWN_MAX: usize = 65_536;

/// The running thread. Dropping it ends it.
#[derive(Debug)]
pub struct Runtimes {
    facts: mpsc::Receiver<Input>,
    wants: Option<mpsc::Sender<String>>,
    listed: Option<oneshot::Receiver<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Runtimes {
    /// Starts to look for runtimes below `root`; `None` when none are wished.
    pub fn start(root: &Path, wish: &Wish) -> io::Result<Option<Runtimes>> {
        if wish.is_none() {
            return Ok(None);
        }
        let (to, facts) = mpsc::channel(FACTS_MAX);
        let (wants, wanted) = mpsc::channel(WANTS_MAX);
        let (done, listed) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (root, wish) = (root.to_path_buf(), wish.clone());
        let thread = std::thread::Builder::new().name("runtimes".into()).spawn(move || {
            let work = LocalSet::new();
            runtime.block_on(work.run_until(run(root, wish, wanted, Out::new(to), done)));
        })?;
        Ok(Some(Runtimes { facts, wants: Some(wants), listed: Some(listed), thread: Some(thread) }))
    }

    /// Waits until every runtime that was there at the start has listed its containers or has failed, but no longer than
    /// this.
    pub async fn listed(&mut self, patience: Duration) {
        if let Some(listed) = self.listed.take() {
            _ = tokio::time::timeout(patience, listed).await;
        }
    }

    /// A container whose cgroup came up.
    pub fn want(&self, id: &str) {
        if let Some(wants) = &self.wants {
            _ = wants.try_send(id.to_owned());
        }
    }

    /// What was said since the last time.
    pub fn take(&mut self) -> Vec<Input> {
        std::iter::from_fn(|| self.facts.try_recv().ok()).take(FACTS_MAX).collect()
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        // Its end is the end of the thread, which may be waiting for room.
        self.wants = None;
        self.facts.close();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// Where facts go; which containers were told of already.
#[derive(Clone, Debug)]
pub(super) struct Out {
    to: mpsc::Sender<Input>,
    known: Rc<RefCell<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Out {
    fn new(to: mpsc::Sender<Input>) -> Out {
        Out { to, known: Rc::default() }
    }

    pub(super) fn knows(&self, id: &str) -> bool {
        self.known.borrow().ids.contains(id)
    }

    /// What a runtime says of one of its containers: there is nothing more to ask for.
    pub(super) async fn container(&self, fact: ContainerFact) {
        if fact::is_id(&fact.id) {
            self.known.borrow_mut().add(&fact.id);
            self.give(fact).await;
        }
    }

    /// Bounds it, stamps it and gives it out.
    async fn give(&self, mut fact: ContainerFact) {
        fact::clip(&mut fact);
        fact.seen_at = clock::boot_ns();
        // Nobody takes it any more: the end is near.
        _ = self.to.send(Input::Container(Box::new(fact))).await;
    }

    async fn source(&self, at: &str, name: &str, state: SourceState) {
        let mut name = name.to_owned();
        name.truncate(name.floor_char_boundary(100));
        _ = self.to.send(Input::Source(SourceFact { at: clock::boot_ns(), source: at.to_owned(), name, state })).await;
    }
}

impl Known {
    fn add(&mut self, id: &str) {
        if self.ids.insert(id.to_owned()) {
            self.order.push_back(id.to_owned());
        }
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

/// A question to one runtime: does it know this container? When it does, it has given the fact out before it says so.
pub(super) struct Ask {
    pub id: String,
    pub known: oneshot::Sender<bool>,
}

/// What a socket's task is given.
pub(super) struct Talk {
    /// `unix:///run/…`
    pub at: String,
    pub path: PathBuf,
    pub out: Out,
    pub asks: mpsc::Receiver<Ask>,
    line: Rc<Line>,
}

/// One socket, as others see it.
struct Line {
    asks: mpsc::Sender<Ask>,
    /// On the command line.
    named: bool,
    connected: Cell<bool>,
    /// Has listed, or failed, once.
    settled: Cell<bool>,
    /// Lost was told.
    lost: Cell<bool>,
    name: RefCell<String>,
    start: Rc<Start>,
}

/// Counts those that have not settled since the start.
struct Start {
    open: Cell<usize>,
    done: RefCell<Option<oneshot::Sender<()>>>,
}

impl Start {
    fn settle(&self, n: usize) {
        self.open.set(self.open.get().saturating_sub(n));
        if self.open.get() == 0
            && let Some(done) = self.done.borrow_mut().take()
        {
            _ = done.send(());
        }
    }
}

impl Talk {
    /// It answers, and calls itself `name`.
    pub(super) async fn connected(&self, name: &str) {
        self.line.connected.set(true);
        self.line.lost.set(false);
        name.clone_into(&mut self.line.name.borrow_mut());
        self.out.source(&self.at, name, SourceState::Connected).await;
    }

    /// All of its containers were told of.
    pub(super) fn listed(&self) {
        if !self.line.settled.replace(true) {
            self.line.start.settle(1);
        }
    }

    /// Told once for each time without it.
    async fn lost(&self, trouble: &Trouble) {
        self.line.connected.set(false);
        self.listed();
        // What listens where runtimes do need not be one; what somebody named should.
        let told = self.line.named || !matches!(trouble, Trouble::NotServed(_));
        if told && !self.line.lost.replace(true) {
            let name = self.line.name.borrow().clone();
            self.out.source(&self.at, &name, SourceState::Lost { why: trouble.to_string() }).await;
        }
    }
}

async fn run(root: PathBuf, wish: Wish, mut wants: mpsc::Receiver<String>, out: Out, done: oneshot::Sender<()>) {
    let start = Rc::new(Start { open: Cell::new(1), done: RefCell::new(Some(done)) });
    let lines: Rc<RefCell<Vec<Rc<Line>>>> = Rc::default();
    let root = Rc::new(root);
    let mut followed = BTreeSet::new();
    let waiting: Rc<RefCell<BTreeSet<String>>> = Rc::default();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut first = true;
    loop {
        tokio::select! {
            _ = look.tick() => {
                for socket in wish.sockets(&root) {
                    if followed.insert(socket.path.clone()) {
                        lines.borrow_mut().push(follow(socket, &out, &start, first));
                    }
                }
                if std::mem::take(&mut first) {
                    start.settle(1);
                }
            }
            want = wants.recv() => {
                let Some(id) = want else { return };
                // Each container has a cgroup in every hierarchy.
                if out.knows(&id) || waiting.borrow().len() >= WANTS_MAX || !waiting.borrow_mut().insert(id.clone()) {
                    continue;
                }
                let (lines, out, root, waiting) = (lines.clone(), out.clone(), root.clone(), waiting.clone());
                tokio::task::spawn_local(async move {
                    seek(&id, &lines, &out, &root).await;
                    waiting.borrow_mut().remove(&id);
                });
            }
        }
    }
}

/// Asks everybody who is there, and looks at the disk, where some of it is sooner; again after a while.
async fn seek(id: &str, lines: &RefCell<Vec<Rc<Line>>>, out: &Out, root: &Path) {
    let mut on_disk = false;
    for wait in TRIES_MS {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        if out.knows(id) {
            return;
        }
        let there: Vec<Rc<Line>> = lines.borrow().iter().filter(|line| line.connected.get()).cloned().collect();
        for line in &there {
            let (known, answer) = oneshot::channel();
            let asked = line.asks.try_send(Ask { id: id.to_owned(), known });
            // A runtime that is lost meanwhile drops the question.
            if asked.is_ok() && matches!(tokio::time::timeout(CALL, answer).await, Ok(Ok(true))) {
                return;
            }
        }
        if !on_disk && let Some(fact) = oci::look(root, id) {
            on_disk = true;
            out.give(fact).await;
        }
        // Who comes later lists all of his.
        if on_disk && there.is_empty() {
            return;
        }
    }
}

fn follow(socket: Socket, out: &Out, start: &Rc<Start>, first: bool) -> Rc<Line> {
    let (asks, questions) = mpsc::channel(ASKS_MAX);
    if first {
        start.open.set(start.open.get() + 1);
    }
    let line = Rc::new(Line {
        asks,
        named: socket.kind == Kind::Unknown,
        connected: Cell::new(false),
        settled: Cell::new(!first),
        lost: Cell::new(false),
        name: RefCell::default(),
        start: start.clone(),
    });
    let at = format!("unix://{}", socket.shown.display());
    let talk = Talk { at, path: socket.path, out: out.clone(), asks: questions, line: line.clone() };
    tokio::task::spawn_local(stay(talk, socket.kind));
    line
}

/// Follows one socket for good.
async fn stay(mut talk: Talk, kind: Kind) {
    let mut wait = BACKOFF.0;
    loop {
        let begun = Instant::now();
        let found = match kind {
            Kind::Unknown => find::kind_of(&talk.path).await,
            known => Ok(known),
        };
        let result = match found {
            Ok(Kind::Docker) => docker::follow(&mut talk).await,
            Ok(_) => cri::follow(&mut talk).await,
            Err(trouble) => Err(trouble),
        };
        let trouble = match result {
            Ok(never) => match never {},
            Err(trouble) => trouble,
        };
        if begun.elapsed() > STEADY {
            wait = BACKOFF.0;
        }
        talk.lost(&trouble).await;
        // Whoever waits for an answer does not get one.
        while talk.asks.try_recv().is_ok() {}
        tokio::time::sleep(match trouble {
            Trouble::Connect(_) => wait.min(BACKOFF_CONNECT),
            Trouble::NotServed(_) => BACKOFF.1,
            _ => wait,
        })
        .await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

#[cfg(test)]
pub(super) mod tests;
