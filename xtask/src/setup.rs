//! `cargo xtask setup`: finds or installs what the other tasks need, and says what it does, one line per item.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::toolchain::{self, LINKER_LLVM};
use crate::{apt, collector, sh};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the machine is to be ready for; each includes those before it
    #[arg(long = "for", value_enum, default_value_t = For::Test, value_name = "TASK")]
    pub(crate) target: For,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum For {
    Build,
    Demo,
    Test,
    /// Everything that .ci/run needs
    Ci,
}

/// A program that a Debian package brings.
struct Tool {
    name: &'static str,
    since: For,
    find: fn() -> Option<PathBuf>,
    /// The first set that apt offers is taken.
    packages: &'static [&'static [&'static str]],
}

macro_rules! tool {
    ($since:ident, $program:literal, $($packages:tt),+) => {
        Tool { name: $program, since: For::$since, find: || sh::find($program), packages: &[$(&$packages),+] }
    };
}

const TOOLS: &[Tool] = &[
    tool!(Build, "c++", ["g++"]), // bpf-linker links LLVM, which is C++
    tool!(Demo, "nginx", ["nginx-light"], ["nginx"]),
    Tool { name: "php-fpm", since: For::Demo, find: php_fpm, packages: &[&["php-fpm"]] },
    tool!(Demo, "ip", ["iproute2"]),
    tool!(Demo, "openssl", ["openssl"]),
    // What `cargo xtask vm` unpacks kernels with, makes the guest of, and runs it in.
    tool!(Test, "qemu-system-x86_64", ["qemu-system-x86"]),
    Tool { name: "busybox (static)", since: For::Test, find: static_busybox, packages: &[&["busybox-static"]] },
    tool!(Test, "zstd", ["zstd"]),
    tool!(Test, "lz4", ["lz4"]),
    tool!(Test, "xz", ["xz-utils"]),
    tool!(Test, "strip", ["binutils"]),
    // One test has nginx and php-fpm under it, in one container.
    tool!(Test, "supervisord", ["supervisor"]),
    // PID 1 of containers: in some of the accuracy scenarios, and in the tests of who sent a signal.
    tool!(Test, "tini", ["tini"]),
    tool!(Test, "dumb-init", ["dumb-init"]),
    tool!(Test, "catatonit", ["catatonit"]),
    tool!(Test, "runsvdir", ["runit"]),
    tool!(Test, "s6-svscan", ["s6"]),
    // A proxy of a pod that is not nginx.
    tool!(Test, "haproxy", ["haproxy"]),
    // Looks at the pages.
    tool!(Test, "chromium", ["chromium"]),
    // Pods that real runtimes run. containerd's CRI plugin has its network made by CNI plugins, dockerd by iptables.
    tool!(Test, "dockerd", ["docker.io"]),
    tool!(Test, "docker", ["docker-cli"], ["docker.io"]),
    tool!(Test, "containerd", ["containerd"]),
    tool!(Test, "runc", ["runc"]),
    tool!(Test, "iptables", ["iptables"]),
    // Brings the collector, below.
    tool!(Ci, "pip3", ["python3-pip"]),
    Tool { name: "CNI plugins", since: For::Test, find: cni_bridge, packages: &[&["containernetworking-plugins"]] },
];

/// Debian's own compiler, with a `core` for BPF that is built already.
const DEBIAN_ROAD: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The newest php-fpm: Debian names the program after its version.
fn php_fpm() -> Option<PathBuf> {
    let versioned = ["/usr/sbin", "/usr/local/sbin"].iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    let mut found: Vec<_> = versioned
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((php_version(path.file_name()?.to_str()?)?, path))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path).or_else(|| sh::find("php-fpm"))
}

