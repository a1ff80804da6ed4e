//! `why502 kubectl`, which kubectl runs as `kubectl why502` when it is in the path as `kubectl-why502`: what the agents of a
//! cluster kept about a pod or a workload.

mod cluster;
pub(super) mod complete;
mod forward;

use super::incidents::{Printer, Wanted};
use super::output::OutputArgs;
use super::say;
use crate::serve::client::{Agent, Page};
use crate::sinks::queue::{self, Queue};
use crate::store::query::Query;
use anyhow::{Context, bail};
use cluster::{AgentPod, Cluster, SELECTOR};
use forward::Forward;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  kubectl why502                        the newest losses of the namespace
  kubectl why502 web-7d9f-x2k1          of a pod, also one that is gone; of a workload, when no such pod is there
  kubectl why502 -n shop deployment/web --since 1h
Exit codes: 0 all agents that matter answered, 1 some did not (what the others have is printed), 2 bad usage.";

/// Agents asked at once: each is a tunnel through the API server.
const AT_ONCE: usize = 8;
/// After so long without an answer a person at a terminal is told that it goes on.
const SILENCE: Duration = Duration::from_secs(5);

/// Print what a pod or workload lost, from the agents of its cluster (kubectl why502)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "kubectl why502 [OPTIONS] [POD|WORKLOAD]")]
pub(super) struct Args {
    /// NAME, pod/NAME, deployment/NAME (statefulset, daemonset, replicaset, job, cronjob), or KIND NAME; nothing: all of the
    /// namespace
    #[arg(value_name = "POD|WORKLOAD", num_args = 0..=2)]
    what: Vec<String>,
    /// Namespace [default: the context's]
    #[arg(short, long, value_name = "NAME", value_parser = name)]
    namespace: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// For kubectl: the context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// For kubectl: the kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// For kubectl: as whom
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// Namespace of the agents [default: all are looked through]
    #[arg(long, value_name = "NAME", value_parser = name)]
    agents: Option<String>,
    /// Labels of the agents' pods
    #[arg(long, value_name = "LABELS", default_value = SELECTOR)]
    agents_selector: String,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    output: OutputArgs,
}

/// A name as Kubernetes has them: it becomes an argument of kubectl.
fn name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let good = (1..=253).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with(['-', '.']);
    if good { Ok(text.to_owned()) } else { Err(format!("{text:?} is no name of Kubernetes")) }
}

/// Whose losses.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    All,
    Pod(String),
    /// `Deployment/web`, as the agents write it.
    Workload(String),
    /// A pod, and where there is none, a workload.
    Name(String),
}

const POD_KINDS: [&str; 3] = ["pod", "pods", "po"];
const KINDS: [(&str, &[&str]); 6] = [
    ("Deployment", &["deployment", "deployments", "deploy"]),
    ("StatefulSet", &["statefulset", "statefulsets", "sts"]),
    ("DaemonSet", &["daemonset", "daemonsets", "ds"]),
    ("ReplicaSet", &["replicaset", "replicasets", "rs"]),
    ("Job", &["job", "jobs"]),
    ("CronJob", &["cronjob", "cronjobs", "cj"]),
];

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let Some((kind, of)) = text.split_once('/') else { return name(text).map(Target::Name) };
        // `deployment.apps/web`, as kubectl prints it.
        let kind = kind.split('.').next().unwrap_or_default().to_lowercase();
        let of = name(of)?;
        if POD_KINDS.contains(&&*kind) {
            return Ok(Target::Pod(of));
        }
        match KINDS.iter().find(|(_, names)| names.contains(&&*kind)) {
            Some((kind, _)) => Ok(Target::Workload(format!("{kind}/{of}"))),
            None => Err(format!(
                "{kind:?} is no kind here: pod, deployment, statefulset, daemonset, replicaset, job, cronjob"
            )),
        }
    }
}

impl Target {
    /// What to ask each agent.
    fn queries(&self, wanted: &Wanted, namespace: Option<&str>) -> Vec<Query> {
        let mut query = wanted.query();
        query.namespace = namespace.map(str::to_owned);
        let pod = |name: &String| Query { pod: Some(name.clone()), ..query.clone() };
        let workload = |name: &String| Query { workload: Some(name.clone()), ..query.clone() };
        match self {
            Target::All => vec![query],
            Target::Pod(name) => vec![pod(name)],
            Target::Workload(name) => vec![workload(name)],
            Target::Name(name) => vec![pod(name), workload(name)],
        }
    }
}

