use super::super::runtimes::tests::{ID, containers, start, states, until};
use super::*;
use hyper::body::{Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

const VERSION: &str =
    r#"{"Version":"20.10.24","ApiVersion":"1.41","Components":[{"Name":"Engine","Version":"20.10.24"}]}"#;
const PODMAN: &str =
    r#"{"Version":"4.3.1","Components":[{"Name":"Podman Engine","Version":"4.3.1","Details":{"APIVersion":"4.3.1"}}]}"#;

/// Answers by path; `/events` is fed by hand.
#[derive(Clone, Default)]
struct Fake {
    answers: Arc<Mutex<BTreeMap<String, String>>>,
    events: Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>>,
}

/// A body that ends with its sender.
struct Stream(mpsc::UnboundedReceiver<String>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|text| text.map(|text| Ok(Frame::data(Bytes::from(text)))))
    }
}

impl Fake {
    fn says(&self, path: &str, answer: &str) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer.to_owned());
    }

    fn happens(&self, action: &str, id: &str, name: &str) {
        let event = serde_json::json!({"Type": "container", "Action": action,
            "Actor": {"ID": id, "Attributes": {"name": name, "image": "nginx:2", "com.example": "x"}}});
        self.events.lock().unwrap().retain(|to| to.send(format!("{event}\n")).is_ok());
    }

    fn ends_events(&self) {
        self.events.lock().unwrap().clear();
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Stream> {
        let (to, body) = mpsc::unbounded_channel();
        let mut response = Response::new(Stream(body));
        let path = request.uri().path();
        if path == "/events" {
            self.events.lock().unwrap().push(to);
            return response;
        }
        match self.answers.lock().unwrap().get(path) {
            Some(answer) => _ = to.send(answer.clone()),
            None => *response.status_mut() = hyper::StatusCode::NOT_FOUND,
        }
        response
    }

    fn serve(&self, socket: &Path) -> tokio::task::JoinHandle<()> {
        _ = std::fs::remove_file(socket);
        let (listener, fake) = (UnixListener::bind(socket).unwrap(), self.clone());
        tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                all.spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let response = fake.answer(&request);
                        async move { Ok::<_, std::convert::Infallible>(response) }
                    });
                    _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        })
    }

    fn container(&self, id: &str, name: &str, more: &str) {
        let text = format!(
            r#"{{"Id":"{id}","Name":"/{name}","Created":"2026-11-22T14:03:22.118Z","RestartCount":0,"HostConfig":{{"CgroupParent":""}},
               "Config":{{"Image":"nginx:2","Labels":{{"a":"b"}}{more}}}}}"#
        );
        self.says(&format!("/containers/{id}/json"), &text);
    }
}

fn id(n: u32) -> String {
    format!("{n:064x}")
}

