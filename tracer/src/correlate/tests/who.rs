//! Who sent the signal, and what was under way when why502 started: by hand.

use super::{Node, POD, READY, S, causes, exiting, host, known, master, or_restart, syn_refused, task};
use crate::correlate::answer::tests::state;
use crate::model::event::{EventKind, Execed, SI_KERNEL, SigInfo, SignalGenerated, Task, TcpState, tcp};
use crate::model::input::{CgroupFact, Hierarchy, ListenerFact};
use crate::model::{Cause, Incident, Input, Level, Trigger};

const MS: u64 = 1_000_000;

fn pid1(comm: &str) -> Task {
    Task { tgid: 8_592, pid: 8_592, ns_pid: 1, ppid: 8_400, start_ns: 3 * S, comm: comm.into(), ..task() }
}

/// nginx's master under another PID 1.
fn below() -> Task {
    Task { ns_pid: 7, ppid: 8_592, ..master() }
}

fn runc() -> Task {
    Task { tgid: 700, pid: 700, ns_pid: 700, start_ns: 190 * S, comm: "runc".into(), ..host() }
}

fn sent(node: &mut Node, at: u64, from: Task, signal: u32, to: Task) {
    signal_of(node, at, from, signal, to, |_| {});
}

fn signal_of(node: &mut Node, at: u64, from: Task, signal: u32, to: Task, more: impl Fn(&mut SignalGenerated)) {
    let mut s = SignalGenerated {
        signal,
        code: 0,
        si_pid: 0,
        info: SigInfo::Real,
        result: 0,
        group: true,
        sender: from,
        target: to,
    };
    more(&mut s);
    node.event(at, EventKind::SignalGenerated(s));
}

fn zap(node: &mut Node, at: u64, pid1: Task, to: Task) {
    signal_of(node, at, exiting(pid1), 9, to, |s| (s.code, s.info) = (SI_KERNEL, SigInfo::Kernel));
}

fn ends(node: &mut Node, at: u64, who: Task, code: u32) {
    node.event(at, EventKind::Exited { task: exiting(who), code });
}

/// The worker's exit closes a request that was not answered.
fn cut(node: &mut Node, at: u64) {
    node.event(at, EventKind::TcpState(TcpState { bytes_sent: 0, task: exiting(task()), ..state() }));
}

fn only(node: &mut Node) -> Incident {
    let mut said = node.said(true);
    assert_eq!(said.len(), 1, "{said:#?}");
    said.remove(0)
}

fn rules(incident: &Incident) -> Vec<&str> {
    incident.chain.iter().map(|l| l.rule.as_str()).collect()
}

fn texts(incident: &Incident) -> String {
    incident.chain.iter().map(|l| format!("{}\n", l.text)).collect()
}

#[test]
fn what_tini_passes_on_comes_from_the_runtime() {
    let run = |outer: bool| {
        let mut node = Node::new();
        known(&mut node, &pid1("tini"), "/usr/bin/tini", "tini -- nginx");
        if outer {
            sent(&mut node, 200 * S, runc(), 15, pid1("tini"));
        }
        sent(&mut node, 200 * S + MS, pid1("tini"), 15, below());
        ends(&mut node, 200 * S + 2 * MS, task(), 0);
        cut(&mut node, 200 * S + 3 * MS);
        only(&mut node)
    };
    let told = run(true);
    assert_eq!((told.cause, told.trigger), (Cause::NginxFastShutdown, Trigger::RuntimeStop));
    assert_eq!(rules(&told)[2..], ["master-tells-workers", "passed-on"]);
    assert!(
        texts(&told).contains("tini 8592 (PID 1 in its container) in the same container sent SIGTERM to nginx master")
    );
    assert!(texts(&told).contains("the container runtime (runc 700) sent SIGTERM to tini 8592"), "{}", texts(&told));
    assert_eq!(told.confidence.level, Level::Certain);
    let untold = run(false);
    assert_eq!((untold.cause, untold.trigger), (Cause::NginxFastShutdown, Trigger::Unknown));
    assert_eq!(untold.confidence.value, 0.9, "{:?}", untold.confidence);
}

