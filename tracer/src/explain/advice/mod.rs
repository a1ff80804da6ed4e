//! What to change, as sets: applied together they remove the loss, so whatever an advice needs is in its set. Values are
//! computed from what was seen, and say so: one stop is a sample. tests/tests/advice.rs applies each set and plays the
//! scenario again.

mod child;
mod items;

use super::server::{Kind, Server};
use super::{View, incident, kube, oom, said};
use crate::correlate::history::sig;
use crate::correlate::lost::{Evidence, Lost};
use crate::correlate::nginx::Came;
use crate::correlate::stops::{Range, shared};
use crate::identity::{ContainerInfo, Process};
use crate::model::BootNs;
use crate::model::event::TICK_NS;
use crate::model::incident::{Advice, Cause};
use items as item;

/// A preStop sleep is never shorter: endpoints are removed within seconds, but not at once.
pub const LEAST_PRESTOP_S: u64 = 5;
/// Added to the last connection that came too late.
const PRESTOP_MARGIN_S: u64 = 1;
/// Who still comes after this time does not wait for endpoints to be removed: more sleep would not help.
const LONGEST_LATE_MS: u64 = 30_000;
/// A process that ended so shortly before a loss was there with it.
const AROUND_NS: u64 = 1_000_000_000;
/// Between the end of the longest request and whatever would cut it.
const MARGIN_S: u64 = 5;

/// What the values come from. All of it may be unknown: then an advice has no value, or the least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub kind: Option<Kind>,
    /// nginx was asked by TERM or INT, its fast shutdown.
    pub fast: bool,
    /// The kubelet stopped this container and not its pod, because a probe of it failed.
    pub probe: bool,
    /// Nobody asked the server to stop, but its workers were replaced.
    pub reload: bool,
    /// Ages, in ms, of the requests that were cut.
    pub cut: Range,
    /// Requests that were in flight at the signal and answered, and the last of them in ms after it.
    pub answered: u64,
    pub answered_ms: Option<u64>,
    /// How long the longest request takes, in ms, where the user has said it.
    pub known_ms: Option<u64>,
    /// Connections that came after the listener's close, in ms after it.
    pub late: Range,
    /// When the last of them came, and what the API said of the pod's deletion and its services.
    pub endpoints: Option<Endpoints>,
    /// What the pod's preStop hook sleeps already.
    pub pre_stop_s: u64,
    /// The pod's grace period as it is now, from its spec.
    pub grace_s: Option<u64>,
    /// The timeout that ran out.
    pub timeout_s: u64,
    /// What had come of an answer that nginx did not take.
    pub came: Option<Came>,
    /// How old the child was that ended, in ms.
    pub child_ms: Option<u64>,
    /// The container's memory limit that a process was killed at, bytes, and php-fpm's children at that time.
    pub memory: Option<(u64, u64)>,
}

/// How the pod left its services, beside the last connection that came too late. All in ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// `EndpointSlice shop/web-x7k2p`
    pub slice: String,
    /// After the deletion, which the API tells to a second.
    pub left_ms: u64,
    /// After the deletion as well.
    pub last_ms: u64,
}

impl Endpoints {
    /// `None` where the API did not say, or nobody came too late.
    fn of(container: Option<&ContainerInfo>, last_late: BootNs, view: &View) -> Option<Self> {
        let pod = view.pods.of(&container?.container)?;
        let deleted = pod.deleted_by()?;
        let left = pod.left()?.fact;
        // Nobody came too late, or before the pod was deleted.
        let last_ms = last_late.checked_sub(deleted)? / 1_000_000;
        Some(Endpoints {
            slice: left.what.slice.clone(),
            left_ms: left.at.saturating_sub(deleted) / 1_000_000,
            last_ms,
        })
    }
}

