//! The text format, version 0.0.4: what every Prometheus reads.

use super::{ALL, Metric, Type};
use std::fmt::{Display, Write};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The samples of a scrape, in any order; written in the table's.
#[derive(Debug, Default)]
pub struct Text {
    families: Vec<(&'static str, String)>,
}

impl Text {
    /// One sample. `labels` are the values of the metric's labels, in its order.
    pub fn add(&mut self, metric: &Metric, labels: &[&str], value: impl Display) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let at = match self.families.iter().position(|(name, _)| *name == metric.name) {
            Some(at) => at,
            None => {
                self.families.push((metric.name, String::new()));
                self.families.len() - 1
            }
        };
        let lines = &mut self.families[at].1;
        lines.push_str(metric.name);
        for (i, (name, value)) in metric.labels.iter().zip(labels).enumerate() {
            lines.push_str(if i == 0 { "{" } else { "," });
            lines.push_str(name);
            lines.push_str("=\"");
            escape(value, lines);
            lines.push('"');
        }
        if !metric.labels.is_empty() {
            lines.push('}');
        }
        // Writing into a String does not fail.
        let _ = writeln!(lines, " {value}");
    }

    /// The page. Families without a sample are left out.
    pub fn finish(self) -> String {
        let mut out = String::new();
        for metric in ALL {
            let Some((_, lines)) = self.families.iter().find(|(name, _)| *name == metric.name) else { continue };
            let kind = match metric.kind {
                Type::Counter => "counter",
                Type::Gauge => "gauge",
            };
            let _ = write!(out, "# HELP {} {}\n# TYPE {0} {kind}\n{lines}", metric.name, metric.help);
        }
        out
    }
}

/// Label values are hostile: a line end would forge samples. Besides what the format wants escaped, other control and bidi
/// characters are written out, for people read this page too.
fn escape(value: &str, out: &mut String) {
    // Backslashes are doubled once by us and once for the format, as they have to be.
    for c in crate::sinks::escape::escape(value).chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BUILD_INFO, READY, SIGNALS};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn families_in_the_tables_order() {
        let mut text = Text::default();
        text.add(&SIGNALS, &["SIGTERM"], 3);
        text.add(&READY, &[], 1);
        text.add(&SIGNALS, &["SIGQUIT"], 1.5);
        assert_eq!(
            text.finish(),
            "# HELP why502_ready 1 once all probes are attached and the scan at the start is done.\n\
             # TYPE why502_ready gauge\nwhy502_ready 1\n\
             # HELP why502_signals_total Signals that were generated for watched processes.\n\
             # TYPE why502_signals_total counter\n\
             why502_signals_total{signal=\"SIGTERM\"} 3\nwhy502_signals_total{signal=\"SIGQUIT\"} 1.5\n"
        );
    }

    #[test]
    fn names_keep_prometheus_conventions() {
        let mut names = BTreeSet::new();
        for metric in ALL {
            assert!(names.insert(metric.name), "{} is there twice", metric.name);
            assert!(metric.name.starts_with("why502_") || metric.name.starts_with("process_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Type::Counter, "{}", metric.name);
            let plain = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            assert!(plain(metric.name) && metric.labels.iter().all(|l| plain(l) && !l.starts_with("__")));
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{}", metric.name);
        }
    }

    proptest! {
        #[test]
        fn a_label_stays_in_its_quotes(value in any::<String>()) {
            let mut text = Text::default();
            text.add(&BUILD_INFO, &["1", &value, "n"], 1);
            let page = text.finish();
            prop_assert_eq!(page.lines().count(), 3, "{}", page);
            let line = page.lines().last().unwrap();
            let rest = line.strip_prefix("why502_build_info{version=\"1\",kernel=\"").unwrap();
            // To the quote that ends it, as a parser of the format goes.
            let (mut inside, mut chars) = (String::new(), rest.chars());
            loop {
                match chars.next().unwrap() {
                    '"' => break,
                    '\\' => inside.push(match chars.next().unwrap() { c @ ('\\' | '"') => c, c => panic!("\\{c}") }),
                    c => inside.push(c),
                }
            }
            prop_assert_eq!(inside, crate::sinks::escape::escape(&value));
            prop_assert_eq!(chars.as_str(), ",node=\"n\"} 1");
        }
    }
}
