//! The gate on the probes' sources. It is a rule on text, not on types: it makes sure that loads of kernel memory are
//! *written* only in the two files whose few functions are reviewed for it, and that siginfo goes through a helper. What
//! it cannot see (a macro or a dependency that loads) is left to review.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Where the probes' sources are, from the workspace's root.
const SOURCES: &str = "tracer-ebpf/src";

/// The files that may load: the context's slots, and members of structs.
const LOADERS: &[&str] = &["kernel/arg.rs", "kernel/mem.rs"];

/// A text that may stand only in some files.
struct Rule {
    /// Any of these, in code (comments and strings are not looked at).
    texts: &'static [&'static str],
    /// Files (or folders, with a `/` at the end) that the rule is for.
    within: &'static [&'static str],
    /// Files in which it may stand nevertheless.
    except: &'static [&'static str],
    why: &'static str,
}

const SIGINFO: &str = "siginfo may be the constants 0 and 1, and on 6.12 to 7.1 a typed load through it has no exception \
                       table: the first SIGALRM of an itimer panics the node. Only kernel/siginfo.rs reads it, with \
                       bpf_probe_read_kernel";

const RULES: &[Rule] = &[
    Rule {
        texts: &[
            "read_volatile",
            "read_unaligned",
            ".read()",
            "ptr::read",
            "copy_nonoverlapping",
            "copy_from",
            "copy_to",
            "from_raw_parts",
            ".as_ref()",
            ".as_mut()",
            "transmute",
            "asm!",
        ],
        within: &["main.rs", "emit.rs", "maps.rs", "stops.rs", "probes/", "kernel/"],
        except: LOADERS,
        why: "a load through a kernel pointer. Only kernel/arg.rs (the context's slots) and kernel/mem.rs (members of \
              structs) may hold one: a trusted pointer has no exception table, so a bad one panics the node",
    },
    Rule {
        texts: &[".arg(", ".arg::<", "as_ptr() as *const"],
        within: &["main.rs", "emit.rs", "maps.rs", "stops.rs", "probes/", "kernel/"],
        except: &["kernel/arg.rs"],
        why: "an argument taken without kernel::arg's range test: the kernel passes NULL and small integers where the \
              verifier believes in a pointer",
    },
    Rule {
        texts: &["pointer(ctx, 1)", "raw(ctx, 1)"],
        within: &["probes/signal_generate.rs", "probes/signal_deliver.rs"],
        except: &[],
        why: SIGINFO,
    },
    Rule { texts: &["Typed", "arg::pointer", "pointer("], within: &["kernel/siginfo.rs"], except: &[], why: SIGINFO },
];

/// A line that reads as a load of kernel memory, and is none or is reviewed.
struct Known {
    file: &'static str,
    /// As it stands on the line.
    text: &'static str,
    /// How many such lines are reviewed, where the text alone would let in others.
    lines: Option<usize>,
    /// What it reads or writes.
    #[allow(dead_code, reason = "for the table's readers; an entry without a reason does not compile")]
    what: &'static str,
}

const KNOWN: &[Known] = &[
    Known { file: "emit.rs", text: "addr_of_mut!((*$p)", lines: Some(1), what: "the address of a field of a record" },
    Known { file: "emit.rs", text: "*p += 1", lines: Some(1), what: "a slot of the COUNTERS map" },
    Known {
        file: "kernel/cgroup.rs",
        text: ".read_volatile()",
        lines: Some(1),
        what: "sk->sk_cgrp_data.cgroup: as kernel/mem.rs does, at the sum of two offsets",
    },
    Known { file: "kernel/sock.rs", text: "dst.read_volatile()", lines: Some(1), what: "a record" },
    Known {
        file: "probes/mod.rs",
        text: "since.read_volatile()",
        lines: Some(1),
        what: "a value of the LISTENERS map",
    },
    Known { file: "stops.rs", text: "(*old).", lines: Some(1), what: "a value of the STOPPING map" },
    Known { file: "stops.rs", text: "(*stop).", lines: Some(2), what: "a value of the STOPPING map" },
    Known { file: "stops.rs", text: "(*counts).", lines: Some(4), what: "a value of the STOP_COUNTS map" },
    Known { file: "stops.rs", text: "&*p,", lines: Some(1), what: "a value on the stack" },
    Known { file: "stops.rs", text: "*seen }", lines: Some(1), what: "the slot of the STOPS_SEEN map" },
    Known {
        file: "probes/inet_sock_set_state.rs",
        text: "(*digest).",
        lines: Some(2),
        what: "a value of the DIGESTS map",
    },
    Known { file: "probes/tcp_send_reset.rs", text: "(*d).", lines: None, what: "a value of the DIGESTS map" },
];

