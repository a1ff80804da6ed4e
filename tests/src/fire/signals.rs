//! Every way a signal comes to be.

use super::Fire;
use super::child::{Child, Line, PATIENCE, kill};
use super::facts::{Facts, TARGET};
use super::manifest::Expect;
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::{Value, json};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

const RT: i32 = 40;

/// How often the handler ran, by signal.
static CAUGHT: [AtomicU32; 65] = [const { AtomicU32::new(0) }; 65];

extern "C" fn on_signal(signal: i32) {
    if let Some(n) = usize::try_from(signal).ok().and_then(|s| CAUGHT.get(s)) {
        n.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn caught(signal: i32) -> u32 {
    usize::try_from(signal).ok().and_then(|s| CAUGHT.get(s)).map_or(0, |n| n.load(Ordering::Relaxed))
}

/// Installs the counting handler.
pub(crate) fn catch(signal: i32) -> Result<()> {
    set(signal, on_signal as extern "C" fn(i32) as usize)
}

pub(crate) fn ignore(signal: i32) -> Result<()> {
    set(signal, libc::SIG_IGN)
}

fn set(signal: i32, handler: usize) -> Result<()> {
    // SAFETY: an all-zero sigaction is valid; the handler only adds to an atomic.
    let r = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, ptr::null_mut())
    };
    ensure!(r == 0, "sigaction({signal}): {}", std::io::Error::last_os_error());
    Ok(())
}

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    timers(fire)?;
    pipe(fire)?;
    sent(fire)?;
    results(fire)?;
    faults(fire)?;
    deadly(fire)
}

/// A child in the target's cgroup that is ready for `body`'s second half.
fn target(fire: &Fire, body: impl FnOnce(&Line) -> Result<i32>) -> Result<(Child, Facts)> {
    let child = Child::ready(body)?;
    fire.cgroups.put(TARGET, child.pid)?;
    let facts = child.facts()?;
    Ok((child, facts))
}

/// A generated signal of this number that went to this process.
pub(crate) fn generated(name: &str, signal: i32, to: &Facts, want: Value) -> Expect {
    let select = json!({"kind": "signal-generated", "signal": signal, "target": {"tgid": to.tgid}});
    let mut want = want;
    if want["target"].is_null() {
        want["target"] = to.json();
    }
    Expect::one(&format!("{name}: generated"), select, want)
}

fn delivered(name: &str, signal: i32, to: &Facts, want: Value) -> Expect {
    let select = json!({"kind": "signal-delivered", "signal": signal, "task": {"tgid": to.tgid}});
    let mut want = want;
    want["task"] = to.json();
    Expect::one(&format!("{name}: delivered"), select, want)
}

pub(crate) fn exited(name: &str, task: &Facts, code: i32) -> Expect {
    let select = json!({"kind": "exited", "task": {"tgid": task.tgid}});
    Expect::one(&format!("{name}: exit"), select, json!({"code": code, "task": task.json()}))
}

/// SA_RESTART, which our handlers set.
fn handled(code: Value) -> Value {
    json!({"code": code, "handler": 2, "sa_flags": {"$mask": [libc::SA_RESTART, libc::SA_RESTART]}})
}

/// By the kernel, without a siginfo (SEND_SIG_PRIV): the pointer that is no pointer.
fn by_kernel() -> Value {
    json!({"info": "kernel", "code": 0x80, "result": 0, "group": true})
}

