//! dockerd by its API, and podman, which has the same and more.

mod http;

use super::runtimes::{CALL, LIST, PING, Talk, Trouble, fact};
use crate::model::input::{ContainerFact, PodFact};
use crate::sinks::names::signal_number;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// Containers that ended, whose next start is another one's number of restarts.
const ENDED_MAX: usize = 4_096;
/// Pods whose names are remembered.
const PODS_MAX: usize = 1_024;
/// `{"type":["container"],"event":["create","start","die","destroy"]}`
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%2C%22start%22%2C%22die%22%2C%22destroy%22%5D%7D";

/// `docker 20.10.24`, `podman 4.3.1`.
pub(super) async fn version(path: &Path) -> Result<String, Trouble> {
    Ok(Api::ask(path).await?.text())
}

/// Lists, then follows the events and the questions.
pub(super) async fn follow(talk: &mut Talk) -> Result<Infallible, Trouble> {
    let mut api = Api::ask(&talk.path).await?;
    talk.connected(&api.text()).await;
    // Before the list: nothing falls between the two.
    let mut events = http::lines(&talk.path, "events", EVENTS).await?;
    for listed in api.list().await? {
        if !talk.out.knows(&listed.id) {
            api.tell(&listed.id, talk).await?;
        }
    }
    talk.listed();
    let mut ended: BTreeSet<String> = BTreeSet::new();
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next::<Event>() => {
                let event = event?;
                let id = event.actor.id.clone();
                match event.action.as_str() {
                    "die" => {
                        if ended.len() < ENDED_MAX {
                            ended.insert(id);
                        }
                    }
                    "destroy" => _ = ended.remove(&id),
                    _ if talk.out.knows(&id) && !ended.remove(&id) => {}
                    _ => {
                        if !api.tell(&id, talk).await? {
                            // It lived so short a time that only its event is left.
                            talk.out.container(api.of_event(event, &talk.at)).await;
                        }
                    }
                }
            }
            ask = talk.asks.recv() => {
                let Some(ask) = ask else { return Err(Trouble::Ended) };
                let known = talk.out.knows(&ask.id) || api.tell(&ask.id, talk).await?;
                _ = ask.known.send(known);
            }
            _ = ping.tick() => http::ping(&talk.path).await?,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct VersionAnswer {
    version: String,
    components: Vec<Component>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Component {
    name: String,
    version: String,
    details: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Id")]
    id: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes", default)]
    attributes: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    id: String,
    name: String,
    created: Option<String>,
    restart_count: Option<u32>,
    config: Config,
    host_config: HostConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    /// A name or a number.
    stop_signal: Option<serde_json::Value>,
    stop_timeout: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    cgroup_parent: String,
}

/// What only podman's own API tells.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Podman {
    pod: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PodInspected {
    name: String,
}

struct Api {
    path: PathBuf,
    version: String,
    /// The version of podman's own API, where it is podman.
    podman: Option<String>,
    /// Names of podman's pods.
    pods: BTreeMap<String, String>,
}

impl Api {
    async fn ask(path: &Path) -> Result<Api, Trouble> {
        let answer: Option<VersionAnswer> = http::json(path, "version", "/version", CALL).await?;
        let answer = answer.filter(|a| !a.version.is_empty()).ok_or(Trouble::NotServed("no Docker API"))?;
        let podman = answer.components.into_iter().find(|c| c.name == "Podman Engine");
        let api = podman.map(|c| {
            let said = c.details.get("APIVersion").and_then(serde_json::Value::as_str);
            let version = said.map_or(c.version, str::to_owned);
            // It becomes part of a path.
            version.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect()
        });
        Ok(Api { path: path.to_path_buf(), version: answer.version, podman: api, pods: BTreeMap::new() })
    }

    fn text(&self) -> String {
        format!("{} {}", self.runtime(), self.version)
    }

    fn runtime(&self) -> &'static str {
        if self.podman.is_some() { "podman" } else { "docker" }
    }

    /// Those that run.
    async fn list(&self) -> Result<Vec<Listed>, Trouble> {
        Ok(http::json(&self.path, "containers", "/containers/json", LIST).await?.unwrap_or_default())
    }

    /// Gives out what is known of one container; false: there is none of this id.
    async fn tell(&mut self, id: &str, talk: &Talk) -> Result<bool, Trouble> {
        if !fact::is_id(id) {
            return Ok(false);
        }
        let asked = http::json(&self.path, "container", &format!("/containers/{id}/json"), CALL).await?;
        let Some(found): Option<Inspected> = asked else { return Ok(false) };
        // A short id would find a container as well.
        if found.id != id {
            return Ok(false);
        }
        let pod = self.pod(id).await?;
        talk.out.container(self.fact(found, pod, &talk.at)).await;
        Ok(true)
    }

    fn fact(&self, found: Inspected, pod: Option<PodFact>, at: &str) -> ContainerFact {
        let Inspected { id, name, created, restart_count, config, host_config } = found;
        let stop_signal = match &config.stop_signal {
            Some(serde_json::Value::String(name)) => signal_number(name),
            Some(number) => number.as_u64().and_then(|n| u32::try_from(n).ok()),
            None => None,
        };
        let docker = fact::Docker {
            id,
            source: at.to_owned(),
            runtime: self.runtime(),
            name,
            image: config.image,
            labels: config.labels.unwrap_or_default(),
            restarts: restart_count,
            // podman fills in its default: that declares nothing.
            stop_signal: stop_signal.filter(|s| self.podman.is_none() || *s != SIGTERM),
            stop_timeout: config.stop_timeout,
            cgroup_parent: host_config.cgroup_parent,
            created,
        };
        let mut fact = docker.fact();
        fact.pod = fact.pod.or(pod);
        fact
    }

    /// What an event tells by itself: name, image, labels.
    fn of_event(&self, event: Event, at: &str) -> ContainerFact {
        let mut labels = event.actor.attributes;
        let found = Inspected {
            id: event.actor.id,
            name: labels.remove("name").unwrap_or_default(),
            config: Config { image: labels.remove("image"), labels: Some(labels), ..Config::default() },
            ..Inspected::default()
        };
        // Its grace period was not told.
        ContainerFact { spec: None, ..self.fact(found, None, at) }
    }

    /// The pod of a container of podman's.
    async fn pod(&mut self, id: &str) -> Result<Option<PodFact>, Trouble> {
        let Some(api) = self.podman.clone() else { return Ok(None) };
        let target = format!("/v{api}/libpod/containers/{id}/json");
        let found: Option<Podman> = http::json(&self.path, "podman's container", &target, CALL).await?;
        let Some(uid) = found.map(|found| found.pod).filter(|pod| fact::is_id(pod)) else { return Ok(None) };
        if let Some(name) = self.pods.get(&uid) {
            return Ok(Some(PodFact { namespace: None, name: Some(name.clone()), uid }));
        }
        let target = format!("/v{api}/libpod/pods/{uid}/json");
        let found: Option<PodInspected> = http::json(&self.path, "podman's pod", &target, CALL).await?;
        let name = found.map(|found| found.name);
        if let Some(name) = &name {
            if self.pods.len() >= PODS_MAX {
                self.pods.pop_first();
            }
            self.pods.insert(uid.clone(), name.clone());
        }
        Ok(Some(PodFact { namespace: None, name, uid }))
    }
}

const SIGTERM: u32 = 15;
