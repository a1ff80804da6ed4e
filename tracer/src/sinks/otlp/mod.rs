//! Incidents and stops as log records for an OpenTelemetry receiver: OTLP over HTTP, in protobuf.

mod http;
mod messages;
mod record;

pub use http::{Endpoint, Headers, Receiver};
pub use record::{Entry, entry};

use messages::{ExportRequest, Resource, ResourceLogs, Scope, ScopeLogs};
use prost::Message;

/// The request for a batch: records of the same server stand under one resource, in the order in which they came.
fn request(entries: &[Entry]) -> Vec<u8> {
    let mut all = ExportRequest::default();
    for entry in entries {
        let known = all
            .resource_logs
            .iter_mut()
            .find(|logs| logs.resource.as_ref().is_some_and(|r| r.attributes == entry.resource));
        let logs = match known {
            Some(logs) => logs,
            None => {
                let resource = Some(Resource { attributes: entry.resource.clone() });
                all.resource_logs.push(ResourceLogs { resource, scope_logs: vec![] });
                match all.resource_logs.last_mut() {
                    Some(logs) => logs,
                    None => continue,
                }
            }
        };
        if logs.scope_logs.is_empty() {
            let scope = Scope { name: "why502".into(), version: env!("CARGO_PKG_VERSION").into() };
            logs.scope_logs.push(ScopeLogs { scope: Some(scope), log_records: vec![] });
        }
        logs.scope_logs[0].log_records.push(entry.record.clone());
    }
    all.encode_to_vec()
}
