//! nginx and php-fpm under one supervisord.

use super::super::command::{Pid1, Server};
use super::super::finding::Severity::{MayLose, WillLose};
use super::{Check, new};
use crate::model::incident::Cause;

pub(super) fn check(check: &mut Check) {
    for container in check.setup.containers.iter().filter(|container| container.pid1.value == Pid1::Supervisor) {
        let Some(conf) = &container.supervisor else { continue };
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
