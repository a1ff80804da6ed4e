//! How things are said on a page. Nothing is escaped here: that is [`super::html`]'s.

use crate::model::BootNs;
use crate::model::incident::{Bound, Container, Incident, Party, Pod};

/// Times as people say them: `0.82 ms`, `12 ms`, `1.24 s`, `31.0 s`, `2 min 5 s`.
pub fn span(ns: u64) -> String {
    let us = ns / 1_000;
    match us {
        0 => "0".into(),
        1..10_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        10_000..1_000_000 => format!("{} ms", us / 1000),
        1_000_000..10_000_000 => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
        10_000_000..120_000_000 => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
        _ => {
            let s = us / 1_000_000;
            if s < 7200 {
                format!("{} min {} s", s / 60, s % 60)
            } else {
                format!("{} h {} min", s / 3600, s % 3600 / 60)
            }
        }
    }
}

pub fn ms(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        whole if whole.is_multiple_of(1000) && whole < 120_000 => format!("{} s", whole / 1000),
        _ => span(ms.saturating_mul(1_000_000)),
    }
}

/// From `zero`: `+1.24 s`, `-0.82 ms`, `0`.
pub fn since(zero: BootNs, at: BootNs) -> String {
    if at.abs_diff(zero) < 1_000 {
        return "0".into();
    }
    let sign = if at >= zero { "+" } else { "\u{2212}" };
    format!("{sign}{}", span(at.abs_diff(zero)))
}

/// The same to a hundredth of a millisecond, where that says anything: what follows on what is told apart.
pub fn exactly(zero: BootNs, at: BootNs) -> String {
    let ns = at.abs_diff(zero);
    if !(10_000_000..100_000_000_000).contains(&ns) {
        return since(zero, at);
    }
    let sign = if at >= zero { "+" } else { "\u{2212}" };
    format!("{sign}{}.{:02} ms", ns / 1_000_000, ns % 1_000_000 / 10_000)
}

/// Of at most `max` characters.
pub fn short(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_string();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// `nginx master 8593 (PID 1)`.
pub fn party(party: &Party) -> String {
    let p = &party.process;
    let name = match p.role.as_deref() {
        Some("nginx-master") => "nginx master",
        Some("nginx-worker") => "nginx worker",
        Some("php-fpm-master") => "php-fpm master",
        Some("php-fpm-child") => "php-fpm child",
        _ => p.comm.as_str(),
    };
    let inside = if p.pid != 0 && p.pid != p.host_pid { format!(" (PID {})", p.pid) } else { String::new() };
    format!("{name} {}{inside}", p.host_pid)
}

/// `shop/web-7d9f`, or what is known instead.
pub fn pod(pod: Option<&Pod>, container: Option<&Container>) -> String {
    match (pod, container) {
        (Some(Pod { namespace: Some(namespace), name: Some(name), .. }), _) => format!("{namespace}/{name}"),
        (Some(Pod { name: Some(name), .. }), _) => name.clone(),
        (Some(pod), _) => format!("pod {}", short(&pod.uid, 13)),
        (None, Some(Container { name: Some(name), .. })) => name.clone(),
        (None, Some(container)) => format!("container {}", short(&container.id, 13)),
        (None, None) => "no known container".into(),
    }
}

/// Where a request went: `10.0.3.7:80`, `unix:/run/php.sock`.
pub fn address(i: &Incident) -> String {
    match (&i.server.path, i.server.ip, i.server.port) {
        (Some(path), ..) => format!("unix:{path}"),
        (None, Some(ip), Some(port)) => std::net::SocketAddr::new(ip, port).to_string(),
        _ => "a local server".into(),
    }
}

pub fn requester(i: &Incident) -> String {
    match (i.requester.ip, i.requester.port) {
        (Some(ip), Some(port)) => std::net::SocketAddr::new(ip, port).to_string(),
        _ => "a local process".into(),
    }
}

/// A lost request in one line.
pub fn request(i: &Incident) -> String {
    let age = i.age_ms.map(|ms| format!(" after {}", self::ms(ms))).unwrap_or_default();
    format!("{}{age}: {} → {}, {}", i.outcome, requester(i), address(i), i.cause)
}

/// `12 requests`, `at least 3 requests`.
pub fn requests(n: u64, bound: Bound) -> String {
    let bound = if bound == Bound::AtLeast { "at least " } else { "" };
    format!("{bound}{n} request{}", if n == 1 { "" } else { "s" })
}

/// `2026-11-22 14:03:22.118 UTC` of an RFC 3339 time.
pub fn moment(rfc3339: &str) -> String {
    match rfc3339.split_once('T') {
        Some((day, time)) if time.len() >= 12 && time.is_char_boundary(12) => format!("{day} {} UTC", &time[..12]),
        _ => rfc3339.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_three_digits() {
        let all = [0, 820_000, 9_990_000, 12_345_678, 999_999_999, 1_240_000_000, 31_040_000_000, 125_000_000_000];
        let said = all.map(span);
        assert_eq!(said, ["0", "0.82 ms", "9.99 ms", "12 ms", "999 ms", "1.24 s", "31.0 s", "2 min 5 s"]);
        assert_eq!(span(u64::MAX), "5124095 h 34 min");
        assert_eq!([ms(0), ms(30_000), ms(27_900), ms(999)], ["0 ms", "30 s", "27.9 s", "999 ms"]);
        assert_eq!([since(5_000_000, 5_000_400), since(5_000_000, 2_000_000)], ["0", "−3.00 ms"]);
    }

    #[test]
    fn cut_at_a_character() {
        assert_eq!(short("äöüß", 3), "äö…");
        assert_eq!(short("äöü", 3), "äöü");
        assert_eq!(moment("2026-11-22T14:03:22.118204113Z"), "2026-11-22 14:03:22.118 UTC");
        assert_eq!(moment("2026-11-22T14:03:22.11é204113Z"), "2026-11-22T14:03:22.11é204113Z");
    }
}