impl Facts {
    pub fn of(lost: &Lost, server: &Server, view: &View) -> Self {
        let seen = server.master.and_then(|m| view.stops.seen(&m)).copied().unwrap_or_default();
        let mut facts = Facts { kind: Some(server.kind), cut: seen.cut, late: seen.late, ..Facts::default() };
        facts.pre_stop_s = seen.pre_stop_s;
        if facts.cut.n == 0
            && lost.cut_in_flight()
            && let Some(age) = lost.age_ms
        {
            facts.cut.add(age);
        }
        let container = incident::container(lost, server, view);
        facts.grace_s = said::grace_s(container, view);
        facts.endpoints = Endpoints::of(container, seen.last_late, view);
        if let Some((master, counted)) = server.master.and_then(|m| Some((m, view.stops.counted(&m)?)))
            && !shared(&master, counted, view)
        {
            facts.answered = counted.answered_after;
            facts.answered_ms = counted.last_answered.map(|t| t.saturating_sub(counted.signal_at) / 1_000_000);
        }
        if let Evidence::ErrorMade(made) = &lost.evidence {
            facts.came = made.failed.upstream.map(|(_, came)| came);
        }
        if matches!(lost.evidence, Evidence::ThrownAway(_)) && !server.is_master {
            let born = server.process.map(|p| p.start_ticks * TICK_NS);
            facts.child_ms = born.map(|born| lost.at.saturating_sub(born) / 1_000_000);
        }
        facts.memory = memory(lost, server, view);
        let asked = server.stop_signals(view, lost.at);
        facts.fast = asked.iter().any(|s| matches!(s.what.signal, sig::TERM | sig::INT));
        facts.probe = asked.iter().any(|s| kube::container_ends(s, view));
        facts.reload = asked.is_empty() && server.told_to_end(view, lost.at);
        if let Some(told) = server.told_to_drain(view, lost.at) {
            facts.timeout_s = (lost.at - told.at + 500_000_000) / 1_000_000_000;
        }
        facts
    }

    /// Seconds of nginx's preStop sleep: until after the last connection that came too late.
    fn pre_stop(&self) -> u64 {
        let late = match self.late.n {
            0 => 0,
            _ => self.late.max.min(LONGEST_LATE_MS).div_ceil(1000) + PRESTOP_MARGIN_S,
        };
        // Counted from the deletion, where that is known: the hook begins with it.
        let from_deletion =
            self.endpoints.as_ref().map_or(0, |e| e.last_ms.min(LONGEST_LATE_MS).div_ceil(1000) + PRESTOP_MARGIN_S);
        LEAST_PRESTOP_S.max(self.pre_stop_s + late).max(from_deletion)
    }

    /// The longest request that was seen.
    fn longest(&self) -> Option<Longest> {
        let whole = |ms: u64| ms.div_ceil(1000).max(1);
        if let Some(ms) = self.known_ms {
            return Some(Longest { seconds: whole(ms), cut: false });
        }
        let cut = (self.cut.n > 0).then(|| whole(self.cut.max));
        match (cut, self.answered_ms.map(whole)) {
            (Some(cut), Some(answered)) if answered >= 2 * cut => Some(Longest { seconds: answered, cut: false }),
            (Some(cut), _) => Some(Longest { seconds: cut, cut: true }),
            (None, answered) => answered.map(|seconds| Longest { seconds, cut: false }),
        }
    }

    /// The requests that [`longest`](Self::longest) is of.
    fn requests(&self) -> String {
        if self.known_ms.is_some() {
            return "The longest request is as it was given.".into();
        }
        let mut parts = Vec::new();
        if self.cut.n > 0 {
            parts.push(format!("n={} cut when {} s old", self.cut.n, seconds(self.cut)));
        }
        if let Some(ms) = self.answered_ms.filter(|_| self.answered > 0) {
            let s = ms as f64 / 1000.0;
            parts.push(format!("n={} answered, the last {s:.1} s after the signal", self.answered));
        }
        match parts.is_empty() {
            true => "No request was seen whose length is known.".into(),
            false => format!("Requests seen in this stop: {}.", parts.join(", ")),
        }
    }

    /// The connections that [`pre_stop`](Self::pre_stop) is of.
    fn connections(&self) -> String {
        let seen = self.late_connections();
        let Some(e) = self.endpoints.as_ref().filter(|_| self.late.n > 0) else { return seen };
        let s = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
        let after = match e.last_ms.checked_sub(e.left_ms) {
            Some(ms) => format!("{} after that", s(ms)),
            None => format!("{} before that", s(e.left_ms - e.last_ms)),
        };
        format!(
            "{seen} The pod left {} {} after its deletion; the last connection came {after}.",
            e.slice,
            s(e.left_ms)
        )
    }

    fn late_connections(&self) -> String {
        match self.late.n {
            0 => format!("No late connection was seen yet: {LEAST_PRESTOP_S} s is the least."),
            n => format!(
                "Late connections seen in this stop: n={n}, {} s after the listener's close.",
                seconds(self.late)
            ),
        }
    }
}

