//! php-fpm has to outlive nginx: what it drops, nginx answers with 502.

use super::super::command::{Pid1, Server};
use super::super::finding::Severity::{self, MayLose, WillLose};
use super::super::plan::{End, Plan, signal};
use super::super::setup::Container;
use super::{Check, Finding, new, with_doubts};
use crate::model::incident::Cause;

/// As many as a full queue held before Linux 5.4 (SOMAXCONN).
const SMALL_BACKLOG: i64 = 128;

pub(super) fn check(check: &mut Check) {
    small_queues(check);
    let Some((container, plan)) = check.fpm.clone() else { return };
    // A native sidecar gets its signal when nginx's container is gone; one supervisor's order is another rule.
    if container.sidecar || container.pid1.value == Pid1::Supervisor {
        return;
    }
    how(check, container, &plan);
}

/// When nginx stops to send to php-fpm.
struct Sender {
    /// Takes no new requests from then on.
    closes: u64,
    /// Has no request under way from then on; `None`: not known.
    done: Option<u64>,
}

/// `None` when nginx's own end is not known.
fn sender(check: &Check) -> Option<Sender> {
    let grace = check.setup.grace.as_ref().map_or(u64::MAX, |grace| grace.value);
    let Some((_, plan)) = &check.nginx else {
        // nginx is not in this pod: it goes on sending.
        return Some(Sender { closes: u64::MAX, done: Some(u64::MAX) });
    };
    let longest = check.setup.longest.as_ref().map(|longest| longest.value);
    Some(match plan.end {
        End::Graceful { at } => Sender { closes: at, done: longest.map(|longest| at.saturating_add(longest)) },
        End::Fast { at, .. } | End::Killed { at } | End::Left { at, .. } => Sender { closes: at, done: Some(at) },
        End::Overridden { quit, at, .. } => Sender { closes: quit, done: Some(at) },
        End::Deaf { .. } | End::Last => Sender { closes: grace, done: Some(grace) },
        End::Unknown => return None,
    })
}

fn how(check: &mut Check, container: &Container, plan: &Plan) {
    let alone = check.nginx.is_none();
    let at = plan.at.clone();
    let ends = match &plan.end {
        End::Last | End::Unknown => return,
        End::Deaf { sure, why } => {
            let why =
                format!("{why}: php-fpm does not hear the stop signal, and is killed when the grace period is over");
            let severity = if *sure && !check.setup.has_spec { WillLose } else { MayLose };
            // By then nginx has ended, if anybody told it.
            if alone {
                let found = with_doubts(new(Cause::Pid1IgnoresStopSignal, severity, why).at(at.as_ref()), plan);
                check.found(Some(container), Server::PhpFpm, found);
            }
            return;
        }
        End::Killed { at } | End::Graceful { at } | End::Fast { at, .. } | End::Left { at, .. } => *at,
        End::Overridden { quit, .. } => *quit,
    };
    let Some(sender) = sender(check) else {
        check.not_checked("nginx-stop", "whether php-fpm outlives nginx: how nginx is stopped is not known");
        return;
    };
    if let Some((cause, why)) = cuts(check, plan) {
        let severity = cut(ends, &sender);
        if let Some((severity, longest)) = severity {
            let mut found = new(cause, severity, why);
            if longest {
                found = found
                    .missing("longest-request", "only requests that nginx still has when php-fpm is stopped are cut");
            }
            let mut found = with_doubts(found.at(at.as_ref()), plan);
            if cause == Cause::FpmControlTimeoutZero {
                found = timeout_place(check, found);
            }
            if !check.setup.has_spec && !alone {
                found.severity = MayLose;
            }
            check.found(Some(container), Server::PhpFpm, found);
        }
    }
    if matches!(plan.end, End::Graceful { .. }) {
        too_short(check, container, plan, ends, &sender);
    }
    // What a kill refuses, the kill has refused.
    if !matches!(plan.end, End::Killed { .. } | End::Left { .. }) {
        unheard(check, container, plan, ends, &sender);
    }
}