#[test]
fn an_old_signal_to_tini_is_not_passed_on_now() {
    let mut node = Node::new();
    known(&mut node, &pid1("tini"), "/usr/bin/tini", "tini -- nginx");
    sent(&mut node, 150 * S, runc(), 15, pid1("tini"));
    sent(&mut node, 200 * S, pid1("tini"), 15, below());
    ends(&mut node, 200 * S + MS, task(), 0);
    cut(&mut node, 200 * S + 2 * MS);
    assert_eq!(only(&mut node).trigger, Trigger::Unknown);
}

#[test]
fn a_trap_sends_by_a_command_of_its_own() {
    let mut node = Node::new();
    known(&mut node, &pid1("sh"), "/bin/dash", "sh entrypoint.sh");
    let tool =
        Task { tgid: 8_700, pid: 8_700, ns_pid: 40, ppid: 8_592, start_ns: 200 * S, comm: "kill".into(), ..task() };
    sent(&mut node, 200 * S, runc(), 15, pid1("sh"));
    node.event(200 * S + MS, EventKind::Forked { parent: pid1("sh"), child: tool.clone() });
    let argv = ["kill", "-QUIT", "7"].map(String::from).to_vec();
    let exec = Execed { task: tool.clone(), old_pid: 8_700, path: "/bin/kill".into(), argv };
    node.event(200 * S + 2 * MS, EventKind::Execed(exec));
    sent(&mut node, 200 * S + 3 * MS, tool, 3, below());
    node.listener_closes(200 * S + 4 * MS, task()).event(201 * S, syn_refused());
    let said = only(&mut node);
    assert_eq!((said.cause, said.trigger), (Cause::EndpointRace, Trigger::RuntimeStop));
    assert!(texts(&said).contains("`kill -QUIT 7`, run by the container's own processes (PID 40), sent SIGQUIT"));
    assert!(or_restart(&said), "{:?}", said.confidence);
}

#[test]
fn a_command_from_outside_and_the_link_of_its_exec() {
    let run = |exec: bool| {
        let mut node = Node::new();
        let ctl =
            Task { tgid: 8_700, pid: 8_700, ns_pid: 13, ppid: 700, start_ns: 199 * S, comm: "nginx".into(), ..task() };
        node.event(199 * S, EventKind::Forked { parent: runc(), child: ctl.clone() });
        if exec {
            let argv = ["nginx", "-s", "quit"].map(String::from).to_vec();
            let exec = Execed { task: ctl.clone(), old_pid: 8_700, path: "/usr/sbin/nginx".into(), argv };
            node.event(199 * S + MS, EventKind::Execed(exec));
        }
        sent(&mut node, 200 * S, ctl, 3, master());
        node.listener_closes(200 * S + MS, task()).event(201 * S, syn_refused());
        only(&mut node)
    };
    let said = run(true);
    assert_eq!((said.cause, said.trigger), (Cause::EndpointRace, Trigger::Unknown));
    assert!(texts(&said).contains("`nginx -s quit`, run in the container from outside (PID 13), sent SIGQUIT"));
    assert_eq!(said.chain.last().unwrap().rule, "run-from-outside");
    assert!(or_restart(&said), "{:?}", said.confidence);
    assert_eq!(run(false).confidence.level, Level::Likely, "who sent it was not seen");
}

#[test]
fn cgroup_kill_is_a_kill_from_outside() {
    let mut node = Node::new();
    let by_file = |s: &mut SignalGenerated| (s.group, s.info) = (false, SigInfo::None);
    signal_of(&mut node, 600 * S, runc(), 9, master(), by_file);
    signal_of(&mut node, 600 * S + 1, runc(), 9, task(), by_file);
    ends(&mut node, 600 * S + MS, task(), 9);
    cut(&mut node, 600 * S + 2 * MS);
    let said = only(&mut node);
    assert_eq!((said.cause, said.trigger), (Cause::ContainerKilled, Trigger::RuntimeStop));
    assert!(
        texts(&said).contains("the container runtime (runc 700), by cgroup.kill, sent SIGKILL"),
        "{}",
        texts(&said)
    );
    assert_eq!(said.confidence.value, 0.9);
}

