//! One live test at a time, reasons to skip, and waiting on conditions instead of sleeping.

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Held by a live test: load, signals and two cores do not bear a second test beside them.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

/// Waits for this process's turn among all live tests of the machine.
pub fn turn() -> Result<Turn> {
    let path = std::env::temp_dir().join("why502-live-tests.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open the lock {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(Turn(file))
}

/// Why a live test cannot run here, or `None`. Print it: a silent skip looks like a pass.
pub fn why_not_live() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root (network namespaces, cgroups, mounts)".into());
    }
    for (what, found) in [("nginx", crate::nginx::binary().is_ok()), ("php-fpm", crate::php::binary().is_ok())] {
        if !found {
            return Some(format!("needs {what}, which is not installed"));
        }
    }
    if let Err(e) = crate::cgroup::v2_root() {
        return Some(e.to_string());
    }
    None
}

/// The same with the tracer's binary, which `WHY502_BIN` names.
pub fn why_not_traced() -> Option<String> {
    why_not_live().or_else(|| match std::env::var_os("WHY502_BIN").map(PathBuf::from) {
        None => Some("WHY502_BIN does not name the why502 binary (cargo xtask test sets it)".into()),
        Some(p) if !p.is_file() => Some(format!("WHY502_BIN={}: no such file", p.display())),
        Some(_) => None,
    })
}

/// The same for what takes minutes and has no short choice: only `cargo xtask test --full` plays it.
pub fn why_not_full() -> Option<String> {
    let short = || Some("it takes minutes: FULL=1, as cargo xtask test --full sets it, plays it".into());
    why_not_traced().or_else(|| if std::env::var_os("FULL").is_some() { None } else { short() })
}

/// A number from the environment, such as `RUNS` or `CLOSES`.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Polls until `done` says so. The error names what was waited for.
pub fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            bail!("waited {} ms for {what}", limit.as_millis());
        }
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// CLOCK_BOOTTIME in nanoseconds: the clock of the tracer's events.
pub fn boot_ns() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since 2.6.39");
    u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0)
}

/// A number that no other call of this process got.
pub fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Turns SIGINT and SIGTERM into an error of the next [`wait`], so that everything is cleaned up on the way out.
pub fn catch_interrupts() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(note_interrupt), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot catch signals")?;
    }
    Ok(())
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A directory that is removed on drop, after what is mounted in it was unmounted; readable by the servers' unprivileged
/// users.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        sweep_dirs();
        let path = std::env::temp_dir().join(format!("why502-{}-{}", std::process::id(), serial()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let dir = Self(path);
        std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o755))?;
        Ok(dir)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    /// Creates a subdirectory that every user may write to.
    pub fn open_subdir(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        Ok(path)
    }
}

impl Dir {
    /// A copy of a program under this name, for servers that are called otherwise; without a name the program itself.
    pub fn named(&self, program: PathBuf, name: Option<&str>) -> Result<PathBuf> {
        let Some(name) = name else { return Ok(program) };
        let copy = self.open_subdir("bin")?.join(name);
        std::fs::copy(&program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        Ok(copy)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if std::env::var_os("WHY502_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        unmount_below(&self.0);
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {e}", self.0.display());
        }
    }
}

/// Unmounts everything below a directory, the last mounted first.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).collect();
    for point in points.into_iter().rev().filter(|p| Path::new(p).starts_with(dir)) {
        // Detached: a process that is about to end may still have it open.
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// Removes the directories of earlier runs that were killed, unless they were to be kept.
fn sweep_dirs() {
    if std::env::var_os("WHY502_KEEP").is_some() {
        return;
    }
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker =
            name.strip_prefix("why502-").and_then(|r| r.split_once('-')).filter(|(_, n)| n.parse::<u32>().is_ok());
        if maker.is_some_and(|(pid, _)| is_gone(pid)) {
            unmount_below(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Host pids of a process's children, whichever of its threads started them.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Whether `pid` is a number, and no process has it.
pub(crate) fn is_gone(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// The first of these users that exists here; servers run their workers as it.
pub fn unprivileged_user() -> (String, String) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let has = |file: &str, name: &str| file.lines().any(|l| l.split(':').next() == Some(name));
    let user = ["www-data", "nginx", "nobody"].into_iter().find(|n| has(&passwd, n)).unwrap_or("root");
    let groups = [user, "nogroup", "nobody"];
    let group = groups.into_iter().find(|n| has(&group, n)).unwrap_or("root");
    (user.into(), group.into())
}

/// Runs a command to its end; the error carries what it wrote on stderr.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = std::process::Command::new(program).args(args).stdin(std::process::Stdio::null()).output();
    let out = out.with_context(|| format!("cannot start {program}"))?;
    if !out.status.success() {
        let err = String::from_utf8_lossy(&out.stderr);
        bail!("{program} {}: {}: {}", args.join(" "), out.status, err.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
