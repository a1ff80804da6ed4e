//! Connections that the pod closes while its edge still uses them, stop or no stop.

use super::super::command::Server;
use super::super::finding::Severity::MayLose;
use super::super::setup::Container;
use super::{Check, new};
use crate::model::incident::Cause;

pub(super) fn check(check: &mut Check) {
    for container in check.setup.containers.iter().filter(|container| container.serves(Server::Nginx)) {
        of(check, container);
    }
}

fn of(check: &mut Check, container: &Container) {
    let Some(conf) = &container.nginx else { return };
    let edge = check.setup.edge_idle;
    // 0 keeps no connection: nothing can race.
    for idle in conf.idle.iter().filter(|idle| (1..=edge).contains(&idle.seconds.value)) {
        let s = idle.seconds.value;
        let why = format!(
            "nginx closes kept connections that were idle for {s} s (keepalive_timeout), and an edge may still use them until {edge} s: a request can meet the close"
        );
        let found = new(Cause::KeepaliveRace, MayLose, why);
        check.found(Some(container), Server::Nginx, found.at(idle.seconds.at.as_ref()));
    }
}
