//! Where runtimes listen.

use super::super::{cri, docker};
use super::Trouble;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cri,
    /// Docker's API, podman's too.
    Docker,
    /// To be found out.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub kind: Kind,
    /// To connect to.
    pub path: PathBuf,
    /// As the host knows it.
    pub shown: PathBuf,
}

/// Where runtimes listen by default, below the root.
const SOCKETS: &[(Kind, &str)] = &[
    (Kind::Cri, "run/containerd/containerd.sock"),
    (Kind::Cri, "run/k3s/containerd/containerd.sock"),
    (Kind::Cri, "var/snap/microk8s/common/run/containerd.sock"),
    (Kind::Cri, "run/crio/crio.sock"),
    (Kind::Cri, "run/cri-dockerd.sock"),
    (Kind::Docker, "run/docker.sock"),
    (Kind::Docker, "run/podman/podman.sock"),
];
/// Users that run podman for themselves: `run/user/UID/podman/podman.sock`.
const USERS: &str = "run/user";
const USERS_MAX: usize = 64;

/// Which runtimes are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// All that listen where runtimes do.
    #[default]
    Auto,
    None,
    /// Only these.
    Sockets(Vec<PathBuf>),
}

impl Wish {
    /// Of the values of a command line: `auto`, `none`, `unix:///run/x.sock` or a path.
    pub fn of(values: &[String]) -> Result<Wish, String> {
        match values {
            [] => Ok(Wish::Auto),
            [one] if one == "auto" => Ok(Wish::Auto),
            [one] if one == "none" => Ok(Wish::None),
            many => many.iter().map(|value| socket(value)).collect::<Result<_, _>>().map(Wish::Sockets),
        }
    }

    pub fn is_none(&self) -> bool {
        *self == Wish::None
    }

    /// The sockets that are there now.
    pub(super) fn sockets(&self, root: &Path) -> Vec<Socket> {
        match self {
            Wish::None => Vec::new(),
            // Followed whether they are there or not: somebody counts on them.
            Wish::Sockets(paths) => {
                let socket = |path: &PathBuf| Socket { kind: Kind::Unknown, path: path.clone(), shown: path.clone() };
                paths.iter().map(socket).collect()
            }
            Wish::Auto => {
                let known = SOCKETS.iter().map(|(kind, path)| (*kind, PathBuf::from(path)));
                let all = known.chain(users(root).into_iter().map(|path| (Kind::Docker, path)));
                let socket = |(kind, path): (Kind, PathBuf)| Socket {
                    kind,
                    path: root.join(&path),
                    shown: Path::new("/").join(path),
                };
                all.map(socket).filter(|s| is_socket(&s.path)).collect()
            }
        }
    }
}

fn socket(value: &str) -> Result<PathBuf, String> {
    let path = value.strip_prefix("unix://").unwrap_or(value);
    match path.starts_with('/') {
        true => Ok(PathBuf::from(path)),
        false => {
            Err(format!("{value:?} is neither auto, none nor a socket such as unix:///run/containerd/containerd.sock"))
        }
    }
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.file_type().is_socket())
}

fn users(root: &Path) -> Vec<PathBuf> {
    let Ok(users) = std::fs::read_dir(root.join(USERS)) else { return Vec::new() };
    let path = |user: std::fs::DirEntry| Path::new(USERS).join(user.file_name()).join("podman/podman.sock");
    let mut all: Vec<PathBuf> = users.flatten().take(USERS_MAX).map(path).collect();
    all.sort();
    all
}

/// Docker's API answers a plain GET; a gRPC server closes on it.
pub(super) async fn kind_of(path: &Path) -> Result<Kind, Trouble> {
    match docker::version(path).await {
        Ok(_) => return Ok(Kind::Docker),
        Err(trouble @ Trouble::Connect(_)) => return Err(trouble),
        Err(_) => {}
    }
    match cri::version(path).await {
        Ok(_) => Ok(Kind::Cri),
        Err(trouble @ (Trouble::Connect(_) | Trouble::Silent { .. })) => Err(trouble),
        Err(_) => Err(Trouble::NotServed("neither CRI nor Docker's API")),
    }
}

/// A socket as doctor tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: String,
    /// What it calls itself, or why it cannot be asked.
    pub answer: Result<String, String>,
}

/// The sockets that are there, and whether they answer. Takes a few seconds at most.
pub fn found(root: &Path, wish: &Wish) -> std::io::Result<Vec<Found>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sockets = wish.sockets(root);
    Ok(tokio::task::LocalSet::new().block_on(&runtime, async {
        let asked: Vec<_> = sockets.into_iter().map(|socket| tokio::task::spawn_local(ask(socket))).collect();
        let mut all = Vec::new();
        for answer in asked {
            all.extend(answer.await.ok());
        }
        all
    }))
}

async fn ask(socket: Socket) -> Found {
    let kind = match socket.kind {
        Kind::Unknown => kind_of(&socket.path).await,
        known => Ok(known),
    };
    let answer = match kind {
        Ok(Kind::Docker) => docker::version(&socket.path).await,
        Ok(_) => cri::version(&socket.path).await,
        Err(trouble) => Err(trouble),
    };
    Found { path: socket.shown.display().to_string(), answer: answer.map_err(|trouble| trouble.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_command_line() {
        let of = |values: &[&str]| Wish::of(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), Ok(Wish::Auto));
        assert_eq!(of(&["none"]), Ok(Wish::None));
        let two = Wish::Sockets(vec!["/a.sock".into(), "/b.sock".into()]);
        assert_eq!(of(&["unix:///a.sock", "/b.sock"]), Ok(two));
        for bad in [&["tcp://1.2.3.4"][..], &["auto", "/a"], &["unix://a"], &[""]] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_sockets_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Wish::Auto.sockets(dir.path()).is_empty());
        for path in ["run/docker.sock", "run/user/1000/podman/podman.sock"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        }
        std::fs::create_dir_all(dir.path().join("run/crio")).unwrap();
        std::fs::write(dir.path().join("run/crio/crio.sock"), "").unwrap();
        let found: Vec<String> = Wish::Auto.sockets(dir.path()).iter().map(|s| s.shown.display().to_string()).collect();
        assert_eq!(found, ["/run/docker.sock", "/run/user/1000/podman/podman.sock"]);
    }
}
