//! Functions that are called like nginx's: a program that has them is an nginx to why502, whatever else it does.

use super::Fire;
use super::child::{Child, exit_now, puppet};
use super::facts::{Facts, TARGET};
use super::manifest::Expect;
use super::processes::exec;
use super::sock::{FAMILIES, loopback_up, tuple};
use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;
use std::ffi::{CStr, c_char, c_void};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::time::{Duration, Instant};

/// How the puppet is told to be an nginx ([`super::child::PUPPET`]).
pub(crate) const ACT: &str = "nginx";
/// As nginx calls it, but for what fills the format.
pub type Log = extern "C" fn(level: usize, log: *const c_void, err: i32, format: *const c_char);
/// As nginx calls it.
pub type ErrorPage = extern "C" fn(request: *const c_void, status: isize) -> isize;

/// The functions, which must be symbols of the running program.
#[derive(Clone, Copy)]
pub struct Functions {
    pub log: Log,
    pub error_page: ErrorPage,
}

/// How long until why502 must have put its breakpoints there, or must have read what it could not at once.
const PATIENCE: Duration = Duration::from_secs(20);
const LONG: [u8; 201] = {
    let mut text = [b'l'; 201];
    text[200] = 0;
    text
};
/// In a page that nobody has touched.
const UNTOUCHED: &[u8] = b"upstream prematurely closed connection while reading response header from upstream\0";
/// An address that is nobody's.
const NOWHERE: usize = 8;

/// As nginx has them in its memory, as far as they are read.
#[repr(C)]
struct Request {
    signature: u32,
    connection: *const Connection,
}

#[repr(C)]
struct Connection {
    data: usize,
    events: [usize; 2],
    fd: i32,
    functions: [usize; 4],
    listening: usize,
    sent: usize,
    log: *const NginxLog,
}

#[repr(C)]
struct NginxLog {
    level: usize,
    file: usize,
    connection: usize,
}

/// "HTTP".
const SIGNATURE: u32 = 0x5054_5448;
/// Of a client's connection in each family: nginx's end, the client's, and the number that nginx gave it.
const NGINX_PORT: u16 = 20_800;
const CLIENT_PORT: u16 = 20_900;
const NUMBER: usize = 17;
/// Requests on connections that are none, by their numbers.
const NO_SUCH_FD: usize = 50;
const NO_SOCKET: usize = 51;
const LISTENS: usize = 52;
const UNIX: usize = 53;

pub(crate) fn fire(fire: &Fire) -> Result<()> {
    // Its name makes why502 look at it; that it is one is told by its symbols.
    // A file of its own: what other cases have listened with is an nginx as well, and is let go about now.
    let program = fire.dir.join("nginx");
    fs::copy(&fire.exe, &program).context("cannot copy the program")?;
    fs::write(fire.dir.join("format"), UNTOUCHED)?;
    let dir = fire.dir.to_str().context("path")?;
    let mut child = Child::ready(|line| {
        // SAFETY: flags only.
        let r = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(r == 0, "unshare: {}", std::io::Error::last_os_error());
        loopback_up()?;
        line.ready();
        let env = puppet(line, ACT)?;
        exec(&program, &["nginx", dir], &env)?;
        Ok(0)
    })?;
    fire.cgroups.put(TARGET, child.pid)?;
    fire.hold_netns(child.pid)?;
    child.tell(0)?;
    child.hear().context("why502 put no breakpoints into it")?;
    let facts = child.facts()?;
    child.tell(0)?;
    child.hear().context("it did not get through")?;
    let status = child.finish()?;
    logged(fire, &facts, libc::WEXITSTATUS(status) == 0)?;
    for (status, count) in [(302, 0), (404, 0), (499, 0), (500, 1), (501, 1), (502, 1), (504, 1), (505, 0)] {
        let select = json!({"kind": "nginx-error-page", "task": {"tgid": facts.tgid}, "status": status});
        let name = format!("nginx answers {status}");
        let want = json!({"task": facts.json(), "quality": [], "connection": null, "client": null});
        fire.manifest.expect(Expect::one(&name, select, want).times(count))?;
    }
    let none = [NO_SUCH_FD, NO_SOCKET, LISTENS, UNIX];
    for number in none {
        answers(fire, &facts, "nobody that is known", number, &json!(null))?;
    }
    for (family, (number, ours, theirs)) in FAMILIES.iter().zip(clients()) {
        let client = tuple(family.ip(), ours, (family.ip(), theirs), facts.netns);
        answers(fire, &facts, &format!("a client over {}", family.name), number, &client)?;
    }
    let select = json!({"kind": "nginx-error-page", "task": {"tgid": facts.tgid}});
    let all = 4 + none.len() + FAMILIES.len();
    fire.manifest.expect(Expect::one("nginx answers, in all", select, json!({})).times(all))
}

