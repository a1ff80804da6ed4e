use super::super::assemble::{Given, Image, assemble};
use super::super::files::{File, NoFiles};
use super::super::setup::EDGE_IDLE_DEFAULT;
use super::super::{dockerfile, fpm, nginx, supervisor};
use super::*;
use crate::sources::spec;

/// What is given as text; empty: not given.
#[derive(Clone, Copy, Default)]
struct Texts<'a> {
    spec: &'a str,
    dockerfiles: &'a [&'a str],
    nginx: &'a str,
    fpm: &'a str,
    supervisor: &'a str,
    longest: Option<u64>,
}

fn reports(texts: Texts) -> Vec<Report> {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let image = |text: &&str| Image::of_dockerfile(&dockerfile::Facts::read("Dockerfile", text).unwrap(), Vec::new());
    let given = Given {
        nginx: given(texts.nginx)
            .map(|t| (None, nginx::Facts::read("nginx.conf", &t, &NoFiles).unwrap()))
            .into_iter()
            .collect(),
        fpm: given(texts.fpm).map(|t| fpm::Facts::read(&[File::new("fpm.conf", &t)], &NoFiles).unwrap()),
        supervisor: given(texts.supervisor)
            .map(|t| supervisor::Facts::read(&File::new("supervisord.conf", &t), &NoFiles).unwrap()),
        images: texts.dockerfiles.iter().map(image).collect(),
        workloads: spec::read("pod.yaml", texts.spec).unwrap(),
        longest: texts.longest,
        edge_idle: EDGE_IDLE_DEFAULT,
        ..Given::default()
    };
    assemble(&given).unwrap().iter().map(check).collect()
}

