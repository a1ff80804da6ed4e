//! containerds that are newer than the distribution's, from the packages of newer Debian suites: unpacked, not installed.
//! They need little of the machine: a libc, and its runc.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::sh;
use crate::suites::{Suite, Suites};

/// Debian 13's, and the newest.
const SUITES: [&str; 2] = ["trixie", "sid"];
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];

/// Their folders, one for each suite; downloaded at the first call.
pub(crate) fn unpacked() -> Result<Vec<PathBuf>> {
    let base = sh::target_dir().join("containerds");
    let folders = SUITES.map(|suite| base.join(suite));
    if folders.iter().all(|folder| PROGRAMS.iter().all(|program| folder.join(program).is_file())) {
        return Ok(folders.into());
    }
    let apt = Suites::prepare(base.join(".apt"), &SUITES.map(Suite::of_programs), None)?;
    apt.update()?;
    for (suite, folder) in SUITES.iter().zip(&folders) {
        let work = tempfile::tempdir_in(&base)?;
        let deb = apt.download(&format!("containerd/{suite}"), work.path())?;
        let root = work.path().join("root");
        sh::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
        fs::create_dir_all(folder)?;
        for program in PROGRAMS {
            let from = root.join("usr/bin").join(program);
            fs::rename(from, folder.join(program)).with_context(|| format!("{program} of {suite}"))?;
        }
        println!("unpacked    containerd of {suite:<10}  {}", folder.display());
    }
    Ok(folders.into())
}
