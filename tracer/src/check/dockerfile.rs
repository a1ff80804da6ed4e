//! Dockerfiles: what the last stage declares about starting and stopping.

use crate::model::place::{At, Place, Trouble};
use crate::sinks::names::signal_number;
use std::collections::BTreeMap;

/// How ENTRYPOINT and CMD are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `["a", "b"]`
    Exec(Vec<String>),
    /// `a b`: run by a shell.
    Shell(String),
}

/// Of the last stage, with what it inherits from earlier ones of the same file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The image that it is built from in the end.
    pub base: Option<At<String>>,
    pub stop_signal: Option<At<Declared>>,
    pub entrypoint: Option<At<Command>>,
    pub cmd: Option<At<Command>>,
    /// `SHELL`, which runs the shell forms.
    pub shell: Option<Vec<String>>,
    /// Files copied from the build context: (destination, source).
    pub copies: Vec<(String, String)>,
    /// CMD was given in this stage.
    own_cmd: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Declared {
    Signal(u32),
    /// Depends on an ARG or ENV.
    Variable(String),
}

/// One instruction, continuation lines joined.
#[derive(Debug)]
struct Instruction {
    name: String,
    rest: String,
    line: u32,
}

impl Facts {
    pub fn read(name: &str, text: &str) -> Result<Facts, Trouble> {
        let mut stages: BTreeMap<String, Facts> = BTreeMap::new();
        let mut current: Option<(Option<String>, Facts)> = None;
        let mut number = 0usize;
        for Instruction { name: keyword, rest, line } in instructions(text) {
            let at = Place::line(name, line);
            if keyword == "FROM" {
                if let Some((alias, facts)) = current.take() {
                    stages.insert(number.to_string(), facts.clone());
                    number += 1;
                    alias.map(|alias| stages.insert(alias, facts));
                }
                current = Some(from(&rest, at, &stages)?);
                continue;
            }
            let Some((_, facts)) = &mut current else {
                if keyword == "ARG" {
                    continue;
                }
                return Err(Trouble::new(at, format!("{keyword:?} before the first FROM: not a Dockerfile")));
            };
            facts.instruction(&keyword, &rest, at)?;
        }
        match current {
            Some((_, facts)) => Ok(facts),
            None => Err(Trouble::new(Place::of(name), "no FROM: not a Dockerfile")),
        }
    }

    fn instruction(&mut self, keyword: &str, rest: &str, at: Place) -> Result<(), Trouble> {
        match keyword {
            "STOPSIGNAL" => {
                let value = rest.trim().trim_matches(['"', '\'']);
                let declared = if value.contains('$') {
                    Declared::Variable(value.to_owned())
                } else {
                    let wrong = || Trouble::new(at.clone(), format!("STOPSIGNAL {value:?} is not a signal"));
                    Declared::Signal(signal_number(value).ok_or_else(wrong)?)
                };
                self.stop_signal = Some(At::new(declared, at));
            }
            "ENTRYPOINT" => {
                self.entrypoint = Some(At::new(command(rest), at));
                // An image's own entrypoint resets the CMD that it has inherited.
                if !self.own_cmd {
                    self.cmd = None;
                }
            }
            "CMD" => {
                self.cmd = Some(At::new(command(rest), at));
                self.own_cmd = true;
            }
            "SHELL" => {
                if let Command::Exec(words) = command(rest) {
                    self.shell = Some(words);
                }
            }
            "COPY" | "ADD" => self.copy(rest),
            _ => {}
        }
        Ok(())
    }

    fn copy(&mut self, rest: &str) {
        let flags = rest.split_whitespace().take_while(|word| word.starts_with("--"));
        if flags.clone().any(|flag| flag.starts_with("--from=")) {
            return; // of another image, not of the build context
        }
        let skip = flags.count();
        let words: Vec<String> = match command(rest) {
            Command::Exec(words) => words,
            Command::Shell(_) => rest.split_whitespace().skip(skip).map(str::to_owned).collect(),
        };
        let Some((to, sources)) = words.split_last() else { return };
        for from in sources {
            let name = from.rsplit('/').next().unwrap_or(from);
            let to = if to.ends_with('/') || sources.len() > 1 || to == "." {
                format!("{}/{name}", to.trim_end_matches('/'))
            } else {
                to.clone()
            };
            self.copies.push((to, from.clone()));
        }
    }
}

