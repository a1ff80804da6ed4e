//! What nginx says itself of the requests that it could not pass on: its error log and the error pages that it makes, seen by
//! uprobes where they are attached. A worker is one thread with one event loop, so what it says directly one after the other
//! is about one request (docs/causes.md, "What nginx says").
//!
//! Two uses: a failed attempt that a server's socket showed gets to know what nginx made of it ([`Nginx::upshot`]), and a
//! request that failed in nginx alone is a loss of its own ([`Nginx::observe`]).

use super::answer::Closer;
use super::lost::{Actor, Conn, ErrorMade, Evidence, Lost, NotConnected, Own, RefusedAt, errno};
use crate::model::event::{
    BootNs, Event, EventId, EventKind, NginxErrorPage, NginxLogged, ProcKey, Side, Task, Tuple, tcp,
};
use crate::model::incident::{Cause, Mechanism, Outcome};
use std::collections::{BTreeMap, VecDeque};

/// Nothing waits between the line and the page, but the worker may have been off its CPU.
pub(super) const DIRECT_NS: u64 = 50_000_000;
/// nginx asks for another server, and finds none, within one turn and without a system call.
const TURN_ALONE_NS: u64 = 5_000_000;
/// A worker gets to what its connections have for it within this time.
const TURN_NS: u64 = 500_000_000;
/// What is compared with a loss lies around it.
const AROUND_NS: u64 = 1_000_000_000;
/// A connect's refusal is seen by its socket and as a reset within this time.
const SAME_NS: u64 = 100_000_000;
/// A server that failed is left alone for so long: nginx's `fail_timeout`, 10 s unless set.
const MARKED_NS: u64 = 60_000_000_000;
const KEEP_NS: u64 = 120_000_000_000;
/// Entries of each kind; the oldest go first.
const MAX_ENTRIES: usize = 4_096;

/// Why nginx could not pass a request on, by the format of its line and errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody listened.
    Refused,
    /// EAGAIN of a unix socket.
    Full,
    /// There was no local port.
    NoPort,
    /// The connection ended before the answer.
    Ended,
    TimedOut,
    /// Nobody else can tell of it.
    Own(Own),
    Other,
}

impl Why {
    /// Formats as nginx 1.10 to 1.29 have them, by their beginnings.
    pub fn of(errno: u32, format: &str) -> Why {
        let begins = |with: &[&str]| with.iter().any(|w| format.starts_with(w));
        let io = ["recv()", "send()", "readv()", "writev()", "connect()", "sendfile", "upstream prematurely closed"];
        match errno {
            errno::CONNREFUSED | errno::NOENT if begins(&["connect()"]) => return Why::Refused,
            errno::AGAIN if begins(&["connect()"]) => return Why::Full,
            // At once, by connect() itself; what becomes known later has no "to".
            errno::ADDRNOTAVAIL if begins(&["connect() to"]) => return Why::NoPort,
            errno::NETUNREACH | errno::HOSTUNREACH if begins(&["connect() to"]) => {
                return Why::Own(Own::NoWay { errno });
            }
            errno::PIPE | errno::CONNRESET if begins(&io) => return Why::Ended,
            errno::TIMEDOUT if begins(&["upstream timed out", "connect()", "recv()", "readv()"]) => {
                return Why::TimedOut;
            }
            _ => {}
        }
        // php-fpm's own word for the end of an answer came, the header had not.
        if begins(&["upstream prematurely closed FastCGI", "upstream prematurely closed %s"]) {
            return Why::Own(Own::Invalid("answer-incomplete"));
        }
        if begins(&["upstream prematurely closed connection"]) {
            return Why::Ended;
        }
        if begins(&["no live upstreams"]) {
            return Why::Own(Own::NoLive);
        }
        if begins(&["%V could not be resolved", "no resolver defined to resolve", "no port in upstream"]) {
            return Why::Own(Own::Unresolved);
        }
        let sub_cause = match format {
            f if f.starts_with("upstream sent too big header") => "header-too-big",
            f if f.starts_with("upstream sent too large http2 header") => "header-too-big",
            f if f.starts_with("upstream sent") && (f.contains("header") || f.contains("status")) => "header-invalid",
            f if f.starts_with("upstream sent") && f.contains("Content-Length") => "header-invalid",
            f if f.starts_with("upstream sent") || f.starts_with("upstream violated") => "protocol-invalid",
            f if f.starts_with("upstream rejected request") => "protocol-invalid",
            f if f.starts_with("upstream prematurely closed stream") => "answer-incomplete",
            _ => return Why::Other,
        };
        Why::Own(Own::Invalid(sub_cause))
    }
}

