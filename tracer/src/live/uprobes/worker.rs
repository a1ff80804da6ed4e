//! The thread that attaches: one attachment for each file that the kernel knows, however many containers run it, kept as
//! long as one process runs it.

use super::budget::{Budget, REST};
use super::{Answer, Told};
use crate::kernel::clock;
use crate::model::event::ProcKey;
use crate::model::input::{NginxProbesFact, NginxProbesState};
use crate::probes::nginx::{Attached, Uprobes, functions};
use crate::sources::procfs;
use crate::sources::program::{self, FileId, NoPlaces, Place, Program};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use why502_ebpf::names::NGINX_SLOTS;

/// The counters are looked at this often while something is attached.
const CHECK: Duration = Duration::from_secs(1);
/// Who has ended unheard is looked for this often.
const AUDIT: Duration = Duration::from_secs(10);
/// Bytes of a symbol table that is looked into: of a program that is called nginx, of any other that listens.
const NAMED_MAX: u64 = 64 << 20;
const OTHER_MAX: u64 = 8 << 20;
/// Files whose symbols are remembered.
const FILES: usize = 1024;

type Places = Result<[Place; 2], NoPlaces>;

/// A process that runs a program.
struct User {
    /// The mount that it sees the program through.
    mount: u64,
    /// Found by itself, and not as somebody's child: facts are given of it.
    found: bool,
}

/// A file of the kernel's that runs.
struct Binary {
    id: FileId,
    /// As the first of its users calls it.
    exe: String,
    places: [Place; 2],
    slot: u32,
    attached: Option<Attached>,
    /// The mount that the attachment keeps busy; `None`: no container's.
    through: Option<u64>,
    users: BTreeMap<ProcKey, User>,
    budget: Budget,
    /// Since when it is off because it ran too often, and what was said of it.
    resting: Option<(Instant, String)>,
}

pub(super) struct Worker {
    uprobes: Uprobes,
    root: PathBuf,
    answers: SyncSender<Answer>,
    files: BTreeMap<FileId, Places>,
    binaries: Vec<Binary>,
    checked: Instant,
    audited: Instant,
}

impl Worker {
    pub(super) fn new(uprobes: Uprobes, root: PathBuf, answers: SyncSender<Answer>) -> Worker {
        let now = Instant::now();
        Worker { uprobes, root, answers, files: BTreeMap::new(), binaries: Vec::new(), checked: now, audited: now }
    }

