//! Where the API server is and who we are there.

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Mutex;

/// For a connection to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By the pod's service account.
    InCluster,
    /// By its current context.
    Kubeconfig(PathBuf),
}

impl Place {
    /// This process runs in a pod that has a service account.
    pub fn in_cluster() -> Option<Place> {
        Config::incluster().is_ok().then_some(Place::InCluster)
    }

    async fn config(&self) -> Result<Config, String> {
        let mut config = match self {
            Place::InCluster => Config::incluster().map_err(|e| e.to_string())?,
            Place::Kubeconfig(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| e.to_string())?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| e.to_string())?
            }
        };
        config.connect_timeout = Some(CONNECT);
        // Who watches waits on his own account, and tells how it goes.
        config.default_retry = false;
        Ok(config)
    }
}

/// A client, made again when the server does not know us any more: tokens are rotated, kubeconfigs rewritten.
pub struct Connection {
    place: Place,
    /// Counts the clients.
    client: Mutex<(u64, Option<Client>)>,
}

impl Connection {
    pub fn new(place: Place) -> Self {
        Connection { place, client: Mutex::new((0, None)) }
    }

    /// The client and its number.
    pub async fn client(&self) -> Result<(u64, Client), String> {
        let mut current = self.client.lock().await;
        if let (number, Some(client)) = &*current {
            return Ok((*number, client.clone()));
        }
        let client = Client::try_from(self.place.config().await?).map_err(|e| e.to_string())?;
        let number = current.0 + 1;
        *current = (number, Some(client.clone()));
        Ok((number, client))
    }

    /// The server refused this client: the next one reads everything again.
    pub async fn refused(&self, number: u64) {
        let mut current = self.client.lock().await;
        if current.0 == number {
            current.1 = None;
        }
    }
}

/// The HTTP status of an answer that was an error.
pub fn status(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// In one short line: what servers write is theirs.
pub fn tell(error: &kube::Error) -> String {
    let text = match error {
        kube::Error::Api(status) if status.message.is_empty() => format!("HTTP status {}", status.code),
        kube::Error::Api(status) => format!("{} (HTTP status {})", status.message, status.code),
        other => {
            let mut text = other.to_string();
            let mut inner = std::error::Error::source(other);
            while let Some(error) = inner {
                text = error.to_string();
                inner = error.source();
            }
            text
        }
    };
    let line = text.lines().next().unwrap_or_default();
    line[..line.floor_char_boundary(300)].to_owned()
}
