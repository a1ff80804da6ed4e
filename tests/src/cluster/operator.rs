//! What an operator does with the chart: installs it, scales a workload down, reads Events, `kubectl why502` and metrics,
//! deletes an agent, uninstalls. Each step fails when it does not show what it has to.

use super::chart::{self, AgentPod, Installed};
use super::stories::{self, Story};
use super::workload::{self, Deployed};
use super::{Cluster, NODE, Workload};
use crate::agent::{Kernel, sum};
use crate::guard::{self, Dir, wait};
use crate::ledger::{self, Comparison, Rules};
use crate::scene::{LIMIT, Over};
use crate::site::Ground as _;
use crate::{php, tracer};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use why502::model::incident::{Cause, Incident, Stop};

/// BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH, by their numbers in capability.h.
const CAPABILITIES: u64 = 1 << 39 | 1 << 38 | 1 << 19 | 1 << 2;
const WEB: &str = "deploy/web";
/// Somebody without any rights at first.
const DEVELOPER: &str = "developer";
const ACCOUNT: &str = "system:serviceaccount:why502:why502";
/// What the agent's account may not do, in any namespace.
const FORBIDDEN: [(&str, &str); 14] = [
    ("get", "secrets"),
    ("list", "secrets"),
    ("list", "configmaps"),
    ("get", "pods/log"),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("create", "pods/portforward"),
    ("patch", "pods"),
    ("delete", "pods"),
    ("get", "nodes/proxy"),
    ("patch", "deployments.apps"),
    ("create", "serviceaccounts/token"),
    ("delete", "events"),
    ("update", "clusterroles.rbac.authorization.k8s.io"),
];
/// What it may: the rest of its role is used below.
const ALLOWED: [(&str, &str); 3] = [("list", "pods"), ("watch", "nodes"), ("create", "events.events.k8s.io")];

/// A command as a person types it, and what it printed.
#[derive(Debug)]
pub struct Shown {
    pub title: &'static str,
    pub command: String,
    pub output: String,
}

/// What a story cost, and what the agent said of it.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub command: &'static str,
    pub lost: usize,
    pub requests: usize,
    pub result: Comparison,
}

/// What came of one profile.
#[derive(Debug)]
pub struct Seen {
    pub rows: Vec<Row>,
    pub shown: Vec<Shown>,
}

/// What a workload lost, while it still stands.
struct Lost<'c> {
    over: Over<Workload<'c>>,
    row: Row,
    incidents: Vec<Incident>,
}

impl Lost<'_> {
    fn pod(&self) -> &Deployed {
        &self.over.site.pod
    }
}

struct Operator<'c> {
    cluster: &'c Cluster,
    /// Where kubectl finds its plugin.
    plugins: Dir,
    shown: Vec<Shown>,
}

/// Everything, with the chart's own rights.
pub fn all(cluster: &Cluster, manifest: &Path) -> Result<Seen> {
    let mut kernel = Kernel::look();
    let mut operator = Operator::new(cluster)?;
    chart::define_kinds(cluster)?;
    let installed = Installed::apply(cluster, manifest)?;
    operator.show("", "kubectl apply -f why502.yaml", installed.created.join("\n"));
    let agent = installed.ready(None)?;
    kernel.learn(agent.pid)?;
    rights(&agent, 0, true)?;
    operator.run("", &["-n", chart::NAMESPACE, "get", "daemonsets,pods"])?;
    operator.may()?;
    operator.doctor()?;
    let mut told = Vec::new();
    let lost = operator.play(&stories::scaled_down())?;
    operator.plugin(&lost)?;
    operator.developer(&lost)?;
    operator.events(&lost)?;
    told.extend(lost.incidents);
    let mut rows = vec![lost.row];
    drop(lost.over);
    let lost = operator.play(&stories::unhealthy())?;
    operator.events(&lost)?;
    operator.described(&lost)?;
    let pod = lost.pod().name.clone();
    told.extend(lost.incidents);
    rows.push(lost.row);
    drop(lost.over);
    operator.metrics(&installed, &agent, &told)?;
    quiet(&installed, &agent)?;
    probed(&installed, &agent)?;
    cluster.kubectl(&["-n", chart::NAMESPACE, "delete", "pod", &agent.name])?;
    let next = installed.ready(Some(&agent))?;
    kernel.learn(next.pid)?;
    let ids = |all: &[Incident]| all.iter().map(|i| i.id.clone()).collect::<BTreeSet<_>>();
    let (kept, before) = (ids(&operator.incidents(WEB)?), ids(&told));
    ensure!(kept == before, "after the agent's deletion {} incidents, before {}", kept.len(), before.len());
    let title = "The agent's pod was deleted; the one that the DaemonSet made in its place:";
    operator.run(title, &["why502", "-n", workload::NAMESPACE, &pod, "--kind", "incidents", "--limit", "1"])?;
    quiet(&installed, &next)?;
    installed.remove()?;
    kernel.nothing_left()?;
    Ok(Seen { rows, shown: operator.shown })
}

