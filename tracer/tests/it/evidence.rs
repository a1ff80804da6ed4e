//! A verdict stands on its records: replays say the same to the byte, and each deciding record that is taken away takes
//! the certainty with it and puts no other cause in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use why502::correlate::{Engine, EngineOptions};
use why502::model::input::HookState;
use why502::model::{Cause, EventKind, Incident, Input, Level, Output};
use why502::sinks::recording::Reader;

/// Real stops, each cut down to the inputs of one site: those of this test, and the plays whose truth is known
/// (tests/recordings).
pub(crate) fn recordings() -> Vec<(String, Vec<Input>)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = [here.join("tests/it/fixtures"), here.join("../tests/recordings")];
    let mut files: Vec<_> =
        dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()).map(|e| e.unwrap().path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let name = if path.with_extension("jsonl").is_file() { format!("kept {name}") } else { name };
        let reader = Reader::new(BufReader::new(File::open(&path).unwrap())).unwrap();
        let inputs = reader.map(|i| i.unwrap()).collect();
        (name, inputs)
    };
    files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "rec")).map(read).collect()
}

/// Controls, in which nothing is lost.
const NOTHING: [&str; 8] = [
    "kept answers-502.rec",
    "kept fpm-max-requests-repeated.rec",
    "kept fpm-reaping.rec",
    "kept idle-stop.rec",
    "kept next-upstream-answers.rec",
    "kept nginx-gives-up.rec",
    "kept quiet.rec",
    "kept reload.rec",
];

pub(crate) fn run<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> Vec<Incident> {
    let mut engine = Engine::new(EngineOptions { include_not_the_server: true });
    let outputs = inputs.into_iter().flat_map(|i| engine.feed(i));
    outputs
        .filter_map(|o| match o {
            Output::Incident(i) => Some(*i),
            Output::Stop(_) => None,
        })
        .collect()
}

/// The connection of an incident: it stays the same when its verdict does not.
pub(crate) type Connection = (End, End, Option<u64>);
type End = Option<(std::net::IpAddr, u16)>;

pub(crate) fn connection(i: &Incident) -> Connection {
    // A unix connection has no ends of its own, and one that only nginx knows none that are known: its time names it.
    // So does it for one that got no port.
    let at = (i.server.ip.is_none() || i.requester.port.is_none()).then_some(i.at_boot_ns);
    (i.server.ip.zip(i.server.port), i.requester.ip.zip(i.requester.port), at)
}

pub(crate) fn certain(i: &Incident) -> bool {
    i.confidence.level == Level::Certain
}

/// After `what` was taken away: this incident is not certain any more, and nothing else is certain in its place, but for what
/// had also matched: that is true of the loss with all the records as well, and only not the whole of it.
fn wrong_without(what: &str, file: &str, original: &Incident, without: &[Incident]) -> Vec<String> {
    let same = without.iter().filter(|i| connection(i) == connection(original));
    let wrong = same.filter(|i| {
        certain(i)
            && !(i.cause.not_the_server() && original.cause.not_the_server())
            && !original.also_matched.contains(&i.cause)
    });
    let said = |i: &Incident| i.chain.iter().map(|l| format!("{} {}", l.id, l.rule)).collect::<Vec<_>>().join(", ");
    wrong
        .map(|i| {
            format!(
                "{file}: without {what}, {} of {} ({}) is still {} with certainty ({})",
                original.cause,
                original.id,
                said(original),
                i.cause,
                said(i)
            )
        })
        .collect()
}

/// Another record that tells what the one of this link told, for the same cause on the same other links: the loopback shows
/// a refused connection from both of its ends.
fn second_witness(id: &str, original: &Incident, without: &[Incident]) -> Option<String> {
    let same = without.iter().find(|i| connection(i) == connection(original) && i.cause == original.cause)?;
    let deciding = |l: &&why502::model::incident::Link| !l.rule.starts_with("beside-");
    let ids = |i: &Incident| i.chain.iter().filter(deciding).map(|l| l.id.clone()).collect::<BTreeSet<_>>();
    let (before, after) = (ids(original), ids(same));
    let gone: Vec<_> = before.difference(&after).collect();
    let mut new = after.difference(&before);
    let witness = new.next().filter(|_| gone == [id])?;
    new.next().is_none().then(|| witness.clone())
}

