//! Client, edge and pod put together, with the networks between them.

use crate::guard::Dir;
use crate::ledger::Claim;
use crate::nat::{Nat, Node};
use crate::net::{Link, Netns, veth, veth_at};
use crate::nginx::{Nginx, NginxConf, Upstream};
use crate::php::{self, Fpm, FpmConf, Served};
use crate::pod::{Container, Pod, PodConf};
use crate::tun::{Trouble, Tun};
use crate::{cgroup, net, supervised};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct SiteConf {
    pub nginx: NginxConf,
    /// Without it the pod has no php.
    pub fpm: Option<FpmConf>,
    /// An edge nginx between client and pod, with so many idle connections kept.
    pub edge: Option<u32>,
    /// Another pod of the same kind, which the edge asks once what this one does not answer.
    pub replica: bool,
    /// The path into the pod goes through a tun forwarder; else through a veth pair.
    pub trouble: Option<Trouble>,
    /// The addresses of the path into the pod, when they are to be those of another site's.
    pub link: Option<Link>,
    /// The edge reaches the pod by a Service's address, which a node between them translates. For sites with an edge.
    pub nat: Option<Nat>,
    /// nginx and php-fpm in one container, under a supervisord with default priorities: `Site::nginx` is that container,
    /// `Site::fpm` is `None`.
    pub supervised: bool,
    pub supervisor: supervised::Order,
    /// An nginx in a container of its own before the pod's nginx, in the same pod, on port 80.
    pub sidecar: bool,
    pub pod: PodConf,
}

/// A running site. Dropped in this order: servers, networks, files.
#[derive(Debug)]
pub struct Site {
    pub nginx: Nginx,
    pub fpm: Option<Fpm>,
    pub sidecar: Option<Nginx>,
    pub edge: Option<Edge>,
    pub replica: Option<Replica>,
    pub tun: Option<Tun>,
    pub node: Option<Node>,
    pub pod: Pod,
    pub client: Netns,
    /// Into the pod: `right` are the pod's addresses.
    pub link: Link,
    pub dir: Dir,
    php: Option<Php>,
    port: u16,
}

/// The php-fpm of a site, in whichever container it is.
#[derive(Debug)]
pub(crate) struct Php {
    pub program: PathBuf,
    /// What the scripts write; see [`Served`].
    pub ledger: PathBuf,
}

/// Where a scene is played: the harness's own site, or one that a container runtime runs.
pub trait Ground {
    /// The network namespace that requests come from, by path.
    fn client(&self) -> PathBuf;

    /// What the php scripts have written until now.
    fn served(&self) -> Result<Vec<Served>>;

    /// By which its incidents are known, also when it is gone.
    fn territory(&self) -> Territory;
}

/// Addresses and namespaces of a site: other tests of this machine have incidents of their own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Territory {
    pub ips: Vec<IpAddr>,
    pub netns: Vec<u32>,
}

impl Territory {
    pub fn owns(&self, ip: Option<IpAddr>, netns: u32) -> bool {
        ip.is_some_and(|ip| self.ips.contains(&ip.to_canonical())) || self.netns.contains(&netns)
    }

    pub fn has(&self, claim: &Claim) -> bool {
        self.owns(claim.server.map(|a| a.ip()), claim.netns) || self.owns(claim.requester.map(|a| a.ip()), claim.netns)
    }
}

/// The other pod of a site.
#[derive(Debug)]
pub struct Replica {
    pub nginx: Nginx,
    pub fpm: Option<Fpm>,
    pub pod: Pod,
    pub link: Link,
    pub dir: Dir,
}

impl Replica {
    fn start(conf: &SiteConf, before: &Netns) -> Result<Self> {
        let dir = Dir::new()?;
        let www = dir.open_subdir("www")?;
        let pod = Pod::with("replica", conf.pod)?;
        let link = veth(before, &pod.netns)?;
        let fpm = conf.fpm.as_ref().map(|f| Fpm::start(&pod, &dir, &www, f)).transpose()?;
        let fastcgi = fpm.as_ref().map(|f| f.address.clone());
        let nginx = Nginx::start(&pod, &dir, &www, &NginxConf { fastcgi, ..conf.nginx.clone() })?;
        Ok(Self { nginx, fpm, pod, link, dir })
    }
}

#[derive(Debug)]
pub struct Edge {
    pub nginx: Nginx,
    pub pod: Pod,
    /// From the client to the edge.
    pub link: Link,
}

