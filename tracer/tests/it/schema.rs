//! JSON against docs/schema: every enum value passes, nothing may be added or left out, and the ids of the schema are
//! the model's.

use crate::samples;
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use why502::model::Output;
use why502::model::incident::*;
use why502::sinks::json::{self, EventLine};
use why502::sinks::names;

pub(crate) const INCIDENT: &str = include_str!("../../../docs/schema/incident.json");
pub(crate) const STOP: &str = include_str!("../../../docs/schema/stop.json");
pub(crate) const EVENT: &str = include_str!("../../../docs/schema/event.json");

pub(crate) fn schema(text: &str) -> (Value, Validator) {
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(jsonschema::meta::is_valid(&value));
    let validator = jsonschema::draft202012::new(&value).unwrap();
    (value, validator)
}

pub(crate) fn check(validator: &Validator, value: &Value) {
    let errors: Vec<String> = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
}

fn line(output: Output) -> Value {
    let line = json::output(&output).unwrap();
    assert!(!line.contains('\n'));
    serde_json::from_str(&line).unwrap()
}

fn incident(incident: Incident) -> Value {
    line(Output::Incident(Box::new(incident)))
}

/// Strings of `enum` at a path of a schema.
fn ids(schema: &Value, path: &str) -> Vec<String> {
    let values = schema.pointer(path).unwrap_or_else(|| panic!("no {path}")).as_array().unwrap();
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[test]
fn incidents_of_every_kind() {
    let (_, validator) = schema(INCIDENT);
    check(&validator, &incident(samples::incident()));
    check(&validator, &incident(samples::bare_incident()));
    for &outcome in Outcome::ALL {
        check(&validator, &incident(Incident { outcome, ..samples::incident() }));
    }
    for &mechanism in Mechanism::ALL {
        check(&validator, &incident(Incident { mechanism, ..samples::incident() }));
    }
    for &cause in Cause::ALL {
        check(&validator, &incident(Incident { cause, also_matched: Cause::ALL.to_vec(), ..samples::incident() }));
    }
    for &trigger in Trigger::ALL {
        check(&validator, &incident(Incident { trigger, ..samples::incident() }));
    }
    for &level in Level::ALL {
        let confidence = Confidence { value: 1.0, level, lowered_by: vec!["x".into()] };
        check(&validator, &incident(Incident { confidence, ..samples::incident() }));
    }
    for bound in [Bound::Exact, Bound::AtLeast] {
        check(&validator, &incident(Incident { requests: Requests { count: 1, bound }, ..samples::incident() }));
    }
    let mut v6 = samples::incident();
    v6.server.ip = Some("fd00::7".parse().unwrap());
    v6.requester.ip = Some("::1".parse().unwrap());
    check(&validator, &incident(v6));
}

#[test]
fn the_ids_of_the_schema_are_the_models() {
    fn same<T: Copy + std::fmt::Display>(schema: &Value, path: &str, all: &[T]) {
        let model: Vec<String> = all.iter().map(T::to_string).collect();
        assert_eq!(ids(schema, path), model, "{path}");
    }
    let (incident, _) = schema(INCIDENT);
    same(&incident, "/$defs/outcome/enum", Outcome::ALL);
    same(&incident, "/$defs/mechanism/enum", Mechanism::ALL);
    same(&incident, "/$defs/cause/enum", Cause::ALL);
    same(&incident, "/$defs/trigger/enum", Trigger::ALL);
    same(&incident, "/properties/confidence/properties/level/enum", Level::ALL);
    let (stop, _) = schema(STOP);
    same(&stop, "/properties/trigger/enum", Trigger::ALL);
    same(&stop, "/properties/by_cause/propertyNames/enum", Cause::ALL);
    same(&stop, "/$defs/party/properties/lane/enum", Lane::ALL);
    let (event, _) = schema(EVENT);
    let kinds: BTreeSet<String> = event["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|kind| match &kind["properties"]["kind"] {
            only if only.get("const").is_some() => vec![only["const"].as_str().unwrap().to_owned()],
            many => ids(many, "/enum"),
        })
        .collect();
    assert_eq!(kinds, names::KINDS.iter().map(|kind| (*kind).to_owned()).collect());
    let quality: Vec<&str> = names::QUALITY.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids(&event, "/properties/quality/items/enum"), quality);
}

