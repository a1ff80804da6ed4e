//! A runtime that hangs, goes away, comes back and talks nonsense: what cannot be had of a real one on demand.

use super::super::{cri, docker};
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

pub(in crate::sources) const ID: &str = "07a6ece791d4357b6e260f5ef6b701485af3154752f6931f336c2ac98f7abf15";

/// Takes until `done` or the end of patience.
pub(in crate::sources) async fn until(runtimes: &mut Runtimes, mut done: impl FnMut(&[Input]) -> bool) -> Vec<Input> {
    let (mut all, end) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while !done(&all) {
        assert!(Instant::now() < end, "in vain: {all:?}");
        match tokio::time::timeout(Duration::from_millis(200), runtimes.facts.recv()).await {
            Ok(Some(input)) => all.push(input),
            Ok(None) => panic!("the thread has ended"),
            Err(_) => {}
        }
    }
    all
}

pub(in crate::sources) fn containers(all: &[Input]) -> Vec<&ContainerFact> {
    let container = |input: &_| matches!(input, Input::Container(_));
    all.iter()
        .filter(|input| container(input))
        .map(|input| match input {
            Input::Container(fact) => fact.as_ref(),
            _ => unreachable!("filtered"),
        })
        .collect()
}

/// `connected docker 1.2`, `lost: why`.
pub(in crate::sources) fn states(all: &[Input]) -> Vec<String> {
    let state = |input: &Input| match input {
        Input::Source(SourceFact { name, state: SourceState::Connected, .. }) => Some(format!("connected {name}")),
        Input::Source(SourceFact { state: SourceState::Lost { why }, .. }) => Some(format!("lost: {why}")),
        _ => None,
    };
    all.iter().filter_map(state).collect()
}

pub(in crate::sources) fn start(socket: &Path) -> Runtimes {
    let wish = Wish::Sockets(vec![socket.to_path_buf()]);
    Runtimes::start(Path::new("/nowhere"), &wish).unwrap().unwrap()
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.sock");
    let mut runtimes = start(&socket);
    runtimes.listed(Duration::from_secs(10)).await;
    let listener = tokio::spawn(async move {
        let listener = UnixListener::bind(&socket).unwrap();
        // Whoever it is, he gets nothing but a closed door.
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = runtimes.take();
    assert!(containers(&all).is_empty());
    assert_eq!(states(&all), ["lost: cannot connect: No such file or directory (os error 2)"]);
    drop(runtimes);
    listener.abort();
}

#[tokio::test]
async fn one_that_hangs_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let hang = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let begun = Instant::now();
    let mut runtimes = start(&socket);
    runtimes.want(ID);
    runtimes.listed(Duration::from_millis(300)).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "the start waited {:?}", begun.elapsed());
    drop(runtimes);
    assert!(begun.elapsed() < Duration::from_secs(5), "the end waited {:?}", begun.elapsed());
    let (docker, cri) = tokio::join!(docker::version(&socket), cri::version(&socket));
    let silent = |answer: Result<String, Trouble>| matches!(answer, Err(Trouble::Silent { .. }));
    assert!(silent(docker) && silent(cri));
    hang.abort();
}

#[tokio::test]
async fn nonsense_is_no_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let babble = tokio::spawn(async move {
        let mut turn = 0usize;
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers: [&[u8]; 4] = [
                b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff",
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{\"V\"",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                b"hello",
            ];
            let mut asked = [0; 512];
            _ = stream.read(&mut asked).await;
            _ = stream.write_all(answers[turn % answers.len()]).await;
            turn += 1;
        }
    });
    for _ in 0..4 {
        assert!(docker::version(&socket).await.is_err());
        assert!(cri::version(&socket).await.is_err());
    }
    babble.abort();
}

#[test]
fn none_is_none() {
    assert!(Runtimes::start(Path::new("/"), &Wish::None).unwrap().is_none());
}

#[tokio::test]
async fn the_disk_tells_where_no_socket_does() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("run/containerd/io.containerd.runtime.v2.task/k8s.io").join(ID);
    std::fs::create_dir_all(&bundle).unwrap();
    let text = r#"{"annotations":{"io.kubernetes.cri.container-name":"nginx","io.kubernetes.cri.sandbox-uid":"1"}}"#;
    std::fs::write(bundle.join("config.json"), text).unwrap();
    let mut runtimes = Runtimes::start(dir.path(), &Wish::Auto).unwrap().unwrap();
    runtimes.listed(Duration::from_secs(10)).await;
    runtimes.want(ID);
    let all = until(&mut runtimes, |all| !containers(all).is_empty()).await;
    assert_eq!(containers(&all)[0].name.as_deref(), Some("nginx"));
}
