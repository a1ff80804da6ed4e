//! What `why502 doctor` wants to know: whether the API answers, and what we may do there.

use super::connect::{self, Connection, Place};
use super::watch::{Kind, Resource};
use kube::Api;
use kube::api::{ApiResource, ListParams, PostParams};
use kube::core::DynamicObject;
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

const ANSWER: Duration = Duration::from_secs(5);

/// What is needed, and for what.
const NEEDED: &[(&str, &str, &[&str], &str)] = &[
    ("", "pods", &["list", "watch"], "names, deletions, preStop hooks"),
    ("", "nodes", &["list", "watch"], "node shutdown"),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"], "when a pod left its services"),
    ("", "events", &["list"], "liveness kills, who deleted a pod"),
    ("apps", "replicasets", &["get"], "rollout and scale-down told apart"),
    ("apps", "deployments", &["get"], "rollout and scale-down told apart"),
    ("apps", "statefulsets", &["get"], "likewise, for StatefulSets"),
    ("apps", "daemonsets", &["get"], "likewise, for DaemonSets"),
    ("batch", "jobs", &["get"], "names of CronJobs"),
];

/// What `serve --events` needs as well.
const EVENTS: (&str, &str, &[&str], &str) =
    ("events.k8s.io", "events", &["create", "patch"], "Events on pods and workloads (serve --events)");

/// One right.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Access {
    /// `pods list,watch`
    pub what: String,
    pub allowed: bool,
    /// What is not known without it, or not done.
    pub gives: String,
    /// It is for writing.
    pub writes: bool,
}

#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Examined {
    /// Why the API cannot be asked.
    pub error: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The node is known there; `None`: nobody may ask.
    pub node_known: Option<bool>,
    /// Pods of this node; `None`: nobody may ask.
    pub pods: Option<usize>,
    pub access: Vec<Access>,
}

/// Asks for all that a running source would, and with `events` for what writing them takes.
pub async fn examine(place: Place, node: &str, events: bool) -> Examined {
    let mut found = Examined::default();
    if let Err(why) = look(place, node, events, &mut found).await {
        found.error = Some(why);
    }
    found
}

async fn look(place: Place, node: &str, events: bool, found: &mut Examined) -> Result<(), String> {
    let late = |_| "no answer in time".to_string();
    let (_, client) = Connection::new(place).client().await?;
    let version = timeout(ANSWER, client.apiserver_version()).await.map_err(late)?;
    found.version = Some(version.map_err(|e| connect::tell(&e))?.git_version);
    let count = |kind: Kind| {
        let resource = Resource::new(kind, node);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource.api);
        async move {
            let wanted = ListParams { field_selector: resource.fields, ..ListParams::default() };
            timeout(ANSWER, api.list(&wanted)).await.ok()?.ok().map(|all| all.items.len())
        }
    };
    found.pods = count(Kind::Pods).await;
    found.node_known = count(Kind::Nodes).await.map(|n| n > 0);
    let review = ApiResource {
        group: "authorization.k8s.io".into(),
        version: "v1".into(),
        api_version: "authorization.k8s.io/v1".into(),
        kind: "SelfSubjectAccessReview".into(),
        plural: "selfsubjectaccessreviews".into(),
    };
    let reviews: Api<DynamicObject> = Api::all_with(client, &review);
    let writes = events.then_some(&EVENTS);
    for (group, resource, verbs, gives) in NEEDED.iter().chain(writes) {
        let mut allowed = true;
        for verb in *verbs {
            let wanted = json!({"spec": {"resourceAttributes": {"group": group, "resource": resource, "verb": verb}}});
            let asked = DynamicObject::new("", &review).data(wanted);
            let post = PostParams::default();
            let answer = timeout(ANSWER, reviews.create(&post, &asked)).await.map_err(late)?;
            allowed &= answer.map_err(|e| connect::tell(&e))?.data["status"]["allowed"] == true;
        }
        // `events` are in two groups.
        let named = if *group == EVENTS.0 { format!("{resource}.{group}") } else { (*resource).to_owned() };
        let what = format!("{named} {}", verbs.join(","));
        found.access.push(Access { what, allowed, gives: (*gives).to_owned(), writes: *group == EVENTS.0 });
    }
    Ok(())
}
