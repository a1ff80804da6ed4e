//! The other end: asks a running agent.

use crate::store::query::{Kind, Query};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Until the connection stands, and until an answer begins.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
/// A stream says more often than this that it lives.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes of a page, and of a line of a stream, that are believed.
const PAGE: usize = 64 << 20;
const LINE: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: Url, why: String },
    #[error("{url} answers {status}: {text}")]
    Refused { url: Url, status: u16, text: String },
    #[error("{url} does not answer as why502 does: {why}")]
    Foreign { url: Url, why: String },
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// `http://HOST:PORT`. Nothing else is spoken: what leaves the host goes through a tunnel or a proxy of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    authority: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Url, String> {
        let bad = || format!("{text:?} is no address such as http://10.0.3.7:9502");
        let uri: hyper::Uri = text.parse().map_err(|_| bad())?;
        let plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|a| plain && !a.as_str().contains('@')).ok_or_else(bad)?;
        // A port that is no number of 16 bits counts as none there.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 9502,
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).ok_or_else(bad)?,
            None => return Err(bad()),
        };
        Ok(Url { authority: format!("{}:{port}", authority.host()) })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// A page of `/incidents`, `/stops` or `/records`.
#[derive(Debug, Deserialize)]
pub struct Page {
    pub cursor: u64,
    pub more: bool,
    /// Each as it was written.
    pub items: Vec<Box<RawValue>>,
}

/// An agent that can be asked.
pub struct Agent {
    url: Url,
    runtime: Runtime,
}

impl Agent {
    pub fn new(url: Url) -> Result<Agent, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Agent { url, runtime: runtime.map_err(ClientError::Runtime)? })
    }

    /// Something listens there.
    pub fn is_there(&self) -> bool {
        self.runtime.block_on(self.connect()).is_ok()
    }

    /// One answer.
    pub fn page(&self, query: &Query) -> Result<Page, ClientError> {
        self.runtime.block_on(async {
            let response = self.get(&path(query, false), "application/json").await?;
            let body = Limited::new(response.into_body(), PAGE).collect();
            let foreign = |why: String| ClientError::Foreign { url: self.url.clone(), why };
            let body = timeout(SILENCE, body).await.map_err(|_| foreign("its answer does not end".into()))?;
            let body = body.map_err(|e| foreign(e.to_string()))?.to_bytes();
            serde_json::from_slice(&body).map_err(|e| foreign(e.to_string()))
        })
    }

    /// A stream from `query.after` on; `each` gets the cursor and the record. `Ok(Some(why))`: it ended and can be asked for
    /// again; `Ok(None)`: `each` wanted no more.
    pub fn follow<E: From<ClientError>>(
        &self,
        query: &Query,
        mut each: impl FnMut(u64, &str) -> Result<ControlFlow<()>, E>,
    ) -> Result<Option<String>, E> {
        self.runtime.block_on(async {
            let mut body = match self.get(&path(query, true), "text/event-stream").await {
                Ok(response) => response.into_body(),
                Err(e @ ClientError::Unreachable { .. }) => return Ok(Some(e.to_string())),
                Err(e) => return Err(e.into()),
            };
            let mut lines = Lines::default();
            let mut seq = 0;
            loop {
                let frame = match timeout(SILENCE, body.frame()).await {
                    Ok(Some(Ok(frame))) => frame,
                    Ok(Some(Err(e))) => return Ok(Some(format!("{} broke off: {e}", self.url))),
                    Ok(None) => return Ok(Some(format!("{} ended", self.url))),
                    Err(_) => return Ok(Some(format!("{} is silent", self.url))),
                };
                let Ok(data) = frame.into_data() else { continue };
                if !lines.add(&data) {
                    let why = "a line without an end".to_owned();
                    return Err(ClientError::Foreign { url: self.url.clone(), why }.into());
                }
                while let Some(line) = lines.next() {
                    if let Some(id) = line.strip_prefix("id: ").and_then(|id| id.parse().ok()) {
                        seq = id;
                    } else if let Some(json) = line.strip_prefix("data: ")
                        && each(seq, json)?.is_break()
                    {
                        return Ok(None);
                    }
                }
            }
        })
    }

    async fn connect(&self) -> Result<TcpStream, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { url: self.url.clone(), why };
        match timeout(CONNECT, TcpStream::connect(&self.url.authority)).await {
            Ok(connected) => connected.map_err(|e| unreachable(e.to_string())),
            Err(_) => Err(unreachable("no answer".into())),
        }
    }

    async fn get(&self, path: &str, accept: &str) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { url: self.url.clone(), why };
        let foreign = |why: String| ClientError::Foreign { url: self.url.clone(), why };
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(io).await.map_err(|e| unreachable(e.to_string()))?;
        // It ends with the answer's body.
        tokio::spawn(connection);
        let request = Request::get(path).header(HOST, &self.url.authority).header(ACCEPT, accept);
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| foreign(e.to_string()))?;
        let response = timeout(ANSWER, sender.send_request(request)).await;
        let response = response.map_err(|_| unreachable("no answer".into()))?.map_err(|e| foreign(e.to_string()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = Limited::new(response.into_body(), 4096).collect();
        let text = timeout(CONNECT, text).await.ok().and_then(Result::ok).map(|text| text.to_bytes());
        let text = String::from_utf8_lossy(text.as_deref().unwrap_or_default()).trim_end().to_owned();
        Err(ClientError::Refused { url: self.url.clone(), status: status.as_u16(), text })
    }
}