impl Site {
    pub fn start(conf: &SiteConf) -> Result<Self> {
        cgroup::sweep();
        net::sweep();
        let dir = Dir::new()?;
        let www = dir.open_subdir("www")?;
        let client = Netns::new("client")?;
        let pod = Pod::with("pod", conf.pod)?;
        let edge_pod = conf.edge.map(|_| Pod::new("edge")).transpose()?;
        let before_pod = edge_pod.as_ref().map_or(&client, |p| &p.netns);
        let tun = conf.trouble.map(|trouble| Tun::join(before_pod, &pod.netns, trouble)).transpose()?;
        let node = conf.nat.map(|nat| Node::join(before_pod, &pod.netns, nat, conf.nginx.port)).transpose()?;
        let link = match (&tun, &node) {
            (Some(tun), _) => tun.link,
            (None, Some(node)) => node.link,
            (None, None) => veth_at(before_pod, &pod.netns, conf.link.unwrap_or_else(Link::unique))?,
        };
        let (nginx, fpm, php) = match &conf.fpm {
            Some(fpm) if conf.supervised => {
                let (nginx, php) = supervised::start(&pod, &dir, &www, &conf.nginx, fpm, conf.supervisor)?;
                (nginx, None, Some(php))
            }
            fpm => {
                let fpm = fpm.as_ref().map(|f| Fpm::start(&pod, &dir, &www, f)).transpose()?;
                let fastcgi = fpm.as_ref().map(|f| f.address.clone()).or(conf.nginx.fastcgi.clone());
                let nginx_conf = NginxConf { fastcgi, ..conf.nginx.clone() };
                let php = fpm.as_ref().map(|f| Php { program: f.program.clone(), ledger: f.ledger.clone() });
                (Nginx::start(&pod, &dir, &www, &nginx_conf)?, fpm, php)
            }
        };
        let replica = edge_pod.as_ref().filter(|_| conf.replica).map(|edge| Replica::start(conf, &edge.netns));
        let replica = replica.transpose()?;
        let edge = match (edge_pod, conf.edge) {
            (Some(edge_pod), Some(keepalive)) => {
                let front = veth(&client, &edge_pod.netns)?;
                let addr = |link: &Link| SocketAddr::new(link.right4.into(), conf.nginx.port);
                let other = replica.as_ref().map(|other| addr(&other.link));
                let to = node.as_ref().map_or(addr(&link), |node| node.service);
                let nginx = Nginx::start_proxy(&edge_pod, &dir, "edge", to, other, keepalive)?;
                Some(Edge { nginx, pod: edge_pod, link: front })
            }
            _ => None,
        };
        let behind = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), conf.nginx.port);
        let sidecar = || Nginx::start_proxy(&pod, &dir, "sidecar", behind, None, 16);
        let sidecar = conf.sidecar.then(sidecar).transpose()?;
        let port = if sidecar.is_some() { 80 } else { conf.nginx.port };
        Ok(Self { nginx, fpm, sidecar, edge, replica, tun, node, pod, client, link, dir, php, port })
    }

    /// The pod's port, nginx's or its sidecar's, by IPv4 or IPv6. Reached from the client unless there is an edge.
    pub fn pod_addr(&self, v6: bool) -> SocketAddr {
        let ip: IpAddr = if v6 { self.link.right6.into() } else { self.link.right4.into() };
        SocketAddr::new(ip, self.port)
    }

    /// To the master of the pod's nginx, whatever is PID 1 of its container.
    pub fn signal_nginx(&self, signal: Signal) -> Result<()> {
        self.nginx.container.signal_master(&self.nginx.program, signal)
    }

    /// The container that php-fpm runs in: its own, or the supervised one.
    pub fn php_container(&self) -> &Container {
        self.fpm.as_ref().map_or(&self.nginx.container, |f| &f.container)
    }

    /// Host pid of php-fpm's master, while it runs.
    pub fn php_master(&self) -> Option<i32> {
        self.php_container().master(&self.php.as_ref()?.program)
    }

    /// To the master of php-fpm, whatever is PID 1 of its container.
    pub fn signal_php(&self, signal: Signal) -> Result<()> {
        let php = self.php.as_ref().context("this site has no php-fpm")?;
        self.php_container().signal_master(&php.program, signal)
    }

    /// Where a user sends requests: the edge if there is one, else the pod.
    pub fn addr(&self) -> SocketAddr {
        self.edge.as_ref().map_or(self.pod_addr(false), |e| SocketAddr::new(e.link.right4.into(), 80))
    }

    /// Ids of the requests that a php script has started for: nginx had read these.
    pub fn started_scripts(&self) -> Result<HashSet<String>> {
        Ok(php::started(&self.served()?))
    }

    /// What its nginx could not pass on, the edge if there is one, by request id.
    pub fn upstream_errors(&self) -> Result<BTreeMap<String, Upstream>> {
        self.edge.as_ref().map_or(&self.nginx, |edge| &edge.nginx).upstream_errors()
    }

    /// What the php scripts have written until now.
    pub fn served(&self) -> Result<Vec<Served>> {
        self.php.as_ref().map_or_else(|| Ok(Vec::new()), |p| php::read_ledger(&p.ledger))
    }

    /// Of all of its pods.
    pub fn pod_uids(&self) -> Vec<String> {
        let edge = self.edge.as_ref().map(|e| &e.pod);
        [Some(&self.pod), edge, self.replica.as_ref().map(|r| &r.pod)]
            .into_iter()
            .flatten()
            .map(|p| p.uid.clone())
            .collect()
    }

    /// Takes the pod's end of the path into it down.
    pub fn link_down(&self) -> Result<()> {
        let ip = self.link.right4.to_string();
        let text = self.pod.netns.ip(&["-o", "addr", "show", "to", &ip])?;
        let device = text.split_whitespace().nth(1).with_context(|| format!("no device has {ip}"))?;
        self.pod.netns.ip(&["link", "set", device, "down"]).map(drop)
    }

    /// By which the incidents of this site are known, also when it is gone.
    pub fn territory(&self) -> Territory {
        let namespaces = [Some(&self.pod.netns), Some(&self.client), self.edge.as_ref().map(|e| &e.pod.netns)];
        let links = [Some(self.link), self.edge.as_ref().map(|e| e.link)];
        Territory {
            ips: links.into_iter().flatten().flat_map(Link::ips).collect(),
            netns: namespaces.into_iter().flatten().filter_map(|ns| ns.inode().ok()).collect(),
        }
    }

    /// Whether an address or namespace is one of this site.
    pub fn owns(&self, ip: Option<IpAddr>, netns: u32) -> bool {
        self.territory().owns(ip, netns)
    }
}

impl Ground for Site {
    fn client(&self) -> PathBuf {
        self.client.path()
    }

    fn served(&self) -> Result<Vec<Served>> {
        Self::served(self)
    }

    fn territory(&self) -> Territory {
        Self::territory(self)
    }
}
