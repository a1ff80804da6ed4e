//! What the running kernel is like: its types (BTF), the offsets that the probes need, clocks, rights and mounts.
//! Pure over bytes and root paths where possible; knows nothing of aya.

pub mod btf;
pub mod clock;
pub mod fields;
pub mod host;
