//! containerd, CRI-O and cri-dockerd, by the interface that kubelet uses (CRI v1).

mod messages;

use super::kubelet;
use super::runtimes::{CALL, LIST, PING, Talk, Trouble, connect, fact, within};
use crate::model::input::{ContainerFact, PodFact};
use crate::sinks::names::signal_number;
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use messages as m;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::client::Grpc;

use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

#[cfg(test)]
mod tests;

/// kubelet's own limit of one message.
const MESSAGE_MAX: usize = 16 << 20;
/// Events that wait while a container is asked for.
const EVENTS_MAX: usize = 256;
/// Images whose stop signal is remembered.
const IMAGES_MAX: usize = 1_024;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";
const SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
const IMAGE: &str = "/runtime.v1.ImageService/ImageStatus";

/// `containerd 1.7.24`.
pub(super) async fn version(path: &Path) -> Result<String, Trouble> {
    let mut cri = Cri::connect(path).await?;
    Ok(cri.version().await?.text())
}

/// Lists, then follows: events where they are for everybody, questions, and a sign of life now and then.
pub(super) async fn follow(talk: &mut Talk) -> Result<Infallible, Trouble> {
    let mut cri = Cri::connect(&talk.path).await?;
    let version = cri.version().await?;
    talk.connected(&version.text()).await;
    // Before the list: nothing falls between the two.
    let mut events = version.broadcasts().then(|| cri.events());
    for fact in cri.list(None, &version).await? {
        if !talk.out.knows(&fact.id) {
            talk.out.container(cri.complete(fact).await?.signed(&talk.at)).await;
        }
    }
    talk.listed();
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = next(&mut events) => match event {
                Some(event) => {
                    let event = event?;
                    if event.container_event_type <= m::STARTED && !talk.out.knows(&event.container_id) {
                        cri.tell(&event.container_id, &version, talk).await?;
                    }
                }
                // Not served here: cgroups that come up show the same.
                None => events = None,
            },
            ask = talk.asks.recv() => {
                let Some(ask) = ask else { return Err(Trouble::Ended) };
                // The answer may be lost, the question is not asked twice then.
                let known = talk.out.knows(&ask.id) || cri.tell(&ask.id, &version, talk).await?;
                _ = ask.known.send(known);
            }
            _ = ping.tick() => drop(cri.version().await?),
        }
    }
}

type Events = mpsc::Receiver<Result<m::ContainerEventResponse, Trouble>>;

/// The next event; never one where there are none.
async fn next(events: &mut Option<Events>) -> Option<Result<m::ContainerEventResponse, Trouble>> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// Ok: there are no events to be had.
async fn forward(
    mut grpc: Grpc<Channel>,
    to: &mpsc::Sender<Result<m::ContainerEventResponse, Trouble>>,
) -> Result<(), Trouble> {
    let failed = |status: Status| match status.code() {
        Code::Unimplemented => Ok(()),
        _ => Err(call("events", &status)),
    };
    grpc.ready().await.map_err(|_| Trouble::Ended)?;
    let codec = ProstCodec::<m::GetEventsRequest, m::ContainerEventResponse>::default();
    let question = Request::new(m::GetEventsRequest {});
    let mut stream = match grpc.server_streaming(question, PathAndQuery::from_static(EVENTS), codec).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return failed(status),
    };
    let mut any = false;
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                any = true;
                _ = to.send(Ok(event)).await;
            }
            // CRI-O without events ends at once.
            Ok(None) if !any => return Ok(()),
            Ok(None) => return Err(Trouble::Ended),
            Err(status) => return failed(status),
        }
    }
}

struct Version {
    name: String,
    version: String,
}

impl Version {
    fn text(&self) -> String {
        format!("{} {}", self.name, self.version.trim_start_matches('v'))
    }

    /// The stable id of the runtime.
    fn id(&self) -> Option<&'static str> {
        match self.name.as_str() {
            "containerd" => Some("containerd"),
            "cri-o" => Some("cri-o"),
            "docker" => Some("docker"),
            _ => None,
        }
    }

    /// Before 2.0 containerd hands each event to one of its listeners only: we would take kubelet's away.
    fn broadcasts(&self) -> bool {
        let major = self.version.trim_start_matches('v').split('.').next().and_then(|n| n.parse::<u32>().ok());
        match self.name.as_str() {
            "containerd" => major.is_some_and(|major| major >= 2),
            "cri-o" => true,
            _ => false,
        }
    }
}