/// One request, or one attempt of it, that failed: a line of the log, and the page that followed it.
#[derive(Clone, Debug)]
pub struct Failed {
    pub event: EventId,
    pub at: BootNs,
    pub why: Why,
    pub logged: NginxLogged,
    pub page: Option<Page>,
    /// The connection that it closed between the two, from its own end, and what had come on it.
    pub upstream: Option<(Tuple, Came)>,
    /// The failed connect that the line is about, by its own record.
    refused: Option<EventId>,
    /// The line before it, of the same worker.
    before: Option<EventId>,
    /// A page came too late to be its own for sure.
    doubt: bool,
    /// It is about a loss that is known for sure: no other one's.
    pub(super) told: bool,
}

/// Bytes of an upstream's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    pub received: u64,
    /// Of these, what nginx had read.
    pub read: u64,
}

impl Failed {
    /// connect() failed at once, and no other record shows it.
    pub fn no_connect(&self) -> bool {
        matches!(self.why, Why::Own(Own::NoWay { .. } | Own::NoAddress))
    }

    /// No page of it was seen, nor one that may be its.
    pub fn without_page(&self) -> bool {
        self.page.is_none() && !self.doubt
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub event: EventId,
    pub at: BootNs,
    pub status: u32,
    /// Whose request it was, from nginx's side.
    pub client: Option<Tuple>,
}

/// What became of the request after this attempt had failed.
#[derive(Clone, Debug)]
pub enum Upshot<'a> {
    Unknown,
    /// nginx made an error page; `by`: which line and page, where they can be no other's.
    Answered {
        status: u32,
        nginx: &'a Task,
        by: Option<&'a Failed>,
    },
    /// It made none: it went on to another server, or nobody waited any more.
    PassedOn {
        nginx: &'a Task,
    },
    /// Of several attempts some were passed on: which ones is not known.
    Mixed,
}

impl Upshot<'_> {
    pub fn nginx(&self) -> Option<&Task> {
        match self {
            Upshot::Answered { nginx, .. } | Upshot::PassedOn { nginx } => Some(nginx),
            _ => None,
        }
    }
}

/// A lost attempt towards a server behind nginx.
#[derive(Clone, Debug)]
struct Attempt {
    event: EventId,
    at: BootNs,
    netns: u32,
}

/// A connect that was refused, as the socket of nginx showed it.
#[derive(Clone, Debug)]
struct Connect {
    event: EventId,
    at: BootNs,
    task: ProcKey,
    tuple: Tuple,
}

/// A failure that has its verdict: what may have made nginx leave a server alone.
#[derive(Clone, Debug)]
struct Verdict {
    at: BootNs,
    master: u32,
    lost: Lost,
    cause: Cause,
    sub_cause: Option<String>,
}

/// See the module.
#[derive(Default)]
pub struct Nginx {
    pub(super) said: VecDeque<Failed>,
    /// The number of the first entry of `said` since the beginning.
    pub(super) first: u64,
    /// Each worker's last line.
    pub(super) last: BTreeMap<ProcKey, u64>,
    /// Each worker's last failed connect to a unix socket.
    unix: BTreeMap<ProcKey, (EventId, BootNs)>,
    connects: VecDeque<Connect>,
    ended: VecDeque<Attempt>,
    verdicts: VecDeque<Verdict>,
}

