//! Which finding wins when several rules match. docs/causes.md has a row for every pair that can match together.

use super::Finding;
use crate::model::incident::Cause;

/// From the strongest to the weakest claim on a loss. A cause that names an act of the server comes before one that only
/// excuses it.
const ORDER: &[Cause] = &[
    Cause::SupervisorStopOrder,
    Cause::NginxNotListening,
    Cause::SidecarGoneFirst,
    Cause::PrestopFailed,
    Cause::OomKilled,
    Cause::FpmChildCrash,
    Cause::PhpHardTimeout,
    Cause::Pid1IgnoresStopSignal,
    Cause::Pid1ExitedFirst,
    Cause::GracePeriodExceeded,
    Cause::ContainerKilled,
    Cause::QuitThenTerm,
    Cause::NginxFastShutdown,
    Cause::NginxWorkerCrash,
    Cause::WorkerShutdownTimeout,
    Cause::FpmControlTimeoutZero,
    Cause::FpmFastShutdown,
    Cause::FpmRequestTerminateTimeout,
    Cause::FpmChildKilled,
    Cause::FpmMaxRequestsReset,
    Cause::NginxAcceptQueueDropped,
    Cause::FpmAcceptQueueDropped,
    Cause::FpmListenQueueFull,
    Cause::EndpointRace,
    Cause::FpmNotListening,
    Cause::KeepaliveRaceOnShutdown,
    Cause::KeepaliveRace,
    Cause::UpstreamResponseInvalid,
    Cause::EphemeralPortsExhausted,
    Cause::PodNetworkGone,
    Cause::RequesterReset,
    Cause::FpmPoolExhausted,
    Cause::EdgeTimeout,
    Cause::ClientAbort,
    Cause::SynDrop,
    Cause::DeliberateClose,
    Cause::Unexplained,
];

fn rank(cause: Cause) -> usize {
    ORDER.iter().position(|c| *c == cause).unwrap_or(ORDER.len())
}

/// The winner and the causes of the others, strongest first.
pub fn choose(mut findings: Vec<Finding>) -> Option<(Finding, Vec<Cause>)> {
    findings.sort_by_key(|f| rank(f.cause));
    let mut rest = findings.into_iter();
    let winner = rest.next()?;
    let also: Vec<_> = rest.map(|f| f.cause).filter(|c| *c != winner.cause).collect();
    Some((winner, also))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_one_rank() {
        for cause in Cause::ALL {
            assert_eq!(ORDER.iter().filter(|c| *c == cause).count(), 1, "{cause}");
        }
    }
}
