//! Servers under other file names that are started while why502 runs: no event tells of a title, so a program that begins
//! to listen and whose name tells nothing is looked at a little later.

use super::looks::Looks;
use crate::identity::{Program, is_server, program};
use crate::model::event::{Event, EventKind, ProcKey, tcp};
use crate::model::input::ProcessFact;
use crate::model::{BootNs, Input};
use crate::sources::procfs;
use std::path::Path;

/// After listen(2), ns: both masters write their title right before they fork; on a busy machine that may take a while.
const LOOKS: [BootNs; 2] = [300_000_000, 3_000_000_000];
/// Listening and not looked at for the last time; somebody who makes more at once gets no more looks.
const MOST: usize = 64;

#[derive(Debug)]
pub(super) struct Strangers(Looks<ProcKey>);

impl Default for Strangers {
    fn default() -> Self {
        Strangers(Looks::new(&LOOKS, MOST))
    }
}

impl Strangers {
    pub(super) fn observe(&mut self, event: &Event) {
        let EventKind::TcpState(s) = &event.kind else { return };
        let key = s.task.key();
        let known = matches!(program(&s.task.comm), Program::Nginx | Program::PhpFpm);
        if s.newstate != tcp::LISTEN || key.tgid == 0 || known || self.0.has(&key) {
            return;
        }
        self.0.add(key, event.at);
    }

    /// Those of them that call themselves a server by `now`.
    pub(super) fn due(&mut self, root: &Path, now: BootNs) -> Vec<Input> {
        self.due_with(now, |pid| procfs::read_process(root, pid, now).ok())
    }

    fn due_with(&mut self, now: BootNs, read: impl Fn(u32) -> Option<ProcessFact>) -> Vec<Input> {
        let mut found = Vec::new();
        self.0.due(now, |key| match read(key.tgid).filter(|fact| fact.key == *key) {
            Some(fact) if is_server(&fact) => {
                found.push(Input::Process(fact));
                false
            }
            Some(_) => true,
            None => false,
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlate::answer::tests::{state, task};
    use crate::model::EventId;
    use crate::model::event::TcpState;

    fn listens(comm: &str, tgid: u32) -> Event {
        let task = crate::model::Task { comm: comm.into(), tgid, ..task() };
        let s = TcpState { oldstate: tcp::CLOSE, newstate: tcp::LISTEN, task, ..state() };
        Event { id: EventId(1), at: 1_000, cpu: 0, quality: 0, kind: EventKind::TcpState(s) }
    }

    fn fact(key: ProcKey, title: &str) -> ProcessFact {
        ProcessFact {
            at: 1,
            key,
            ppid: 1,
            ns_pid: 1,
            pidns: 1,
            netns: 1,
            uid: 0,
            comm: "web".into(),
            exe: "/opt/web".into(),
            argv: vec![title.into()],
            cgroup: 1,
            cgroup_v1: 0,
            sig_ign: 0,
            sig_cgt: 0,
        }
    }

    #[test]
    fn a_title_that_comes_late_is_found() {
        let mut strangers = Strangers::default();
        strangers.observe(&listens("nginx", 7));
        assert!((strangers.0.len() == 0), "its name tells");
        strangers.observe(&listens("web", 8));
        strangers.observe(&listens("web", 8));
        assert_eq!(strangers.0.len(), 1);
        let key = crate::model::Task { tgid: 8, ..task() }.key();
        assert!(strangers.due_with(1_000, |_| panic!("not yet")).is_empty());
        assert!(strangers.due_with(1_000 + LOOKS[0], |_| Some(fact(key, "/opt/web"))).is_empty());
        let found = strangers.due_with(1_000 + LOOKS[1], |_| Some(fact(key, "nginx: master process /opt/web")));
        assert!(matches!(&found[..], [Input::Process(f)] if f.key == key));
        assert!((strangers.0.len() == 0));
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_it() {
        let mut strangers = Strangers::default();
        strangers.observe(&listens("web", 8));
        let other = ProcKey { tgid: 8, start_ticks: 1 };
        let found = strangers.due_with(u64::MAX, |_| Some(fact(other, "nginx: master process /opt/web")));
        assert!(found.is_empty() && (strangers.0.len() == 0));
        (0..2 * MOST as u32).for_each(|pid| strangers.observe(&listens("web", pid + 10)));
        assert_eq!(strangers.0.len(), MOST);
    }
}
