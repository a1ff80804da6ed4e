//! One line of a segment.

/// Version of the format; the only one that is read.
const VERSION: &str = "0";
const MAGIC: &str = "why502-store";
/// Longest line that is believed, bytes. An incident is a few kilobytes.
pub(super) const MAX_LINE: usize = 4 << 20;

/// First line of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) age_s: u64,
    pub(super) boot_s: u64,
    pub(super) boot_id: String,
}

/// A record with what the store knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) seq: u64,
    pub(super) age_s: u64,
    pub(super) wall_s: i64,
    pub(super) json: &'a str,
}

fn sealed(rest: &str, to: &mut Vec<u8>) {
    to.extend(format!("{:08x} ", crc32fast::hash(rest.as_bytes())).bytes());
    to.extend(rest.bytes());
    to.push(b'\n');
}

/// What stands after the checksum, when it fits. `line` is without its end.
fn opened(line: &[u8]) -> Option<&str> {
    let (sum, rest) = line.split_at_checked(9)?;
    let sum = str::from_utf8(sum).ok()?.strip_suffix(' ')?;
    let plain = sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let found = u32::from_str_radix(sum, 16).ok().filter(|_| plain)?;
    (found == crc32fast::hash(rest)).then(|| str::from_utf8(rest).ok())?
}

impl Header {
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        sealed(&format!("{MAGIC} {VERSION} {} {} {}", self.age_s, self.boot_s, self.boot_id), to);
    }

    pub(super) fn parse(line: &[u8]) -> Option<Header> {
        let rest = opened(line)?.strip_prefix(MAGIC)?.strip_prefix(' ')?.strip_prefix(VERSION)?.strip_prefix(' ')?;
        let mut words = rest.splitn(3, ' ');
        let (age_s, boot_s) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Header { age_s, boot_s, boot_id: words.next()?.to_owned() })
    }
}

impl<'a> Line<'a> {
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        sealed(&format!("{} {} {} {}", self.seq, self.age_s, self.wall_s, self.json), to);
    }

    pub(super) fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        let mut words = opened(line)?.splitn(4, ' ');
        let (seq, age_s) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Line { seq, age_s, wall_s: words.next()?.parse().ok()?, json: words.next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let line = Line { seq: 17, age_s: 3, wall_s: -5, json: "{\"a\": \"b c\"}" };
        let mut bytes = Vec::new();
        line.write(&mut bytes);
        assert_eq!(bytes.pop(), Some(b'\n'));
        assert_eq!(Line::parse(&bytes), Some(line));
        assert_eq!(Header::parse(&bytes), None);
        let header = Header { age_s: 9, boot_s: 8, boot_id: "0a53-11".into() };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        bytes.pop();
        assert_eq!(Header::parse(&bytes), Some(header));
        assert_eq!(Line::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn anything_is_borne(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(Line::parse(&bytes), None);
            prop_assert_eq!(Header::parse(&bytes), None);
        }

        #[test]
        fn one_wrong_byte_is_found(at in 0usize..40, flip in 1u8..=255) {
            let mut bytes = Vec::new();
            Line { seq: 17, age_s: 3, wall_s: 1_795_356_202, json: "{\"type\":\"incident\"}" }.write(&mut bytes);
            bytes.pop();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert_eq!(Line::parse(&bytes), None);
        }
    }
}
