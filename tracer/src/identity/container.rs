//! Container, pod and runtime from a cgroup path.
//!
//! The rule is one for all runtimes: the container is the innermost component of the path that is a container's name.
//! What lies below it (crun's `container`, the scopes of a systemd inside) belongs to it; what lies above it gives the
//! pod and, where containers are nested (kind, k3d, Docker in Docker), the container around it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The runtime that named the cgroup. A bare id (`kubepods/…/<id>`) tells none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    Docker,
    Containerd,
    CriO,
    Podman,
}

impl Runtime {
    /// The stable name used in outputs.
    pub fn id(self) -> &'static str {
        match self {
            Runtime::Docker => "docker",
            Runtime::Containerd => "containerd",
            Runtime::CriO => "cri-o",
            Runtime::Podman => "podman",
        }
    }
}

impl Runtime {
    /// By its stable name.
    pub fn by_id(id: &str) -> Option<Runtime> {
        [Runtime::Docker, Runtime::Containerd, Runtime::CriO, Runtime::Podman].into_iter().find(|r| r.id() == id)
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// Quality of service class of a Kubernetes pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// A container as its cgroup path names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerRef {
    /// Lower-case hex, 64 digits with all current runtimes.
    pub id: String,
    pub runtime: Option<Runtime>,
    /// Kubernetes pod uid (32 hex digits without dashes for static pods), or podman's pod id.
    pub pod_uid: Option<String>,
    /// Only for Kubernetes pods.
    pub qos: Option<Qos>,
    /// Id of the container around this one: a kind node, a Docker-in-Docker host.
    pub outer: Option<String>,
}

/// A pod's own cgroup, as found on the way down a path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    uid: String,
    qos: Option<Qos>,
}

/// The container that a cgroup path belongs to, `None` outside of every container.
///
/// `path` is a path below a hierarchy's root; `..` components, as a reader in a private cgroup namespace sees them, and
/// the ` (deleted)` that /proc shows for a removed cgroup are passed over.
pub fn parse(path: &str) -> Option<ContainerRef> {
    parse_at(path).map(|(container, _)| container)
}

/// Like [`parse`], with the length in bytes of the part of `path` that ends with the container's own component.
pub fn parse_at(path: &str) -> Option<(ContainerRef, usize)> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let mut found: Option<(ContainerRef, usize)> = None;
    let mut pod: Option<Pod> = None;
    let mut in_kubepods = false;
    let mut qos = None;
    let mut parent = "";
    let mut end = 0;
    for part in path.split('/') {
        let at = end + part.len();
        end = at + 1;
        if part.is_empty() || part == "." || part == ".." {
            continue;
        }
        if let Some((id, runtime, own_pod)) = container_name(part, parent) {
            let of = own_pod.or_else(|| pod.take());
            let outer = found.take();
            // A container started inside a pod's container (Docker in Docker) is still that pod's.
            let (pod_uid, pod_qos) = match (of, &outer) {
                (Some(p), _) => (Some(p.uid), p.qos),
                (None, Some((o, _))) => (o.pod_uid.clone(), o.qos),
                (None, None) => (None, None),
            };
            let outer = outer.map(|(o, _)| o.id);
            found = Some((ContainerRef { id: id.to_owned(), runtime, pod_uid, qos: pod_qos, outer }, at));
            (pod, in_kubepods, qos) = (None, false, None);
        } else if let Some(p) = pod_name(part, parent, in_kubepods, qos) {
            pod = Some(p);
        } else {
            in_kubepods |= part.contains("kubepods");
            qos = match part {
                "burstable" => Some(Qos::Burstable),
                "besteffort" => Some(Qos::BestEffort),
                _ => qos,
            };
        }
        parent = part;
    }
    found
}

/// The Kubernetes or podman pod that a path lies in, whether or not it reaches down to a container.
pub fn pod_uid(path: &str) -> Option<String> {
    if let Some(c) = parse(path) {
        return c.pod_uid;
    }
    // No container yet: let a made-up one below the path collect what is above it.
    let probe = format!("{}/{:064x}", path.strip_suffix(" (deleted)").unwrap_or(path).trim_end_matches('/'), 0);
    parse(&probe).and_then(|c| c.pod_uid)
}

