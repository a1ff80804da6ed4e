//! What is said about a container: by its runtime, or by the specs that were given. They are joined here and nowhere else.

use super::sender::{Sender, sender_kind};
use super::{View, kube};
use crate::correlate::history::{Signal, sig};
use crate::correlate::pods::{self, Pods};
use crate::identity::{ContainerInfo, Place, Runtime};
use crate::model::BootNs;
use crate::model::incident::{Container, Missing, Pod};
use crate::model::input::{SpecFact, StopSpec};

pub fn pod_of(c: &ContainerInfo, pods: &Pods) -> Option<Pod> {
    if let Some(pod) = pods.of(&c.container) {
        let state = &pod.state.what;
        return Some(Pod {
            namespace: Some(state.namespace.clone()),
            name: Some(state.name.clone()),
            uid: state.uid.clone(),
            workload: kube::workload(pod, pods),
        });
    }
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

pub fn container_of(c: &ContainerInfo, pods: &Pods) -> Container {
    let said = c.said.as_ref();
    let runtime = || said.and_then(|s| Runtime::by_id(s.runtime.as_deref()?));
    let api = || pods.of(&c.container)?.container(&c.container.id).map(str::to_owned);
    Container {
        id: c.container.id.clone(),
        name: said.and_then(|s| s.name.clone()).or_else(api),
        runtime: c.container.runtime.or_else(runtime).map(|r| r.id().to_string()),
    }
}

/// What the API says of this container's spec: it is the spec.
fn of_api<'v>(c: Option<&'v ContainerInfo>, view: &'v View) -> impl Iterator<Item = &'v SpecFact> {
    let pod = c.and_then(|c| Some((view.pods.of(&c.container)?, c)));
    pod.into_iter().flat_map(|(pod, c)| pod.specs(&c.container.id))
}

/// What the runtime was told of this container's spec: better than any file, whose pod may be another one.
fn spec(c: Option<&ContainerInfo>) -> Option<&StopSpec> {
    c?.said.as_ref()?.spec.as_ref()
}

/// The preStop commands that may be this container's: its own by the API, or by its runtime, else those of all specs that
/// were given.
pub fn hooks<'v>(c: Option<&'v ContainerInfo>, view: &'v View) -> impl Iterator<Item = &'v [String]> {
    let by_api = of_api(c, view).next().is_some();
    let own = spec(c).filter(|_| !by_api);
    let known = by_api || own.is_some();
    let given = view.history.specs().iter().filter(move |_| !known).filter_map(|s| s.pre_stop.as_deref());
    let api = of_api(c, view).filter_map(|spec| spec.pre_stop.as_deref());
    api.chain(own.and_then(|s| s.pre_stop.as_deref())).chain(given)
}

/// Seconds of grace: the container's own, else what the specs that were given say when all of them say the same: which of
/// them is this pod's is not known.
pub fn grace_s(c: Option<&ContainerInfo>, view: &View) -> Option<u64> {
    if let Some(spec) = of_api(c, view).next() {
        return Some(spec.grace_s);
    }
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
        // The API has only what the pod's spec says, the runtime what the image does as well.
        Place::Container(c) => {
            let runtime = c.said.as_ref().and_then(|s| s.stop_signal);
            runtime.or_else(|| of_api(Some(c), view).next()?.stop_signal)
        }
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
    let pod = c.and_then(|c| view.pods.of(&c.container));
    let spec = said.is_some_and(|s| s.spec.is_some()) || of_api(c, view).next().is_some();
    match (said, pod) {
        (None, None) => lacks(
            "pod-spec",
            "no container runtime told the names, the preStop hook and the grace period: the chain ends at the signal"
                .into(),
        ),
        _ if !spec => lacks("pod-spec", "the preStop hook and the grace period are not known".into()),
        _ => {}
    }
    // What docker and podman run was asked for by nobody's API.
    let of_a_pod = said.and_then(|s| s.pod.as_ref()).is_some_and(|p| p.namespace.is_some());
    if of_a_pod && pod.is_none() && view.pods.down().is_none() {
        let effect = "who had the pod stopped, and why, only the Kubernetes API knows: the chain ends at the signal";
        lacks("kubernetes-api", effect.into());
    }
    if let Some(failed) = pod.and_then(|p| p.asked.as_ref()).filter(|asked| !asked.what.is_empty()) {
        let effect =
            format!("the Kubernetes API did not give {}: the trigger may be known no closer", failed.what.join(", "));
        lacks("kubernetes-facts", effect);
    }
    all.extend(silent_api(pod, view));
    all.extend(unreachable(said.is_some(), from, to, view));
    all
}

/// The Kubernetes API is to be asked, and cannot be.
pub fn silent_api(pod: Option<&pods::Pod>, view: &View) -> Option<Missing> {
    let down = view.pods.down()?;
    let why = down.what.why.as_deref().unwrap_or("no answer");
    let known = if pod.is_some() { "what it had said before still counts" } else { "the chain ends at the signal" };
    let since = super::incident::time(view, down.at);
    let effect = format!("the Kubernetes API could not be asked since {since}: {why}; {known}");
    Some(Missing { fact: "kubernetes-api".into(), effect })
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
