//! php-fpm on a unix socket, by hand.

use super::{Node, POD, S, causes, exiting, fact, host, master, task};
use crate::model::event::{EventKind, Execed, SI_KERNEL, SigInfo, SignalGenerated, Task, UnixDropped, UnixRefused};
use crate::model::incident::{Mechanism, Outcome};
use crate::model::input::{CgroupFact, Hierarchy, UnixListenerFact};
use crate::model::{Cause, Incident, Input, Level};

const PATH: &str = "/run/php.sock";
const MS: u64 = 1_000_000;

/// php-fpm's container is the pod's second one.
const FPM_CGROUP: u64 = 46;

pub(super) fn fpm() -> Task {
    Task {
        tgid: 700,
        pid: 700,
        ns_pid: 1,
        ppid: 600,
        cgroup: FPM_CGROUP,
        start_ns: 4 * S,
        comm: "php-fpm8.2".into(),
        ..task()
    }
}

pub(super) fn child(n: u32) -> Task {
    Task { tgid: 700 + n, pid: 700 + n, ns_pid: 1 + n, ppid: 700, start_ns: 5 * S, ..fpm() }
}

/// The pod with a php-fpm of two children, whose path is known when `scanned`.
pub(super) fn pod(scanned: bool) -> Node {
    let mut node = Node::new();
    let id = "c".repeat(64);
    node.inputs.push(Input::Cgroup(CgroupFact {
        at: 3,
        id: FPM_CGROUP,
        hierarchy: Hierarchy::V2,
        path: Some(format!("/kubepods/burstable/pod{POD}/{id}")),
    }));
    for t in [fpm(), child(1), child(2)] {
        node.inputs.push(process(&t, "/usr/sbin/php-fpm8.2"));
    }
    if scanned {
        node.inputs.push(listens(PATH, &[fpm(), child(1), child(2)]));
    }
    node
}

fn process(t: &Task, exe: &str) -> Input {
    Input::Process(fact(t, exe, &t.comm))
}

fn listens(path: &str, holders: &[Task]) -> Input {
    let holders = holders.iter().map(Task::key).collect();
    Input::UnixListener(UnixListenerFact { at: 4, netns: task().netns, path: path.into(), inode: 9, holders })
}

pub(super) fn dropped(server_sk: u64, by: Task) -> UnixDropped {
    UnixDropped {
        server_sk,
        client_sk: server_sk + 1,
        server_cgroup: FPM_CGROUP,
        client_cgroup: task().cgroup,
        netns: task().netns,
        embryo: false,
        len: 552,
        path: PATH.into(),
        task: by,
    }
}

fn embryo(server_sk: u64, by: Task) -> EventKind {
    EventKind::UnixDropped(UnixDropped { client_sk: 0, len: 0, embryo: true, ..dropped(server_sk, by) })
}

pub(super) fn refused(error: u32) -> EventKind {
    EventKind::UnixRefused(UnixRefused { error, path: PATH.into(), task: task() })
}

impl Node {
    pub(super) fn inside(&mut self, at: u64, signal: u32, sender: Task, target: Task) -> &mut Self {
        let signal =
            SignalGenerated { signal, code: 0, si_pid: 1, info: SigInfo::Real, result: 0, group: true, sender, target };
        self.event(at, EventKind::SignalGenerated(signal))
    }
    pub(super) fn bytes(&mut self, at: u64, server_sk: u64, by: Task) -> &mut Self {
        self.event(at, EventKind::UnixDropped(dropped(server_sk, by)))
    }
    pub(super) fn exits(&mut self, at: u64, t: Task, code: u32) -> &mut Self {
        self.event(at, EventKind::Exited { task: exiting(t), code })
    }
    /// The whole php-fpm, in its order.
    fn ends(&mut self, at: u64) -> &mut Self {
        self.exits(at - 2, child(1), 0).exits(at - 1, child(2), 0).exits(at, fpm(), 0)
    }
}

pub(super) fn only(said: &[Incident]) -> &Incident {
    let [one] = said else { panic!("{said:#?}") };
    one
}

pub(super) fn rules(i: &Incident) -> Vec<&str> {
    i.chain.iter().map(|l| l.rule.as_str()).collect()
}

