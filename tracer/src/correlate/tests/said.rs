//! What runtimes say beside the kernel's events: names, hooks, and the times without a runtime.

use super::{Node, POD, S, exiting, host, master, syn_refused, task};
use crate::correlate::answer::tests::state;
use crate::model::event::{EventKind, Execed, SigInfo, SignalGenerated, Task, TcpState};
use crate::model::input::{CgroupFact, ContainerFact, Hierarchy, PodFact, SourceFact, SourceState, SpecFact, StopSpec};
use crate::model::{Cause, Incident, Input};

const MS: u64 = 1_000_000;

fn id(of: char) -> String {
    std::iter::repeat_n(of, 64).collect()
}

fn fact(of: char) -> ContainerFact {
    let pod = PodFact { namespace: Some("shop".into()), name: Some("web-0".into()), uid: POD.into() };
    ContainerFact {
        id: id(of),
        seen_at: 150 * S,
        source: "unix:///run/x.sock".into(),
        runtime: Some("containerd".into()),
        name: Some("nginx".into()),
        pod: Some(pod),
        ..ContainerFact::default()
    }
}

fn says(node: &mut Node, fact: ContainerFact) {
    node.inputs.push(Input::Container(Box::new(fact)));
}

fn source(node: &mut Node, at: u64, state: SourceState) {
    let fact = SourceFact { at, source: "unix:///run/x.sock".into(), name: "containerd 1.7".into(), state };
    node.inputs.push(Input::Source(fact));
}

fn pid1() -> Task {
    Task { ns_pid: 1, ..master() }
}

fn runc(comm: &str, ns_pid: u32) -> Task {
    Task { tgid: 700, pid: 700, ns_pid, start_ns: 190 * S, comm: comm.into(), ..host() }
}

/// A runtime's stop signal.
fn sent(signal: u32, target: Task) -> EventKind {
    EventKind::SignalGenerated(SignalGenerated {
        signal,
        code: 0,
        si_pid: 0,
        info: SigInfo::Real,
        result: 0,
        group: true,
        sender: runc("runc", 700),
        target,
    })
}

/// The runtime sends `signal` to nginx, whose worker leaves with a request.
fn stopped(node: &mut Node, signal: u32) -> Incident {
    let kind = EventKind::Execed(Execed {
        task: runc("runc", 700),
        old_pid: 700,
        path: "/usr/sbin/runc".into(),
        argv: vec!["runc".into(), "kill".into()],
    });
    node.event(200 * S - MS, kind);
    node.event(200 * S, sent(signal, pid1()));
    node.event(200 * S + MS, EventKind::Exited { task: exiting(task()), code: 0 });
    node.event(200 * S + 2 * MS, EventKind::TcpState(TcpState { bytes_sent: 0, task: exiting(task()), ..state() }));
    let mut said = node.said(true);
    assert_eq!(said.len(), 1, "{said:#?}");
    said.remove(0)
}

fn signal_text(incident: &Incident) -> &str {
    &incident.chain.iter().find(|l| l.kind == "signal").expect("a signal").text
}

fn lacks(incident: &Incident) -> Vec<&str> {
    incident.missing.iter().map(|m| m.fact.as_str()).collect()
}

#[test]
fn names_are_the_containers_own() {
    let mut node = Node::new();
    says(&mut node, fact('a'));
    // The same name in another pod, and a name for nobody.
    says(&mut node, ContainerFact { name: Some("other".into()), pod: None, ..fact('b') });
    says(&mut node, ContainerFact { name: Some("nobody".into()), ..fact('c') });
    let told = stopped(&mut node, 15);
    let pod = told.pod.as_ref().unwrap();
    assert_eq!((pod.namespace.as_deref(), pod.name.as_deref(), pod.uid.as_str()), (Some("shop"), Some("web-0"), POD));
    let container = told.container.as_ref().unwrap();
    assert_eq!((container.name.as_deref(), container.runtime.as_deref()), (Some("nginx"), Some("containerd")));
    assert_eq!(told.cause, Cause::NginxFastShutdown);
    assert_eq!(lacks(&told), ["pod-spec", "kubernetes-api"]);
}

