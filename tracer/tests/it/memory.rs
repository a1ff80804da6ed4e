//! A container that makes as much noise of each kind as it can: what the engine keeps of it is bounded, and what it keeps
//! of a neighbour is not pushed out.
//!
//! `NOISE=2000000` for a long one; `--nocapture` prints what each kind takes.

use crate::evidence::{Connection, connection, recordings};
use crate::samples::{reset_sent, task, tcp_state};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::IpAddr;
use std::time::Instant;
use why502::correlate::{Engine, EngineOptions};
use why502::model::event::*;
use why502::model::input::*;
use why502::model::{Cause, Event, EventId, EventKind, Incident, Input, Level, Output, Task, Tuple};
use why502::sinks::recording::time_of;

/// Counts what each thread of the tests holds. A block that another thread frees is counted in the wrong place; the engine
/// has one thread.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn held(change: isize) {
    // While a thread ends its cells are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: everything is the system's; beside it only a cell of this thread is written, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        held(layout.size() as isize);
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        held(-(layout.size() as isize));
        // SAFETY: the caller's word.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const OWN: u64 = 900_000;
const NETNS: u32 = 4_026_540_000;
/// What a program sees of a container's flood within two minutes is far more than this; all bounds are hit by less.
const ROUNDS: u64 = 20_000;
/// Of the engine, by any container; with everything at once as well.
const MOST_MIB: f64 = 80.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noise {
    Forks,
    Execs,
    Signals,
    Requests,
    Connections,
    Resets,
    Listeners,
    UnixSockets,
    Cgroups,
    Lines,
    Stops,
}

const ALL: [Noise; 11] = [
    Noise::Forks,
    Noise::Execs,
    Noise::Signals,
    Noise::Requests,
    Noise::Connections,
    Noise::Resets,
    Noise::Listeners,
    Noise::UnixSockets,
    Noise::Cgroups,
    Noise::Lines,
    Noise::Stops,
];

/// A process of the noisy container.
fn own(comm: &str, tgid: u32, start_ns: u64) -> Task {
    Task { cgroup: OWN, netns: NETNS, pidns: NETNS, ppid: 2_000_000, start_ns, ..task(comm, tgid) }
}

fn address(n: u64) -> IpAddr {
    let n = n as u32;
    IpAddr::from([10, (n >> 16) as u8, (n >> 8) as u8, n as u8])
}

fn tuple(n: u64) -> Tuple {
    Tuple { local_ip: address(7), local_port: 80, remote_ip: address(n), remote_port: n as u16 | 1, netns: NETNS }
}

/// The master of the noisy container's nginx, and a worker of it.
fn servers() -> (Task, Task) {
    let master = own("nginx", 2_000_001, 1_000_000_000);
    (master.clone(), Task { ppid: master.tgid, ..own("nginx", 2_000_002, 1_010_000_000) })
}

/// Where it lives, and that it has an nginx.
fn begin(at: BootNs) -> Vec<Input> {
    let path = format!("/kubepods/pod99999999-2222-3333-4444-555555555555/{:064x}", 0xbad);
    let cgroup = CgroupFact { at, id: OWN, hierarchy: Hierarchy::V2, path: Some(path) };
    let (master, worker) = servers();
    let argv = vec!["nginx".to_owned()];
    let exec = Execed { task: master.clone(), old_pid: master.pid, path: "/usr/sbin/nginx".into(), argv };
    let listens = TcpState {
        side: Side::Listener,
        oldstate: tcp::CLOSE,
        newstate: tcp::LISTEN,
        sk_cgroup: OWN,
        tuple: Tuple { remote_port: 0, ..tuple(0) },
        task: master.clone(),
        ..tcp_state()
    };
    let kinds =
        [EventKind::Execed(exec), EventKind::TcpState(listens), EventKind::Forked { parent: master, child: worker }];
    let events = kinds.into_iter().map(|kind| Input::Event(event(at, kind)));
    std::iter::once(Input::Cgroup(cgroup)).chain(events).collect()
}

fn event(at: BootNs, kind: EventKind) -> Event {
    Event { id: EventId(1 << 40 | at), at, cpu: 0, quality: 0, kind }
}

