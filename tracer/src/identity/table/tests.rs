use super::*;
use crate::identity::listeners::tests::state;
use crate::identity::{CgroupState, KEEP_NS, Known};
use crate::model::event::{SigInfo, SignalGenerated, tcp};
use proptest::prelude::*;

const S: BootNs = 1_000_000_000;
const ID: &str = "07a6ece791d4357b6e260f5ef6b701485af3154752f6931f336c2ac98f7abf15";
/// cgroup ids of the fixtures: the host's and a container's.
const HOST: u64 = 5;
const POD: u64 = 7;

/// Processes of the fixtures start `tgid` ticks after boot.
pub(in crate::identity) fn key(tgid: u32) -> ProcKey {
    ProcKey { tgid, start_ticks: u64::from(tgid) }
}

pub(in crate::identity) fn task(tgid: u32, ppid: u32, comm: &str) -> Task {
    Task {
        tgid,
        pid: tgid,
        ns_pid: 0,
        ppid,
        uid: 0,
        pidns: 1,
        netns: 2,
        flags: 0,
        cgroup: POD,
        cgroup_v1: 0,
        start_ns: u64::from(tgid) * TICK_NS,
        comm: comm.to_owned(),
    }
}

pub(in crate::identity) fn on_host(task: Task) -> Task {
    Task { cgroup: HOST, ..task }
}

pub(in crate::identity) struct Feed {
    pub(in crate::identity) table: Table,
    next: u64,
    at: BootNs,
}

impl Feed {
    pub(in crate::identity) fn new() -> Feed {
        let mut table = Table::default();
        for (id, path) in [(1, "/".to_owned()), (HOST, "/system.slice".into()), (POD, format!("/docker/{ID}"))] {
            table.observe_cgroup(&CgroupFact { at: 1, id, hierarchy: Hierarchy::V2, path: Some(path) });
        }
        Feed { table, next: 1, at: 100 * S }
    }

    fn event(&mut self, kind: EventKind) -> EventId {
        self.next += 1;
        self.at += 1000;
        let event = Event { id: EventId(self.next), at: self.at, cpu: 0, quality: 0, kind };
        self.table.observe(&Input::Event(event));
        EventId(self.next)
    }
    pub(in crate::identity) fn fork(&mut self, parent: &Task, child: &Task) -> EventId {
        self.event(EventKind::Forked { parent: parent.clone(), child: child.clone() })
    }
    pub(in crate::identity) fn exec(&mut self, task: &Task, path: &str, args: &str) -> EventId {
        let argv = args.split(' ').map(str::to_owned).collect();
        self.event(EventKind::Execed(Execed { task: task.clone(), old_pid: task.pid, path: path.into(), argv }))
    }
    fn exit(&mut self, task: &Task, code: u32) -> EventId {
        self.event(EventKind::Exited { task: task.clone(), code })
    }
    fn signal(&mut self, sender: &Task, target: &Task) {
        self.event(EventKind::SignalGenerated(SignalGenerated {
            signal: 15,
            code: 0,
            si_pid: 0,
            info: SigInfo::Real,
            result: 0,
            group: true,
            sender: sender.clone(),
            target: target.clone(),
        }));
    }
    fn scan(&mut self, tgid: u32, ppid: u32, exe: &str, argv0: &str) {
        let fact = self.fact(tgid, ppid, exe, argv0);
        self.table.observe(&Input::Process(fact));
    }
    fn fact(&mut self, tgid: u32, ppid: u32, exe: &str, argv0: &str) -> ProcessFact {
        self.at += 1000;
        ProcessFact {
            at: self.at,
            key: key(tgid),
            ppid,
            ns_pid: 1,
            pidns: 1,
            netns: 2,
            uid: 0,
            comm: "x".into(),
            exe: exe.into(),
            argv: vec![argv0.into()],
            cgroup: POD,
            cgroup_v1: 0,
            sig_ign: 3,
            sig_cgt: 4,
        }
    }
    fn role(&self, tgid: u32) -> (Role, bool) {
        let info = self.table.role(&key(tgid));
        assert!(!info.why.is_empty());
        (info.role, info.sure)
    }
}

