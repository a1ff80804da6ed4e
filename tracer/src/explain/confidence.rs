//! How sure a verdict is, and what took it down. The scale is in docs/causes.md: 0.95 and more is `certain`, 0.7 and more
//! `likely`, the rest `possible`. A rule starts at what its complete chain is worth; everything that was not seen lowers
//! it, by name.

use super::server::{Kind, Server};
use super::{Finding, View};
use crate::correlate::answer::Clause;
use crate::correlate::detect::tls_port;
use crate::correlate::lost::{Evidence, Lost};
use crate::identity::FoundBy;
use crate::model::BootNs;
use crate::model::incident::{self, Cause, Level, Missing};
use crate::model::input::{Carries, HookState, HookStatus, Started};

/// Window before the earliest link in which a lost record could have changed the verdict. It ends with the verdict: records
/// after the loss decide as well.
pub const BEFORE_NS: u64 = 1_000_000_000;

#[derive(Clone, Debug)]
pub struct Confidence {
    value: f64,
    lowered_by: Vec<String>,
}

impl Confidence {
    pub fn of(value: f64) -> Self {
        Confidence { value, lowered_by: Vec::new() }
    }

    /// Not above `at_most`, for this reason.
    pub fn cap(&mut self, at_most: f64, why: impl Into<String>) {
        if self.value > at_most {
            self.value = at_most;
        }
        self.because(why);
    }

    /// A reason without a change of the value.
    pub fn because(&mut self, why: impl Into<String>) {
        let why = why.into();
        if !self.lowered_by.contains(&why) {
            self.lowered_by.push(why);
        }
    }

    pub fn finish(self) -> incident::Confidence {
        let value = (self.value * 100.0).round() / 100.0;
        let level = match value {
            v if v >= 0.95 => Level::Certain,
            v if v >= 0.7 => Level::Likely,
            _ => Level::Possible,
        };
        incident::Confidence { value, level, lowered_by: self.lowered_by }
    }
}

/// Lowers what any verdict may claim: records lost in its window, a late start, a hook that is not there, a role that is
/// only a name, a connection that may be TLS.
pub fn lower_by_circumstances(finding: &mut Finding, lost: &Lost, server: &Server, view: &View, decided_at: BootNs) {
    for why in finding.chain.unseen().to_vec() {
        finding.confidence.cap(0.9, why);
    }
    let from = finding.chain.earliest().saturating_sub(BEFORE_NS);
    let count: u64 = view.losses(lost, from, decided_at).map(|l| l.count).sum();
    if count > 0 {
        finding.confidence.cap(0.8, format!("{count} records were lost in this window"));
        finding.missing.push(Missing {
            fact: "lost-events".into(),
            effect: format!("{count} records around this loss were not seen; one of them may tell another story"),
        });
    }
    match view.watched_since() {
        Some(ready) if ready <= finding.chain.earliest() && ready <= lost.at => {}
        Some(ready) => {
            let ms = ready.saturating_sub(finding.chain.earliest()) / 1_000_000;
            finding.confidence.cap(0.8, "part of it happened before why502 was ready");
            finding.missing.push(Missing {
                fact: "started-late".into(),
                effect: format!("why502 was ready {ms} ms after this began: what came before may be missing"),
            });
        }
        None => {
            finding.confidence.cap(0.8, "why502 was not ready yet");
            finding.missing.push(Missing {
                fact: "started-late".into(),
                effect: "the loss happened while why502 was starting".into(),
            });
        }
    }
    if finding.cause == Cause::Unexplained
        && let Some(ready) = view.watched_since()
        && lost.at.saturating_sub(ready) < 60_000_000_000
        && ready > server.seen_since(view).unwrap_or(0)
        && lost.at >= ready
    {
        let ms = (lost.at - ready) / 1_000_000;
        finding.missing.push(Missing {
            fact: "started-late".into(),
            effect: format!("why502 was ready {ms} ms before the loss: an earlier stop signal was not seen"),
        });
    }
    hooks(finding, view.started);
    if server.kind != Kind::Unknown && !server.sure {
        finding.confidence.cap(0.8, format!("that this is {} is only a guess ({})", server.name(), server.why));
    }
    not_one_request(finding, lost, view);
    whose_socket(finding, lost);
    if lost.tcp().is_some_and(|t| tls_port(t.local_port)) && maybe_idle_tls(lost) {
        finding.confidence.cap(0.6, "on a TLS port an idle connection can look unanswered");
    }
}

/// After its first answer a connection of HTTP/2 or an upgraded one may be at rest although its client spoke last, and one
/// that is not may carry several requests.
fn not_one_request(finding: &mut Finding, lost: &Lost, view: &View) {
    let Some(what) = lost.tcp().and_then(|t| view.history.carried(t)).filter(|_| maybe_idle_tls(lost)) else { return };
    let text = match what {
        Carries::Http2 => "its port speaks HTTP/2, where an idle connection can look unanswered",
        Carries::Upgraded => {
            "its port passes upgraded connections (WebSocket) on, which look unanswered when they are idle"
        }
    };
    finding.confidence.cap(0.6, text);
}

/// How the server of an AF_UNIX path was told, and what a close of it does not.
fn whose_socket(finding: &mut Finding, lost: &Lost) {
    if let Evidence::UnixClose { thrown: None, .. } = &lost.evidence {
        finding.missing.push(Missing {
            fact: "answer-bytes".into(),
            effect: "on a unix socket it is not known whether the answer had begun: a cut one looks like none".into(),
        });
    }
    let Evidence::UnixRefused { found, .. } = &lost.evidence else { return };
    match found {
        Some(FoundBy::Path) => {}
        Some(FoundBy::FileName) => {
            finding.confidence.cap(0.9, "php-fpm is known to have served a path of the same file name only");
        }
        Some(FoundBy::Neighbour) => {
            finding
                .confidence
                .cap(0.9, "that this php-fpm served the path is known only from being the only one there");
        }
        None => {
            finding.confidence.cap(0.6, "which php-fpm, if any, serves this path is not known");
            finding.missing.push(Missing {
                fact: "server-process".into(),
                effect: "no php-fpm is known for this path, so no signal or exit can be tied to it".into(),
            });
        }
    }
}

/// On TLS the client may speak last without having asked anything (a Finished message, a session resumption).
fn maybe_idle_tls(lost: &Lost) -> bool {
    match &lost.evidence {
        Evidence::Close { clause, .. } => {
            lost.bytes_sent > 0 && matches!(clause, Clause::ReceivedLast | Clause::TieUnacked | Clause::Unread)
        }
        _ => false,
    }
}

/// What such a hook shows is either there or not; no verdict rests on not having seen it.
pub fn additional(hook: &str) -> bool {
    let of_nginx = ["ngx_log_error_core", "ngx_http_special_response_handler"];
    matches!(hook, "kfree_skb" | "unix_stream_connect" | "sys_exit") || of_nginx.contains(&hook)
}

fn hooks(finding: &mut Finding, started: Option<&Started>) {
    let Some(started) = started else {
        finding.confidence.cap(0.8, "it is not recorded which hooks were attached");
        return;
    };
    let needed = |h: &&HookStatus| h.state != HookState::Attached && !additional(&h.hook);
    for hook in started.hooks.iter().filter(needed) {
        finding.confidence.cap(0.8, format!("the hook {} was not attached", hook.hook));
        finding.missing.push(Missing {
            fact: format!("hook:{}", hook.hook),
            effect: format!("nothing that {} would show was seen", hook.hook),
        });
    }
}
