//! Puts what was given together: which image, which configuration, which running container is which container of the spec.

use super::command::{self, Pid1, Server, Surroundings};
use super::dockerfile::{self, Command, Declared};
use super::prestop;
use super::setup::{Container, Hook, Setup, StopSignal};
use super::shell::Sh;
use super::{fpm, image, known, nginx, supervisor};
use crate::model::place::{At, Place};
use crate::sources::spec::{self, Handler, Workload};

const SIGTERM: u32 = 15;

/// Everything that the user gave, read.
#[derive(Default)]
pub struct Given {
    /// With the container that it was given for.
    pub nginx: Vec<(Option<String>, nginx::Facts)>,
    pub fpm: Option<fpm::Facts>,
    pub supervisor: Option<supervisor::Facts>,
    pub images: Vec<Image>,
    pub workloads: Vec<Workload>,
    pub running: Vec<Running>,
    /// Of what is not in a spec: seconds.
    pub grace: Option<u64>,
    pub longest: Option<u64>,
    pub edge_idle: u64,
}

/// What an image declares, wherever it was read.
#[derive(Clone, Debug)]
pub struct Image {
    /// The container that the user gave it for.
    pub container: Option<String>,
    pub stop_signal: Option<StopSignal>,
    pub entrypoint: Option<Vec<String>>,
    /// Given to the entrypoint, or run.
    pub cmd: Option<Vec<String>>,
    /// Where to look for what starts.
    pub at: Option<Place>,
    /// Why nothing is known of the start.
    pub unknown: Option<String>,
    pub around: Surroundings,
}

/// A container that runs here.
pub struct Running {
    /// Its id, or the pid that was given.
    pub name: String,
    pub servers: Vec<Server>,
    pub pid1: Pid1,
    pub sh: Sh,
    /// Is this program in the container?
    pub has: Box<dyn Fn(&str) -> bool>,
    pub nginx: Option<nginx::Facts>,
    pub fpm: Option<fpm::Facts>,
    pub supervisor: Option<supervisor::Facts>,
}

/// Given for something that is not there, or could be for several.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unmatched(pub String);

