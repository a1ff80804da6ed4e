//! A stop that is over → what is printed of it.

use super::{Command, Open, PhaseFact, before};
use crate::correlate::history::sig;
use crate::correlate::pods::{Pod, SECOND_NS};
use crate::explain::{View, chain, container_of, is_hook, kube, pod_of, said};
use crate::identity::{ContainerInfo, Place, Role};
use crate::model::event::{BootNs, Cited, ProcKey};
use crate::model::incident::{After, Grace, InFlight, Missing, Phase, SCHEMA, Stop, Trigger};
use crate::model::input::StopCounters;

const MS: u64 = 1_000_000;

pub fn tell(open: &Open, at: BootNs, view: &View) -> Stop {
    let place = match view.table.place(&open.task) {
        Place::Container(c) => Some(c),
        _ => None,
    };
    let time = |t: BootNs| view.clock.rfc3339(t).unwrap_or_else(|| format!("boot+{t}ns"));
    let (root, event) = &open.root;
    let root = view.history.signals_to(root).iter().find(|s| s.event == *event);
    let mut missing = Vec::new();
    let mut lacks = |fact: &str, effect: &str| missing.push(Missing { fact: fact.into(), effect: effect.into() });
    if open.early {
        lacks("later-events", "too many stops were under way at once: this one is told before its end");
    } else if open.exited.is_none() {
        lacks("exit", "the observation ended before the server did");
    }
    if open.cut > 0 {
        lacks("phases", "there were more signals and closes than are kept of one stop");
    }
    let counters = counters(open, view, &mut lacks);
    let mut phases = phases(open, counters, view);
    let why = root.and_then(|s| kube::why(s, view));
    let pod = place.and_then(|c| view.pods.of(&c.container));
    phases.extend(told(why.as_ref(), pod));
    phases.sort_by_key(|p| (p.at, p.event));
    missing.extend(said::unreachable(place.is_some_and(|c| c.said.is_some()), open.base, at, view));
    missing.extend(said::silent_api(pod, view));
    let first = phases.first().map_or(open.since, |p| p.at);
    let (node, boot_id) = view.started.map_or((String::new(), String::new()), |s| (s.node.clone(), s.boot_id.clone()));
    Stop {
        kind: "stop".into(),
        schema: SCHEMA,
        id: open.id.clone(),
        node,
        boot_id,
        at: time(first),
        ended_at: time(open.exited.unwrap_or(at)),
        trigger: root.map_or(Trigger::Unknown, |s| chain::trigger(s, view)),
        pod: place.and_then(|c| pod_of(c, view.pods)),
        container: place.map(|c| container_of(c, view.pods)),
        server: match open.role {
            Role::NginxMaster => "nginx".into(),
            _ => "php-fpm".into(),
        },
        signal: Some(sig::name(open.signal)),
        phases: phases
            .iter()
            .map(|p| Phase {
                name: p.name.into(),
                at: time(p.at),
                at_boot_ns: p.at,
                until_boot_ns: p.until,
                after_ms: p.at.saturating_sub(first) / MS,
                event: p.event.map(|e| e.to_string()),
                text: p.text.clone(),
            })
            .collect(),
        timeline: open.timeline.clone(),
        in_flight: in_flight(open, counters),
        accepted_after: counters.map(|c| After { count: c.accepted_after, last_ms: since(open.base, c.last_accept) }),
        late: late(open, view),
        grace: grace(open, first, at, place, view),
        incidents: open.by_cause.values().sum(),
        by_cause: open.by_cause.clone(),
        advice: open.advice.clone(),
        missing,
    }
}

fn since(from: BootNs, at: Option<BootNs>) -> Option<u64> {
    at.map(|at| at.saturating_sub(from) / MS)
}

/// The counters of this stop, unless they hold another server's connections as well.
fn counters<'o>(open: &'o Open, view: &View, lacks: &mut dyn FnMut(&str, &str)) -> Option<&'o StopCounters> {
    let Some(counters) = &open.counters else {
        // The kernel side counts from a signal that asks; who is killed answers nothing any more.
        if open.signal == sig::KILL {
            return None;
        }
        lacks("stop-counters", "how many requests were answered and accepted after the signal was not counted");
        return None;
    };
    if shared(&open.master, counters, view) {
        lacks("own-counters", "nginx and php-fpm share a cgroup, whose connections are counted together");
        return None;
    }
    Some(counters)
}

/// Another server in this master's cgroup: the two are counted together.
pub fn shared(master: &ProcKey, counters: &StopCounters, view: &View) -> bool {
    view.table.processes().any(|p| {
        let here = p.cgroup == counters.cgroup && p.key != *master;
        let alive = p.exited.is_none_or(|e| e.at >= counters.signal_at);
        here && alive && matches!(view.table.role(&p.key).role, Role::NginxMaster | Role::PhpFpmMaster)
    })
}

fn phases(open: &Open, counters: Option<&StopCounters>, view: &View) -> Vec<PhaseFact> {
    let mut all: Vec<PhaseFact> = open.phases.clone();
    for phase in &mut all {
        let signal = phase.signal_to.and_then(|to| {
            let signals = view.history.signals_to(&to).iter();
            signals.rev().find(|s| Some(Cited::Event(s.event)) == phase.event)
        });
        if let Some(signal) = signal {
            let name = sig::name(signal.what.signal);
            // In a sentence it is set off by commas.
            phase.text = format!("{name} from {}", chain::sender_text(signal, view).trim_end_matches(','));
        }
    }
    all.extend(open.command.as_ref().map(|command| self::command(command, open, view)));
    if let Some(c) = counters {
        let mut counted = |name: &'static str, at: Option<BootNs>, text: String| {
            all.extend(at.map(|at| PhaseFact { name, at, until: None, event: None, text, signal_to: None }));
        };
        counted("last-accept", c.last_accept, format!("the last of {} connections after the signal", c.accepted_after));
        let text =
            format!("the last of {} requests that were in flight at the signal and were answered", c.answered_after);
        counted("drain-end", c.last_answered, text);
    }
    all
}