#[test]
fn nginx_from_its_start() {
    let mut f = Feed::new();
    let (shim, master, worker) =
        (on_host(task(10, 1, "containerd-shim")), task(20, 10, "nginx"), task(30, 20, "nginx"));
    let forked = f.fork(&shim, &on_host(task(20, 10, "runc:[2:INIT]")));
    let execed = f.exec(&master, "/usr/sbin/nginx", "nginx -g daemon_off;");
    f.fork(&master, &worker);
    assert_eq!(f.role(20), (Role::NginxMaster, true));
    assert_eq!(f.role(30), (Role::NginxWorker, true));
    let p = f.table.process(&key(20)).unwrap();
    assert_eq!((p.fork_event, p.known, p.cgroup), (Some(forked), Known::Fork, POD));
    assert_eq!(p.execs[0].event, execed);
    assert_eq!((p.exe(), p.argv()[0].as_str()), ("/usr/sbin/nginx", "nginx"));
    assert_eq!(f.table.parent(&key(30)).unwrap().key, key(20));
    assert_eq!(f.table.children(&key(20)).map(|p| p.key.tgid).collect::<Vec<_>>(), [30]);
    assert_eq!(f.table.container_of(&key(30)).unwrap().container.id, ID);
    assert!(f.table.is_host(&shim) && !f.table.is_host(&master));

    // Killed master: the worker is reparented and stays what it is, also when the master is forgotten.
    f.exit(&master, 9);
    f.signal(&shim, &Task { ppid: 1, ..worker.clone() });
    assert_eq!(f.role(30), (Role::NginxWorker, true));
    assert_eq!(f.table.process(&key(30)).unwrap().ppid, 1);
    f.table.advance(f.at + KEEP_NS + S);
    assert!(f.table.process(&key(20)).is_none());
    assert_eq!(f.role(30), (Role::NginxWorker, true));
}

#[test]
fn control_commands_are_not_masters() {
    let mut f = Feed::new();
    f.exec(&task(20, 1, "nginx"), "/usr/sbin/nginx", "nginx -s quit");
    f.exec(&task(21, 1, "nginx"), "nginx", "nginx -t -q");
    f.exec(&task(22, 1, "php-fpm8.2"), "/usr/sbin/php-fpm8.2", "php-fpm8.2 -t");
    assert_eq!(f.role(20), (Role::NginxCtl, true));
    assert_eq!(f.role(21), (Role::NginxCtl, true));
    assert_eq!(f.role(22), (Role::Other, true));
}

#[test]
fn php_fpm_by_a_symlink_and_its_reload() {
    let mut f = Feed::new();
    let (master, child) = (task(20, 1, "php-fpm"), task(30, 20, "php-fpm"));
    f.exec(&master, "./php-fpm", "php-fpm -F");
    f.fork(&master, &child);
    assert_eq!((f.role(20), f.role(30)), ((Role::PhpFpmMaster, true), (Role::PhpFpmChild, true)));
    f.exec(&master, "/usr/sbin/php-fpm8.2", "php-fpm -F"); // SIGUSR2: it starts itself again, children stay
    assert_eq!((f.role(20), f.role(30)), ((Role::PhpFpmMaster, true), (Role::PhpFpmChild, true)));
}

#[test]
fn a_daemon_and_a_binary_upgrade() {
    let mut f = Feed::new();
    let (launcher, master, worker) = (task(20, 1, "nginx"), task(30, 20, "nginx"), task(40, 30, "nginx"));
    f.exec(&launcher, "/usr/sbin/nginx", "nginx");
    f.fork(&launcher, &master);
    assert_eq!((f.role(20), f.role(30)), ((Role::NginxMaster, true), (Role::NginxWorker, true)));
    f.exit(&launcher, 0);
    assert_eq!((f.role(20), f.role(30)), ((Role::NginxCtl, false), (Role::NginxMaster, false)), "it outlived it");
    f.fork(&master, &worker);
    assert_eq!(f.role(20), (Role::NginxCtl, true));
    assert_eq!(f.role(30), (Role::NginxMaster, true));
    assert_eq!(f.role(40), (Role::NginxWorker, true));
    // USR2: the new master is a child of the old one and has started the program itself.
    let (new, new_worker) = (task(50, 30, "nginx"), task(60, 50, "nginx"));
    f.fork(&master, &new);
    f.exec(&new, "/usr/sbin/nginx", "nginx");
    f.fork(&new, &new_worker);
    assert_eq!(f.role(50), (Role::NginxMaster, true));
    assert_eq!(f.role(60), (Role::NginxWorker, true));
    assert_eq!(f.role(30), (Role::NginxMaster, true));
}

