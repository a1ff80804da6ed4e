//! What the Kubernetes API said of this node's pods, kept as it came: who they are, when they were deleted, when they left
//! their services, who owns them. What follows from it is for `explain::kube` to say. Bounded like everything that others
//! fill.

use crate::identity::ContainerRef;
use crate::model::BootNs;
use crate::model::input::SpecFact;
use crate::model::kube::{
    ApiState, Condition, EndpointState, FactId, KubeEvent, KubeFact, NodeState, OwnerState, PodState, Said,
};
use crate::model::time::WallClock;
use std::collections::{BTreeMap, VecDeque};

/// Pods that are remembered; a node runs 110 unless told otherwise, and those that are gone are kept for late losses.
const MAX_PODS: usize = 2_048;
/// Owners, and objects with Events.
const MAX_OBJECTS: usize = 8_192;
/// Changes of one owner, of one pod's endpoints, Events of one object.
const MAX_CHANGES: usize = 64;
/// The API's times are cut to it.
pub const SECOND_NS: u64 = 1_000_000_000;
/// Containers of one pod.
const MAX_CONTAINERS: usize = 256;

/// A fact with its times on this host's boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    pub id: FactId,
    /// By the API's clock where it has one, but never after `seen_at`.
    pub at: BootNs,
    pub seen_at: BootNs,
    pub what: T,
}

/// One pod's story so far.
#[derive(Clone, Debug)]
pub struct Pod {
    pub state: Fact<PodState>,
    /// The first word of its deletion, with the grace period in seconds.
    pub deleted: Option<Fact<u64>>,
    pub gone: Option<Fact<()>>,
    /// The first state with a status.reason: evicted, terminated with its node.
    pub ended: Option<Fact<PodState>>,
    pub disruption: Option<Fact<Condition>>,
    /// Changes, oldest first.
    pub endpoints: VecDeque<Fact<EndpointState>>,
    /// When everything had been asked for last, and what could not be.
    pub asked: Option<Fact<Vec<String>>>,
    specs: Vec<SpecFact>,
    /// Names of its containers by their ids: the status forgets those that were started again.
    containers: BTreeMap<String, String>,
}

/// A pod stopped being ready in the last of its slices.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    pub fact: &'a Fact<EndpointState>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pods {
    pods: BTreeMap<String, Pod>,
    /// uid in cgroup paths of a static pod → uid in the API.
    static_uids: BTreeMap<String, String>,
    owners: BTreeMap<String, VecDeque<Fact<OwnerState>>>,
    events: BTreeMap<String, VecDeque<Fact<KubeEvent>>>,
    node: VecDeque<Fact<NodeState>>,
    api: BTreeMap<String, Fact<ApiState>>,
    evicted: u64,
}

impl Pod {
    /// When no service had it as ready any more, and has not since.
    pub fn left(&self) -> Option<Left<'_>> {
        let mut ready: BTreeMap<&str, bool> = BTreeMap::new();
        let mut left = None;
        for fact in &self.endpoints {
            let before = ready.values().any(|r| *r);
            ready.insert(&fact.what.slice, fact.what.present && fact.what.ready);
            match (before, ready.values().any(|r| *r)) {
                (true, false) => left = Some(Left { fact }),
                (_, true) => left = None,
                (false, false) => {}
            }
        }
        left
    }

    /// The name that this container has in the pod.
    pub fn container(&self, id: &str) -> Option<&str> {
        self.containers.get(id).map(String::as_str)
    }

    /// What its spec says of stopping this container; of all of them while its status does not name the container.
    pub fn specs(&self, id: &str) -> impl Iterator<Item = &SpecFact> {
        let name = self.container(id);
        self.specs.iter().filter(move |spec| name.is_none_or(|name| spec.container == name))
    }

    /// When it was deleted at the latest: the API's time is the beginning of a second, and what was seen had happened.
    pub fn deleted_by(&self) -> Option<BootNs> {
        self.deletion().map(|(_, at, seen_at, _)| seen_at.min(at.saturating_add(SECOND_NS)))
    }

    /// When it was deleted: gone without a word is deleted without grace.
    pub fn deletion(&self) -> Option<(FactId, BootNs, BootNs, u64)> {
        let said = self.deleted.as_ref().map(|d| (d.id, d.at, d.seen_at, d.what));
        said.or_else(|| self.gone.as_ref().map(|g| (g.id, g.at, g.seen_at, 0)))
    }
}

