//! Forked processes that do one thing at the moment they are told, and programs that are executed.

use super::facts::Facts;
use super::nginx::{self, Functions};
use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use std::cell::RefCell;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a step may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The child's end of the line to its parent.
pub(crate) struct Line(RefCell<UnixStream>);

impl Line {
    /// Says that all is set up, and waits to be told to go on.
    pub(crate) fn ready(&self) {
        self.say(0);
        self.wait();
    }

    pub(crate) fn say(&self, n: u32) {
        let _ = self.0.borrow_mut().write_all(&n.to_le_bytes());
    }

    /// Signal handlers may run meanwhile: read_exact goes on after EINTR.
    pub(crate) fn wait(&self) -> u32 {
        let mut n = [0; 4];
        match self.0.borrow_mut().read_exact(&mut n) {
            Ok(()) => u32::from_le_bytes(n),
            // The parent is gone: so is the reason to live.
            Err(_) => exit_now(99),
        }
    }
}

/// Ends this process without running destructors or the parent's exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) only ends the process.
    unsafe { libc::_exit(code) }
}

/// A forked process; killed and reaped when dropped.
pub(crate) struct Child {
    pub(crate) pid: u32,
    line: UnixStream,
    reaped: bool,
}

impl Child {
    /// Forks. The child runs `body` and ends with what it returns; it inherits nothing but what we hold.
    pub(crate) fn fork(body: impl FnOnce(&Line) -> Result<i32>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        // SAFETY: this program is single-threaded wherever it forks, so the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error()).context("fork"),
            0 => {
                drop(ours);
                // SAFETY: prctl with plain integers. Nothing that we start outlives us.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
                let line = Line(RefCell::new(theirs));
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&line)));
                match done {
                    Ok(Ok(code)) => exit_now(code),
                    Ok(Err(e)) => {
                        eprintln!("why502-fire: child: {e:#}");
                        exit_now(98)
                    }
                    Err(_) => exit_now(97),
                }
            }
            pid => Ok(Self { pid: u32::try_from(pid)?, line: ours, reaped: false }),
        }
    }

    /// Forks and waits until the child has called [`Line::ready`].
    pub(crate) fn ready(body: impl FnOnce(&Line) -> Result<i32>) -> Result<Self> {
        let mut child = Self::fork(body)?;
        child.hear().context("child did not get ready")?;
        Ok(child)
    }

    pub(crate) fn hear(&mut self) -> Result<u32> {
        let mut n = [0; 4];
        self.line.read_exact(&mut n).context("no word from the child")?;
        Ok(u32::from_le_bytes(n))
    }

    pub(crate) fn tell(&mut self, n: u32) -> Result<()> {
        self.line.write_all(&n.to_le_bytes()).context("child is gone")
    }

    pub(crate) fn facts(&self) -> Result<Facts> {
        Facts::of(self.pid)
    }

    /// Lets it go on, and waits for its end. The wait(2) status.
    pub(crate) fn finish(mut self) -> Result<i32> {
        self.tell(0)?;
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Result<i32> {
        let status = self.reap()?;
        self.reaped = true;
        if libc::WIFEXITED(status) && (97..=99).contains(&libc::WEXITSTATUS(status)) {
            bail!("child {} failed with {}", self.pid, libc::WEXITSTATUS(status));
        }
        Ok(status)
    }

    fn reap(&self) -> Result<i32> {
        let mut status = 0;
        let pid = i32::try_from(self.pid)?;
        let got = loop {
            // SAFETY: waitpid writes one int.
            let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if got != -1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                break got;
            }
        };
        ensure!(got == pid, "waitpid({pid}): {}", std::io::Error::last_os_error());
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: not reaped, so the pid is still our child's.
            unsafe { libc::kill(self.pid.cast_signed(), libc::SIGKILL) };
            let _ = self.reap();
        }
    }
}

/// Sends a signal to a child that is not reaped yet.
pub(crate) fn kill(pid: u32, signal: i32) -> Result<()> {
    // SAFETY: kill(2) has no memory to break; the pid is a child's.
    let r = unsafe { libc::kill(pid.cast_signed(), signal) };
    ensure!(r == 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
    Ok(())
}

/// Environment variable that makes this program a puppet instead of why502-fire, whatever its arguments are:
/// `FD:CODE`, write a byte to FD, wait for one, exit with CODE; `FD:nginx`, act as [`super::nginx::act`] does.
pub(crate) const PUPPET: &str = "WHY502_FIRE_PUPPET";

/// First thing in `main`: does what [`PUPPET`] says, if it is set, and ends.
pub fn act_as_told(functions: Functions) {
    let Some(told) = std::env::var_os(PUPPET) else { return };
    let told = told.to_string_lossy().into_owned();
    let parsed = told.split_once(':').and_then(|(fd, act)| Some((fd.parse::<i32>().ok()?, act)));
    let Some((fd, act)) = parsed else { exit_now(96) };
    // SAFETY: the descriptor was inherited for this purpose; a wrong number only gives errors.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    if act == nginx::ACT {
        nginx::act(&mut file, functions);
    }
    let Ok(code) = act.parse() else { exit_now(96) };
    let mut byte = [0; 4];
    if file.write_all(&byte).is_ok() {
        let _ = file.read_exact(&mut byte);
    }
    exit_now(code)
}

/// Lets an executed program inherit the child's line; gives its value of [`PUPPET`].
pub(crate) fn puppet(line: &Line, act: impl Display) -> Result<String> {
    use std::os::fd::AsRawFd;
    let fd = line.0.borrow().as_raw_fd();
    // SAFETY: clears FD_CLOEXEC of a descriptor that we own.
    let r = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    ensure!(r == 0, "fcntl: {}", std::io::Error::last_os_error());
    Ok(format!("{PUPPET}={fd}:{act}"))
}
