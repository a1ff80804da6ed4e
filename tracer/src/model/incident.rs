//! Incidents and stops: what why502 says. Field names and ids are the contract of docs/events.md and the JSON Schema in
//! `docs/schema/`; absent is `null`, never omitted; durations are integers with their unit in the name.

use super::event::{BootNs, EventId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Counts breaking changes of the JSON.
pub const SCHEMA: u32 = 1;

macro_rules! ids {
    ($(#[$m:meta])* $name:ident { $($variant:ident = $id:literal),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $(#[serde(rename = $id)] $variant),* }
        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),*];
            pub fn id(self) -> &'static str { match self { $($name::$variant => $id),* } }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.id()) }
        }
    };
}

ids! {
    /// What became of the request, as the server's kernel saw it.
    Outcome { Unanswered = "unanswered", Truncated = "truncated", Refused = "refused", ErrorMade = "error-made" }
}
ids! {
    /// How the request died.
    Mechanism {
        ClosedInFlight = "closed-in-flight", ResetInAcceptQueue = "reset-in-accept-queue",
        HandshakeLost = "handshake-lost", Refused = "refused", DataAfterClose = "data-after-close",
        UpstreamClosed = "upstream-closed", UpstreamRefused = "upstream-refused",
        UpstreamQueueFull = "upstream-queue-full", NetworkGone = "network-gone", LocalError = "local-error",
        Protocol = "protocol",
    }
}
ids! {
    /// What somebody can change. docs/causes.md has a section for each.
    Cause {
        NginxFastShutdown = "nginx-fast-shutdown", QuitThenTerm = "quit-then-term",
        GracePeriodExceeded = "grace-period-exceeded", ContainerKilled = "container-killed",
        Pid1IgnoresStopSignal = "pid1-ignores-stop-signal", Pid1ExitedFirst = "pid1-exited-first",
        WorkerShutdownTimeout = "worker-shutdown-timeout",
        FpmFastShutdown = "fpm-fast-shutdown", SupervisorStopOrder = "supervisor-stop-order", EndpointRace = "endpoint-race",
        NginxAcceptQueueDropped = "nginx-accept-queue-dropped", KeepaliveRace = "keepalive-race",
        KeepaliveRaceOnShutdown = "keepalive-race-on-shutdown", FpmControlTimeoutZero = "fpm-control-timeout-zero",
        FpmAcceptQueueDropped = "fpm-accept-queue-dropped", FpmNotListening = "fpm-not-listening",
        NginxNotListening = "nginx-not-listening", UpstreamResponseInvalid = "upstream-response-invalid",
        PrestopFailed = "prestop-failed",
        SidecarGoneFirst = "sidecar-gone-first", FpmListenQueueFull = "fpm-listen-queue-full",
        FpmChildCrash = "fpm-child-crash", FpmChildKilled = "fpm-child-killed",
        FpmRequestTerminateTimeout = "fpm-request-terminate-timeout", PhpHardTimeout = "php-hard-timeout",
        FpmMaxRequestsReset = "fpm-max-requests-reset",
        OomKilled = "oom-killed", FpmPoolExhausted = "fpm-pool-exhausted",
        NginxWorkerCrash = "nginx-worker-crash", PodNetworkGone = "pod-network-gone",
        EphemeralPortsExhausted = "ephemeral-ports-exhausted", SynDrop = "syn-drop",
        ClientAbort = "client-abort", EdgeTimeout = "edge-timeout", RequesterReset = "requester-reset",
        DeliberateClose = "deliberate-close", Unexplained = "unexplained",
    }
}
impl Incident {
    /// The chain as it is read: the trigger first, then on to the loss, and last what came of it.
    pub fn told(&self) -> Vec<&Link> {
        let mut links: Vec<&Link> = self.chain.iter().rev().collect();
        links.sort_by_key(|link| link.offset_us > 0);
        links
    }
}

