//! Talking over a unix socket: how long anything may take, and what can go wrong.

use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// To connect.
const CONNECT: Duration = Duration::from_secs(2);
/// For one answer.
pub(in crate::sources) const CALL: Duration = Duration::from_secs(5);
/// For a list of all containers.
pub(in crate::sources) const LIST: Duration = Duration::from_secs(10);
/// An idle runtime is asked for a sign of life.
pub(in crate::sources) const PING: Duration = Duration::from_secs(30);

/// Why a runtime cannot be asked. Some texts come from the runtime: hostile.
#[derive(Debug, thiserror::Error)]
pub(in crate::sources) enum Trouble {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("{what}: no answer within {} s", .after.as_secs())]
    Silent { what: &'static str, after: Duration },
    #[error("{what}: {why}")]
    Call { what: &'static str, why: String },
    /// Somebody else's socket.
    #[error("it serves {0}")]
    NotServed(&'static str),
    #[error("it ended the connection")]
    Ended,
}

impl Trouble {
    /// The error of a call, with no more of its text than a line.
    pub(in crate::sources) fn call(what: &'static str, why: impl std::fmt::Display) -> Trouble {
        let mut why = why.to_string();
        why.truncate(why.floor_char_boundary(300));
        Trouble::Call { what, why }
    }
}

pub(in crate::sources) async fn within<T>(
    after: Duration,
    what: &'static str,
    call: impl Future<Output = T>,
) -> Result<T, Trouble> {
    tokio::time::timeout(after, call).await.map_err(|_| Trouble::Silent { what, after })
}

pub(in crate::sources) async fn connect(path: &Path) -> Result<UnixStream, Trouble> {
    within(CONNECT, "connecting", UnixStream::connect(path)).await?.map_err(Trouble::Connect)
}
