//! `--uprobes`: whether nginx's own words are listened to, and the thread that sees to it: what attaches takes some ms and
//! reads files of containers, so the event loop only tells it who starts, forks and ends, and takes what it found out.

mod budget;
mod worker;

use super::LiveError;
use crate::kernel::host::{CAP_SYS_ADMIN, Rights};
use crate::model::Input;
use crate::model::event::{Event, EventKind, ProcKey, TcpState, tcp};
use crate::model::input::{Degraded, NginxProbesFact};
use crate::probes::load::Probes;
use crate::probes::nginx::{NGINX_HOOKS, Uprobes};
use crate::sources::procfs;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

/// Whether the uprobes on nginx are attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// Where it is possible (CAP_SYS_ADMIN); else the same verdicts are made without them
    #[default]
    Auto,
    /// Refuse to run where it is not
    On,
    /// Not at all
    Off,
}

impl Wanted {
    /// Why there are none here; `None`: there are.
    pub(super) fn why_not(self, root: &Path, rights: Option<Rights>) -> Option<&'static str> {
        if self == Wanted::Off {
            return Some("--uprobes off");
        }
        if rights.is_some_and(|r| !r.has(CAP_SYS_ADMIN)) {
            return Some("CAP_SYS_ADMIN missing: every kernel wants it for uprobes");
        }
        if !root.join("sys/bus/event_source/devices/uprobe/type").exists() {
            return Some("this kernel has no uprobes (CONFIG_UPROBE_EVENTS, and /sys mounted)");
        }
        None
    }

    /// The hooks that are left out, and why.
    pub(super) fn unwanted(why: Option<&'static str>) -> impl Iterator<Item = (u32, &'static str)> {
        why.into_iter().flat_map(|why| NGINX_HOOKS.map(|hook| (hook, why)))
    }

    pub(super) fn degraded(why: &str) -> Degraded {
        let text =
            format!("nginx's own reasons and statuses are not seen ({why}): verdicts rest on the kernel's facts alone");
        Degraded { id: "no-nginx-uprobes".to_owned(), text }
    }
}

/// Starts the thread, or says why there is none.
pub(super) fn start(
    probes: &mut Probes,
    wanted: Wanted,
    why_not: Option<&'static str>,
    root: &Path,
) -> Result<(Option<Uprobed>, Option<Degraded>), LiveError> {
    let why = match why_not {
        Some(why) => why.to_owned(),
        None => match probes.nginx()? {
            Some(uprobes) => {
                let source = |source| LiveError::Io { what: "cannot start a thread", source };
                return Ok((Some(Uprobed::start(uprobes, root).map_err(source)?), None));
            }
            None => "they could not be loaded".to_owned(),
        },
    };
    if wanted == Wanted::On {
        return Err(LiveError::NoUprobes { why });
    }
    Ok((None, Some(Wanted::degraded(&why))))
}

/// Processes whose forks are followed; more are not.
const MOST: usize = 65_536;
/// Messages that wait for the thread.
const QUEUE: usize = 8192;
/// Longest wait for the thread at the start and at the end: it may hang in a container's file system.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the thread is told.
enum Told {
    /// Look at a process: it may be an nginx. `named`: it is called like one.
    Look {
        key: ProcKey,
        named: bool,
    },
    Forked {
        parent: ProcKey,
        child: ProcKey,
    },
    Ended(ProcKey),
    /// All that was told before has been done.
    Mark,
    Stop,
}

/// What it answers.
enum Answer {
    Fact(NginxProbesFact),
    /// Not an nginx, or not one that can be probed: its forks do not matter.
    Forget(ProcKey),
    Marked,
}

/// The event loop's end.
pub(super) struct Uprobed {
    to: SyncSender<Told>,
    from: Receiver<Answer>,
    /// Whose forks and end the thread is told.
    known: HashSet<ProcKey>,
    /// Something could not be told.
    deaf: bool,
}

impl Uprobed {
    pub(super) fn start(uprobes: Uprobes, root: &Path) -> io::Result<Uprobed> {
        let (to, told) = sync_channel(QUEUE);
        let (answers, from) = sync_channel(QUEUE);
        let worker = worker::Worker::new(uprobes, root.to_owned(), answers);
        std::thread::Builder::new().name("uprobes".into()).spawn(move || worker.run(&told))?;
        Ok(Uprobed { to, from, known: HashSet::new(), deaf: false })
    }