/// A stage, named or not. It begins with what the stage that it is built from has, marked as inherited.
fn from(rest: &str, at: Place, stages: &BTreeMap<String, Facts>) -> Result<(Option<String>, Facts), Trouble> {
    let words: Vec<&str> = rest.split_whitespace().filter(|word| !word.starts_with("--")).collect();
    let Some(image) = words.first() else { return Err(Trouble::new(at, "FROM without an image")) };
    let alias = match words.get(1) {
        Some(word) if word.eq_ignore_ascii_case("as") => words.get(2).map(|alias| alias.to_ascii_lowercase()),
        _ => None,
    };
    // A name only: numbers are for COPY --from.
    let earlier = stages.get(&image.to_ascii_lowercase()).filter(|_| image.parse::<usize>().is_err());
    let facts = match earlier {
        Some(earlier) => Facts { own_cmd: false, ..earlier.clone() },
        None => Facts { base: Some(At::new((*image).to_owned(), at)), ..Facts::default() },
    };
    Ok((alias, facts))
}

/// The JSON form where it is one, else the shell form.
fn command(rest: &str) -> Command {
    match serde_json::from_str::<Vec<String>>(rest.trim()) {
        Ok(words) => Command::Exec(words),
        Err(_) => Command::Shell(rest.trim().to_owned()),
    }
}

fn instructions(text: &str) -> Vec<Instruction> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_character(text);
    let mut out = Vec::new();
    let mut lines = (1u32..).zip(text.lines());
    while let Some((line, first)) = lines.next() {
        let first = first.trim();
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let mut joined = first.to_owned();
        while joined.ends_with(escape) {
            joined.pop();
            // Comments and empty lines within a continued instruction are left out.
            match lines.by_ref().map(|(_, next)| next.trim()).find(|next| !next.is_empty() && !next.starts_with('#')) {
                Some(next) => {
                    joined.push(' ');
                    joined.push_str(next);
                }
                None => break,
            }
        }
        let (name, rest) = joined.split_once(char::is_whitespace).unwrap_or((&joined, ""));
        let name = name.to_ascii_uppercase();
        for end in here_documents(&name, rest) {
            lines.by_ref().find(|(_, body)| body.trim_start_matches('\t') == end || body.trim_end() == end);
        }
        let rest = rest.to_owned();
        out.push(Instruction { name, rest, line });
    }
    out
}

/// `# escape=` + a backtick, before anything else.
fn escape_character(text: &str) -> char {
    let directives = text.lines().map(str::trim).take_while(|line| line.starts_with('#'));
    let value = directives.filter_map(|line| line.trim_start_matches('#').trim().split_once('='));
    let escape = value.filter(|(name, _)| name.trim().eq_ignore_ascii_case("escape")).map(|(_, value)| value.trim());
    if escape.last() == Some("`") { '`' } else { '\\' }
}

