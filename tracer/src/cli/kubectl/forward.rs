//! A tunnel to an agent: `kubectl port-forward`, as long as it is needed.

use super::cluster::{self, AgentPod, Cluster};
use crate::serve::client::Url;
use anyhow::bail;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Until the tunnel stands.
const START: Duration = Duration::from_secs(30);
/// Bytes of its complaints that are read.
const SAID: u64 = 64 << 10;

/// Ends with its value.
pub(super) struct Forward {
    child: Child,
    port: u16,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Forward {
    pub(super) fn start(cluster: &Cluster, agent: &AgentPod) -> anyhow::Result<Forward> {
        let mut command = cluster.kubectl();
        command.args(["-n", &agent.namespace, "port-forward", "--address", "127.0.0.1"]);
        command.args([format!("pod/{}", agent.name), format!(":{}", agent.port)]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(cluster::not_started)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // From here on it is ended in every case.
        let mut forward = Forward { child, port: 0 };
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else { bail!("kubectl has no output") };
        let (said, port) = mpsc::channel();
        // Read to the end: kubectl must not hang at a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(port) = port_of(&line) {
                    let _ = said.send(port);
                }
            }
        });
        let (told, complaint) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut stderr, mut text) = (stderr, Vec::new());
            let _ = stderr.by_ref().take(SAID).read_to_end(&mut text);
            let _ = told.send(text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        });
        let pod = format!("{}/{}", agent.namespace, agent.name);
        match port.recv_timeout(START) {
            Ok(port) => {
                forward.port = port;
                Ok(forward)
            }
            Err(RecvTimeoutError::Timeout) => bail!("no tunnel to {pod} within {} s", START.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                let text = complaint.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
                let what = cluster::complaint(&text);
                // kubectl gets the pod first; the other right does not come with reading pods.
                let right = if cluster::forbidden(&what) {
                    " (it takes the rights to get pods and to create pods/portforward)"
                } else {
                    ""
                };
                bail!("no tunnel to {pod}: {what}{right}");
            }
        }
    }

    pub(super) fn url(&self) -> anyhow::Result<Url> {
        format!("http://127.0.0.1:{}", self.port).parse().map_err(anyhow::Error::msg)
    }
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 9502`.
fn port_of(line: &str) -> Option<u16> {
    line.strip_prefix("Forwarding from 127.0.0.1:")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_tunnel_begins() {
        assert_eq!(port_of("Forwarding from 127.0.0.1:40123 -> 9502"), Some(40123));
        for other in ["Handling connection for 40123", "Forwarding from [::1]:40123 -> 9502", ""] {
            assert_eq!(port_of(other), None, "{other}");
        }
    }
}
