//! What is asked for beside the watches, when a pod of this node is deleted or a container of it ends: its owners as they
//! are now, and the Events about them. Nobody watches the whole cluster's Events on every node.

use super::connect::{self, Connection};
use super::read;
use crate::model::kube::{KubeEvent, OwnerRef, OwnerState};
use kube::Api;
use kube::api::{ApiResource, ListParams};
use kube::core::DynamicObject;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// For all answers together: a verdict waits for them.
const PATIENCE: Duration = Duration::from_secs(4);
/// A controller writes its Event a moment after its deed.
const AGAIN: Duration = Duration::from_millis(700);
const TIMES: usize = 3;
/// Events of one object.
const EVENTS_MAX: u32 = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub pod: String,
    pub namespace: String,
    pub name: String,
    pub owner: Option<OwnerRef>,
    pub why: Occasion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A pod of an owner that is not known yet.
    FirstSight,
    Deleted,
    /// A container of it ended.
    Ended,
}

#[derive(Debug)]
pub struct Answers {
    pub question: Question,
    pub owners: Vec<OwnerState>,
    /// With when each happened, and what tells its versions apart.
    pub events: Vec<(KubeEvent, Option<i64>, String)>,
    /// What was not allowed, or failed.
    pub failed: Vec<String>,
}

/// Which resource an owner of this kind is; `None`: one that is not asked for.
fn resource(kind: &str) -> Option<ApiResource> {
    let (group, plural) = match kind {
        "ReplicaSet" => ("apps", "replicasets"),
        "Deployment" => ("apps", "deployments"),
        "StatefulSet" => ("apps", "statefulsets"),
        "DaemonSet" => ("apps", "daemonsets"),
        "Job" => ("batch", "jobs"),
        _ => return None,
    };
    Some(ApiResource {
        group: group.into(),
        version: "v1".into(),
        api_version: format!("{group}/v1"),
        kind: kind.into(),
        plural: plural.into(),
    })
}

fn events() -> ApiResource {
    ApiResource {
        group: "".into(),
        version: "v1".into(),
        api_version: "v1".into(),
        kind: "Event".into(),
        plural: "events".into(),
    }
}

/// Asks, within its time: what does not come until then is among what failed.
pub async fn ask(connection: &Connection, question: Question) -> Answers {
    let until = Instant::now() + PATIENCE;
    let mut answers = Answers { question, owners: Vec::new(), events: Vec::new(), failed: Vec::new() };
    let (number, client) = match timeout_at(until, connection.client()).await {
        Ok(Ok(found)) => found,
        _ => {
            answers.failed.extend(["owners".to_string(), "events".to_string()]);
            return answers;
        }
    };
    let done = timeout_at(until, all(&client, &mut answers)).await;
    match done {
        Ok(refused) if refused => connection.refused(number).await,
        Ok(_) => {}
        Err(_) => answers.failed.push("answers in time".into()),
    }
    answers
}

/// True when the server does not know us.
async fn all(client: &kube::Client, answers: &mut Answers) -> bool {
    let question = answers.question.clone();
    let mut refused = false;
    let mut next = question.owner.clone();
    // A ReplicaSet's Deployment, a Job's CronJob: no chain of owners is longer.
    for _ in 0..2 {
        let Some((owner, api)) = next.take().and_then(|o| Some((o.clone(), resource(&o.kind)?))) else { break };
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), &question.namespace, &api);
        match objects.get(&owner.name).await {
            Ok(object) => {
                // Another one of the same name says nothing about this pod.
                let state = read::owner(&owner.kind, &object).filter(|state| state.uid == owner.uid);
                next = state.as_ref().and_then(|s| s.owner.clone());
                answers.owners.extend(state);
            }
            // Deleted before its pods.
            Err(e) if connect::status(&e) == Some(404) => {}
            Err(e) => {
                refused |= connect::status(&e) == Some(401);
                answers.failed.push(api.plural);
            }
        }
    }
    if question.why == Occasion::FirstSight {
        return refused;
    }
    let of: Vec<String> =
        std::iter::once(question.pod.clone()).chain(answers.owners.iter().map(|o| o.uid.clone())).collect();
    let all: Api<DynamicObject> = Api::namespaced_with(client.clone(), &question.namespace, &events());
    for attempt in 0..TIMES {
        if attempt > 0 {
            sleep(AGAIN).await;
        }
        for uid in &of {
            let wanted = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(EVENTS_MAX);
            match all.list(&wanted).await {
                Ok(found) => found.items.iter().for_each(|object| keep(answers, object)),
                Err(e) => {
                    refused |= connect::status(&e) == Some(401);
                    answers.failed.push("events".into());
                    return refused;
                }
            }
        }
        if told(answers) {
            break;
        }
    }
    refused
}

/// Events of owners only when they are about this pod, or about their scale.
fn keep(answers: &mut Answers, object: &DynamicObject) {
    let Some((event, at)) = read::event(object) else { return };
    let of_pod = event.about.uid == answers.question.pod;
    if !of_pod && event.reason == "SuccessfulDelete" && !event.message.contains(&answers.question.name) {
        return;
    }
    let meta = &object.metadata;
    let version = [meta.uid.as_deref(), meta.resource_version.as_deref()].map(Option::unwrap_or_default).join("/");
    if !answers.events.iter().any(|(_, _, known)| *known == version) {
        answers.events.push((event, at, version));
    }
}

/// The Event that says who did it is there; or nobody but a person could have.
fn told(answers: &Answers) -> bool {
    let any = |reason: &str| answers.events.iter().any(|(e, ..)| e.reason == reason);
    match answers.question.why {
        Occasion::Deleted => answers.owners.is_empty() || any("SuccessfulDelete") || any("TaintManagerEviction"),
        _ => any("Killing") || any("Evicted"),
    }
}
