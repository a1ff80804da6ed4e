//! The Kubernetes API: this node's pods, how they leave their services, and why they end. The only room that knows `kube`.
//!
//! A thread of its own, so that a large answer holds no event up: watches of the node's pods, of the node and of the
//! endpoints (as kube-proxy does), and questions about a pod's owners and Events when it ends. It goes on whatever the
//! server does; what it gives are [`Input`]s.

mod ask;
mod connect;
mod doctor;
mod read;
mod state;
mod watch;
mod write;

pub use connect::Place;
pub use doctor::{Access, Examined, examine};
pub use write::EventWriter;

use crate::model::kube::{FactId, KubeFact, Said};
use crate::model::{BootNs, Input};
use connect::Connection;
use state::{Cluster, Fact};
use std::io;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};
use watch::{Change, Kind};

/// Changes that wait to be read: a list comes as one.
const CHANGES: usize = 256;
/// Inputs that wait to be taken: beyond it the API waits.
const INPUTS: usize = 4_096;
/// Questions under way at once.
const QUESTIONS: usize = 8;
/// Inputs given at once, so that a list of many pods holds no event up.
const GIVEN: usize = 512;

/// A running source. Dropping it ends its thread.
#[derive(Debug)]
pub struct Source {
    inputs: mpsc::Receiver<Input>,
    /// Dropped to end the thread.
    _stop: oneshot::Sender<()>,
}

impl Source {
    /// Begins to watch `node`. `now` gives the boot time.
    pub fn start(place: Place, node: String, now: fn() -> BootNs) -> io::Result<Source> {
        let (to, inputs) = mpsc::channel(INPUTS);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = watch_all(place, node, now, to) => {}
                }
            });
            // A look-up of a name may hang for long.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("kubernetes".into()).spawn(run)?;
        Ok(Source { inputs, _stop: stop })
    }

    /// What has come since the last time.
    pub fn due(&mut self) -> Vec<Input> {
        std::iter::from_fn(|| self.inputs.try_recv().ok()).take(GIVEN).collect()
    }

    /// The next one; `None` when there will be none.
    #[cfg(test)]
    async fn next(&mut self) -> Option<Input> {
        self.inputs.recv().await
    }
}

async fn watch_all(place: Place, node: String, now: fn() -> BootNs, to: mpsc::Sender<Input>) {
    let connection = Arc::new(Connection::new(place));
    let (changed, mut changes) = mpsc::channel(CHANGES);
    for kind in [Kind::Pods, Kind::Nodes, Kind::EndpointSlices] {
        tokio::spawn(watch::run(connection.clone(), node.clone(), kind, changed.clone()));
    }
    let room = Arc::new(Semaphore::new(QUESTIONS));
    let mut cluster = Cluster::new(&node);
    let mut ids = 0;
    while let Some(change) = changes.recv().await {
        // One time for all that a change says.
        let seen_at = now();
        let outcome = cluster.apply(change);
        for question in outcome.questions {
            let (connection, changed, room) = (connection.clone(), changed.clone(), room.clone());
            tokio::spawn(async move {
                let _turn = room.acquire().await;
                let answers = ask::ask(&connection, question).await;
                // Nobody listens any more: the end.
                let _ = changed.send(Change::Answers(answers)).await;
            });
        }
        for fact in outcome.facts {
            let input = match fact {
                Fact::Spec(spec) => Input::Spec(crate::model::input::SpecFact { at: seen_at, ..spec }),
                Fact::Said(said) => {
                    ids += 1;
                    Input::Kube(Box::new(numbered(FactId(ids), seen_at, *said)))
                }
            };
            if to.send(input).await.is_err() {
                return;
            }
        }
    }
}

fn numbered(id: FactId, seen_at: BootNs, (at, said): (Option<i64>, Said)) -> KubeFact {
    KubeFact { id, seen_at, at, said }
}

#[cfg(test)]
mod tests;
