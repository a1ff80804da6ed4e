//! The precedence table of docs/causes.md, and whether verdicts keep to it. Used by the replays here and, by path, by the
//! live tests.

use std::collections::BTreeMap;
use std::path::Path;
use why502::model::Incident;

/// A pair of causes, and which of the two wins; `None`: they cannot match together, or one rule decides between them.
pub type Rows = BTreeMap<[String; 2], Option<String>>;

/// Reads the table. Says what is wrong with it.
pub fn rows() -> Result<Rows, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/causes.md");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Rows, String> {
    let (_, table) = text.split_once("\n| pair | winner | why |\n").ok_or("docs/causes.md has no precedence table")?;
    let mut rows = Rows::new();
    for line in table.lines().skip(1).take_while(|l| l.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [pair, winner, _] = cells[..] else { return Err(format!("not three cells: {line}")) };
        let [a, b] = ids(pair)[..] else { return Err(format!("not a pair: {line}")) };
        let winner = ids(winner).first().map(|w| (*w).to_owned());
        if winner.as_deref().is_some_and(|w| w != a && w != b) {
            return Err(format!("the winner is none of the two: {line}"));
        }
        if rows.insert(key(a, b), winner).is_some() {
            return Err(format!("a second row of this pair: {line}"));
        }
    }
    if rows.is_empty() { Err("the precedence table is empty".into()) } else { Ok(rows) }
}

/// What stands between backquotes.
fn ids(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn key(a: &str, b: &str) -> [String; 2] {
    let mut pair = [a.to_owned(), b.to_owned()];
    pair.sort();
    pair
}

/// What of these verdicts has no row, or another winner than its row.
pub fn violations<'a>(incidents: impl IntoIterator<Item = &'a Incident>, rows: &Rows) -> Vec<String> {
    let mut wrong = Vec::new();
    for i in incidents {
        for other in &i.also_matched {
            let (won, lost) = (i.cause.id(), other.id());
            match rows.get(&key(won, lost)) {
                None => wrong.push(format!("{won} won over {lost}, and docs/causes.md has no row for the two")),
                Some(winner) if winner.as_deref() != Some(won) => {
                    let says = winner.as_deref().unwrap_or("that they do not match together");
                    wrong.push(format!("{won} won over {lost}, and docs/causes.md says {says}"));
                }
                Some(_) => {}
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "text\n| pair | winner | why |\n|---|---|---|\n";

    #[test]
    fn the_table_is_read_row_by_row() {
        let text =
            format!("{HEAD}| `b`, `a` | `a` | since `c` |\n| `c`, `a` | one rule decides | |\n\n| `x`, `y` | `x` | |");
        let rows = parse(&text).unwrap();
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!(rows[&key("a", "b")].as_deref(), Some("a"));
        assert_eq!(rows[&key("a", "c")], None);
    }

    #[test]
    fn a_bad_table_is_an_error() {
        for bad in ["| `a` | `a` | |", "| `a`, `b` | `c` | |", "| `a`, `b` | `a` |", ""] {
            assert!(parse(&format!("{HEAD}{bad}\n")).is_err(), "{bad}");
        }
        assert!(parse(&format!("{HEAD}| `a`, `b` | `a` | |\n| `b`, `a` | `b` | |\n")).is_err(), "twice");
        assert!(parse("no table").is_err());
    }
}
