//! Crashes at each byte, retention, full disks, clocks that jump, readers beside the writer.

use super::query::Found;
use super::scan::{Record, Scan};
use super::*;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const YEAR: i64 = 365 * 86_400;

fn now(boot_s: u64) -> Now {
    Now { boot_id: "boot-a".into(), boot_s, wall_s: 1_795_356_202 }
}

/// In memory where that is possible: some of these tests sync a thousand times.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn record(n: u64) -> String {
    format!(
        r#"{{"type":"incident","id":"i{n}","at":"2026-11-22T14:03:{:02}.000000000Z","cause":"endpoint-race","stop":null,"pod":{{"namespace":"shop","name":"web-{n}","workload":"Deployment/web"}}}}"#,
        n % 60
    )
}

fn fill(dir: &Path, from: u64, to: u64) -> Disk {
    let mut disk = Disk::open(dir, Limits::default(), &now(10)).unwrap();
    for n in from..=to {
        assert_eq!(disk.append(&[record(n)], &now(10)).unwrap(), n);
    }
    disk
}

fn all(dir: &Path) -> Vec<Record> {
    let mut scan = Scan::after(dir, 0);
    std::iter::from_fn(|| scan.next(u64::MAX).unwrap()).collect()
}

fn seqs(dir: &Path) -> Vec<u64> {
    all(dir).iter().map(|record| record.seq).collect()
}

fn only_file(dir: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    files[0].clone()
}

#[test]
fn what_was_written_is_read_after_a_restart() {
    let dir = scratch();
    drop(fill(dir.path(), 1, 3));
    drop(fill(dir.path(), 4, 5));
    let records = all(dir.path());
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(records.iter().all(|r| r.json == record(r.seq)));
    only_file(dir.path());
}

#[test]
fn one_writer_at_a_time() {
    let dir = scratch();
    let first = fill(dir.path(), 1, 1);
    let second = Disk::open(dir.path(), Limits::default(), &now(10)).err().unwrap();
    assert!(matches!(second, StoreError::InUse { .. }), "{second}");
    drop(first);
    fill(dir.path(), 2, 2);
}

/// A crash may leave any beginning of what was written.
#[test]
fn cut_at_each_byte() {
    let dir = scratch();
    drop(fill(dir.path(), 1, 4));
    let file = only_file(dir.path());
    let bytes = fs::read(&file).unwrap();
    let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
    for cut in 0..=bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1) as u64;
        let wanted: Vec<u64> = (1..=whole).collect();
        let other = scratch();
        fs::write(other.path().join(file.file_name().unwrap()), &bytes[..cut]).unwrap();
        assert_eq!(seqs(other.path()), wanted, "a reader beside it, cut at {cut}");
        let mut disk = Disk::open(other.path(), Limits::default(), &now(20)).unwrap();
        assert_eq!(disk.damaged(), 0, "cut at {cut}");
        assert_eq!(disk.append(&[record(99)], &now(20)).unwrap(), whole + 1, "cut at {cut}");
        assert_eq!(seqs(other.path()), (1..=whole + 1).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(all(other.path()).last().unwrap().json, record(99));
    }
}

/// One damaged byte costs one record, and no number is given twice.
#[test]
fn spoilt_at_each_byte() {
    let dir = scratch();
    drop(fill(dir.path(), 1, 3));
    let file = only_file(dir.path());
    let bytes = fs::read(&file).unwrap();
    for at in 0..bytes.len() {
        let mut spoilt = bytes.clone();
        spoilt[at] ^= 0x15;
        let line = bytes[..at].iter().filter(|b| **b == b'\n').count() as u64;
        // A lost line end spoils the line after it as well.
        let hit = |n: u64| n == line || (bytes[at] == b'\n' && n == line + 1);
        let other = scratch();
        fs::write(other.path().join(file.file_name().unwrap()), &spoilt).unwrap();
        let wanted: Vec<u64> = (1..=3).filter(|n| !hit(*n)).collect();
        assert_eq!(seqs(other.path()), wanted, "byte {at}");
        let mut disk = Disk::open(other.path(), Limits::default(), &now(20)).unwrap();
        let next = disk.append(&[record(99)], &now(20)).unwrap();
        // Without its end the last line is like one that was never synced.
        let least = if at + 1 == bytes.len() { 2 } else { 3 };
        assert!(next > least, "byte {at}: {next}");
        assert_eq!(seqs(other.path()), [&wanted[..], &[next]].concat(), "byte {at}");
    }
}

