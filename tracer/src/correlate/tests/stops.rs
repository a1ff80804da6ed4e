//! What is told of a stop, by hand.

use super::{Node, S, exiting, host, master, syn_refused, task};
use crate::correlate::{Engine, EngineOptions};
use crate::model::event::{EventKind, Execed, SI_KERNEL, SigInfo, SignalGenerated, Task, TcpState};
use crate::model::incident::{After, InFlight};
use crate::model::input::StopCounters;
use crate::model::{Input, Output, Stop};

const MS: u64 = 1_000_000;

/// The stops that are told until `until`, without the end of the observation.
fn stops_until(node: &Node, until: u64) -> Vec<Stop> {
    let mut engine = Engine::new(EngineOptions::default());
    let tick = [Input::Tick { at: until }];
    let outputs = node.inputs.iter().chain(&tick).flat_map(|i| engine.feed(i));
    let stop = |o| match o {
        Output::Stop(s) => Some(*s),
        Output::Incident(_) => None,
    };
    outputs.filter_map(stop).collect()
}

fn only(node: &Node) -> Stop {
    let mut stops = stops_until(node, 1_000 * S);
    assert_eq!(stops.len(), 1, "{stops:#?}");
    stops.remove(0)
}

fn names(stop: &Stop) -> Vec<(&str, u64)> {
    stop.phases.iter().map(|p| (p.name.as_str(), p.after_ms)).collect()
}

fn ended(node: &mut Node, at: u64) {
    node.event(at, EventKind::Exited { task: exiting(task()), code: 0 });
    node.event(at + MS, EventKind::Exited { task: exiting(master()), code: 0 });
}

/// Jiffies at a time of the boot clock, HZ=250 (include/linux/jiffies.h INITIAL_JIFFIES is 300 s before the wrap).
fn jiffies(at: u64) -> u32 {
    (((at / 4_000_000) as i64) - 300 * 250) as u32
}

/// A request that came at `began` and is closed by an exiting worker at `at`.
fn cut(began: u64, at: u64) -> EventKind {
    let (lrcvtime, lsndtime) = (jiffies(began), jiffies(began).wrapping_sub(10));
    let by = exiting(task());
    EventKind::TcpState(TcpState { bytes_sent: 0, lrcvtime, lsndtime, jiffies: jiffies(at), task: by, ..state() })
}

fn state() -> TcpState {
    crate::correlate::answer::tests::state()
}

fn counters(signal_at: u64) -> StopCounters {
    StopCounters {
        at: signal_at + 3 * S,
        cgroup: 44,
        signal_at,
        accepted_after: 7,
        last_accept: Some(signal_at + 800 * MS),
        answered_after: 5,
        last_answered: Some(signal_at + 2_100 * MS),
    }
}

#[test]
fn numbers_and_phases_of_a_stop() {
    let mut node = Node::new();
    let signal = 400 * S;
    node.signal(signal, 15, master());
    node.event(signal + 2 * MS, cut(signal - 1_500 * MS, signal + 4 * MS));
    node.event(signal + 2 * MS, cut(signal - 400 * MS, signal + 4 * MS));
    // One that came after the signal was not in flight when it came.
    node.event(signal + 40 * MS, cut(signal + 20 * MS, signal + 40 * MS));
    node.listener_closes(signal + 5 * MS, exiting(master()));
    node.inputs.push(Input::StopCounters(counters(signal)));
    ended(&mut node, signal + 2_200 * MS);
    node.event(signal + 2_500 * MS, syn_refused()).event(signal + 3_405 * MS, syn_refused());
    let stop = only(&node);
    assert_eq!(
        names(&stop),
        [
            ("stop-signal", 0),
            ("listener-closed", 5),
            ("last-accept", 800),
            ("drain-end", 2100),
            ("last-worker-exit", 2200),
            ("exit", 2201)
        ]
    );
    let wanted =
        InFlight { at_signal: Some(7), answered: Some(5), cut: 3, drain_ms: Some(2100), longest_ms: Some(2100) };
    assert_eq!(stop.in_flight, wanted);
    assert_eq!(stop.accepted_after, Some(After { count: 7, last_ms: Some(800) }));
    assert_eq!(stop.late, Some(After { count: 2, last_ms: Some(3400) }));
    assert_eq!((stop.grace.clone(), stop.missing.len()), (None, 0), "{stop:#?}");
    let value = |id: &str| stop.advice.iter().find(|a| a.id == id).and_then(|a| a.value);
    // 3.4 s late, so 4 and one more; the longest request was answered after 2.1 s, and one was cut at 1.5.
    assert_eq!((value("prestop-sleep"), value("grace-period")), (Some(5), Some(5 + 4 + 5)), "{:#?}", stop.advice);
}

