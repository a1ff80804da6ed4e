//! php-fpm's configuration: php-fpm.conf with its pools, or what `php-fpm -tt` prints.

use super::files::{File, Files, beside};
use super::ini::{Entry, Flavour, Line, lines};
use crate::model::place::{At, Place, Trouble};

/// Includes within includes.
const INCLUDE_DEPTH_MAX: usize = 20;
/// Of all files together.
const FILES_MAX: usize = 10_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Seconds; php-fpm's default is 0.
    pub control_timeout: Option<At<u64>>,
    pub pools: Vec<Pool>,
    /// The main file.
    pub file: Option<Place>,
    /// Includes that were not at hand.
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    pub at: Place,
    /// `127.0.0.1:9000`, `9000`, `/run/php.sock`.
    pub listen: Option<At<String>>,
    /// As given to listen(2); the default is 511, or -1 (as many as the kernel allows) in newer releases.
    pub backlog: Option<At<i64>>,
    /// Seconds, 0 is never.
    pub terminate_timeout: Option<At<u64>>,
}

impl Pool {
    /// On a socket file: a full queue is an error there, not a wait.
    pub fn is_unix(&self) -> bool {
        self.listen.as_ref().is_some_and(|listen| listen.value.contains('/'))
    }
}

impl Facts {
    /// Reads the files one after the other, as php-fpm does with what it includes: a later value wins.
    pub fn read(given: &[File], files: &dyn Files) -> Result<Facts, Trouble> {
        let mut reader = Reader { facts: Facts::default(), files, read: 0 };
        reader.facts.file = given.first().map(|file| Place::of(&file.name));
        for file in given {
            reader.file(file, 0)?;
        }
        Ok(reader.facts)
    }

    /// The longest time that any pool lets a request run, where every pool has one. Seconds.
    pub fn longest_allowed(&self) -> Option<At<u64>> {
        let limits: Option<Vec<&At<u64>>> =
            self.pools.iter().map(|pool| pool.terminate_timeout.as_ref().filter(|limit| limit.value > 0)).collect();
        limits?.into_iter().max_by_key(|limit| limit.value).cloned()
    }
}

struct Reader<'a> {
    facts: Facts,
    files: &'a dyn Files,
    read: usize,
}

impl Reader<'_> {
    fn file(&mut self, file: &File, depth: usize) -> Result<(), Trouble> {
        self.read += 1;
        if self.read > FILES_MAX {
            return Err(Trouble::new(Place::of(&file.name), format!("more than {FILES_MAX} files are included")));
        }
        let text = printed(&file.text);
        for line in lines(&text, Flavour::Php) {
            match line {
                Line::Section { name, line } => self.section(&name, Place::line(&file.name, line)),
                Line::Entry(entry) => self.entry(&entry, file, depth)?,
                Line::Unknown { line } => {
                    let at = Place::line(&file.name, line);
                    return Err(Trouble::new(at, "neither a [section] nor \"key = value\""));
                }
            }
        }
        Ok(())
    }

    fn section(&mut self, name: &str, at: Place) {
        let known = self.facts.pools.iter().any(|pool| pool.name == name);
        if !name.eq_ignore_ascii_case("global") && !name.is_empty() && !known {
            let name = name.to_owned();
            self.facts.pools.push(Pool { name, at, listen: None, backlog: None, terminate_timeout: None });
        }
    }

    fn entry(&mut self, entry: &Entry, file: &File, depth: usize) -> Result<(), Trouble> {
        let at = Place::line(&file.name, entry.line);
        if entry.key == "include" {
            return self.include(&entry.value, file, &at, depth);
        }
        if entry.section.is_empty() || entry.section.eq_ignore_ascii_case("global") {
            if entry.key == "process_control_timeout" {
                self.facts.control_timeout = Some(seconds(entry, at)?);
            }
            return Ok(());
        }
        let Some(pool) = self.facts.pools.iter_mut().find(|pool| pool.name == entry.section) else { return Ok(()) };
        match entry.key.as_str() {
            "listen" => pool.listen = Some(At::new(entry.value.replace("$pool", &pool.name), at)),
            "listen.backlog" => {
                let wrong = || Trouble::new(at.clone(), format!("listen.backlog {:?} is not a number", entry.value));
                pool.backlog = Some(At::new(entry.value.parse().map_err(|_| wrong())?, at.clone()));
            }
            "request_terminate_timeout" => pool.terminate_timeout = Some(seconds(entry, at)?),
            _ => {}
        }
        Ok(())
    }

    fn include(&mut self, pattern: &str, file: &File, at: &Place, depth: usize) -> Result<(), Trouble> {
        if depth >= INCLUDE_DEPTH_MAX {
            let what = format!("more than {INCLUDE_DEPTH_MAX} includes within includes");
            return Err(Trouble::new(at.clone(), what));
        }
        // A relative one is below php-fpm's prefix, which the file does not tell: etc/php-fpm.d/*.conf in
        // /usr/local/etc/php-fpm.conf. Beside the file comes second.
        let prefix = file.name.rsplit_once("/etc/").map_or("", |(before, _)| before);
        let first = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{prefix}/{pattern}") };
        let found = match self.files.matching(&first) {
            Ok(found) if !found.is_empty() => Ok(found),
            other => match self.files.matching(&beside(&file.name, pattern)) {
                Ok(found) if !found.is_empty() => Ok(found),
                _ => other,
            },
        };
        match found {
            Ok(found) => found.iter().try_for_each(|file| self.file(file, depth + 1)),
            Err(_) => {
                self.facts.missing.push(pattern.to_owned());
                Ok(())
            }
        }
    }
}

