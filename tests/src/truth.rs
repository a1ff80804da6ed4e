//! Which causes are right for which lost request: truth that does not use why502's own events, but the scenario, what the
//! client saw, and what php wrote down.

use crate::load::Outcome::{ConnectReset, HttpError, Refused};
use crate::load::Request;
use crate::nginx::Upstream;
use why502::model::incident::Cause::{
    self, EndpointRace, FpmAcceptQueueDropped, FpmControlTimeoutZero, FpmFastShutdown, FpmNotListening, KeepaliveRace,
    KeepaliveRaceOnShutdown, NginxAcceptQueueDropped, NginxFastShutdown, SupervisorStopOrder, WorkerShutdownTimeout,
};
use why502::model::incident::Mechanism;

/// The causes that are right for a request lost by a stop of nginx; `started`: php worked on it, so nginx had read it.
pub fn nginx_stop(term: bool) -> impl Fn(&Request, bool) -> &'static [Cause] {
    move |r, started| match (r.outcome, term, started) {
        (Refused, ..) => &[EndpointRace],
        (ConnectReset, ..) => &[NginxAcceptQueueDropped],
        (_, true, true) => &[NginxFastShutdown],
        // A graceful stop finishes what it has read.
        (_, false, true) => &[],
        // A kept connection was accepted long ago: its request was read and cut, or it came after the close.
        (_, true, false) if !r.fresh() => &[NginxFastShutdown, KeepaliveRaceOnShutdown],
        (_, false, false) if !r.fresh() => &[KeepaliveRaceOnShutdown],
        // That the connection ended in order shows nothing: a handshake that its listener does not outlive ends so, too.
        (_, true, false) => &[NginxFastShutdown, NginxAcceptQueueDropped],
        (_, false, false) => &[NginxAcceptQueueDropped],
    }
}

/// SIGQUIT to php-fpm with `process_control_timeout = 0`, seen through the pod's nginx: a script that had started was cut in
/// its child; else the connection may have been queued, or refused afterwards.
pub fn fpm_quit_without_timeout(_: &Request, started: bool) -> &'static [Cause] {
    if started { &[FpmControlTimeoutZero] } else { &[FpmControlTimeoutZero, FpmAcceptQueueDropped, FpmNotListening] }
}

/// nginx closes connections that are idle for too long, and nothing stops it.
pub fn keepalive_race(r: &Request, started: bool) -> &'static [Cause] {
    if started || r.fresh() { &[] } else { &[KeepaliveRace] }
}

/// nginx drained after a QUIT, and `cut` ended what php still worked on. `/static` is answered at once, so only a request
/// for it can have met the close of an idle connection.
pub fn nginx_drain(cut: &'static [Cause]) -> impl Fn(&Request, bool) -> &'static [Cause] {
    move |r, started| match (r.outcome, started) {
        (Refused, _) => &[EndpointRace],
        (ConnectReset, _) => &[NginxAcceptQueueDropped],
        (_, true) => cut,
        (_, false) if r.path.starts_with("/static") && !r.fresh() => &[KeepaliveRaceOnShutdown],
        (_, false) if r.path.starts_with("/static") => &[NginxAcceptQueueDropped],
        // Every slow request was with php before the QUIT.
        (_, false) => &[],
    }
}

/// A reload: the listener stays, old workers close idle connections, and in the end what they still have.
pub fn nginx_reload(r: &Request, started: bool) -> &'static [Cause] {
    match (r.outcome, started) {
        (Refused | ConnectReset, _) => &[],
        (_, true) => &[WorkerShutdownTimeout],
        (_, false) if !r.fresh() => &[KeepaliveRace],
        (_, false) => &[],
    }
}

/// Whatever was lost has this one cause.
pub fn always(cause: &'static [Cause]) -> impl Fn(&Request, bool) -> &'static [Cause] {
    move |_, _| cause
}

/// TERM to php-fpm, seen through the pod's nginx.
pub fn fpm_term(_: &Request, started: bool) -> &'static [Cause] {
    if started { &[FpmFastShutdown] } else { &[FpmFastShutdown, FpmAcceptQueueDropped, FpmNotListening] }
}

/// supervisord stops php-fpm, then nginx: what the pod's nginx answered with 502 is the order's doing.
pub fn supervised_stop(r: &Request, started: bool) -> &'static [Cause] {
    match r.outcome {
        HttpError { .. } => &[SupervisorStopOrder],
        _ => nginx_stop(false)(r, started),
    }
}

/// How a request can have been lost, by what the client saw, whether php had begun it, and what nginx's error log says.
pub fn mechanisms(r: &Request, started: bool, logged: Option<Upstream>) -> &'static [Mechanism] {
    use Mechanism::{
        ClosedInFlight, DataAfterClose, HandshakeLost, LocalError, NetworkGone, Protocol, ResetInAcceptQueue,
        UpstreamClosed, UpstreamQueueFull, UpstreamRefused,
    };
    const CUT: &[Mechanism] = &[ClosedInFlight, UpstreamClosed];
    match (r.outcome, logged, started) {
        (Refused, ..) => &[Mechanism::Refused],
        (ConnectReset, ..) => &[ResetInAcceptQueue, HandshakeLost],
        (HttpError { .. }, Some(Upstream::Refused), _) => &[Mechanism::Refused, UpstreamRefused],
        (HttpError { .. }, Some(Upstream::Full), _) => &[UpstreamQueueFull],
        (HttpError { .. }, Some(Upstream::NoPort | Upstream::NoneLeft), _) => &[LocalError],
        (HttpError { .. }, Some(Upstream::NoWay), _) => &[NetworkGone],
        (HttpError { .. }, Some(Upstream::Invalid), _) => &[Protocol],
        (HttpError { .. }, Some(Upstream::Ended), true) => CUT,
        (HttpError { .. }, Some(Upstream::Ended), false) => &[ClosedInFlight, UpstreamClosed, ResetInAcceptQueue],
        // The line was not written, or the log is another nginx's.
        (HttpError { .. }, None, _) => Mechanism::ALL,
        (_, _, true) => CUT,
        // A kept connection was accepted long ago.
        (_, _, false) if !r.fresh() => &[ClosedInFlight, DataAfterClose],
        (_, _, false) => &[ClosedInFlight, DataAfterClose, ResetInAcceptQueue, HandshakeLost],
    }
}
