//! The harness of the end-to-end tests: pods of real nginx and php-fpm, a load client that writes one ledger line per
//! request, and the comparison of that ledger with what why502 said.
//!
//! ```text
//! launch   a command as PID 1 of a container: netns, cgroup, pid and mount namespace
//! cgroup   kubepods-like paths in the v2 hierarchy
//! net      network namespaces and veth pairs; tun: a path with delay, loss, duplicates, reordering;
//!          nat: a node that translates addresses
//! pod      containers; nginx, php: their configurations; site: client, edge and pod put together
//! runtime  pods run by real dockerd and containerd
//! scene    a site under load: what scenarios stop, and what is compared
//! kubelet  the end of a pod: preStop, endpoint propagation, stop signal, grace period
//! agent    why502 serve: its HTTP, and what of it is in the kernel
//! advised  a pod's end with and without what an advice changes
//! load     the client and its ledger (one line per request)
//! tracer   starts and stops why502
//! ledger   the comparison: one incident per lost request, with an allowed cause
//! accuracy how often why502 is right: scenarios, layouts, figures
//! fire     what the probes' smoke test does to the kernel
//! truth    which causes are right for which lost request
//! schema   what why502 prints against docs/: the JSON Schemas, the precedence table (pairs)
//! proofs   which of the long tests an ordinary run plays
//! guard    one test at a time, skip reasons, waiting on conditions
//! ```

pub mod accuracy;
pub mod advised;
pub mod agent;
pub mod cgroup;
pub mod cluster;
pub mod fire;
pub mod guard;
pub mod kubelet;
pub mod launch;
pub mod ledger;
pub mod load;
pub mod memory;
pub mod nat;
pub mod net;
pub mod nginx;
#[path = "../../tracer/tests/it/pairs.rs"]
pub mod pairs;
pub mod php;
pub mod pod;
pub mod proofs;
pub mod runtime;
pub mod scene;
pub mod schema;
pub mod site;
pub mod supervised;
pub mod tracer;
pub mod truth;
pub mod tun;