/// A workload's end, seen by an agent that is not root.
pub fn not_root(cluster: &Cluster, manifest: &Path) -> Result<Seen> {
    let mut kernel = Kernel::look();
    let operator = Operator::new(cluster)?;
    let installed = Installed::apply(cluster, manifest)?;
    let agent = installed.ready(None)?;
    kernel.learn(agent.pid)?;
    rights(&agent, 65532, false)?;
    let lost = operator.play(&stories::scaled_down())?;
    operator.metrics(&installed, &agent, &lost.incidents)?;
    quiet(&installed, &agent)?;
    installed.remove()?;
    kernel.nothing_left()?;
    Ok(Seen { rows: vec![lost.row], shown: operator.shown })
}

/// What the kernel says of the agent's process.
fn rights(agent: &AgentPod, user: u32, no_new_privs: bool) -> Result<()> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid)).context("the agent's status")?;
    let of = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.map(|l| l.split_whitespace().next().unwrap_or_default().to_owned()).with_context(|| format!("no {key}"))
    };
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let has = u64::from_str_radix(&of(set)?, 16)?;
        ensure!(has == CAPABILITIES, "{set} is {has:x}, not {CAPABILITIES:x}");
    }
    let (uid, gid, nnp, seccomp) = (of("Uid")?, of("Gid")?, of("NoNewPrivs")?, of("Seccomp")?);
    ensure!(uid == user.to_string() && gid == uid, "uid {uid}, gid {gid}");
    ensure!(nnp == u8::from(no_new_privs).to_string() && seccomp == "2", "NoNewPrivs {nnp}, Seccomp {seccomp}");
    Ok(())
}

/// Nothing that it asked for was forbidden, and it never ended.
fn quiet(installed: &Installed, agent: &AgentPod) -> Result<()> {
    let log = installed.log(agent)?;
    let bad = ["status 401", "status 403", "forbidden", "panicked"];
    let complaints: Vec<&str> =
        log.lines().filter(|l| bad.iter().any(|word| l.to_lowercase().contains(word))).collect();
    println!("the agent's log:\n{log}");
    ensure!(complaints.is_empty(), "the agent's log: {}", complaints.join("\n"));
    let now = installed.ready(None)?;
    ensure!((&now.name, now.restarts) == (&agent.name, 0), "{} was started {} times again", now.name, now.restarts);
    Ok(())
}

