//! The one input sequence. Live, replay and tests feed the same [`Input`]s, in the same order, to the same pure code;
//! a recording is this sequence written down.

use super::event::{BootNs, Event, ProcKey};
use super::kube::KubeFact;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "kebab-case")]
pub enum Input {
    /// Always first.
    Started(Started),
    /// All probes are attached and the start-up scan is done: from here on nothing is `started late`.
    Ready {
        at: BootNs,
    },
    Event(Event),
    Process(ProcessFact),
    Listener(ListenerFact),
    UnixListener(UnixListenerFact),
    Cgroup(CgroupFact),
    /// Boot ↔ wall, sampled together. The only way from event times to wall times.
    Clock {
        at: BootNs,
        wall_ns: i64,
    },
    Loss(LossFact),
    StopCounters(StopCounters),
    /// The memory of a cgroup of which the OOM killer has just taken a process.
    Memory(MemoryFact),
    /// What a pod spec says about stopping one container.
    Spec(SpecFact),
    /// What a container runtime says about one container.
    Container(Box<ContainerFact>),
    /// A source of facts from outside the kernel can be asked, or cannot any more.
    Source(SourceFact),
    /// What the Kubernetes API said.
    Kube(Box<KubeFact>),
    /// What an nginx's configuration says of a port that it listens on.
    Carries(CarriesFact),
    /// The uprobes see an nginx from now on, or do not.
    NginxProbes(NginxProbesFact),
    /// Time has reached `at`: every event up to it was fed. Windows close on ticks, never on a clock.
    Tick {
        at: BootNs,
    },
    /// The end of the observation; what is still open becomes final with what is known.
    Stopped {
        at: BootNs,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// When the first probe was attached.
    pub at: BootNs,
    pub version: String,
    pub node: String,
    pub boot_id: String,
    pub kernel: String,
    pub hooks: Vec<HookStatus>,
    /// Degradations that doctor would print: tracefs or cgroup2 not mounted, no reset reasons …
    pub degraded: Vec<Degraded>,
    /// `enum sk_rst_reason` of this kernel, value and name: the values move between versions. Empty before 6.10.
    #[serde(default)]
    pub reset_reasons: Vec<(u32, String)>,
    /// Inode of the host's network and pid namespaces; 0 unknown.
    pub host_netns: u32,
    pub host_pidns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// Stable id: `no-tracefs`, `no-cgroup2`, `no-reset-reason`, `no-reply-resets` …
    pub id: String,
    /// One line for people.
    pub text: String,
}

impl Degraded {
    /// Whether verdicts are worse for it. What is not known here lowers them.
    pub fn lowers(&self) -> bool {
        // No probe needs tracefs; a way that is slower, or a figure of our own, is no verdict; nginx's own words are an
        // opt-in of the packages, because they need CAP_SYS_ADMIN: without them the kernel's facts decide as they do.
        !matches!(&*self.id, "no-tracefs" | "unix-connect-syscalls" | "no-recursion-count" | "no-nginx-uprobes")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    pub hook: String,
    #[serde(flatten)]
    pub state: HookState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum HookState {
    Attached,
    /// Not wanted on this kernel or by these options.
    Skipped {
        why: String,
    },
    Failed {
        why: String,
    },
}

/// A process as /proc showed it at the start-up scan, or at a later look-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFact {
    pub at: BootNs,
    pub key: ProcKey,
    pub ppid: u32,
    pub ns_pid: u32,
    pub pidns: u32,
    pub netns: u32,
    pub uid: u32,
    pub comm: String,
    /// Target of /proc/PID/exe; empty for kernel threads or when it could not be read.
    pub exe: String,
    pub argv: Vec<String>,
    /// v2 and v1 cgroup ids; 0 unknown.
    pub cgroup: u64,
    pub cgroup_v1: u64,
    /// /proc/PID/status SigIgn and SigCgt.
    pub sig_ign: u64,
    pub sig_cgt: u64,
}

/// A listening TCP socket found by the start-up scan, or one that was gone by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerFact {
    pub at: BootNs,
    pub netns: u32,
    /// Canonical: 0.0.0.0 and :: are kept apart.
    pub ip: IpAddr,
    pub port: u16,
    /// Socket inode; several sockets on one address are SO_REUSEPORT.
    pub inode: u64,
    /// Processes that hold it.
    pub holders: Vec<ProcKey>,
    /// Nobody listens there any more: known from connections that a server (the holders) still has. `inode` is 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
}

/// A port whose connections are not one HTTP/1.1 request after the other, by the configuration of the nginx that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriesFact {
    pub at: BootNs,
    pub netns: u32,
    pub port: u16,
    pub what: Carries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carries {
    Http2,
    /// WebSocket and the like.
    Upgraded,
}

/// A listening AF_UNIX stream socket, found by a scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixListenerFact {
    pub at: BootNs,
    pub netns: u32,
    /// As it was given to bind(2), `@name` for an abstract one. Hostile.
    pub path: String,
    pub inode: u64,
    /// Processes that hold it.
    pub holders: Vec<ProcKey>,
}

/// Where a cgroup id is in its hierarchy. Given once per id, and kept when the cgroup is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFact {
    pub at: BootNs,
    pub id: u64,
    pub hierarchy: Hierarchy,
    /// Path below the hierarchy's root, with a leading slash; `None`: gone before it could be read.
    pub path: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hierarchy {
    V2,
    V1,
}

