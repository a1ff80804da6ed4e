//! The texts of /proc. All of it can hold what a hostile process put there: nothing here panics, and what cannot be read
//! is left out. fs/proc/array.c, net/ipv4/tcp_ipv4.c.

use std::net::{IpAddr, Ipv4Addr};

/// Of /proc/PID/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: String,
    pub(super) state: u8,
    pub(super) ppid: u32,
    pub(super) threads: u32,
    pub(super) start_ticks: u64,
}

/// comm stands in parentheses and may itself hold parentheses, blanks and newlines: its end is the last `)`.
pub(super) fn stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|b| *b == b'(')?;
    let close = bytes.iter().rposition(|b| *b == b')').filter(|c| *c > open)?;
    let comm = String::from_utf8_lossy(&bytes[open + 1..close]).into_owned();
    let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
    // Counted as in proc(5): state is field 3.
    let field = |n: usize| rest.split_ascii_whitespace().nth(n - 3);
    Some(Stat {
        comm,
        state: *field(3)?.as_bytes().first()?,
        ppid: field(4)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
    })
}

/// Of /proc/PID/status; what is missing is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) ns_pid: u32,
    pub(super) uid: u32,
    pub(super) sig_ign: u64,
    pub(super) sig_cgt: u64,
}

/// The kernel escapes newlines in `Name:`, so a line is a line.
pub(super) fn status(bytes: &[u8]) -> Status {
    let mut status = Status::default();
    for line in bytes.split(|b| *b == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let Some((name, value)) = line.split_once(':') else { continue };
        let mut words = value.split_ascii_whitespace();
        match name {
            // Real uid first; the innermost namespace last.
            "Uid" => status.uid = words.next().and_then(|w| w.parse().ok()).unwrap_or(0),
            "NSpid" => status.ns_pid = words.next_back().and_then(|w| w.parse().ok()).unwrap_or(0),
            "SigIgn" => status.sig_ign = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).unwrap_or(0),
            "SigCgt" => status.sig_cgt = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).unwrap_or(0),
            _ => {}
        }
    }
    status
}

/// Of /proc/PID/cgroup: the path in the v2 hierarchy, and in the v1 hierarchy of `controller`.
pub(super) fn cgroup(bytes: &[u8], controller: Option<&str>) -> (Option<String>, Option<String>) {
    let (mut v2, mut v1) = (None, None);
    for line in String::from_utf8_lossy(bytes).lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if hierarchy == "0" && controllers.is_empty() {
            v2 = v2.or_else(|| Some(path.to_owned()));
        } else if controller.is_some_and(|want| controllers.split(',').any(|c| c == want)) {
            v1 = v1.or_else(|| Some(path.to_owned()));
        }
    }
    (v2, v1)
}

/// Of /proc/PID/cmdline, cut like the records' argv.
pub(super) fn cmdline(bytes: &[u8]) -> Vec<String> {
    let bytes = &bytes[..bytes.len().min(256)];
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    bytes[..end].split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect()
}

/// The target of a link like `net:[4026531840]` or `socket:[4711]`.
pub(super) fn bracketed(link: &str, kind: &str) -> Option<u64> {
    link.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// Address, port and inode of the listening sockets in /proc/PID/net/tcp or tcp6.
pub(super) fn listeners(text: &str) -> impl Iterator<Item = (IpAddr, u16, u64)> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        // State 0A is LISTEN; the inode is six fields on.
        if fields.nth(1)? != "0A" {
            return None;
        }
        let inode = fields.nth(5)?.parse().ok()?;
        let (ip, port) = local.split_once(':')?;
        Some((address(ip)?, u16::from_str_radix(port, 16).ok()?, inode))
    })
}

/// A row of the same tables that is a connection with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Connection {
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    pub(super) remote_port: u16,
    pub(super) inode: u64,
}

/// Those that are open on this side: ESTABLISHED or CLOSE_WAIT.
pub(super) fn connections(text: &str) -> impl Iterator<Item = Connection> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let inode = fields.nth(5)?.parse().ok().filter(|inode| *inode != 0)?;
        let port = |text: &str| u16::from_str_radix(text, 16).ok();
        let ((ip, local_port), (_, remote_port)) = (local.split_once(':')?, remote.split_once(':')?);
        let open = matches!(state, "01" | "08");
        open.then_some(Connection {
            ip: address(ip)?.to_canonical(),
            port: port(local_port)?,
            remote_port: port(remote_port)?,
            inode,
        })
    })
}

/// `__SO_ACCEPTCON`, include/linux/net.h: the flag of a socket that listens.
const ACCEPTCON: u32 = 1 << 16;

/// Path and inode of the listening stream sockets in /proc/PID/net/unix, net/unix/af_unix.c unix_seq_show(). A path is what
/// was given to bind(2): it may hold anything but NUL, a newline included, and then ends at it here.
pub(super) fn unix_listeners(text: &str) -> impl Iterator<Item = (String, u64)> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.splitn(8, ' ').skip(3);
        // Flags, type (1: a stream), state; the inode is right-aligned.
        let (flags, kind, _) = (fields.next()?, fields.next()?, fields.next()?);
        let listens = u32::from_str_radix(flags, 16).ok()? & ACCEPTCON != 0;
        if !listens || kind != "0001" {
            return None;
        }
        let rest: Vec<&str> = fields.collect();
        let rest = rest.join(" ");
        let (inode, path) = rest.trim_start().split_once(' ')?;
        (!path.is_empty()).then_some((path.to_owned(), inode.parse().ok()?))
    })
}