/// The kubelet has asked for its health, and was content.
fn probed(installed: &Installed, agent: &AgentPod) -> Result<()> {
    let asked = |route: &str, code: &str| {
        let labels = [format!("route=\"{route}\""), format!("code=\"{code}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let page = installed.get(agent, "/metrics").unwrap_or_default();
        sum(&page, "why502_http_requests_total", &labels)
    };
    // The startup probe asks the same, once.
    wait("the kubelet's liveness probes", 2 * LIMIT, || asked("/healthz", "200") >= 3.0)?;
    ensure!(asked("/readyz", "200") >= 1.0, "the kubelet has not asked whether it is ready");
    ensure!(asked("/healthz", "503") == 0.0, "it was not well");
    Ok(())
}

impl<'c> Operator<'c> {
    fn new(cluster: &'c Cluster) -> Result<Self> {
        let plugins = Dir::new()?;
        std::os::unix::fs::symlink(tracer::binary()?.canonicalize()?, plugins.join("kubectl-why502"))?;
        Ok(Self { cluster, plugins, shown: Vec::new() })
    }

    /// kubectl as a person has it: the cluster by its environment, the plugin in its path.
    fn kubectl(&self, args: &[&str]) -> Result<Output> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.plugins.path().into()).chain(std::env::split_paths(&path));
        let mut command = Command::new("kubectl");
        command.args(args).env("KUBECONFIG", &self.cluster.kubeconfig).env("PATH", std::env::join_paths(path)?);
        command.output().context("cannot start kubectl")
    }

    /// What it prints, when it succeeds.
    fn ask(&self, args: &[&str]) -> Result<String> {
        let out = self.kubectl(args)?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "kubectl {}: {}: {}", args.join(" "), out.status, said.trim());
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn show(&mut self, title: &'static str, command: &str, output: String) {
        println!("$ {command}\n{output}");
        self.shown.push(Shown { title, command: command.into(), output });
    }

    fn run(&mut self, title: &'static str, args: &[&str]) -> Result<String> {
        let said = self.ask(args)?;
        self.show(title, &format!("kubectl {}", args.join(" ")), said.clone());
        Ok(said)
    }

    /// The account has the role's rights and no other.
    fn may(&self) -> Result<()> {
        for (rights, answer) in [(&FORBIDDEN[..], "no"), (&ALLOWED[..], "yes")] {
            for (verb, what) in rights {
                let as_whom = format!("--as={ACCOUNT}");
                let out = self.kubectl(&["auth", "can-i", verb, what, "--all-namespaces", &as_whom])?;
                let said = String::from_utf8_lossy(&out.stdout);
                ensure!(said.trim() == answer, "may the agent {verb} {what}: {said}{out:?}");
            }
        }
        Ok(())
    }

    /// What it says of itself, in its container.
    fn doctor(&self) -> Result<()> {
        let said = self.ask(&["-n", chart::NAMESPACE, "exec", "daemonset/why502", "--", "/why502", "doctor"])?;
        println!("{said}");
        for wanted in [NODE, "reachable, v", "pod on this node", "why502 works here"] {
            ensure!(said.contains(wanted), "doctor does not say {wanted:?}: {said}");
        }
        ensure!(!said.contains("not allowed"), "doctor misses a right: {said}");
        Ok(())
    }

    /// A Deployment loses requests, and each of them is explained by the agent.
    fn play(&self, story: &Story) -> Result<Lost<'c>> {
        let (over, ()) = stories::under_load(self.cluster, story, |_| Ok(()))?;
        ensure!(!guard::interrupted(), "interrupted");
        let (pod, lost) = (&over.site.pod, over.lost(story.made));
        // Fewer may come than were lost: the comparison tells which.
        let _ = wait("the verdicts", LIMIT / 2, || self.incidents(&pod.name).is_ok_and(|all| all.len() >= lost));
        let incidents = self.incidents(&pod.name)?;
        let seen = php::started(&over.site.served()?);
        let rules = Rules { made: story.made, seen, allowed: story.allowed, mechanisms: &ledger::any_mechanism };
        let claims = tracer::claims(&incidents, &over.site);
        ensure!(claims.len() == incidents.len(), "{} incidents, of this pod {}", incidents.len(), claims.len());
        let result = ledger::compare(&over.requests, &claims, &rules);
        println!("{}: {result}", story.name);
        let complaints = result.complaints_in(1);
        ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        let mut told = 0;
        for i in &incidents {
            let at = i.pod.as_ref().with_context(|| format!("no pod: {}", i.summary))?;
            let named = (at.namespace.as_deref(), at.name.as_deref(), at.workload.as_deref());
            let right = (Some(workload::NAMESPACE), Some(&*pod.name), Some("Deployment/web"));
            ensure!(named == right && at.uid == pod.uid, "{at:?}: {}", i.summary);
            ensure!(i.node == NODE, "node {}: {}", i.node, i.summary);
            if i.cause == story.cause {
                told += 1;
                ensure!(i.trigger == story.trigger, "trigger {}, not {}: {}", i.trigger, story.trigger, i.summary);
            }
        }
        ensure!(told > 0, "nothing was lost to {}: the story did not happen", story.cause);
        let row = Row { name: story.name, command: story.command, lost, requests: over.requests.len(), result };
        Ok(Lost { over, row, incidents })
    }

    /// Of a pod or workload, by the plugin.
    fn records(&self, what: &str, kind: &str) -> Result<(Vec<Incident>, Vec<Stop>)> {
        let words = ["why502", "-n", workload::NAMESPACE, what, "--limit", "1000", "-o", "json", "--kind", kind];
        let lines: Vec<String> = self.ask(&words)?.lines().map(str::to_owned).collect();
        tracer::parse(&lines)
    }

    fn incidents(&self, what: &str) -> Result<Vec<Incident>> {
        Ok(self.records(what, "incidents")?.0)
    }

    fn plugin(&mut self, lost: &Lost) -> Result<()> {
        let pod = &lost.pod().name;
        // Both containers' stops: php-fpm's preStop hook is the longer one.
        let stops = || self.records(WEB, "stops");
        let over = || stops().is_ok_and(|(_, stops)| stops.len() == 2);
        wait("the end of the stops", LIMIT, over).with_context(|| format!("{:#?}", stops()))?;
        // By the workload, by the name of a pod that may be gone, and by what people type.
        let mut all = Vec::new();
        for what in [WEB, pod, &format!("pod/{pod}"), "web"] {
            all.push(self.ask(&["why502", "-n", workload::NAMESPACE, what, "--limit", "1000", "-o", "json"])?);
        }
        ensure!(all.iter().all(|said| *said == all[0]), "the same losses by other names: {all:#?}");
        let said = self.run("", &["why502", "-n", workload::NAMESPACE, WEB, "--kind", "stops"])?;
        ensure!(said.contains(pod), "no stop of {pod}");
        // Where the plugin does not run, the agent's own program does.
        let agent = ["-n", chart::NAMESPACE, "exec", "ds/why502", "--", "/why502", "incidents"];
        let own = self.ask(&[&agent[..], &["--pod", pod, "--limit", "1000", "-o", "json"]].concat())?;
        let sorted = |said: &str| said.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        ensure!(sorted(&own) == sorted(&all[0]), "in the agent's pod: {own}");
        let one = ["why502", "-n", workload::NAMESPACE, pod, "--cause", "nginx-fast-shutdown", "--kind", "incidents"];
        let said = self.run("", &[&one[..], &["--limit", "1"]].concat())?;
        ensure!(said.contains(pod) && said.contains("scale-down of Deployment/web"), "no incident of {pod}");
        Ok(())
    }

    /// Somebody who has just the rights that docs/kubernetes.md says.
    fn developer(&self, lost: &Lost) -> Result<()> {
        let pod = &lost.pod().name;
        let words = ["why502", "-n", workload::NAMESPACE, pod, "--agents", chart::NAMESPACE, "-o", "json"];
        let ask = || self.kubectl(&[&words[..], &["--as", DEVELOPER]].concat());
        let refused = ask()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && said.contains("forbidden"), "without rights: {refused:?}");
        let rule = |verbs: &[&str], what: &str| json!({ "apiGroups": [""], "resources": [what], "verbs": verbs });
        let own = json!([rule(&["get"], "pods")]);
        let agents = json!([rule(&["get", "list"], "pods"), rule(&["create"], "pods/portforward")]);
        for (namespace, rules) in [(workload::NAMESPACE, own), (chart::NAMESPACE, agents)] {
            let group = "rbac.authorization.k8s.io";
            let meta = json!({ "name": DEVELOPER, "namespace": namespace });
            let of = |kind: &str| json!({ "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": meta });
            let (mut role, mut binding) = (of("Role"), of("RoleBinding"));
            role["rules"] = rules;
            binding["roleRef"] = json!({ "apiGroup": group, "kind": "Role", "name": DEVELOPER });
            binding["subjects"] = json!([{ "apiGroup": group, "kind": "User", "name": DEVELOPER }]);
            self.cluster.apply(&role)?;
            self.cluster.apply(&binding)?;
        }
        let allowed = ask()?;
        ensure!(allowed.status.success(), "with rights: {allowed:?}");
        let (developer, admin) = (String::from_utf8(allowed.stdout)?, self.ask(&words)?);
        ensure!(developer == admin, "a developer sees {developer}, the administrator {admin}");
        Ok(())
    }

    /// One Event for each cause on the pod and on its Deployment, with the number of requests.
    fn events(&mut self, lost: &Lost) -> Result<()> {
        let mut counts: BTreeMap<Cause, u64> = BTreeMap::new();
        for i in &lost.incidents {
            *counts.entry(i.cause).or_default() += u64::from(i.requests.count);
        }
        let about = [("Pod", lost.pod().name.clone()), ("Deployment", "web".to_owned())];
        let mut missing = Vec::new();
        let there = || {
            let events = self.own_events(lost.pod()).unwrap_or_default();
            let told = |kind: &str, name: &str, reason: &str, n: u64| {
                let lost = if n == 1 { "1 request was lost".to_owned() } else { format!("{n} requests were lost") };
                events.iter().any(|e| {
                    let object = &e["involvedObject"];
                    (&object["kind"], &object["name"], &e["reason"]) == (&kind.into(), &name.into(), &reason.into())
                        && e["message"].as_str().is_some_and(|text| text.starts_with(&lost))
                })
            };
            missing = counts
                .iter()
                .flat_map(|(cause, n)| about.iter().map(move |(kind, name)| (kind, name, camel(*cause), *n)))
                .filter(|(kind, name, reason, n)| !told(kind, name, reason, *n))
                .map(|row| format!("{row:?}"))
                .collect();
            missing.is_empty()
        };
        let waited = wait("the Events", LIMIT, there);
        waited.with_context(|| format!("missing {missing:?} of {:#?}", self.own_events(lost.pod())))?;
        let events = self.own_events(lost.pod())?;
        ensure!(events.len() == about.len() * counts.len(), "{} Events for {counts:?}", events.len());
        Ok(())
    }

    /// What a person sees of them.
    fn described(&mut self, lost: &Lost) -> Result<()> {
        let own = "reportingComponent=why502";
        self.run("", &["-n", workload::NAMESPACE, "get", "events", "--field-selector", own])?;
        for (what, name) in [("deployment", "web"), ("pod", &*lost.pod().name)] {
            let args = ["-n", workload::NAMESPACE, "describe", what, name];
            let said = self.ask(&args)?;
            let own = said.lines().filter(|l| l.contains("why502") && l.contains("Warning")).count();
            ensure!(own == lost.row.result.by_cause.len(), "kubectl {}:\n{said}", args.join(" "));
            let from = said.find("Events:").with_context(|| format!("no Events in {said}"))?;
            self.show("", &format!("kubectl {}", args.join(" ")), said[from..].to_owned());
        }
        Ok(())
    }

    /// Of a pod, and of its Deployment about it.
    fn own_events(&self, pod: &Deployed) -> Result<Vec<Value>> {
        let said = self.ask(&["-n", workload::NAMESPACE, "get", "events", "-o", "json"])?;
        let list: Value = serde_json::from_str(&said)?;
        let mut all = list["items"].as_array().cloned().unwrap_or_default();
        let about = |e: &Value| [&e["involvedObject"], &e["related"]].iter().any(|o| o["uid"] == *pod.uid);
        all.retain(|e| e["reportingComponent"] == "why502" && about(e));
        Ok(all)
    }

    /// The counters say what the incidents say.
    fn metrics(&self, installed: &Installed, agent: &AgentPod, told: &[Incident]) -> Result<()> {
        let page = installed.get(agent, "/metrics")?;
        let labels = ["namespace=\"shop\"", "workload=\"Deployment/web\""];
        let of = |labels: &[&str]| sum(&page, "why502_lost_requests_total", labels);
        let told = f64::from(told.iter().map(|i| i.requests.count).sum::<u32>());
        let (counted, all) = (of(&labels), of(&[]));
        if (counted, all) != (told, told) {
            bail!("the metrics count {counted} of {all} requests, the incidents {told}");
        }
        let down: Vec<&str> =
            page.lines().filter(|l| l.starts_with("why502_source_up") && !l.ends_with(" 1")).collect();
        ensure!(down.is_empty(), "not up: {down:?}");
        Ok(())
    }
}

/// As an Event's reason.
fn camel(cause: Cause) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    cause.id().split('-').map(capital).collect()
}