/// What the signal does to a request that a child works on.
fn cuts(check: &mut Check, plan: &Plan) -> Option<(Cause, String)> {
    match &plan.end {
        End::Fast { signal: number, .. } | End::Overridden { signal: number, .. } => {
            let why = format!(
                "php-fpm is stopped with {} while nginx still waits for its answers: it ends every child at once",
                signal(*number)
            );
            Some((Cause::FpmFastShutdown, why))
        }
        End::Left { why, .. } => {
            Some((Cause::Pid1ExitedFirst, format!("{why}: the kernel then kills php-fpm with all its requests")))
        }
        End::Killed { .. } => Some((Cause::ContainerKilled, "php-fpm's stop signal is SIGKILL".to_owned())),
        End::Graceful { .. } => match check.setup.fpm.as_ref().map(|conf| conf.control_timeout.as_ref()) {
            None => None,
            Some(timeout) if timeout.is_some_and(|timeout| timeout.value > 0) => None,
            Some(timeout) => {
                let said = if timeout.is_some() { "is 0" } else { "is not set, and 0 by default" };
                let why = format!(
                    "process_control_timeout {said}: on SIGQUIT php-fpm ends its busy children at once, while nginx still waits for their answers"
                );
                Some((Cause::FpmControlTimeoutZero, why))
            }
        },
        End::Deaf { .. } | End::Last | End::Unknown => None,
    }
}

/// Whoever is still busy when process_control_timeout is over is ended by php-fpm's master, and what is left at the end of
/// the grace period by SIGKILL.
fn too_short(check: &mut Check, container: &Container, plan: &Plan, ends: u64, sender: &Sender) {
    let timeout = check.setup.fpm.as_ref().and_then(|conf| conf.control_timeout.as_ref()).filter(|t| t.value > 0);
    let Some(timeout) = timeout else { return };
    let (t, at) = (timeout.value, timeout.at.clone());
    let over = ends.saturating_add(t);
    let grace = check.setup.grace.clone().filter(|grace| grace.value < over);
    let killed = grace.as_ref().map(|grace| {
        let s = grace.value;
        let why = format!(
            "php-fpm is told to stop {ends} s after the deletion and may then take {t} s (process_control_timeout), but SIGKILL comes after {s} s (terminationGracePeriodSeconds)"
        );
        (None, why, grace.at.clone().or(at.clone()), s.saturating_sub(ends))
    });
    let ended = || {
        let why = format!("php-fpm ends whoever is still busy {t} s after its SIGQUIT (process_control_timeout)");
        (Some("process-control-timeout".to_owned()), why, at.clone(), t)
    };
    let (sub_cause, why, at, left) = killed.unwrap_or_else(ended);
    let found = match &check.setup.longest {
        // The last that nginx passes on before one of them stops.
        Some(longest) if ends.min(sender.closes).saturating_add(longest.value) <= ends.saturating_add(left) => return,
        Some(longest) => {
            let why = format!("{why}, and the longest request takes {} s", longest.value);
            new(Cause::GracePeriodExceeded, WillLose, why)
        }
        None if cut(ends, sender).is_none() => return,
        None => {
            // nginx itself gives up after its own timeout.
            let conf = check.nginx.as_ref().and_then(|(nginx, _)| nginx.nginx.as_ref());
            let silence = conf.and_then(|conf| conf.fastcgi_silence.as_ref());
            let why = match silence {
                Some(silence) if silence.value > left => {
                    format!("{why}, and nginx waits up to {} s for an answer (fastcgi_read_timeout)", silence.value)
                }
                _ if sub_cause.is_none() => why,
                _ => return,
            };
            let only = format!("only requests that need more than {left} s from then on are cut");
            new(Cause::GracePeriodExceeded, MayLose, why).missing("longest-request", only)
        }
    };
    let mut found = with_doubts(found.at(at.as_ref()), plan);
    if !check.setup.has_spec && check.nginx.is_some() {
        found.severity = MayLose;
    }
    check.found(Some(container), Server::PhpFpm, Finding { sub_cause, ..found });
}