impl Image {
    /// `scripts`: files of the build context that it copies, by their path in the image.
    pub fn of_dockerfile(facts: &dockerfile::Facts, scripts: Vec<(String, String)>) -> Image {
        let base = facts.base.as_ref();
        let known = base.and_then(|base| known::image(&base.value));
        let from = base.and_then(|base| base.at.clone());
        let stop_signal = match facts.stop_signal.as_ref().map(|s| (&s.value, s.at.clone())) {
            Some((Declared::Signal(number), at)) => Some(StopSignal { number: *number, at, declared: true }),
            Some((Declared::Variable(_), _)) => None,
            None => known.as_ref().and_then(|known| known.stop_signal).map(|number| {
                // A plain distribution declares none: that is the runtime's default.
                let declared = known.as_ref().is_some_and(|known| known.entrypoint.is_some());
                StopSignal { number, at: from.clone(), declared }
            }),
        };
        let shell = facts.shell.clone().unwrap_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec());
        let words = |command: &Command| match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => [shell.clone(), vec![text.clone()]].concat(),
        };
        let own = facts.entrypoint.as_ref();
        let of_base = |pick: fn(&known::Known) -> Option<Command>| known.as_ref().and_then(pick);
        let entrypoint = own.map(|e| e.value.clone()).or_else(|| of_base(|k| k.entrypoint.clone()));
        let mut cmd = facts.cmd.as_ref().map(|c| c.value.clone());
        if cmd.is_none() && own.is_none() {
            cmd = of_base(|k| k.cmd.clone());
        }
        if matches!(entrypoint, Some(Command::Shell(_))) {
            cmd = None; // the shell form takes no arguments
        }
        let unknown = match (&known, own.or(facts.cmd.as_ref())) {
            (None, None) => base.map(|base| format!("what the image {} starts is not known", base.value)),
            // Whatever the entrypoint of an unknown image does with its arguments.
            (None, Some(_)) if own.is_none() => {
                base.map(|b| format!("the entrypoint of the image {} is not known", b.value))
            }
            _ => None,
        };
        let sh = known.as_ref().map_or(Sh::Unknown, |known| known.sh);
        let official = known.as_ref().is_some_and(|known| known.entrypoint.is_some());
        Image {
            container: None,
            stop_signal,
            entrypoint: entrypoint.as_ref().map(words),
            cmd: cmd.as_ref().map(words),
            at: own.and_then(|e| e.at.clone()).or_else(|| facts.cmd.as_ref().and_then(|c| c.at.clone())).or(from),
            unknown,
            around: Surroundings { sh, scripts, official },
        }
    }

    pub fn of_config(facts: image::Facts) -> Image {
        let at = facts.at;
        let stop_signal = match facts.stop_signal {
            Some(signal) => StopSignal { number: signal.value, at: signal.at, declared: true },
            None => StopSignal { number: SIGTERM, at: at.clone(), declared: false },
        };
        Image {
            container: None,
            stop_signal: Some(stop_signal),
            entrypoint: facts.entrypoint,
            cmd: facts.cmd,
            at,
            unknown: None,
            around: Surroundings { sh: Sh::Unknown, scripts: Vec::new(), official: facts.official },
        }
    }

    /// An image that only its name is known of, where that is enough.
    fn of_reference(reference: &str, at: &Place) -> Option<Image> {
        let known = known::image(reference)?;
        let words = |command: Option<Command>| match command {
            Some(Command::Exec(words)) => Some(words),
            _ => None,
        };
        let official = known.entrypoint.is_some();
        Some(Image {
            container: None,
            stop_signal: known.stop_signal.map(|number| StopSignal {
                number,
                at: Some(at.clone()),
                declared: official,
            }),
            entrypoint: words(known.entrypoint),
            cmd: words(known.cmd),
            at: Some(at.clone()),
            unknown: None,
            around: Surroundings { sh: known.sh, scripts: Vec::new(), official },
        })
    }

    /// What runs, when a spec says so much about it.
    fn start(&self, command: Option<&Vec<String>>, args: Option<&Vec<String>>) -> command::Start {
        let none = Vec::new();
        let argv = match (command, args) {
            (Some(command), args) => [&command[..], args.unwrap_or(&none)].concat(),
            (None, args) => {
                let args = args.or(self.cmd.as_ref()).unwrap_or(&none);
                [&self.entrypoint.as_ref().unwrap_or(&none)[..], args].concat()
            }
        };
        let mut start = command::start(&argv, &self.around);
        if let (Some(why), None) = (&self.unknown, command) {
            start.pid1 = Pid1::Unknown { why: why.clone() };
        }
        start
    }
}

/// A container on its way.
#[derive(Default)]
struct Draft<'a> {
    name: String,
    servers: Vec<Server>,
    spec: Option<&'a spec::Container>,
    image: Option<Image>,
    running: Option<&'a Running>,
    /// Only a configuration file speaks of it.
    bare: bool,
}

/// One setup for each pod that serves; without a spec there is one.
pub fn assemble(given: &Given) -> Result<Vec<Setup>, Unmatched> {
    if given.workloads.is_empty() {
        return Ok(vec![setup(given, None)?]);
    }
    let mut all = Vec::new();
    let mut unmatched = None;
    for workload in &given.workloads {
        match setup(given, Some(workload)) {
            Ok(setup) => all.push(setup),
            Err(e) => unmatched = Some(e),
        }
    }
    // In a file of several workloads an image may be for one of them only.
    match unmatched {
        Some(e) if all.is_empty() => return Err(e),
        _ => {}
    }
    if all.iter().any(|setup| !setup.containers.is_empty()) {
        all.retain(|setup| !setup.containers.is_empty());
    } else {
        all.truncate(1);
    }
    Ok(all)
}