#[test]
fn a_stop_in_order_changes_no_role() {
    let mut f = Feed::new();
    let (master, worker) = (task(20, 1, "nginx"), task(30, 20, "nginx"));
    f.exec(&master, "/usr/sbin/nginx", "nginx");
    f.fork(&master, &worker);
    f.exit(&worker, 0);
    f.exit(&master, 0);
    assert_eq!((f.role(20), f.role(30)), ((Role::NginxMaster, true), (Role::NginxWorker, true)));
}

#[test]
fn seen_by_a_scan_in_any_order() {
    let mut f = Feed::new();
    f.scan(30, 20, "/usr/sbin/nginx", "nginx: worker process");
    f.scan(31, 20, "/usr/sbin/nginx (deleted)", "nginx: worker process is shutting down");
    f.scan(20, 1, "/usr/sbin/nginx", "nginx: master process nginx -g daemon off;");
    f.scan(40, 1, "/usr/local/sbin/php-fpm", "php-fpm: master process (/etc/fpm.conf)");
    f.scan(41, 40, "/usr/local/sbin/php-fpm", "php-fpm: pool www");
    f.scan(50, 1, "/usr/bin/python3.11", "/usr/bin/python3");
    assert_eq!(f.role(20), (Role::NginxMaster, true));
    assert_eq!((f.role(30), f.role(31)), ((Role::NginxWorker, true), (Role::NginxWorker, true)));
    assert_eq!((f.role(40), f.role(41)), ((Role::PhpFpmMaster, true), (Role::PhpFpmChild, true)));
    assert_eq!(f.role(50), (Role::Other, true));
    assert_eq!(f.table.parent(&key(30)).unwrap().key, key(20), "found when the parent came");
    assert_eq!(f.table.process(&key(20)).unwrap().sig_cgt, 4);
    assert!(f.table.orphans.values().all(|o| !o.contains(&key(30))));
    // A worker made after the scan has the master's title in its memory, and is no master.
    f.fork(&task(20, 1, "nginx"), &task(32, 20, "nginx"));
    assert_eq!(f.role(32), (Role::NginxWorker, true));
}

#[test]
fn supervisors_inits_shells() {
    let mut f = Feed::new();
    let mut fact = f.fact(20, 1, "/usr/bin/python3.11", "/usr/bin/python3");
    fact.argv.extend(["/usr/bin/supervisord".to_owned(), "-n".to_owned()]);
    f.table.observe_process(&fact);
    f.exec(&task(21, 1, "supervisord"), "/usr/bin/supervisord", "python3 /usr/bin/supervisord");
    f.exec(&task(22, 1, "tini"), "/sbin/tini", "tini --");
    f.exec(&task(23, 1, "sh"), "/bin/sh", "sh -c x");
    f.exec(&task(24, 1, "docker-entrypoi"), "/docker-entrypoint.sh", "/docker-entrypoint.sh nginx");
    assert_eq!((f.role(20), f.role(21)), ((Role::Supervisor, true), (Role::Supervisor, true)));
    assert_eq!((f.role(22), f.role(23), f.role(24)), ((Role::Init, true), (Role::Shell, true), (Role::Shell, true)));
}

