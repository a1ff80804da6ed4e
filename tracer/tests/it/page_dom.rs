//! Reads a page back, strictly: what this does not understand is a defect of the page.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attrs: BTreeMap<String, String>,
    pub(crate) text: String,
    /// Indices into the list of all elements, from the root down.
    pub(crate) parents: Vec<usize>,
}

impl Element {
    pub(crate) fn attr(&self, name: &str) -> &str {
        self.attrs.get(name).map_or("", String::as_str)
    }
    pub(crate) fn num(&self, name: &str) -> f64 {
        self.attr(name).parse().unwrap_or_else(|_| panic!("{name} of {self:?}"))
    }
    pub(crate) fn has_class(&self, class: &str) -> bool {
        self.attr("class").split(' ').any(|c| c == class)
    }
}

fn unescape(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
    plain.replace("&#96;", "`").replace("&amp;", "&")
}

/// All elements in document order. `text` is an element's own, without its children's.
pub(crate) fn parse(page: &str) -> Vec<Element> {
    let mut rest = page.strip_prefix("<!doctype html>\n").expect("a doctype");
    let (mut all, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        assert!(!text.contains('>') || all[*open.last().unwrap()].name == "style", "{text:?}");
        if let Some(inner) = open.last() {
            all[*inner].text.push_str(&unescape(text));
        }
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("the end of a tag");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let last = open.pop().expect("an open element");
            assert_eq!(all[last].name, name);
            continue;
        }
        let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attrs) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "{tag:?}");
        let mut element = Element { name: name.into(), parents: open.clone(), ..Element::default() };
        while !attrs.is_empty() {
            let (key, value) = attrs.split_once("=\"").unwrap_or_else(|| panic!("{tag:?}"));
            let (value, more) = value.split_once('"').unwrap_or_else(|| panic!("{tag:?}"));
            assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{tag:?}");
            assert!(element.attrs.insert(key.into(), unescape(value)).is_none(), "{key} twice: {tag:?}");
            attrs = more.trim_start();
        }
        if !empty {
            open.push(all.len());
        }
        all.push(element);
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{rest:?}");
    all
}