fn setup(given: &Given, workload: Option<&Workload>) -> Result<Setup, Unmatched> {
    let mut drafts = drafts(given, workload);
    match_images(given, workload.is_some(), &mut drafts)?;
    match_running(given, workload.is_some(), &mut drafts)?;
    for draft in &mut drafts {
        draft.servers.extend(start(draft).servers);
        draft.servers.extend(draft.running.iter().flat_map(|running| running.servers.iter().copied()));
    }
    assign_servers(given, &mut drafts);
    let mut containers: Vec<Container> = drafts.iter().map(|draft| container(given, draft)).collect();
    containers.retain(|container| !container.servers.is_empty());
    let first = |pick: fn(&Running) -> bool| given.running.iter().find(|running| pick(running));
    let name = workload.map(|w| format!("{}/{}", w.kind, w.name.as_deref().unwrap_or("(no name)")));
    let grace = match workload {
        Some(workload) => Some(workload.grace.clone()),
        None => given.grace.map(At::default_of),
    };
    assign_nginx(given, &mut containers)?;
    let fpm = given.fpm.clone().or_else(|| first(|r| r.fpm.is_some()).and_then(|r| r.fpm.clone()));
    // php-fpm itself ends what takes longer.
    let longest = given.longest.map(At::default_of).or_else(|| fpm.as_ref().and_then(fpm::Facts::longest_allowed));
    Ok(Setup {
        workload: name,
        containers,
        grace,
        has_spec: workload.is_some(),
        fpm,
        longest,
        edge_idle: given.edge_idle,
    })
}

fn drafts<'a>(given: &'a Given, workload: Option<&'a Workload>) -> Vec<Draft<'a>> {
    if let Some(workload) = workload {
        let draft = |c: &'a spec::Container| Draft { name: c.name.clone(), spec: Some(c), ..Draft::default() };
        return workload.containers.iter().map(draft).collect();
    }
    if !given.running.is_empty() {
        let draft = |r: &'a Running| Draft { name: r.name.clone(), running: Some(r), ..Draft::default() };
        return given.running.iter().map(draft).collect();
    }
    if !given.images.is_empty() {
        let name = |image: &Image| image.container.clone().unwrap_or_default();
        return given
            .images
            .iter()
            .map(|i| Draft { name: name(i), image: Some(i.clone()), ..Draft::default() })
            .collect();
    }
    let bare = |servers: &[Server]| Draft { servers: servers.to_vec(), bare: true, ..Draft::default() };
    if given.supervisor.is_some() {
        return vec![bare(&[])];
    }
    let nginx =
        given.nginx.iter().map(|(name, _)| Draft { name: name.clone().unwrap_or_default(), ..bare(&[Server::Nginx]) });
    let fpm = given.fpm.as_ref().map(|_| bare(&[Server::PhpFpm]));
    nginx.into_iter().chain(fpm).collect()
}

/// Images that were given go to the containers that they are for.
fn match_images(given: &Given, spec: bool, drafts: &mut [Draft]) -> Result<(), Unmatched> {
    if spec || !given.running.is_empty() {
        for image in &given.images {
            let servers = image.start(None, None).servers;
            let at = match &image.container {
                Some(name) => drafts.iter().position(|draft| draft.name == *name),
                None => the_one(drafts, |draft| draft.image.is_none(), &servers),
            };
            match at {
                Some(at) => drafts[at].image = Some(image.clone()),
                None => {
                    let file = image.at.as_ref().map_or_else(String::new, |at| at.file.clone());
                    let what = image.container.clone().unwrap_or_else(|| "the spec's containers".to_owned());
                    return Err(Unmatched(format!(
                        "{file}: which container is it of? NAME={file} says so (looked for {what})"
                    )));
                }
            }
        }
    }
    for draft in drafts.iter_mut().filter(|draft| draft.image.is_none()) {
        let Some(spec) = draft.spec else { continue };
        draft.image = spec.image.as_deref().and_then(|reference| Image::of_reference(reference, &spec.at));
    }
    Ok(())
}

fn match_running<'a>(given: &'a Given, spec: bool, drafts: &mut [Draft<'a>]) -> Result<(), Unmatched> {
    if !spec {
        return Ok(());
    }
    for running in given.running.iter().filter(|running| !running.servers.is_empty()) {
        let listens = running.nginx.as_ref().map(|conf| &conf.listens[..]).unwrap_or_default();
        let by_port = |draft: &Draft| {
            let ports = draft.spec.map(|spec| &spec.ports[..]).unwrap_or_default();
            draft.running.is_none() && ports.iter().any(|port| listens.contains(port))
        };
        let mut with_port = (0..drafts.len()).filter(|at| by_port(&drafts[*at]));
        let at = match (with_port.next(), with_port.next()) {
            (Some(at), None) => Some(at),
            _ => the_one(drafts, |draft| draft.running.is_none(), &running.servers),
        };
        match at {
            Some(at) => drafts[at].running = Some(running),
            None => {
                let what = format!(
                    "the running container {} is none of the spec's containers, or could be several",
                    running.name
                );
                return Err(Unmatched(what));
            }
        }
    }
    Ok(())
}

