//! Sequences made by hand, for what live runs seldom show: each is a way in which a careless rule would blame the wrong one.

mod connect;
mod fpm_child;
mod history;
mod kept;
mod kube;
mod layers;
mod nginx;
mod said;
mod sidecar;
mod stops;
mod unix;
mod weeks;
mod who;

use super::answer::tests::{state, task};
use super::{Engine, EngineOptions};
use crate::model::event::{
    Digest, Event, EventId, EventKind, Execed, ProcKey, ResetSent, ResetSocket, SI_KERNEL, Side, SigInfo,
    SignalGenerated, Task, TcpState, Tuple, tcp, tcp_flags,
};
use crate::model::input::{CgroupFact, Hierarchy, HookState, HookStatus, ListenerFact, ProcessFact, Started};
use crate::model::{Cause, Incident, Input, Level, Mechanism, Output};

const S: u64 = 1_000_000_000;
const READY: u64 = 100 * S;
const POD: &str = "11111111-2222-3333-4444-555555555555";

/// A node with one pod: nginx master 8593 and worker 8597 listen on port 80 of network namespace 7.
struct Node {
    inputs: Vec<Input>,
    next: u64,
}

impl Node {
    fn new() -> Self {
        let container = |id: u64, pod: &str, hex: char| {
            let id_text: String = std::iter::repeat_n(hex, 64).collect();
            Input::Cgroup(CgroupFact {
                at: 1,
                id,
                hierarchy: Hierarchy::V2,
                path: Some(format!("/kubepods/burstable/pod{pod}/{id_text}")),
            })
        };
        let hook = |hook: &str| HookStatus { hook: hook.into(), state: HookState::Attached };
        let inputs = vec![
            Input::Started(Started {
                at: 1,
                version: "0".into(),
                node: "node-1".into(),
                boot_id: "b".into(),
                kernel: "6.12".into(),
                hooks: vec![hook("signal_generate")],
                degraded: Vec::new(),
                reset_reasons: Vec::new(),
                host_netns: 1,
                host_pidns: 1,
            }),
            Input::Clock { at: 1, wall_ns: 1_700_000_000_000_000_000 },
            Input::Cgroup(CgroupFact { at: 1, id: 1, hierarchy: Hierarchy::V2, path: Some("/".into()) }),
            container(44, POD, 'a'),
            container(45, "99999999-2222-3333-4444-555555555555", 'b'),
            Input::Process(fact(&master(), "/usr/sbin/nginx", "nginx: master process nginx")),
            Input::Process(fact(&task(), "/usr/sbin/nginx", "nginx: worker process")),
            Input::Listener(ListenerFact {
                at: 2,
                netns: 7,
                ip: "0.0.0.0".parse().unwrap(),
                port: 80,
                inode: 5,
                holders: vec![master().key(), task().key()],
                closed: false,
            }),
            Input::Ready { at: READY },
        ];
        Node { inputs, next: 1 }
    }

    fn event(&mut self, at: u64, kind: EventKind) -> &mut Self {
        self.inputs.push(Input::Event(Event { id: EventId(self.next), at, cpu: 0, quality: 0, kind }));
        self.next += 1;
        self
    }

    fn signal(&mut self, at: u64, signal: u32, to: Task) -> &mut Self {
        self.signal_by(at, signal, to, 0)
    }

    fn signal_by(&mut self, at: u64, signal: u32, target: Task, code: i32) -> &mut Self {
        let sender = Task { tgid: 999, pid: 999, ns_pid: 999, cgroup: 1, comm: "kill".into(), ..host() };
        let info = if code == SI_KERNEL { SigInfo::Kernel } else { SigInfo::Real };
        let signal = SignalGenerated { signal, code, si_pid: 0, info, result: 0, group: true, sender, target };
        self.event(at, EventKind::SignalGenerated(signal))
    }

    fn listener_closes(&mut self, at: u64, by: Task) -> &mut Self {
        let tuple = Tuple {
            local_ip: "0.0.0.0".parse().unwrap(),
            remote_ip: "0.0.0.0".parse().unwrap(),
            remote_port: 0,
            ..state().tuple
        };
        let s = TcpState {
            oldstate: tcp::LISTEN,
            newstate: tcp::CLOSE,
            side: Side::Listener,
            sk: 900,
            task: by,
            tuple,
            ..state()
        };
        self.event(at, EventKind::TcpState(s))
    }