#[test]
fn a_stop_without_counters_says_so() {
    let mut node = Node::new();
    node.signal(200 * S, 3, master());
    // Another stop's counters of the same cgroup are no help.
    node.inputs.push(Input::StopCounters(counters(150 * S)));
    ended(&mut node, 201 * S);
    let stop = only(&node);
    assert_eq!(stop.in_flight, InFlight { cut: 0, ..InFlight::default() });
    assert_eq!(stop.accepted_after, None);
    assert!(stop.missing.iter().any(|m| m.fact == "stop-counters"), "{:?}", stop.missing);
}

#[test]
fn counters_of_two_servers_in_one_cgroup_are_nobodys() {
    let mut node = Node::new();
    let fpm = Task { tgid: 8700, pid: 8700, ns_pid: 9, start_ns: 5 * S, comm: "php-fpm8.2".into(), ..task() };
    let exec = Execed {
        task: fpm.clone(),
        old_pid: 8700,
        path: "/usr/sbin/php-fpm8.2".into(),
        argv: vec!["php-fpm8.2".into()],
    };
    node.event(150 * S, EventKind::Execed(exec));
    node.signal(200 * S, 3, master());
    node.inputs.push(Input::StopCounters(counters(200 * S)));
    ended(&mut node, 201 * S);
    let stop = only(&node);
    assert_eq!(stop.in_flight.at_signal, None, "{stop:#?}");
    assert!(stop.missing.iter().any(|m| m.fact == "own-counters"), "{:?}", stop.missing);
}

#[test]
fn a_stop_is_told_when_it_is_quiet() {
    let mut node = Node::new();
    node.signal(200 * S, 3, master()).listener_closes(200 * S + MS, task());
    ended(&mut node, 201 * S);
    for second in 202..=240 {
        node.event(second * S, syn_refused());
    }
    let told = |until: u64| {
        let at = |i: &Input| match i {
            Input::Event(e) => e.at,
            _ => 0,
        };
        let inputs = node.inputs.iter().filter(|i| at(i) <= until).cloned().collect();
        stops_until(&Node { inputs, next: 0 }, until).len()
    };
    assert_eq!(told(230 * S), 0, "connections still come");
    assert_eq!(told(232 * S), 1, "half a minute after the exit it is told all the same");
    assert_eq!(told(201 * S + 500 * MS), 0);
}

/// PID 1 of the container, which is not nginx.
fn pid1(comm: &str) -> Task {
    Task { tgid: 8500, pid: 8500, ns_pid: 1, ppid: 1, start_ns: 3 * S, comm: comm.into(), ..task() }
}

fn below_pid1() -> Task {
    Task { ns_pid: 7, ..master() }
}

fn signal_from(sender: Task, signal: u32, target: Task, code: i32, result: u32) -> EventKind {
    let info = if code == SI_KERNEL { SigInfo::Kernel } else { SigInfo::Real };
    let group = true;
    EventKind::SignalGenerated(SignalGenerated { signal, code, si_pid: 0, info, result, group, sender, target })
}

#[test]
fn a_signal_that_pid_1_passed_on() {
    let mut node = Node::new();
    node.event(200 * S, signal_from(host(), 15, pid1("supervisord"), 0, 0));
    node.event(200 * S + 900 * MS, signal_from(pid1("supervisord"), 3, below_pid1(), 0, 0));
    ended(&mut node, 202 * S);
    let stop = only(&node);
    let told = names(&stop);
    assert_eq!(told[..2], [("container-signal", 0), ("stop-signal", 900)], "{stop:#?}");
    assert_eq!(stop.signal.as_deref(), Some("SIGQUIT"));
}

