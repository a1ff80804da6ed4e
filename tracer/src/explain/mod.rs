//! A lost request and what is known around it → a verdict.
//!
//! One file per family of causes. A rule looks at one loss and either says nothing or returns a [`Finding`] whose chain
//! names the event behind every link. Rules do not exclude each other: `precedence` decides, and the losers are told as
//! `also_matched`. A rule never fires on a signal alone, on timing alone, or across pods.

mod absent;
pub mod advice;
pub mod chain;
pub mod confidence;
mod connect;
mod fpm;
mod fpm_child;
mod fpm_kept;
mod gone;
mod incident;
mod keepalive;
mod killed;
pub mod kube;
mod layers;
mod nginx;
mod oom;
mod pod;
mod precedence;
mod prestop;
mod requester;
mod restart;
pub mod said;
pub mod sender;
pub mod server;
mod sidecar;
mod supervisor;
mod unix;
mod upstream;
mod worker;

use crate::correlate::ends::Ends;
use crate::correlate::history::{History, LossWindow};
use crate::correlate::lost::{Evidence, Lost};
use crate::correlate::nginx::Nginx;
use crate::correlate::pods::Pods;
use crate::correlate::sources::Sources;
use crate::correlate::stops::Stops;
use crate::identity::{ListenState, Table};
use crate::model::event::BootNs;
use crate::model::incident::{Cause, Incident, Missing, Trigger};
use crate::model::input::Started;
use crate::model::time::WallClock;
use chain::Chain;
use confidence::Confidence;
use server::Server;

pub use incident::container;
pub use prestop::is_hook;
pub use said::{container_of, pod_of};
pub use upstream::upshot;

/// A time in a sentence: `308 ms`, `2.4 s`.
pub fn took(ms: u64) -> String {
    if ms < 1_000 { format!("{ms} ms") } else { format!("{:.1} s", ms as f64 / 1000.0) }
}

/// Names a stop: the same in every replay.
pub fn stop_id(master: &crate::model::Task, at: BootNs) -> u64 {
    incident::fnv(format!("{}|{}|{at}", master.tgid, master.start_ns).as_bytes())
}

/// What the rules may look at. All of it is a function of the inputs so far.
pub struct View<'a> {
    pub table: &'a Table,
    pub history: &'a History,
    /// Requesting ends of connections.
    pub ends: &'a Ends,
    /// Stops under way, and what was seen of them.
    pub stops: &'a Stops,
    /// Sources of facts from outside the kernel.
    pub sources: &'a Sources,
    /// What the Kubernetes API said.
    pub pods: &'a Pods,
    /// What nginx said itself.
    pub nginx: &'a Nginx,
    pub started: Option<&'a Started>,
    /// When everything was attached and scanned.
    pub ready: Option<BootNs>,
    pub clock: &'a WallClock,
}

impl View<'_> {
    /// Things before this time may have gone unseen.
    pub fn watched_since(&self) -> Option<BootNs> {
        self.ready
    }

    /// Losses of records in this time that may be missing from what is known of this loss.
    pub fn losses(&self, lost: &Lost, from: BootNs, to: BootNs) -> impl Iterator<Item = &LossWindow> {
        let socket = self.table.socket_group(lost.sk_cgroup, lost.netns());
        let process = lost.server.as_ref().map_or(socket, |server| self.table.group_of_process(&server.key));
        self.history.losses(from, to, [socket, process])
    }
}

/// What one rule says.
pub struct Finding {
    pub cause: Cause,
    pub sub_cause: Option<&'static str>,
    pub trigger: Trigger,
    pub chain: Chain,
    pub confidence: Confidence,
    pub summary: String,
    pub missing: Vec<Missing>,
}

type Rule = fn(&Lost, &Server, &View) -> Option<Finding>;

/// Every rule. Their order means nothing: see `precedence`.
const RULES: &[Rule] = &[
    nginx::fast_shutdown,
    nginx::worker_shutdown_timeout,
    nginx::endpoint_race,
    nginx::accept_queue,
    keepalive::on_shutdown,
    keepalive::idle,
    fpm::control_timeout_zero,
    fpm::control_timeout_over,
    fpm::fast_shutdown,
    fpm::accept_queue,
    fpm::not_listening,
    fpm_child::crashed,
    fpm_child::killed,
    fpm_child::terminate_timeout,
    fpm_child::hard_timeout,
    fpm_kept::max_requests,
    oom::killed,
    unix::listen_queue_full,
    unix::queue_full_while_stopping,
    unix::nobody_listens,
    absent::crashed,
    absent::cut_by_crash,
    absent::not_started,
    worker::ended_alone,
    restart::restarting,
    prestop::failed,
    sidecar::gone_first,
    sidecar::requester_gone,
    killed::killed,
    supervisor::stop_order,
    connect::no_port,
    connect::network_gone,
    connect::syn_drop,
    requester::gave_up,
    requester::reset,
    requester::deliberate,
];

