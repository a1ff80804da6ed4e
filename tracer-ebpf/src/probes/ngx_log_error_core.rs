//! uprobe of `void ngx_log_error_core(ngx_uint_t level, ngx_log_t *log, ngx_err_t err, const char *fmt, ...)`
//! (src/core/ngx_log.c), the same since nginx 0.1; OpenResty, Angie and Tengine have it too.
//!
//! nginx's own words for a failure, with the errno. Runs for each line that `error_log` lets through, so with `debug` many
//! times for each request: what is less than an error returns at once, and userspace detaches it where it runs too often.

use crate::emit::{count, emit};
use crate::kernel::{arg, nginx, task};
use crate::maps;
use aya_ebpf::helpers::generated::bpf_probe_read_user_str;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use why502_ebpf::names::hook::NGX_LOG as HOOK;
use why502_ebpf::{NGINX_FORMAT, NginxLog, counter, kind, quality};

/// NGX_LOG_ERR of src/core/ngx_log.h. NGX_LOG_STDERR is 0, NGX_LOG_DEBUG 8; the bits of single debug parts (0x10 and above)
/// are of the configuration and not given here, and would be above it as well.
const ERR: u64 = 4;

#[uprobe]
pub fn ngx_log_error_core(ctx: ProbeContext) -> u32 {
    // SAFETY: reads registers and `current` only.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &ProbeContext) {
    count(HOOK, counter::SEEN);
    super::nginx_hit(ctx);
    let level = arg::register(ctx, 0);
    if level == 0 || level > ERR {
        return count(HOOK, counter::UNINTERESTING);
    }
    if maps::skipped(task::current_cgroup()) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<NginxLog>(HOOK, kind::NGINX_LOG, |p| {
        let mut q = task::write_current(core::ptr::addr_of_mut!((*p).task));
        put!(p, level = level as u32);
        put!(p, errno = arg::register(ctx, 2) as u32);
        let from = arg::register(ctx, 3);
        put!(p, format_at = from);
        put!(p, connection = nginx::number_of_log(arg::register(ctx, 1)));
        let dst = core::ptr::addr_of_mut!((*p).format).cast::<u8>();
        let n = bpf_probe_read_user_str(dst.cast(), NGINX_FORMAT as u32, from as *const _);
        if n <= 0 {
            q |= quality::NO_FORMAT;
        }
        put!(p, format_len = if n > 0 { n as u16 - 1 } else { 0 });
        put!(p, _reserved[0] = 0);
        put!(p, _reserved[1] = 0);
        put!(p, _reserved[2] = 0);
        put!(p, _reserved[3] = 0);
        put!(p, _reserved[4] = 0);
        put!(p, _reserved[5] = 0);
        q
    });
}
