//! Children of php-fpm that end in the middle of a request, by hand: which facts tell one end from another.

use super::unix::{child, fpm, only, pod, rules};
use super::{Node, S, exiting, master, task};
use crate::model::event::{EventKind, SI_KERNEL, SigInfo, SignalGenerated, Task};
use crate::model::incident::Trigger;
use crate::model::input::{Hierarchy, MemoryFact, MemoryLevel};
use crate::model::{Cause, Incident, Input, Level};

const MS: u64 = 1_000_000;
const T: u64 = 200 * S;

const TERM: u32 = 15;
const KILL: u32 = 9;
const SEGV: u32 = 11;
const ABRT: u32 = 6;
const PROF: u32 = 27;

impl Node {
    /// A signal that a task raises in itself, by a fault (positive code) or by kill(2).
    fn own(&mut self, at: u64, signal: u32, code: i32, who: Task) -> &mut Self {
        let what = SignalGenerated {
            signal,
            code,
            si_pid: 0,
            info: SigInfo::Real,
            result: 0,
            group: false,
            sender: who.clone(),
            target: who,
        };
        self.event(at, EventKind::SignalGenerated(what))
    }

    fn kernel(&mut self, at: u64, signal: u32, target: Task) -> &mut Self {
        self.signal_by(at, signal, target, SI_KERNEL)
    }

    fn marked(&mut self, at: u64, task: Task) -> &mut Self {
        self.event(at, EventKind::OomVictim { task })
    }

    /// Child 1 exits, and its request goes with it.
    fn cut(&mut self, at: u64, code: u32) -> &mut Self {
        self.exits(at, child(1), code).bytes(at + 1, 50, exiting(child(1)))
    }

    fn replaced(&mut self, at: u64) -> &mut Self {
        let next = Task { start_ns: at, ..child(9) };
        self.event(at, EventKind::Forked { parent: fpm(), child: next })
    }
}

fn one(node: &mut Node) -> Incident {
    only(&node.said(true)).clone()
}

fn verdict(i: &Incident) -> (Cause, Option<&str>, Trigger, Level) {
    (i.cause, i.sub_cause.as_deref(), i.trigger, i.confidence.level)
}

#[test]
fn a_fault() {
    let i = one(pod(true).own(T, SEGV, 1, child(1)).cut(T + MS, SEGV | 0x80));
    assert_eq!(verdict(&i), (Cause::FpmChildCrash, None, Trigger::Crash, Level::Certain), "{i:#?}");
    assert_eq!(rules(&i), ["unix-close-unread", "sockets-are-closed-by-exit", "killed-by-this-signal"]);
    assert!(i.summary.contains("crashed (SIGSEGV)"), "{}", i.summary);
    assert!(i.summary.contains("195.0 s old"), "{}", i.summary);
}

#[test]
fn an_abort_is_a_crash_and_an_abort_from_outside_is_none() {
    let i = one(pod(true).own(T, ABRT, -6, child(1)).cut(T + MS, ABRT));
    assert_eq!(verdict(&i), (Cause::FpmChildCrash, None, Trigger::Crash, Level::Certain), "{i:#?}");
    for (signal, again) in [(ABRT, false), (SEGV, false), (SEGV, true), (KILL, false), (TERM, true)] {
        let mut node = pod(true);
        node.signal(T, signal, child(1));
        if again {
            // A handler that raises it once more, as php does with TERM.
            node.own(T + 1, signal, 0, child(1));
        }
        let i = one(node.cut(T + MS, signal).replaced(T + 2 * MS));
        assert_eq!(verdict(&i), (Cause::FpmChildKilled, None, Trigger::ManualSignal, Level::Certain), "{i:#?}");
        let i = one(pod(true).signal(T, signal, child(1)).cut(T + MS, signal));
        assert_eq!((i.cause, i.confidence.level), (Cause::FpmChildKilled, Level::Likely), "no other child: {i:#?}");
    }
}

#[test]
fn a_child_that_is_killed_with_its_master_is_a_part_of_that() {
    let mut node = pod(true);
    node.signal(T, KILL, child(1)).signal(T + 1, KILL, fpm()).cut(T + MS, KILL).exits(T + 2 * MS, fpm(), KILL);
    let i = one(&mut node);
    assert_eq!(i.cause, Cause::ContainerKilled, "{i:#?}");
    assert!(i.also_matched.is_empty());
}