fn php_version(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.strip_prefix("php-fpm")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Debian's CNI plugins are in no folder of programs.
fn cni_bridge() -> Option<PathBuf> {
    ["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"].map(PathBuf::from).into_iter().find(|path| path.is_file())
}

/// The guests have no libc for a dynamic one.
fn static_busybox() -> Option<PathBuf> {
    let path = sh::find("busybox")?;
    let bytes = fs::read(&path).ok()?;
    // A dynamic program names its loader (PT_INTERP), e.g. /lib64/ld-linux-x86-64.so.2.
    (!contains(&bytes, b"/ld-linux") && !contains(&bytes, b"/ld-musl")).then_some(path)
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure(args.target)
}

/// Makes the machine ready for a task; quick where it is already.
pub(crate) fn ensure(target: For) -> Result<()> {
    let start = Instant::now();
    let mut installed = 0;
    may_install(&missing_packages(target))?;
    installed += tools(target)?;
    let llvm = compiler(&mut installed)?;
    linker(llvm, &mut installed)?;
    if target >= For::Ci {
        ci(&mut installed)?;
    }
    let what = if installed == 0 { "nothing to install".into() } else { format!("{installed} installed") };
    println!("setup       ready for {target:?}: {what} ({:.1?})", start.elapsed());
    Ok(())
}

fn found(name: &str, what: impl std::fmt::Display) {
    println!("found       {name:<18}  {what}");
}

fn installing(name: &str, how: impl std::fmt::Display) {
    println!("installing  {name:<18}  {how}");
}

/// All packages that are missing as far as one can see from here, so that who has to type the commands types them once.
fn missing_packages(target: For) -> Vec<String> {
    let tools = TOOLS.iter().filter(|tool| tool.since <= target && (tool.find)().is_none());
    let mut packages: Vec<String> = tools.flat_map(|tool| tool.packages[0]).map(|&name| name.to_owned()).collect();
    let road = toolchain::rustup_road().or_else(toolchain::debian_road);
    if road.is_none() && sh::find("rustup").is_none() {
        packages.extend(DEBIAN_ROAD.map(str::to_owned));
    }
    let llvm = road.map(|road| road.llvm).or_else(|| Some(toolchain::version(&toolchain::rustc_in_use()).ok()?.1));
    if let Some(llvm) = llvm
        && toolchain::check_linker(llvm).is_err()
        && found_llvm(llvm).is_none()
    {
        packages.extend(llvm_packages(llvm));
    }
    packages
}

/// Debian's tools, all in one go. Gives how many were missing.
fn tools(target: For) -> Result<usize> {
    let mut missing = Vec::new();
    for tool in TOOLS.iter().filter(|tool| tool.since <= target) {
        match (tool.find)() {
            Some(path) => found(tool.name, path.display()),
            None => missing.push(tool),
        }
    }
    if missing.is_empty() {
        return Ok(0);
    }
    apt::update();
    let mut packages = Vec::new();
    for tool in &missing {
        let set = tool.packages.iter().find(|set| apt::offers(set));
        let set = set.ok_or_else(|| {
            anyhow!("apt offers none of the packages that bring {}: {}", tool.name, tool.packages.concat().join(", "))
        })?;
        installing(tool.name, format_args!("apt-get install {}", set.join(" ")));
        packages.extend_from_slice(set);
    }
    apt::install(&packages)?;
    let services: Vec<String> = missing.iter().filter_map(|tool| service(tool)).collect();
    apt::disable_services(&services);
    match missing.iter().find(|tool| (tool.find)().is_none()) {
        Some(tool) => bail!("{} is still not here after the install of its package", tool.name),
        None => Ok(missing.len()),
    }
}

/// The service that a tool's package brings, which nobody asked for.
fn service(tool: &Tool) -> Option<String> {
    match tool.name {
        "nginx" => Some("nginx".into()),
        "supervisord" => Some("supervisor".into()),
        "dockerd" => Some("docker".into()),
        "containerd" => Some("containerd".into()),
        "php-fpm" => Some(php_fpm()?.file_name()?.to_str()?.strip_prefix("php-fpm").map(|v| format!("php{v}-fpm"))?),
        _ => None,
    }
}

/// Refuses, with the commands to type, where we may not install packages.
fn may_install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let by_hand = apt::by_hand(packages);
    if !apt::present() {
        bail!(
            "this is not Debian or Ubuntu: install these by your own package manager (Debian's names), then run this \
             again: {}",
            packages.join(" ")
        );
    }
    if !sh::is_root() {
        bail!("packages are missing and this is not root. Run:\n    {}\nand then this again", by_hand.join("\n    "));
    }
    Ok(())
}