#[test]
fn a_signal_that_pid_1_ignored() {
    let mut node = Node::new();
    node.event(200 * S, signal_from(host(), 15, pid1("sh"), 0, 1));
    node.event(210 * S, signal_from(host(), 9, pid1("sh"), 0, 0));
    let dying = exiting(pid1("sh"));
    node.event(210 * S + MS, signal_from(dying, 9, below_pid1(), SI_KERNEL, 0));
    ended(&mut node, 210 * S + 2 * MS);
    let stop = only(&node);
    assert_eq!(names(&stop)[..3], [("container-signal", 0), ("kill", 10_000), ("kill", 10_001)], "{stop:#?}");
    assert!(stop.phases[0].text.contains("ignored"), "{}", stop.phases[0].text);
    assert_eq!(stop.signal.as_deref(), Some("SIGTERM"));
    let grace = stop.grace.clone().unwrap();
    assert_eq!((grace.ms, grace.source.as_str()), (10_000, "observed"), "{grace:?}");
}

/// A command that was started in nginx's container from outside: `runc exec`.
fn exec(node: &mut Node, at: u64, argv: &[&str]) -> Task {
    let runc = Task { tgid: 600, pid: 600, ns_pid: 600, start_ns: 150 * S, comm: "runc".into(), ..host() };
    let command = Task { tgid: 9_100, pid: 9_100, ns_pid: 31, ppid: 600, start_ns: at, comm: "x".into(), ..task() };
    node.event(at, EventKind::Forked { parent: runc, child: command.clone() });
    let argv = argv.iter().map(|a| (*a).to_string()).collect::<Vec<_>>();
    let path = argv[0].clone();
    node.event(at + 1, EventKind::Execed(Execed { task: command.clone(), old_pid: 9_100, path, argv }));
    command
}

#[test]
fn a_hook_that_slept_before_the_signal() {
    let mut node = Node::new();
    let sleep = exec(&mut node, 195 * S, &["/bin/sleep", "5"]);
    node.event(200 * S, EventKind::Exited { task: exiting(sleep), code: 0 });
    node.signal(200 * S + 50 * MS, 3, master()).listener_closes(200 * S + 51 * MS, task());
    node.event(201 * S + 51 * MS, syn_refused());
    ended(&mut node, 202 * S);
    let stop = only(&node);
    assert_eq!(names(&stop)[..2], [("exec", 0), ("stop-signal", 5049)], "{stop:#?}");
    assert!(stop.phases[0].text.contains("`/bin/sleep 5`"), "{}", stop.phases[0].text);
    assert!(stop.phases[0].text.contains("exited with status 0"), "{}", stop.phases[0].text);
    let value = stop.advice.iter().find(|a| a.id == "prestop-sleep").and_then(|a| a.value);
    assert_eq!(value, Some(4 + 1 + 1), "what was slept, the late connection, and one more");
}

#[test]
fn a_hook_that_sent_the_signal_itself() {
    let mut node = Node::new();
    let quit = exec(&mut node, 200 * S, &["nginx", "-s", "quit"]);
    node.event(200 * S + 9 * MS, signal_from(quit.clone(), 3, master(), 0, 0));
    node.event(200 * S + 10 * MS, EventKind::Exited { task: exiting(quit), code: 0 });
    node.signal(200 * S + 60 * MS, 15, master());
    ended(&mut node, 201 * S);
    let stop = only(&node);
    assert_eq!(names(&stop)[..3], [("exec", 0), ("stop-signal", 8), ("second-signal", 59)], "{stop:#?}");
    let text = &stop.phases[0].text;
    assert!(text.contains("`nginx -s quit`") && text.contains("sent the signal, exited with status 0"), "{text}");
}

/// A probe that ended long before, and one that somebody in the container started, have nothing to do with it.
#[test]
fn other_commands_are_not_told() {
    let mut node = Node::new();
    let probe = exec(&mut node, 190 * S, &["/bin/true"]);
    node.event(191 * S, EventKind::Exited { task: exiting(probe), code: 0 });
    let own = Task { tgid: 9_200, pid: 9_200, ns_pid: 33, start_ns: 199 * S, comm: "cron".into(), ..task() };
    node.event(199 * S, EventKind::Forked { parent: master(), child: own.clone() });
    let path = "/usr/bin/job".to_string();
    node.event(
        199 * S + 1,
        EventKind::Execed(Execed { task: own.clone(), old_pid: 9_200, path, argv: vec!["job".into()] }),
    );
    node.event(200 * S - MS, EventKind::Exited { task: exiting(own), code: 0 });
    node.signal(200 * S, 3, master());
    ended(&mut node, 201 * S);
    assert_eq!(names(&only(&node))[0].0, "stop-signal");
}

