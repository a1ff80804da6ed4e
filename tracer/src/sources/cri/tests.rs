use super::super::runtimes::tests::{ID, containers, start, states, until};
use super::*;
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Response};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

type Body = BoxBody<Bytes, Infallible>;

/// What it serves; the same for all connections.
#[derive(Default)]
struct State {
    version: &'static str,
    containers: Vec<m::Container>,
    sandboxes: Vec<m::PodSandbox>,
    image_info: String,
    stop_signal: i32,
    /// No answer at all to this call.
    hangs: Option<&'static str>,
    events: Vec<mpsc::UnboundedSender<Frame<Bytes>>>,
    calls: Vec<String>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

fn frame(message: &impl Message) -> Frame<Bytes> {
    let body = message.encode_to_vec();
    let mut out = vec![0];
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&body);
    Frame::data(Bytes::from(out))
}

fn trailers(status: &str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    Frame::trailers(trailers)
}

struct Feed(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl hyper::body::Body for Feed {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

impl Fake {
    async fn answer(self, request: hyper::Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let question = body.get(5..).unwrap_or_default();
        let hangs = {
            let mut state = self.0.lock().unwrap();
            state.calls.push(path.clone());
            state.hangs == Some(path.as_str())
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        if path == EVENTS {
            let (to, mut events) = mpsc::unbounded_channel();
            self.0.lock().unwrap().events.push(to.clone());
            // As Go's server does: nothing is sent before there is something to send.
            let first = events.recv().await;
            first.into_iter().for_each(|frame| _ = to.send(frame));
            return respond(Feed(events).boxed());
        }
        let state = self.0.lock().unwrap();
        let filtered = |id: &str| {
            let wanted = m::ListRequest::decode(question).unwrap().filter.map(|f| f.id).unwrap_or_default();
            wanted.is_empty() || wanted == id
        };
        let message = match path.as_str() {
            VERSION => {
                frame(&m::VersionResponse { runtime_name: "containerd".into(), runtime_version: state.version.into() })
            }
            CONTAINERS => frame(&m::ListContainersResponse {
                containers: state.containers.iter().filter(|c| filtered(&c.id)).cloned().collect(),
            }),
            SANDBOXES => frame(&m::ListPodSandboxResponse {
                items: state.sandboxes.iter().filter(|s| filtered(&s.id)).cloned().collect(),
            }),
            STATUS => frame(&m::ContainerStatusResponse {
                status: Some(m::ContainerStatus { image: None, stop_signal: state.stop_signal }),
            }),
            IMAGE => frame(&m::ImageStatusResponse {
                image: Some(m::Image { repo_tags: vec!["localhost/nginx:2".into()] }),
                info: BTreeMap::from([("info".to_owned(), state.image_info.clone())]),
            }),
            _ => return respond(all(vec![trailers("12")])),
        };
        respond(all(vec![message, trailers("0")]))
    }

    fn happens(&self, id: &str) {
        let event = m::ContainerEventResponse { container_id: id.to_owned(), container_event_type: 0 };
        self.0.lock().unwrap().events.retain(|to| to.send(frame(&event)).is_ok());
    }

    fn serve(&self, socket: &Path) -> tokio::task::JoinHandle<()> {
        _ = std::fs::remove_file(socket);
        let (listener, fake) = (UnixListener::bind(socket).unwrap(), self.clone());
        tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                all.spawn(async move {
                    let answer = service_fn(move |request| {
                        let fake = fake.clone();
                        async move { Ok::<_, Infallible>(fake.answer(request).await) }
                    });
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        })
    }

    fn calls(&self, path: &str) -> usize {
        self.0.lock().unwrap().calls.iter().filter(|c| *c == path).count()
    }
}

/// The frames, and the end.
fn all(frames: Vec<Frame<Bytes>>) -> Body {
    let (to, body) = mpsc::unbounded_channel();
    frames.into_iter().for_each(|frame| _ = to.send(frame));
    Feed(body).boxed()
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

async fn until_true(done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("in vain");
}

fn id(n: u32) -> String {
    format!("{n:064x}")
}

fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// As kubelet makes it.
fn container(id: &str, name: &str, attempt: u32) -> m::Container {
    m::Container {
        id: id.to_owned(),
        pod_sandbox_id: self::id(1),
        metadata: Some(m::ContainerMetadata { name: name.into(), attempt }),
        image: Some(m::ImageSpec { image: "sha256:12".into(), ..m::ImageSpec::default() }),
        image_ref: "sha256:12".into(),
        state: 1,
        created_at: 0,
        labels: strings(&[
            ("io.kubernetes.container.name", name),
            ("io.kubernetes.pod.name", "web-0"),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.uid", "1-2"),
        ]),
        annotations: strings(&[
            ("io.kubernetes.container.hash", "1f"),
            ("io.kubernetes.container.restartCount", &attempt.to_string()),
            ("io.kubernetes.pod.terminationGracePeriod", "40"),
            ("io.kubernetes.container.preStopHandler", r#"{"exec":{"command":["nginx","-s","quit"]}}"#),
        ]),
    }
}

fn sandbox(id: &str) -> m::PodSandbox {
    let metadata = m::PodSandboxMetadata { name: "web-0".into(), uid: "1-2".into(), namespace: "shop".into() };
    m::PodSandbox { id: id.to_owned(), metadata: Some(metadata), created_at: 0 }
}

fn fake(version: &'static str) -> Fake {
    let fake = Fake::default();
    let mut state = fake.0.lock().unwrap();
    state.version = version;
    state.containers =
        vec![container(ID, "nginx", 2), m::Container { state: m::EXITED, ..container(&id(8), "old", 0) }];
    state.sandboxes = vec![sandbox(&id(1))];
    state.image_info = r#"{"imageSpec":{"config":{"StopSignal":"SIGQUIT"}}}"#.into();
    drop(state);
    fake
}

#[tokio::test]
async fn all_that_kubelet_and_the_image_say() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("c.sock");
    let fake = fake("v2.1.9");
    let server = fake.serve(&socket);
    assert_eq!(version(&socket).await.unwrap(), "containerd 2.1.9");
    let mut runtimes = start(&socket);
    let all = until(&mut runtimes, |all| containers(all).len() == 2).await;
    assert_eq!(states(&all), ["connected containerd 2.1.9"]);
    let told = containers(&all);
    let nginx = told.iter().find(|c| c.id == ID).unwrap();
    assert_eq!((nginx.name.as_deref(), nginx.image.as_deref()), (Some("nginx"), Some("localhost/nginx:2")));
    assert_eq!((nginx.restarts, nginx.stop_signal), (Some(2), Some(3)));
    let pod = PodFact { namespace: Some("shop".into()), name: Some("web-0".into()), uid: "1-2".into() };
    assert_eq!(nginx.pod.as_ref(), Some(&pod));
    let spec = nginx.spec.as_ref().unwrap();
    assert_eq!((spec.pre_stop.as_ref().unwrap().join(" "), spec.grace_s), ("nginx -s quit".into(), Some(40)));
    let pause = told.iter().find(|c| c.id == id(1)).unwrap();
    assert_eq!((pause.name.as_deref(), pause.pod.as_ref()), (None, Some(&pod)));

    // An event long after the start, and what it is about.
    until_true(|| !fake.0.lock().unwrap().events.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    fake.0.lock().unwrap().containers.push(container(&id(5), "php", 0));
    fake.0.lock().unwrap().stop_signal = 23;
    fake.happens(&id(5));
    let all = until(&mut runtimes, |all| containers(all).iter().any(|c| c.id == id(5))).await;
    let php = containers(&all).into_iter().find(|c| c.id == id(5)).unwrap().clone();
    assert_eq!((php.name.as_deref(), php.stop_signal), (Some("php"), Some(15)), "the container's own signal");
    assert_eq!(fake.calls(IMAGE), 1, "one image is asked for once");
    server.abort();
}

/// containerd before 2.0 gives each event to one listener: kubelet's would be taken away.
#[tokio::test]
async fn kubelets_events_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("c.sock");
    let fake = fake("1.7.24");
    let server = fake.serve(&socket);
    let mut runtimes = start(&socket);
    until(&mut runtimes, |all| containers(all).len() == 2).await;
    let listed = fake.calls(CONTAINERS);
    fake.0.lock().unwrap().containers.push(container(&id(5), "php", 0));
    runtimes.want(&id(5));
    let all = until(&mut runtimes, |all| containers(all).iter().any(|c| c.id == id(5))).await;
    assert!(containers(&all).iter().all(|c| c.id != ID), "what is known is not told again");
    // Unknown to all: asked a few times, then no more.
    runtimes.want(&id(77));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(fake.calls(EVENTS), 0);
    assert_eq!(fake.calls(CONTAINERS), listed + 1 + 3);
    server.abort();
}

#[tokio::test]
async fn hangs_in_the_middle_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("c.sock");
    let fake = fake("1.6.20");
    let server = fake.serve(&socket);
    let mut runtimes = start(&socket);
    until(&mut runtimes, |all| containers(all).len() == 2).await;
    fake.0.lock().unwrap().hangs = Some(CONTAINERS);
    runtimes.want(&id(5));
    let all = until(&mut runtimes, |all| !states(all).is_empty()).await;
    assert_eq!(states(&all), ["lost: ListContainers: no answer within 5 s"]);
    fake.0.lock().unwrap().hangs = None;
    fake.0.lock().unwrap().containers.push(container(&id(5), "php", 0));
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    assert_eq!(states(&all), ["connected containerd 1.6.20"]);
    assert_eq!(containers(&all)[0].id, id(5));
    server.abort();
}

#[test]
fn signals_by_cris_numbers() {
    let table = [(0, None), (1, Some(6)), (10, Some(2)), (13, Some(9)), (18, Some(3)), (23, Some(15)), (34, Some(25))];
    for (cri, linux) in table {
        assert_eq!(m::signal(cri), linux, "{cri}");
    }
    assert_eq!((m::signal(29), m::signal(30), m::signal(32)), (Some(10), Some(12), Some(28)));
    assert_eq!((m::signal(35), m::signal(-1), m::signal(i32::MAX)), (None, None, None));
}

#[test]
fn what_an_image_declares() {
    assert_eq!(declared(r#"{"imageSpec":{"config":{"StopSignal":"SIGQUIT"}}}"#), Some(3));
    assert_eq!(declared(r#"{"imageSpec":{"config":{"StopSignal":"3"}}}"#), Some(3));
    for none in ["", "{", r#"{"imageSpec":{"config":{}}}"#, r#"{"imageSpec":{"config":{"StopSignal":7}}}"#] {
        assert_eq!(declared(none), None, "{none}");
    }
}

#[test]
fn who_broadcasts_events() {
    let broadcasts = |name: &str, version: &str| Version { name: name.into(), version: version.into() }.broadcasts();
    assert!(broadcasts("containerd", "v2.0.0") && broadcasts("containerd", "2.1.9") && broadcasts("cri-o", "1.30.1"));
    assert!(!broadcasts("containerd", "1.7.24~ds1") && !broadcasts("containerd", "x") && !broadcasts("docker", "28"));
}
