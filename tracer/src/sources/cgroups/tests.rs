use super::*;
use crate::sources::procfs::{self, Scan};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use tempfile::TempDir;

const A: &str = "07a6ece791d4357b6e260f5ef6b701485af3154752f6931f336c2ac98f7abf15";
const MS: BootNs = 1_000_000;

/// A root directory with hybrid cgroup trees as plain directories.
struct Root(TempDir);

impl Root {
    fn new(mountinfo: &str, own: &str) -> Root {
        let root = Root(tempfile::tempdir().unwrap());
        root.write("proc/self/mountinfo", mountinfo);
        root.write("proc/self/cgroup", own);
        root
    }
    fn hybrid() -> Root {
        let root = Root::new(
            "33 31 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
             36 31 0:34 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "4:memory:/\n0::/\n",
        );
        for dir in ["pids", "memory", "unified"] {
            root.dir(&format!("sys/fs/cgroup/{dir}"));
        }
        root
    }
    fn path(&self, p: &str) -> PathBuf {
        self.0.path().join(p)
    }
    fn dir(&self, p: &str) -> u64 {
        fs::create_dir_all(self.path(p)).unwrap();
        fs::metadata(self.path(p)).unwrap().ino()
    }
    fn write(&self, p: &str, text: &str) {
        fs::create_dir_all(self.path(p).parent().unwrap()).unwrap();
        fs::write(self.path(p), text).unwrap();
    }
    fn v2(&self, p: &str) -> u64 {
        self.dir(&format!("sys/fs/cgroup/unified{p}"))
    }
    fn v1(&self, p: &str) -> u64 {
        self.dir(&format!("sys/fs/cgroup/memory{p}"))
    }
    fn resolver(&self) -> Resolver {
        Resolver::new(self.0.path())
    }
}

fn process(tgid: u32, exe: &str, cgroup: u64, cgroup_v1: u64) -> crate::model::input::ProcessFact {
    crate::model::input::ProcessFact {
        at: 0,
        key: crate::model::ProcKey { tgid, start_ticks: 1 },
        ppid: 1,
        ns_pid: 0,
        pidns: 0,
        netns: 0,
        uid: 0,
        comm: "x".into(),
        exe: exe.into(),
        argv: Vec::new(),
        cgroup,
        cgroup_v1,
        sig_ign: 0,
        sig_cgt: 0,
    }
}

#[test]
fn finds_ids_in_both_hierarchies() {
    let root = Root::hybrid();
    let (v2, v1) = (root.v2(&format!("/docker/{A}")), root.v1("/x/y"));
    root.write(&format!("sys/fs/cgroup/unified/docker/{A}/cgroup.procs"), "1\n");
    let mut r = root.resolver();
    assert_eq!(r.trees().v1_controller(), Some("memory"));
    let path = |f: CgroupFact| f.path;
    assert_eq!(path(r.resolve(v2, Hierarchy::V2, 1)), Some(format!("/docker/{A}")));
    assert_eq!(path(r.resolve(v1, Hierarchy::V1, 1)).as_deref(), Some("/x/y"));
    assert_eq!(path(r.resolve(v1, Hierarchy::V2, 100 * MS)), None);
    assert_eq!(path(r.resolve(0, Hierarchy::V2, 200 * MS)), None);
    let snapshot = r.snapshot(300 * MS);
    assert_eq!(snapshot.iter().filter(|f| f.hierarchy == Hierarchy::V2).count(), 3);
    assert_eq!(snapshot.iter().filter(|f| f.hierarchy == Hierarchy::V1).count(), 3);
    assert!(snapshot.iter().any(|f| f.path.as_deref() == Some("/") && f.hierarchy == Hierarchy::V2));
}

#[test]
fn removed_cgroups_keep_their_path() {
    let root = Root::hybrid();
    let id = root.v2("/a/b");
    let mut r = root.resolver();
    assert!(r.resolve(id, Hierarchy::V2, 1).path.is_some());
    fs::remove_dir(root.path("sys/fs/cgroup/unified/a/b")).unwrap();
    r.snapshot(2);
    assert_eq!(r.resolve(id, Hierarchy::V2, 3).path.as_deref(), Some("/a/b"));
    assert!(r.cgroups(Hierarchy::V2).all(|(_, p)| p != "/a/b"), "but it is not there any more");
}

