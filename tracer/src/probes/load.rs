//! Loads and attaches the probes: the only place that knows aya's program types. Nothing is pinned, every link is a file
//! descriptor of this process: however it ends, the kernel detaches all of it.

use super::nginx::{NGINX_HOOKS, Uprobes};
use super::plan::{PLAN, Row};
use super::tables::{Listeners, Skip, Stops};
use crate::kernel::fields::Globals;
use crate::kernel::host::Rights;
use crate::model::input::{HookState, HookStatus};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FExit, ProgramError, ProgramFd, UProbe};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use why502_ebpf::names::{self, At};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this why502 was built without probes: build it with `cargo xtask build`")]
    NotBuilt,
    #[error(
        "no kernel type information at /sys/kernel/btf/vmlinux: why502 needs a kernel with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf(#[source] aya::BtfError),
    #[error("not allowed to load probes: {missing} missing (or CAP_SYS_ADMIN)")]
    NoRights { missing: String },
    #[error("the kernel refused bpf(2) although CAP_BPF and CAP_PERFMON are there: {hint}")]
    Refused { hint: &'static str },
    #[error("ring size {bytes} is not a power of two of at least 4096 bytes")]
    RingSize { bytes: u32 },
    #[error("the probes' object cannot be used: {0}")]
    Object(#[source] Box<EbpfError>),
    #[error("the probes' object has no {what} {name}: probes and program are of different builds")]
    Lacks { what: &'static str, name: &'static str },
    #[error("map {map} of the probes' object: {source}")]
    Map { map: &'static str, source: MapError },
    #[error("the uprobes of nginx: {source}")]
    Nginx { source: Box<ProgramError> },
    #[error("probe {hook} is needed and does not work on this kernel: {why}")]
    Required { hook: &'static str, why: String },
}

/// What is set before the load.
pub struct Settings<'a> {
    pub globals: &'a Globals,
    /// Bytes of the ring buffer: a power of two, at least one page.
    pub ring_bytes: u32,
    /// Entries of other maps, by name.
    pub map_sizes: &'a [(&'static str, u32)],
    /// Bit `n`: signal `n` is recorded.
    pub sig_mask: u64,
    /// Pending ring bytes from which the reader is woken at once.
    pub wake_bytes: u32,
    /// Hides kernel addresses in socket ids.
    pub sk_salt: u64,
    /// Of this process; for a clear message.
    pub rights: Option<Rights>,
    /// Optional hooks that are not wanted, and why.
    pub unwanted: &'a [(u32, &'static str)],
}

/// The loaded probes. Dropping them detaches them.
pub struct Probes {
    ebpf: Ebpf,
    states: Vec<HookState>,
    /// A second descriptor of each loaded program, to read its statistics.
    fds: Vec<Option<OwnedFd>>,
    /// This kernel has cookies for attachments.
    cookies: bool,
    #[cfg(feature = "trace-log")]
    log: super::log::ProbeLog,
}

impl Probes {
    /// Creates the maps and loads each program by itself, so that an optional one can fail alone.
    pub fn load(object: &[u8], settings: &Settings<'_>) -> Result<Probes, LoadError> {
        if object.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        if !settings.ring_bytes.is_power_of_two() || settings.ring_bytes < 4096 {
            return Err(LoadError::RingSize { bytes: settings.ring_bytes });
        }
        if let Some(missing) = settings.rights.map(|r| r.missing_to_load()).filter(|m| !m.is_empty()) {
            return Err(LoadError::NoRights { missing: missing.join(" and ") });
        }
        raise_memlock();
        let btf = Btf::from_sys_fs().map_err(LoadError::NoBtf)?;
        #[cfg_attr(not(feature = "trace-log"), expect(unused_mut, reason = "the log takes its map out of it"))]
        let mut ebpf = create(object, settings, &btf)?;
        let mut probes = Probes {
            #[cfg(feature = "trace-log")]
            log: super::log::ProbeLog::new(&mut ebpf),
            ebpf,
            states: Vec::new(),
            fds: Vec::new(),
            cookies: settings.globals.get(names::HAS_COOKIE) == Some(1),
        };
        for row in PLAN {
            let unwanted = settings.unwanted.iter().find(|(hook, _)| *hook == row.hook && !row.required);
            let (state, fd) = match unwanted {
                Some((_, why)) => (HookState::Skipped { why: (*why).to_owned() }, None),
                None => probes.load_one(row, &btf)?,
            };
            probes.states.push(state);
            probes.fds.push(fd);
        }
        Ok(probes)
    }