/// The end marks of `RUN <<EOF`, `COPY <<"A" <<B /x/`.
fn here_documents(name: &str, rest: &str) -> Vec<String> {
    if !matches!(name, "RUN" | "COPY" | "ADD") {
        return Vec::new();
    }
    let words = rest.split_whitespace().filter_map(|word| word.split_once("<<").map(|(_, after)| after));
    let marks = words.map(|word| word.trim_start_matches('-').trim_matches(['"', '\'']));
    let is_mark = |mark: &&str| {
        !mark.is_empty()
            && mark.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !mark.starts_with(char::is_numeric)
    };
    marks.filter(is_mark).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(text: &str) -> Facts {
        Facts::read("Dockerfile", text).unwrap()
    }

    fn exec(words: &[&str]) -> Command {
        Command::Exec(words.iter().map(|w| (*w).to_owned()).collect())
    }

    #[test]
    fn the_last_stage_counts() {
        let f = facts(
            "# syntax=docker/dockerfile:1\nARG V=1\nFROM composer:2 AS build\nSTOPSIGNAL SIGKILL\nCMD composer\n\
             FROM debian:bookworm\nRUN apt-get update \\\n  # why\n  && apt-get install -y nginx\n\
             COPY --chown=1:1 docker/start.sh /usr/local/bin/\nCOPY --from=build /app /app\nONBUILD STOPSIGNAL SIGINT\n\
             stopsignal sigquit\nENTRYPOINT [\"start.sh\"]\nCMD nginx -g 'daemon off;'\n",
        );
        assert_eq!(f.base.unwrap().value, "debian:bookworm");
        let signal = f.stop_signal.unwrap();
        assert_eq!((signal.value, signal.at.unwrap().line), (Declared::Signal(3), Some(13)));
        assert_eq!(f.entrypoint.unwrap().value, exec(&["start.sh"]));
        let cmd = f.cmd.unwrap();
        assert_eq!((cmd.value, cmd.at.unwrap().line), (Command::Shell("nginx -g 'daemon off;'".into()), Some(15)));
        assert_eq!(f.copies, [("/usr/local/bin/start.sh".to_owned(), "docker/start.sh".to_owned())]);
    }

    #[test]
    fn a_stage_inherits_from_a_stage() {
        let f = facts("FROM nginx:1.27 AS base\nSTOPSIGNAL SIGTERM\nFROM base\nCMD [\"x\"]\n");
        assert_eq!(f.base.unwrap().value, "nginx:1.27");
        assert_eq!(f.stop_signal.unwrap().value, Declared::Signal(15));
        let f = facts("FROM a AS base\nCMD [\"x\"]\nFROM base\nENTRYPOINT [\"y\"]\n");
        assert_eq!(f.cmd, None, "an own entrypoint resets what is inherited");
        let f = facts("FROM a\nSTOPSIGNAL $SIG\nSHELL [\"/bin/bash\", \"-c\"]\n");
        assert_eq!(f.stop_signal.unwrap().value, Declared::Variable("$SIG".into()));
        assert_eq!(f.shell.unwrap(), ["/bin/bash", "-c"]);
    }

    #[test]
    fn here_documents_are_no_instructions() {
        let f = facts("FROM a\nRUN <<EOF\nSTOPSIGNAL SIGKILL\nEOF\nCOPY <<-'X' /x\nCMD y\nX\nCMD [\"z\"]\n");
        assert_eq!((f.stop_signal, f.cmd.unwrap().value), (None, exec(&["z"])));
        let f = facts("# escape=`\nFROM a\nRUN x `\n STOPSIGNAL SIGKILL\nSTOPSIGNAL 3\n");
        assert_eq!(f.stop_signal.unwrap().value, Declared::Signal(3));
    }

    #[test]
    fn errors_have_a_line() {
        for (text, wanted) in [
            ("", "Dockerfile: no FROM: not a Dockerfile"),
            ("ARG A\n\nkind: Pod\n", "Dockerfile:3: \"KIND:\" before the first FROM: not a Dockerfile"),
            ("FROM a\nSTOPSIGNAL HALT\n", "Dockerfile:2: STOPSIGNAL \"HALT\" is not a signal"),
            ("FROM --platform=x", "Dockerfile:1: FROM without an image"),
        ] {
            assert_eq!(Facts::read("Dockerfile", text).unwrap_err().to_string(), wanted);
        }
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC*", odd in "[A-Z \\\\\n#<\\[\\]\",a]{0,80}") {
            for text in [text, odd] {
                let _ = (Facts::read("f", &text), Facts::read("f", &format!("FROM a\nCMD {text}\nCOPY {text}")));
            }
        }
    }
}