impl Cause {
    /// Recognised, never blamed on the server: reported only when asked for.
    pub fn not_the_server(self) -> bool {
        use Cause::{ClientAbort, DeliberateClose, EdgeTimeout, FpmPoolExhausted, RequesterReset, SynDrop};
        matches!(self, FpmPoolExhausted | ClientAbort | EdgeTimeout | RequesterReset | DeliberateClose | SynDrop)
    }
}
ids! {
    /// What set it off.
    Trigger {
        PodDeleted = "pod-deleted", ScaleDown = "scale-down", Rollout = "rollout", Eviction = "eviction",
        NodeShutdown = "node-shutdown", LivenessFailed = "liveness-failed", Oom = "oom",
        RuntimeStop = "runtime-stop", ManualSignal = "manual-signal", ConfigReload = "config-reload",
        Crash = "crash", IdleTimeout = "idle-timeout", Unknown = "unknown",
    }
}
ids! {
    Level { Certain = "certain", Likely = "likely", Possible = "possible" }
}

/// `count` is exact, or a lower bound where one connection can carry several requests unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    Exact,
    AtLeast,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    #[serde(rename = "type")]
    pub kind: String,
    pub schema: u32,
    pub id: String,
    pub rev: u32,
    /// `final`: a verdict is printed once its windows are over and does not change.
    pub state: String,
    pub node: String,
    pub boot_id: String,
    /// Wall time of the loss, RFC 3339 with ns.
    pub at: String,
    pub decided_at: String,
    /// The same on the boot clock, for joins with other events.
    pub at_boot_ns: BootNs,
    pub outcome: Outcome,
    pub mechanism: Mechanism,
    pub cause: Cause,
    pub sub_cause: Option<String>,
    pub trigger: Trigger,
    pub also_matched: Vec<Cause>,
    pub response: Response,
    pub requests: Requests,
    pub requester: Requester,
    pub server: Server,
    pub age_ms: Option<u64>,
    pub stop: Option<String>,
    pub pod: Option<Pod>,
    pub container: Option<Container>,
    pub confidence: Confidence,
    pub summary: String,
    pub chain: Vec<Link>,
    pub advice: Vec<Advice>,
    pub missing: Vec<Missing>,
    pub loss: Loss,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Only a status that was observed; never guessed.
    pub status: Option<u16>,
    /// `none`, `socket`, `nginx`, `log`.
    pub source: String,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    pub count: u32,
    pub bound: Bound,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// Null on AF_UNIX.
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
    /// `edge`, `probe`, `health-check`, `sidecar`, `unknown`.
    pub kind: String,
    /// Container id when the requester is on this node.
    pub container: Option<String>,
    /// Its pod.
    pub pod: Option<Pod>,
    /// How it is known to be the requester: `addresses`, `sequence-numbers`, `address-and-time` (then it is only probable, and
    /// named in the chain alone). Null: no record of the requesting end.
    pub known_by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Null on AF_UNIX, which has a path instead.
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
    /// Hostile: escape before printing.
    pub path: Option<String>,
    pub netns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub uid: String,
    pub workload: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub name: Option<String>,
    /// `docker`, `containerd`, `cri-o`, `podman`, or null when the path does not tell.
    pub runtime: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// 0..=1 in hundredths.
    pub value: f64,
    pub level: Level,
    /// Why it is not higher.
    pub lowered_by: Vec<String>,
}

/// One link of the chain, effect first. Each names its event and the rule that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub id: EventIdText,
    pub at: String,
    /// When it was heard of, where somebody else said it: `at` is by their clock then.
    pub seen_at: Option<String>,
    /// Milliseconds before (negative) or after the loss.
    pub offset_us: i64,
    pub kind: String,
    /// The event that this one follows from: the next link.
    pub because: Option<EventIdText>,
    pub rule: String,
    pub process: Option<ProcessRef>,
    pub text: String,
}

/// `e17`, `k3` for what the Kubernetes API said.
pub type EventIdText = String;

pub fn event_id_text(id: EventId) -> EventIdText {
    id.to_string()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// In its own pid namespace.
    pub pid: u32,
    pub host_pid: u32,
    pub comm: String,
    pub role: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    pub id: String,
    /// `dockerfile`, `pod-spec`, `nginx-conf`, `php-fpm-conf`, `supervisor-conf`, `edge`, `operator`, `why502`.
    pub kind: String,
    pub target: String,
    pub change: String,
    pub value: Option<u64>,
    pub unit: Option<String>,
    /// Ids of the other advice without which this one is not enough.
    pub needs: Vec<String>,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Stable id: `started-late`, `pod-spec`, `lost-events` …
    pub fact: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub in_window: u64,
    /// `hook/kind` → count.
    pub by_hook: BTreeMap<String, u64>,
}

