//! supervisord's configuration: what it stops, in which order, and how.

use super::command::{self, Server, Surroundings};
use super::files::{File, Files, beside};
use super::ini::{Entry, Flavour, Line, lines};
use super::shell::{self, Sh};
use crate::model::place::{At, Place, Trouble};
use crate::sinks::names::signal_number;

/// supervisor/options.py
const PRIORITY: i64 = 999;
const STOPWAITSECS: u64 = 10;
const SIGTERM: u32 = 15;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub programs: Vec<Program>,
    /// Includes that were not at hand.
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub name: String,
    pub at: Place,
    pub command: String,
    /// Of the group that it is stopped with; a program without a group is one of its own.
    pub group: String,
    pub group_priority: At<i64>,
    pub stop_signal: At<u32>,
    /// Seconds until SIGKILL.
    pub stop_wait: At<u64>,
    /// Then its whole process group is killed, not its first process alone.
    pub kill_as_group: bool,
}

impl Program {
    /// The servers that its command starts.
    pub fn servers(&self) -> Vec<Server> {
        // supervisord splits its commands as a shell does.
        let words = shell::commands(&self.command).into_iter().next().map(|first| first.words).unwrap_or_default();
        let around = Surroundings { sh: Sh::Unknown, scripts: Vec::new(), official: false };
        command::start(&words, &around).servers
    }

    /// `supervisord` stops the last in this order first, and waits for it (`ordered_stop_groups_phase_1()`).
    fn order(&self) -> (i64, &str) {
        (self.group_priority.value, &self.group)
    }

    /// Is this one told, and gone, before `other` is told?
    pub fn stops_before(&self, other: &Program) -> bool {
        self.order() > other.order()
    }

    /// All programs of a group are told at once.
    pub fn stops_with(&self, other: &Program) -> bool {
        self.group == other.group
    }
}

impl Facts {
    /// The program that runs a server.
    pub fn program(&self, server: Server) -> Option<&Program> {
        self.programs.iter().find(|program| program.servers().contains(&server))
    }

    pub fn read(file: &File, files: &dyn Files) -> Result<Facts, Trouble> {
        let mut reader = Reader::default();
        let includes = reader.file(file)?;
        for (pattern, _) in includes {
            // Names are relative to the main file; included files do not include others.
            match files.matching(&beside(&file.name, &pattern)) {
                Ok(found) => {
                    for file in &found {
                        reader.file(file)?;
                    }
                }
                Err(_) => reader.facts.missing.push(pattern),
            }
        }
        reader.join_groups();
        Ok(reader.facts)
    }
}

#[derive(Default)]
struct Reader {
    facts: Facts,
    groups: Vec<Group>,
}

struct Group {
    name: String,
    programs: Vec<String>,
    priority: At<i64>,
}

impl Reader {
    /// The patterns that it includes.
    fn file(&mut self, file: &File) -> Result<Vec<(String, Place)>, Trouble> {
        let mut includes = Vec::new();
        for line in lines(&file.text, Flavour::Python) {
            match line {
                Line::Section { name, line } => self.section(&name, Place::line(&file.name, line)),
                Line::Entry(entry) => {
                    let at = Place::line(&file.name, entry.line);
                    if entry.section == "include" && entry.key == "files" {
                        let here = file.name.rsplit_once('/').map_or(".", |(dir, _)| dir);
                        let value = entry.value.replace("%(here)s", here);
                        includes.extend(value.split_whitespace().map(|pattern| (pattern.to_owned(), at.clone())));
                    } else {
                        self.entry(&entry, at)?;
                    }
                }
                Line::Unknown { line } => {
                    let at = Place::line(&file.name, line);
                    return Err(Trouble::new(at, "neither a [section] nor \"key = value\""));
                }
            }
        }
        Ok(includes)
    }

    fn section(&mut self, section: &str, at: Place) {
        let Some((kind, name)) = section.split_once(':') else { return };
        let name = name.trim().to_owned();
        match kind {
            "program" | "fcgi-program" => self.facts.programs.push(Program {
                group: name.clone(),
                name,
                at,
                command: String::new(),
                group_priority: At::default_of(PRIORITY),
                stop_signal: At::default_of(SIGTERM),
                stop_wait: At::default_of(STOPWAITSECS),
                kill_as_group: false,
            }),
            "group" => self.groups.push(Group { name, programs: Vec::new(), priority: At::default_of(PRIORITY) }),
            _ => {}
        }
    }

