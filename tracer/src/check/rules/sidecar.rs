//! A proxy of the pod that is stopped before the nginx behind it.

use super::super::command::Server;
use super::super::finding::Severity::WillLose;
use super::super::plan::{self, End, Plan};
use super::super::setup::{Container, Setup};
use super::{Check, new, with_doubts};
use crate::model::incident::Cause;
use crate::model::place::Place;

/// An nginx that passes requests on to another one of its pod.
pub(super) struct Pair<'a> {
    pub proxy: &'a Container,
    pub app: &'a Container,
    port: u16,
    /// The `proxy_pass`.
    at: Option<Place>,
    proxy_end: Plan,
    app_end: Plan,
}

/// What is known to be one: the proxy's configuration names a port of the pod on which the other one listens.
pub(super) fn pairs(setup: &Setup) -> Vec<Pair<'_>> {
    let serving = || setup.containers.iter().filter(|container| container.serves(Server::Nginx));
    let mut found = Vec::new();
    for proxy in serving() {
        let passes = proxy.nginx.iter().flat_map(|conf| &conf.passes);
        for app in serving().filter(|app| !std::ptr::eq(*app, proxy)) {
            let listens = |port: &u16| {
                app.ports.contains(port) || app.nginx.as_ref().is_some_and(|conf| conf.listens.contains(port))
            };
            let Some(pass) = passes.clone().find(|pass| listens(&pass.value)) else { continue };
            found.push(Pair {
                proxy,
                app,
                port: pass.value,
                at: pass.at.clone(),
                proxy_end: plan::of(proxy, Server::Nginx),
                app_end: plan::of(app, Server::Nginx),
            });
        }
    }
    found
}

impl Pair<'_> {
    /// Seconds from the deletion to the end of the proxy's listener, when the other one is not told before or with it.
    fn first(&self) -> Option<u64> {
        if self.proxy.sidecar && !self.app.sidecar {
            return None;
        }
        let proxy = self.proxy_end.end.closes_at()?;
        let later = match &self.app_end.end {
            End::Deaf { .. } => true,
            // It is told when the containers before it are gone.
            _ if self.app.sidecar && !self.proxy.sidecar => true,
            end => end.closes_at()? > proxy,
        };
        later.then_some(proxy)
    }

    pub fn proxy_goes_first(&self) -> bool {
        self.first().is_some()
    }
}

pub(super) fn check(check: &mut Check) {
    let pairs = std::mem::take(&mut check.pairs);
    for pair in &pairs {
        one(check, pair);
    }
    check.pairs = pairs;
}

fn one(check: &mut Check, pair: &Pair) {
    let Some(closes) = pair.first() else { return };
    // It finishes what it has; connections that come too late are another finding.
    if matches!(pair.proxy_end.end, End::Graceful { .. }) {
        return;
    }
    let when = if closes == 0 { "at once".to_owned() } else { format!("{closes} s after the deletion") };
    let why = format!(
        "the proxy {} of this pod is stopped {when}, and {}, which it passes requests on to (port {}), later: what the proxy has under way is lost, and what still comes",
        pair.proxy.name, pair.app.name, pair.port
    );
    let found = new(Cause::SidecarGoneFirst, WillLose, why).at(pair.proxy.at.as_ref().or(pair.at.as_ref()));
    check.found(Some(pair.proxy), Server::Nginx, with_doubts(found, &pair.proxy_end));
}
