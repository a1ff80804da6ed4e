//! `--kube` and `--node`: which Kubernetes API is asked, and under which name it knows this node.

use crate::sources::kube::Place;
use anyhow::ensure;
use std::path::PathBuf;

/// Bytes of a node's name (RFC 1123).
const NODE_MAX: usize = 253;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct KubeArgs {
    /// Kubernetes API: `auto` (a pod's service account), `none`, or a kubeconfig
    #[arg(long, value_name = "auto|none|FILE", default_value = "auto", hide_default_value = true)]
    kube: String,
    /// Name of this node there, if not the host's
    #[arg(long, value_name = "NAME", env = "NODE_NAME", hide_env_values = true)]
    node: Option<String>,
}

/// What the arguments come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Kube {
    pub(super) place: Option<Place>,
    pub(super) node: Option<String>,
}

impl KubeArgs {
    pub(super) fn resolve(&self) -> anyhow::Result<Kube> {
        let place = match self.kube.as_str() {
            "none" => None,
            // Clap's own default is left out by `Default`.
            "auto" | "" => Place::in_cluster(),
            file => {
                let path = PathBuf::from(file);
                ensure!(path.is_file(), "--kube: {file} is no file; auto, none or a kubeconfig");
                Some(Place::Kubeconfig(path))
            }
        };
        let node = self.node.clone().filter(|name| !name.is_empty());
        if let Some(name) = &node {
            // It becomes part of a selector.
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            ensure!(name.len() <= NODE_MAX && name.bytes().all(plain), "--node: {name:?} is no name of a node");
        }
        Ok(Kube { place, node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(kube: &str, node: Option<&str>) -> anyhow::Result<Kube> {
        KubeArgs { kube: kube.into(), node: node.map(str::to_owned) }.resolve()
    }

    #[test]
    fn where_to_ask() {
        assert_eq!(resolve("none", None).unwrap().place, None);
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(resolve(path, None).unwrap().place, Some(Place::Kubeconfig(path.into())));
        assert!(resolve("/no/such/file", None).unwrap_err().to_string().contains("is no file"));
    }

    #[test]
    fn a_nodes_name_goes_into_a_selector() {
        assert_eq!(
            resolve("none", Some("ip-10-0-3-7.ec2.internal")).unwrap().node.unwrap(),
            "ip-10-0-3-7.ec2.internal"
        );
        assert!(resolve("none", Some("a,metadata.name=b")).is_err());
        assert_eq!(resolve("none", Some("")).unwrap().node, None, "an empty variable");
    }
}
