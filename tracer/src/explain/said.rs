//! What is said about a container: by its runtime, or by the specs that were given. They are joined here and nowhere else.

use super::View;
use super::sender::{Sender, sender_kind};
use crate::correlate::history::{Signal, sig};
use crate::identity::{ContainerInfo, Place, Runtime};
use crate::model::BootNs;
use crate::model::incident::{Container, Missing, Pod};
use crate::model::input::StopSpec;

pub fn pod_of(c: &ContainerInfo) -> Option<Pod> {
    let said = c.said.as_ref().and_then(|said| said.pod.as_ref());
    let uid = c.container.pod_uid.clone().or_else(|| said.map(|p| p.uid.clone()))?;
    // The path is the kernel's word.
    let said = said.filter(|p| p.uid == uid);
    Some(Pod {
        namespace: said.and_then(|p| p.namespace.clone()),
        name: said.and_then(|p| p.name.clone()),
        uid,
        workload: None,
    })
}

pub fn container_of(c: &ContainerInfo) -> Container {
    let said = c.said.as_ref();
    let runtime = || said.and_then(|s| Runtime::by_id(s.runtime.as_deref()?));
    Container {
        id: c.container.id.clone(),
        name: said.and_then(|s| s.name.clone()),
        runtime: c.container.runtime.or_else(runtime).map(|r| r.id().to_string()),
    }
}

/// What the runtime was told of this container's spec: better than any file, whose pod may be another one.
fn spec(c: Option<&ContainerInfo>) -> Option<&StopSpec> {
    c?.said.as_ref()?.spec.as_ref()
}

/// The preStop commands that may be this container's: its own, else those of all specs that were given.
pub fn hooks<'v>(c: Option<&'v ContainerInfo>, view: &'v View) -> impl Iterator<Item = &'v [String]> {
    let own = spec(c);
    let given = view.history.specs().iter().filter(move |_| own.is_none()).filter_map(|s| s.pre_stop.as_deref());
    own.and_then(|s| s.pre_stop.as_deref()).into_iter().chain(given)
}

/// Seconds of grace: the container's own, else what the specs that were given say when all of them say the same: which of
/// them is this pod's is not known.
pub fn grace_s(c: Option<&ContainerInfo>, view: &View) -> Option<u64> {
    if let Some(spec) = spec(c) {
        return spec.grace_s;
    }
    let mut all = view.history.specs().iter().map(|spec| spec.grace_s);
    let first = all.next()?;
    all.all(|grace| grace == first).then_some(first)
}

/// A runtime's stop signal beside the one that is declared, to stand behind its name; nothing where none is declared.
pub fn compared(signal: &Signal, view: &View) -> String {
    let what = &signal.what;
    let declared = match view.table.place(&what.target) {
        Place::Container(c) => c.said.as_ref().and_then(|s| s.stop_signal),
        _ => None,
    };
    let of_stop = what.signal != sig::KILL && sender_kind(signal, view) == Sender::Runtime && what.target.ns_pid == 1;
    match declared.filter(|_| of_stop) {
        Some(declared) if declared == what.signal => ", the declared stop signal,".into(),
        Some(declared) => format!(" (declared: {})", sig::name(declared)),
        None => String::new(),
    }
}

/// What is not known of a container, and which sources could not be asked between `from` and `to`.
pub fn missing(c: Option<&ContainerInfo>, from: BootNs, to: BootNs, view: &View) -> Vec<Missing> {
    let mut all = Vec::new();
    let mut lacks = |fact: &str, effect: String| all.push(Missing { fact: fact.into(), effect });
    let said = c.and_then(|c| c.said.as_ref());
    match said {
        None => lacks(
            "pod-spec",
            "no container runtime told the names, the preStop hook and the grace period: the chain ends at the signal"
                .into(),
        ),
        Some(said) => {
            if said.spec.is_none() {
                lacks("pod-spec", "the preStop hook and the grace period are not known".into());
            }
            // What docker and podman run was asked for by nobody's API.
            if said.pod.as_ref().is_some_and(|p| p.namespace.is_some()) {
                let effect =
                    "who had the pod stopped, and why, only the Kubernetes API knows: the chain ends at the signal";
                lacks("kubernetes-api", effect.into());
            }
        }
    }
    all.extend(unreachable(said.is_some(), from, to, view));
    all
}

/// The sources that could not be asked at some time between `from` and `to`.
pub fn unreachable(named: bool, from: BootNs, to: BootNs, view: &View) -> impl Iterator<Item = Missing> {
    view.sources.missed(from, to).map(move |(at, name, gap)| {
        let name = if name.is_empty() { at.to_owned() } else { format!("{name} ({at})") };
        let time = |t: BootNs| super::incident::time(view, t);
        let until = gap.to.map(|t| format!(" to {}", time(t))).unwrap_or_default();
        let known = if named { "what it had said before still counts" } else { "names come from it" };
        let effect = format!("{name} could not be asked from {}{until}: {}; {known}", time(gap.from), gap.why);
        Missing { fact: "runtime".into(), effect }
    })
}
