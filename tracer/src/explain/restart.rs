//! nginx was stopped to be started again in the same pod: nobody moves requests away from a pod that stays.

use super::chain;
use super::gone::{self, Gone};
use super::server::{Kind, Server};
use super::{Finding, View, kube, pod};
use crate::correlate::history::{Signal, sig};
use crate::correlate::lost::{Evidence, Lost};
use crate::identity::{ExecRef, Process, Role};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::{Cause, Missing};

/// Refused after a stop signal had closed the listener, and another nginx has been started in its place by now.
pub fn restarting(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Refused { closed: Some(closed), .. } = &lost.evidence else { return None };
    if server.kind != Kind::Nginx {
        return None;
    }
    let signal = server.asked_to_stop(view, closed.at)?;
    let t = lost.tcp()?;
    let opened = view.table.listeners().opened_after(t.netns, t.local_ip, t.local_port, closed.at).next();
    let Next { process, exec, same_pod } = next(&server.master?, lost.netns(), closed.at, view)?;
    let (mut chain, mut confidence) = gone::after(lost, server, &Gone::Closed(closed.clone()), signal, view);
    chain.started(process, exec, view);
    if !same_pod {
        confidence.cap(0.8, "that the new nginx is of the same pod is known only from their network namespace");
    }
    if opened.is_none() {
        confidence.cap(0.8, "that the new nginx listens on this port has not been seen yet");
    }
    let ms = lost.at.saturating_sub(closed.at) / 1_000_000;
    Some(Finding {
        cause: Cause::NginxNotListening,
        sub_cause: Some("restarting"),
        trigger: chain::trigger(signal, view),
        summary: format!(
            "nginx was being restarted in its pod: {} had closed its listener {ms} ms before, and the new one did not listen yet",
            sig::name(signal.what.signal)
        ),
        chain,
        confidence,
        missing: Vec::new(),
    })
}

/// A restart that has not begun yet looks like the end of a pod: unless another container of the pod was told to stop as
/// well, or the API says that the pod ends, an `endpoint-race` says so.
pub fn not_excluded(finding: &mut Finding, server: &Server, signal: &Signal, view: &View) {
    let other = server.master.and_then(|master| pod::stopped(&master, signal, view));
    if let Some(other) = other {
        return finding.chain.signal(other, chain::BESIDE_POD_STOP, view);
    }
    if kube::pod_ends(signal, view) {
        return;
    }
    finding.confidence.cap(0.9, "a restart of nginx in its pod looks the same until it begins");
    finding.missing.push(Missing {
        fact: "pod-stop".into(),
        effect:
            "nothing shows that the whole pod is being stopped: if nginx was only started again, nobody was to be told"
                .into(),
    });
}

struct Next<'v> {
    process: &'v Process,
    exec: ExecRef,
    /// By its uid; else only the network namespace is the same.
    same_pod: bool,
}

/// The nginx that was started after `since` in the pod of this one, and in its network namespace.
fn next<'v>(old: &ProcKey, netns: u32, since: BootNs, view: &'v View) -> Option<Next<'v>> {
    let hosts = view.started.is_none_or(|s| s.host_netns == 0 || s.host_netns == netns);
    let own = pod::home(old, view);
    let started = |process: &'v Process| {
        let exec = *process.execs.last().filter(|e| e.at > since)?;
        let role = view.table.role(&process.key);
        if process.key == *old || process.netns != netns || !role.sure || role.role != Role::NginxMaster {
            return None;
        }
        let same_pod = match (own, pod::home(&process.key, view)) {
            (Some(own), Some(its)) if own == its => true,
            // A container that is gone again before its cgroup could be read.
            (None, _) | (_, None) if !hosts => false,
            _ => return None,
        };
        Some(Next { process, exec, same_pod })
    };
    view.table.processes().filter_map(started).min_by_key(|n| (!n.same_pod, n.exec.at, n.exec.event))
}
