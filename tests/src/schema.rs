//! What why502 prints, against the schemas of `docs/schema` and the precedence table of `docs/causes.md`.

use crate::pairs;
use crate::tracer::Said;
use anyhow::{Context, Result, anyhow, bail};
use jsonschema::Validator;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

/// Every line that was printed, and every pair of causes that matched one loss.
pub fn check(said: &Said) -> Result<()> {
    let rows = pairs::rows().map_err(|e| anyhow!(e))?;
    let wrong = pairs::violations(&said.incidents, &rows);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    static SCHEMAS: LazyLock<Result<BTreeMap<&str, Validator>>> =
        LazyLock::new(|| ["incident", "stop"].into_iter().map(|kind| Ok((kind, read(kind)?))).collect());
    let schemas = SCHEMAS.as_ref().map_err(|e| anyhow!("{e:#}"))?;
    for line in &said.lines {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let kind = value["type"].as_str().unwrap_or_default();
        let Some(schema) = schemas.get(kind) else { bail!("a line of the unknown type {kind:?}: {line}") };
        if let Some(error) = schema.iter_errors(&value).next() {
            bail!("{} at {}: {line}", error, error.instance_path());
        }
    }
    Ok(())
}

fn read(kind: &str) -> Result<Validator> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema").join(format!("{kind}.json"));
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let schema = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    jsonschema::validator_for(&schema).map_err(|e| anyhow!("{}: {e}", file.display()))
}