#[test]
fn a_runtime_is_outside_of_containers() {
    let mut f = Feed::new();
    f.exec(&on_host(task(20, 1, "runc")), "/usr/bin/runc", "runc kill");
    f.exec(&task(21, 1, "runc"), "/usr/bin/runc", "runc kill");
    f.exec(&Task { cgroup: 99, ..task(22, 1, "runc") }, "/usr/bin/runc", "runc kill");
    f.exec(&on_host(task(23, 1, "6")), "/proc/self/fd/6", "runc init");
    f.fork(&on_host(task(20, 1, "runc")), &on_host(task(24, 20, "runc:[1:CHILD]")));
    f.signal(&on_host(task(25, 20, "x")), &task(26, 1, "y"));
    assert_eq!(f.role(20), (Role::Runtime, true));
    assert_eq!(f.role(21), (Role::Other, true), "anybody can have a runc in his container");
    assert_eq!(f.role(22), (Role::Other, false), "its cgroup is not known");
    assert_eq!(f.role(23), (Role::Runtime, false), "a program without a name of its own");
    assert_eq!(f.role(24), (Role::Runtime, true), "a fork runs its parent's program");
    assert_eq!(f.role(25), (Role::Runtime, false), "program not seen, child of a runtime");
    assert_eq!(f.role(26), (Role::Other, false));
}

#[test]
fn names_do_not_make_roles() {
    let mut f = Feed::new();
    f.signal(&task(20, 1, "nginx"), &task(30, 20, "nginx"));
    assert_eq!(f.table.process(&key(20)).unwrap().known, Known::Record);
    assert_eq!(f.role(30), (Role::NginxWorker, false));
    assert_eq!(f.role(20), (Role::NginxMaster, false), "it has a worker, but only by name");
    // The program decides, whatever it calls itself.
    f.exec(&task(40, 1, "nginx"), "/tmp/evil", "nginx");
    assert_eq!(f.role(40), (Role::Other, true));
    f.exec(&task(41, 1, "innocent"), "/usr/sbin/nginx", "innocent");
    assert_eq!(f.role(41), (Role::NginxMaster, true));
    f.scan(42, 1, "/opt/server", "nginx: master process x");
    assert_eq!(f.role(42), (Role::Other, false), "a master without workers");
    f.scan(43, 1, "/opt/server", "nginx: worker process");
    assert_eq!(f.role(43), (Role::Other, false), "a worker without a master");
    assert_eq!(f.role(4711), (Role::Other, false));
}

#[test]
fn a_server_under_another_file_name_is_never_sure() {
    let mut f = Feed::new();
    f.scan(20, 1, "/opt/web", "nginx: master process /opt/web -g daemon off;");
    f.scan(30, 20, "/opt/web", "nginx: worker process");
    assert_eq!((f.role(20), f.role(30)), ((Role::NginxMaster, false), (Role::NginxWorker, false)));
    // A worker that it forks later has no title that is known.
    f.fork(&task(20, 1, "web"), &task(31, 20, "web"));
    assert_eq!(f.role(31), (Role::NginxWorker, false));
    f.exec(&task(32, 20, "sh"), "/bin/sh", "sh");
    assert_eq!(f.role(32), (Role::Shell, true), "what it starts is something else");
    // Started while we look: the title is read a little after its workers were forked.
    let (master, child) = (task(50, 1, "fpm"), task(60, 50, "fpm"));
    f.exec(&master, "/opt/fpm", "fpm -F");
    f.fork(&master, &child);
    assert_eq!(f.role(50), (Role::Other, true));
    f.scan(50, 1, "/opt/fpm", "php-fpm: master process (/etc/fpm.conf)");
    assert_eq!((f.role(50), f.role(60)), ((Role::PhpFpmMaster, false), (Role::PhpFpmChild, false)));
    f.exit(&master, 0);
    f.table.advance(f.at + KEEP_NS + S);
    assert_eq!(f.role(60), (Role::PhpFpmChild, false), "its master is forgotten");
}

