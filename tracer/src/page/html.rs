//! The only way in which a page comes to be: names of elements and attributes are literals of this program, and every
//! value goes through one escape. What processes, containers and requests say is hostile.

use crate::sinks::escape::escape;
use std::fmt::{Display, Write as _};

/// HTML or SVG under construction.
#[derive(Debug, Default)]
pub struct Html {
    out: String,
}

/// An element whose start tag is still open for attributes. It has to be ended by one of `empty`, `text`, `body`.
#[must_use = "an element has to be ended"]
pub struct Tag<'h> {
    html: &'h mut Html,
    name: &'static str,
}

impl Html {
    /// A whole document begins with its type.
    pub fn document() -> Self {
        Html { out: "<!doctype html>\n".into() }
    }

    pub fn finish(self) -> String {
        self.out
    }

    pub fn tag(&mut self, name: &'static str) -> Tag<'_> {
        self.out.push('<');
        self.out.push_str(name);
        Tag { html: self, name }
    }

    pub fn text(&mut self, text: &str) {
        quoted(text, &mut self.out);
    }

    /// What this program itself brings along, as it is.
    pub fn literal(&mut self, text: &'static str) {
        self.out.push_str(text);
    }
}

impl Tag<'_> {
    pub fn attr(self, name: &'static str, value: &str) -> Self {
        self.html.out.push(' ');
        self.html.out.push_str(name);
        self.html.out.push_str("=\"");
        quoted(value, &mut self.html.out);
        self.html.out.push('"');
        self
    }

    pub fn class(self, value: &'static str) -> Self {
        self.attr("class", value)
    }

    /// A number, or several of them as in a path or a `viewBox`.
    pub fn num(self, name: &'static str, value: impl Display) -> Self {
        let value = value.to_string();
        self.attr(name, &value)
    }

    /// A coordinate or a length, to a tenth of a pixel.
    pub fn px(self, name: &'static str, value: f64) -> Self {
        self.num(name, Px(value))
    }

    /// An attribute without a value, when `on`.
    pub fn flag(self, name: &'static str, on: bool) -> Self {
        if on { self.attr(name, "") } else { self }
    }

    pub fn empty(self) {
        self.html.out.push_str("/>");
    }

    pub fn text(self, text: &str) {
        self.body(|html| html.text(text));
    }

    pub fn body(self, body: impl FnOnce(&mut Html)) {
        let Tag { html, name } = self;
        html.out.push('>');
        body(html);
        html.out.push_str("</");
        html.out.push_str(name);
        html.out.push('>');
        // One line for each block, so that a page can be read and compared.
        if !matches!(name, "a" | "b" | "span" | "code" | "text" | "title" | "tspan" | "th" | "td" | "summary" | "label")
        {
            html.out.push('\n');
        }
    }
}

/// Text or the value of an attribute: first what would act on a terminal or turn the text around is written out, then
/// what has a meaning in HTML.
fn quoted(text: &str, out: &mut String) {
    for c in escape(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '`' => out.push_str("&#96;"),
            c => out.push(c),
        }
    }
}

/// One component of a URL, RFC 3986 section 2.
pub fn component(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => _ = write!(out, "%{other:02X}"),
        }
    }
    out
}

/// A length without needless digits.
pub struct Px(pub f64);

impl Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = (self.0 * 10.0).round();
        // What is not finite has no place on a page.
        let tenths = if tenths.is_finite() { tenths as i64 } else { 0 };
        let sign = if tenths < 0 { "-" } else { "" };
        match (tenths.abs() / 10, tenths.abs() % 10) {
            (whole, 0) => write!(f, "{sign}{whole}"),
            (whole, tenth) => write!(f, "{sign}{whole}.{tenth}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> String {
        let mut html = Html::default();
        html.tag("a").attr("href", text).text(text);
        html.finish()
    }

    #[test]
    fn what_has_a_meaning_is_escaped() {
        assert_eq!(one("<b>&'\"`"), "<a href=\"&lt;b&gt;&amp;&#39;&quot;&#96;\">&lt;b&gt;&amp;&#39;&quot;&#96;</a>");
        assert_eq!(one("\u{202e}x\n"), "<a href=\"\\u{202e}x\\n\">\\u{202e}x\\n</a>");
    }

    #[test]
    fn lengths_are_short() {
        let all = [1.0, 1.25, -0.04, -3.16, f64::NAN, f64::INFINITY].map(|n| Px(n).to_string());
        assert_eq!(all, ["1", "1.3", "0", "-3.2", "0", "0"]);
    }

    #[test]
    fn a_component_of_a_url_cannot_leave_it() {
        assert_eq!(component("a/../b?c=d&e#f \"ä"), "a%2F..%2Fb%3Fc%3Dd%26e%23f%20%22%C3%A4");
    }

    proptest! {
        #[test]
        fn no_text_leaves_its_place(text in any::<String>()) {
            let out = one(&text);
            let inner = out.strip_prefix("<a href=\"").and_then(|rest| rest.strip_suffix("</a>"));
            let (attr, body) = inner.and_then(|rest| rest.split_once("\">")).unwrap();
            prop_assert!(!attr.contains(['"', '<', '>', '\'', '`']), "{attr}");
            prop_assert!(!body.contains(['"', '<', '>', '\'', '`']), "{body}");
            prop_assert_eq!(attr, body);
        }
    }
}
