//! nginx's words, quotes and comments, as `ngx_conf_read_token()` reads them.

/// What ended a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Semicolon,
    /// `{`
    Block,
    /// `{`, and what is in it is another language: OpenResty's `…_by_lua_block`. It has been passed over.
    Code,
    /// `}`
    Close,
    File,
}

/// Words up to the end of a directive, of a block's head, of a block or of the file.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) words: Vec<String>,
    /// Of the first word; of the end, when there is none.
    pub(super) line: u32,
    pub(super) end: End,
}

pub(super) struct Tokens<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: u32,
}

type Problem = (u32, String);

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Tokens { rest: text.chars().peekable(), line: 1 }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.line += u32::from(c == '\n');
        Some(c)
    }

    /// An error carries its line.
    pub(super) fn statement(&mut self) -> Result<Token, Problem> {
        let mut words: Vec<String> = Vec::new();
        let mut line = None;
        loop {
            let Some(&c) = self.rest.peek() else {
                return Ok(Token { words, line: line.unwrap_or(self.line), end: End::File });
            };
            match c {
                ' ' | '\t' | '\r' | '\n' => {
                    self.next();
                }
                '#' => while self.next().is_some_and(|c| c != '\n') {},
                ';' | '{' | '}' => {
                    let line = line.unwrap_or(self.line);
                    self.next();
                    let end = match c {
                        ';' => End::Semicolon,
                        '{' if words.first().is_some_and(|name| name.ends_with("_by_lua_block")) => {
                            self.code(line)?;
                            End::Code
                        }
                        '{' => End::Block,
                        _ => End::Close,
                    };
                    return Ok(Token { words, line, end });
                }
                '"' | '\'' => {
                    line.get_or_insert(self.line);
                    words.push(self.quoted(c)?);
                }
                _ => {
                    line.get_or_insert(self.line);
                    words.push(self.word());
                }
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, Problem> {
        let start = self.line;
        self.next();
        let mut word = String::new();
        loop {
            match self.next() {
                None => return Err((start, format!("the quote {quote} is not closed"))),
                Some('\\') => escaped(&mut word, self.next()),
                Some(c) if c == quote => break,
                Some(c) => word.push(c),
            }
        }
        match self.rest.peek() {
            None | Some(' ' | '\t' | '\r' | '\n' | ';' | '{' | ')') => Ok(word),
            Some(&c) => Err((self.line, format!("unexpected {c:?} after a quote"))),
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        let mut variable = false;
        while let Some(&c) = self.rest.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' => break,
                // `${name}` is part of the word; another brace begins a block.
                '{' if !variable => break,
                _ => {}
            }
            self.next();
            variable = c == '$';
            if c == '\\' {
                escaped(&mut word, self.next());
            } else {
                word.push(c);
            }
        }
        word
    }

    /// Passes over a block of Lua up to its `}`: strings and comments may hold braces.
    fn code(&mut self, start: u32) -> Result<(), Problem> {
        let mut depth = 1;
        while let Some(c) = self.next() {
            match c {
                '{' => depth += 1,
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                '"' | '\'' => {
                    while let Some(inner) = self.next() {
                        match inner {
                            '\\' => {
                                self.next();
                            }
                            '\n' => break,
                            _ if inner == c => break,
                            _ => {}
                        }
                    }
                }
                '-' if self.rest.peek() == Some(&'-') => {
                    self.next();
                    if self.rest.peek() == Some(&'[') {
                        self.next();
                        self.long_bracket();
                    } else {
                        while self.rest.peek().is_some_and(|c| *c != '\n') {
                            self.next();
                        }
                    }
                }
                '[' => self.long_bracket(),
                _ => {}
            }
        }
        Err((start, "the block of Lua is not closed".to_owned()))
    }

    /// After `[`: a long string `[==[ … ]==]`, or nothing special.
    fn long_bracket(&mut self) {
        let mut level = 0;
        while self.rest.peek() == Some(&'=') {
            self.next();
            level += 1;
        }
        if self.rest.peek() != Some(&'[') {
            return;
        }
        self.next();
        let mut closing: Option<usize> = None;
        while let Some(c) = self.next() {
            closing = match (c, closing) {
                (']', Some(n)) if n == level => return,
                (']', _) => Some(0),
                ('=', Some(n)) => Some(n + 1),
                _ => None,
            };
        }
    }
}

/// The character after a backslash: nginx takes quotes, backslash and t, r, n; others keep their backslash.
fn escaped(word: &mut String, c: Option<char>) {
    match c {
        Some(c @ ('"' | '\'' | '\\')) => word.push(c),
        Some('t') => word.push('\t'),
        Some('r') => word.push('\r'),
        Some('n') => word.push('\n'),
        Some(c) => word.extend(['\\', c]),
        None => word.push('\\'),
    }
}
