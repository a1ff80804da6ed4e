//! Adapters that read the outside world: /proc, the cgroup trees, container runtimes. Every reader takes the root directory
//! (`/`), so that fixtures can feed it and a pod can use a host mount; what they find becomes facts of the input sequence.

pub mod cgroups;
mod cri;
mod docker;
pub mod kube;
mod kubelet;
pub mod memory;
mod oci;
pub mod procfs;
pub mod program;
pub mod root;
pub mod running;
pub mod runtimes;
pub mod spec;