/// Prefixes of systemd scopes and of the cgroupfs names of CRI-O and podman. `crio-conmon-` and `libpod-conmon-` fall
/// out by themselves: what follows the prefix is no id.
const PREFIXES: &[(&str, Runtime)] = &[
    ("cri-containerd-", Runtime::Containerd),
    ("containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
    ("docker-", Runtime::Docker),
    ("crio-", Runtime::CriO),
    // podman with --cgroups=split: the payload is the container, its sibling `supervisor` is conmon.
    ("libpod-payload-", Runtime::Podman),
    ("libpod-", Runtime::Podman),
];

fn container_name<'a>(part: &'a str, parent: &str) -> Option<(&'a str, Option<Runtime>, Option<Pod>)> {
    if is_full_id(part) {
        // `/libpod_parent/<id>` is podman's pod, its containers are `libpod-<id>` below it.
        return match parent {
            "libpod_parent" => None,
            "docker" => Some((part, Some(Runtime::Docker), None)),
            _ => Some((part, None, None)),
        };
    }
    let name = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix)
            && is_id(id)
        {
            return Some((id, Some(*runtime), None));
        }
    }
    // containerd told to use systemd names while runc uses cgroupfs takes the whole of
    // `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>` as one directory name.
    let mut fields = part.splitn(3, ':');
    let (slice, prefix, id) = (fields.next()?, fields.next()?, fields.next()?);
    let runtime = match prefix {
        "cri-containerd" | "containerd" | "nerdctl" => Runtime::Containerd,
        "docker" => Runtime::Docker,
        "crio" => Runtime::CriO,
        "libpod" => Runtime::Podman,
        _ => return None,
    };
    is_id(id).then(|| (id, Some(runtime), slice_pod(slice)))
}

fn pod_name(part: &str, parent: &str, in_kubepods: bool, qos: Option<Qos>) -> Option<Pod> {
    if let Some(pod) = slice_pod(part) {
        return Some(pod);
    }
    if parent == "libpod_parent" && is_full_id(part) {
        return Some(Pod { uid: part.to_owned(), qos: None });
    }
    let uid = part.strip_prefix("pod").filter(|uid| in_kubepods && is_uid(uid))?;
    Some(Pod { uid: uid.to_owned(), qos: Some(qos.unwrap_or(Qos::Guaranteed)) })
}

/// `kubepods-burstable-pod<uid with _ for ->.slice`, `kubelet-kubepods-…` in kind, `machine-libpod_pod_<id>.slice`.
fn slice_pod(part: &str) -> Option<Pod> {
    let name = part.strip_suffix(".slice")?;
    if let Some(id) = name.strip_prefix("machine-libpod_pod_") {
        return is_full_id(id).then(|| Pod { uid: id.to_owned(), qos: None });
    }
    let (above, uid) = name.rsplit_once("-pod")?;
    // systemd nests slices at each dash, so the kubelet writes the uid's dashes as underscores.
    let uid = uid.replace('_', "-");
    if !is_uid(&uid) {
        return None;
    }
    let qos = match above.rsplit_once("kubepods")?.1 {
        "" => Qos::Guaranteed,
        "-burstable" => Qos::Burstable,
        "-besteffort" => Qos::BestEffort,
        _ => return None,
    };
    Some(Pod { uid, qos: Some(qos) })
}