/// What it does in its `n`th round.
fn noise(what: Noise, n: u64, at: BootNs) -> Vec<Input> {
    let tgid = 3_000_000 + n as u32;
    let (master, worker) = servers();
    let child = own(&format!("<b>\u{1b}[2J{n:07}"), tgid, at);
    let forked = |child: &Task| EventKind::Forked { parent: own("sh", 2_000_000, 1), child: child.clone() };
    let exited = |task: &Task| EventKind::Exited { task: task.clone(), code: 9 };
    let ends = |side, n| TcpState { side, sk: 1 << 48 | n, sk_cgroup: OWN, tuple: tuple(n), ..tcp_state() };
    let kinds = match what {
        // One of four stays.
        Noise::Forks if n.is_multiple_of(4) => vec![forked(&child)],
        Noise::Forks => vec![forked(&child), exited(&child)],
        Noise::Execs => {
            let path = format!("/{}/{n:07}", "very-long/".repeat(24));
            let exec = Execed { task: child.clone(), old_pid: tgid, path, argv: vec![format!("{n:012}"); 20] };
            vec![forked(&child), EventKind::Execed(exec), exited(&child)]
        }
        Noise::Signals => {
            let to = own("victim", 3_000_000 + (n / 70) as u32, 5_000_000_000);
            let signal = [15, 3, 10][n as usize % 3];
            let sender = child;
            let sent = SignalGenerated {
                signal,
                code: 0,
                si_pid: 1,
                info: SigInfo::Real,
                result: 0,
                group: true,
                sender,
                target: to,
            };
            vec![EventKind::SignalGenerated(sent)]
        }
        Noise::Requests => vec![EventKind::TcpState(TcpState { task: worker, ..ends(Side::Server, n) })],
        Noise::Connections => vec![EventKind::TcpState(TcpState { task: child, ..ends(Side::Client, n) })],
        Noise::Resets => {
            let reset = ResetSent { sk_cgroup: OWN, tuple: tuple(n), task: child, ..reset_sent(ResetSocket::None) };
            vec![EventKind::ResetSent(reset)]
        }
        // It may make network namespaces.
        Noise::Listeners => {
            let netns = NETNS + (n / 1_000) as u32;
            let tuple = Tuple { netns, local_port: (n % 1_000) as u16 + 1, remote_port: 0, ..tuple(0) };
            let (oldstate, newstate) = (tcp::CLOSE, tcp::LISTEN);
            let state =
                TcpState { oldstate, newstate, tuple, task: Task { netns, ..child }, ..ends(Side::Listener, n) };
            let close = TcpState { oldstate: tcp::LISTEN, newstate: tcp::CLOSE, ..state.clone() };
            let closes = (n.is_multiple_of(2)).then_some(EventKind::TcpState(close));
            std::iter::once(EventKind::TcpState(state)).chain(closes).collect()
        }
        Noise::UnixSockets => {
            let path = format!("/{}/{n:07}", "x".repeat(300));
            let refused = UnixRefused { error: [2, 11, 111][n as usize % 3], path: path.clone(), task: worker };
            let dropped = UnixDropped {
                server_sk: n,
                client_sk: n,
                server_cgroup: OWN,
                client_cgroup: OWN,
                netns: NETNS,
                embryo: n.is_multiple_of(2),
                len: 9,
                path,
                task: child,
            };
            vec![EventKind::UnixRefused(refused), EventKind::UnixDropped(dropped)]
        }
        Noise::Cgroups => {
            let id = 1_000_000 + n;
            let path = format!("/kubepods/pod99999999-2222-3333-4444-555555555555/{:064x}/{n:0900}", 0xbad);
            let fact = CgroupFact { at, id, hierarchy: Hierarchy::V2, path: Some(path) };
            let child = Task { cgroup: id, ..child };
            let events = [forked(&child), exited(&child)].map(|kind| Input::Event(event(at, kind)));
            return std::iter::once(Input::Cgroup(fact)).chain(events).collect();
        }
        Noise::Lines => {
            let format = format!("connect() failed {n:079}");
            let logged = NginxLogged { task: worker.clone(), level: 4, errno: 111, format, connection: Some(n) };
            let page = NginxErrorPage { task: worker, status: 502, connection: Some(n), client: Some(tuple(n)) };
            vec![EventKind::NginxLogged(logged), EventKind::NginxErrorPage(page)]
        }
        // Masters that take signals and do not go.
        Noise::Stops => {
            let other = Task { ppid: master.tgid, ..own("nginx", 3_000_000 + (n / 70) as u32, 6_000_000_000) };
            let exec =
                Execed { task: other.clone(), old_pid: 1, path: "/usr/sbin/nginx".into(), argv: vec!["nginx".into()] };
            let sent = SignalGenerated {
                signal: 15,
                code: 0,
                si_pid: 1,
                info: SigInfo::Real,
                result: 0,
                group: true,
                sender: child,
                target: other,
            };
            let first = (n.is_multiple_of(70)).then_some(EventKind::Execed(exec));
            first.into_iter().chain([EventKind::SignalGenerated(sent)]).collect()
        }
    };
    kinds.into_iter().map(|kind| Input::Event(event(at, kind))).collect()
}

