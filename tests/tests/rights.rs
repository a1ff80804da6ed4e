//! The agent in a container of a real runtime, with exactly the rights of the chart's manifests: every default probe is
//! attached, and the scale-down of a neighbour pod is explained. And what breaks when each right is taken away.
//!
//! The ordinary run plays the chart's own values on dockerd and on containerd; `FULL=1` prints the whole table. The program
//! is WHY502_BIN, or with `WHY502_IMAGE` the images in that archive (`cargo xtask dist` makes why502-VERSION-image.tar).

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use why502_tests::guard::{self, Dir, wait};
use why502_tests::load::LoadConf;
use why502_tests::runtime::agent::{Agent, STORE, Seccomp, Shown, ask};
use why502_tests::runtime::containerd::{self, Containerd};
use why502_tests::runtime::deployed::{Deployed, DeployedConf};
use why502_tests::runtime::docker::{self, Docker};
use why502_tests::runtime::{AgentRun, Engine, View, images};
use why502_tests::scene::{Loads, Scene, pass};
use why502_tests::tracer;

const SLOW: usize = 4;
/// Of what nginx's SIGTERM costs.
const RIGHT: [&str; 3] = ["nginx-fast-shutdown", "nginx-accept-queue-dropped", "endpoint-race"];
/// Until an agent is ready, and until its verdicts are there.
const LIMIT: Duration = Duration::from_secs(60);

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

/// As the chart renders it with these values, and with the program to test.
fn chart(manifest: &str) -> Result<Agent> {
    let text = std::fs::read_to_string(packaging("manifests").join(manifest))?;
    let mut agent = Agent::of_manifest(&text, &packaging("seccomp/why502.json").canonicalize()?)?.without_kubernetes();
    if std::env::var_os("WHY502_IMAGE").is_none() {
        let program = tracer::binary()?.canonicalize()?;
        agent.shown.push(Shown { from: program, to: "/why502".into(), read_only: true });
        (agent.image, agent.program) = (images::PAUSE.into(), Some("/why502".into()));
    }
    Ok(agent)
}

/// What came of it.
#[derive(Debug, Default)]
struct Found {
    /// User, effective capabilities, no_new_privs of its process, as /proc says.
    process: String,
    /// Why it does not run.
    refused: Option<String>,
    health: Value,
    lost: usize,
    /// Incidents with the right cause, pod and container.
    explained: usize,
    certain: usize,
    /// Incidents of these requests with another cause, or of nobody's container.
    other: usize,
    /// Incidents whose container has a name.
    named: usize,
}

impl Found {
    /// Everything is seen that this kernel shows: without ftrace it has no fexit programs, whatever the rights.
    fn is_whole(&self) -> bool {
        let lowered = self.health["degraded"].as_array().into_iter().flatten();
        let complete = self.health["ready"] == true && lowered.into_iter().all(|what| what == "no-unix-connect");
        self.refused.is_none() && complete && self.lost == self.explained && self.other == 0 && self.lost >= SLOW
    }

    fn row(&self) -> String {
        if let Some(why) = &self.refused {
            return format!("does not start: {why}");
        }
        let list = |key: &str| {
            let all = self.health[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            let all: Vec<&str> = all.collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        let Found { process, lost, explained, certain, other, named, .. } = self;
        format!(
            "{process}; {}; lowers verdicts: {}; not seen: {}; {explained} of {lost} explained, {certain} certain, {named} with \
             the container's name, {other} otherwise",
            self.health["status"].as_str().unwrap_or("?"),
            list("degraded"),
            list("lacks"),
        )
    }
}

/// Removed whatever happens.
struct Held<'e> {
    engine: &'e dyn Engine,
    run: AgentRun,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.engine.remove_agent(&self.run) {
            eprintln!("{e:#}");
        }
    }
}

/// What a runtime says comes after the whole command.
fn why(error: &str) -> String {
    let from = error.len().saturating_sub(300);
    error[error.ceil_char_boundary(from)..].to_owned()
}

/// The last lines that say why.
fn last(said: &str) -> String {
    // containerd writes `TIME STREAM F TEXT`.
    let text = |line: &str| line.split_once(" F ").map_or(line, |(_, text)| text).trim().to_owned();
    let lines: Vec<String> = said.lines().map(text).filter(|l| !l.is_empty()).collect();
    let from = lines.iter().rposition(|l| l.starts_with("error") || l.starts_with("why502: ")).unwrap_or_default();
    lines[from.min(lines.len())..].join(" ").chars().take(300).collect()
}

/// Where the agent stores.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    /// In a directory that it may write, as a kubelet gives its user one.
    Given,
    /// In one of root's, as hostPath is.
    OfRoot,
    /// It has none.
    None,
}

