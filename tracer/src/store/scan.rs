//! The reading side: lines of segments in order, by anybody, also beside a running writer.

use super::line::{Header, Line, MAX_LINE};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a reader holds of a file at a time, bytes.
const BUFFER: usize = 32 << 10;

/// The numbers with which the segments of a directory begin.
pub(super) struct Segments;

impl Segments {
    /// Ascending. What is not a segment's name is somebody else's.
    pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
        let mut firsts = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name();
            firsts.extend(name.to_str().and_then(first_of));
        }
        firsts.sort_unstable();
        Ok(firsts)
    }
}

pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}.log")
}

fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|d| d.len() == 20 && d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// The header of a segment; `None`: damaged.
pub(super) fn header(path: &Path) -> io::Result<Option<Header>> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?.take(4096)).read_until(b'\n', &mut line)?;
    Ok(line.strip_suffix(b"\n").and_then(Header::parse))
}

/// Reads on from a number, and goes on when more was written: [`Scan::next`] gives `None` at the end for now.
pub struct Scan {
    dir: PathBuf,
    /// The segment that is read, and where in it.
    at: Option<Place>,
    /// The last number that was given, or passed.
    seq: u64,
    /// Lines that are not what was written.
    pub damaged: u64,
    line: Vec<u8>,
}

struct Place {
    first: u64,
    file: BufReader<File>,
    /// Begin of the next line.
    offset: u64,
    /// A newer segment was seen: nothing is added to this one any more.
    closed: bool,
}

/// A record and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    /// One JSON object, without a line end.
    pub json: String,
}

impl Scan {
    /// Everything after the number `after`.
    pub fn after(dir: &Path, after: u64) -> Scan {
        Scan { dir: dir.to_path_buf(), at: None, seq: after, damaged: 0, line: Vec::new() }
    }

    /// The last number that was given or passed.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The next record with a number of `upto` at most.
    pub fn next(&mut self, upto: u64) -> io::Result<Option<Record>> {
        while self.seq < upto {
            if self.at.is_none() && !self.advance()? {
                return Ok(None);
            }
            let Some(place) = &mut self.at else { return Ok(None) };
            if !read_line(place, &mut self.line)? {
                if !place.closed {
                    // Once more, and then on: between this look and the last line there may have been another one.
                    let firsts = Segments::list(&self.dir)?;
                    place.closed = firsts.last().is_some_and(|newest| *newest > place.first);
                    if !place.closed && firsts.contains(&place.first) && place.is_replaced(&self.dir) {
                        *place = Place::open(&self.dir, place.first)?;
                    } else if !place.closed {
                        return Ok(None);
                    }
                } else if !self.advance()? {
                    return Ok(None);
                }
                continue;
            }
            let read = self.line.len() as u64;
            let line = self.line.strip_suffix(b"\n").unwrap_or_default();
            match Line::parse(line) {
                Some(line) if line.seq > upto => {
                    // Not synced yet: it is read again later.
                    place.file.seek(SeekFrom::Start(place.offset))?;
                    return Ok(None);
                }
                Some(line) => {
                    place.offset += read;
                    if line.seq > self.seq {
                        self.seq = line.seq;
                        return Ok(Some(Record { seq: line.seq, json: line.json.to_owned() }));
                    }
                }
                None => {
                    if place.offset > 0 || Header::parse(line).is_none() {
                        self.damaged += 1;
                    }
                    place.offset += read;
                }
            }
        }
        Ok(None)
    }

    /// To the next segment; false: there is none.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            let firsts = Segments::list(&self.dir)?;
            let next = match &self.at {
                Some(place) => firsts.into_iter().find(|first| *first > place.first),
                None => {
                    let start = firsts.iter().rposition(|first| *first <= self.seq.saturating_add(1)).unwrap_or(0);
                    firsts.get(start).copied()
                }
            };
            let Some(first) = next else { return Ok(false) };
            match Place::open(&self.dir, first) {
                Ok(place) => {
                    self.at = Some(place);
                    return Ok(true);
                }
                // Retention was faster: what it took is passed over.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Place {
    fn open(dir: &Path, first: u64) -> io::Result<Place> {
        let file = BufReader::with_capacity(BUFFER, File::open(dir.join(file_name(first)))?);
        Ok(Place { first, file, offset: 0, closed: false })
    }

    /// The writer gave this file up before anything of it was synced, and made another one of the same name.
    fn is_replaced(&self, dir: &Path) -> bool {
        let inode = |meta: io::Result<std::fs::Metadata>| meta.map(|meta| meta.ino()).ok();
        inode(dir.join(file_name(self.first)).metadata()) != inode(self.file.get_ref().metadata())
    }
}

/// A whole line into `line`; false: there is none yet, and the file stands where it stood. A line that is too long is given
/// in pieces, each of which is damaged.
fn read_line(place: &mut Place, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    (&mut place.file).take(MAX_LINE as u64).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') || line.len() == MAX_LINE {
        return Ok(true);
    }
    place.file.seek(SeekFrom::Start(place.offset))?;
    Ok(false)
}

/// The segments of a directory that can hold a number below `before`, newest first, each with the number that it ends
/// before.
pub(super) fn backwards(dir: &Path, before: u64) -> io::Result<Vec<(u64, u64)>> {
    let firsts = Segments::list(dir)?;
    let ends = firsts.iter().skip(1).copied().chain([u64::MAX]);
    let mut spans: Vec<(u64, u64)> = firsts.iter().copied().zip(ends).filter(|(first, _)| *first < before).collect();
    spans.reverse();
    Ok(spans)
}
