//! The live source: attaches the probes, scans what was there before them, and gives the one input sequence.
//!
//! Order: `Started`, `Clock`, the cgroups, processes and listeners (TCP and AF_UNIX) of the start-up scan, `Ready`; then per batch: losses,
//! events (each after the `Cgroup` facts that it needs), `Clock` every ten seconds and when the wall clock was set,
//! what container runtimes and the Kubernetes API say, `StopCounters` that changed, and a `Tick` up to which all events were
//! fed. Attach first, then scan: what happens in
//! between is in the ring and follows after `Ready`, with its time.

mod carries;
mod check;
mod facts;
mod filter;
mod fpm;
mod listening;
mod looks;
mod names;
mod pools;
mod stop_counters;
mod unix_connect;
mod uprobes;

use crate::kernel::fields::{self, FieldError, Globals};
use crate::kernel::host::{Host, Mounts, Rights};
use crate::kernel::{btf, clock};
use crate::model::event::{Event, EventKind};
use crate::model::input::{Degraded, LossFact, Started};
use crate::model::{BootNs, EventId, Input};
use crate::probes::load::{LoadError, Probes, Settings};
use crate::probes::tables::{Listeners, Skip, Stops, TableError};
use crate::ring::counters::{Counters, HookTotals};
use crate::ring::drain::{Batch, Drain};
use crate::ring::shed;
use crate::sources::{cgroups, kube, memory, procfs, runtimes};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::CheckError;
pub use unix_connect::UnixConnect;
pub use uprobes::Wanted as UprobesWanted;

/// How often the ring is read when nothing wakes the reader.
const POLL: Duration = Duration::from_millis(50);
/// At most this often: counters of the kernel side and a tick with them, ns.
const TICK: u64 = 50_000_000;
/// Without events, a tick this often, ns.
const IDLE_TICK: u64 = 200_000_000;
/// Recursion misses are read through /proc: less often, ns.
const RECURSION: u64 = 250_000_000;
/// A look at the filter this often, ns.
const REFILTER: u64 = 10_000_000_000;

/// Signals that are not recorded unless asked for: CHLD, URG, WINCH, ALRM, VTALRM, IO and the real-time ones. They are
/// frequent (Go's scheduler sends URG thousands of times a second) and explain no lost request; PROF, PIPE and the rest do
/// or may.
const QUIET: [u32; 6] = [17, 23, 28, 14, 26, 29];

/// Bit `n` set: signal `n` is recorded.
pub fn signal_mask(all: bool) -> u64 {
    if all {
        return u64::MAX;
    }
    QUIET.into_iter().fold(0xffff_fffe, |mask, signal| mask & !(1 << signal))
}