/// `uid 0, capabilities 000000c000080004, no_new_privs 1`
fn process(pid: i32) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        value.with_context(|| name.to_owned())
    };
    let (user, rights, kept) = (field("Uid:")?, field("CapEff:")?, field("NoNewPrivs:")?);
    Ok(format!("uid {user}, capabilities {rights}, no_new_privs {kept}"))
}

fn play(engine: &dyn Engine, agent: &Agent) -> Result<Found> {
    play_with(engine, agent, Store::Given)
}

fn play_with(engine: &dyn Engine, agent: &Agent, store: Store) -> Result<Found> {
    let dir = Dir::new()?;
    let agent = match store {
        Store::Given => agent.clone().storing_in(&dir.open_subdir("store")?),
        Store::OfRoot => {
            let of_root = dir.path().join("of-root");
            std::fs::create_dir(&of_root)?;
            agent.clone().storing_in(&of_root)
        }
        Store::None => {
            let mut agent = agent.clone();
            agent.shown.retain(|s| s.to != STORE);
            agent
        }
    };
    let name = format!("why502-{}", guard::serial());
    let run = match engine.agent(&name, &agent) {
        Ok(run) => run,
        Err(e) => return Ok(Found { refused: Some(why(&format!("{e:#}"))), ..Found::default() }),
    };
    let held = Held { engine, run };
    let (pid, port) = (held.run.pid, agent.port()?);
    let gone = || pid == 0 || !Path::new(&format!("/proc/{pid}")).exists();
    let ready = || ask(pid, port, "/readyz").is_ok_and(|(status, _)| status == 200);
    wait("an agent that is ready", LIMIT, || gone() || ready()).with_context(|| engine.said(&held.run))?;
    if gone() {
        return Ok(Found { refused: Some(last(&engine.said(&held.run))), ..Found::default() });
    }
    let process = process(pid)?;
    let site = Deployed::start(engine, &DeployedConf::default())?;
    let mut slow = LoadConf::new(site.addr(), "/slow.php?ms=20000");
    (slow.connections, slow.max_refused) = (SLOW, Some(0));
    let scene = Scene::start(site, &Loads { slow: Some(slow), in_php: SLOW, ..Loads::default() })?;
    // A container that is gone before its cgroup is looked up has no name: no pod of a user lives as short as that.
    pass(1500)?;
    scene.site.engine.stop(&scene.site.nginx, Duration::from_secs(20))?;
    let nginx = scene.site.nginx.id.clone();
    let over = scene.end()?;
    let lost = over.lost(&[]);
    let items = || -> Result<Vec<Value>> {
        let (status, body) = ask(pid, port, "/incidents?limit=1000")?;
        ensure!(status == 200, "/incidents: {status} {body}");
        let list: Value = serde_json::from_str(&body)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    // Fewer may come than were lost: that is then what is told.
    let _ = wait("the verdicts", Duration::from_secs(20), || items().is_ok_and(|all| all.len() >= lost));
    let items = items().with_context(|| engine.said(&held.run))?;
    // Who comes while the listener closes may be in its queue, and who comes later is refused.
    let right = |i: &Value| i["cause"].as_str().is_some_and(|cause| RIGHT.contains(&cause));
    let ours = |i: &&Value| right(i) && i["container"]["id"] == nginx.as_str();
    let explained = items.iter().filter(ours).count();
    // A few of them, for who reads why.
    for i in items.iter().filter(|i| !ours(i)).take(3) {
        println!("not that of {nginx}: {} {} {}: {}", i["cause"], i["container"], i["missing"], i["summary"]);
    }
    Ok(Found {
        process,
        refused: None,
        health: serde_json::from_str(&ask(pid, port, "/healthz")?.1)?,
        lost,
        explained,
        certain: items.iter().filter(ours).filter(|i| i["confidence"]["level"] == "certain").count(),
        other: items.len() - explained,
        named: items.iter().filter(ours).filter(|i| i["container"]["name"].is_string()).count(),
    })
}

/// The runtime's own seccomp profile, or ours where that is too old to know CAP_BPF.
fn seccomp(engine: &dyn Engine, agent: Agent) -> Result<(Agent, Found)> {
    let found = play(engine, &agent)?;
    if found.is_whole() {
        println!("{}: its own seccomp profile: {}", engine.label(), found.row());
        return Ok((agent, found));
    }
    let ours = Agent { seccomp: Seccomp::Localhost(packaging("seccomp/why502.json").canonicalize()?), ..agent };
    println!("{}: its own seccomp profile: {}; so with packaging/seccomp/why502.json", engine.label(), found.row());
    let found = play(engine, &ours)?;
    Ok((ours, found))
}

fn on(engine: &dyn Engine) -> Result<()> {
    let (agent, found) = seccomp(engine, chart("why502.yaml")?)?;
    println!("{}: the chart's rights: {}", engine.label(), found.row());
    ensure!(found.is_whole(), "the chart's rights: {found:#?}");
    if std::env::var_os("FULL").is_none() {
        println!("{}: what breaks without each right: skipped: FULL=1 prints the table", engine.label());
        return Ok(());
    }
    table(engine, "profile A", &agent)?;
    if std::env::var_os("WHY502_IMAGE").is_some() {
        let other = Agent { seccomp: agent.seccomp, ..chart("why502-nonroot.yaml")? };
        table(engine, "profile B", &other)?;
    } else {
        println!("profile B: skipped: WHY502_IMAGE names no archive (cargo xtask dist)");
    }
    Ok(())
}

/// What is lost with each right that is taken away, and what another one gives.
fn table(engine: &dyn Engine, name: &str, agent: &Agent) -> Result<()> {
    println!("| {name}, {} | what comes of it |\n|---|---|", engine.label());
    let whole = play(engine, agent)?;
    print_row("all of the chart's", &whole);
    ensure!(whole.is_whole(), "{name}: the chart's rights: {whole:#?}");
    for right in &agent.add {
        let mut less = agent.clone();
        less.add.retain(|r| r != right);
        row(engine, &format!("without CAP_{right}"), &less)?;
    }
    row(engine, "without hostPID", &Agent { host_pid: false, ..agent.clone() })?;
    let mut less = agent.clone();
    less.shown.retain(|s| s.to != "/sys/fs/cgroup");
    row(engine, "without the node's cgroups", &less)?;
    let nowhere = play_with(engine, agent, Store::None)?;
    print_row("without a directory for the store", &nowhere);
    ensure!(nowhere.refused.is_some(), "an agent that can keep nothing says so: {nowhere:#?}");
    print_row("with a directory of root's for the store", &play_with(engine, agent, Store::OfRoot)?);
    row(engine, "with the other of no_new_privs", &Agent { no_new_privs: !agent.no_new_privs, ..agent.clone() })?;
    if agent.seccomp == Seccomp::RuntimeDefault {
        let file = packaging("seccomp/why502.json").canonicalize()?;
        let ours = Agent { seccomp: Seccomp::Localhost(file), ..agent.clone() };
        row(engine, "with seccomp Localhost, packaging/seccomp/why502.json", &ours)?;
    }
    let mut more = agent.clone();
    let socket = engine.socket();
    more.shown.push(Shown { from: socket.clone(), to: SOCKET.into(), read_only: false });
    set(&mut more, "--runtime=", &format!("unix://{SOCKET}"));
    row(engine, "with the runtime's socket", &more)?;
    let mut more = agent.clone();
    more.add.push("SYS_ADMIN".into());
    set(&mut more, "--uprobes=", "on");
    row(engine, "with CAP_SYS_ADMIN, and uprobes", &more)
}

/// Where the runtime's socket is in the agent's container.
const SOCKET: &str = "/run/runtime.sock";

fn set(agent: &mut Agent, option: &str, value: &str) {
    agent.args.iter_mut().filter(|arg| arg.starts_with(option)).for_each(|arg| *arg = format!("{option}{value}"));
}

fn row(engine: &dyn Engine, what: &str, agent: &Agent) -> Result<()> {
    print_row(what, &play(engine, agent).with_context(|| what.to_owned())?);
    Ok(())
}

fn print_row(what: &str, found: &Found) {
    println!("| {what} | {} |", found.row().replace('\n', " "));
}

fn skipped(name: &str, why: Option<String>) -> bool {
    let why = why.or_else(guard::why_not_traced);
    if let Some(why) = &why {
        println!("{name}: skipped: {why}");
    }
    why.is_some()
}

#[test]
fn docker() -> Result<()> {
    if skipped("docker", docker::why_not()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let docker = Docker::start(View::Hosts)?;
    if let Ok(archive) = std::env::var("WHY502_IMAGE") {
        docker.run(&["load", "-q", "-i", &archive])?;
    }
    on(&docker)
}

#[test]
fn containerd() -> Result<()> {
    if skipped("containerd", containerd::why_not()) {
        return Ok(());
    }
    let _turn = guard::turn()?;
    let programs = containerd::found().remove(0);
    let containerd = Containerd::start(&programs, View::Hosts)?;
    if let Some(archive) = std::env::var_os("WHY502_IMAGE") {
        containerd.import(&programs, Path::new(&archive))?;
    }
    on(&containerd)
}
