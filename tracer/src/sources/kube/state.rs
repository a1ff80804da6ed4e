//! What is known of the cluster by now → the facts that a change makes, and what is to be asked because of it.

use super::ask::{Answers, Occasion, Question};
use super::read;
use super::watch::{Change, Kind};
use crate::model::input::SpecFact;
use crate::model::kube::{ApiState, EndpointState, NodeState, PodState, Said};
use kube::core::DynamicObject;
use std::collections::{BTreeMap, BTreeSet};

/// Events that were given, and owners that were asked for: beyond it they are given and asked for again.
const SEEN_MAX: usize = 16_384;

/// A fact before it is numbered: when by the API's clock, and what.
pub type Unnumbered = (Option<i64>, Said);

/// What follows from a change.
#[derive(Debug, Default)]
pub struct Outcome {
    /// With the pods' specs right after the pods.
    pub facts: Vec<Fact>,
    pub questions: Vec<Question>,
}

#[derive(Debug)]
pub enum Fact {
    Said(Box<Unnumbered>),
    Spec(SpecFact),
}

#[derive(Debug, Default)]
pub struct Cluster {
    node_name: String,
    pods: BTreeMap<String, PodState>,
    /// By slice, the pods of this node in it.
    slices: BTreeMap<String, BTreeMap<String, EndpointState>>,
    node: Option<NodeState>,
    owners: BTreeSet<String>,
    events: BTreeSet<String>,
    silent: BTreeMap<Kind, Option<String>>,
}

impl Outcome {
    fn say(&mut self, at: Option<i64>, said: Said) {
        self.facts.push(Fact::Said(Box::new((at, said))));
    }
}

impl Cluster {
    pub fn new(node: &str) -> Self {
        Cluster { node_name: node.to_owned(), ..Cluster::default() }
    }

    pub fn apply(&mut self, change: Change) -> Outcome {
        let mut out = Outcome::default();
        match change {
            Change::All(Kind::Pods, objects) => self.all_pods(&objects, &mut out),
            Change::Is(Kind::Pods, object) => self.pod(&object, &mut out),
            Change::Gone(Kind::Pods, object) => {
                // Its last state tells of a deletion that came and went at once.
                self.pod(&object, &mut out);
                self.gone(object.metadata.uid.as_deref().unwrap_or_default(), &mut out);
            }
            Change::All(kind @ (Kind::EndpointSlices | Kind::Endpoints), objects) => {
                let mut left: BTreeSet<String> = self.slices.keys().cloned().collect();
                for object in &objects {
                    left.remove(&key(kind, object));
                    self.slice(kind, object, true, &mut out);
                }
                left.iter().for_each(|key| self.entries(key, BTreeMap::new(), &mut out));
            }
            Change::Is(kind @ (Kind::EndpointSlices | Kind::Endpoints), object) => {
                self.slice(kind, &object, true, &mut out);
            }
            Change::Gone(kind @ (Kind::EndpointSlices | Kind::Endpoints), object) => {
                self.slice(kind, &object, false, &mut out);
            }
            Change::All(Kind::Nodes, objects) => objects.iter().for_each(|object| self.node(object, &mut out)),
            Change::Is(Kind::Nodes, object) => self.node(&object, &mut out),
            Change::Gone(Kind::Nodes, _) => {}
            Change::Silent(kind, why) => self.silent(kind, why, &mut out),
            Change::Answers(answers) => self.answers(answers, &mut out),
        }
        out
    }

    fn all_pods(&mut self, objects: &[DynamicObject], out: &mut Outcome) {
        let now: BTreeSet<&str> = objects.iter().filter_map(|o| o.metadata.uid.as_deref()).collect();
        let gone: Vec<String> = self.pods.keys().filter(|uid| !now.contains(uid.as_str())).cloned().collect();
        gone.iter().for_each(|uid| self.gone(uid, out));
        objects.iter().for_each(|object| self.pod(object, out));
    }