/// A container before its image was asked for.
struct Item {
    fact: ContainerFact,
    image_ref: String,
    sandbox: bool,
}

impl std::ops::Deref for Item {
    type Target = ContainerFact;
    fn deref(&self) -> &ContainerFact {
        &self.fact
    }
}

#[derive(Clone, Default)]
struct ImageInfo {
    tag: Option<String>,
    stop_signal: Option<u32>,
}

struct Cri {
    grpc: Grpc<Channel>,
    images: BTreeMap<String, ImageInfo>,
}

impl Cri {
    async fn connect(path: &Path) -> Result<Cri, Trouble> {
        // Errors of the connection itself are plainer than what the channel makes of them.
        drop(connect(path).await?);
        let path = path.to_path_buf();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = within(CALL, "connecting", endpoint.connect_with_connector(connector)).await?;
        let channel = channel.map_err(|e| Trouble::call("connecting", e))?;
        let grpc = Grpc::new(channel).max_decoding_message_size(MESSAGE_MAX);
        Ok(Cri { grpc, images: BTreeMap::new() })
    }

    async fn call<Q, A>(
        &mut self,
        path: &'static str,
        what: &'static str,
        after: Duration,
        question: Q,
    ) -> Result<Result<A, Status>, Trouble>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let call = async {
            self.grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            self.grpc.unary(Request::new(question), PathAndQuery::from_static(path), codec).await
        };
        Ok(within(after, what, call).await?.map(tonic::Response::into_inner))
    }

    async fn version(&mut self) -> Result<Version, Trouble> {
        let answer = self.call(VERSION, "Version", CALL, m::VersionRequest {}).await?;
        let answer: m::VersionResponse = answer.map_err(|status| match status.code() {
            Code::Unimplemented => Trouble::NotServed("no CRI v1"),
            _ => call("Version", &status),
        })?;
        Ok(Version { name: answer.runtime_name, version: answer.runtime_version })
    }

    /// Follows the events. Beside the other calls: a server may answer with its first event only, hours later.
    fn events(&self) -> Events {
        let (to, events) = mpsc::channel(EVENTS_MAX);
        let grpc = self.grpc.clone();
        tokio::task::spawn_local(async move {
            let ended = tokio::select! {
                ended = forward(grpc, &to) => ended,
                () = to.closed() => return,
            };
            if let Err(trouble) = ended {
                _ = to.send(Err(trouble)).await;
            }
        });
        events
    }

    /// All containers that have not exited and all sandboxes, or the one of this id.
    async fn list(&mut self, id: Option<&str>, version: &Version) -> Result<Vec<Item>, Trouble> {
        let after = if id.is_some() { CALL } else { LIST };
        let filter = |id: Option<&str>| m::ListRequest { filter: id.map(|id| m::Filter { id: id.to_owned() }) };
        let listed = self.call(CONTAINERS, "ListContainers", after, filter(id)).await?;
        let listed: m::ListContainersResponse = listed.map_err(|s| call("ListContainers", &s))?;
        let mut containers = listed.containers;
        containers.retain(|c| id.map_or(c.state != m::EXITED, |id| c.id == id));
        // Of one container: its sandbox. Of none: what is asked for may be a sandbox itself.
        let of = id.map(|id| containers.first().map_or(id.to_owned(), |c| c.pod_sandbox_id.clone()));
        let listed = self.call(SANDBOXES, "ListPodSandbox", after, filter(of.as_deref())).await?;
        let listed: m::ListPodSandboxResponse = listed.map_err(|s| call("ListPodSandbox", &s))?;
        let mut pods = BTreeMap::new();
        let mut items = Vec::new();
        for sandbox in listed.items {
            let Some(meta) = sandbox.metadata else { continue };
            let pod = PodFact { namespace: Some(meta.namespace), name: Some(meta.name), uid: meta.uid };
            let fact = ContainerFact {
                at: fact::boot_of(sandbox.created_at),
                id: sandbox.id.clone(),
                runtime: version.id().map(Into::into),
                pod: Some(pod.clone()),
                ..ContainerFact::default()
            };
            pods.insert(sandbox.id, pod);
            if id.is_none_or(|id| id == fact.id) {
                items.push(Item { fact, image_ref: String::new(), sandbox: true });
            }
        }
        items.extend(containers.into_iter().map(|c| item(c, &pods, version)));
        Ok(items)
    }

    /// Adds what the image says, and what the runtime says of the container's own stop signal.
    async fn complete(&mut self, mut item: Item) -> Result<Item, Trouble> {
        if item.sandbox {
            return Ok(item);
        }
        let image = self.image(&item.image_ref).await?;
        let question = m::ContainerStatusRequest { container_id: item.id.clone() };
        // Gone meanwhile: what is known of it counts.
        let status = self.call::<_, m::ContainerStatusResponse>(STATUS, "ContainerStatus", CALL, question).await?;
        let status = status.ok().and_then(|answer| answer.status).unwrap_or_default();
        item.fact.stop_signal = m::signal(status.stop_signal).or(image.stop_signal);
        // A list names the image as kubelet does: by its digest.
        let named = |name: &String| !name.is_empty() && !name.starts_with("sha256:");
        if !item.fact.image.as_ref().is_some_and(named) {
            let resolved = status.image.map(|i| i.image).filter(named);
            item.fact.image = resolved.or(image.tag).or(item.fact.image.take());
        }
        Ok(item)
    }

    async fn image(&mut self, image_ref: &str) -> Result<ImageInfo, Trouble> {
        if let Some(known) = self.images.get(image_ref) {
            return Ok(known.clone());
        }
        let image = Some(m::ImageSpec { image: image_ref.to_owned(), ..m::ImageSpec::default() });
        let question = m::ImageStatusRequest { image, verbose: true };
        let answer = self.call::<_, m::ImageStatusResponse>(IMAGE, "ImageStatus", CALL, question).await?;
        // An image can be deleted while its container runs, and not every runtime tells of its configuration.
        let Ok(answer) = answer else { return Ok(ImageInfo::default()) };
        let info = ImageInfo {
            tag: answer.image.and_then(|image| image.repo_tags.into_iter().next()),
            stop_signal: answer.info.get("info").and_then(|json| declared(json)),
        };
        if self.images.len() >= IMAGES_MAX {
            self.images.pop_first();
        }
        self.images.insert(image_ref.to_owned(), info.clone());
        Ok(info)
    }

    /// Gives out what is known of one container; false: it is not this runtime's.
    async fn tell(&mut self, id: &str, version: &Version, talk: &Talk) -> Result<bool, Trouble> {
        let mut known = false;
        for item in self.list(Some(id), version).await? {
            let item = self.complete(item).await?;
            known |= item.id == id;
            talk.out.container(item.signed(&talk.at)).await;
        }
        Ok(known)
    }
}