/// Each 32 bits of the address are printed as a number in the machine's order.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |i: usize| u32::from_str_radix(hex.get(8 * i..8 * i + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?);
            }
            Some(crate::model::event::canonical_ip(bytes))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_comm() {
        let line = |comm: &str| {
            format!("7 ({comm}) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1000 10 18446744073709551615")
        };
        for comm in ["nginx", "a b", ") S 9 (", "x\n7 (y) R 2", "((", "))", ""] {
            let stat = stat(line(comm).as_bytes()).unwrap();
            assert_eq!(stat, Stat { comm: comm.to_owned(), state: b'S', ppid: 1, threads: 3, start_ticks: 98765 });
        }
        assert_eq!(stat(b"7 (x) S 1"), None);
        assert_eq!(stat(b")("), None);
        let mut raw = line("@@").into_bytes();
        raw[3] = 0xff;
        assert_eq!(stat(&raw).unwrap().comm, "\u{fffd}@");
    }

    #[test]
    fn status_fields() {
        let text = "Name:\ta\\nUid:\t9\nUid:\t33\t34\t35\t36\nNSpid:\t8593\t12\t1\nSigIgn:\t0000000040001000\n\
                    SigCgt:\t0000000198016a07\n";
        let want = Status { ns_pid: 1, uid: 33, sig_ign: 0x4000_1000, sig_cgt: 0x1_9801_6a07 };
        assert_eq!(status(text.as_bytes()), want);
        assert_eq!(status(b"garbage\n:\nUid:\nNSpid:\tx"), Status::default());
    }

    #[test]
    fn cgroup_lines() {
        let text = b"9:name=systemd:/s\n8:pids:/p:with:colons\n4:cpu,memory:/m\n0::/u\n";
        assert_eq!(cgroup(text, Some("memory")), (Some("/u".into()), Some("/m".into())));
        assert_eq!(cgroup(text, Some("pids")).1.as_deref(), Some("/p:with:colons"));
        assert_eq!(cgroup(text, Some("cpuset")).1, None);
        assert_eq!(cgroup(text, None).1, None);
        assert_eq!(cgroup(b"x", None), (None, None));
    }

    #[test]
    fn command_lines() {
        assert_eq!(cmdline(b"nginx\0-g\0daemon off;\0"), ["nginx", "-g", "daemon off;"]);
        assert_eq!(cmdline(b"nginx: master process nginx\0\0\0\0"), ["nginx: master process nginx"]);
        assert_eq!(cmdline(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(cmdline(b""), [""; 0]);
        assert_eq!(cmdline(&[b'x'; 1000])[0].len(), 256);
    }

    #[test]
    fn socket_tables() {
        // As /proc prints them on a little-endian machine, whatever this one is.
        let swap = |hex: &str| if cfg!(target_endian = "little") { hex.to_owned() } else { "0".repeat(hex.len()) };
        let text = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: {}:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
             1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n\
             2: 00000000:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1\n\
             3: broken\n",
            swap("0100007F")
        );
        let found: Vec<_> = listeners(&text).collect();
        assert_eq!(found.len(), 2);
        if cfg!(target_endian = "little") {
            assert_eq!(found[0], (Ipv4Addr::LOCALHOST.into(), 80, 4711));
        }
        assert_eq!(found[1], (Ipv4Addr::UNSPECIFIED.into(), 9000, 4713));
        assert_eq!(address(&"0".repeat(32)), Some("::".parse().unwrap()));
        if cfg!(target_endian = "little") {
            let mapped = address("0000000000000000FFFF00000100007F");
            assert_eq!(mapped, Some(Ipv4Addr::LOCALHOST.into()), "mapped is IPv4");
        }
        assert_eq!(address("é0000000"), None);
    }

    #[test]
    fn unix_socket_tables() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    000000005010491b: 00000003 00000000 00000000 0001 03 6637500\n\
                    000000005010491c: 00000002 00000000 00010000 0001 01 4711 /run/php fpm.sock\n\
                    000000005010491d: 00000002 00000000 00010000 0001 01    12 @abstract\n\
                    000000005010491e: 00000002 00000000 00010000 0001 01 13\n\
                    000000005010491f: 00000002 00000000 00010000 0005 01 14 /run/seqpacket\n\
                    0000000050104920: 00000003 00000000 00000000 0001 03 15 /run/php fpm.sock\n\
                    broken\n";
        let found: Vec<_> = unix_listeners(text).collect();
        assert_eq!(found, [("/run/php fpm.sock".to_owned(), 4711), ("@abstract".to_owned(), 12)]);
    }

    #[test]
    fn links() {
        assert_eq!(bracketed("net:[4026531840]", "net"), Some(4_026_531_840));
        assert_eq!(bracketed("socket:[1]", "net"), None);
        assert_eq!(bracketed("net:[x]", "net"), None);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (stat(&bytes), status(&bytes), cgroup(&bytes, Some("memory")), cmdline(&bytes));
            let text = String::from_utf8_lossy(&bytes);
            let _ = (listeners(&text).count(), bracketed(&text, "net"), address(&text));
        }

        #[test]
        fn any_table(line in "[0-9A-F: ]{0,120}", comm in "\\PC{0,16}") {
            let _ = listeners(&format!("head\n{line}\n")).count();
            let text = format!("1 ({comm}) S 1 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 5 1");
            prop_assert_eq!(stat(text.as_bytes()).map(|s| s.comm), Some(comm));
        }
    }
}