#[test]
fn a_child_ended_by_a_timeout_of_zero() {
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm());
    for c in [child(1), child(2)] {
        node.inside(200 * S + MS, 3, fpm(), c.clone()).inside(200 * S + 2 * MS, 15, fpm(), c);
    }
    // Two skbs of one request.
    node.exits(200 * S + 3 * MS, child(1), 15);
    node.bytes(200 * S + 3 * MS + 1, 50, exiting(child(1))).bytes(200 * S + 3 * MS + 2, 50, exiting(child(1)));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.confidence.level), (Cause::FpmControlTimeoutZero, Level::Certain), "{one:#?}");
    assert_eq!((one.outcome, one.mechanism), (Outcome::Unanswered, Mechanism::ClosedInFlight));
    assert_eq!(one.server.path.as_deref(), Some(PATH));
    assert_eq!(one.requester.container.as_deref(), Some("a".repeat(64).as_str()));
    assert_eq!(one.container.as_ref().map(|c| c.id.as_str()), Some("c".repeat(64).as_str()));
    assert!(one.missing.iter().any(|m| m.fact == "answer-bytes"), "{:?}", one.missing);
    assert!(one.chain[0].text.contains("(1104)"), "both skbs count: {}", one.chain[0].text);
}

#[test]
fn a_queued_request_dropped_by_a_master_that_cleans_up() {
    let mut node = pod(false);
    node.signal(200 * S, 3, fpm());
    node.bytes(203 * S, 50, fpm()).event(203 * S + 1_000, embryo(50, fpm()));
    node.bytes(203 * S + 2_000, 51, fpm()).event(203 * S + 3_000, embryo(51, fpm()));
    node.exits(203 * S + MS, fpm(), 0);
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::FpmAcceptQueueDropped; 2]);
    for one in &said {
        assert_eq!(one.confidence.level, Level::Certain, "{:?}", one.confidence);
        assert_eq!((one.outcome, one.mechanism), (Outcome::Refused, Mechanism::ResetInAcceptQueue));
        let want = ["unix-close-unread", "thrown-out-of-the-queue", "stop-signal-closes-the-listener"];
        assert_eq!(rules(one), want);
    }
}

#[test]
fn a_queued_request_dropped_by_the_exit_of_a_killed_php_fpm() {
    let mut node = pod(true);
    node.signal_by(200 * S, 9, fpm(), 0);
    node.exits(200 * S + 1, fpm(), 9);
    node.bytes(200 * S + 2, 50, exiting(fpm())).event(200 * S + 3, embryo(50, exiting(fpm())));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.mechanism), (Cause::ContainerKilled, Mechanism::ResetInAcceptQueue), "{one:#?}");
}

#[test]
fn what_php_fpm_closes_while_it_lives_on_is_its_decision() {
    let mut node = pod(true);
    node.signal(199 * S, 3, fpm());
    node.bytes(200 * S, 50, child(1)).bytes(201 * S, 51, fpm());
    // Too late to be of the same close.
    node.event(202 * S, embryo(51, fpm()));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn a_queued_connection_without_bytes_had_been_left_by_its_client() {
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm()).event(203 * S, embryo(50, fpm()));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn other_servers_on_unix_sockets_are_not_judged() {
    let mut node = pod(true);
    let other = Task { tgid: 800, pid: 800, comm: "gunicorn".into(), ..fpm() };
    node.inputs.push(process(&other, "/usr/bin/gunicorn"));
    node.signal(200 * S, 15, other.clone()).exits(200 * S + 1, other.clone(), 15);
    node.bytes(200 * S + 2, 50, exiting(other.clone())).event(200 * S + 3, embryo(50, exiting(other)));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn a_request_that_died_with_nginx_is_nginxs() {
    let mut node = pod(true);
    for t in [master(), task(), fpm(), child(1)] {
        node.signal_by(200 * S, 9, t, SI_KERNEL);
    }
    node.exits(200 * S + 1, child(1), 9).bytes(200 * S + 2, 50, exiting(child(1)));
    assert_eq!(causes(&node.said(true)), []);
}

#[test]
fn refused_after_a_stop() {
    for (scanned, level) in [(true, Level::Certain), (false, Level::Likely)] {
        let mut node = pod(scanned);
        node.signal(200 * S, 3, fpm()).ends(200 * S + 20 * MS);
        node.event(201 * S, refused(2));
        let said = node.said(true);
        let one = only(&said);
        assert_eq!((one.cause, one.sub_cause.as_deref()), (Cause::FpmNotListening, Some("stopped-first")), "{one:#?}");
        assert_eq!(one.confidence.level, level, "{:?}", one.confidence);
        assert_eq!((one.outcome, one.mechanism), (Outcome::Refused, Mechanism::UpstreamRefused));
        let want = ["unix-connect-failed", "socket-goes-with-its-process", "stop-signal-closes-the-listener"];
        assert_eq!(rules(one), want);
        assert_eq!(one.container.as_ref().map(|c| c.id.as_str()), Some("c".repeat(64).as_str()));
    }
}

#[test]
fn refused_between_the_unlink_and_the_exit() {
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm()).event(200 * S + 19 * MS, refused(2)).ends(200 * S + 20 * MS);
    let said = node.said(true);
    assert_eq!((causes(&said), only(&said).confidence.level), (vec![Cause::FpmNotListening], Level::Certain));
}

#[test]
fn refused_after_a_kill() {
    let mut node = pod(true);
    node.signal_by(200 * S, 9, fpm(), 0).exits(200 * S + 1, fpm(), 9).event(201 * S, refused(111));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::ContainerKilled], "{said:#?}");
}