    fn said(&mut self, all: bool) -> Vec<Incident> {
        self.inputs.push(Input::Stopped { at: 10_000 * S });
        let mut engine = Engine::new(EngineOptions { include_not_the_server: all });
        let outputs = self.inputs.iter().flat_map(|i| engine.feed(i));
        outputs
            .filter_map(|o| match o {
                Output::Incident(i) => Some(*i),
                Output::Stop(_) => None,
            })
            .collect()
    }
}

/// As a scan reads it: a title is one argument, else spaces part them.
fn fact(t: &Task, exe: &str, argv: &str) -> ProcessFact {
    ProcessFact {
        at: 2,
        key: t.key(),
        ppid: t.ppid,
        ns_pid: t.ns_pid,
        pidns: t.pidns,
        netns: t.netns,
        uid: t.uid,
        comm: t.comm.clone(),
        exe: exe.into(),
        argv: if argv.contains(": ") { vec![argv.into()] } else { argv.split(' ').map(str::to_owned).collect() },
        cgroup: t.cgroup,
        cgroup_v1: 0,
        sig_ign: 0,
        sig_cgt: 0,
    }
}

/// Known from the scan, with the others.
fn known(node: &mut Node, t: &Task, exe: &str, argv: &str) {
    let ready = node.inputs.iter().position(|i| matches!(i, Input::Ready { .. })).unwrap();
    node.inputs.insert(ready, Input::Process(fact(t, exe, argv)));
}

fn host() -> Task {
    Task { cgroup: 1, netns: 1, pidns: 1, ..task() }
}

fn master() -> Task {
    Task { tgid: 8593, pid: 8593, ns_pid: 1, ppid: 8500, start_ns: 4 * S, ..task() }
}

fn syn_refused() -> EventKind {
    EventKind::ResetSent(ResetSent { in_flags: tcp_flags::SYN, in_len: 0, digest: None, ..late_data(0, 0) })
}

/// 200 bytes for a connection that the worker closed at `closed`, whose next byte was `expected`.
fn late_data(closed: u64, expected: u32) -> ResetSent {
    ResetSent {
        sk: 0,
        sk_cgroup: 0,
        tuple: state().tuple,
        reason: Some(1),
        socket: ResetSocket::None,
        active: false,
        state: 0,
        accepted: false,
        port_known: true,
        in_flags: tcp_flags::ACK | tcp_flags::PSH,
        in_len: 200,
        in_seq: 5_000,
        in_ack: 0,
        rcv_nxt: 0,
        copied_seq: 0,
        bytes_received: 0,
        bytes_sent: 0,
        digest: Some(Digest {
            at: closed,
            sk_cgroup: 44,
            bytes_received: 79,
            bytes_sent: 600,
            start_ns: task().start_ns,
            tgid: task().tgid,
            flags: 0,
            newstate: tcp::FIN_WAIT1,
            reported: false,
            half_closed: false,
            rcv_nxt: expected,
        }),
        task: host(),
    }
}

fn exiting(t: Task) -> Task {
    Task { flags: Task::PF_EXITING, ..t }
}

fn causes(incidents: &[Incident]) -> Vec<Cause> {
    incidents.iter().map(|i| i.cause).collect()
}

/// Nothing lowers it but that the pod may stay.
fn or_restart(i: &Incident) -> bool {
    i.confidence.value == 0.9 && i.missing.iter().any(|m| m.fact == "pod-stop")
}

#[test]
fn a_refused_connection_after_a_stop_signal_is_the_race() {
    let mut node = Node::new();
    node.signal(200 * S, 3, master()).listener_closes(200 * S + 1, task()).event(201 * S, syn_refused());
    let said = node.said(false);
    assert_eq!(causes(&said), [Cause::EndpointRace]);
    assert!(or_restart(&said[0]), "{:?}", said[0].confidence);
}