    fn load_one(&mut self, row: &Row, btf: &Btf) -> Result<(HookState, Option<OwnedFd>), LoadError> {
        let mut program = program(&mut self.ebpf, row)?;
        let loaded = program.load(row.name(), btf).and_then(|()| {
            let fd = program.fd()?;
            Ok(fd.as_fd().try_clone_to_owned()?)
        });
        match loaded {
            Ok(fd) => Ok((HookState::Skipped { why: "loaded, not attached yet".to_owned() }, Some(fd))),
            Err(e) => Ok((failed(row, "load", &e)?, None)),
        }
    }

    /// Prints what the probes logged since; nothing in a build without `trace-log`.
    pub fn print_log(&mut self) {
        #[cfg(feature = "trace-log")]
        self.log.print();
    }

    /// Attaches what was loaded, in the order of the plan.
    pub fn attach(&mut self) -> Result<(), LoadError> {
        for ((row, state), fd) in PLAN.iter().zip(&mut self.states).zip(&self.fds) {
            if fd.is_none() {
                continue;
            }
            *state = match program(&mut self.ebpf, row)?.attach() {
                Ok(()) => HookState::Attached,
                Err(e) => failed(row, "attach", &e)?,
            };
        }
        Ok(())
    }

    /// Detaches all of them. Their statistics can still be read.
    pub fn detach(&mut self) {
        for row in PLAN {
            if let Ok(mut program) = program(&mut self.ebpf, row) {
                program.unload();
            }
        }
    }

    /// Each hook and how it is.
    pub fn status(&self) -> Vec<HookStatus> {
        let rows = PLAN.iter().zip(&self.states);
        rows.map(|(row, state)| HookStatus { hook: row.name().to_owned(), state: state.clone() }).collect()
    }

    /// How often the kernel skipped each program because one was running already on that CPU (5.12 and newer; `None`
    /// before, and for programs that are not loaded). kernel/bpf/syscall.c, `bpf_prog_show_fdinfo()`: /proc says it
    /// without the rights that BPF_OBJ_GET_INFO_BY_FD wants and in every kernel's layout.
    pub fn recursion_misses(&self) -> Vec<Option<u64>> {
        self.statistics(misses)
    }

    /// Nanoseconds that each program ran, while kernel.bpf_stats_enabled was on; `None` when it never was.
    pub fn run_times(&self) -> Vec<Option<u64>> {
        self.statistics(run_time)
    }

    fn statistics(&self, parse: impl Fn(&str) -> Option<u64>) -> Vec<Option<u64>> {
        let read = |fd: &OwnedFd| {
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
            parse(&text)
        };
        self.fds.iter().map(|fd| fd.as_ref().and_then(read)).collect()
    }

    /// Takes the ring buffer; only once.
    pub fn ring(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        take(&mut self.ebpf, names::MAP_EVENTS)
    }

    /// Takes the per-CPU counters; only once.
    pub fn counters(&mut self) -> Result<PerCpuArray<MapData, u64>, LoadError> {
        take(&mut self.ebpf, names::MAP_COUNTERS)
    }

    /// Takes the map of ports; only once.
    pub fn listeners(&mut self) -> Result<Listeners, LoadError> {
        take::<HashMap<MapData, [u32; 2], u64>>(&mut self.ebpf, names::MAP_LISTENERS).map(Listeners)
    }

    /// Takes the maps of cgroups that were told to stop; only once.
    pub fn stops(&mut self) -> Result<Stops, LoadError> {
        let stopping = take(&mut self.ebpf, names::MAP_STOPPING)?;
        Ok(Stops { stopping, counts: take(&mut self.ebpf, names::MAP_STOP_COUNTS)? })
    }

