//! Image configurations in JSON: the OCI image config, `docker image inspect`, `docker inspect`, `crictl inspecti`.

use crate::model::place::{At, Place, Trouble};
use crate::sinks::names::signal_number;
use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Null in the file: the runtime takes SIGTERM.
    pub stop_signal: Option<At<u32>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// Made from the official nginx or php image: both leave their version in the environment.
    pub official: bool,
    pub at: Option<Place>,
}

/// Where the tools put the image's configuration object.
const PATHS: &[&str] = &["/config", "/Config", "/info/imageSpec/config", "/container_config", ""];
const MEMBERS: &[&str] = &["StopSignal", "Entrypoint", "Cmd", "Env", "WorkingDir", "ExposedPorts"];

impl Facts {
    pub fn read(name: &str, text: &str) -> Result<Facts, Trouble> {
        let at = Place::of(name);
        let value: Value = serde_json::from_str(text).map_err(|e| {
            Trouble::new(Place::line(name, u32::try_from(e.line()).unwrap_or(0).max(1)), format!("not JSON: {e}"))
        })?;
        // docker inspect prints a list, also of one.
        let value = match &value {
            Value::Array(all) if all.len() == 1 => &all[0],
            Value::Array(all) => return Err(Trouble::new(at, format!("{} images in a list: give one", all.len()))),
            one => one,
        };
        let is_config = |v: &&Value| MEMBERS.iter().any(|member| v.get(member).is_some());
        let Some(config) = PATHS.iter().filter_map(|path| value.pointer(path)).find(is_config) else {
            return Err(Trouble::new(at, "no image configuration (an object with Entrypoint, Cmd or StopSignal)"));
        };
        let stop_signal = match config.get("StopSignal").and_then(Value::as_str).filter(|s| !s.is_empty()) {
            None => None,
            Some(signal) => {
                let wrong = || Trouble::new(at.clone(), format!("StopSignal {signal:?} is not a signal"));
                Some(At::new(signal_number(signal).ok_or_else(wrong)?, at.clone()))
            }
        };
        let official = words(config, "Env").is_some_and(|env| {
            env.iter().any(|entry| entry.starts_with("NGINX_VERSION=") || entry.starts_with("PHP_VERSION="))
        });
        Ok(Facts {
            official,
            stop_signal,
            entrypoint: words(config, "Entrypoint"),
            cmd: words(config, "Cmd"),
            at: Some(at),
        })
    }
}

fn words(config: &Value, member: &str) -> Option<Vec<String>> {
    let all = config.get(member)?.as_array()?;
    Some(all.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_the_tools() {
        let config = r#"{"Entrypoint":["/docker-entrypoint.sh"],"Cmd":["nginx"],"StopSignal":"SIGQUIT","Env":[]}"#;
        for text in [
            format!(r#"{{"architecture":"amd64","config":{config}}}"#),
            format!(r#"[{{"Id":"x","Config":{config}}}]"#),
            format!(r#"{{"status":{{}},"info":{{"imageSpec":{{"config":{config}}}}}}}"#),
            config.to_owned(),
        ] {
            let facts = Facts::read("i", &text).unwrap();
            assert_eq!(facts.stop_signal.unwrap().value, 3, "{text}");
            assert_eq!(facts.entrypoint.unwrap(), ["/docker-entrypoint.sh"]);
            assert_eq!(facts.cmd.unwrap(), ["nginx"]);
        }
        let none = Facts::read("i", r#"{"config":{"Cmd":null,"Env":[]}}"#).unwrap();
        assert_eq!((none.stop_signal, none.cmd, none.entrypoint), (None, None, None));
    }

    #[test]
    fn errors() {
        for (text, wanted) in [
            ("{\n\"a\":", "i:2: not JSON: "),
            ("{}", "i: no image configuration"),
            ("[{},{}]", "i: 2 images in a list: give one"),
            (r#"{"StopSignal":"HALT"}"#, "i: StopSignal \"HALT\" is not a signal"),
        ] {
            let error = Facts::read("i", text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC*", odd in "[\\[\\]{}\":,a-z0-9CmdE]{0,60}") {
            let _ = (Facts::read("f", &text), Facts::read("f", &odd));
        }
    }
}
