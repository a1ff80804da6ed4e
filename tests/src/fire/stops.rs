//! What is counted of a cgroup that was told to stop: it is in a recording, not among the events.

use super::Fire;
use super::child::{Child, kill};
use super::facts::{CLIENT, MAIN, SERVER, TARGET};
use super::manifest::Expect;
use super::sock::{FAMILIES, loopback_up};
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PORT: u16 = 21_000;
const REQUEST: [u8; 75] = [b'r'; 75];
const ANSWER: [u8; 120] = [b'a'; 120];
/// Two ticks of the slowest kernel clock (100 Hz), and some.
const TICKS: Duration = Duration::from_millis(25);

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    no_stops(fire)?;
    let began = why502::kernel::clock::boot_ns();
    stop(fire)?;
    let ended = why502::kernel::clock::boot_ns();
    let select = json!({"kind": "stop-counters", "cgroup": fire.cgroups.id(SERVER)?});
    for (name, time) in [("after its begin", json!({"$ge": began})), ("before its end", json!({"$le": ended}))] {
        let want = json!({
            "signal_at": time, "accepted_after": 2, "last_accept": time, "answered_after": 1, "last_answered": time,
        });
        fire.manifest.expect(Expect::one(&format!("stop counters, {name}"), select.clone(), want))?;
    }
    Ok(())
}

/// Signals that tell no container to stop.
fn no_stops(fire: &Fire) -> Result<()> {
    fire.cgroups.enter(TARGET)?;
    let child = Child::ready(|line| {
        for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGUSR1] {
            super::signals::catch(signal)?;
        }
        line.ready();
        // To itself.
        // SAFETY: raise(3) has no memory to break.
        unsafe { libc::raise(libc::SIGQUIT) };
        Ok(0)
    })?;
    // By its parent, in the same cgroup; and what stops nothing, by anybody.
    kill(child.pid, libc::SIGTERM)?;
    fire.cgroups.enter(MAIN)?;
    kill(child.pid, libc::SIGUSR1)?;
    child.finish()?;
    let select = json!({"kind": "stop-counters", "cgroup": fire.cgroups.id(TARGET)?});
    fire.manifest.expect(Expect::none("no stop counters", select))
}

/// A server with a request in flight is told to stop, accepts two more connections, and answers.
fn stop(fire: &Fire) -> Result<()> {
    let child = Child::ready(|line| {
        // SAFETY: flags only.
        let r = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(r == 0, "unshare: {}", std::io::Error::last_os_error());
        loopback_up()?;
        super::signals::catch(libc::SIGTERM)?;
        let family = FAMILIES[0];
        fire.cgroups.enter(SERVER)?;
        let listener = family.listener(PORT, 8)?;
        let connect = || -> Result<(TcpStream, TcpStream)> {
            fire.cgroups.enter(CLIENT)?;
            let client = family.connected(PORT)?.stream;
            fire.cgroups.enter(SERVER)?;
            let (server, _) = listener.accept()?;
            Ok((client, server))
        };
        let (mut idle, mut early) = (connect()?, connect()?);
        // Answered before the signal, then idle.
        exchange(&mut idle)?;
        early.0.write_all(&REQUEST)?;
        early.1.read_exact(&mut [0; REQUEST.len()])?;
        wait(TICKS);
        line.ready();
        wait(TICKS);
        let (mut late, queued) = (connect()?, connect()?);
        early.1.write_all(&ANSWER)?;
        early.0.read_exact(&mut [0; ANSWER.len()])?;
        exchange(&mut late)?;
        for (client, server) in [idle, early, late, queued] {
            drop(server);
            drop(client);
        }
        Ok(0)
    })?;
    fire.hold_netns(child.pid)?;
    // We are its parent, and in another cgroup.
    kill(child.pid, libc::SIGTERM)?;
    child.finish().map(drop)
}

/// A request and its answer.
fn exchange((client, server): &mut (TcpStream, TcpStream)) -> Result<()> {
    client.write_all(&REQUEST)?;
    server.read_exact(&mut [0; REQUEST.len()])?;
    server.write_all(&ANSWER)?;
    client.read_exact(&mut [0; ANSWER.len()]).context("answer")
}

/// The kernel tells the times of data in ticks only: those before and after the signal must differ.
fn wait(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::thread::sleep(time.saturating_sub(began.elapsed()));
    }
}