/// One termination of a container, printed once at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    #[serde(rename = "type")]
    pub kind: String,
    pub schema: u32,
    pub id: String,
    pub node: String,
    pub boot_id: String,
    pub at: String,
    pub ended_at: String,
    pub trigger: Trigger,
    pub pod: Option<Pod>,
    pub container: Option<Container>,
    /// What was stopped: `nginx`, `php-fpm`, `other`.
    pub server: String,
    pub signal: Option<String>,
    pub phases: Vec<Phase>,
    pub timeline: Timeline,
    pub in_flight: InFlight,
    /// Connections that were established after the stop signal. Null: not counted.
    pub accepted_after: Option<After>,
    /// Connections that came when nobody listened any more. Null: this kernel does not tell of them.
    pub late: Option<After>,
    /// Null: not known.
    pub grace: Option<Grace>,
    pub incidents: u64,
    pub by_cause: BTreeMap<String, u64>,
    /// What together would have kept all of them.
    pub advice: Vec<Advice>,
    pub missing: Vec<Missing>,
}

/// What became of the requests that the server had when its container got the stop signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// `answered`, and those of `cut` that had come before the signal. Null: one of the two is not known.
    pub at_signal: Option<u64>,
    /// Null: not counted.
    pub answered: Option<u64>,
    /// Closed without an answer.
    pub cut: u64,
    /// The last of `answered` ended so long after the signal.
    pub drain_ms: Option<u64>,
    /// The longest request took at least so long.
    pub longest_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    pub count: u64,
    /// The last of them, after the stop signal (`accepted_after`), after the listener's close (`late`).
    pub last_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace {
    pub ms: u64,
    /// `deletion` as the pod was deleted with, `spec`, or `observed`: from the first phase to the SIGKILL.
    pub source: String,
    /// At the exit; negative when it came later.
    pub left_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// `deleted`, `evicted`, `node-shutdown`, `probe-failed`, `endpoint-unready`, `endpoints-removed`, `exec`, `prestop`, `container-signal`, `stop-signal`, `second-signal`, `listener-closed`, `last-accept`,
    /// `drain-end`, `last-worker-exit`, `exit`, `kill`.
    pub name: String,
    pub at: String,
    /// The same on the boot clock, which the incidents of this stop are on as well.
    pub at_boot_ns: BootNs,
    /// When it was over, for those that last (`exec`, `prestop`). Null: it does not last, or its end was not seen.
    pub until_boot_ns: Option<BootNs>,
    /// Since the first phase.
    pub after_ms: u64,
    pub event: Option<EventIdText>,
    pub text: String,
}

ids! {
    /// Where a process stands in the picture of a stop. `runtime`: a container runtime's process outside of every
    /// container; `init`: PID 1 of the container, where that is not the server, or a supervisor in it; `command`: a hook,
    /// a shell, somebody's exec in it; `other`: in another container, or not known where.
    Lane {
        Runtime = "runtime", Host = "host", Kernel = "kernel", Init = "init", Command = "command",
        NginxMaster = "nginx-master", NginxWorker = "nginx-worker",
        PhpFpmMaster = "php-fpm-master", PhpFpmChild = "php-fpm-child", Other = "other",
    }
}

/// Who told whom to stop, and who ended when: what the picture of a stop is drawn from, beside its phases and incidents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Stop signals to the server's master, its workers or children, and the container's PID 1, oldest first.
    pub signals: Vec<Sent>,
    /// Ends of the same processes.
    pub exits: Vec<Ended>,
    /// Signals and exits left out, because there were too many.
    pub cut: u64,
}

/// A signal, from whom to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub event: EventIdText,
    pub at_boot_ns: BootNs,
    pub signal: String,
    /// The target ignored it.
    pub ignored: bool,
    pub from: Party,
    pub to: Party,
}

/// The end of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub event: EventIdText,
    pub at_boot_ns: BootNs,
    pub who: Party,
    /// `exited with status 0`, `was killed by SIGKILL`.
    pub how: String,
}

/// A process, and its place in the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    pub lane: Lane,
    pub process: ProcessRef,
}
