//! The bytes that the client sends.

use super::{LoadConf, Shape};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP/2 frame types and flags (RFC 9113, section 6).
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// What goes out at once, and what after `100 Continue`.
pub(super) fn bytes(conf: &LoadConf, path: &str) -> (Vec<u8>, Vec<u8>) {
    let host = conf.target;
    let connection = if conf.keep_alive { "" } else { "Connection: close\r\n" };
    let head = |method: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: why502-load\r\n{connection}{more}\r\n")
            .into_bytes()
    };
    match conf.shape {
        Shape::Get => (head("GET", ""), Vec::new()),
        Shape::Upload { bytes, expect: false } => {
            let mut out = head("POST", &format!("Content-Length: {bytes}\r\n"));
            out.resize(out.len() + bytes, b'x');
            (out, Vec::new())
        }
        Shape::Upload { bytes, expect: true } => {
            (head("POST", &format!("Content-Length: {bytes}\r\nExpect: 100-continue\r\n")), vec![b'x'; bytes])
        }
        Shape::PartialHeader => {
            let mut out = head("GET", "");
            out.truncate(out.len() / 2);
            (out, Vec::new())
        }
        Shape::PartialBody => {
            let mut out = head("POST", "Content-Length: 1000\r\n");
            out.resize(out.len() + 500, b'x');
            (out, Vec::new())
        }
        Shape::Idle(_) => (Vec::new(), Vec::new()),
        Shape::IdleHttp2(_) => ([PREFACE, &frame(SETTINGS, 0, &[])].concat(), Vec::new()),
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap_or(0);
    [&[0, 0, length, kind, flags, 0, 0, 0, 0], payload].concat()
}

/// The acknowledgements that an idle client owes for these frames. The servers of the harness send each of their few
/// frames in one piece, so frames that are cut are not waited for.
pub(super) fn http2_replies(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(payload) = rest.get(..length) else { break };
        match (*kind, flags & ACK) {
            (SETTINGS, 0) => out.extend(frame(SETTINGS, ACK, &[])),
            (PING, 0) => out.extend(frame(PING, ACK, payload)),
            _ => {}
        }
        bytes = &rest[length..];
    }
    out
}
