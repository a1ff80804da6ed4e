//! Hand-made inputs, incidents and stops that fill every field.

use std::collections::BTreeMap;
use std::net::IpAddr;
use why502::model::event::*;
use why502::model::incident::*;
use why502::model::input::*;
use why502::model::{Event, EventId, EventKind, Input, Task, Tuple};

pub(crate) const BOOT_TO_WALL: i64 = 1_795_356_000_000_000_000;
pub(crate) const CONTAINER: &str = "3f2a9c41d0e7b5a6978812345678abcdef0123456789abcdef0123456789abcd";

pub(crate) fn task(comm: &str, tgid: u32) -> Task {
    Task {
        tgid,
        pid: tgid,
        ns_pid: 1,
        ppid: 1,
        uid: 0,
        pidns: 4_026_532_300,
        netns: 4_026_532_210,
        flags: 0,
        cgroup: 44,
        cgroup_v1: 0,
        start_ns: 1_000_000_000,
        comm: comm.into(),
    }
}

pub(crate) fn tuple() -> Tuple {
    Tuple {
        local_ip: IpAddr::from([10, 0, 3, 7]),
        local_port: 80,
        remote_ip: IpAddr::from([10, 0, 9, 2]),
        remote_port: 51514,
        netns: 4_026_532_210,
    }
}

pub(crate) fn digest() -> Digest {
    Digest {
        at: 90,
        sk_cgroup: 44,
        bytes_received: 79,
        bytes_sent: 600,
        start_ns: 1_000_000_000,
        tgid: 8597,
        flags: 4,
        newstate: tcp::FIN_WAIT1,
        reported: true,
        half_closed: false,
        rcv_nxt: 2,
    }
}

pub(crate) fn tcp_state() -> TcpState {
    TcpState {
        sk: 0xfeed_beef_dead_cafe,
        sk_cgroup: 44,
        tuple: tuple(),
        family: 2,
        oldstate: tcp::ESTABLISHED,
        newstate: tcp::FIN_WAIT1,
        side: Side::Server,
        accepted: true,
        bytes_received: 79,
        bytes_sent: 600,
        bytes_acked: 600,
        rcv_nxt: 80,
        copied_seq: 80,
        rcv_wup: 80,
        write_seq: 601,
        snd_una: 601,
        snd_nxt: 601,
        lsndtime: 10,
        lrcvtime: 20,
        jiffies: 30,
        total_retrans: 0,
        pingpong: 0,
        sk_shutdown: 3,
        sk_err: 0,
        ack_backlog: 0,
        max_ack_backlog: 0,
        task: Task { flags: Task::PF_EXITING, ..task("nginx", 8597) },
    }
}

pub(crate) fn reset_sent(socket: ResetSocket) -> ResetSent {
    ResetSent {
        sk: 7,
        sk_cgroup: 44,
        tuple: tuple(),
        reason: Some(3),
        socket,
        active: socket == ResetSocket::Full,
        state: if socket == ResetSocket::Full { tcp::ESTABLISHED } else { 0 },
        accepted: false,
        port_known: true,
        in_flags: tcp_flags::SYN,
        in_len: 0,
        in_seq: 1,
        in_ack: 0,
        rcv_nxt: 80,
        copied_seq: 1,
        bytes_received: 79,
        bytes_sent: 0,
        digest: (socket == ResetSocket::None).then(digest),
        task: task("nginx", 8597),
    }
}

fn notice() -> TcpNotice {
    TcpNotice {
        sk: 9,
        sk_cgroup: 63,
        tuple: tuple(),
        state: tcp::SYN_SENT,
        side: Side::Client,
        bytes_received: 0,
        bytes_sent: 0,
        total_retrans: 1,
        first_sent: Some(41),
        first_received: None,
    }
}

pub(crate) fn signal(info: SigInfo) -> SignalGenerated {
    SignalGenerated {
        signal: 15,
        code: if info == SigInfo::Kernel { SI_KERNEL } else { SI_USER },
        si_pid: 0,
        info,
        result: 0,
        group: true,
        sender: Task { pidns: 4_026_531_836, ns_pid: 8632, cgroup: 1, ..task("runc", 8632) },
        target: task("nginx", 8593),
    }
}