/// One line of each kind: a stop cuts many requests in the same way.
fn none_is_wrong(wrong: &BTreeMap<String, String>) {
    let lines: Vec<&str> = wrong.values().map(String::as_str).collect();
    assert!(lines.is_empty(), "{} kinds\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn replays_are_identical_to_the_byte() {
    for (file, inputs) in recordings() {
        let text = |incidents: &[Incident]| {
            incidents.iter().map(|i| serde_json::to_string(i).unwrap()).collect::<Vec<_>>().join("\n")
        };
        let first = run(&inputs);
        assert_eq!(
            first.is_empty(),
            NOTHING.contains(&file.as_str()),
            "{file} explains nothing, or a control something"
        );
        assert_eq!(text(&first), text(&run(&inputs)), "{file}");
    }
}

#[test]
fn every_cause_that_live_runs_gave_is_in_a_recording() {
    let mut seen: BTreeMap<Cause, usize> = BTreeMap::new();
    for (_, inputs) in recordings() {
        for i in run(&inputs) {
            *seen.entry(i.cause).or_default() += 1;
        }
    }
    for cause in [
        Cause::NginxFastShutdown,
        Cause::EndpointRace,
        Cause::NginxAcceptQueueDropped,
        Cause::FpmControlTimeoutZero,
        Cause::KeepaliveRaceOnShutdown,
        Cause::ClientAbort,
        Cause::QuitThenTerm,
        Cause::GracePeriodExceeded,
        Cause::ContainerKilled,
        Cause::Pid1IgnoresStopSignal,
        Cause::Pid1ExitedFirst,
        Cause::WorkerShutdownTimeout,
        Cause::FpmFastShutdown,
        Cause::FpmAcceptQueueDropped,
        Cause::FpmNotListening,
        Cause::SupervisorStopOrder,
        Cause::FpmListenQueueFull,
        Cause::NginxNotListening,
        Cause::PrestopFailed,
        Cause::SidecarGoneFirst,
        Cause::FpmChildCrash,
        Cause::FpmChildKilled,
        Cause::FpmRequestTerminateTimeout,
        Cause::PhpHardTimeout,
        Cause::OomKilled,
        Cause::NginxWorkerCrash,
        Cause::EphemeralPortsExhausted,
        Cause::PodNetworkGone,
        Cause::SynDrop,
        Cause::UpstreamResponseInvalid,
        Cause::KeepaliveRace,
    ] {
        assert!(seen.contains_key(&cause), "no recording of {cause}: {seen:?}");
    }
}

#[test]
fn each_link_of_a_chain_is_needed() {
    let (mut taken, mut records, mut twice, mut wrong) = (0, 0, 0, BTreeMap::new());
    for (file, inputs) in recordings() {
        let said = run(&inputs);
        let mut deciding: BTreeMap<&str, Vec<&Incident>> = BTreeMap::new();
        for original in said.iter().filter(|i| certain(i)) {
            // What is told beside the explanation decides nothing.
            for link in original.chain.iter().filter(|l| !l.rule.starts_with("beside-")) {
                deciding.entry(&link.id).or_default().push(original);
            }
        }
        for (id, originals) in deciding {
            let is_it = |i: &&Input| matches!(i, Input::Event(e) if e.id.to_string() == id);
            assert_eq!(inputs.iter().filter(is_it).count(), 1, "{file}: {id} of the chain is one event");
            let without = run(inputs.iter().filter(|i| !is_it(i)));
            for original in &originals {
                let link = original.chain.iter().find(|l| l.id == id).unwrap();
                let witness = second_witness(id, original, &without);
                let alone = witness.filter(|_| !wrong_without(id, &file, original, &without).is_empty()).map(|other| {
                    twice += 1;
                    let both =
                        |i: &&Input| matches!(i, Input::Event(e) if [id, &other].contains(&e.id.to_string().as_str()));
                    run(inputs.iter().filter(|i| !both(i)))
                });
                let without = alone.as_ref().unwrap_or(&without);
                for line in wrong_without(&format!("{id} ({})", link.rule), &file, original, without) {
                    wrong.insert(format!("{file} {} {}", original.cause, link.rule), line);
                }
            }
            (taken, records) = (taken + originals.len(), records + 1);
        }
    }
    none_is_wrong(&wrong);
    assert!(taken > 1000, "only {taken} links were taken away");
    println!(
        "{records} deciding records of {taken} links were taken away, one at a time; with {twice} went a second witness"
    );
}

pub(crate) fn recording(name: &str) -> Vec<Input> {
    recordings().into_iter().find(|(file, _)| file == name).unwrap().1
}

/// A failed command is a failed hook only where a pod spec says so; what is told beside the chain blames nobody.
#[test]
fn a_failed_command_is_a_hook_by_its_spec_only() {
    let beside = |i: &Incident| i.chain.iter().any(|l| l.rule == "beside-failed-command");
    let hook = recording("prestop-failed.rec");
    let said = run(&hook);
    assert!(said.iter().all(|i| i.cause == Cause::PrestopFailed && !beside(i)), "{said:#?}");
    let unsaid = run(hook.iter().filter(|i| !matches!(i, Input::Spec(_))));
    assert_eq!(unsaid.len(), said.len());
    assert!(unsaid.iter().all(|i| i.cause != Cause::PrestopFailed && beside(i)), "{unsaid:#?}");
    // The same spec, and an exec probe that fails right before the stop.
    let probe = recording("failing-probe.rec");
    assert!(probe.iter().any(|i| matches!(i, Input::Spec(_))), "no spec: this recording shows nothing");
    let said = run(&probe);
    assert!(said.iter().all(|i| i.cause != Cause::PrestopFailed && beside(i)), "{said:#?}");
    // Its exit is what makes it a failed one.
    let unended = run(hook.iter().filter(|i| {
        let exec = hook.iter().find_map(|i| match i {
            Input::Event(e) => match &e.kind {
                EventKind::Execed(x) if x.argv == ["/bin/sh", "-SIGQUIT", "1"] => Some(x.task.tgid),
                _ => None,
            },
            _ => None,
        });
        let ends = |e: &why502::model::Event| match &e.kind {
            EventKind::Exited { task, .. } => Some(task.tgid) == exec,
            _ => false,
        };
        !matches!(i, Input::Event(e) if ends(e))
    }));
    assert!(unended.iter().all(|i| i.cause != Cause::PrestopFailed), "{unended:#?}");
}

/// What a runtime says gives names and the hook; without it the same losses stand, nameless, and the hook is none.
#[test]
fn names_and_hooks_are_what_the_runtime_says() {
    let inputs = recording("containerd-prestop-failed.rec");
    let said = run(&inputs);
    assert!(!said.is_empty());
    for i in &said {
        let (pod, container) = (i.pod.as_ref().unwrap(), i.container.as_ref().unwrap());
        assert_eq!((pod.namespace.as_deref(), pod.name.as_deref()), (Some("shop"), Some("web-c672")));
        assert_eq!((container.name.as_deref(), container.runtime.as_deref()), (Some("nginx"), Some("containerd")));
        assert_eq!(i.cause, Cause::PrestopFailed);
    }
    let bare = run(inputs.iter().filter(|i| !matches!(i, Input::Container(_))));
    assert_eq!(bare.len(), said.len());
    for (bare, said) in bare.iter().zip(&said) {
        let (pod, container) = (bare.pod.as_ref().unwrap(), bare.container.as_ref().unwrap());
        assert_eq!((&pod.name, &container.name, &pod.uid), (&None, &None, &said.pod.as_ref().unwrap().uid));
        assert_eq!(bare.cause, Cause::NginxFastShutdown);
        assert!(bare.missing.iter().any(|m| m.fact == "pod-spec"), "{bare:#?}");
    }
}

/// dockerd was killed before the first stop, and was back too late to name the second container: the causes are those of the
/// kernel's events alone, and what was not known is said.
#[test]
fn a_runtime_that_went_takes_names_and_no_causes() {
    let inputs = recording("docker-restarted.rec");
    let told = |said: &[Incident]| said.iter().map(|i| (connection(i), i.cause, i.trigger)).collect::<Vec<_>>();
    let said = run(&inputs);
    let names: Vec<_> = said.iter().map(|i| i.container.as_ref().and_then(|c| c.name.as_deref())).collect();
    assert_eq!(names, [Some("web"), None], "the second one has the first one's name, and nobody has said so yet");
    assert!(said.iter().all(|i| i.missing.iter().any(|m| m.fact == "runtime")), "{said:#?}");
    let bare = run(inputs.iter().filter(|i| !matches!(i, Input::Container(_) | Input::Source(_))));
    assert_eq!(told(&bare), told(&said));
    assert!(bare.iter().all(|i| i.missing.iter().all(|m| m.fact != "runtime")), "{bare:#?}");
    // What runc does to make a container is nobody's command.
    let mut engine = Engine::new(EngineOptions::default());
    let stops = inputs.iter().flat_map(|i| engine.feed(i)).filter_map(|o| match o {
        Output::Stop(stop) => Some(stop),
        Output::Incident(_) => None,
    });
    let phases: Vec<String> = stops.flat_map(|s| s.phases.into_iter().map(|p| p.name)).collect();
    assert!(!phases.is_empty() && phases.iter().all(|name| name != "exec"), "{phases:?}");
}

/// A proxy goes first only while what is behind it runs, and only where the two are known to belong together.
#[test]
fn a_proxy_goes_first_by_its_connection_only() {
    let inputs = recording("sidecar-gone-first.rec");
    let first = |said: &[Incident]| said.iter().filter(|i| i.cause == Cause::SidecarGoneFirst).count();
    assert!(first(&run(&inputs)) > 0);
    let upstream = |i: &&Input| {
        let client = |s: &why502::model::event::TcpState| s.side == why502::model::event::Side::Client;
        matches!(i, Input::Event(e) if matches!(&e.kind, EventKind::TcpState(s) if client(s)))
    };
    assert_eq!(first(&run(inputs.iter().filter(|i| !upstream(i)))), 0);
    let without_cgroups = inputs.iter().filter(|i| !matches!(i, Input::Cgroup(_)));
    assert_eq!(first(&run(without_cgroups)), 0, "two containers of one pod, or nothing");
    // What shows that the whole pod is stopped: the hook of the server behind.
    for file in ["sidecar-gone-first.rec", "haproxy-gone-first.rec"] {
        let inputs = recording(file);
        assert!(first(&run(&inputs)) > 0);
        let hook = |i: &&Input| match i {
            Input::Event(e) => {
                matches!(&e.kind, EventKind::Execed(x) if x.argv == ["/bin/sleep", "600"])
            }
            _ => false,
        };
        assert!(inputs.iter().any(|i| hook(&i)));
        assert_eq!(first(&run(inputs.iter().filter(|i| !hook(i)))), 0, "the proxy alone");
        let without_spec = inputs.iter().filter(|i| !matches!(i, Input::Spec(_)));
        assert_eq!(first(&run(without_spec)), 0, "a sleep is no hook by itself");
    }
}

/// nginx and php-fpm die in one moment: each request is told once, at nginx, and only because that died as well.
#[test]
fn what_dies_with_its_nginx_is_told_once() {
    let inputs = recording("one-container-killed.rec");
    let behind = |said: Vec<Incident>| -> Vec<Cause> {
        said.iter().filter(|i| i.server.port == Some(9000)).map(|i| i.cause).collect()
    };
    let told = behind(run(&inputs));
    assert!(told.len() > 3 && told.iter().all(|c| *c == Cause::ClientAbort), "{told:?}");
    let nginx = |task: &why502::model::Task| task.comm == "nginx";
    let alive = behind(run(inputs.iter().filter(|i| match i {
        Input::Event(e) => match &e.kind {
            EventKind::Exited { task, .. } => !nginx(task),
            EventKind::SignalGenerated(s) => !nginx(&s.target),
            EventKind::SignalDelivered(s) => !nginx(&s.task),
            _ => true,
        },
        _ => true,
    })));
    assert!(alive.contains(&Cause::ContainerKilled), "{alive:?}");
}

/// supervisord kills php-fpm's group when nginx's workers end by themselves: these had passed the failure on.
#[test]
fn who_ended_by_itself_was_not_killed_with_php_fpm() {
    let said = run(&recording("supervisord-killasgroup.rec"));
    let told = said.iter().filter(|i| i.cause == Cause::SupervisorStopOrder).count();
    assert_eq!(told, 24, "{:?}", said.iter().map(|i| i.cause).collect::<Vec<_>>());
}

#[test]
fn identity_and_start_are_needed_too() {
    let mut wrong = BTreeMap::new();
    for (file, inputs) in recordings() {
        let said = run(&inputs);
        let certain: Vec<&Incident> = said.iter().filter(|i| certain(i)).collect();
        let mut check = |what: &str, of: &[&Incident], drop: &dyn Fn(&Input) -> bool| {
            let without = run(inputs.iter().filter(|i| !drop(i)));
            for original in of {
                for line in wrong_without(what, &file, original, &without) {
                    wrong.insert(format!("{file} {} {what}", original.cause), line);
                }
            }
        };
        check("ready", &certain, &|i| matches!(i, Input::Ready { .. }));
        check("started", &certain, &|i| matches!(i, Input::Started(_)));
        // All that tells which program the closing process and its master run.
        let mut by_pids: BTreeMap<BTreeSet<u32>, Vec<&Incident>> = BTreeMap::new();
        for original in certain {
            let pids = original.chain.iter().filter_map(|l| l.process.as_ref()).map(|p| p.host_pid).collect();
            by_pids.entry(pids).or_default().push(original);
        }
        for (pids, of) in by_pids {
            check("programs and parents", &of, &|i| match i {
                Input::Process(p) => pids.contains(&p.key.tgid),
                Input::Event(e) => match &e.kind {
                    EventKind::Execed(x) => pids.contains(&x.task.tgid),
                    EventKind::Forked { child, .. } => pids.contains(&child.tgid),
                    _ => false,
                },
                _ => false,
            });
        }
    }
    none_is_wrong(&wrong);
}

#[test]
fn a_missing_hook_is_named_and_lowers() {
    for (file, mut inputs) in recordings() {
        let originals = run(&inputs);
        for input in &mut inputs {
            if let Input::Started(s) = input {
                let hook = s.hooks.iter_mut().find(|h| h.hook == "signal_deliver").unwrap();
                hook.state = HookState::Failed { why: "not here".into() };
            }
        }
        let without = run(&inputs);
        assert_eq!(originals.len(), without.len());
        for i in &without {
            assert!(!certain(i), "{file}: {}", i.id);
            assert!(i.missing.iter().any(|m| m.fact == "hook:signal_deliver"), "{file}: {:?}", i.missing);
        }
    }
}

#[test]
fn losses_are_shown_on_the_verdicts_of_their_window() {
    for (file, mut inputs) in recordings() {
        let original = run(&inputs);
        let Some(first) = original.iter().find(|i| certain(i)) else { continue };
        let at = first.at_boot_ns;
        let place = inputs.iter().position(|i| matches!(i, Input::Event(e) if e.at >= at)).unwrap();
        inputs.insert(
            place,
            Input::Loss(why502::model::input::LossFact {
                from: at - 1_000,
                to: at,
                hook: "signal_generate".into(),
                kind: why502::model::input::LossKind::RingFull,
                count: 3,
            }),
        );
        let lossy = run(&inputs);
        let i = lossy.iter().find(|i| i.id == first.id).unwrap();
        assert!(!certain(i), "{file}");
        assert_eq!((i.loss.in_window, i.loss.by_hook["signal_generate/ring-full"]), (3, 3), "{file}");
    }
}

/// docs/causes.md has a row for each pair of causes that ever matched one loss, and names the same winner.
#[test]
fn pairs_that_matched_have_a_row() {
    let rows = crate::pairs::rows().unwrap();
    let mut pairs = 0;
    for (file, inputs) in recordings() {
        let said = run(&inputs);
        let wrong = crate::pairs::violations(&said, &rows);
        assert!(wrong.is_empty(), "{file}: {}", wrong.join("\n"));
        pairs += said.iter().map(|i| i.also_matched.len()).sum::<usize>();
    }
    assert!(pairs > 0, "no recording has a loss that two rules match: this test sees nothing");
}

/// Every id of the table is a cause: a renamed one would leave a row that no verdict ever meets.
#[test]
fn the_table_names_causes() {
    for id in crate::pairs::rows().unwrap().into_keys().flatten() {
        assert!(Cause::ALL.iter().any(|c| c.id() == id), "{id}");
    }
}
