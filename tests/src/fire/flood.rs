//! Many of everything at once: the counts must still be exact.

use super::Fire;
use super::child::{Child, Line, PATIENCE, kill};
use super::facts::{Facts, TARGET};
use super::manifest::Expect;
use super::signals::{catch, caught, write_to_closed_pipe};
use super::sock::{FAMILIES, Family, loopback_up};
use super::tcp::reason;
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;
use std::time::Instant;

const FORKS: usize = 300;
const PIPES: usize = 500;
const REFUSED: usize = 300;
const KILLS: usize = 300;
const ALARMS: u32 = 200;
const PORT: u16 = 20_000;

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    let start = |body: fn(&Line) -> Result<i32>| -> Result<(Child, Facts)> {
        let child = Child::ready(body)?;
        fire.cgroups.put(TARGET, child.pid)?;
        let facts = child.facts()?;
        Ok((child, facts))
    };
    let (mut forks, forker) = start(many_forks)?;
    let (mut pipes, writer) = start(many_pipes)?;
    let (mut alarms, sleeper) = start(many_alarms)?;
    let (mut victims, victim) = start(many_kills)?;
    let (mut refused, connector) = start(many_refused)?;
    fire.hold_netns(refused.pid)?;
    let mut all = [&mut forks, &mut pipes, &mut alarms, &mut refused];
    for child in &mut all {
        child.tell(0)?;
    }
    for _ in 0..KILLS {
        // A real-time signal queues: each one counts.
        kill(victim.pid, QUEUED)?;
    }
    let killed = usize::try_from({
        victims.tell(0)?;
        victims.hear()?
    })?;
    ensure!(killed == KILLS, "{killed} of {KILLS} queued signals arrived");
    for child in &mut all {
        child.hear()?;
    }
    let counted = |name: &str, select, count| fire.manifest.expect(Expect::one(name, select, json!({})).times(count));

    counted("flood: forks", json!({"kind": "forked", "parent": {"tgid": forker.tgid}}), FORKS)?;
    counted("flood: exits", json!({"kind": "exited", "task": {"ppid": forker.tgid}}), FORKS)?;
    let pipe = json!({"kind": "signal-generated", "signal": libc::SIGPIPE, "sender": {"tgid": writer.tgid}});
    counted("flood: SIGPIPE", pipe, PIPES)?;
    let alarm = json!({"kind": "signal-delivered", "signal": libc::SIGALRM, "task": {"tgid": sleeper.tgid}});
    counted("flood: alarms", alarm, usize::try_from(ALARMS)?)?;
    let queued = json!({"kind": "signal-generated", "signal": QUEUED, "target": {"tgid": victim.tgid}});
    counted("flood: queued signals", queued, KILLS)?;
    let queued = json!({"kind": "signal-delivered", "signal": QUEUED, "task": {"tgid": victim.tgid}});
    counted("flood: queued signals delivered", queued, KILLS)?;
    let tuple = json!({"netns": connector.netns});
    counted("flood: resets received", json!({"kind": "reset-received", "tuple": tuple}), REFUSED)?;
    let select = json!({"kind": "reset-sent", "tuple": tuple});
    let want = json!({"socket": "none", "active": false, "port_known": true, "in_flags": {"$mask": [0x1f, 2]}});
    let e = Expect::one("flood: resets sent", select, want).times(REFUSED).reply_reset();
    fire.manifest.expect(e.reason(reason::NO_SOCKET))?;
    for child in [forks, pipes, alarms, victims, refused] {
        child.finish()?;
    }
    Ok(())
}

/// SIGRTMIN + some: unused by libc.
const QUEUED: i32 = 45;

/// Says `n` when done, and waits.
fn done(line: &Line, n: u32) -> Result<i32> {
    line.say(n);
    line.wait();
    Ok(0)
}

fn many_forks(line: &Line) -> Result<i32> {
    line.ready();
    for n in 0..FORKS {
        Child::fork(|_| Ok(i32::try_from(n % 90)?))?.end()?;
    }
    done(line, 0)
}

fn many_pipes(line: &Line) -> Result<i32> {
    catch(libc::SIGPIPE)?;
    line.ready();
    for _ in 0..PIPES {
        write_to_closed_pipe()?;
    }
    done(line, 0)
}

/// Exactly [`ALARMS`], one after the other.
fn many_alarms(line: &Line) -> Result<i32> {
    catch(libc::SIGALRM)?;
    line.ready();
    let end = Instant::now() + PATIENCE;
    for n in 0..ALARMS {
        let value = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: libc::timeval { tv_sec: 0, tv_usec: 1 },
        };
        // SAFETY: setitimer reads one struct.
        let r = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const value, std::ptr::null_mut()) };
        ensure!(r == 0, "setitimer: {}", std::io::Error::last_os_error());
        while caught(libc::SIGALRM) <= n && Instant::now() < end {
            std::hint::spin_loop();
        }
    }
    done(line, caught(libc::SIGALRM))
}

fn many_kills(line: &Line) -> Result<i32> {
    catch(QUEUED)?;
    line.ready();
    // All were sent before we were told to go on; each is handled before the next instruction here.
    done(line, caught(QUEUED))
}

fn many_refused(line: &Line) -> Result<i32> {
    // SAFETY: flags only.
    let r = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(r == 0, "unshare: {}", std::io::Error::last_os_error());
    loopback_up()?;
    line.ready();
    // Refused connections are reported for ports that have listened.
    for family in FAMILIES {
        drop(family.listener(PORT, 1)?);
    }
    for family in FAMILIES.iter().cycle().take(REFUSED) {
        let client = Family::bound(family)?;
        client.connect(PORT).err().context("connected to a closed port")?;
    }
    done(line, 0)
}