/// What the API said of this stop: what set it off, and how the pod left its services. Endpoints of a pod that was not
/// deleted belong to a container that was restarted, or to nobody.
fn told(why: Option<&kube::Why>, pod: Option<&Pod>) -> Vec<PhaseFact> {
    let phase = |name, at, id, text: &str| PhaseFact {
        name,
        at,
        until: None,
        event: Some(Cited::Said(id)),
        text: text.to_owned(),
        signal_to: None,
    };
    let Some(why) = why else { return Vec::new() };
    let first = why.links.iter().find_map(|l| {
        let name = match l.kind {
            "pod-deleted" => "deleted",
            _ if why.trigger == Trigger::Eviction => "evicted",
            _ if why.trigger == Trigger::LivenessFailed => "probe-failed",
            "node-status" | "pod-status" => "node-shutdown",
            _ => return None,
        };
        // In milliseconds after it: not from the beginning of the API's second.
        Some(phase(name, l.seen_at.min(l.at + SECOND_NS), l.id, &l.text))
    });
    // By the API's own time: two watches do not tell in the order in which things happened.
    let since = why.links.iter().map(|l| l.at).min().unwrap_or(0);
    let mut all: Vec<PhaseFact> = first.into_iter().collect();
    let mut last = std::collections::BTreeMap::new();
    for fact in pod.into_iter().flat_map(|p| &p.endpoints) {
        let e = &fact.what;
        let before = last.insert(e.slice.as_str(), (e.present, e.ready));
        let (name, how) = match (before, e.present, e.ready) {
            (Some((true, _)), false, _) => ("endpoints-removed", "left"),
            (Some((true, true)), true, false) => ("endpoint-unready", "no longer ready in"),
            _ => continue,
        };
        if fact.at >= since {
            let serving = match (e.present, e.serving) {
                (true, Some(true)) => ", still serving",
                (true, Some(false)) => ", not serving",
                _ => "",
            };
            all.push(phase(name, fact.at, fact.id, &format!("{how} {}{serving}", e.slice)));
        }
    }
    all
}

fn command(command: &Command, open: &Open, view: &View) -> PhaseFact {
    let hook = is_hook(command, view);
    let what = if hook { "the preStop hook" } else { "run from outside of the container" };
    let mut text = format!("`{}`, {what}", command.argv.join(" "));
    if let Some((at, _)) = command.exit {
        text.push_str(&format!(", ran {}", crate::explain::took(at.saturating_sub(command.at) / 1_000_000)));
    }
    let sent = command.exit.is_none_or(|(at, _)| at >= open.since);
    if sent {
        text.push_str(", sent the signal");
    }
    match command.exit {
        Some((_, code)) => text.push_str(&format!(", {}", before::exit_text(code))),
        None => text.push_str(", its exit was not seen"),
    }
    if !sent && !hook {
        text.push_str(" before the signal: a preStop hook, a probe, or somebody's exec");
    }
    PhaseFact {
        name: if hook { "prestop" } else { "exec" },
        at: command.at,
        until: command.exit.map(|(at, _)| at),
        event: command.event.map(Cited::Event),
        text,
        signal_to: None,
    }
}

fn in_flight(open: &Open, counters: Option<&StopCounters>) -> InFlight {
    let answered = counters.map(|c| c.answered_after);
    let drain_ms = counters.and_then(|c| since(open.base, c.last_answered));
    let seen = &open.seen;
    InFlight {
        at_signal: answered.zip(seen.cut_before).map(|(answered, cut)| answered + cut),
        answered,
        cut: seen.closed,
        drain_ms,
        longest_ms: drain_ms.into_iter().chain((seen.cut.n > 0).then_some(seen.cut.max)).max(),
    }
}

fn late(open: &Open, view: &View) -> Option<After> {
    // Without the hook for resets that no socket sends, refused connections leave no event.
    let blind = view.started.is_none_or(|s| s.degraded.iter().any(|d| d.id == "no-reply-resets"));
    let range = open.seen.late;
    (!blind).then_some(After { count: range.n, last_ms: (range.n > 0).then_some(range.max) })
}

fn grace(open: &Open, first: BootNs, at: BootNs, place: Option<&ContainerInfo>, view: &View) -> Option<Grace> {
    // Killed without a word: there was no grace period.
    let observed = open.killed.filter(|_| open.signal != sig::KILL).map(|killed| killed.saturating_sub(first) / MS);
    let pod = place.and_then(|c| view.pods.of(&c.container));
    let deleted = pod.and_then(|p| p.deleted.as_ref()).map(|d| d.what);
    let (ms, source) = match (observed, deleted, said::grace_s(place, view)) {
        (Some(ms), ..) => (ms, "observed"),
        (None, Some(s), _) if open.killed.is_none() => (s.saturating_mul(1000), "deletion"),
        (None, None, Some(s)) if open.killed.is_none() => (s.saturating_mul(1000), "spec"),
        _ => return None,
    };
    let end = open.exited.unwrap_or(at).saturating_sub(first) / MS;
    let left_ms = i64::try_from(ms).unwrap_or(i64::MAX) - i64::try_from(end).unwrap_or(i64::MAX);
    Some(Grace { ms, source: source.into(), left_ms })
}
