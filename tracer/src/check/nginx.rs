//! nginx's configuration: the text of `nginx -T`, or nginx.conf with what it includes.

mod carries;
mod facts;
mod token;

pub use carries::carries;
pub use facts::{Facts, Idle};

use super::files::{self, File, Files};
use crate::model::place::{Place, Trouble};
use token::{End, Token, Tokens};

/// Blocks within blocks. nginx itself knows five levels; `if` and nested locations add some.
const DEPTH_MAX: usize = 64;
/// Includes within includes: a file may include itself.
const INCLUDE_DEPTH_MAX: usize = 20;
/// Of all files together, each counted as often as it is included.
const DIRECTIVES_MAX: usize = 1_000_000;
const BYTES_MAX: usize = 64 << 20;

/// One directive, with what stands in its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    pub name: String,
    pub args: Vec<String>,
    pub block: Option<Vec<Directive>>,
    /// Of [`Config::files`].
    file: usize,
    pub line: u32,
}

/// Everything that nginx would read, includes put in their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub directives: Vec<Directive>,
    pub files: Vec<String>,
    /// Includes that were not at hand: pattern and why.
    pub missing: Vec<(String, String)>,
}

impl Config {
    pub fn place(&self, of: &Directive) -> Place {
        Place::line(self.files.get(of.file).map_or("", |name| name), of.line)
    }
}

/// Reads a configuration. `name` is the main file's path: relative includes stand beside it. Included files come from
/// `files`, unless `text` is what `nginx -T` prints, which has them all.
pub fn parse(name: &str, text: &str, files: &dyn Files) -> Result<Config, Trouble> {
    let dump = Dump::of(text);
    match &dump {
        Some(dump) => {
            let main = dump.0.first().cloned().unwrap_or_else(|| File::new(name, ""));
            Reader::new(dump).config(&main)
        }
        None => Reader::new(files).config(&File::new(name, text)),
    }
}

/// The files of `nginx -T`, in its order: the main one first (`ngx_dump_config` in src/core/nginx.c).
#[derive(Debug)]
struct Dump(Vec<File>);

impl Dump {
    fn of(text: &str) -> Option<Dump> {
        let mut found: Vec<File> = Vec::new();
        for line in text.lines() {
            let name = line.strip_prefix("# configuration file ").and_then(|rest| rest.strip_suffix(':'));
            if let Some(name) = name {
                found.push(File::new(name, ""));
            } else if let Some(file) = found.last_mut() {
                file.text.push_str(line);
                file.text.push('\n');
            } else if !is_said_by_nginx(line) {
                return None; // a configuration that begins with something else is no dump
            }
        }
        (!found.is_empty()).then_some(Dump(found))
    }
}

/// stderr of `nginx -T`, and lines that may stand before it in a log.
fn is_said_by_nginx(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with("nginx: ") || line.contains("[warn]") || line.contains("[notice]")
}

impl Files for Dump {
    fn matching(&self, pattern: &str) -> Result<Vec<File>, String> {
        let found: Vec<File> = self.0.iter().filter(|file| files::glob(pattern, &file.name)).cloned().collect();
        if found.is_empty() && files::is_plain(pattern) {
            return Err("not in the output of nginx -T".to_owned());
        }
        Ok(found)
    }
}

struct Reader<'a> {
    files: &'a dyn Files,
    config: Config,
    /// Relative includes stand beside the main file, also those of included files (`ngx_conf_full_name()`).
    main: String,
    count: usize,
    bytes: usize,
}

impl<'a> Reader<'a> {
    fn new(files: &'a dyn Files) -> Self {
        Reader { files, config: Config::default(), main: String::new(), count: 0, bytes: 0 }
    }

    fn config(mut self, main: &File) -> Result<Config, Trouble> {
        self.main = main.name.clone();
        let directives = self.file(main, 0)?;
        Ok(Config { directives, ..self.config })
    }

