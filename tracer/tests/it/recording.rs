//! Recordings: what was written is read again; what was cut or damaged says so, and never more than that.

use crate::samples;
use proptest::prelude::*;
use std::io::{self, Write};
use why502::model::Input;
use why502::sinks::recording::{Damage, HEADER, ReadError, Reader, Writer, time_of};

/// The recording of `inputs`.
pub(crate) fn bytes(inputs: &[Input]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    for input in inputs {
        writer.write(input).unwrap();
    }
    bytes
}

/// A small observation: these tests read it once for each of its bytes.
fn few() -> Vec<Input> {
    let all = samples::inputs();
    let event = all.iter().position(|input| matches!(input, Input::Event(_))).unwrap();
    [&all[..3], &all[event - 1..=event], &all[all.len() - 2..]].concat()
}

/// The inputs that can be read, and what ended the reading.
fn read(bytes: &[u8]) -> (Vec<Input>, Option<ReadError>) {
    let mut inputs = Vec::new();
    match Reader::new(bytes) {
        Err(err) => return (inputs, Some(err)),
        Ok(reader) => {
            for input in reader {
                match input {
                    Ok(input) => inputs.push(input),
                    Err(err) => return (inputs, Some(err)),
                }
            }
        }
    }
    (inputs, None)
}

fn damage(bytes: &[u8]) -> (usize, u64, u64, Damage) {
    match read(bytes) {
        (inputs, Some(ReadError::Corrupt { line, byte, what })) => (inputs.len(), line, byte, what),
        other => panic!("not seen as damaged: {other:?}"),
    }
}

#[test]
fn every_input_comes_back() {
    let inputs = samples::inputs();
    let (again, end) = read(&bytes(&inputs));
    assert!(end.is_none(), "{end:?}");
    assert_eq!(again, inputs);
}

#[test]
fn writing_again_gives_the_same_bytes() {
    let first = bytes(&samples::inputs());
    assert_eq!(bytes(&read(&first).0), first);
}

#[test]
fn lines_are_readable_without_why502() {
    let text = String::from_utf8(bytes(&samples::inputs()[..1])).unwrap();
    let line = text.strip_prefix(HEADER).unwrap().trim_end();
    let (sum, json) = line.split_once(' ').unwrap();
    assert_eq!(sum, format!("{:08x}", crc32fast::hash(json.as_bytes())));
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(value["t"], "started");
}

/// Cut at any byte: all whole lines count, and the message says where it ends.
#[test]
fn cut_at_every_byte() {
    let inputs = few();
    let whole = bytes(&inputs);
    for cut in 0..whole.len() {
        let part = &whole[..cut];
        let (read, end) = read(part);
        let lines = part.iter().filter(|b| **b == b'\n').count() as u64;
        assert_eq!(read, inputs[..read.len()], "cut at byte {cut}");
        assert_eq!(read.len() as u64, lines.saturating_sub(1), "cut at byte {cut}");
        let end = end.expect("a cut recording says so");
        assert!(end.is_cut(), "cut at byte {cut}: {end}");
        match end {
            ReadError::CutInLine { line, byte, read } => {
                assert_eq!((line, byte, read), (lines + 1, cut as u64, lines.saturating_sub(1)));
                assert!(!part.ends_with(b"\n"));
            }
            ReadError::CutAfterLine { line, byte, read } => {
                assert_eq!((line, byte, read), (lines, cut as u64, lines - 1));
                assert!(part.ends_with(b"\n"));
            }
            other => panic!("cut at byte {cut}: {other}"),
        }
    }
}

#[test]
fn messages_name_line_and_byte() {
    let whole = bytes(&samples::inputs());
    let second = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
    let message = read(&whole[..second + 20]).1.unwrap().to_string();
    assert_eq!(
        message,
        format!(
            "recording ends inside line 3 (byte {}): 1 inputs read, the end of the observation is missing",
            second + 20
        )
    );
}

/// One changed byte in any line is noticed, and what lies before it still counts.
#[test]
fn every_changed_byte_is_noticed() {
    let inputs = few();
    let whole = bytes(&inputs);
    let mut changed = whole.clone();
    for at in HEADER.len()..whole.len() {
        changed[at] ^= 0x20;
        let line = whole[..at].iter().rposition(|b| *b == b'\n').unwrap() + 1;
        let (read, end) = read(&changed);
        if at - line < 8 && whole[at].is_ascii_alphabetic() {
            // The same checksum in upper case.
            assert!(end.is_none() && read == inputs, "byte {at}");
        } else {
            let before = whole[..at].iter().filter(|b| **b == b'\n').count() - 1;
            assert_eq!(read, inputs[..before], "byte {at}");
            assert!(end.is_some(), "byte {at}");
        }
        changed[at] = whole[at];
    }
}

