//! The compiler for the probes: two roads to `core` for BPF, and the linker that goes with them.
//!
//! | road | compiler | core for BPF |
//! |---|---|---|
//! | rustup | the one that runs this | built from its sources (component rust-src) |
//! | Debian | rustc-web, cargo-web | built already: libstd-rust-web-dev-bpf |

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::sh;

/// The target that the probes are compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// LLVM releases that bpf-linker 0.13 can be built with.
pub(crate) const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RoadKind {
    Rustup,
    Debian,
}

/// A compiler that can build the probes.
#[derive(Debug)]
pub(crate) struct Road {
    pub(crate) kind: RoadKind,
    pub(crate) rustc: PathBuf,
    /// e.g. "1.95.0".
    pub(crate) version: String,
    /// Major version of the compiler's LLVM; bpf-linker's must be the same, as it reads the compiler's bitcode.
    pub(crate) llvm: u32,
    /// Where `core` comes from.
    pub(crate) core: PathBuf,
}

impl Road {
    /// `cargo` with what this road needs to compile for [`TARGET`]; the subcommand and its arguments are the caller's.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        match self.kind {
            RoadKind::Rustup => {
                let mut cmd = sh::cargo();
                // -Z build-std is unstable: the variable opens it on a stable compiler.
                cmd.env("RUSTC_BOOTSTRAP", "1").args([subcommand, "-Z", "build-std=core"]);
                cmd
            }
            RoadKind::Debian => {
                let mut cmd = Command::new("/usr/bin/cargo");
                cmd.current_dir(sh::root()).env("RUSTC", &self.rustc);
                // Only for the crate that uses unstable features: 1 for all would need build-std again.
                cmd.env("RUSTC_BOOTSTRAP", "aya_ebpf").env_remove("RUSTUP_TOOLCHAIN").arg(subcommand);
                cmd
            }
        }
    }

    pub(crate) fn describe(&self) -> String {
        format!("rustc {} (LLVM {}), core in {}", self.version, self.llvm, self.core.display())
    }
}

/// The road by rustup (or any toolchain that comes with its sources): the compiler that cargo would use here.
pub(crate) fn rustup_road() -> Option<Road> {
    let rustc = rustc_in_use();
    let core = sysroot(&rustc).ok()?.join("lib/rustlib/src/rust/library/core");
    let (version, llvm) = version(&rustc).ok()?;
    core.is_dir().then_some(Road { kind: RoadKind::Rustup, rustc, version, llvm, core })
}

/// The road by Debian's packages.
pub(crate) fn debian_road() -> Option<Road> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    if !Path::new("/usr/bin/cargo").exists() || !rustc.exists() {
        return None;
    }
    let core = sysroot(&rustc).ok()?.join("lib/rustlib").join(TARGET);
    let (version, llvm) = version(&rustc).ok()?;
    core.is_dir().then_some(Road { kind: RoadKind::Debian, rustc, version, llvm, core })
}

/// The road to take: the wanted one, or the first that is there and whose LLVM is also the linker's.
pub(crate) fn road(wanted: Option<RoadKind>) -> Result<Road> {
    let linker = linker().and_then(|path| linker_llvm(&path));
    let fits = |road: &Road| linker.is_none_or(|llvm| llvm == road.llvm);
    let found = match wanted {
        Some(RoadKind::Rustup) => rustup_road(),
        Some(RoadKind::Debian) => debian_road(),
        None => rustup_road().filter(fits).or_else(|| debian_road().filter(fits)).or_else(rustup_road),
    };
    found.ok_or_else(|| anyhow!("no compiler here can build for {TARGET}: run `cargo xtask setup --for build`"))
}

/// The compiler that cargo uses here. By name, so that rustup's proxy picks the toolchain.
pub(crate) fn rustc_in_use() -> PathBuf {
    env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()).into()
}

/// Where it keeps its libraries.
pub(crate) fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(sh::capture(Command::new(rustc).args(["--print", "sysroot"]))?.trim_end().into())
}

/// Release and LLVM major of a compiler.
pub(crate) fn version(rustc: &Path) -> Result<(String, u32)> {
    let text = sh::capture(Command::new(rustc).arg("-vV"))?;
    parse_version(&text).with_context(|| format!("`{} -vV` says neither release nor LLVM version", rustc.display()))
}

fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("release:")?.into(), field("LLVM version:")?.split('.').next()?.parse().ok()?))
}

/// bpf-linker, wherever it is.
pub(crate) fn linker() -> Option<PathBuf> {
    sh::find("bpf-linker")
}

/// LLVM major that bpf-linker was linked to; none where it is linked statically and so does not tell.
pub(crate) fn linker_llvm(linker: &Path) -> Option<u32> {
    parse_ldd(&sh::capture(Command::new("ldd").arg(linker)).ok()?)
}

fn parse_ldd(text: &str) -> Option<u32> {
    // "libLLVM.so.22.1 => …" since LLVM 18, "libLLVM-17.so.1 => …" before.
    text.split_whitespace().find_map(|word| {
        let rest = word.strip_prefix("libLLVM.so.").or_else(|| word.strip_prefix("libLLVM-"))?;
        rest.split('.').next()?.parse().ok()
    })
}

/// Whether the linker that is here can link what this compiler emits: else says why not.
pub(crate) fn check_linker(road_llvm: u32) -> Result<PathBuf> {
    let path = linker().ok_or_else(|| anyhow!("bpf-linker is not installed: run `cargo xtask setup --for build`"))?;
    sh::capture(Command::new(&path).arg("--version")).context("bpf-linker does not run")?;
    match linker_llvm(&path) {
        Some(llvm) if llvm != road_llvm => {
            bail!("{} was built for LLVM {llvm}, the compiler emits LLVM {road_llvm}'s bitcode", path.display())
        }
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_release_and_llvm() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(parse_version(text), Some(("1.95.0".into(), 22)));
        assert_eq!(parse_version("release: 1.95.0\n"), None);
        assert_eq!(parse_version("release: 1.95.0\nLLVM version: new\n"), None);
    }

    #[test]
    fn reads_the_linkers_llvm() {
        assert_eq!(parse_ldd("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n"), Some(22));
        assert_eq!(parse_ldd("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1 (0x7f)\n"), Some(17));
        assert_eq!(parse_ldd("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n"), None);
        assert_eq!(parse_ldd("\tlibLLVM.so => not found"), None);
    }
}
