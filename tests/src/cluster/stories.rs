//! The ends of pods that a real cluster plays under load, and what must be said of each lost request.

use super::workload::Workload;
use super::{Cluster, WorkloadConf, workload};
use crate::ledger::Comparison;
use crate::load::{LoadConf, Outcome, Request};
use crate::scene::{Allowed, Loads, Over, Scene, Watch};
use crate::{tracer, truth};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal::{SIGQUIT, SIGTERM};
use std::net::SocketAddr;
use std::time::Duration;
use why502::model::incident::{Cause, Incident, Trigger};

const SLOW: usize = 8;
const REFUSED: u64 = 10;

/// What to play.
pub struct Story {
    pub name: &'static str,
    /// What a person would type.
    pub command: &'static str,
    conf: WorkloadConf,
    slow_ms: u32,
    pub(super) made: &'static [u16],
    act: fn(&Workload<'_>) -> Result<()>,
    pub(super) allowed: Allowed<'static>,
    pub cause: Cause,
    pub trigger: Trigger,
    /// In the chain of at least one incident of that cause.
    tells: &'static [&'static str],
    pub(super) container: &'static str,
}

impl Default for Story {
    fn default() -> Self {
        Self {
            name: "",
            command: "kubectl delete pod",
            conf: WorkloadConf::default(),
            slow_ms: 4000,
            made: &[],
            act: |w| w.delete_pod(),
            allowed: &|r, s| truth::nginx_stop(true)(r, s),
            cause: Cause::NginxFastShutdown,
            trigger: Trigger::PodDeleted,
            tells: &["the container runtime (runc "],
            container: "nginx",
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Played {
    pub result: Comparison,
    /// One incident of the story's cause, whose chain is the longest.
    pub told: Incident,
    pub lost: usize,
    pub requests: usize,
}

fn quitting(pre_stop: Option<Vec<&'static str>>) -> WorkloadConf {
    WorkloadConf { nginx_stop: SIGQUIT, pre_stop, ..WorkloadConf::default() }
}

fn terminated(pre_stop: Vec<&'static str>) -> WorkloadConf {
    WorkloadConf { nginx_stop: SIGTERM, pre_stop: Some(pre_stop), ..WorkloadConf::default() }
}

/// To no pod at all.
pub fn scaled_down() -> Story {
    Story {
        name: "scaled down",
        command: "kubectl scale deployment web --replicas=0",
        act: |w| w.scale_down(),
        trigger: Trigger::ScaleDown,
        ..Story::default()
    }
}

/// A pod that stays, of which a container is killed.
pub fn unhealthy() -> Story {
    Story {
        name: "liveness probe of php-fpm failed, grace period too short",
        command: "a failing livenessProbe",
        conf: WorkloadConf { liveness: true, grace_s: 2, php_sleep: None, ..WorkloadConf::default() },
        slow_ms: 8000,
        made: &[502],
        act: |w| w.die(),
        allowed: &fpm_killed,
        cause: Cause::FpmControlTimeoutZero,
        trigger: Trigger::LivenessFailed,
        container: "php",
        ..Story::default()
    }
}

/// The article's variants, and what else ends pods.
pub fn all() -> Vec<Story> {
    vec![
        Story { name: "deleted, STOPSIGNAL SIGTERM", ..Story::default() },
        Story {
            name: "deleted, STOPSIGNAL SIGQUIT",
            conf: quitting(None),
            allowed: &|r, s| truth::nginx_stop(false)(r, s),
            cause: Cause::EndpointRace,
            ..Story::default()
        },
        Story {
            name: "deleted, preStop `sleep 2`, STOPSIGNAL SIGQUIT, clients that do not hear of it",
            conf: quitting(Some(vec!["/bin/sleep", "2"])),
            allowed: &|r, s| truth::nginx_stop(false)(r, s),
            cause: Cause::EndpointRace,
            ..Story::default()
        },
        Story {
            name: "deleted, preStop `nginx -s quit`",
            conf: terminated(vec!["@nginx", "-s", "quit"]),
            allowed: &|r, s| truth::nginx_drain(&[Cause::QuitThenTerm])(r, s),
            cause: Cause::QuitThenTerm,
            ..Story::default()
        },
        Story {
            name: "deleted, preStop `/bin/sh -SIGQUIT 1`, which does nothing",
            conf: terminated(vec!["/bin/sh", "-SIGQUIT", "1"]),
            allowed: &|_, _| &[Cause::PrestopFailed],
            cause: Cause::PrestopFailed,
            ..Story::default()
        },
        scaled_down(),
        Story {
            name: "rolled out",
            command: "kubectl apply (another template)",
            act: |w| w.roll_out(),
            trigger: Trigger::Rollout,
            ..Story::default()
        },
        unhealthy(),
        Story {
            name: "deleted, the API server stopped and containerd killed during the stop",
            conf: terminated(vec!["/bin/sleep", "3"]),
            act: |w| w.delete_pod_alone(),
            ..Story::default()
        },
    ]
}

fn fpm_killed(r: &Request, started: bool) -> &'static [Cause] {
    match (r.outcome, started) {
        (Outcome::HttpError { .. }, _) => truth::fpm_quit_without_timeout(r, started),
        _ => &[],
    }
}

/// Requests that php works on for so long, and others that are answered at once; each client ends when it is refused often.
fn loads(pod: SocketAddr, slow_ms: u32) -> Loads {
    let mut slow = LoadConf::new(pod, &format!("/slow.php?ms={slow_ms}"));
    (slow.connections, slow.max_refused, slow.prefix) = (SLOW, Some(REFUSED), "slow".into());
    slow.refused_pause = Duration::from_millis(50);
    let mut fast = LoadConf::new(pod, "/static");
    (fast.connections, fast.keep_alive, fast.max_refused) = (4, false, Some(REFUSED));
    (fast.think, fast.prefix) = (Duration::from_millis(2), "fast".into());
    Loads { slow: Some(slow), in_php: SLOW, fast: Some(fast), answered: 50 }
}

/// Plays one: what differs from the truth is an error.
pub fn play(cluster: &Cluster, story: &Story) -> Result<Played> {
    let (over, watch) = under_load(cluster, story, |site| {
        let more = cluster.watch_args();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        Watch::at(site.dir.join("watch.rec"), &more)
    })?;
    cluster.control.start_api()?;
    judge(story, &over, watch)
}

/// A workload under load, to which that happens. `before`: when its pod is ready.
pub(super) fn under_load<'c, T>(
    cluster: &'c Cluster,
    story: &Story,
    before: impl FnOnce(&Workload<'c>) -> Result<T>,
) -> Result<(Over<Workload<'c>>, T)> {
    let site = Workload::start(cluster, &story.conf)?;
    let watcher = before(&site)?;
    let loads = loads(site.addr(), story.slow_ms);
    let scene = Scene::start(site, &loads)?;
    (story.act)(&scene.site)?;
    if story.container == "nginx" {
        scene.refused()?;
    } else {
        scene.site.php_restarted()?;
    }
    Ok((scene.end()?, watcher))
}

fn judge(story: &Story, over: &Over<Workload<'_>>, watch: Watch) -> Result<Played> {
    let (result, said) = over.heard(&format!("cluster {}", story.name), watch, story.made, story.allowed)?;
    let complaints = result.complaints_in(1);
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    let claims = tracer::claims(&said.incidents, &over.site);
    let ours = |i: &&Incident| claims.iter().any(|c| c.id == i.id) && i.cause == story.cause;
    let told: Vec<&Incident> = said.incidents.iter().filter(ours).collect();
    let pod = &over.site.pod;
    for i in &told {
        let at = i.pod.as_ref();
        ensure!(at.is_some_and(|p| p.uid == pod.uid), "pod {at:?}, not {}: {}", pod.uid, i.summary);
        let wanted = if story.container == "php" { &pod.php_id } else { &pod.nginx_id };
        let container = i.container.as_ref();
        ensure!(container.is_some_and(|c| c.id == *wanted), "container {container:?}, not {wanted}: {}", i.summary);
        ensure!(i.trigger == story.trigger, "trigger {}, not {}: {}", i.trigger, story.trigger, i.summary);
        let name = at.and_then(|p| p.name.as_deref());
        ensure!(name == Some(pod.name.as_str()), "pod name {name:?}, not {}: {}", pod.name, i.summary);
        let namespace = at.and_then(|p| p.namespace.as_deref());
        ensure!(namespace == Some(workload::NAMESPACE), "namespace {namespace:?}: {}", i.summary);
    }
    let Some(longest) = told.iter().max_by_key(|i| i.chain.len()) else {
        anyhow::bail!("nothing was lost to {}: the story did not happen", story.cause);
    };
    for wanted in story.tells {
        let tells = |i: &&&Incident| i.chain.iter().any(|l| l.text.contains(wanted) || l.rule == *wanted);
        ensure!(told.iter().any(|i| tells(&i)), "no chain tells {wanted:?}: {:#?}", longest.chain);
    }
    Ok(Played { told: (*longest).clone(), lost: over.lost(story.made), requests: over.requests.len(), result })
}
