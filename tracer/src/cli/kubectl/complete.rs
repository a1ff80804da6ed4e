//! `kubectl_complete-why502`: what may stand next after `kubectl why502 …`. kubectl's own completion runs the program of that
//! name in the path, with the words until now; it takes a proposal a line, and what the shell is to do with them in the last.

use super::cluster::Cluster;
use super::{KINDS, POD_KINDS};
use clap::{ArgAction, Command};
use std::io::Write;
use std::process::ExitCode;

/// cobra's ShellCompDirective: no names of files beside these; names of files; no space after it, and no names of files.
const ONLY: &str = ":4";
const FILES: &str = ":0";
const OPEN: &str = ":6";

/// Propose what may stand next after kubectl why502
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The words until now, the last of which is to be completed
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

pub(in crate::cli) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let command = <super::Args as clap::Args>::augment_args(Command::new("kubectl why502"));
    let known: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let (mut proposals, then) = propose(&command, &known);
    let last = args.words.last().map_or("", String::as_str);
    proposals.retain(|proposal| proposal.starts_with(last));
    let mut text = proposals.join("\n");
    text.extend(["\n", then, "\n"]);
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What was said before the last word.
#[derive(Debug, Default, PartialEq, Eq)]
struct Before<'a> {
    /// The option whose value the last word is.
    open: Option<&'a str>,
    /// Options with their values.
    values: Vec<(&'a str, &'a str)>,
    /// What is no option.
    plain: Vec<&'a str>,
}

impl<'a> Before<'a> {
    fn read(command: &'a Command, words: &[&'a str]) -> Before<'a> {
        let mut before = Before::default();
        for word in words {
            if let Some(id) = before.open.take() {
                before.values.push((id, word));
                continue;
            }
            let (name, value) = word.split_once('=').map_or((*word, None), |(name, value)| (name, Some(value)));
            let is = |arg: &&clap::Arg| match name.strip_prefix("--") {
                Some(long) => arg.get_long() == Some(long),
                None => name.strip_prefix('-').is_some_and(|short| short.chars().eq(arg.get_short())),
            };
            match (command.get_arguments().find(is), value) {
                (Some(arg), Some(value)) => before.values.push((arg.get_id().as_str(), value)),
                (Some(arg), None) if matches!(arg.get_action(), ArgAction::Set) => {
                    before.open = Some(arg.get_id().as_str());
                }
                (None, _) if !word.starts_with('-') => before.plain.push(word),
                _ => {}
            }
        }
        before
    }

    fn value(&self, id: &str) -> Option<String> {
        self.values.iter().rfind(|(of, _)| *of == id).map(|(_, value)| (*value).to_owned())
    }
}

fn propose(command: &Command, words: &[&str]) -> (Vec<String>, &'static str) {
    let Some((last, words)) = words.split_last() else { return (vec![], ONLY) };
    let before = Before::read(command, words);
    let value = |id: &str| before.value(id);
    let cluster = Cluster::new([
        ("--context", &value("context")),
        ("--kubeconfig", &value("kubeconfig")),
        ("--as", &value("user")),
    ]);
    if let Some(open) = before.open {
        return match open {
            "namespace" | "agents" => (named(cluster.names(&["get", "namespaces"])), ONLY),
            "context" => (cluster.names(&["config", "get-contexts"]), ONLY),
            "kubeconfig" => (vec![], FILES),
            _ => {
                let arg = command.get_arguments().find(|arg| arg.get_id().as_str() == open);
                let values = arg.map(|arg| arg.get_possible_values()).unwrap_or_default();
                (values.iter().map(|value| value.get_name().to_owned()).collect(), ONLY)
            }
        };
    }
    if last.starts_with('-') {
        let flag = |arg: &clap::Arg| Some(format!("--{}\t{}", arg.get_long()?, arg.get_help()?));
        return (command.get_arguments().filter_map(flag).collect(), ONLY);
    }
    let namespace = value("namespace");
    let place = namespace.as_deref().map(|name| vec!["-n", name]).unwrap_or_default();
    let get = |kinds: &str| cluster.names(&[&["get", kinds], &place[..]].concat());
    match (before.plain.as_slice(), last.split_once('/')) {
        ([], Some((kind, _))) if known(kind) => {
            (named(get(kind)).into_iter().map(|name| format!("{kind}/{name}")).collect(), ONLY)
        }
        ([], None) => {
            let mut all = named(get("pods"));
            let kinds = KINDS.iter().map(|(_, names)| names[0]).chain(POD_KINDS.into_iter().take(1));
            all.extend(kinds.map(|kind| format!("{kind}/")));
            // A kind goes on with a name, and without a space.
            let then = if all.iter().any(|one| one.ends_with('/') && one.starts_with(last)) { OPEN } else { ONLY };
            (all, then)
        }
        ([kind], None) if known(kind) => (named(get(kind)), ONLY),
        _ => (vec![], ONLY),
    }
}

fn known(kind: &str) -> bool {
    KINDS.iter().any(|(_, names)| names.contains(&kind)) || POD_KINDS.contains(&kind)
}

/// Without `deployment.apps/`.
fn named(names: Vec<String>) -> Vec<String> {
    names.into_iter().map(|name| name.rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        <super::super::Args as clap::Args>::augment_args(Command::new("x"))
    }

    #[test]
    fn what_was_said_before() {
        let command = command();
        let read = |words: &[&'static str]| Before::read(&command, words);
        let before = read(&["-n", "shop", "--kind=stops", "-A", "deployment", "--context"]);
        assert_eq!(before.values, [("namespace", "shop"), ("kind", "stops")]);
        assert_eq!((before.open, before.plain), (Some("context"), vec!["deployment"]));
        assert_eq!(read(&["--unknown", "-x"]), Before::default());
    }

    #[test]
    fn options_and_their_values() {
        let command = command();
        let propose = |words: &[&str]| propose(&command, words);
        assert!(propose(&["web", "--k"]).0.iter().any(|flag| flag.starts_with("--kind\t")));
        let (kinds, then) = propose(&["--kind", ""]);
        assert!(kinds.contains(&"stops".to_owned()) && then == ONLY, "{kinds:?}");
        assert_eq!(propose(&["--kubeconfig", ""]), (vec![], FILES));
        assert_eq!(propose(&["--since", ""]), (vec![], ONLY));
        assert_eq!(propose(&["svc/"]), (vec![], ONLY));
        assert_eq!(propose(&["pod", "web", ""]), (vec![], ONLY));
        assert_eq!(propose(&[]), (vec![], ONLY));
    }
}