#[test]
fn stops() {
    let (_, validator) = schema(STOP);
    let stop = |stop| line(Output::Stop(Box::new(stop)));
    check(&validator, &stop(samples::stop()));
    for &trigger in Trigger::ALL {
        let bare = Stop { trigger, pod: None, container: None, signal: None, phases: vec![], ..samples::stop() };
        check(&validator, &stop(bare));
    }
    for server in ["nginx", "php-fpm", "other"] {
        check(&validator, &stop(Stop { server: server.into(), ..samples::stop() }));
    }
}

#[test]
fn events_of_every_kind() {
    let (_, validator) = schema(EVENT);
    let sample = samples::incident();
    let mut kinds = BTreeSet::new();
    for event in samples::events() {
        kinds.insert(names::kind(&event.kind));
        let mut line = EventLine::new(&event);
        check(&validator, &serde_json::from_str(&line.to_json().unwrap()).unwrap());
        line.at = Some("2026-11-22T14:03:22.118204113Z".into());
        line.pod = sample.pod.clone();
        line.container = sample.container.clone();
        line.reset_reason = Some("NO_SOCKET");
        check(&validator, &serde_json::from_str(&line.to_json().unwrap()).unwrap());
    }
    assert_eq!(kinds.len(), names::KINDS.len(), "samples of every kind");
}

/// Every object, at any depth, may have neither one member more nor one less, and a wrong type is noticed.
#[test]
fn the_schemas_are_strict() {
    let stop = line(Output::Stop(Box::new(samples::stop())));
    strict(INCIDENT, &[incident(samples::incident())]);
    strict(STOP, &[stop]);
    let events: Vec<Value> = samples::events()
        .iter()
        .map(|event| serde_json::from_str(&EventLine::new(event).to_json().unwrap()).unwrap())
        .collect();
    strict(EVENT, &events);
}

pub(crate) fn strict(text: &str, samples: &[Value]) {
    let (_, validator) = schema(text);
    let free = ["by_hook", "by_cause"];
    for value in samples {
        check(&validator, value);
        for path in objects(value) {
            if free.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            let mut more = value.clone();
            more.pointer_mut(&path).unwrap()["surprise"] = json!(1);
            assert!(!validator.is_valid(&more), "a member more at {path:?}");
            let keys: Vec<String> = value.pointer(&path).unwrap().as_object().unwrap().keys().cloned().collect();
            for key in keys {
                let mut less = value.clone();
                less.pointer_mut(&path).unwrap().as_object_mut().unwrap().remove(&key);
                assert!(!validator.is_valid(&less), "{path}/{key} left out");
                let mut wrong = value.clone();
                wrong.pointer_mut(&path).unwrap()[&key] = json!([[]]);
                assert!(!validator.is_valid(&wrong), "{path}/{key} of a wrong type");
            }
        }
    }
}

/// docs/events.md has a word for every member and every id.
#[test]
fn everything_is_documented() {
    let page = include_str!("../../../docs/events.md");
    let causes = include_str!("../../../docs/causes.md");
    for text in [INCIDENT, STOP, EVENT] {
        let (value, _) = schema(text);
        for path in objects(&value) {
            let Some(members) = value.pointer(&path).unwrap().get("properties").and_then(Value::as_object) else {
                continue;
            };
            for name in members.keys() {
                let forms = ["", "chain[].", "response.", "requests."].map(|before| format!("`{before}{name}`"));
                let parts = [format!("`{name}."), format!("`{name}[].")];
                assert!(forms.iter().chain(&parts).any(|form| page.contains(form)), "{name} of {path}");
            }
        }
    }
    for id in names::KINDS.iter().chain(names::QUALITY.iter().map(|(_, id)| id)) {
        assert!(page.contains(&format!("`{id}`")), "{id}");
    }
    for id in Cause::ALL
        .iter()
        .map(|c| c.id())
        .chain(Mechanism::ALL.iter().map(|m| m.id()))
        .chain(Trigger::ALL.iter().map(|t| t.id()))
    {
        assert!(page.contains(&format!("`{id}`")) || causes.contains(&format!("`{id}`")), "{id}");
    }
}

/// JSON pointers of all objects in a value.
fn objects(value: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                out.push(path.to_owned());
                members.iter().for_each(|(key, member)| walk(member, &format!("{path}/{key}"), out));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(n, item)| walk(item, &format!("{path}/{n}"), out));
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(value, "", &mut out);
    out
}
