//! Each advice by itself.

use super::{Facts, MARGIN_S};
use crate::model::incident::Advice;

/// The least stopwaitsecs: supervisord's own default.
const LEAST_STOPWAITSECS: u64 = 10;
/// nginx's own keepalive_timeout for clients, and the one for its connections to upstreams.
const KEEPALIVE_S: u64 = 75;
const EDGE_KEEPALIVE_S: u64 = 60;
/// Long enough for a busy client to send its next request, short against any grace period.
const KEEPALIVE_MIN_S: u64 = 5;

pub(super) fn advice(id: &str, kind: &str, target: &str, change: &str, needs: &[&str], why: &str) -> Advice {
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

pub(super) fn seconds(value: Option<u64>, advice: Advice) -> Advice {
    Advice { value, unit: value.map(|_| "s".into()), ..advice }
}

pub fn stopsignal() -> Advice {
    advice(
        "stopsignal-sigquit",
        "dockerfile",
        "Dockerfile of the nginx image",
        "STOPSIGNAL SIGQUIT  (or lifecycle.stopSignal: SIGQUIT in the pod spec from Kubernetes 1.33), and no hook that sends a signal itself",
        &["prestop-sleep", "grace-period"],
        "nginx takes SIGTERM as \"drop everything now\", even after a SIGQUIT; on SIGQUIT it finishes the requests that it has, but takes none of those that are still coming",
    )
}

pub fn prestop_sleep(f: &Facts) -> Advice {
    let s = f.pre_stop();
    let change = format!("exec: [\"/bin/sleep\", \"{s}\"]  (or preStop.sleep.seconds: {s} from Kubernetes 1.29)");
    let why = format!(
        "nginx stays open until everybody has stopped sending to it; the seconds count against the grace period. {}",
        f.connections()
    );
    let target = "lifecycle.preStop of the nginx container";
    seconds(Some(s), advice("prestop-sleep", "pod-spec", target, &change, &["grace-period"], &why))
}

/// terminationGracePeriodSeconds of a pod in which nothing needs longer than nginx.
pub fn grace(f: &Facts) -> Advice {
    grace_after(f, f.pre_stop(), "preStop")
}

/// The same when php-fpm waits for nginx.
pub fn fpm_grace(f: &Facts) -> Advice {
    match php_sleep(f) {
        Some(sleep) => grace_after(f, sleep, "preStop of php-fpm"),
        None => grace(f),
    }
}

pub(super) fn grace_after(f: &Facts, sleep: u64, what: &str) -> Advice {
    let slept = if sleep == 0 { String::new() } else { format!("{sleep} s {what} + ") };
    let (value, sum) = match f.longest() {
        Some(longest) => {
            let sum = sleep + longest.needs() + MARGIN_S;
            (Some(sum), format!("{slept}{} + {MARGIN_S} s margin = {sum}, or more", longest.term()))
        }
        None => (None, format!("{slept}your longest request + {MARGIN_S} s margin, or more")),
    };
    let now = f.grace_s.map(|s| format!("It is {s} s now. ")).unwrap_or_default();
    let why = format!("what is still open when the grace period is over is killed. {now}{}", f.requests());
    let target = "terminationGracePeriodSeconds, 30 unless set (docker: --stop-timeout, 10)";
    seconds(value, advice("grace-period", "pod-spec", target, &sum, &[], &why))
}

pub fn edge_retry() -> Advice {
    advice(
        "edge-retry-idempotent",
        "edge",
        "the load balancer or edge in front",
        "let go of kept connections when the endpoint is removed, and retry idempotent requests once on another pod when one was closed before the first byte (nginx: proxy_next_upstream error)",
        &[],
        "a request on a kept connection can always meet its close; only the sender can repeat it",
    )
}

/// For what was refused, or answered with 502 in the pod.
pub fn edge_retry_elsewhere() -> Advice {
    advice(
        "edge-retry-idempotent",
        "edge",
        "the load balancer or edge in front",
        "try another pod once, for idempotent requests (nginx: proxy_next_upstream error http_502)",
        &[],
        "until the endpoint is removed only the sender can ask somebody else",
    )
}

pub fn keepalive_min_timeout() -> Advice {
    let change = format!("keepalive_min_timeout {KEEPALIVE_MIN_S}s;  (nginx 1.27.4 or newer)");
    let why =
        "idle connections stay open for so long after SIGQUIT or a reload, for a request that is already on its way";
    let target = "http context of nginx.conf";
    seconds(Some(KEEPALIVE_MIN_S), advice("keepalive-min-timeout", "nginx-conf", target, &change, &[], why))
}

pub fn keepalive_timeout() -> Advice {
    let change = format!(
        "keepalive_timeout {KEEPALIVE_S}s;  (longer than the sender keeps idle connections: nginx upstreams and AWS load balancers 60 s, Google's 600 s)"
    );
    let why = "the side that sends requests must be the one that closes idle connections";
    let (id, target) = ("keepalive-timeout-longer-than-edge", "http context of the pod's nginx.conf");
    seconds(Some(KEEPALIVE_S), advice(id, "nginx-conf", target, &change, &["edge-keepalive-timeout"], why))
}

pub fn edge_keepalive_timeout() -> Advice {
    let change = format!(
        "at most {EDGE_KEEPALIVE_S} s for idle upstream connections  (nginx: keepalive_timeout in the upstream)"
    );
    let why = "it must be shorter than the pod's keepalive_timeout, by more than a round trip";
    let target = "the load balancer or edge in front";
    seconds(Some(EDGE_KEEPALIVE_S), advice("edge-keepalive-timeout", "edge", target, &change, &[], why))
}

/// `stop`: a stop and not a reload, so that the grace period counts as well.
pub fn worker_shutdown_timeout(f: &Facts, stop: bool) -> Advice {
    let s = f.longest().map_or(2 * f.timeout_s, |l| l.needs()).max(f.timeout_s + 1);
    let why = format!(
        "it must be longer than the longest request: what is open when it runs out is closed. It was about {} s. {}",
        f.timeout_s,
        f.requests()
    );
    let change = format!("worker_shutdown_timeout {s}s;  (or remove it)");
    let needs: &[&str] = if stop { &["grace-period"] } else { &[] };
    seconds(
        Some(s),
        advice("worker-shutdown-timeout", "nginx-conf", "main context of nginx.conf", &change, needs, &why),
    )
}

pub fn stop_before_kill() -> Advice {
    advice(
        "stop-before-kill",
        "operator",
        "whoever stops the pod",
        "stop it with a grace period (kubectl delete without --force --grace-period=0, docker stop instead of docker kill)",
        &["grace-period"],
        "SIGKILL cannot be handled: every open request is lost",
    )
}

/// `left`: PID 1 heard the signal, and did not wait for the server.
pub fn exec_in_entrypoint(fpm: bool, left: bool) -> Advice {
    let (server, signal) = match fpm {
        true => ("exec php-fpm -F", "fpm-stopsignal-sigquit"),
        false => ("exec nginx -g 'daemon off;'", "stopsignal-sigquit"),
    };
    let (how, why) = match left {
        false => (
            "or put an init such as tini before it",
            "PID 1 gets no default signal handlers: a shell as PID 1 ignores the stop signal and passes nothing on",
        ),
        true => (
            "so that it is PID 1, or the only child of tini; a script that traps the signal must wait until the server is gone",
            "when PID 1 ends, the kernel kills whatever else runs in the container",
        ),
    };
    advice(
        "exec-in-entrypoint",
        "dockerfile",
        "ENTRYPOINT or CMD script of the image",
        &format!("start the server with `exec` ({server}), {how}"),
        &[signal],
        why,
    )
}

pub fn prestop_command() -> Advice {
    advice(
        "prestop-command",
        "pod-spec",
        "lifecycle.preStop of the container",
        "replace the command by the sleep below: it failed, so nothing was done before the stop signal",
        &["prestop-sleep"],
        "a hook that fails does not delay the stop signal; try the command with kubectl exec",
    )
}

pub fn native_sidecar() -> Advice {
    advice(
        "native-sidecar",
        "pod-spec",
        "the proxy's container",
        "a native sidecar: an initContainer with restartPolicy: Always (Kubernetes 1.29); what is below is for the server behind it",
        &["stopsignal-sigquit", "prestop-sleep", "grace-period"],
        "native sidecars are stopped after the containers that need them: what that server then still takes is what the pod takes",
    )
}

pub fn liveness_probe() -> Advice {
    advice(
        "liveness-probe",
        "pod-spec",
        "livenessProbe or startupProbe of the container that was killed",
        "one that fails only when a restart is the cure: it does not wait behind requests (nginx: a location that it answers itself; php-fpm: pm.status_path on pm.status_listen, PHP 8.0), and periodSeconds x failureThreshold is longer than any pause that passes by itself",
        &["edge-retry-idempotent"],
        "the kubelet stops the container and not the pod: nobody is sent elsewhere before, so what comes until it listens again is lost, whatever preStop hooks wait for",
    )
}

pub fn readiness() -> Advice {
    advice(
        "readiness-probe",
        "pod-spec",
        "readinessProbe of the nginx container",
        "a probe of the port that is served, so that nobody is sent here before nginx listens",
        &[],
        "an endpoint without a probe is ready as soon as its container runs",
    )
}

pub fn keep_nginx_up() -> Advice {
    advice(
        "keep-nginx-up",
        "nginx-conf",
        "nginx's error log, kubectl logs --previous",
        "find out why nginx ended, and do away with that; until then have it started again (restartPolicy: Always, the default of a Deployment)",
        &["readiness-probe", "edge-retry-idempotent"],
        "from its end until its endpoint is removed every connection is refused, and what it worked on is gone: no setting of the pod keeps those",
    )
}

pub fn upstream_keepalive() -> Advice {
    advice(
        "upstream-keepalive",
        "nginx-conf",
        "the upstream block of the nginx that could not connect",
        "keepalive 32; with proxy_http_version 1.1 and proxy_set_header Connection \"\"  (php-fpm: fastcgi_keep_conn on)",
        &["ip-local-port-range"],
        "a connection for each request takes a port for each request, and TIME_WAIT keeps some of them for a minute",
    )
}

pub fn port_range() -> Advice {
    advice(
        "ip-local-port-range",
        "pod-spec",
        "securityContext.sysctls of the pod of that nginx (docker: --sysctl)",
        "net.ipv4.ip_local_port_range: \"1024 65535\"  (and net.ipv4.tcp_tw_reuse: \"1\" where the connections leave the node)",
        &[],
        "there is one port for each open connection to one address and port, and the range is what the network namespace gives; more addresses behind the upstream give as many ports again",
    )
}

pub fn fpm_socket() -> Advice {
    advice(
        "fpm-unix-socket",
        "php-fpm-conf",
        "listen of the pool and fastcgi_pass, if it is php-fpm in the same pod that was asked",
        "a unix socket in a volume that both containers mount",
        &[],
        "a unix socket needs no port",
    )
}

pub fn fresh_addresses() -> Advice {
    advice(
        "upstream-addresses",
        "edge",
        "the nginx that could not connect",
        "addresses that follow the endpoints: a Service, or a resolver with `resolve` in the upstream (nginx 1.27.3) and a short valid time; what is written in the configuration is resolved once, at its start",
        &["edge-retry-idempotent"],
        "an address stays in use after its pod has gone",
    )
}

pub fn find_the_crash() -> Advice {
    advice(
        "find-the-crash",
        "nginx-conf",
        "nginx's error log (worker process … exited on signal …), a core dump (worker_rlimit_core, working_directory)",
        "find out what made the worker crash: a module that is not nginx's own more often than not; leave it out, or take a version without the fault",
        &["edge-retry-idempotent"],
        "its master starts another worker at once, but what the worker had is gone: no setting of the pod keeps that",
    )
}

pub fn signal_the_master() -> Advice {
    advice(
        "signal-the-master",
        "operator",
        "whoever sent the signal to the worker",
        "signals to nginx's master only: HUP to replace its workers, QUIT to end",
        &["edge-retry-idempotent"],
        "a worker that is killed takes its requests along, and its master starts another one at once",
    )
}

pub fn replace_not_restart(fast: bool) -> Advice {
    let needs: &[&str] = match fast {
        true => &["stopsignal-sigquit", "prestop-sleep", "grace-period"],
        false => &["prestop-sleep", "grace-period"],
    };
    advice(
        "replace-not-restart",
        "pod-spec",
        "whoever restarts nginx (a liveness probe, supervisorctl, docker restart)",
        "replace the pod (kubectl rollout restart), with what is below; or reload with `nginx -s reload`; a liveness probe that only fails when a restart would help",
        needs,
        "a pod whose container is restarted in place stays an endpoint, and nobody listens until nginx is there again",
    )
}

pub fn fpm_stopsignal() -> Advice {
    advice(
        "fpm-stopsignal-sigquit",
        "dockerfile",
        "Dockerfile of the php-fpm image",
        "STOPSIGNAL SIGQUIT  (or lifecycle.stopSignal: SIGQUIT in the pod spec from Kubernetes 1.33)",
        &["fpm-process-control-timeout"],
        "php-fpm takes SIGTERM as \"end every child now\"; on SIGQUIT it lets them finish, if process_control_timeout allows",
    )
}

pub fn control_timeout(f: &Facts) -> Advice {
    let value = f.longest().map(|l| l.needs() + MARGIN_S);
    let change = match (value, f.longest()) {
        (Some(s), Some(longest)) => {
            format!("process_control_timeout = {s}  ({} + {MARGIN_S} s margin)", longest.term())
        }
        _ => "process_control_timeout = your longest request, in seconds".into(),
    };
    let why = format!(
        "whoever is still busy after that time is ended; with 0, the default, at once. What arrives while php-fpm stops is lost all the same. {}",
        f.requests()
    );
    let needs = ["nginx-stops-first", "grace-period"];
    let target = "[global] of php-fpm.conf";
    seconds(value, advice("fpm-process-control-timeout", "php-fpm-conf", target, &change, &needs, &why))
}

/// Seconds that php-fpm waits: nginx's own sleep, and its drain.
fn php_sleep(f: &Facts) -> Option<u64> {
    Some(f.pre_stop() + f.longest()?.needs() + MARGIN_S)
}

pub fn nginx_stops_first(f: &Facts) -> Advice {
    let value = php_sleep(f);
    let sleep = match (value, f.longest()) {
        (Some(s), Some(longest)) => format!(
            "preStop sleep of php-fpm {s} s: {} s preStop of nginx + {} + {MARGIN_S} s margin = {s}",
            f.pre_stop(),
            longest.term()
        ),
        _ => "preStop sleep of php-fpm longer than nginx's own preStop and drain".into(),
    };
    let change = format!(
        "{sleep}  (or php-fpm as a native sidecar, an initContainer with restartPolicy: Always, from Kubernetes 1.29: it is stopped after nginx)"
    );
    let why = format!("while php-fpm stops, nobody accepts what nginx still sends to it. {}", f.requests());
    let needs = ["prestop-sleep", "grace-period"];
    let target = "lifecycle.preStop of the php-fpm container";
    seconds(value, advice("nginx-stops-first", "pod-spec", target, &change, &needs, &why))
}

pub fn start_fpm_first() -> Advice {
    advice(
        "start-fpm-first",
        "pod-spec",
        "the php-fpm container, and the readinessProbe of nginx",
        "php-fpm as a native sidecar with a startupProbe (Kubernetes 1.29), or a readinessProbe of nginx that is answered by php",
        &[],
        "containers of a pod start side by side: nginx may be ready long before php-fpm",
    )
}

pub fn keep_fpm_up() -> Advice {
    advice(
        "keep-fpm-up",
        "php-fpm-conf",
        "php-fpm's error_log, kubectl logs --previous",
        "find out why php-fpm ended, and do away with that; until then a readinessProbe of nginx that is answered by php, so that nobody is sent here while it is down",
        &["edge-retry-idempotent"],
        "from its end until the endpoint is removed everything that needs php is answered with 502: no setting of the pod keeps those",
    )
}

pub fn max_children() -> Advice {
    advice(
        "fpm-max-children",
        "php-fpm-conf",
        "pool section of php-fpm",
        "more pm.max_children, as far as memory allows, or requests that take less time",
        &[],
        "requests wait only while every child is busy",
    )
}

pub fn listen_backlog() -> Advice {
    advice(
        "fpm-listen-backlog",
        "php-fpm-conf",
        "pool section of php-fpm, and the node's or the pod's sysctl",
        "listen.backlog = 511, its default, or larger than the burst that may wait, and net.core.somaxconn not smaller than that",
        &["fpm-max-children"],
        "on a unix socket a connect to a full queue fails at once; the queue holds listen.backlog + 1 connections",
    )
}

pub fn supervisor_priority() -> Advice {
    advice(
        "supervisor-priority",
        "supervisor-conf",
        "supervisord.conf",
        "[program:php-fpm] priority=10 and [program:nginx] priority=20; stopsignal=QUIT for both",
        &["supervisor-stopwaitsecs", "prestop-sleep", "grace-period"],
        "supervisord stops the highest priority first, and of one priority the last started: nginx must be gone before php-fpm",
    )
}

pub fn stopwaitsecs(f: &Facts) -> Advice {
    let value = f.longest().map(|l| (l.needs() + MARGIN_S).max(LEAST_STOPWAITSECS));
    let change = match (value, f.longest()) {
        (Some(s), Some(longest)) => {
            format!(
                "stopwaitsecs={s} for both programs  ({} + {MARGIN_S} s margin, at least {LEAST_STOPWAITSECS})",
                longest.term()
            )
        }
        _ => "stopwaitsecs longer than your longest request, for both programs".into(),
    };
    let why = format!("after it supervisord kills. {}", f.requests());
    let (id, target) = ("supervisor-stopwaitsecs", "supervisord.conf");
    seconds(value, advice(id, "supervisor-conf", target, &change, &["grace-period"], &why))
}

/// nginx reads an answer's header into one buffer. What it had read of an answer that was too big is that buffer.
pub fn upstream_buffer_size(f: &Facts) -> Advice {
    let came = f.came.filter(|c| c.read > 0);
    // The header is in what had come, or is longer still; nginx takes at least twice the buffer that was full.
    let kib = came.map(|c| c.received.max(2 * c.read).next_power_of_two().div_ceil(1024).clamp(8, 1024));
    let size = kib.map_or("SIZE".into(), |kib| format!("{kib}k"));
    let change = format!(
        "fastcgi_buffer_size {size}; fastcgi_buffers 8 {size};  (with proxy_pass: proxy_buffer_size and proxy_buffers){}",
        if kib.is_none() { ", with a SIZE that the longest header fits into, such as 32k" } else { "" }
    );
    let seen = match came {
        Some(c) => format!("n=1: its buffer of {} bytes was full, {} bytes had come.", c.read, c.received),
        None => "How much had come was not seen.".into(),
    };
    let why = format!(
        "the whole header of an answer, cookies included, has to fit into one buffer (4k or 8k unless set); \
         the application can send less as well. {seen}"
    );
    let target = "the location of nginx.conf that passes to this upstream";
    let advice = advice("upstream-buffer-size", "nginx-conf", target, &change, &[], &why);
    Advice { value: kib, unit: kib.map(|_| "KiB".into()), ..advice }
}

/// What makes nginx refuse an answer is in the answer.
pub fn valid_answer(sub_cause: Option<&str>) -> Advice {
    let change = match sub_cause {
        Some("header-invalid") => {
            "send header lines of a name without spaces, a colon and a value, once each, and a status of three digits"
        }
        Some("answer-incomplete") => "find in the application's own log why it ended its answer before the header",
        _ => "let the server speak what nginx asks it for: fastcgi_pass to php-fpm, proxy_pass to an HTTP server",
    };
    let why = "nginx makes a 502 of an answer that it cannot read; its error log has the line with the request";
    advice("valid-upstream-answer", "operator", "the application, or the directive that passes to it", change, &[], why)
}
