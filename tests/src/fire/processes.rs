//! Forks, programs, exits, threads.

use super::Fire;
use super::child::{Child, Line, exit_now, puppet};
use super::facts::{Facts, TARGET};
use super::manifest::Expect;
use super::signals::exited;
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::ptr;

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    plain(fire)?;
    programs(fire)?;
    exec_by_thread(fire)?;
    threads(fire)?;
    ends_together(fire)?;
    leader_first(fire)?;
    vfork(fire)?;
    user(fire)
}

/// A fork as it must be reported: parent and child, each with its own facts.
pub(crate) fn forked(name: &str, parent: &Facts, child: &Facts) -> Expect {
    let select = json!({"kind": "forked", "child": {"tgid": child.tgid}});
    let mut kid = child.json();
    // Whatever happened to the child later, at the fork it was where its parent was and called the same.
    kid["cgroup"] = json!(parent.cgroup);
    kid["cgroup_v1"] = parent.json()["cgroup_v1"].clone();
    kid["comm"] = json!(parent.comm);
    kid["uid"] = json!(parent.uid);
    Expect::one(&format!("{name}: fork"), select, json!({"parent": parent.json(), "child": kid}))
}

fn plain(fire: &Fire) -> Result<()> {
    let us = Facts::own()?;
    for code in [0, 7, 255] {
        let child = Child::ready(|line| {
            line.ready();
            Ok(code)
        })?;
        let facts = child.facts()?;
        child.finish()?;
        let name = format!("exit {code}");
        fire.manifest.expect(forked(&name, &us, &facts))?;
        fire.manifest.expect(exited(&name, &facts, code << 8))?;
        // The parent's SIGCHLD: a real siginfo, sent by the one that exits.
        let select = json!({"kind": "signal-generated", "signal": libc::SIGCHLD, "sender": {"tgid": facts.tgid}});
        let want = json!({"code": 1, "si_pid": facts.pid, "target": us.json()});
        fire.manifest.expect(Expect::one(&format!("{name}: SIGCHLD"), select, want))?;
    }
    Ok(())
}

/// Executes `program` as this process; does not return.
pub(crate) fn exec(program: &Path, argv: &[&str], env: &str) -> Result<()> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let argv: Vec<CString> = argv.iter().map(|a| CString::new(*a)).collect::<Result<_, _>>()?;
    let mut pointers: Vec<_> = argv.iter().map(|a| a.as_ptr()).collect();
    pointers.push(ptr::null());
    let env = CString::new(env)?;
    let envs = [env.as_ptr(), ptr::null()];
    // SAFETY: NUL-terminated strings in NULL-terminated arrays, all alive.
    unsafe { libc::execve(program.as_ptr(), pointers.as_ptr(), envs.as_ptr()) };
    Err(std::io::Error::last_os_error()).context("execve")
}

/// A child that becomes `program`, and waits as such. Gives its facts after the exec.
fn executed(fire: &Fire, program: &Path, argv: &[&str], code: i32) -> Result<(Child, Facts)> {
    let mut child = Child::ready(|line| {
        line.ready();
        let env = puppet(line, code)?;
        exec(program, argv, &env)?;
        Ok(0)
    })?;
    fire.cgroups.put(TARGET, child.pid)?;
    child.tell(0)?;
    child.hear().context("the program did not start")?;
    let facts = child.facts()?;
    Ok((child, facts))
}

