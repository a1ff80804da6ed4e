//! Puts the probes' object where `src/probes/` embeds it from: `$OUT_DIR/probes.o`.
//!
//! `cargo xtask build` names the object in `WHY502_PROBES`. Without it the file is empty and the cfg `why502_probes` is
//! off: check, clippy, unit tests and rust-analyzer need no BPF toolchain, and such a binary says at run time how to
//! build a whole one.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=WHY502_PROBES");
    println!("cargo::rustc-check-cfg=cfg(why502_probes)");
    let Some(out) = env::var_os("OUT_DIR") else {
        return println!("cargo::error=OUT_DIR is not set: this is run by cargo only");
    };
    let out = PathBuf::from(out).join("probes.o");
    let written = match env::var_os("WHY502_PROBES").filter(|path| !path.is_empty()) {
        None => fs::write(&out, []).map_err(|e| format!("{}: {e}", out.display())),
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo::rerun-if-changed={}", object.display());
            println!("cargo::rustc-cfg=why502_probes");
            fs::copy(&object, &out).map(|_| ()).map_err(|e| format!("WHY502_PROBES={}: {e}", object.display()))
        }
    };
    if let Err(e) = written {
        println!("cargo::error={e}");
    }
}
