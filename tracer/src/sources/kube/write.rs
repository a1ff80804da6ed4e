//! The only thing that why502 writes into the API: its Events (`sinks::events` says which).
//!
//! events.k8s.io/v1 is there since Kubernetes 1.19, in every version that why502 knows; `kubectl describe` shows them as
//! all others.

use super::connect::{self, Connection, Place};
use crate::sinks::events::{Object, Told};
use crate::sinks::outbox::{Carrier, Sent};
use kube::Api;
use kube::api::{ApiResource, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use std::time::Duration;

/// Who says it, by the API's rules a qualified name.
const REPORTER: &str = "why502";
/// Bytes of `reportingInstance`.
const INSTANCE: usize = 128;

/// Carries Events to the API server.
pub struct EventWriter {
    connection: Connection,
    node: String,
}

impl EventWriter {
    pub fn new(place: Place, node: &str) -> Self {
        let node = node[..node.floor_char_boundary(INSTANCE)].to_owned();
        EventWriter { connection: Connection::new(place), node }
    }

    async fn write(&self, told: &Told) -> Sent {
        let (number, client) = match self.connection.client().await {
            Ok(found) => found,
            Err(why) => return Sent::Later { after: None, why },
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client, &told.about.namespace, &events());
        let done = if told.again {
            let count = Patch::Merge(json!({ "series": series(told) }));
            match api.patch(&told.name, &PatchParams::default(), &count).await {
                // It grew too old there.
                Err(e) if connect::status(&e) == Some(404) => create(&api, &event(told, &self.node)).await,
                patched => patched.map(drop),
            }
        } else {
            create(&api, &event(told, &self.node)).await
        };
        let Err(e) = done else { return Sent::done() };
        let status = connect::status(&e);
        if status == Some(401) {
            self.connection.refused(number).await;
        }
        became(status, asked_to_wait(&e), connect::tell(&e))
    }
}

async fn create(api: &Api<DynamicObject>, event: &DynamicObject) -> kube::Result<()> {
    match api.create(&PostParams::default(), event).await {
        // An earlier try came through, and its answer did not.
        Err(e) if connect::status(&e) == Some(409) => Ok(()),
        created => created.map(drop),
    }
}

/// What a failure means for the Event.
fn became(status: Option<u16>, after: Option<Duration>, why: String) -> Sent {
    match status {
        // A right that is missing may be given later, but Events are about now; a namespace that is going takes none.
        Some(400 | 403 | 404 | 405 | 409 | 413 | 415 | 422) => Sent::Refused { why },
        _ => Sent::Later { after, why },
    }
}

fn asked_to_wait(error: &kube::Error) -> Option<Duration> {
    match error {
        kube::Error::Api(status) => {
            let seconds = status.details.as_ref()?.retry_after_seconds;
            (seconds > 0).then(|| Duration::from_secs(seconds.into()))
        }
        _ => None,
    }
}

impl Carrier for EventWriter {
    type Item = Told;
    const BATCH: usize = 1;

    async fn carry(&mut self, items: &[Told]) -> Sent {
        match items.first() {
            Some(told) => self.write(told).await,
            None => Sent::done(),
        }
    }
}

fn events() -> ApiResource {
    ApiResource {
        group: "events.k8s.io".into(),
        version: "v1".into(),
        api_version: "events.k8s.io/v1".into(),
        kind: "Event".into(),
        plural: "events".into(),
    }
}

fn event(told: &Told, node: &str) -> DynamicObject {
    let mut event = DynamicObject::new(&told.name, &events()).within(&told.about.namespace);
    event.data = json!({
        "eventTime": told.first,
        "reportingController": REPORTER,
        "reportingInstance": node,
        "action": "RequestsLost",
        "reason": told.reason,
        "type": "Warning",
        "regarding": reference(&told.about),
        "note": told.note,
    });
    if let Some(related) = &told.related {
        event.data["related"] = reference(related);
    }
    if told.count > 1 {
        event.data["series"] = series(told);
    }
    event
}

fn series(told: &Told) -> Value {
    // An int32 there.
    json!({ "count": told.count.min(i32::MAX as u64), "lastObservedTime": told.last })
}

fn reference(object: &Object) -> Value {
    json!({
        "apiVersion": object.api_version,
        "kind": object.kind,
        "namespace": object.namespace,
        "name": object.name,
        "uid": object.uid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(count: u64) -> Told {
        let object = |kind: &str, uid: Option<&str>| Object {
            api_version: "v1",
            kind: kind.into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            uid: uid.map(str::to_owned),
        };
        Told {
            name: "web-1.0".into(),
            about: object("Pod", Some("u1")),
            related: None,
            reason: "EndpointRace".into(),
            note: "n".into(),
            first: "2026-11-22T14:03:22.118204Z".into(),
            last: "2026-11-22T14:03:24.118204Z".into(),
            count,
            again: false,
        }
    }

    #[test]
    fn an_event_has_what_the_api_wants() {
        let object = serde_json::to_value(event(&told(1), "n1")).unwrap();
        assert_eq!(object["apiVersion"], "events.k8s.io/v1");
        assert_eq!(object["metadata"], json!({"name": "web-1.0", "namespace": "shop"}));
        assert_eq!(object["regarding"]["uid"], "u1");
        for must in ["eventTime", "reportingController", "reportingInstance", "action", "reason", "type", "note"] {
            assert!(object[must].as_str().is_some_and(|text| !text.is_empty()), "{must}");
        }
        assert!(object.get("series").is_none(), "one is no series");
        let object = serde_json::to_value(event(&told(u64::MAX), "n1")).unwrap();
        assert_eq!(object["series"], json!({"count": i32::MAX, "lastObservedTime": "2026-11-22T14:03:24.118204Z"}));
    }

    #[test]
    fn which_failures_are_tried_again() {
        let became = |status| became(status, None, String::new());
        for status in [None, Some(401), Some(429), Some(500), Some(503), Some(504)] {
            assert!(matches!(became(status), Sent::Later { .. }), "{status:?}");
        }
        for status in [Some(403), Some(404), Some(422)] {
            assert!(matches!(became(status), Sent::Refused { .. }), "{status:?}");
        }
    }
}
