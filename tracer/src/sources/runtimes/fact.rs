//! What all sources of container facts share: bounds, the wall clock, Docker's way to say things.

use crate::kernel::clock;
use crate::model::BootNs;
use crate::model::input::{ContainerFact, StopSpec};
use crate::sources::kubelet;
use std::collections::BTreeMap;

/// Names in Kubernetes have at most 253 characters.
const NAME_MAX: usize = 256;
/// Images with registry, path and digest.
const IMAGE_MAX: usize = 512;
const LABELS_MAX: usize = 64;
const LABEL_MAX: usize = 1024;
/// Bytes of a preStop command. A record keeps 256 of what ran: nothing after that is ever compared.
const COMMAND_MAX: usize = 8 << 10;

/// An id as all runtimes make them: only such a one is ever found in a cgroup's path.
pub(in crate::sources) fn is_id(id: &str) -> bool {
    (12..=64).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
}

/// Bounds what is kept of it: whoever makes containers chooses names and labels. An empty name is none.
pub(in crate::sources) fn clip(fact: &mut ContainerFact) {
    for (text, max) in [(&mut fact.name, NAME_MAX), (&mut fact.image, IMAGE_MAX)] {
        if text.as_ref().is_some_and(String::is_empty) {
            *text = None;
        }
        text.iter_mut().for_each(|text| cut(text, max));
    }
    if let Some(pod) = &mut fact.pod {
        cut(&mut pod.uid, NAME_MAX);
        [&mut pod.name, &mut pod.namespace].into_iter().flatten().for_each(|text| cut(text, NAME_MAX));
    }
    let labels = std::mem::take(&mut fact.labels).into_iter().take(LABELS_MAX);
    fact.labels = labels
        .map(|(mut key, mut value)| {
            cut(&mut key, LABEL_MAX);
            cut(&mut value, LABEL_MAX);
            (key, value)
        })
        .collect();
    if let Some(command) = fact.spec.as_mut().and_then(|s| s.pre_stop.as_mut()) {
        let mut left = COMMAND_MAX;
        command.retain_mut(|arg| {
            let kept = left > 0;
            cut(arg, left);
            left = left.saturating_sub(arg.len() + 1);
            kept
        });
    }
    cut(&mut fact.source, LABEL_MAX);
}

/// A runtime's wall time on the boot clock; 0 before the boot, or when it is none.
pub(in crate::sources) fn boot_of(wall_ns: i64) -> BootNs {
    let now = clock::sample();
    let offset = now.wall_ns.saturating_sub_unsigned(now.boot_ns);
    u64::try_from(wall_ns.saturating_sub(offset)).unwrap_or(0)
}

/// A container as Docker's API and Docker's files have it, podman's as well.
#[derive(Debug)]
pub(in crate::sources) struct Docker {
    pub id: String,
    pub source: String,
    pub runtime: &'static str,
    /// With a leading slash.
    pub name: String,
    pub image: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub restarts: Option<u32>,
    pub stop_signal: Option<u32>,
    /// Seconds; -1: without end.
    pub stop_timeout: Option<i64>,
    pub cgroup_parent: String,
    /// RFC 3339.
    pub created: Option<String>,
}

impl Docker {
    pub(in crate::sources) fn fact(self) -> ContainerFact {
        let created = self.created.and_then(|at| at.parse::<jiff::Timestamp>().ok());
        let mut fact = ContainerFact {
            at: created.and_then(|at| i64::try_from(at.as_nanosecond()).ok()).map_or(0, boot_of),
            id: self.id,
            source: self.source,
            runtime: Some(self.runtime.into()),
            image: self.image,
            restarts: self.restarts,
            stop_signal: self.stop_signal,
            ..ContainerFact::default()
        };
        // Images have labels too: kubelet's are believed only where it put the container as well.
        let pod = kubelet::pod(&self.labels).filter(|pod| self.cgroup_parent.replace('_', "-").contains(&pod.uid));
        if pod.is_some() {
            // What is an annotation elsewhere is a label here (cri-dockerd).
            let annotation =
                |(key, value): (&String, &String)| Some((key.strip_prefix("annotation.")?.to_owned(), value.clone()));
            let annotations = self.labels.iter().filter_map(annotation).collect();
            kubelet::add(&mut fact, &self.labels, &annotations);
        } else {
            // Nobody's hook: this is all there is to say about its stop.
            let grace_s = self.stop_timeout.and_then(|s| u64::try_from(s).ok());
            fact.spec = Some(StopSpec { pre_stop: None, grace_s });
        }
        fact.name = fact.name.or_else(|| Some(self.name.trim_start_matches('/').to_owned()));
        fact.labels = self.labels;
        clip(&mut fact);
        fact
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::input::PodFact;

    fn docker(labels: &[(&str, &str)], cgroup_parent: &str) -> ContainerFact {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let docker = Docker {
            id: "a".repeat(64),
            source: "x".into(),
            runtime: "docker",
            name: "/web".into(),
            image: Some("nginx".into()),
            labels,
            restarts: Some(1),
            stop_signal: Some(3),
            stop_timeout: None,
            cgroup_parent: cgroup_parent.into(),
            created: Some("2026-11-22T14:03:22.118Z".into()),
        };
        docker.fact()
    }

    #[test]
    fn kubelets_labels_are_believed_below_kubelets_cgroup_only() {
        let labels = [
            ("io.kubernetes.pod.uid", "1-2"),
            ("io.kubernetes.pod.name", "web-0"),
            ("io.kubernetes.container.name", "nginx"),
            ("annotation.io.kubernetes.container.hash", "1"),
            ("annotation.io.kubernetes.pod.terminationGracePeriod", "30"),
        ];
        let image = docker(&labels, "");
        assert_eq!((image.name.as_deref(), &image.pod), (Some("web"), &None), "an image that says so");
        let real = docker(&labels, "kubepods-burstable-pod1_2.slice");
        assert_eq!(real.name.as_deref(), Some("nginx"));
        assert_eq!(real.pod, Some(PodFact { namespace: None, name: Some("web-0".into()), uid: "1-2".into() }));
        assert_eq!(real.spec.unwrap().grace_s, Some(30));
    }

    #[test]
    fn bounded_whatever_is_said() {
        let mut fact = ContainerFact {
            name: Some("é".repeat(4000)),
            image: Some(String::new()),
            labels: (0..1000).map(|n| (n.to_string(), "v".repeat(9999))).collect(),
            spec: Some(StopSpec { pre_stop: Some(vec!["x".repeat(9000), "y".into()]), grace_s: None }),
            ..ContainerFact::default()
        };
        clip(&mut fact);
        assert!(fact.name.as_ref().is_some_and(|n| n.len() <= NAME_MAX && n.starts_with('é')));
        assert_eq!(fact.image, None);
        assert!(fact.labels.len() == LABELS_MAX && fact.labels.values().all(|v| v.len() == LABEL_MAX));
        assert_eq!(fact.spec.unwrap().pre_stop.unwrap().len(), 1);
    }

    #[test]
    fn times_before_the_boot_are_none() {
        assert_eq!(boot_of(0), 0);
        let now = clock::sample();
        let back = boot_of(now.wall_ns);
        assert!(back.abs_diff(now.boot_ns) < 1_000_000_000, "{back}");
    }

    #[test]
    fn ids() {
        assert!(is_id(&"0a".repeat(32)) && is_id("0123456789ab"));
        for bad in ["", "0123456789a", "../../etc/pas", &"0A".repeat(32), &"a".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
