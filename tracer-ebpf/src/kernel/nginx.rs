//! nginx's own structs, in the memory of `current`. Only what has had the same place in every nginx since 1.0, in its
//! relatives as well, on 64-bit machines; hostile all the same: a number that is read here names nothing by itself.

use super::mem::user;

/// NGX_HTTP_MODULE of src/http/ngx_http_config.h, `ngx_http_request_t.signature`: "HTTP".
const SIGNATURE: u32 = 0x5054_5448;
/// `ngx_http_request_t.connection`.
const REQUEST_CONNECTION: u64 = 8;
/// `ngx_connection_t.fd`, `.log`.
const CONNECTION_FD: u64 = 24;
const CONNECTION_LOG: u64 = 80;
/// `ngx_log_t.connection`.
const LOG_CONNECTION: u64 = 16;

/// The connection of a request; 0 for what is no request.
#[inline(always)]
pub unsafe fn connection(request: u64) -> u64 {
    if user::<u32>(request) != SIGNATURE {
        return 0;
    }
    user(request.wrapping_add(REQUEST_CONNECTION))
}

/// Its descriptor. Streams of HTTP/2 have that of their connection, those of HTTP/3 the listening one.
#[inline(always)]
pub unsafe fn fd(connection: u64) -> u32 {
    user(connection.wrapping_add(CONNECTION_FD))
}

/// Its number, `*17` in the log: counted over all workers, never given twice. 0 unknown.
#[inline(always)]
pub unsafe fn number(connection: u64) -> u64 {
    number_of_log(user(connection.wrapping_add(CONNECTION_LOG)))
}

/// The same of what a line is written for; 0: for no connection.
#[inline(always)]
pub unsafe fn number_of_log(log: u64) -> u64 {
    user(log.wrapping_add(LOG_CONNECTION))
}
