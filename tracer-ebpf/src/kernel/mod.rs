//! The only place that reads kernel structs. Offsets are read-only globals set before load (`why502_ebpf::fields`).

pub mod arg;
pub mod cgroup;
pub mod file;
pub mod mem;
pub mod nginx;
pub mod packet;
pub mod siginfo;
pub mod sock;
pub mod syscall;
pub mod task;
pub mod unix;
