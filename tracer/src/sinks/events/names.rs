//! Which object of the API an Event is about.

use super::Object;
use crate::model::incident::Incident;
use crate::model::kube::{OwnerRef, Said};
use std::collections::BTreeMap;

/// Names that are remembered; then they begin anew.
const KNOWN: usize = 8_192;
/// Bytes of an object's name.
const NAME: usize = 253;

#[derive(Debug, Default)]
pub struct Names {
    /// By namespace and `Deployment/web`.
    uids: BTreeMap<(String, String), String>,
    /// A static pod has another uid in the API than on the node.
    pods: BTreeMap<String, String>,
}

impl Names {
    pub fn learn(&mut self, said: &Said) {
        match said {
            Said::Pod(pod) => {
                pod.owner.iter().for_each(|owner| self.owner(&pod.namespace, owner));
                if let Some(node) = &pod.static_uid {
                    remember(&mut self.pods, node.clone(), &pod.uid);
                }
            }
            Said::Owner(owner) => {
                owner.owner.iter().for_each(|above| self.owner(&owner.namespace, above));
                let itself = OwnerRef { kind: owner.kind.clone(), name: owner.name.clone(), uid: owner.uid.clone() };
                self.owner(&owner.namespace, &itself);
            }
            _ => {}
        }
    }

    fn owner(&mut self, namespace: &str, owner: &OwnerRef) {
        let key = (namespace.to_owned(), format!("{}/{}", owner.kind, owner.name));
        remember(&mut self.uids, key, &owner.uid);
    }

    /// `None`: nobody said its name.
    pub fn pod(&self, incident: &Incident) -> Option<Object> {
        let pod = incident.pod.as_ref()?;
        Some(Object {
            api_version: "v1",
            kind: "Pod".into(),
            namespace: pod.namespace.clone().filter(|name| is_label(name))?,
            name: pod.name.clone().filter(|name| is_name(name))?,
            uid: Some(self.pods.get(&pod.uid).unwrap_or(&pod.uid).clone()),
        })
    }

    /// `None`: it has none, or one of a kind that is not asked for.
    pub fn workload(&self, incident: &Incident) -> Option<Object> {
        let pod = incident.pod.as_ref()?;
        let (workload, namespace) = (pod.workload.clone()?, pod.namespace.clone().filter(|name| is_label(name))?);
        let (kind, name) = workload.split_once('/').filter(|(_, name)| is_name(name))?;
        let api_version = match kind {
            "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => "apps/v1",
            "Job" | "CronJob" => "batch/v1",
            _ => return None,
        };
        let (kind, name) = (kind.to_owned(), name.to_owned());
        let key = (namespace, workload);
        let uid = self.uids.get(&key).cloned();
        Some(Object { api_version, kind, namespace: key.0, name, uid })
    }
}

/// What the API takes as a name (a DNS subdomain of RFC 1123). Names may come from labels of a container that no kubelet made, and
/// a namespace becomes part of an address.
fn is_name(text: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    text.len() <= 253 && text.bytes().all(inside) && ends(text.bytes().next()) && ends(text.bytes().last())
}

/// Of a namespace.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_name(text) && !text.contains('.')
}

fn remember<K: Ord>(map: &mut BTreeMap<K, String>, key: K, uid: &str) {
    if map.len() >= KNOWN && !map.contains_key(&key) {
        map.clear();
    }
    map.insert(key, uid.to_owned());
}

/// `web-7d9f-x2k1.4c0e9a2f61d37b85`: as the other components name theirs, and the same for the same loss, so that one
/// that is written twice is there once.
pub fn of_event(about: &Object, first: &Incident) -> String {
    let parts = [&*first.boot_id, &first.id, first.cause.id(), &about.kind, &about.name];
    // FNV-1a, 64 bits: short, and the same everywhere.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let room = NAME - 17;
    let name = &about.name[..about.name.floor_char_boundary(room)];
    format!("{}.{hash:016x}", name.trim_end_matches(['.', '-']))
}