fn is_hex(s: &str) -> bool {
    s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// All runtimes make ids of 32 random bytes.
fn is_full_id(s: &str) -> bool {
    s.len() == 64 && is_hex(s)
}

/// Behind a runtime's own prefix shorter ids are believed as well.
fn is_id(s: &str) -> bool {
    (12..=64).contains(&s.len()) && is_hex(s)
}

/// The API server takes any name-like uid; the kubelet writes a UUID or, for static pods, a hash.
fn is_uid(s: &str) -> bool {
    (1..=63).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "07a6ece791d4357b6e260f5ef6b701485af3154752f6931f336c2ac98f7abf15";
    const B: &str = "d5c875fa2b22e7b9e35bd1b0a9f4a6f3e1d0c9b8a7968574635241302f1e0d0c";
    const UID: &str = "11111111-2222-3333-4444-555555555555";
    const UID_: &str = "11111111_2222_3333_4444_555555555555";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    fn path(p: &str) -> String {
        p.replace("{A}", A).replace("{B}", B).replace("{UID}", UID).replace("{UID_}", UID_).replace("{STATIC}", STATIC)
    }

    /// id, runtime, pod uid, qos, outer
    type Want = (&'static str, Option<Runtime>, Option<&'static str>, Option<Qos>, Option<&'static str>);

    #[test]
    fn real_paths() {
        use Qos::*;
        use Runtime::*;
        let table: &[(&str, Want)] = &[
            // cgroupfs names
            ("/docker/{A}", (A, Some(Docker), None, None, None)),
            ("/kubepods/pod{UID}/{A}", (A, None, Some(UID), Some(Guaranteed), None)),
            ("/kubepods/burstable/pod{UID}/{A}", (A, None, Some(UID), Some(Burstable), None)),
            ("/kubepods/besteffort/pod{UID}/{A}", (A, None, Some(UID), Some(BestEffort), None)),
            ("/kubepods/burstable/pod{STATIC}/{A}", (A, None, Some(STATIC), Some(Burstable), None)),
            ("/kubepods/burstable/pod{UID}/crio-{A}", (A, Some(CriO), Some(UID), Some(Burstable), None)),
            ("/libpod_parent/libpod-{A}", (A, Some(Podman), None, None, None)),
            ("/libpod_parent/{B}/libpod-{A}", (A, Some(Podman), Some(B), None, None)),
            ("/default/{A}", (A, None, None, None, None)),
            ("/ecs/5f0c7b6a/{A}", (A, None, None, None, None)),
            ("/t4711/kubepods/burstable/pod{UID}/{A}", (A, None, Some(UID), Some(Burstable), None)),
            ("/kubepods/burstable/podp1/{A}", (A, None, Some("p1"), Some(Burstable), None)),
            // systemd names
            ("/system.slice/docker-{A}.scope", (A, Some(Docker), None, None, None)),
            ("/system.slice/nerdctl-{A}.scope", (A, Some(Containerd), None, None, None)),
            ("/machine.slice/libpod-{A}.scope", (A, Some(Podman), None, None, None)),
            ("/machine.slice/libpod-{A}.scope/container", (A, Some(Podman), None, None, None)),
            (
                "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
                (A, Some(Podman), Some(B), None, None),
            ),
            ("/system.slice/web.service/libpod-payload-{A}", (A, Some(Podman), None, None, None)),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
                (A, Some(Podman), None, None, None),
            ),
            (
                "/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{A}.scope",
                (A, Some(Containerd), Some(UID), Some(Guaranteed), None),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope",
                (A, Some(Containerd), Some(UID), Some(Burstable), None),
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/docker-{A}.scope",
                (A, Some(Docker), Some(UID), Some(BestEffort), None),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{A}.scope",
                (A, Some(CriO), Some(STATIC), Some(Burstable), None),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-{A}.scope/container",
                (A, Some(CriO), Some(UID), Some(Burstable), None),
            ),
            (
                "/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}",
                (A, Some(Containerd), Some(UID), Some(Burstable), None),
            ),
            ("/system.slice:docker:{A}", (A, Some(Docker), None, None, None)),
            // below the container
            ("/docker/{A}/init.scope", (A, Some(Docker), None, None, None)),
            ("/docker/{A}/system.slice/nginx.service", (A, Some(Docker), None, None, None)),
            ("/kubepods/burstable/pod{UID}/{A}/user.slice/x", (A, None, Some(UID), Some(Burstable), None)),
            // nested: kind and k3d by cgroupfs and systemd, Docker in Docker in a pod
            ("/docker/{B}/kubelet/kubepods/burstable/pod{UID}/{A}", (A, None, Some(UID), Some(Burstable), Some(B))),
            (
                "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{A}.scope",
                (A, Some(Containerd), Some(UID), Some(BestEffort), Some(B)),
            ),
            ("/docker/{B}/docker/{A}", (A, Some(Docker), None, None, Some(B))),
            ("/kubepods/burstable/pod{UID}/{B}/docker/{A}", (A, Some(Docker), Some(UID), Some(Burstable), Some(B))),
            // as a reader in a private cgroup namespace sees its neighbours
            ("/../../../kubepods/burstable/pod{UID}/{A}", (A, None, Some(UID), Some(Burstable), None)),
            ("/../{A}", (A, None, None, None, None)),
            (
                "/../../kubepods-pod{UID_}.slice/cri-containerd-{A}.scope",
                (A, Some(Containerd), Some(UID), Some(Guaranteed), None),
            ),
            // removed while the process lives
            ("/docker/{A} (deleted)", (A, Some(Docker), None, None, None)),
            // no leading slash, doubled slashes
            ("docker//{A}/", (A, Some(Docker), None, None, None)),
        ];
        for (p, (id, runtime, pod_uid, qos, outer)) in table {
            let p = path(p);
            let want = ContainerRef {
                id: (*id).to_owned(),
                runtime: *runtime,
                pod_uid: pod_uid.map(str::to_owned),
                qos: *qos,
                outer: outer.map(str::to_owned),
            };
            assert_eq!(parse(&p), Some(want), "{p}");
        }
    }

    #[test]
    fn not_containers() {
        for p in [
            "",
            "/",
            "/..",
            "/init.scope",
            "/system.slice/docker.service",
            "/system.slice/containerd.service",
            "/user.slice/user-0.slice/session-1.scope",
            "/docker",
            "/docker/buildkit/abcdefghijklmnopqrstuvwxy",
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods/burstable/pod{UID}",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice",
            "/machine.slice/libpod-conmon-{A}.scope",
            "/libpod_parent/conmon",
            "/libpod_parent/{B}",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-conmon-{A}.scope",
            "/system.slice/crio-conmon-{A}.scope",
            "/docker/07A6ECE791D4357B6E260F5EF6B701485AF3154752F6931F336C2AC98F7ABF15",
            "/docker/{A}0",
            "/system.slice/docker-.scope",
            "/system.slice/docker-xyz.scope",
            "/some_service/508e5e250feb251746f3d42b04a8d064",
            "::::",
            "/a:docker:zz",
        ] {
            let p = path(p);
            assert_eq!(parse(&p), None, "{p}");
        }
    }

    #[test]
    fn pod_without_container() {
        assert_eq!(pod_uid(&path("/kubepods/burstable/pod{UID}")).as_deref(), Some(UID));
        assert_eq!(pod_uid(&path("/kubepods.slice/kubepods-pod{UID_}.slice")).as_deref(), Some(UID));
        assert_eq!(pod_uid(&path("/libpod_parent/{B}")).as_deref(), Some(B));
        assert_eq!(pod_uid("/system.slice/nginx.service"), None);
        assert_eq!(pod_uid("/podman"), None);
    }

    #[test]
    fn end_of_the_containers_component() {
        let p = path("/docker/{A}/init.scope");
        let (_, end) = parse_at(&p).unwrap();
        assert_eq!(&p[..end], path("/docker/{A}"));
    }

    proptest! {
        #[test]
        fn any_string(s in "\\PC*") {
            let _ = (parse(&s), pod_uid(&s));
        }

        #[test]
        fn any_mix(parts in proptest::collection::vec(prop_oneof![
            Just("kubepods".to_owned()), Just("..".to_owned()), Just("docker".to_owned()), Just(A.to_owned()),
            Just(format!("docker-{B}.scope")), Just(format!("kubepods-pod{UID_}.slice")), Just(format!("pod{UID}")),
            Just("libpod_parent".to_owned()), Just("é (deleted)".to_owned()), ".{0,20}",
        ], 0..8)) {
            let p = parts.join("/");
            if let Some((c, end)) = parse_at(&p) {
                prop_assert!(is_id(&c.id));
                prop_assert!(p[..end].contains(&c.id));
                prop_assert!(c.pod_uid.is_none_or(|u| !u.is_empty()));
            }
        }
    }
}
