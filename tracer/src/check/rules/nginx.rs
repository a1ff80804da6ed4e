//! How nginx takes its stop, and whether it has the time for it.

use super::super::command::Server;
use super::super::finding::Severity::{MayLose, WillLose};
use super::super::plan::{self, End, Plan, said, signal};
use super::super::setup::{Container, Hook};
use super::{Check, new, with_doubts};
use crate::explain::advice::LEAST_PRESTOP_S;
use crate::model::incident::Cause;

pub(super) fn check(check: &mut Check) {
    for container in check.setup.containers.iter().filter(|container| container.serves(Server::Nginx)) {
        let plan = plan::of(container, Server::Nginx);
        let is_proxy = check.pairs.iter().any(|pair| std::ptr::eq(pair.proxy, container));
        let unused = check.pairs.iter().any(|pair| std::ptr::eq(pair.app, container) && pair.proxy_goes_first());
        shutdown_timeout(check, container);
        // A proxy that outlives what is behind it has nothing left to lose.
        if is_proxy && container.sidecar {
            continue;
        }
        how(check, container, &plan);
        if check.setup.has_spec && !unused {
            too_early(check, container, &plan);
        }
        grace(check, container, &plan);
    }
}

fn how(check: &mut Check, container: &Container, plan: &Plan) {
    let found = match &plan.end {
        End::Fast { signal: number, .. } => {
            let stop = container.stop_signal.as_ref().filter(|s| s.number == *number);
            let by = match (&container.hook, stop) {
                (Hook::Does(effect), _) if effect.value.told.is_some() => {
                    format!("its preStop hook sends {}", signal(*number))
                }
                (_, Some(stop)) if container.supervisor.is_none() => format!("it is stopped with {}", said(stop)),
                _ => format!("supervisord stops it with {}", signal(*number)),
            };
            let why = format!("{by}, which nginx takes as \"drop everything now\": every request under way is cut");
            new(Cause::NginxFastShutdown, WillLose, why)
        }
        End::Overridden { quit, at, signal: number } => {
            let gap = at.saturating_sub(*quit);
            let longest = check.setup.longest.as_ref().map(|longest| longest.value);
            if longest.is_some_and(|longest| longest <= gap) {
                return;
            }
            let when = if gap == 0 { "at once".to_owned() } else { format!("{gap} s later") };
            let why = format!(
                "its preStop hook sends SIGQUIT and returns; {when} the runtime sends {}, which cuts the requests that nginx was finishing",
                signal(*number)
            );
            match longest {
                None if gap > 0 => new(Cause::QuitThenTerm, MayLose, why)
                    .missing("longest-request", format!("only requests longer than {gap} s are cut")),
                _ => new(Cause::QuitThenTerm, WillLose, why),
            }
        }
        End::Deaf { sure, why } => {
            let why = format!("{why}: the stop signal is thrown away, and SIGKILL comes when the grace period is over");
            // With a spec, endpoints are removed meanwhile: most of the traffic is elsewhere by then.
            let severity = if *sure && !check.setup.has_spec { WillLose } else { MayLose };
            new(Cause::Pid1IgnoresStopSignal, severity, why)
        }
        End::Left { why, .. } => {
            let why = format!("{why}: the kernel then kills nginx with all its requests");
            new(Cause::Pid1ExitedFirst, WillLose, why)
        }
        End::Killed { .. } => {
            new(Cause::ContainerKilled, WillLose, "its stop signal is SIGKILL, which cannot be handled".to_owned())
        }
        End::Graceful { .. } | End::Last | End::Unknown => return,
    };
    let found = with_doubts(found.at(plan.at.as_ref()), plan);
    check.found(Some(container), Server::Nginx, found);
}