#[test]
fn damage_is_named() {
    let inputs = samples::inputs();
    let whole = bytes(&inputs);
    let text = String::from_utf8(whole.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let first = HEADER.len() as u64;

    let with = |line: &str| format!("{HEADER}{line}\n").into_bytes();
    assert!(matches!(damage(&with("short")), (0, 2, at, Damage::NoChecksum) if at == first));
    assert!(matches!(damage(&with("")), (0, 2, _, Damage::NoChecksum)));
    assert!(matches!(damage(&with("+1234567 {}")), (0, 2, _, Damage::NoChecksum)));
    assert!(matches!(damage(&with("00000000 {}")), (0, 2, _, Damage::Checksum { found: 0, .. })));
    let foreign = format!("{:08x} {{\"t\":\"from-the-future\"}}", crc32fast::hash(b"{\"t\":\"from-the-future\"}"));
    assert!(matches!(damage(&with(&foreign)), (0, 2, _, Damage::Json(_))));
    // Order: started first and once, nothing after the end mark.
    assert!(matches!(damage(&with(lines[2])), (0, 2, _, Damage::NoStart)));
    let twice = format!("{HEADER}{}\n{}\n", lines[1], lines[1]);
    assert!(matches!(damage(twice.as_bytes()), (1, 3, _, Damage::SecondStart)));
    let after = format!("{text}{}\n", lines[2]);
    let (read, line, byte, what) = damage(after.as_bytes());
    assert!(matches!(what, Damage::AfterEnd), "{what}");
    assert_eq!((read, line, byte), (inputs.len(), lines.len() as u64 + 1, whole.len() as u64));
}

#[test]
fn other_files_are_refused() {
    for foreign in
        [&b"\x7fELF\x02"[..], b"\n", b"why502-recordin\n", b"{\"type\":\"incident\"}\n", b"why502-recording\n"]
    {
        assert!(matches!(read(foreign).1, Some(ReadError::NotARecording)), "{foreign:?}");
    }
    assert!(matches!(read(&[b'x'; 1000]).1, Some(ReadError::NotARecording)));
    for version in ["1", "00", "", "0 "] {
        let text = format!("why502-recording {version}\n");
        assert!(matches!(read(text.as_bytes()).1, Some(ReadError::Version(v)) if v == version), "{version:?}");
    }
}

/// Takes `room` bytes, then is full; flushing counts.
struct Disk {
    bytes: Vec<u8>,
    room: usize,
    flushes: usize,
}

impl Write for &mut Disk {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(self.room - self.bytes.len());
        if n == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(&buf[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }
}

#[test]
fn a_full_disk_is_said_once_and_leaves_a_readable_recording() {
    let inputs = samples::inputs();
    let whole = bytes(&inputs);
    for room in [HEADER.len(), HEADER.len() + 5, whole.len() / 2, whole.len() - 1] {
        let mut disk = Disk { bytes: Vec::new(), room, flushes: 0 };
        let mut writer = Writer::new(&mut disk).unwrap();
        let errors = inputs.iter().filter(|input| writer.write(input).is_err()).count();
        assert_eq!(errors, 1, "room for {room}");
        assert!(writer.failed());
        assert_eq!(disk.bytes, whole[..disk.bytes.len()], "room for {room}");
        assert!(read(&disk.bytes).1.unwrap().is_cut());
    }
    let mut none = Disk { bytes: Vec::new(), room: 3, flushes: 0 };
    assert!(Writer::new(&mut none).is_err());
}

#[test]
fn flushed_at_ready_once_a_second_and_at_the_end() {
    let second = 1_000_000_000;
    let mut disk = Disk { bytes: Vec::new(), room: usize::MAX, flushes: 0 };
    let mut writer = Writer::new(&mut disk).unwrap();
    writer.write(&Input::Ready { at: 10 * second }).unwrap();
    for tick in 0..100 {
        writer.write(&Input::Tick { at: 10 * second + tick * second / 10 }).unwrap();
    }
    writer.write(&Input::Stopped { at: 20 * second }).unwrap();
    // Header, ready, nine full seconds of ticks, stopped.
    assert_eq!(disk.flushes, 1 + 1 + 9 + 1);
}

#[test]
fn every_input_has_its_time() {
    for input in samples::inputs() {
        assert!(time_of(&input) >= samples::started().at, "{input:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_recording(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (inputs, end) = read(&bytes);
        prop_assert!(end.is_some() && inputs.is_empty());
    }

    #[test]
    fn any_lines_behind_the_header_never_panic(
        lines in proptest::collection::vec("[0-9a-f]{8} \\{\"t\":\"[a-z]{1,9}\",\"at\":[0-9]{1,25}[\\[\\]{},:a-z\"]{0,12}\\}", 0..4),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = HEADER.as_bytes().to_vec();
        for line in &lines {
            // A right checksum lets the JSON through to the parser.
            let json = &line[9..];
            bytes.extend(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).bytes());
        }
        bytes.extend(tail);
        let (_, end) = read(&bytes);
        prop_assert!(end.is_some());
    }

    #[test]
    fn a_whole_recording_with_changed_bytes_never_panics(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let inputs = samples::inputs();
        let mut bytes = bytes(&inputs);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let (read, _) = read(&bytes);
        prop_assert_eq!(&read[..], &inputs[..read.len()]);
    }
}