/// What a live run wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where /proc and /sys of the host are: `/`, or a host mount.
    pub root: PathBuf,
    /// Name of the node in all output; `None`: the host name.
    pub node: Option<String>,
    /// Ring buffer in bytes, a power of two.
    pub ring_bytes: u32,
    /// Pending bytes from which the probes wake the reader at once.
    pub wake_bytes: u32,
    /// All signals, not only [`signal_mask`]'s.
    pub all_signals: bool,
    /// Leave out cgroups of the host's own services.
    pub filter: bool,
    /// Compare the probes' records of our own doings with what we know, and refuse to run when they differ.
    pub check: bool,
    /// How failed connects to unix sockets are seen.
    pub unix_connect: UnixConnect,
    /// Whether nginx's own words are listened to.
    pub uprobes: UprobesWanted,
    /// Which container runtimes are asked for names.
    pub runtimes: runtimes::Wish,
    /// The Kubernetes API that knows this node's pods.
    pub kube: Option<kube::Place>,
    /// For tests: drop a share of the records once all is ready.
    pub shed: Option<shed::Wanted>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            root: PathBuf::from("/"),
            node: None,
            ring_bytes: 8 << 20,
            wake_bytes: 256 << 10,
            all_signals: false,
            filter: true,
            check: true,
            unix_connect: UnixConnect::default(),
            uprobes: UprobesWanted::default(),
            runtimes: runtimes::Wish::default(),
            kube: None,
            shed: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error("no kernel type information at {path}: {source}")]
    NoBtf { path: PathBuf, source: io::Error },
    #[error("the kernel's type information: {0}")]
    Btf(#[from] btf::BtfError),
    #[error(transparent)]
    Fields(#[from] FieldError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("--uprobes on: {why}")]
    NoUprobes { why: String },
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// What a run saw and did not see, for the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    pub hooks: Vec<HookTotals>,
    /// Events given out.
    pub events: u64,
    /// The kernel's tick rate, when enough connections were seen to tell.
    pub hz: Option<u32>,
}

/// A running observation. Dropping it detaches the probes.
pub struct Live {
    probes: Probes,
    drain: Drain,
    counters: Counters,
    /// Keeps the map that the probes look ports up in.
    _listeners: Listeners,
    skip: Skip,
    stops: Stops,
    stopping: stop_counters::Watch,
    filter: filter::Filter,
    resolver: cgroups::Resolver,
    memory: memory::Memory,
    seen: facts::Seen,
    own: check::Own,
    reasons: BTreeMap<u32, String>,
    /// Inputs that wait to be given out: the start.
    pending: Vec<Input>,
    timer: tokio::time::Interval,
    next_id: u64,
    hz: facts::Hz,
    warnings: Vec<String>,
    last_tick: BootNs,
    last_counters: BootNs,
    last_recursion: BootNs,
    last_filter: BootNs,
    clocks: facts::Clocks,
    fresh_fpm: fpm::Fresh,
    fresh_nginx: carries::Fresh,
    strangers: listening::Strangers,
    newborn: pools::Newborn,
    uprobed: Option<uprobes::Uprobed>,
    names: names::Names,
    kube: Option<kube::Source>,
    root: PathBuf,
    /// Events were given since the last tick.
    unticked: bool,
    /// The ring was not read to its end.
    more: bool,
}

impl Live {
    /// Loads and attaches the probes, checks them, scans the host. Inside a tokio runtime with I/O and time enabled.
    pub async fn start(options: Options) -> Result<Live, LiveError> {
        Live::start_with(options, |_| {}).await
    }

    /// `adjust` may spoil the globals: the tests of the check at the start do.
    async fn start_with(options: Options, adjust: impl FnOnce(&mut Globals)) -> Result<Live, LiveError> {
        let root = options.root.as_path();
        let rights = Rights::read(Path::new("/"));
        let io = |what| move |source| LiveError::Io { what, source };
        // First: they answer while the probes are loaded.
        let mut names = names::Names::start(root, &options.runtimes).map_err(io("cannot start a thread"))?;
        let mounts = Mounts::read(root);
        let mut globals = globals(root, &mounts)?;
        adjust(&mut globals);
        let no_uprobes = options.uprobes.why_not(root, rights);
        let mut probes = load(&options, &globals, rights, no_uprobes)?;
        let (ring, counters) = (probes.ring()?, probes.counters()?);
        let (mut listeners, mut skip) = (probes.listeners()?, probes.skip()?);
        let stops = probes.stops()?;

        let started = clock::boot_ns();
        probes.attach()?;
        let mut drain = Drain::new(ring, root).map_err(io("cannot wait for the ring buffer"))?;
        let host = Host::read(root);
        let mut degraded = degradations(&globals, &mounts, rights, &probes, &host);
        degraded.extend(options.unix_connect.degraded(&probes.status()));
        let (mut uprobed, unprobed) = uprobes::start(&mut probes, options.uprobes, no_uprobes, root)?;
        degraded.extend(unprobed);
        // Before the check: until the probes know the ports, they take server sides for clients.
        let mut resolver = cgroups::Resolver::new(root);
        let at = clock::boot_ns();
        let scan = procfs::scan(root, at).map_err(io("cannot scan the host's processes"))?;
        let known = resolver.snapshot(clock::boot_ns());
        let memory = memory::Memory::start(&resolver, at);
        for l in &scan.listeners {
            listeners.add(l.netns, l.port, started)?;
        }
        let mut own = check::Own::default();
        let mut early = Vec::new();
        if options.check {
            let checked = check::run(&mut drain, options.all_signals, &probes.status()).await?;
            degraded.extend(checked.unchecked);
            (own, early) = (checked.own, checked.batches);
        }

        let filter =
            if options.filter { filter::Filter::new(root, &scan, &resolver) } else { filter::Filter::default() };
        for cgroup in filter.skipped() {
            skip.add(cgroup)?;
        }

        let node = options.node.unwrap_or(host.node);
        let kube = options.kube.map(|place| kube::Source::start(place, node.clone(), clock::boot_ns));
        let kube = kube.transpose().map_err(io("cannot start the thread that watches the Kubernetes API"))?;
        let mut pending = vec![Input::Started(Started {
            at: started,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node,
            boot_id: host.boot_id,
            kernel: host.kernel,
            hooks: probes.status(),
            degraded,
            reset_reasons: globals.reset_reasons.clone().into_iter().collect(),
            host_netns: host.netns,
            host_pidns: host.pidns,
        })];
        let mut clocks = facts::Clocks::default();
        pending.extend(clocks.due(clock::sample()));
        let mut seen = facts::Seen::default();
        // Before the cgroups: they ask for what is not known yet.
        pending.extend(names.listed().await);
        for fact in known {
            seen.first(fact.hierarchy, fact.id);
            pending.push(names.cgroup(fact));
        }
        let probed = uprobed.as_mut().map(|u| u.scanned(&scan)).unwrap_or_default();
        let carried = carries::of(root, &scan.processes, clock::boot_ns());
        pending.extend(scan.processes.into_iter().map(Input::Process));
        pending.extend(probed);
        pending.extend(carried.into_iter().map(Input::Carries));
        pending.extend(scan.listeners.into_iter().map(Input::Listener));
        pending.extend(scan.unix_listeners.into_iter().map(Input::UnixListener));
        let now = clock::boot_ns();
        pending.push(Input::Ready { at: now });

        let mut timer = tokio::time::interval(POLL);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut live = Live {
            counters: Counters::new(counters, started),
            reasons: globals.reset_reasons,
            probes,
            drain,
            _listeners: listeners,
            skip,
            stops,
            stopping: stop_counters::Watch::default(),
            filter,
            resolver,
            memory,
            seen,
            own,
            pending,
            timer,
            next_id: 1,
            hz: facts::Hz::default(),
            warnings: Vec::new(),
            last_tick: 0,
            last_counters: 0,
            last_recursion: 0,
            last_filter: now,
            clocks,
            fresh_fpm: fpm::Fresh::default(),
            fresh_nginx: carries::Fresh::default(),
            strangers: listening::Strangers::default(),
            newborn: pools::Newborn::default(),
            uprobed,
            names,
            kube,
            root: options.root,
            unticked: false,
            more: false,
        };
        options.shed.iter().for_each(|wanted| live.drain.shed(*wanted));
        for batch in early {
            let inputs = live.assemble(batch);
            live.pending.extend(inputs);
        }
        Ok(live)
    }

    /// The next inputs, at least one. Cancel-safe: nothing is taken from the ring before it can be returned.
    pub async fn next_batch(&mut self) -> Vec<Input> {
        loop {
            if !self.pending.is_empty() {
                return std::mem::take(&mut self.pending);
            }
            if self.more {
                // A flood must not keep signals from being seen.
                tokio::task::yield_now().await;
            } else {
                let woken = tokio::select! {
                    woken = self.drain.woken() => woken,
                    _ = self.timer.tick() => Ok(()),
                };
                if let Err(e) = woken {
                    self.warn(format!("waiting for the ring buffer: {e}"));
                    // Else a descriptor that is broken for good would be asked in a circle.
                    self.timer.tick().await;
                }
            }
            self.probes.print_log();
            let batch = self.drain.pass();
            self.more = batch.more;
            let out = self.assemble(batch);
            if !out.is_empty() {
                return out;
            }
        }
    }

    /// Detaches the probes and gives what is left: the last events and losses, then `Stopped`.
    pub fn stop(mut self) -> (Vec<Input>, Totals) {
        let mut out = std::mem::take(&mut self.pending);
        out.extend(self.uprobed.take().map(uprobes::Uprobed::stop).unwrap_or_default());
        self.probes.detach();
        let batch = self.drain.last();
        self.last_counters = 0;
        self.last_recursion = 0;
        self.stopping.hurry();
        let at = batch.watermark;
        out.extend(self.assemble(batch));
        out.push(Input::Stopped { at });
        let hooks = self.counters.totals(&self.probes.recursion_misses()).unwrap_or_default();
        (out, Totals { hooks, events: self.next_id - 1, hz: self.hz.rate() })
    }

    /// What the probes counted so far, and the time that they took.
    pub fn so_far(&self) -> Result<Vec<HookTotals>, aya::maps::MapError> {
        let mut totals = self.counters.totals(&self.probes.recursion_misses())?;
        for (hook, run_ns) in totals.iter_mut().zip(self.probes.run_times()) {
            hook.run_ns = run_ns;
        }
        Ok(totals)
    }

    /// Names of `enum sk_rst_reason` on this kernel, without their prefix; empty before 6.10.
    pub fn reset_reasons(&self) -> &BTreeMap<u32, String> {
        &self.reasons
    }

    /// Things that went wrong on the way without ending it, for the log; each is told once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn warn(&mut self, text: String) {
        // Bounded: what repeats is not worth more than a few lines.
        if self.warnings.len() < 32 {
            self.warnings.push(text);
        }
    }

    /// One pass over the ring as inputs: losses first, so that no window closes before its losses are known.
    fn assemble(&mut self, batch: Batch) -> Vec<Input> {
        let now = clock::boot_ns();
        let counters_due = now.saturating_sub(self.last_counters) >= TICK;
        let mut losses = batch.losses;
        if counters_due {
            losses.extend(self.kernel_losses(now));
        }
        if let Some(e) = batch.undecodable {
            self.warn(format!("a record could not be decoded: {e}"));
        }
        let mut out: Vec<Input> = losses.into_iter().map(Input::Loss).collect();
        out.extend(self.resolver.due(now).into_iter().map(|fact| self.names.cgroup(fact)));
        out.extend(self.names.due());
        out.extend(self.fresh_fpm.due(&self.root, now).into_iter().map(Input::UnixListener));
        out.extend(self.fresh_nginx.due(&self.root, now).into_iter().map(Input::Carries));
        out.extend(self.strangers.due(&self.root, now));
        out.extend(self.newborn.due(&self.root, now));
        if let Some(uprobed) = &mut self.uprobed {
            out.extend(uprobed.due());
            if uprobed.was_deaf() {
                self.warn("too many processes start at once: an nginx may be without uprobes".into());
            }
        }
        out.extend(self.kube.as_mut().map(kube::Source::due).unwrap_or_default());
        for event in batch.events {
            self.give(event, now, &mut out);
        }
        if counters_due {
            out.extend(self.clocks.due(clock::sample()));
            out.extend(self.stop_counters(now));
        }
        if now.saturating_sub(self.last_filter) >= REFILTER {
            self.last_filter = now;
            self.refilter();
        }
        // A tick closes windows, so it needs counters that are as new as itself.
        if counters_due && (self.unticked || now.saturating_sub(self.last_tick) >= IDLE_TICK) {
            self.last_tick = now;
            self.unticked = false;
            out.push(Input::Tick { at: batch.watermark });
        }
        out
    }

    fn kernel_losses(&mut self, now: BootNs) -> Vec<LossFact> {
        self.last_counters = now;
        let misses = (now.saturating_sub(self.last_recursion) >= RECURSION).then(|| {
            self.last_recursion = now;
            self.probes.recursion_misses()
        });
        match self.counters.losses(now, misses.as_deref()) {
            Ok(losses) => losses,
            Err(e) => {
                self.warn(format!("the probes' counters cannot be read, losses are not known: {e}"));
                Vec::new()
            }
        }
    }

    fn stop_counters(&mut self, now: BootNs) -> Vec<Input> {
        match self.stopping.due(now, |cgroup| self.stops.read(cgroup, now)) {
            Ok(changed) => changed.into_iter().map(Input::StopCounters).collect(),
            Err(e) => {
                self.warn(format!("what stopping containers still do cannot be read: {e}"));
                Vec::new()
            }
        }
    }

    /// An event with its id, after the cgroups that it is the first to name.
    fn give(&mut self, mut event: Event, now: BootNs, out: &mut Vec<Input>) {
        if self.own.made(&event) {
            return;
        }
        for (hierarchy, id) in facts::cgroups(&event) {
            if self.seen.first(hierarchy, id) {
                // None: the tree was walked a moment ago; `due()` tells later.
                out.extend(self.resolver.try_resolve(id, hierarchy, now).map(|fact| self.names.cgroup(fact)));
            }
        }
        self.fresh_fpm.observe(&event);
        self.fresh_nginx.observe(&event);
        self.strangers.observe(&event);
        self.newborn.observe(&event);
        if let Some(uprobed) = &mut self.uprobed {
            uprobed.observe(&event);
        }
        self.stopping.observe(&event);
        if let EventKind::TcpState(s) = &event.kind {
            self.hz.add(event.at, s.jiffies);
        }
        event.id = EventId(self.next_id);
        self.next_id += 1;
        self.unticked = true;
        let oom = match &event.kind {
            EventKind::OomVictim { task } => self.memory.look(&self.root, task, &mut self.resolver, now),
            _ => None,
        };
        out.push(Input::Event(event));
        out.extend(oom.map(Input::Memory));
    }

    /// A host cgroup in which a server was started meanwhile is watched again.
    fn refilter(&mut self) {
        for cgroup in self.filter.notable_now(clock::boot_ns()) {
            if let Err(e) = self.skip.remove(cgroup) {
                self.warn(e.to_string());
            }
        }
    }
}