/// Every kind of event, and every value of the enums in them.
pub(crate) fn events() -> Vec<Event> {
    let mut kinds = vec![
        EventKind::SignalDelivered(SignalDelivered {
            signal: 15,
            code: 0,
            handler: 2,
            sa_flags: 0x1400_0000,
            task: task("nginx", 8593),
        }),
        EventKind::Forked { parent: task("nginx", 8593), child: Task { ns_pid: 2, ..task("nginx", 8597) } },
        EventKind::Execed(Execed {
            task: task("nginx", 8593),
            old_pid: 8593,
            path: "/usr/sbin/nginx".into(),
            argv: vec!["nginx".into(), "-g".into(), "daemon off;\x1b[2J".into()],
        }),
        EventKind::Exited { task: task("nginx", 8597), code: 9 },
        EventKind::TcpState(tcp_state()),
        EventKind::TcpState(TcpState {
            side: Side::Listener,
            oldstate: tcp::LISTEN,
            newstate: tcp::CLOSE,
            ..tcp_state()
        }),
        EventKind::TcpState(TcpState { side: Side::Client, sk_err: 104, accepted: false, rcv_nxt: 89, ..tcp_state() }),
        EventKind::ResetReceived(notice()),
        EventKind::SynRetransmitted(notice()),
        EventKind::OomVictim { task: task("php-fpm", 8600) },
        EventKind::ResetSent(ResetSent { reason: None, ..reset_sent(ResetSocket::None) }),
        EventKind::UnixDropped(UnixDropped {
            server_sk: 7,
            client_sk: 8,
            server_cgroup: 44,
            client_cgroup: 45,
            netns: 4_026_532_210,
            embryo: false,
            len: 552,
            path: "/run/php.sock".into(),
            task: task("php-fpm8.2", 8600),
        }),
        EventKind::UnixRefused(UnixRefused { error: 111, path: "/run/php.sock".into(), task: task("nginx", 8597) }),
        EventKind::NginxLogged(NginxLogged {
            task: task("nginx", 8597),
            level: 4,
            errno: 111,
            format: "connect() \u{1b}[2Jfailed".into(),
            connection: Some(17),
        }),
        EventKind::NginxErrorPage(NginxErrorPage {
            task: task("nginx", 8597),
            status: 502,
            connection: Some(17),
            client: Some(tuple()),
        }),
    ];
    for info in [SigInfo::None, SigInfo::Kernel, SigInfo::Real] {
        kinds.push(EventKind::SignalGenerated(signal(info)));
    }
    for socket in [ResetSocket::None, ResetSocket::Full, ResetSocket::TimeWait, ResetSocket::Request] {
        kinds.push(EventKind::ResetSent(reset_sent(socket)));
    }
    let event = |(n, kind)| Event {
        id: EventId(n as u64 + 1),
        at: 202_000_000_000 + n as u64 * 1_500,
        cpu: 1,
        quality: 0,
        kind,
    };
    let mut events: Vec<Event> = kinds.into_iter().enumerate().map(event).collect();
    for event in &mut events {
        if matches!(event.kind, EventKind::Execed(_)) {
            event.quality = u16::MAX;
        }
    }
    events
}

pub(crate) fn started() -> Started {
    let hook = |hook: &str, state| HookStatus { hook: hook.into(), state };
    Started {
        at: 200_000_000_000,
        version: "0.1.0".into(),
        node: "node-1".into(),
        boot_id: "8f1f6a0c-0000-4000-8000-000000000001".into(),
        kernel: "6.12.43".into(),
        hooks: vec![
            hook("signal_generate", HookState::Attached),
            hook("mark_victim", HookState::Skipped { why: "not wanted".into() }),
            hook("tcp_send_reset", HookState::Failed { why: "no such tracepoint".into() }),
        ],
        degraded: vec![Degraded { id: "no-tracefs".into(), text: "tracefs is not mounted".into() }],
        reset_reasons: vec![(1, "NO_SOCKET".into())],
        host_netns: 4_026_531_840,
        host_pidns: 4_026_531_836,
    }
}

