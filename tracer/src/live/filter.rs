//! Which cgroups the probes leave out: services of the host that have nothing to do with containers or web servers.
//!
//! Fail-open: of what identity calls the host's own ([`host_cgroups_to_skip`]) only systemd's `/system.slice` is taken,
//! so that a container runtime nobody has heard of, or an administrator's session that sends a signal, is never missed.
//! And a server may be started in such a service later: that is looked at every ten seconds.

use crate::identity::is_notable;
use crate::model::BootNs;
use crate::model::input::Hierarchy;
use crate::sources::cgroups::{Resolver, host_cgroups_to_skip};
use crate::sources::procfs::{Scan, read_process};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is left out, and where to look whether that is still right.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Id → directory.
    skipped: BTreeMap<u64, PathBuf>,
    root: PathBuf,
}

impl Filter {
    /// Call it after [`Resolver::snapshot`].
    pub(super) fn new(root: &Path, scan: &Scan, resolver: &Resolver) -> Filter {
        let Some(tree) = resolver.trees().dir(Hierarchy::V2) else { return Filter::default() };
        let inside = |path: &str| tree.join(path.trim_start_matches('/'));
        let paths: BTreeMap<u64, &str> = resolver.cgroups(Hierarchy::V2).collect();
        let chosen = host_cgroups_to_skip(scan, resolver).into_iter().filter_map(|id| {
            let path = paths.get(&id).filter(|p| p.starts_with("/system.slice/"))?;
            Some((id, inside(path)))
        });
        Filter { skipped: chosen.collect(), root: root.to_owned() }
    }

    /// Ids to leave out.
    pub(super) fn skipped(&self) -> impl Iterator<Item = u64> + '_ {
        self.skipped.keys().copied()
    }

    /// Ids to watch again from now on: a server, supervisor or runtime runs there by now. They are forgotten here.
    pub(super) fn notable_now(&mut self, at: BootNs) -> Vec<u64> {
        let notable = |pid: &str| {
            let process = pid.parse().ok().and_then(|pid| read_process(&self.root, pid, at).ok());
            process.is_some_and(|p| is_notable(&p))
        };
        let runs = |path: &Path| {
            let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            procs.lines().any(notable)
        };
        let found: Vec<u64> = self.skipped.iter().filter(|(_, path)| runs(path)).map(|(id, _)| *id).collect();
        for id in &found {
            self.skipped.remove(id);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A host with a few v2 cgroups; ids are the directories' inodes.
    fn host() -> (tempfile::TempDir, impl Fn(&Path, &str) -> u64) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        for path in ["system.slice/ssh.service", "system.slice/x.service", "user.slice/s.scope", "lxc.payload.x"] {
            put(root, &format!("sys/fs/cgroup/{path}/cgroup.procs"), "");
        }
        (dir, |root, path| fs::metadata(root.join("sys/fs/cgroup").join(path)).unwrap().ino())
    }

    #[test]
    fn only_the_services_of_the_host_are_left_out() {
        let (dir, id) = host();
        let mut resolver = Resolver::new(dir.path());
        resolver.snapshot(1);
        let filter = Filter::new(dir.path(), &Scan::default(), &resolver);
        let mut want = vec![id(dir.path(), "system.slice/ssh.service"), id(dir.path(), "system.slice/x.service")];
        want.sort_unstable();
        assert_eq!(filter.skipped().collect::<Vec<_>>(), want);
        assert_eq!(Filter::default().skipped().count(), 0);
    }

    #[test]
    fn a_server_started_in_a_service_later_is_watched_again() {
        let (dir, id) = host();
        let mut resolver = Resolver::new(dir.path());
        resolver.snapshot(1);
        let mut filter = Filter::new(dir.path(), &Scan::default(), &resolver);
        assert_eq!(filter.notable_now(2), [0u64; 0]);
        // This very process plays the server: its /proc entry is copied under another name.
        put(dir.path(), "sys/fs/cgroup/system.slice/x.service/cgroup.procs", "41\n");
        for file in ["stat", "status", "cgroup"] {
            let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
            let name = fs::read_to_string("/proc/self/comm").unwrap();
            put(dir.path(), &format!("proc/41/{file}"), &text.replace(name.trim(), "nginx"));
        }
        put(dir.path(), "proc/41/comm", "nginx\n");
        put(dir.path(), "proc/41/cmdline", "nginx: master process\0");
        std::os::unix::fs::symlink("/usr/sbin/nginx", dir.path().join("proc/41/exe")).unwrap();
        assert_eq!(filter.notable_now(3), [id(dir.path(), "system.slice/x.service")]);
        assert_eq!(filter.skipped().count(), 1);
    }
}