#[test]
fn a_full_queue() {
    let mut node = pod(true);
    node.event(200 * S, refused(11));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.mechanism), (Cause::FpmListenQueueFull, Mechanism::UpstreamQueueFull));
    assert_eq!(one.confidence.level, Level::Certain, "{:?}", one.confidence);
}

#[test]
fn a_queue_that_fills_while_php_fpm_stops() {
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm()).exits(200 * S + MS, child(1), 0).event(201 * S, refused(11));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.sub_cause.as_deref()), (Cause::FpmAcceptQueueDropped, Some("full")));
    assert_eq!((one.also_matched.as_slice(), one.confidence.level), (&[Cause::FpmListenQueueFull][..], Level::Certain));

    // It had been full before.
    let mut node = pod(true);
    node.event(199 * S, refused(11)).signal(200 * S, 3, fpm());
    node.exits(200 * S + MS, child(1), 0).event(201 * S, refused(11));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::FpmListenQueueFull, Cause::FpmAcceptQueueDropped]);
    assert_eq!(said[1].confidence.level, Level::Likely);

    // All children are busy, and would be so without the signal.
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm()).event(201 * S, refused(11));
    let said = node.said(true);
    assert_eq!((causes(&said), only(&said).confidence.level), (vec![Cause::FpmListenQueueFull], Level::Likely));
}

#[test]
fn who_connects_and_why_it_fails_decide_what_is_judged() {
    let mut node = pod(true);
    let curl = Task { tgid: 900, pid: 900, comm: "curl".into(), start_ns: 6 * S, ..task() };
    let liar = Task { tgid: 901, pid: 901, comm: "nginx".into(), start_ns: 6 * S, ..task() };
    node.inputs.push(process(&curl, "/usr/bin/curl"));
    for t in [curl, liar] {
        node.event(200 * S, EventKind::UnixRefused(UnixRefused { error: 2, path: PATH.into(), task: t }));
    }
    // EACCES.
    node.event(200 * S, refused(13));
    assert_eq!(causes(&node.said(true)), []);
    // What nginx asks when it starts, whether or not a path of php-fpm is known.
    for scanned in [true, false] {
        let mut node = pod(scanned);
        let nscd = UnixRefused { error: 2, path: "/var/run/nscd/socket".into(), task: master() };
        node.event(200 * S, EventKind::UnixRefused(nscd));
        assert_eq!(causes(&node.said(true)), []);
    }
}

#[test]
fn a_path_alone_is_never_more_than_possible() {
    let mut node = Node::new();
    node.event(200 * S, refused(2)).event(201 * S, refused(11));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::FpmNotListening, Cause::FpmListenQueueFull]);
    for one in &said {
        assert_eq!(one.confidence.level, Level::Possible, "{:?}", one.confidence);
        assert!(one.missing.iter().any(|m| m.fact == "server-process"), "{:?}", one.missing);
    }
}

#[test]
fn the_same_path_in_another_pod_is_another_socket() {
    let mut node = Node::new();
    // Its pod uid is another one, its network namespace has the same number.
    let foreign = Task { cgroup: 45, ..fpm() };
    node.inputs.push(process(&foreign, "/usr/sbin/php-fpm8.2"));
    node.inputs.push(listens(PATH, std::slice::from_ref(&foreign)));
    node.signal(200 * S, 3, foreign.clone()).exits(200 * S + 1, foreign, 0).event(201 * S, refused(2));
    let said = node.said(true);
    assert_eq!(only(&said).confidence.level, Level::Possible, "{said:#?}");
    assert_eq!(only(&said).chain.len(), 1);
}

#[test]
fn a_volume_that_nginx_mounts_elsewhere() {
    let mut node = pod(false);
    node.inputs.push(listens("/var/run/shared/php.sock", &[fpm()]));
    node.signal(200 * S, 3, fpm()).ends(200 * S + MS).event(201 * S, refused(2));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.sub_cause.as_deref(), one.confidence.level), (Some("stopped-first"), Level::Likely), "{one:#?}");
}

