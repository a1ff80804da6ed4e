//! The writing side of the files: append, begin a new segment, take old ones away.

use super::Now;
use super::age::{AgeClock, Mark};
use super::line::{Header, Line};
use super::scan::{Segments, file_name};
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Least and greatest size of a segment, bytes: retention takes whole ones.
const SEGMENT: (u64, u64) = (64 << 10, 8 << 20);
/// A segment takes at most so much of the store, by size and by age.
const SHARE: u64 = 16;
/// No segment is closed by age before this, s.
const SEGMENT_AGE_MIN: u64 = 3_600;

/// Retention: the oldest segments go as soon as one of the two is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_bytes: u64,
    pub max_age_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_bytes: 256 << 20, max_age_s: 14 * 86_400 }
    }
}

impl Limits {
    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / SHARE).clamp(SEGMENT.0, SEGMENT.1)
    }

    fn segment_age(&self) -> u64 {
        (self.max_age_s / SHARE).max(SEGMENT_AGE_MIN.min(self.max_age_s))
    }
}

/// Why a store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store {dir}: {why}")]
    Io { dir: PathBuf, why: io::Error },
    #[error("the store {dir}: this user (uid {uid}) may not write there: {why}")]
    NotOurs { dir: PathBuf, uid: u32, why: io::Error },
    #[error("the store {dir} is in use by another why502")]
    InUse { dir: PathBuf },
}

struct Segment {
    first: u64,
    bytes: u64,
    /// Age at its begin; `None`: its header is damaged.
    age_s: Option<u64>,
}

/// The newest segment, open for appending.
struct Open {
    file: File,
    boot_id: String,
    age_s: u64,
}

/// The one writer of a directory.
pub struct Disk {
    dir: PathBuf,
    /// The directory itself, locked: also what is synced when a file was made.
    lock: File,
    limits: Limits,
    /// Oldest first.
    segments: Vec<Segment>,
    open: Option<Open>,
    next: u64,
    age: AgeClock,
    boot_id: String,
    /// Lines of the newest segment that are not what was written.
    damaged: u64,
}