    /// Until it is told to stop, or nobody is left to tell. All is detached then.
    pub(super) fn run(mut self, told: &Receiver<Told>) {
        loop {
            match told.recv_timeout(CHECK) {
                Ok(Told::Look { key, named }) => self.look(key, named),
                Ok(Told::Forked { parent, child }) => self.forked(parent, child),
                Ok(Told::Ended(key)) => self.ended(key),
                Ok(Told::Mark) => self.answer(Answer::Marked),
                Ok(Told::Stop) => {
                    self.binaries.clear();
                    return self.answer(Answer::Marked);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let passed = self.checked.elapsed();
            if passed >= CHECK {
                self.checked = Instant::now();
                self.check(passed);
            }
            if self.audited.elapsed() >= AUDIT {
                self.audited = Instant::now();
                self.audit();
            }
        }
    }

    fn answer(&self, answer: Answer) {
        // Full only when nobody reads any more.
        let _ = self.answers.try_send(answer);
    }

    fn say(&self, process: ProcKey, exe: &str, state: NginxProbesState) {
        let fact = NginxProbesFact { at: clock::boot_ns(), process, exe: exe.to_owned(), state };
        self.answer(Answer::Fact(fact));
    }

    fn lives(&self, key: ProcKey) -> bool {
        procfs::start_ticks(&self.root, key.tgid) == Some(key.start_ticks)
    }

    fn look(&mut self, key: ProcKey, named: bool) {
        if self.binaries.iter().any(|b| b.users.contains_key(&key)) {
            return;
        }
        // The program first: it is of the process whose start is read after it.
        let program = Program::of(&self.root, key.tgid);
        if !self.lives(key) {
            return self.answer(Answer::Forget(key));
        }
        let program = match program {
            Ok(program) => program,
            Err(e) => return self.not_this_one(key, "", named.then(|| NoPlaces::Unreadable(e.to_string()))),
        };
        let places = match self.places(&program, named) {
            Ok(places) => places,
            Err(why) => return self.not_this_one(key, &program.exe, named.then_some(why)),
        };
        let user = User { mount: program.mount, found: true };
        if let Some(b) = self.same(&program, key, &places) {
            b.users.insert(key, user);
            let state = match &b.resting {
                Some((_, why)) => NginxProbesState::Detached { why: why.clone() },
                None => NginxProbesState::Attached,
            };
            return self.say(key, &program.exe, state);
        }
        self.add(&program, key, user, places);
    }

    fn not_this_one(&self, key: ProcKey, exe: &str, why: Option<NoPlaces>) {
        if let Some(why) = why {
            self.say(key, exe, NginxProbesState::Failed { why: why.to_string() });
        }
        self.answer(Answer::Forget(key));
    }

    fn places(&mut self, program: &Program, named: bool) -> Places {
        if let Some(known) = self.files.get(&program.id) {
            return known.clone();
        }
        let places = program.places(functions(), if named { NAMED_MAX } else { OTHER_MAX });
        if self.files.len() >= FILES {
            self.files.pop_first();
        }
        self.files.insert(program.id, places.clone());
        places
    }

    /// The file of the kernel's that this process runs, when it is known already. Of two that look the same the kernel says
    /// which it is: our breakpoint is in the memory of the process, or is not.
    fn same(&mut self, program: &Program, key: ProcKey, places: &[Place; 2]) -> Option<&mut Binary> {
        let root = &self.root;
        self.binaries.iter_mut().find(|b| {
            b.id == program.id
                && (b.attached.is_none()
                    || program::has_breakpoint(root, key.tgid, &program.exe, &places[0]) == Some(true))
        })
    }

    fn add(&mut self, program: &Program, key: ProcKey, user: User, places: [Place; 2]) {
        let used: Vec<u32> = self.binaries.iter().map(|b| b.slot).collect();
        let Some(slot) = (0..NGINX_SLOTS).find(|slot| !used.contains(slot)) else {
            let why = format!("{NGINX_SLOTS} different programs are probed already");
            self.say(key, &program.exe, NginxProbesState::Failed { why });
            return self.answer(Answer::Forget(key));
        };
        match attach(&mut self.uprobes, &self.root, program, key, &places, slot) {
            Ok((attached, through)) => {
                let budget = Budget::new(self.uprobes.hits(slot));
                self.binaries.push(Binary {
                    id: program.id,
                    exe: program.exe.clone(),
                    places,
                    slot,
                    attached: Some(attached),
                    through,
                    users: BTreeMap::from([(key, user)]),
                    budget,
                    resting: None,
                });
                self.say(key, &program.exe, NginxProbesState::Attached);
            }
            Err(why) => {
                if self.lives(key) {
                    self.say(key, &program.exe, NginxProbesState::Failed { why });
                }
                self.answer(Answer::Forget(key));
            }
        }
    }

    fn forked(&mut self, parent: ProcKey, child: ProcKey) {
        let Some(b) = self.binaries.iter_mut().find(|b| b.users.contains_key(&parent)) else {
            return self.answer(Answer::Forget(child));
        };
        if let Some(mount) = b.users.get(&parent).map(|p| p.mount) {
            b.users.entry(child).or_insert(User { mount, found: false });
        }
    }

    fn ended(&mut self, key: ProcKey) {
        for b in &mut self.binaries {
            b.users.remove(&key);
        }
        self.tidy();
    }

    /// Detaches what nobody runs any more, and what keeps the mount of a container busy that is gone.
    fn tidy(&mut self) {
        self.binaries.retain(|b| !b.users.is_empty());
        for n in 0..self.binaries.len() {
            let b = &self.binaries[n];
            let gone = |mount: u64| b.users.values().all(|u| u.mount != mount);
            if b.attached.is_some() && b.through.is_some_and(gone) {
                self.again(n);
            }
        }
    }

    /// Attaches a binary through one of those that run it now.
    fn again(&mut self, n: usize) {
        let b = &mut self.binaries[n];
        // First: both at once would tell everything twice.
        b.attached = None;
        b.through = None;
        let mut why = "nobody runs it any more".to_owned();
        for key in b.users.keys().copied() {
            match Program::of(&self.root, key.tgid).map_err(|e| e.to_string()).and_then(|program| {
                if program.id != b.id {
                    return Err("it runs another program".into());
                }
                attach(&mut self.uprobes, &self.root, &program, key, &b.places, b.slot)
            }) {
                Ok((attached, through)) => {
                    b.attached = Some(attached);
                    b.through = through;
                    b.budget = Budget::new(self.uprobes.hits(b.slot));
                    return;
                }
                Err(e) => why = e,
            }
        }
        let b = self.binaries.swap_remove(n);
        for (key, _) in b.users.iter().filter(|(_, u)| u.found) {
            self.say(*key, &b.exe, NginxProbesState::Failed { why: why.clone() });
        }
    }

    /// Takes off what runs too often, and puts back what has rested.
    fn check(&mut self, passed: Duration) {
        for n in (0..self.binaries.len()).rev() {
            let b = &mut self.binaries[n];
            let (id, state) = match &b.resting {
                None => {
                    let Some(rate) = b.budget.overdrawn(self.uprobes.hits(b.slot), passed) else { continue };
                    let why = format!(
                        "they ran {rate} times a second, too often (error_log debug, or a flood of redirects or errors); \
                         tried again in {} s",
                        REST.as_secs()
                    );
                    b.attached = None;
                    b.through = None;
                    b.resting = Some((Instant::now(), why.clone()));
                    (b.id, NginxProbesState::Detached { why })
                }
                Some((since, _)) if since.elapsed() >= REST => {
                    b.resting = None;
                    let id = b.id;
                    self.again(n);
                    (id, NginxProbesState::Attached)
                }
                Some(_) => continue,
            };
            // Gone when it could not be attached again, which was said.
            let Some(b) = self.binaries.get(n).filter(|b| b.id == id) else { continue };
            for (key, _) in b.users.iter().filter(|(_, u)| u.found) {
                self.say(*key, &b.exe, state.clone());
            }
        }
    }

    /// An end that was not told (its record was lost) ends here.
    fn audit(&mut self) {
        let root = self.root.clone();
        let lives = |key: &ProcKey| procfs::start_ticks(&root, key.tgid) == Some(key.start_ticks);
        let mut gone = Vec::new();
        for b in &mut self.binaries {
            gone.extend(b.users.keys().filter(|key| !lives(key)).copied());
            b.users.retain(|key, _| !gone.contains(key));
        }
        gone.into_iter().for_each(|key| self.answer(Answer::Forget(key)));
        self.tidy();
    }
}

/// Attaches to the program of a process, below its container's overlay where that can be reached. Gives the mount that is
/// kept busy, if it is a container's. An attachment that the process does not have in its memory is to another file, and is
/// taken off again.
fn attach(
    uprobes: &mut Uprobes,
    root: &std::path::Path,
    program: &Program,
    key: ProcKey,
    places: &[Place; 2],
    slot: u32,
) -> Result<(Attached, Option<u64>), String> {
    let offsets = places.map(|p| p.offset);
    let taken = || program::has_breakpoint(root, key.tgid, &program.exe, &places[0]) == Some(true);
    if let Some(below) = program.below_overlay(root, key.tgid)
        && let Ok(attached) = uprobes.attach(&program::path_of(below.as_fd()), offsets, slot)
        && taken()
    {
        return Ok((attached, None));
    }
    let attached = uprobes.attach(&program::path_of(program.fd()), offsets, slot).map_err(|e| reason(&e))?;
    match taken() {
        true => Ok((attached, Some(program.mount))),
        false => Err("the kernel did not take them for the program of this process".into()),
    }
}

/// With what is behind it.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}
