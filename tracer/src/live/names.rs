//! Containers by name: what runtimes say beside the events, asked for when a container's cgroup comes up.

use crate::identity::container;
use crate::model::Input;
use crate::model::input::CgroupFact;
use crate::sources::runtimes::{Runtimes, Wish};
use std::io;
use std::path::Path;
use std::time::Duration;

/// So long the start waits for the names of what runs already. A runtime that hangs delays nothing else.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Names(Option<Runtimes>);

impl Names {
    pub(super) fn start(root: &Path, wish: &Wish) -> io::Result<Names> {
        Runtimes::start(root, wish).map(Names)
    }

    /// What the runtimes said of the containers that were there at the start.
    pub(super) async fn listed(&mut self) -> Vec<Input> {
        if let Some(runtimes) = &mut self.0 {
            runtimes.listed(PATIENCE).await;
        }
        self.due()
    }

    /// The cgroup as an input; its container is asked for, unless it is known.
    pub(super) fn cgroup(&mut self, fact: CgroupFact) -> Input {
        if let Some(runtimes) = &self.0
            && let Some(found) = fact.path.as_deref().and_then(container::parse)
        {
            runtimes.want(&found.id);
        }
        Input::Cgroup(fact)
    }

    /// What was said since the last time.
    pub(super) fn due(&mut self) -> Vec<Input> {
        self.0.as_mut().map(Runtimes::take).unwrap_or_default()
    }
}