const DEREF: &str = "a dereference outside kernel/mem.rs. If it reads no kernel memory (a map's value, a record), name it \
                     in KNOWN of xtask/src/gates/source.rs; taking an address is addr_of!((*p).field)";

/// Checks every source of the probes; the error lists each line that breaks a rule.
pub(crate) fn check(root: &Path) -> Result<()> {
    let sources = root.join(SOURCES);
    let mut files = Vec::new();
    list(&sources, "", &mut files)?;
    let mut wrong = Vec::new();
    for name in &files {
        let path = sources.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        wrong.extend(check_file(name, &text));
    }
    for rule in RULES.iter().flat_map(|rule| rule.within.iter().chain(rule.except)) {
        if !files.iter().any(|name| name.starts_with(rule)) {
            wrong.push(format!("{SOURCES}/{rule}: named by a rule, but not there: mend RULES of xtask's source gate"));
        }
    }
    if !wrong.is_empty() {
        bail!("the gate on the probes' sources refuses:\n  - {}", wrong.join("\n  - "));
    }
    Ok(())
}

/// Rust files below a folder, as names relative to it.
fn list(dir: &Path, prefix: &str, into: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().with_context(|| format!("looking at {name}"))?.is_dir() {
            list(&entry.path(), &format!("{name}/"), into)?;
        } else if name.ends_with(".rs") {
            into.push(name);
        }
    }
    into.sort();
    Ok(())
}

fn check_file(name: &str, text: &str) -> Vec<String> {
    let within = |places: &[&str]| places.iter().any(|p| name == *p || (p.ends_with('/') && name.starts_with(p)));
    // The ABI's library compiles for the host and holds no pointer.
    let probes = ["main.rs", "emit.rs", "maps.rs", "stops.rs"].contains(&name)
        || name.starts_with("probes/")
        || name.starts_with("kernel/");
    let mut wrong = Vec::new();
    let text = code(text);
    for (number, line) in text.lines().enumerate() {
        let mut refuse = |what: &str, why: &str| {
            wrong.push(format!("{SOURCES}/{name}:{}: `{what}`: {why}", number + 1));
        };
        for rule in RULES.iter().filter(|rule| within(rule.within) && !within(rule.except)) {
            let found = rule.texts.iter().find(|text| line.contains(**text));
            if let Some(text) = found.filter(|_| !known(name, line)) {
                refuse(text, rule.why);
            }
        }
        if probes && !LOADERS.contains(&name) && !known(name, line) && dereferences(line) {
            refuse(line.trim(), DEREF);
        }
    }
    for known in KNOWN.iter().filter(|known| known.file == name) {
        let count = text.lines().filter(|line| line.contains(known.text)).count();
        if known.lines.is_some_and(|lines| count > lines) {
            wrong.push(format!(
                "{SOURCES}/{name}: {count} lines hold `{}`, but fewer are reviewed: {DEREF}",
                known.text
            ));
        }
    }
    wrong
}

fn known(file: &str, line: &str) -> bool {
    KNOWN.iter().any(|known| known.file == file && line.contains(known.text))
}

/// Whether a line of code holds a unary `*` that is neither a pointer type nor only the taking of an address.
fn dereferences(line: &str) -> bool {
    line.match_indices('*').any(|(at, _)| {
        let (before, after) = (line[..at].trim_end(), line[at + 1..].trim_start());
        let pointer_type = after.starts_with("const ") || after.starts_with("mut ");
        let literal = after.starts_with('"') || after.starts_with("b\"");
        let address = ["addr_of!(", "addr_of_mut!(", "&raw const ", "&raw mut "]
            .iter()
            .any(|taking| before.trim_end_matches('(').ends_with(taking.trim_end_matches('(')));
        // After a value it is a multiplication, a macro's repetition or a glob.
        let word = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
        let keyword = ["return", "in", "if", "while", "match", "else", "break", "mut"].contains(&word);
        let value = !word.is_empty() || before.ends_with([')', ']', ':', '$', '}']);
        !pointer_type && !literal && !address && (keyword || !value)
    })
}