fn programs(fire: &Fire) -> Result<()> {
    let long = "a".repeat(300);
    let deep: PathBuf = [&fire.dir, Path::new(&"d".repeat(180)), Path::new(&"e".repeat(180))].iter().collect();
    fs::create_dir_all(&deep)?;
    let cases: &[(&str, PathBuf, &[&str])] = &[
        ("plain program", fire.dir.join("program"), &["program", "-x", "two words", "", "ünï"]),
        ("long argv", fire.dir.join("argv"), &["argv", "--first", &long, "not seen"]),
        ("long path", deep.join("deep"), &["deep"]),
        ("empty argv", fire.dir.join("empty"), &[]),
        ("control characters", fire.dir.join("e\x1b[31m\n\t\"\\\u{7f}"), &["\x1b]0;t\x07", "a\nb", "\r"]),
        ("long name", fire.dir.join("sixteen-and-more-bytes"), &["x"]),
        ("spaces and brackets", fire.dir.join("a) S 1 (b"), &["a) S 1 (b"]),
    ];
    for (name, program, argv) in cases {
        symlink(&fire.exe, program).with_context(|| program.display().to_string())?;
        let (child, facts) = executed(fire, program, argv, 3)?;
        child.finish()?;
        let path = program.to_str().context("path")?;
        let mut want = json!({"task": facts.json(), "old_pid": facts.pid});
        want["path"] = if path.len() < 256 { json!(path) } else { json!({"$prefix": path}) };
        let whole: usize = argv.iter().map(|a| a.len() + 1).sum();
        want["argv"] = match argv {
            // Since 5.18 the kernel puts an empty argv[0] where there is none.
            [] => json!({"$in": [[], [""]]}),
            _ if whole <= 256 => json!(argv),
            _ => json!({"$starts": &argv[..2]}),
        };
        want["quality"] = if whole > 256 { json!(["argv-cut"]) } else { json!([]) };
        let select = json!({"kind": "execed", "task": {"tgid": facts.tgid}});
        fire.manifest.expect(Expect::one(&format!("{name}: exec"), select, want))?;
        fire.manifest.expect(exited(name, &facts, 3 << 8))?;
    }
    Ok(())
}

fn gettid() -> u32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }.cast_unsigned()
}

/// A program started by a thread: the thread takes over the leader's pid (fs/exec.c `de_thread()`).
fn exec_by_thread(fire: &Fire) -> Result<()> {
    let program = fire.dir.join("by-thread");
    symlink(&fire.exe, &program)?;
    let mut child = Child::fork(|line| {
        let env = puppet(line, 0)?;
        // The thread tells its tid through the leader, which then waits to be replaced.
        let (tx, rx) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let _ = tx.send(gettid());
            let _ = wait.recv();
            let _ = exec(&program, &["by-thread"], &env);
            exit_now(95);
        });
        line.say(rx.recv()?);
        line.wait();
        go.send(())?;
        line.wait();
        Ok(94)
    })?;
    let tid = child.hear()?;
    ensure!(tid != child.pid, "not a thread");
    child.tell(0)?;
    child.hear().context("the program did not start")?;
    let facts = child.facts()?;
    child.finish()?;
    let select = json!({"kind": "execed", "task": {"tgid": facts.tgid}});
    let want = json!({"task": facts.json(), "old_pid": tid, "argv": ["by-thread"]});
    fire.manifest.expect(Expect::one("exec by a thread", select, want))?;
    fire.manifest.expect(exited("exec by a thread", &facts, 0))
}

/// Threads are no processes: neither their start nor their end is reported; a signal to one names it.
fn threads(fire: &Fire) -> Result<()> {
    let us = Facts::own()?;
    let mut child = Child::ready(|line| {
        super::signals::catch(libc::SIGUSR1)?;
        line.ready();
        for _ in 0..5 {
            let all: Vec<_> = (0..8).map(|_| std::thread::spawn(gettid)).collect();
            for t in all {
                t.join().ok().context("thread")?;
            }
        }
        let (tx, rx) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = tx.send(gettid());
            super::signals::wait_caught(libc::SIGUSR1, 1);
        });
        line.say(rx.recv()?);
        thread.join().ok().context("thread")?;
        // join returns before the thread has ended: clear_child_tid is written early in do_exit().
        while fs::read_dir("/proc/self/task")?.count() > 1 {
            std::thread::yield_now();
        }
        line.ready();
        Ok(5)
    })?;
    let facts = child.facts()?;
    child.tell(0)?;
    let tid = child.hear()?;
    // SAFETY: plain integers; the thread waits for it.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, facts.tgid, tid, libc::SIGUSR1) };
    ensure!(r == 0, "tgkill: {}", std::io::Error::last_os_error());
    child.hear()?;
    child.finish()?;
    let name = "process with 41 threads";
    fire.manifest.expect(forked(name, &us, &facts))?;
    fire.manifest.expect(exited(name, &facts, 5 << 8))?;
    let none = json!({"kind": "forked", "parent": {"tgid": facts.tgid}});
    fire.manifest.expect(Expect::none(&format!("{name}: no forks"), none))?;
    let select = json!({"kind": "signal-generated", "signal": libc::SIGUSR1, "target": {"tgid": facts.tgid}});
    let want = json!({"group": false, "code": -6, "target": {"pid": tid, "start_ticks": facts.start_ticks}});
    fire.manifest.expect(Expect::one("tgkill to a thread", select, want))?;
    let select = json!({"kind": "signal-delivered", "signal": libc::SIGUSR1, "task": {"tgid": facts.tgid}});
    let want = json!({"handler": 2, "task": {"pid": tid}});
    fire.manifest.expect(Expect::one("tgkill to a thread: delivered", select, want))
}

