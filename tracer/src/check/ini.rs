//! INI files as php-fpm and supervisord read them.

/// One `key = value` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Empty before the first section.
    pub section: String,
    pub key: String,
    pub value: String,
    pub line: u32,
}

/// A section's name, where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Section {
        name: String,
        line: u32,
    },
    Entry(Entry),
    /// Neither of them.
    Unknown {
        line: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// php-fpm: `;` begins a comment anywhere outside of quotes; values may be quoted.
    Php,
    /// Python's configparser as supervisord sets it up: `;` and `#` begin a comment at the start of a line or after a
    /// blank; an indented line goes on with the value above it; `:` separates as well.
    Python,
}

pub fn lines(text: &str, flavour: Flavour) -> Vec<Line> {
    let mut out: Vec<Line> = Vec::new();
    let mut section = String::new();
    for (line, raw) in (1u32..).zip(text.lines()) {
        let raw = raw.strip_prefix('\u{feff}').unwrap_or(raw);
        let body = without_comment(raw, flavour);
        let trimmed = body.trim();
        if trimmed.is_empty() {
            continue;
        }
        if flavour == Flavour::Python
            && raw.starts_with([' ', '\t'])
            && let Some(Line::Entry(above)) = out.last_mut()
        {
            above.value.push('\n');
            above.value.push_str(trimmed);
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name) {
            section = name.trim().to_owned();
            out.push(Line::Section { name: section.clone(), line });
            continue;
        }
        let at = match flavour {
            Flavour::Php => trimmed.find('='),
            Flavour::Python => trimmed.find(['=', ':']),
        };
        match at {
            Some(at) if !trimmed[..at].trim().is_empty() => out.push(Line::Entry(Entry {
                section: section.clone(),
                key: trimmed[..at].trim().to_ascii_lowercase(),
                value: unquoted(trimmed[at + 1..].trim(), flavour).to_owned(),
                line,
            })),
            _ => out.push(Line::Unknown { line }),
        }
    }
    out
}

fn without_comment(line: &str, flavour: Flavour) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (flavour, quote) {
            (Flavour::Php, Some(open)) => {
                if c == open {
                    quote = None;
                }
            }
            (Flavour::Php, None) => match c {
                '"' | '\'' => quote = Some(c),
                ';' => return &line[..at],
                // Not a comment in PHP's own parser since 7.0, but nobody means anything else by it.
                '#' if line[..at].trim().is_empty() => return &line[..at],
                _ => {}
            },
            (Flavour::Python, _) => {
                if matches!(c, ';' | '#') && before.is_whitespace() {
                    return &line[..at];
                }
            }
        }
        before = c;
    }
    line
}

fn unquoted(value: &str, flavour: Flavour) -> &str {
    if flavour == Flavour::Python {
        return value;
    }
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(text: &str, flavour: Flavour) -> Vec<(String, String, String, u32)> {
        let entry = |line| match line {
            Line::Entry(e) => Some((e.section, e.key, e.value, e.line)),
            _ => None,
        };
        lines(text, flavour).into_iter().filter_map(entry).collect()
    }

    fn own(all: &[(&str, &str, &str, u32)]) -> Vec<(String, String, String, u32)> {
        all.iter().map(|(a, b, c, n)| ((*a).into(), (*b).into(), (*c).into(), *n)).collect()
    }

    #[test]
    fn php() {
        let text = "a=1\n; c = 2\n[www] ; pool\n user = \"x;y\" ; z\nLISTEN=9000;\nbroken\n= 4\n[x";
        let want = own(&[("", "a", "1", 1), ("www", "user", "x;y", 4), ("www", "listen", "9000", 5)]);
        assert_eq!(entries(text, Flavour::Php), want);
        let unknown = |l: &Line| matches!(l, Line::Unknown { .. });
        assert_eq!(lines(text, Flavour::Php).iter().filter(|l| unknown(l)).count(), 3);
    }

    #[test]
    fn python() {
        let text = "[program:x]\ncommand=sh -c 'a;b' ; why\n  --more\n# c\nkey: v=1\nenvironment=A=\"1\",B=\"2\"\n";
        let want = own(&[
            ("program:x", "command", "sh -c 'a;b'\n--more", 2),
            ("program:x", "key", "v=1", 5),
            ("program:x", "environment", "A=\"1\",B=\"2\"", 6),
        ]);
        assert_eq!(entries(text, Flavour::Python), want);
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC*", odd in "[\\[\\]=:;# \"'\n\ta]{0,60}") {
            for flavour in [Flavour::Php, Flavour::Python] {
                let _ = (lines(&text, flavour), lines(&odd, flavour));
            }
        }

        #[test]
        fn what_is_written_is_read(key in "[a-z_.]{1,12}", value in "[a-z0-9/.]{1,12}") {
            let text = format!("[s]\n{key} = {value}\n");
            for flavour in [Flavour::Php, Flavour::Python] {
                prop_assert_eq!(entries(&text, flavour), own(&[("s", &key, &value, 2)]));
            }
        }
    }
}