#[test]
fn what_a_failure_left_is_in_nobodys_way() {
    let dir = scratch();
    drop(fill(dir.path(), 1, 3));
    let other = Now { boot_id: "boot-b".into(), ..now(9) };
    let mut disk = Disk::open(dir.path(), Limits::default(), &other).unwrap();
    fs::write(dir.path().join(super::scan::file_name(4)), "half a head").unwrap();
    assert_eq!(disk.append(&[record(4)], &other).unwrap(), 4);
    assert_eq!(seqs(dir.path()), [1, 2, 3, 4]);
}

#[test]
fn retention_by_size_keeps_the_newest() {
    let dir = scratch();
    let limits = Limits { max_bytes: 512 << 10, max_age_s: 1000 };
    let mut disk = Disk::open(dir.path(), limits, &now(1)).unwrap();
    let big = format!(r#"{{"type":"stop","pad":"{}"}}"#, "x".repeat(10_000));
    for n in 1..=200 {
        assert_eq!(disk.append(std::slice::from_ref(&big), &now(1)).unwrap(), n);
        assert!(disk.bytes() <= limits.max_bytes, "{}", disk.bytes());
    }
    let on_disk: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(on_disk, disk.bytes());
    let first = disk.first();
    assert!(first > 100 && first < 180, "{first}");
    assert_eq!(seqs(dir.path()), (first..=200).collect::<Vec<_>>());
    drop(disk);
    let disk = Disk::open(dir.path(), limits, &now(1)).unwrap();
    assert_eq!((disk.first(), disk.last(), disk.bytes()), (first, 200, on_disk));
}

#[test]
fn retention_by_age_goes_by_the_stores_own_clock() {
    let dir = scratch();
    let limits = Limits { max_age_s: 16 * 3600, ..Limits::default() };
    let mut disk = Disk::open(dir.path(), limits, &now(0)).unwrap();
    for hour in 0..40u64 {
        disk.append(&[record(hour + 1)], &now(hour * 3600)).unwrap();
    }
    let kept = seqs(dir.path());
    assert_eq!(kept.last(), Some(&40));
    let oldest = 40 - kept[0];
    assert!((16..=18).contains(&oldest), "{oldest} hours");
    disk.retire(&now(80 * 3600));
    assert_eq!(seqs(dir.path()), [40], "the newest says where the numbers go on");
}

#[test]
fn clocks_that_jump_cost_nothing() {
    let dir = scratch();
    let mut wanted = 0;
    let walls = [0, YEAR, -YEAR, 1000 * YEAR, i64::MIN, i64::MAX, 50 * YEAR];
    for (boot, wall_s) in walls.into_iter().enumerate() {
        let at = |boot_s| Now { boot_id: format!("boot-{boot}"), boot_s, wall_s };
        let mut disk = Disk::open(dir.path(), Limits::default(), &at(60)).unwrap();
        for boot_s in [60, 61, 61, 3] {
            wanted += 1;
            assert_eq!(disk.append(&[record(wanted)], &at(boot_s)).unwrap(), wanted);
        }
    }
    assert_eq!(seqs(dir.path()), (1..=wanted).collect::<Vec<_>>());
}

#[test]
fn a_reader_follows_over_segments_and_sees_nothing_too_early() {
    let dir = scratch();
    let limits = Limits { max_bytes: 4 << 20, ..Limits::default() };
    let mut disk = Disk::open(dir.path(), limits, &now(1)).unwrap();
    let mut scan = Scan::after(dir.path(), 0);
    assert_eq!(scan.next(u64::MAX).unwrap(), None, "nothing there yet");
    let big = |n: u64| format!(r#"{{"n":{n},"pad":"{}"}}"#, "x".repeat(50_000));
    let mut durable = 0;
    for n in 1..=30 {
        disk.append(&[big(2 * n - 1), big(2 * n)], &now(1)).unwrap();
        let last = 2 * n - 1;
        while let Some(record) = scan.next(last).unwrap() {
            durable += 1;
            assert_eq!((record.seq, record.json), (durable, big(durable)));
        }
        assert_eq!(durable, last, "up to what is allowed");
    }
    assert!(disk.segments() > 5);
    assert_eq!(scan.damaged, 0);
}

fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not in a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_sink_tells_what_is_durable_and_counts_what_does_not_fit() {
    let dir = scratch();
    let store = Store::start(dir.path(), Limits::default(), 2_000, || now(5)).unwrap();
    let view = store.view();
    store.push(record(1));
    wait("the first record", || *view.durable.borrow() == 1);
    store.push("x".repeat(3_000));
    assert_eq!(view.stats().dropped, 1);
    for n in 2..=4 {
        store.push(record(n));
    }
    assert!(store.finish(Duration::from_secs(60)));
    assert_eq!(seqs(dir.path()), [1, 2, 3, 4]);
    let stats = view.stats();
    assert_eq!((stats.written, stats.waiting, stats.last, stats.failing), (4, 0, 4, None));
}

/// A file system of 256 KiB, in a mount namespace of this thread.
fn tiny_disk() -> Option<tempfile::TempDir> {
    // SAFETY: only this thread's mount namespace changes; no file descriptor table is unshared.
    let own = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    if let Err(e) = own {
        eprintln!("skipped: no mount namespace of its own: {e}");
        return None;
    }
    let dir = scratch();
    let mount = |args: &[&str]| Command::new("mount").args(args).status().unwrap().success();
    assert!(mount(&["--make-rprivate", "/"]));
    assert!(mount(&["-t", "tmpfs", "-o", "size=256k", "tmpfs", dir.path().to_str().unwrap()]));
    Some(dir)
}

#[test]
fn a_directory_that_may_not_be_written_is_told_at_once() {
    let Some(dir) = tiny_disk() else { return };
    let read_only = Command::new("mount").args(["-o", "remount,ro"]).arg(dir.path()).status().unwrap();
    assert!(read_only.success());
    let error = Disk::open(dir.path(), Limits::default(), &now(5)).err().unwrap();
    assert!(matches!(error, StoreError::NotOurs { .. }), "{error}");
    assert!(error.to_string().ends_with("may not write there: Read-only file system (os error 30)"), "{error}");
}

#[test]
fn a_full_disk_is_told_and_got_over() {
    let Some(dir) = tiny_disk() else { return };
    let ballast = dir.path().join("ballast");
    let at = dir.path().join("store");
    let store = Store::start(&at, Limits::default(), 60_000, || now(5)).unwrap();
    let view = store.view();
    store.push(record(1));
    wait("the first record", || *view.durable.borrow() == 1);
    // To the last page.
    let full = fs::write(&ballast, vec![0; 512 << 10]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let mut pushed = 1;
    while view.stats().dropped == 0 {
        pushed += 1;
        store.push(record(pushed));
    }
    wait("the failure", || view.stats().failing.is_some());
    let stats = view.stats();
    assert!(stats.failing.as_deref().unwrap().contains("No space left"), "{stats:?}");
    let durable = *view.durable.borrow();
    let found = Query { limit: Some(1000), ..Query::default() }.run(&at, durable).unwrap();
    assert_eq!(found.records.len() as u64, durable, "what was served can be served still");

    fs::remove_file(&ballast).unwrap();
    wait("everything that waited", || view.stats().waiting == 0);
    let kept = pushed - view.stats().dropped;
    assert_eq!(view.stats().failing, None);
    assert!(store.finish(Duration::from_secs(60)));
    assert_eq!(seqs(&at), (1..=kept).collect::<Vec<_>>(), "in order, each once");
    assert!(kept > 20, "{kept}");
}

fn found(query: Query, dir: &Path) -> (Vec<u64>, bool, u64) {
    let Found { records, cursor, more } = query.run(dir, u64::MAX).unwrap();
    (records.iter().map(|r| r.seq).collect(), more, cursor)
}

#[test]
fn pages_forwards_and_backwards_cover_everything_once() {
    let dir = scratch();
    let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    let mut disk = Disk::open(dir.path(), limits, &now(1)).unwrap();
    for n in 1..=500 {
        disk.append(&[record(n)], &now(1)).unwrap();
    }
    assert!(disk.segments() > 1);
    for limit in [1, 7, 100, 499, 500, 1000] {
        let wanted: Vec<u64> = (1..=500).collect();
        let (mut forwards, mut after) = (Vec::new(), 0);
        loop {
            let (page, more, cursor) =
                found(Query { after: Some(after), limit: Some(limit), ..Query::default() }, dir.path());
            forwards.extend(page);
            after = cursor;
            if !more {
                break;
            }
        }
        assert_eq!(forwards, wanted);
        let (mut backwards, mut before) = (Vec::new(), None);
        loop {
            let (page, more, cursor) = found(Query { before, limit: Some(limit), ..Query::default() }, dir.path());
            assert!(before.is_some() || cursor == 500, "to follow from here");
            backwards = [page, backwards].concat();
            before = backwards.first().copied();
            if !more {
                break;
            }
        }
        assert_eq!(backwards, wanted, "limit {limit}");
    }
}

#[test]
fn filters() {
    let dir = scratch();
    let mut disk = Disk::open(dir.path(), Limits::default(), &now(1)).unwrap();
    let bare = r#"{"type":"incident","id":"i2","at":"2026-11-22T14:03:05.000000000Z","cause":"unexplained","stop":"s1","pod":null}"#;
    let stop = r#"{"type":"stop","id":"s1","at":"2026-11-22T14:03:07.000000000Z","by_cause":{"unexplained":1},"pod":{"namespace":"sh\u001bop","name":null,"workload":null}}"#;
    disk.append(&[&record(1)[..], bare, stop, "not JSON"], &now(1)).unwrap();
    let some = |text: &str| Some(text.to_owned());
    let query = Query::default;
    let cases = [
        (query(), vec![1, 2, 3, 4]),
        (Query { since: some("2026-11-22T14:03:06.000000000Z"), ..query() }, vec![3]),
        (Query { kind: Kind::Incidents, ..query() }, vec![1, 2]),
        (Query { kind: Kind::Stops, ..query() }, vec![3]),
        (Query { namespace: some("shop"), ..query() }, vec![1]),
        (Query { namespace: some("sh\u{1b}op"), ..query() }, vec![3]),
        (Query { pod: some("web-1"), ..query() }, vec![1]),
        (Query { workload: some("web"), ..query() }, vec![1]),
        (Query { workload: some("Deployment/web"), ..query() }, vec![1]),
        (Query { workload: some("we"), ..query() }, vec![]),
        (Query { causes: vec!["unexplained".into()], ..query() }, vec![2, 3]),
        (Query { stop: some("s1"), ..query() }, vec![2, 3]),
        (Query { since: some("2026-11-22T14:03:05.000000000Z"), ..query() }, vec![2, 3]),
        (Query { until: some("2026-11-22T14:03:05.000000000Z"), ..query() }, vec![1]),
    ];
    for (query, wanted) in cases {
        assert_eq!(found(query.clone(), dir.path()).0, wanted, "{query:?}");
        assert_eq!(found(Query { after: Some(0), ..query.clone() }, dir.path()).0, wanted, "{query:?}");
    }
}

#[test]
fn times_and_ids_as_arguments() {
    let now = 1_795_356_202_118_204_113;
    let is = |text: &str| query::moment(text, now);
    assert_eq!(is("2026-11-22T14:03:22Z").unwrap(), "2026-11-22T14:03:22.000000000Z");
    assert_eq!(is("2026-11-22T15:03:22+01:00").unwrap(), "2026-11-22T14:03:22.000000000Z");
    assert_eq!(is("10m").unwrap(), "2026-11-22T13:53:22.118204113Z");
    assert_eq!(is("60").unwrap(), "2026-11-22T14:02:22.118204113Z");
    for bad in ["", "yesterday", "-5m", "2026-11-22", "99999999999999h"] {
        assert!(is(bad).is_err(), "{bad}");
    }
    assert_eq!(query::causes("endpoint-race,unexplained").unwrap().len(), 2);
    assert!(query::causes("endpoint-rage").unwrap_err().contains("keepalive-race"));
    for bad in ["0", "1001", "-1", "x", ""] {
        assert!(query::limit(bad).is_err());
    }
}

/// Set in a child of the next test: the directory that it fills until it is killed.
const VICTIM: &str = "WHY502_TEST_STORE_VICTIM";

#[test]
fn victim() {
    let Some(dir) = std::env::var_os(VICTIM) else { return };
    let boot = Instant::now();
    let limits = Limits { max_bytes: 1 << 20, max_age_s: 86_400 };
    let clock = move || now(boot.elapsed().as_secs());
    let store = Store::start(Path::new(&dir), limits, sink::WAITING, clock).unwrap();
    let mut view = store.view();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut scan = Scan::after(Path::new(&dir), *view.durable.borrow());
    for n in 0.. {
        store.push(record(n));
        if n % 7 == 0 {
            runtime.block_on(view.durable.changed()).unwrap();
            let durable = *view.durable.borrow_and_update();
            while let Some(record) = scan.next(durable).unwrap() {
                // Served: from here on it must never be lost.
                println!("served {} {:08x}", record.seq, crc32fast::hash(record.json.as_bytes()));
            }
        }
    }
}

#[test]
fn killed_again_and_again_nothing_that_was_served_is_lost() {
    let dir = scratch();
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(50);
    let mut served: Vec<(u64, u32)> = Vec::new();
    for run in 0..runs {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::tests::victim", "--exact", "--nocapture", "--test-threads=1"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Another number of records each time, and so another point of the writer's round.
        let mut said: Vec<String> = Vec::new();
        for _ in 0..(run * 37) % 60 + 5 {
            said.push(lines.next().unwrap().unwrap());
        }
        child.kill().unwrap();
        // What it wrote into the pipe before it died was served as well; a last line may be half.
        said.extend(lines.map_while(Result::ok));
        child.wait().unwrap();
        for line in said.iter().filter_map(|line| line.strip_prefix("served ")) {
            let mut words = line.split(' ');
            let (Some(seq), Some(sum)) = (words.next(), words.next()) else { continue };
            if let (Ok(seq), Ok(sum), 8) = (seq.parse(), u32::from_str_radix(sum, 16), sum.len()) {
                served.push((seq, sum));
            }
        }
        let limits = Limits { max_bytes: 1 << 20, max_age_s: 86_400 };
        let disk = Disk::open(dir.path(), limits, &now(0)).unwrap();
        assert_eq!(disk.damaged(), 0);
        let (first, last) = (disk.first(), disk.last());
        drop(disk);
        let there: std::collections::BTreeMap<u64, u32> =
            all(dir.path()).iter().map(|r| (r.seq, crc32fast::hash(r.json.as_bytes()))).collect();
        assert_eq!(there.len() as u64, last + 1 - first, "without gaps");
        for (seq, sum) in served.iter().filter(|(seq, _)| *seq >= first) {
            assert_eq!(there.get(seq), Some(sum), "served, run {run}");
        }
    }
    assert!(served.len() > runs, "{}", served.len());
    assert!(served.windows(2).all(|pair| pair[0].0 < pair[1].0), "no number is given twice");
}
