//! What an Event says.

use super::{Loss, Object};
use crate::model::incident::{Advice, Cause};
use crate::sinks::escape::escape;

/// Bytes of a note in the API.
pub const NOTE: usize = 1024;

/// `nginx-fast-shutdown` → `NginxFastShutdown`.
pub fn reason(cause: Cause) -> String {
    cause.id().split('-').map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// Verdict, first advice, how sure, and where to look further: that is never cut off.
pub fn note(loss: &Loss, about: &Object) -> String {
    let incident = &loss.incident;
    let of = match (&*about.kind, incident.pod.as_ref().and_then(|pod| pod.name.as_deref())) {
        ("Pod", _) | (_, None) => String::new(),
        (_, Some(pod)) => format!(" by pod {}", escape(pod)),
    };
    let requests = match (loss.requests, loss.exact) {
        (1, true) => "1 request was lost".to_owned(),
        (n, true) => format!("{n} requests were lost"),
        (n, false) => format!("at least {n} {} lost", if n == 1 { "request was" } else { "requests were" }),
    };
    let when = match &incident.stop {
        Some(_) => format!(" in a stop ({})", incident.trigger),
        None => String::new(),
    };
    let said = format!("{requests}{of}{when}: {}.{}", escape(&incident.summary), change(&incident.advice));
    let stop = incident.stop.as_ref().map(|stop| format!(", stop {}", escape(stop))).unwrap_or_default();
    let tail = format!(" ({}; incident {}{stop})", incident.confidence.level, escape(&incident.id));
    let tail = &tail[..tail.floor_char_boundary(NOTE / 4)];
    let room = NOTE - tail.len();
    if said.len() <= room {
        return said + tail;
    }
    let cut = said.floor_char_boundary(room - "…".len());
    format!("{}…{tail}", &said[..cut])
}

fn change(advice: &[Advice]) -> String {
    let Some(first) = advice.first() else { return String::new() };
    let more = match advice.len() - 1 {
        0 => String::new(),
        n => format!(" (one of {} changes)", n + 1),
    };
    format!(" Change {}: {}{more}", escape(&first.target), escape(&first.change))
}