/// A small observation with every kind of input.
pub(crate) fn inputs() -> Vec<Input> {
    let started = started();
    let at = started.at;
    let key = ProcKey { tgid: 8593, start_ticks: 100 };
    let mut inputs = vec![
        Input::Started(started),
        Input::Clock { at, wall_ns: BOOT_TO_WALL + at as i64 },
        Input::Cgroup(CgroupFact {
            at,
            id: 44,
            hierarchy: Hierarchy::V2,
            path: Some(format!("/kubepods/pod11111111-2222-3333-4444-555555555555/{CONTAINER}")),
        }),
        Input::Cgroup(CgroupFact { at, id: 45, hierarchy: Hierarchy::V1, path: None }),
        Input::Process(ProcessFact {
            at,
            key,
            ppid: 1,
            ns_pid: 1,
            pidns: 4_026_532_300,
            netns: 4_026_532_210,
            uid: 0,
            comm: "nginx".into(),
            exe: "/usr/sbin/nginx".into(),
            argv: vec!["nginx: master process".into()],
            cgroup: 44,
            cgroup_v1: 0,
            sig_ign: 0,
            sig_cgt: u64::MAX,
        }),
        Input::Listener(ListenerFact {
            at,
            netns: 4_026_532_210,
            ip: IpAddr::from([0u16; 8]),
            port: 80,
            inode: 77,
            holders: vec![key],
            closed: false,
        }),
        Input::UnixListener(UnixListenerFact {
            at,
            netns: 4_026_532_210,
            path: "/run/php\u{1b}[2J.sock".into(),
            inode: 78,
            holders: vec![key],
        }),
        Input::Ready { at: at + 1_000_000 },
    ];
    inputs.extend(events().into_iter().map(Input::Event));
    let kinds = [
        LossKind::RingFull,
        LossKind::Recursion,
        LossKind::MapFull,
        LossKind::Undecodable,
        LossKind::BadArgument,
        LossKind::Late,
        LossKind::Evicted,
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        let fact = LossFact { from: at, to: at + 9, hook: "tcp_send_reset".into(), kind, count: n as u64 + 1 };
        inputs.push(Input::Loss(fact));
    }
    inputs.push(Input::Spec(SpecFact {
        at,
        source: "pod.yaml".into(),
        pod_uid: None,
        workload: "Deployment/web".into(),
        container: "nginx".into(),
        pre_stop: Some(vec!["/bin/sh".into(), "-SIGQUIT".into(), "1".into()]),
        stop_signal: Some(3),
        grace_s: 40,
    }));
    inputs.extend(crate::samples_kube::facts(at));
    inputs.push(Input::StopCounters(StopCounters {
        at: 202_900_000_000,
        cgroup: 18,
        signal_at: 200_000_000_000,
        accepted_after: 3,
        last_accept: Some(202_100_000_000),
        answered_after: 0,
        last_answered: None,
    }));
    let probes = |state| {
        Input::NginxProbes(NginxProbesFact { at: 202_950_000_000, process: key, exe: "/usr/sbin/nginx".into(), state })
    };
    inputs.push(probes(NginxProbesState::Attached));
    inputs.push(probes(NginxProbesState::Detached { why: "9000 hits a second".into() }));
    inputs.push(probes(NginxProbesState::Failed { why: "no symbols".into() }));
    let level = |path: &str, limit, hits| MemoryLevel { path: path.into(), limit, hits, group: false };
    inputs.push(Input::Memory(MemoryFact {
        at: 202_950_000_000,
        victim: 8597,
        hierarchy: Hierarchy::V2,
        levels: vec![level("/kubepods/pod1/c", Some(64 << 20), 1), level("/kubepods/pod1", None, 0)],
        complete: true,
    }));
    inputs.push(Input::Tick { at: 203_000_000_000 });
    inputs.push(Input::Stopped { at: 204_500_000_000 });
    inputs
}

fn pod() -> Pod {
    Pod {
        namespace: Some("shop".into()),
        name: Some("web-7d9f-x2k1".into()),
        uid: "11111111-2222-3333-4444-555555555555".into(),
        workload: Some("Deployment/web".into()),
    }
}