/// See [`Facts::memory`].
fn memory(lost: &Lost, server: &Server, view: &View) -> Option<(u64, u64)> {
    let victims = [server.process, server.master].into_iter().flatten();
    let limit = victims.filter_map(|key| oom::container_limit(&key, lost.at, view)).next()?;
    let there = |p: &&Process| p.exited.is_none_or(|e| e.at.saturating_add(AROUND_NS) >= lost.at);
    let born = |p: &&Process| p.born.is_none_or(|born| born < lost.at);
    let children = server.master.map_or(0, |m| view.table.children(&m).filter(there).filter(born).count());
    Some((limit, children as u64))
}

/// `0.4–3.1`, from milliseconds.
fn seconds(range: Range) -> String {
    let [min, max] = [range.min, range.max].map(|ms| format!("{:.1}", ms as f64 / 1000.0));
    if min == max { max } else { format!("{min}–{max}") }
}

#[derive(Clone, Copy, Debug)]
struct Longest {
    seconds: u64,
    /// It was not finished: its length is not known, and twice what was seen is taken for it.
    cut: bool,
}

impl Longest {
    fn needs(self) -> u64 {
        self.seconds * if self.cut { 2 } else { 1 }
    }

    /// A term of a sum.
    fn term(self) -> String {
        match self.cut {
            true => format!("2 x {} s longest request (it was cut)", self.seconds),
            false => format!("{} s longest request", self.seconds),
        }
    }
}

/// The set for a cause.
pub fn of(cause: Cause, sub_cause: Option<&str>, f: &Facts) -> Vec<Advice> {
    let set = of_a_pod(cause, sub_cause, f);
    if f.probe && !set.is_empty() { of_a_container(set, f) } else { set }
}

/// The set where a container is stopped alone: whatever gives others the time to go elsewhere is in vain.
fn of_a_container(mut set: Vec<Advice>, f: &Facts) -> Vec<Advice> {
    const IN_VAIN: [&str; 4] = ["prestop-sleep", "nginx-stops-first", "replace-not-restart", "edge-retry-idempotent"];
    set.retain(|a| !IN_VAIN.contains(&&*a.id));
    for advice in set.iter_mut().filter(|a| a.id == "grace-period") {
        *advice = item::grace_after(f, f.pre_stop_s, "preStop");
    }
    if set.iter().all(|a| a.id == "grace-period") {
        // It was for the sleeps.
        set.clear();
    }
    set.insert(0, item::liveness_probe());
    set.push(item::edge_retry_elsewhere());
    let ids: Vec<String> = set.iter().map(|a| a.id.clone()).collect();
    set.iter_mut().for_each(|a| a.needs.retain(|needed| ids.contains(needed)));
    set
}

