//! The chart's values: each of them does something, is described in the chart's README, and a mistake in it is refused.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};

use super::chart;

/// Values that differ from the chart's own, and what is rendered then and not otherwise. Each value has a row.
pub(super) const SHOWN: [(&[&str], &str); 54] = [
    (&["image.repository=example.org/why502"], r#"image: "example.org/why502:"#),
    (&["image.tag=edge"], r#"image: "why502:edge""#),
    (&["image.pullPolicy=Always"], "imagePullPolicy: Always"),
    (&["imagePullSecrets=[{name: key}]"], "imagePullSecrets:\n        - name: key"),
    (&["nameOverride=lost"], "name: why502-lost"),
    (&["fullnameOverride=lost"], "name: lost\n"),
    (&["port=8080"], "--listen=0.0.0.0:8080"),
    (&["address=\"[::]\""], r#""--listen=[::]:9502""#),
    (&["networkPolicy.enabled=true"], "ingress: []"),
    (&["networkPolicy.enabled=true", "networkPolicy.from=[{namespaceSelector: {}}]"], "- namespaceSelector: {}"),
    (&["store.kind=emptyDir"], "emptyDir: {}"),
    (&["store.path=/srv/why502"], "path: /srv/why502"),
    (&["store.size=1G"], "--store-size=1G"),
    (&["store.age=2d"], "--store-age=2d"),
    (&["kubernetes.enabled=false"], "--kube=none"),
    (&["kubernetes.events=false"], "--kube=auto\n            - --runtime="),
    (&["kubernetes.endpoints=true"], "resources: [endpoints]"),
    (&["otlp.endpoint=http://otel:4318"], "--otlp=http://otel:4318"),
    (&["otlp.headersSecret.name=tenant"], "key: headers"),
    (&["otlp.headersSecret.key=more", "otlp.headersSecret.name=tenant"], "key: more"),
    (&["otlp.attributes={k8s.cluster.name: prod}"], r#"value: "k8s.cluster.name=prod""#),
    (&["rights.nonRoot=true", "store.kind=emptyDir"], "runAsUser: 65532"),
    (&["rights.user=1234", "rights.nonRoot=true", "store.kind=emptyDir"], "runAsGroup: 1234"),
    (
        &["rights.noNewPrivs=true", "rights.nonRoot=true", "store.kind=emptyDir"],
        "runAsGroup: 65532\n            runAsNonRoot: true\n            allowPrivilegeEscalation: false",
    ),
    (&["rights.uprobes=true"], "- SYS_ADMIN"),
    (&["rights.bpfStats=true"], "- --bpf-stats\n"),
    (&["rights.oldKernel=true"], "- SYS_RESOURCE"),
    (&["rights.runtimeSocket=/run/crio/crio.sock"], "--runtime=unix:///run/crio/crio.sock"),
    (&["rights.seccomp.type=Unconfined"], "type: Unconfined"),
    (&["rights.seccomp.localhostProfile=mine.json", "rights.seccomp.type=Localhost"], "localhostProfile: mine.json"),
    (
        &["rights.securityContext={seLinuxOptions: {type: spc_t}}"],
        "            seLinuxOptions:\n              type: spc_t",
    ),
    (&["resources={limits: {memory: 512Mi}}"], "memory: 512Mi"),
    (&["priorityClass.create=false"], "terminationGracePeriodSeconds: 30\n      tolerations:"),
    (&["priorityClass.value=7"], "value: 7\n"),
    (&["priorityClassName=system-node-critical"], "priorityClassName: system-node-critical"),
    (&["tolerations=[{key: gpu, operator: Exists}]"], "key: gpu"),
    (&["nodeSelector={disk: ssd}"], "disk: ssd"),
    (&["affinity={nodeAffinity: {}}"], "nodeAffinity: {}"),
    (&["updateStrategy={type: OnDelete}"], "type: OnDelete"),
    (&["podAnnotations={a.example/b: c}"], "a.example/b: c"),
    (&["podLabels={team: shop}"], "team: shop"),
    (&["extraArgs=[--all]"], r#"- "--all""#),
    (&["serviceMonitor.enabled=true"], "kind: ServiceMonitor"),
    (&["serviceMonitor.interval=5s", "serviceMonitor.enabled=true"], "interval: 5s"),
    (&["serviceMonitor.labels={release: prom}", "serviceMonitor.enabled=true"], "release: prom"),
    (&["alerts.enabled=true"], "kind: PrometheusRule"),
    (&["alerts.labels={release: prom}", "alerts.enabled=true"], "release: prom"),
    (&["dashboard.enabled=true"], "kind: ConfigMap"),
    (&["dashboard.labels={folder: net}", "dashboard.enabled=true"], "folder: net"),
    // Together.
    (&["otlp.attributes={a: \"b, c=d e\"}"], r#"value: "a=b%2C%20c%3Dd%20e""#),
    (&["image.tag=edge", "rights.nonRoot=true", "store.kind=emptyDir"], r#"image: "why502:edge""#),
    (&["rights.nonRoot=true", "store.kind=emptyDir", "image.repository=r"], r#"-nonroot""#),
    (&["kubernetes.enabled=false", "port=1"], "automountServiceAccountToken: false\n      enableServiceLinks"),
    (&["nameOverride=lost", "serviceMonitor.enabled=true"], "app.kubernetes.io/name: lost"),
];
const BEGIN: &str = "<!-- values: begin, written by `cargo xtask chart` -->\n";
const END: &str = "<!-- values: end -->\n";

fn read(name: &str) -> Result<String> {
    fs::read_to_string(chart().join(name)).with_context(|| name.to_owned())
}

/// The chart's own values.
pub(super) fn own() -> Result<Value> {
    serde_saphyr::from_str(&read("values.yaml")?).context("values.yaml")
}

fn schema() -> Result<Value> {
    serde_json::from_str(&read("values.schema.json")?).context("values.schema.json")
}

/// `KEY.PATH=YAML` as a values file has it.
pub(super) fn file(sets: &[&str]) -> Result<Value> {
    let mut all = Value::Object(Map::new());
    for set in sets {
        let (path, text) = set.split_once('=').context("KEY=VALUE")?;
        let mut at = &mut all;
        for key in path.split('.') {
            let keys = at.as_object_mut().with_context(|| path.to_owned())?;
            at = keys.entry(key).or_insert_with(|| Value::Object(Map::new()));
        }
        *at = serde_saphyr::from_str(text).with_context(|| text.to_owned())?;
    }
    Ok(all)
}

/// What the schema describes one by one: a map that anything may be in is one value.
fn leaves() -> Result<Vec<String>> {
    fn walk(schema: &Value, at: &str, all: &mut Vec<String>) {
        match schema["properties"].as_object() {
            None => all.push(at.to_owned()),
            Some(keys) => {
                for (key, inner) in keys {
                    walk(inner, &if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, all);
                }
            }
        }
    }
    let mut all = Vec::new();
    walk(&schema()?, "", &mut all);
    // Helm's own, for charts that are part of another.
    all.retain(|path| path != "global");
    Ok(all)
}

fn at<'v>(values: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(values, |at, key| at.get(key))
}

/// Whether what is rendered shows each value: `render` gives the text for values.
pub(super) fn shown(render: impl Fn(&[&str]) -> Result<String>) -> Result<()> {
    let own = render(&[])?;
    for (values, text) in SHOWN {
        let rendered = render(values).with_context(|| format!("{values:?}"))?;
        // All that is set at once may be what makes it another text.
        if !rendered.contains(text) || own.contains(text) {
            bail!("{values:?} has to show {text:?}, which the chart's own values do not:\n{rendered}");
        }
        ensure!(!rendered.contains("<no value>"), "{values:?} uses a value that is not there");
    }
    println!("shown       each of {} values, in {} renderings", leaves()?.len(), SHOWN.len());
    Ok(())
}

/// The chart's README with its table of values as it should be.
pub(super) fn readme() -> Result<String> {
    let text = read("README.md")?;
    let (before, rest) = text.split_once(BEGIN).context("README.md has no begin of the values")?;
    let (_, after) = rest.split_once(END).context("README.md has no end of the values")?;
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", table()?))
}

/// In the order of values.yaml, with its comments.
fn table() -> Result<String> {
    let (own, leaves) = (own()?, leaves()?);
    let mut out = String::from("| value | default | |\n|---|---|---|\n");
    let (mut path, mut about, mut seen) = (Vec::<String>::new(), Vec::<String>::new(), 0);
    for line in read("values.yaml")?.lines() {
        let words = line.trim_start();
        if let Some(comment) = words.strip_prefix('#') {
            about.push(comment.trim().into());
            continue;
        }
        let key = words.split_once(':').map(|(key, _)| key).filter(|key| !key.starts_with('-') && !key.contains(' '));
        let Some(key) = key else {
            about.clear();
            continue;
        };
        path.truncate((line.len() - words.len()) / 2);
        path.push(key.into());
        let (name, text) = (path.join("."), about.join(" ").replace('|', r"\|"));
        about.clear();
        if leaves.contains(&name) {
            let default = at(&own, &name).with_context(|| format!("{name} has no default"))?;
            out += &format!("| `{name}` | `{default}` | {text} |\n");
            seen += 1;
        } else if !text.is_empty() && leaves.iter().any(|leaf| leaf.starts_with(&format!("{name}."))) {
            out += &format!("| **{name}** | | {text} |\n");
        }
    }
    ensure!(seen == leaves.len(), "values.yaml has {seen} of the {} values that the schema knows", leaves.len());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::{REFUSED, VARIANTS};
    use super::*;
    use serde_json::json;

    fn allowed(values: &Value) -> bool {
        let schema = schema().expect("a schema");
        jsonschema::validator_for(&schema).expect("a schema").is_valid(values)
    }

    /// The chart's own values with others laid over them, as helm does.
    fn with(sets: &[&str]) -> Value {
        fn lay(under: &mut Value, over: Value) {
            match (under, over) {
                (Value::Object(under), Value::Object(over)) => {
                    over.into_iter().for_each(|(key, value)| lay(under.entry(key).or_insert(Value::Null), value));
                }
                (under, over) => *under = over,
            }
        }
        let mut all = own().expect("values");
        lay(&mut all, file(sets).expect("values"));
        all
    }

    #[test]
    fn the_schema_takes_what_the_chart_is_rendered_with() {
        let sets = SHOWN.iter().map(|(sets, _)| *sets).chain(VARIANTS.iter().map(|(_, sets)| *sets)).chain(REFUSED);
        for set in sets.chain([&[][..]]) {
            assert!(allowed(&with(set)), "{set:?}");
        }
    }

    #[test]
    fn the_schema_refuses_mistakes() {
        let single = [
            "port=0",
            "port=70000",
            "port=\"9502\"",
            "store.kind=disk",
            "store.path=var/lib",
            "store.size=10 GB",
            "store.age=two weeks",
        ];
        let more = [
            "rights.seccomp.type=Off",
            "rights.user=0",
            "rights.runtimeSocket=run/x.sock",
            "image.pullPolicy=Sometimes",
            "image.repository=\"\"",
        ];
        let kinds = [
            "extraArgs=[1]",
            "priorityClass.value=2000000000",
            "tolerations={}",
            "networkPolicy.from=[x]",
            "kubernetes.events=yes please",
        ];
        let addresses = ["address=::", "address=localhost", "address=\"0.0.0.0:1\""];
        for set in single.into_iter().chain(addresses).chain(more).chain(kinds) {
            assert!(!allowed(&with(&[set])), "{set} was taken");
        }
    }

    #[test]
    fn each_value_has_a_type_and_each_name_is_known() {
        for path in leaves().expect("leaves") {
            let is = at(&own().expect("values"), &path).cloned().unwrap_or_else(|| panic!("{path} has no default"));
            let wrong = if is.is_object() { json!(7) } else { json!({ "no": "such" }) };
            assert!(!allowed(&with(&[&format!("{path}={wrong}")])), "{path} took {wrong}");
            if let Some((parent, _)) = path.rsplit_once('.') {
                assert!(!allowed(&with(&[&format!("{parent}.typo=1")])), "{parent}.typo was taken");
            }
        }
        assert!(!allowed(&with(&["typo=1"])));
    }

    #[test]
    fn each_value_is_shown_and_described() {
        for path in leaves().expect("leaves") {
            let rows = SHOWN.iter().filter(|(sets, _)| sets.iter().any(|set| set.starts_with(&format!("{path}="))));
            assert!(rows.count() > 0, "no row of SHOWN has {path}");
        }
        assert_eq!(read("README.md").expect("there"), readme().expect("a table"), "cargo xtask chart");
    }
}