fn container() -> Container {
    Container { id: CONTAINER.into(), name: Some("nginx".into()), runtime: Some("containerd".into()) }
}

pub(crate) fn incident() -> Incident {
    let process =
        |pid, host_pid, role: &str| Some(ProcessRef { pid, host_pid, comm: "nginx".into(), role: Some(role.into()) });
    Incident {
        kind: "incident".into(),
        schema: SCHEMA,
        id: "i-8f1f6a0c-17".into(),
        rev: 1,
        state: "final".into(),
        node: "node-1".into(),
        boot_id: "8f1f6a0c-0000-4000-8000-000000000001".into(),
        at: "2026-11-22T14:03:22.118204113Z".into(),
        decided_at: "2026-11-22T14:03:24.118204113Z".into(),
        at_boot_ns: 202_118_204_113,
        outcome: Outcome::Unanswered,
        mechanism: Mechanism::ClosedInFlight,
        cause: Cause::NginxFastShutdown,
        sub_cause: None,
        trigger: Trigger::PodDeleted,
        also_matched: vec![Cause::EndpointRace],
        response: Response { status: None, source: "none".into(), bytes: 0 },
        requests: Requests { count: 1, bound: Bound::Exact },
        requester: Requester {
            ip: Some(IpAddr::from([10, 0, 9, 2])),
            port: Some(51514),
            kind: "edge".into(),
            container: None,
            pod: None,
            known_by: Some("sequence-numbers".into()),
        },
        server: Server { ip: Some(IpAddr::from([10, 0, 3, 7])), port: Some(80), path: None, netns: 4_026_532_210 },
        age_ms: Some(2412),
        stop: Some("s-8f1f6a0c-12".into()),
        pod: Some(pod()),
        container: Some(container()),
        confidence: Confidence { value: 0.98, level: Level::Certain, lowered_by: vec![] },
        summary: "nginx was stopped with SIGTERM, its fast shutdown: this request was cut after 2.4 s".into(),
        chain: vec![
            Link {
                id: "e17".into(),
                at: "2026-11-22T14:03:22.118204113Z".into(),
                seen_at: None,
                offset_us: 0,
                kind: "tcp-state".into(),
                because: Some("e15".into()),
                rule: "closed-unanswered".into(),
                process: process(7, 8597, "nginx-worker"),
                text: "the exiting worker closed the connection from 10.0.9.2:51514: 79 bytes read, no answer sent"
                    .into(),
            },
            Link {
                id: "e15".into(),
                at: "2026-11-22T14:03:22.116404113Z".into(),
                seen_at: None,
                offset_us: -1_800,
                kind: "exited".into(),
                because: Some("e12".into()),
                rule: "worker-exit-after-master-signal".into(),
                process: process(7, 8597, "nginx-worker"),
                text: "nginx worker exited with 0".into(),
            },
            Link {
                id: "e12".into(),
                at: "2026-11-22T14:03:22.113204113Z".into(),
                seen_at: None,
                offset_us: -5_000,
                kind: "signal-generated".into(),
                because: Some("k3".into()),
                rule: "stop-signal".into(),
                process: process(1, 8593, "nginx-master"),
                text: "containerd (runc) sent SIGTERM to nginx master, PID 1 in the container".into(),
            },
            Link {
                id: "k3".into(),
                at: "2026-11-22T14:03:22.000000000Z".into(),
                seen_at: Some("2026-11-22T14:03:22.061204113Z".into()),
                offset_us: -118_204,
                kind: "pod-deleted".into(),
                because: None,
                rule: "pod-was-deleted".into(),
                process: None,
                text: "pod shop/web-7d9f-x2k1 was deleted, grace 30 s".into(),
            },
        ],
        advice: vec![
            Advice {
                id: "stopsignal-sigquit".into(),
                kind: "dockerfile".into(),
                target: "Dockerfile".into(),
                change: "STOPSIGNAL SIGQUIT".into(),
                value: None,
                unit: None,
                needs: vec!["prestop-sleep".into()],
                why: "SIGQUIT lets nginx finish the requests that it has".into(),
            },
            Advice {
                id: "prestop-sleep".into(),
                kind: "pod-spec".into(),
                target: "spec.containers[nginx].lifecycle.preStop".into(),
                change: "sleep before the stop signal".into(),
                value: Some(5),
                unit: Some("s".into()),
                needs: vec![],
                why: "new connections came for 3.1 s after the stop signal (n=12, 0.2 to 3.1 s)".into(),
            },
        ],
        missing: vec![Missing {
            fact: "pod-spec".into(),
            effect: "whether a preStop hook is configured is not known".into(),
        }],
        loss: Loss::default(),
    }
}

