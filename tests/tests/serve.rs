//! `why502 serve` beside real pods: what a pod lost is everywhere; killed with -9 at any time it keeps what it served and
//! leaves no probe; a full disk; a flood.
//!
//! `FULL=1` or `KILLS=50` for the full figure.

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use why502::model::incident::Cause;
use why502_tests::accuracy::{Dice, new_seed};
use why502_tests::agent::{Agent, Kernel, Served, kept};
use why502_tests::guard::{self, Dir, wait};
use why502_tests::launch::Spec;
use why502_tests::load::LoadConf;
use why502_tests::memory;
use why502_tests::pod::Pod;
use why502_tests::scene::{LIMIT, Loads, Scene};
use why502_tests::site::{Site, SiteConf};
use why502_tests::tracer::{claims, parse};

/// The memory limit of the packages' DaemonSet, bytes.
const MEMORY: u64 = 256 << 20;

/// What it takes at most in a flood of any length: the rest is for what is not thought of.
const ENOUGH: u64 = 160 << 20;

/// A pod with requests in php.
fn busy() -> Result<Scene> {
    let site = Site::start(&SiteConf { fpm: Some(Default::default()), ..SiteConf::default() })?;
    let slow = LoadConf { connections: 3, max_refused: Some(3), ..LoadConf::new(site.addr(), "/slow.php?ms=3000") };
    Scene::start(site, &Loads { slow: Some(slow), in_php: 3, ..Loads::default() })
}

/// It loses requests: nginx gets SIGTERM while php works for it.
fn lose(scene: Scene) -> Result<Site> {
    scene.site.signal_nginx(Signal::SIGTERM)?;
    scene.refused()?;
    Ok(scene.end()?.site)
}

/// The incidents of this cause that an agent lists, of this site.
fn of_site(agent: &Agent, site: &Site, cause: Cause) -> Result<usize> {
    let list: Value = serde_json::from_str(&agent.get(&format!("/incidents?limit=1000&cause={}", cause.id()))?)?;
    let lines: Vec<String> = list["items"].as_array().context("no items")?.iter().map(Value::to_string).collect();
    Ok(claims(&parse(&lines)?.0, site).len())
}

fn skipped(name: &str) -> bool {
    let why = guard::why_not_traced();
    if let Some(why) = &why {
        println!("{name}: skipped: {why}");
    }
    why.is_some()
}

#[test]
fn what_a_pod_lost_is_everywhere_and_nothing_stays() -> Result<()> {
    if skipped("what a pod lost") {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let dir = Dir::new()?;
    let store = dir.join("store");
    let mut kernel = Kernel::look();
    let agent = Agent::start_with(&store, &[], &["--bpf-stats"])?;
    kernel.learn(agent.tracer.pid())?;
    ensure!(agent.get("/readyz")? == "ready\n");
    let health: Value = serde_json::from_str(&agent.get("/healthz")?)?;
    println!("{health}");
    ensure!(health["ready"] == true && ["ok", "degraded"].iter().any(|s| health["status"] == *s));
    let lowers = health["degraded"].as_array().context("degraded")?.is_empty();
    ensure!((health["status"] == "ok") == lowers, "{health}");

    let site = lose(busy()?)?;
    let cut = || of_site(&agent, &site, Cause::NginxFastShutdown).unwrap_or(0);
    wait("the incidents", LIMIT, || cut() >= 3)?;
    let stops = || -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&agent.get("/stops")?)?;
        let uids = site.pod_uids();
        let ours = |stop: &&Value| uids.iter().any(|uid| stop["pod"]["uid"] == uid.as_str());
        Ok(list["items"].as_array().context("no items")?.iter().filter(ours).cloned().collect())
    };
    wait("the stop", LIMIT, || stops().is_ok_and(|stops| !stops.is_empty()))?;
    let stop = stops()?.pop().context("no stop")?;
    let id = stop["id"].as_str().context("no id")?;
    let whole: Value = serde_json::from_str(&agent.get(&format!("/stops/{id}"))?)?;
    let incident = whole["incidents"][0].clone();
    let lost = incident["id"].as_str().context("no incident")?;
    ensure!(serde_json::from_str::<Value>(&agent.get(&format!("/incidents/{lost}"))?)? == incident);

    let metrics = agent.get("/metrics")?;
    let labels = "cause=\"nginx-fast-shutdown\"";
    for (name, labels) in [
        ("why502_lost_requests_total", &[labels][..]),
        ("why502_stops_total", &["server=\"nginx\""]),
        ("why502_lossy_stops_total", &["server=\"nginx\""]),
        ("why502_signals_total", &["signal=\"SIGTERM\""]),
        ("why502_probe_status", &["hook=\"signal_generate\"", "status=\"attached\""]),
        ("why502_probe_hits_total", &["hook=\"signal_generate\""]),
        ("why502_probe_run_seconds_total", &["hook=\"signal_generate\""]),
        ("why502_events_total", &["kind=\"exited\""]),
        ("process_resident_memory_bytes", &[]),
        ("process_cpu_seconds_total", &[]),
        ("why502_build_info", &["version="]),
    ] {
        ensure!(why502_tests::agent::sum(&metrics, name, labels) > 0.0, "{name}{labels:?}\n{metrics}");
    }
    let list = agent.get("/")?;
    ensure!(list.contains(&format!("stop/{id}")) && list.contains("nginx stopped"), "{list}");
    let page = agent.get(&format!("/stop/{id}"))?;
    ensure!(page.contains("<svg") && page.contains("SIGTERM") && page.contains("nginx-fast-shutdown"), "{page}");
    ensure!(page.contains(&format!("../incident/{lost}")));
    ensure!(agent.get(&format!("/incident/{lost}"))?.contains("How it came about"));
    ensure!(agent.get("/style.css")?.contains("--page"));

    let url = format!("http://{}", agent.at);
    let asked = kept(&["--url".as_ref(), url.as_ref()])?;
    ensure!(asked.iter().any(|line| line.contains(lost)) && asked.iter().any(|line| line.contains(id)));
    ensure!(kept(&["--store".as_ref(), store.as_os_str()])? == asked, "the directory has what the agent gives");

    let served = Served::default();
    let over = Arc::new(AtomicBool::new(false));
    let stream = served.follow(agent.at, {
        let over = Arc::clone(&over);
        move || over.load(Ordering::Relaxed)
    });
    wait("the stream", LIMIT, || served.len() >= asked.len())?;
    over.store(true, Ordering::Relaxed);
    let said = agent.stop()?;
    ensure!(said.status.success(), "{:?}", said.stderr);
    wait("the end of its streams", LIMIT, || stream.is_finished())?;
    kernel.nothing_left()?;
    served.is_in(&store)
}