/// The kernel gives the inode number of a dead pod's network namespace to the next one at once.
#[test]
fn a_port_that_the_next_pod_opens_in_a_reused_number_is_no_restart() {
    let value = |cgroup| {
        let opener = Task { tgid: 9_000, pid: 9_000, ppid: 8_999, cgroup, start_ns: 201 * S, ..task() };
        let any = "0.0.0.0".parse().unwrap();
        let opens = TcpState {
            oldstate: tcp::CLOSE,
            newstate: tcp::LISTEN,
            side: Side::Listener,
            sk: 901,
            sk_cgroup: cgroup,
            tuple: Tuple { local_ip: any, remote_ip: any, remote_port: 0, ..state().tuple },
            task: opener,
            ..state()
        };
        let mut node = Node::new();
        node.signal(200 * S, 3, master()).listener_closes(200 * S + 1, task()).event(201 * S, syn_refused());
        node.event(201 * S + S / 3, EventKind::TcpState(opens));
        let said = node.said(false);
        assert_eq!(causes(&said), [Cause::EndpointRace]);
        said[0].confidence.value
    };
    assert_eq!((value(44), value(45)), (0.6, 0.9), "(its own pod, the next one)");
}

#[test]
fn a_new_pod_in_a_reused_network_namespace_is_not_blamed_on_the_dead_one() {
    let mut node = Node::new();
    let other = Task { tgid: 9_000, pid: 9_000, cgroup: 45, start_ns: 205 * S, comm: "pause".into(), ..task() };
    let exec = Execed { task: other, old_pid: 9_000, path: "/pause".into(), argv: Vec::new() };
    node.signal(200 * S, 15, master()).listener_closes(200 * S + 1, exiting(master()));
    node.event(205 * S, EventKind::Execed(exec)).event(206 * S, syn_refused());
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn a_killed_server_did_not_stop_listening_on_a_signal() {
    let mut node = Node::new();
    node.signal_by(200 * S, 9, master(), SI_KERNEL).listener_closes(200 * S + 1, exiting(master()));
    node.event(201 * S, syn_refused());
    assert_eq!(causes(&node.said(false)), [Cause::Unexplained]);
}

#[test]
fn late_data_after_a_quit_is_the_race_on_shutdown() {
    let mut node = Node::new();
    node.signal(200 * S, 3, master());
    node.event(200 * S + 40_000_000, EventKind::ResetSent(late_data(200 * S + 1_000_000, 5_000)));
    let said = node.said(false);
    assert_eq!(causes(&said), [Cause::KeepaliveRaceOnShutdown]);
    assert_eq!(said[0].confidence.level, Level::Certain);
}

#[test]
fn a_close_long_after_the_signal_has_reasons_of_its_own() {
    let mut node = Node::new();
    node.signal(200 * S, 3, master());
    node.event(230 * S + 40_000_000, EventKind::ResetSent(late_data(230 * S, 5_000)));
    let said = node.said(false);
    assert!(said.iter().all(|i| i.confidence.level == Level::Possible), "{said:#?}");
}

#[test]
fn a_port_that_came_round_again_hides_no_lost_handshake() {
    let said = |at: u64, expected: u32| {
        let mut node = Node::new();
        node.signal(200 * S, 3, master()).listener_closes(200 * S + 1_000_000, task());
        // The handshake's last ACK.
        let ack = ResetSent { in_flags: tcp_flags::ACK, in_len: 0, ..late_data(at, expected) };
        node.event(200 * S + 2_000_000, EventKind::ResetSent(ack)).said(false)
    };
    let lost = said(195 * S, 4_000_000_000);
    assert_eq!(causes(&lost), [Cause::NginxAcceptQueueDropped]);
    assert_eq!((lost[0].mechanism, lost[0].sub_cause.as_deref()), (Mechanism::HandshakeLost, Some("handshake")));
    // An ACK of the connection that was closed, or of a moment before its end.
    assert_eq!(causes(&said(195 * S, 5_000)), []);
    assert_eq!(causes(&said(195 * S, 5_001)), []);
    assert_eq!(causes(&said(100 * S, 5_000)), []);
}

#[test]
fn an_old_digest_of_the_same_addresses_is_not_this_connection() {
    let mut node = Node::new();
    node.event(200 * S, EventKind::ResetSent(late_data(100 * S + 1, 5_000)));
    // Close in time, but elsewhere in sequence space.
    node.event(201 * S, EventKind::ResetSent(late_data(200 * S, 3_000_000_000)));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn the_rest_of_an_upload_after_a_lingering_close_is_no_request() {
    let mut node = Node::new();
    let mut reset = late_data(200 * S, 5_000);
    reset.digest.as_mut().unwrap().half_closed = true;
    node.event(200 * S + 1, EventKind::ResetSent(reset));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn without_any_signal_it_is_the_idle_race_and_never_certain() {
    let mut node = Node::new();
    node.event(200 * S + 40_000_000, EventKind::ResetSent(late_data(200 * S, 5_000)));
    let said = node.said(false);
    assert_eq!(causes(&said), [Cause::KeepaliveRace]);
    assert_eq!(said[0].confidence.level, Level::Likely);
}

#[test]
fn a_reload_of_long_ago_does_not_turn_deliberate_closes_into_losses() {
    let new_worker = Task { tgid: 8700, pid: 8700, start_ns: 160 * S, ..task() };
    let mut node = Node::new();
    node.signal(150 * S, 1, master());
    node.event(160 * S, EventKind::Forked { parent: master(), child: new_worker.clone() });
    let returned_444 = TcpState { bytes_sent: 0, task: new_worker, ..state() };
    node.event(200 * S, EventKind::TcpState(returned_444));
    assert_eq!(causes(&node.said(true)), [Cause::DeliberateClose]);
}

#[test]
fn a_worker_that_crashed_after_the_term_is_not_the_fast_shutdown() {
    let mut node = Node::new();
    node.signal(200 * S, 15, master());
    node.event(200 * S + 1_000, EventKind::Exited { task: exiting(task()), code: 11 });
    let cut = TcpState { bytes_sent: 0, task: exiting(task()), ..state() };
    node.event(200 * S + 2_000, EventKind::TcpState(cut));
    let said = node.said(false);
    assert_eq!(causes(&said), [Cause::NginxWorkerCrash]);
    assert_eq!(said[0].confidence.level, Level::Likely, "who sent the signal that killed it was not seen");
}

#[test]
fn a_signal_to_another_pods_nginx_means_nothing_here() {
    let mut node = Node::new();
    let foreign = Task { tgid: 7_000, pid: 7_000, cgroup: 45, netns: 8, start_ns: 3 * S, ..task() };
    node.signal(200 * S, 15, foreign);
    let cut = TcpState { bytes_sent: 0, task: exiting(task()), ..state() };
    node.event(200 * S + 2_000, EventKind::TcpState(cut));
    assert_eq!(causes(&node.said(false)), [Cause::Unexplained]);
}

#[test]
fn one_lost_request_is_one_incident() {
    let mut node = Node::new();
    node.signal(200 * S, 15, master());
    node.event(200 * S + 1_000, EventKind::Exited { task: exiting(task()), code: 0 });
    let cut = TcpState { task: exiting(task()), lrcvtime: 1_001, ..state() };
    node.event(200 * S + 2_000, EventKind::TcpState(cut));
    // The rest of the same request, which its close had already cost.
    let rest = late_data(200 * S + 2_000, 5_000);
    node.event(200 * S + 3_000, EventKind::ResetSent(rest.clone())).event(200 * S + 4_000, EventKind::ResetSent(rest));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::NginxFastShutdown], "{said:#?}");
    assert_eq!(said[0].confidence.level, Level::Certain, "{:?}", said[0].confidence);
}

#[test]
fn a_connection_thrown_out_while_its_data_arrives_is_one_incident() {
    let mut node = Node::new();
    node.signal(200 * S, 15, master()).listener_closes(200 * S + 1_000, exiting(master()));
    let data = ResetSent { digest: None, ..late_data(0, 0) };
    node.event(200 * S + 2_000, EventKind::ResetSent(data));
    let dropped = TcpState {
        newstate: tcp::CLOSE,
        accepted: false,
        bytes_received: 0,
        bytes_sent: 0,
        task: exiting(master()),
        ..state()
    };
    node.event(200 * S + 26_000, EventKind::TcpState(dropped));
    assert_eq!(causes(&node.said(true)), [Cause::NginxAcceptQueueDropped]);
}

#[test]
fn keys_of_processes_survive_pid_reuse() {
    let again = Task { start_ns: 150 * S, ..task() };
    assert_ne!(again.key(), ProcKey { ..task().key() });
}

/// `t` is started as an nginx, from outside of its container.
fn starts(node: &mut Node, at: u64, t: &Task) {
    let exec = Execed { task: t.clone(), old_pid: t.pid, path: "/usr/sbin/nginx".into(), argv: vec!["nginx".into()] };
    node.event(at, EventKind::Forked { parent: host(), child: t.clone() }).event(at + 1, EventKind::Execed(exec));
}

fn opens(node: &mut Node, at: u64, by: &Task) {
    let any = "0.0.0.0".parse().unwrap();
    let tuple = Tuple { local_ip: any, remote_ip: any, remote_port: 0, ..state().tuple };
    let (oldstate, newstate, side) = (tcp::CLOSE, tcp::LISTEN, Side::Listener);
    let opened =
        TcpState { sk: 901, sk_cgroup: by.cgroup, tuple, oldstate, newstate, side, task: by.clone(), ..state() };
    node.event(at, EventKind::TcpState(opened));
}

#[test]
fn refused_while_nginx_is_restarted_in_its_pod() {
    let again = Task { tgid: 900, pid: 900, start_ns: 201 * S, ..master() };
    let mut node = Node::new();
    node.signal(200 * S, 15, master()).listener_closes(200 * S + 1, exiting(master()));
    node.event(200 * S + 600_000_000, syn_refused());
    starts(&mut node, 201 * S, &again);
    node.event(201 * S + 2, syn_refused());
    opens(&mut node, 201 * S + 20_000_000, &again);
    let said = node.said(false);
    let kinds: Vec<_> = said.iter().map(|i| (i.cause, i.sub_cause.as_deref(), i.confidence.level)).collect();
    assert_eq!(kinds, [(Cause::NginxNotListening, Some("restarting"), Level::Certain); 2], "{said:#?}");
    assert_eq!(said[0].also_matched, [Cause::EndpointRace]);
    assert!(said[0].chain.iter().any(|l| l.kind == "exec"));
}

#[test]
fn a_stop_of_the_whole_pod_is_no_restart() {
    let said = |uid: &str, told: u64| {
        let mut node = Node::new();
        let id: String = std::iter::repeat_n('c', 64).collect();
        let path = Some(format!("/kubepods/burstable/pod{uid}/{id}"));
        node.inputs.insert(2, Input::Cgroup(CgroupFact { at: 1, id: 46, hierarchy: Hierarchy::V2, path }));
        let php = Task { tgid: 8_700, pid: 8_700, pidns: 9, cgroup: 46, start_ns: 4 * S, ..master() };
        known(&mut node, &php, "/usr/sbin/php-fpm8.2", "php-fpm");
        node.signal(200 * S, 15, master()).listener_closes(200 * S + 1, exiting(master()));
        node.signal(told, 15, php).event(200 * S + 50_000_000, syn_refused());
        let said = node.said(false);
        let race = said.into_iter().find(|i| i.cause == Cause::EndpointRace).unwrap();
        (race.confidence.level, race.chain.last().unwrap().rule == "beside-the-stop-of-the-pod", or_restart(&race))
    };
    assert_eq!(said(POD, 200 * S + 2), (Level::Certain, true, false));
    assert_eq!(said("99999999-2222-3333-4444-555555555555", 200 * S + 2), (Level::Likely, false, true), "another pod");
    assert_eq!(said(POD, 150 * S), (Level::Likely, false, true), "stopped before, by itself");
}

#[test]
fn an_nginx_started_in_another_pod_is_no_restart() {
    let other = Task { tgid: 900, pid: 900, cgroup: 45, netns: 8, start_ns: 200 * S + 10, ..master() };
    let mut node = Node::new();
    node.signal(200 * S, 15, master()).listener_closes(200 * S + 1, exiting(master()));
    starts(&mut node, 200 * S + 10, &other);
    node.event(200 * S + 500_000_000, syn_refused());
    let said = node.said(false);
    assert_eq!(causes(&said), [Cause::EndpointRace]);
    assert!(or_restart(&said[0]), "{:?}", said[0].confidence);
}

/// A request of `age_ms` that the worker closed `since_ms` after the QUIT to its master, to end right afterwards.
fn closed_while_draining(since_ms: u64, age_ms: u64, unread: bool) -> Incident {
    let (mut node, at) = (Node::new(), 200 * S + since_ms * 1_000_000);
    // INITIAL_JIFFIES is -300 s; HZ is 1000 here.
    let jiffies = ((at / 1_000_000) as u32).wrapping_sub(300_000);
    let (newstate, copied_seq) = if unread { (tcp::CLOSE, 1000) } else { (tcp::FIN_WAIT1, 1080) };
    let lrcvtime = jiffies.wrapping_sub(age_ms as u32);
    let s = TcpState { bytes_sent: 0, newstate, copied_seq, jiffies, lrcvtime, ..state() };
    node.signal(200 * S, 3, master()).event(at, EventKind::TcpState(s));
    node.event(at + 1_000_000, EventKind::Exited { task: exiting(task()), code: 0 });
    node.said(true).pop().unwrap()
}

#[test]
fn a_shutdown_timeout_closes_what_had_come_before_it() {
    let said = |since, age, unread| {
        let one = closed_while_draining(since, age, unread);
        (one.cause, one.confidence.value)
    };
    assert_eq!(said(1000, 1300, false), (Cause::WorkerShutdownTimeout, 0.97));
    assert_eq!(said(100, 130, false), (Cause::WorkerShutdownTimeout, 0.9), "a short one is told, less surely");
    assert_ne!(said(1000, 300, false).0, Cause::WorkerShutdownTimeout, "a request that came after the signal");
    assert_ne!(said(100, 60, false).0, Cause::WorkerShutdownTimeout, "likewise");
    assert_ne!(said(5, 5, false).0, Cause::WorkerShutdownTimeout, "in the turn of the signal itself");
    assert_ne!(said(100, 130, true).0, Cause::WorkerShutdownTimeout, "never read");
}

#[test]
fn the_ipv4_socket_of_two_is_gone_a_moment_before_the_other() {
    let mut node = Node::new();
    let both = Tuple { local_ip: "::".parse().unwrap(), remote_ip: "::".parse().unwrap(), ..state().tuple };
    let opens = TcpState { oldstate: tcp::CLOSE, newstate: tcp::LISTEN, side: Side::Listener, sk: 901, ..state() };
    node.event(READY + S, EventKind::TcpState(TcpState { tuple: both, task: master(), ..opens }));
    node.signal(200 * S, 3, master())
        .listener_closes(200 * S + 1_000_000, task())
        .event(200 * S + 1_010_000, syn_refused());
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::EndpointRace]);
    assert!(or_restart(&said[0]), "{:?}", said[0].confidence);
}

