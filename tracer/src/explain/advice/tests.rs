use super::*;

fn range(values: &[u64]) -> Range {
    let mut range = Range::default();
    values.iter().for_each(|v| range.add(*v));
    range
}

fn value(set: &[Advice], id: &str) -> Option<u64> {
    set.iter().find(|a| a.id == id).unwrap_or_else(|| panic!("no {id} in {set:?}")).value
}

fn change<'a>(set: &'a [Advice], id: &str) -> &'a str {
    &set.iter().find(|a| a.id == id).unwrap_or_else(|| panic!("no {id} in {set:?}")).change
}

/// Facts of every shape.
fn shapes() -> Vec<Facts> {
    let mut all = Vec::new();
    for kind in [None, Some(Kind::Nginx), Some(Kind::PhpFpm), Some(Kind::Unknown)] {
        for (fast, reload) in [(false, false), (true, false), (false, true)] {
            for (cut, answered, probe) in [(0, 0, false), (3, 0, true), (0, 2, true), (3, 2, false)] {
                all.push(Facts {
                    kind,
                    fast,
                    probe,
                    reload,
                    cut: range(&[400, 3100, 900][..cut]),
                    answered,
                    answered_ms: (answered > 0).then_some(2100),
                    late: range(&[300, 1400][..if fast { 2 } else { 0 }]),
                    endpoints: None,
                    pre_stop_s: 0,
                    timeout_s: 10,
                    known_ms: None,
                    memory: (cut > 0).then_some((96 << 20, 4)),
                    grace_s: None,
                    came: reload.then_some(Came { received: 9089, read: 4096 }),
                    child_ms: fast.then_some(4200),
                });
            }
        }
    }
    all
}

const SUB_CAUSES: &[Option<&str>] = &[
    None,
    Some("reload"),
    Some("handshake"),
    Some("full"),
    Some("stopped-first"),
    Some("crashed"),
    Some("exited"),
    Some("not-started"),
    Some("restarting"),
    Some("killed"),
    Some("stopwaitsecs"),
    Some("process-control-timeout"),
    Some("header-too-big"),
    Some("header-invalid"),
    Some("answer-incomplete"),
    Some("oom-group"),
    Some("node"),
];

/// Every set is whole: what an advice needs is in it, once.
#[test]
fn whatever_is_needed_is_in_the_set() {
    for facts in shapes() {
        for (cause, sub) in Cause::ALL.iter().flat_map(|c| SUB_CAUSES.iter().map(move |s| (*c, *s))) {
            let set = of(cause, sub, &facts);
            let ids: Vec<&str> = set.iter().map(|a| a.id.as_str()).collect();
            let unique: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
            assert_eq!(unique.len(), ids.len(), "{cause} {sub:?}: twice in {ids:?}");
            for a in &set {
                for needed in &a.needs {
                    assert!(unique.contains(needed.as_str()), "{cause} {sub:?}: {} needs {needed}: {ids:?}", a.id);
                }
                assert_eq!(a.value.is_some(), a.unit.is_some(), "{a:?}");
                // A value that is not in the text would be printed apart, far from its reason.
                assert!(a.value.is_none_or(|v| a.change.contains(&v.to_string())), "{a:?}");
            }
            let blameless = cause.not_the_server() || cause == Cause::Unexplained;
            assert_eq!(set.is_empty(), blameless, "{cause} {sub:?}");
        }
    }
}

#[test]
fn a_graceful_stop_is_never_advised_without_a_sleep() {
    for facts in shapes().iter().filter(|f| !f.probe) {
        for cause in Cause::ALL {
            let set = of(*cause, None, facts);
            if set.iter().any(|a| a.id == "stopsignal-sigquit") {
                assert!(value(&set, "prestop-sleep") >= Some(LEAST_PRESTOP_S), "{cause}");
            }
        }
    }
}

#[test]
fn a_container_that_is_stopped_for_its_probe_is_not_told_to_wait() {
    for facts in shapes().iter().filter(|f| f.probe) {
        for cause in Cause::ALL.iter().filter(|c| !c.not_the_server() && **c != Cause::Unexplained) {
            let set = of(*cause, None, facts);
            let has = |id: &str| set.iter().any(|a| a.id == id);
            assert!(set[0].id == "liveness-probe" && has("edge-retry-idempotent"), "{cause}: {set:?}");
            assert!(!has("prestop-sleep") && !has("nginx-stops-first"), "{cause}: {set:?}");
        }
    }
    let f = Facts { probe: true, kind: Some(Kind::PhpFpm), cut: range(&[1500]), grace_s: Some(2), ..Facts::default() };
    let set = of(Cause::FpmControlTimeoutZero, None, &f);
    assert_eq!((value(&set, "fpm-process-control-timeout"), value(&set, "grace-period")), (Some(9), Some(9)));
    assert!(change(&set, "grace-period").starts_with("2 x 2 s longest request"), "{set:?}");
    assert_eq!(of(Cause::FpmNotListening, Some("stopped-first"), &f).len(), 2, "no grace period helps these");
}

