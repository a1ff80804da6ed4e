//! The static program.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use crate::{apt, build, sh, toolchain};

/// C and assembler of the cryptography (TLS to the Kubernetes API) are compiled by it.
const COMPILER: &str = "musl-gcc";

/// Builds it and gives its path.
pub(super) fn build() -> Result<PathBuf> {
    let start = Instant::now();
    let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
    standard_library(&target)?;
    if sh::find(COMPILER).is_none() {
        if !sh::is_root() || !apt::present() {
            bail!("{COMPILER} is missing: apt-get install musl-tools (elsewhere musl-gcc or musl), and run this again");
        }
        apt::install(&["musl-tools"])?;
    }
    let object = build::run(&build::Args { probes_only: true, ..Default::default() })?;
    let mut cmd = sh::cargo();
    cmd.args(["build", "--release", "--locked", "--package", "why502", "--target", &target]);
    cmd.env("WHY502_PROBES", &object);
    // Nobody debugs it where it runs; half of the size and some of the time.
    cmd.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    // Messages of panics name source files: not by the folders of who built it.
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    cmd.env(variable, remapped()?);
    sh::run(&mut cmd)?;
    let program = sh::target_dir().join(&target).join("release/why502");
    let bytes = std::fs::read(&program).with_context(|| program.display().to_string())?;
    if let Some(loader) = loader(&bytes)? {
        bail!("{} is not static: it asks for {loader}", program.display());
    }
    println!("built       {}, static ({:.0?})", program.display(), start.elapsed());
    Ok(program)
}

/// Options that name the sources alike on every machine.
fn remapped() -> Result<String> {
    let library = toolchain::sysroot(&toolchain::rustc_in_use())?.join("lib/rustlib/src/rust");
    let crates = sh::cargo_bin().and_then(|bin| Some(bin.parent()?.join("registry/src")));
    let from = [(Some(library), "/rust"), (crates, "/crates"), (Some(sh::root()), "/why502")];
    let named = from.iter().filter_map(|(from, to)| Some((from.as_ref()?.to_str()?, to)));
    // Options in a variable are parted by spaces.
    let options =
        named.filter(|(from, _)| !from.contains(' ')).map(|(from, to)| format!("--remap-path-prefix={from}={to}"));
    Ok(options.collect::<Vec<_>>().join(" "))
}

/// Rust's own for this target.
fn standard_library(target: &str) -> Result<()> {
    let rustc = toolchain::rustc_in_use();
    let asked = Command::new(&rustc).args(["--print", "target-libdir", "--target", target]).output();
    let dir = String::from_utf8(asked.context("asking rustc")?.stdout)?;
    let there = || std::fs::read_dir(dir.trim()).is_ok_and(|mut files| files.next().is_some());
    if there() {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", target]);
    if sh::find("rustup").is_none() || sh::run(&mut add).is_err() || !there() {
        bail!("{} has no standard library for {target}: `{}`", rustc.display(), sh::show(&add));
    }
    Ok(())
}

/// The dynamic loader that a program asks for (PT_INTERP); a static one asks for none.
fn loader(program: &[u8]) -> Result<Option<String>> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(program).context("not a 64-bit program")?;
    let endian = header.endian().context("byte order")?;
    for part in header.program_headers(endian, program).context("program headers")? {
        if let Some(path) = part.interpreter(endian, program).context("PT_INTERP")? {
            return Ok(Some(String::from_utf8_lossy(path).into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_static_program_from_a_dynamic_one() {
        // The test itself is dynamic wherever it is built for the host.
        let own = std::fs::read(env::current_exe().expect("a path")).expect("readable");
        assert!(loader(&own).expect("a program").is_some_and(|path| path.contains("/ld-")));
        assert!(loader(b"#!/bin/sh\n").is_err());
    }
}
