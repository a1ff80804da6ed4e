//! etcd, kube-apiserver and kube-controller-manager.

use crate::guard::run;
use crate::net::Netns;
use crate::runtime::{Daemon, Scratch, View};
use anyhow::Result;
use serde_json::json;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What is not needed by a Deployment behind a Service on one node stays out.
const CONTROLLERS: &str = "deployment,replicaset,endpoint,endpointslice,garbagecollector,namespace";
const TOKEN: &str = "why502-tests";
const PORT: u16 = 6443;

/// Dropped in this order: those that ask before those that answer.
#[derive(Debug)]
pub struct ControlPlane {
    #[expect(dead_code, reason = "ended on drop")]
    controllers: Daemon,
    api: Mutex<Daemon>,
    #[expect(dead_code, reason = "ended on drop")]
    etcd: Daemon,
    pub kubeconfig: PathBuf,
}

fn words(program: &Path, args: &[String]) -> Vec<OsString> {
    std::iter::once(program.into()).chain(args.iter().map(OsString::from)).collect()
}

impl ControlPlane {
    /// In a network namespace, at one of its addresses.
    pub fn start(programs: &Path, netns: &Netns, ip: Ipv4Addr, scratch: &Scratch) -> Result<Self> {
        let (pki, log) = (scratch.join("pki"), |name: &str| scratch.join(&format!("{name}.log")));
        std::fs::create_dir(&pki)?;
        keys(&pki, ip)?;
        let kubeconfig = scratch.join("kubeconfig");
        std::fs::write(&kubeconfig, config(&pki, ip))?;
        let etcd_url = "http://127.0.0.1:2379";
        let data = scratch.join("etcd").display().to_string();
        let etcd = [
            format!("--data-dir={data}"),
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            // What it keeps is gone with the test.
            "--unsafe-no-fsync".into(),
        ];
        let listens = || netns.run(|| std::net::TcpStream::connect("127.0.0.1:2379").is_ok()).unwrap_or(false);
        let etcd = Daemon::start(netns, View::Hosts, words(Path::new("etcd"), &etcd), log("etcd"), &listens)?;
        let file = |name: &str| pki.join(name).display().to_string();
        let api = [
            format!("--etcd-servers={etcd_url}"),
            format!("--bind-address={ip}"),
            format!("--advertise-address={ip}"),
            format!("--secure-port={PORT}"),
            format!("--tls-cert-file={}", file("api.crt")),
            format!("--tls-private-key-file={}", file("api.key")),
            format!("--service-account-key-file={}", file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            // Pods of these tests talk to nobody: they need no account.
            "--disable-admission-plugins=ServiceAccount".into(),
            "--service-cluster-ip-range=10.96.0.0/24".into(),
            "--allow-privileged".into(),
        ];
        let up = || ready(&kubeconfig);
        let api = Daemon::start(
            netns,
            View::Hosts,
            words(&programs.join("kube-apiserver"), &api),
            log("kube-apiserver"),
            &up,
        )?;
        let manager = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            format!("--cert-dir={}", pki.display()),
        ];
        let manager = words(&programs.join("kube-controller-manager"), &manager);
        let controllers = Daemon::start(netns, View::Hosts, manager, log("kube-controller-manager"), &up)?;
        Ok(Self { controllers, api: Mutex::new(api), etcd, kubeconfig })
    }

    /// The API server ends at once; everything else goes on.
    pub fn stop_api(&self) -> Result<()> {
        self.api.lock().unwrap_or_else(PoisonError::into_inner).kill()
    }

    /// Starts it again when it was stopped.
    pub fn start_api(&self) -> Result<()> {
        let mut api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        if api.running() { Ok(()) } else { api.start_again(&|| ready(&self.kubeconfig)) }
    }
}

fn ready(kubeconfig: &Path) -> bool {
    let config = format!("--kubeconfig={}", kubeconfig.display());
    run("kubectl", &[&config, "get", "--raw", "/readyz"]).is_ok_and(|said| said.trim() == "ok")
}

/// A certificate authority, the API server's certificate by it, the key of service accounts, and the only token.
fn keys(pki: &Path, ip: Ipv4Addr) -> Result<()> {
    let file = |name: &str| pki.join(name).display().to_string();
    let (ca_key, ca) = (file("ca.key"), file("ca.crt"));
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    run("openssl", &[&new[..], &["-x509", "-subj", "/CN=why502-tests", "-keyout", &ca_key, "-out", &ca]].concat())?;
    let (key, request) = (file("api.key"), file("api.csr"));
    run("openssl", &[&new[..4], &["-subj", "/CN=kube-apiserver", "-keyout", &key, "-out", &request]].concat())?;
    std::fs::write(pki.join("api.ext"), format!("subjectAltName=IP:{ip},IP:127.0.0.1,DNS:kubernetes.default.svc\n"))?;
    let sign = ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
    run("openssl", &[&sign[..], &["-extfile", &file("api.ext"), "-out", &file("api.crt")]].concat())?;
    run("openssl", &["genrsa", "-out", &file("sa.key"), "2048"])?;
    std::fs::write(pki.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))?;
    Ok(())
}

fn config(pki: &Path, ip: Ipv4Addr) -> String {
    // JSON is YAML.
    let ca = pki.join("ca.crt");
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "clusters": [{ "name": "tests",
            "cluster": { "server": format!("https://{ip}:{PORT}"), "certificate-authority": ca } }],
        "users": [{ "name": "admin", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "admin" } }],
    })
    .to_string()
}