    /// A whole file: nginx wants each to be complete in itself.
    fn file(&mut self, file: &File, depth: usize) -> Result<Vec<Directive>, Trouble> {
        let number = self.config.files.len();
        self.config.files.push(file.name.clone());
        let at = |line: u32| Place::line(&file.name, line);
        // A file without a directive counts as well: it may be included without end.
        self.bytes += file.text.len() + file.name.len();
        if self.bytes > BYTES_MAX {
            return Err(Trouble::new(at(1), format!("more than {} MiB of configuration", BYTES_MAX >> 20)));
        }
        let mut tokens = Tokens::new(&file.text);
        // A stack instead of recursion: the blocks that are open, each with the directive that opened it.
        let mut open: Vec<(Directive, Vec<Directive>)> = Vec::new();
        let mut current: Vec<Directive> = Vec::new();
        loop {
            let statement = tokens.statement().map_err(|(line, what)| Trouble::new(at(line), what))?;
            let Token { mut words, line, end } = statement;
            match end {
                End::File | End::Close if !words.is_empty() => {
                    let found = if end == End::File { "the end of the file" } else { "\"}\"" };
                    let what = format!("unexpected {found}, \";\" is missing after {:?}", cut(&words[0]));
                    return Err(Trouble::new(at(line), what));
                }
                End::File => {
                    if let Some((unclosed, _)) = open.last() {
                        let what = format!("unexpected end of the file, block {:?} is not closed", cut(&unclosed.name));
                        return Err(Trouble::new(at(unclosed.line), what));
                    }
                    return Ok(current);
                }
                End::Close => {
                    let Some((mut of, outer)) = open.pop() else {
                        return Err(Trouble::new(at(line), "unexpected \"}\""));
                    };
                    of.block = Some(std::mem::replace(&mut current, outer));
                    current.push(of);
                }
                End::Semicolon | End::Block | End::Code if words.is_empty() => {
                    let what = if end == End::Semicolon { "unexpected \";\"" } else { "unexpected \"{\"" };
                    return Err(Trouble::new(at(line), what));
                }
                End::Semicolon | End::Block | End::Code => {
                    let name = words.remove(0);
                    self.count += 1;
                    if self.count > DIRECTIVES_MAX {
                        return Err(Trouble::new(at(line), format!("more than {DIRECTIVES_MAX} directives")));
                    }
                    if name == "include" && end == End::Semicolon {
                        current.extend(self.include(words.first().map_or("", |word| word), &at(line), depth)?);
                        continue;
                    }
                    let directive = Directive { name, args: words, block: None, file: number, line };
                    match end {
                        End::Block if open.len() >= DEPTH_MAX => {
                            return Err(Trouble::new(at(line), format!("more than {DEPTH_MAX} blocks within blocks")));
                        }
                        End::Block => open.push((directive, std::mem::take(&mut current))),
                        End::Code => current.push(Directive { block: Some(Vec::new()), ..directive }),
                        _ => current.push(directive),
                    }
                }
            }
        }
    }

    fn include(&mut self, pattern: &str, at: &Place, depth: usize) -> Result<Vec<Directive>, Trouble> {
        let pattern = files::beside(&self.main, pattern);
        if depth >= INCLUDE_DEPTH_MAX {
            let what = format!("more than {INCLUDE_DEPTH_MAX} includes within includes: {:?}", cut(&pattern));
            return Err(Trouble::new(at.clone(), what));
        }
        match self.files.matching(&pattern) {
            Ok(found) => {
                let mut all = Vec::new();
                for file in found {
                    all.extend(self.file(&file, depth + 1)?);
                }
                Ok(all)
            }
            Err(why) => {
                self.config.missing.push((pattern, why));
                Ok(Vec::new())
            }
        }
    }
}

/// For messages.
fn cut(word: &str) -> String {
    match word.char_indices().nth(40) {
        Some((at, _)) => format!("{}...", &word[..at]),
        None => word.to_owned(),
    }
}

/// A time as nginx writes it (`ngx_parse_time()`), in milliseconds: `30`, `1m30s`, `500ms`. A number alone counts in `unit`
/// milliseconds.
pub(super) fn milliseconds(text: &str, unit: u64) -> Option<u64> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = &rest[digits..];
        let (factor, length) = match rest.as_bytes() {
            [] => (unit, 0),
            [b'm', b's', ..] => (1, 2),
            [b's', ..] => (1000, 1),
            [b'm', ..] => (60_000, 1),
            [b'h', ..] => (3_600_000, 1),
            [b'd', ..] => (86_400_000, 1),
            [b'w', ..] => (7 * 86_400_000, 1),
            [b'M', ..] => (30 * 86_400_000, 1),
            [b'y', ..] => (365 * 86_400_000, 1),
            [b' ', ..] => (unit, 1),
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = rest[length..].trim_start();
    }
    Some(total)
}

#[cfg(test)]
mod tests;
