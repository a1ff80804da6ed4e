//! What the end-to-end tests of the tracer share.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use why502_tests::tracer::Said;

/// Every line that was printed, against the schemas of docs/schema.
pub(crate) fn check_schema(said: &Said) -> Result<()> {
    static SCHEMAS: LazyLock<BTreeMap<&str, jsonschema::Validator>> = LazyLock::new(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
        let read = |kind: &'static str| {
            let file = dir.join(format!("{kind}.json"));
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let schema = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            (kind, jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("{}: {e}", file.display())))
        };
        ["incident", "stop"].into_iter().map(read).collect()
    });
    for line in &said.lines {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let kind = value["type"].as_str().unwrap_or_default();
        let Some(schema) = SCHEMAS.get(kind) else { bail!("a line of the unknown type {kind:?}: {line}") };
        if let Some(error) = schema.iter_errors(&value).next() {
            bail!("{} at {}: {line}", error, error.instance_path());
        }
    }
    Ok(())
}