/// A master for each, and none of them ends.
#[test]
fn more_stops_than_are_kept_are_told_early() {
    let mut node = Node::new();
    for n in 0..2_000u32 {
        let tgid = 20_000 + n;
        let other = Task { tgid, pid: tgid, ns_pid: 1, ppid: 1, start_ns: 110 * S + u64::from(n), ..master() };
        let exec =
            Execed { task: other.clone(), old_pid: tgid, path: "/usr/sbin/nginx".into(), argv: vec!["nginx".into()] };
        node.event(120 * S + u64::from(n), EventKind::Execed(exec));
        node.event(130 * S + u64::from(n), signal_from(host(), 15, other, 0, 0));
    }
    // Time goes on, so that there are ticks in between.
    let stops = stops_until(&node, 140 * S);
    assert_eq!(stops.len(), 2_000 - crate::correlate::stops::MAX_STOPS);
    assert!(stops.iter().all(|s| s.missing.iter().any(|m| m.fact == "later-events")), "{:#?}", stops[0]);
}

#[test]
fn a_listener_is_closed_by_a_worker_or_the_master() {
    let mut node = Node::new();
    node.signal(200 * S, 3, master()).listener_closes(200 * S + MS, task());
    let stranger = Task { tgid: 4_444, pid: 4_444, ppid: 1, start_ns: 9 * S, ..host() };
    node.listener_closes(200 * S + 2 * MS, stranger);
    ended(&mut node, 201 * S);
    let stop = only(&node);
    assert_eq!(stop.phases.iter().filter(|p| p.name == "listener-closed").count(), 1, "{stop:#?}");
}

#[test]
fn who_told_whom_and_who_ended() {
    use crate::model::incident::Lane;
    let mut node = Node::new();
    node.signal(200 * S, 15, master());
    node.event(200 * S + MS, signal_from(master(), 15, task(), 0, 0));
    // A child that signals itself on its way out tells nobody anything.
    node.event(200 * S + 2 * MS, signal_from(task(), 15, task(), 0, 0));
    let kill = Task { tgid: 999, pid: 999, ns_pid: 999, comm: "kill".into(), ..host() };
    node.event(200 * S + 3 * MS, signal_from(kill, 3, master(), 0, 1));
    ended(&mut node, 200 * S + 4 * MS);
    let timeline = only(&node).timeline;
    let signals: Vec<_> =
        timeline.signals.iter().map(|s| (s.signal.as_str(), s.from.lane, s.to.lane, s.ignored)).collect();
    let wanted = [
        ("SIGTERM", Lane::Host, Lane::NginxMaster, false),
        ("SIGTERM", Lane::NginxMaster, Lane::NginxWorker, false),
        ("SIGQUIT", Lane::Host, Lane::NginxMaster, true),
    ];
    assert_eq!(signals, wanted);
    let exits: Vec<_> = timeline.exits.iter().map(|e| (e.who.lane, e.how.as_str())).collect();
    assert_eq!(exits, [(Lane::NginxWorker, "exited with status 0"), (Lane::NginxMaster, "exited with status 0")]);
    assert_eq!(timeline.cut, 0);
}

/// A container that floods its own server with signals gets a bounded stop, and the kill that ends it is in it.
#[test]
fn a_flood_of_signals_leaves_room_for_the_kill() {
    let mut node = Node::new();
    for n in 0..500 {
        node.signal(200 * S + n * MS, 15, master());
    }
    node.signal(201 * S, 9, master());
    ended(&mut node, 201 * S + MS);
    let timeline = only(&node).timeline;
    assert_eq!((timeline.signals.len(), timeline.cut), (96, 405));
    assert_eq!(timeline.signals.last().unwrap().signal, "SIGKILL");
}