/// A compiler for the probes, by either road. Gives its LLVM's major version.
fn compiler(installed: &mut usize) -> Result<u32> {
    const NAME: &str = "compiler for BPF";
    let roads = || [toolchain::rustup_road(), toolchain::debian_road()].into_iter().flatten();
    let usable = || {
        let all: Vec<_> = roads().filter(|road| LINKER_LLVM.contains(&road.llvm)).collect();
        // Where both are there, the one that the linker was built for needs no other linker.
        let linker = toolchain::linker().and_then(|path| toolchain::linker_llvm(&path));
        let at = all.iter().position(|road| linker == Some(road.llvm)).unwrap_or(0);
        all.into_iter().nth(at)
    };
    if let Some(road) = usable() {
        found(NAME, road.describe());
        return Ok(road.llvm);
    }
    *installed += 1;
    let (version, llvm) = toolchain::version(&toolchain::rustc_in_use())?;
    if sh::find("rustup").is_some() && LINKER_LLVM.contains(&llvm) {
        let mut add = Command::new("rustup");
        add.args(["component", "add", "rust-src"]);
        installing(NAME, format_args!("{} (its core is built from source)", sh::show(&add)));
        match sh::run(&mut add) {
            Ok(()) => {
                if let Some(road) = usable() {
                    return Ok(road.llvm);
                }
            }
            Err(e) => eprintln!("warning: {e:#}; trying Debian's compiler"),
        }
    }
    let packages = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
    may_install(&packages.map(str::to_owned)).with_context(|| {
        format!("rustc {version} (LLVM {llvm}) has no core for BPF: `rustup component add rust-src`")
    })?;
    apt::update();
    if !apt::offers(&packages) {
        bail!(
            "no compiler for BPF: rustc {version} (LLVM {llvm}) lacks the sources of core, or bpf-linker knows only LLVM \
             {} to {}, and apt does not offer {}. Run:\n    rustup toolchain install 1.95.0 --component rust-src\n    \
             cargo +1.95.0 xtask setup",
            LINKER_LLVM.start(),
            LINKER_LLVM.end(),
            packages.join(", ")
        );
    }
    installing(NAME, format_args!("apt-get install {}", packages.join(" ")));
    apt::install(&packages)?;
    usable()
        .map(|road| road.llvm)
        .ok_or_else(|| anyhow!("{} are installed, but bring no core for BPF", packages.join(", ")))
}

/// `cargo install` of a tool. Not optimised: that is a third of the time to build it, and what these tools spend their time
/// on is LLVM's library and files.
fn cargo_install(tool: &str) -> Command {
    let mut cmd = sh::cargo();
    cmd.args(["install", tool, "--locked"]).env_remove("CARGO_TARGET_DIR");
    cmd.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    cmd.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    cmd
}

/// bpf-linker, built for the LLVM of the compiler.
fn linker(llvm: u32, installed: &mut usize) -> Result<()> {
    match toolchain::check_linker(llvm) {
        Ok(path) => {
            found("bpf-linker", format_args!("{} (LLVM {llvm})", path.display()));
            return Ok(());
        }
        Err(e) if toolchain::linker().is_some() => println!("replacing   bpf-linker: {e:#}"),
        Err(_) => {}
    }
    *installed += 1;
    let prefix = llvm_prefix(llvm, installed)?;
    let mut cmd = cargo_install("bpf-linker");
    cmd.args(["--version", "^0.13", "--force", "--no-default-features", "--features"]).arg(format!("llvm-{llvm}"));
    cmd.env("LLVM_PREFIX", &prefix);
    installing("bpf-linker", format_args!("LLVM_PREFIX={} {} (1 to 2 minutes)", prefix.display(), sh::show(&cmd)));
    sh::run(&mut cmd)?;
    toolchain::check_linker(llvm).map(|_| ())
}