fn timers(fire: &Fire) -> Result<()> {
    for (name, which, signal) in [
        ("itimer real", libc::ITIMER_REAL, libc::SIGALRM),
        ("itimer prof", libc::ITIMER_PROF, libc::SIGPROF),
        ("itimer virtual", libc::ITIMER_VIRTUAL, libc::SIGVTALRM),
    ] {
        let (mut child, facts) = target(fire, |line| {
            catch(signal)?;
            line.ready();
            itimer(which, 2000)?;
            let end = Instant::now() + PATIENCE;
            while caught(signal) < 25 && Instant::now() < end {
                std::hint::spin_loop();
            }
            itimer(which, 0)?;
            line.say(caught(signal));
            line.wait();
            Ok(0)
        })?;
        child.tell(0)?;
        let n = usize::try_from(child.hear()?)?;
        ensure!(n >= 25, "{name}: the timer fired {n} times");
        // The interrupt may come while the probe runs for another signal: nested runs are skipped (and counted as lost).
        let mut e = generated(name, signal, &facts, by_kernel()).between(n - n / 8, n);
        e.select["result"] = json!(0);
        fire.manifest.expect(e)?;
        fire.manifest.expect(delivered(name, signal, &facts, handled(json!(0x80))).times(n))?;
        child.finish()?;
    }
    // Without a handler: it kills.
    let (child, facts) = target(fire, |line| {
        line.ready();
        itimer(libc::ITIMER_REAL, 2000)?;
        std::thread::sleep(PATIENCE);
        Ok(0)
    })?;
    child.finish()?;
    fire.manifest.expect(generated("deadly alarm", libc::SIGALRM, &facts, by_kernel()))?;
    // A deadly signal that dumps no core is delivered as SIGKILL (kernel/signal.c complete_signal()).
    fire.manifest.expect(delivered("deadly alarm", libc::SIGKILL, &facts, json!({"code": 0, "handler": 0})))?;
    fire.manifest.expect(exited("deadly alarm", &facts, libc::SIGALRM))?;
    posix_timer(fire)
}

fn itimer(which: libc::c_int, every_us: i64) -> Result<()> {
    let t = libc::timeval { tv_sec: 0, tv_usec: every_us };
    let value = libc::itimerval { it_interval: t, it_value: t };
    // SAFETY: setitimer reads one struct.
    let r = unsafe { libc::setitimer(which, &raw const value, ptr::null_mut()) };
    ensure!(r == 0, "setitimer: {}", std::io::Error::last_os_error());
    Ok(())
}

/// timer_create(2): a siginfo that the kernel prepared long before (`posixtimer_send_sigqueue()`).
fn posix_timer(fire: &Fire) -> Result<()> {
    let name = "posix timer";
    let (mut child, facts) = target(fire, |line| {
        catch(RT + 1)?;
        line.ready();
        // SAFETY: all structs are ours and initialised; the timer dies with the process.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = RT + 1;
            let mut timer: libc::timer_t = ptr::null_mut();
            let r = libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
            ensure!(r == 0, "timer_create: {}", std::io::Error::last_os_error());
            let mut spec: libc::itimerspec = std::mem::zeroed();
            spec.it_value.tv_nsec = 1_000_000;
            let r = libc::timer_settime(timer, 0, &raw const spec, ptr::null_mut());
            ensure!(r == 0, "timer_settime: {}", std::io::Error::last_os_error());
        }
        wait_caught(RT + 1, 1);
        line.say(caught(RT + 1));
        line.wait();
        Ok(0)
    })?;
    child.tell(0)?;
    ensure!(child.hear()? == 1, "{name}: no signal");
    let want = json!({"info": "real", "code": -2, "result": 0});
    fire.manifest.expect(generated(name, RT + 1, &facts, want))?;
    fire.manifest.expect(delivered(name, RT + 1, &facts, handled(json!(-2))))?;
    child.finish()?;
    Ok(())
}

pub(crate) fn wait_caught(signal: i32, count: u32) {
    let end = Instant::now() + PATIENCE;
    while caught(signal) < count && Instant::now() < end {
        std::thread::yield_now();
    }
}