#[test]
fn the_death_of_a_shared_pid_1_is_the_pods() {
    let mut node = Node::new();
    let path = format!("/kubepods/burstable/pod{POD}/{:c<64}", "");
    let pause = Task { cgroup: 46, ..pid1("pause") };
    node.inputs.insert(3, Input::Cgroup(CgroupFact { at: 1, id: 46, hierarchy: Hierarchy::V2, path: Some(path) }));
    known(&mut node, &pause, "/pause", "/pause");
    let init = Task { ns_pid: 7, ..master() };
    sent(&mut node, 600 * S, runc(), 9, pause.clone());
    zap(&mut node, 600 * S + MS, pause.clone(), init);
    zap(&mut node, 600 * S + MS, pause, task());
    ends(&mut node, 600 * S + 2 * MS, task(), 9);
    cut(&mut node, 600 * S + 3 * MS);
    let said = only(&mut node);
    assert_eq!((said.cause, said.trigger), (Cause::ContainerKilled, Trigger::RuntimeStop));
    assert!(texts(&said).contains("because PID 1 (pause 8592) had ended"), "{}", texts(&said));
}

#[test]
fn one_killed_worker_is_not_a_killed_container() {
    let mut node = Node::new();
    sent(&mut node, 600 * S, Task { comm: "kill".into(), ..runc() }, 9, task());
    ends(&mut node, 600 * S + MS, task(), 9);
    cut(&mut node, 600 * S + 2 * MS);
    let said = only(&mut node);
    assert_eq!(said.cause, Cause::NginxWorkerCrash);
    assert!(texts(&said).contains("sent SIGKILL to nginx worker"), "{}", texts(&said));
}

#[test]
fn an_ignored_kill_from_inside_is_not_the_kill() {
    let mut node = Node::new();
    // SIGKILL to PID 1 from its own namespace does nothing.
    signal_of(&mut node, 600 * S, task(), 9, master(), |s| s.result = 1);
    ends(&mut node, 601 * S, task(), 9);
    cut(&mut node, 601 * S + MS);
    assert_eq!(only(&mut node).cause, Cause::Unexplained);
}

#[test]
fn the_masters_own_escalation_is_the_fast_shutdown() {
    let mut node = Node::new();
    sent(&mut node, 200 * S, runc(), 15, master());
    sent(&mut node, 203 * S, master(), 9, task());
    ends(&mut node, 203 * S + MS, task(), 9);
    cut(&mut node, 203 * S + 2 * MS);
    let said = only(&mut node);
    assert_eq!((said.cause, said.trigger), (Cause::NginxFastShutdown, Trigger::RuntimeStop));
    assert!(
        texts(&said).contains("its master, nginx master 8593 (PID 1 in its container), sent SIGKILL"),
        "{}",
        texts(&said)
    );
}

#[test]
fn pid_1_that_does_not_wait() {
    let mut node = Node::new();
    known(&mut node, &pid1("sh"), "/bin/dash", "sh entrypoint.sh");
    sent(&mut node, 200 * S, runc(), 3, pid1("sh"));
    sent(&mut node, 200 * S + MS, pid1("sh"), 3, below());
    ends(&mut node, 200 * S + 2 * MS, pid1("sh"), 131 << 8);
    zap(&mut node, 200 * S + 3 * MS, pid1("sh"), task());
    ends(&mut node, 200 * S + 4 * MS, task(), 9);
    cut(&mut node, 200 * S + 5 * MS);
    let said = only(&mut node);
    assert_eq!((said.cause, said.trigger), (Cause::Pid1ExitedFirst, Trigger::RuntimeStop));
    assert_eq!(said.confidence.level, Level::Certain, "{:?}", said.confidence);
    assert!(texts(&said).contains("the kernel, because PID 1 (sh 8592) had ended, sent SIGKILL"), "{}", texts(&said));
}