/// What the kernel side counted for a cgroup since its first stop signal (TERM, QUIT or INT to a thread group leader, from
/// another process that is not its parent in the same cgroup): connections that ended with their answer sent are not
/// events. Given when it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCounters {
    /// When it was read: what came later is not in it.
    pub at: BootNs,
    /// v2 id, of the signal's target and of the sockets that are counted.
    pub cgroup: u64,
    /// The first stop signal. The same cgroup with another `signal_at` is another stop.
    pub signal_at: BootNs,
    /// Server-side connections that were established after the signal, and the last of them.
    pub accepted_after: u64,
    pub last_accept: Option<BootNs>,
    /// Server-side connections that are closed since, whose last request had come before the signal and was answered after
    /// it; and when the last of these answers was sent, to a tick (1 to 10 ms).
    pub answered_after: u64,
    pub last_answered: Option<BootNs>,
}

/// Read from the memory controller's files right after `mark_victim`: whose limit it was is in no event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFact {
    pub at: BootNs,
    /// Host pid of the process that the OOM killer chose.
    pub victim: u32,
    pub hierarchy: Hierarchy,
    /// The victim's cgroup and those above it, without the hierarchy's root, which has no limit.
    pub levels: Vec<MemoryLevel>,
    /// Every level could be read.
    pub complete: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLevel {
    /// Below the hierarchy's root.
    pub path: String,
    /// Bytes: `memory.max`, v1 `memory.limit_in_bytes`. `None`: no limit.
    pub limit: Option<u64>,
    /// How often an allocation failed at this limit since it was last looked at: `oom` of `memory.events.local`; v1
    /// `memory.failcnt` and its like, which also counts what was helped by giving caches back, and at least 1 when its usage has once
    /// reached a limit.
    pub hits: u64,
    /// `memory.oom.group`: all processes of it are killed at once.
    pub group: bool,
}

/// Something was not seen. `count` more since the last fact of this hook and kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossFact {
    /// Between these two times.
    pub from: BootNs,
    pub to: BootNs,
    pub hook: String,
    pub kind: LossKind,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// The ring was full.
    RingFull,
    /// The kernel skipped the program because one was running already on that CPU.
    Recursion,
    /// A kernel map could not take an entry, or threw one out before its time.
    MapFull,
    /// A record that could not be decoded.
    Undecodable,
    /// An argument of the hook was not what the kernel's types promise.
    BadArgument,
    /// A record came after the reorder window had passed it.
    Late,
    /// Facts dropped in userspace to keep memory bounded.
    Evicted,
}

/// What somebody said about how a container is stopped: from a file, or from an API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecFact {
    pub at: BootNs,
    /// Where it was said: a file's name, `Pod shop/web-7d9f` of the API. Hostile.
    pub source: String,
    /// The pod that it is about. `None`: which pods of this node a file is about is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// `Deployment/web`, as the source has it. Hostile.
    pub workload: String,
    /// Name of the container. Hostile.
    pub container: String,
    /// The preStop hook's command, when it has one.
    pub pre_stop: Option<Vec<String>>,
    /// The signal that it declares, by number.
    pub stop_signal: Option<u32>,
    /// terminationGracePeriodSeconds.
    pub grace_s: u64,
}

/// What a container runtime, or what it left on the disk, says about one container. The id tells containers apart: a name
/// may be given to the next one at once. Several facts of one container add up. What a source does not tell is absent.
/// All strings are hostile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFact {
    /// When the container was made, by the runtime's clock; 0: not known, or before the boot.
    pub at: BootNs,
    /// When why502 got to know it.
    pub seen_at: BootNs,
    pub id: String,
    /// Who said it: a socket or a file.
    pub source: String,
    /// `docker`, `containerd`, `cri-o`, `podman`.
    pub runtime: Option<String>,
    pub name: Option<String>,
    pub image: Option<String>,
    pub pod: Option<PodFact>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How often it was started again; Kubernetes makes a new container each time and goes on counting.
    pub restarts: Option<u32>,
    /// The stop signal that the image or the container declares, by number.
    pub stop_signal: Option<u32>,
    /// What is known of the pod's spec, where the runtime was told.
    pub spec: Option<StopSpec>,
}

/// The pod of a container. Strings are hostile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFact {
    /// podman has none.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub uid: String,
}

/// What the spec of one container says about its stop. Absent is known to be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSpec {
    /// The preStop hook's command. Hostile.
    pub pre_stop: Option<Vec<String>>,
    /// Seconds between the first phase of a stop and SIGKILL.
    pub grace_s: Option<u64>,
}

/// Given at each change, and only then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFact {
    pub at: BootNs,
    /// Where it is: `unix:///run/containerd/containerd.sock`.
    pub source: String,
    /// What it is, as it says itself: `containerd 1.7.24`. Hostile; empty before it has said anything.
    pub name: String,
    #[serde(flatten)]
    pub state: SourceState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SourceState {
    Connected,
    /// Gone, or it does not answer in time.
    Lost {
        why: String,
    },
}

/// Whether the uprobes see one nginx: given when it is found, and at each change. Without any of them for an nginx nothing
/// is known of it: it was never found, or ended before it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NginxProbesFact {
    pub at: BootNs,
    /// The process that was found: a master, or a worker that has outlived its own. Its children share its program.
    pub process: ProcKey,
    /// As [`ProcessFact::exe`]. Hostile.
    pub exe: String,
    #[serde(flatten)]
    pub state: NginxProbesState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum NginxProbesState {
    Attached,
    /// Taken off again: they ran too often.
    Detached {
        why: String,
    },
    /// Could not be attached.
    Failed {
        why: String,
    },
}