#[test]
fn an_exit_of_its_own() {
    for status in [0, 1, 70, 255] {
        let i = one(pod(true).cut(T, status << 8));
        assert_eq!(verdict(&i), (Cause::FpmChildCrash, Some("exited"), Trigger::Crash, Level::Likely), "{i:#?}");
    }
    let i = one(pod(true).own(T, KILL, 0, child(1)).cut(T + MS, KILL));
    assert_eq!((i.cause, i.sub_cause.as_deref()), (Cause::FpmChildCrash, Some("exited")), "{i:#?}");
    // After a stop signal an exit with status 0 may be what was asked for.
    let i = one(pod(true).inside(T, 3, fpm(), child(1)).cut(T + MS, 0));
    assert_eq!(i.cause, Cause::Unexplained, "{i:#?}");
}

#[test]
fn a_timeout_of_the_master() {
    let i = one(pod(true)
        .inside(T, TERM, fpm(), child(1))
        .own(T + 1, TERM, 0, child(1))
        .cut(T + MS, TERM)
        .replaced(T + 2 * MS));
    assert_eq!(verdict(&i), (Cause::FpmRequestTerminateTimeout, None, Trigger::Unknown, Level::Certain), "{i:#?}");
    assert!(i.also_matched.is_empty());
    // Without the new child the master may be stopping, for a reason that was not seen.
    let i = one(pod(true).inside(T, TERM, fpm(), child(1)).cut(T + MS, TERM));
    assert_eq!((i.cause, i.confidence.level), (Cause::FpmRequestTerminateTimeout, Level::Likely));
    // It was: it ends as well.
    let i = one(pod(true).inside(T, TERM, fpm(), child(1)).cut(T + MS, TERM).exits(T + 300 * MS, fpm(), 0));
    assert_eq!(i.cause, Cause::Unexplained, "{i:#?}");
    // What php raises in itself says nothing alone.
    let i = one(pod(true).own(T, TERM, 0, child(1)).cut(T + MS, TERM).replaced(T + 2 * MS));
    assert_eq!(i.cause, Cause::Unexplained, "{i:#?}");
}

#[test]
fn a_stop_of_the_master_is_no_timeout() {
    let mut node = pod(true);
    node.signal(T, TERM, fpm());
    for c in [child(1), child(2)] {
        node.inside(T + MS, TERM, fpm(), c);
    }
    let i = one(node.cut(T + 2 * MS, TERM));
    assert_eq!((i.cause, i.also_matched.len()), (Cause::FpmFastShutdown, 0), "{i:#?}");
}

#[test]
fn a_hard_timeout() {
    let mut node = pod(true);
    node.kernel(T, PROF, child(1)).kernel(T + 2 * S, PROF, child(1)).cut(T + 2 * S + MS, 124 << 8);
    let i = one(&mut node);
    assert_eq!(verdict(&i), (Cause::PhpHardTimeout, None, Trigger::Unknown, Level::Certain), "{i:#?}");
    let i = one(pod(true).cut(T, 124 << 8));
    assert_eq!((i.cause, i.confidence.level), (Cause::PhpHardTimeout, Level::Likely));
    let i = one(pod(true).kernel(T, PROF, child(1)).cut(T + MS, 124 << 8));
    assert_eq!((i.cause, i.confidence.level), (Cause::PhpHardTimeout, Level::Likely), "only one signal: {i:#?}");
}

#[test]
fn the_oom_killer() {
    let i = one(pod(true).kernel(T, KILL, child(1)).marked(T + 1_000, child(1)).cut(T + MS, KILL));
    assert_eq!(verdict(&i), (Cause::OomKilled, None, Trigger::Oom, Level::Certain), "{i:#?}");
    assert!(i.missing.iter().any(|m| m.fact == "memory-events"), "{:?}", i.missing);
    // Older kernels tell no more than the pid.
    let bare = Task {
        tgid: 0,
        pid: child(1).pid,
        start_ns: 0,
        ppid: 0,
        ns_pid: 0,
        comm: String::new(),
        cgroup: 0,
        ..child(1)
    };
    let i = one(pod(true).kernel(T, KILL, child(1)).marked(T + 1_000, bare).cut(T + MS, KILL));
    assert_eq!((i.cause, i.confidence.level), (Cause::OomKilled, Level::Certain), "{i:#?}");
    // Without its mark a kill by the kernel is nobody's.
    let i = one(pod(true).kernel(T, KILL, child(1)).cut(T + MS, KILL));
    assert_eq!(i.cause, Cause::Unexplained, "{i:#?}");
}