#[test]
fn a_supervisor_that_stops_waiting() {
    for group in [false, true] {
        let mut node = Node::new();
        known(&mut node, &pid1("supervisord"), "/usr/bin/supervisord", "supervisord -n");
        sent(&mut node, 200 * S, runc(), 15, pid1("supervisord"));
        sent(&mut node, 201 * S, pid1("supervisord"), 3, below());
        sent(&mut node, 211 * S, pid1("supervisord"), 9, below());
        if group {
            sent(&mut node, 211 * S + 1, pid1("supervisord"), 9, task());
        } else {
            ends(&mut node, 212 * S, pid1("supervisord"), 0);
            zap(&mut node, 212 * S + MS, pid1("supervisord"), task());
        }
        ends(&mut node, 212 * S + 2 * MS, task(), 9);
        cut(&mut node, 212 * S + 3 * MS);
        let said = only(&mut node);
        assert_eq!((said.cause, said.sub_cause.as_deref()), (Cause::GracePeriodExceeded, Some("stopwaitsecs")));
        assert_eq!(said.trigger, Trigger::RuntimeStop);
        assert!(said.summary.contains("10.0 s after SIGQUIT"), "{}", said.summary);
        assert!(said.advice.iter().any(|a| a.id == "supervisor-stopwaitsecs"), "{:?}", said.advice);
    }
}

#[test]
fn a_stop_signal_that_pid_1_swallows() {
    let run = |passed_on: bool| {
        let mut node = Node::new();
        known(&mut node, &pid1("manager"), "/usr/bin/manager", "manager");
        sent(&mut node, 200 * S, runc(), 15, pid1("manager"));
        if passed_on {
            sent(&mut node, 200 * S + MS, pid1("manager"), 3, below());
        }
        // The master's parent is known from any of its records.
        signal_of(&mut node, 200 * S + 2 * MS, below(), 10, below(), |_| {});
        sent(&mut node, 230 * S, runc(), 9, pid1("manager"));
        zap(&mut node, 230 * S + MS, pid1("manager"), task());
        ends(&mut node, 230 * S + 2 * MS, task(), 9);
        cut(&mut node, 230 * S + 3 * MS);
        let said = only(&mut node);
        (said.cause, said.sub_cause)
    };
    assert_eq!(run(false), (Cause::Pid1IgnoresStopSignal, Some("not-passed-on".into())));
    assert_eq!(run(true), (Cause::GracePeriodExceeded, None));
}

/// nginx had been told to quit before why502 started: nobody listens, its worker finishes a request.
fn quitting() -> Node {
    let mut node = Node::new();
    node.inputs.retain(|i| !matches!(i, Input::Listener(_)));
    known(&mut node, &task(), "/usr/sbin/nginx", "nginx: worker process is shutting down");
    let listener = ListenerFact {
        at: 4,
        netns: 7,
        ip: state().tuple.local_ip,
        port: 80,
        inode: 0,
        holders: vec![task().key()],
        closed: true,
    };
    let ready = node.inputs.iter().position(|i| matches!(i, Input::Ready { .. })).unwrap();
    node.inputs.insert(ready, Input::Listener(listener));
    node
}

fn started_late(incident: &Incident) -> bool {
    incident.missing.iter().any(|m| m.fact == "started-late")
}

#[test]
fn a_stop_that_had_begun_before_the_start() {
    let mut node = quitting();
    node.event(READY + S, syn_refused());
    sent(&mut node, READY + 2 * S, runc(), 15, master());
    ends(&mut node, READY + 2 * S + MS, task(), 0);
    cut(&mut node, READY + 2 * S + 2 * MS);
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::Unexplained, Cause::QuitThenTerm], "{said:#?}");
    assert_eq!(said[1].confidence.value, 0.8);
    assert!(said.iter().all(started_late), "{said:#?}");
}

#[test]
fn a_kill_after_a_stop_that_had_begun_before_the_start() {
    let mut node = quitting();
    sent(&mut node, READY + 20 * S, runc(), 9, master());
    zap(&mut node, READY + 20 * S + MS, master(), task());
    ends(&mut node, READY + 20 * S + 2 * MS, task(), 9);
    cut(&mut node, READY + 20 * S + 3 * MS);
    let said = only(&mut node);
    assert_eq!((said.cause, said.confidence.value), (Cause::GracePeriodExceeded, 0.8));
    assert!(started_late(&said));
}

