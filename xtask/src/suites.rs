//! Packages of Debian suites that the machine does not have, by an apt with a state of its own.
//!
//! The system's apt state is not touched: lists, cache and status live in a directory of ours. Only the mirror's addresses,
//! its keyring and the proxy are taken over from the system's configuration, so nothing here names a host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};

use crate::sh;

mod mirrors;

pub(crate) use mirrors::Mirrors;

/// Index files younger than this are not fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// A suite, of programs or of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    name: &'static str,
    types: &'static str,
}

impl Suite {
    pub(crate) const fn of_programs(name: &'static str) -> Self {
        Self { name, types: "deb" }
    }

    pub(crate) const fn of_sources(name: &'static str) -> Self {
        Self { name, types: "deb-src" }
    }
}

/// apt with a state of its own.
pub(crate) struct Suites {
    dir: PathBuf,
}

impl Suites {
    /// `dir`: where its lists, cache and status live.
    pub(crate) fn prepare(dir: PathBuf, suites: &[Suite], mirrors: Option<Mirrors>) -> Result<Self> {
        for (tool, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar")] {
            ensure!(sh::find(tool).is_some(), "{tool} is missing: apt-get install --no-install-recommends {package}");
        }
        for sub in ["lists/partial", "cache/archives/partial", "state", "sources", "empty"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| dir.display().to_string())?;
        }
        let mirrors = match mirrors {
            Some(m) => m,
            None => mirrors::system()?,
        };
        let mut list = String::new();
        for Suite { name, types } in suites {
            let uri = if name.ends_with("-security") { &mirrors.security } else { &mirrors.main };
            list += &format!(
                "Types: {types}\nURIs: {uri}\nSuites: {name}\nComponents: main\nArchitectures: amd64\nSigned-By: {}\n\n",
                mirrors.keyring.display()
            );
        }
        fs::write(dir.join("sources/suites.sources"), list)?;
        fs::write(dir.join("status"), "")?;
        let d = dir.display();
        // Dir::Etc::Parts points to an empty directory: settings such as docker-clean's make each apt call parse all
        // indexes again. A mirror that is a snapshot has lists that have expired; they are still signed. Of the system's settings only the proxy is taken over.
        let conf = format!(
            "Dir::Etc::Parts \"{d}/empty\"; Dir::Etc::SourceList \"/dev/null\"; Dir::Etc::SourceParts \"{d}/sources\";\n\
             Dir::Etc::Preferences \"/dev/null\"; Dir::Etc::PreferencesParts \"{d}/empty\";\n\
             Dir::State \"{d}/state\"; Dir::State::Lists \"{d}/lists\"; Dir::State::status \"{d}/status\";\n\
             Dir::Cache \"{d}/cache\"; Acquire::Languages \"none\"; APT::Sandbox::User \"root\";\n\
             Acquire::Retries \"3\"; Acquire::Check-Valid-Until \"false\"; APT::Architecture \"amd64\"; APT::Architectures \"amd64\";\n{}",
            proxy()
        );
        fs::write(dir.join("apt.conf"), conf)?;
        Ok(Self { dir })
    }

    pub(crate) fn command(&self, tool: &str) -> Command {
        let mut c = Command::new(tool);
        c.env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C").stdin(Stdio::null());
        c
    }

    pub(crate) fn update(&self) -> Result<()> {
        let stamp = self.dir.join("updated");
        // The list of sources is part of the stamp: other mirrors, other indexes.
        let sources = fs::read_to_string(self.dir.join("sources/suites.sources"))?;
        let age = fs::metadata(&stamp).and_then(|m| m.modified()).ok().map(|t| SystemTime::now().duration_since(t));
        if let Some(Ok(age)) = age
            && age < FRESH
            && fs::read_to_string(&stamp).is_ok_and(|s| s == sources)
        {
            return Ok(());
        }
        sh::capture(self.command("apt-get").args(["update", "-qq", "--error-on=any"]))?;
        fs::write(&stamp, sources)?;
        Ok(())
    }

    /// Downloads one package (`name`, or `name/suite`) into a directory that has none yet: its file.
    pub(crate) fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        sh::capture(self.command("apt-get").args(["download", "-qq", package]).current_dir(into))?;
        let files = fs::read_dir(into)?.flatten().map(|entry| entry.path());
        let mut debs = files.filter(|path| path.extension().is_some_and(|ext| ext == "deb"));
        debs.next().with_context(|| format!("apt-get download {package} left no .deb"))
    }

    /// Name and version of every package of a suite.
    pub(crate) fn packages(&self, suite: &str) -> Result<Vec<Package>> {
        let infix = format!("_dists_{suite}_");
        let mut all = Vec::new();
        for entry in fs::read_dir(self.dir.join("lists"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(&infix) && name.ends_with("_Packages") {
                all.extend(parse_packages(&fs::read_to_string(entry.path())?));
            }
        }
        ensure!(!all.is_empty(), "no package index of {suite}");
        Ok(all)
    }
}

/// The system's proxy settings, as apt.conf lines.
fn proxy() -> String {
    let text = sh::capture(Command::new("apt-config").arg("dump").env("LC_ALL", "C")).unwrap_or_default();
    let wanted = |l: &&str| {
        let key = l.split(' ').next().unwrap_or_default().to_ascii_lowercase();
        key.starts_with("acquire::http") && key.contains("proxy")
    };
    text.lines().filter(wanted).map(|l| format!("{l}\n")).collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Debian version, `6.12.117-1`.
    pub(crate) version: String,
}

fn parse_packages(index: &str) -> Vec<Package> {
    let mut all = Vec::new();
    let mut name = None;
    for line in index.lines() {
        if let Some(n) = line.strip_prefix("Package: ") {
            name = Some(n);
        } else if let Some(v) = line.strip_prefix("Version: ")
            && let Some(n) = name.take()
        {
            all.push(Package { name: n.to_owned(), version: v.to_owned() });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_index() {
        let index = "Package: a\nSource: x\nVersion: 1-1\nDepends: b\n\nPackage: b\nVersion: 2\n";
        let package = |name: &str, version: &str| Package { name: name.to_owned(), version: version.to_owned() };
        assert_eq!(parse_packages(index), [package("a", "1-1"), package("b", "2")]);
    }
}
