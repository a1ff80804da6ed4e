//! Enough of the shell's language to see which commands a short script runs, in which order: preStop hooks, entrypoints.
//! No expansion is done; what cannot be told by reading is left to the caller to call unknown.

/// One simple command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simple {
    /// Quotes are removed, `$…` stays as it is.
    pub words: Vec<String>,
    /// `&`: the shell goes on at once.
    pub background: bool,
    /// What joins it to the one before it.
    pub joined: Joined,
    /// The condition of a `while` or `until`.
    pub condition: bool,
    /// Within a loop, a branch or a function: it may run never or often.
    pub nested: bool,
    /// Counted from 1.
    pub line: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Joined {
    /// `;`, a new line, `&`, or nothing before it.
    #[default]
    Then,
    /// `&&`
    IfDone,
    /// `||`
    IfFailed,
    /// `|`
    Pipe,
}

impl Simple {
    pub fn name(&self) -> &str {
        self.words.first().map_or("", |word| word)
    }

    /// What is run, without the path.
    pub fn program(&self) -> &str {
        base(self.name())
    }
}

pub fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Which program `/bin/sh` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sh {
    /// Debian, Ubuntu. Does not replace itself by the last command of `-c`, and its `kill` does not know `-SIGQUIT`
    /// (measured with dash 0.5.12).
    Dash,
    /// busybox: Alpine. Replaces itself (measured with 1.35).
    Ash,
    /// Replaces itself.
    Bash,
    Unknown,
}

impl Sh {
    /// Which one a command names; `sh` is what the image has.
    pub fn of(program: &str, image: Sh) -> Option<Sh> {
        match base(program) {
            "sh" => Some(image),
            "dash" => Some(Sh::Dash),
            "ash" | "busybox" => Some(Sh::Ash),
            "bash" => Some(Sh::Bash),
            "ksh" | "mksh" | "zsh" => Some(Sh::Unknown),
            _ => None,
        }
    }
}

/// The simple commands of a script, in the order in which they stand.
pub fn commands(script: &str) -> Vec<Simple> {
    let mut out = Vec::new();
    let mut current = Simple::default();
    let mut depth = 0u32;
    let mut condition = false;
    let mut joined = Joined::Then;
    for piece in Pieces::new(script) {
        match piece {
            Piece::Word { text, line, quoted } => {
                if current.words.is_empty() && !quoted {
                    match text.as_str() {
                        "while" | "until" => {
                            depth += 1;
                            condition = true;
                            continue;
                        }
                        "if" | "for" | "case" | "{" => {
                            depth += 1;
                            // The word after `for` and `case` is no command.
                            if text != "if" && text != "{" {
                                current.words.push(text);
                                current.line = line;
                            }
                            continue;
                        }
                        "do" | "then" | "else" | "elif" | "!" => {
                            condition = false;
                            continue;
                        }
                        "done" | "fi" | "esac" | "}" => {
                            depth = depth.saturating_sub(1);
                            condition = false;
                            continue;
                        }
                        _ => {}
                    }
                }
                if current.words.is_empty() {
                    current.line = line;
                    current.condition = condition;
                    current.nested = depth > 0;
                    current.joined = std::mem::take(&mut joined);
                }
                current.words.push(text);
            }
            Piece::Open => depth += 1,
            Piece::Close => {
                end(&mut current, &mut out, false);
                depth = depth.saturating_sub(1);
            }
            Piece::End { background, next } => {
                end(&mut current, &mut out, background);
                joined = next;
            }
        }
    }
    end(&mut current, &mut out, false);
    out
}

fn end(current: &mut Simple, out: &mut Vec<Simple>, background: bool) {
    let mut command = std::mem::take(current);
    command.background = background;
    // NAME=value before a command.
    let assignments = command.words.iter().take_while(|word| is_assignment(word)).count();
    if assignments < command.words.len() {
        command.words.drain(..assignments);
    }
    let heads = ["for", "case"];
    if !command.words.is_empty() && !is_assignment(command.name()) && !heads.contains(&command.name()) {
        out.push(command);
    }
}

fn is_assignment(word: &str) -> bool {
    let name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    word.split_once('=').is_some_and(|(before, _)| !before.is_empty() && name(before))
}

enum Piece {
    Word {
        text: String,
        line: u32,
        quoted: bool,
    },
    End {
        background: bool,
        next: Joined,
    },
    /// `(`
    Open,
    /// `)`
    Close,
}

struct Pieces<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: u32,
}

impl<'a> Pieces<'a> {
    fn new(script: &'a str) -> Self {
        Pieces { rest: script.chars().peekable(), line: 1 }
    }

    fn next_char(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.line += u32::from(c == '\n');
        Some(c)
    }