/// The listener closes while others still send.
fn too_early(check: &mut Check, container: &Container, plan: &Plan) {
    // What a kill refuses, the kill has refused.
    if matches!(plan.end, End::Killed { .. } | End::Left { .. }) {
        return;
    }
    let Some(closes) = plan.end.closes_at().filter(|at| *at < LEAST_PRESTOP_S) else { return };
    let at = match &container.hook {
        Hook::Does(effect) => effect.at.clone(),
        _ => container.at.clone(),
    };
    let (when, severity) = match closes {
        0 => ("at once, without a preStop sleep".to_owned(), WillLose),
        s => (format!("{s} s after the deletion"), MayLose),
    };
    let race = format!(
        "nginx closes its listener {when}, while endpoints are still being removed: new connections are refused (less than {LEAST_PRESTOP_S} s is seldom enough)"
    );
    let kept = format!("nginx closes idle kept connections {when}: a request that is on its way to one is lost");
    let queued = format!("nginx closes its listener {when}: connections that it has not accepted yet are reset");
    for (cause, severity, why) in [
        (Cause::EndpointRace, severity, race),
        (Cause::KeepaliveRaceOnShutdown, MayLose, kept),
        (Cause::NginxAcceptQueueDropped, MayLose, queued),
    ] {
        let found = with_doubts(new(cause, severity, why).at(at.as_ref()), plan);
        check.found(Some(container), Server::Nginx, found);
    }
}

fn grace(check: &mut Check, container: &Container, plan: &Plan) {
    let (Some(grace), End::Graceful { at }) = (&check.setup.grace, &plan.end) else { return };
    let hook = match &container.hook {
        Hook::Does(effect) => effect.at.clone(),
        _ => None,
    };
    let (g, sleep) = (grace.value, *at);
    let longest = check.setup.longest.as_ref();
    let found = match longest {
        _ if sleep >= g => {
            let why = format!(
                "the preStop hook takes {sleep} s of a grace period of {g} s: nothing is left to finish requests before SIGKILL"
            );
            new(Cause::GracePeriodExceeded, WillLose, why)
        }
        Some(longest) if sleep.saturating_add(longest.value) >= g => {
            let sum = sleep.saturating_add(longest.value);
            let severity = if sum > g { WillLose } else { MayLose };
            let why = format!(
                "{sleep} s preStop + {} s longest request = {sum} s, and SIGKILL comes after {g} s (terminationGracePeriodSeconds)",
                longest.value
            );
            new(Cause::GracePeriodExceeded, severity, why)
        }
        None => match container.nginx.as_ref().and_then(|conf| conf.worker_shutdown_timeout.as_ref()) {
            Some(timeout) if sleep.saturating_mul(1000).saturating_add(timeout.value) > g.saturating_mul(1000) => {
                let why = format!(
                    "{sleep} s preStop + {} of worker_shutdown_timeout, which requests are to have for their end, is more than {g} s (terminationGracePeriodSeconds): SIGKILL comes before",
                    shown(timeout.value)
                );
                let left = format!("only requests longer than {} s are cut", g - sleep);
                new(Cause::GracePeriodExceeded, MayLose, why).missing("longest-request", left)
            }
            _ => return,
        },
        _ => return,
    };
    let at = grace.at.clone().or(hook);
    let found = with_doubts(found.at(at.as_ref()), plan);
    check.found(Some(container), Server::Nginx, found);
}

fn shown(ms: u64) -> String {
    if ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}

/// Holds for reloads as well.
fn shutdown_timeout(check: &mut Check, container: &Container) {
    let Some(conf) = &container.nginx else { return };
    let Some(timeout) = &conf.worker_shutdown_timeout else { return };
    let cut = format!("worker_shutdown_timeout closes what is open {} after SIGQUIT or a reload", shown(timeout.value));
    let found = match (&check.setup.longest, &conf.upstream_silence) {
        (Some(longest), _) if longest.value.saturating_mul(1000) <= timeout.value => return,
        (Some(longest), _) => {
            let why = format!("{cut}, and the longest request takes {} s", longest.value);
            new(Cause::WorkerShutdownTimeout, WillLose, why)
        }
        (None, Some(silence)) if silence.value.saturating_mul(1000) > timeout.value => {
            let why = format!("{cut}, and upstreams may take {} s to answer (their read timeout)", silence.value);
            new(Cause::WorkerShutdownTimeout, MayLose, why)
                .missing("longest-request", format!("only requests longer than {} are cut", shown(timeout.value)))
        }
        _ => return,
    };
    let at = timeout.at.clone();
    check.found(Some(container), Server::Nginx, found.at(at.as_ref()));
}