/// The text with comments and the contents of strings blanked; lines stay where they are.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (skipped, kept) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), "")
        } else if rest.starts_with("/*") {
            (block_comment(rest), " ")
        } else if c == '"' {
            (string(rest), "\"\"")
        } else if let Some(len) = char_literal(rest) {
            (len, "' '")
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        out.push_str(kept);
        out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        rest = &rest[skipped..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a character literal; none for a lifetime.
fn char_literal(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        // The escaped character itself may be a quote.
        let past = escape.chars().next()?.len_utf8();
        return Some(2 + past + escape[past..].find('\'')? + 1);
    }
    let first = inner.chars().next()?;
    inner[first.len_utf8()..].starts_with('\'').then_some(2 + first.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, text: &str) -> bool {
        !check_file(name, text).is_empty()
    }

    #[test]
    fn the_trees_own_sources_pass() {
        check(&crate::sh::root()).expect("the probes' sources");
    }

    #[test]
    fn typed_siginfo_is_refused() {
        let wrong = check_file("probes/signal_generate.rs", "fn f() {\n    let i = arg::pointer(ctx, 1);\n}\n");
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("tracer-ebpf/src/probes/signal_generate.rs:2: "), "{wrong:?}");
        assert!(wrong[0].contains("panics"), "{wrong:?}");
        assert!(refused("probes/signal_deliver.rs", "let i = arg::raw(ctx, 1);"));
        assert!(refused("kernel/siginfo.rs", "let code = Typed::u32(p, &f::SIGINFO_CODE);"));
        assert!(!refused("probes/signal_generate.rs", "let (a, b, c) = siginfo::read(ctx, 1);"));
        assert!(!refused("probes/sched_process_fork.rs", "let p = arg::pointer(ctx, 1);"));
    }

    #[test]
    fn loads_are_refused_outside_the_two_files() {
        for load in
            ["let v = p.read_volatile();", "let v = *p;", "f(*p)", "if *p == 1 {", "return *p;", "(*d).ts", "!*p"]
        {
            assert!(refused("probes/mark_victim.rs", load), "{load}");
            assert!(refused("kernel/sock.rs", load), "{load}");
            assert!(!refused("kernel/mem.rs", load), "{load}");
        }
        assert!(refused("probes/x.rs", "let a = ctx.arg(0);"));
        assert!(refused("emit.rs", "let v = *q;"), "only what is in the table");
        assert!(!refused("emit.rs", "*p += 1"));
        assert!(refused("emit.rs", "*p += 1\n*p += 1"), "a second one is not reviewed");
        assert!(!refused("lib.rs", "let v = *q;"), "the ABI holds no kernel pointer");
    }

    #[test]
    fn what_only_looks_like_a_load_passes() {
        for fine in [
            "unsafe fn f(p: *const u8, q: *mut T) -> *const u8 {",
            "let x = hook * counter::PER_HOOK;",
            "let x = (a + b) * c;",
            "task::write(core::ptr::addr_of_mut!((*p).task), t);",
            "let a = &raw const (*p).task;",
            "// then *p is read",
            "/* a /* nested */ *p */",
            "let s = \"*p \\\" *q\"; let c = '*';",
            "static LICENSE: [u8; 13] = *b\"Dual MIT/GPL\\0\";",
            "use super::*;",
            "fn f<'a>(x: &'a u8) {}",
            "p.write_volatile(0);",
        ] {
            assert!(!refused("probes/x.rs", fine), "{fine}: {:?}", check_file("probes/x.rs", fine));
        }
    }

    #[test]
    fn lines_keep_their_numbers_past_comments_and_strings() {
        let text = "/* one\ntwo */\nlet s = \"a\nb\";\nlet v = *p;\n";
        let wrong = check_file("probes/x.rs", text);
        assert!(wrong[0].starts_with("tracer-ebpf/src/probes/x.rs:5: "), "{wrong:?}");
    }

    #[test]
    fn any_text_is_taken_without_a_panic() {
        for text in ["'", "'\\", "'\\'", "\"\\", "/*", "/* é", "'é'", "*", "\"é", "'\\é'"] {
            let _ = check_file("probes/x.rs", text);
        }
    }
}
