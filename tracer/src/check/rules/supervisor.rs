//! nginx and php-fpm under one supervisord.

use super::super::command::{Pid1, Server};
use super::super::finding::Severity::{MayLose, WillLose};
use super::super::setup::Container;
use super::super::supervisor::Program;
use super::{Check, Finding, new};
use crate::model::incident::Cause;

const SIGQUIT: u32 = 3;

pub(super) fn check(check: &mut Check) {
    for container in check.setup.containers.iter().filter(|container| container.pid1.value == Pid1::Supervisor) {
        let Some(conf) = &container.supervisor else { continue };
        if let Some(nginx) = conf.program(Server::Nginx) {
            too_short(check, container, nginx);
        }
        if let Some(fpm) = conf.program(Server::PhpFpm) {
            fpm_too_short(check, container, conf.program(Server::Nginx), fpm);
        }
        let (Some(nginx), Some(fpm)) = (conf.program(Server::Nginx), conf.program(Server::PhpFpm)) else { continue };
        let found = if fpm.stops_with(nginx) {
            let why = format!(
                "supervisord stops {} and {} at once, as programs of the group {}: php-fpm may be gone while nginx still needs it",
                fpm.name, nginx.name, fpm.group
            );
            new(Cause::SupervisorStopOrder, MayLose, why)
        } else if fpm.stops_before(nginx) {
            let (f, n) = (fpm.group_priority.value, nginx.group_priority.value);
            let how = if f == n {
                format!("both have priority {f}, so the later name goes first")
            } else {
                format!("priority {f} against {n}")
            };
            let why = format!(
                "supervisord stops {} before {}, and waits for it ({how}): nginx goes on taking requests that nobody answers",
                fpm.name, nginx.name
            );
            new(Cause::SupervisorStopOrder, WillLose, why)
        } else {
            continue;
        };
        let at = fpm.group_priority.at.clone().or_else(|| Some(fpm.at.clone()));
        check.found(Some(container), Server::PhpFpm, found.at(at.as_ref()));
    }
}

/// supervisord kills what has not ended when stopwaitsecs are over.
fn too_short(check: &mut Check, container: &Container, nginx: &Program) {
    let wait = &nginx.stop_wait;
    let Some(longest) = check.setup.longest.as_ref().filter(|longest| longest.value > wait.value) else { return };
    if nginx.stop_signal.value != SIGQUIT {
        return; // dropped at once
    }
    let said = if wait.at.is_some() { "" } else { ", the default" };
    let why = format!(
        "supervisord kills {} {} s after its stop signal (stopwaitsecs{said}), and the longest request takes {} s",
        nginx.name, wait.value, longest.value
    );
    let at = wait.at.clone().unwrap_or_else(|| nginx.at.clone());
    // Only the master is killed (killasgroup is off by default): its workers go on, until php-fpm is told, or supervisord
    // has ended.
    let fpm = container.supervisor.as_ref().and_then(|conf| conf.program(Server::PhpFpm));
    let next = fpm.filter(|fpm| nginx.stops_before(fpm) && fpm.stop_signal.value == SIGQUIT);
    let timeout = check.setup.fpm.as_ref().map(|conf| conf.control_timeout.as_ref().map_or(0, |timeout| timeout.value));
    let cut_by_php = next.is_some() && timeout == Some(0);
    if cut_by_php {
        let why = format!("{why}: its workers go on, but php-fpm is stopped then, and ends its busy children at once");
        let at = check.setup.fpm.as_ref().and_then(|conf| match &conf.control_timeout {
            Some(timeout) => timeout.at.clone(),
            None => conf.file.clone(),
        });
        let found = new(Cause::FpmControlTimeoutZero, WillLose, why).at(at.as_ref());
        check.found(Some(container), Server::PhpFpm, found);
    }
    // They may well have finished when php-fpm's own time is over as well.
    let last = next.map_or(0, |fpm| fpm.stop_wait.value.min(timeout.unwrap_or(0)));
    let outlasts = nginx.kill_as_group || longest.value > wait.value.saturating_add(last);
    let severity = if outlasts && !cut_by_php && !(next.is_some() && timeout.is_none()) { WillLose } else { MayLose };
    let found = new(Cause::GracePeriodExceeded, severity, why).at(Some(&at));
    check.found(Some(container), Server::Nginx, Finding { sub_cause: Some("stopwaitsecs".into()), ..found });
}

/// The same for php-fpm, as long as nginx may still wait for its answers.
fn fpm_too_short(check: &mut Check, container: &Container, nginx: Option<&Program>, fpm: &Program) {
    let gone = nginx.is_some_and(|nginx| nginx.stops_before(fpm));
    if gone || fpm.stop_signal.value != SIGQUIT {
        return;
    }
    let timeout = check.setup.fpm.as_ref().and_then(|conf| conf.control_timeout.as_ref()).map_or(0, |t| t.value);
    let wait = &fpm.stop_wait;
    if timeout <= wait.value {
        return; // by then php-fpm itself has ended whoever was busy
    }
    let said = if wait.at.is_some() { "" } else { ", the default" };
    let why = format!(
        "supervisord kills {} {} s after its stop signal (stopwaitsecs{said}), and process_control_timeout would let requests finish for {timeout} s",
        fpm.name, wait.value
    );
    let found = match &check.setup.longest {
        Some(longest) if longest.value <= wait.value => return,
        // Without killasgroup the children outlive their master, until supervisord has ended.
        Some(longest) => {
            let severity = if fpm.kill_as_group { WillLose } else { MayLose };
            new(Cause::GracePeriodExceeded, severity, format!("{why}; the longest takes {} s", longest.value))
        }
        None => new(Cause::GracePeriodExceeded, MayLose, why)
            .missing("longest-request", format!("only requests longer than {} s are cut", wait.value)),
    };
    let at = wait.at.clone().unwrap_or_else(|| fpm.at.clone());
    let found = Finding { sub_cause: Some("stopwaitsecs".into()), ..found.at(Some(&at)) };
    check.found(Some(container), Server::PhpFpm, found);
}
