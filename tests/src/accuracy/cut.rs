//! A recording, cut to what tells of one site and rid of what names the machine.

use crate::site::Territory;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use why502::model::event::{BootNs, EventKind, Task, Tuple};
use why502::model::{Event, Input};
use why502::sinks::recording::time_of;

/// What a site is known by.
pub(super) struct Site<'a> {
    pub territory: &'a Territory,
    /// Uids of its pods: their cgroups have them in their paths.
    pub pods: &'a [String],
    /// Its files.
    pub dir: &'a Path,
    /// Until when it stood, boot ns.
    pub to: BootNs,
}

/// Processes and cgroups that a site's inputs speak of.
#[derive(Default)]
struct Members {
    cgroups: BTreeSet<u64>,
    /// In its cgroups or network namespaces at any time.
    inside: BTreeSet<u32>,
    /// Those that started or signalled them, and who started these.
    around: BTreeSet<u32>,
    /// Of all of them: named by the facts that are kept.
    named: BTreeSet<u64>,
}

/// The inputs without which the site's verdicts would be others; what is left out is of other sites and of the host.
pub(super) fn cut(inputs: &[Input], site: &Site) -> Vec<Input> {
    let members = members(inputs, site);
    let about = |i: &&Input| match i {
        Input::Event(e) => concerns(e, site, &members),
        Input::Process(p) => {
            members.inside.contains(&p.key.tgid) || members.around.contains(&p.key.tgid) || p.key.tgid == 1
        }
        Input::Listener(l) => site.territory.netns.contains(&l.netns),
        Input::Carries(c) => site.territory.netns.contains(&c.netns),
        Input::UnixListener(l) => site.territory.netns.contains(&l.netns) || Path::new(&l.path).starts_with(site.dir),
        Input::Cgroup(c) => members.named.contains(&c.id),
        Input::StopCounters(c) => members.cgroups.contains(&c.cgroup),
        // Those of the machine's runtimes.
        Input::Container(_) | Input::Source(_) | Input::Kube(_) => false,
        Input::Tick { at } => *at <= site.to.saturating_add(LATEST_NS),
        _ => true,
    };
    inputs.iter().filter(about).cloned().collect()
}

/// No verdict comes later than that.
const LATEST_NS: u64 = 4_000_000_000;

fn members(inputs: &[Input], site: &Site) -> Members {
    let mut of = Members::default();
    for input in inputs {
        if let Input::Cgroup(c) = input
            && c.path.as_ref().is_some_and(|path| site.pods.iter().any(|uid| path.contains(uid.as_str())))
        {
            of.cgroups.insert(c.id);
        }
    }
    let inside = |cgroup: u64, netns: u32| of.cgroups.contains(&cgroup) || site.territory.netns.contains(&netns);
    for input in inputs {
        match input {
            Input::Event(e) => {
                of.inside.extend(tasks(&e.kind).into_iter().filter(|t| inside(t.cgroup, t.netns)).map(|t| t.tgid));
            }
            Input::Process(p) if inside(p.cgroup, p.netns) => {
                of.inside.insert(p.key.tgid);
            }
            _ => {}
        }
    }
    // Backwards: who is around is known before those that started it are met.
    for input in inputs.iter().rev() {
        match input {
            Input::Event(Event { kind: EventKind::SignalGenerated(s), .. }) if of.inside.contains(&s.target.tgid) => {
                of.around.insert(s.sender.tgid);
            }
            Input::Event(Event { kind: EventKind::Forked { parent, child }, .. }) => {
                if child.tgid == std::process::id() {
                    continue;
                }
                if of.inside.contains(&child.tgid) || of.around.contains(&child.tgid) {
                    of.around.insert(parent.tgid);
                }
            }
            _ => {}
        }
    }
    // Who started the harness is nobody's business.
    for input in inputs.iter().rev() {
        if let Input::Process(p) = input
            && p.key.tgid != std::process::id()
            && (of.inside.contains(&p.key.tgid) || of.around.contains(&p.key.tgid))
        {
            of.around.insert(p.ppid);
        }
    }
    of.around.remove(&0);
    for input in inputs {
        match input {
            Input::Event(e) if concerns(e, site, &of) => {
                of.named.extend(tasks(&e.kind).into_iter().flat_map(|t| [t.cgroup, t.cgroup_v1]));
            }
            Input::Process(p) if of.inside.contains(&p.key.tgid) || of.around.contains(&p.key.tgid) => {
                of.named.extend([p.cgroup, p.cgroup_v1]);
            }
            _ => {}
        }
    }
    of.named.extend(of.cgroups.iter());
    of
}