fn globals(root: &Path, mounts: &Mounts) -> Result<Globals, LiveError> {
    let path = root.join(btf::VMLINUX);
    let data = btf::read(&path).map_err(|source| LiveError::NoBtf { path, source })?;
    let types = btf::Btf::parse(&data)?;
    Ok(fields::resolve(&types, mounts.v1().map(|(controller, _)| controller))?)
}

fn load(
    options: &Options,
    globals: &Globals,
    rights: Option<Rights>,
    no_uprobes: Option<&'static str>,
) -> Result<Probes, LiveError> {
    let mut salt = [0; 8];
    rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| LiveError::Io { what: "no random numbers", source: e.into() })?;
    let mut unwanted = options.unix_connect.unwanted().to_vec();
    unwanted.extend(UprobesWanted::unwanted(no_uprobes));
    let settings = Settings {
        globals,
        ring_bytes: options.ring_bytes,
        map_sizes: &[],
        sig_mask: signal_mask(options.all_signals),
        wake_bytes: options.wake_bytes,
        sk_salt: u64::from_ne_bytes(salt),
        rights,
        unwanted: &unwanted,
    };
    Ok(Probes::load(crate::probes::OBJECT, &settings)?)
}

/// What this kernel, these mounts and these rights cannot give; one line each.
fn degradations(
    globals: &Globals,
    mounts: &Mounts,
    rights: Option<Rights>,
    probes: &Probes,
    host: &Host,
) -> Vec<Degraded> {
    let mut all = globals.degraded.clone();
    let mut add = |id: &str, text: String| all.push(Degraded { id: id.to_owned(), text });
    if mounts.tracefs.is_none() {
        add("no-tracefs", "tracefs is not mounted; the probes do not need it, later hooks may".to_owned());
    }
    if mounts.cgroup2.is_none() {
        let text = match mounts.v1() {
            Some((controller, _)) => {
                format!("cgroup2 is not mounted: processes are named by {controller} cgroups, sockets by their process")
            }
            None => "no cgroup hierarchy is mounted: containers cannot be named".to_owned(),
        };
        add("no-cgroup2", text);
    }
    let missing = rights.map(|r| r.missing_to_identify()).unwrap_or_default();
    if !missing.is_empty() {
        add("no-identity-rights", format!("{} missing: some processes stay without names", missing.join(" and ")));
    }
    if missing.is_empty() && host.pidns == 0 {
        let how = "hostPID: true in a pod, --pid=host of docker";
        add(
            "no-host-pids",
            format!("/proc is not the node's ({how}): processes that were there before stay without names"),
        );
    }
    if probes.recursion_misses().iter().all(Option::is_none) {
        add("no-recursion-count", "this kernel does not count the runs of a probe that it skipped".to_owned());
    }
    all
}

#[cfg(test)]
mod tests;
