//! `--runtime`: which container runtimes are asked for names.

use crate::sources::runtimes::Wish;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct RuntimeArgs {
    /// Container runtime to ask for names: auto, none, or sockets such as unix:///run/docker.sock
    #[arg(long = "runtime", value_name = "WHERE", value_delimiter = ',', value_parser = value)]
    runtimes: Vec<String>,
}

impl RuntimeArgs {
    pub(super) fn wish(&self) -> anyhow::Result<Wish> {
        Wish::of(&self.runtimes).map_err(|why| anyhow::anyhow!("--runtime: {why}"))
    }
}

/// Bad usage is told before anything else is looked at.
fn value(text: &str) -> Result<String, String> {
    Wish::of(&[text.to_owned()]).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_or_sockets() {
        let wish = |values: &[&str]| {
            let runtimes = values.iter().map(|v| value(v)).collect::<Result<_, _>>()?;
            RuntimeArgs { runtimes }.wish().map_err(|e| e.to_string())
        };
        assert_eq!(wish(&[]), Ok(Wish::Auto));
        assert_eq!(wish(&["none"]), Ok(Wish::None));
        assert_eq!(wish(&["/a.sock"]), Ok(Wish::Sockets(vec!["/a.sock".into()])));
        assert!(wish(&["docker"]).unwrap_err().contains("unix:///run/containerd/containerd.sock"));
        assert!(wish(&["none", "/a.sock"]).unwrap_err().starts_with("--runtime: "));
    }
}
