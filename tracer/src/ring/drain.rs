//! Reads the ring buffer to its end each time, decodes, and hands out events in order of time.
//!
//! The probes wake the reader only when much is pending (a wake-up costs more than a record), so it also reads by timer.
//! The clock is read *before* the ring: what was written before that moment is then in the batch, and everything up to
//! that moment minus the reorder window can be released.

use super::decode::{self, DecodeError};
use super::reorder::{Released, Reorder, WINDOW};
use super::shed::{self, Shed};
use crate::kernel::clock;
use crate::model::event::{Event, EventKind, Task};
use crate::model::input::{LossFact, LossKind};
use crate::model::{BootNs, EventId};
use crate::sources::procfs;
use aya::maps::{MapData, RingBuf};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use why502_ebpf::NGINX_FORMAT;
use why502_ebpf::names::{HOOKS, hook};
use why502_ebpf::quality::NO_FORMAT;

/// Records read in one go, so that a flood cannot starve what follows, and takes no more than some 10 MiB at once.
const BATCH: usize = 8_192;

/// The result of one pass over the ring.
#[derive(Debug, Default)]
pub struct Batch {
    /// In order of time; ids are not given yet (all 0).
    pub events: Vec<Event>,
    /// Every event up to here was handed out, in this batch or before.
    pub watermark: BootNs,
    /// Late and undecodable records of this pass.
    pub losses: Vec<LossFact>,
    /// What was wrong with the first undecodable record, for the log.
    pub undecodable: Option<DecodeError>,
    /// There is more in the ring: call again at once.
    pub more: bool,
}

/// Orders decoded records; the ring itself is in [`Drain`]. Pure.
#[derive(Default)]
pub struct Sequencer {
    reorder: Reorder<Event>,
    newest: BootNs,
    last_pass: BootNs,
    /// Records of this pass that could not be decoded.
    broken: u64,
    first_broken: Option<DecodeError>,
    /// Of tests only.
    shed: Option<Shed>,
}

impl Sequencer {
    /// From now on a share of the records is lost.
    pub fn shed(&mut self, wanted: shed::Wanted) {
        self.shed = Some(Shed::new(wanted));
    }

    /// Takes one record, as bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_with(bytes, |_, _| None);
    }

    /// As [`Sequencer::push`]; `text` is asked for a string of a task's memory that its record could not carry.
    fn push_with(&mut self, bytes: &[u8], text: impl FnOnce(&Task, u64) -> Option<String>) {
        match decode::decode(bytes, EventId(0)) {
            Ok(mut event) => {
                let unread = decode::unread_format(bytes);
                if let (EventKind::NginxLogged(logged), Some(at)) = (&mut event.kind, unread)
                    && let Some(format) = text(&logged.task, at)
                {
                    logged.format = format;
                    event.quality &= !NO_FORMAT;
                }
                self.newest = self.newest.max(event.at);
                if self.shed.as_mut().is_some_and(|shed| shed.takes(hook_of(&event.kind))) {
                    return;
                }
                self.reorder.push(event.at, event);
            }
            Err(e) => {
                self.broken += 1;
                self.first_broken.get_or_insert(e);
            }
        }
    }

    /// Ends a pass that began at `began` (boot ns); `more`: the ring was not read to its end.
    pub fn finish(&mut self, began: BootNs, more: bool) -> Batch {
        // What is still in the ring is about as old as what was read last.
        let reached = if more { began.min(self.newest) } else { began };
        let watermark = reached.saturating_sub(WINDOW);
        self.hand_out(watermark, began, more)
    }

    /// Hands out everything that is held: the end of the observation.
    pub fn flush(&mut self, now: BootNs) -> Batch {
        let mut batch = self.hand_out(BootNs::MAX, now, false);
        batch.watermark = now;
        batch
    }

    fn hand_out(&mut self, watermark: BootNs, now: BootNs, more: bool) -> Batch {
        let from = std::mem::replace(&mut self.last_pass, now);
        let fact = |hook: &str, kind, count| LossFact { from, to: now, hook: hook.to_owned(), kind, count };
        let mut late: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut events = Vec::new();
        for Released { late: is_late, item, .. } in self.reorder.release(watermark) {
            if is_late {
                *late.entry(hook_of(&item.kind)).or_default() += 1;
            }
            events.push(item);
        }
        let mut losses: Vec<LossFact> = late.into_iter().map(|(h, n)| fact(h, LossKind::Late, n)).collect();
        let shed = self.shed.as_mut().map(Shed::taken).unwrap_or_default();
        losses.extend(shed.into_iter().map(|(h, n)| fact(h, LossKind::RingFull, n)));
        if self.broken > 0 {
            losses.push(fact("ring", LossKind::Undecodable, std::mem::take(&mut self.broken)));
        }
        Batch { events, watermark, losses, undecodable: self.first_broken.take(), more }
    }
}

/// The hook that writes this kind of record.
pub fn hook_of(kind: &EventKind) -> &'static str {
    let row = match kind {
        EventKind::SignalGenerated(_) => hook::SIGNAL_GENERATE,
        EventKind::SignalDelivered(_) => hook::SIGNAL_DELIVER,
        EventKind::Forked { .. } => hook::SCHED_PROCESS_FORK,
        EventKind::Execed(_) => hook::SCHED_PROCESS_EXEC,
        EventKind::Exited { .. } => hook::SCHED_PROCESS_EXIT,
        EventKind::TcpState(_) => hook::INET_SOCK_SET_STATE,
        EventKind::ResetSent(_) => hook::TCP_SEND_RESET,
        EventKind::ResetReceived(_) => hook::TCP_RECEIVE_RESET,
        EventKind::SynRetransmitted(_) => hook::TCP_RETRANSMIT_SKB,
        EventKind::OomVictim { .. } => hook::MARK_VICTIM,
        EventKind::UnixDropped(_) => hook::KFREE_SKB,
        EventKind::UnixRefused(_) => hook::UNIX_STREAM_CONNECT,
        EventKind::NginxLogged(_) => hook::NGX_LOG,
        EventKind::NginxErrorPage(_) => hook::NGX_ERROR_PAGE,
    };
    HOOKS[row as usize].name
}