    /// Handles of the uprobes, when all of them were loaded; only once.
    pub fn nginx(&mut self) -> Result<Option<Uprobes>, LoadError> {
        let loaded = NGINX_HOOKS.iter().all(|hook| self.states[*hook as usize] == HookState::Attached);
        if !loaded {
            return Ok(None);
        }
        let hits = take(&mut self.ebpf, names::MAP_NGINX_HITS)?;
        let mut info = |hook: u32| match program(&mut self.ebpf, &PLAN[hook as usize])? {
            Program::Nginx(p) => p.info().map_err(|source| LoadError::Nginx { source: Box::new(source) }),
            _ => Err(LoadError::Lacks { what: "uprobe", name: PLAN[hook as usize].name() }),
        };
        let infos = [info(NGINX_HOOKS[0])?, info(NGINX_HOOKS[1])?];
        let uprobes = Uprobes::new(infos, hits, self.cookies);
        uprobes.map(Some).map_err(|source| LoadError::Nginx { source: Box::new(source) })
    }

    /// Takes the map of cgroups to leave out; only once.
    pub fn skip(&mut self) -> Result<Skip, LoadError> {
        take::<HashMap<MapData, u64, u8>>(&mut self.ebpf, names::MAP_SKIP).map(Skip)
    }
}

fn create(object: &[u8], settings: &Settings<'_>, btf: &Btf) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    loader.btf(Some(btf));
    // A global that the optimiser dropped is not needed: `must_exist` is false.
    for (name, value) in &settings.globals.values {
        loader.override_global(name, value, false);
    }
    loader.override_global(names::SIG_MASK, &settings.sig_mask, false);
    loader.override_global(names::WAKE_BYTES, &settings.wake_bytes, false);
    loader.override_global(names::SK_SALT, &settings.sk_salt, false);
    loader.map_max_entries(names::MAP_EVENTS, settings.ring_bytes);
    for (map, entries) in settings.map_sizes {
        loader.map_max_entries(map, *entries);
    }
    loader.load(object).map_err(|e| match refused(&e) {
        // Before 5.11 the memory of maps counts against RLIMIT_MEMLOCK.
        true if settings.rights.is_some_and(|r| !r.has(crate::kernel::host::CAP_SYS_RESOURCE)) => LoadError::Refused {
            hint: "kernels before 5.11 want CAP_SYS_RESOURCE too; else a seccomp profile forbids it",
        },
        true => LoadError::Refused { hint: "a seccomp profile or kernel lockdown forbids it" },
        false => LoadError::Object(Box::new(e)),
    })
}

/// One program of the object, of the type that its row says.
enum Program<'a> {
    Tracepoint(&'a mut BtfTracePoint),
    FunctionExit(&'a mut FExit),
    Nginx(&'a mut UProbe),
}

impl Program<'_> {
    fn load(&mut self, place: &str, btf: &Btf) -> Result<(), ProgramError> {
        match self {
            Program::Tracepoint(p) => p.load(place, btf),
            Program::FunctionExit(p) => p.load(place, btf),
            Program::Nginx(p) => p.load(),
        }
    }

    fn fd(&self) -> Result<&ProgramFd, ProgramError> {
        match self {
            Program::Tracepoint(p) => p.fd(),
            Program::FunctionExit(p) => p.fd(),
            Program::Nginx(p) => p.fd(),
        }
    }

    fn attach(&mut self) -> Result<(), ProgramError> {
        match self {
            Program::Tracepoint(p) => p.attach().map(drop),
            Program::FunctionExit(p) => p.attach().map(drop),
            // To each nginx, when one is found: probes::nginx.
            Program::Nginx(_) => Ok(()),
        }
    }

    fn unload(&mut self) {
        // Fails only for what was never loaded.
        let _ = match self {
            Program::Tracepoint(p) => p.unload(),
            Program::FunctionExit(p) => p.unload(),
            Program::Nginx(p) => p.unload(),
        };
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, row: &Row) -> Result<Program<'a>, LoadError> {
    let lacks = LoadError::Lacks { what: "program", name: row.name() };
    let program = ebpf.program_mut(row.name());
    let found = match row.at() {
        At::Tracepoint => program.and_then(|p| p.try_into().ok()).map(Program::Tracepoint),
        At::FunctionExit => program.and_then(|p| p.try_into().ok()).map(Program::FunctionExit),
        At::Nginx => program.and_then(|p| p.try_into().ok()).map(Program::Nginx),
    };
    found.ok_or(lacks)
}

fn take<M: TryFrom<aya::maps::Map, Error = MapError>>(ebpf: &mut Ebpf, map: &'static str) -> Result<M, LoadError> {
    let taken = ebpf.take_map(map).ok_or(LoadError::Lacks { what: "map", name: map })?;
    M::try_from(taken).map_err(|source| LoadError::Map { map, source })
}

/// An optional hook's failure is a state, a required one's ends the start. Functions can be traced on some kernels only: that
/// one of them cannot is no failure.
fn failed(row: &Row, step: &str, error: &ProgramError) -> Result<HookState, LoadError> {
    let why = format!("{step}: {}", reason(error));
    match row.at() {
        _ if row.required => Err(LoadError::Required { hook: row.name(), why }),
        At::FunctionExit => Ok(HookState::Skipped { why: format!("this kernel does not trace functions ({why})") }),
        At::Tracepoint | At::Nginx => Ok(HookState::Failed { why }),
    }
}

/// One line: the verifier's last words instead of its whole log.
fn reason(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(s) = source {
            let more = s.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = s.source();
        }
        return text;
    };
    let log = verifier_log.to_string();
    // Statistics follow the verifier's reason.
    const NOISE: [&str; 4] = ["processed ", "verification time", "stack depth", "max_states"];
    let noise = |l: &&str| l.is_empty() || NOISE.iter().any(|n| l.starts_with(n));
    match log.lines().map(str::trim).rfind(|l| !noise(l)) {
        Some(last) => format!("{io_error}; the verifier says: {last}"),
        None => io_error.to_string(),
    }
}