/// The request of a query.
fn path(query: &Query, follow: bool) -> String {
    let mut path = match query.kind {
        Kind::All => "/records?",
        Kind::Incidents => "/incidents?",
        Kind::Stops => "/stops?",
    }
    .to_owned();
    let causes = (!query.causes.is_empty()).then(|| query.causes.join(","));
    let number = |number: Option<u64>| number.map(|n| n.to_string());
    for (name, value) in [
        ("namespace", query.namespace.clone()),
        ("pod", query.pod.clone()),
        ("workload", query.workload.clone()),
        ("cause", causes),
        ("id", query.id.clone()),
        ("stop", query.stop.clone()),
        ("since", query.since.clone()),
        ("until", query.until.clone()),
        ("after", number(query.after)),
        ("before", number(query.before)),
        ("limit", query.limit.map(|n| n.to_string())),
        ("follow", follow.then(|| "1".to_owned())),
    ] {
        if let Some(value) = value {
            path.extend([name, "="]);
            path.extend(utf8_percent_encode(&value, NON_ALPHANUMERIC));
            path.push('&');
        }
    }
    path.pop();
    path
}

/// Bytes as they come, in lines.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Up to here they were given.
    done: usize,
}

impl Lines {
    /// False: a line is too long.
    fn add(&mut self, data: &[u8]) -> bool {
        self.bytes.drain(..self.done);
        self.done = 0;
        self.bytes.extend_from_slice(data);
        self.bytes.len() <= LINE
    }

    fn next(&mut self) -> Option<String> {
        let rest = &self.bytes[self.done..];
        let end = rest.iter().position(|b| *b == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.done += end + 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let url = |text: &str| text.parse::<Url>().map(|url| url.to_string());
        assert_eq!(url("http://10.0.3.7:9502").unwrap(), "http://10.0.3.7:9502");
        assert_eq!(url("http://[::1]:80/").unwrap(), "http://[::1]:80");
        assert_eq!(url("http://node-7").unwrap(), "http://node-7:9502");
        for bad in ["", "10.0.3.7:9502", "https://x:1", "http://x/y", "http://u@x", "http://x:99999", "http://"] {
            assert!(url(bad).unwrap_err().contains("http://10.0.3.7:9502"), "{bad}");
        }
    }

    #[test]
    fn lines_in_pieces() {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for piece in ["id: 1\nda", "ta: x", "\n\nid", ": 2\n"] {
            assert!(lines.add(piece.as_bytes()));
            all.extend(std::iter::from_fn(|| lines.next()));
        }
        assert_eq!(all, ["id: 1", "data: x", "", "id: 2"]);
        assert!(!lines.add(&vec![b'x'; LINE + 1]));
    }
}
