//! Incidents and stops as log records for an OpenTelemetry receiver: OTLP over HTTP, in protobuf.

mod http;
mod messages;
mod record;
mod settings;

pub use http::Receiver;
pub use record::{Entry, entry};
pub use settings::{Endpoint, Settings};

use messages::{ExportRequest, KeyValue, Resource, ResourceLogs, Scope, ScopeLogs};
use prost::Message;

/// The request for a batch: records of the same server stand under one resource, in the order in which they came. `common`
/// is said of each server, unless it says so itself.
fn request(entries: &[Entry], common: &[KeyValue]) -> Vec<u8> {
    let mut all = ExportRequest::default();
    for Entry { resource, record } in entries {
        let same = |logs: &ResourceLogs| logs.resource.as_ref().is_some_and(|known| known.attributes == *resource);
        let at = all.resource_logs.iter().position(same).unwrap_or_else(|| {
            all.resource_logs.push(ResourceLogs {
                resource: Some(Resource { attributes: resource.clone() }),
                scope_logs: vec![ScopeLogs { scope: Some(scope()), log_records: vec![] }],
            });
            all.resource_logs.len() - 1
        });
        all.resource_logs[at].scope_logs[0].log_records.push(record.clone());
    }
    for attributes in all.resource_logs.iter_mut().filter_map(|logs| Some(&mut logs.resource.as_mut()?.attributes)) {
        let new = common.iter().filter(|one| attributes.iter().all(|known| known.key != one.key));
        attributes.extend(new.cloned().collect::<Vec<_>>());
    }
    all.encode_to_vec()
}

/// Who says it.
fn scope() -> Scope {
    Scope { name: "why502".into(), version: env!("CARGO_PKG_VERSION").into() }
}

#[cfg(test)]
mod tests {
    use super::messages::{LogRecord, Value};
    use super::*;

    #[test]
    fn records_of_one_server_are_together_and_in_order() {
        let pair =
            |key: &str, value: &str| KeyValue { key: key.into(), value: Some(Value::String(value.into()).into()) };
        let entry = |server: &str, name: &str| Entry {
            resource: vec![pair("k", server)],
            record: LogRecord { event_name: name.into(), ..LogRecord::default() },
        };
        let body = request(&[entry("a", "1"), entry("b", "2"), entry("a", "3")], &[pair("k", "c"), pair("l", "d")]);
        let all = ExportRequest::decode(&*body).unwrap().resource_logs;
        let names = |at: usize| -> Vec<String> {
            all[at]
                .scope_logs
                .iter()
                .flat_map(|logs| &logs.log_records)
                .map(|record| record.event_name.clone())
                .collect()
        };
        assert_eq!((all.len(), names(0), names(1)), (2, vec!["1".to_owned(), "3".to_owned()], vec!["2".to_owned()]));
        let resource = all[1].resource.as_ref().map(|resource| &*resource.attributes);
        assert_eq!(resource, Some(&[pair("k", "b"), pair("l", "d")][..]), "its own word counts");
        assert_eq!(all[0].scope_logs[0].scope.as_ref().map(|scope| &*scope.name), Some("why502"));
    }
}