/// SIGPIPE: sent by the kernel in the writer's name (SEND_SIG_NOINFO).
fn pipe(fire: &Fire) -> Result<()> {
    let by_itself = |facts: &Facts| json!({"info": "none", "code": 0, "group": false, "sender": facts.json()});
    let (mut child, facts) = target(fire, |line| {
        catch(libc::SIGPIPE)?;
        line.ready();
        for _ in 0..20 {
            write_to_closed_pipe()?;
        }
        line.say(caught(libc::SIGPIPE));
        line.wait();
        Ok(0)
    })?;
    child.tell(0)?;
    ensure!(child.hear()? == 20, "SIGPIPE was not caught 20 times");
    fire.manifest.expect(generated("SIGPIPE", libc::SIGPIPE, &facts, by_itself(&facts)).times(20))?;
    fire.manifest.expect(delivered("SIGPIPE", libc::SIGPIPE, &facts, handled(json!(0))).times(20))?;
    child.finish()?;

    let (child, facts) = target(fire, |line| {
        set(libc::SIGPIPE, libc::SIG_DFL)?;
        line.ready();
        write_to_closed_pipe()?;
        Ok(0)
    })?;
    child.finish()?;
    fire.manifest.expect(generated("deadly SIGPIPE", libc::SIGPIPE, &facts, by_itself(&facts)))?;
    fire.manifest.expect(exited("deadly SIGPIPE", &facts, libc::SIGPIPE))
}

pub(crate) fn write_to_closed_pipe() -> Result<()> {
    use std::io::Write;
    let (reader, mut writer) = std::io::pipe()?;
    drop(reader);
    let _ = writer.write_all(b"x");
    Ok(())
}

/// kill, tgkill, sigqueue, pidfd_send_signal, from us to a child.
fn sent(fire: &Fire) -> Result<()> {
    let us = Facts::own()?;
    let (mut child, facts) = target(fire, |line| {
        for signal in [libc::SIGUSR1, libc::SIGHUP, RT, libc::SIGTERM] {
            catch(signal)?;
        }
        line.ready();
        for signal in [libc::SIGUSR1, libc::SIGHUP, RT, libc::SIGTERM] {
            wait_caught(signal, 1);
        }
        line.say(0);
        line.wait();
        Ok(0)
    })?;
    let pid = child.pid.cast_signed();
    kill(child.pid, libc::SIGUSR1)?;
    // SAFETY: plain integers; the task is our child's.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGHUP) };
    ensure!(r == 0, "tgkill: {}", std::io::Error::last_os_error());
    sigqueue(pid, RT)?;
    pidfd_signal(pid, libc::SIGTERM)?;
    child.tell(0)?;
    child.hear().context("signals did not arrive")?;
    // kill(2) passes no siginfo on 7.3 and newer; the sender is `current` anyway.
    for (name, signal, code, group, info) in [
        ("kill", libc::SIGUSR1, 0, true, json!({"$in": ["real", "none"]})),
        ("tgkill", libc::SIGHUP, -6, false, json!("real")),
        ("sigqueue", RT, -1, true, json!("real")),
        ("pidfd_send_signal", libc::SIGTERM, 0, true, json!({"$in": ["real", "none"]})),
    ] {
        let want = json!({"info": info, "code": code, "group": group, "result": 0, "sender": us.json()});
        fire.manifest.expect(generated(name, signal, &facts, want.clone()))?;
        // With a siginfo, si_pid is the sender in the target's namespace, here ours; sigqueue(3) lets it be forged.
        let mut e = generated(&format!("{name}: si_pid"), signal, &facts, json!({}));
        e.select["info"] = json!("real");
        e.want["si_pid"] = if signal == RT { json!(FORGED_PID) } else { json!(us.ns_pid) };
        fire.manifest.expect(if info.is_object() { e.between(0, 1) } else { e })?;
        fire.manifest.expect(delivered(name, signal, &facts, handled(json!(code))))?;
    }
    child.finish()?;
    Ok(())
}

/// si_pid that our sigqueue claims.
const FORGED_PID: i32 = 4_242_424;

fn sigqueue(pid: i32, signal: i32) -> Result<()> {
    // include/uapi/asm-generic/siginfo.h: si_signo, si_errno, si_code, then (64-bit) padding, si_pid, si_uid, si_value.
    let mut info = [0i32; 32];
    (info[0], info[2], info[4]) = (signal, -1, FORGED_PID);
    // SAFETY: the kernel reads 128 bytes, which `info` has.
    let r = unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, pid, signal, info.as_ptr()) };
    ensure!(r == 0, "rt_sigqueueinfo: {}", std::io::Error::last_os_error());
    Ok(())
}

