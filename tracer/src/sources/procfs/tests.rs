use super::*;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use tempfile::TempDir;

/// A root directory with a made-up /proc.
struct Root(TempDir);

impl Root {
    fn new() -> Root {
        let root = Root(tempfile::tempdir().unwrap());
        root.write("proc/self/mountinfo", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        root.write("proc/self/cgroup", "0::/\n");
        root.write("proc/uptime", "1 1\n");
        fs::create_dir_all(root.path("sys/fs/cgroup/docker/x")).unwrap();
        root
    }
    fn path(&self, p: &str) -> PathBuf {
        self.0.path().join(p)
    }
    fn write(&self, p: &str, text: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(p).parent().unwrap()).unwrap();
        fs::write(self.path(p), text).unwrap();
    }
    fn link(&self, p: &str, to: &str) {
        fs::create_dir_all(self.path(p).parent().unwrap()).unwrap();
        symlink(to, self.path(p)).unwrap();
    }
    fn process(&self, pid: u32, comm: &str, state: char, netns: u32) {
        let dir = format!("proc/{pid}");
        let stat = format!("{pid} ({comm}) {state} 1 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {} 1 1 1", 100 + pid);
        self.write(&format!("{dir}/stat"), stat);
        let status = format!("Name:\tx\nUid:\t33\t0\t0\t0\nNSpid:\t{pid}\t3\nSigIgn:\t10\nSigCgt:\t20\n");
        self.write(&format!("{dir}/status"), status);
        self.write(&format!("{dir}/cmdline"), "nginx: master process nginx\0");
        self.write(&format!("{dir}/cgroup"), "4:memory:/m\n0::/docker/x\n");
        self.link(&format!("{dir}/exe"), "/usr/sbin/nginx");
        self.link(&format!("{dir}/ns/pid"), "pid:[41]");
        self.link(&format!("{dir}/ns/net"), &format!("net:[{netns}]"));
    }
    fn scan(&self) -> Scan {
        scan(self.0.path(), 1000).unwrap()
    }
}

const HEAD: &str = "  sl  local_address rem_address   st\n";

fn listen(port: u16, inode: u64) -> String {
    format!("   0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0\n")
}

#[test]
fn a_process() {
    let root = Root::new();
    root.process(7, "a) S 9\n(b", 'S', 4);
    let scan = root.scan();
    assert_eq!(scan.unreadable, 0);
    let [p] = &scan.processes[..] else { panic!("{scan:?}") };
    assert!(p.at >= 1000);
    let want = ProcessFact {
        at: p.at,
        key: ProcKey { tgid: 7, start_ticks: 107 },
        ppid: 1,
        ns_pid: 3,
        pidns: 41,
        netns: 4,
        uid: 33,
        comm: "a) S 9\n(b".into(),
        exe: "/usr/sbin/nginx".into(),
        argv: vec!["nginx: master process nginx".into()],
        cgroup: fs::metadata(root.path("sys/fs/cgroup/docker/x")).unwrap().ino(),
        cgroup_v1: 0,
        sig_ign: 0x10,
        sig_cgt: 0x20,
    };
    assert_eq!(p, &want);
    assert_eq!(read_process(root.0.path(), 7, p.at).unwrap(), want);
}

#[test]
fn processes_that_are_not_there() {
    let root = Root::new();
    root.process(7, "zombie", 'Z', 4);
    fs::create_dir_all(root.path("proc/8")).unwrap(); // it vanished between the listing and the reading
    root.write("proc/9/stat", "garbage");
    root.write("proc/10/stat", "10 (kworker) S 2 0 0 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 5 1");
    let scan = root.scan();
    assert_eq!(scan.processes.iter().map(|p| p.key.tgid).collect::<Vec<_>>(), [10]);
    assert_eq!((scan.processes[0].exe.as_str(), scan.processes[0].netns), ("", 0));
    assert_eq!(scan.unreadable, 1);
    let error = |pid| read_process(root.0.path(), pid, 1).unwrap_err();
    assert_eq!(error(7).kind(), io::ErrorKind::NotFound);
    assert_eq!(error(8).kind(), io::ErrorKind::NotFound);
    assert_eq!(error(9).kind(), io::ErrorKind::InvalidData);
    assert!(error(9).to_string().contains("proc/9/stat"));
    let none = tempfile::tempdir().unwrap();
    assert!(super::scan(none.path(), 1).unwrap_err().to_string().contains("proc"));
}

#[test]
fn a_dead_leader_with_living_threads_lives() {
    let root = Root::new();
    root.process(7, "x", 'Z', 4);
    let text = fs::read_to_string(root.path("proc/7/stat")).unwrap();
    root.write("proc/7/stat", text.replace(" 20 0 1 0 ", " 20 0 2 0 "));
    assert_eq!(root.scan().processes.len(), 1);
}