/// As little as an incident can hold.
pub(crate) fn bare_incident() -> Incident {
    Incident {
        cause: Cause::Unexplained,
        trigger: Trigger::Unknown,
        also_matched: vec![],
        age_ms: None,
        stop: None,
        pod: None,
        container: None,
        confidence: Confidence {
            value: 0.3,
            level: Level::Possible,
            lowered_by: vec!["events were lost".into(), "started late".into()],
        },
        chain: vec![],
        advice: vec![],
        loss: Loss { in_window: 3, by_hook: BTreeMap::from([("tcp_send_reset/ring-full".into(), 3)]) },
        ..incident()
    }
}

fn party(lane: Lane, host_pid: u32, comm: &str, role: &str) -> Party {
    Party { lane, process: ProcessRef { pid: 1, host_pid, comm: comm.into(), role: Some(role.into()) } }
}

pub(crate) fn stop() -> Stop {
    let phase = |name: &str, after_ms, event: Option<&str>, text: &str| Phase {
        name: name.into(),
        at: "2026-11-22T14:03:22.113204113Z".into(),
        at_boot_ns: 8_113_000_000 + after_ms * 1_000_000,
        until_boot_ns: (name == "deleted").then_some(8_114_000_000),
        after_ms,
        event: event.map(Into::into),
        text: text.into(),
    };
    Stop {
        kind: "stop".into(),
        schema: SCHEMA,
        id: "s-8f1f6a0c-12".into(),
        node: "node-1".into(),
        boot_id: "8f1f6a0c-0000-4000-8000-000000000001".into(),
        at: "2026-11-22T14:03:22.113204113Z".into(),
        ended_at: "2026-11-22T14:03:22.123204113Z".into(),
        trigger: Trigger::PodDeleted,
        pod: Some(pod()),
        container: Some(container()),
        server: "nginx".into(),
        signal: Some("SIGTERM".into()),
        in_flight: InFlight {
            at_signal: Some(12),
            answered: Some(9),
            cut: 3,
            drain_ms: Some(2100),
            longest_ms: Some(3100),
        },
        accepted_after: Some(After { count: 14, last_ms: Some(800) }),
        late: Some(After { count: 1, last_ms: Some(1400) }),
        grace: Some(Grace { ms: 30_000, source: "spec".into(), left_ms: 27_900 }),
        advice: incident().advice,
        phases: vec![
            phase("deleted", 0, Some("k3"), "pod shop/web-7d9f-x2k1 was deleted, grace 30 s"),
            phase("stop-signal", 0, Some("e12"), "runc sent SIGTERM to nginx master"),
            phase("listener-closed", 5, Some("e20"), "0.0.0.0:80 was closed"),
            phase("exit", 10, None, "nginx master exited with 0"),
        ],
        timeline: Timeline {
            signals: vec![Sent {
                event: "e12".into(),
                at_boot_ns: 8_113_000_000,
                signal: "SIGTERM".into(),
                ignored: false,
                from: party(Lane::Runtime, 8800, "runc", "runtime"),
                to: party(Lane::NginxMaster, 8593, "nginx", "nginx-master"),
            }],
            exits: vec![Ended {
                event: "e22".into(),
                at_boot_ns: 8_123_000_000,
                who: party(Lane::NginxMaster, 8593, "nginx", "nginx-master"),
                how: "exited with status 0".into(),
            }],
            cut: 0,
        },
        incidents: 4,
        by_cause: BTreeMap::from([("nginx-fast-shutdown".into(), 3), ("endpoint-race".into(), 1)]),
        missing: vec![],
    }
}
