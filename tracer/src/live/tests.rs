//! Tests of the live source. Those that attach probes need a build with `WHY502_PROBES` and the rights to load them, and
//! say so where they are skipped.

use super::*;
use crate::model::input::{HookState, LossKind};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The check at the start knows what this process does: two of them at once would see each other.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_quiet_signals_are_left_out() {
    let mask = signal_mask(false);
    let recorded = |signal: u32| mask >> signal & 1 == 1;
    for signal in [1, 2, 3, 6, 7, 9, 10, 11, 12, 13, 15, 18, 19, 27, 31] {
        assert!(recorded(signal), "{signal}");
    }
    for signal in [0, 14, 17, 23, 26, 28, 29, 32, 34, 63] {
        assert!(!recorded(signal), "{signal}");
    }
    assert_eq!(signal_mask(true), u64::MAX);
}

/// Runs `test` where probes can be loaded; says why where not.
fn attached<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let _alone = alone();
    if crate::probes::OBJECT.is_empty() {
        return eprintln!("skipped: built without probes (WHY502_PROBES)");
    }
    let missing = Rights::read(Path::new("/")).map(|r| r.missing_to_load()).unwrap_or_default();
    if !missing.is_empty() {
        return eprintln!("skipped: {} missing", missing.join(", "));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test());
}