#[test]
fn the_oom_killer_takes_the_master_and_the_kernel_the_rest() {
    let mut node = pod(true);
    node.kernel(T, KILL, fpm()).marked(T + 1_000, fpm()).exits(T + MS, fpm(), KILL);
    let zap = SignalGenerated {
        signal: KILL,
        code: SI_KERNEL,
        si_pid: 0,
        info: SigInfo::Kernel,
        result: 0,
        group: true,
        sender: exiting(fpm()),
        target: child(1),
    };
    node.event(T + 2 * MS, EventKind::SignalGenerated(zap)).cut(T + 3 * MS, KILL);
    let i = one(&mut node);
    assert_eq!(verdict(&i), (Cause::OomKilled, None, Trigger::Oom, Level::Certain), "{i:#?}");
    assert!(i.summary.contains("went with it"), "{}", i.summary);
}

#[test]
fn an_nginx_worker_that_the_oom_killer_takes() {
    let mut node = Node::new();
    node.kernel(T, KILL, task()).marked(T + 1_000, task());
    node.event(T + MS, EventKind::Exited { task: exiting(task()), code: KILL });
    let cut = crate::model::event::TcpState { bytes_sent: 0, task: exiting(task()), ..super::state() };
    node.event(T + 2 * MS, EventKind::TcpState(cut));
    let i = one(&mut node);
    assert_eq!(verdict(&i), (Cause::OomKilled, None, Trigger::Oom, Level::Certain), "{i:#?}");
    assert_eq!(master().tgid, task().ppid);
}

const CONTAINER: &str = "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555/";

/// The OOM killer takes child 1, which is current itself; then the memory controller's files are read.
fn oom(hierarchy: Hierarchy, hits: [u64; 3], group: bool, complete: bool) -> Incident {
    let mut node = pod(true);
    let what = SignalGenerated {
        signal: KILL,
        code: SI_KERNEL,
        si_pid: 0,
        info: SigInfo::Kernel,
        result: 0,
        group: true,
        sender: child(1),
        target: child(1),
    };
    node.event(T, EventKind::SignalGenerated(what)).marked(T + 1_000, child(1));
    let container = format!("{CONTAINER}{}", "c".repeat(64));
    let level = |path: &str, limit, hits, group| MemoryLevel { path: path.into(), limit, hits, group };
    let levels = vec![
        level(&container, Some(96 << 20), hits[0], group),
        level(CONTAINER.trim_end_matches('/'), Some(128 << 20), hits[1], false),
        level("/kubepods", Some(1 << 30), hits[2], false),
    ];
    node.inputs.push(Input::Memory(MemoryFact { at: T + 2_000, victim: child(1).tgid, hierarchy, levels, complete }));
    one(node.cut(T + MS, KILL))
}

#[test]
fn whose_memory_had_run_out() {
    let sub = |i: &Incident| i.sub_cause.clone();
    for (hits, group, want) in [
        ([1, 0, 0], false, "container-limit"),
        ([1, 1, 0], false, "container-limit"),
        ([0, 1, 0], false, "pod-limit"),
        ([0, 0, 3], false, "limit-above"),
        ([0, 0, 0], false, "node"),
        ([1, 0, 0], true, "oom-group"),
        ([0, 0, 0], true, "oom-group"),
    ] {
        for hierarchy in [Hierarchy::V1, Hierarchy::V2] {
            let i = oom(hierarchy, hits, group, true);
            assert_eq!(
                (i.cause, sub(&i).as_deref(), i.confidence.level),
                (Cause::OomKilled, Some(want), Level::Certain)
            );
            assert!(!i.missing.iter().any(|m| m.fact == "memory-events"), "{:?}", i.missing);
            assert!(i.also_matched.is_empty(), "{:?}", i.also_matched);
        }
    }
    // What could not be read may have been it.
    let i = oom(Hierarchy::V2, [0, 0, 0], false, false);
    assert_eq!((sub(&i), i.missing.iter().any(|m| m.fact == "memory-events")), (None, true));
}

#[test]
fn advice_against_the_oom_killer() {
    let i = oom(Hierarchy::V2, [1, 0, 0], false, true);
    let ids: Vec<&str> = i.advice.iter().map(|a| a.id.as_str()).collect();
    assert_eq!(ids, ["memory-limit", "fpm-memory"]);
    assert_eq!(
        (i.advice[1].value, i.advice[1].unit.as_deref()),
        (Some(32), Some("MiB")),
        "96 MiB, two children, a master"
    );
    let i = oom(Hierarchy::V2, [1, 0, 0], true, true);
    assert!(i.advice.iter().any(|a| a.id == "single-process-oom-kill"));
    let i = oom(Hierarchy::V2, [0, 0, 0], false, true);
    let ids: Vec<&str> = i.advice.iter().map(|a| a.id.as_str()).collect();
    assert_eq!((ids, i.advice[1].value), (vec!["memory-request", "fpm-memory"], None));
}
