//! A node that forwards between its pods and translates addresses, as kube-proxy does: a network namespace of its own with
//! real iptables rules.

use crate::guard::run;
use crate::net::{Link, Netns, veth};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// What the node does to connections to the Service's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Their destination becomes the pod.
    Dnat,
    /// And their source the node.
    Masquerade,
}

impl Nat {
    /// Why it cannot be used here.
    pub fn lacks() -> Option<String> {
        let found = ["/usr/sbin/iptables", "/sbin/iptables"].iter().any(|p| Path::new(p).is_file());
        (!found).then(|| "iptables is not installed (apt-get install iptables)".into())
    }
}

/// See the module. Its rules go with its namespace.
#[derive(Debug)]
pub struct Node {
    pub netns: Netns,
    /// The Service.
    pub service: SocketAddr,
    /// From the requesting side to the node.
    pub before: Link,
    /// From the node to the pod.
    pub link: Link,
}

impl Node {
    pub fn join(left: &Netns, right: &Netns, nat: Nat, port: u16) -> Result<Self> {
        let netns = Netns::new("node")?;
        let (before, link) = (veth(left, &netns)?, veth(&netns, right)?);
        let service: Ipv4Addr = Link::unique().right4;
        left.ip(&["route", "add", "default", "via", &before.right4.to_string()])?;
        right.ip(&["route", "add", "default", "via", &link.left4.to_string()])?;
        netns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?.context("cannot forward")?;
        let rule = |words: &[&str]| {
            run("ip", &[&["netns", "exec", &netns.name, "iptables", "-w", "-t", "nat"], words].concat())
        };
        let (to, pod) = (service.to_string(), format!("{}:{port}", link.right4));
        rule(&["-A", "PREROUTING", "-p", "tcp", "-d", &to, "--dport", "80", "-j", "DNAT", "--to-destination", &pod])?;
        if nat == Nat::Masquerade {
            rule(&["-A", "POSTROUTING", "-p", "tcp", "-j", "MASQUERADE"])?;
        }
        Ok(Self { netns, service: SocketAddr::new(service.into(), 80), before, link })
    }
}