    fn word(&mut self) -> Piece {
        let (line, mut text, mut quoted) = (self.line, String::new(), false);
        while let Some(&c) = self.rest.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' | '|' | '(' | ')' => break,
                // `2>&1` is no background.
                '&' if !text.ends_with(['>', '<']) => break,
                _ => {}
            }
            self.next_char();
            match c {
                '\'' => {
                    quoted = true;
                    while let Some(inner) = self.next_char().filter(|c| *c != '\'') {
                        text.push(inner);
                    }
                }
                '"' => {
                    quoted = true;
                    while let Some(inner) = self.next_char().filter(|c| *c != '"') {
                        if inner == '\\' {
                            text.extend(self.next_char());
                        } else {
                            text.push(inner);
                        }
                    }
                }
                '\\' => match self.next_char() {
                    Some('\n') | None => {}
                    Some(escaped) => text.push(escaped),
                },
                '`' => {
                    text.push('`');
                    while let Some(inner) = self.next_char().filter(|c| *c != '`') {
                        text.push(inner);
                    }
                    text.push('`');
                }
                '$' if self.rest.peek() == Some(&'(') => {
                    text.push('$');
                    self.substitution(&mut text);
                }
                _ => text.push(c),
            }
        }
        Piece::Word { text, line, quoted }
    }

    /// `(…)` up to its own end.
    fn substitution(&mut self, text: &mut String) {
        let mut depth = 0;
        while let Some(c) = self.next_char() {
            text.push(c);
            match c {
                '(' => depth += 1,
                ')' => {
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        loop {
            match *self.rest.peek()? {
                ' ' | '\t' | '\r' => {
                    self.next_char();
                }
                '#' => {
                    while self.rest.peek().is_some_and(|c| *c != '\n') {
                        self.next_char();
                    }
                }
                '\\' => {
                    let mut ahead = self.rest.clone();
                    ahead.next();
                    if ahead.next() != Some('\n') {
                        return Some(self.word());
                    }
                    self.next_char();
                    self.next_char();
                }
                '\n' | ';' => {
                    self.next_char();
                    return Some(Piece::End { background: false, next: Joined::Then });
                }
                c @ ('&' | '|') => {
                    self.next_char();
                    let doubled = self.rest.peek() == Some(&c);
                    if doubled {
                        self.next_char();
                    }
                    let next = match (c, doubled) {
                        ('&', true) => Joined::IfDone,
                        ('|', true) => Joined::IfFailed,
                        ('|', false) => Joined::Pipe,
                        _ => Joined::Then,
                    };
                    return Some(Piece::End { background: c == '&' && !doubled, next });
                }
                '(' => {
                    self.next_char();
                    return Some(Piece::Open);
                }
                ')' => {
                    self.next_char();
                    return Some(Piece::Close);
                }
                _ => return Some(self.word()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(script: &str) -> Vec<String> {
        let one = |c: Simple| {
            let mark = |on: bool, mark: &str| if on { mark.to_owned() } else { String::new() };
            let marks = mark(c.background, "&") + &mark(c.condition, "?") + &mark(c.nested, "~");
            format!("{}{marks}", c.words.join(" "))
        };
        commands(script).into_iter().map(one).collect()
    }

    #[test]
    fn scripts() {
        for (script, want) in [
            ("sleep 5 && nginx -s quit", &["sleep 5", "nginx -s quit"][..]),
            ("nginx -g 'daemon off;' & wait", &["nginx -g daemon off;&", "wait"]),
            ("while pgrep -x nginx; do sleep 1; done", &["pgrep -x nginx?~", "sleep 1~"]),
            ("if [ -f /x ]; then kill -QUIT 1; fi; true", &["[ -f /x ]~", "kill -QUIT 1~", "true"]),
            ("FOO=1 nginx; BAR=2\n# c\nexec \"$@\"", &["nginx", "exec $@"]),
            ("kill -QUIT $(cat /run/nginx.pid; true) 2>&1", &["kill -QUIT $(cat /run/nginx.pid; true) 2>&1"]),
            ("for i in 1 2; do echo $i; done", &["echo $i~"]),
            ("(cd /x; php-fpm) | cat", &["cd /x~", "php-fpm~", "cat"]),
            ("a \\\n b", &["a b"]),
            ("exec 'while'", &["exec while"]),
            ("", &[]),
        ] {
            assert_eq!(flat(script), want, "{script}");
        }
        assert_eq!(commands("a\n\nb c")[1].line, 3);
        let joined: Vec<Joined> = commands("a && b || c | d; e").iter().map(|c| c.joined).collect();
        assert_eq!(joined, [Joined::Then, Joined::IfDone, Joined::IfFailed, Joined::Pipe, Joined::Then]);
    }

    proptest! {
        #[test]
        fn any_script(script in "\\PC*", odd in "[a-z'\"`$(){};&|\\\\#\n =<>]{0,80}") {
            for script in [script, odd] {
                prop_assert!(commands(&script).iter().all(|c| !c.words.is_empty()));
            }
        }
    }
}
