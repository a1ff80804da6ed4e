//! What can be lost, one file per family. A rule says nothing about what it does not know: that goes to `not_checked`.

mod fpm;
mod keepalive;
mod nginx;
mod prestop;
mod sidecar;
mod supervisor;

use super::command::Server;
use super::finding::{Finding, Report, Severity};
use super::plan::{self, End, Plan};
use super::setup::{Container, Hook, Setup};
use crate::explain::advice;
use crate::explain::server::Kind;
use crate::model::incident::{Cause, Missing};

/// What the rules look at, and where they say what they find.
struct Check<'a> {
    setup: &'a Setup,
    /// What clients' requests end up at: of a proxy and the nginx behind it, the latter.
    nginx: Option<(&'a Container, Plan)>,
    pairs: Vec<sidecar::Pair<'a>>,
    fpm: Option<(&'a Container, Plan)>,
    report: Report,
}

/// All rules over one pod.
pub fn check(setup: &Setup) -> Report {
    let planned = |container, server| (container, plan::of(container, server));
    let pairs = sidecar::pairs(setup);
    let serving = || setup.containers.iter().filter(|c| c.serves(Server::Nginx));
    let last = serving().find(|c| !pairs.iter().any(|pair| std::ptr::eq(pair.proxy, *c))).or(serving().next());
    let nginx = last.map(|container| planned(container, Server::Nginx));
    let fpm = setup.of(Server::PhpFpm).map(|container| planned(container, Server::PhpFpm));
    let mut check = Check { setup, nginx, pairs, fpm, report: Report::default() };
    prestop::check(&mut check);
    nginx::check(&mut check);
    sidecar::check(&mut check);
    supervisor::check(&mut check);
    fpm::check(&mut check);
    keepalive::check(&mut check);
    check.what_is_missing();
    let mut report = check.report;
    report.findings.sort_by_key(|finding| finding.severity);
    report
}

impl Check<'_> {
    /// Fills in whose it is, and what to change.
    fn found(&mut self, of: Option<&Container>, server: Server, finding: Finding) {
        let facts = self.facts(server);
        let advice = advice::of(finding.cause, finding.sub_cause.as_deref(), &facts);
        let workload = self.setup.workload.clone();
        let container = of.map(|container| container.name.clone()).filter(|name| !name.is_empty());
        let finding = Finding { advice, workload, container, ..finding };
        // Two causes of one kind in one place are one thing to change.
        let same = |known: &Finding| {
            (known.cause, &known.sub_cause, &known.at, &known.container)
                == (finding.cause, &finding.sub_cause, &finding.at, &finding.container)
        };
        if !self.report.findings.iter().any(same) {
            self.report.findings.push(finding);
        }
    }

    fn facts(&self, server: Server) -> advice::Facts {
        let slept = |container: &Container| match &container.hook {
            Hook::Does(effect) if effect.value.told.is_none() => effect.value.before,
            _ => 0,
        };
        let end = self.nginx.as_ref().map(|(_, plan)| &plan.end);
        let served = self.nginx.as_ref().map(|(container, _)| *container);
        let timeout = served.and_then(|c| c.nginx.as_ref()?.worker_shutdown_timeout.as_ref());
        advice::Facts {
            kind: Some(match server {
                Server::Nginx => Kind::Nginx,
                Server::PhpFpm => Kind::PhpFpm,
            }),
            fast: matches!(end, Some(End::Fast { .. } | End::Overridden { .. })),
            known_ms: self.setup.longest.as_ref().map(|longest| longest.value.saturating_mul(1000)),
            grace_s: self.setup.grace.as_ref().map(|grace| grace.value),
            pre_stop_s: served.map_or(0, slept),
            timeout_s: timeout.map_or(0, |timeout| timeout.value / 1000),
            ..advice::Facts::default()
        }
    }

    fn not_checked(&mut self, fact: &str, effect: impl Into<String>) {
        let missing = Missing { fact: fact.into(), effect: effect.into() };
        if !self.report.not_checked.contains(&missing) {
            self.report.not_checked.push(missing);
        }
    }

    fn what_is_missing(&mut self) {
        let setup = self.setup;
        if setup.containers.is_empty() {
            self.not_checked("server", "neither nginx nor php-fpm was found in what was given");
            return;
        }
        if !setup.has_spec {
            let what = "preStop hooks and the grace period: endpoint-race, prestop-failed, quit-then-term, grace-period-exceeded";
            self.not_checked("pod-spec", what);
        }
        for (planned, server) in [(self.nginx.clone(), "nginx"), (self.fpm.clone(), "php-fpm")] {
            let Some((container, plan)) = planned.filter(|(_, plan)| plan.end == End::Unknown) else { continue };
            let name = label(server, container);
            for missing in plan.missing.iter().filter(|m| m.fact != "pod-spec") {
                self.not_checked(&missing.fact, format!("how {name} is stopped: {}", missing.effect));
            }
        }
        let serving = || setup.containers.iter().filter(|c| c.serves(Server::Nginx));
        if serving().any(|container| container.nginx.is_none()) {
            self.not_checked("nginx-conf", "worker-shutdown-timeout, keepalive-race");
        }
        if setup.of(Server::PhpFpm).is_some() && setup.fpm.is_none() {
            self.not_checked("php-fpm-conf", "fpm-control-timeout-zero, fpm-listen-queue-full");
        }
        let included = serving()
            .map(|container| container.nginx.as_ref().map(|conf| &conf.missing))
            .chain([
                setup.fpm.as_ref().map(|conf| &conf.missing),
                setup.containers.iter().find_map(|c| c.supervisor.as_ref()).map(|conf| &conf.missing),
            ])
            .collect::<Vec<Option<&Vec<String>>>>();
        for files in included.into_iter().flatten().filter(|files| !files.is_empty()) {
            self.not_checked("included-files", files.join(", "));
        }
        if setup.longest.is_none() {
            let what = "whether the grace period and the timeouts are long enough for it (--longest-request SECONDS)";
            self.not_checked("longest-request", what);
        }
    }
}

fn label(server: &str, container: &Container) -> String {
    if container.name.is_empty() { server.to_owned() } else { format!("{server} (container {})", container.name) }
}

/// What a plan did not know belongs to everything that follows from it.
fn with_doubts(mut finding: Finding, plan: &Plan) -> Finding {
    finding.missing.extend(plan.missing.iter().cloned());
    if plan.missing.iter().any(|missing| missing.fact == "prestop-effect") {
        finding.severity = Severity::MayLose;
    }
    finding
}

fn new(cause: Cause, severity: Severity, summary: String) -> Finding {
    Finding::new(cause, severity, summary)
}

#[cfg(test)]
mod tests;