#[test]
fn the_later_life_of_a_restarted_php_fpm_counts() {
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm()).ends(200 * S + MS);
    let next = Task { tgid: 720, pid: 720, start_ns: 210 * S, ..fpm() };
    node.event(210 * S, EventKind::Forked { parent: host(), child: Task { comm: "runc".into(), ..next.clone() } });
    let exec = Execed { task: next.clone(), old_pid: 720, path: "/usr/sbin/php-fpm8.2".into(), argv: Vec::new() };
    node.event(210 * S + 1, EventKind::Execed(exec));
    node.event(220 * S, refused(11));
    node.signal(230 * S, 15, next.clone()).exits(230 * S + 1, next.clone(), 0).event(231 * S, refused(2));
    let said = node.said(true);
    assert_eq!(causes(&said), [Cause::FpmListenQueueFull, Cause::FpmNotListening], "{said:#?}");
    let exit = said[1].chain[1].process.as_ref().map(|p| p.host_pid);
    assert_eq!(exit, Some(720), "{:#?}", said[1].chain);
}

#[test]
fn a_php_fpm_that_is_forgotten_is_never_certain() {
    let mut node = pod(true);
    node.signal(200 * S, 3, fpm()).ends(200 * S + MS).event(900 * S, refused(2));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!(one.cause, Cause::FpmNotListening);
    assert_ne!(one.confidence.level, Level::Certain, "{:?}", one.confidence);
}

#[test]
fn a_client_elsewhere_that_was_seen_to_use_the_socket() {
    // Two containers of docker-compose that share a volume and nothing else.
    let elsewhere = Task { tgid: 950, pid: 950, ppid: 949, cgroup: 47, netns: 99, start_ns: 6 * S, ..task() };
    let refused = UnixRefused { error: 2, path: PATH.into(), task: elsewhere.clone() };
    for (seen, level) in [(true, Level::Certain), (false, Level::Possible)] {
        let mut node = pod(true);
        let path = Some(format!("/docker/{}", "e".repeat(64)));
        node.inputs.push(Input::Cgroup(CgroupFact { at: 3, id: 47, hierarchy: Hierarchy::V2, path }));
        node.inputs.push(process(&Task { tgid: 949, pid: 949, ..elsewhere.clone() }, "/usr/sbin/nginx"));
        node.inputs.push(process(&elsewhere, "/usr/sbin/nginx"));
        if seen {
            let thrown = UnixDropped { client_cgroup: 47, ..dropped(50, child(1)) };
            node.event(150 * S, EventKind::UnixDropped(thrown));
        }
        node.signal(200 * S, 3, fpm()).ends(200 * S + MS).event(201 * S, EventKind::UnixRefused(refused.clone()));
        let said = node.said(true);
        assert_eq!((only(&said).cause, only(&said).confidence.level), (Cause::FpmNotListening, level), "{said:#?}");
    }
}

#[test]
fn refused_by_one_that_has_just_been_started() {
    let mut node = Node::new();
    let id = "c".repeat(64);
    let path = Some(format!("/kubepods/burstable/pod{POD}/{id}"));
    node.inputs.push(Input::Cgroup(CgroupFact { at: 3, id: FPM_CGROUP, hierarchy: Hierarchy::V2, path }));
    let young = Task { start_ns: 199 * S, ..fpm() };
    let exec = Execed { task: young.clone(), old_pid: 700, path: "/usr/sbin/php-fpm8.2".into(), argv: Vec::new() };
    node.event(200 * S, EventKind::Execed(exec)).event(200 * S + 20 * MS, refused(2)).event(300 * S, refused(2));
    let said = node.said(true);
    let [first, late] = &said[..] else { panic!("{said:#?}") };
    assert_eq!((first.sub_cause.as_deref(), first.confidence.level), (Some("not-started"), Level::Likely));
    assert_eq!(rules(first), ["unix-connect-failed", "started-and-not-listening-yet"]);
    assert_eq!((late.sub_cause.as_deref(), late.confidence.level), (None, Level::Possible), "no start takes so long");
    // It is known to have listened: somebody took its socket away.
    let mut node = pod(true);
    node.event(200 * S, refused(2));
    assert_eq!(only(&node.said(true)).confidence.level, Level::Possible);
}

#[test]
fn refused_after_a_crash() {
    let mut node = pod(true);
    node.inside(200 * S, 11, fpm(), fpm());
    node.exits(200 * S + 1, child(1), 9).exits(200 * S + 2, child(2), 9).exits(200 * S + 3, fpm(), 11);
    node.event(201 * S, refused(111));
    let said = node.said(true);
    let one = only(&said);
    assert_eq!((one.cause, one.sub_cause.as_deref()), (Cause::FpmNotListening, Some("crashed")), "{one:#?}");
}
