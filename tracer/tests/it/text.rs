//! Blocks and lines as people see them.

use crate::samples;
use why502::model::incident::{Bound, Grace, InFlight, Requests};
use why502::model::{Incident, Stop};
use why502::sinks::text::{self, Paint, WIDTH};
use why502::sinks::trace::{self, Context};

const PLAIN: Paint = Paint { on: false };

fn incident(incident: &Incident) -> String {
    text::incident(incident, PLAIN)
}

#[test]
fn an_incident() {
    let wanted = "\
2026-11-22 14:03:22.118204 UTC  unanswered  shop/web-7d9f-x2k1 nginx 3f2a9c41d0e7 (containerd)
          10.0.9.2:51514 -> 10.0.3.7:80, requester: edge, lost after 2412 ms
  why     nginx was stopped with SIGTERM, its fast shutdown: this request was cut after 2.4 s
          cause nginx-fast-shutdown, mechanism closed-in-flight, trigger pod-deleted; also matched:
          endpoint-race
  how     -118.204 ms  k3   pod shop/web-7d9f-x2k1 was deleted, grace 30 s
            -5.000 ms  e12  containerd (runc) sent SIGTERM to nginx master, PID 1 in the container
            -1.800 ms  e15  nginx worker exited with 0
             0.000 ms  e17  the exiting worker closed the connection from 10.0.9.2:51514: 79 bytes
                            read, no answer sent
  change  - Dockerfile (dockerfile): STOPSIGNAL SIGQUIT
            SIGQUIT lets nginx finish the requests that it has (only together with prestop-sleep)
          - spec.containers[nginx].lifecycle.preStop (pod-spec): sleep before the stop signal [5 s]
            new connections came for 3.1 s after the stop signal (n=12, 0.2 to 3.1 s)
  sure    certain (0.98)
  missing pod-spec: whether a preStop hook is configured is not known
  id      i-8f1f6a0c-17, part of stop s-8f1f6a0c-12

";
    assert_eq!(incident(&samples::incident()), wanted);
}

#[test]
fn an_incident_that_little_is_known_of() {
    let wanted = "\
2026-11-22 14:03:22.118204 UTC  unanswered  no known container
          10.0.9.2:51514 -> 10.0.3.7:80, requester: edge
  why     nginx was stopped with SIGTERM, its fast shutdown: this request was cut after 2.4 s
          cause unexplained, mechanism closed-in-flight, trigger unknown
  how     no event is known that led to it
  change  nothing is advised on these facts
  sure    possible (0.30), lowered by: events were lost; started late
  missing pod-spec: whether a preStop hook is configured is not known
  lost    3 events in this window: tcp_send_reset/ring-full 3
  id      i-8f1f6a0c-17

";
    assert_eq!(incident(&samples::bare_incident()), wanted);
}

#[test]
fn what_is_not_usual_is_said() {
    let said = |i: &Incident, what: &str| {
        let text = incident(i).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(what), "{what:?} is not in {text}");
    };
    let mut i = samples::incident();
    i.requests = Requests { count: 2, bound: Bound::AtLeast };
    i.response.bytes = 1234;
    said(&i, "edge, at least 2 requests, lost after 2412 ms, 1234 bytes of an answer sent why");
    i.response.status = Some(502);
    i.response.source = "nginx".into();
    said(&i, "2412 ms, status 502 (from nginx) why");
    i.sub_cause = Some("handshake".into());
    said(&i, "cause nginx-fast-shutdown/handshake, ");
}

#[test]
fn a_stop() {
    let wanted = "\
2026-11-22 14:03:22.113204 UTC  stopped  nginx in shop/web-7d9f-x2k1 nginx 3f2a9c41d0e7 (containerd)
          SIGTERM, trigger pod-deleted
  phases   +0 ms  deleted          pod shop/web-7d9f-x2k1 was deleted, grace 30 s
           +0 ms  stop-signal      runc sent SIGTERM to nginx master
           +5 ms  listener-closed  0.0.0.0:80 was closed
          +10 ms  exit             nginx master exited with 0
  open    12 in flight at the signal: 9 answered (the last after 2.1 s); 3 cut; the longest took at
          least 3.1 s
  after   14 connections accepted, the last 0.8 s after the signal; 1 refused, the last 1.4 s after
          the listener's close
  grace   27.9 s of 30.0 s left (spec)
  lost    4 requests: endpoint-race 1, nginx-fast-shutdown 3
  change  - Dockerfile (dockerfile): STOPSIGNAL SIGQUIT
            SIGQUIT lets nginx finish the requests that it has (only together with prestop-sleep)
          - spec.containers[nginx].lifecycle.preStop (pod-spec): sleep before the stop signal [5 s]
            new connections came for 3.1 s after the stop signal (n=12, 0.2 to 3.1 s)
  id      s-8f1f6a0c-12

";
    assert_eq!(text::stop(&samples::stop(), PLAIN), wanted);
    let none = Stop { incidents: 0, by_cause: Default::default(), signal: None, ..samples::stop() };
    let none = text::stop(&none, PLAIN);
    assert!(none.contains("  lost    no request\n") && none.contains("no signal seen, "), "{none}");
    let unknown = InFlight { cut: 2, longest_ms: Some(1234), ..InFlight::default() };
    let grace = Some(Grace { ms: 10_000, source: "observed".into(), left_ms: -3 });
    let unknown = Stop { in_flight: unknown, accepted_after: None, late: None, grace, ..samples::stop() };
    let unknown = text::stop(&unknown, PLAIN);
    assert!(
        unknown.contains("  open    2 cut; the longest took at least 1.2 s\n  grace   all of 10.0 s used (observed)\n"),
        "{unknown}"
    );
}

