//! The other containers of a pod: whether the pod as a whole is being stopped, or one container of it.

use super::chain::{self, Sender};
use super::{View, prestop};
use crate::correlate::history::{Signal, sig};
use crate::correlate::stops::commands_before;
use crate::identity::{ContainerInfo, Process};
use crate::model::event::ProcKey;

/// All containers of a pod without hooks are told at once: who comes later than that had a hook, or was waited for.
pub const APART_NS: u64 = 1_000_000_000;

/// What a process lives and dies with: its pod's uid, else its container's id.
pub fn home<'v>(key: &ProcKey, view: &'v View) -> Option<&'v str> {
    let container = &view.table.container_of(key)?.container;
    Some(container.pod_uid.as_deref().unwrap_or(&container.id))
}

/// The processes of the other containers of this one's pod, its sandbox's included.
pub fn others<'v>(key: &ProcKey, view: &'v View) -> impl Iterator<Item = (&'v Process, &'v ContainerInfo)> {
    let here = view.table.container_of(key).filter(|c| c.container.pod_uid.is_some());
    view.table.processes().filter_map(move |p| {
        let (here, there) = (&here?.container, view.table.container_of(&p.key)?);
        let other = there.container.pod_uid == here.pod_uid && there.container.id != here.id;
        other.then_some((p, there))
    })
}

/// Stop signals that a runtime, or somebody on the host, sent to a process of a container.
pub fn told<'v>(key: &ProcKey, view: &'v View) -> impl Iterator<Item = &'v Signal> {
    view.history.signals_to(key).iter().filter(|s| {
        let sender = || matches!(chain::sender_kind(s, view), Sender::Runtime | Sender::Host);
        sig::asks_to_stop(s.what.signal) && !s.by_kernel() && sender()
    })
}

/// Another container of the pod was told to stop as well, when this one's stop began or later: the pod is being stopped.
/// `signal` is this one's; a preStop hook holds it back, and no other container's.
pub fn stopped<'v>(key: &ProcKey, signal: &Signal, view: &'v View) -> Option<&'v Signal> {
    let commands = commands_before(signal.at, &signal.what, view.table).into_iter();
    let hook = commands.filter(|c| prestop::is_hook(c, view)).map(|c| c.at).min();
    let began = hook.map_or(signal.at, |at| at.min(signal.at));
    let all = others(key, view).flat_map(|(p, _)| told(&p.key, view));
    all.filter(|s| s.at + APART_NS >= began).min_by_key(|s| (s.at, s.event))
}