#[test]
fn scan_and_events_cross() {
    let mut f = Feed::new();
    // Read by the scan before the exec that was drained before it.
    let old = f.fact(20, 1, "/bin/sh", "sh");
    f.exec(&task(20, 1, "nginx"), "/usr/sbin/nginx", "nginx");
    f.table.observe_process(&old);
    let p = f.table.process(&key(20)).unwrap();
    assert_eq!((p.exe(), p.comm.as_str(), p.sig_ign), ("/usr/sbin/nginx", "nginx", 3));
    // Read by the scan after an exec that is drained later: the resolved path stays.
    let mut fact = f.fact(21, 1, "/usr/sbin/php-fpm8.2", "php-fpm");
    fact.at += 5000;
    f.table.observe_process(&fact);
    let exec = f.exec(&task(21, 1, "php-fpm"), "./php-fpm", "php-fpm");
    let p = f.table.process(&key(21)).unwrap();
    assert_eq!((p.exe(), p.execs[0].event), ("/usr/sbin/php-fpm8.2", exec));
    assert_eq!(f.role(21), (Role::PhpFpmMaster, true));
    // A fact about somebody who exited meanwhile.
    let late = f.fact(22, 1, "/bin/sh", "sh");
    f.fork(&task(21, 1, "php-fpm"), &task(22, 21, "php-fpm"));
    f.exit(&task(22, 21, "php-fpm"), 11);
    f.table.observe_process(&late);
    let p = f.table.process(&key(22)).unwrap();
    assert_eq!(p.exited.unwrap().signal(), Some(11));
    assert_eq!(p.exe(), "/usr/sbin/php-fpm8.2");
}

#[test]
fn an_image_learned_late_is_handed_down() {
    let mut f = Feed::new();
    let (master, worker) = (task(20, 1, "nginx"), task(30, 20, "nginx"));
    f.fork(&master, &worker);
    f.fork(&worker, &task(40, 30, "nginx"));
    assert!(!f.role(30).1);
    f.scan(20, 1, "/usr/sbin/nginx", "nginx: master process nginx");
    assert_eq!((f.role(20), f.role(40)), ((Role::NginxMaster, true), (Role::NginxWorker, true)));
    // Not to a child that was forked before the parent's last exec.
    let (shell, child) = (task(50, 1, "sh"), task(60, 50, "sh"));
    f.fork(&shell, &child);
    f.exec(&shell, "nginx", "nginx");
    f.scan(50, 1, "/usr/sbin/nginx", "nginx");
    assert_eq!(f.table.process(&key(60)).unwrap().image, None);
}

#[test]
fn runc_starts_itself_again() {
    let mut f = Feed::new();
    let t = on_host(task(20, 1, "runc"));
    f.exec(&t, "/usr/bin/runc", "runc create");
    f.exec(&t, "/proc/self/exe", "runc init");
    assert_eq!(f.table.process(&key(20)).unwrap().exe(), "/usr/bin/runc");
    assert_eq!(f.role(20), (Role::Runtime, true));
}

#[test]
fn a_pid_is_given_away_again() {
    let mut f = Feed::new();
    let old = task(20, 1, "a");
    let new = Task { start_ns: 500 * TICK_NS, comm: "b".into(), ..old.clone() };
    f.signal(&old, &old);
    f.signal(&new, &new);
    let p = f.table.process(&old.key()).unwrap();
    assert_eq!(p.exited, Some(Exit { at: 500 * TICK_NS, code: None, event: None }), "its exit was missed");
    let at = |ns: BootNs| f.table.process_by_tgid_at(20, ns).map(|p| p.comm.as_str());
    assert_eq!(at(10 * TICK_NS), None);
    assert_eq!(at(499 * TICK_NS), Some("a"));
    assert_eq!(at(500 * TICK_NS), Some("b"));
    assert_eq!(at(BootNs::MAX), Some("b"));
    // A record of the old one that comes late.
    let event = f.exit(&old, 0);
    assert_eq!(f.table.process(&old.key()).unwrap().exited.unwrap().event, Some(event));
    let older = Task { start_ns: 15 * TICK_NS, ..old.clone() };
    f.signal(&older, &new);
    assert_eq!(f.table.process(&older.key()).unwrap().exited.unwrap().at, 20 * TICK_NS);
}

