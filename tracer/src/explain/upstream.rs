//! What nginx said itself of a request that it could not pass on: where that is all there is, where it asked nobody because
//! of earlier failures, and where it settles what a failed attempt came to.

use super::chain::{Chain, errno as errno_text};
use super::confidence::Confidence;
use super::server::Server;
use super::{Finding, View, layers};
use crate::correlate::lost::{self, ErrorMade, Lost, Own};
use crate::correlate::nginx::Upshot;
use crate::model::incident::{Cause, Missing, Trigger};
use crate::model::input::{HookState, HookStatus};

/// Records of nginx that were lost around an attempt make what it came to a guess.
const AROUND_NS: u64 = 1_000_000_000;

/// A request that failed in nginx alone: there is no kernel cause, and nginx's own reason is all that is known.
pub fn own(lost: &Lost, made: &ErrorMade, server: &Server, view: &View) -> Finding {
    let mut chain = Chain::new(lost.at);
    chain.loss(lost, server, view);
    chain.said(&made.failed, "nginx-said-why", view);
    let (status, reason) = (made.status, &made.failed.logged.format);
    let unexplained = |fact: &str, effect: &str, summary: String| {
        let mut confidence = Confidence::of(0.0);
        confidence.because("no rule explains it");
        (Cause::Unexplained, confidence, summary, vec![Missing { fact: fact.into(), effect: effect.into() }])
    };
    let (cause, confidence, summary, missing) = match made.own {
        Own::Invalid(_) => (
            Cause::UpstreamResponseInvalid,
            Confidence::of(0.97),
            format!(
                "the upstream answered, and nginx did not take the answer (\"{reason}\"): it made a {status} of it. Nothing was \
                 stopped or lost in the kernel"
            ),
            Vec::new(),
        ),
        Own::NoLive => unexplained(
            "upstream-failures",
            "which failures made nginx leave all servers alone was not seen, or they had several causes",
            format!(
                "nginx had no server left that it would ask (\"{reason}\") and answered {status}: why is not known"
            ),
        ),
        Own::Unresolved => unexplained(
            "name-resolution",
            "nginx resolves names itself: what became of its question is not seen",
            format!("nginx had no address of its upstream (\"{reason}\") and answered {status}: why is not known"),
        ),
        Own::NoWay { errno } => no_way(errno, status),
        Own::NoAddress => unexplained(
            "local-address",
            "that there was no port would have been seen: no address of nginx's own fits its upstream's, or the line is another's",
            format!(
                "nginx had no address of its own to connect to its upstream from, and answered {status}: why is not known"
            ),
        ),
    };
    let sub_cause = match made.own {
        Own::Invalid(sub_cause) => Some(sub_cause),
        Own::NoWay { .. } => None,
        Own::NoAddress => Some("no-local-address"),
        Own::NoLive => Some("no-live-upstreams"),
        Own::Unresolved => Some("name-not-resolved"),
    };
    Finding { cause, sub_cause, trigger: Trigger::Unknown, chain, confidence, summary, missing }
}

/// connect() knew at once that no way leads to the upstream's address, which nginx's line would only name as text.
fn no_way(errno: u32, status: u32) -> (Cause, Confidence, String, Vec<Missing>) {
    let mut confidence = Confidence::of(0.9);
    confidence.because("what took the way to that address away was not seen: a pod's network, or another part of it");
    if errno == lost::errno::NETUNREACH {
        confidence.cap(
            0.8,
            "to an address of a family that nginx's pod has none of there never was a way: it fails the same way",
        );
    }
    let summary = format!(
        "no way leads from nginx's pod to its upstream: connect() failed at once with {}, and nginx answered {status}",
        errno_text(errno)
    );
    let missing = vec![Missing {
        fact: "network".into(),
        effect: "the end of a network is no event: whether the way was there before, and to whom, is not known".into(),
    }];
    (Cause::PodNetworkGone, confidence, summary, missing)
}

/// nginx asked nobody: the finding is of the failure after which it left its last server alone.
pub fn left_alone(finding: &mut Finding, lost: &Lost, made: &ErrorMade, server: &Server, view: &View) {
    finding.chain.behind(lost, made, server, view);
    let (reason, status) = (&made.failed.logged.format, made.status);
    finding.summary = format!(
        "nginx answered {status} without asking anybody (\"{reason}\"), because of what had failed before: {}",
        finding.summary
    );
    finding.confidence.cap(0.8, "which failures made nginx leave its servers alone is known from their order only");
}

/// What nginx made of a failed attempt.
pub fn upshot<'v>(lost: &Lost, view: &View<'v>) -> Upshot<'v> {
    let upshot = layers::answered(lost, view).unwrap_or_else(|| view.nginx.upshot(lost));
    let from = lost.at.saturating_sub(AROUND_NS);
    let unsure = view.losses(lost, from, lost.at.saturating_add(AROUND_NS)).next().is_some();
    // Where pages are not listened for, that none was seen means nothing.
    let page = |h: &HookStatus| h.hook == "ngx_http_special_response_handler" && h.state != HookState::Attached;
    let deaf = view.started.is_some_and(|s| s.hooks.iter().any(page));
    if unsure || deaf { Upshot::Unknown } else { upshot }
}

/// Adds to a finding what nginx made of the attempt that it is about.
pub fn settle(finding: &mut Finding, upshot: &Upshot, view: &View) {
    match upshot {
        Upshot::Answered { nginx, by: Some(failed), .. } => {
            if let Some(page) = &failed.page {
                finding.chain.answered(page, nginx, view);
            }
        }
        Upshot::Mixed => {
            finding
                .confidence
                .cap(0.6, "nginx made fewer error pages than attempts failed: others may have been answered");
            finding.missing.push(Missing {
                fact: "next-upstream".into(),
                effect: "nginx may have had this request answered by another server of the upstream".into(),
            });
        }
        _ => {}
    }
}
