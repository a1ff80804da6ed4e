//! A proxy that is not nginx, in another container of the pod: what it takes along is told where all of it is seen.

use super::{Node, POD, S, causes, exiting, fact, host, known, master, task};
use crate::correlate::answer::tests::state;
use crate::model::event::{EventKind, Execed, Side, SigInfo, SignalGenerated, Task, TcpState, Tuple, tcp};
use crate::model::input::{CgroupFact, Hierarchy, SpecFact};
use crate::model::{Cause, Incident, Input, Level};

const MS: u64 = 1_000_000;
const SIDE: u64 = 46;

fn proxy() -> Task {
    let comm = "envoy".to_string();
    Task { tgid: 8_700, pid: 8_700, ns_pid: 1, ppid: 8_600, pidns: 9, cgroup: SIDE, start_ns: 4 * S, comm, ..task() }
}

/// A pod with a proxy before its nginx; `uid`: the proxy's pod.
fn pod(uid: &str) -> Node {
    let mut node = Node::new();
    let id: String = std::iter::repeat_n('c', 64).collect();
    let path = Some(format!("/kubepods/burstable/pod{uid}/{id}"));
    let spec = SpecFact {
        at: 2,
        pod_uid: None,
        source: "pod.yaml".into(),
        workload: "Pod/web".into(),
        container: "app".into(),
        pre_stop: Some(vec!["sleep".into(), "10".into()]),
        stop_signal: None,
        grace_s: 30,
    };
    let side = CgroupFact { at: 1, id: SIDE, hierarchy: Hierarchy::V2, path };
    node.inputs.splice(2..2, [Input::Cgroup(side), Input::Spec(spec)]);
    known(&mut node, &proxy(), "/usr/local/bin/envoy", "envoy");
    node
}

fn told(node: &mut Node, at: u64, target: Task) {
    let sender = Task { tgid: 700, pid: 700, ns_pid: 700, start_ns: 190 * S, comm: "runc".into(), ..host() };
    let info = SigInfo::Real;
    let s = SignalGenerated { signal: 15, code: 0, si_pid: 0, info, result: 0, group: true, sender, target };
    node.event(at, EventKind::SignalGenerated(s));
}

/// The app's hook begins.
fn hook(node: &mut Node, at: u64, argv: &[&str]) {
    let runc = Task { tgid: 690, pid: 690, ns_pid: 690, start_ns: at - MS, comm: "runc".into(), ..host() };
    let command = Task { tgid: 8_800, pid: 8_800, ns_pid: 30, ppid: 690, start_ns: at, ..master() };
    node.inputs.push(Input::Process(fact(&runc, "/usr/bin/runc", "runc exec")));
    node.event(at, EventKind::Forked { parent: runc, child: command.clone() });
    let argv = argv.iter().map(|a| (*a).to_string()).collect();
    node.event(at, EventKind::Execed(Execed { task: command, old_pid: 8_800, path: "/bin/sleep".into(), argv }));
}

/// The proxy's end of a connection to nginx goes, and nginx's with it; by its exit, or while it lives on.
fn leaves(node: &mut Node, at: u64, by: &Task) {
    let t = state().tuple;
    let tuple = Tuple {
        local_ip: t.remote_ip,
        local_port: t.remote_port,
        remote_ip: t.local_ip,
        remote_port: t.local_port,
        netns: t.netns,
    };
    let closes = TcpState {
        side: Side::Client,
        tuple,
        oldstate: tcp::ESTABLISHED,
        newstate: tcp::FIN_WAIT1,
        sk_cgroup: SIDE,
        task: by.clone(),
        // The numbers of nginx's end, from here.
        snd_una: state().rcv_nxt - state().bytes_received as u32 - 1,
        bytes_acked: 0,
        rcv_nxt: state().snd_una - state().bytes_acked as u32,
        bytes_received: 0,
        ..state()
    };
    node.event(at, EventKind::TcpState(closes));
    let open = TcpState { newstate: tcp::CLOSE_WAIT, bytes_sent: 0, task: by.clone(), ..state() };
    node.event(at + 1_000, EventKind::TcpState(open));
}

fn ends(node: &mut Node, at: u64) {
    // An exiting task has no namespaces any more.
    let gone = Task { netns: 0, ..exiting(proxy()) };
    node.event(at - MS, EventKind::Exited { task: gone.clone(), code: 15 });
    leaves(node, at, &gone);
}

fn only(node: &mut Node) -> Incident {
    let mut said = node.said(true);
    assert_eq!(said.len(), 1, "{said:#?}");
    said.remove(0)
}

#[test]
fn a_pod_is_stopped_and_its_proxy_goes_first() {
    let mut node = pod(POD);
    hook(&mut node, 200 * S, &["sleep", "10"]);
    told(&mut node, 200 * S + MS, proxy());
    ends(&mut node, 200 * S + 5 * MS);
    let i = only(&mut node);
    assert_eq!(i.cause, Cause::SidecarGoneFirst, "{i:#?}");
    assert_eq!((i.confidence.level, &i.also_matched[..]), (Level::Likely, &[Cause::ClientAbort][..]));
    let rules: Vec<_> = i.chain.iter().map(|l| l.rule.as_str()).collect();
    let wanted =
        ["close-time-rule", "a-proxy-of-this-server", "sockets-are-closed-by-exit", "the-proxy-was-told-to-stop"];
    assert_eq!(rules[..4], wanted);
    assert_eq!(rules[4..], ["beside-the-stop-of-the-pod"]);
    assert_eq!(i.chain[3].because, None, "nothing follows from what is beside");
}

#[test]
fn what_shows_the_stop_of_the_pod() {
    let cause = |act: &dyn Fn(&mut Node), uid: &str| {
        let mut node = pod(uid);
        told(&mut node, 200 * S + MS, proxy());
        act(&mut node);
        causes(&node.said(true))[..].to_vec()
    };
    let cut = 210 * S;
    let later = |node: &mut Node| {
        ends(node, cut);
        told(node, cut + 300 * MS, master());
    };
    assert_eq!(cause(&later, POD), [Cause::SidecarGoneFirst], "the app is told later");
    assert_eq!(cause(&later, "99999999-2222-3333-4444-555555555555"), [Cause::ClientAbort], "another pod's proxy");
    let alone = |node: &mut Node| ends(node, cut);
    assert_eq!(cause(&alone, POD), [Cause::ClientAbort], "the proxy alone");
    let before = |node: &mut Node| {
        told(node, cut - 5 * S, master());
        ends(node, cut);
    };
    assert_eq!(cause(&before, POD), [Cause::ClientAbort], "the app had been told before the loss");
    let together = |node: &mut Node| {
        ends(node, 200 * S + 5 * MS);
        told(node, 200 * S + 9 * MS, master());
    };
    assert_eq!(cause(&together, POD), [Cause::ClientAbort], "both were told at once");
    let probe = |node: &mut Node| {
        hook(node, cut - MS, &["sleep", "11"]);
        ends(node, cut);
    };
    assert_eq!(cause(&probe, POD), [Cause::ClientAbort], "a command that is nobody's hook");
    let lives = |node: &mut Node| {
        leaves(node, cut, &proxy());
        told(node, cut + 300 * MS, master());
    };
    assert_eq!(cause(&lives, POD), [Cause::ClientAbort], "it closed by itself: a timeout of its own");
}
