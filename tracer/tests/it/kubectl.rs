//! `kubectl why502` with a played kubectl, whose tunnels lead to agents' HTTP in this process.

use crate::samples::{bare_incident, incident, stop};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output as Ended, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use why502::model::Output;
use why502::model::incident::{Incident, Pod};
use why502::serve::{Bounds, Server, State};
use why502::sinks::{json, text};
use why502::store::{Limits, Now, Store, sink};

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers by files beside it: what `get` gives, and the port of each agent's tunnel. Writes down what it was asked, and
/// which processes were tunnels.
const KUBECTL: &str = r#"#!/bin/sh
dir=${0%/*}
printf '%s\n' "$*" >> "$dir/asked"
give() {
    if [ -e "$dir/$1.fails" ]; then cat "$dir/$1.fails" >&2; exit 1; fi
    cat "$dir/$1" 2>/dev/null
    exit 0
}
case "$*" in
*"config view"*) give namespace ;;
*port-forward*)
    for word in "$@"; do case "$word" in pod/*) pod=${word#pod/} ;; esac; done
    if [ -e "$dir/$pod.fails" ]; then cat "$dir/$pod.fails" >&2; exit 1; fi
    echo $$ >> "$dir/tunnels"
    echo "Forwarding from 127.0.0.1:$(cat "$dir/$pod") -> 9502"
    exec sleep 600 ;;
*"-o name"*) give names ;;
*"get pods"*) give agents ;;
*"get pod "*) give pod ;;
esac
echo "error: unknown command" >&2
exit 1
"#;

/// An agent's HTTP, with a store.
struct Node {
    server: Option<Server>,
    store: Option<Store>,
    _dir: TempDir,
}

impl Node {
    fn start(outputs: &[Output]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let now = || Now { boot_id: "b".into(), boot_s: 1, wall_s: 1 };
        let store = Store::start(dir.path(), Limits::default(), sink::WAITING, now).unwrap();
        outputs.iter().for_each(|output| store.push(json::output(output).unwrap()));
        let begin = Instant::now();
        while *store.view().durable.borrow() < outputs.len() as u64 {
            assert!(begin.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        let state = Arc::new(State::new(store.view()));
        let server = Server::start(TcpListener::bind("127.0.0.1:0").unwrap(), state, Bounds::default()).unwrap();
        Node { server: Some(server), store: Some(store), _dir: dir }
    }

    fn port(&self) -> u16 {
        self.server.as_ref().unwrap().address.port()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.take().unwrap().stop();
        self.store.take().unwrap().finish(PATIENCE);
    }
}

/// A cluster of two nodes with an agent each.
struct Cluster {
    dir: TempDir,
    nodes: [Node; 2],
}

fn pod(name: &str, node: &str, phase: &str) -> Value {
    let spec = json!({"nodeName": node, "containers": [{"name": "why502", "ports": [{"name": "http", "containerPort": 9502}]}]});
    json!({"metadata": {"name": name, "namespace": "monitoring"}, "spec": spec, "status": {"phase": phase}})
}

fn told(id: &str, at: &str, name: &str, workload: &str) -> Output {
    let pod = incident().pod.unwrap();
    let pod = Pod { name: Some(name.into()), workload: Some(workload.into()), ..pod };
    let at = format!("2026-11-22T14:03:{at}.000000000Z");
    Output::Incident(Box::new(Incident { id: id.into(), at, pod: Some(pod), ..incident() }))
}

impl Cluster {
    fn start() -> Cluster {
        let a = [told("i-1", "01", "web-a", "Deployment/web"), told("i-3", "03", "db-0", "StatefulSet/db")];
        let nowhere = Output::Incident(Box::new(Incident { id: "i-none".into(), ..bare_incident() }));
        let b = [told("i-2", "02", "web-b", "Deployment/web"), nowhere, Output::Stop(Box::new(stop()))];
        let cluster = Cluster { dir: tempfile::tempdir().unwrap(), nodes: [Node::start(&a), Node::start(&b)] };
        cluster.write("script", KUBECTL);
        // Not written by this process: one that another test forks would hold it open, and it could not be run (ETXTBSY).
        let (from, to) = (cluster.file("script"), cluster.file("kubectl"));
        assert!(Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap().success());
        cluster.write("namespace", "shop");
        cluster.agents(&[pod("agent-a", "node-a", "Running"), pod("agent-b", "node-b", "Running")]);
        for (name, node) in ["agent-a", "agent-b"].iter().zip(&cluster.nodes) {
            cluster.write(name, &node.port().to_string());
        }
        cluster
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    fn agents(&self, pods: &[Value]) {
        self.write("agents", &json!({"items": pods}).to_string());
    }

    fn call(&self, program: &Path, args: &[&str]) -> Ended {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.dir.path().display());
        let mut command = Command::new(program);
        command.args(args).env("PATH", path).env_remove("NO_COLOR").stdin(Stdio::null());
        command.output().unwrap()
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.call(Path::new(env!("CARGO_BIN_EXE_why502")), &[&["kubectl"], args].concat())
    }

    /// Ids on stdout, in order, of a run that ended with this code.
    fn ids(&self, args: &[&str], code: i32) -> (Vec<String>, String) {
        let ended = self.run(&[args, &["-o", "json"]].concat());
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{args:?}: {stderr}");
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        (String::from_utf8(ended.stdout).unwrap().lines().map(id).collect(), stderr)
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.file("asked")).unwrap_or_default()
    }
}

#[test]
fn a_workload_is_asked_for_at_every_agent() {
    let cluster = Cluster::start();
    for what in [&["deployment/web"][..], &["deploy/web"], &["deployment", "web"]] {
        let (ids, stderr) = cluster.ids(&[what, &["--kind", "incidents"]].concat(), 0);
        assert_eq!((ids.as_slice(), &*stderr), (&["i-1".to_owned(), "i-2".to_owned()][..], ""), "{what:?}");
    }
    let ended = cluster.run(&["deployment/web", "--kind", "incidents"]);
    let blocks: String = [told("i-1", "01", "web-a", "Deployment/web"), told("i-2", "02", "web-b", "Deployment/web")]
        .iter()
        .map(|output| text::output(output, text::Paint { on: false }))
        .collect();
    assert_eq!(String::from_utf8(ended.stdout).unwrap(), blocks, "as the terminal has them");
    // Filters are the agents' own.
    assert_eq!(cluster.ids(&["deployment/web", "--cause", "unexplained"], 0).0, [""; 0]);
    let (ids, stderr) = cluster.ids(&["deployment/web", "--kind", "incidents", "--limit", "1"], 0);
    assert_eq!(ids, ["i-2"]);
    assert!(stderr.contains("more than the newest 1"), "{stderr}");
}

#[test]
fn a_pod_is_asked_for_where_it_is_or_may_have_been() {
    let cluster = Cluster::start();
    let of = |kind: &str, node: &str| {
        let meta = json!({"name": "x", "generateName": "x-", "ownerReferences": [{"kind": kind}]});
        json!({"metadata": meta, "spec": {"nodeName": node}}).to_string()
    };
    // Gone: nobody knows where it was.
    assert_eq!(cluster.ids(&["pod/web-a"], 0).0, ["i-1"]);
    assert_eq!(cluster.asked().matches("port-forward").count(), 2);
    // There: its node only.
    cluster.write("pod", &of("ReplicaSet", "node-b"));
    assert_eq!(cluster.ids(&["web-b"], 0).0, ["i-2"]);
    assert_eq!(cluster.asked().matches("port-forward").count(), 3);
    // One of its name was elsewhere before.
    cluster.write("pod", &of("StatefulSet", "node-b"));
    assert_eq!(cluster.ids(&["db-0"], 0).0, ["i-3"]);
    assert_eq!(cluster.asked().matches("port-forward").count(), 5);
    // Who may not read it has all of them asked.
    cluster.write("pod.fails", "Error from server (Forbidden): pods \"web-b\" is forbidden\n");
    assert_eq!(cluster.ids(&["pod/web-b"], 0).0, ["i-2"]);
    assert_eq!(cluster.asked().matches("port-forward").count(), 7);
    fs::remove_file(cluster.file("pod.fails")).unwrap();
    // Where no agent is.
    cluster.write("pod", &of("ReplicaSet", "node-c"));
    let (ids, stderr) = cluster.ids(&["web-c"], 1);
    assert!(ids.is_empty() && stderr.contains("runs on node node-c, and no agent does"), "{stderr}");
    // No pod, but a workload of this name.
    cluster.write("pod", "");
    assert_eq!(cluster.ids(&["db"], 0).0, ["i-3"]);
}

#[test]
fn kubectl_is_given_what_is_its_own_and_every_tunnel_ends() {
    let cluster = Cluster::start();
    cluster.ids(&["-n", "shop", "--context", "prod", "--kubeconfig", "/k", "--as", "me", "pod/web-a"], 0);
    let asked = cluster.asked();
    assert_eq!(asked.lines().count(), 4, "{asked}");
    assert!(asked.lines().all(|line| line.starts_with("--context=prod --kubeconfig=/k --as=me ")), "{asked}");
    assert!(asked.contains("get pod web-a -n shop ") && asked.contains("app.kubernetes.io/name=why502"), "{asked}");
    assert!(asked.contains("-n monitoring port-forward --address 127.0.0.1 pod/agent-b :9502"), "{asked}");
    let tunnels = fs::read_to_string(cluster.file("tunnels")).unwrap();
    assert_eq!(tunnels.lines().count(), 2);
    for pid in tunnels.lines() {
        // The number may be another process's by now.
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!args.starts_with(b"sleep\x00600"), "tunnel {pid} is still there");
    }
    // By the name that kubectl looks for, and with the context's namespace.
    let plugin = cluster.file("kubectl-why502");
    symlink(env!("CARGO_BIN_EXE_why502"), &plugin).unwrap();
    let ended = cluster.call(&plugin, &["pod/web-a", "-o", "json"]);
    assert!(ended.status.success() && ended.stdout.starts_with(b"{"), "{ended:?}");
    // What completes it.
    let complete = |words: &[&str]| {
        let plugin = cluster.file("kubectl_complete-why502");
        let _ = symlink(env!("CARGO_BIN_EXE_why502"), &plugin);
        String::from_utf8(cluster.call(&plugin, words).stdout).unwrap()
    };
    cluster.write("names", "deployment.apps/web\ndeployment.apps/db\n");
    assert_eq!(complete(&["-n", "shop", "deploy/w"]), "deploy/web\n:4\n");
    assert!(cluster.asked().ends_with("get deploy -n shop -o name --request-timeout=3s\n"));
    assert_eq!(complete(&["deployment", ""]), "web\ndb\n:4\n");
    assert_eq!(complete(&["--context", "prod", "statefulset/w"]), "statefulset/web\n:4\n");
    assert!(cluster.asked().ends_with("--context=prod get statefulset -o name --request-timeout=3s\n"));
    cluster.write("names", "pod/web-a\npod/web-b\n");
    assert!(complete(&[""]).starts_with("web-a\nweb-b\ndeployment/\n"));
    cluster.write("names.fails", "Error from server (Forbidden)\n");
    assert_eq!(complete(&["-n", ""]), "\n:4\n");
    cluster.write("namespace", "");
    let (ids, stderr) = cluster.ids(&["pod/web-a"], 0);
    assert!(ids.is_empty(), "{ids:?}");
    assert!(stderr.contains("2 agents have nothing about pod web-a in namespace default"), "{stderr}");
    assert!(cluster.ids(&["-A"], 0).0.contains(&"i-none".to_owned()), "also what has no pod's name");
}

#[test]
fn what_an_agent_cannot_tell_is_said() {
    let cluster = Cluster::start();
    cluster.write("agent-b.fails", "Error from server (Forbidden): pods \"agent-b\" is forbidden\n");
    let (ids, stderr) = cluster.ids(&["deployment/web"], 1);
    assert_eq!(ids, ["i-1"]);
    assert!(stderr.contains("node node-b was not heard: no tunnel to monitoring/agent-b: kubectl: Error"), "{stderr}");
    assert!(stderr.contains("pods/portforward"), "{stderr}");
    // One that starts, and one that makes room for another.
    let going = json!({"metadata": {"name": "old", "namespace": "monitoring", "deletionTimestamp": "2026-11-22T14:00:00Z"},
        "spec": {"nodeName": "node-a"}, "status": {"phase": "Running"}});
    cluster.agents(&[going, pod("agent-a", "node-a", "Running"), pod("agent-b", "node-b", "Pending")]);
    let (ids, stderr) = cluster.ids(&["deployment/web"], 1);
    assert_eq!(ids, ["i-1"]);
    assert_eq!(stderr, "why502: node node-b was not heard: its agent monitoring/agent-b is Pending, not Running\n");
    // A tunnel to nobody.
    cluster.agents(&[pod("agent-a", "node-a", "Running")]);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    cluster.write("agent-a", &nobody.to_string());
    let (_, stderr) = cluster.ids(&["deployment/web"], 1);
    assert!(stderr.starts_with("why502: node node-a was not heard: http://127.0.0.1:"), "{stderr}");
}

#[test]
fn errors_say_what_to_do() {
    let cluster = Cluster::start();
    let fails = |args: &[&str], code: i32, says: &str| {
        let (ids, stderr) = cluster.ids(args, code);
        assert!(ids.is_empty() && stderr.contains(says), "{args:?}: {stderr}");
    };
    fails(&["svc/web"], 2, "pod, deployment, statefulset");
    fails(&["-n", "Shop"], 2, "is no name of Kubernetes");
    fails(&["--limit", "0"], 2, "--limit");
    fails(&["-A", "-n", "shop"], 2, "cannot be used with");
    cluster.agents(&[]);
    fails(&["pod/web-a"], 1, "--agents NAMESPACE, --agents-selector LABELS");
    cluster.write("agents.fails", "Error from server (Forbidden): pods is forbidden\n");
    fails(
        &["pod/web-a"],
        1,
        "(--agents NAMESPACE asks for one namespace only): kubectl: Error from server (Forbidden)",
    );
    fails(&["pod/web-a", "--agents", "monitoring"], 1, "cannot list the agents in namespace monitoring");
    cluster.write("namespace.fails", "error: current-context must exist in order to minify\n");
    fails(&["pod/web-a"], 1, "-n NAME gives it");
    // Nowhere in the path.
    let program = Path::new(env!("CARGO_BIN_EXE_why502"));
    let ended = Command::new(program).args(["kubectl", "-n", "shop"]).env("PATH", "/nowhere").output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code() == Some(1) && stderr.contains("no kubectl in the path"), "{stderr}");
}
