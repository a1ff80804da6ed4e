//! A node on which pods come and go for weeks: the last one is explained as the first one was.

use super::{Node, S, exiting, host, state, task};
use crate::correlate::{Engine, EngineOptions};
use crate::model::event::{
    Event, EventId, EventKind, Execed, SI_USER, Side, SigInfo, SignalGenerated, Task, TcpState, Tuple, tcp,
};
use crate::model::input::{CgroupFact, Hierarchy};
use crate::model::{Cause, Input, Level, Output};

/// More than any table holds.
const PODS: u64 = 10_000;

struct Pod {
    at: u64,
    number: u64,
    event: u64,
    inputs: Vec<Input>,
}

impl Pod {
    fn master(&self) -> Task {
        // Numbers of processes and network namespaces are given away again.
        let pid = 10_000 + (self.number * 2 % 20_000) as u32;
        let netns = 100 + (self.number % 50) as u32;
        let cgroup = 1_000 + self.number;
        Task { tgid: pid, pid, ns_pid: 1, ppid: 1, netns, pidns: netns, cgroup, start_ns: self.at, ..task() }
    }

    fn worker(&self) -> Task {
        let master = self.master();
        let pid = master.tgid + 1;
        Task { tgid: pid, pid, ns_pid: 2, ppid: master.tgid, start_ns: self.at + S, ..master }
    }

    fn event(&mut self, after: u64, kind: EventKind) {
        self.event += 1;
        let id = EventId(self.number * 100 + self.event);
        self.inputs.push(Input::Event(Event { id, at: self.at + after, cpu: 0, quality: 0, kind }));
    }

    fn state(&self, old: u8, new: u8, side: Side, by: Task) -> TcpState {
        let any = "0.0.0.0".parse().unwrap();
        let tuple = match side {
            Side::Listener => Tuple { local_ip: any, remote_ip: any, remote_port: 0, netns: by.netns, ..state().tuple },
            _ => Tuple { netns: by.netns, ..state().tuple },
        };
        let sk = self.number * 2 + u64::from(side == Side::Listener);
        TcpState { sk, sk_cgroup: by.cgroup, oldstate: old, newstate: new, side, tuple, task: by, ..state() }
    }

    /// Its whole life: nginx starts, a request comes, and is cut by SIGTERM.
    fn lives(mut self) -> Vec<Input> {
        let (master, worker) = (self.master(), self.worker());
        let path =
            format!("/kubepods/burstable/pod{:08x}-2222-3333-4444-555555555555/{:064x}", self.number, self.number);
        self.inputs.push(Input::Cgroup(CgroupFact {
            at: self.at,
            id: master.cgroup,
            hierarchy: Hierarchy::V2,
            path: Some(path),
        }));
        let argv = vec!["nginx".to_owned(), "-g".into(), "daemon off;".into()];
        let exec = Execed { task: master.clone(), old_pid: master.pid, path: "/usr/sbin/nginx".into(), argv };
        self.event(1, EventKind::Execed(exec));
        let opens = self.state(tcp::CLOSE, tcp::LISTEN, Side::Listener, master.clone());
        self.event(2, EventKind::TcpState(opens));
        self.event(S, EventKind::Forked { parent: master.clone(), child: worker.clone() });
        let sender = Task { tgid: 999, pid: 999, ns_pid: 999, cgroup: 1, comm: "kill".into(), ..host() };
        for (after, from, to) in [(20 * S, sender, master.clone()), (20 * S + 1_000, master.clone(), worker.clone())] {
            let info = SigInfo::Real;
            let term = SignalGenerated {
                signal: 15,
                code: SI_USER,
                si_pid: 0,
                info,
                result: 0,
                group: true,
                sender: from,
                target: to,
            };
            self.event(after, EventKind::SignalGenerated(term));
        }
        // sched_process_exit comes before the files are closed (do_exit() of kernel/exit.c).
        self.event(20 * S + 2_000, EventKind::Exited { task: exiting(worker.clone()), code: 0 });
        let cut = self.state(tcp::ESTABLISHED, tcp::FIN_WAIT1, Side::Server, exiting(worker));
        let cut = TcpState { bytes_sent: 0, lsndtime: 0, ..cut };
        self.event(20 * S + 3_000, EventKind::TcpState(cut));
        self.event(20 * S + 4_000, EventKind::Exited { task: exiting(master.clone()), code: 0 });
        let closes = self.state(tcp::LISTEN, tcp::CLOSE, Side::Listener, exiting(master));
        self.event(20 * S + 5_000, EventKind::TcpState(closes));
        self.inputs.push(Input::Tick { at: self.at + 25 * S });
        self.inputs
    }
}

#[test]
fn the_last_pod_is_explained_as_the_first_one() {
    let mut engine = Engine::new(EngineOptions { include_not_the_server: true });
    Node::new().inputs.iter().for_each(|input| assert!(engine.feed(input).is_empty()));
    let mut verdicts = Vec::new();
    for number in 0..PODS {
        let pod = Pod { at: (200 + number * 30) * S, number, event: 0, inputs: Vec::new() };
        for output in pod.lives().iter().flat_map(|input| engine.feed(input)) {
            if let Output::Incident(i) = output {
                let missing: Vec<String> = i.missing.iter().map(|m| m.fact.clone()).collect();
                let named = i.pod.as_ref().map(|pod| pod.uid.clone());
                verdicts.push((
                    number,
                    named,
                    (i.cause, i.confidence.level, i.confidence.value, missing, i.chain.len()),
                ));
            }
        }
    }
    assert_eq!(verdicts.len() as u64, PODS);
    let first = &verdicts[0].2;
    assert_eq!((first.0, first.1), (Cause::NginxFastShutdown, Level::Certain), "{first:?}");
    for (number, pod, verdict) in &verdicts {
        assert_eq!(
            (verdict, pod.as_deref().map(|uid| &uid[..8])),
            (first, Some(&*format!("{number:08x}"))),
            "pod {number}"
        );
    }
    assert_eq!(engine.tally().evicted, 0);
}
