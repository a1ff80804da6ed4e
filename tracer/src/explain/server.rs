//! Which server a lost request was meant for, and its master: the process that stop signals go to.

use super::View;
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::{Evidence, Lost, RefusedAt};
use crate::identity::{ListenState, Process, Role, ServerKind};
use crate::model::event::{BootNs, ProcKey, TICK_NS, Task, TcpState, Tuple};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    PhpFpm,
    /// Known, and neither of the two.
    Other,
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Server {
    pub kind: Kind,
    /// Who closed the connection or the listener.
    pub process: Option<ProcKey>,
    pub task: Option<Task>,
    pub exiting: bool,
    /// nginx's or php-fpm's master: `process` itself or its parent.
    pub master: Option<ProcKey>,
    pub is_master: bool,
    /// The roles rest on the program and the parent, not on a name.
    pub sure: bool,
    pub why: String,
}

pub fn of(lost: &Lost, view: &View) -> Server {
    let none = Server {
        kind: Kind::Unknown,
        process: None,
        task: None,
        exiting: false,
        master: None,
        is_master: false,
        sure: false,
        why: String::new(),
    };
    // nginx asked nobody because of earlier failures: the server that failed is the one to look at.
    if let Some(earlier) = view.nginx.marked_by(lost) {
        return of(earlier, view);
    }
    // A connect that failed names no process: it is judged only when its path is php-fpm's.
    let refused = matches!(lost.evidence, Evidence::UnixRefused { .. });
    let Some(actor) = &lost.server else {
        let why = "the name of its socket is all there is".to_string();
        if let Evidence::Refused { seen: RefusedAt::Requester(s), closed: None } = &lost.evidence {
            return upstream(s, lost, view, none);
        }
        return if refused { Server { kind: Kind::PhpFpm, why, ..none } } else { none };
    };
    let info = view.table.role(&actor.key);
    let base = Server {
        process: Some(actor.key),
        task: actor.task.clone(),
        exiting: actor.exiting,
        sure: info.sure,
        why: info.why.to_string(),
        ..none
    };
    let parent = view.table.parent(&actor.key);
    match info.role {
        Role::NginxMaster | Role::PhpFpmMaster => Server {
            kind: if info.role == Role::NginxMaster { Kind::Nginx } else { Kind::PhpFpm },
            master: Some(actor.key),
            is_master: true,
            ..base
        },
        Role::NginxWorker | Role::PhpFpmChild => {
            let kind = if info.role == Role::NginxWorker { Kind::Nginx } else { Kind::PhpFpm };
            let wanted = if kind == Kind::Nginx { Role::NginxMaster } else { Role::PhpFpmMaster };
            let master = parent.map(|p| p.key);
            let master_sure = master.is_some_and(|m| {
                let role = view.table.role(&m);
                role.sure && role.role == wanted
            });
            let why = if master_sure { base.why.clone() } else { "its master is not known".into() };
            Server { kind, master, sure: base.sure && master_sure, why, ..base }
        }
        _ if view.table.process(&actor.key).is_none() => {
            let why = "it ended too long ago to be remembered".to_string();
            if refused { Server { kind: Kind::PhpFpm, sure: false, why, ..base } } else { base }
        }
        // Something else held the last copy of nginx's or php-fpm's socket: the loss is theirs, who closed is not known.
        _ => {
            let at = |t: &Tuple| view.table.server_at(t.netns, t.local_ip, t.local_port, lost.at);
            let owner = lost.tcp().and_then(at).map(|s| s.kind);
            let kind = match owner {
                Some(ServerKind::Nginx) => Kind::Nginx,
                Some(ServerKind::PhpFpm) => Kind::PhpFpm,
                _ => Kind::Other,
            };
            Server { kind, sure: false, why: "closed by a process that is neither".into(), ..base }
        }
    }
}

/// Port that php-fpm listens on unless it is told otherwise.
const FPM_PORT: u16 = 9000;

/// What an nginx asked for at a port on which nobody had ever listened: the php-fpm of its pod, if that is to come. Other
/// servers behind an nginx are not judged.
fn upstream(s: &TcpState, lost: &Lost, view: &View, none: Server) -> Server {
    let host_netns = view.started.map_or(0, |started| started.host_netns);
    let why = "nobody ever listened on its port".to_string();
    match view.table.fpm_near(&s.task, host_netns) {
        Some(master) => Server { kind: Kind::PhpFpm, process: Some(master), master: Some(master), why, ..none },
        None if lost.tcp().is_some_and(|t| t.local_port == FPM_PORT) => Server { kind: Kind::PhpFpm, why, ..none },
        None => Server { kind: Kind::Other, why, ..none },
    }
}