fn report(texts: Texts) -> Report {
    let mut all = reports(texts);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// `cause!` will, `cause` may.
fn found(texts: Texts) -> Vec<String> {
    let one = |f: &Finding| format!("{}{}", f.cause, if f.severity == Severity::WillLose { "!" } else { "" });
    let mut all: Vec<String> = report(texts).findings.iter().map(one).collect();
    all.sort();
    all
}

/// A pod of containers, each `name | image | more lines of yaml`.
fn pod(grace: &str, containers: &[(&str, &str, &str)]) -> String {
    let mut text = format!("kind: Pod\nmetadata: {{name: web}}\nspec:\n{grace}  containers:\n");
    for (name, image, more) in containers {
        text += &format!("  - name: {name}\n    image: {image}\n{more}");
    }
    text
}

fn hook(command: &str) -> String {
    format!("    lifecycle: {{preStop: {{exec: {{command: {command}}}}}}}\n")
}

const SLEEP: &str = r#"["sleep", "5"]"#;
const RACES: [&str; 3] = ["endpoint-race!", "keepalive-race-on-shutdown", "nginx-accept-queue-dropped"];

fn and_races(more: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = RACES.iter().chain(more).map(|s| (*s).to_owned()).collect();
    all.sort();
    all
}

#[test]
fn an_official_nginx_with_a_sleep_is_clean() {
    let spec = pod("", &[("nginx", "nginx:1.27", &hook(SLEEP))]);
    let texts =
        Texts { spec: &spec, nginx: "http { keepalive_timeout 65; server { listen 80; } }", ..Texts::default() };
    let report = report(Texts { longest: Some(20), ..texts });
    assert_eq!((report.findings, report.not_checked), (vec![], vec![]));
    assert_eq!(found(Texts { longest: Some(25), ..texts }), ["grace-period-exceeded"], "nothing is left");
    assert_eq!(found(Texts { longest: Some(26), ..texts }), ["grace-period-exceeded!"]);
}

#[test]
fn without_a_hook_the_listener_closes_too_early() {
    let spec = pod("", &[("nginx", "nginx:1.27", "")]);
    assert_eq!(found(Texts { spec: &spec, ..Texts::default() }), RACES);
    let spec = pod("", &[("nginx", "nginx:1.27", &hook(r#"["sleep", "2"]"#))]);
    let want = ["endpoint-race", "keepalive-race-on-shutdown", "nginx-accept-queue-dropped"];
    assert_eq!(found(Texts { spec: &spec, ..Texts::default() }), want);
}

#[test]
fn debian_images_take_term() {
    let docker = "FROM debian:bookworm\nRUN apt-get install nginx\nCMD [\"nginx\", \"-g\", \"daemon off;\"]\n";
    let all = report(Texts { dockerfiles: &[docker], ..Texts::default() });
    assert_eq!(all.findings.len(), 1, "{:?}", all.findings);
    let f = &all.findings[0];
    assert_eq!((f.cause, f.severity), (Cause::NginxFastShutdown, Severity::WillLose));
    assert!(f.summary.starts_with("it is stopped with SIGTERM, the default"), "{}", f.summary);
    assert_eq!(f.at.as_ref().unwrap().to_string(), "Dockerfile:1");
    let ids: Vec<&str> = f.advice.iter().map(|a| a.id.as_str()).collect();
    assert_eq!(ids, ["stopsignal-sigquit", "prestop-sleep", "grace-period"]);
    let facts: Vec<&str> = all.not_checked.iter().map(|m| m.fact.as_str()).collect();
    assert_eq!(facts, ["pod-spec", "nginx-conf", "longest-request"]);
    let quit = format!("{docker}STOPSIGNAL SIGQUIT\n");
    assert_eq!(found(Texts { dockerfiles: &[&quit], ..Texts::default() }), [""; 0]);
    let unknown = "FROM acme/base\nENTRYPOINT [\"nginx\"]\n";
    let all = report(Texts { dockerfiles: &[unknown], ..Texts::default() });
    assert!(all.findings.is_empty());
    assert!(all.not_checked.iter().any(|m| m.fact == "stop-signal"), "{:?}", all.not_checked);
    // The spec may say it.
    let spec = pod("", &[("nginx", "acme/web", &(hook(SLEEP).replace("}}}", "}}, stopSignal: SIGTERM}")))]);
    assert_eq!(found(Texts { spec: &spec, dockerfiles: &[unknown], ..Texts::default() }), ["nginx-fast-shutdown!"]);
}

#[test]
fn quit_then_term() {
    let docker = &["FROM debian\nCMD [\"nginx\"]\n"][..];
    let of = |command: &str, longest| {
        let spec = pod("", &[("nginx", "acme/web", &hook(command))]);
        found(Texts { spec: &spec, dockerfiles: docker, longest, ..Texts::default() })
    };
    assert_eq!(of(r#"["nginx", "-s", "quit"]"#, None), and_races(&["quit-then-term!"]));
    let slow = r#"["sh", "-c", "sleep 5; nginx -s quit; sleep 10"]"#;
    assert_eq!(of(slow, None), ["quit-then-term"]);
    assert_eq!(of(slow, Some(10)), [""; 0]);
    assert_eq!(of(slow, Some(12)), ["quit-then-term!"]);
    let waits = r#"["sh", "-c", "sleep 5; nginx -s quit; while pgrep nginx; do sleep 1; done"]"#;
    assert_eq!(of(waits, None), [""; 0]);
    assert_eq!(of(r#"["nginx", "-s", "stop"]"#, None), and_races(&["nginx-fast-shutdown!"]));
    // A second SIGQUIT changes nothing.
    let spec = pod("", &[("nginx", "nginx", &hook(r#"["nginx", "-s", "quit"]"#))]);
    assert_eq!(found(Texts { spec: &spec, ..Texts::default() }), RACES);
}

#[test]
fn hooks_that_fail() {
    let of = |command: &str| {
        let spec = pod("", &[("nginx", "nginx:1.27", &hook(command))]);
        found(Texts { spec: &spec, ..Texts::default() })
    };
    assert_eq!(of(r#"["/bin/sh", "-SIGQUIT", "1"]"#), and_races(&["prestop-failed!"]));
    assert_eq!(of(r#"["/bin/sh", "-c", "sleep", "5"]"#), and_races(&["prestop-failed!"]));
    assert_eq!(of(r#"["/bin/sh", "-c", "kill -SIGQUIT 1; sleep 5"]"#), ["prestop-failed!"]);
    let unknown = of(r#"["/bin/sh", "-c", "/drain.sh"]"#);
    assert_eq!(unknown, ["endpoint-race", "keepalive-race-on-shutdown", "nginx-accept-queue-dropped"]);
}

#[test]
fn pid_1_that_does_not_listen() {
    let docker = "FROM debian\nSTOPSIGNAL SIGQUIT\nCMD nginx -g 'daemon off;'\n";
    assert_eq!(found(Texts { dockerfiles: &[docker], ..Texts::default() }), ["pid1-ignores-stop-signal!"]);
    let spec = pod("", &[("nginx", "acme/web", &hook(SLEEP))]);
    let texts = Texts { spec: &spec, dockerfiles: &[docker], ..Texts::default() };
    assert_eq!(found(texts), ["pid1-ignores-stop-signal"]);
    let spec = pod("", &[("nginx", "nginx", "    command: [\"/bin/sh\", \"-c\", \"nginx & wait\"]\n")]);
    assert_eq!(found(Texts { spec: &spec, ..Texts::default() }), ["pid1-ignores-stop-signal"]);
}

#[test]
fn kills_are_no_races() {
    let spec = pod("", &[("nginx", "nginx", "    lifecycle: {stopSignal: SIGKILL}\n")]);
    assert_eq!(found(Texts { spec: &spec, ..Texts::default() }), ["container-killed!"]);
    let spec = pod("", &[("nginx", "debian", "    command: [\"tini\", \"--\", \"sh\", \"-c\", \"nginx & wait\"]\n")]);
    assert_eq!(found(Texts { spec: &spec, ..Texts::default() }), ["pid1-exited-first!"]);
}

#[test]
fn grace_is_shorter_than_the_hook() {
    let spec = pod("  terminationGracePeriodSeconds: 5\n", &[("nginx", "nginx", &hook(SLEEP))]);
    let all = report(Texts { spec: &spec, ..Texts::default() });
    assert_eq!(all.findings[0].cause, Cause::GracePeriodExceeded);
    assert_eq!(all.findings[0].at.as_ref().unwrap().to_string(), "pod.yaml:4");
}

#[test]
fn timeouts_of_nginx() {
    let spec = pod("", &[("nginx", "nginx", &hook(SLEEP))]);
    let conf = "worker_shutdown_timeout 10s; http { server { location / { proxy_pass http://a; } } }";
    let texts = Texts { spec: &spec, nginx: conf, ..Texts::default() };
    assert_eq!(found(texts), ["worker-shutdown-timeout"]);
    assert_eq!(found(Texts { longest: Some(10), ..texts }), [""; 0]);
    assert_eq!(found(Texts { longest: Some(11), ..texts }), ["worker-shutdown-timeout!"]);
    let conf = conf.replace("10s", "26s");
    let all = report(Texts { nginx: &conf, ..texts }).findings;
    let grace = all.iter().find(|f| f.cause == Cause::GracePeriodExceeded).unwrap();
    assert!(grace.summary.starts_with("5 s preStop + 26 s of worker_shutdown_timeout"), "{}", grace.summary);
    assert_eq!(found(Texts { nginx: &conf, longest: Some(20), ..texts }), [""; 0]);
    let conf = "http { keepalive_timeout 15; server { listen 80; } }";
    let all = report(Texts { nginx: conf, ..texts });
    assert_eq!((all.findings[0].cause, all.findings[0].severity), (Cause::KeepaliveRace, Severity::MayLose));
    assert_eq!(found(Texts { nginx: "http { keepalive_timeout 0; server { listen 80; } }", ..texts }), [""; 0]);
}

#[test]
fn php_fpm_beside_nginx() {
    let of = |nginx: &str, php: &str, fpm: &str, longest| {
        let spec =
            pod("  terminationGracePeriodSeconds: 90\n", &[("nginx", "nginx", nginx), ("php", "php:8.3-fpm", php)]);
        found(Texts { spec: &spec, fpm, longest, ..Texts::default() })
    };
    let (sleep, long) = (hook(SLEEP), hook(r#"["sleep", "40"]"#));
    let (zero, some) = ("[global]\n[www]\n", "[global]\nprocess_control_timeout = 30\n");
    let gone = ["fpm-accept-queue-dropped", "fpm-control-timeout-zero!", "fpm-not-listening!"];
    assert_eq!(of(&sleep, "", zero, None), gone);
    assert_eq!(of(&sleep, "", some, None), ["fpm-accept-queue-dropped!", "fpm-not-listening"]);
    assert_eq!(of(&sleep, "", "", None), ["fpm-accept-queue-dropped", "fpm-not-listening!"]);
    // At the same moment.
    let together = ["fpm-accept-queue-dropped", "fpm-control-timeout-zero!", "fpm-not-listening"];
    assert_eq!(of(&sleep, &sleep, zero, None), together);
    // Later than nginx: long enough for its longest request, or not, or nobody knows.
    assert_eq!(of(&sleep, &long, zero, Some(30)), [""; 0]);
    assert_eq!(of(&sleep, &long, zero, Some(50)), ["fpm-control-timeout-zero!"]);
    assert_eq!(of(&sleep, &long, zero, None), ["fpm-control-timeout-zero"]);
    assert_eq!(of(&sleep, &long, some, Some(50)), [""; 0]);
    // request_terminate_timeout is the longest request.
    assert_eq!(of(&sleep, &long, "[www]\nrequest_terminate_timeout = 20\n", None), [""; 0]);
}

#[test]
fn php_fpm_has_too_little_time() {
    let of = |grace: u64, php: &str, timeout: u64, nginx, longest| {
        let grace = format!("  terminationGracePeriodSeconds: {grace}\n");
        let spec = pod(&grace, &[("nginx", "nginx", &hook(SLEEP)), ("php", "php:8.3-fpm", php)]);
        let fpm = format!("[global]\nprocess_control_timeout = {timeout}\n");
        let all = report(Texts { spec: &spec, fpm: &fpm, nginx, longest, ..Texts::default() }).findings;
        let of =
            all.into_iter().filter(|f| f.cause == Cause::GracePeriodExceeded && f.container.as_deref() == Some("php"));
        of.map(|f| (f.severity, f.sub_cause.unwrap_or_default(), f.at.unwrap().to_string())).collect::<Vec<_>>()
    };
    let timeout = |severity| vec![(severity, "process-control-timeout".to_owned(), "fpm.conf:2".to_owned())];
    let grace = |severity| vec![(severity, String::new(), "pod.yaml:4".to_owned())];
    assert_eq!(of(60, "", 10, "", Some(10)), []);
    assert_eq!(of(60, "", 10, "", Some(11)), timeout(Severity::WillLose));
    // nginx would wait so long for an answer.
    let conf = "http { server { location / { fastcgi_pass a; fastcgi_read_timeout 20s; } } }";
    assert_eq!(of(60, "", 20, conf, None), []);
    assert_eq!(of(60, "", 10, conf, None), timeout(Severity::MayLose));
    assert_eq!(of(60, "", 10, "", None), [], "nothing says that any takes so long");
    // Told when nginx has nothing any more.
    let long = hook(r#"["sleep", "40"]"#);
    assert_eq!(of(60, &long, 10, conf, Some(35)), []);
    assert_eq!(of(60, &long, 10, conf, Some(46)), timeout(Severity::WillLose));
    assert_eq!(of(60, &long, 10, conf, None), timeout(Severity::MayLose));
    // The grace period is over first.
    assert_eq!(of(8, "", 10, "", Some(8)), []);
    assert_eq!(of(8, "", 10, "", Some(9)), grace(Severity::WillLose));
    assert_eq!(of(8, "", 10, "", None), grace(Severity::MayLose));
    assert_eq!(of(45, &long, 10, conf, Some(50)), grace(Severity::WillLose), "40 + 10 s are more than 45 s");
}

#[test]
fn php_fpm_with_term_and_as_a_sidecar() {
    let spec = "kind: Pod\nspec:\n  initContainers:\n  - {name: php, image: 'php:8.3-fpm', restartPolicy: Always}\n  containers:\n  \
        - {name: nginx, image: nginx, lifecycle: {preStop: {sleep: {seconds: 5}}}}\n";
    assert_eq!(found(Texts { spec, fpm: "[www]\n", ..Texts::default() }), [""; 0]);
    let docker = &["FROM debian\nCMD [\"php-fpm8.2\", \"-F\"]\n"][..];
    let spec = pod("", &[("nginx", "nginx", &hook(SLEEP)), ("php", "acme/php", "")]);
    let all = found(Texts { spec: &spec, dockerfiles: docker, fpm: "[www]\n", ..Texts::default() });
    assert_eq!(all, ["fpm-accept-queue-dropped", "fpm-fast-shutdown!", "fpm-not-listening!"]);
}

#[test]
fn small_queues_matter_on_unix_sockets() {
    let of = |fpm: &str| found(Texts { fpm, ..Texts::default() });
    assert_eq!(of("[www]\nlisten = /run/php.sock\nlisten.backlog = 16\n"), ["fpm-listen-queue-full"]);
    assert_eq!(of("[www]\nlisten = 9000\nlisten.backlog = 16\n"), [""; 0]);
    assert_eq!(of("[www]\nlisten = /run/php.sock\nlisten.backlog = -1\n"), [""; 0]);
}

const SUPERVISED: &str = "[program:nginx]\ncommand=nginx -g 'daemon off;'\nstopsignal=QUIT\n\
    [program:php-fpm]\ncommand=php-fpm8.2 -F\nstopsignal=QUIT\n";

#[test]
fn supervisord() {
    let of = |text: &str| found(Texts { supervisor: text, ..Texts::default() });
    assert_eq!(of(SUPERVISED), ["supervisor-stop-order!"]);
    assert_eq!(of(&format!("{SUPERVISED}priority=10\n")), [""; 0]);
    assert_eq!(of(&format!("{SUPERVISED}[group:web]\nprograms=nginx,php-fpm\n")), ["supervisor-stop-order"]);
    let sound = format!("{SUPERVISED}priority=10\n");
    let of_long = |longest, fpm| found(Texts { supervisor: &sound, longest: Some(longest), fpm, ..Texts::default() });
    assert_eq!(of_long(10, ""), [""; 0]);
    assert_eq!(of_long(11, ""), ["grace-period-exceeded"]);
    assert_eq!(of_long(11, "[global]\n"), ["fpm-control-timeout-zero!", "grace-period-exceeded"]);
    // The workers outlive their master for as long as php-fpm takes: 10 s, and 10 more.
    assert_eq!(of_long(20, "[global]\nprocess_control_timeout=20\n"), ["grace-period-exceeded"]);
    assert_eq!(of_long(21, "[global]\nprocess_control_timeout=20\n"), ["grace-period-exceeded!"]);
    assert_eq!(of_long(14, "[global]\nprocess_control_timeout=3\n"), ["grace-period-exceeded!"]);
    let group = sound.replace("[program:php", "killasgroup=true\n[program:php");
    let fpm = "[global]\nprocess_control_timeout=20\n";
    assert_eq!(
        found(Texts { supervisor: &group, longest: Some(11), fpm, ..Texts::default() }),
        ["grace-period-exceeded!"]
    );
    let term = SUPERVISED.replace("QUIT", "TERM");
    assert_eq!(of(&term), ["nginx-fast-shutdown!", "supervisor-stop-order!"]);
    let docker = &["FROM debian\nCMD [\"supervisord\", \"-n\"]\n"][..];
    let spec = pod("", &[("web", "acme/web", &hook(SLEEP))]);
    let texts = Texts { spec: &spec, dockerfiles: docker, ..Texts::default() };
    assert_eq!(found(Texts { supervisor: SUPERVISED, ..texts }), ["supervisor-stop-order!"]);
    // Without its configuration: it is said.
    let all = report(texts);
    assert!(all.findings.is_empty());
}

#[test]
fn supervisord_and_the_timeout_of_php_fpm() {
    let of = |supervisor: &str, timeout: u64, longest| {
        let fpm = format!("[global]\nprocess_control_timeout = {timeout}\n");
        found(Texts { supervisor, fpm: &fpm, longest, ..Texts::default() })
    };
    let order = "supervisor-stop-order!";
    assert_eq!(of(SUPERVISED, 10, None), [order]);
    assert_eq!(of(SUPERVISED, 11, None), ["grace-period-exceeded", order]);
    assert_eq!(of(SUPERVISED, 20, Some(10)), [order]);
    let group = format!("{SUPERVISED}killasgroup=true\n");
    let only_php = |text: &str| {
        let fpm = "[global]\nprocess_control_timeout = 20\n";
        let all = report(Texts { supervisor: text, fpm, longest: Some(11), ..Texts::default() }).findings;
        let of = |f: &&Finding| f.summary.contains("process_control_timeout");
        all.iter().filter(of).map(|f| (f.severity, f.sub_cause.clone().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(only_php(SUPERVISED), [(Severity::MayLose, "stopwaitsecs".to_owned())]);
    assert_eq!(only_php(&group), [(Severity::WillLose, "stopwaitsecs".to_owned())]);
    // nginx has ended by then.
    assert_eq!(of(&format!("{SUPERVISED}priority=10\n"), 20, None), [""; 0]);
}

#[test]
fn a_proxy_before_nginx() {
    let conf = "http { server { listen 80; location / { proxy_pass http://127.0.0.1:8080; } } }";
    let app = "    ports: [{containerPort: 8080}]\n";
    let of = |proxy: &str, app: &str, conf: &str| {
        let spec = pod("", &[("proxy", "nginx:1.27", proxy), ("app", "nginx:1.27", app)]);
        let conf = nginx::Facts::read("proxy.conf", conf, &NoFiles).unwrap();
        let given = Given {
            nginx: vec![(Some("proxy".into()), conf)],
            workloads: spec::read("pod.yaml", &spec).unwrap(),
            edge_idle: EDGE_IDLE_DEFAULT,
            ..Given::default()
        };
        let all = check(&assemble(&given).unwrap()[0]).findings;
        let one = |f: &Finding| {
            let sure = if f.severity == Severity::WillLose { "!" } else { "" };
            format!("{}{sure} {}", f.cause, f.container.as_deref().unwrap_or(""))
        };
        let mut all: Vec<String> = all.iter().map(one).collect();
        all.sort();
        all
    };
    let sleep = hook(SLEEP);
    // In good order, but too early.
    let first = of("", &format!("{app}{sleep}"), conf);
    let early = ["endpoint-race! proxy", "keepalive-race-on-shutdown proxy", "nginx-accept-queue-dropped proxy"];
    assert_eq!(first, early);
    let term = "    lifecycle: {stopSignal: SIGTERM}\n";
    let dropped = ["nginx-accept-queue-dropped proxy", "nginx-fast-shutdown! proxy", "sidecar-gone-first! proxy"];
    assert_eq!(of(term, &format!("{app}{sleep}"), conf), [&early[..2], &dropped].concat());
    // Both wait: whoever of them goes first, nobody comes any more.
    assert_eq!(of(&sleep, &format!("{app}{sleep}"), conf), [""; 0]);
    assert_eq!(of(&sleep, &format!("{app}{}", hook(r#"["sleep", "9"]"#)), conf), [""; 0]);
    let fast = hook(SLEEP).replace("}}}", "}}, stopSignal: SIGTERM}");
    let later = format!("{app}{}", hook(r#"["sleep", "9"]"#));
    assert_eq!(of(&fast, &later, conf), ["nginx-fast-shutdown! proxy", "sidecar-gone-first! proxy"]);
    // Not known to be a proxy of it.
    let other = of(term, &format!("{app}{sleep}"), &conf.replace("8080", "8081"));
    assert!(!other.iter().any(|f| f.contains("sidecar")), "{other:?}");
    // Together: each for itself.
    let both = of(term, app, conf);
    assert!(!both.iter().any(|f| f.contains("sidecar")), "{both:?}");
    assert_eq!(both.len(), 7);
    // A native sidecar, stopped after what is behind it.
    let spec = "kind: Pod\nspec:\n  initContainers:\n  - {name: proxy, image: nginx, restartPolicy: Always}\n  containers:\n  \
        - {name: app, image: nginx, ports: [{containerPort: 8080}], lifecycle: {preStop: {sleep: {seconds: 5}}}}\n";
    let conf = nginx::Facts::read("proxy.conf", conf, &NoFiles).unwrap();
    let mut given = Given { nginx: vec![(Some("proxy".into()), conf)], ..Given::default() };
    given.workloads = spec::read("pod.yaml", spec).unwrap();
    assert_eq!(check(&assemble(&given).unwrap()[0]).findings, []);
    given.nginx[0].0 = Some("web".into());
    assert!(assemble(&given).is_err(), "there is no such container");
}

#[test]
fn each_workload_by_itself() {
    let spec = format!(
        "{}---\n{}---\n{}",
        pod("", &[("nginx", "nginx", &hook(SLEEP))]),
        pod("", &[("nginx", "nginx", "")]).replace("name: web", "name: bare"),
        pod("", &[("db", "postgres", "")])
    );
    let all = reports(Texts { spec: &spec, ..Texts::default() });
    assert_eq!(all.iter().map(|r| r.findings.len()).collect::<Vec<usize>>(), [0, 3]);
    assert_eq!(all[1].findings[0].workload.as_deref(), Some("Pod/bare"));
    let none = reports(Texts { spec: &pod("", &[("db", "postgres", "")]), ..Texts::default() });
    assert_eq!(none[0].not_checked[0].fact, "server");
}

#[test]
fn every_finding_has_advice_and_a_sentence() {
    let spec = pod("", &[("nginx", "acme/web", &hook(r#"["nginx", "-s", "quit"]"#)), ("php", "acme/php", "")]);
    let docker = &["FROM debian\nCMD [\"nginx\"]\n", "FROM debian\nCMD [\"php-fpm\"]\n"][..];
    let conf = "worker_shutdown_timeout 1s; http { keepalive_timeout 5; server { location / { fastcgi_pass a; } } }";
    let fpm = "[www]\nlisten=/x\nlisten.backlog=1\n";
    let all = report(Texts { spec: &spec, dockerfiles: docker, nginx: conf, fpm, ..Texts::default() });
    assert!(all.findings.len() >= 9, "{:?}", all.findings);
    for f in &all.findings {
        assert!(!f.advice.is_empty(), "{}", f.cause);
        assert!(!f.summary.ends_with('.') && f.summary.len() > 40, "{}", f.summary);
        for advice in &f.advice {
            let ids: Vec<&str> = f.advice.iter().map(|a| a.id.as_str()).collect();
            assert!(
                advice.needs.iter().all(|need| ids.contains(&need.as_str())),
                "{} needs {:?}",
                advice.id,
                advice.needs
            );
        }
    }
    assert_eq!(all.findings[0].severity, Severity::WillLose);
}