/// `php-fpm -tt` logs the configuration, a line each: `[22-Nov-2026 23:52:50] NOTICE: \tkey = value`. Its lines keep their
/// numbers.
fn printed(text: &str) -> std::borrow::Cow<'_, str> {
    let is_log = |line: &str| line.starts_with('[') && line.contains("] NOTICE: ");
    if !text.lines().any(is_log) {
        return text.into();
    }
    let body = |line: &str| {
        let said = line.split_once("] NOTICE: ").filter(|_| is_log(line)).map_or("", |(_, said)| said.trim());
        let sound = said.starts_with('[') || said.contains(" = ");
        if sound { said.replace(" = undefined", " = ") } else { String::new() }
    };
    text.lines().map(body).collect::<Vec<String>>().join("\n").into()
}

/// `10`, `10s`, `2m`, `1h`, `1d` (`fpm_conf_set_time()`).
fn seconds(entry: &Entry, at: Place) -> Result<At<u64>, Trouble> {
    let value = entry.value.trim();
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let factor = match &value[digits..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    match value[..digits].parse::<u64>().ok().and_then(|n| n.checked_mul(factor)) {
        Some(seconds) if factor > 0 => Ok(At::new(seconds, at)),
        _ => Err(Trouble::new(at, format!("{} {value:?} is not a time", entry.key))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::{NoFiles, glob};
    use super::*;
    use proptest::prelude::*;

    fn facts(text: &str) -> Facts {
        Facts::read(&[File::new("fpm.conf", text)], &NoFiles).unwrap()
    }

    const DEBIAN: &str = "[global]\npid = /run/php/php8.2-fpm.pid\nerror_log = /var/log/php8.2-fpm.log\n\
        include=/etc/php/8.2/fpm/pool.d/*.conf\n";
    const POOL: &str = "[www]\nuser = www-data\nlisten = /run/php/php8.2-fpm.sock\npm = dynamic\n\
        ;listen.backlog = 511\nrequest_terminate_timeout = 1m\n";

    struct Debian;
    impl Files for Debian {
        fn matching(&self, pattern: &str) -> Result<Vec<File>, String> {
            let all = [File::new("/etc/php/8.2/fpm/pool.d/www.conf", POOL)];
            Ok(all.into_iter().filter(|file| glob(pattern, &file.name)).collect())
        }
    }

    #[test]
    fn pools_are_included() {
        let f = Facts::read(&[File::new("/etc/php/8.2/fpm/php-fpm.conf", DEBIAN)], &Debian).unwrap();
        assert_eq!(f.control_timeout, None);
        assert_eq!(f.pools.len(), 1);
        assert!(f.pools[0].is_unix() && f.pools[0].backlog.is_none());
        assert_eq!(f.longest_allowed().unwrap().value, 60);
        assert_eq!(f.pools[0].at.to_string(), "/etc/php/8.2/fpm/pool.d/www.conf:1");
        let f = facts(DEBIAN);
        assert_eq!(f.missing, ["/etc/php/8.2/fpm/pool.d/*.conf"]);
        assert_eq!(f.longest_allowed(), None);
    }

    #[test]
    fn a_later_file_wins() {
        let files = [
            File::new("docker.conf", "[www]\nlisten = 9000\n[global]\nprocess_control_timeout = 0\n"),
            File::new("zz.conf", "[global]\nprocess_control_timeout = 20s\n[www]\nlisten = 127.0.0.1:9001\n"),
        ];
        let f = Facts::read(&files, &NoFiles).unwrap();
        let timeout = f.control_timeout.unwrap();
        assert_eq!((timeout.value, timeout.at.unwrap().to_string()), (20, "zz.conf:2".into()));
        assert_eq!(f.pools.len(), 1);
        assert_eq!(f.pools[0].listen.as_ref().unwrap().value, "127.0.0.1:9001");
        assert!(!f.pools[0].is_unix());
    }

    #[test]
    fn what_tt_prints() {
        let text = "[22-Nov-2026 23:52:50] NOTICE: [global]\n[22-Nov-2026 23:52:50] NOTICE: \tprocess_control_timeout = 5s\n\
            [22-Nov-2026 23:52:50] NOTICE: \tlog_level = unknown value\n[22-Nov-2026 23:52:50] NOTICE:  \n\
            [22-Nov-2026 23:52:50] NOTICE: [www]\n[22-Nov-2026 23:52:50] NOTICE: \tlisten.backlog = -1\n\
            [22-Nov-2026 23:52:50] NOTICE: \trequest_terminate_timeout = 0s\n\
            [22-Nov-2026 23:52:50] NOTICE: configuration file /etc/php/8.2/fpm/php-fpm.conf test is successful\n";
        let f = facts(text);
        assert_eq!(f.control_timeout.unwrap().value, 5);
        assert_eq!(f.pools[0].backlog.as_ref().unwrap().value, -1);
        assert_eq!(f.pools[0].backlog.as_ref().unwrap().at.as_ref().unwrap().line, Some(6));
    }

    #[test]
    fn errors_have_a_line() {
        for (text, wanted) in [
            ("[global]\nprocess_control_timeout = soon\n", "f:2: process_control_timeout \"soon\" is not a time"),
            ("[www]\nlisten.backlog = x\n", "f:2: listen.backlog \"x\" is not a number"),
            ("[www]\nlisten\n", "f:2: neither a [section] nor \"key = value\""),
            ("[www]\nrequest_terminate_timeout = 99999999999999999999d", "is not a time"),
        ] {
            let error = Facts::read(&[File::new("f", text)], &NoFiles).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    /// A file that includes itself.
    struct Loop;
    impl Files for Loop {
        fn matching(&self, pattern: &str) -> Result<Vec<File>, String> {
            Ok(vec![File::new(pattern, "include=x\ninclude=x")])
        }
    }

    #[test]
    fn includes_end() {
        assert!(Facts::read(&[File::new("f", "include=x")], &Loop).is_err());
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC*", odd in "[\\[\\]=; \"\n\tagw_0-9.]{0,80}") {
            for text in [text, odd] {
                let _ = Facts::read(&[File::new("f", &text)], &NoFiles);
                let _ = Facts::read(&[File::new("f", &format!("[x] NOTICE: {text}"))], &NoFiles);
            }
        }
    }
}
