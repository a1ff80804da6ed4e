//! What is linked into the program, as cargo resolved it: for licences and the bill of materials.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::sh;

/// Of these two: the program, and the probes inside it.
const OURS: [&str; 2] = ["why502", "why502-ebpf"];
/// How the files with licences begin.
const LICENCES: [&str; 6] = ["LICEN", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE", "AUTHORS"];

/// One crate.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// SPDX expression.
    pub(super) licence: String,
    pub(super) repository: Option<String>,
    /// SHA-256 of the package, as Cargo.lock has it. None: of this workspace.
    pub(super) checksum: Option<String>,
    folder: PathBuf,
}

/// All that is linked, by name; without what only builds and tests need.
pub(super) fn linked() -> Result<Vec<Crate>> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let mut cmd = sh::cargo();
    cmd.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &target]);
    // The probes'.
    cmd.args(["--filter-platform", "bpfel-unknown-none"]);
    let all: Value = serde_json::from_str(&sh::capture(&mut cmd)?).context("cargo metadata")?;
    let lock = fs::read_to_string(sh::root().join("Cargo.lock")).context("Cargo.lock")?;
    pick(&all, &checksums(&lock))
}

fn pick(all: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Vec<Crate>> {
    let list = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
    let text = |of: &Value, key: &str| of[key].as_str().map(str::to_owned);
    let packages: BTreeMap<String, Value> =
        list(all, "packages").into_iter().filter_map(|p| Some((text(&p, "id")?, p))).collect();
    let nodes: BTreeMap<String, Value> =
        list(&all["resolve"], "nodes").into_iter().filter_map(|n| Some((text(&n, "id")?, n))).collect();
    let ours = |p: &Value| p["name"].as_str().is_some_and(|name| OURS.contains(&name));
    let mut next: Vec<&String> = packages.iter().filter(|(_, p)| ours(p)).map(|(id, _)| id).collect();
    ensure!(next.len() == OURS.len(), "cargo metadata knows {next:?} of {OURS:?}");
    let mut seen = BTreeSet::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dep in list(nodes.get(id).context("a package without a node")?, "deps") {
            // `null`: neither for builds nor for tests.
            let linked = list(&dep, "dep_kinds").iter().any(|kind| kind["kind"].is_null());
            if let Some((id, _)) = text(&dep, "pkg").and_then(|id| packages.get_key_value(&id)).filter(|_| linked) {
                next.push(id);
            }
        }
    }
    let mut crates = Vec::new();
    for id in seen {
        let package = &packages[id];
        let (Some(name), Some(version)) = (text(package, "name"), text(package, "version")) else {
            bail!("a package without a name: {id}");
        };
        let licence = text(package, "license").with_context(|| format!("{name} names no licence"))?;
        let manifest = text(package, "manifest_path").context("a package without a manifest")?;
        crates.push(Crate {
            // The older way to write OR.
            licence: licence.replace(" / ", " OR ").replace('/', " OR "),
            repository: text(package, "repository"),
            checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
            folder: Path::new(&manifest).parent().context("a manifest without a folder")?.into(),
            name,
            version,
        });
    }
    crates.sort();
    Ok(crates)
}

/// By name and version, of Cargo.lock's text.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|block| Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?)))
        .collect()
}

