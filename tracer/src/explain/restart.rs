//! nginx was stopped to be started again in the same pod: nobody moves requests away from a pod that stays.

use super::chain;
use super::gone::{self, Gone};
use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::history::sig;
use crate::correlate::lost::{Evidence, Lost};
use crate::identity::{ExecRef, Process, Role};
use crate::model::event::{BootNs, ProcKey};
use crate::model::incident::Cause;

/// Refused after a stop signal had closed the listener, and another nginx has been started in its place by now.
pub fn restarting(lost: &Lost, server: &Server, view: &View) -> Option<Finding> {
    let Evidence::Refused { closed: Some(closed), .. } = &lost.evidence else { return None };
    if server.kind != Kind::Nginx {
        return None;
    }
    let signal = server.asked_to_stop(view, closed.at)?;
    let t = lost.tcp()?;
    let opened = view.table.listeners().opened_after(t.netns, t.local_ip, t.local_port, closed.at);
    let (next, exec) = next(&server.master?, lost.netns(), closed.at, view)?;
    let (mut chain, mut confidence) = gone::after(lost, server, &Gone::Closed(closed.clone()), signal, view);
    chain.started(next, exec, view);
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

/// The nginx that was started after `since` in the pod of this one, and in its network namespace.
fn next<'v>(old: &ProcKey, netns: u32, since: BootNs, view: &'v View) -> Option<(&'v Process, ExecRef)> {
    let home = |key: &ProcKey| {
        let container = &view.table.container_of(key)?.container;
        Some(container.pod_uid.clone().unwrap_or_else(|| container.id.clone()))
    };
    let own = home(old)?;
    let started = |p: &'v Process| {
        let exec = p.execs.last().filter(|e| e.at > since)?;
        let role = view.table.role(&p.key);
        let master = role.sure && role.role == Role::NginxMaster;
        (p.key != *old && p.netns == netns && master && home(&p.key)? == own).then_some((p, *exec))
    };
    view.table.processes().filter_map(started).min_by_key(|(_, exec)| (exec.at, exec.event))
}