/// The configurations of nginx that were given go to the containers that they are for: one without a name to the first that
/// runs an nginx. What was given goes before what was found.
fn assign_nginx(given: &Given, containers: &mut [Container]) -> Result<(), Unmatched> {
    let mut serving: Vec<&mut Container> = containers.iter_mut().filter(|c| c.serves(Server::Nginx)).collect();
    for (name, conf) in given.nginx.iter().filter(|(name, _)| name.is_some()) {
        match serving.iter_mut().find(|c| Some(&c.name) == name.as_ref()) {
            Some(container) => container.nginx = Some(conf.clone()),
            None => {
                let name = name.as_deref().unwrap_or_default();
                return Err(Unmatched(format!("{name}: no container of that name runs nginx")));
            }
        }
    }
    let named = |c: &Container| given.nginx.iter().any(|(name, _)| name.as_ref() == Some(&c.name));
    if let Some((_, conf)) = given.nginx.iter().find(|(name, _)| name.is_none())
        && let Some(first) = serving.into_iter().find(|c| !named(c))
    {
        first.nginx = Some(conf.clone());
    }
    Ok(())
}

/// The only container, or the only one that seems to run these servers, among the free ones.
fn the_one(drafts: &[Draft], free: impl Fn(&Draft) -> bool, servers: &[Server]) -> Option<usize> {
    let free: Vec<usize> = (0..drafts.len()).filter(|at| free(&drafts[*at])).collect();
    if let [only] = free[..]
        && drafts.len() == 1
    {
        return Some(only);
    }
    let seems: Vec<usize> =
        free.iter().copied().filter(|at| servers.iter().any(|server| hints(&drafts[*at]).contains(server))).collect();
    let silent: Vec<usize> = free.iter().copied().filter(|at| hints(&drafts[*at]).is_empty()).collect();
    match (&seems[..], &silent[..]) {
        ([only], _) | ([], [only]) => Some(*only),
        _ => None,
    }
}

/// What a container seems to run, from its command, its image's name or its own.
fn hints(draft: &Draft) -> Vec<Server> {
    if let Some(running) = draft.running {
        return running.servers.clone();
    }
    let started = start(draft).servers;
    let Some(spec) = draft.spec.filter(|_| started.is_empty()) else { return started };
    let of_name = |name: &str| {
        let ends = |what: &str| name == what || name.ends_with(&format!("-{what}"));
        let nginx = ends("nginx") || ends("nginx-unprivileged") || ends("openresty");
        let fpm = ends("php") || ends("fpm");
        [nginx.then_some(Server::Nginx), fpm.then_some(Server::PhpFpm)].into_iter().flatten().collect::<Vec<Server>>()
    };
    let image = spec.image.as_deref().unwrap_or_default();
    let path = image.split(['@', ':']).next().unwrap_or_default();
    let path = path.rsplit('/').next().unwrap_or_default();
    let by_image = of_name(path);
    if by_image.is_empty() { of_name(&spec.name) } else { by_image }
}

fn start(draft: &Draft) -> command::Start {
    let spec = draft.spec;
    let words = |list: Option<&At<Vec<String>>>| list.map(|list| list.value.clone());
    let command = words(spec.and_then(|s| s.command.as_ref()));
    let args = words(spec.and_then(|s| s.args.as_ref()));
    match &draft.image {
        Some(image) => image.start(command.as_ref(), args.as_ref()),
        None => match command {
            Some(command) => {
                let around = Surroundings { sh: Sh::Unknown, scripts: Vec::new(), official: false };
                command::start(&[command, args.unwrap_or_default()].concat(), &around)
            }
            None => {
                let image = spec.and_then(|s| s.image.as_deref()).map_or_else(String::new, |i| format!(" {i}"));
                let why = format!("what the image{image} starts is not known (--dockerfile, --image)");
                command::Start { pid1: Pid1::Unknown { why }, servers: Vec::new() }
            }
        },
    }
}