fn rounds() -> u64 {
    std::env::var("NOISE").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS)
}

/// MiB that an engine held at most while it was fed with this, and what it said.
fn fed(what: &[Noise], rounds: u64) -> (f64, usize) {
    let before = HELD.get();
    let mut engine = Engine::new(EngineOptions::default());
    let start = 10_000_000_000;
    begin(start).iter().for_each(|input| drop(engine.feed(input)));
    let mut outputs = 0;
    MOST.set(HELD.get());
    for n in 0..rounds {
        // As fast as two cores are.
        let at = start + n * 100_000;
        for what in what {
            for input in noise(*what, n, at) {
                outputs += engine.feed(&input).len();
            }
        }
        if n % 500 == 0 {
            outputs += engine.feed(&Input::Tick { at }).len();
        }
    }
    ((MOST.get() - before) as f64 / 1048576.0, outputs)
}

#[test]
fn whatever_a_container_does_memory_is_bounded() {
    let rounds = rounds();
    let tell = |name: &str, what: &[Noise], rounds| {
        let begin = Instant::now();
        let (most, outputs) = fed(what, rounds);
        let took = begin.elapsed().as_secs_f64();
        println!("{name}: {rounds} rounds: {most:.1} MiB at most, {outputs} verdicts, {took:.1} s");
        assert!(most < MOST_MIB, "{name}: {most:.1} MiB");
    };
    ALL.into_iter().for_each(|what| tell(&format!("{what:?}"), &[what], rounds));
    tell("all of it", &ALL, rounds / 2);
}

/// Of the neighbour: on which connection, and why, and how sure.
fn verdicts(inputs: impl IntoIterator<Item = Input>) -> Vec<(Connection, Cause, Option<String>, Level)> {
    let incidents = run_owned(inputs);
    let theirs = incidents.into_iter().filter(|i| i.server.netns < NETNS || i.server.netns > NETNS + 1_000);
    let mut all: Vec<_> = theirs.map(|i| (connection(&i), i.cause, i.sub_cause.clone(), i.confidence.level)).collect();
    all.sort_by_key(|(connection, ..)| *connection);
    all
}

fn run_owned(inputs: impl IntoIterator<Item = Input>) -> Vec<Incident> {
    let mut engine = Engine::new(EngineOptions { include_not_the_server: true });
    let outputs = inputs.into_iter().flat_map(|input| engine.feed(&input));
    let incident = |output| if let Output::Incident(i) = output { Some(*i) } else { None };
    outputs.filter_map(incident).collect()
}

/// A flood of everything before, and while a neighbour loses requests: the verdicts are the same, and as sure.
#[test]
fn a_neighbour_is_explained_all_the_same() {
    let names = [
        "endpoint-race",
        "prestop-failed",
        "quit-then-term",
        "fpm-fast-shutdown",
        "keepalive-race",
        "oom-killed",
        "unix-killed",
        "edge-masqueraded",
    ];
    let before = rounds() / 4;
    for (name, inputs) in recordings() {
        if !names.iter().any(|n| name.trim_start_matches("kept ") == format!("{n}.rec")) {
            continue;
        }
        let alone = verdicts(inputs.clone());
        let mut n = 0;
        let mut flood = |rounds: u64, at| {
            let round = |n| ALL.into_iter().flat_map(move |what| noise(what, n, at));
            n += rounds;
            (n - rounds..n).flat_map(round).collect::<Vec<_>>()
        };
        let beside = inputs.into_iter().flat_map(|input| {
            let at = time_of(&input);
            let noise = match &input {
                Input::Ready { .. } => begin(at).into_iter().chain(flood(before, at)).collect(),
                Input::Event(_) => flood(10, at),
                _ => Vec::new(),
            };
            std::iter::once(input).chain(noise)
        });
        let beside = verdicts(beside);
        println!("{name}: {} losses beside {n} rounds of noise", alone.len());
        assert!(!alone.is_empty());
        assert_eq!(beside, alone, "{name}");
    }
}