impl Server {
    /// `nginx`, `php-fpm`, for sentences.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Nginx => "nginx",
            Kind::PhpFpm => "php-fpm",
            Kind::Other | Kind::Unknown => "the server",
        }
    }

    /// Effective signals to the master, and to the process itself (workers obey them as well), up to `until`, oldest
    /// first, without those that they sent themselves.
    fn signals<'v>(&self, view: &'v View, until: BootNs) -> Vec<&'v Signal> {
        let master = self.master.map_or(&[][..], |m| view.history.signals_to(&m));
        let own = self.process.filter(|p| Some(*p) != self.master).map_or(&[][..], |p| view.history.signals_to(&p));
        let wanted = |s: &&Signal| s.at <= until && s.effective() && !s.to_itself();
        let mut all: Vec<_> = master.iter().chain(own).filter(wanted).collect();
        all.sort_by_key(|s| (s.at, s.event));
        all
    }

    /// Signals that end a server, killing ones included.
    pub fn stop_signals<'v>(&self, view: &'v View, until: BootNs) -> Vec<&'v Signal> {
        let mut all = self.signals(view, until);
        all.retain(|s| sig::stops(s.what.signal));
        all
    }

    /// The signal on which the server itself closed something at `until`: TERM, INT or QUIT from somebody. `None` when it
    /// was killed before that, because then the kernel closed it.
    pub fn asked_to_stop<'v>(&self, view: &'v View, until: BootNs) -> Option<&'v Signal> {
        // A master that kills its stuck worker does what it was asked to.
        let own = |s: &Signal| s.what.signal == sig::KILL && Some(s.what.sender.key()) == self.master;
        let last = self.stop_signals(view, until).into_iter().rfind(|s| !own(s))?;
        (sig::asks_to_stop(last.what.signal) && !last.by_kernel()).then_some(last)
    }

    /// The first TERM, INT or QUIT that somebody sent to it.
    pub fn asked_first<'v>(&self, view: &'v View, until: BootNs) -> Option<&'v Signal> {
        self.stop_signals(view, until).into_iter().find(|s| sig::asks_to_stop(s.what.signal) && !s.by_kernel())
    }

    /// A stop signal, or one after which old workers end: reload (HUP), upgrade (USR2), graceful end of workers (WINCH).
    /// Such workers close what worker_shutdown_timeout leaves open, which is no decision about a request.
    pub fn told_to_end(&self, view: &View, until: BootNs) -> bool {
        // A worker that was born after a reload is a new one.
        let born = self.process.map_or(0, |p| p.start_ticks * TICK_NS);
        self.signals(view, until).iter().any(|s| {
            let old = matches!(s.what.signal, sig::HUP | sig::USR2 | sig::WINCH) && s.at >= born;
            sig::stops(s.what.signal) || old
        })
    }

    /// The last signal that makes this worker finish what it has and end: QUIT, or one that replaces workers.
    pub fn told_to_drain<'v>(&self, view: &'v View, until: BootNs) -> Option<&'v Signal> {
        let born = self.process.map_or(0, |p| p.start_ticks * TICK_NS);
        let drains = |s: &Signal| {
            s.what.signal == sig::QUIT || matches!(s.what.signal, sig::HUP | sig::USR2 | sig::WINCH) && s.at >= born
        };
        self.signals(view, until).into_iter().rev().find(|s| drains(s))
    }

    /// nginx no longer took connections at `at`, and nothing that told it to end was seen: it had been told before why502
    /// looked, or the record was lost. A port that stays open for others is a reload's doing.
    pub fn quitting_unseen(&self, lost: &Lost, at: BootNs, view: &View) -> bool {
        let Some(t) = lost.tcp().filter(|_| self.kind == Kind::Nginx) else { return false };
        let state = view.table.listeners().state_at(t.netns, t.local_ip, t.local_port, at.saturating_sub(1));
        let told = self.signals(view, at.saturating_sub(1)).iter().any(|s| sig::asks_to_stop(s.what.signal));
        if told || !matches!(state, ListenState::Closed { .. }) {
            return false;
        }
        let ours = |key: &ProcKey| Some(*key) == self.master || Some(*key) == self.process;
        let mut open = view.table.listeners().open().filter(|(netns, ..)| *netns == t.netns);
        !open.any(|(.., owner)| owner.opener.iter().chain(&owner.holders).any(ours))
    }

    /// nginx took connections until `at`, and whatever stands above it in its container would have followed a TERM: no stop
    /// signal can have come before.
    pub fn listened_undisturbed(&self, lost: &Lost, at: BootNs, view: &View) -> bool {
        let Some(t) = lost.tcp().filter(|_| self.kind == Kind::Nginx) else { return false };
        let state = view.table.listeners().state_at(t.netns, t.local_ip, t.local_port, at.saturating_sub(1));
        let Some(master) = self.master else { return false };
        let follows = |p: &Process| p.key == master || p.sig_cgt & (1 << (sig::TERM - 1)) != 0;
        matches!(state, ListenState::Listening { .. }) && view.table.lineage(&master).all(follows)
    }

    /// It was there before `at`, as far as is known.
    pub fn older(&self, at: BootNs, view: &View) -> bool {
        let first = self.master.or(self.process).and_then(|key| view.table.process(&key));
        first.is_none_or(|p| p.born.is_none_or(|born| born < at))
    }

    /// /proc showed the process that closed as a worker that finishes what it has: it had been told to end before.
    pub fn draining(&self, view: &View) -> bool {
        self.process.and_then(|key| view.table.process(&key)).is_some_and(Process::draining)
    }

    /// Exit of the process that closed.
    pub fn exit<'v>(&self, view: &'v View) -> Option<&'v ExitFact> {
        view.history.exit_of(&self.process?)
    }

    /// Since when the master's signals are seen: its birth, when that was seen.
    pub fn seen_since(&self, view: &View) -> Option<BootNs> {
        view.table.process(&self.master.or(self.process)?)?.born
    }
}