fn timeout_place(check: &Check, found: Finding) -> Finding {
    let Some(conf) = &check.setup.fpm else { return found };
    let at = conf.control_timeout.as_ref().map_or(conf.file.clone(), |timeout| timeout.at.clone());
    let mut found = found.at(at.as_ref());
    if conf.control_timeout.is_none() && !conf.missing.is_empty() {
        let effect = format!("{} may set it", conf.missing.join(", "));
        found.severity = MayLose;
        found = found.missing("included-files", effect);
    }
    found
}

/// Are requests cut when php-fpm is told at `ends`? With whether it depends on their length.
fn cut(ends: u64, sender: &Sender) -> Option<(Severity, bool)> {
    match sender.done {
        // Together with an nginx that drops everything itself.
        Some(done) if done == sender.closes && ends == sender.closes => Some((MayLose, false)),
        Some(done) if ends >= done => None,
        Some(_) => Some((WillLose, false)),
        None if ends <= sender.closes => Some((WillLose, false)),
        None => Some((MayLose, true)),
    }
}

/// Requests that come to php-fpm after it was told: refused, or left in its queue.
fn unheard(check: &mut Check, container: &Container, plan: &Plan, ends: u64, sender: &Sender) {
    if ends > sender.closes {
        return;
    }
    let severity = if ends < sender.closes && check.setup.has_spec { WillLose } else { MayLose };
    let late = match (check.nginx.is_some(), ends == sender.closes) {
        (false, _) => "while others still send to it".to_owned(),
        (true, true) => "at the same moment as nginx".to_owned(),
        (true, false) if sender.closes == u64::MAX => "while nginx goes on".to_owned(),
        (true, false) => format!("{} s before nginx", sender.closes - ends),
    };
    let refused = format!("php-fpm is stopped {late}: once it is gone, what nginx still sends to it is refused");
    let queued = format!("php-fpm is stopped {late}: what waits in its queue when it ends is reset");
    let timeout = check.setup.fpm.as_ref().and_then(|conf| conf.control_timeout.as_ref()).map_or(0, |t| t.value);
    let grace = check.setup.grace.as_ref().map_or(u64::MAX, |grace| grace.value);
    let drains = matches!(plan.end, End::Graceful { .. }) && timeout > 0;
    // What a kill throws out of the queue is the kill's.
    let queued_for = if drains && ends.saturating_add(timeout) > grace { MayLose } else { severity };
    // While it finishes what it has, nobody accepts, and it may be gone after the last client is; when it drops everything,
    // the queue is short.
    let (refusal, queue) = if drains { (MayLose, queued_for) } else { (severity, MayLose) };
    let at = match &container.hook {
        super::Hook::Does(effect) => effect.at.clone(),
        _ => container.at.clone(),
    };
    for (cause, severity, why) in
        [(Cause::FpmNotListening, refusal, refused), (Cause::FpmAcceptQueueDropped, queue, queued)]
    {
        let found = with_doubts(new(cause, severity, why).at(at.as_ref()), plan);
        check.found(Some(container), Server::PhpFpm, found);
    }
}

/// A full queue is an error only on a unix socket; over TCP the kernel makes the client try again.
fn small_queues(check: &mut Check) {
    let Some(conf) = &check.setup.fpm else { return };
    for pool in conf.pools.iter().filter(|pool| pool.is_unix()) {
        let Some(backlog) = pool.backlog.as_ref().filter(|b| (0..SMALL_BACKLOG).contains(&b.value)) else { continue };
        let why = format!(
            "pool {} lets only {} connections wait (listen.backlog): when all children are busy, more are refused at once on a unix socket",
            pool.name, backlog.value
        );
        let found = new(Cause::FpmListenQueueFull, MayLose, why).at(backlog.at.as_ref());
        check.found(check.setup.of(Server::PhpFpm), Server::PhpFpm, found);
    }
}