#[test]
fn killed_at_any_time_it_keeps_what_it_served() -> Result<()> {
    if skipped("killed") {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let dir = Dir::new()?;
    let store = dir.join("store");
    let served = Served::default();
    let kills = guard::number("KILLS", if std::env::var_os("FULL").is_some() { 50 } else { 3 });
    let seed = guard::number("SEED", new_seed());
    println!("SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut kernel = Kernel::look();
    for run in 0..kills {
        let begin = Instant::now();
        // As soon as something new is served; at any time of its start; at any time of a pod's end.
        let agent = if run % 3 == 0 { Agent::start(&store)? } else { Agent::start_unready(&store)? };
        let pid = Pid::from_raw(i32::try_from(agent.tracer.pid())?);
        let over = Arc::new(AtomicBool::new(false));
        let reader = served.follow(agent.at, {
            let over = Arc::clone(&over);
            move || over.load(Ordering::Relaxed)
        });
        match run % 3 {
            0 => {
                kernel.learn(agent.tracer.pid())?;
                let before = served.len();
                drop(lose(busy()?)?);
                wait("records", LIMIT, || served.len() > before)?;
            }
            1 => std::thread::sleep(Duration::from_millis(dice.between(0, 1500))),
            _ => {
                wait("ready", LIMIT, || agent.tracer.ready())?;
                let scene = busy()?;
                let after = Duration::from_millis(dice.between(0, 2500));
                let killer = std::thread::spawn(move || {
                    std::thread::sleep(after);
                    kill(pid, Signal::SIGKILL)
                });
                drop(lose(scene)?);
                killer.join().ok().context("the killer died")??;
            }
        }
        over.store(true, Ordering::Relaxed);
        // Of a process that is dead already it changes nothing: it is reaped on drop.
        let _ = kill(pid, Signal::SIGKILL);
        reader.join().ok();
        drop(agent);
        kernel.nothing_left().with_context(|| format!("kill {run}"))?;
        served.is_in(&store).with_context(|| format!("kill {run}"))?;
        if kills > 3 {
            println!("kill {run}: {} ms, {} records", begin.elapsed().as_millis(), served.len());
        }
    }
    ensure!(!served.is_empty());
    println!("{kills} kills: {} records were served, all of them are kept", served.len());
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_got_over() -> Result<()> {
    if skipped("a full disk") {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let dir = Dir::new()?;
    let disk = dir.open_subdir("disk")?;
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=512k")).context("cannot mount a tmpfs")?;
    let store = disk.join("store");
    let agent = Agent::start(&store)?;
    let ballast = disk.join("ballast");
    fill(&ballast)?;
    let site = lose(busy()?)?;
    wait("a failure", LIMIT, || agent.metric("why502_store_ok", &[]).is_ok_and(|ok| ok == 0.0))?;
    let health: Value = serde_json::from_str(&agent.get("/healthz")?)?;
    ensure!(health["status"] == "degraded" && health["store"]["failing"].is_string(), "{health}");
    ensure!(of_site(&agent, &site, Cause::NginxFastShutdown)? == 0, "nothing is shown that is not safe");
    ensure!(agent.metric("why502_lost_requests_total", &["nginx-fast-shutdown"])? >= 3.0, "it is counted");
    ensure!(agent.get("/")?.contains("cannot be written"), "the page says so");
    wait("a line on stderr", LIMIT, || agent.tracer.says("cannot be written"))?;
    std::fs::remove_file(&ballast)?;
    let there = || of_site(&agent, &site, Cause::NginxFastShutdown).unwrap_or(0);
    wait("the incidents, once there is room", LIMIT, || there() >= 3)?;
    wait("health", LIMIT, || agent.metric("why502_store_ok", &[]).is_ok_and(|ok| ok == 1.0))?;
    ensure!(agent.metric("why502_store_dropped_total", &[])? == 0.0);
    let said = agent.stop()?;
    ensure!(said.status.success(), "{:?}", said.stderr);
    Ok(())
}

fn fill(file: &Path) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(file)?;
    // The last pages one by one.
    while file.write_all(&[0; 4096]).is_ok() {}
    Ok(())
}

/// So many play it at once.
const NOISY: u64 = 3;
/// Names, forks, signals, connections, listeners, unix sockets, exec: as many as it can, until a file `stop` is there. Its arguments: how many rounds
/// each plays at least, how many play, and the directory of that file, in which each leaves the number of its rounds.
const FLOOD: &str = r#"
use Socket; use POSIX (); use IO::Handle;
my ($rounds, $noisy, $dir) = @ARGV;
$SIG{TERM} = $SIG{QUIT} = 'IGNORE';
socket(my $l, PF_INET, SOCK_STREAM, 0); bind($l, pack_sockaddr_in(7000, INADDR_LOOPBACK)); listen($l, 64); $l->blocking(0);
for (2 .. $noisy) { last unless fork; }
my $n = 0;
while ($n < $rounds || !-e "$dir/stop") {
    $n++;
    my $pid = fork;
    if (!defined $pid) { $n--; next; }
    if (!$pid) {
        $0 = "<b>\e[2J" . $n;
        kill $_, $$ for ('TERM', 'QUIT', 'TERM', 'QUIT');
        for my $port (1, 7000, 7001) {
            socket(my $s, PF_INET, SOCK_STREAM, 0);
            setsockopt($s, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
            if (connect($s, pack_sockaddr_in($port, INADDR_LOOPBACK))) { syswrite $s, "GET / HTTP/1.1\r\n"; }
            close $s;
        }
        socket(my $own, PF_INET, SOCK_STREAM, 0);
        bind($own, pack_sockaddr_in(8000 + $n % 40_000, INADDR_LOOPBACK)); listen($own, 1);
        socket(my $u, PF_UNIX, SOCK_STREAM, 0);
        connect($u, pack_sockaddr_un("/run/php/fpm-$n.sock"));
        if ($n % 16 == 0) { exec '/bin/true', "\"><script>alert($n)</script>", "\e]0;x\a" x 50; }
        POSIX::_exit(0);
    }
    # Some live for a while, and all are reaped.
    if ($n % 8 == 0) { 1 while waitpid(-1, POSIX::WNOHANG()) > 0; }
    # Else its queue is full, and everybody waits.
    1 while accept(my $c, $l);
}
open(my $f, '>', "$dir/$$"); print $f $n; close $f;
1 while wait > 0;
"#;

/// Processes that this machine has started since its boot.
fn forked() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let count = stat.lines().find_map(|line| line.strip_prefix("processes "));
    Ok(count.context("no count")?.trim().parse()?)
}

/// A container of another pod makes as much noise as it can: what does not fit is counted, memory stays under the limit,
/// and the neighbour's incidents are still explained.
#[test]
fn a_flood_hides_no_neighbour() -> Result<()> {
    if skipped("a flood") {
        return Ok(());
    }
    if !Path::new("/usr/bin/perl").exists() {
        println!("a flood: skipped: no perl");
        return Ok(());
    }
    let _turn = guard::turn()?;
    let full = std::env::var_os("FULL").is_some();
    let rounds = guard::number("FLOOD", if full { 100_000 } else { 3_000 });
    let dir = Dir::new()?;
    let limit = memory::Limit::named(&format!("why502-{}-flood", std::process::id()), MEMORY);
    let (agent, limit) = match limit {
        Ok(limit) => (Agent::start_in(&dir.join("store"), &limit.procs().context("no file")?)?, Some(limit)),
        Err(why) => {
            println!("no limit, resident memory only: {why}");
            (Agent::start(&dir.join("store"))?, None)
        }
    };
    let scene = busy()?;
    let pod = Pod::new("flood")?;
    let begin = Instant::now();
    let told_by = dir.open_subdir("flood")?;
    let least = (rounds / NOISY).to_string();
    let words = ["/usr/bin/perl", "-e", FLOOD, &least, &NOISY.to_string(), &told_by.display().to_string()];
    let mut flood = pod.start(Spec::new(words))?;
    let forks = || agent.metric("why502_events_total", &["kind=\"forked\""]).unwrap_or(0.0);
    wait("the flood", LIMIT, || forks() >= 500.0)?;
    // As if the machine had no time for it: the kernel's buffer runs over.
    let pid = Pid::from_raw(i32::try_from(agent.tracer.pid())?);
    kill(pid, Signal::SIGSTOP)?;
    let (before, missed) = (forked()?, if full { 20_000 } else { 6_000 });
    let flooded = wait("more of the flood", LIMIT, || forked().is_ok_and(|now| now >= before + missed));
    kill(pid, Signal::SIGCONT)?;
    flooded?;
    wait("losses to be counted", LIMIT, || agent.metric("why502_loss_total", &[]).is_ok_and(|lost| lost > 0.0))?;
    // Where neither core is left for the agent its buffer runs over again, and the very record that explains may be what is lost: then
    // another neighbour has its turn.
    let mut neighbours = vec![lose(scene)?];
    loop {
        let site = neighbours.last().context("the first one")?;
        let cut = || of_site(&agent, site, Cause::NginxFastShutdown).unwrap_or(0);
        match wait("the neighbour's incidents", Duration::from_secs(20), || cut() >= 3) {
            Err(e) if guard::interrupted() || neighbours.len() >= 3 => return Err(e),
            Err(_) => neighbours.push(lose(busy()?)?),
            Ok(()) => break,
        }
    }
    let told = begin.elapsed();
    ensure!(flood.running(), "the flood went on all the time");
    std::fs::write(told_by.join("stop"), "")?;
    flood.wait(Duration::from_secs(600))?;
    let took = begin.elapsed();
    std::fs::remove_file(told_by.join("stop"))?;
    let counts = std::fs::read_dir(&told_by)?.map(|e| Ok(std::fs::read_to_string(e?.path())?.parse::<u64>()?));
    let counts: Vec<u64> = counts.collect::<Result<_>>()?;
    ensure!(counts.len() as u64 == NOISY, "{counts:?}");
    let rounds: u64 = counts.iter().sum();
    // What was not counted as an event was counted as lost.
    let seen = || -> Result<(f64, f64)> {
        let page = agent.get("/metrics")?;
        let sum = |name: &str, labels: &[&str]| why502_tests::agent::sum(&page, name, labels);
        Ok((sum("why502_events_total", &["kind=\"forked\""]), sum("why502_loss_total", &[])))
    };
    let all = || seen().is_ok_and(|(forks, lost)| forks + lost >= rounds as f64);
    wait("every fork to be counted, as seen or as lost", LIMIT, all)?;
    let (forks, lost) = seen()?;
    let page = agent.get("/metrics")?;
    ensure!(!page.contains('\u{1b}') && page.lines().count() < 3_000, "{} lines", page.lines().count());
    let resident = agent.metric("process_resident_memory_bytes", &[])? / 1048576.0;
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    println!(
        "{rounds} rounds in {:.1} s: {forks} forks seen, {lost} records lost; neighbour {} explained after {:.1} s; resident {resident:.0} MiB",
        took.as_secs_f64(),
        neighbours.len(),
        told.as_secs_f64()
    );
    let mut total = 0;
    if let Some(limit) = &limit {
        let (most, hits) = limit.most()?;
        total = most;
        println!(
            "with the kernel's maps {:.0} of {:.0} MiB at most, the limit was hit {hits} times",
            mib(most),
            mib(MEMORY)
        );
    }
    ensure!(resident < mib(ENOUGH) && total < ENOUGH && lost > 0.0);
    let said = agent.stop()?;
    ensure!(said.status.success(), "{:?}", said.stderr);
    ensure!(said.stderr.iter().all(|line| !line.contains(|c: char| c.is_control())), "{:?}", said.stderr);
    Ok(())
}