#[test]
fn a_worker_that_drained_before_the_start_decides_nothing() {
    let close = |node: &mut Node, by_exit: bool| {
        let newstate = tcp::FIN_WAIT1;
        let s = TcpState { bytes_sent: 0, newstate, task: task(), ..state() };
        node.event(READY + 20 * S, EventKind::TcpState(s));
        if by_exit {
            ends(node, READY + 20 * S + 5 * MS, task(), 0);
        }
        only(node)
    };
    let timeout = close(&mut quitting(), true);
    assert_eq!((timeout.cause, timeout.confidence.value), (Cause::WorkerShutdownTimeout, 0.8));
    assert!(started_late(&timeout));
    assert_eq!(close(&mut quitting(), false).cause, Cause::Unexplained, "not a deliberate close");
}

#[test]
fn a_kill_soon_after_the_start_may_have_been_announced() {
    let run = |at: u64| {
        let mut node = Node::new();
        // A PID 1 that catches nothing: a TERM to it, ignored, may have come before.
        known(&mut node, &pid1("sh"), "/bin/dash", "sh entrypoint.sh");
        signal_of(&mut node, READY + MS, below(), 10, below(), |_| {});
        sent(&mut node, at, runc(), 9, pid1("sh"));
        zap(&mut node, at + MS, pid1("sh"), task());
        ends(&mut node, at + 2 * MS, task(), 9);
        cut(&mut node, at + 3 * MS);
        only(&mut node)
    };
    let soon = run(READY + 20 * S);
    assert_eq!((soon.cause, soon.confidence.level), (Cause::ContainerKilled, Level::Possible), "{soon:#?}");
    assert!(started_late(&soon));
    assert_eq!(run(READY + 400 * S).confidence.value, 0.9);
    // nginx itself takes connections to the end: nothing had told it to stop.
    let mut node = Node::new();
    sent(&mut node, READY + 20 * S, runc(), 9, master());
    zap(&mut node, READY + 20 * S + MS, master(), task());
    ends(&mut node, READY + 20 * S + 2 * MS, task(), 9);
    cut(&mut node, READY + 20 * S + 3 * MS);
    assert_eq!(only(&mut node).confidence.value, 0.9);
}

#[test]
fn another_pod_in_the_hosts_network_does_not_take_it_over() {
    let host_network = |node: &mut Node| {
        for input in &mut node.inputs {
            if let Input::Started(s) = input {
                s.host_netns = 7;
            }
        }
    };
    let mut node = Node::new();
    host_network(&mut node);
    let other = Task { tgid: 9_000, pid: 9_000, cgroup: 45, start_ns: 205 * S, comm: "pause".into(), ..task() };
    let exec = Execed { task: other, old_pid: 9_000, path: "/pause".into(), argv: Vec::new() };
    node.signal(200 * S, 3, master()).listener_closes(200 * S + 1, task());
    node.event(205 * S, EventKind::Execed(exec)).event(206 * S, syn_refused());
    assert_eq!(causes(&node.said(true)), [Cause::EndpointRace]);
}

#[test]
fn a_fault_is_the_kernels_doing() {
    let mut node = Node::new();
    signal_of(&mut node, 200 * S, task(), 11, task(), |s| (s.code, s.group) = (1, false));
    ends(&mut node, 200 * S + MS, task(), 11);
    cut(&mut node, 200 * S + 2 * MS);
    let said = only(&mut node);
    assert_eq!((said.cause, said.sub_cause.as_deref()), (Cause::NginxWorkerCrash, None));
    assert_eq!((said.trigger, said.confidence.level), (Trigger::Crash, Level::Certain));
}