fn concerns(e: &Event, site: &Site, members: &Members) -> bool {
    let inside = |t: &Task| members.inside.contains(&t.tgid);
    let known = |t: &Task| inside(t) || members.around.contains(&t.tgid);
    match &e.kind {
        EventKind::SignalGenerated(s) => inside(&s.target) || inside(&s.sender),
        EventKind::Forked { child, .. } => known(child),
        EventKind::Execed(x) => known(&x.task),
        EventKind::Exited { task, .. } => known(task),
        kind => {
            let net = tuple(kind).is_some_and(|t| {
                site.territory.owns(Some(t.local_ip), t.netns) || site.territory.owns(Some(t.remote_ip), t.netns)
            });
            net || tasks(kind).iter().any(inside)
        }
    }
}

fn tuple(kind: &EventKind) -> Option<&Tuple> {
    match kind {
        EventKind::TcpState(s) => Some(&s.tuple),
        EventKind::ResetSent(r) => Some(&r.tuple),
        EventKind::ResetReceived(n) | EventKind::SynRetransmitted(n) => Some(&n.tuple),
        _ => None,
    }
}

/// Whatever the kind: one that is new here must not fall out of a recording.
fn tasks(kind: &EventKind) -> Vec<Task> {
    let fields = serde_json::to_value(kind).ok();
    let fields = fields.as_ref().and_then(|v| v.as_object()).into_iter().flat_map(|o| o.values());
    fields.filter(|v| v.get("tgid").is_some()).filter_map(|v| serde_json::from_value(v.clone()).ok()).collect()
}

/// Text of this machine, and what stands for it in a recording that others read.
pub(super) struct Scrub(Vec<(String, String)>);

impl Scrub {
    /// For the inputs of one recording.
    pub(super) fn new(inputs: &[Input], site: &Site) -> Result<Self> {
        let own = std::env::current_exe().context("where this program is")?;
        let own = own.parent().context("a program is in a directory")?;
        let mut texts = vec![(own.display().to_string(), "/usr/bin".to_string())];
        texts.push((site.dir.display().to_string(), "/run/site".into()));
        for input in inputs {
            match input {
                Input::Started(s) => {
                    texts.push((format!("\"node\":\"{}\"", s.node), "\"node\":\"node-1\"".into()));
                    let release = s.kernel.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
                    texts.push((format!("\"kernel\":\"{}\"", s.kernel), format!("\"kernel\":\"{release}\"")));
                }
                Input::Process(p) if p.key.tgid == 1 => {
                    texts.push((format!("\"comm\":\"{}\"", p.comm), "\"comm\":\"systemd\"".into()));
                }
                _ => {}
            }
        }
        Ok(Self(texts.into_iter().filter(|(from, to)| !from.is_empty() && from != to).collect()))
    }

    pub(super) fn text(&self, text: &str) -> String {
        self.0.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
    }

    pub(super) fn inputs(&self, inputs: &[Input], site: &Site) -> Result<Vec<Input>> {
        let one = |input: &Input| -> Result<Input> {
            let mut input = input.clone();
            match &mut input {
                Input::Process(p) if p.key.tgid == 1 => {
                    (p.exe, p.argv) = ("/usr/lib/systemd/systemd".into(), vec!["/sbin/init".into()]);
                }
                // Nor is what it was called with.
                Input::Process(p) if !site.territory.netns.contains(&p.netns) => p.argv.truncate(1),
                Input::Cgroup(c) => {
                    let own = |path: &String| path == "/" || site.pods.iter().any(|uid| path.contains(uid.as_str()));
                    if c.path.as_ref().is_some_and(|path| !own(path)) {
                        c.path = Some("/system.slice/cron.service".into());
                    }
                }
                _ => {}
            }
            Ok(serde_json::from_str(&self.text(&serde_json::to_string(&input)?))?)
        };
        let scrubbed = inputs.iter().map(one).collect::<Result<Vec<_>>>()?;
        ensure!(
            scrubbed.iter().zip(inputs).all(|(a, b)| time_of(a) == time_of(b)),
            "scrubbing changed more than names"
        );
        Ok(scrubbed)
    }
}