    /// Has what runs already looked at.
    pub(super) fn scanned(&mut self, scan: &procfs::Scan) -> Vec<Input> {
        let listening: HashSet<ProcKey> = scan.listeners.iter().flat_map(|l| l.holders.iter().copied()).collect();
        for p in &scan.processes {
            let named = named(&p.exe, &p.comm);
            if named || listening.contains(&p.key) {
                self.look(p.key, named);
            }
        }
        self.tell(Told::Mark);
        self.until_marked()
    }

    /// An event, in their order.
    pub(super) fn observe(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Execed(e) => {
                // Another program in the same process.
                self.ended(e.task.key());
                if named(&e.path, &e.task.comm) {
                    self.look(e.task.key(), true);
                }
            }
            EventKind::Forked { parent, child } if self.known.contains(&parent.key()) && self.known.len() < MOST => {
                self.known.insert(child.key());
                self.tell(Told::Forked { parent: parent.key(), child: child.key() });
            }
            EventKind::Exited { task, .. } => self.ended(task.key()),
            // Under another name.
            EventKind::TcpState(TcpState { newstate: tcp::LISTEN, task, .. })
                if task.tgid != 0 && !self.known.contains(&task.key()) =>
            {
                self.look(task.key(), named("", &task.comm));
            }
            _ => {}
        }
    }

    /// What the thread has found out since.
    pub(super) fn due(&mut self) -> Vec<Input> {
        let mut facts = Vec::new();
        loop {
            match self.from.try_recv() {
                Ok(answer) => facts.extend(self.take(answer)),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return facts,
            }
        }
    }

    /// True once: something was not told, so that an nginx may be without probes.
    pub(super) fn was_deaf(&mut self) -> bool {
        std::mem::take(&mut self.deaf)
    }

    /// Detaches all; gives what was not taken yet.
    pub(super) fn stop(mut self) -> Vec<Input> {
        self.tell(Told::Stop);
        self.until_marked()
    }

    fn until_marked(&mut self) -> Vec<Input> {
        let mut facts = Vec::new();
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            match self.from.recv_timeout(left) {
                Ok(Answer::Marked) | Err(_) => return facts,
                Ok(answer) => facts.extend(self.take(answer)),
            }
        }
    }

    fn take(&mut self, answer: Answer) -> Option<Input> {
        match answer {
            Answer::Fact(fact) => return Some(Input::NginxProbes(fact)),
            Answer::Forget(key) => _ = self.known.remove(&key),
            Answer::Marked => {}
        }
        None
    }

    fn look(&mut self, key: ProcKey, named: bool) {
        if self.known.len() < MOST {
            self.known.insert(key);
            self.tell(Told::Look { key, named });
        }
    }

    fn ended(&mut self, key: ProcKey) {
        if self.known.remove(&key) {
            self.tell(Told::Ended(key));
        }
    }

    fn tell(&mut self, what: Told) {
        // Never waits: the ring is more important. The thread looks for itself who has ended.
        self.deaf |= self.to.try_send(what).is_err();
    }
}

/// Called like an nginx, or one of its relatives.
fn named(exe: &str, comm: &str) -> bool {
    let file = exe.rsplit('/').next().unwrap_or(exe);
    ["nginx", "openresty", "angie", "tengine"].iter().any(|name| file.contains(name) || comm.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatives_by_name() {
        for exe in
            ["/usr/sbin/nginx", "/usr/local/openresty/nginx/sbin/nginx (deleted)", "/usr/sbin/angie", "nginx-debug"]
        {
            assert!(named(exe, ""), "{exe}");
        }
        assert!(named("/proc/self/exe", "nginx"));
        assert!(!named("/etc/nginx/run.sh", "sh"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let root = tempfile::tempdir().unwrap();
        let none = Some(Rights { effective: 0 });
        assert_eq!(Wanted::Off.why_not(root.path(), none), Some("--uprobes off"));
        assert!(Wanted::Auto.why_not(root.path(), none).unwrap().contains("CAP_SYS_ADMIN"));
        let all = Some(Rights { effective: u64::MAX });
        assert!(Wanted::On.why_not(root.path(), all).unwrap().contains("no uprobes"));
        let device = root.path().join("sys/bus/event_source/devices/uprobe");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("type"), "9\n").unwrap();
        assert_eq!(Wanted::Auto.why_not(root.path(), all), None);
    }
}