fn pidfd_signal(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: plain integers and a null siginfo, which means "as kill(2)".
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        ensure!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        let r = libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, ptr::null::<u8>(), 0);
        libc::close(i32::try_from(fd)?);
        ensure!(r == 0, "pidfd_send_signal: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// TRACE_SIGNAL_IGNORED and TRACE_SIGNAL_ALREADY_PENDING.
fn results(fire: &Fire) -> Result<()> {
    let (child, facts) = target(fire, |line| {
        ignore(libc::SIGUSR2)?;
        catch(libc::SIGUSR1)?;
        block(libc::SIGUSR1)?;
        line.ready();
        Ok(0)
    })?;
    kill(child.pid, libc::SIGUSR2)?;
    kill(child.pid, libc::SIGUSR1)?;
    kill(child.pid, libc::SIGUSR1)?;
    child.finish()?;
    fire.manifest.expect(generated("ignored", libc::SIGUSR2, &facts, json!({"result": 1})))?;
    let none = json!({"kind": "signal-delivered", "task": {"tgid": facts.tgid}});
    fire.manifest.expect(Expect::none("ignored and blocked: not delivered", none))?;
    for (name, result) in [("blocked", 0), ("blocked, again", 2)] {
        let mut e = generated(name, libc::SIGUSR1, &facts, json!({}));
        e.select["result"] = json!(result);
        fire.manifest.expect(e)?;
    }
    Ok(())
}

fn block(signal: i32) -> Result<()> {
    // SAFETY: the set is initialised by sigemptyset.
    let r = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut())
    };
    ensure!(r == 0, "sigprocmask: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A fault of its own: `force_sig_fault()`, a real siginfo.
fn faults(fire: &Fire) -> Result<()> {
    let (child, facts) = target(fire, |line| {
        // No core file: the exit code then has no 0x80.
        // SAFETY: plain integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        set(libc::SIGSEGV, libc::SIG_DFL)?;
        line.ready();
        // SAFETY: none, on purpose: this page is not mapped, and the process ends here.
        unsafe { ptr::without_provenance_mut::<u8>(64).write_volatile(1) };
        Ok(0)
    })?;
    child.finish()?;
    let mut want = json!({"info": "real", "code": 1, "result": 0, "group": false});
    want["sender"] = faulting(&facts);
    want["target"] = faulting(&facts);
    fire.manifest.expect(generated("SIGSEGV", libc::SIGSEGV, &facts, want))?;
    fire.manifest.expect(exited("SIGSEGV", &facts, libc::SIGSEGV))
}

fn faulting(facts: &Facts) -> Value {
    facts.json()
}

/// SIGKILL, whose delivery never shows a siginfo; abort(3), which is a tgkill to itself.
fn deadly(fire: &Fire) -> Result<()> {
    let us = Facts::own()?;
    let (child, facts) = target(fire, |line| {
        line.ready();
        Ok(0)
    })?;
    kill(child.pid, libc::SIGKILL)?;
    child.end()?;
    let want = json!({"code": 0, "result": 0, "group": true, "sender": us.json()});
    fire.manifest.expect(generated("SIGKILL", libc::SIGKILL, &facts, want))?;
    fire.manifest.expect(delivered("SIGKILL", libc::SIGKILL, &facts, json!({"code": 0, "handler": 0})))?;
    fire.manifest.expect(exited("SIGKILL", &facts, libc::SIGKILL))?;

    let (child, facts) = target(fire, |line| {
        // SAFETY: plain integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        line.ready();
        std::process::abort()
    })?;
    child.finish()?;
    let want = json!({"info": "real", "code": -6, "group": false, "sender": facts.json()});
    fire.manifest.expect(generated("abort", libc::SIGABRT, &facts, want))?;
    fire.manifest.expect(exited("abort", &facts, libc::SIGABRT))
}