impl Nginx {
    /// Takes a record; gives the request that failed in nginx alone.
    pub fn observe(&mut self, event: &Event) -> Option<Lost> {
        match &event.kind {
            EventKind::NginxLogged(l) => self.line(event, l),
            EventKind::NginxErrorPage(p) => return self.page(event, p),
            EventKind::UnixRefused(r) => {
                if self.unix.len() > MAX_ENTRIES {
                    self.unix.clear();
                }
                self.unix.insert(r.task.key(), (event.id, event.at));
            }
            EventKind::TcpState(s) if s.oldstate == tcp::SYN_SENT && s.side == Side::Client => {
                let connect = Connect { event: event.id, at: event.at, task: s.task.key(), tuple: s.tuple };
                push(&mut self.connects, connect, |c| c.at.saturating_add(KEEP_NS) < event.at);
            }
            EventKind::TcpState(s)
                if matches!(s.oldstate, tcp::ESTABLISHED | tcp::CLOSE_WAIT) && s.side == Side::Client =>
            {
                // A FIN that has come counts as a received byte.
                let received = s.bytes_received.saturating_sub(u64::from(s.oldstate == tcp::CLOSE_WAIT));
                let read = s.bytes_received.saturating_sub(u64::from(s.rcv_nxt.wrapping_sub(s.copied_seq)));
                self.closed(&s.task, event.at, s.tuple, Came { received, read: read.min(received) });
            }
            // What was sent to it and is unread makes close() reset the connection.
            EventKind::ResetSent(r) if r.active => {
                let read = r.bytes_received.saturating_sub(u64::from(r.rcv_nxt.wrapping_sub(r.copied_seq)));
                self.closed(&r.task, event.at, r.tuple, Came { received: r.bytes_received, read });
            }
            _ => {}
        }
        None
    }

    fn line(&mut self, event: &Event, l: &NginxLogged) {
        let key = l.task.key();
        let mut why = Why::of(l.errno, &l.format);
        // Lines about nothing that failed, such as what php writes to stderr, come between the others.
        if why == Why::Other {
            return;
        }
        let refused = self
            .unix
            .remove(&key)
            .filter(|(_, at)| matches!(why, Why::Refused | Why::Full) && event.at.saturating_sub(*at) <= DIRECT_NS)
            .map(|(event, _)| event);
        let without_port = self.without_port(&key, event.at).filter(|_| why == Why::NoPort);
        if why == Why::NoPort && without_port.is_none() {
            why = Why::Own(Own::NoAddress);
        }
        let before = self.last(&key).map(|f| f.event);
        let failed = Failed {
            event: event.id,
            at: event.at,
            why,
            logged: l.clone(),
            page: None,
            upstream: None,
            refused: refused.or(without_port),
            before,
            doubt: false,
            told: false,
        };
        if self.last.len() > MAX_ENTRIES {
            self.last.clear();
        }
        self.last.insert(key, self.first + self.said.len() as u64);
        let all = self.said.len() as u64 + 1;
        push(&mut self.said, failed, |f| f.at.saturating_add(KEEP_NS) < event.at);
        self.first += all - self.said.len() as u64;
    }

    /// The worker's connect that has just got no port.
    fn without_port(&self, worker: &ProcKey, at: BootNs) -> Option<EventId> {
        let near = |c: &&Connect| at.saturating_sub(c.at) <= DIRECT_NS;
        let its = |c: &&Connect| c.task == *worker && c.tuple.local_port == 0;
        self.connects.iter().rev().take_while(near).find(its).map(|c| c.event)
    }

    /// This worker's last line.
    fn last(&mut self, worker: &ProcKey) -> Option<&mut Failed> {
        let index = self.last.get(worker)?.checked_sub(self.first)?;
        self.said.get_mut(usize::try_from(index).ok()?)
    }

    /// The same, if what the worker does now may still be about that.
    fn open(&mut self, worker: &ProcKey, at: BootNs) -> Option<&mut Failed> {
        self.last(worker).filter(|f| f.page.is_none() && at.saturating_sub(f.at) <= DIRECT_NS)
    }

    /// A connection that the worker closes between its line and its page is the failed request's.
    fn closed(&mut self, task: &Task, at: BootNs, tuple: Tuple, came: Came) {
        if let Some(failed) = self.open(&task.key(), at).filter(|f| f.upstream.is_none()) {
            failed.upstream = Some((tuple, came));
        }
    }