#[test]
fn the_sleep_outlasts_the_last_late_connection() {
    let sleep = |late: &[u64], pre_stop_s| {
        let f = Facts { late: range(late), pre_stop_s, ..Facts::default() };
        let set = of(Cause::EndpointRace, None, &f);
        assert!(change(&set, "prestop-sleep").contains(&f.pre_stop().to_string()));
        value(&set, "prestop-sleep")
    };
    assert_eq!(sleep(&[], 0), Some(5), "the least");
    assert_eq!(sleep(&[100, 3900], 0), Some(5));
    assert_eq!(sleep(&[100, 4001], 0), Some(6));
    assert_eq!(sleep(&[12_300, 200], 0), Some(14));
    // They came although the hook had slept already.
    assert_eq!(sleep(&[1400], 5), Some(8));
    assert_eq!(sleep(&[], 8), Some(8), "what is there is not taken away");
    assert_eq!(sleep(&[3_600_000], 0), Some(31), "who comes an hour later does not wait for endpoints");
}

#[test]
fn the_grace_period_is_a_sum_that_is_written_out() {
    let f = Facts { answered: 4, answered_ms: Some(11_200), ..Facts::default() };
    let set = of(Cause::NginxFastShutdown, None, &f);
    assert_eq!(value(&set, "grace-period"), Some(22));
    let sum = "5 s preStop + 12 s longest request + 5 s margin = 22";
    assert!(change(&set, "grace-period").contains(sum), "{set:?}");
    // A request that was cut needed more than was seen of it.
    let f = Facts { cut: range(&[400, 3100]), ..f };
    assert_eq!(value(&of(Cause::NginxFastShutdown, None, &f), "grace-period"), Some(22), "12 is more than 2 x 4");
    let f = Facts { cut: range(&[400, 7001]), ..f };
    let set = of(Cause::NginxFastShutdown, None, &f);
    assert_eq!(value(&set, "grace-period"), Some(5 + 16 + 5));
    assert!(change(&set, "grace-period").contains("2 x 8 s longest request (it was cut)"), "{set:?}");
    let nothing = of(Cause::NginxFastShutdown, None, &Facts::default());
    assert_eq!(value(&nothing, "grace-period"), None);
    assert!(change(&nothing, "grace-period").contains("your longest request"), "{nothing:?}");
}

#[test]
fn the_sample_is_named() {
    let f = Facts {
        cut: range(&[400, 3100, 900]),
        answered: 2,
        answered_ms: Some(2100),
        late: range(&[200, 1400]),
        ..Facts::default()
    };
    let set = of(Cause::NginxFastShutdown, None, &f);
    let why = |id: &str| set.iter().find(|a| a.id == id).map(|a| a.why.clone()).unwrap_or_default();
    let cut = "Requests seen in this stop: n=3 cut when 0.4–3.1 s old, n=2 answered, the last 2.1 s after the signal.";
    assert!(why("grace-period").contains(cut), "{}", why("grace-period"));
    let late = "Late connections seen in this stop: n=2, 0.2–1.4 s after the listener's close.";
    assert!(why("prestop-sleep").contains(late), "{}", why("prestop-sleep"));
}

#[test]
fn php_fpm_waits_for_nginx_and_the_pod_for_php_fpm() {
    let f = Facts { kind: Some(Kind::PhpFpm), cut: range(&[1500]), ..Facts::default() };
    let set = of(Cause::FpmControlTimeoutZero, None, &f);
    assert_eq!(value(&set, "fpm-process-control-timeout"), Some(4 + 5));
    assert_eq!(value(&set, "nginx-stops-first"), Some(5 + 4 + 5));
    assert_eq!(value(&set, "grace-period"), Some(14 + 4 + 5), "php-fpm's own sleep counts");
}

#[test]
fn timeouts_are_raised_and_never_lowered() {
    let f = Facts { cut: range(&[400]), timeout_s: 10, ..Facts::default() };
    assert_eq!(value(&of(Cause::WorkerShutdownTimeout, None, &f), "worker-shutdown-timeout"), Some(11));
    let f = Facts { cut: range(&[12_000]), ..f };
    assert_eq!(value(&of(Cause::WorkerShutdownTimeout, Some("reload"), &f), "worker-shutdown-timeout"), Some(24));
    let f = Facts { cut: range(&[1000]), ..f };
    assert_eq!(value(&of(Cause::SupervisorStopOrder, None, &f), "supervisor-stopwaitsecs"), Some(10));
    let f = Facts { cut: range(&[9000]), ..f };
    assert_eq!(value(&of(Cause::SupervisorStopOrder, None, &f), "supervisor-stopwaitsecs"), Some(23));
}

#[test]
fn of_two_sets_the_greater_values_stay() {
    let small = of(Cause::EndpointRace, None, &Facts::default());
    let large = of(Cause::NginxFastShutdown, None, &Facts { late: range(&[9000]), ..Facts::default() });
    for (first, second) in [(&small, &large), (&large, &small)] {
        let mut all = first.clone();
        merge(&mut all, second);
        assert_eq!(value(&all, "prestop-sleep"), Some(10));
        assert_eq!(all.len(), 3);
    }
}
