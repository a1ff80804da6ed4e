//! Which causes are right for which lost request: truth that does not use why502's own events, but the scenario, what the
//! client saw, and what php wrote down.

use crate::load::Outcome::{ConnectReset, Refused};
use crate::load::Request;
use why502::model::incident::Cause::{
    self, EndpointRace, FpmAcceptQueueDropped, FpmControlTimeoutZero, FpmNotListening, KeepaliveRace,
    KeepaliveRaceOnShutdown, NginxAcceptQueueDropped, NginxFastShutdown,
};

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