fn answers(fire: &Fire, facts: &Facts, whom: &str, number: usize, client: &serde_json::Value) -> Result<()> {
    let select = json!({"kind": "nginx-error-page", "task": {"tgid": facts.tgid}, "connection": number});
    let want = json!({"status": 503, "client": client, "quality": []});
    fire.manifest.expect(Expect::one(&format!("nginx answers {whom} ({number})"), select, want))
}

/// A client's connection in each family.
fn clients() -> impl Iterator<Item = (usize, u16, u16)> {
    (0..).map(|n| (NUMBER + usize::from(n), NGINX_PORT + n, CLIENT_PORT + n))
}

fn logged(fire: &Fire, facts: &Facts, read: bool) -> Result<()> {
    let untouched = CStr::from_bytes_with_nul(UNTOUCHED)?.to_str()?;
    let long = "l".repeat(95);
    let cases: &[(&str, &str, u32, u32, serde_json::Value)] = &[
        ("at level error", "connect() failed", 4, 111, json!([])),
        ("at level emerg", "bind() to %V failed", 1, 98, json!([])),
        ("with a long format", &long, 4, 0, json!([])),
        ("with a format that is not in memory", untouched, 4, 104, json!([])),
        ("with a format that is nowhere", "", 3, 5, json!(["no-format"])),
    ];
    for (name, format, level, errno, quality) in cases {
        let select = json!({"kind": "nginx-logged", "task": {"tgid": facts.tgid}, "errno": errno});
        if *format == untouched && !read {
            fire.manifest
                .skip("nginx logs with a format that is not in memory", "this machine is too busy to read it")?;
            fire.manifest.expect(Expect::one(&format!("nginx logs {name}"), select, json!({"level": level})))?;
            continue;
        }
        let connection = (*errno == 111).then_some(NUMBER);
        let want = json!({
            "level": level, "format": format, "task": facts.json(), "quality": quality, "connection": connection,
        });
        fire.manifest.expect(Expect::one(&format!("nginx logs {name}"), select, want))?;
    }
    // Nothing of stderr (0), warn, info, debug.
    let select = json!({"kind": "nginx-logged", "task": {"tgid": facts.tgid}});
    fire.manifest.expect(Expect::one("nginx logs, in all", select, json!({})).times(cases.len()))
}