#[test]
fn the_kernels_pod_is_believed_before_the_runtimes() {
    let mut node = Node::new();
    let pod = PodFact { namespace: Some("evil".into()), name: Some("evil".into()), uid: "another".into() };
    says(&mut node, ContainerFact { pod: Some(pod), ..fact('a') });
    let pod = stopped(&mut node, 15).pod.unwrap();
    assert_eq!((pod.uid.as_str(), pod.namespace, pod.name), (POD, None, None));
}

#[test]
fn without_a_runtime_the_verdict_is_the_same() {
    let mut node = Node::new();
    let told = stopped(&mut node, 15);
    assert_eq!(told.cause, Cause::NginxFastShutdown);
    assert_eq!(told.container.as_ref().unwrap().name, None);
    assert_eq!(lacks(&told), ["pod-spec"]);
    assert!(!signal_text(&told).contains("declared"));
}

#[test]
fn a_runtime_that_went_is_missed_while_it_is_gone() {
    let lost = || SourceState::Lost { why: "it ended the connection".into() };
    let run = |from: u64, to: Option<u64>| {
        let mut node = Node::new();
        source(&mut node, 110 * S, SourceState::Connected);
        says(&mut node, fact('a'));
        source(&mut node, from, lost());
        if let Some(to) = to {
            source(&mut node, to, SourceState::Connected);
        }
        stopped(&mut node, 15)
    };
    let during = run(199 * S, None);
    assert_eq!(during.cause, Cause::NginxFastShutdown);
    assert_eq!(during.container.as_ref().unwrap().name.as_deref(), Some("nginx"), "it keeps its name");
    assert_eq!(lacks(&during), ["pod-spec", "kubernetes-api", "runtime"]);
    let text = &during.missing.last().unwrap().effect;
    assert!(text.starts_with("containerd 1.7 (unix:///run/x.sock) could not be asked from 2023-11-14T22:"), "{text}");
    assert!(text.ends_with(": it ended the connection; what it had said before still counts"), "{text}");
    assert_eq!(lacks(&run(120 * S, Some(130 * S))), ["pod-spec", "kubernetes-api"], "long back");
}

#[test]
fn the_signal_is_compared_with_the_declared_one() {
    let run = |declared: Option<u32>, sent: u32| {
        let mut node = Node::new();
        says(&mut node, ContainerFact { stop_signal: declared, ..fact('a') });
        signal_text(&stopped(&mut node, sent)).to_owned()
    };
    let text = run(Some(3), 15);
    assert!(text.contains(" sent SIGTERM (declared: SIGQUIT) to nginx master"), "{text}");
    let text = run(Some(15), 15);
    assert!(text.contains(" sent SIGTERM, the declared stop signal, to nginx master"), "{text}");
    assert!(!run(None, 15).contains("declared"), "nothing is declared");
}

/// A command fails in the container right before the stop signal.
fn with_command(container: Option<StopSpec>, file: Option<&[&str]>) -> Incident {
    let mut node = Node::new();
    says(&mut node, ContainerFact { spec: container, ..fact('a') });
    if let Some(hook) = file {
        node.inputs.push(Input::Spec(SpecFact {
            pod_uid: None,
            at: 1,
            source: "pod.yaml".into(),
            workload: "Pod/other".into(),
            container: "nginx".into(),
            pre_stop: Some(hook.iter().map(|a| (*a).to_owned()).collect()),
            stop_signal: None,
            grace_s: 30,
        }));
    }
    let sh = Task { tgid: 9_000, pid: 9_000, ns_pid: 40, ppid: 600, start_ns: 199 * S, comm: "sh".into(), ..task() };
    let shim = Task { tgid: 600, pid: 600, start_ns: 50 * S, comm: "containerd-shim".into(), ..host() };
    node.event(199 * S, EventKind::Forked { parent: shim, child: sh.clone() });
    let argv = ["/bin/sh", "-SIGQUIT", "1"].map(str::to_owned).to_vec();
    let exec = Execed { task: sh.clone(), old_pid: 9_000, path: "/bin/sh".into(), argv };
    node.event(199 * S + MS, EventKind::Execed(exec));
    node.event(199 * S + 2 * MS, EventKind::Exited { task: exiting(sh), code: 2 << 8 });
    stopped(&mut node, 15)
}

