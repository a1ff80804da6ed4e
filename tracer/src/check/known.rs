//! What public images are known to declare. Everything else is not known, and said to be.
//!
//! nginx: `STOPSIGNAL SIGQUIT` since the images of 1.19.5 (24 November 2020), the entrypoint script ends with `exec "$@"`.
//! php: `STOPSIGNAL SIGQUIT` in the fpm variants since April 2019 (all images of 7.3 and newer), `exec "$@"` likewise.
//! Both are Debian with dash, or Alpine with busybox. Read in the images' own Dockerfiles.

use super::dockerfile::Command;
use super::shell::Sh;

/// What an image that nobody needs to look into declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub stop_signal: Option<u32>,
    pub entrypoint: Option<Command>,
    pub cmd: Option<Command>,
    pub sh: Sh,
}

const SIGQUIT: u32 = 3;
const SIGTERM: u32 = 15;

/// `host/path:tag@digest` without host and digest: the path as Docker Hub calls it, and the tag.
fn parts(reference: &str) -> (&str, &str) {
    let name = reference.split('@').next().unwrap_or(reference);
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, ""),
    };
    const HUBS: &[&str] =
        &["docker.io/library/", "index.docker.io/library/", "public.ecr.aws/docker/library/", "docker.io/", "library/"];
    let path = HUBS.iter().find_map(|hub| path.strip_prefix(hub)).unwrap_or(path);
    (path, tag)
}

/// Is this version, as a tag begins with it, at least that one? `None`: the tag does not begin with a number.
fn at_least(tag: &str, wanted: &[u32]) -> Option<bool> {
    let version = tag.split('-').next().unwrap_or(tag);
    let numbers: Option<Vec<u32>> = version.split('.').map(|n| n.parse().ok()).collect();
    // `1.27` stands for the newest 1.27.x.
    let numbers = numbers?;
    Some(numbers.iter().zip(wanted).find(|(a, b)| a != b).is_none_or(|(a, b)| a > b))
}

fn exec(words: &[&str]) -> Option<Command> {
    Some(Command::Exec(words.iter().map(|w| (*w).to_owned()).collect()))
}

/// What the image that a reference names declares, where that is public knowledge.
pub fn image(reference: &str) -> Option<Known> {
    let (path, tag) = parts(reference);
    let sh = if tag.contains("alpine") { Sh::Ash } else { Sh::Dash };
    match path {
        "nginx" => Some(Known {
            // The images of 1.18 were built before and after the change.
            stop_signal: at_least(tag, &[1, 19, 5]).unwrap_or(true).then_some(SIGQUIT),
            entrypoint: exec(&["/docker-entrypoint.sh"]),
            cmd: exec(&["nginx", "-g", "daemon off;"]),
            sh,
        }),
        "php" if tag.split('-').any(|part| part == "fpm") => Some(Known {
            stop_signal: at_least(tag, &[7, 3]).unwrap_or(true).then_some(SIGQUIT),
            entrypoint: exec(&["docker-php-entrypoint"]),
            cmd: exec(&["php-fpm"]),
            sh,
        }),
        "debian" | "ubuntu" => Some(plain(Sh::Dash)),
        "alpine" | "busybox" => Some(plain(Sh::Ash)),
        "fedora"
        | "almalinux"
        | "rockylinux"
        | "rockylinux/rockylinux"
        | "amazonlinux"
        | "archlinux"
        | "oraclelinux" => Some(plain(Sh::Bash)),
        "scratch" => Some(plain(Sh::Unknown)),
        _ => None,
    }
}

fn plain(sh: Sh) -> Known {
    Known { stop_signal: Some(SIGTERM), entrypoint: None, cmd: None, sh }
}

/// Scripts of the images above that end with `exec "$@"`.
pub fn execs_its_arguments(script: &str) -> bool {
    matches!(script, "/docker-entrypoint.sh" | "docker-php-entrypoint" | "/usr/local/bin/docker-php-entrypoint")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        assert_eq!(parts("nginx"), ("nginx", ""));
        assert_eq!(parts("docker.io/library/nginx:1.27@sha256:ab"), ("nginx", "1.27"));
        assert_eq!(parts("localhost:5000/nginx"), ("localhost:5000/nginx", ""));
        assert_eq!(parts("registry.example/acme/nginx:2"), ("registry.example/acme/nginx", "2"));
    }

    #[test]
    fn stop_signals() {
        let signal = |reference: &str| image(reference).map(|known| known.stop_signal);
        for (reference, wanted) in [
            ("nginx", Some(Some(SIGQUIT))),
            ("nginx:1.27-alpine", Some(Some(SIGQUIT))),
            ("nginx:1.19.5", Some(Some(SIGQUIT))),
            ("nginx:1", Some(Some(SIGQUIT))),
            ("nginx:1.19.4", Some(None)),
            ("nginx:1.18", Some(None)),
            ("php:8.3-fpm-bookworm", Some(Some(SIGQUIT))),
            ("php:fpm", Some(Some(SIGQUIT))),
            ("php:7.2-fpm", Some(None)),
            ("php:8.3-cli", None),
            ("debian:bookworm-slim", Some(Some(SIGTERM))),
            ("acme/nginx", None),
            ("bitnami/nginx:1.27", None),
        ] {
            assert_eq!(signal(reference), wanted, "{reference}");
        }
        assert_eq!(image("php:8-fpm-alpine").unwrap().sh, Sh::Ash);
    }
}