#[tokio::test]
async fn lists_follows_and_tells_apart_a_name_that_is_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let fake = Fake::default();
    fake.says("/version", VERSION);
    fake.says("/containers/json", &format!(r#"[{{"Id":"{ID}","Names":["/web"]}}]"#));
    fake.container(ID, "web", r#","StopSignal":"SIGQUIT","StopTimeout":20"#);
    let server = fake.serve(&socket);
    let mut runtimes = start(&socket);
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    assert_eq!(states(&all), ["connected docker 20.10.24"]);
    let web = containers(&all)[0];
    assert_eq!((web.name.as_deref(), web.runtime.as_deref(), web.stop_signal), (Some("web"), Some("docker"), Some(3)));
    assert_eq!(web.spec.as_ref().unwrap().grace_s, Some(20));
    assert!(web.source.ends_with("docker.sock"), "{}", web.source);

    fake.happens("die", ID, "web");
    fake.happens("destroy", ID, "web");
    fake.container(&id(2), "web", "");
    fake.happens("create", &id(2), "web");
    fake.happens("start", &id(2), "web");
    // Gone before it could be asked for.
    fake.happens("create", &id(3), "web");
    let all = until(&mut runtimes, |all| containers(all).len() == 2).await;
    let told: Vec<_> = containers(&all).iter().map(|c| (c.id.clone(), c.name.clone().unwrap())).collect();
    assert_eq!(told, [(id(2), "web".to_owned()), (id(3), "web".to_owned())]);
    assert_eq!(containers(&all)[0].stop_signal, None, "nobody declares one");
    assert_eq!(containers(&all)[1].spec, None, "an event does not tell of it");

    // Started again: its number of restarts is another one.
    fake.happens("die", &id(2), "web");
    fake.happens("start", &id(2), "web");
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    assert_eq!(containers(&all)[0].id, id(2));

    // A container of which no event told.
    fake.container(&id(4), "late", "");
    runtimes.want(&id(4));
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    assert_eq!(containers(&all)[0].name.as_deref(), Some("late"));
    server.abort();
}

#[tokio::test]
async fn comes_back_after_a_restart_and_tells_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let fake = Fake::default();
    fake.says("/version", VERSION);
    fake.says("/containers/json", &format!(r#"[{{"Id":"{ID}"}}]"#));
    fake.container(ID, "web", "");
    let server = fake.serve(&socket);
    let mut runtimes = start(&socket);
    until(&mut runtimes, |all| !containers(all).is_empty()).await;
    server.abort();
    _ = server.await;
    fake.ends_events();
    let all = until(&mut runtimes, |all| !states(all).is_empty()).await;
    assert!(states(&all)[0].starts_with("lost: "), "{all:?}");
    fake.says("/containers/json", &format!(r#"[{{"Id":"{ID}"}},{{"Id":"{}"}}]"#, id(2)));
    fake.container(&id(2), "new", "");
    let server = fake.serve(&socket);
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    assert_eq!(states(&all), ["connected docker 20.10.24"], "told once each");
    assert_eq!(containers(&all).len(), 1, "what is known is not told again");
    assert_eq!(containers(&all)[0].id, id(2));
    server.abort();
}

#[tokio::test]
async fn podman_names_its_pods() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podman.sock");
    let fake = Fake::default();
    fake.says("/version", PODMAN);
    fake.says("/containers/json", &format!(r#"[{{"Id":"{ID}"}}]"#));
    fake.container(ID, "web-nginx", r#","StopSignal":"15","StopTimeout":10"#);
    fake.says(&format!("/v4.3.1/libpod/containers/{ID}/json"), &format!(r#"{{"Pod":"{}"}}"#, id(9)));
    fake.says(&format!("/v4.3.1/libpod/pods/{}/json", id(9)), r#"{"Name":"web"}"#);
    let server = fake.serve(&socket);
    let mut runtimes = start(&socket);
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    let fact = containers(&all)[0];
    assert_eq!((fact.runtime.as_deref(), fact.stop_signal), (Some("podman"), None), "its default declares nothing");
    assert_eq!(fact.pod, Some(PodFact { namespace: None, name: Some("web".into()), uid: id(9) }));
    server.abort();
}

#[tokio::test]
async fn answers_that_are_wrong_end_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let fake = Fake::default();
    fake.says("/version", VERSION);
    fake.says("/containers/json", "[{");
    let server = fake.serve(&socket);
    let mut runtimes = start(&socket);
    let all = until(&mut runtimes, |all| states(all).len() >= 2).await;
    let states = states(&all);
    assert_eq!(states[0], "connected docker 20.10.24");
    assert!(states[1].starts_with("lost: containers: "), "{states:?}");
    // It mends itself.
    fake.says("/containers/json", "[]");
    let all = until(&mut runtimes, |all| !all.is_empty()).await;
    assert!(matches!(all[0], crate::model::Input::Source(_)));
    // An answer without end.
    fake.says("/version", &format!("\"{}\"", "x".repeat(17 << 20)));
    let error = super::version(&socket).await.unwrap_err().to_string();
    assert!(error.contains("length limit exceeded"), "{error}");
    tokio::time::sleep(Duration::from_millis(1)).await;
    server.abort();
}