impl Pods {
    pub fn observe(&mut self, fact: &KubeFact, clock: &WallClock) {
        let seen_at = fact.seen_at;
        let at = fact.at.and_then(|t| clock.boot_ns(t)).map_or(seen_at, |t| t.min(seen_at));
        fn of<T>((id, at, seen_at): (FactId, BootNs, BootNs), what: T) -> Fact<T> {
            Fact { id, at, seen_at, what }
        }
        let when = (fact.id, at, seen_at);
        match &fact.said {
            // Its time is that of the deletion: other changes are as old as their sight.
            Said::Pod(pod) => self.pod(of((fact.id, seen_at, seen_at), pod.clone()), at),
            Said::PodGone { uid } => {
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.gone.get_or_insert(of(when, ()));
                }
            }
            Said::Endpoint(e) => {
                if let Some(pod) = self.pods.get_mut(&e.pod_uid) {
                    push(&mut pod.endpoints, of(when, e.clone()));
                }
            }
            Said::Owner(o) => {
                self.evicted += room(&mut self.owners, &o.uid, MAX_OBJECTS, |facts| facts.back().map(|f| f.seen_at));
                push(self.owners.entry(o.uid.clone()).or_default(), of(when, o.clone()));
            }
            Said::Event(e) => {
                let uid = &e.about.uid;
                self.evicted += room(&mut self.events, uid, MAX_OBJECTS, |facts| facts.back().map(|f| f.seen_at));
                push(self.events.entry(uid.clone()).or_default(), of(when, e.clone()));
            }
            Said::Node(n) => push(&mut self.node, of(when, n.clone())),
            Said::Asked { uid, failed } => {
                if let Some(pod) = self.pods.get_mut(uid) {
                    pod.asked = Some(of(when, failed.clone()));
                }
            }
            Said::Api(api) => {
                if self.api.len() < MAX_CHANGES || self.api.contains_key(&api.resource) {
                    self.api.insert(api.resource.clone(), of(when, api.clone()));
                }
            }
        }
    }

    fn pod(&mut self, fact: Fact<PodState>, deleted_at: BootNs) {
        let uid = fact.what.uid.clone();
        let rank = |pod: &Pod| Some((pod.gone.is_none(), pod.state.seen_at));
        self.evicted += room(&mut self.pods, &uid, MAX_PODS, rank);
        if let Some(path_uid) = &fact.what.static_uid {
            if self.static_uids.len() >= MAX_PODS {
                self.static_uids.retain(|_, uid| self.pods.contains_key(uid));
            }
            self.static_uids.insert(path_uid.clone(), uid.clone());
        }
        let Fact { id, seen_at, .. } = fact;
        let pod = self.pods.entry(uid).or_insert_with(|| Pod {
            state: fact.clone(),
            deleted: None,
            gone: None,
            ended: None,
            disruption: None,
            endpoints: VecDeque::new(),
            asked: None,
            specs: Vec::new(),
            containers: BTreeMap::new(),
        });
        let named = fact.what.containers.iter().filter_map(|c| Some((c.id.clone()?, c.name.clone())));
        for (id, name) in named {
            if pod.containers.len() >= MAX_CONTAINERS {
                pod.containers.pop_first();
            }
            pod.containers.insert(id, name);
        }
        if let Some(grace) = fact.what.deleted_grace_s {
            pod.deleted.get_or_insert(Fact { id, at: deleted_at, seen_at, what: grace });
        }
        if let Some(condition) = &fact.what.disruption {
            pod.disruption.get_or_insert(Fact { id, at: seen_at, seen_at, what: condition.clone() });
        }
        if fact.what.reason.is_some() {
            pod.ended.get_or_insert(fact.clone());
        }
        pod.state = fact;
    }

    /// What the API says about how a container of one pod is stopped: that of the last time.
    pub fn spec(&mut self, spec: &SpecFact) {
        let pod = spec.pod_uid.as_ref().and_then(|uid| self.pods.get_mut(uid));
        let Some(specs) = pod.map(|pod| &mut pod.specs) else { return self.evicted += 1 };
        specs.retain(|old| old.container != spec.container);
        if specs.len() < MAX_CONTAINERS {
            specs.push(spec.clone());
        } else {
            self.evicted += 1;
        }
    }

    /// The pod that a container belongs to: by its cgroup path, else by the id that the pod's status has.
    pub fn of(&self, container: &ContainerRef) -> Option<&Pod> {
        let by_path = container.pod_uid.as_ref().and_then(|uid| {
            let uid = self.static_uids.get(uid).unwrap_or(uid);
            self.pods.get(uid)
        });
        by_path.or_else(|| self.pods.values().find(|pod| pod.container(&container.id).is_some()))
    }

    /// What was said of an owner, oldest first.
    pub fn owner(&self, uid: &str) -> impl DoubleEndedIterator<Item = &Fact<OwnerState>> {
        self.owners.get(uid).into_iter().flatten()
    }

    /// The Events about an object, in the order in which they came.
    pub fn events(&self, uid: &str) -> impl DoubleEndedIterator<Item = &Fact<KubeEvent>> {
        self.events.get(uid).into_iter().flatten()
    }

    /// What was said of the node, oldest first.
    pub fn node(&self) -> impl DoubleEndedIterator<Item = &Fact<NodeState>> {
        self.node.iter()
    }

    /// The pods of this node are watched.
    pub fn live(&self) -> bool {
        self.api.get("pods").is_some_and(|api| api.what.live)
    }

    /// The API is to be asked, and cannot be.
    pub fn down(&self) -> Option<&Fact<ApiState>> {
        self.api.get("pods").filter(|api| !api.what.live)
    }

    /// The pod of a container that lost something at `at`, when more will be heard of why that ended.
    pub fn expects_more(&self, container: &ContainerRef, at: BootNs) -> Option<&str> {
        let pod = self.of(container).filter(|_| self.live())?;
        let uid = pod.state.what.uid.as_str();
        self.told(uid, at).is_none().then_some(uid)
    }

    /// When all was heard of why this pod's container ended, which lost something at `at`: after the deletion of the pod, or
    /// after the loss.
    pub fn told(&self, uid: &str, at: BootNs) -> Option<BootNs> {
        let pod = self.pods.get(uid)?;
        let since = pod.deletion().map_or(at, |(_, _, seen_at, _)| seen_at.min(at));
        pod.asked.as_ref().map(|asked| asked.seen_at).filter(|asked| *asked >= since)
    }

    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

fn push<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() >= MAX_CHANGES {
        list.pop_front();
    }
    list.push_back(item);
}

/// Makes room for one more key: an eighth of all, those least by `rank`, go at once. Returns how many did.
fn room<V, R: Ord>(map: &mut BTreeMap<String, V>, key: &str, most: usize, rank: impl Fn(&V) -> R) -> u64 {
    if map.len() < most || map.contains_key(key) {
        return 0;
    }
    let mut all: Vec<_> = map.iter().map(|(k, v)| (rank(v), k.clone())).collect();
    all.sort_unstable();
    all.truncate((most / 8).max(1));
    all.iter().for_each(|(_, k)| drop(map.remove(k)));
    all.len() as u64
}