/// As the executed program. Says so when its functions have breakpoints, acts when it is told to, says so again, and ends
/// when it is told to.
pub(crate) fn act(line: &mut File, functions: Functions) -> ! {
    let done = std::env::args().nth(1).context("no directory").and_then(|dir| {
        // Whether the page of a format is there is seen in its own table.
        let format = Mapped::of(&File::open(format!("{dir}/format"))?)?;
        has_breakpoints(functions)?;
        step(line)?;
        let none = ptr::null();
        let log = |level, err, format: &CStr| (functions.log)(level, none, err, format.as_ptr());
        for level in [0, 5, 6, 7, 8, 0x10, 0x8000_0000] {
            log(level, 1, c"not an error");
        }
        let of = NginxLog { level: 4, file: 0, connection: NUMBER };
        (functions.log)(4, (&raw const of).cast(), 111, c"connect() failed".as_ptr());
        log(1, 98, c"bind() to %V failed");
        log(4, 0, CStr::from_bytes_with_nul(&LONG)?);
        (functions.log)(3, none, 5, NOWHERE as *const c_char);
        for status in [302, 404, 499, 500, 502, 504, 505, -5] {
            (functions.error_page)(none, status);
        }
        error_pages(functions.error_page)?;
        ensure!(!format.touched()?, "the page was there");
        (functions.log)(4, none, 104, format.at.cast());
        // why502 has read it when the page is there; on a machine that does not let it run it may take longer than we wait.
        let read = until("why502 has not read the format", || format.touched()).is_ok();
        step(line)?;
        Ok(read)
    });
    match done {
        Ok(read) => exit_now(i32::from(!read)),
        Err(e) => {
            eprintln!("why502-fire: nginx: {e:#}");
            exit_now(98)
        }
    }
}

/// Answers requests of clients, and such as have no client.
fn error_pages(function: ErrorPage) -> Result<()> {
    let answer_of = |signature, number, fd, status| {
        let log = NginxLog { level: 4, file: 0, connection: number };
        let connection =
            Connection { data: 0, events: [0; 2], fd, functions: [0; 4], listening: 0, sent: 0, log: &raw const log };
        let request = Request { signature, connection: &raw const connection };
        function((&raw const request).cast(), status);
    };
    let answer = |number, fd| answer_of(SIGNATURE, number, fd, 503);
    for (family, (number, ours, theirs)) in FAMILIES.iter().zip(clients()) {
        let listener = family.listener(ours, 4)?;
        let client = family.bound_to(theirs)?;
        client.connect(ours).context("connect")?;
        let (accepted, _) = listener.accept()?;
        answer(number, accepted.as_raw_fd());
        if number == NUMBER {
            answer(LISTENS, listener.as_raw_fd());
            // Not a request: of its connection nothing is believed.
            answer_of(0, number, accepted.as_raw_fd(), 501);
        }
    }
    answer(NO_SUCH_FD, i32::MAX);
    answer(NO_SOCKET, File::open("/proc/self/exe")?.as_raw_fd());
    let (one, _other) = UnixStream::pair()?;
    answer(UNIX, one.as_raw_fd());
    Ok(())
}

fn step(line: &mut File) -> Result<()> {
    line.write_all(&[0; 4])?;
    Ok(line.read_exact(&mut [0; 4])?)
}

fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is()? {
        ensure!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until the code of both functions is not what the program's file has there.
fn has_breakpoints(functions: Functions) -> Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let file = File::open("/proc/self/exe")?;
    for at in [functions.log as usize, functions.error_page as usize] {
        let offset = maps.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (start, end) = words.next()?.split_once('-')?;
            let hex = |text: &str| usize::from_str_radix(text, 16).ok();
            let (start, end, from) = (hex(start)?, hex(end)?, hex(words.nth(1)?)?);
            (start..end).contains(&at).then(|| at - start + from)
        });
        let mut code = [0; 4];
        file.read_exact_at(&mut code, offset.context("not in the maps")? as u64)?;
        until("no breakpoint", || {
            // SAFETY: four bytes of a function's code.
            let now: [u8; 4] = unsafe { ptr::read_volatile(at as *const [u8; 4]) };
            Ok(now != code)
        })?;
    }
    Ok(())
}

/// A page of a file, mapped and not touched.
struct Mapped {
    at: *const u8,
}

impl Mapped {
    fn of(file: &File) -> Result<Self> {
        // SAFETY: a new mapping of a file that stays as it is; it lives as long as the process.
        let at = unsafe { libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self { at: at.cast::<u8>().cast_const() })
    }

    /// Bit 63 of an entry: present (Documentation/admin-guide/mm/pagemap.rst).
    fn touched(&self) -> Result<bool> {
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, self.at as u64 / 4096 * 8)?;
        Ok(u64::from_ne_bytes(entry) >> 63 == 1)
    }
}