    fn page(&mut self, event: &Event, p: &NginxErrorPage) -> Option<Lost> {
        let NginxErrorPage { task, status, connection, client } = p;
        let key = task.key();
        let page = Page { event: event.id, at: event.at, status: *status, client: *client };
        let last = self.last(&key).filter(|f| f.page.is_none() && !others(f.logged.connection, *connection))?;
        if event.at.saturating_sub(last.at) > DIRECT_NS {
            last.doubt |= event.at.saturating_sub(last.at) <= TURN_NS;
            return None;
        }
        last.page = Some(page);
        let (mut why, at) = (last.why, last.at);
        let mut failed = last.clone();
        // With no server left nginx answers for the attempt that failed just before.
        if why == Why::Own(Own::NoLive) {
            let same = |f: &&mut Failed| {
                Some(f.event) == failed.before
                    && f.at.saturating_add(TURN_ALONE_NS) >= at
                    && !others(f.logged.connection, *connection)
            };
            let before = self.said.iter_mut().rev().find(same);
            match before.filter(|f| f.page.is_none()) {
                Some(before) if !matches!(before.why, Why::Own(_)) => {
                    before.page = Some(page);
                    return None;
                }
                Some(before) if before.no_connect() => {
                    before.page = Some(page);
                    (why, failed) = (before.why, before.clone());
                }
                _ => {}
            }
        }
        let Why::Own(own) = why else { return None };
        // nginx connects for itself as well, to where names are resolved: such lines are about no client.
        if failed.no_connect() && failed.logged.connection != *connection {
            return None;
        }
        Some(Lost {
            event: event.id,
            at: event.at,
            conn: Conn::Hidden { netns: task.netns, id: event.id.0, client: *client },
            outcome: Outcome::ErrorMade,
            mechanism: match own {
                Own::Invalid(_) => Mechanism::Protocol,
                Own::NoWay { .. } => Mechanism::NetworkGone,
                Own::NoLive | Own::Unresolved | Own::NoAddress => Mechanism::LocalError,
            },
            server: Some(Actor { key, task: Some(task.clone()), exiting: false }),
            sk_cgroup: task.cgroup,
            bytes_sent: 0,
            age_ms: None,
            evidence: Evidence::ErrorMade(Box::new(ErrorMade { status: *status, own, failed })),
        })
    }

    /// A loss towards a server behind nginx, php-fpm: nginx is going to say something about it.
    pub fn attempt(&mut self, lost: &Lost) {
        if ended(lost) {
            let attempt = Attempt { event: lost.event, at: lost.at, netns: lost.netns() };
            push(&mut self.ended, attempt, |a| a.at.saturating_add(KEEP_NS) < lost.at);
        }
    }

