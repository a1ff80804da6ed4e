//! Against the end of a php-fpm child in the middle of a request, and of whatever the OOM killer takes.

use super::items::{advice, seconds};
use super::{Facts, MARGIN_S};
use crate::model::incident::Advice;

pub fn find_the_crash(exited: bool) -> Advice {
    let change = match exited {
        false => {
            "find out what crashes (process.dumpable = yes and a core, or gdb on the child), and update or leave out the extension; until then opcache.jit = off, and a limit for recursion (zend.max_allowed_stack_size from PHP 8.3)"
        }
        true => "find out what ends the process (an extension that calls exit, FFI, a request that kills itself)",
    };
    advice(
        "fpm-child-crash-fix",
        "php-fpm-conf",
        "php-fpm's error_log (child … exited), the pool, PHP's extensions",
        change,
        &[],
        "a child that crashes takes its request along: no setting of nginx or php-fpm keeps that one",
    )
}

pub fn leave_children_alone() -> Advice {
    advice(
        "leave-children-alone",
        "operator",
        "whoever sends signals to single children of php-fpm",
        "reload php-fpm instead (SIGUSR2 to its master, with process_control_timeout), or send QUIT to the child, which ends it after its request",
        &[],
        "TERM and KILL end a child at once, whatever it works on",
    )
}

pub fn terminate_timeout(f: &Facts) -> Advice {
    let value = f.longest().map(|l| l.needs() + MARGIN_S);
    let change = match (value, f.longest()) {
        (Some(s), Some(longest)) => {
            format!(
                "request_terminate_timeout = {s}s  ({} + {MARGIN_S} s margin), or requests that take less time",
                longest.term()
            )
        }
        _ => "request_terminate_timeout longer than your longest request, or requests that take less time".into(),
    };
    let why = format!(
        "php-fpm ends a child whose request takes longer, and nginx answers 502; a script's own limit (max_execution_time) or fastcgi_read_timeout below it makes an answer instead. {}",
        f.requests()
    );
    let target = "pool section of php-fpm";
    seconds(value, advice("fpm-request-terminate-timeout", "php-fpm-conf", target, &change, &[], &why))
}

pub fn hard_timeout() -> Advice {
    advice(
        "php-hard-timeout",
        "php-fpm-conf",
        "php.ini",
        "a larger max_execution_time, or hard_timeout = 0; and what is called must not take that long in one go",
        &[],
        "max_execution_time ends a script with an error page, but not in the middle of a call into C: hard_timeout (2 s) later the process ends, and with it the connection",
    )
}

pub fn memory(fpm: bool) -> Vec<Advice> {
    let mut set = vec![advice(
        "memory-limit",
        "pod-spec",
        "resources.limits.memory of the container",
        "more memory than the container takes at most",
        &[],
        "the kernel ends a process when the limit is reached and nothing can be given back",
    )];
    if fpm {
        set.push(advice(
            "fpm-memory",
            "php-fpm-conf",
            "pool section of php-fpm, php.ini",
            "pm.max_children x memory_limit, and what php-fpm itself needs, below the container's memory limit",
            &[],
            "a script that reaches PHP's memory_limit gets an error of its own; one that reaches the container's limit is killed",
        ));
    }
    set
}