impl Disk {
    /// Opens a store, or makes one. Takes off what a crash left of a half-written line.
    pub fn open(dir: &Path, limits: Limits, now: &Now) -> Result<Disk, StoreError> {
        let io = |why| StoreError::Io { dir: dir.to_path_buf(), why };
        // Incidents name processes and addresses: for the owner only.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let lock = File::open(dir).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse { dir: dir.to_path_buf() }),
            Err(e) => return Err(io(e.into())),
        }
        // Said now, and not with the first lost request. What else keeps a disk from working may pass.
        let may_write = accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        if let Err(e @ (Errno::ACCESS | Errno::ROFS)) = may_write {
            let uid = rustix::process::geteuid().as_raw();
            return Err(StoreError::NotOurs { dir: dir.to_path_buf(), uid, why: e.into() });
        }
        let mut disk = Disk {
            dir: dir.to_path_buf(),
            lock,
            limits,
            segments: Vec::new(),
            open: None,
            next: 1,
            age: AgeClock::resume(None, now),
            boot_id: now.boot_id.clone(),
            damaged: 0,
        };
        disk.recover(now).map_err(io)?;
        Ok(disk)
    }

    fn recover(&mut self, now: &Now) -> io::Result<()> {
        let firsts = Segments::list(&self.dir)?;
        for (i, &first) in firsts.iter().enumerate() {
            let path = self.dir.join(file_name(first));
            if i + 1 < firsts.len() {
                let age_s = super::scan::header(&path)?.map(|header| header.age_s);
                self.segments.push(Segment { first, bytes: path.metadata()?.len(), age_s });
                continue;
            }
            let bytes = std::fs::read(&path)?;
            // A line without its end was never synced, so nobody has seen it.
            let keep = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let mut lines = bytes[..keep].split_inclusive(|b| *b == b'\n').map(|line| &line[..line.len() - 1]);
            let header = lines.next().and_then(Header::parse);
            let mut last: Option<(u64, u64, i64)> = None;
            // Bytes of damaged lines after the last good one.
            let mut doubtful = 0;
            for line in lines {
                match Line::parse(line) {
                    Some(line) if last.is_none_or(|(seq, ..)| line.seq > seq) => {
                        last = Some((line.seq, line.age_s, line.wall_s));
                        doubtful = 0;
                    }
                    Some(_) => {}
                    None => {
                        self.damaged += 1;
                        doubtful += line.len() as u64 + 1;
                    }
                }
            }
            // A number that may have been served is not given again, and there are not more records than bytes.
            self.next = last.map_or(first, |(seq, ..)| seq + 1).saturating_add(doubtful);
            let file = OpenOptions::new().append(true).open(&path)?;
            if keep < bytes.len() {
                file.set_len(keep as u64)?;
            }
            let last = last.map(|(_, age, wall)| (age, wall));
            let mark =
                header.as_ref().map(|h| Mark { boot_id: h.boot_id.clone(), boot_s: h.boot_s, age_s: h.age_s, last });
            // With a damaged header: as if it were of another boot.
            let mark = mark.or_else(|| last.map(|(age_s, _)| Mark { boot_id: String::new(), boot_s: 0, age_s, last }));
            let older = self.segments.last().and_then(|segment| segment.age_s);
            let mark =
                mark.or_else(|| older.map(|age_s| Mark { boot_id: String::new(), boot_s: 0, age_s, last: None }));
            self.age = AgeClock::resume(mark.as_ref(), now);
            self.segments.push(Segment { first, bytes: keep as u64, age_s: header.as_ref().map(|h| h.age_s) });
            self.open = header.filter(|header| header.boot_id == now.boot_id).map(|header| Open {
                file,
                boot_id: header.boot_id,
                age_s: header.age_s,
            });
            if last.is_none() && doubtful == 0 {
                // Made and never used.
                self.drop_newest();
            }
        }
        Ok(())
    }

    /// Appends records (JSON without line ends) and syncs them: all of them are safe, or none is there. Gives the
    /// sequence number of the last one.
    pub fn append<S: AsRef<str>>(&mut self, records: &[S], now: &Now) -> io::Result<u64> {
        let age_s = self.age.now(now.boot_s);
        let done = self.try_append(records, age_s, now);
        match done {
            Ok(bytes) => {
                if let Some(newest) = self.segments.last_mut() {
                    newest.bytes += bytes;
                }
                self.next += records.len() as u64;
                self.retire(now);
                Ok(self.next - 1)
            }
            Err(e) => {
                self.undo();
                Err(e)
            }
        }
    }

    fn try_append<S: AsRef<str>>(&mut self, records: &[S], age_s: u64, now: &Now) -> io::Result<u64> {
        let mut bytes = Vec::new();
        for (seq, json) in (self.next..).zip(records) {
            Line { seq, age_s, wall_s: now.wall_s, json: json.as_ref() }.write(&mut bytes);
        }
        let fresh = self.is_full(age_s);
        if fresh {
            self.begin(age_s, now)?;
        }
        let Some(open) = &mut self.open else { return Err(io::Error::other("no segment is open")) };
        open.file.write_all(&bytes)?;
        open.file.sync_data()?;
        if fresh {
            self.lock.sync_all()?;
        }
        Ok(bytes.len() as u64)
    }

    fn is_full(&self, age_s: u64) -> bool {
        let (Some(open), Some(newest)) = (&self.open, self.segments.last()) else { return true };
        newest.bytes >= self.limits.segment_bytes()
            || age_s.saturating_sub(open.age_s) >= self.limits.segment_age()
            || open.boot_id != self.boot_id
    }

    fn begin(&mut self, age_s: u64, now: &Now) -> io::Result<()> {
        self.open = None;
        let path = self.dir.join(file_name(self.next));
        // What a failure left there and could not be taken away then: nobody has seen anything of it.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        self.segments.push(Segment { first: self.next, bytes: 0, age_s: Some(age_s) });
        let mut header = Vec::new();
        Header { age_s, boot_s: now.boot_s, boot_id: self.boot_id.clone() }.write(&mut header);
        (&file).write_all(&header)?;
        self.segments.last_mut().expect("pushed above").bytes = header.len() as u64;
        self.open = Some(Open { file, boot_id: self.boot_id.clone(), age_s });
        Ok(())
    }

    /// After a failure nothing of what was written since the last success is trusted: what a failed sync left in the
    /// page cache may never come to the disk. The next records begin a new file.
    fn undo(&mut self) {
        let Some(newest) = self.segments.last() else { return };
        if newest.first == self.next {
            return self.drop_newest();
        }
        if let Some(open) = self.open.take() {
            // If this fails too, a line stays that is read once: its number comes again in the next file.
            let _ = open.file.set_len(newest.bytes);
        }
    }

    fn drop_newest(&mut self) {
        self.open = None;
        if let Some(newest) = self.segments.pop() {
            let _ = std::fs::remove_file(self.dir.join(file_name(newest.first)));
        }
    }

    /// Takes away what is too much or too old. The newest segment stays: it says where the numbers go on.
    pub fn retire(&mut self, now: &Now) {
        let age_s = self.age.now(now.boot_s);
        while self.segments.len() > 1 {
            // All of it is older than the begin of the next.
            let old = self.segments[1].age_s.is_some_and(|next| age_s.saturating_sub(next) > self.limits.max_age_s);
            if !old && self.bytes() <= self.limits.max_bytes {
                return;
            }
            let path = self.dir.join(file_name(self.segments[0].first));
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return,
                _ => drop(self.segments.remove(0)),
            }
        }
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Sequence number of the last record, 0 for none.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// The oldest sequence number that can be there.
    pub fn first(&self) -> u64 {
        self.segments.first().map_or(self.next, |segment| segment.first)
    }

    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    pub fn damaged(&self) -> u64 {
        self.damaged
    }
}