impl Target {
    /// Agents write the workload on top.
    fn above(&self) -> &'static str {
        match self {
            Target::Workload(name) if name.starts_with("ReplicaSet/") => " (one of a Deployment is known by that)",
            Target::Workload(name) if name.starts_with("Job/") => " (one of a CronJob is known by that)",
            _ => "",
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::All => f.write_str("anything"),
            Target::Pod(name) => write!(f, "pod {name}"),
            Target::Workload(name) => f.write_str(name),
            Target::Name(name) => write!(f, "a pod or workload {name}"),
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let target = match args.what.join("/").as_str() {
        "" => Target::All,
        text => match text.parse() {
            Ok(target) => target,
            Err(why) => {
                say(why);
                return Ok(ExitCode::from(2));
            }
        },
    };
    let cluster =
        Cluster::new([("--context", &args.context), ("--kubeconfig", &args.kubeconfig), ("--as", &args.user)]);
    let namespace = match (args.all_namespaces, &args.namespace) {
        (true, _) => None,
        (false, Some(name)) => Some(name.clone()),
        (false, None) => Some(cluster.namespace()?),
    };
    let (target, node) = place(&cluster, target, namespace.as_deref())?;
    let mut agents = cluster.agents(args.agents.as_deref(), &args.agents_selector)?;
    if let Some(node) = &node {
        agents.retain(|agent| agent.node == *node);
        if agents.is_empty() {
            bail!(
                "{target} runs on node {node}, and no agent does: do the DaemonSet's nodeSelector and tolerations let it?"
            );
        }
    }
    let queries = target.queries(&args.wanted, namespace.as_deref());
    let answers = ask(&cluster, &agents, &queries);
    let (found, silent) = join(answers, args.wanted.limit);
    let printer = Printer {
        output: args.output,
        lines: Queue::new(std::io::stdout(), queue::BYTES).context("cannot start the writing thread")?,
    };
    printer.more(found.more, args.wanted.limit);
    let printed = found.items.iter().try_for_each(|item| printer.print(&item.json));
    let written = printer.lines.finish(super::watch::PATIENCE);
    printed?;
    written.context("cannot write to stdout")?;
    let asked = agents.len() - silent.len();
    if found.items.is_empty() && asked > 0 {
        let place = namespace.map_or_else(|| "all namespaces".to_owned(), |name| format!("namespace {name}"));
        let agents = if asked == 1 { "1 agent has".to_owned() } else { format!("{asked} agents have") };
        say(format_args!("{agents} nothing about {target} in {place}{}", target.above()));
    }
    silent.iter().for_each(|(node, why)| say(format_args!("node {node} was not heard: {why}")));
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The node where all of it is, when that is sure: a pod that is there, whose name no other one had before it. Others ran
/// where only the agents know.
fn place(cluster: &Cluster, target: Target, namespace: Option<&str>) -> anyhow::Result<(Target, Option<String>)> {
    let (Target::Pod(name) | Target::Name(name)) = &target else { return Ok((target, None)) };
    let Some(namespace) = namespace else { return Ok((target, None)) };
    match cluster.pod(namespace, name) {
        Ok(Some(pod)) => Ok((Target::Pod(name.clone()), pod.only_node())),
        Ok(None) => Ok((target, None)),
        // Who may not read it may still ask the agents, all of them.
        Err(e) if cluster::forbidden(&format!("{e:#}")) => Ok((target, None)),
        Err(e) => Err(e),
    }
}

type Answer = (AgentPod, anyhow::Result<Vec<Page>>);

fn ask(cluster: &Cluster, agents: &[AgentPod], queries: &[Query]) -> Vec<Answer> {
    let (next, (told, answers)) = (AtomicUsize::new(0), mpsc::channel());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(agents.len()) {
            let (next, told) = (&next, told.clone());
            scope.spawn(move || {
                while let Some(agent) = agents.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Heard to the end.
                    let _ = told.send((agent.clone(), ask_one(cluster, agent, queries)));
                }
            });
        }
        drop(told);
        let mut all = Vec::new();
        loop {
            match answers.recv_timeout(SILENCE) {
                Ok(answer) => all.push(answer),
                Err(RecvTimeoutError::Disconnected) => return all,
                Err(RecvTimeoutError::Timeout) if std::io::stderr().is_terminal() => {
                    say(format_args!("{} of {} agents have answered until now", all.len(), agents.len()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    })
}

fn ask_one(cluster: &Cluster, agent: &AgentPod, queries: &[Query]) -> anyhow::Result<Vec<Page>> {
    if let Some(why) = &agent.away {
        bail!("its agent {}/{} {why}", agent.namespace, agent.name);
    }
    let forward = Forward::start(cluster, agent)?;
    let client = Agent::new(forward.url()?)?;
    queries.iter().map(|query| Ok(client.page(query)?)).collect()
}

/// A record, and what it is sorted by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    at: String,
    id: String,
    json: String,
}

#[derive(Debug, Default)]
struct Found {
    items: Vec<Item>,
    more: bool,
}

/// All that was found, oldest first and each once, and which nodes were not heard and why.
fn join(answers: Vec<Answer>, limit: usize) -> (Found, Vec<(String, String)>) {
    #[derive(Deserialize)]
    struct Key {
        id: String,
        at: String,
    }
    let (mut found, mut silent, mut known) = (Found::default(), Vec::new(), BTreeSet::new());
    for (agent, answer) in answers {
        let pages = match answer {
            Ok(pages) => pages,
            Err(e) => {
                silent.push((agent.node, format!("{e:#}")));
                continue;
            }
        };
        for page in pages {
            found.more |= page.more;
            for json in page.items {
                // What has neither is no record of why502; printing says so.
                let Key { id, at } =
                    serde_json::from_str(json.get()).unwrap_or(Key { id: String::new(), at: String::new() });
                if id.is_empty() || known.insert((agent.node.clone(), id.clone())) {
                    found.items.push(Item { at, id, json: json.get().to_owned() });
                }
            }
        }
    }
    found.items.sort();
    if found.items.len() > limit {
        found.items.drain(..found.items.len() - limit);
        found.more = true;
    }
    silent.sort();
    (found, silent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    #[test]
    fn whose_losses() {
        let target = |text: &str| text.parse::<Target>();
        assert_eq!(target("web-1"), Ok(Target::Name("web-1".into())));
        assert_eq!(target("po/web-1"), Ok(Target::Pod("web-1".into())));
        for text in ["deploy/web", "deployment/web", "Deployment/web", "deployment.apps/web", "deployments/web"] {
            assert_eq!(target(text), Ok(Target::Workload("Deployment/web".into())), "{text}");
        }
        for bad in ["", "/", "svc/web", "pod/", "pod/a/b", "pod/-A", "-n", "we b", "web;ls", "deployment/Web"] {
            assert!(target(bad).is_err(), "{bad}");
        }
        assert!(target("svc/web").unwrap_err().contains("deployment"));
    }

    fn agent(node: &str) -> AgentPod {
        AgentPod { namespace: "why502".into(), name: "a".into(), node: node.into(), port: 9502, away: None }
    }

    fn page(items: &[(&str, &str)], more: bool) -> Page {
        let raw = |(id, at): &(&str, &str)| {
            RawValue::from_string(format!(r#"{{"id":"{id}","at":"2026-11-22T14:03:{at}Z"}}"#)).unwrap()
        };
        Page { cursor: 1, more, items: items.iter().map(raw).collect() }
    }

    #[test]
    fn what_agents_say_is_one_list() {
        let answers = vec![
            (agent("b"), Ok(vec![page(&[("1", "02"), ("2", "04")], false), page(&[("1", "02")], false)])),
            (agent("c"), Err(anyhow::anyhow!("gone"))),
            (agent("a"), Ok(vec![page(&[("1", "01"), ("3", "03")], false)])),
        ];
        let (found, silent) = join(answers, 3);
        let ats: Vec<&str> = found.items.iter().map(|item| &item.at[17..19]).collect();
        assert_eq!(ats, ["02", "03", "04"]);
        assert!(found.more, "the oldest was left out");
        assert_eq!(silent, [("c".to_owned(), "gone".to_owned())]);
        let (found, _) = join(vec![(agent("a"), Ok(vec![page(&[("1", "01")], false)]))], 3);
        assert!(!found.more);
    }
}
