//! Strings that come from processes, containers and requests are hostile: a comm may hold an escape sequence that
//! repaints the terminal, a path may hold a bidi override that turns its end around.

use std::borrow::Cow;

/// `text` with everything that is not printed as itself written out: control characters, bidi and other format
/// characters, unusual spaces, unassigned code points, lone combining marks. A backslash is doubled, so that the
/// result is unambiguous.
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_plain(c) {
            out.push(c);
        } else if c.is_ascii_control() && !matches!(c, '\n' | '\r' | '\t') {
            out.push_str(&format!("\\x{:02x}", u32::from(c)));
        } else {
            out.extend(c.escape_default());
        }
    }
    Cow::Owned(out)
}

/// The same between double quotes, for arguments.
pub fn quote(text: &str) -> String {
    format!("\"{}\"", escape(text).replace('"', "\\\""))
}

/// `escape_debug` knows Unicode's categories: it leaves only what is printable. It would also escape quotes, which are
/// harmless here.
fn is_plain(c: char) -> bool {
    match c {
        '\'' | '"' => true,
        '\\' => false,
        _ => c.is_ascii_graphic() || c == ' ' || (!c.is_ascii() && c.escape_debug().len() == 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_is_untouched() {
        for text in ["nginx: worker process", "ünïcode 名前", "it's \"quoted\"", ""] {
            assert!(matches!(escape(text), Cow::Borrowed(t) if t == text), "{text}");
        }
    }

    #[test]
    fn what_would_act_is_written_out() {
        assert_eq!(escape("\x1b[31mred"), "\\x1b[31mred");
        assert_eq!(escape("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(escape("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(escape("zero\u{200b}width\u{feff}"), "zero\\u{200b}width\\u{feff}");
        assert_eq!(escape("c1\u{9b}31m"), "c1\\u{9b}31m");
        assert_eq!(escape("nb\u{a0}sp\u{2028}"), "nb\\u{a0}sp\\u{2028}");
        assert_eq!(escape("C:\\x1b"), "C:\\\\x1b");
        assert_eq!(quote("say \"hi\"\n"), "\"say \\\"hi\\\"\\n\"");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_left(text in any::<String>()) {
            let out = escape(&text);
            prop_assert!(out.chars().all(|c| c == ' ' || (!c.is_control() && !c.is_whitespace())), "{out:?}");
            let format = |c: char| matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
            prop_assert!(!out.chars().any(format), "{out:?}");
            // Printing what was escaped once more changes nothing but the backslashes.
            prop_assert_eq!(escape(&out), out.replace('\\', "\\\\"));
        }
    }
}