    fn pod(&mut self, object: &DynamicObject, out: &mut Outcome) {
        let Some((pod, deleted)) = read::pod(object) else { return };
        let known = self.pods.get(&pod.uid);
        if known == Some(&pod) {
            return;
        }
        let question = |why| Question {
            pod: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            owner: pod.owner.clone(),
            why,
        };
        let first = known.is_none();
        out.say(deleted, Said::Pod(pod.clone()));
        if first {
            out.facts.extend(read::pod_spec(object).into_iter().map(Fact::Spec));
        }
        let restarts = |p: &PodState| p.containers.iter().map(|c| u64::from(c.restarts)).sum::<u64>();
        let deleted_now = pod.deleted_grace_s.is_some() && known.is_none_or(|k| k.deleted_grace_s.is_none());
        let ended = known.is_some_and(|k| restarts(k) < restarts(&pod) || k.reason.is_none() && pod.reason.is_some());
        let unready = known.is_some_and(|k| k.ready == Some(true) && pod.ready == Some(false));
        if deleted_now {
            out.questions.push(question(Occasion::Deleted));
        } else if ended || unready && pod.deleted_grace_s.is_none() {
            out.questions.push(question(Occasion::Ended));
        } else if first && pod.owner.as_ref().is_some_and(|o| bounded(&mut self.owners, o.uid.clone())) {
            out.questions.push(question(Occasion::FirstSight));
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn gone(&mut self, uid: &str, out: &mut Outcome) {
        if self.pods.remove(uid).is_some() {
            out.say(None, Said::PodGone { uid: uid.to_owned() });
        }
    }

    fn slice(&mut self, kind: Kind, object: &DynamicObject, there: bool, out: &mut Outcome) {
        let mut now: BTreeMap<String, EndpointState> = BTreeMap::new();
        for e in read::endpoints(object, &self.node_name).into_iter().filter(|_| there) {
            // A pod with two addresses is there twice.
            let ready = now.get(&e.pod_uid).is_some_and(|other| other.ready) || e.ready;
            now.insert(e.pod_uid.clone(), EndpointState { ready, ..e });
        }
        self.entries(&key(kind, object), now, out);
    }

    fn entries(&mut self, key: &str, now: BTreeMap<String, EndpointState>, out: &mut Outcome) {
        let before = self.slices.remove(key).unwrap_or_default();
        for old in before.values().filter(|old| !now.contains_key(&old.pod_uid)) {
            out.say(None, Said::Endpoint(EndpointState { present: false, ready: false, ..old.clone() }));
        }
        for new in now.values().filter(|new| before.get(&new.pod_uid) != Some(new)) {
            out.say(None, Said::Endpoint(new.clone()));
        }
        if !now.is_empty() {
            self.slices.insert(key.to_owned(), now);
        }
    }

    fn node(&mut self, object: &DynamicObject, out: &mut Outcome) {
        let (node, at) = read::node(object);
        if self.node.as_ref() != Some(&node) {
            out.say(at, Said::Node(node.clone()));
            self.node = Some(node);
        }
    }

    fn silent(&mut self, kind: Kind, why: Option<String>, out: &mut Outcome) {
        // Told at each change; the reason may differ from one attempt to the next.
        let known = self.silent.get(&kind).map(Option::is_none);
        if known == Some(why.is_none()) {
            return;
        }
        let live = why.is_none();
        out.say(None, Said::Api(ApiState { resource: kind.plural().to_owned(), live, why: why.clone() }));
        self.silent.insert(kind, why);
    }

    fn answers(&mut self, answers: Answers, out: &mut Outcome) {
        for owner in answers.owners {
            out.say(None, Said::Owner(owner));
        }
        for (event, at, version) in answers.events {
            if bounded(&mut self.events, version) {
                out.say(at, Said::Event(event));
            }
        }
        if answers.question.why != Occasion::FirstSight {
            out.say(None, Said::Asked { uid: answers.question.pod, failed: answers.failed });
        }
    }
}

impl Kind {
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Pods => "pods",
            Kind::Nodes => "nodes",
            Kind::EndpointSlices => "endpointslices",
            Kind::Endpoints => "endpoints",
        }
    }
}

/// True the first time.
fn bounded(set: &mut BTreeSet<String>, key: String) -> bool {
    if set.len() >= SEEN_MAX {
        set.clear();
    }
    set.insert(key)
}

fn key(kind: Kind, object: &DynamicObject) -> String {
    let meta = &object.metadata;
    let of = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}/{}", kind.plural(), of(&meta.namespace), of(&meta.name))
}
