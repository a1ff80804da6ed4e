//! Files that a configuration includes: asked for by the parsers, given by whoever can read them.

/// A configuration file's name and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub text: String,
}

impl File {
    pub fn new(name: &str, text: &str) -> File {
        File { name: name.to_owned(), text: text.to_owned() }
    }
}

/// Finds included files.
pub trait Files {
    /// All files whose path matches `pattern` ([`glob`]), by name. An error says why they are not at hand, which is not the
    /// same as "there are none".
    fn matching(&self, pattern: &str) -> Result<Vec<File>, String>;
}

/// Nothing but the file itself was given.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl Files for NoFiles {
    fn matching(&self, _: &str) -> Result<Vec<File>, String> {
        Err("not given".to_owned())
    }
}

/// A path below the directory that `base` is in, unless it is absolute.
pub fn beside(base: &str, path: &str) -> String {
    match base.rsplit_once('/') {
        Some((dir, _)) if !path.starts_with('/') => format!("{dir}/{path}"),
        _ => path.to_owned(),
    }
}

/// A pattern that only names one file.
pub fn is_plain(pattern: &str) -> bool {
    !pattern.contains(['*', '?', '['])
}

/// glob(7) for whole paths: `*`, `?` and `[…]` match no `/`, and no `.` at the beginning of a name.
pub fn glob(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if component(pattern, name) => {}
            _ => return false,
        }
    }
}

/// One name against one component of a pattern. Backtracks only to the last `*`, so it takes at most their product.
pub fn component(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    if name.first() == Some(&'.') && pattern.first() != Some(&'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(next) = one(&pattern, p, name[n]) {
            (p, n) = (next, n + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, n) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Where the pattern goes on when its element at `p` matches `c`.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match pattern.get(p)? {
        '?' => Some(p + 1),
        '[' => match class(pattern, p + 1, c) {
            Some((matched, next)) => matched.then_some(next),
            None => (c == '[').then_some(p + 1), // never closed: itself
        },
        '\\' if p + 1 < pattern.len() => (pattern[p + 1] == c).then_some(p + 2),
        other => (*other == c).then_some(p + 1),
    }
}

/// `…]`: does it hold `c`, and what comes after it.
fn class(pattern: &[char], start: usize, c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(start), Some('!' | '^'));
    let first = start + usize::from(negated);
    let (mut at, mut found) = (first, false);
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > first {
            return Some((found != negated, at + 1));
        }
        if pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2).is_some_and(|high| *high != ']') {
            found |= (low..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= low == c;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("/etc/nginx/conf.d/*.conf", "/etc/nginx/conf.d/a.conf", "/etc/nginx/conf.d/x/a.conf"),
            ("*", "a", ".a"),
            (".*", ".a", "a"),
            ("a?c", "abc", "ac"),
            ("[a-c]1", "b1", "d1"),
            ("[!a]", "b", "a"),
            ("[]x]", "]", "y"),
            ("*.co*f", "x.coconf", "x.co"),
            ("a[", "a[", "a"),
            ("\\*", "*", "a"),
            ("", "", "a"),
        ] {
            assert!(glob(pattern, yes), "{pattern} {yes}");
            assert!(!glob(pattern, no), "{pattern} {no}");
        }
    }

    #[test]
    fn names_beside() {
        assert_eq!(beside("/etc/nginx/nginx.conf", "conf.d/*"), "/etc/nginx/conf.d/*");
        assert_eq!(beside("/etc/nginx/nginx.conf", "/x"), "/x");
        assert_eq!(beside("nginx.conf", "conf.d/*"), "conf.d/*");
        assert_eq!(beside("/nginx.conf", "x"), "/x");
    }

    proptest! {
        #[test]
        fn any_pattern(pattern in "[a\\[\\]*?!\\\\^./-]{0,16}", path in "[a./-]{0,16}") {
            let _ = glob(&pattern, &path);
        }

        #[test]
        fn a_star_matches_all(name in "[a-z][a-z.]{0,10}") {
            prop_assert!(glob("*", &name));
            prop_assert!(glob(&name, &name));
        }
    }
}
