//! uprobe of `ngx_int_t ngx_http_special_response_handler(ngx_http_request_t *r, ngx_int_t error)`
//! (src/http/ngx_http_special_response.c), the same since nginx 0.1.
//!
//! nginx answers a request by itself, with this status. Runs for redirects and 404 as well: all but 500 to 504 returns at
//! once, and userspace detaches it where it runs too often.

use crate::emit::{count, emit};
use crate::kernel::{arg, file, nginx, sock, task};
use crate::maps;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use why502_ebpf::names::hook::NGX_ERROR_PAGE as HOOK;
use why502_ebpf::{NginxErrorPage, counter, kind};

#[uprobe]
pub fn ngx_http_special_response_handler(ctx: ProbeContext) -> u32 {
    // SAFETY: reads registers and `current` only.
    unsafe { run(&ctx) };
    0
}

#[inline(always)]
unsafe fn run(ctx: &ProbeContext) {
    count(HOOK, counter::SEEN);
    super::nginx_hit(ctx);
    let status = arg::register(ctx, 1);
    if !(500..=504).contains(&status) {
        return count(HOOK, counter::UNINTERESTING);
    }
    if maps::skipped(task::current_cgroup()) {
        return count(HOOK, counter::SKIPPED);
    }
    emit::<NginxErrorPage>(HOOK, kind::NGINX_ERROR_PAGE, |p| {
        put!(p, status = status as u32);
        put!(p, _reserved = 0);
        let connection = nginx::connection(arg::register(ctx, 0));
        put!(p, connection = if connection == 0 { 0 } else { nginx::number(connection) });
        // Whose request it is: from the kernel's socket, nginx only says which of its own that is.
        let sk = if connection == 0 { core::ptr::null() } else { file::sock_of(nginx::fd(connection)) };
        sock::write_tuple(core::ptr::addr_of_mut!((*p).client), &sock::connected(sk));
        task::write_current(core::ptr::addr_of_mut!((*p).task))
    });
}
