//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

use crate::guard::run;
use crate::net::Netns;
use crate::runtime::{Daemon, Scratch, View};
use anyhow::Result;
use serde_json::json;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What is not needed by Deployments behind a Service, DaemonSets and service accounts on one node stays out.
const CONTROLLERS: &str = "deployment,replicaset,daemonset,endpoint,endpointslice,garbagecollector,namespace,\
                           serviceaccount,serviceaccount-token,root-ca-cert-publisher";
const TOKEN: &str = "why502-tests";
const SERVICES: &str = "10.96.0.0/24";
/// The address of the Service `kubernetes`, by which pods find the API server. There is no proxy: the API server has it.
pub const SERVICE: &str = "10.96.0.1";
const PORT: u16 = 443;

/// Dropped in this order: those that ask before those that answer.
#[derive(Debug)]
pub struct ControlPlane {
    #[expect(dead_code, reason = "ended on drop")]
    scheduler: Daemon,
    #[expect(dead_code, reason = "ended on drop")]
    controllers: Daemon,
    api: Mutex<Daemon>,
    #[expect(dead_code, reason = "ended on drop")]
    etcd: Daemon,
    pub kubeconfig: PathBuf,
    /// Who asks the kubelet has a certificate by it.
    pub authority: PathBuf,
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
            "--bind-address=0.0.0.0".into(),
            format!("--advertise-address={ip}"),
            format!("--secure-port={PORT}"),
            format!("--tls-cert-file={}", file("api.crt")),
            format!("--tls-private-key-file={}", file("api.key")),
            format!("--service-account-key-file={}", file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            // Logs, port-forward and exec go through the kubelet.
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--service-cluster-ip-range={SERVICES}"),
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
            format!("--service-account-private-key-file={}", file("sa.key")),
            format!("--root-ca-file={}", file("ca.crt")),
        ];
        let manager = words(&programs.join("kube-controller-manager"), &manager);
        let controllers = Daemon::start(netns, View::Hosts, manager, log("kube-controller-manager"), &up)?;
        let scheduler = [
            format!("--kubeconfig={}", kubeconfig.display()),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            format!("--cert-dir={}", pki.display()),
        ];
        let scheduler = words(&programs.join("kube-scheduler"), &scheduler);
        let scheduler = Daemon::start(netns, View::Hosts, scheduler, log("kube-scheduler"), &up)?;
        let authority = pki.join("ca.crt");
        Ok(Self { scheduler, controllers, api: Mutex::new(api), etcd, kubeconfig, authority })
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

/// A certificate authority, certificates by it, the key of service accounts, and the only token.
fn keys(pki: &Path, ip: Ipv4Addr) -> Result<()> {
    let file = |name: &str| pki.join(name).display().to_string();
    let (ca_key, ca) = (file("ca.key"), file("ca.crt"));
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    run("openssl", &[&new[..], &["-x509", "-subj", "/CN=why502-tests", "-keyout", &ca_key, "-out", &ca]].concat())?;
    let names = format!("subjectAltName=IP:{ip},IP:{SERVICE},IP:127.0.0.1,DNS:kubernetes.default.svc\n");
    let client = "extendedKeyUsage=clientAuth\n";
    for (name, subject, extension) in
        [("api", "/CN=kube-apiserver", &*names), ("kubelet-client", "/O=system:masters/CN=kube-apiserver", client)]
    {
        let of = |end: &str| file(&format!("{name}.{end}"));
        let (key, request, ext) = (of("key"), of("csr"), of("ext"));
        run("openssl", &[&new[..4], &["-subj", subject, "-keyout", &key, "-out", &request]].concat())?;
        std::fs::write(&ext, extension)?;
        let sign = ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
        run("openssl", &[&sign[..], &["-extfile", &ext, "-out", &of("crt")]].concat())?;
    }
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