    /// What nginx made of this attempt. Asked once its time is over.
    pub fn upshot(&self, lost: &Lost) -> Upshot<'_> {
        let near = |at: BootNs| at.saturating_add(AROUND_NS) >= lost.at && at <= lost.at.saturating_add(TURN_NS);
        match &lost.evidence {
            Evidence::UnixRefused { .. } | Evidence::NotConnected { why: NotConnected::NoPort, .. } => {
                let Some(failed) = self.said.iter().rev().find(|f| f.refused == Some(lost.event)) else {
                    return Upshot::Unknown;
                };
                let nginx = &failed.logged.task;
                match failed.page {
                    Some(page) => Upshot::Answered { status: page.status, nginx, by: Some(failed) },
                    None if failed.doubt => Upshot::Unknown,
                    None => Upshot::PassedOn { nginx },
                }
            }
            Evidence::ThrownAway(thrown) => {
                let failed = self.said.iter().rev().find(|f| f.event == thrown.failed.event);
                let answered = failed.and_then(|f| Some((f, f.page?)));
                answered.map_or(Upshot::Unknown, |(f, page)| Upshot::Answered {
                    status: page.status,
                    nginx: &f.logged.task,
                    by: Some(f),
                })
            }
            Evidence::Close { closer: Closer::PeerFin, .. } => {
                let failed = lost.tcp().and_then(|ends| self.timed_out(ends, lost.at));
                let answered = failed.and_then(|f| Some((f, f.page?)));
                answered.map_or(Upshot::Unknown, |(f, page)| Upshot::Answered {
                    status: page.status,
                    nginx: &f.logged.task,
                    by: Some(f),
                })
            }
            Evidence::Refused { seen, .. } => {
                let Some(of) = self.connect(lost, seen) else { return Upshot::Unknown };
                let losses = self.connects.iter().filter(|c| c.task == of.task && near(c.at));
                let losses = losses.map(|c| (c.event, c.at)).collect();
                let lines = self.said.iter().filter(|f| {
                    f.why == Why::Refused && f.refused.is_none() && f.logged.task.key() == of.task && near(f.at)
                });
                pair(losses, lines.collect(), of.event, Order::Kept)
            }
            _ if ended(lost) => {
                let netns = lost.netns();
                let losses = self.ended.iter().filter(|a| a.netns == netns && near(a.at));
                let losses = losses.map(|a| (a.event, a.at)).collect();
                let lines = self.said.iter().filter(|f| {
                    f.why == Why::Ended && !f.told && f.logged.task.netns == netns && netns != 0 && near(f.at)
                });
                let order = if nothing_came(lost) { Order::Lost } else { Order::Unsure };
                pair(losses, lines.collect(), lost.event, order)
            }
            _ => Upshot::Unknown,
        }
    }

    /// The record of the socket that a refused connection was to be made by.
    fn connect(&self, lost: &Lost, seen: &RefusedAt) -> Option<&Connect> {
        let ends = lost.tcp()?;
        self.connects.iter().rev().find(|c| match seen {
            RefusedAt::Requester(_) => c.event == lost.event,
            RefusedAt::Server(_) => {
                c.tuple.netns == ends.netns && c.tuple.flipped() == ends.ends() && c.at.abs_diff(lost.at) < SAME_NS
            }
        })
    }

    /// nginx gave up waiting, closed this connection (as its server sees it) and said so.
    pub fn timed_out(&self, ends: &Tuple, at: BootNs) -> Option<&Failed> {
        let near = |f: &&Failed| f.at.abs_diff(at) < AROUND_NS && f.why == Why::TimedOut;
        self.said.iter().rev().filter(near).find(|f| f.upstream.is_some_and(|(t, _)| t.flipped() == ends.ends()))
    }

    /// What this worker said of a connection that it closed because its server had: the line, then the close, then the page,
    /// in one turn of its event loop.
    pub fn of_connection(&self, worker: &ProcKey, ends: &Tuple, at: BootNs) -> Option<&Failed> {
        let near = |f: &&Failed| f.at.abs_diff(at) <= DIRECT_NS && f.why == Why::Ended;
        let its = |f: &&Failed| f.logged.task.key() == *worker && f.upstream.is_some_and(|(t, _)| t == *ends);
        self.said.iter().rev().filter(near).find(its)
    }

    /// This failed attempt has its verdict.
    pub fn decided(&mut self, nginx: u32, lost: &Lost, cause: Cause, sub_cause: Option<&str>) {
        let sub_cause = sub_cause.map(str::to_string);
        let verdict = Verdict { at: lost.at, master: nginx, lost: lost.clone(), cause, sub_cause };
        push(&mut self.verdicts, verdict, |v| v.at.saturating_add(KEEP_NS) < lost.at);
    }

    /// The last of the failures after which an nginx had no server left that it would ask, when all of them have one cause.
    pub fn marked_by(&self, lost: &Lost) -> Option<&Lost> {
        let Evidence::ErrorMade(made) = &lost.evidence else { return None };
        if made.own != Own::NoLive {
            return None;
        }
        let master = made.failed.logged.task.ppid;
        let near = |v: &&Verdict| v.master == master && v.at <= lost.at && lost.at - v.at < MARKED_NS;
        let mut failures = self.verdicts.iter().rev().filter(near);
        let last = failures.next()?;
        let same = |v: &Verdict| v.cause == last.cause && v.sub_cause == last.sub_cause;
        (last.cause != Cause::Unexplained && failures.all(same)).then_some(&last.lost)
    }
}

fn push<T>(list: &mut VecDeque<T>, new: T, old: impl Fn(&T) -> bool) {
    list.push_back(new);
    while list.len() > MAX_ENTRIES || list.front().is_some_and(&old) {
        list.pop_front();
    }
}