#[test]
fn frozen_after_exit_and_kept_for_a_while() {
    let mut f = Feed::new();
    let t = Task { flags: Task::PF_EXITING, netns: 0, pidns: 0, ..task(20, 1, "nginx") };
    f.exec(&task(20, 1, "nginx"), "/usr/sbin/nginx", "nginx");
    f.exit(&t, 0);
    let before = f.table.process(&key(20)).unwrap().clone();
    assert_eq!((before.netns, before.pidns), (2, 1), "what an exiting task has dropped is kept");
    f.signal(&Task { comm: "other".into(), cgroup: HOST, uid: 5, ..t.clone() }, &task(30, 1, "x"));
    assert_eq!(f.table.process(&key(20)), Some(&before));
    let exit_at = before.exited.unwrap().at;
    f.table.observe(&Input::Tick { at: exit_at + KEEP_NS });
    assert!(f.table.process(&key(20)).is_some());
    assert!(f.table.container_of(&key(20)).is_some());
    f.table.observe(&Input::Tick { at: exit_at + KEEP_NS + 1 });
    assert!(f.table.process(&key(20)).is_none());
    assert_eq!(f.table.evicted(), 0, "that is no loss");
}

#[test]
fn a_threads_name_is_not_the_process() {
    let mut f = Feed::new();
    f.exec(&task(20, 1, "dockerd"), "/usr/bin/dockerd", "dockerd");
    f.signal(&Task { pid: 29, comm: "worker-3".into(), ..task(20, 1, "") }, &task(30, 1, "x"));
    assert_eq!(f.table.process(&key(20)).unwrap().comm, "dockerd");
}

#[test]
fn tasks_without_a_name_are_left_out() {
    let mut f = Feed::new();
    f.event(EventKind::OomVictim { task: Task { start_ns: 0, ..task(20, 1, "x") } });
    f.event(EventKind::OomVictim { task: task(0, 0, "swapper/0") });
    assert!(f.table.is_empty());
}

#[test]
fn who_serves_an_address() {
    let mut f = Feed::new();
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let state = |sk, port, tgid, old, new| EventKind::TcpState(state(sk, "0.0.0.0", port, tgid, old, new));
    let who = |f: &Feed, port| {
        let info = f.table.server_at(2, ip, port, f.at)?;
        Some((info.kind, info.sure, info.process.map(|k| k.tgid), info.container.is_some()))
    };
    // A daemon: its first process opens the socket and leaves.
    let (launcher, master) = (task(20, 1, "nginx"), task(30, 20, "nginx"));
    f.exec(&launcher, "/usr/sbin/nginx", "nginx");
    f.event(state(1, 80, 20, tcp::CLOSE, tcp::LISTEN));
    f.fork(&launcher, &master);
    f.exit(&launcher, 0);
    assert_eq!(who(&f, 80), Some((ServerKind::Nginx, true, Some(20), true)));
    f.at += KEEP_NS + S;
    f.table.advance(f.at);
    assert!(f.table.process(&key(20)).is_none());
    assert_eq!(who(&f, 80), Some((ServerKind::Nginx, true, Some(20), true)), "also when it is forgotten");
    f.event(state(1, 80, 30, tcp::LISTEN, tcp::CLOSE));
    assert_eq!(who(&f, 80), Some((ServerKind::Nginx, true, Some(20), true)), "and when the socket is closed");
    // Found by the scan: of the holders the master.
    f.scan(40, 1, "/usr/sbin/php-fpm8.2", "php-fpm: master process (/x)");
    f.scan(41, 40, "/usr/sbin/php-fpm8.2", "php-fpm: pool www");
    f.scan(42, 40, "/bin/sh", "sh");
    let holders = [42, 41, 40].map(key).to_vec();
    let any = "::".parse().unwrap();
    f.table.observe_listener(&ListenerFact {
        at: f.at,
        netns: 2,
        ip: any,
        port: 9000,
        inode: 9,
        holders,
        closed: false,
    });
    assert_eq!(who(&f, 9000), Some((ServerKind::PhpFpm, true, Some(40), true)));
    // By its name only, then by nothing at all.
    f.event(state(3, 81, 50, tcp::CLOSE, tcp::LISTEN));
    assert_eq!(who(&f, 81), Some((ServerKind::Nginx, false, Some(50), true)));
    f.exec(&task(60, 1, "app"), "/app", "app");
    f.event(state(4, 82, 60, tcp::CLOSE, tcp::LISTEN));
    assert_eq!(who(&f, 82), Some((ServerKind::Other, true, Some(60), true)));
    assert_eq!(who(&f, 83), None);
}

