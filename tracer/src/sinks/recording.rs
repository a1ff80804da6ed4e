//! Recording v0: the input sequence as it was, one line each, so that the same verdicts can be had again elsewhere.
//!
//! ```text
//! why502-recording 0
//! 5f1c09aa {"t":"started",…}
//! ```
//! A line is the CRC-32 (IEEE) of its JSON in eight hex digits, a space, the JSON of one [`Input`]. Text, so that a
//! recording can be read, cut and compared with ordinary tools; a checksum a line, so that what was damaged is named
//! and what lies before it still counts. The first input is [`Input::Started`], the last one [`Input::Stopped`]: it is
//! the end mark, without it the recording was cut.

use crate::model::{BootNs, Input};
use std::io::{self, BufRead, Write};

/// First word of the first line.
const MAGIC: &str = "why502-recording";
/// The version that is written, and the only one that is read.
pub const VERSION: &str = "0";
/// The first line, with its end.
pub const HEADER: &str = "why502-recording 0\n";
/// Longest line that is believed. An input is a few kilobytes, a process with the longest possible arguments a few
/// megabytes; what is longer must not fill the memory.
pub const MAX_LINE: usize = 16 << 20;
/// What is written is at most this old on the disk, in input time.
const FLUSH_NS: u64 = 1_000_000_000;

/// Why a recording cannot be read further. Lines and bytes count from 1 and from 0.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("not a recording: it does not begin with `{MAGIC}`")]
    NotARecording,
    #[error("a recording of version {0:?}; this why502 reads version {VERSION}")]
    Version(String),
    #[error("line {line} (byte {byte}) is damaged: {what}")]
    Corrupt { line: u64, byte: u64, what: Damage },
    #[error(
        "recording ends inside line {line} (byte {byte}): {read} inputs read, the end of the observation is missing"
    )]
    CutInLine { line: u64, byte: u64, read: u64 },
    #[error(
        "recording ends after line {line} (byte {byte}) without its end mark: {read} inputs read, the end of the \
         observation is missing"
    )]
    CutAfterLine { line: u64, byte: u64, read: u64 },
    #[error("cannot read after byte {byte}: {source}")]
    Io { byte: u64, source: io::Error },
}

impl ReadError {
    /// Cut, not damaged: everything that was read is as it was written.
    pub fn is_cut(&self) -> bool {
        matches!(self, ReadError::CutInLine { .. } | ReadError::CutAfterLine { .. })
    }
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("no checksum at its start")]
    NoChecksum,
    #[error("its checksum is {found:08x}, it should be {wanted:08x}")]
    Checksum { wanted: u32, found: u32 },
    #[error("not an input that this version knows: {0}")]
    Json(serde_json::Error),
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("the first input is not `started`")]
    NoStart,
    #[error("a second `started`")]
    SecondStart,
    #[error("an input after the end mark")]
    AfterEnd,
}