fn run_child() -> u32 {
    let mut child = Command::new("/bin/true").stdin(Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

/// Programs and links that this process holds.
fn bpf_descriptors() -> usize {
    let is_bpf = |name: &std::ffi::OsStr| {
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(name)).unwrap_or_default();
        info.contains("prog_type:") || info.contains("link_type:")
    };
    fs::read_dir("/proc/self/fdinfo").unwrap().flatten().filter(|e| is_bpf(&e.file_name())).count()
}

async fn until(live: &mut Live, inputs: &mut Vec<Input>, enough: impl Fn(&[Input]) -> bool) {
    let began = clock::boot_ns();
    while !enough(inputs) {
        assert!(clock::boot_ns() - began < 20_000_000_000, "waited too long");
        inputs.extend(live.next_batch().await);
    }
}

fn events(inputs: &[Input]) -> impl Iterator<Item = &Event> {
    inputs.iter().filter_map(|i| if let Input::Event(e) = i { Some(e) } else { None })
}

fn exits_of<'a>(inputs: &'a [Input], pids: &'a BTreeSet<u32>) -> impl Iterator<Item = &'a Event> {
    events(inputs).filter(|e| matches!(&e.kind, EventKind::Exited { task, .. } if pids.contains(&task.ns_pid)))
}

#[test]
fn the_sequence_is_whole_and_nothing_stays_attached() {
    attached(|| async {
        let before = bpf_descriptors();
        let mut live = Live::start(Options::default()).await.unwrap();
        assert!(bpf_descriptors() > before);
        let pids: BTreeSet<u32> = (0..5).map(|_| run_child()).collect();
        let mut inputs = Vec::new();
        until(&mut live, &mut inputs, |i| exits_of(i, &pids).count() == 5).await;
        let warnings = live.take_warnings();
        assert_eq!(warnings, [""; 0]);
        let (rest, totals) = live.stop();
        inputs.extend(rest);
        assert_eq!(bpf_descriptors(), before, "something stays attached");

        let Some(Input::Started(started)) = inputs.first() else { panic!("{:?}", inputs.first()) };
        let away = started.hooks.iter().filter(|h| h.state != HookState::Attached).map(|h| h.hook.as_str());
        // Functions can be traced on some kernels only; and the system calls are not unless asked for.
        assert!(away.clone().all(|hook| ["unix_stream_connect", "sys_exit"].contains(&hook)), "{started:?}");
        let told = started.degraded.iter().any(|d| d.id == "no-unix-connect");
        assert_eq!(told, away.clone().any(|hook| hook == "unix_stream_connect"), "{started:?}");
        assert!(matches!(inputs.last(), Some(Input::Stopped { .. })));
        let ready = inputs.iter().position(|i| matches!(i, Input::Ready { .. })).unwrap();
        let first = inputs.iter().position(|i| matches!(i, Input::Event(_))).unwrap();
        let scanned = inputs.iter().rposition(|i| matches!(i, Input::Process(_) | Input::Listener(_))).unwrap();
        assert!(scanned < ready && ready < first);
        assert!(inputs[..ready].iter().any(|i| matches!(i, Input::Clock { .. })));

        let ids: Vec<u64> = events(&inputs).map(|e| e.id.0).collect();
        assert_eq!(ids, (1..=totals.events).collect::<Vec<_>>());
        let mut passed = 0;
        let mut known = BTreeSet::new();
        for input in &inputs {
            match input {
                Input::Cgroup(fact) => {
                    known.insert((fact.hierarchy, fact.id));
                }
                Input::Event(e) => {
                    assert!(e.at > passed, "an event at or before a tick");
                    for id in facts::cgroups(e).iter().filter(|(_, id)| *id == 1) {
                        assert!(known.contains(id), "{id:?} before its fact");
                    }
                }
                Input::Tick { at } => {
                    assert!(*at >= passed, "ticks go back");
                    passed = *at;
                }
                _ => {}
            }
        }
        assert!(passed > 0);
        // What the check at the start did is nobody's business.
        let own = events(&inputs)
            .any(|e| matches!(&e.kind, EventKind::Execed(x) if x.argv.iter().any(|a| a == "why502-self-check")));
        assert!(!own);
    });
}

#[test]
fn swapped_offsets_are_refused_by_name() {
    attached(|| async {
        let swaps = [
            ("TCP_BYTES_SENT", "TCP_BYTES_RECEIVED", "bytes_"),
            ("TCP_RCV_NXT", "TCP_RCV_WUP", "rcv_nxt"),
            ("SK_DADDR", "SK_RCV_SADDR", "skc_"),
            ("TCP_COPIED_SEQ", "TCP_RCV_NXT", "copied_seq"),
            ("SK_ACK_BACKLOG", "SK_MAX_ACK_BACKLOG", "sk_max_ack_backlog"),
            ("TCP_LRCVTIME", "TCP_SND_NXT", ""),
            ("TASK_REAL_PARENT", "TASK_GROUP_LEADER", ""),
            ("SK_ERR", "SK_MAX_ACK_BACKLOG", ""),
            ("SK_SHUTDOWN", "SK_STATE", "sk_shutdown"),
            ("SKB_LEN", "UNIX_ADDR_LEN", ""),
        ];
        let mut refused = 0;
        for (a, b, field) in swaps {
            let swap = |globals: &mut Globals| {
                let (of_a, of_b) = (globals.get(a).unwrap(), globals.get(b).unwrap());
                for (symbol, value) in &mut globals.values {
                    match *symbol {
                        s if s == a => *value = of_b,
                        s if s == b => *value = of_a,
                        _ => {}
                    }
                }
            };
            match Live::start_with(Options::default(), swap).await {
                Err(LiveError::Check(e)) => {
                    assert!(e.to_string().contains(field), "{a} and {b}: {e}");
                    refused += 1;
                }
                Ok(_) => panic!("{a} and {b} are swapped and nobody noticed"),
                // The verifier knows better: one of the two is in another struct.
                Err(LiveError::Load(LoadError::Required { .. })) => {}
                Err(e) => panic!("{a} and {b}: {e}"),
            }
        }
        assert!(refused >= 5, "{refused}");
    });
}

/// The ring holds a few records; nobody reads while 200 children come and go. Independent count: what we started.
#[test]
fn what_a_full_ring_loses_is_counted() {
    attached(|| async {
        let options = Options { ring_bytes: 16_384, check: false, ..Options::default() };
        let mut live = Live::start(options).await.unwrap();
        let mut inputs = Vec::new();
        until(&mut live, &mut inputs, |i| i.iter().any(|i| matches!(i, Input::Ready { .. }))).await;
        let pids: BTreeSet<u32> = (0..200).map(|_| run_child()).collect();
        until(&mut live, &mut inputs, |i| {
            let lost = i.iter().any(|i| matches!(i, Input::Loss(l) if l.kind == LossKind::RingFull));
            let last = i.iter().rposition(|i| matches!(i, Input::Loss(_)));
            lost && i[last.unwrap()..].iter().any(|i| matches!(i, Input::Tick { .. }))
        })
        .await;
        let (rest, totals) = live.stop();
        inputs.extend(rest);
        let lost = |hook: &str| -> u64 {
            let of = |i: &Input| match i {
                Input::Loss(l) if l.kind == LossKind::RingFull && l.hook == hook => Some(l.count),
                _ => None,
            };
            inputs.iter().filter_map(of).sum()
        };
        for hook in &totals.hooks {
            assert_eq!(lost(&hook.hook), hook.lost_ring, "{}", hook.hook);
        }
        let seen = exits_of(&inputs, &pids).count() as u64;
        assert!(seen < 200, "nothing was lost: the test tests nothing");
        assert!(seen + lost("sched_process_exit") >= 200, "{seen} seen, {} lost", lost("sched_process_exit"));
    });
}
