//! Data that comes after the server's close: the keep-alive race and its relatives.

use super::{ANSWER, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LATE, LISTEN, Pair, REQUEST, Tcp, merge, reason};
use crate::fire::manifest::Expect;
use crate::fire::sock::{Client, info, state, wait_state};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;

impl Tcp<'_> {
    /// The digest that a reset carries for a connection which was answered and closed by this process.
    fn digest(&self) -> Value {
        json!({
            "bytes_received": REQUEST.len(), "bytes_sent": ANSWER.len(), "tgid": self.us.tgid,
            "start_ticks": self.us.start_ticks, "sk_cgroup": self.server_cgroup, "newstate": FIN_WAIT1,
            "reported": false, "half_closed": false, "flags": {"$mask": [4, 0]},
        })
    }

    /// The keep-alive race: the server closes, the client's next request is on its way.
    pub(super) fn late_data(&self) -> Result<()> {
        let name = "answered, late data";
        let mut pair = self.answered_at(&self.listener, self.port)?;
        let tuple = self.server_tuple(&pair.client);
        drop(pair.server);
        // A full socket as long as the FIN is not acknowledged; then a TIME_WAIT one, shown with its substate.
        wait_state(self.port, pair.client.port, Some(FIN_WAIT2))?;
        pair.client.stream.write_all(&LATE)?;
        let mut want = self.reply(0x18, LATE.len());
        merge(&mut want, json!({"socket": "time-wait", "digest": self.digest()}));
        let e = self.record(&format!("{name}: reset"), "reset-sent", &tuple, want);
        self.fire.manifest.expect(e.reply_reset().reason(reason::TIMEWAIT_SOCKET))?;
        let none = json!({"kind": "tcp-state", "tuple": tuple});
        self.fire.manifest.expect(Expect::none(&format!("{}: {name}: answered", self.family.name), none))?;
        self.expect_at_client(name, &pair.client, CLOSE_WAIT, REQUEST.len() + LATE.len())
    }

    /// An answered connection of which the server's side is gone without a trace.
    fn gone(&self, listener: &TcpListener, port: u16) -> Result<Client> {
        let limit = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
        let before = std::fs::read_to_string(limit).context(limit)?;
        let Pair { client, server } = self.answered_at(listener, port)?;
        std::fs::write(limit, "0").context(limit)?;
        drop(server);
        let gone = wait_state(port, client.port, None);
        std::fs::write(limit, before.trim()).context(limit)?;
        gone?;
        Ok(client)
    }

    /// Sends data to what [`Self::gone`] left. On a slow machine the client's kernel may say something first (the answer
    /// to a FIN that was sent twice), and be reset for that: then once more.
    fn too_late(&self, port: u16, open: impl Fn() -> Result<(Client, Option<TcpListener>)>) -> Result<Client> {
        for _ in 0..10 {
            let (mut client, listener) = open()?;
            drop(listener);
            match client.stream.write_all(&LATE) {
                Ok(()) => return Ok(client),
                Err(e) if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&e.kind()) => {}
                Err(e) => return Err(e.into()),
            }
        }
        bail!("port {port}: the client is always reset before it says anything")
    }

    /// When not even a TIME_WAIT socket is left, the listener takes the packet, and it is no SYN.
    pub(super) fn late_data_listener(&self) -> Result<()> {
        let name = "answered, gone, late data";
        let client = self.too_late(self.port, || Ok((self.gone(&self.listener, self.port)?, None)))?;
        let mut want = self.reply(0x18, LATE.len());
        let socket = json!({"socket": "full", "state": LISTEN, "sk_cgroup": self.server_cgroup});
        merge(&mut want, socket);
        want["digest"] = self.digest();
        let e = self.record(&format!("{name}: reset"), "reset-sent", &self.server_tuple(&client), want);
        // A full socket: reported by every kernel.
        self.fire.manifest.expect(e.reason(reason::TCP_FLAGS))?;
        self.expect_at_client(name, &client, CLOSE_WAIT, REQUEST.len() + LATE.len())
    }

    /// And when the listener is gone as well.
    pub(super) fn late_data_no_socket(&self) -> Result<()> {
        let name = "answered, all gone, late data";
        let port = self.port + 4;
        let client = self.too_late(port, || {
            let listener = self.family.listener(port, 8)?;
            Ok((self.gone(&listener, port)?, Some(listener)))
        })?;
        let mut want = self.reply(0x18, LATE.len());
        merge(&mut want, json!({"socket": "none", "digest": self.digest()}));
        let e = self.record(&format!("{name}: reset"), "reset-sent", &self.tuple(port, client.port), want);
        self.fire.manifest.expect(e.reply_reset().reason(reason::NO_SOCKET))
    }

    /// Data for a socket that is closed but cannot end, because its answer does not fit into the client's window.
    pub(super) fn orphan(&self) -> Result<()> {
        let name = "data to an orphan";
        let mut pair = self.asked()?;
        let tuple = self.server_tuple(&pair.client);
        pair.server.set_nonblocking(true)?;
        loop {
            match pair.server.write(&[b'a'; 65536]) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        let sent = info(&pair.server)?.bytes_sent;
        ensure!(sent > 0, "nothing sent");
        drop(pair.server);
        let now = state(self.port, pair.client.port)?;
        ensure!(now == Some(FIN_WAIT1), "the socket is in {now:?}");
        pair.client.stream.write_all(&LATE)?;
        let mut want = self.reply(0x18, LATE.len());
        let digest = json!({
            "bytes_received": REQUEST.len(), "bytes_sent": {"$ge": sent}, "tgid": self.us.tgid, "newstate": FIN_WAIT1,
        });
        merge(&mut want, json!({"socket": "full", "sk_cgroup": self.server_cgroup, "digest": digest}));
        let e = self.record(&format!("{name}: reset"), "reset-sent", &tuple, want);
        // A full socket: reported by every kernel.
        self.fire.manifest.expect(e.reason(reason::ABORT_ON_DATA))?;
        self.expect_at_client(name, &pair.client, ESTABLISHED, REQUEST.len() + LATE.len())
    }
}
