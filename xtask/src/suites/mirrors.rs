//! Where the system's apt gets Debian from: deb822 (`*.sources`) and one-line (`*.list`) files.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Base URIs of a Debian mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirrors {
    pub(crate) main: String,
    pub(crate) security: String,
    pub(crate) keyring: PathBuf,
}

impl Mirrors {
    /// Mirrors named by hand.
    pub(crate) fn new(main: &str, security: &str) -> Self {
        Self { main: main.to_owned(), security: security.to_owned(), keyring: KEYRING.into() }
    }
}

/// Installed by the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const SUITES: &[&str] = &[
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// One repository of the system.
#[derive(Debug, PartialEq, Eq)]
struct Repo {
    uri: String,
    suite: String,
    keyring: Option<PathBuf>,
}

/// Reads /etc/apt.
pub(super) fn system() -> Result<Mirrors> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.flatten().map(|e| e.path()));
    }
    files.sort();
    let mut repos = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => repos.extend(deb822(&text)),
            Some("list") => repos.extend(text.lines().filter_map(one_line)),
            _ => {}
        }
    }
    mirrors(&repos).context(
        "apt's sources name no Debian mirror with a security suite: give --mirror and --security-mirror (base URIs)",
    )
}

fn mirrors(repos: &[Repo]) -> Option<Mirrors> {
    let base = |r: &&Repo, suffixes: &[&str]| {
        suffixes.iter().any(|s| r.suite.strip_suffix(s).is_some_and(|name| SUITES.contains(&name)))
    };
    let main = repos.iter().find(|r| base(r, &["", "-updates", "-backports"]))?;
    let security = repos.iter().find(|r| base(r, &["-security"]))?;
    let keyring = security.keyring.clone().filter(|k| k.is_file()).unwrap_or_else(|| KEYRING.into());
    Some(Mirrors { main: main.uri.clone(), security: security.uri.clone(), keyring })
}

/// sources.list(5), "DEB822-STYLE FORMAT".
fn deb822(text: &str) -> Vec<Repo> {
    let mut repos = Vec::new();
    for stanza in text.split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|l| !l.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, v)) = fields.last_mut() {
                    v.push(' ');
                    v.push_str(line.trim());
                }
            } else if let Some((k, v)) = line.split_once(':') {
                fields.push((k.trim().to_ascii_lowercase(), v.trim().to_owned()));
            }
        }
        let get = |key: &str| fields.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v.as_str());
        if get("enabled").eq_ignore_ascii_case("no") || !get("types").split_whitespace().any(|t| t == "deb") {
            continue;
        }
        for uri in get("uris").split_whitespace() {
            for suite in get("suites").split_whitespace() {
                repos.push(repo(uri, suite, get("signed-by")));
            }
        }
    }
    repos
}

/// `deb [options] uri suite components`.
fn one_line(line: &str) -> Option<Repo> {
    let rest = line.trim().strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(r) => r.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let keyring = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).unwrap_or_default();
    Some(repo(uri, suite, keyring))
}

fn repo(uri: &str, suite: &str, keyring: &str) -> Repo {
    // Signed-By may also be a key itself; only a file can be named again.
    let keyring = Some(Path::new(keyring)).filter(|k| k.is_absolute()).map(Path::to_owned);
    Repo { uri: uri.to_owned(), suite: suite.trim_end_matches('/').to_owned(), keyring }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /k.gpg

Types: deb
URIs: http://mirror.example/sec
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/
Suites: trixie
";

    #[test]
    fn deb822_with_continuations_and_disabled_stanzas() {
        let repos = deb822(DEB822);
        let suites: Vec<_> = repos.iter().map(|r| r.suite.as_str()).collect();
        assert_eq!(suites, ["bookworm", "bookworm-updates", "bookworm-security"]);
        let m = mirrors(&repos).unwrap();
        assert_eq!(
            (m.main.as_str(), m.security.as_str()),
            ("http://mirror.example/debian", "http://mirror.example/sec")
        );
        assert_eq!(m.keyring, Path::new(KEYRING));
    }

    #[test]
    fn one_line_with_and_without_options() {
        let r = one_line("deb [arch=amd64 signed-by=/x.gpg] http://m.example/debian bullseye main contrib").unwrap();
        assert_eq!(r, repo("http://m.example/debian", "bullseye", "/x.gpg"));
        assert_eq!(one_line("deb http://m.example/ sid main").unwrap().suite, "sid");
        assert!(one_line("# deb http://m.example/ sid main").is_none());
        assert!(one_line("deb-src http://m.example/ sid main").is_none());
        assert!(one_line("deb").is_none());
    }

    #[test]
    fn other_distributions_are_not_taken_for_debian() {
        let repos = [repo("http://u.example/ubuntu", "noble", ""), repo("http://c.example", "cloud-sdk-bookworm", "")];
        assert!(mirrors(&repos).is_none());
    }
}
