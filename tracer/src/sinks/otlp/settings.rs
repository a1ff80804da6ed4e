//! Where records go and what goes with them: what was given, and the variables that OpenTelemetry's own exporters read.

use super::messages::{KeyValue, Value};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use std::str::FromStr;

/// What a header of the request is not allowed to be: the request itself has them.
const OURS: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING];

/// A receiver's address for logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) authority: String,
    pub(super) path: String,
}

impl Endpoint {
    /// `http://HOST:4318`, and the path below which the receiver's own begin.
    pub fn base(text: &str) -> Result<Endpoint, String> {
        let Endpoint { authority, path } = Endpoint::exact(text, 4318)?;
        let base = path.trim_end_matches('/');
        // Who gives the whole path of the logs means that one.
        let path = if base.ends_with("/v1/logs") { base.to_owned() } else { format!("{base}/v1/logs") };
        Ok(Endpoint { authority, path })
    }

    /// The whole address. `port`: where it names none.
    fn exact(text: &str, port: u16) -> Result<Endpoint, String> {
        if text.starts_with("https://") {
            return Err("TLS is not spoken here: send to a collector of the cluster, which speaks it".into());
        }
        let bad = || format!("{text:?} is no address such as http://otel-collector.monitoring:4318");
        let uri: hyper::Uri = text.parse().map_err(|_| bad())?;
        let plain = uri.scheme_str() == Some("http") && uri.query().is_none();
        let authority = uri.authority().filter(|a| plain && !a.as_str().contains('@')).ok_or_else(bad)?;
        // A port that is no number of 16 bits counts as none there.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => port,
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).ok_or_else(bad)?,
            None => return Err(bad()),
        };
        Ok(Endpoint { authority: format!("{}:{port}", authority.host()), path: uri.path().to_owned() })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// More headers of each request.
#[derive(Clone, Default)]
pub(super) struct Headers(pub(super) HeaderMap);

impl std::fmt::Debug for Headers {
    /// Values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl FromStr for Headers {
    type Err = String;

    fn from_str(text: &str) -> Result<Headers, String> {
        let mut all = HeaderMap::new();
        for (name, value) in pairs(text)? {
            // The value is a secret: it is not told.
            let bad = || format!("{name:?} is no header such as api-key=KEY");
            let key = HeaderName::from_str(name).map_err(|_| bad())?;
            if OURS.contains(&key) {
                return Err(format!("{name:?} is a header that why502 sets itself"));
            }
            let mut value = HeaderValue::from_str(&value).map_err(|_| bad())?;
            value.set_sensitive(true);
            all.insert(key, value);
        }
        Ok(Headers(all))
    }
}

/// `name=value,name=value`, values percent-encoded.
fn pairs(text: &str) -> Result<Vec<(&str, String)>, String> {
    text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(pair).collect()
}

fn pair(text: &str) -> Result<(&str, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not a list such as name=value,name=value")?;
    let (name, value) = (name.trim(), percent_decode_str(value.trim()).decode_utf8());
    Ok((name, value.map_err(|_| format!("the value of {name:?} is not UTF-8"))?.into_owned()))
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) endpoint: Endpoint,
    pub(super) headers: Headers,
    /// Of each resource, such as the cluster's name.
    pub(super) attributes: Vec<KeyValue>,
}