/// A process that ends while a thread of it is just ending: both find nobody left alive, one exit all the same.
fn ends_together(fire: &Fire) -> Result<()> {
    for n in 0..20 {
        let child = Child::ready(|line| {
            line.ready();
            std::thread::spawn(gettid).join().ok().context("thread")?;
            Ok(6)
        })?;
        let facts = child.facts()?;
        child.finish()?;
        let mut e = exited(&format!("process and thread end together, {n}"), &facts, 6 << 8);
        // Whichever of them is reported.
        e.want["task"] = json!({"start_ticks": facts.start_ticks, "ns_pid": facts.ns_pid});
        fire.manifest.expect(e)?;
    }
    Ok(())
}

/// The leader ends first, a thread later: one exit, the last one, with the group's code.
fn leader_first(fire: &Fire) -> Result<()> {
    let mut child = Child::ready(|line| {
        line.ready();
        let leader = std::process::id();
        std::thread::spawn(move || {
            // Until the leader is a zombie.
            loop {
                let stat = fs::read_to_string(format!("/proc/{leader}/task/{leader}/stat")).unwrap_or_default();
                if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')) {
                    exit_now(9);
                }
                std::thread::yield_now();
            }
        });
        // SAFETY: exit(2), not exit_group(2): ends this thread only.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        Ok(0)
    })?;
    let facts = child.facts()?;
    child.tell(0)?;
    let status = child.end()?;
    ensure!(libc::WEXITSTATUS(status) == 9, "the thread's code is not the process's: {status:#x}");
    let mut e = exited("leader ends first", &facts, 9 << 8);
    // The task of the record is the thread that ended last.
    e.want["task"] = json!({"start_ticks": facts.start_ticks, "ns_pid": facts.ns_pid, "cgroup": facts.cgroup});
    fire.manifest.expect(e)
}

/// posix_spawn: CLONE_VFORK | CLONE_VM, but a process all the same.
fn vfork(fire: &Fire) -> Result<()> {
    let us = Facts::own()?;
    let mut spawned =
        std::process::Command::new(&fire.exe).env(super::child::PUPPET, "9999:4").spawn().context("posix_spawn")?;
    let pid = spawned.id();
    ensure!(spawned.wait()?.code() == Some(4), "the spawned program failed");
    let select = json!({"kind": "forked", "child": {"tgid": pid}});
    let want = json!({"parent": us.json(), "child": {"pid": pid, "ppid": us.tgid, "comm": us.comm}});
    fire.manifest.expect(Expect::one("posix_spawn: fork", select, want))?;
    let select = json!({"kind": "execed", "task": {"tgid": pid}});
    let want = json!({"path": fire.exe.to_str(), "task": {"pid": pid, "ppid": us.tgid}});
    fire.manifest.expect(Expect::one("posix_spawn: exec", select, want))?;
    let select = json!({"kind": "exited", "task": {"tgid": pid}});
    fire.manifest.expect(Expect::one("posix_spawn: exit", select, json!({"code": 4 << 8})))
}

/// Another user, and a name set by prctl(2).
fn user(fire: &Fire) -> Result<()> {
    let child = Child::ready(|line: &Line| {
        // SAFETY: plain integers; a NUL-terminated name.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, c"\x01new \xc3\xa4name".as_ptr());
            ensure!(libc::setresuid(65534, 65534, 65534) == 0, "setresuid: {}", std::io::Error::last_os_error());
        }
        line.ready();
        Ok(0)
    })?;
    let facts = child.facts()?;
    ensure!(facts.uid == 65534 && facts.comm == "\x01new äname", "{facts:?}");
    child.finish()?;
    fire.manifest.expect(exited("another user", &facts, 0))
}