/// A line and a page, or two lines, are about two clients: their connections are known, and not the same.
fn others(a: Option<u64>, b: Option<u64>) -> bool {
    a.zip(b).is_some_and(|(a, b)| a != b)
}

/// A connection that was there, and that its server ended.
fn ended(lost: &Lost) -> bool {
    match &lost.evidence {
        Evidence::Close { closer, .. } => matches!(closer, Closer::Local | Closer::AcceptQueue),
        Evidence::UnixClose { .. } | Evidence::LateData { .. } | Evidence::Handshake { .. } => true,
        _ => false,
    }
}

/// Nothing of an answer can have reached nginx.
fn nothing_came(lost: &Lost) -> bool {
    lost.thrown_out_of_queue() || !matches!(lost.evidence, Evidence::UnixClose { .. }) && lost.bytes_sent == 0
}

/// What is known of which line is whose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// One worker meets them in the order in which they failed: epoll has one list.
    Kept,
    /// Not known.
    Lost,
    /// Nor whether part of an answer had come, so that no page does not mean another server.
    Unsure,
}

/// Losses and lines that can only belong together: it begins with a loss and ends when it has as many lines.
struct Group<'a> {
    losses: Vec<EventId>,
    lines: Vec<&'a Failed>,
    /// No line came that was one too many.
    sound: bool,
    last: BootNs,
}

fn groups<'a>(losses: Vec<(EventId, BootNs)>, lines: Vec<&'a Failed>) -> Vec<Group<'a>> {
    let mut all: Vec<(EventId, BootNs, Option<&Failed>)> = losses.into_iter().map(|(e, at)| (e, at, None)).collect();
    all.extend(lines.into_iter().map(|f| (f.event, f.at, Some(f))));
    all.sort_by_key(|(event, ..)| *event);
    let mut groups: Vec<Group> = Vec::new();
    for (event, at, line) in all {
        let open = groups.last_mut().filter(|g| g.lines.len() < g.losses.len());
        match (line, open) {
            (None, Some(group)) => {
                group.losses.push(event);
                group.last = at;
            }
            (None, None) => groups.push(Group { losses: vec![event], lines: Vec::new(), sound: true, last: at }),
            (Some(line), Some(group)) => {
                group.lines.push(line);
                group.last = at;
            }
            // A line that comes later may be the one of a loss whose place another line took.
            (Some(line), None) => {
                if let Some(group) = groups.last_mut().filter(|g| at.saturating_sub(g.last) < TURN_NS) {
                    (group.last, group.sound) = (at, false);
                    group.lines.push(line);
                }
            }
        }
    }
    groups
}

/// What became of one loss of these. Where order does not tell which line is whose, only what is true of all is said.
fn pair<'a>(losses: Vec<(EventId, BootNs)>, lines: Vec<&'a Failed>, of: EventId, order: Order) -> Upshot<'a> {
    let found = groups(losses, lines).into_iter().find_map(|g| Some((g.losses.iter().position(|e| *e == of)?, g)));
    let Some((place, group)) = found else { return Upshot::Unknown };
    let (losses, lines) = (group.losses.len(), &group.lines);
    let Some(first) = lines.first().filter(|_| lines.iter().all(|f| !f.doubt)) else { return Upshot::Unknown };
    let nginx = &first.logged.task;
    let pages: Vec<_> = lines.iter().filter_map(|f| f.page).collect();
    let one =
        lines.iter().all(|f| f.logged.task.ppid == nginx.ppid) && pages.iter().all(|p| p.status == pages[0].status);
    let full = group.sound && lines.len() == losses && one;
    match order {
        Order::Kept if full && !pages.is_empty() && pages.len() < losses => match lines[place].page {
            Some(page) => Upshot::Answered { status: page.status, nginx, by: None },
            None => Upshot::PassedOn { nginx },
        },
        _ if full && pages.len() == losses => {
            Upshot::Answered { status: pages[0].status, nginx, by: (losses == 1).then_some(*first) }
        }
        Order::Kept | Order::Lost if full && pages.is_empty() => Upshot::PassedOn { nginx },
        _ if pages.len() < losses && pages.len() < lines.len() => Upshot::Mixed,
        _ => Upshot::Unknown,
    }
}

#[cfg(test)]
mod tests;