#[test]
fn a_fork_bomb_costs_only_its_own() {
    let mut f = Feed::new();
    f.table = Table { cgroups: std::mem::replace(&mut f.table.cgroups, Cgroups::new(1)), ..Table::default() };
    f.table.limits.processes = 100 * Process::LEAST;
    let (master, worker) = (task(20, 1, "nginx"), task(30, 20, "nginx"));
    f.exec(&master, "/usr/sbin/nginx", "nginx");
    f.fork(&master, &worker);
    f.exit(&worker, 0);
    for tgid in 1000..3000 {
        let t = Task { cgroup: 999, ..task(tgid, 1, "bomb") };
        f.exec(&t, "/bin/bomb", "bomb");
        if tgid % 2 == 0 {
            f.exit(&t, 0);
        }
    }
    let kept = f.table.len();
    assert!((80..=100).contains(&kept), "{kept}");
    assert_eq!(f.table.evicted(), 2002 - kept as u64);
    assert_eq!(f.role(20), (Role::NginxMaster, true));
    assert_eq!(f.role(30), (Role::NginxWorker, true), "dead, and older than all of the bomb's");
    assert!(f.table.orphans.values().map(BTreeSet::len).sum::<usize>() <= 100);
    f.table.advance(f.at + KEEP_NS + S);
    assert!(f.table.processes().all(Process::alive));
}

#[test]
fn long_arguments_count() {
    let mut f = Feed::new();
    f.table.limits.processes = 100 * Process::LEAST;
    for tgid in 1000..1200 {
        f.exec(&task(tgid, 1, "a"), &"/long".repeat(60), &"x ".repeat(120));
    }
    assert!((5..40).contains(&f.table.len()), "{}", f.table.len());
    assert!(f.table.processes().all(|p| !p.argv().is_empty()));
}

#[test]
fn cgroups_of_the_dead_stay_named() {
    let mut f = Feed::new();
    f.signal(&task(20, 1, "a"), &Task { cgroup: 4242, ..task(30, 1, "b") });
    assert_eq!(f.table.cgroups().state(Hierarchy::V2, 4242), CgroupState::Unknown);
    let gone = CgroupFact { at: 1, id: 4242, hierarchy: Hierarchy::V2, path: None };
    f.table.observe(&Input::Cgroup(gone));
    assert_eq!(f.table.cgroups().state(Hierarchy::V2, 4242), CgroupState::Gone);
    assert!(f.table.container_of_cgroup(4242, 0).is_none());
    assert_eq!(f.table.place_of(&key(30)), Place::Unknown);
}

proptest! {
    /// Any order of forks, execs, exits and facts, few pids, a small table: bounded, consistent, and the same again.
    #[test]
    fn any_history(steps in proptest::collection::vec((0u8..5, 1u32..12, 1u32..12, 0u64..3), 0..120)) {
        let run = || {
            let mut f = Feed::new();
            f.table.limits.processes = 6 * Process::LEAST;
            for (what, a, b, start) in &steps {
                let t = |tgid: u32| Task { start_ns: (start + 1) * 50 * TICK_NS, ..task(tgid, *b, "nginx") };
                match what {
                    0 => drop(f.fork(&t(*b), &t(*a))),
                    1 => drop(f.exec(&t(*a), "/usr/sbin/nginx", "nginx")),
                    2 => drop(f.exit(&t(*a), 0)),
                    3 => f.signal(&t(*a), &t(*b)),
                    _ => {
                        f.scan(*a, *b, "/usr/sbin/nginx", "nginx: worker process");
                        f.at += 10 * S;
                    }
                }
                let table = &f.table;
                assert!(table.len() <= 6);
                for p in table.processes() {
                    let _ = table.role(&p.key);
                    if let Some(parent) = table.parent(&p.key) {
                        assert!(table.children(&parent.key).any(|c| c.key == p.key));
                    }
                }
                for (parent, children) in &table.children {
                    assert!(children.iter().all(|c| table.process(c).is_some_and(|c| c.parent == Some(*parent))));
                }
                for (ppid, waiting) in &table.orphans {
                    assert!(waiting.iter().all(|w| table.process(w).is_some_and(|p| p.waits_for == Some(*ppid))));
                }
            }
            format!("{:?}", f.table)
        };
        prop_assert_eq!(run(), run());
    }
}