/// The same signal, from somebody: that is no crash. With the master it is the end of the server, which is told elsewhere.
#[test]
fn a_worker_that_somebody_ends_has_not_crashed() {
    let said = |signal: u32, by: Task, master_too: bool| {
        let mut node = Node::new();
        sent(&mut node, 600 * S, by.clone(), signal, task());
        ends(&mut node, 600 * S + MS, task(), signal);
        cut(&mut node, 600 * S + 2 * MS);
        if master_too {
            sent(&mut node, 600 * S + 3 * MS, by, signal, master());
            ends(&mut node, 600 * S + 4 * MS, master(), signal);
        }
        only(&mut node)
    };
    let kill = || Task { comm: "kill".into(), ..runc() };
    for number in [9, 11] {
        let i = said(number, kill(), false);
        assert_eq!((i.cause, i.sub_cause.as_deref()), (Cause::NginxWorkerCrash, Some("killed")));
        assert!(i.summary.contains("to one nginx worker and not to its master"), "{}", i.summary);
        assert_ne!(said(number, kill(), true).cause, Cause::NginxWorkerCrash);
        assert_eq!(
            said(number, master(), false).cause,
            Cause::Unexplained,
            "its master has a reason, which was not seen"
        );
    }
}

/// OOM and the end of a pid namespace are of the kernel, and no crashes of the worker.
#[test]
fn what_the_kernel_kills_has_not_crashed() {
    let mut node = Node::new();
    signal_of(&mut node, 600 * S, task(), 9, task(), |s| (s.code, s.info) = (SI_KERNEL, SigInfo::Kernel));
    ends(&mut node, 600 * S + MS, task(), 9);
    cut(&mut node, 600 * S + 2 * MS);
    assert_eq!(only(&mut node).cause, Cause::Unexplained);
}

/// PID 1 crashes, the kernel kills the worker with it, and what that was working on is cut.
#[test]
fn a_crash_takes_along_what_is_being_worked_on() {
    let said = |asked: bool, pid1: Task, master: Task, status: u32| {
        let mut node = Node::new();
        let shell = pid1.key() != master.key();
        if shell {
            known(&mut node, &pid1, "/bin/dash", "sh entrypoint.sh");
        }
        if asked {
            sent(&mut node, 200 * S - MS, runc(), 3, master.clone());
        }
        signal_of(&mut node, 200 * S, master.clone(), 11, master.clone(), |s| (s.code, s.group) = (1, false));
        ends(&mut node, 200 * S + MS, master.clone(), 11);
        if shell {
            ends(&mut node, 200 * S + 2 * MS, pid1.clone(), status);
        }
        zap(&mut node, 200 * S + 3 * MS, pid1, task());
        ends(&mut node, 200 * S + 4 * MS, task(), 9);
        cut(&mut node, 200 * S + 5 * MS);
        only(&mut node)
    };
    let i = said(false, master(), master(), 0);
    assert_eq!((i.cause, i.sub_cause.as_deref()), (Cause::Pid1ExitedFirst, Some("crashed")), "{i:#?}");
    assert_eq!((i.trigger, i.confidence.level), (Trigger::Crash, Level::Certain));
    let wanted = ["sockets-are-closed-by-exit", "the-rest-dies-with-pid-1", "ended-without-being-asked"];
    assert_eq!((&rules(&i)[1..4], rules(&i)[4]), (&wanted[..], "killed-by-this-signal"));
    let ids: Vec<&str> = i.advice.iter().map(|a| a.id.as_str()).collect();
    let crash = ["keep-nginx-up", "keep-fpm-up", "readiness-probe", "edge-retry-idempotent"];
    assert!(ids.iter().all(|id| crash.contains(id)), "nothing of the stop would have kept it: {ids:?}");
    let i = said(false, pid1("sh"), below(), 139 << 8);
    assert_eq!((i.cause, i.sub_cause.as_deref()), (Cause::Pid1ExitedFirst, Some("crashed")), "{i:#?}");
    assert!(rules(&i).contains(&"pid-1-follows-its-child"));
    let i = said(true, master(), master(), 0);
    assert_ne!(i.sub_cause.as_deref(), Some("crashed"), "it had been asked to stop: {i:#?}");
}
