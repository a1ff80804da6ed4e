//! What kubelet tells a runtime of a container in labels and annotations (pkg/kubelet/kuberuntime/labels.go).

use crate::model::input::{ContainerFact, PodFact, StopSpec};
use serde::Deserialize;
use std::collections::BTreeMap;

const CONTAINER: &str = "io.kubernetes.container.name";
const POD: &str = "io.kubernetes.pod.name";
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const UID: &str = "io.kubernetes.pod.uid";
/// Only kubelet writes it, on each container: with it, a hook that is not there does not exist.
const HASH: &str = "io.kubernetes.container.hash";
const RESTARTS: &str = "io.kubernetes.container.restartCount";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Of a pod that is being deleted: what the deletion asked for counts.
const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
/// A hook's JSON is no longer.
const HOOK_MAX: usize = 64 << 10;

/// The pod that the labels name.
pub(super) fn pod(labels: &BTreeMap<String, String>) -> Option<PodFact> {
    let uid = labels.get(UID).filter(|uid| !uid.is_empty())?;
    Some(PodFact { namespace: labels.get(NAMESPACE).cloned(), name: labels.get(POD).cloned(), uid: uid.clone() })
}

/// Adds what labels and annotations tell.
pub(super) fn add(fact: &mut ContainerFact, labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) {
    if fact.name.is_none() {
        fact.name = labels.get(CONTAINER).cloned();
    }
    if fact.pod.is_none() {
        fact.pod = pod(labels);
    }
    if let Some(restarts) = annotations.get(RESTARTS).and_then(|n| n.parse().ok()) {
        fact.restarts = Some(restarts);
    }
    if annotations.contains_key(HASH) {
        let seconds = |key: &str| annotations.get(key).and_then(|s| s.parse().ok());
        fact.spec = Some(StopSpec {
            pre_stop: annotations.get(PRE_STOP).and_then(|json| pre_stop(json)),
            grace_s: seconds(DELETION_GRACE).or_else(|| seconds(GRACE)),
        });
    }
}

/// The command of `{"exec":{"command":[…]}}`; other hooks run no command.
fn pre_stop(json: &str) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Handler {
        exec: Option<Exec>,
    }
    #[derive(Deserialize)]
    struct Exec {
        #[serde(default)]
        command: Vec<String>,
    }
    if json.len() > HOOK_MAX {
        return None;
    }
    serde_json::from_str::<Handler>(json).ok()?.exec.map(|e| e.command).filter(|c| !c.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn as_kubelet_writes_it() {
        let labels = map(&[(CONTAINER, "nginx"), (POD, "web-0"), (NAMESPACE, "shop"), (UID, "u-1")]);
        let hook = r#"{"exec":{"command":["/bin/sh","-c","sleep 5"]}}"#;
        let annotations = map(&[(HASH, "1f"), (RESTARTS, "2"), (GRACE, "40"), (PRE_STOP, hook)]);
        let mut fact = ContainerFact::default();
        add(&mut fact, &labels, &annotations);
        assert_eq!((fact.name.as_deref(), fact.restarts), (Some("nginx"), Some(2)));
        let pod = fact.pod.unwrap();
        assert_eq!(
            (pod.namespace.as_deref(), pod.name.as_deref(), pod.uid.as_str()),
            (Some("shop"), Some("web-0"), "u-1")
        );
        let spec = fact.spec.unwrap();
        assert_eq!(spec.pre_stop.unwrap(), ["/bin/sh", "-c", "sleep 5"]);
        assert_eq!(spec.grace_s, Some(40));
    }

    #[test]
    fn a_hook_is_known_to_be_absent_only_where_kubelet_wrote() {
        let mut fact = ContainerFact::default();
        add(&mut fact, &map(&[]), &map(&[(GRACE, "30")]));
        assert_eq!(fact.spec, None);
        add(&mut fact, &map(&[]), &map(&[(HASH, "1")]));
        assert_eq!(fact.spec, Some(StopSpec::default()));
        for other in ["{", r#"{"sleep":{"seconds":5}}"#, r#"{"exec":null}"#, r#"{"exec":{"command":[]}}"#] {
            assert_eq!(pre_stop(other), None, "{other}");
        }
    }
}
