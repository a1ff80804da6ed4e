//! containerds that are newer than the distribution's, from the packages of newer Debian suites: unpacked, not installed.
//! They need little of the machine: a libc, and its runc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// Debian 13's, and the newest.
const SUITES: [&str; 2] = ["trixie", "sid"];
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Their folders, one for each suite; downloaded at the first call.
pub(crate) fn unpacked() -> Result<Vec<PathBuf>> {
    let base = sh::target_dir().join("containerds");
    let have = |suite: &&str| PROGRAMS.iter().all(|program| base.join(suite).join(program).is_file());
    if !SUITES.iter().all(have) {
        let work = base.join("work");
        let _ = fs::remove_dir_all(&work);
        download(&base, &work)?;
        fs::remove_dir_all(&work).context("removing what was downloaded")?;
    }
    Ok(SUITES.map(|suite| base.join(suite)).into())
}

/// By an apt whose sources, lists and cache are in `work`: the machine's own stay as they are.
fn download(base: &Path, work: &Path) -> Result<()> {
    if !Path::new(KEYRING).is_file() {
        bail!("{KEYRING} is not here: this is no Debian");
    }
    for folder in ["lists/partial", "cache/archives/partial", "sources.d", "preferences.d"] {
        fs::create_dir_all(work.join(folder))?;
    }
    let mirror = mirror()?;
    let sources = SUITES.map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"));
    fs::write(work.join("sources.list"), sources.concat())?;
    let here = work.display();
    let conf = format!(
        "Dir::Etc::sourcelist \"{here}/sources.list\";\nDir::Etc::sourceparts \"{here}/sources.d\";\n\
         Dir::Etc::preferencesparts \"{here}/preferences.d\";\nDir::State::lists \"{here}/lists\";\n\
         Dir::Cache \"{here}/cache\";\nAcquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \
         \"false\";\n"
    );
    let conf_file = work.join("apt.conf");
    fs::write(&conf_file, conf)?;
    let apt = |args: &[&str]| {
        let mut cmd = Command::new("apt-get");
        // As root apt would change to a user of its own, who cannot write here.
        cmd.args(["-qq", "-o", "APT::Sandbox::User=root"]).args(args);
        cmd.env("APT_CONFIG", &conf_file).current_dir(work);
        sh::run(&mut cmd)
    };
    apt(&["update"])?;
    for suite in SUITES {
        apt(&["download", &format!("containerd/{suite}")])?;
        let deb = fs::read_dir(work)?.filter_map(|entry| Some(entry.ok()?.path()));
        let deb = deb.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "deb"));
        let deb = deb.with_context(|| format!("apt-get download containerd/{suite} left no package"))?;
        let root = work.join(suite);
        sh::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
        fs::create_dir_all(base.join(suite))?;
        for program in PROGRAMS {
            let to = base.join(suite).join(program);
            fs::rename(root.join("usr/bin").join(program), &to).with_context(|| format!("{program} of {suite}"))?;
        }
        fs::remove_file(&deb)?;
        println!("unpacked    containerd of {suite:<10}  {}", base.join(suite).display());
    }
    Ok(())
}

/// Where this machine has its Debian packages from.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.into_iter().find_map(|text| debian_mirror(&text)).context("no Debian mirror in /etc/apt")
}

/// From a one-line or a deb822 source.
fn debian_mirror(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let words = lines.flat_map(str::split_whitespace).map(|word| word.trim_end_matches('/'));
    words.filter(|word| word.contains("://")).find(|word| word.ends_with("/debian")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mirror_in_both_kinds_of_sources() {
        let one_line = "# deb http://old/debian x main\ndeb-src http://a/debian x main\n\
                        deb [arch=amd64] http://m.example/debian/ bookworm main\n";
        assert_eq!(debian_mirror(one_line).as_deref(), Some("http://m.example/debian"));
        let deb822 = "Types: deb\nURIs: http://m.example/debian-security http://m.example/debian\nSuites: bookworm\n";
        assert_eq!(debian_mirror(deb822).as_deref(), Some("http://m.example/debian"));
        assert_eq!(debian_mirror("deb http://archive.example/ubuntu noble main\n"), None);
    }
}
