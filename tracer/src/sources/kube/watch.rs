//! One resource: listed, then watched from there on, for as long as it takes. A server that is away, slow or forgetful is
//! asked again, less and less often; what it said before stays true until it says otherwise.

use super::connect::{self, Connection};
use futures::StreamExt;
use kube::Api;
use kube::api::{ApiResource, ListParams, WatchEvent, WatchParams};
use kube::core::DynamicObject;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

/// The server ends a watch after this time; seconds.
const WATCH_S: u32 = 60;
/// A watch that says nothing for longer than it was to last is dead: its connection ended without a word.
const SILENCE: Duration = Duration::from_secs(WATCH_S as u64 + 10);
/// For an answer to begin, and for a page of a list to be there.
const ANSWER: Duration = Duration::from_secs(15);
const PAGE: u32 = 500;
/// Between attempts: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// Which objects.
#[derive(Clone, Debug)]
pub struct Resource {
    pub kind: Kind,
    pub api: ApiResource,
    pub fields: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Pods,
    Nodes,
    EndpointSlices,
    /// Where there are no EndpointSlices.
    Endpoints,
}

/// What a watch tells.
#[derive(Debug)]
pub enum Change {
    /// All there are, now.
    All(Kind, Vec<DynamicObject>),
    Is(Kind, Box<DynamicObject>),
    Gone(Kind, Box<DynamicObject>),
    /// Nothing is heard, and why; `None`: it is heard.
    Silent(Kind, Option<String>),
    /// What was asked for beside the watches.
    Answers(super::ask::Answers),
}

/// Why a round ended.
enum End {
    /// The receiver is gone.
    Over,
    /// The resource is not in this API.
    NoSuch,
    Failed(String),
    /// Everything is to be listed again, at once.
    Again,
}

impl Resource {
    pub fn new(kind: Kind, node: &str) -> Self {
        let api = |group: &str, version: &str, kind: &str, plural: &str| ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: if group.is_empty() { version.into() } else { format!("{group}/{version}") },
            kind: kind.into(),
            plural: plural.into(),
        };
        let (api, fields) = match kind {
            Kind::Pods => (api("", "v1", "Pod", "pods"), Some(format!("spec.nodeName={node}"))),
            Kind::Nodes => (api("", "v1", "Node", "nodes"), Some(format!("metadata.name={node}"))),
            Kind::EndpointSlices => (api("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"), None),
            Kind::Endpoints => (api("", "v1", "Endpoints", "endpoints"), None),
        };
        Resource { kind, api, fields }
    }
}

/// Goes on until nobody listens. Endpoints stand in where the server has no EndpointSlices.
pub async fn run(connection: Arc<Connection>, node: String, kind: Kind, to: Sender<Change>) {
    let mut resource = Resource::new(kind, &node);
    let mut pause = FIRST_PAUSE;
    loop {
        let mut heard = false;
        let end = match connection.client().await {
            Ok((number, client)) => {
                let api: Api<DynamicObject> = Api::all_with(client, &resource.api);
                let end = round(&api, &resource, &to, &mut heard).await;
                if matches!(&end, Err((Some(401), _))) {
                    connection.refused(number).await;
                }
                end.unwrap_or_else(|(status, why)| match status {
                    Some(404) if kind == Kind::EndpointSlices && resource.kind == kind => End::NoSuch,
                    _ => End::Failed(why),
                })
            }
            Err(why) => End::Failed(why),
        };
        if heard {
            pause = FIRST_PAUSE;
        }
        match end {
            End::Over => return,
            End::Again => continue,
            End::NoSuch => {
                resource = Resource::new(Kind::Endpoints, &node);
                continue;
            }
            End::Failed(why) => {
                if to.send(Change::Silent(resource.kind, Some(why))).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = to.closed() => return,
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

type Failure = (Option<u16>, String);

/// A list, and watches that follow on it until one fails.
async fn round(
    api: &Api<DynamicObject>,
    resource: &Resource,
    to: &Sender<Change>,
    heard: &mut bool,
) -> Result<End, Failure> {
    let failure = |e: kube::Error| (connect::status(&e), connect::tell(&e));
    let late = |_| (None, "no answer in time".to_string());
    let (objects, mut version) = list(api, resource.fields.as_deref()).await?;
    let all = [Change::All(resource.kind, objects), Change::Silent(resource.kind, None)];
    for change in all {
        if to.send(change).await.is_err() {
            return Ok(End::Over);
        }
    }
    *heard = true;
    let mut wanted = WatchParams::default().timeout(WATCH_S);
    wanted.field_selector = resource.fields.clone();
    loop {
        let stream = timeout(ANSWER, api.watch(&wanted, &version)).await.map_err(late)?;
        let mut stream = match stream {
            Ok(stream) => std::pin::pin!(stream),
            // What has been there until now is forgotten: begin anew.
            Err(e) if connect::status(&e) == Some(410) => return Ok(End::Again),
            Err(e) => return Err(failure(e)),
        };
        let mut said = false;
        loop {
            let next = tokio::select! {
                next = timeout(SILENCE, stream.next()) => next.map_err(late)?,
                () = to.closed() => return Ok(End::Over),
            };
            let Some(event) = next else { break };
            said = true;
            let kind = resource.kind;
            let change = match event.map_err(failure)? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version_of(&object, &mut version);
                    Change::Is(kind, Box::new(object))
                }
                WatchEvent::Deleted(object) => {
                    version_of(&object, &mut version);
                    Change::Gone(kind, Box::new(object))
                }
                WatchEvent::Bookmark(mark) => {
                    version = mark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) if status.code == 410 => return Ok(End::Again),
                WatchEvent::Error(status) => return Err(failure(kube::Error::Api(status))),
            };
            if to.send(change).await.is_err() {
                return Ok(End::Over);
            }
        }
        // A server that ends each watch at once must not be asked in a circle.
        if !said {
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }
}

fn version_of(object: &DynamicObject, version: &mut String) {
    if let Some(new) = &object.metadata.resource_version {
        version.clone_from(new);
    }
}

/// From the server's cache: a second's age does not matter, the load on its store does.
async fn list(api: &Api<DynamicObject>, fields: Option<&str>) -> Result<(Vec<DynamicObject>, String), Failure> {
    let mut all = Vec::new();
    let mut wanted = ListParams::default().limit(PAGE).match_any();
    wanted.field_selector = fields.map(str::to_owned);
    loop {
        let page = timeout(ANSWER, api.list(&wanted)).await.map_err(|_| (None, "no answer in time".to_string()))?;
        let page = page.map_err(|e| (connect::status(&e), connect::tell(&e)))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => {
                wanted = ListParams::default().limit(PAGE).continue_token(&token);
                wanted.field_selector = fields.map(str::to_owned);
            }
            None => return Ok((all, page.metadata.resource_version.unwrap_or_default())),
        }
    }
}