/// Reads a recording: an iterator of its inputs that ends after the first error.
pub struct Reader<R> {
    from: R,
    line: Vec<u8>,
    /// Lines and bytes done with, inputs given out.
    lines: u64,
    bytes: u64,
    inputs: u64,
    ended: bool,
    done: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line. A file that ends inside it is cut, not foreign.
    pub fn new(from: R) -> Result<Self, ReadError> {
        let mut reader = Reader { from, line: Vec::new(), lines: 0, bytes: 0, inputs: 0, ended: false, done: false };
        // A foreign file may have no line end for gigabytes: read no more than a first line can have.
        let complete = reader.read_line(64)?;
        let line = reader.line.as_slice();
        let shared = line.len().min(HEADER.len());
        if !complete && line.len() < HEADER.len() && line == &HEADER.as_bytes()[..shared] {
            return Err(ReadError::CutInLine { line: 1, byte: line.len() as u64, read: 0 });
        }
        let text = str::from_utf8(line).map_err(|_| ReadError::NotARecording)?;
        let version = text.trim_end_matches('\n').strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(' '));
        match version {
            Some(VERSION) if complete => {}
            Some(version) => return Err(ReadError::Version(version.to_string())),
            None => return Err(ReadError::NotARecording),
        }
        reader.next_line();
        Ok(reader)
    }

    /// Inputs read so far.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    /// Fills `self.line` up to and with the line end, or with `max` bytes; false: the file ended, or the line is longer.
    fn read_line(&mut self, max: usize) -> Result<bool, ReadError> {
        self.line.clear();
        let mut limited = io::Read::take(&mut self.from, max as u64);
        let byte = self.bytes;
        limited.read_until(b'\n', &mut self.line).map_err(|source| ReadError::Io { byte, source })?;
        Ok(self.line.last() == Some(&b'\n'))
    }

    fn next_line(&mut self) {
        self.lines += 1;
        self.bytes += self.line.len() as u64;
    }

    fn read_input(&mut self) -> Result<Option<Input>, ReadError> {
        let complete = self.read_line(MAX_LINE)?;
        let (line, byte, read) = (self.lines + 1, self.bytes, self.inputs);
        let corrupt = |what| ReadError::Corrupt { line, byte, what };
        if self.line.is_empty() {
            let cut = ReadError::CutAfterLine { line: self.lines, byte, read };
            return if self.ended { Ok(None) } else { Err(cut) };
        }
        if !complete {
            return Err(if self.line.len() >= MAX_LINE {
                corrupt(Damage::TooLong)
            } else {
                ReadError::CutInLine { line, byte: byte + self.line.len() as u64, read }
            });
        }
        let input = parse(&self.line[..self.line.len() - 1]).map_err(corrupt)?;
        match (&input, self.inputs) {
            _ if self.ended => return Err(corrupt(Damage::AfterEnd)),
            (Input::Started(_), 0) => {}
            (Input::Started(_), _) => return Err(corrupt(Damage::SecondStart)),
            (_, 0) => return Err(corrupt(Damage::NoStart)),
            _ => {}
        }
        self.ended = matches!(input, Input::Stopped { .. });
        self.next_line();
        self.inputs += 1;
        Ok(Some(input))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Input, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read_input().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// One line without its end.
fn parse(line: &[u8]) -> Result<Input, Damage> {
    let (sum, json) = line.split_at_checked(9).ok_or(Damage::NoChecksum)?;
    let sum = sum.strip_suffix(b" ").ok_or(Damage::NoChecksum)?;
    // from_str_radix takes a sign; a checksum has none.
    if !sum.iter().all(u8::is_ascii_hexdigit) {
        return Err(Damage::NoChecksum);
    }
    let found = str::from_utf8(sum).ok().and_then(|s| u32::from_str_radix(s, 16).ok()).ok_or(Damage::NoChecksum)?;
    let wanted = crc32fast::hash(json);
    if found != wanted {
        return Err(Damage::Checksum { wanted, found });
    }
    serde_json::from_slice(json).map_err(Damage::Json)
}

/// Writes a recording. After an error it writes nothing more: what is on the disk is a recording without an end mark,
/// which says of itself that it is cut.
pub struct Writer<W> {
    to: W,
    line: Vec<u8>,
    inputs: u64,
    flushed_at: BootNs,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// Writes the first line. `to` should be buffered.
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(HEADER.as_bytes())?;
        to.flush()?;
        Ok(Writer { to, line: Vec::new(), inputs: 0, flushed_at: 0, failed: false })
    }

    /// Appends one input. The first failure is given back, later calls do nothing: a full disk is said once, and what
    /// is watched goes on being watched.
    pub fn write(&mut self, input: &Input) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        let result = self.try_write(input);
        self.failed = result.is_err();
        result
    }

    fn try_write(&mut self, input: &Input) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, input)?;
        let sum = crc32fast::hash(&self.line);
        write!(self.to, "{sum:08x} ")?;
        self.to.write_all(&self.line)?;
        self.to.write_all(b"\n")?;
        self.inputs += 1;
        let due = match input {
            Input::Ready { .. } | Input::Stopped { .. } => true,
            Input::Tick { at } => at.saturating_sub(self.flushed_at) >= FLUSH_NS,
            _ => false,
        };
        if due {
            self.flushed_at = time_of(input);
            self.to.flush()?;
        }
        Ok(())
    }

    /// Inputs written, all of them readable unless a failure was given back.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    pub fn failed(&self) -> bool {
        self.failed
    }
}

/// The boot time that an input carries.
pub fn time_of(input: &Input) -> BootNs {
    match input {
        Input::Started(fact) => fact.at,
        Input::Event(event) => event.at,
        Input::Process(fact) => fact.at,
        Input::Listener(fact) => fact.at,
        Input::UnixListener(fact) => fact.at,
        Input::Cgroup(fact) => fact.at,
        Input::Loss(fact) => fact.to,
        Input::StopCounters(fact) => fact.at,
        Input::Memory(fact) => fact.at,
        Input::Spec(fact) => fact.at,
        Input::Container(fact) => fact.seen_at,
        Input::Source(fact) => fact.at,
        Input::Kube(fact) => fact.seen_at,
        Input::Carries(fact) => fact.at,
        Input::NginxProbes(fact) => fact.at,
        Input::Ready { at } | Input::Clock { at, .. } | Input::Tick { at } | Input::Stopped { at } => *at,
    }
}
