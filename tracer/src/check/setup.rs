//! One pod as far as it is known: the rules look at this, and at nothing else.

use super::command::{Pid1, Server};
use super::{fpm, nginx, prestop, supervisor};
use crate::model::place::{At, Place};

/// Seconds for which an edge keeps idle connections to the pod, unless it is said: an nginx upstream's and an AWS load
/// balancer's default.
pub const EDGE_IDLE_DEFAULT: u64 = 60;

#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// `Deployment/web`
    pub workload: Option<String>,
    pub containers: Vec<Container>,
    /// Seconds; `None` when nobody said who stops the pod.
    pub grace: Option<At<u64>>,
    /// A pod spec was given: what it does not say is known not to be there.
    pub has_spec: bool,
    pub fpm: Option<fpm::Facts>,
    /// Seconds that the longest request takes.
    pub longest: Option<At<u64>>,
    /// Seconds.
    pub edge_idle: u64,
}

/// What a container's preStop hook does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// There is no spec to tell.
    Unknown,
    None,
    Does(At<prestop::Effect>),
}

/// What the runtime sends first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopSignal {
    pub number: u32,
    /// Where it is declared, or where it could be.
    pub at: Option<Place>,
    /// Else it is the runtime's default.
    pub declared: bool,
}

#[derive(Clone, Debug)]
pub struct Container {
    /// Hostile: escape before printing.
    pub name: String,
    /// In the spec.
    pub at: Option<Place>,
    pub servers: Vec<Server>,
    /// `None`: not known.
    pub stop_signal: Option<StopSignal>,
    pub pid1: At<Pid1>,
    pub hook: Hook,
    /// Stopped after the others.
    pub sidecar: bool,
    pub supervisor: Option<supervisor::Facts>,
    /// The configuration of its nginx.
    pub nginx: Option<nginx::Facts>,
    /// That the spec names; nothing follows from none.
    pub ports: Vec<u16>,
}

impl Container {
    pub fn serves(&self, server: Server) -> bool {
        self.servers.contains(&server)
    }
}

impl Setup {
    /// The container that a server runs in; with several, the first.
    pub fn of(&self, server: Server) -> Option<&Container> {
        self.containers.iter().find(|container| container.serves(server))
    }
}