impl Settings {
    /// `given` comes before `variable`'s address. An empty variable counts as none, as OpenTelemetry wants it.
    pub fn read(given: Option<Endpoint>, variable: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let set = |name: &str| variable(name).filter(|text| !text.trim().is_empty());
        // What is said of logs comes before what is said of everything.
        let ours = |what: &str| {
            let names = [format!("OTEL_EXPORTER_OTLP_LOGS_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
            names.into_iter().find_map(|name| set(&name).map(|text| (name, text)))
        };
        let endpoint = match (given, ours("ENDPOINT")) {
            (Some(endpoint), _) => endpoint,
            (None, address) => {
                if let Some((name, protocol)) = ours("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf") {
                    return Err(format!("{name}: {protocol:?} is not spoken here, http/protobuf is"));
                }
                match address {
                    None => Endpoint::base("http://localhost")?,
                    // The address of logs is taken as it is.
                    Some((name, text)) if name.contains("LOGS") => {
                        Endpoint::exact(&text, 80).map_err(|why| format!("{name}: {why}"))?
                    }
                    Some((name, text)) => Endpoint::base(&text).map_err(|why| format!("{name}: {why}"))?,
                }
            }
        };
        let headers = match ours("HEADERS") {
            Some((name, text)) => text.parse().map_err(|why| format!("{name}: {why}"))?,
            None => Headers::default(),
        };
        const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let attributes = set(ATTRIBUTES).unwrap_or_default();
        let attributes = pairs(&attributes).map_err(|why| format!("{ATTRIBUTES}: {why}"))?;
        let attribute =
            |(key, value): (&str, String)| KeyValue { key: key.to_owned(), value: Some(Value::String(value).into()) };
        Ok(Settings { endpoint, headers, attributes: attributes.into_iter().map(attribute).collect() })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> Result<String, String> {
        Endpoint::base(text).map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn addresses() {
        assert_eq!(base("http://collector:4318").unwrap(), "http://collector:4318/v1/logs");
        assert_eq!(base("http://10.0.0.1").unwrap(), "http://10.0.0.1:4318/v1/logs");
        assert_eq!(base("http://[::1]:80/otlp/").unwrap(), "http://[::1]:80/otlp/v1/logs");
        assert_eq!(base("http://x:1/v1/logs").unwrap(), "http://x:1/v1/logs");
        for bad in ["", "collector:4318", "grpc://x:1", "http://u@x", "http://x:99999", "http://", "http://x/?a=b"] {
            assert!(base(bad).unwrap_err().contains("http://otel-collector"), "{bad}");
        }
        assert!(base("https://x").unwrap_err().contains("TLS"));
    }

    #[test]
    fn headers_are_read_and_never_told() {
        let headers: Headers = "api-key=s%20ecret, X-Tenant = shop,".parse().unwrap();
        assert_eq!(headers.0["api-key"], "s ecret");
        assert_eq!(headers.0["x-tenant"], "shop");
        assert!(!format!("{headers:?}").contains("ecret"));
        for bad in ["secret", "a b=secret", "a=%0asecret", "a=%ffsecret", "Content-Length=secret"] {
            assert!(!bad.parse::<Headers>().unwrap_err().contains("secret"), "{bad}");
        }
    }

    fn read(given: Option<&str>, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        Settings::read(given.map(|text| Endpoint::base(text).unwrap()), variable)
    }

    #[test]
    fn variables_of_opentelemetry() {
        let address =
            |given: Option<&str>, variables: &[(&str, &str)]| read(given, variables).unwrap().endpoint.to_string();
        let (all, logs) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT");
        assert_eq!(address(None, &[]), "http://localhost:4318/v1/logs");
        assert_eq!(address(None, &[(all, " "), (logs, "")]), "http://localhost:4318/v1/logs");
        assert_eq!(address(None, &[(all, "http://c:4318/")]), "http://c:4318/v1/logs");
        assert_eq!(address(None, &[(all, "http://c:4318"), (logs, "http://d/in")]), "http://d:80/in");
        assert_eq!(address(None, &[(logs, "http://d:4318")]), "http://d:4318/");
        assert_eq!(address(Some("http://e"), &[(all, "https://c"), (logs, "?")]), "http://e:4318/v1/logs");
        let fails = |variables: &[(&str, &str)], says: &str| {
            let why = read(None, variables).unwrap_err();
            assert!(why.contains(says), "{why}");
        };
        fails(&[(logs, "https://d")], "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: TLS");
        fails(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "OTEL_EXPORTER_OTLP_PROTOCOL: \"grpc\" is not spoken");
        fails(&[("OTEL_EXPORTER_OTLP_HEADERS", "secret")], "OTEL_EXPORTER_OTLP_HEADERS: it is not a list");
        fails(&[("OTEL_RESOURCE_ATTRIBUTES", "x")], "OTEL_RESOURCE_ATTRIBUTES: it is not a list");
        let all = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "b=2"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=prod%201,x=y"),
        ];
        let settings = read(None, &all).unwrap();
        assert_eq!((settings.headers.0.len(), &settings.headers.0["b"]), (1, &HeaderValue::from_static("2")));
        let keys: Vec<&str> = settings.attributes.iter().map(|pair| &*pair.key).collect();
        assert_eq!(keys, ["k8s.cluster.name", "x"]);
        assert_eq!(settings.attributes[0].value, Some(Value::String("prod 1".into()).into()));
    }
}
