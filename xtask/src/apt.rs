//! Debian's packages: installed without questions, without recommended extras, and without starting any service.

use std::process::{Command, Stdio};
use std::sync::Once;

use anyhow::{Context as _, Result, ensure};

use crate::sh;

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Runs `"$@"` while a policy-rc.d forbids packages to start their services. In the shell, because its trap also removes
/// the file when Ctrl-C reaches the whole process group. A policy that the machine already has is left alone: somebody
/// chose it, and images that have one have this very one.
const NO_SERVICES: &str = r#"
if [ ! -e "$POLICY" ]; then
    trap 'rm -f "$POLICY"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n# temporary: a package is being installed only for its program\nexit 101\n' >"$POLICY" || exit 1
    chmod 755 "$POLICY" || exit 1
fi
"$@"
"#;

/// Whether this machine has apt at all.
pub(crate) fn present() -> bool {
    sh::find("apt-get").is_some()
}

fn apt_get(words: &[&str]) -> Command {
    let mut cmd = Command::new("apt-get");
    // Another apt (unattended-upgrades on a fresh machine) may hold the lock for minutes.
    cmd.args(["-o", "DPkg::Lock::Timeout=300", "-qq"]).args(words).env("DEBIAN_FRONTEND", "noninteractive");
    cmd.stdin(Stdio::null()).stdout(Stdio::null());
    cmd
}

/// Reads the package lists anew, once per run of ours. A third-party source that is down is no reason to stop: the
/// install itself will tell.
pub(crate) fn update() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        if let Err(e) = sh::run(&mut apt_get(&["update"])) {
            eprintln!("warning: {e:#}; going on with the package lists that are here");
        }
    });
}

/// Whether apt could install all these packages.
pub(crate) fn offers(packages: &[&str]) -> bool {
    packages.iter().all(|name| {
        sh::capture(Command::new("apt-cache").args(["policy", name])).is_ok_and(|policy| has_candidate(&policy))
    })
}

fn has_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate:")).any(|version| version.trim() != "(none)")
}

/// Installs packages; no service of theirs is started.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let mut words = vec!["install", "-y", "--no-install-recommends"];
    words.extend(packages);
    let apt = apt_get(&words);
    // Not sh::run: its error would show the wrapping script.
    let status = without_services(POLICY, &apt).status().context("cannot start sh")?;
    ensure!(status.success(), "`{}` failed ({status})", sh::show(&apt));
    Ok(())
}

fn without_services(policy: &str, inner: &Command) -> Command {
    let mut cmd = Command::new("sh");
    cmd.args(["-c", NO_SERVICES, "sh"]).arg(inner.get_program()).args(inner.get_args()).env("POLICY", policy);
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            cmd.env(name, value);
        }
    }
    cmd.stdin(Stdio::null()).stdout(Stdio::null());
    cmd
}

/// Keeps services that came with an install of ours from starting at the next boot.
pub(crate) fn disable_services(units: &[String]) {
    if sh::find("systemctl").is_none() {
        return;
    }
    for unit in units {
        if sh::ok(Command::new("systemctl").args(["disable", unit])) {
            println!("disabled    {unit}: installed for its program only, it will not start at boot");
        }
    }
}

/// The commands that a person would type for the same.
pub(crate) fn by_hand(packages: &[String]) -> [String; 2] {
    ["sudo apt-get update".into(), format!("sudo apt-get install -y --no-install-recommends {}", packages.join(" "))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_type() {
        let [update, install] = by_hand(&["cpio".into(), "lz4".into()]);
        assert_eq!(update, "sudo apt-get update");
        assert_eq!(install, "sudo apt-get install -y --no-install-recommends cpio lz4");
    }

    #[test]
    fn waits_for_the_lock_and_asks_nothing() {
        let cmd = apt_get(&["install", "-y"]);
        assert_eq!(sh::show(&cmd), "apt-get -o DPkg::Lock::Timeout=300 -qq install -y");
        assert!(
            cmd.get_envs().any(|(name, value)| name == "DEBIAN_FRONTEND" && value == Some("noninteractive".as_ref()))
        );
    }

    #[test]
    fn tells_candidates_from_unknown_packages() {
        assert!(has_candidate("nginx-light:\n  Installed: (none)\n  Candidate: 1.22.1-9\n"));
        assert!(!has_candidate("nginx-light:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""), "apt-cache says nothing of a name that it never heard");
    }

    fn try_without_services(policy: &std::path::Path, script: &str) -> bool {
        let mut inner = Command::new("sh");
        inner.args(["-c", script]).env("SEEN", policy);
        sh::ok(&mut without_services(policy.to_str().expect("utf-8"), &inner))
    }

    #[test]
    fn policy_stands_during_the_install_and_is_gone_after_it_even_when_it_fails() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let policy = dir.path().join("policy-rc.d");
        assert!(try_without_services(&policy, r#""$SEEN"; [ $? = 101 ]"#), "the policy says 101 during the install");
        assert!(!policy.exists());
        assert!(!try_without_services(&policy, "exit 7"), "the install's failure comes through");
        assert!(!policy.exists());
        // `$PPID` is the wrapping shell.
        assert!(!try_without_services(&policy, "kill -TERM $PPID"));
        assert!(!policy.exists());
    }

    #[test]
    fn a_policy_that_was_there_stays() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let policy = dir.path().join("policy-rc.d");
        std::fs::write(&policy, "mine").expect("write");
        assert!(try_without_services(&policy, "true"));
        assert_eq!(std::fs::read_to_string(&policy).expect("still there"), "mine");
    }
}
