//! What goes beside the program, laid out as in a root directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::VERSION;
use crate::sh;

/// Shell, and where its script goes.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/why502"),
    ("zsh", "usr/share/zsh/vendor-completions/_why502"),
    ("fish", "usr/share/fish/vendor_completions.d/why502.fish"),
];
/// The names by which kubectl finds it, and what completes its words.
pub(super) const PLUGINS: [&str; 2] = ["kubectl-why502", "kubectl_complete-why502"];
pub(super) const MANUAL: &str = "usr/share/man/man1";
const UNIT: &str = "usr/lib/systemd/system/why502.service";
pub(super) const DOCUMENTS: &str = "usr/share/doc/why502";
/// For Prometheus, Grafana and runtimes of containers.
const EXAMPLES: [(&str, &str); 3] = [
    ("helm/why502/files/alerts.yaml", "alerts.yaml"),
    ("helm/why502/files/dashboard.json", "dashboard.json"),
    ("seccomp/why502.json", "seccomp.json"),
];
/// The licences of what is linked.
pub(super) const NOTICES: &str = "third-party.txt";

/// Fills `root` as the package of a distribution does.
pub(super) fn lay_out(program: &Path, notices: &str, root: &Path) -> Result<()> {
    let packaging = sh::root().join("packaging");
    put(program, &root.join("usr/bin/why502"), 0o755)?;
    for name in PLUGINS {
        let plugin = root.join("usr/bin").join(name);
        symlink("why502", &plugin).with_context(|| plugin.display().to_string())?;
    }
    put(&packaging.join("systemd/why502.service"), &root.join(UNIT), 0o644)?;
    put(&packaging.join("deb/why502.default"), &root.join("etc/default/why502"), 0o644)?;
    let manual = root.join(MANUAL);
    fs::create_dir_all(&manual)?;
    sh::run(Command::new(program).arg("man").arg(&manual))?;
    // The program says its own version; a package that says another would be a lie.
    let said = sh::capture(Command::new(program).arg("--version"))?;
    anyhow::ensure!(
        said.trim() == format!("why502 {VERSION}"),
        "{} is {}, not {VERSION}",
        program.display(),
        said.trim()
    );
    for (shell, to) in COMPLETIONS {
        let script = sh::capture(Command::new(program).args(["completions", shell]))?;
        write(&root.join(to), &script)?;
    }
    write(&root.join(DOCUMENTS).join("copyright"), &copyright()?)?;
    write(&root.join(DOCUMENTS).join(NOTICES), notices)?;
    let docs = sh::root().join("docs");
    for page in fs::read_dir(&docs)?.flatten().map(|entry| entry.path()) {
        if page.extension().is_some_and(|ext| ext == "md") {
            put(&page, &root.join(DOCUMENTS).join(page.file_name().context("a name")?), 0o644)?;
        }
    }
    for schema in fs::read_dir(docs.join("schema"))?.flatten() {
        put(&schema.path(), &root.join(DOCUMENTS).join("schema").join(schema.file_name()), 0o644)?;
    }
    for (example, name) in EXAMPLES {
        put(&packaging.join(example), &root.join(DOCUMENTS).join("examples").join(name), 0o644)?;
    }
    put(&sh::root().join("README.md"), &root.join(DOCUMENTS).join("README.md"), 0o644)
}

/// The same in one folder, for who has no package manager: no file leaves it.
pub(super) fn portable(root: &Path, to: &Path) -> Result<()> {
    put(&root.join("usr/bin/why502"), &to.join("why502"), 0o755)?;
    put(&root.join(UNIT), &to.join("why502.service"), 0o644)?;
    for (shell, path) in COMPLETIONS {
        put(&root.join(path), &to.join("completions").join(format!("why502.{shell}")), 0o644)?;
    }
    for page in fs::read_dir(root.join(MANUAL))?.flatten() {
        put(&page.path(), &to.join("man").join(page.file_name()), 0o644)?;
    }
    for name in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        put(&sh::root().join(name), &to.join(name), 0o644)?;
    }
    put(&root.join(DOCUMENTS).join(NOTICES), &to.join(NOTICES), 0o644)?;
    put(&sh::root().join("packaging/seccomp/why502.json"), &to.join("seccomp.json"), 0o644)
}

pub(super) fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().context("a folder")?)?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

pub(super) fn write(to: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(to.parent().context("a folder")?)?;
    fs::write(to, text).with_context(|| to.display().to_string())?;
    // Whatever the umask is.
    fs::set_permissions(to, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// In Debian's machine-readable form; the Apache licence is in every Debian already.
fn copyright() -> Result<String> {
    let mit = fs::read_to_string(sh::root().join("LICENSE-MIT")).context("LICENSE-MIT")?;
    let holder = mit.lines().find_map(|line| line.strip_prefix("Copyright (c) ")).unwrap_or("the why502 authors");
    let body: String = mit
        .lines()
        .skip_while(|line| !line.starts_with("Permission"))
        .map(|line| if line.trim().is_empty() { " .\n".into() } else { format!(" {line}\n") })
        .collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: why502\n\
         Comment: The program is static. The crates and the C library in it are listed in third-party.txt.gz beside\n \
         this file, with the text of each licence.\n\n\
         Files: *\nCopyright: {holder}\nLicense: Expat or Apache-2.0\n\
         Comment: The eBPF programs inside are under GPL-2.0-only as well, which the kernel asks of them; that text is in\n \
         /usr/share/common-licenses/GPL-2.\n\n\
         License: Expat\n{body}\n\
         License: Apache-2.0\n The text is in /usr/share/common-licenses/Apache-2.0.\n"
    ))
}
