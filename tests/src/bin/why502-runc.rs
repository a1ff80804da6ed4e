//! runc, with what the tests' machine cannot do taken out of what it is told. Its own name says what is changed:
//! - `…-systemd`: cgroups are named as systemd's driver names them, on a machine without systemd;
//! - `…-unlimited`: no limits of resources, whose controllers the cgroup v2 of a machine with v1 hierarchies lacks.
//! - `…-bpf`: CAP_BPF and CAP_PERFMON as well, which a dockerd of 2020 has no names for.
//!
//! It becomes runc, so it is in no process's ancestry.

use anyhow::{Context, Result};
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default().to_string_lossy().into_owned();
    let args: Vec<OsString> = words.collect();
    if let Err(e) = change(&name, &args) {
        eprintln!("{name}: {e:#}");
        return ExitCode::FAILURE;
    }
    let e = Command::new("runc").args(&args).exec();
    eprintln!("{name}: cannot start runc: {e}");
    ExitCode::FAILURE
}

fn change(name: &str, args: &[OsString]) -> Result<()> {
    let bundle = args.iter().position(|a| a == "--bundle").and_then(|at| args.get(at + 1));
    let Some(bundle) = bundle.filter(|_| args.iter().any(|a| a == "create" || a == "run")) else { return Ok(()) };
    let file = Path::new(bundle).join("config.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut config: Value = serde_json::from_str(&text)?;
    if name.contains("-unlimited")
        && let Some(resources) = config["linux"]["resources"].as_object_mut()
    {
        for key in ["cpu", "memory", "pids", "blockIO", "hugepageLimits", "unified"] {
            resources.remove(key);
        }
    }
    if name.contains("-bpf") {
        for set in ["bounding", "effective", "permitted"] {
            let Some(set) = config["process"]["capabilities"][set].as_array_mut() else { continue };
            set.extend(["CAP_BPF", "CAP_PERFMON"].map(Value::from));
        }
    }
    if name.contains("-systemd") {
        let path = config["linux"]["cgroupsPath"].as_str().and_then(systemd_path);
        if let Some(path) = path {
            config["linux"]["cgroupsPath"] = path.into();
        }
    }
    std::fs::write(&file, config.to_string()).with_context(|| format!("cannot write {}", file.display()))
}

/// `/kubepods/burstable/pod<uid>/<id>`, as the systemd driver makes it.
fn systemd_path(path: &str) -> Option<String> {
    let (parent, id) = path.rsplit_once('/')?;
    let (qos, uid) = parent.strip_prefix("/kubepods/")?.split_once("/pod")?;
    let uid = uid.replace('-', "_");
    Some(format!("/kubepods.slice/kubepods-{qos}.slice/kubepods-{qos}-pod{uid}.slice/cri-containerd-{id}.scope"))
}