fn of_a_pod(cause: Cause, sub_cause: Option<&str>, f: &Facts) -> Vec<Advice> {
    let fpm = f.kind == Some(Kind::PhpFpm);
    match cause {
        Cause::NginxFastShutdown | Cause::QuitThenTerm => graceful_nginx(f),
        Cause::EndpointRace | Cause::NginxAcceptQueueDropped if f.fast => graceful_nginx(f),
        Cause::EndpointRace | Cause::NginxAcceptQueueDropped => open_until_unused(f),
        Cause::KeepaliveRaceOnShutdown => {
            let mut set = if f.fast { graceful_nginx(f) } else { open_until_unused(f) };
            set.extend([item::edge_retry(), item::keepalive_min_timeout()]);
            set
        }
        Cause::KeepaliveRace if f.reload => vec![item::edge_retry(), item::keepalive_min_timeout()],
        Cause::KeepaliveRace => vec![item::keepalive_timeout(), item::edge_keepalive_timeout()],
        Cause::WorkerShutdownTimeout if sub_cause == Some("reload") => vec![item::worker_shutdown_timeout(f, false)],
        Cause::WorkerShutdownTimeout => vec![item::worker_shutdown_timeout(f, true), item::grace(f)],
        Cause::GracePeriodExceeded if sub_cause == Some("stopwaitsecs") => vec![item::stopwaitsecs(f), item::grace(f)],
        Cause::GracePeriodExceeded if sub_cause == Some("process-control-timeout") => {
            [vec![item::control_timeout(f)], fpm_outlives_nginx(f)].concat()
        }
        // What php-fpm is asked by nginx after nginx's own preStop sleep counts as well.
        Cause::GracePeriodExceeded if fpm => fpm_outlives_nginx(f),
        Cause::GracePeriodExceeded => vec![item::grace(f)],
        Cause::ContainerKilled => [vec![item::stop_before_kill()], graceful(f, fpm)].concat(),
        // What made it crash is not seen: no change of the stop would have kept the request.
        Cause::Pid1ExitedFirst if matches!(sub_cause, Some("crashed" | "exited")) => ended(fpm),
        Cause::Pid1IgnoresStopSignal | Cause::Pid1ExitedFirst => {
            let left = cause == Cause::Pid1ExitedFirst;
            [vec![item::exec_in_entrypoint(fpm, left)], graceful(f, fpm)].concat()
        }
        Cause::PrestopFailed => [vec![item::prestop_command()], graceful(f, fpm)].concat(),
        Cause::SidecarGoneFirst => [vec![item::native_sidecar()], graceful_nginx(f)].concat(),
        Cause::NginxNotListening if sub_cause == Some("restarting") => {
            let replaced = if f.fast { graceful_nginx(f) } else { open_until_unused(f) };
            [vec![item::replace_not_restart(f.fast)], replaced].concat()
        }
        Cause::NginxNotListening => ended(false),
        Cause::FpmControlTimeoutZero => [vec![item::control_timeout(f)], fpm_outlives_nginx(f)].concat(),
        Cause::FpmFastShutdown => graceful_fpm(f),
        Cause::FpmNotListening if sub_cause == Some("not-started") => vec![item::start_fpm_first()],
        Cause::FpmNotListening if matches!(sub_cause, Some("crashed" | "exited")) => ended(true),
        Cause::FpmAcceptQueueDropped | Cause::FpmNotListening => fpm_outlives_nginx(f),
        Cause::FpmListenQueueFull => vec![item::max_children(), item::listen_backlog()],
        Cause::FpmChildCrash => vec![child::find_the_crash(sub_cause == Some("exited"))],
        Cause::FpmChildKilled => vec![child::leave_children_alone()],
        Cause::FpmRequestTerminateTimeout => vec![child::terminate_timeout(f)],
        Cause::PhpHardTimeout => vec![child::hard_timeout()],
        Cause::FpmMaxRequestsReset => vec![child::no_kept_connections(f)],
        Cause::OomKilled => child::memory(sub_cause, f),
        Cause::NginxWorkerCrash if sub_cause == Some("killed") => vec![item::signal_the_master(), item::edge_retry()],
        Cause::NginxWorkerCrash => vec![item::find_the_crash(), item::edge_retry()],
        Cause::EphemeralPortsExhausted => vec![item::upstream_keepalive(), item::port_range(), item::fpm_socket()],
        Cause::PodNetworkGone => vec![item::fresh_addresses(), item::edge_retry_elsewhere()],
        Cause::SupervisorStopOrder => {
            let order = [item::supervisor_priority(), item::stopwaitsecs(f)];
            [order.to_vec(), open_until_unused(f)].concat()
        }
        Cause::UpstreamResponseInvalid if sub_cause == Some("header-too-big") => vec![item::upstream_buffer_size(f)],
        Cause::UpstreamResponseInvalid => vec![item::valid_answer(sub_cause)],
        Cause::FpmPoolExhausted
        | Cause::SynDrop
        | Cause::ClientAbort
        | Cause::EdgeTimeout
        | Cause::RequesterReset
        | Cause::DeliberateClose
        | Cause::Unexplained => Vec::new(),
    }
}

/// A server that ended by itself.
fn ended(fpm: bool) -> Vec<Advice> {
    match fpm {
        true => vec![item::keep_fpm_up(), item::edge_retry_elsewhere()],
        false => vec![item::keep_nginx_up(), item::readiness(), item::edge_retry_elsewhere()],
    }
}

fn graceful(f: &Facts, fpm: bool) -> Vec<Advice> {
    if fpm { graceful_fpm(f) } else { graceful_nginx(f) }
}

fn graceful_nginx(f: &Facts) -> Vec<Advice> {
    [vec![item::stopsignal()], open_until_unused(f)].concat()
}

fn open_until_unused(f: &Facts) -> Vec<Advice> {
    vec![item::prestop_sleep(f), item::grace(f)]
}

fn graceful_fpm(f: &Facts) -> Vec<Advice> {
    [vec![item::fpm_stopsignal(), item::control_timeout(f)], fpm_outlives_nginx(f)].concat()
}

fn fpm_outlives_nginx(f: &Facts) -> Vec<Advice> {
    vec![item::nginx_stops_first(f), item::prestop_sleep(f), item::fpm_grace(f)]
}

/// Adds a set to another one. Of two with one id the greater value stays, and of equal ones the later, whose sample is
/// larger.
pub fn merge(all: &mut Vec<Advice>, more: &[Advice]) {
    for new in more {
        match all.iter_mut().find(|old| old.id == new.id) {
            Some(old) if new.value >= old.value => *old = new.clone(),
            Some(_) => {}
            None => all.push(new.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