/// EPERM anywhere in the chain.
fn refused(error: &EbpfError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        let io = e.downcast_ref::<io::Error>().map(io::Error::kind);
        if io == Some(io::ErrorKind::PermissionDenied) {
            return true;
        }
        source = e.source();
    }
    false
}

/// `recursion_misses:\t7` of a program's fdinfo.
fn misses(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|l| l.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

/// `run_time_ns:\t1234` of a program's fdinfo; 0 is what is there without statistics.
fn run_time(fdinfo: &str) -> Option<u64> {
    let ns = fdinfo.lines().find_map(|l| l.strip_prefix("run_time_ns:"))?.trim().parse().ok()?;
    (ns > 0).then_some(ns)
}

/// Kernels before 5.11 count maps against RLIMIT_MEMLOCK. Newer ones do not, and without CAP_SYS_RESOURCE it cannot be
/// raised: a failure here is no failure, the map creation says so if it is one.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn load(object: &[u8], ring_bytes: u32, effective: u64) -> LoadError {
        let globals = Globals { values: Vec::new(), reset_reasons: BTreeMap::new(), degraded: Vec::new() };
        let rights = Some(Rights { effective });
        let (map_sizes, sig_mask, wake_bytes, sk_salt) = (&[][..], 0, 0, 0);
        let s =
            Settings { globals: &globals, ring_bytes, map_sizes, sig_mask, wake_bytes, sk_salt, rights, unwanted: &[] };
        Probes::load(object, &s).err().unwrap()
    }

    #[test]
    fn says_in_one_line_what_is_wrong_before_the_kernel_is_asked() {
        let texts = [
            (load(&[], 1 << 20, u64::MAX), "this why502 was built without probes: build it with `cargo xtask build`"),
            (load(b"x", 5000, u64::MAX), "ring size 5000 is not a power of two of at least 4096 bytes"),
            (load(b"x", 4096, 0), "not allowed to load probes: CAP_BPF and CAP_PERFMON missing (or CAP_SYS_ADMIN)"),
        ];
        for (error, want) in texts {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn recursion_misses_are_in_fdinfo() {
        let text = "pos:\t0\nprog_type:\t26\nrun_time_ns:\t0\nrecursion_misses:\t42\nverified_insns:\t9\n";
        assert_eq!(misses(text), Some(42));
        assert_eq!(misses("prog_type:\t26\n"), None, "before 5.12");
        assert_eq!(run_time(text), None, "statistics are off");
        assert_eq!(run_time("run_time_ns:\t17\nrun_cnt:\t1\n"), Some(17));
    }

    #[test]
    fn eperm_is_found_in_a_chain() {
        let eperm = io::Error::from_raw_os_error(1);
        assert!(refused(&EbpfError::FileError { path: "x".into(), error: eperm }));
        let enoent = io::Error::from_raw_os_error(2);
        assert!(!refused(&EbpfError::FileError { path: "x".into(), error: enoent }));
    }
}
