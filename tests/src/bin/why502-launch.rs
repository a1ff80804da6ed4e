//! Starts a command as PID 1 of a container of its own: see `why502_tests::launch`.
//!
//! Prints `pid N` (host pid) once the command was exec'ed, or an error, and exits as the command does.

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, execvp, fork, getppid, pipe2, setsid};
use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
struct Args {
    /// Network namespace to join, by path
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Directory of the cgroup v2 to join
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Host pid of a container's PID 1: join its pid, mount and network namespaces instead of making new ones
    #[arg(long, conflicts_with_all = ["plain", "netns", "bind"])]
    enter: Option<i32>,
    /// Host pid of a process whose pid namespace to join, instead of making a new one
    #[arg(long, conflicts_with_all = ["plain", "enter"])]
    pids_of: Option<i32>,
    /// No pid namespace, but a mount namespace
    #[arg(long, conflicts_with_all = ["plain", "enter", "pids_of"])]
    host_pids: bool,
    /// No pid and mount namespaces
    #[arg(long)]
    plain: bool,
    /// Show OUTSIDE at INSIDE in the container
    #[arg(long, num_args = 2, value_names = ["OUTSIDE", "INSIDE"], conflicts_with = "plain")]
    bind: Vec<PathBuf>,
    /// File for stdout and stderr
    #[arg(long)]
    log: Option<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            println!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<ExitCode> {
    // Closed by a successful exec; carries the reason of a failed one.
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    // Only the children of this process get into the namespace; of a new one, the next child is PID 1.
    if let Some(pid) = args.enter.or(args.pids_of) {
        join(pid, "pid", CloneFlags::CLONE_NEWPID)?;
    } else if !args.plain && !args.host_pids {
        unshare(CloneFlags::CLONE_NEWPID).context("cannot make a pid namespace")?;
    }
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            drop(reader);
            let Err(e) = become_container(args);
            let _ = write!(File::from(writer), "{e:#}");
            std::process::exit(127)
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut failure = String::new();
            File::from(reader).read_to_string(&mut failure)?;
            if !failure.is_empty() {
                let _ = waitpid(child, None);
                bail!("{failure}");
            }
            println!("pid {child}");
            wait_for(child)
        }
    }
}

/// Everything between fork and exec. Comes back only with an error.
fn become_container(args: &Args) -> Result<std::convert::Infallible> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask for a death signal")?;
    // In a new pid namespace the parent is outside (0); without one, 1 means that it died before the call above.
    if (args.plain || args.host_pids) && getppid() == Pid::from_raw(1) {
        bail!("the launcher is gone");
    }
    // A Ctrl-C in the caller's terminal is not for the container.
    setsid().context("cannot make a session")?;
    if let Some(cgroup) = &args.cgroup {
        let file = cgroup.join("cgroup.procs");
        std::fs::write(&file, "0").with_context(|| format!("cannot join {}", file.display()))?;
    }
    if let Some(netns) = &args.netns {
        let file = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot join {}", netns.display()))?;
    }
    if let Some(pid) = args.enter {
        join(pid, "net", CloneFlags::CLONE_NEWNET)?;
        // The last one: the host's /proc, where the others are found, is gone with it.
        join(pid, "mnt", CloneFlags::CLONE_NEWNS)?;
    } else if !args.plain {
        own_mounts(args)?;
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    let out = match &args.log {
        None => null.try_clone()?,
        Some(log) => {
            let file = OpenOptions::new().create(true).append(true).open(log);
            file.with_context(|| format!("cannot open {}", log.display()))?
        }
    };
    dup2_stdin(&null)?;
    dup2_stdout(&out)?;
    dup2_stderr(&out)?;
    hear_everything()?;
    let argv = args.command.iter().map(|a| CString::new(a.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let Some(program) = argv.first() else { bail!("no command") };
    execvp(program, &argv).with_context(|| format!("cannot run {:?}", args.command[0]))
}

/// A container begins with no signal ignored or blocked, as a runtime starts it. What is ignored at its start a shell can
/// never trap, and a harness that runs in the background of a shell inherits that for INT and QUIT.
fn hear_everything() -> Result<()> {
    for it in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no handler: nothing of this program runs on a signal.
        unsafe { signal(it, SigHandler::SigDfl) }.with_context(|| format!("cannot reset {it}"))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("cannot unblock the signals")
}

/// Enters a namespace of the process `pid`.
fn join(pid: i32, name: &str, kind: CloneFlags) -> Result<()> {
    let path = format!("/proc/{pid}/ns/{name}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(file, kind).with_context(|| format!("cannot enter {path}"))
}

fn own_mounts(args: &Args) -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // Else the mounts below would show up on the host.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make / private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("cannot mount /proc")?;
    for pair in args.bind.chunks_exact(2) {
        mount(Some(&pair[0]), &pair[1], none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot show {} at {}", pair[0].display(), pair[1].display()))?;
    }
    Ok(())
}

/// Until the command ends. It is killed when standard input closes: the caller is gone, or wants it so.
fn wait_for(child: Pid) -> Result<ExitCode> {
    // Not a thread: after unshare(CLONE_NEWPID) this process can make none.
    let pidfd = pidfd_open(child)?;
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    while !fds[0].any().unwrap_or(false) {
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => bail!("cannot wait for {child}: {e}"),
        }
        if fds[1].any().unwrap_or(false) && nix::unistd::read(&stdin, &mut [0; 64]) == Ok(0) {
            let _ = kill(child, Signal::SIGKILL);
            break;
        }
    }
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(255))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(ExitCode::from(128 + signal as u8)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => bail!("cannot wait for {child}: {e}"),
        }
    }
}

fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes a pid and flags, and returns a file descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd).context("pidfd_open (needs Linux 5.3)")?;
    // SAFETY: the kernel made this descriptor for this call, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}