/// The licences of all of them: a list, and then each text once with who has it.
pub(super) fn notices(crates: &[Crate]) -> Result<String> {
    let mut out = String::from(
        "What is linked into why502 beside its own sources, and under which licences.\n\n\
         why502 itself is under MIT or Apache-2.0; its eBPF programs are under GPL-2.0-only as well, which the kernel asks of them.\n\n",
    );
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for one in crates.iter().filter(|c| c.checksum.is_some()) {
        let Crate { name, version, licence, repository, .. } = one;
        out += &format!("{name} {version}: {licence}, {}\n", repository.as_deref().unwrap_or("no repository named"));
        for text in licences(&one.folder)? {
            let same = text.split_whitespace().collect::<Vec<_>>().join(" ");
            texts.entry(same).or_insert_with(|| (text, Vec::new())).1.push(format!("{name} {version}"));
        }
    }
    let beside = sh::root().join("packaging/licences");
    for (name, what) in [("rust.txt", "the Rust standard library"), ("musl.txt", "musl libc")] {
        let text = fs::read_to_string(beside.join(name)).with_context(|| name.to_owned())?;
        out += &format!("{what}: see below\n");
        texts.insert(name.into(), (text, vec![what.into()]));
    }
    for (text, of) in texts.values() {
        out += &format!("\n{}\n{}\n\n{}\n", "=".repeat(78), of.join(", "), text.trim_end());
    }
    Ok(out)
}

/// The texts that a crate brings.
fn licences(folder: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = files.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        path.is_file() && LICENCES.iter().any(|start| name.starts_with(start))
    };
    files.iter().filter(|path| named(path)).map(|path| Ok(fs::read_to_string(path)?)).collect()
}

/// A bill of materials in CycloneDX 1.5.
pub(super) fn bill(crates: &[Crate], version: &str, epoch: u64) -> Result<String> {
    let component = |c: &Crate| {
        let mut of = serde_json::json!({
            "type": "library",
            "bom-ref": format!("{}@{}", c.name, c.version),
            "name": c.name,
            "version": c.version,
            "licenses": [{ "expression": c.licence }],
        });
        if let Some(sum) = &c.checksum {
            of["purl"] = format!("pkg:cargo/{}@{}", c.name, c.version).into();
            of["hashes"] = serde_json::json!([{ "alg": "SHA-256", "content": sum }]);
        }
        if let Some(url) = &c.repository {
            of["externalReferences"] = serde_json::json!([{ "type": "vcs", "url": url }]);
        }
        of
    };
    let when = sh::capture(std::process::Command::new("date").args([
        "-u",
        "+%Y-%m-%dT%H:%M:%SZ",
        "-d",
        &format!("@{epoch}"),
    ]))?;
    let all: Vec<Value> = crates.iter().filter(|c| c.name != OURS[0]).map(component).collect();
    let bill = serde_json::json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": when.trim(),
            "component": {
                "type": "application", "bom-ref": "why502", "name": "why502", "version": version,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            },
        },
        "components": all,
    });
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_has_a_licence_and_a_checksum() {
        let crates = linked().expect("cargo metadata");
        let find = |name: &str| crates.iter().find(|c| c.name == name);
        // A dependency of the program, one of the probes, and none of the tests'.
        assert!(find("hyper").is_some_and(|c| c.checksum.as_ref().is_some_and(|sum| sum.len() == 64)));
        assert!(find("aya-ebpf").is_some(), "{crates:?}");
        assert_eq!(find("proptest"), None);
        assert!(find("why502").is_some_and(|c| c.checksum.is_none()));
        assert!(crates.iter().all(|c| !c.licence.is_empty() && !c.licence.contains('/')));
    }

    #[test]
    fn each_crate_is_in_the_notices_and_in_the_bill() {
        let crates = linked().expect("cargo metadata");
        let notices = notices(&crates).expect("texts");
        let bill: Value = serde_json::from_str(&bill(&crates, "1.2.3", 0).expect("a bill")).expect("JSON");
        assert_eq!(bill["metadata"]["timestamp"], "1970-01-01T00:00:00Z");
        let listed = bill["components"].as_array().expect("a list");
        for one in crates.iter().filter(|c| c.checksum.is_some()) {
            assert!(notices.contains(&format!("\n{} {}: ", one.name, one.version)), "{one:?}");
            assert!(
                listed
                    .iter()
                    .any(|c| c["name"] == *one.name && c["hashes"][0]["content"] == one.checksum.as_deref().unwrap())
            );
        }
        for text in ["Rich Felker", "The Rust Project", "Redistribution and use in source and binary forms"] {
            assert!(notices.contains(text), "{text}");
        }
    }
}