#[test]
fn a_half_open_connection_goes_with_its_listener_however_it_ends() {
    let said = |newstate: u8| {
        let mut node = Node::new();
        node.signal(200 * S, 15, master());
        node.event(200 * S + 1_000, EventKind::Exited { task: exiting(task()), code: 0 });
        node.listener_closes(200 * S + 2_000, exiting(task()));
        let digest = Digest {
            bytes_received: 0,
            bytes_sent: 0,
            start_ns: 50 * S,
            tgid: 4_444,
            newstate,
            ..late_data(200 * S + 4_000, 5_000).digest.unwrap()
        };
        let late = ResetSent { digest: Some(digest), ..late_data(200 * S + 4_000, 5_000) };
        node.event(200 * S + 20_000, EventKind::ResetSent(late));
        causes(&node.said(true))
    };
    assert_eq!(said(tcp::FIN_WAIT1), [Cause::NginxAcceptQueueDropped]);
    assert_eq!(said(tcp::CLOSE), [Cause::NginxAcceptQueueDropped]);
}

#[test]
fn a_port_that_is_used_again_at_once_is_another_connection() {
    let mut node = Node::new();
    node.signal(200 * S, 15, master());
    node.event(200 * S + 1_000, EventKind::Exited { task: exiting(task()), code: 0 });
    let cut = TcpState { task: exiting(task()), lrcvtime: 1_001, ..state() };
    let queued = TcpState { sk: cut.sk + 64, newstate: tcp::CLOSE, accepted: false, task: master(), ..cut.clone() };
    node.event(200 * S + 2_000, EventKind::TcpState(cut));
    node.listener_closes(200 * S + 3_000_000, master());
    // Thrown out of the queue, and the reset that tells the client so: one more request.
    let told = ResetSent {
        sk: queued.sk,
        socket: ResetSocket::Full,
        active: true,
        bytes_received: queued.bytes_received,
        digest: None,
        ..late_data(0, 0)
    };
    node.event(200 * S + 3_001_000, EventKind::TcpState(queued)).event(200 * S + 3_002_000, EventKind::ResetSent(told));
    assert_eq!(causes(&node.said(true)), [Cause::NginxFastShutdown, Cause::NginxAcceptQueueDropped]);
}