/// The ring buffer with its order.
pub struct Drain {
    ring: AsyncFd<RingBuf<MapData>>,
    sequencer: Sequencer,
    root: PathBuf,
}

impl Drain {
    /// Inside a tokio runtime with I/O enabled. `root`: where /proc is.
    pub fn new(ring: RingBuf<MapData>, root: &Path) -> io::Result<Drain> {
        let sequencer = Sequencer { last_pass: clock::boot_ns(), ..Sequencer::default() };
        // SAFETY: the ring owns its map's descriptor and keeps the same one open until it is dropped, which is after or
        // with this registration: nothing takes it out.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        Ok(Drain { ring, sequencer, root: root.to_owned() })
    }

    /// See [`Sequencer::shed`].
    pub fn shed(&mut self, wanted: shed::Wanted) {
        self.sequencer.shed(wanted);
    }

    /// Returns when the probes wake the reader. Cancel-safe.
    pub async fn woken(&mut self) -> io::Result<()> {
        self.ring.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Reads the ring to its end, or a bounded part of it under a flood.
    pub fn pass(&mut self) -> Batch {
        let began = clock::boot_ns();
        let more = self.read();
        self.sequencer.finish(began, more)
    }

    /// The last pass: reads everything and holds nothing back. Detach the probes before, else the ring may never end.
    pub fn last(&mut self) -> Batch {
        while self.read() {}
        self.sequencer.flush(clock::boot_ns())
    }

    fn read(&mut self) -> bool {
        let ring = self.ring.get_mut();
        for _ in 0..BATCH {
            match ring.next() {
                Some(record) => self
                    .sequencer
                    .push_with(&record, |task, at| procfs::text_of(&self.root, task.key(), at, NGINX_FORMAT - 1)),
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use why502_ebpf as abi;

    const MS: u64 = 1_000_000;

    fn exit(ts: u64, code: u32) -> Vec<u8> {
        let len = size_of::<abi::Exit>();
        let mut r = vec![0; len];
        let mut put = |at: usize, bytes: &[u8]| r[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(abi::Header, ts), &ts.to_ne_bytes());
        put(offset_of!(abi::Header, kind), &abi::kind::EXIT.to_ne_bytes());
        put(offset_of!(abi::Header, len), &(len as u16).to_ne_bytes());
        put(offset_of!(abi::Exit, code), &code.to_ne_bytes());
        r
    }

    fn codes(batch: &Batch) -> Vec<u32> {
        let code = |e: &Event| if let EventKind::Exited { code, .. } = e.kind { code } else { u32::MAX };
        batch.events.iter().map(code).collect()
    }

    #[test]
    fn holds_the_window_back_and_sorts() {
        let mut s = Sequencer::default();
        s.push(&exit(95 * MS, 2));
        s.push(&exit(80 * MS, 1));
        s.push(&exit(99 * MS, 3));
        let batch = s.finish(100 * MS, false);
        assert_eq!((codes(&batch), batch.watermark), (vec![1], 90 * MS));
        assert_eq!(codes(&s.finish(150 * MS, false)), [2, 3]);
    }

    #[test]
    fn a_pass_that_did_not_reach_the_end_releases_only_what_it_passed() {
        let mut s = Sequencer::default();
        s.push(&exit(10 * MS, 1));
        s.push(&exit(30 * MS, 2));
        let batch = s.finish(500 * MS, true);
        assert_eq!((codes(&batch), batch.watermark, batch.more), (vec![1], 20 * MS, true));
    }

    #[test]
    fn late_and_broken_records_are_counted_and_passed_on() {
        let mut s = Sequencer::default();
        s.finish(100 * MS, false);
        s.push(&exit(50 * MS, 1));
        s.push(&[1, 2, 3]);
        s.push(&[0; 16]);
        let batch = s.finish(200 * MS, false);
        assert_eq!(codes(&batch), [1]);
        let loss = |hook: &str, kind, count| LossFact { from: 100 * MS, to: 200 * MS, hook: hook.into(), kind, count };
        let want = [loss("sched_process_exit", LossKind::Late, 1), loss("ring", LossKind::Undecodable, 2)];
        assert_eq!(batch.losses, want);
        assert_eq!(batch.undecodable, Some(DecodeError::NoHeader { len: 3 }));
        assert_eq!(s.finish(300 * MS, false).losses, [], "told once");
    }

    #[test]
    fn what_is_shed_is_a_loss_of_its_hook() {
        let mut s = Sequencer::default();
        s.finish(100 * MS, false);
        s.shed(shed::Wanted { share: 0.999_999, seed: 1 });
        s.push(&exit(120 * MS, 1));
        s.push(&exit(130 * MS, 2));
        let batch = s.finish(200 * MS, false);
        assert_eq!(codes(&batch), [0; 0]);
        let (from, to, hook) = (100 * MS, 200 * MS, "sched_process_exit".into());
        assert_eq!(batch.losses, [LossFact { from, to, hook, kind: LossKind::RingFull, count: 2 }]);
    }

    #[test]
    fn the_end_hands_out_what_is_held() {
        let mut s = Sequencer::default();
        s.push(&exit(99 * MS, 1));
        let batch = s.flush(100 * MS);
        assert_eq!((codes(&batch), batch.watermark), (vec![1], 100 * MS));
    }
}