#[test]
fn listeners_of_each_namespace_once() {
    let root = Root::new();
    for (pid, netns) in [(7, 4), (8, 4), (9, 5), (10, 4)] {
        root.process(pid, "nginx", 'S', netns);
    }
    // 7 has no table any more, 8 speaks for namespace 4.
    root.write("proc/8/net/tcp", format!("{HEAD}{}{}", listen(80, 501), listen(80, 502)));
    root.write("proc/8/net/tcp6", HEAD);
    root.write("proc/10/net/tcp", format!("{HEAD}{}", listen(81, 900)));
    root.write("proc/9/net/tcp", format!("{HEAD}{}", listen(9000, 501)));
    root.link("proc/7/fd/5", "socket:[501]");
    root.link("proc/7/fd/6", "socket:[501]");
    root.link("proc/8/fd/5", "socket:[501]");
    root.link("proc/8/fd/6", "/dev/null");
    root.link("proc/9/fd/6", "socket:[502]");
    let found: Vec<_> = root
        .scan()
        .listeners
        .into_iter()
        .map(|l| (l.netns, l.port, l.inode, l.holders.iter().map(|h| h.tgid).collect::<Vec<_>>()))
        .collect();
    assert_eq!(found, [(4, 80, 501, vec![7, 8]), (4, 80, 502, vec![]), (5, 9000, 501, vec![])]);
}

#[test]
fn this_host() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let six = TcpListener::bind("[::1]:0");
    let scan = scan(Path::new("/"), 1).unwrap();
    let me = scan.processes.iter().find(|p| p.key.tgid == std::process::id()).unwrap();
    let inode = |p: &str| u32::try_from(fs::metadata(p).unwrap().ino()).unwrap();
    assert_eq!((me.netns, me.pidns), (inode("/proc/self/ns/net"), inode("/proc/self/ns/pid")));
    assert_eq!(Path::new(&me.exe), std::env::current_exe().unwrap());
    assert_eq!(me.uid, rustix::process::getuid().as_raw());
    assert_eq!(me.argv.first(), std::env::args().next().as_ref());
    // SIGPIPE is ignored by Rust's start-up code.
    assert_ne!(me.sig_ign & 1 << 12, 0);
    let mut sockets = vec![&socket];
    match &six {
        Ok(six) => sockets.push(six),
        Err(e) => println!("no IPv6 here ({e}): its table is not tested"),
    }
    for socket in sockets {
        let local = socket.local_addr().unwrap();
        let found: Vec<_> =
            scan.listeners.iter().filter(|l| (l.netns, l.ip, l.port) == (me.netns, local.ip(), local.port())).collect();
        let [found] = found[..] else { panic!("{local}: {found:?}") };
        assert!(found.holders.contains(&me.key));
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some(format!("socket:[{}]", found.inode).as_str()));
    }
    // The same key as an event's task would have: start time of the leader in ticks.
    let again = read_process(Path::new("/"), std::process::id(), me.at).unwrap();
    assert_eq!(again.key, me.key);
    assert_eq!(read_process(Path::new("/"), u32::MAX, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn unix_listeners_of_php_fpm_only() {
    let root = Root::new();
    for (pid, name, netns) in [(7, "php-fpm8.2", 4), (8, "php-fpm8.2", 4), (9, "gunicorn", 4), (10, "php-fpm8.2", 5)] {
        root.process(pid, name, 'S', netns);
        fs::remove_file(root.path(&format!("proc/{pid}/exe"))).unwrap();
        root.link(&format!("proc/{pid}/exe"), &format!("/usr/sbin/{name}"));
        root.write(&format!("proc/{pid}/cmdline"), "x\0");
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
                     0: 00000002 00000000 00010000 0001 01 41 /run/php.sock\n\
                     1: 00000002 00000000 00010000 0001 01 42 /run/gunicorn.sock\n\
                     2: 00000003 00000000 00000000 0001 03 43 /run/php.sock\n";
        root.write(&format!("proc/{pid}/net/unix"), table);
    }
    root.link("proc/7/fd/5", "socket:[41]");
    root.link("proc/8/fd/0", "socket:[41]");
    root.link("proc/9/fd/5", "socket:[42]");
    let scan = root.scan();
    let found: Vec<_> =
        scan.unix_listeners.iter().map(|l| (l.netns, l.path.as_str(), l.inode, l.holders.len())).collect();
    assert_eq!(found, [(4, "/run/php.sock", 41, 2)]);
    let of = |pid| unix_listeners_of(root.0.path(), pid, 1).len();
    assert_eq!([of(7), of(9), of(10), of(99)], [1, 0, 0, 0]);
}
