//! One line of the client's ledger.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

/// How a request ended, as the client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// A whole answer, status below 400.
    Ok { status: u16 },
    /// A whole answer, status 400 or above.
    HttpError { status: u16 },
    /// connect(2): ECONNREFUSED.
    Refused,
    /// connect(2) failed otherwise.
    ConnectFailed { errno: i32 },
    /// A new connection was reset before anything could be sent on it.
    ConnectReset,
    /// The request was sent; the connection was closed without a byte of a final answer.
    Eof,
    /// The same by a reset.
    Reset,
    /// The connection ended inside the answer.
    Truncated,
    /// No answer, and no end, within the client's patience.
    Timeout,
    /// send(2) failed in the middle of the request, and there was no answer to read.
    SendFailed { errno: i32 },
    /// The client hung up, as it was told to.
    Aborted,
    /// No request was to be sent, and none was.
    NoRequest { closed_by_server: bool },
}

impl Outcome {
    /// Its kebab-case name, with the status.
    pub fn name(self) -> String {
        match self {
            Self::Ok { status } => format!("ok({status})"),
            Self::HttpError { status } => format!("http-error({status})"),
            Self::ConnectFailed { errno } => format!("connect-failed({errno})"),
            Self::SendFailed { errno } => format!("send-failed({errno})"),
            Self::Refused => "refused".into(),
            Self::ConnectReset => "connect-reset".into(),
            Self::Eof => "eof".into(),
            Self::Reset => "reset".into(),
            Self::Truncated => "truncated".into(),
            Self::Timeout => "timeout".into(),
            Self::Aborted => "aborted".into(),
            Self::NoRequest { .. } => "no-request".into(),
        }
    }
}

/// Times are CLOCK_BOOTTIME in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub id: String,
    /// Counts the connections of this client; requests of one kept connection share it.
    pub connection: u64,
    /// Requests that were answered on this connection before.
    pub answered_before: u64,
    pub path: String,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// connect(2) was called.
    pub t_connect: u64,
    /// The first byte of the request was taken by the kernel; `None`: there was none.
    pub t_sent: Option<u64>,
    pub t_end: u64,
    pub bytes_sent: u64,
    /// All of the request was taken by the kernel.
    pub sent_all: bool,
    pub bytes_received: u64,
    /// The client never meant to send a whole request, or meant to hang up: nothing of it can be lost.
    pub deliberate: bool,
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Request {
    /// It is one, and not a connection that was to carry none.
    pub fn asks(&self) -> bool {
        !matches!(self.outcome, Outcome::NoRequest { .. })
    }

    /// On a connection that had not answered anything before.
    pub fn fresh(&self) -> bool {
        self.answered_before == 0
    }
}

pub fn write_ledger(path: &Path, requests: &[Request]) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    for request in requests {
        writeln!(out, "{}", serde_json::to_string(request)?)?;
    }
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}

pub fn read_ledger(path: &Path) -> Result<Vec<Request>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate();
    lines.map(|(n, l)| serde_json::from_str(l).with_context(|| format!("{}:{}", path.display(), n + 1))).collect()
}