#[test]
fn unknown_ids_wait_for_the_next_walk() {
    let root = Root::hybrid();
    let mut r = root.resolver();
    let nobody = u64::MAX;
    assert_eq!(r.resolve(nobody, Hierarchy::V2, 1000 * MS).path, None);
    let id = root.v2("/new");
    assert_eq!(r.try_resolve(id, Hierarchy::V2, 1049 * MS), None);
    assert_eq!(r.resolve(id, Hierarchy::V2, 1049 * MS).path, None, "not now");
    assert_eq!(r.due(1049 * MS), []);
    let due = r.due(1050 * MS);
    let of = |id| due.iter().find(|f| f.id == id).map(|f| (f.path.as_deref(), f.at));
    assert_eq!((of(id), of(nobody), due.len()), (Some((Some("/new"), 1050 * MS)), Some((None, 1050 * MS)), 2));
    assert_eq!(r.due(2000 * MS), []);
    assert_eq!(r.resolve(id, Hierarchy::V2, 1050 * MS).path.as_deref(), Some("/new"));
    // Gone is remembered: no walk, so what appears under that id later stays unseen until somebody else causes one.
    assert_eq!(r.resolve(nobody, Hierarchy::V2, 5000 * MS).path, None);
    assert_eq!(r.v2.walked_at, Some(1050 * MS));
}

#[test]
fn what_one_walk_did_not_find_is_looked_for_once_more() {
    let root = Root::hybrid();
    let mut r = root.resolver();
    let id = root.v2("/late");
    // As if the walk had passed it by.
    let (here, aside) = (root.path("sys/fs/cgroup/unified/late"), root.path("aside"));
    fs::rename(&here, &aside).unwrap();
    assert_eq!(r.try_resolve(id, Hierarchy::V2, 1000 * MS), None);
    fs::rename(&aside, &here).unwrap();
    let due = r.due(1050 * MS);
    assert_eq!(due.iter().map(|f| (f.id, f.path.as_deref())).collect::<Vec<_>>(), [(id, Some("/late"))]);
}

#[test]
fn remembers_no_more_than_it_may() {
    let mut ids: BTreeSet<u64> = (0..70_000).collect();
    bound(&mut ids);
    assert_eq!((ids.len(), ids.first()), (GONE_MAX, Some(&(70_000 - GONE_MAX as u64))));
}

#[test]
fn paths_seen_from_a_private_namespace() {
    // We are in /kubepods/pod1/me, our own view of the tree is mounted first, the host's second.
    let root = Root::new(
        "30 29 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup ro\n\
         31 29 0:26 /../../.. /host/cgroup ro - cgroup2 cgroup ro\n",
        "0::/\n",
    );
    root.dir("sys/fs/cgroup");
    let me = "host/cgroup/kubepods/pod1/me";
    root.dir(me);
    let other = root.dir(&format!("host/cgroup/kubepods/pod2/{A}"));
    root.write("host/cgroup/kubepods/cgroup.procs", "1\n22\n");
    root.write(&format!("{me}/cgroup.procs"), &format!("7\n{}\n", std::process::id()));
    let trees = Trees::find(root.0.path());
    let seen = format!("/../../pod2/{A}");
    assert_eq!(trees.absolute(Hierarchy::V2, &seen), Some(format!("/kubepods/pod2/{A}")));
    assert_eq!(trees.id_of(Hierarchy::V2, &seen), Some(other));
    assert_eq!(trees.absolute(Hierarchy::V2, "/").as_deref(), Some("/kubepods/pod1/me"));
    assert_eq!(trees.own_id(root.0.path(), Hierarchy::V2), Some(root.dir(me)));
    assert_eq!(trees.own_id(root.0.path(), Hierarchy::V1), None);
    assert_eq!(trees.absolute(Hierarchy::V2, "/../../../../.."), None, "above the top");
    assert_eq!(trees.id_of(Hierarchy::V2, "/../nobody"), None);
    // The same with our process one level below the namespace's root.
    root.write(&format!("{me}/cgroup.procs"), "");
    root.write(&format!("{me}/init/cgroup.procs"), &format!("{}\n", std::process::id()));
    root.write("proc/self/cgroup", "0::/init\n");
    assert_eq!(Trees::find(root.0.path()).id_of(Hierarchy::V2, &seen), Some(other));
    // Nobody lists us: no guess.
    root.write(&format!("{me}/init/cgroup.procs"), "");
    assert_eq!(Trees::find(root.0.path()).id_of(Hierarchy::V2, &seen), None);
}