/// Decides about one lost request. Total: what no rule knows is `unexplained`, with what is missing.
pub fn explain(lost: &Lost, view: &View, decided_at: BootNs, stop: Option<&str>) -> Incident {
    let server = server::of(lost, view);
    let earlier = view.nginx.marked_by(lost);
    let judged = earlier.unwrap_or(lost);
    let elsewhere = requester::died_with_it(judged, &server, view).or_else(|| layers::elsewhere(lost, &server, view));
    let findings = match (&judged.evidence, elsewhere) {
        (_, Some(elsewhere)) => vec![elsewhere],
        // No kernel knows of it: nothing but what nginx said.
        (Evidence::ErrorMade(made), None) => vec![upstream::own(judged, made, &server, view)],
        (_, None) => RULES.iter().filter_map(|rule| rule(judged, &server, view)).collect(),
    };
    let (mut winner, also_matched) =
        precedence::choose(findings).unwrap_or_else(|| (unexplained(judged, &server, view), Vec::new()));
    if let (Evidence::ErrorMade(made), Some(_)) = (&lost.evidence, earlier) {
        upstream::left_alone(&mut winner, lost, made, &server, view);
    }
    let upshot = upshot(lost, view);
    upstream::settle(&mut winner, &upshot, view);
    confidence::lower_by_circumstances(&mut winner, lost, &server, view, decided_at);
    kube::beside(&mut winner, lost, &server, view);
    if winner.cause != Cause::PrestopFailed {
        prestop::note(&mut winner.chain, lost, &server, view);
    }
    layers::beside(&mut winner.chain, lost, view);
    incident::assemble(winner, also_matched, lost, &server, view, incident::Told { decided_at, stop, upshot })
}

/// The answer when no rule fired: the loss is a fact, its cause is not known, and this is what would have told.
fn unexplained(lost: &Lost, server: &Server, view: &View) -> Finding {
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    let mut missing = Vec::new();
    let mut what = |fact: &str, effect: String| missing.push(Missing { fact: fact.into(), effect });
    match server.kind {
        server::Kind::Unknown => {
            what(
                "server-process",
                "the process behind the connection is not known, so no signal or exit can be tied to it".into(),
            );
        }
        _ => {
            if listened_before_the_start(lost, view) {
                let effect = "nobody listened there any more when why502 was ready: what had ended that was not seen";
                what("started-late", effect.into());
            }
            let signals = server.stop_signals(view, lost.at);
            match signals.last() {
                None => what("stop-signal", format!("no stop signal to {} was seen before the loss", server.name())),
                Some(last) => {
                    chain.signal(last, "last-stop-signal", view);
                    what(
                        "rule",
                        format!(
                            "{} had received {}, but that does not explain a loss of this kind",
                            server.name(),
                            crate::correlate::history::sig::name(last.what.signal)
                        ),
                    );
                }
            }
            if let Some(exit) = server.exit(view).filter(|e| e.at <= lost.at) {
                chain.exit(exit, "exit-before-loss", view);
            }
        }
    }
    let mut confidence = Confidence::of(0.0);
    confidence.because("no rule explains it");
    Finding {
        cause: Cause::Unexplained,
        sub_cause: None,
        trigger: Trigger::Unknown,
        chain,
        confidence,
        summary: format!("{}: why is not known", chain::what_happened(lost, server)),
        missing,
    }
}

/// It is known that somebody had listened there, not who ended it.
fn listened_before_the_start(lost: &Lost, view: &View) -> bool {
    let Some(t) = lost.tcp().filter(|_| matches!(lost.evidence, Evidence::Refused { closed: None, .. })) else {
        return false;
    };
    let state = view.table.listeners().state_at(t.netns, t.local_ip, t.local_port, lost.at);
    matches!(state, ListenState::Closed { event: None, .. })
}
