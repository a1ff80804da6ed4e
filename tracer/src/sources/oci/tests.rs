use super::*;
use std::fs;

const ID: &str = "07a6ece791d4357b6e260f5ef6b701485af3154752f6931f336c2ac98f7abf15";
const OTHER: &str = "d5c875fa2b22e7b9e35bd1b0a9f4a6f3e1d0c9b8a7968574635241302f1e0d0c";

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path.replace("{ID}", ID));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn found(files: &[(&str, &str)]) -> Option<ContainerFact> {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(path, text)| put(dir.path(), path, text));
    look(dir.path(), ID)
}

fn pod(namespace: Option<&str>, name: Option<&str>, uid: &str) -> Option<PodFact> {
    Some(PodFact { namespace: namespace.map(Into::into), name: name.map(Into::into), uid: uid.into() })
}

/// As containerd 1.7's CRI writes it.
const CONTAINERD_BUNDLE: &str = r#"{"ociVersion":"1.1.0","process":{"args":["/usr/sbin/nginx"]},"annotations":{
  "io.kubernetes.cri.container-name":"nginx","io.kubernetes.cri.container-type":"container",
  "io.kubernetes.cri.image-name":"localhost/nginx:2","io.kubernetes.cri.sandbox-id":"aa",
  "io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"1-2"}}"#;

#[test]
fn a_bundle_of_containerd() {
    for path in [
        "run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
        "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
    ] {
        let fact = found(&[(path, CONTAINERD_BUNDLE)]).unwrap();
        assert_eq!(fact.id, ID);
        assert_eq!(fact.runtime.as_deref(), Some("containerd"));
        assert_eq!((fact.name.as_deref(), fact.image.as_deref()), (Some("nginx"), Some("localhost/nginx:2")));
        assert_eq!(fact.pod, pod(Some("shop"), Some("web-0"), "1-2"));
        assert_eq!(fact.spec, None, "a bundle of containerd does not tell of hooks");
    }
}

#[test]
fn runcs_state_where_the_bundle_is_elsewhere() {
    let state = r#"{"id":"x","init_process_pid":7,"config":{"labels":["bundle=/some/where","io.kubernetes.cri.container-name=php",
      "io.kubernetes.cri.sandbox-name=web-0","io.kubernetes.cri.sandbox-namespace=shop","io.kubernetes.cri.sandbox-uid=1-2"]}}"#;
    let fact = found(&[("run/containerd/runc/k8s.io/{ID}/state.json", state)]).unwrap();
    assert_eq!((fact.name.as_deref(), fact.pod), (Some("php"), pod(Some("shop"), Some("web-0"), "1-2")));
    let bare = r#"{"config":{"labels":["bundle=/some/where"]}}"#;
    assert_eq!(found(&[("run/runc/{ID}/state.json", bare)]), None);
}

#[test]
fn dockers_own_file() {
    let config = r#"{"ID":"x","Created":"2026-11-22T14:03:22.118Z","Name":"/web","RestartCount":3,
      "Config":{"Image":"nginx:1.27","StopSignal":"SIGQUIT","StopTimeout":20,"Labels":{"a":"b"}}}"#;
    let files = [
        ("var/lib/docker/containers/{ID}/config.v2.json", config),
        ("var/lib/docker/containers/{ID}/hostconfig.json", r#"{"CgroupParent":""}"#),
        ("run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/{ID}/config.json", "{}"),
    ];
    let fact = found(&files).unwrap();
    assert_eq!((fact.name.as_deref(), fact.image.as_deref()), (Some("web"), Some("nginx:1.27")));
    assert_eq!((fact.stop_signal, fact.restarts), (Some(3), Some(3)));
    assert_eq!(fact.spec.unwrap().grace_s, Some(20));
    assert_eq!(fact.labels.len(), 1);
    assert_eq!(found(&files[2..]), None, "Docker's bundles name nothing");
}

#[test]
fn a_bundle_of_crio_tells_of_the_hook() {
    let bundle = r#"{"annotations":{"io.kubernetes.container.name":"nginx","io.kubernetes.pod.name":"web-0",
      "io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"1-2","io.kubernetes.cri-o.ImageName":"quay.io/nginx:2",
      "org.opencontainers.image.stopSignal":"SIGQUIT",
      "io.kubernetes.cri-o.Labels":"{\"io.kubernetes.container.name\":\"nginx\"}",
      "io.kubernetes.cri-o.Annotations":"{\"io.kubernetes.container.hash\":\"1f\",\"io.kubernetes.container.restartCount\":\"2\",\"io.kubernetes.pod.terminationGracePeriod\":\"40\",\"io.kubernetes.container.preStopHandler\":\"{\\\"exec\\\":{\\\"command\\\":[\\\"nginx\\\",\\\"-s\\\",\\\"quit\\\"]}}\"}"}}"#;
    let fact = found(&[("run/containers/storage/overlay-containers/{ID}/userdata/config.json", bundle)]).unwrap();
    assert_eq!((fact.runtime.as_deref(), fact.name.as_deref()), (Some("cri-o"), Some("nginx")));
    assert_eq!((fact.stop_signal, fact.restarts), (Some(3), Some(2)));
    assert_eq!(fact.pod, pod(Some("shop"), Some("web-0"), "1-2"));
    let spec = fact.spec.unwrap();
    assert_eq!((spec.pre_stop.unwrap().join(" "), spec.grace_s), ("nginx -s quit".into(), Some(40)));
}

#[test]
fn podmans_names_are_in_a_file_of_all() {
    let bundle =
        r#"{"annotations":{"org.opencontainers.image.stopSignal":"15","io.podman.annotations.autoremove":"FALSE"}}"#;
    let names = format!(
        r#"[{{"id":"{OTHER}","names":["other"]}},
           {{"id":"{ID}","names":["web"],"metadata":"{{\"image-name\":\"localhost/nginx:2\",\"pod-id\":\"{OTHER}\"}}"}}]"#
    );
    let files = [
        ("run/containers/storage/overlay-containers/{ID}/userdata/config.json", bundle),
        ("var/lib/containers/storage/overlay-containers/containers.json", &names),
    ];
    let fact = found(&files).unwrap();
    assert_eq!((fact.runtime.as_deref(), fact.name.as_deref()), (Some("podman"), Some("web")));
    assert_eq!((fact.image.as_deref(), fact.stop_signal), (Some("localhost/nginx:2"), None));
    assert_eq!(fact.pod, pod(None, None, OTHER));
    assert_eq!(found(&files[..1]), None, "nothing is named");
}

#[test]
fn what_is_cut_or_huge_or_no_file_tells_nothing() {
    let path = "run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json";
    for text in
        ["", "{", "[]", "null", r#"{"annotations":[]}"#, r#"{"annotations":{"a":1}}"#, &CONTAINERD_BUNDLE[..200]]
    {
        assert_eq!(found(&[(path, text)]), None, "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(path.replace("{ID}", ID));
    fs::create_dir_all(&file).unwrap();
    assert_eq!(look(dir.path(), ID), None, "a directory");
    fs::remove_dir(&file).unwrap();
    let huge = fs::File::create(&file).unwrap();
    huge.set_len(FILE_MAX + 1).unwrap();
    assert_eq!(look(dir.path(), ID), None, "a sparse file of 16 MiB");
    for id in ["../../../../etc", "", "x", "07a6/ece791d4"] {
        assert_eq!(look(dir.path(), id), None, "{id}");
    }
}

#[test]
fn a_pipe_in_its_place_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/runc").join(ID);
    fs::create_dir_all(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path.join("state.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert_eq!(look(dir.path(), ID), None);
}
