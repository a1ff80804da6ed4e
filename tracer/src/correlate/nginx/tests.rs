//! What a line of nginx's log is about.

use super::*;

#[test]
fn lines_are_known_by_their_formats() {
    let own = |sub_cause| Why::Own(Own::Invalid(sub_cause));
    for (errno, format, want) in [
        (111, "connect() failed", Why::Refused),
        (2, "connect() to %V failed", Why::Refused),
        (11, "connect() to %V failed", Why::Full),
        (113, "connect() failed", Why::Other),
        (113, "connect() to %V failed", Why::Own(Own::NoWay { errno: 113 })),
        (101, "connect() to %V failed", Why::Own(Own::NoWay { errno: 101 })),
        (101, "send() failed", Why::Other),
        (99, "connect() to %V failed", Why::NoPort),
        (99, "bind(%V) failed", Why::Other),
        (104, "recv() failed", Why::Ended),
        (104, "readv() failed", Why::Ended),
        (32, "writev() failed", Why::Ended),
        (0, "upstream prematurely closed connection", Why::Ended),
        (110, "upstream timed out", Why::TimedOut),
        (0, "no live upstreams", Why::Own(Own::NoLive)),
        (0, "%V could not be resolved (%i: %s)", Why::Own(Own::Unresolved)),
        (0, "upstream sent too big header", own("header-too-big")),
        (0, "upstream sent invalid header: \"%*s\\x%02xd...\"", own("header-invalid")),
        (0, "upstream sent no valid HTTP/1.0 header", own("header-invalid")),
        (0, "upstream sent duplicate header line: \"%V: %V\", ", own("header-invalid")),
        (0, "upstream sent invalid status \"%V\"", own("header-invalid")),
        (0, "upstream sent unsupported FastCGI protocol version: %d", own("protocol-invalid")),
        (0, "upstream sent unexpected FastCGI record: %ui", own("protocol-invalid")),
        (0, "upstream sent unexpected http2 frame: %d", own("protocol-invalid")),
        (0, "upstream prematurely closed FastCGI stdout", own("answer-incomplete")),
        (0, "FastCGI sent in stderr: \"%*s\"", Why::Other),
        (104, "FastCGI sent in stderr: \"%*s\"", Why::Other),
        (2, "open() \"%s\" failed", Why::Other),
        (0, "client intended to send too large body: %O bytes", Why::Other),
        (0, "", Why::Other),
    ] {
        assert_eq!(Why::of(errno, format), want, "{errno} {format}");
    }
}