#[test]
fn colours_only_when_asked_for_and_never_instead_of_words() {
    for (plain, painted) in [
        (incident(&samples::incident()), text::incident(&samples::incident(), Paint { on: true })),
        (text::stop(&samples::stop(), PLAIN), text::stop(&samples::stop(), Paint { on: true })),
    ] {
        assert!(!plain.contains('\x1b'));
        assert!(painted.contains("\x1b["));
        assert_eq!(without_colours(&painted), plain);
    }
}

fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap().to_string();
    parts.fold(first, |out, part| out + part.split_once('m').unwrap().1)
}

#[test]
fn no_line_is_too_long() {
    let mut i = samples::incident();
    i.summary = "word ".repeat(100);
    i.missing[0].effect = "word ".repeat(100);
    for link in &mut i.chain {
        link.text = "word ".repeat(100);
    }
    for a in &mut i.advice {
        a.why = "word ".repeat(100);
    }
    for line in incident(&i).lines().chain(text::stop(&samples::stop(), PLAIN).lines()) {
        assert!(line.chars().count() <= WIDTH, "{line}");
        assert!(!line.ends_with(' '), "{line:?}");
    }
}

#[test]
fn events_as_lines() {
    let context = Context { time: "14:03:22.118204", host_pidns: 4_026_531_836, ..Context::default() };
    let lines: Vec<String> = samples::events().iter().map(|event| trace::line(event, context)).collect();
    let wanted = [
        "nginx[8593/1] --- SIGTERM {si_code=SI_USER} --- handler",
        "nginx[8593/1] forked nginx[8597/2]",
        "nginx[8593/1] execve(\"/usr/sbin/nginx\", [\"nginx\", \"-g\", \"daemon off;\\x1b[2J\", ...]) (no-ns-pid) (no-argv) \
         (no-packet) (no-netns) (no-sk-cgroup) (no-tcp-sock) (no-format)",
        "nginx[8597/1] +++ killed by SIGKILL +++",
        "tcp 10.0.3.7:80 <- 10.0.9.2:51514 ESTABLISHED -> FIN_WAIT1 rx=79 tx=600 by nginx[8597/1] exiting",
        "tcp 10.0.3.7:80 LISTEN -> CLOSE queue=0/0 by nginx[8597/1] exiting",
        "tcp 10.0.3.7:80 -> 10.0.9.2:51514 ESTABLISHED -> FIN_WAIT1 rx=79 tx=600 unread=9 not accepted err=ECONNRESET \
         by nginx[8597/1] exiting",
        "tcp 10.0.3.7:80 -> 10.0.9.2:51514 RST received in SYN_SENT rx=0 tx=0 retransmitted=1",
        "tcp 10.0.3.7:80 -> 10.0.9.2:51514 SYN sent again in SYN_SENT rx=0 tx=0 retransmitted=1",
        "php-fpm[8600/1] chosen by the OOM killer",
        "tcp 10.0.3.7:80 <- 10.0.9.2:51514 RST sent to [S] len=0, no socket, closed before by 8597 rx=79 tx=600",
        "unix \"/run/php.sock\" closed with bytes unread by php-fpm8.2[8600/1]",
        "unix nginx[8597/1] connect(\"/run/php.sock\") = 111 (Connection refused)",
        r#"nginx[8597/1] logs error "connect() \x1b[2Jfailed", errno 111 (Connection refused)"#,
        "nginx[8597/1] answers 502 to 10.0.9.2:51514",
        "nginx[8593/1] <-- SIGTERM {si_code=SI_USER} from runc[8632] (host)",
        "nginx[8593/1] <-- SIGTERM {si_code=SI_KERNEL} from the kernel in runc[8632] (host)",
        "nginx[8593/1] <-- SIGTERM {si_code=SI_USER, si_pid=0} from runc[8632] (host)",
        "tcp 10.0.3.7:80 <- 10.0.9.2:51514 RST sent reason=3 to [S] len=0, no socket, closed before by 8597 rx=79 tx=600",
        "tcp 10.0.3.7:80 <- 10.0.9.2:51514 RST sent reason=3 on its own account, ESTABLISHED rx=79 tx=0 not accepted \
         by nginx[8597/1]",
        "tcp 10.0.3.7:80 <- 10.0.9.2:51514 RST sent reason=3 to [S] len=0, socket in TIME_WAIT",
        "tcp 10.0.3.7:80 <- 10.0.9.2:51514 RST sent reason=3 to [S] len=0, socket in SYN_RECV",
    ];
    assert_eq!(lines.len(), wanted.len());
    for (line, wanted) in lines.iter().zip(wanted) {
        assert_eq!(line, &format!("14:03:22.118204 {wanted}"));
    }
}