    fn entry(&mut self, entry: &Entry, at: Place) -> Result<(), Trouble> {
        let value = entry.value.trim();
        let Some((kind, name)) = entry.section.split_once(':') else { return Ok(()) };
        if value.contains("%(") && entry.key != "command" {
            // Filled in from the environment: not known here.
            self.facts.missing.push(format!("{} of {at}", entry.key));
            return Ok(());
        }
        let wrong = |what: &str| Trouble::new(at.clone(), format!("{} {value:?} is not {what}", entry.key));
        match kind {
            "program" | "fcgi-program" => {
                let Some(program) = self.facts.programs.iter_mut().rfind(|p| p.name == name.trim()) else {
                    return Ok(());
                };
                match entry.key.as_str() {
                    "command" => value.clone_into(&mut program.command),
                    "priority" => {
                        program.group_priority = At::new(value.parse().map_err(|_| wrong("a number"))?, at.clone());
                    }
                    "stopsignal" => {
                        let number = signal_number(value).ok_or_else(|| wrong("a signal"))?;
                        program.stop_signal = At::new(number, at.clone());
                    }
                    "stopwaitsecs" => {
                        program.stop_wait = At::new(value.parse().map_err(|_| wrong("a number"))?, at.clone());
                    }
                    // As supervisor/datatypes.py reads it.
                    "killasgroup" => {
                        program.kill_as_group = ["true", "yes", "on", "1"].contains(&value.to_lowercase().as_str());
                    }
                    _ => {}
                }
            }
            "group" => {
                let Some(group) = self.groups.iter_mut().rfind(|g| g.name == name.trim()) else { return Ok(()) };
                match entry.key.as_str() {
                    "programs" => group.programs = value.split(',').map(|p| p.trim().to_owned()).collect(),
                    "priority" => group.priority = At::new(value.parse().map_err(|_| wrong("a number"))?, at.clone()),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn join_groups(&mut self) {
        for program in &mut self.facts.programs {
            if let Some(group) = self.groups.iter().find(|group| group.programs.contains(&program.name)) {
                program.group.clone_from(&group.name);
                program.group_priority = group.priority.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::NoFiles;
    use super::*;
    use proptest::prelude::*;

    fn facts(text: &str) -> Facts {
        Facts::read(&File::new("s.conf", text), &NoFiles).unwrap()
    }

    fn named<'a>(facts: &'a Facts, name: &str) -> &'a Program {
        facts.programs.iter().find(|p| p.name == name).unwrap()
    }

    const TWO: &str = "[supervisord]\nnodaemon=true\n[program:nginx]\ncommand=nginx -g 'daemon off;' ; why\nstopsignal=QUIT\n\
        [program:php-fpm]\ncommand=php-fpm -F\nstopwaitsecs = 30\n";

    #[test]
    fn names_decide_without_priorities() {
        let f = facts(TWO);
        let (nginx, fpm) = (named(&f, "nginx"), named(&f, "php-fpm"));
        assert!(fpm.stops_before(nginx) && !nginx.stops_before(fpm) && !fpm.stops_with(nginx));
        assert_eq!((nginx.stop_signal.value, nginx.stop_wait.value), (3, 10));
        assert_eq!((fpm.stop_signal.value, fpm.stop_wait.value), (15, 30));
        assert_eq!(nginx.command, "nginx -g 'daemon off;'");
        assert_eq!(nginx.stop_signal.at.as_ref().unwrap().to_string(), "s.conf:5");
        assert_eq!(fpm.stop_signal.at, None);
    }

    #[test]
    fn priorities_and_groups() {
        let f = facts(&format!("{TWO}priority=10\n[program:cron]\ncommand=cron\n"));
        assert!(named(&f, "nginx").stops_before(named(&f, "php-fpm")));
        let f = facts(&format!("{TWO}[group:web]\nprograms=nginx, php-fpm\npriority=5\n"));
        assert!(named(&f, "nginx").stops_with(named(&f, "php-fpm")));
        assert_eq!(named(&f, "nginx").group_priority.value, 5);
    }

    #[test]
    fn errors_have_a_line() {
        for (text, wanted) in [
            ("[program:x]\nstopsignal=HALT\n", "s:2: stopsignal \"HALT\" is not a signal"),
            ("[program:x]\n\npriority=first\n", "s:3: priority \"first\" is not a number"),
            ("[program:x]\ncommand\n", "s:2: neither a [section] nor \"key = value\""),
        ] {
            assert_eq!(Facts::read(&File::new("s", text), &NoFiles).unwrap_err().to_string(), wanted);
        }
        let f = facts("[include]\nfiles = conf.d/*.conf a\n");
        assert_eq!(f.missing, ["conf.d/*.conf", "a"]);
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC*", odd in "[\\[\\]=:;\n prog:amystilnw0-9]{0,80}") {
            for text in [text, odd] {
                let _ = Facts::read(&File::new("f", &text), &NoFiles);
            }
        }
    }
}