/// What bpf-linker is built with.
fn llvm_packages(llvm: u32) -> [String; 4] {
    [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"), "zlib1g-dev".into(), "libzstd-dev".into()]
}

/// Folder of LLVM's development files, where they and the libraries that they ask for are here.
fn found_llvm(llvm: u32) -> Option<PathBuf> {
    if let Some(prefix) = env::var_os("LLVM_PREFIX") {
        return Some(prefix.into());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let needs = ["lib/libPolly.a".into(), "bin/llvm-config".into(), format!("lib/libLLVM-{llvm}.so")];
    let header =
        |name: &str| ["/usr/include", "/usr/local/include"].iter().any(|dir| Path::new(dir).join(name).exists());
    let here = needs.iter().all(|file| prefix.join(file).exists()) && header("zlib.h") && header("zstd.h");
    here.then_some(prefix)
}

/// The same; installs them from Debian where they are missing.
fn llvm_prefix(llvm: u32, installed: &mut usize) -> Result<PathBuf> {
    if let Some(prefix) = found_llvm(llvm) {
        found("LLVM's libraries", prefix.display());
        return Ok(prefix);
    }
    let packages = llvm_packages(llvm);
    may_install(&packages).context("bpf-linker has to be built, or installed with `cargo binstall bpf-linker`")?;
    apt::update();
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    if !apt::offers(&packages) {
        bail!(
            "apt does not offer {}, which bpf-linker has to be built with. Run `cargo binstall bpf-linker`, or install \
             LLVM {llvm} from apt.llvm.org, and then this again",
            packages[0]
        );
    }
    installing("LLVM's libraries", format_args!("apt-get install {}", packages.join(" ")));
    *installed += 1;
    apt::install(&packages)?;
    found_llvm(llvm).ok_or_else(|| anyhow!("{} are installed, but not all their files are here", packages.join(", ")))
}

/// What only .ci/run uses.
fn ci(installed: &mut usize) -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        // rustup's proxies exist even where the component does not.
        if sh::ok(sh::cargo().args([&program["cargo-".len()..], "--version"])) {
            found(program, "with the toolchain");
            continue;
        }
        let mut add = Command::new("rustup");
        add.args(["component", "add", component]);
        installing(program, sh::show(&add));
        sh::run(&mut add)?;
        *installed += 1;
    }
    otlp_collector(installed);
    if let Some(path) = sh::find("cargo-deny") {
        found("cargo-deny", path.display());
        return Ok(());
    }
    let mut cmd = cargo_install("cargo-deny");
    installing("cargo-deny", format_args!("{} (1 to 2 minutes)", sh::show(&cmd)));
    *installed += 1;
    sh::run(&mut cmd)
}

/// A test goes without it, so nothing else has to.
fn otlp_collector(installed: &mut usize) {
    const NAME: &str = "rotel-agent";
    if let Some(path) = collector::find() {
        found(NAME, path.display());
        return;
    }
    let brought = collector::command().and_then(|mut cmd| {
        installing(NAME, sh::show(&cmd));
        sh::capture(&mut cmd)
    });
    match (brought, collector::find()) {
        (Ok(_), Some(_)) => *installed += 1,
        (Ok(_), None) => eprintln!("warning: {NAME} does not run here: its test will be skipped"),
        (Err(e), _) => eprintln!("warning: {e:#}; the test with {NAME} will be skipped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn php_versions_are_numbers() {
        assert_eq!(php_version("php-fpm8.2"), Some((8, 2)));
        assert!(php_version("php-fpm8.10") > php_version("php-fpm8.9"));
        assert_eq!(php_version("php-fpm"), None);
        assert_eq!(php_version("php-fpm8.2.bak"), None);
    }

    #[test]
    fn each_task_includes_those_before_it() {
        assert!(For::Build < For::Demo && For::Demo < For::Test && For::Test < For::Ci);
        assert!(TOOLS.iter().all(|tool| tool.packages.iter().all(|set| !set.is_empty())));
        let count = |target| TOOLS.iter().filter(|tool| tool.since <= target).count();
        assert!(count(For::Build) < count(For::Demo) && count(For::Demo) < count(For::Test));
    }

    #[test]
    fn tells_a_static_program_by_its_missing_loader() {
        assert!(contains(b"\x7fELF../lib64/ld-linux-x86-64.so.2", b"/ld-linux"));
        assert!(!contains(b"\x7fELF", b"/ld-linux"));
    }
}