#[test]
fn nothing_mounted() {
    let root = Root::new("", "");
    let mut r = root.resolver();
    assert_eq!(r.snapshot(1), []);
    assert_eq!(r.resolve(5, Hierarchy::V2, 2).path, None);
    assert_eq!(r.trees().v1_controller(), None);
    assert!(host_cgroups_to_skip(&Scan::default(), &r).is_empty());
    // A part of a tree that is mounted somewhere is no tree.
    let root = Root::new("1 1 0:1 /kubepods/pod1 /x rw - cgroup2 cgroup rw\n", "0::/\n");
    root.dir("x");
    assert!(root.resolver().trees().dir(Hierarchy::V2).is_none());
}

#[test]
fn host_cgroups_without_interest() {
    let root = Root::hybrid();
    let plain = root.v2("/system.slice/cron.service");
    let deep = root.v2("/user.slice/user-0.slice/session-1.scope");
    let [nginx, shim, supervisor, old, me] =
        ["nginx", "containerd", "sv", "old", "me"].map(|n| root.v2(&format!("/system.slice/{n}.service")));
    root.v2(&format!("/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{A}.scope/init.scope"));
    root.v2("/kubepods/burstable/pod1-2");
    root.v2(&format!("/docker/{A}"));
    let container_v1 = root.v1(&format!("/docker/{A}"));
    let mut python = process(12, "/usr/bin/python3.11", supervisor, 0);
    python.argv = vec!["python3".into(), "/usr/bin/supervisord".into()];
    let scan = Scan {
        processes: vec![
            process(10, "/usr/sbin/nginx", nginx, 0),
            process(11, "/usr/bin/containerd-shim-runc-v2", shim, 0),
            python,
            process(13, "/bin/app", old, container_v1),
            process(14, "/usr/sbin/cron", plain, root.v1("/")),
            process(std::process::id(), "/why502", me, 0),
        ],
        ..Scan::default()
    };
    let mut r = root.resolver();
    assert!(host_cgroups_to_skip(&scan, &r).is_empty(), "nothing is known before the first walk");
    r.snapshot(1);
    let paths: BTreeMap<u64, String> = r.cgroups(Hierarchy::V2).map(|(id, p)| (id, p.to_owned())).collect();
    let skipped = host_cgroups_to_skip(&scan, &r);
    let names: BTreeSet<&str> = skipped.iter().map(|id| paths[id].as_str()).collect();
    let want = ["/system.slice", "/system.slice/cron.service", "/user.slice", "/user.slice/user-0.slice"];
    let last = "/user.slice/user-0.slice/session-1.scope";
    assert_eq!(names, want.into_iter().chain([last]).collect());
    assert!(skipped.contains(&plain) && skipped.contains(&deep));
}

#[test]
fn this_host() {
    let at = 1;
    let mut r = Resolver::new(Path::new("/"));
    let scan = procfs::scan(Path::new("/"), at).unwrap();
    let me = scan.processes.iter().find(|p| p.key.tgid == std::process::id()).unwrap();
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    for (hierarchy, id) in [(Hierarchy::V2, me.cgroup), (Hierarchy::V1, me.cgroup_v1)] {
        let Some(dir) = r.trees().dir(hierarchy).map(Path::to_path_buf) else {
            println!("{hierarchy:?} is not mounted here: not tested");
            continue;
        };
        assert_ne!(id, 0);
        let fact = r.resolve(id, hierarchy, at);
        let path = fact.path.expect("our own cgroup is there");
        assert!(text.lines().any(|l| l.ends_with(&format!(":{path}"))), "{path} is not in {text}");
        assert_eq!(fs::metadata(dir.join(path.trim_start_matches('/'))).unwrap().ino(), id);
    }
}
