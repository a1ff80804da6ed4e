//! Which server a lost request was meant for, and its master: the process that stop signals go to.

use super::View;
use crate::correlate::history::{ExitFact, Signal, sig};
use crate::correlate::lost::Lost;
use crate::identity::Role;
use crate::model::event::{BootNs, ProcKey, Task};

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
    let Some(actor) = &lost.server else { return none };
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
        _ if view.table.process(&actor.key).is_none() => Server { kind: Kind::Unknown, ..base },
        _ => Server { kind: Kind::Other, ..base },
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

    /// Effective stop signals to the master up to `until`, oldest first, without those it sent itself.
    pub fn stop_signals<'v>(&self, view: &'v View, until: BootNs) -> impl Iterator<Item = &'v Signal> + use<'v> {
        let list = self.master.map_or(&[][..], |m| view.history.signals_to(&m));
        list.iter().filter(move |s| s.at <= until && sig::stops(s.what.signal) && s.effective() && !s.to_itself())
    }

    /// A stop signal, or one after which old workers end: reload (HUP), upgrade (USR2), graceful end of workers (WINCH).
    /// Such workers close what worker_shutdown_timeout leaves open, which is no decision about a request.
    pub fn told_to_end(&self, view: &View, until: BootNs) -> bool {
        let list = self.master.map_or(&[][..], |m| view.history.signals_to(&m));
        list.iter().any(|s| {
            let ends = sig::stops(s.what.signal) || matches!(s.what.signal, sig::HUP | sig::USR2 | sig::WINCH);
            s.at <= until && ends && s.effective()
        })
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