impl Item {
    fn signed(self, source: &str) -> ContainerFact {
        ContainerFact { source: source.to_owned(), ..self.fact }
    }
}

fn item(c: m::Container, pods: &BTreeMap<String, PodFact>, version: &Version) -> Item {
    let meta = c.metadata.unwrap_or_default();
    let image = c.image.unwrap_or_default();
    let image = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    let mut fact = ContainerFact {
        at: fact::boot_of(c.created_at),
        id: c.id,
        runtime: version.id().map(Into::into),
        image: Some(image),
        restarts: Some(meta.attempt),
        // What kubelet did not make (crictl) has no labels of kubelet's.
        pod: pods.get(&c.pod_sandbox_id).cloned(),
        name: Some(meta.name).filter(|name| !name.is_empty()),
        ..ContainerFact::default()
    };
    kubelet::add(&mut fact, &c.labels, &c.annotations);
    fact.labels = c.labels;
    Item { fact, image_ref: c.image_ref, sandbox: false }
}

/// The STOPSIGNAL of an image, from the runtime's own words about it.
fn declared(info: &str) -> Option<u32> {
    let info: serde_json::Value = serde_json::from_str(info).ok()?;
    signal_number(info.pointer("/imageSpec/config/StopSignal")?.as_str()?)
}

fn call(what: &'static str, status: &Status) -> Trouble {
    Trouble::call(what, format!("{:?}: {}", status.code(), status.message()))
}
