//! What to change, as sets: an advice names the others without which it is not enough.

use crate::model::incident::Advice;

/// Time for endpoints to be removed everywhere; what was seen can raise it.
const ENDPOINT_SECONDS: u64 = 5;

fn advice(id: &str, kind: &str, target: &str, change: &str, needs: &[&str], why: &str) -> Advice {
    Advice {
        id: id.into(),
        kind: kind.into(),
        target: target.into(),
        change: change.into(),
        value: None,
        unit: None,
        needs: needs.iter().map(|s| (*s).to_string()).collect(),
        why: why.into(),
    }
}

fn sleep(seen_seconds: u64) -> Advice {
    let seconds = ENDPOINT_SECONDS.max(seen_seconds + 1);
    Advice {
        value: Some(seconds),
        unit: Some("s".into()),
        ..advice(
            "prestop-sleep",
            "pod-spec",
            "lifecycle.preStop of the nginx container",
            &format!(
                "exec: [\"/bin/sleep\", \"{seconds}\"]  (or preStop.sleep.seconds: {seconds} from Kubernetes 1.29)"
            ),
            &[],
            "the pod stays open until everybody has stopped sending to it; the seconds count against terminationGracePeriodSeconds",
        )
    }
}

pub fn graceful_nginx() -> Vec<Advice> {
    vec![
        advice(
            "stopsignal-sigquit",
            "dockerfile",
            "Dockerfile of the nginx image",
            "STOPSIGNAL SIGQUIT",
            &["prestop-sleep", "grace-period"],
            "nginx takes SIGTERM as \"drop everything now\"; on SIGQUIT it finishes the requests it has",
        ),
        sleep(0),
        grace(),
    ]
}

fn grace() -> Advice {
    advice(
        "grace-period",
        "pod-spec",
        "terminationGracePeriodSeconds (docker: --stop-timeout)",
        "at least the preStop seconds + the longest request + a margin",
        &[],
        "what is still open when the grace period is over is killed",
    )
}

/// `seen_seconds`: how long after the listener's close connections still came, rounded up.
pub fn prestop_sleep(seen_seconds: u64) -> Vec<Advice> {
    // Who still comes after half a minute does not wait for endpoints to be removed: more sleep would not help.
    vec![sleep(seen_seconds.min(30)), grace()]
}

pub fn keepalive_on_shutdown() -> Vec<Advice> {
    vec![
        sleep(0),
        advice(
            "edge-retry-idempotent",
            "edge",
            "the load balancer or edge in front",
            "retry idempotent requests once on another pod when a kept connection is closed before the first byte (nginx: proxy_next_upstream error)",
            &[],
            "a request on a kept connection can always meet its close; only the sender can repeat it",
        ),
    ]
}

pub fn keepalive_timeouts() -> Vec<Advice> {
    vec![advice(
        "keepalive-timeout-longer-than-edge",
        "nginx-conf",
        "nginx.conf of the pod and the edge's upstream settings",
        "keepalive_timeout of the pod longer than the edge's idle timeout for upstream connections",
        &[],
        "the side that sends requests must be the one that closes idle connections",
    )]
}

/// `seconds`: the timeout that ran out; `age_ms`: how long the request had run by then.
pub fn worker_shutdown_timeout(seconds: u64, age_ms: Option<u64>) -> Vec<Advice> {
    let longer = age_ms.map_or(seconds * 2, |ms| ms.div_ceil(1000) * 2).max(seconds + 1);
    vec![
        Advice {
            value: Some(longer),
            unit: Some("s".into()),
            ..advice(
                "worker-shutdown-timeout",
                "nginx-conf",
                "main context of nginx.conf",
                &format!("worker_shutdown_timeout {longer}s;  (or remove it)"),
                &["grace-period"],
                "it must be longer than the longest request: what is open when it runs out is closed",
            )
        },
        grace(),
    ]
}

pub fn graceful_fpm(age_ms: Option<u64>) -> Vec<Advice> {
    let mut set = vec![advice(
        "fpm-stopsignal-sigquit",
        "dockerfile",
        "Dockerfile of the php-fpm image",
        "STOPSIGNAL SIGQUIT",
        &["fpm-process-control-timeout"],
        "php-fpm takes SIGTERM as \"end every child now\"; on SIGQUIT it lets them finish, if process_control_timeout allows",
    )];
    set.extend(fpm_control_timeout(age_ms));
    set
}

pub fn stop_before_kill() -> Vec<Advice> {
    vec![advice(
        "stop-before-kill",
        "pod-spec",
        "whoever stops the pod",
        "stop it with a grace period (kubectl delete without --force --grace-period=0, docker stop instead of docker kill)",
        &[],
        "SIGKILL cannot be handled: every open request is lost",
    )]
}

/// `seconds`: how long the grace period had been.
pub fn longer_grace(seconds: u64) -> Vec<Advice> {
    vec![Advice {
        value: Some(seconds * 2),
        unit: Some("s".into()),
        change: format!("more than the {seconds} s that it had: preStop seconds + the longest request + a margin"),
        ..grace()
    }]
}

pub fn exec_in_entrypoint() -> Vec<Advice> {
    vec![
        advice(
            "exec-in-entrypoint",
            "dockerfile",
            "ENTRYPOINT or CMD script of the image",
            "start the server with `exec` (exec nginx -g 'daemon off;'), or put an init such as tini before it",
            &["stopsignal-sigquit"],
            "PID 1 gets no default signal handlers: a shell as PID 1 ignores the stop signal and passes nothing on",
        ),
        advice(
            "stopsignal-sigquit",
            "dockerfile",
            "Dockerfile of the image",
            "STOPSIGNAL SIGQUIT",
            &[],
            "once the signal arrives, nginx must take it as a graceful one",
        ),
    ]
}

pub fn supervisor_order() -> Vec<Advice> {
    vec![
        advice(
            "supervisor-priority",
            "supervisor-conf",
            "supervisord.conf",
            "[program:php-fpm] priority=10 and [program:nginx] priority=20; stopsignal=QUIT for both",
            &["supervisor-stopwaitsecs"],
            "supervisord stops the highest priority first: nginx must be gone before php-fpm",
        ),
        advice(
            "supervisor-stopwaitsecs",
            "supervisor-conf",
            "supervisord.conf",
            "stopwaitsecs longer than the longest request, for both programs",
            &[],
            "after it supervisord kills",
        ),
    ]
}

/// `age_ms`: how long the killed request had run.
pub fn fpm_control_timeout(age_ms: Option<u64>) -> Vec<Advice> {
    let seconds = age_ms.map_or(10, |ms| (ms.div_ceil(1000) * 2).max(10));
    vec![
        Advice {
            value: Some(seconds),
            unit: Some("s".into()),
            ..advice(
                "fpm-process-control-timeout",
                "php-fpm-conf",
                "[global] of php-fpm.conf",
                &format!("process_control_timeout = {seconds}"),
                &["nginx-stops-first", "grace-period"],
                "with 0 (the default) a graceful stop kills the children at once; it must be longer than the longest request",
            )
        },
        stops_first(),
        grace(),
    ]
}

pub fn nginx_stops_first() -> Vec<Advice> {
    vec![stops_first()]
}

fn stops_first() -> Advice {
    advice(
        "nginx-stops-first",
        "pod-spec",
        "lifecycle.preStop of the php-fpm container (or the order of the supervisor)",
        "keep php-fpm running until nginx has finished: a preStop sleep longer than nginx's own drain",
        &[],
        "while php-fpm stops, nobody accepts what nginx still sends to it",
    )
}