#[test]
fn the_runtimes_hook_counts_as_a_files_does_and_before_it() {
    let hook: &[&str] = &["/bin/sh", "-SIGQUIT", "1"];
    let spec = |hook: Option<&[&str]>| {
        let pre_stop = hook.map(|hook| hook.iter().map(|a| (*a).to_owned()).collect());
        Some(StopSpec { pre_stop, grace_s: Some(5) })
    };
    assert_eq!(with_command(None, Some(hook)).cause, Cause::PrestopFailed, "by the file");
    assert_eq!(with_command(spec(Some(hook)), None).cause, Cause::PrestopFailed, "by the runtime");
    assert_eq!(with_command(None, None).cause, Cause::NginxFastShutdown, "by nobody");
    let other = with_command(spec(None), Some(hook));
    assert_eq!(other.cause, Cause::NginxFastShutdown, "the file is another pod's: this one has no hook");
    assert_eq!(with_command(spec(Some(&["sleep", "5"])), None).cause, Cause::NginxFastShutdown, "another hook");
    assert!(other.advice.iter().any(|a| a.why.contains("It is 5 s now")), "its own grace period, not the file's");
}

/// Another container is told to stop when nginx's hook of five seconds begins; then nginx is, and a connection is refused.
fn refused_after_a_hook(known: &[&str], php_at: u64) -> Incident {
    let mut node = Node::new();
    let pre_stop = Some(known.iter().map(|a| (*a).to_owned()).collect());
    says(&mut node, ContainerFact { spec: Some(StopSpec { pre_stop, grace_s: Some(30) }), ..fact('a') });
    node.inputs.push(Input::Cgroup(CgroupFact {
        at: 1,
        id: 46,
        hierarchy: Hierarchy::V2,
        path: Some(format!("/kubepods/burstable/pod{POD}/{}", id('c'))),
    }));
    let php = Task { tgid: 7_000, pid: 7_000, cgroup: 46, start_ns: 60 * S, comm: "php-fpm".into(), ..pid1() };
    let sleep =
        Task { tgid: 9_000, pid: 9_000, ns_pid: 40, ppid: 600, start_ns: 195 * S, comm: "sleep".into(), ..task() };
    let shim = Task { tgid: 600, pid: 600, start_ns: 50 * S, comm: "containerd-shim".into(), ..host() };
    let argv = ["sleep", "5"].map(str::to_owned).to_vec();
    node.inputs.push(Input::Process(super::fact(&php, "/usr/sbin/php-fpm8.2", "php-fpm: master process")));
    node.event(php_at, sent(3, php));
    node.event(195 * S, EventKind::Forked { parent: shim, child: sleep.clone() });
    let exec = Execed { task: sleep.clone(), old_pid: 9_000, path: "/bin/sleep".into(), argv };
    node.event(195 * S + MS, EventKind::Execed(exec));
    node.event(200 * S - MS, EventKind::Exited { task: exiting(sleep), code: 0 });
    node.event(200 * S, sent(3, pid1())).listener_closes(200 * S + 1, task()).event(201 * S, syn_refused());
    let mut said = node.said(false);
    assert_eq!(said.len(), 1, "{said:#?}");
    said.remove(0)
}

#[test]
fn a_hook_holds_back_its_own_containers_signal_only() {
    let told = |i: &Incident| i.chain.iter().any(|l| l.rule == "beside-the-stop-of-the-pod");
    let stopped = refused_after_a_hook(&["sleep", "5"], 195 * S - MS);
    assert_eq!(stopped.cause, Cause::EndpointRace);
    assert!(told(&stopped) && !lacks(&stopped).contains(&"pod-stop"), "{:?}", stopped.missing);
    for (hook, php_at) in [(&["sleep", "6"][..], 195 * S - MS), (&["sleep", "5"], 190 * S)] {
        let restart = refused_after_a_hook(hook, php_at);
        assert!(!told(&restart) && lacks(&restart).contains(&"pod-stop"), "{hook:?}, php at {php_at}");
    }
}