/// Containers that nothing else tells of get their server from the names, then from the configurations that were given.
fn assign_servers(given: &Given, drafts: &mut [Draft]) {
    for draft in drafts.iter_mut().filter(|draft| draft.servers.is_empty()) {
        draft.servers = hints(draft);
    }
    let alone = drafts.len() == 1;
    if let Some(conf) = &given.supervisor {
        let at = drafts.iter().position(|draft| start(draft).pid1 == Pid1::Supervisor).or(alone.then_some(0));
        if let Some(at) = at {
            drafts[at].servers.extend(conf.programs.iter().flat_map(supervisor::Program::servers));
        }
    }
    for running in &given.running {
        let Some(conf) = &running.supervisor else { continue };
        if let Some(draft) = drafts.iter_mut().find(|d| d.running.is_some_and(|r| std::ptr::eq(r, running))) {
            draft.servers.extend(conf.programs.iter().flat_map(supervisor::Program::servers));
        }
    }
    for (server, has) in [(Server::Nginx, !given.nginx.is_empty()), (Server::PhpFpm, given.fpm.is_some())] {
        if !has || drafts.iter().any(|draft| draft.servers.contains(&server)) {
            continue;
        }
        let silent: Vec<usize> = (0..drafts.len()).filter(|at| drafts[*at].servers.is_empty()).collect();
        match silent[..] {
            [only] => drafts[only].servers.push(server),
            // One container for both.
            _ if alone => drafts[0].servers.push(server),
            _ => {}
        }
    }
    for draft in drafts {
        draft.servers.sort_unstable();
        draft.servers.dedup();
    }
}

fn container(given: &Given, draft: &Draft) -> Container {
    let spec = draft.spec;
    let declared = spec.and_then(|s| s.stop_signal.as_ref());
    let stop_signal = match declared {
        Some(signal) => Some(StopSignal { number: signal.value, at: signal.at.clone(), declared: true }),
        None => draft.image.as_ref().and_then(|image| image.stop_signal.clone()),
    };
    let started = start(draft);
    let at = spec
        .and_then(|s| s.command.as_ref().or(s.args.as_ref()))
        .and_then(|words| words.at.clone())
        .or_else(|| draft.image.as_ref().and_then(|image| image.at.clone()));
    let pid1 = match draft.running {
        Some(running) => At { value: running.pid1.clone(), at: None },
        None if given.supervisor.is_some() && draft.bare => At::default_of(Pid1::Supervisor),
        None => At { value: bare(draft, started.pid1), at },
    };
    let supervisor = (pid1.value == Pid1::Supervisor)
        .then(|| given.supervisor.clone().or_else(|| draft.running.and_then(|r| r.supervisor.clone())))
        .flatten();
    let sh =
        draft.running.map_or_else(|| draft.image.as_ref().map_or(Sh::Unknown, |i| i.around.sh), |running| running.sh);
    let place = prestop::Place { sh, servers: &draft.servers, has: draft.running.map(|running| running.has.as_ref()) };
    let hook = match spec {
        None => Hook::Unknown,
        Some(spec) => match &spec.pre_stop {
            None => Hook::None,
            Some(handler) => {
                let effect = match &handler.value {
                    Handler::Exec(argv) => prestop::effect(argv, &place),
                    Handler::Sleep(seconds) => prestop::Effect::sleep(*seconds),
                    Handler::Http => prestop::Effect {
                        unknown: vec!["httpGet or tcpSocket".to_owned()],
                        ..prestop::Effect::default()
                    },
                };
                Hook::Does(At { value: effect, at: handler.at.clone() })
            }
        },
    };
    Container {
        name: draft.name.clone(),
        at: spec.map(|spec| spec.at.clone()),
        servers: draft.servers.clone(),
        stop_signal,
        pid1,
        hook,
        sidecar: spec.is_some_and(|s| s.sidecar),
        supervisor,
        nginx: draft.running.and_then(|running| running.nginx.clone()),
        ports: spec.map(|spec| spec.ports.clone()).unwrap_or_default(),
    }
}

/// A configuration alone does not tell what PID 1 is.
fn bare(draft: &Draft, pid1: Pid1) -> Pid1 {
    match draft.bare {
        true => Pid1::Unknown { why: "no image and no spec were given (--dockerfile, --image, --spec)".to_owned() },
        false => pid1,
    }
}
