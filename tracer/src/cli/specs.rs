//! `--pod-spec FILE`: what a pod's spec says about its stop, as inputs beside what the kernel says.

use crate::model::input::SpecFact;
use crate::model::{BootNs, Input};
use crate::sources::spec;
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};

/// A file of specs is no larger: it is read as a whole.
const BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct SpecArgs {
    /// Pod, Deployment, StatefulSet … in YAML or JSON: its preStop hook and grace period are taken into account
    #[arg(long = "pod-spec", value_name = "FILE")]
    pod_specs: Vec<PathBuf>,
}

/// What was read, and not given yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Specs(Vec<SpecFact>);

impl SpecArgs {
    pub(super) fn read(&self) -> anyhow::Result<Specs> {
        let mut facts = Vec::new();
        for path in &self.pod_specs {
            facts.extend(of_file(path)?);
        }
        Ok(Specs(facts))
    }
}

impl Specs {
    /// The inputs that follow on this one: the specs come after `Started`.
    pub(super) fn after(&mut self, input: &Input) -> Vec<Input> {
        let Input::Started(started) = input else { return Vec::new() };
        let at: BootNs = started.at;
        std::mem::take(&mut self.0).into_iter().map(|fact| Input::Spec(SpecFact { at, ..fact })).collect()
    }
}

fn of_file(path: &Path) -> anyhow::Result<Vec<SpecFact>> {
    let name = path.display().to_string();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {name}"))?.len();
    ensure!(size <= BYTES_MAX, "{name} is larger than {} MiB: not a pod's spec", BYTES_MAX >> 20);
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let workloads = spec::read(&name, &text)?;
    ensure!(!workloads.is_empty(), "{name} holds no pod and nothing that makes pods");
    Ok(workloads.iter().flat_map(|w| spec::facts(&name, None, w)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 40\n  \
        containers:\n  - name: nginx\n    lifecycle: {preStop: {exec: {command: [/bin/sh, -SIGQUIT, '1']}}}\n  \
        - name: php\n";

    #[test]
    fn a_file_becomes_facts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.yaml");
        std::fs::write(&path, POD).unwrap();
        let facts = SpecArgs { pod_specs: vec![path.clone()] }.read().unwrap().0;
        let hooks: Vec<_> = facts.iter().map(|f| (f.container.as_str(), f.pre_stop.is_some(), f.grace_s)).collect();
        assert_eq!(hooks, [("nginx", true, 40), ("php", false, 40)]);
        std::fs::write(&path, "kind: Service\nspec: {}\n").unwrap();
        let error = of_file(&path).unwrap_err().to_string();
        assert!(error.contains("holds no pod"), "{error}");
        assert!(of_file(&dir.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
