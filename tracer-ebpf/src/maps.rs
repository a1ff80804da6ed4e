//! All maps, and the read-only globals that are not field offsets.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf};
use why502_ebpf::names::{HOOKS, NGINX_SLOTS};
use why502_ebpf::{Digest, PortKey, StopCounts, Stopping, Tuple, counter};

/// Userspace may override the sizes before load.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS.len() as u32 * counter::PER_HOOK, 0);

#[map]
pub static SKIP_CGROUPS: HashMap<u64, u8> = HashMap::with_max_entries(16_384, 0);

#[map]
pub static LISTENERS: LruHashMap<PortKey, u64> = LruHashMap::with_max_entries(16_384, 0);

/// When the accept queue of a port was last told to be full.
#[map]
pub static FULL: LruHashMap<PortKey, u64> = LruHashMap::with_max_entries(1024, 0);

#[map]
pub static DIGESTS: LruHashMap<Tuple, Digest> = LruHashMap::with_max_entries(65_536, 0);

/// cgroups that were told to stop.
#[map]
pub static STOPPING: LruHashMap<u64, Stopping> = LruHashMap::with_max_entries(1024, 0);

/// What they did since. A CPU each: BPF in Rust has no atomic addition.
#[map]
pub static STOP_COUNTS: LruPerCpuHashMap<u64, StopCounts> = LruPerCpuHashMap::with_max_entries(1024, 0);

/// One slot: 1 once STOPPING has had an entry.
#[map]
pub static STOPS_SEEN: Array<u64> = Array::with_max_entries(1, 0);

/// Processes ([`crate::kernel::task::process`]) whose end was reported.
#[map]
pub static ENDED: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(4096, 0);

#[map]
pub static NGINX_HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(NGINX_SLOTS, 0);

/// include/uapi/linux/bpf.h BPF_NOEXIST, and include/uapi/asm-generic/errno-base.h EEXIST.
const NOEXIST: u64 = 1;
const EEXIST: i32 = 17;

/// Is this the first end of this process? When the map cannot tell: yes.
#[inline(always)]
pub fn first_end(process: [u64; 2]) -> bool {
    !matches!(ENDED.insert(process, 1, NOEXIST), Err(e) if e == -EEXIST)
}

macro_rules! globals {
    ($($name:ident: $t:ty = $v:expr;)*) => { $(#[unsafe(no_mangle)] pub static $name: Global<$t> = Global::new($v);)* };
}
globals! {
    SK_SALT: u64 = 0;
    SIG_MASK: u64 = 0;
    WAKE_BYTES: u32 = 0;
    HAS_TASK_BTF: u32 = 0;
    HAS_RESET_REASON: u32 = 0;
    HAS_VICTIM_TASK: u32 = 0;
    HAS_SK_CGROUP_PTR: u32 = 0;
    HAS_DROP_REASON: u32 = 0;
    UNIX_DROP_REASON: u32 = 0;
    UNIX_REASON_IS_CLOSE: u32 = 0;
    HAS_COOKIE: u32 = 0;
    CONNECT_NR: u32 = u32::MAX;
    CGROUP_V1: u32 = 0;
}

/// Is this cgroup left out? What is not listed is watched: a container that userspace has not seen yet is never missed.
#[inline(always)]
pub fn skipped(cgroup: u64) -> bool {
    SKIP_CGROUPS.get_ptr(&cgroup).is_some()
}
