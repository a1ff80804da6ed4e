use super::*;
use proptest::prelude::*;

const DEPLOYMENT: &str = r#"# a comment
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {template: "not a pod's"}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 45
      initContainers:
      - name: migrate
        image: acme/migrate
      - name: php
        image: php:8.3-fpm
        restartPolicy: Always
      containers:
      - name: nginx
        image: nginx:1.27
        ports:
        - containerPort: 80
        command: ["nginx", "-g", "daemon off;"]
        lifecycle:
          stopSignal: SIGQUIT
          preStop:
            exec:
              command: ["/bin/sh", "-c", "sleep 5"]
      - name: sidecar
        image: acme/x
        lifecycle: {preStop: {sleep: {seconds: 7}}}
      - name: third
        lifecycle: {preStop: {httpGet: {port: 80}}}
--- # end
"#;

#[test]
fn a_deployment_beside_other_things() {
    let all = read("web.yaml", DEPLOYMENT).unwrap();
    assert_eq!(all.len(), 1);
    let web = &all[0];
    assert_eq!(
        (web.kind.as_str(), web.name.as_deref(), web.namespace.as_deref()),
        ("Deployment", Some("web"), Some("shop"))
    );
    assert_eq!(web.at.to_string(), "web.yaml:8");
    assert_eq!((web.grace.value, web.grace.at.as_ref().unwrap().to_string()), (45, "web.yaml:15".into()));
    let names: Vec<(&str, bool)> = web.containers.iter().map(|c| (c.name.as_str(), c.sidecar)).collect();
    assert_eq!(names, [("nginx", false), ("sidecar", false), ("third", false), ("php", true)]);
    let nginx = &web.containers[0];
    assert_eq!(nginx.stop_signal.as_ref().unwrap().value, 3);
    assert_eq!(nginx.stop_signal.as_ref().unwrap().at.as_ref().unwrap().to_string(), "web.yaml:29");
    assert_eq!(nginx.command.as_ref().unwrap().value, ["nginx", "-g", "daemon off;"]);
    assert_eq!(nginx.ports, [80]);
    let exec = Handler::Exec(["/bin/sh", "-c", "sleep 5"].map(str::to_owned).to_vec());
    let hook = nginx.pre_stop.as_ref().unwrap();
    assert_eq!((&hook.value, hook.at.as_ref().unwrap().to_string()), (&exec, "web.yaml:31".into()));
    assert_eq!(web.containers[1].pre_stop.as_ref().unwrap().value, Handler::Sleep(7));
    assert_eq!(web.containers[2].pre_stop.as_ref().unwrap().value, Handler::Http);
}

#[test]
fn json_lists_and_pods() {
    let text = r#"{"kind": "List", "items": [
        {"kind": "ConfigMap", "data": {"a": "b"}},
        {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}},
        {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}}}]}"#;
    let all = read("-", text).unwrap();
    let kinds: Vec<&str> = all.iter().map(|w| w.kind.as_str()).collect();
    assert_eq!(kinds, ["Pod", "CronJob"]);
    assert_eq!(all[0].grace, At::default_of(30));
    let template = "kind: PodTemplate\ntemplate: {spec: {containers: [{name: x}], shareProcessNamespace: true}}\n";
    assert!(read("-", template).unwrap()[0].shares_pids);
    assert_eq!(read("-", "").unwrap(), []);
    assert_eq!(read("-", "---\n# nothing\n---\n").unwrap(), []);
}

#[test]
fn errors_have_a_line() {
    for (text, wanted) in [
        ("kind: Pod\nspec:\n  terminationGracePeriodSeconds: soon\n", "p.yaml:3: "),
        ("kind: Pod\n---\nkind: Pod\nspec: {containers: [\n", "p.yaml:"),
        ("a: b\n", "p.yaml:1: an object without a kind: not a Kubernetes object"),
        ("just text\n", "p.yaml:1: "),
        ("kind: Pod\nspec:\n  containers:\n  - image: x\n", "p.yaml:4: a container without a name"),
        (
            "kind: Pod\nspec:\n  containers:\n  - name: x\n    lifecycle:\n      stopSignal: HALT\n",
            "p.yaml:6: stopSignal \"HALT\" is not a signal",
        ),
        ("kind: Pod\nspec:\n  {{ .Values.spec }}\n", "p.yaml:3: "),
    ] {
        let error = read("p.yaml", text).unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn bombs_are_refused() {
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (this, last) in
        ["b", "c", "d", "e", "f", "g", "h", "i", "j"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h", "i"])
    {
        bomb += &format!("{this}: &{this} [*{last},*{last},*{last},*{last},*{last},*{last},*{last},*{last},*{last}]\n");
    }
    assert!(read("-", &(bomb + "kind: Pod\nspec: {containers: *j}\n")).is_err());
    assert!(read("-", &"[".repeat(100_000)).is_err());
    assert!(read("-", &"{a: ".repeat(100_000)).is_err());
}

proptest! {
    #[test]
    fn any_text(text in "\\PC*", odd in "[a-z:{}\\[\\], \n&*!|>\"'#-]{0,120}") {
        for text in [text, odd] {
            let _ = read("f", &text);
            let _ = read("f", &format!("kind: Pod\nspec:\n  containers:\n  - name: {text}\n    lifecycle:\n      {text}\n"));
        }
    }
}
