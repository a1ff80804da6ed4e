//! Against the end of a php-fpm child in the middle of a request, and of whatever the OOM killer takes.

use super::items::{advice, seconds};
use super::{Facts, MARGIN_S};
use crate::explain::server::Kind;
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

pub fn no_kept_connections(f: &Facts) -> Advice {
    let old = f.child_ms.map_or(String::new(), |ms| {
        format!(" The child had done its requests when it was {:.1} s old.", ms as f64 / 1000.0)
    });
    advice(
        "fastcgi-keep-conn-off",
        "nginx-conf",
        "location that passes on to php-fpm",
        "fastcgi_keep_conn off;  (or pm.max_requests = 0 in php-fpm's pool, where PHP does not leak: a larger number makes the loss only rarer; or fastcgi_next_upstream error timeout non_idempotent, where it does no harm that a request is carried out twice)",
        &[],
        &format!(
            "after pm.max_requests a child closes its kept connection without an announcement, and a request that nginx sends at that moment is thrown away; nginx repeats it by itself unless it is a POST, LOCK or PATCH. Without kept connections each request costs one connect to php-fpm, which is on the same node.{old}"
        ),
    )
}

pub fn memory(sub_cause: Option<&str>, f: &Facts) -> Vec<Advice> {
    let fpm = f.kind == Some(Kind::PhpFpm);
    let mib = |bytes: u64| bytes >> 20;
    let limit = f.memory.map(|(limit, _)| mib(limit));
    let now = limit.map(|mib| format!("It is {mib} MiB now. ")).unwrap_or_default();
    let mut set = Vec::new();
    if sub_cause == Some("node") {
        set.push(advice(
            "memory-request",
            "pod-spec",
            "resources.requests.memory of the pods of this node",
            "requests as high as what the containers take, and limits that are not far above them",
            &[],
            "the node had no memory left: the scheduler counts requests only, so pods that take more than theirs fill a node",
        ));
    } else {
        set.push(advice(
            "memory-limit",
            "pod-spec",
            "resources.limits.memory of the container",
            "more memory than the container takes at most",
            if fpm { &["fpm-memory"] } else { &[] },
            &format!("{now}The kernel ends a process when the limit is reached and nothing can be given back."),
        ));
    }
    if sub_cause == Some("oom-group") {
        set.push(advice(
            "single-process-oom-kill",
            "operator",
            "the kubelet's configuration",
            "singleProcessOOMKill: true  (Kubernetes 1.32)",
            &[],
            "with memory.oom.group, which the kubelet sets on cgroup v2, one process that takes too much ends all of its container",
        ));
    }
    if fpm {
        let share = f
            .memory
            .filter(|(_, children)| *children > 0)
            .map(|(limit, children)| (mib(limit) / (children + 1), children));
        let change = match share {
            Some((mib, children)) => format!(
                "memory_limit = {mib}M with {children} children  ({} MiB limit / ({children} children + the master)), or fewer pm.max_children",
                limit.unwrap_or(0)
            ),
            None => "pm.max_children x memory_limit, and what php-fpm itself needs, below the container's memory limit"
                .into(),
        };
        let fpm = advice(
            "fpm-memory",
            "php-fpm-conf",
            "pool section of php-fpm, php.ini",
            &change,
            &[],
            &format!(
                "{now}A script that reaches PHP's memory_limit gets an error of its own; one that reaches the container's limit is killed."
            ),
        );
        let value = share.map(|(mib, _)| mib);
        set.push(Advice { value, unit: value.map(|_| "MiB".into()), ..fpm });
    }
    set
}
